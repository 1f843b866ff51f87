"""How times are written: one form for people, one for programs; both in UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def when(moment: float | datetime) -> str:
    """For people everywhere: pages, commands, the log, errors. Epoch seconds, or a time with its zone."""
    return f"{_utc(moment):%Y-%m-%d %H:%M} UTC"


def iso(moment: float | datetime) -> str:
    """For programs (ISO 8601): what the API says in JSON."""
    return _utc(moment).isoformat(timespec="seconds")


def _utc(moment: float | datetime) -> datetime:
    return moment.astimezone(UTC) if isinstance(moment, datetime) else datetime.fromtimestamp(moment, UTC)
