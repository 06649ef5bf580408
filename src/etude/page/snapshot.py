"""The page as plain files: every list, every paper, the API's answers and the feed, with relative addresses."""

import re
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import sqlalchemy as sa

from etude.page import tables as t
from etude.page.settings import Settings

_LINK = re.compile(r'(href|src|action)="/([^"]*)"')


def _addresses(slugs: list[str]) -> Iterator[tuple[str, str]]:
    yield "/", "index.html"
    yield "/about", "about.html"
    yield "/feed.atom", "feed.atom"
    yield "/api/papers?limit=100", "api/papers.json"
    yield "/api/verdicts", "api/verdicts.json"
    for slug in slugs:
        yield f"/paper/{slug}", f"paper/{slug}.html"
        yield f"/paper/{slug}.bib", f"paper/{slug}.bib"


def relative(html: str, depth: int, known: frozenset[str]) -> str:
    """Addresses of pages that are written become relative; the others lead to the list."""
    up = "../" * depth

    def turn(match: re.Match[str]) -> str:
        attribute, rest = match.group(1), match.group(2)
        path = rest.split("?")[0].split("#")[0]
        if path.startswith("static/"):
            return f'{attribute}="{up}{path}"'
        target = {"": "index.html", "about": "about.html", "feed.atom": "feed.atom"}.get(path)
        if target is None and path.startswith("paper/"):
            target = path if "." in path else f"{path}.html"
        return f'{attribute}="{up}{target if target in known else "index.html"}"'

    return _LINK.sub(turn, html)


def write_site(folder: str | Path, database: str | None = None) -> int:
    """Write the static site and return the number of pages."""
    from fastapi.testclient import TestClient

    from etude.page.web.app import create_app

    root = Path(folder)
    app = create_app(Settings(database=database, secret="only for this process: no cookie of it lives on"))
    site = app.state.site
    slugs = [r["slug"] for r in site.db.rows(sa.select(t.paper.c.slug).where(t.paper.c.hidden.is_(False)))]
    pages = list(_addresses(slugs))
    known = frozenset(target for _, target in pages)
    with TestClient(app, base_url=site.settings.address) as client:
        for address, target in pages:
            answer = client.get(address)
            answer.raise_for_status()
            path = root / target
            path.parent.mkdir(parents=True, exist_ok=True)
            text = relative(answer.text, target.count("/"), known) if target.endswith(".html") else answer.text
            path.write_text(text, encoding="utf-8")
    copytree(Path(__file__).parent / "web" / "static", root / "static", dirs_exist_ok=True)
    return len(pages)
