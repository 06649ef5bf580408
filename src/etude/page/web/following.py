"""The page of what a reader follows, and its buttons."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from etude import ROOMS
from etude.page import following
from etude.page.listing import Filters, listing
from etude.page.security import safe_next
from etude.page.web.context import check_form, reader, require_account, site
from etude.page.web.pages import decorate
from etude.page.web.render import render

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]


@router.get("/following", response_class=HTMLResponse)
def following_page(request: Request, cursor: str = "") -> Response:
    """The newest papers of everybody and everything followed."""
    s, who = site(request), reader(request)
    follows: list[following.Follow] = []
    rows: list[dict[str, Any]] = []
    more = None
    if who.id is not None:
        follows = following.follows_of(s.db, who.id)
        filters = Filters(followed=tuple(follows))
        page = listing(s.db, sort="new", filters=filters, cursor=cursor or None, now=s.now)
        rows, more = decorate(s, page.rows, who.id), page.cursor
    return render(request, "following.html.j2", rows=rows, cursor=more, follows=follows, rooms=ROOMS)


@router.post("/follow")
def follow_form(
    request: Request, csrf: Text, kind: Text, value: Text, wanted: Annotated[bool, Form()] = True,
    next: Text = "/following",
) -> Response:  # fmt: skip
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    with s.db.begin() as c:
        following.follow(c, account["id"], kind, value, wanted, s.now)
    return RedirectResponse(safe_next(next, "/following"), status_code=303)
