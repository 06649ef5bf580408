"""The application: routes, headers, hosts, cookies, errors."""

import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from etude import __version__
from etude.errors import EtudeError, LedgerError
from etude.page.security import TooMany
from etude.page.settings import Settings
from etude.page.store import EditConflict
from etude.page.web import (
    accounts,
    actions,
    api,
    api_write,
    authors,
    badge,
    feeds,
    following,
    moderation,
    pages,
    personal,
    shelf,
    subscriptions,
)
from etude.page.web.context import COOKIE, Forbidden, Site
from etude.page.web.render import render

_log = logging.getLogger(__name__)
AWAY = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)  # the database does not answer
CSP = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin", "Permissions-Policy": "interest-cohort=()",
}  # fmt: skip
CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "GET"}
SAFE = ("GET", "HEAD", "OPTIONS")
MAX_BODY = 65 * 2**20
MAX_API_BODY = 2 * 2**20
NO_COOKIE = ("/api/", "/static/", "/feed", "/badge/")  # shown or read by other pages: nobody is followed there
OPEN = ("/api/", "/openapi.json", "/feed.atom")  # read by other sites' scripts; they never carry a cookie


def create_app(settings: Settings, **site_options: Any) -> FastAPI:
    """The application for one page.

    Raises
    ------
    UsageError
        For settings that are not safe.
    """
    app = FastAPI(title="Etude", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.site = Site(settings.check(), **site_options)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    for module in (
        actions,
        accounts,
        personal,
        moderation,
        authors,
        shelf,
        subscriptions,
        following,
        badge,
        feeds,
        api_write,
        api,
        pages,  # last: what stands behind /paper/ may hold slashes
    ):
        app.include_router(module.router)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)
    app.middleware("http")(_guard)
    app.add_exception_handler(EtudeError, _etude_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _not_understood)
    for kind in (OverflowError, UnicodeError, sa.exc.DataError):  # numbers and characters that the database cannot hold
        app.add_exception_handler(kind, _unheard_of)
    for away in (LedgerError, *AWAY):
        app.add_exception_handler(away, _no_database)
    app.add_exception_handler(Exception, _broken)
    return app


async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Host, size, cookie and origin before a view; headers after it."""
    s: Site = request.app.state.site
    if request.headers.get("host", "").lower() not in s.settings.allowed_hosts:
        return _turned_away(request, 421, "unknown host")
    most = MAX_API_BODY if request.url.path.startswith("/api/") else MAX_BODY
    if int(request.headers.get("content-length") or 0) > most:
        return _turned_away(request, 413, f"larger than {most // 2**20} MiB")
    cookie = request.cookies.get(COOKIE, "")
    fresh = not 20 <= len(cookie) <= 80
    request.state.cookie = cookie = secrets.token_urlsafe(32) if fresh else cookie
    if request.method not in SAFE and not _exempt(request):
        origin = request.headers.get("origin")
        if origin not in (None, "null") and not _ours(s.settings, origin):
            return await _etude_error(request, Forbidden("this form was sent from another site"))
    if request.method not in SAFE and "transfer-encoding" in request.headers:
        return _turned_away(request, 411, "say how long it is")
    readable = request.url.path.startswith(OPEN)
    if readable and request.method == "OPTIONS" and "access-control-request-method" in request.headers:
        return Response(status_code=204, headers=CORS)
    head = request.method == "HEAD"
    if head:
        request.scope["method"] = "GET"
    response = await call_next(request)
    if request.url.path.startswith("/api/") and request.method == "GET" and response.status_code == 200:
        response = await _tagged(request, response)
    if head:
        response = await _without_body(response)
    if readable and request.method == "GET":
        response.headers.update(CORS)
    who = getattr(request.state, "reader", None)
    if who is not None and who.account is not None:
        response.headers.setdefault("Cache-Control", "private, no-cache")  # for no proxy's other readers
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    given = getattr(request.state, "given", None)
    if given or (fresh and not request.url.path.startswith(NO_COOKIE)):
        secure = s.settings.address.startswith("https")
        response.set_cookie(COOKIE, given or cookie, httponly=True, samesite="lax", secure=secure, max_age=365 * 86_400)
    return response


def _turned_away(request: Request, status: int, words: str) -> Response:
    """An answer before any view: it knows no reader, and a page would ask for one."""
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": words}, status_code=status, headers=HEADERS)
    return PlainTextResponse(words, status_code=status, headers=HEADERS)


async def _without_body(response: Any) -> Response:
    """The head of an answer, with the length that its body would have."""
    streamed = hasattr(response, "body_iterator")
    length = sum([len(part) async for part in response.body_iterator]) if streamed else len(response.body)
    kept = {k: v for k, v in response.headers.items() if k != "content-length"}
    return Response(None, response.status_code, kept | {"content-length": str(length)})


async def _tagged(request: Request, response: Any) -> Response:
    """An answer with an ETag, or 304 for a client that has it already."""
    body = b"".join([part async for part in response.body_iterator])
    tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": tag})
    kept = {k: v for k, v in response.headers.items() if k != "content-length"}
    return Response(body, response.status_code, kept | {"ETag": tag})


def _ours(settings: Settings, origin: str) -> bool:
    """Whether an origin is one of this page's; compared as text, so nothing that a client sends can break it."""
    scheme, _, host = origin.lower().partition("://")
    served, _, name = settings.address.lower().partition("://")
    return host in settings.allowed_hosts and scheme in (("http", "https") if host != name else (served,))


