"""Atom for the list, every filter of it and every search; an entry's `updated` is its last verdict change."""

import hashlib
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import sqlalchemy as sa
from fastapi import APIRouter, Request, Response

from etude.page import tables as t
from etude.page.listing import listing
from etude.page.search.query import parse
from etude.page.web.context import Site, count_search, site
from etude.page.web.finding import find_page
from etude.page.web.pages import filters_of
from etude.page.web.render import default_sort, feed_title, iso

router = APIRouter(include_in_schema=False)


def _text(value: str) -> str:
    """XML text without characters that XML forbids."""
    kept = "".join(
        ch
        for ch in value
        if ch in "\t\n\r" or (0x20 <= ord(ch) < 0xD800) or 0xE000 <= ord(ch) < 0xFFFE or ord(ch) > 0xFFFF
    )
    return escape(kept)


def atom(s: Site, rows: list[dict[str, Any]], title: str, address: str) -> str:
    """A feed of papers."""
    log = t.verdict_log.c
    newest = sa.select(log.slug, sa.func.max(log.at).label("at")).group_by(log.slug)
    changed = {r["slug"]: r["at"] for r in s.db.rows(newest)}
    entries, latest = [], 0
    for r in rows:
        updated = max(r["updated_at"], changed.get(r["slug"], 0))
        latest = max(latest, updated)
        here, at = _text(r["slug"]), iso(r["submitted_at"])
        link = f"{s.settings.address}/paper/{r['slug']}"
        names = "".join(f"<author><name>{_text(a['name'])}</name></author>" for a in r["authors"][:50])
        entries.append(
            f"<entry><id>tag:etude,{at[:10]}:{here}</id><title>{_text(r['title'])}</title>"
            f"<link href={quoteattr(link)}/><published>{at}</published><updated>{iso(updated)}</updated>"
            f"{names or '<author><name>unknown</name></author>'}<summary>{_text(r['abstract'])}</summary></entry>"
        )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<feed xmlns="http://www.w3.org/2005/Atom">'
        f"<id>{_text(address)}</id><title>{_text(title)}</title><updated>{iso(latest) or iso(s.now)}</updated>"
        f'<author><name>Etude</name></author><link rel="self" href={quoteattr(address)}/>{"".join(entries)}</feed>\n'
    )


@router.get("/feed.atom")
def feed(request: Request, sort: str | None = None, window: str = "all", q: str = "") -> Response:
    s = site(request)
    filters = filters_of(s, request)
    if q:
        count_search(request)
        rows = [h.row for h in find_page(s, parse(q), filters)[0]]
    else:
        sort = sort or default_sort(request.query_params)
        rows = listing(s.db, sort=sort, window=window, filters=filters, limit=50, now=s.now).rows  # type: ignore[arg-type]
    title = feed_title(request.query_params)
    query = f"?{request.url.query}" if request.url.query else ""
    text = atom(s, rows, title, f"{s.settings.address}/feed.atom{query}")
    tag = f'"{hash_of(text)}"'
    headers = {"ETag": tag, "Cache-Control": "max-age=300"}
    if tag in request.headers.get("if-none-match", ""):  # also as W/"...", which a proxy that packs makes of it
        return Response(status_code=304, headers=headers)
    return Response(text, media_type="application/atom+xml", headers=headers)


def hash_of(text: str) -> str:
    """A short digest for an ETag."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]
