"""Times as text, in UTC: a form for people, one for programs, and one that loses nothing."""

from __future__ import annotations

from datetime import UTC, datetime


def when(moment: float | datetime) -> str:
    """For people: in pages, commands, log and errors. Takes epoch seconds, or a time with its zone."""
    return f"{_utc(moment):%Y-%m-%d %H:%M} UTC"


def iso(moment: float | datetime) -> str:
    """For programs: ISO 8601, in the API's JSON."""
    return _utc(moment).isoformat(timespec="seconds")


def exact(moment: datetime | None) -> str | None:
    """For records and the audit: ISO 8601 with parts of a second. None is for a credential without expiry."""
    return None if moment is None else _utc(moment).isoformat()


def _utc(moment: float | datetime) -> datetime:
    return moment.astimezone(UTC) if isinstance(moment, datetime) else datetime.fromtimestamp(moment, UTC)
