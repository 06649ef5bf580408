"""Days, ISO weeks and months (UTC) of the archive, as addresses name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from etude.errors import UsageError
from etude.page import tables as t
from etude.page.database import Database

Kind = Literal["date", "week", "month"]
KINDS: tuple[Kind, ...] = ("date", "week", "month")
FORMS = {"date": "%Y-%m-%d", "week": "%G-W%V", "month": "%Y-%m"}


@dataclass(frozen=True)
class Period:
    """From `start` up to `end`, seconds since 1970; `kind` and `name` are as an address has them."""

    kind: Kind
    start: int
    end: int

    @property
    def name(self) -> str:
        """Such as 2026-11-28, 2026-W48 or 2026-11."""
        return datetime.fromtimestamp(self.start, UTC).strftime(FORMS[self.kind])

    @property
    def words(self) -> str:
        """Such as "28 November 2026", "week 48 of 2026" or "November 2026"."""
        at = datetime.fromtimestamp(self.start, UTC)
        form = {"date": "%d %B %Y", "week": "week %V of %G", "month": "%B %Y"}[self.kind]
        return at.strftime(form).lstrip("0")

    @property
    def before(self) -> "Period":
        """The one that ends where this one starts."""
        return containing(self.kind, self.start - 1)

    @property
    def after(self) -> "Period":
        """The one that starts where this one ends."""
        return containing(self.kind, self.end)


def containing(kind: Kind, at: int) -> Period:
    """The day, week or month that holds a moment."""
    day = datetime.fromtimestamp(at, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if kind == "date":
        start, end = day, day + timedelta(days=1)
    elif kind == "week":
        start = day - timedelta(days=day.weekday())
        end = start + timedelta(days=7)
    else:
        start = day.replace(day=1)
        end = (start + timedelta(days=32)).replace(day=1)
    return Period(kind, int(start.timestamp()), int(end.timestamp()))


def period_of(values: Mapping[str, str | None], now: int) -> Period | None:
    """The period that `date`, `week` or `month` names, the narrowest if several do; None if none does.

    Raises
    ------
    UsageError
        For a text that is no such date, or a period that has not begun.
    """
    kind = next((k for k in KINDS if values.get(k)), None)
    if kind is None:
        return None
    text = str(values[kind])
    form = "%G-W%V-%u" if kind == "week" else FORMS[kind]
    try:
        at = datetime.strptime(text + "-1" * (kind == "week"), form).replace(tzinfo=UTC)
        found = containing(kind, int(at.timestamp()))
    except (ValueError, OverflowError) as error:
        example = {"date": "2026-11-28", "week": "2026-W48", "month": "2026-11"}[kind]
        raise UsageError(f"not a date: {text[:40]!r} (write {kind}={example})") from error
    if found.start > now:
        raise UsageError("the date lies in the future")
    if found.start < 0:
        raise UsageError(f"no paper came here in {found.name}: the archive starts in 1970")
    return found


def archive(db: Database) -> list[dict[str, Any]]:
    """Months with papers, newest first: the month, how many papers came, and its days with weeks and numbers."""
    p = t.paper.c
    number = (p.submitted_at // 86_400).label("day")
    query = sa.select(number, sa.func.count().label("papers")).where(p.hidden.is_(False)).group_by(number)
    months: dict[str, dict[str, Any]] = {}
    for row in db.rows(query.order_by(number.desc())):
        day, week, month = (containing(kind, row["day"] * 86_400) for kind in KINDS)
        entry = months.setdefault(month.name, {"period": month, "papers": 0, "days": []})
        entry["papers"] += row["papers"]
        entry["days"].append({"period": day, "week": week, "papers": row["papers"]})
    return list(months.values())
