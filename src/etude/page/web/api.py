"""The JSON API: papers, claims, related; and the daily papers in the shape that existing clients read."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from etude import catalogue
from etude.errors import UsageError
from etude.lab.console import number
from etude.lab.registry import runnable
from etude.page import tables as t
from etude.page.citations import bibtex, year_of
from etude.page.importers.arxiv_atom import timestamp
from etude.page.listing import by_heat, listing
from etude.page.periods import period_of
from etude.page.search.query import parse
from etude.page.web.context import Site, count_search, site
from etude.page.web.finding import find_page
from etude.page.web.pages import claim_rows, filters_of, find_paper, related_of
from etude.page.web.render import iso

Limit = Annotated[int, Query(ge=1, le=100)]
Since = Annotated[
    str | None,
    Query(max_length=40, description="Papers that came since then: 2026-11-28, an ISO time, or seconds since 1970"),
]
Seed = Annotated[int | None, Query(ge=0, lt=10**9)]


class Problem(BaseModel):
    """What every refusal looks like."""

    error: str


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Refusals of an address, for the OpenAPI file."""
    return {code: {"model": Problem} for code in codes}


def public(row: dict[str, Any]) -> dict[str, Any]:
    """A paper as the API shows it."""
    keys = ("id", "slug", "title", "abstract", "venue", "room", "arxiv_id", "arxiv_version", "doi", "url", "code_url",
            "votes", "source")  # fmt: skip
    return {k: row[k] for k in keys} | {
        "authors": [a["name"] for a in row["authors"]], "runs": row["slug"] in runnable(),
        "published_at": iso(row["published_at"]) or None, "year": year_of(row),
        "submitted_at": iso(row["submitted_at"]),
    }  # fmt: skip


router = APIRouter(prefix="/api", tags=["papers"], responses=problems(422))


def _moment(text: str) -> int:
    """Seconds since 1970 of a date, an ISO time (UTC where it names no zone) or these seconds themselves.

    Raises
    ------
    UsageError
        For other text.
    """
    at = int(text) if text.isascii() and text.isdigit() else timestamp(text)
    if at is None or at >= 2**62:
        raise UsageError(f"since {text!r}: write 2026-11-28, 2026-11-28T07:00:00Z or seconds since 1970")
    return at


@router.get("/papers", responses=problems(400, 429))
def papers(
    request: Request, sort: Literal["trending", "hot", "slow", "new", "top", "random"] = "trending",
    window: Literal["day", "week", "month", "all"] = "all", q: Annotated[str, Query(max_length=500)] = "",
    room: str | None = None, since: Since = None, limit: Limit = 25, cursor: str | None = None,
    seed: Seed = None,
) -> dict[str, Any]:  # fmt: skip
    """A page of papers; `next` is the cursor of the following one. With `q`: what a search finds, best first.

    The random order follows `seed`, which is the day's where none is given.
    """
    s = site(request)
    filters = filters_of(s, request)
    filters = replace(filters, since=_moment(since)) if since else filters
    if q:
        count_search(request)
        hits, following = find_page(s, parse(q), filters, limit=limit, cursor=cursor)
        return {"papers": [public(h.row) | {"reason": h.reason} for h in hits], "next": following}
    page = listing(s.db, sort=sort, window=window, filters=filters, limit=limit, cursor=cursor, now=s.now, seed=seed)
    return {"papers": [public(r) for r in page.rows], "next": page.cursor}


_AS_TEXT = str.maketrans({"&": "&amp;", "<": "&lt;", "[": "&#91;"})  # a title holds no tag and no link


