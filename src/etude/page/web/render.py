"""Templates: everything is text and escaped; filters for times, numbers and plain addresses."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup, escape

from etude import __version__
from etude.lab.console import number
from etude.page.citations import person
from etude.page.records import EARLIEST, LATEST
from etude.page.web.context import Reader, reader, site
from etude.page.web.markdown import markdown

_env = jinja2.Environment(
    loader=jinja2.PackageLoader("etude.page.web", "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)


def ago(at: int | float | None, now: int) -> str:
    """A time in words."""
    if at is None:
        return ""
    seconds = max(0, now - int(at))
    for size, word in ((86_400 * 365, "year"), (86_400 * 30, "month"), (86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            n = seconds // size
            return f"{n} {word}{'s' if n > 1 else ''} ago"
    return "just now"


def day(at: int | None) -> str:
    """A date, empty for none."""
    moment = _moment(at)
    return "" if moment is None else moment.strftime("%d %B %Y").lstrip("0")


def iso(at: int | float | None) -> str:
    moment = _moment(at)
    return "" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(at: int | float | None) -> datetime | None:
    """A time that the calendar holds, else None: one bad row must not take a list down."""
    return None if at is None or not EARLIEST <= at <= LATEST else datetime.fromtimestamp(int(at), UTC)


def with_query(request: Request, **changes: Any) -> str:
    """This page's address with some parameters changed (None takes one away)."""
    kept = {k: v for k, v in request.query_params.items() if k not in changes and k != "cursor"}
    kept |= {k: v for k, v in changes.items() if v is not None}
    return f"{request.url.path}?{urlencode(kept)}" if kept else request.url.path


PERIODS = ("date", "week", "month")
FEED = ("q", "sort", "window", "room", "tag", "year", "verdict", "runs", *PERIODS)


def default_sort(query: Mapping[str, str]) -> str:
    """The order of a list without one in its address: a day, week or month shows what was liked most."""
    return "top" if any(query.get(k) for k in PERIODS) else "trending"


def feed_title(query: Mapping[str, str]) -> str:
    """What a feed holds, in words, from the parameters of its address."""
    first = query.get("q") or query.get("sort") or default_sort(query)
    rest = ["runs here" if k == "runs" else query[k] for k in FEED[2:] if query.get(k)]
    return f"Etude: {', '.join([first, *rest])}"


def _feed(request: Request, static: bool) -> tuple[str, str]:
    """Title and address of the feed of this page's list; of trending on pages without one."""
    params = request.query_params
    listed = request.url.path in ("/", "/search") and not static  # a site without a server has the one feed
    query = {k: params[k] for k in FEED if params.get(k)} if listed else {}
    return feed_title(query), f"/feed.atom?{urlencode(query)}" if query else "/feed.atom"


def authors(row: dict[str, Any], most: int = 8) -> str:
    """Names, cut with a count where there are very many."""
    names = [a["name"] for a in row["authors"]]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


_ACTIVE = re.compile(r"<\s*(script|foreignobject)|<[^>]*(\son\w+\s*=|javascript:)", re.IGNORECASE)


def drawing(svg: str) -> Markup:
    """An image that this program drew, as it is; whatever else it may be, or do, is shown as text."""
    return Markup(svg) if svg.startswith("<svg") and not _ACTIVE.search(svg) else escape(svg)


_env.filters |= {
    "ago": ago,
    "day": day,
    "iso": iso,
    "number": number,
    "authors": authors,
    "markdown": markdown,
    "drawing": drawing,
}
_env.filters["person"] = person


def render(request: Request, name: str, **values: Any) -> HTMLResponse:
    """A page from a template, with what every page needs."""
    return HTMLResponse(_text(request, name, reader(request), values))


def render_kept(request: Request, name: str, values: Callable[[], dict[str, Any]]) -> HTMLResponse:
    """`render` for a page that depends on its address, the account and the database alone; see `Kept`."""
    s, who = site(request), reader(request)
    key = (name, who.id, request.url.path, request.url.query)

    def make() -> str:
        return _text(request, name, replace(who, csrf=s.kept.mark), values())

    return HTMLResponse(s.kept.get(key, make, s.now).replace(s.kept.mark, who.csrf))


def _text(request: Request, name: str, who: Reader, values: dict[str, Any]) -> str:
    s = site(request)

    def body(row: dict[str, Any]) -> Markup:
        shown = tuple(row[k] for k in ("id", "version", "slug", "room", "runs"))
        key = (*shown, repr(row["badge"]), tuple(row["tags"]), row.get("reason"))
        return s.kept.piece(key, lambda: _env.get_template("_body.html.j2").render(row=row))

    url = request.url
    here = f"{url.path}?{url.query}" if url.query and request.method == "GET" else url.path
    values = values | {
        "request": request, "here": here, "body": body, "reader": who, "settings": s.settings, "now": s.now,
        "version": __version__,
        "feed": _feed(request, s.settings.static) if not s.settings.static or s.settings.base_url else None,
        "link": lambda **changes: with_query(request, **changes),
    }  # fmt: skip
    return _env.get_template(name).render(**values)
