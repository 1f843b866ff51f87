"""How long a piece of work may take."""

from __future__ import annotations

import time


class Deadline:
    """The moment by which a piece of work must be done: handed down, so that its requests share one time-out."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; 0 when it has passed."""
        return max(0.0, self._end - time.monotonic())
