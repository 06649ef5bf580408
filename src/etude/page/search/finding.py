"""One search for the page, the API, the feed and the digest: words, meaning, filters alone, verdicts and studies."""

from collections.abc import Callable
from dataclasses import replace

from etude.errors import UsageError
from etude.lab.registry import runnable
from etude.page.database import Database
from etude.page.listing import Filters, decode_cursor, encode_cursor, listing
from etude.page.search.hybrid import DEPTH, Hit, Meaning, search
from etude.page.search.lexical import holding
from etude.page.search.query import Query


def find(
    db: Database, query: Query, filters: Filters, *, with_verdict: Callable[[str], frozenset[str]], now: int,
    meaning: Meaning | None = None, limit: int = 50,
) -> list[Hit]:  # fmt: skip
    """The first page of `find_page`."""
    return find_page(db, query, filters, with_verdict=with_verdict, now=now, meaning=meaning, limit=limit)[0]


def find_page(
    db: Database, query: Query, filters: Filters, *, with_verdict: Callable[[str], frozenset[str]], now: int,
    meaning: Meaning | None = None, limit: int = 50, cursor: str | None = None,
) -> tuple[list[Hit], str | None]:  # fmt: skip
    """Papers for a query, and the cursor of the following page; None after the last.

    Filters and exclusions alone give the list that they leave, in the order of trending. `with_verdict` names the
    papers of which some claim has a verdict.

    Raises
    ------
    UsageError
        For a broken cursor.
    """

    def named(kind: str, word: str) -> frozenset[str]:
        return with_verdict(word) if kind == "verdict" else frozenset(runnable())

    slugs, barred = filters.slugs, list(filters.barred)
    for kind in ("verdict", "has"):
        for word in query.filters.get(kind, ()):
            slugs = named(kind, word) if slugs is None else slugs & named(kind, word)
        barred += [Filters(slugs=named(kind, word)) for k, word in query.barred if k == kind]
    filters = replace(filters, slugs=slugs, barred=tuple(barred))
    if query.empty:
        return [], None
    if query.words or query.phrases or query.jump:
        start = int(decode_cursor(cursor)[0]) if cursor else 0
        if not 0 <= start <= 2 * DEPTH:  # words and meaning find that many at most
            raise UsageError("the cursor is not valid: start again from the first page")
        hits = search(db, query, filters=filters, meaning=meaning, limit=start + limit + 1)[start:]
        return hits[:limit], encode_cursor((start + limit, 0)) if len(hits) > limit else None
    without = holding(db.engine.dialect.name, query.excluded) if query.excluded else None
    page = listing(db, filters=Filters.of(query, filters), limit=limit, cursor=cursor, now=now, without=without)
    return [Hit(row, (), False) for row in page.rows], page.cursor
