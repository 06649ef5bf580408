"""When a subscriber's next mail is due, in their own zone; a skipped hour sends once, a repeated hour once."""

from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from etude.errors import UsageError

FREQUENCIES = ("weekdays", "weekly", "monthly")


_zones = cache(available_timezones)  # reading them takes a while


def zone(name: str) -> ZoneInfo:
    """A time zone by its name.

    Raises
    ------
    UsageError
        If there is no such zone.
    """
    if name not in _zones():
        raise UsageError(f"there is no time zone {name[:60]!r}: e.g. Europe/Paris, America/New_York, UTC")
    return ZoneInfo(name)


def _is_day(day: date, frequency: str) -> bool:
    if frequency == "weekdays":
        return day.weekday() < 5
    return day.weekday() == 0 if frequency == "weekly" else day.day == 1


def next_run(after: int, frequency: str, zone_name: str, hour: int) -> int:
    """The first due moment later than `after` (seconds since 1970).

    An hour that a change of clocks skips becomes the moment after the gap; one that comes twice means the first.

    Raises
    ------
    UsageError
        For an unknown frequency or zone, or an hour outside 0..23.
    """
    if frequency not in FREQUENCIES:
        raise UsageError(f"unknown frequency {frequency!r}: weekdays, weekly or monthly")
    if not 0 <= hour <= 23:
        raise UsageError(f"hour {hour}: choose 0 to 23")
    place = zone(zone_name)
    day = datetime.fromtimestamp(after, place).date()
    for ahead in range(0, 40):
        candidate = day + timedelta(days=ahead)
        if not _is_day(candidate, frequency):
            continue
        moment = datetime.combine(candidate, time(hour), tzinfo=place)  # fold 0: the first of two
        at = int(moment.astimezone(UTC).timestamp())
        if at > after:
            return at
    raise AssertionError("a month has a first day")


def period(at: int, frequency: str, zone_name: str) -> str:
    """A name for the mail that is due at a moment: one a day, week or month."""
    local = datetime.fromtimestamp(at, zone(zone_name))
    if frequency == "weekly":
        year, week, _ = local.isocalendar()
        return f"weekly:{year}-W{week:02d}"
    return f"monthly:{local:%Y-%m}" if frequency == "monthly" else f"weekdays:{local:%Y-%m-%d}"


def window(at: int, frequency: str, zone_name: str, hour: int) -> int:
    """Start of the time that a mail due at a moment looks back on: the subscriber's hour, an earlier day."""
    local = datetime.fromtimestamp(at, zone(zone_name))
    if frequency == "monthly":
        last = local.date().replace(day=1) - timedelta(days=1)  # of the month before
        day = last.replace(day=min(local.day, last.day))
    else:  # Monday's mail holds the weekend
        day = local.date() - timedelta(days=7 if frequency == "weekly" else 3 if local.weekday() == 0 else 1)
    # by the calendar of the reader, since a day of changed clocks has 23 or 25 hours; and by the hour that was wished
    # for, since a mail whose own hour was skipped is late that day
    return int(datetime.combine(day, time(hour), tzinfo=local.tzinfo).astimezone(UTC).timestamp())
