"""A reader's own pages: the library, saved searches, and what might be to their taste."""

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from etude.page import library
from etude.page import tables as t
from etude.page.listing import by_ids
from etude.page.search.for_you import LEAST, suggest
from etude.page.search.taste import taste
from etude.page.security import safe_next
from etude.page.web.context import check_form, reader, require_account, site
from etude.page.web.pages import decorate, find_paper
from etude.page.web.render import render

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]
Wanted = Annotated[bool, Form()]


@router.get("/library", response_class=HTMLResponse)
def library_page(request: Request, q: str = "", tag: str = "", read: str = "") -> Response:
    s, who = site(request), reader(request)
    rows: list[dict[str, Any]] = []
    tags: list[str] = []
    searches: list[dict[str, Any]] = []
    if who.id is not None:
        found = library.shelf(s.db, who.id, words=q[:500], tag=tag or None, read={"yes": True, "no": False}.get(read))
        kept = {r["id"]: r["saved"] for r in found}
        rows = [r | {"saved": kept[r["id"]]} for r in decorate(s, found, who.id)]
        tags, searches = library.tags_of(s.db, who.id), library.searches_of(s.db, who.id)
    return render(
        request, "library.html.j2", rows=rows, tags=tags, searches=searches, words=q[:500], tag=tag, read=read,
        narrowed=bool(q or tag or read),
    )  # fmt: skip


@router.post("/save/{slug}")
def save(
    request: Request, slug: str, csrf: Text, wanted: Wanted, tags: Text = "", note: Text = "",
    read: Annotated[bool, Form()] = False, next: Text = "/library",
) -> Response:  # fmt: skip
    """Put a paper into the library, change its tags, note and mark, or take it out."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    paper = find_paper(s, slug)
    with s.db.begin() as c:
        if wanted:
            library.keep(c, paper["id"], account["id"], tags=tags.split(","), note=note, read=read, now=s.now)
        else:
            library.take_out(c, paper["id"], account["id"])
    return RedirectResponse(safe_next(next, "/library"), status_code=303)


@router.post("/searches")
def save_search(request: Request, csrf: Text, q: Text = "", name: Text = "") -> Response:
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    with s.db.begin() as c:
        library.save_search(c, account["id"], name, q, s.now)
    return RedirectResponse("/library#searches", status_code=303)


@router.post("/searches/{search_id}/forget")
def forget_search(request: Request, search_id: int, csrf: Text) -> Response:
    check_form(request, csrf)
    account = require_account(request)
    with site(request).db.begin() as c:
        library.forget_search(c, account["id"], search_id)
    return RedirectResponse("/library#searches", status_code=303)


@router.post("/dismiss/{slug}")
def dismiss(request: Request, slug: str, csrf: Text, wanted: Wanted = True) -> Response:
    """Have a paper suggested no more, or again."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    paper = find_paper(s, slug)
    with s.db.begin() as c:
        library.dismiss(c, paper["id"], account["id"], wanted, s.now)
    return RedirectResponse("/for-you", status_code=303)


@router.get("/for-you", response_class=HTMLResponse)
def for_you_page(request: Request) -> Response:
    """Suggestions, for readers who asked for them; the model is fitted now and forgotten after."""
    s, account = site(request), require_account(request)
    rows: list[dict[str, Any]] = []
    problem = None
    liked, dismissed = taste(s.db, account["id"])
    if account["for_you"]:
        s.meaning.refresh()
        ids, vectors = s.meaning.pool(liked | dismissed)
        having = liked & set(ids.tolist())
        if len(ids) == 0:
            problem = (
                "There are no vectors of the papers yet. The worker makes them in the background when the extra is "
                "installed: pip install 'etude[hf]'"
            )
        elif len(having) < LEAST:
            problem = f"Vote for or save at least {LEAST} papers first; so far there are {len(having)}."
        else:
            found = {x.paper_id: x for x in suggest(ids, vectors, having, dismissed, k=20)}
            reasons = {r["id"]: r for r in by_ids(s.db, sorted({i for x in found.values() for i in x.reasons}))}
            rows = [
                r | {"because": [reasons[i] for i in found[r["id"]].reasons if i in reasons]}
                for r in decorate(s, by_ids(s.db, list(found)), account["id"])
            ]
    not_again = by_ids(s.db, sorted(dismissed))
    return render(request, "for_you.html.j2", on=account["for_you"], rows=rows, problem=problem, dismissed=not_again)


@router.post("/for-you")
def for_you_form(request: Request, csrf: Text, wanted: Wanted) -> Response:
    """Ask for suggestions, or for none any more."""
    check_form(request, csrf)
    account = require_account(request)
    with site(request).db.begin() as c:
        c.execute(sa.update(t.account).where(t.account.c.id == account["id"]).values(for_you=wanted))
    return RedirectResponse("/for-you", status_code=303)
