"""How long one callback holds up the event loop: the time that everybody else on it waits."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any, Self


class Turns:
    """A context in which the turns of the event loop are measured, in seconds.

    Python's own collections of garbage are told apart: what is alive in the whole process makes them long, and they
    happen in whatever turn allocates next.
    """

    def __init__(self) -> None:
        #: Longest turn by the CPU of its thread, since others may have the processor.
        self.cpu = 0.0
        #: Longest turn by the clock, which counts waiting for the disk, too.
        self.wall = 0.0
        #: Longest collection of garbage by CPU. No other time has it, but `wall`.
        self.collection = 0.0
        self._collected = self._collection_begun = 0.0
        #: Longest turn by CPU of each coroutine or callback, by its name.
        self.by_name: dict[str, float] = {}
        self._thread = 0
        self._inner: Callable[..., Any] = asyncio.events.Handle._run

    def __enter__(self) -> Self:
        inner, turns = self._inner, self

        def run(handle: Any) -> Any:
            turns._collected = 0.0
            cpu, wall = time.thread_time(), time.perf_counter()
            try:
                return inner(handle)
            finally:
                cpu, wall = time.thread_time() - cpu - turns._collected, time.perf_counter() - wall
                turns.cpu, turns.wall = max(turns.cpu, cpu), max(turns.wall, wall)
                name = _name(handle)
                turns.by_name[name] = max(turns.by_name.get(name, 0.0), cpu)

        self._thread = threading.get_ident()
        gc.callbacks.append(self._collect)
        asyncio.events.Handle._run = run  # type: ignore[method-assign]
        return self

    def _collect(self, phase: str, _: object) -> None:
        if threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._collection_begun = time.thread_time()
        else:
            took = time.thread_time() - self._collection_begun
            self._collected += took
            self.collection = max(self.collection, took)

    def __exit__(self, *_: object) -> None:
        asyncio.events.Handle._run = self._inner  # type: ignore[method-assign]
        gc.callbacks.remove(self._collect)

    def __str__(self) -> str:
        longest = sorted(self.by_name.items(), key=lambda one: -one[1])[:3]
        told = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in longest)
        return (
            f"longest turn {self.cpu * 1e3:.1f} ms of CPU ({told}), longest collection of garbage "
            f"{self.collection * 1e3:.1f} ms; longest of both by the clock {self.wall * 1e3:.1f} ms"
        )


def _name(handle: Any) -> str:
    callback = handle._callback
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return str(getattr(owner.get_coro(), "__qualname__", owner))
    return str(getattr(callback, "__qualname__", type(callback).__name__))
