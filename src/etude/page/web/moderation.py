"""Notes on claims, the moderators' page, pins and hidden papers, edits with a check of the version."""

from datetime import UTC, datetime
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from etude import ROOMS, catalogue
from etude.errors import UsageError
from etude.page import authorship, notes
from etude.page import tables as t
from etude.page.records import check_identifiers, make_record
from etude.page.security import safe_next
from etude.page.store import EditConflict
from etude.page.web.context import Forbidden, Site, check_form, count, require_account, require_role, site
from etude.page.web.pages import find_paper
from etude.page.web.render import iso, render

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]
FIELDS = (
    "title", "abstract", "authors", "published_at", "venue", "room", "arxiv_id", "doi", "url", "code_url", "tags",
)  # fmt: skip


@router.post("/paper/{slug}/notes")
def note_form(
    request: Request, slug: str, csrf: Text, text: Text = "", claim: Text = "", kind: Text = "note"
) -> Response:
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    paper = find_paper(s, slug)
    count(request, "note")
    with s.db.begin() as c:
        card = paper["slug"]
        known = frozenset(x.id for x in catalogue.load(card).claims) if _has_card(card) else frozenset()
        notes.add_note(c, paper["id"], account, text, claim=claim or None, now=s.now, known=known, kind=kind)
    return RedirectResponse(f"/paper/{paper['slug']}#notes", status_code=303)


def _has_card(slug: str) -> bool:
    return slug in {p.slug for p in catalogue.papers()}


@router.post("/notes/{note_id}/delete")
def note_back(request: Request, note_id: int, csrf: Text, slug: Text) -> Response:
    """The writer takes a note back."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    paper = find_paper(s, slug)
    with s.db.begin() as c:
        notes.take_back(c, note_id, account["id"])
    return RedirectResponse(f"/paper/{paper['slug']}#notes", status_code=303)


@router.post("/notes/{note_id}/state")
def note_state(request: Request, note_id: int, csrf: Text, state: Text, next: Text = "") -> Response:
    check_form(request, csrf)
    by = require_role(request, *notes.MODERATORS)
    s = site(request)
    with s.db.begin() as c:
        notes.judge_note(c, note_id, state, by, s.now)
    return RedirectResponse(safe_next(next, "/moderation"), status_code=303)


@router.get("/moderation", response_class=HTMLResponse)
def moderation_page(request: Request) -> Response:
    require_role(request, *notes.MODERATORS)
    s = site(request)
    p = t.paper.c
    marked = s.db.rows(sa.select(t.paper).where(sa.or_(p.hidden, p.pinned)).order_by(p.id))
    log = s.db.rows(sa.select(t.audit).order_by(t.audit.c.id.desc()).limit(100))
    return render(
        request,
        "moderation.html.j2",
        waiting=notes.waiting(s.db),
        marked=marked,
        log=_readable(s, log),
        claims=authorship.waiting(s.db),
    )


def _readable(s: Site, log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of the log with the handle and the paper that their numbers mean, as far as these are still here."""
    people, papers = ({r["record"].get(k) for r in log} - {None} for k in ("account", "paper"))
    a, p = t.account.c, t.paper.c
    handles = {r["id"]: r["handle"] for r in s.db.rows(sa.select(a.id, a.handle).where(a.id.in_(people)))}
    slugs = {r["id"]: r["slug"] for r in s.db.rows(sa.select(p.id, p.slug).where(p.id.in_(papers)))}
    return [
        r | {
            "handle": handles.get(r["record"].get("account")), "slug": slugs.get(r["record"].get("paper")),
            "rest": {k: v for k, v in r["record"].items() if k not in ("account", "paper")},
        }
        for r in log
    ]  # fmt: skip


