"""Renew a credential again and again, until the hub says no or the user ends it."""

from __future__ import annotations

import time
from collections.abc import Callable

from .answers import Issued
from .errors import ClientError, RefusedError
from .schedule import renewal, retry

#: Seconds of one sleep: a laptop that was asleep sees soon that it is late, because the wall clock went on.
_NAP = 20.0


def keep(
    first: Issued,
    renew: Callable[[], Issued],
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Call `renew`, which writes the files, at two thirds of each credential's life. An outage leaves the old files,
    and is told once. Returns when there is nothing to renew, because the credential doesn't expire.

    Raises:
        RefusedError: the hub said no.
    """
    present, received = first, clock()
    while present.expires_at is not None:
        due = received + renewal(present.issued_at, present.expires_at)
        end = received + (present.expires_at - present.issued_at).total_seconds()
        silent = False
        while True:
            while (left := due - clock()) > 0:
                sleep(min(left, _NAP))
            try:
                present, received = renew(), clock()
                break
            except RefusedError:
                raise
            except ClientError as error:
                if not silent:
                    say(f"Not renewed yet; tried again until it can be. {error}")
                silent = True
                due = clock() + retry(end - clock())
    say(f"{present.title}: doesn't expire; there is nothing to renew.")
