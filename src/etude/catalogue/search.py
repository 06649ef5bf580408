"""Finding papers by words, room, tag or a pattern of slugs."""

import unicodedata
from fnmatch import fnmatchcase
from typing import get_args

from etude.catalogue.card import Paper, Room
from etude.catalogue.load import papers
from etude.errors import UsageError


def _plain(text: str) -> str:
    """Lower case without accents, hyphens as blanks."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return bare.casefold().replace("-", " ").replace("_", " ")


def _score(paper: Paper, words: list[str]) -> int:
    """Sum over words of the weight of the best field that holds it; 0 when a word is nowhere."""
    fields = (
        (8, _plain(f"{paper.slug} {paper.title}")),
        (4, _plain(" ".join(paper.tags))),
        (3, _plain(f"{paper.authors} {paper.year} {paper.arxiv or ''}")),
        (2, _plain(paper.summary)),
        (1, _plain(" ".join(c.statement for c in paper.claims))),
    )
    best = [next((weight for weight, text in fields if word in text), 0) for word in words]
    return sum(best) if all(best) else 0


def search(
    text: str = "", *, room: str | None = None, tag: str | None = None, pattern: str | None = None
) -> list[Paper]:
    """Papers that meet every condition given.

    Parameters
    ----------
    text : str
        Words that must all occur in slug, title, tags, authors, year, arXiv number, summary or claims; case,
        accents and hyphens do not matter. Best match first (title before tags before the rest), then by slug.
    room : str, optional
        Only papers of this room.
    tag : str, optional
        Only papers with this tag (case and hyphens do not matter).
    pattern : str, optional
        Shell pattern for the slug, such as ``"*rnn*"``.

    Raises
    ------
    UsageError
        The room does not exist.
    """
    if room is not None and room not in get_args(Room):
        raise UsageError(f"no room is called {room!r}; the rooms are {', '.join(get_args(Room))}")
    words = _plain(text).split()
    ranked: list[tuple[int, Paper]] = []
    for paper in papers():
        if room is not None and paper.room != room:
            continue
        if tag is not None and _plain(tag) not in {_plain(t) for t in paper.tags}:
            continue
        if pattern is not None and not fnmatchcase(paper.slug, pattern):
            continue
        score = _score(paper, words)
        if words and not score:
            continue
        ranked.append((score, paper))
    return [paper for _, paper in sorted(ranked, key=lambda pair: (-pair[0], pair[1].slug))]
