"""The search of the page, the API and the feed, with the verdicts and the index of meanings of this site."""

from etude.page.listing import Filters
from etude.page.search import finding
from etude.page.search.hybrid import Hit
from etude.page.search.query import Query
from etude.page.web.context import Site


def with_verdict(s: Site, verdict: str) -> frozenset[str]:
    """Papers of which some claim has this verdict."""
    return frozenset(slug for slug, rows in s.verdicts().items() if any(r["verdict"] == verdict for r in rows))


def find_page(
    s: Site, query: Query, filters: Filters, *, limit: int = 50, cursor: str | None = None
) -> tuple[list[Hit], str | None]:
    """Papers for a query, and the cursor of the following page; filters alone give the list that they leave."""
    meaning = s.by_meaning() if query.text and not query.jump else None
    return finding.find_page(
        s.db, query, filters, with_verdict=lambda word: with_verdict(s, word), now=s.now, meaning=meaning, limit=limit,
        cursor=cursor,
    )  # fmt: skip
