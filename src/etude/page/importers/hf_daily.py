"""The daily-papers JSON of Hugging Face: a list of wrapped papers, or one paper object."""

import json
import re
from datetime import UTC, datetime
from typing import Any

from etude.errors import DataError
from etude.page.importers.arxiv_atom import timestamp
from etude.page.importers.reading import Reading, Unreadable
from etude.page.records import PaperRecord, make_record

MAX_DEPTH = 64


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside strings (a guard before parsing)."""
    depth = deepest = 0
    for piece in re.findall(r'"(?:[^"\\]|\\.)*+(?:"|\Z)|[\[{}\]]', text, re.DOTALL):
        if piece in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif piece in "]}":
            depth -= 1
    return deepest


def _noon(text: str | None) -> int | None:
    """The list day at noon UTC: midnight would be the day before for readers in America."""
    at = timestamp(text)
    if at is None:
        return None
    day = datetime.fromtimestamp(at, UTC)
    return int(day.replace(hour=12, minute=0, second=0).timestamp())


def _paper(item: dict[str, Any]) -> PaperRecord:
    paper = item.get("paper", item)
    if not isinstance(paper, dict):
        raise ValueError("its field paper is no object")
    authors = [a.get("name", "") for a in paper.get("authors") or [] if isinstance(a, dict) and not a.get("hidden")]
    organization = paper.get("organization") or {}
    extra: dict[str, Any] = {
        "hf_upvotes": paper.get("upvotes"), "hf_comments": item.get("numComments"),
        "listed_at": _noon(paper.get("submittedOnDailyAt")), "code_stars": paper.get("githubStars"),
        "organization": organization.get("fullname") if isinstance(organization, dict) else None,
    }  # fmt: skip
    identifier = str(paper.get("id") or "")
    dated = paper.get("publishedAtKnown") is not False  # our own answers say where their date is a guess
    return make_record(
        title=paper.get("title"), abstract=paper.get("summary"), authors=authors, arxiv_id=identifier,
        published_at=timestamp(str(paper.get("publishedAt") or "")) if dated else None,
        code_url=paper.get("githubRepo"), url=paper.get("projectPage"),
        tags=[k for k in paper.get("ai_keywords") or [] if isinstance(k, str)],
        extra={k: v for k, v in extra.items() if v is not None},
    )  # fmt: skip


def parse(text: str, now: int) -> Reading:
    """Read a list of daily papers, or one paper; upvotes given elsewhere are kept apart from ours.

    Raises
    ------
    DataError
        If it is not JSON, nested too deeply, or neither a list nor an object.
    """
    if _depth(text) > MAX_DEPTH:
        raise DataError(f"the JSON is nested deeper than {MAX_DEPTH} levels, which is refused")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the import is not JSON: {error}; save the answer again") from error
    if isinstance(raw, dict) and "error" in raw and "title" not in raw:
        raise DataError(f"the answer is an error: {str(raw['error'])[:200]}")
    items = raw if isinstance(raw, list) else [raw]
    records: list[PaperRecord] = []
    bad: list[Unreadable] = []
    for number, item in enumerate(items, 1):
        try:
            if not isinstance(item, dict):
                raise ValueError("it is no object")
            records.append(_paper(item))
        except (ValueError, TypeError, AttributeError) as error:
            bad.append(Unreadable(number, str(item)[:200], f"item {number}: {error}"))
    return Reading("hf-daily", tuple(records), tuple(bad))
