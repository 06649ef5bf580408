"""Signing in and out, and the account page: handle, tokens for programs, one's own data."""

from typing import Annotated, Any
from urllib.parse import quote, unquote

import sqlalchemy as sa
from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from etude.errors import UsageError
from etude.page import accounts
from etude.page import tables as t
from etude.page.security import new_token, safe_next
from etude.page.web.context import (
    Forbidden,
    check_form,
    count,
    deliver,
    give_cookie,
    reader,
    require_account,
    require_role,
    site,
)
from etude.page.web.render import render
from etude.page.web.subscriptions import private

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]
NEXT = "etude_next"  # a cookie: where to go on once the link of the mail is used in this browser


def _with_accounts(request: Request) -> None:
    if site(request).settings.mode != "accounts":
        raise HTTPException(404)


@router.get("/login", response_class=HTMLResponse)
def login_page(request: Request, next: str = "") -> Response:
    _with_accounts(request)
    return render(request, "login.html.j2", answer=None, next=safe_next(next, ""))


@router.post("/login", response_class=HTMLResponse)
def login_form(request: Request, csrf: Text, email: Text, next: Text = "") -> Response:
    """Send a link; the answer is the same for every address. Where the reader was, this browser keeps meanwhile."""
    _with_accounts(request)
    check_form(request, csrf)
    s = site(request)
    accounts.ask_link(s.db, s.settings, email, network=reader(request).network, now=s.now)
    deliver(s)
    target = safe_next(next, "")
    page = render(request, "login.html.j2", answer=accounts.ANSWER, next=target)
    if target:
        secure = s.settings.address.startswith("https")
        more: dict[str, Any] = {"httponly": True, "samesite": "lax", "secure": secure, "path": "/login"}
        page.set_cookie(NEXT, quote(target[:2000]), max_age=accounts.LINK_SECONDS, **more)
    return page


@router.get("/login/{token}", response_class=HTMLResponse)
def login_link(request: Request, token: str) -> Response:
    """Shows the button; opening the link changes nothing, so a scanner of links signs nobody in."""
    _with_accounts(request)
    s = site(request)
    works = accounts.link_works(s.db, s.settings, token, s.now)
    return private(render(request, "login_link.html.j2", works=works, token=token))


@router.post("/login/{token}", response_class=HTMLResponse)
def login_button(request: Request, token: str, csrf: Text) -> Response:
    """Sign in: the link ends, and the browser gets a new cookie."""
    _with_accounts(request)
    check_form(request, csrf)
    s = site(request)
    done = accounts.sign_in(s.db, s.settings, token, s.now)
    if done is None:
        return private(render(request, "login_link.html.j2", works=False, token=token))
    account, session = done
    if session is None:
        raise Forbidden("this account is closed")
    accounts.sign_out(s.db, request.state.cookie, s.now)
    give_cookie(request, session)
    default = "/account" if account["handle"].startswith("reader-") else "/"
    answer = RedirectResponse(safe_next(unquote(request.cookies.get(NEXT, "")), default), status_code=303)
    answer.delete_cookie(NEXT, path="/login")
    return answer


@router.post("/logout")
def logout(request: Request, csrf: Text, everywhere: Annotated[bool, Form()] = False) -> Response:
    _with_accounts(request)
    check_form(request, csrf)
    s, who = site(request), reader(request)
    accounts.sign_out(s.db, request.state.cookie, s.now)
    if everywhere and who.id is not None:
        with s.db.begin() as c:
            accounts.sign_out_everywhere(c, who.id)
    give_cookie(request, new_token())
    return RedirectResponse("/", status_code=303)


def _account_page(request: Request, status: int = 200, **values: Any) -> Response:
    s, account = site(request), require_account(request)
    k = t.api_token.c
    query = sa.select(sa.func.substr(k.token_hash, 1, 16).label("id"), k.name, k.created_at)
    tokens = s.db.rows(query.where(k.account_id == account["id"]).order_by(k.created_at))
    others: list[dict[str, Any]] = []
    if account["role"] == "admin" and s.settings.mode == "accounts":
        others = s.db.rows(sa.select(t.account.c.handle, t.account.c.role).order_by(t.account.c.handle).limit(500))
    values = {"token": None, "problem": None, "roles": accounts.ROLES} | values
    page = render(request, "account.html.j2", account=account, tokens=tokens, others=others, **values)
    page.status_code = status
    return private(page)


@router.get("/account", response_class=HTMLResponse)
def account_page(request: Request) -> Response:
    return _account_page(request)


@router.post("/account/handle")
def handle_form(request: Request, csrf: Text, handle: Text) -> Response:
    _with_accounts(request)
    check_form(request, csrf)
    account = require_account(request)
    try:
        accounts.set_handle(site(request).db, account["id"], handle)
    except UsageError as error:
        return _account_page(request, 422, problem=str(error))
    return RedirectResponse("/account", status_code=303)


@router.post("/account/role")
def role_form(request: Request, csrf: Text, handle: Text, role: Text) -> Response:
    """An admin changes somebody's role."""
    _with_accounts(request)
    check_form(request, csrf)
    s = site(request)
    accounts.set_role(s.db, require_role(request, "admin"), handle.strip().lower(), role, s.now)
    return RedirectResponse("/account", status_code=303)


@router.post("/account/tokens")
def token_form(request: Request, csrf: Text, name: Text = "") -> Response:
    """Make a token for programs; this answer is the only place where it is shown."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    count(request, "token")
    try:
        token = accounts.new_api_token(s.db, account["id"], name, s.now)
    except UsageError as error:
        return _account_page(request, 422, problem=str(error))
    return _account_page(request, token=token)


@router.post("/account/tokens/{token_id}/revoke")
def token_back(request: Request, token_id: str, csrf: Text) -> Response:
    check_form(request, csrf)
    accounts.revoke_api_token(site(request).db, require_account(request)["id"], token_id)
    return RedirectResponse("/account", status_code=303)
