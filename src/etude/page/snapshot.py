"""The page as plain files: whole lists, every paper with its citations, runs and badge, and the API's answers.

What needs a server (search, votes, notes, imports) is not shown: see `Settings.static`.
"""

import json
import re
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path
from shutil import copytree
from typing import Any

import sqlalchemy as sa

from etude.data.progress import track
from etude.page import tables as t
from etude.page.settings import Settings

WRITTEN = "snapshot.json"  # names the files of the last writing, so that the next one can take the old ones away
LISTS = {"/": "index", "/?sort=new": "new", "/?sort=top": "top"}
_LINK = re.compile(r'(<a\b[^>]*?)? ?\b(href|src)="/([^"]*)"')
_NEXT = re.compile(r'<p class="more"><a href="([^"]+)"')


def relative(html: str, depth: int, known: dict[str, str]) -> str:
    """Addresses of pages that are written become relative; a link to any other loses its address."""
    up = "../" * depth

    def turn(match: re.Match[str]) -> str:
        anchor, attribute, rest = match.group(1) or "", match.group(2), match.group(3)
        address, hash_, part = ("/" + unescape(rest)).partition("#")
        target = address[1:] if address.startswith("/static/") else known.get(address)
        if target is None:
            return anchor
        return f'{anchor} {attribute}="{up}{escape(target)}{hash_}{part}"'

    return _LINK.sub(turn, html)


class _Writer:
    """Fetches addresses, writes them raw and remembers which file holds which address."""

    def __init__(self, client: Any, root: Path) -> None:
        self.client, self.root = client, root
        self.known: dict[str, str] = {}

    def write(self, address: str, target: str) -> str:
        answer = self.client.get(address)
        answer.raise_for_status()
        path = self.root / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(answer.text, encoding="utf-8")
        self.known[address] = target
        return str(answer.text)

    def list(self, address: str, stem: str) -> None:
        """A list and all the pages behind it: new.html, new-2.html, ..."""
        number = 1
        while True:
            text = self.write(address, f"{stem}{f'-{number}' if number > 1 else ''}.html")
            following = _NEXT.search(text)
            if following is None:
                return
            address, number = unescape(following.group(1)), number + 1

    def papers(self) -> None:
        """The API's list, all its pages in one file."""
        found: list[Any] = []
        answer: dict[str, Any] = {"next": ""}
        while answer["next"] is not None:
            cursor = {"cursor": answer["next"]} if answer["next"] else {}
            answer = self.client.get("/api/papers", params={"limit": 100} | cursor).json()
            found += answer["papers"]
        path = self.root / "api" / "papers.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"papers": found, "next": None}), encoding="utf-8")
        self.known["/api/papers"] = "api/papers.json"

    def tidy(self) -> None:
        """Take away what a former writing left here and this one did not write, such as papers hidden since."""
        note = self.root / WRITTEN
        before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else []
        written = sorted(set(self.known.values()))
        for target in set(before) - set(written):
            path = self.root / target
            if path.resolve().is_relative_to(self.root.resolve()):
                path.unlink(missing_ok=True)
        note.write_text(json.dumps(written), encoding="utf-8")

    def rewrite(self) -> None:
        for target in self.known.values():
            if target.endswith(".html"):
                path = self.root / target
                text = path.read_text(encoding="utf-8")
                path.write_text(relative(text, target.count("/"), self.known), encoding="utf-8")


def _of_paper(slug: str, runs: list[str], has_badge: bool) -> Iterator[tuple[str, str]]:
    yield f"/paper/{slug}", f"paper/{slug}.html"
    for kind in ("bib", "ris", "csl.json"):
        yield f"/paper/{slug}.{kind}", f"paper/{slug}.{kind}"
    if has_badge:
        yield f"/badge/{slug}.svg", f"badge/{slug}.svg"
    for run in runs:
        yield f"/run/{run}.json", f"run/{run}.json"


def write_site(folder: str | Path, database: str | None = None, base_url: str = "") -> int:
    """Write the static site and return the number of files; what a former writing has too much is taken away.

    Parameters
    ----------
    base_url
        Where the site will be read. An Atom feed needs it, so without it there is none.

    Raises
    ------
    UsageError
        For an address that is none, or a file in the folder's place.
    """
    from fastapi.testclient import TestClient

    from etude import ROOMS, catalogue
    from etude.errors import UsageError
    from etude.page.web.app import create_app

    root = Path(folder)
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file: give a folder")
    settings = Settings(
        database=database, secret="only for this process: no cookie of it lives on", mode="accounts", static=True,
        base_url=base_url.rstrip("/"), embed=False,
    ).check()  # fmt: skip
    app = create_app(settings)
    site = app.state.site
    p = t.paper.c
    papers = site.db.rows(sa.select(p.slug, p.room).where(p.hidden.is_(False)))
    rooms = [room for room in ROOMS if any(r["room"] == room for r in papers)]
    cards = {card.slug for card in catalogue.papers()}
    with TestClient(app, base_url=site.settings.address) as client:
        writer = _Writer(client, root)
        for address, stem in (LISTS | {f"/?room={room}": f"room-{room}" for room in rooms}).items():
            writer.list(address, stem)
        writer.known["/?sort=trending"] = writer.known["/"]
        writer.write("/about", "about.html")
        writer.papers()
        writer.write("/api/verdicts", "api/verdicts.json")
        if settings.base_url:
            writer.write("/feed.atom", "feed.atom")
        for row in track(papers, "papers"):
            slug = row["slug"]
            runs = sorted({v["run"] for v in site.verdicts([slug]).get(slug, []) if v["run"]})
            for address, target in _of_paper(slug, runs, slug in cards):
                writer.write(address, target)
        writer.rewrite()
        writer.tidy()
    copytree(Path(__file__).parent / "web" / "static", root / "static", dirs_exist_ok=True)
    return len(set(writer.known.values()))
