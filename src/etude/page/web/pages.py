"""What readers see: lists, search, papers, runs, imports. No view changes anything."""

import json
import math
import re
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from etude import ROOMS, catalogue
from etude.errors import UsageError
from etude.lab.environment import cores
from etude.lab.export import export_run
from etude.lab.forest import forest_row
from etude.lab.judge import Verdict
from etude.lab.registry import runnable
from etude.page import authorship, citations
from etude.page import tables as t
from etude.page.components import sharing
from etude.page.enrich import known_elsewhere
from etude.page.following import follows_of
from etude.page.heat import FORMULA, HALF_LIVES, rank, score
from etude.page.identity import arxiv_id, doi
from etude.page.library import saved_of
from etude.page.listing import HALF_LIFE, Filters, by_ids, by_slugs, listing, spread, why
from etude.page.notes import MODERATORS, disputed, may_edit, notes_of
from etude.page.periods import archive, period_of
from etude.page.search.query import parse
from etude.page.web.context import Site, count_search, reader, site
from etude.page.web.finding import find_page, with_verdict
from etude.page.web.render import default_sort, render, render_kept

router = APIRouter(include_in_schema=False)
SORTS = {
    "trending": "Trending", "hot": "Hot now", "slow": "Slow burn", "new": "New", "top": "Top", "random": "Random",
}  # fmt: skip
WINDOWS = {"day": "Day", "week": "Week", "month": "Month", "all": "All time"}
VERDICTS = ("holds", "fails", "inconclusive")


def filters_of(s: Site, request: Request) -> Filters:
    """The filters in an address.

    Raises
    ------
    UsageError
        For a room, year, verdict or period that does not exist.
    """
    q = request.query_params
    span = period_of(q, s.now)
    room, year, verdict = q.get("room") or None, q.get("year") or None, q.get("verdict") or None
    if room and room not in ROOMS:
        raise UsageError(f"there is no room {room!r}")
    if year and not re.fullmatch("[0-9]{4}", year):
        raise UsageError(f"{year!r} is no year")
    if verdict and verdict not in VERDICTS:
        raise UsageError(f"{verdict!r} is no verdict: holds, fails or inconclusive")
    slugs = None
    if q.get("runs"):
        slugs = frozenset(runnable())
    if verdict:
        having = with_verdict(s, verdict)
        slugs = having if slugs is None else slugs & having
    years = (int(year), int(year)) if year else (None, None)
    since, until = (span.start, span.end) if span else (None, None)
    return Filters(room=room, tag=q.get("tag") or None, year=years, slugs=slugs, since=since, until=until)


def decorate(s: Site, rows: list[dict[str, Any]], account: int | None, sort: str = "trending") -> list[dict[str, Any]]:
    """Rows with what a list shows: badges, tags, the reader's vote, the score."""
    ids, slugs = [r["id"] for r in rows], [r["slug"] for r in rows]
    badges = s.badges(slugs)
    tags: dict[int, list[str]] = {}
    for r in s.db.rows(sa.select(t.paper_tag).where(t.paper_tag.c.paper_id.in_(ids)).order_by(t.paper_tag.c.tag)):
        tags.setdefault(r["paper_id"], []).append(r["tag"])
    mine = set()
    if account is not None:
        v = t.vote.c
        mine = {
            r["paper_id"] for r in s.db.rows(sa.select(v.paper_id).where(v.account_id == account, v.paper_id.in_(ids)))
        }
    column = {"hot": "heat_12", "slow": "heat_720"}.get(sort, "heat_72")
    can = set(runnable())
    return [
        r | {
            "badge": badges.get(r["slug"]), "tags": tags.get(r["id"], []), "liked": r["id"] in mine,
            "runs": r["slug"] in can, "score": score(r[column], s.now, HALF_LIVES[column]),
        }
        for r in rows
    ]  # fmt: skip


@router.get("/", response_class=HTMLResponse)
def home(request: Request) -> Response:
    return render_kept(request, "home.html.j2", lambda: _home(request))


def _home(request: Request) -> dict[str, Any]:
    s, q = site(request), request.query_params
    filters, period = filters_of(s, request), period_of(q, s.now)
    sort = q.get("sort") or default_sort(q)
    window = "all" if period else q.get("window") or "all"
    seed = _seed(q.get("seed"), s.now)
    page = listing(
        s.db, sort=sort, window=window, filters=filters, cursor=q.get("cursor") or None, now=s.now, seed=seed  # type: ignore[arg-type]
    )  # fmt: skip
    first = 0 if q.get("cursor") else sum(r["pinned"] for r in page.rows)  # they lead the first page, as they are
    rows = page.rows[:first] + spread(page.rows[first:]) if sort in HALF_LIFE else page.rows
    return {
        "rows": decorate(s, rows, reader(request).id, sort), "cursor": page.cursor, "sort": sort, "window": window,
        "sorts": SORTS, "windows": WINDOWS, "rooms": ROOMS, "verdict_words": VERDICTS, "formula": FORMULA,
        "filtered": any(q.get(k) for k in ("room", "tag", "year", "verdict", "runs")), "period": period, "seed": seed,
        "following": period.after if period and period.end <= s.now else None,
    }  # fmt: skip