def _exempt(request: Request) -> bool:
    """One-click unsubscription and the API carry secrets of their own and no cookie."""
    return request.url.path.startswith(("/u/", "/api/"))


async def _etude_error(request: Request, error: Exception) -> Response:
    status, headers = 400, {}
    if isinstance(error, TooMany):
        status, headers = 429, {"Retry-After": str(error.retry_after)}
    elif isinstance(error, Forbidden):
        status = 403
    elif isinstance(error, EditConflict):
        status = 409
    return _problem(request, status, str(error), headers)


async def _unheard_of(request: Request, error: Exception) -> Response:
    return _problem(request, 400, "the request holds a number or a character that cannot be", {})


async def _no_database(request: Request, error: Exception) -> Response:
    """The database is away or busy: its address is for the log alone, and a whole page would ask it who is reading."""
    if isinstance(error, LedgerError) and not isinstance(error.__cause__, sa.exc.SQLAlchemyError):
        return await _etude_error(request, error)
    _log.error("the database does not answer: %s", error)
    words, headers = "the database does not answer just now: try again in a minute", {"Retry-After": "60"}
    answer = _turned_away(request, 503, words)
    answer.headers.update(headers)
    return answer


async def _broken(request: Request, error: Exception) -> Response:
    """Our own fault: the log has it, the reader gets a page with its headers (this one runs outside of `_guard`)."""
    if isinstance(error, AWAY):  # another error's page met it
        answer = await _no_database(request, error)
    else:
        answer = _problem(request, 500, "something broke here, and the log of the server says what", {})
    answer.headers.update(HEADERS)
    return answer


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is no such page", 405: "this address takes no such request"}
    headers = dict(error.headers or {})
    return _problem(request, error.status_code, words.get(error.status_code, str(error.detail)), headers)


async def _not_understood(request: Request, error: Exception) -> Response:
    """A field that is missing or has another form: the first one, by its name."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "the request"
    given = "" if first["type"] == "missing" else f" ({str(first.get('input'))[:60]!r} was given)"
    return _problem(request, 422, f"{name}: {first['msg']}{given}", {})


def _problem(request: Request, status: int, message: str, headers: dict[str, str]) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message}, status_code=status, headers=headers)
    page = render(request, "error.html.j2", status=status, message=message)
    page.status_code = status
    page.headers.update(headers)
    return page
