"""Pure: when a credential of a running server is renewed. All times are epoch seconds."""

from __future__ import annotations

from hashlib import blake2s

#: Part of a credential's life after which it is renewed.
_DUE = 2 / 3
#: Part of a life by which that is earlier or later, so that servers which started together don't renew together.
_JITTER = 0.05
#: Part of a life: what is due within it is renewed along with what is due now, in one and the same change of files.
_ALONG = 0.05
#: Part of a life: with less of it left, and still no new one, somebody must do something.
_LATE = 1 / 6
#: Part of the time that is left after which a renewal that failed is tried again, and limits of that, in seconds.
_PATIENCE, _SHORTEST, _LONGEST = 0.1, 1.0, 600.0


def jitter(server: str, start_id: str) -> float:
    """A number from -1 to 1 for a start of a server: as good as random, but always the same."""
    digest = blake2s(f"{server} {start_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) / 0xFFFFFFFF * 2 - 1


def due(issued: float, expires: float, jitter: float) -> float:
    """When to renew what lives from `issued` to `expires`."""
    return issued + (_DUE + _JITTER * jitter) * (expires - issued)


def along(issued: float, expires: float, due: float) -> float:
    """From when on it is renewed along with another one that is due."""
    return due - _ALONG * (expires - issued)


def is_late(issued: float, expires: float, now: float) -> bool:
    """Whether so little is left that somebody must do something."""
    return expires - now < _LATE * (expires - issued)


def again(expires: float | None, now: float, failures: int) -> float:
    """When to try again after so many failures in a row (1 or more).

    The nearer the end, the more often; and after it, the longer ago, the less often. What has no end is tried after
    ever longer pauses.
    """
    pause = 2.0 ** min(failures, 10) if expires is None else abs(expires - now) * _PATIENCE
    return now + min(max(pause, _SHORTEST), _LONGEST)