def _seed(text: str | None, now: int) -> int:
    """The seed of the random order in an address; without one it is the day's."""
    if not text:
        return now // 86_400
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UsageError(f"{text[:40]!r} is no seed: give a whole number")
    return int(text)


@router.get("/archive", response_class=HTMLResponse)
def archive_page(request: Request) -> Response:
    s = site(request)
    return render_kept(request, "archive.html.j2", lambda: {"months": archive(s.db)})


@router.get("/search", response_class=HTMLResponse)
def search_page(request: Request, q: str = "") -> Response:
    s = site(request)
    if q:
        count_search(request)
    query = parse(q)
    hits, cursor = find_page(s, query, filters_of(s, request), cursor=request.query_params.get("cursor"))
    if query.jump and len(hits) == 1:
        return RedirectResponse(f"/paper/{hits[0].row['slug']}", status_code=303)
    rows = decorate(s, [h.row for h in hits], reader(request).id)
    for row, hit in zip(rows, hits, strict=True):
        row["reason"] = hit.reason
    words_only = bool(query.words or query.phrases) and s.by_meaning() is None
    return render(
        request, "search.html.j2", q=q[:500], rows=rows, query=query, cursor=cursor, words_only=words_only,
        problem=s.meaning.problem,
    )  # fmt: skip


_KNOWN_AS = (
    sa.select(t.paper)
    .join(t.alias)
    .where(
        t.alias.c.kind == sa.bindparam("kind"), t.alias.c.value == sa.bindparam("value"), t.paper.c.hidden.is_(False)
    )
)
_NAMED = sa.select(t.paper).where(t.paper.c.slug == sa.bindparam("slug"), t.paper.c.hidden.is_(False))


def find_paper(s: Site, slug: str) -> dict[str, Any]:
    """A paper by its name in addresses, else by its arXiv id or DOI; 404 for others and for hidden ones."""
    rows = s.db.rows(_NAMED, {"slug": slug})
    if not rows:
        found = arxiv_id(slug)
        alias = ("arxiv", found.id) if found else ("doi", doi(slug))
        rows = s.db.rows(_KNOWN_AS, {"kind": alias[0], "value": alias[1]}) if alias[1] else []
    if not rows:
        raise HTTPException(404)
    return rows[0]


RELATED = {
    "similarity": None, "date": lambda r: -(r["published_at"] or r["submitted_at"]), "heat": rank,
}  # fmt: skip


def related_of(s: Site, paper_id: int, order: str = "similarity") -> list[dict[str, Any]]:
    """Papers with a like meaning, as far as their vectors are made.

    Raises
    ------
    UsageError
        For an unknown order.
    """
    if order not in RELATED:
        raise UsageError(f"{order!r} is no order of related papers: {', '.join(RELATED)}")
    s.meaning.refresh()
    rows = by_ids(s.db, s.meaning.related(paper_id))
    key = RELATED[order]
    return rows if key is None else sorted(rows, key=key)


def claim_rows(s: Site, slug: str) -> list[dict[str, Any]]:
    """The claims table of a card: every claim with its newest verdicts, or why there is none."""
    card = catalogue.load(slug)
    said = s.verdicts([slug]).get(slug, [])
    out = []
    for claim in card.claims:
        mine = [v for v in said if v["claim"] == claim.id]
        difference = claim.paper.difference if claim.paper else None
        names = set(Verdict.__dataclass_fields__)
        shown = [
            v | {"strip": forest_row(Verdict(**{k: x for k, x in v.items() if k in names}), difference, 300.0)}
            for v in mine
        ]  # fmt: skip
        why_not = f"not re-tested: {claim.reason or f'asks for tier {claim.tier}'}"
        out.append({"claim": claim, "verdicts": shown, "why_not": None if shown else why_not})
    return out


@router.get("/paper/{slug:path}.bib")
def paper_bib(request: Request, slug: str) -> Response:
    return PlainTextResponse(citations.bibtex(find_paper(site(request), slug)), media_type="application/x-bibtex")


@router.get("/paper/{slug:path}.ris")
def paper_ris(request: Request, slug: str) -> Response:
    text = citations.ris(find_paper(site(request), slug))
    return PlainTextResponse(text, media_type="application/x-research-info-systems")


@router.get("/paper/{slug:path}.csl.json")
def paper_csl(request: Request, slug: str) -> Response:
    return JSONResponse([citations.csl(find_paper(site(request), slug))])