@router.post("/paper/{slug}/flag")
def flag_form(request: Request, slug: str, csrf: Text, flag: Text, wanted: Annotated[bool, Form()]) -> Response:
    """An admin pins or hides a paper."""
    check_form(request, csrf)
    by = require_role(request, "admin")
    s = site(request)
    rows = s.db.rows(sa.select(t.paper.c.id).where(t.paper.c.slug == slug))
    if not rows:
        raise HTTPException(404)
    with s.db.begin() as c:
        notes.set_flag(c, rows[0]["id"], flag, wanted, by, s.now)
    return RedirectResponse("/moderation" if flag == "hidden" else f"/paper/{slug}", status_code=303)


def _editable(request: Request, slug: str) -> dict[str, Any]:
    account, paper = require_account(request), find_paper(site(request), slug)
    if not notes.may_edit(account, paper, authorship.authors_of(site(request).db, paper["id"])):
        raise Forbidden("a paper is edited by whoever submitted or wrote it, and by moderators")
    return paper


def _values(s: Site, paper: dict[str, Any]) -> dict[str, str]:
    own = t.paper_tag.c
    tags = s.db.rows(sa.select(own.tag).where(own.paper_id == paper["id"]).order_by(own.tag))
    lists = {"authors": "; ".join(a["name"] for a in paper["authors"]), "tags": ", ".join(r["tag"] for r in tags)}
    return (
        {k: paper[k] or "" for k in FIELDS if k not in lists}
        | lists
        | {"published_at": iso(paper["published_at"])[:10]}
    )


def _day(text: str, paper: dict[str, Any]) -> int | None:
    """A day as typed; the time of a day that is unchanged stays."""
    if not text.strip():
        return None
    if text.strip() == iso(paper["published_at"])[:10]:
        return int(paper["published_at"])
    try:
        return int(datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise UsageError(f"{text[:40]!r} is no day: write it as 2017-06-12") from None


def _form(
    request: Request, paper: dict[str, Any], values: dict[str, str], *, problem: str | None = None,
    theirs: dict[str, str] | None = None, status: int = 200,
) -> Response:  # fmt: skip
    page = render(
        request, "edit.html.j2", paper=paper, values=values, problem=problem, theirs=theirs, rooms=ROOMS, fields=FIELDS
    )
    page.status_code = status
    return page


@router.get("/paper/{slug}/edit", response_class=HTMLResponse)
def edit_page(request: Request, slug: str) -> Response:
    paper = _editable(request, slug)
    return _form(request, paper, _values(site(request), paper))


@router.post("/paper/{slug}/edit")
def edit_form(
    request: Request, slug: str, csrf: Text, version: Annotated[int, Form()], title: Text = "", abstract: Text = "",
    authors: Text = "", venue: Text = "", room: Text = "", arxiv_id: Text = "", doi: Text = "", url: Text = "",
    code_url: Text = "", tags: Text = "", published_at: Annotated[str | None, Form()] = None,
) -> Response:  # fmt: skip
    """Change a paper; when somebody was quicker, both texts are shown and nothing is overwritten."""
    check_form(request, csrf)
    s, paper = site(request), _editable(request, slug)
    account = require_account(request)
    count(request, "edit")
    published_at = iso(paper["published_at"])[:10] if published_at is None else published_at
    values = {
        "title": title, "abstract": abstract, "authors": authors, "venue": venue, "room": room, "arxiv_id": arxiv_id,
        "doi": doi, "url": url, "code_url": code_url, "tags": tags, "published_at": published_at,
    }  # fmt: skip
    try:
        if room and room not in ROOMS:
            raise UsageError(f"there is no room {room!r}")
        lists: dict[str, Any] = {"authors": [a for a in authors.split(";") if a.strip()], "tags": tags.split(",")}
        lists["published_at"] = _day(published_at, paper)
        check_identifiers(values)
        record = make_record(**(values | lists | {"room": room or None, "venue": venue or None}))
        notes.edit_paper(s.db, paper["id"], record, expected=version, by=account, now=s.now)
    except EditConflict as error:
        now = find_paper(s, slug)
        return _form(request, now, values, problem=str(error), theirs=_values(s, now), status=409)
    except (ValueError, UsageError) as error:
        return _form(request, paper, values, problem=str(error), status=422)
    return RedirectResponse(f"/paper/{slug}", status_code=303)
