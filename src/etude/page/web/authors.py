"""Saying that a paper is one's own, and the moderators' answer."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from etude.errors import UsageError
from etude.page import authorship, fetch
from etude.page.notes import MODERATORS
from etude.page.security import limit
from etude.page.web.context import check_form, count, deliver, reader, require_account, require_role, site
from etude.page.web.pages import find_paper
from etude.page.web.render import render
from etude.page.web.subscriptions import private

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]


@router.post("/paper/{slug}/author")
def author_form(request: Request, slug: str, csrf: Text, how: Text, email: Text = "") -> Response:
    """By a line in the repository, looked up where fetching is on, or by a link to an address."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    paper = find_paper(s, slug)
    count(request, "edit")
    if how == "address":
        with s.db.begin() as c:
            limit(c, "subscribe", reader(request).network, s.now)  # it sends a mail to an address somebody typed
        authorship.send_link(s.db, s.settings, paper, account["id"], email, s.now)
        deliver(s)
    elif how == "repository":
        if not paper["code_url"]:
            raise UsageError("this paper has no repository here yet: write a note with its address first")
        token = authorship.repository_token(s.settings, paper["id"], account["id"])
        found = fetch.allowed() and fetch.readme_holds(paper["code_url"], token)
        proof = f"{'found' if found else 'says it is'} in {paper['code_url']}"
        with s.db.begin() as c:
            authorship.ask(c, paper["id"], account["id"], s.now, proof=proof, verified=found)
    else:
        raise UsageError(f"{how!r} is no proof: repository or address")
    return RedirectResponse(f"/paper/{slug}", status_code=303)


@router.get("/author/{token}", response_class=HTMLResponse)
def author_link(request: Request, token: str) -> Response:
    """Shows the button; opening the link changes nothing."""
    s = site(request)
    works = authorship.pending_link(s.db, token, s.now) is not None
    return private(render(request, "author.html.j2", works=works, done=False, token=token))


@router.post("/author/{token}", response_class=HTMLResponse)
def author_button(request: Request, token: str, csrf: Text) -> Response:
    check_form(request, csrf)
    s = site(request)
    done = authorship.follow_link(s.db, token, s.now)
    return private(render(request, "author.html.j2", works=False, done=done, token=token))


@router.post("/authors/{claim_id}/state")
def author_state(request: Request, claim_id: int, csrf: Text, state: Text) -> Response:
    check_form(request, csrf)
    by = require_role(request, *MODERATORS)
    s = site(request)
    with s.db.begin() as c:
        authorship.judge(c, claim_id, state, by, s.now)
    return RedirectResponse("/moderation", status_code=303)
