"""Subscribing, confirming, leaving, and the outbox of a page without a mail server."""

from email import message_from_string
from email.policy import SMTP
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from etude import ROOMS
from etude.page import tables as t
from etude.page.digest.compose import clean_filters
from etude.page.digest.schedule import FREQUENCIES
from etude.page.digest.subscribe import (
    ANSWER,
    Wish,
    by_token,
    confirm,
    pending,
    set_frequency,
    subscribe,
    unsubscribe,
)
from etude.page.digest.words import LANGUAGES
from etude.page.web.context import Forbidden, check_form, deliver, reader, site
from etude.page.web.render import render

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]


def private(response: HTMLResponse) -> HTMLResponse:
    """A page whose address holds a token must not hand it on."""
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response


@router.get("/subscribe", response_class=HTMLResponse)
def subscribe_page(request: Request) -> Response:
    return render(request, "subscribe.html.j2", rooms=ROOMS, frequencies=FREQUENCIES, languages=LANGUAGES, answer=None)


@router.post("/subscribe", response_class=HTMLResponse)
def subscribe_form(
    request: Request, csrf: Text, email: Text, frequency: Text = "weekly", zone: Text = "UTC",
    hour: Annotated[int, Form()] = 7, room: Annotated[list[str] | None, Form()] = None, tags: Text = "", q: Text = "",
    authors: Text = "", for_you: Annotated[bool, Form()] = False, following: Annotated[bool, Form()] = False,
    language: Text = "en",
) -> Response:  # fmt: skip
    check_form(request, csrf)
    s = site(request)
    filters = clean_filters(
        {"rooms": room or [], "tags": tags.split(","), "authors": authors.split(","), "q": q, "for_you": for_you,
         "following": following}
    )  # fmt: skip
    wish = Wish(email, frequency, zone, hour, filters, language)
    who = reader(request)
    owner = who.id if s.settings.mode == "single" else None  # others' belong to whoever proves the address
    subscribe(s.db, s.settings, wish, network=who.network, now=s.now, account=owner)
    deliver(s)
    return render(request, "subscribe.html.j2", rooms=ROOMS, frequencies=FREQUENCIES, answer=ANSWER)


@router.get("/confirm/{token}", response_class=HTMLResponse)
def confirm_page(request: Request, token: str) -> Response:
    """Shows the button; opening the link changes nothing, so a scanner of links subscribes nobody."""
    s = site(request)
    page = private(render(request, "confirm.html.j2", row=pending(s.db, token, s.now), token=token, done=False))
    return page


@router.post("/confirm/{token}", response_class=HTMLResponse)
def confirm_form(request: Request, token: str, csrf: Text) -> Response:
    check_form(request, csrf)
    s = site(request)
    done = confirm(s.db, token, s.now)
    return private(render(request, "confirm.html.j2", row=None, token=token, done=done))


@router.get("/u/{token}", response_class=HTMLResponse)
def leave_page(request: Request, token: str) -> Response:
    """Shows one button; opening the link changes nothing."""
    s = site(request)
    if by_token(s.db, s.settings, token) is None:
        raise HTTPException(404)
    return private(render(request, "leave.html.j2", token=token, done=False, frequencies=FREQUENCIES))


@router.post("/u/{token}")
async def leave(request: Request, token: str) -> Response:
    """One click, no cookie, no login: at once, and the same when repeated (RFC 8058)."""
    s = site(request)
    if not unsubscribe(s.db, s.settings, token):
        return PlainTextResponse("unknown link", status_code=404)
    form = await request.form()
    if form.get("List-Unsubscribe") == "One-Click":
        return PlainTextResponse("unsubscribed")
    return private(render(request, "leave.html.j2", token=token, done=True))


@router.post("/u/{token}/frequency", response_class=HTMLResponse)
def less_often(request: Request, token: str, frequency: Text) -> Response:
    """Another frequency instead of leaving; the token in the address is the proof."""
    s = site(request)
    if not set_frequency(s.db, s.settings, token, frequency, s.now):
        raise HTTPException(404)
    return private(render(request, "leave.html.j2", token=token, done=False, frequencies=FREQUENCIES, chosen=frequency))


@router.get("/outbox", response_class=HTMLResponse)
def outbox_page(request: Request) -> Response:
    """The mails of a page that writes them into a folder; for its owner only."""
    s, who = site(request), reader(request)
    if who.account is None or who.account["role"] != "admin":
        raise Forbidden("the outbox is its owner's")
    rows = s.db.rows(sa.select(t.outbox).order_by(t.outbox.c.id.desc()).limit(100))
    return render(request, "outbox.html.j2", rows=rows)


@router.get("/outbox/{mail_id}", response_class=HTMLResponse)
def outbox_mail(request: Request, mail_id: int) -> Response:
    s, who = site(request), reader(request)
    if who.account is None or who.account["role"] != "admin":
        raise Forbidden("the outbox is its owner's")
    rows = s.db.rows(sa.select(t.outbox).where(t.outbox.c.id == mail_id))
    if not rows:
        raise HTTPException(404)
    message = message_from_string(rows[0]["raw"], policy=SMTP)
    plain = message.get_body(("plain",))
    headers = [(k, str(v)) for k, v in message.items() if not k.startswith("Content")]
    text = plain.get_content() if plain is not None else ""
    return render(request, "mail.html.j2", row=rows[0], headers=headers, text=text)
