"""One search for the page, the API and the feed: words, meaning, filters alone, verdicts and studies."""

from dataclasses import replace
from typing import Any

from etude.lab.registry import runnable
from etude.page.listing import Filters, listing
from etude.page.search.hybrid import Hit, search
from etude.page.search.query import Query
from etude.page.web.context import Site


def with_verdict(s: Site, verdict: str) -> frozenset[str]:
    """Papers of which some claim has this verdict."""
    return frozenset(slug for slug, rows in s.verdicts().items() if any(r["verdict"] == verdict for r in rows))


def find(s: Site, query: Query, filters: Filters, *, limit: int = 50) -> list[Hit]:
    """Papers for a query; filters alone give the list that they leave, in the order of trending."""
    slugs = filters.slugs
    wanted = [with_verdict(s, word) for word in query.filters.get("verdict", ())]
    wanted += [frozenset(runnable()) for word in query.filters.get("has", ()) if word == "study"]
    for having in wanted:
        slugs = having if slugs is None else slugs & having
    filters = replace(filters, slugs=slugs)
    if query.empty:
        return []
    if not (query.words or query.phrases or query.jump):
        rows: list[dict[str, Any]] = listing(s.db, filters=Filters.of(query, filters), limit=limit, now=s.now).rows
        return [Hit(row, (), False) for row in rows]
    meaning = s.by_meaning() if query.text and not query.jump else None
    return search(s.db, query, filters=filters, meaning=meaning, limit=limit)
