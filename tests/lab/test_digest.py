"""The code digest follows a study to what it reaches, and no further."""

import pytest

from etude.lab import digest
from etude.lab.registry import runnable


@pytest.mark.parametrize("slug", runnable())
def test_a_study_reaches_its_room_and_never_the_lab(slug):
    modules = digest.modules_behind(slug)
    assert modules[0].startswith("etude.")
    assert f"etude.studies.{slug.replace('-', '_')}" in modules
    assert not [m for m in modules if m.startswith(("etude.lab", "etude.catalogue", "etude.cli"))]
    assert len(modules) > 2
    assert digest.code_digest(slug) == digest.code_digest(slug)


def test_a_name_leads_to_its_file_not_to_the_whole_room():
    assert digest._resolve("etude.layers", "mlp") == "etude.layers.mlp"


def test_docstrings_and_comments_do_not_count_code_does():
    import ast

    one = digest._strip(ast.parse('def f(x):\n    """A."""\n    return x + 1\n'))
    two = digest._strip(ast.parse('"""M."""\ndef f(x):\n    # b\n    return x + 1\n'))
    three = digest._strip(ast.parse("def f(x):\n    return x + 2\n"))
    assert one == two
    assert one != three
