"""What readers do: vote, save, run, import, submit. Always a POST with the form's token; then back to a page."""

from collections.abc import Sequence
from typing import Annotated, Any, BinaryIO

import sqlalchemy as sa
from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from etude import ROOMS
from etude.errors import DataError, UsageError
from etude.lab.registry import runnable
from etude.page import store
from etude.page import tables as t
from etude.page.importers import read
from etude.page.importers.reading import MAX_BYTES, decode, guess
from etude.page.notes import MODERATORS
from etude.page.personal import LEFT_OUT
from etude.page.records import PaperRecord, check_identifiers, make_record
from etude.page.search.lexical import index_matches, reindex
from etude.page.security import TooMany, limit, new_token, safe_next, token_hash
from etude.page.web.context import Forbidden, Site, check_form, count, may_change, reader, require_account, site
from etude.page.web.pages import find_paper, may_withdraw
from etude.page.web.render import render

router = APIRouter(include_in_schema=False)
Token = Annotated[str, Form()]


def _back(path: str | None, default: str = "/") -> RedirectResponse:
    return RedirectResponse(safe_next(path, default), status_code=303)


@router.post("/vote/{slug}")
def vote(request: Request, slug: str, csrf: Token, wanted: Annotated[bool, Form()], next: Token = "/") -> Response:
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    paper = find_paper(s, slug)
    with s.db.begin() as c:  # one transaction, so one wait for the disk
        limit(c, "vote", str(account["id"]), s.now)
        network = reader(request).network
        votes = store.cast(c, paper["id"], account["id"], wanted, now=s.now, network=network)
    if request.headers.get("hx-request") == "true":
        return render(request, "_vote.html.j2", row=paper | {"votes": votes, "liked": wanted})
    return _back(next)


@router.post("/run/{slug}")
def run_here(request: Request, slug: str, csrf: Token, tier: Token = "quick") -> Response:
    """Queue a study; the answer is the page that shows its progress."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    if slug not in runnable():
        raise UsageError(f"{slug} has no study yet")
    if tier not in ("quick", "laptop"):
        raise UsageError(f"tier {tier!r} cannot be asked for here: quick or laptop")
    count(request, "run")
    request_id = s.queue.ask(slug, tier, asked_by=account["handle"])
    return RedirectResponse(f"/runs/{request_id}", status_code=303)


@router.post("/runs/{request_id}/withdraw")
def withdraw(request: Request, request_id: str, csrf: Token) -> Response:
    """Take back a study that waits; one that runs goes on, as the page then says."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    if not may_withdraw(account, s.queue.get(request_id)):
        raise Forbidden("a request is taken back by whoever asked, and by moderators")
    s.queue.cancel(request_id)
    return RedirectResponse(f"/runs/{request_id}", status_code=303)


@router.post("/import")
async def import_form(request: Request) -> Response:
    """What was pasted or uploaded; a pasted text may be as long as a file."""
    form = await request.form(max_part_size=MAX_BYTES)
    csrf, text, file = form.get("csrf"), form.get("text"), form.get("file")
    typed, pasted = (value if isinstance(value, str) else "" for value in (csrf, text))
    upload = file.file if isinstance(file, UploadFile) and file.filename else None
    return await run_in_threadpool(_preview, request, typed, pasted, upload)


def _preview(request: Request, csrf: str, text: str, upload: BinaryIO | None) -> Response:
    """Read an import and show what it would do; nothing is stored but the text itself, for the confirmation."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    count(request, "import")
    raw: bytes | str = text if upload is None else upload.read()
    try:
        plain = decode(raw)
        reading = read(plain, now=s.now)
    except DataError as error:
        page = render(request, "import.html.j2", problem=str(error), text=text[:20_000])
        page.status_code = 422
        return page
    token = new_token()
    with s.db.begin() as c:
        c.execute(sa.delete(t.pending_import).where(t.pending_import.c.at < s.now - 86_400))
        c.execute(
            sa.insert(t.pending_import).values(token_hash=token_hash(token), format=guess(plain), text=plain, at=s.now)
        )
    matches = store.preview(s.db, reading.records, may_change(s, account))
    counts = {w: sum(m.status == w for m in matches) for w in ("new", "duplicate", "changed")}
    return render(request, "preview.html.j2", reading=reading, matches=matches, counts=counts, token=token)


@router.post("/import/confirm")
def import_confirm(request: Request, csrf: Token, token: Token) -> Response:
    check_form(request, csrf)
    account = require_account(request)
    s, p = site(request), t.pending_import.c
    rows = s.db.rows(sa.select(t.pending_import).where(p.token_hash == token_hash(token)))
    if not rows:
        raise UsageError("this preview was used or is older than a day: paste the text again")
    reading = read(rows[0]["text"], format=rows[0]["format"], now=s.now)

    def after(c: sa.Connection, matches: list[store.Match]) -> None:
        index_matches(c, matches)
        c.execute(sa.delete(t.pending_import).where(p.token_hash == token_hash(token)))

    records, left_out = _within_limits(s, account, reading.records)
    store.add_all(
        s.db, records, source=reading.format, now=s.now, by=account["handle"], after=after,
        may_change=may_change(s, account),
    )  # fmt: skip
    if left_out:
        new = {"papers read": len(records), LEFT_OUT: left_out}
        return render(request, "imported.html.j2", new=new, problem=None)
    return RedirectResponse("/?sort=new", status_code=303)


def _within_limits(s: Site, account: dict[str, Any], records: Sequence[PaperRecord]) -> tuple[list[PaperRecord], int]:
    """The records that a member may import today, and how many are left out: a new paper counts as one by hand."""
    if s.settings.mode == "single" or account["role"] in MODERATORS:
        return list(records), 0
    matches = store.preview(s.db, records, may_change(s, account))
    kept: list[PaperRecord] = []
    full = False
    with s.db.begin() as c:
        for match in matches:
            if match.status == "new" and not full:
                try:
                    limit(c, "submit", str(account["id"]), s.now)
                except TooMany:
                    full = True
            if match.status != "new" or not full:
                kept.append(match.record)
    return kept, len(matches) - len(kept)


@router.post("/submit")
def submit(
    request: Request, csrf: Token, title: Token = "", abstract: Token = "", authors: Token = "", arxiv_id: Token = "",
    doi: Token = "", url: Token = "", code_url: Token = "", tags: Token = "", room: Token = "",
) -> Response:  # fmt: skip
    """Add one paper by hand: any paper, any age, with or without an identifier."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    values = {"title": title, "abstract": abstract, "authors": authors, "arxiv_id": arxiv_id, "doi": doi, "url": url,
              "code_url": code_url, "tags": tags, "room": room}  # fmt: skip
    try:
        if room and room not in ROOMS:
            raise ValueError(f"there is no room {room!r}")
        check_identifiers(values)
        lists = {"authors": authors.replace("\n", ",").split(","), "tags": tags.split(",")}
        record = make_record(**(values | lists | {"room": room or None}))
    except ValueError as error:
        page = render(request, "submit.html.j2", rooms=ROOMS, values=values, problem=str(error))
        page.status_code = 422
        return page
    count(request, "submit")
    with s.db.begin() as c:
        match = store.add(
            c, record, source="form", now=s.now, by=account["handle"], account=account["id"],
            may_change=may_change(s, account),
        )  # fmt: skip
        assert match.paper_id is not None
        reindex(c, [match.paper_id])
        slug = c.execute(sa.select(t.paper.c.slug).where(t.paper.c.id == match.paper_id)).scalar_one()
    return RedirectResponse(f"/paper/{slug}", status_code=303)
