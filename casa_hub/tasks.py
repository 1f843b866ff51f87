"""Work in the background of the hub's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

#: Seconds, about, that work in pieces takes in one turn of the event loop.
_TURN = 0.001

T = TypeVar("T")

log = logging.getLogger(__name__)


class Background:
    """Tasks that nobody may await. Each is kept until it is done: the event loop itself has weak references only."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start `work`; the log says by this name what it raised."""
        task = self.keep(asyncio.get_running_loop().create_task(work, name=name))
        task.add_done_callback(_log_error)
        return task

    def keep(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """Keep a task whose error somebody else hears of."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


def _log_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("%s failed", task.get_name(), exc_info=task.exception())


async def repeat(
    call: Callable[[], Awaitable[bool]], pause: Callable[[], Awaitable[None]], on_error: Callable[[Exception], None]
) -> None:
    """Await `call` until it returns True, with a `pause` after each other time, also after one that raised."""
    while True:
        try:
            if await call():
                return
        except Exception as error:  # noqa: BLE001 - whatever it is, the next call may do better
            on_error(error)
        await pause()


async def woken(wake: asyncio.Event, seconds: float) -> None:
    """Wait until `wake` is set, but no longer than that, and clear it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wake.wait()
    wake.clear()


class Turns:
    """For work in pieces: other work on the event loop gets its turns in between."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def give(self) -> None:
        """Let others have theirs, if this work has had its time. Call it after each piece."""
        if time.perf_counter() - self._began >= _TURN:
            await asyncio.sleep(0)
            self._began = time.perf_counter()


async def in_turns(things: Iterable[T]) -> AsyncIterator[T]:
    """All of them, as by `Turns`."""
    turns = Turns()
    for thing in things:
        yield thing
        await turns.give()
