"""Waiting for what nobody announces: look again until it is so, up to a deadline.

Where there is an event, a process's output or a log line to wait for, wait for that instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two looks: a twentieth of the time that was waited already, but not less and not more than this. What
#: takes long is looked at more rarely: the looks, and the answers of servers to them, would take most of a processor.
SHORTEST, LONGEST = 0.05, 0.4


def pause(begin: float) -> None:
    """Sleep until the next look; `begin` is when the waiting began (`time.monotonic`)."""
    time.sleep(min(max((time.monotonic() - begin) / 20, SHORTEST), LONGEST))


def first_true(
    condition: Callable[[], T],
    what: str,
    timeout: float = 90,
    *,
    not_yet: tuple[type[Exception], ...] = (),
    more: Callable[[], str] = str,
) -> T:
    """Ask until the answer is true, and return it.

    Args:
        condition: what is asked.
        what: what is waited for, in the words of the failure.
        timeout: seconds.
        not_yet: exceptions of the condition that mean "not yet".
        more: text that helps to understand a failure, such as the end of a log.
    """
    begin = time.monotonic()
    last: object = None
    while True:
        try:
            last = answer = condition()
        except not_yet as error:
            last = error
        else:
            if answer:
                return answer
        assert time.monotonic() - begin < timeout, f"not within {timeout:g} s: {what} (last: {last!r})\n{more()}"
        pause(begin)


def until(
    condition: Callable[[], object],
    what: str,
    timeout: float = 90,
    *,
    not_yet: tuple[type[Exception], ...] = (),
    more: Callable[[], str] = str,
) -> float:
    """As `first_true`. Returns the seconds that it took."""
    begin = time.monotonic()
    first_true(condition, what, timeout, not_yet=not_yet, more=more)
    return time.monotonic() - begin


def until_none(
    complaints: Callable[[], object], what: str, timeout: float = 90, *, not_yet: tuple[type[Exception], ...] = ()
) -> float:
    """Ask until there is no complaint any more; the failure tells the last ones. Returns the seconds that it took."""
    begin = time.monotonic()
    last: object = None
    while True:
        try:
            last = complaints()
            if not last:
                return time.monotonic() - begin
        except not_yet as error:
            last = error
        assert time.monotonic() - begin < timeout, f"not within {timeout:g} s: {what}: {last!r}"
        pause(begin)


async def until_async(condition: Callable[[], object], seconds: float = 20) -> None:
    """For what happens on the test's own event loop, whose clock may be the test's, too."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)
