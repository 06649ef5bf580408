"""A paper's verdicts as a small image that other pages can show: no cookie, no script, the words in its title too."""

from html import escape
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from etude.page.web.context import Site, site
from etude.page.web.feeds import hash_of
from etude.page.web.pages import find_paper

router = APIRouter(include_in_schema=False)
COLOURS = {"holds": "#1a7f4b", "fails": "#b3261e", "inconclusive": "#8a6100", None: "#5f6368"}
WORDS = {"holds": "hold", "fails": "fail", "inconclusive": "open"}
CHARACTER = 6.6  # pixels, about, of an 11-pixel sans-serif letter


def words_of(s: Site, slug: str, claim: str | None) -> tuple[str, str | None]:
    """What the image says, and the verdict that colours it: of one claim, or counts at the largest tier."""
    if claim is not None:
        rows = [v for v in s.verdicts([slug]).get(slug, []) if v["claim"] == claim]
        return (
            (f"{claim} {rows[0]['verdict'] or 'no verdict'}", rows[0]["verdict"]) if rows else ("not re-tested", None)
        )
    badge = s.badges([slug]).get(slug)
    if badge is None or not badge["counts"]:
        return "not re-tested", None
    counts = badge["counts"]
    worst = next(w for w in ("fails", "inconclusive", "holds") if w in counts)
    return ", ".join(f"{n} {WORDS[w]}" for w, n in counts.items()), worst


def svg(left: str, right: str, colour: str) -> str:
    """Two labels side by side."""
    a, b = (round(CHARACTER * len(text) + 14) for text in (left, right))
    title, left, right = escape(f"{left}: {right}"), escape(left), escape(right)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{a + b}" height="20" role="img" aria-label="{title}">'
        f'<title>{title}</title><rect width="{a + b}" height="20" rx="4" fill="{colour}"/>'
        f'<path d="M4 0h{a - 4}v20h-{a - 4}a4 4 0 0 1-4-4v-12a4 4 0 0 1 4-4z" fill="#3b3f45"/>'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
        f'<text x="{a / 2:g}" y="14">{left}</text><text x="{a + b / 2:g}" y="14">{right}</text></g></svg>\n'
    )


@router.get("/badge/{slug:path}.svg")
def badge(request: Request, slug: str, claim: Annotated[str | None, Query(max_length=40)] = None) -> Response:
    """The image; a page elsewhere shows it by its address."""
    s = site(request)
    words, verdict = words_of(s, find_paper(s, slug)["slug"], claim)
    text = svg("re-tested by etude", words, COLOURS[verdict])
    headers = {
        "Cache-Control": "max-age=600", "ETag": f'"{hash_of(text)}"', "Cross-Origin-Resource-Policy": "cross-origin",
    }  # fmt: skip
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(text, media_type="image/svg+xml", headers=headers)
