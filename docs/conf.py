"""Sphinx configuration: hand-written pages in Markdown, one generated page a paper and a room."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _generate import generate

from etude import __version__

generate(Path(__file__).parent, Path(__file__).parent.parent / "results")

project = "Etude"
author = "the Etude authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
exclude_patterns = ["_build", "README.md"]
html_theme = "furo"
html_title = "Etude"
html_static_path = ["_static"]
html_css_files = ["etude.css"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
# Prose of docstrings is checked by its own tests; a stray unit or formula must not stop the build.
suppress_warnings = [
    "myst.header",
    "docutils",
    "ref.python",
    "ref.ref",
    "ref.term",
    "ref.doc",
    "autodoc",
    "myst.xref_missing",
]
nitpicky = False
