"""Times: how long a credential shall live, when it is renewed, and how a time is told. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from .errors import ClientError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
#: Seconds between two requests for the same credential, at least, and while the hub can't be asked, at most.
_SHORTEST, _LONGEST = 5.0, 60.0


def seconds(text: str) -> int:
    """Seconds of ``90m``, ``1h``, ``1.5h``, ``2d``, ``3600``. Raises ClientError for other texts, and for none."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", text.strip())
    if match is None or (value := int(float(match[1]) * _UNITS[match[2]])) < 1:
        raise ClientError("--lifetime", "is no time", "Examples: 90m, 1h, 2d")
    return value


def renewal(issued_at: datetime, expires_at: datetime) -> float:
    """Seconds after its receipt when a credential is to be renewed: at two thirds of its life.

    Both times are of the hub's clock, so it doesn't matter if this machine's is wrong.
    """
    return max((expires_at - issued_at).total_seconds() * 2 / 3, _SHORTEST)


def retry(left: float) -> float:
    """Seconds until the next attempt if the hub couldn't be asked, with so many left of the present credential."""
    return min(max(left / 10, _SHORTEST), _LONGEST)


def moment(text: object) -> datetime:
    """A time of the hub's answer, as aware UTC. Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError("not a time")  # noqa: TRY004 - as other texts that are none
    value = datetime.fromisoformat(text)
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)


def told(value: datetime, now: datetime) -> str:
    """A time for people, by this machine's time zone: ``17:40``, or with its date if that isn't soon."""
    local = value.astimezone()
    return f"{local:%H:%M}" if abs(value - now) < timedelta(hours=18) else f"{local:%Y-%m-%d %H:%M}"
