"""Work in the background of the hub's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

#: Things that `in_turns` gives in one turn of the event loop.
_IN_ONE_TURN = 50

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


async def in_turns(things: Iterable[T]) -> AsyncIterator[T]:
    """All of them; other work on the event loop gets its turns in between."""
    for number, thing in enumerate(things, 1):
        yield thing
        if number % _IN_ONE_TURN == 0:
            await asyncio.sleep(0)
