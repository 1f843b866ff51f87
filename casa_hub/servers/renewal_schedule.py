"""Pure: when a credential of a running server is renewed. All times are epoch seconds."""

from __future__ import annotations

from hashlib import blake2s

#: Part of a credential's life after which it is renewed.
_DUE = 2 / 3
#: Part of a life by which renewals are spread, so that servers which started together don't renew together.
_JITTER = 0.05
#: Part of a life: a credential that is due within it is renewed with the one that is due now, in one change of files.
_ALONG = 0.05
#: Part of a life: with less than this left, and no new credential, somebody must act.
_LATE = 1 / 6
#: A failed renewal is tried again after this part of the remaining time, within these limits in seconds.
_RETRY, _SHORTEST, _LONGEST = 0.1, 1.0, 600.0


def jitter(server: str, start_id: str) -> float:
    """A number from -1 to 1 for a start of a server, made of a hash, so that it stays the same."""
    digest = blake2s(f"{server} {start_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) / 0xFFFFFFFF * 2 - 1


def due(issued: float, expires: float, jitter: float) -> float:
    """When to renew a credential with this life."""
    return issued + (_DUE + _JITTER * jitter) * (expires - issued)


def along(issued: float, expires: float, due: float) -> float:
    """From when on a credential is renewed together with another one that is due."""
    return due - _ALONG * (expires - issued)


def is_late(issued: float, expires: float, now: float) -> bool:
    """Whether so little of a life is left that somebody must act."""
    return expires - now < _LATE * (expires - issued)


def again(expires: float | None, now: float, failures: int) -> float:
    """When to try a renewal again after so many failures in a row (1 or more).

    Pauses become shorter towards the expiry, and longer after it. Without an expiry, they double.
    """
    pause = 2.0 ** min(failures, 10) if expires is None else abs(expires - now) * _RETRY
    return now + min(max(pause, _SHORTEST), _LONGEST)