def _claim_lines(s: Site, slug: str) -> list[str]:
    """A list of a card's claims in Markdown, each with the paper's figure and our verdicts; none for other papers."""
    out = []
    for found in claim_rows(s, slug) if slug in {p.slug for p in catalogue.papers()} else []:
        claim = found["claim"]
        said = (claim.paper.text or claim.paper.value) if claim.paper else None
        line = f"- {claim.id}: {claim.statement}" + (f" The paper: {said}." if said else "")
        for v in found["verdicts"]:
            unit, day = "" if v["unit"] == "1" else f" {v['unit']}", iso(v["at"])[:10]
            line += (
                f" Here: {v['verdict'] or 'no verdict'}, effect {number(v['effect'], True)}{unit} "
                f"({number(v['low'])} to {number(v['high'])}), {v['protocol']}, {v['tier']}, n = {v['n']}, {day}."
            )
        out.append(line if found["verdicts"] else f"{line} Here: {found['why_not']}.")
    return out


@router.get("/papers/{slug:path}.md", response_class=PlainTextResponse, responses=problems(404))
def paper_markdown(request: Request, slug: str) -> Response:
    """A paper as Markdown: what it says, and what its claims came to here."""
    s = site(request)
    row = find_paper(s, slug)
    names = ", ".join(a["name"] for a in row["authors"])
    links = [row["url"] or "", f"https://doi.org/{row['doi']}" if row["doi"] else "", row["code_url"] or ""]
    parts = [f"# {row['title']}", names, row["abstract"], *filter(None, links)]
    if claims := _claim_lines(s, row["slug"]):
        parts += ["## Claims, measured again", "\n".join(claims)]
    text = "\n\n".join(parts) + "\n"
    return PlainTextResponse(text.translate(_AS_TEXT), media_type="text/markdown")


@router.get("/papers/{slug:path}.bib", response_class=PlainTextResponse, responses=problems(404))
def paper_bibtex(request: Request, slug: str) -> Response:
    """A paper as BibTeX."""
    return PlainTextResponse(bibtex(find_paper(site(request), slug)), media_type="application/x-bibtex")


@router.get("/papers/{slug:path}/related", responses=problems(404))
def related(
    request: Request, slug: str, sort: Literal["similarity", "date", "heat"] = "similarity"
) -> list[dict[str, Any]]:
    """Papers with a like meaning, as far as their vectors are made."""
    s = site(request)
    return [public(r) for r in related_of(s, find_paper(s, slug)["id"], sort)]


@router.get("/papers/{slug:path}/claims", responses=problems(404))
def claims(request: Request, slug: str) -> list[dict[str, Any]]:
    """A paper's claims with their newest verdicts, a row for each; without one `why_not` says what it lacks."""
    s = site(request)
    name = find_paper(s, slug)["slug"]
    out = []
    for found in claim_rows(s, name) if name in {p.slug for p in catalogue.papers()} else []:
        claim = found["claim"]
        said = claim.paper.model_dump() if claim.paper else None
        own = {"slug": name, "claim": claim.id, "statement": claim.statement, "status": claim.status, "paper": said,
               "metric": claim.metric.name if claim.metric else None}  # fmt: skip
        for row in found["verdicts"] or [{"verdict": None, "why_not": found["why_not"]}]:
            out.append(own | {k: v for k, v in row.items() if k != "strip"})
    return out


@router.get("/papers/{slug:path}", responses=problems(404))  # after the others: old arXiv ids and DOIs hold a slash
def paper(request: Request, slug: str) -> dict[str, Any]:
    """One paper, by its name, its arXiv id or its DOI."""
    return public(find_paper(site(request), slug))


def _published(row: dict[str, Any]) -> str:
    """When it came out; 1 January where only the year is known, the day of the list where nothing is."""
    year = None if row["published_at"] else year_of(row)
    return f"{year:04d}-01-01T00:00:00Z" if year else iso(row["published_at"]) or iso(row["submitted_at"])