@router.get("/paper/{slug:path}", response_class=HTMLResponse)  # old arXiv ids and DOIs hold a slash
def paper_page(request: Request, slug: str) -> Response:
    s = site(request)
    who = reader(request)
    found = find_paper(s, slug)
    if found["slug"] != slug:  # cards, runs and verdicts go by the one name
        return RedirectResponse(f"/paper/{found['slug']}", status_code=301)
    (row,) = decorate(s, [found], who.id)
    authors = authorship.authors_of(s.db, row["id"])
    followed = follows_of(s.db, who.id) if who.id is not None else []
    editable = may_edit(who.account, row, authors)
    own = authorship.repository_token(s.settings, row["id"], who.id) if who.id is not None else ""
    card = catalogue.load(slug) if slug in {p.slug for p in catalogue.papers()} else None
    runs = [r for r in s.ledger.latest(slug) if not r["record"].get("user_data")] if card else []
    plots = []
    if runs:
        from etude.lab.vega import figure

        plots = [figure(p) for p in runs[0]["record"].get("plots", [])]
    log = t.verdict_log.c
    history = s.db.rows(
        sa.select(t.verdict_log).where(log.slug == slug, log.protocol != "user").order_by(log.id.desc())
    )
    versions = s.db.rows(
        sa.select(t.paper_version).where(t.paper_version.c.paper_id == row["id"]).order_by(t.paper_version.c.n.desc())
    )
    order = request.query_params.get("related") or "similarity"
    built = sharing(slug) if card else []
    named = {r["slug"]: r for r in by_slugs(s.db, [other for other, _ in built])}
    return render(
        request, "paper.html.j2", related=related_of(s, row["id"], order), order=order, orders=RELATED,
        built=[(named[other], parts) for other, parts in built if other in named], paper=row, followed=followed,
        card=card, claims=claim_rows(s, slug) if card else [], runs=runs, known=known_elsewhere(s.db, row["id"]),
        plots=plots, history=history[:60], versions=versions, requests=s.queue.recent(slug=slug, limit=5),
        parts=why(s.db, row["id"], s.now), bibtex=citations.bibtex(row), notes=notes_of(s.db, row["id"], who.account),
        saved=saved_of(s.db, row["id"], who.id), editable=editable, authors=authors, author_token=own,
        mine_state=authorship.state_of(s.db, row["id"], who.id), disputed=disputed(s.db, row["id"]), costs=costs(runs),
    )  # fmt: skip


def costs(runs: list[dict[str, Any]]) -> dict[str, str]:
    """What a quick and a laptop run take on this machine, from the work that the last ones were."""
    spent = {r["tier"]: r["seconds"] / cores() for r in runs}
    words = {"quick": "seconds", "laptop": "some minutes"} | {
        tier: f"about {math.ceil(s)} seconds" if s < 90 else f"about {math.ceil(s / 60)} minutes"
        for tier, s in spent.items()
    }
    return {tier: words[tier] for tier in ("quick", "laptop")}


@router.get("/run/{run_id}.json")
def run_file(request: Request, run_id: str) -> Response:
    """The whole record of a run, as `etude export` writes it; never one on somebody's own data."""
    s = site(request)
    if run_id not in {r["id"] for r in s.ledger.runs() if not r["record"].get("user_data")}:
        raise HTTPException(404)
    text = json.dumps(export_run(s.ledger, run_id), indent=1)
    return Response(text, media_type="application/json", headers={"Content-Disposition": "attachment"})


@router.get("/runs", response_class=HTMLResponse)
def runs_page(request: Request) -> Response:
    return render(request, "runs.html.j2", requests=site(request).queue.recent(limit=100))


@router.get("/runs/{request_id}", response_class=HTMLResponse)
def run_page(request: Request, request_id: str) -> Response:
    """Progress of one request; htmx asks for the fragment, without JavaScript the page refreshes itself.

    The fragment has the page's own address: a browser must not keep it and show it for the page.
    """
    s = site(request)
    try:
        it = s.queue.get(request_id)
    except UsageError as error:
        raise HTTPException(404) from error
    open_ = it["state"] in ("queued", "running")
    part = request.headers.get("hx-request") == "true"
    mine = it["state"] == "queued" and may_withdraw(reader(request).account, it)
    page = render(request, "_progress.html.j2" if part else "run.html.j2", it=it, open=open_, withdraw=mine)
    page.headers.update({"Cache-Control": "no-store", "Vary": "HX-Request"})
    return page


def may_withdraw(account: dict[str, Any] | None, it: dict[str, Any]) -> bool:
    """Whoever asked for a study takes the request back, and moderators do."""
    return account is not None and (account["role"] in MODERATORS or account["handle"] == it["asked_by"])


@router.get("/import", response_class=HTMLResponse)
def import_page(request: Request) -> Response:
    return render(request, "import.html.j2")


@router.get("/submit", response_class=HTMLResponse)
def submit_page(request: Request) -> Response:
    return render(request, "submit.html.j2", rooms=ROOMS, values={}, problem=None)


@router.get("/about", response_class=HTMLResponse)
def about_page(request: Request) -> Response:
    return render(request, "about.html.j2", formula=FORMULA)
