"""One search for the page, the API, the feed and the digest: words, meaning, filters alone, verdicts and studies."""

from collections.abc import Callable
from dataclasses import replace

from etude.lab.registry import runnable
from etude.page.database import Database
from etude.page.listing import Filters, listing
from etude.page.search.hybrid import Hit, Meaning, search
from etude.page.search.lexical import holding
from etude.page.search.query import Query


def find(
    db: Database, query: Query, filters: Filters, *, with_verdict: Callable[[str], frozenset[str]], now: int,
    meaning: Meaning | None = None, limit: int = 50,
) -> list[Hit]:  # fmt: skip
    """Papers for a query; filters and exclusions alone give the list that they leave, in the order of trending.

    `with_verdict` names the papers of which some claim has a verdict.
    """
    slugs = filters.slugs
    wanted = [with_verdict(word) for word in query.filters.get("verdict", ())]
    wanted += [frozenset(runnable()) for word in query.filters.get("has", ()) if word == "study"]
    for having in wanted:
        slugs = having if slugs is None else slugs & having
    filters = replace(filters, slugs=slugs)
    if query.empty:
        return []
    if query.words or query.phrases or query.jump:
        return search(db, query, filters=filters, meaning=meaning, limit=limit)
    without = holding(db.engine.dialect.name, query.excluded) if query.excluded else None
    page = listing(db, filters=Filters.of(query, filters), limit=limit, now=now, without=without)
    return [Hit(row, (), False) for row in page.rows]
