"""Markdown of readers as HTML: raw HTML stays text, then an allow-list of tags; links to http(s) only."""

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

_reader = MarkdownIt("commonmark", {"html": False, "linkify": False}).disable("image")
TAGS = {"p", "br", "em", "strong", "code", "pre", "blockquote", "ul", "ol", "li", "a", "hr"}


def markdown(text: str) -> Markup:
    """HTML that may stand in a page, whatever the text was."""
    clean = nh3.clean(
        _reader.render(text), tags=TAGS, attributes={"a": {"href"}}, url_schemes={"http", "https"},
        link_rel="nofollow noopener ugc",
    )  # fmt: skip
    return Markup(clean)  # the one place where a reader's words become markup: after the allow-list