def _aside(s: Site, rows: list[dict[str, Any]]) -> tuple[dict[int, int], dict[int, int], dict[int, str]]:
    """What the daily-papers shape asks for beside the papers: shown notes, stars of the code, who submitted."""
    n, e, a = t.note.c, t.enriched.c, t.account.c
    ids = [r["id"] for r in rows]
    counted = sa.select(n.paper_id, sa.func.count().label("n")).where(n.paper_id.in_(ids), n.state == "shown")
    notes = {r["paper_id"]: r["n"] for r in s.db.rows(counted.group_by(n.paper_id))}
    known = s.db.rows(sa.select(e.paper_id, e.record).where(e.paper_id.in_(ids), e.source == "github"))
    stars = {r["paper_id"]: r["record"]["stars"] for r in known if (r["record"] or {}).get("stars") is not None}
    people = {r["submitted_by"] for r in rows if r["submitted_by"] is not None}
    return notes, stars, {r["id"]: r["handle"] for r in s.db.rows(sa.select(a.id, a.handle).where(a.id.in_(people)))}


def daily(row: dict[str, Any], notes: dict[int, int], stars: dict[int, int], handles: dict[int, str]) -> dict[str, Any]:
    """A paper in the daily-papers shape; ids are arXiv's where there is one.

    `publishedAtKnown` is ours: False where `publishedAt` is a guess, so that reading it back invents no date.
    """
    who, extra = handles.get(row["submitted_by"], row["source"]), row["extra"] or {}
    group = extra.get("organization")
    return {
        "paper": {
            "id": row["arxiv_id"] or row["slug"], "title": row["title"], "summary": row["abstract"],
            "authors": [{"name": a["name"], "hidden": False} for a in row["authors"]],
            "publishedAt": _published(row),
            "submittedOnDailyAt": iso(row["submitted_at"]), "upvotes": row["votes"], "githubRepo": row["code_url"],
            "projectPage": row["url"], "githubStars": stars.get(row["id"], extra.get("code_stars")),
            "organization": {"name": group, "fullname": group} if group else None,
            "publishedAtKnown": row["published_at"] is not None,
        },
        "title": row["title"], "publishedAt": _published(row), "numComments": notes.get(row["id"], 0),
        "submittedBy": {"name": who, "fullname": who, "type": "user" if row["submitted_by"] in handles else "source"},
    }  # fmt: skip


@router.get("/daily_papers", responses=problems(400))
def daily_papers(
    request: Request, date: str | None = None, week: str | None = None, month: str | None = None,
    sort: Literal["publishedAt", "trending"] = "publishedAt", limit: Limit = 50,
    p: Annotated[int, Query(ge=0, le=10_000)] = 0, submitter: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Papers of a day, week or month, or the newest, in the shape of the Hugging Face daily papers."""
    s, c = site(request), t.paper.c
    query = sa.select(t.paper).where(c.hidden.is_(False))
    try:
        span = period_of({"date": date, "week": week, "month": month}, s.now)
    except UsageError as error:
        raise HTTPException(400, str(error)) from error
    if span:
        query = query.where(c.submitted_at >= span.start, c.submitted_at < span.end)
    if submitter is not None:  # as `submittedBy` names them
        person = sa.select(t.account.c.id).where(t.account.c.handle == submitter)
        nobody = sa.and_(c.submitted_by.is_(None), c.source == submitter)
        query = query.where(sa.or_(c.submitted_by.in_(person), nobody))
    order = by_heat() if sort == "trending" else [c.submitted_at.desc(), c.id.desc()]
    rows = s.db.rows(query.order_by(*order).limit(limit).offset(p * limit))
    aside = _aside(s, rows)
    return [daily(r, *aside) for r in rows]


@router.get("/verdicts")
def verdicts(request: Request) -> list[dict[str, Any]]:
    """The newest verdict of every claim that was measured."""
    return [row for rows in site(request).verdicts().values() for row in rows]


@router.get("/{path:path}", include_in_schema=False)
def nothing(path: str) -> Response:
    """Every other address below /api."""
    return JSONResponse({"error": f"there is nothing at /api/{path}"}, status_code=404)
