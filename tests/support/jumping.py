"""An event loop whose clock jumps to the next timer as soon as there is nothing else to do.

What waits for seconds, or for tenths of them, then depends on nothing but itself: neither on a busy machine nor on
patience. For code without threads, sockets and processes.
"""

from __future__ import annotations

import asyncio
import selectors


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its time begins at 0."""

    def __init__(self) -> None:
        self._selector_of_ours = _Jumping()
        super().__init__(self._selector_of_ours)

    def time(self) -> float:
        return self._selector_of_ours.now


class _Jumping(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        assert timeout is not None, "nothing will ever happen any more"
        self.now += timeout
        return []
