"""What a starting server has come to, in sentences for its spawn page."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from casa_hub.credentials.base import Credential
from casa_hub.delivery.base import Minted
from casa_hub.facility import Facility
from casa_hub.moments import when


class Steps:
    """What a starting server has come to: told to every spawn page that asks, from the beginning."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()

    def say(self, progress: int, message: str) -> None:
        """`progress` of 100."""
        self._events.append({"progress": progress, "message": message})
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, beside: AsyncIterator[dict[str, Any]] | None = None) -> AsyncIterator[dict[str, Any]]:
        """All events, also those to come; without end: JupyterHub listens as long as the start takes.

        Args:
            beside: other events, told as they come.
        """
        others: deque[dict[str, Any]] = deque()
        heard = 0

        async def listen(stream: AsyncIterator[dict[str, Any]]) -> None:
            async for event in stream:
                others.append(event)
                self._tell()

        listening = asyncio.create_task(listen(beside)) if beside is not None else None
        try:
            while True:
                changed = self._changed
                # At once: when the start is over, JupyterHub takes what is there, and waits for nothing, not even for
                # a turn of the loop. Who looks at a quick start hears of what is missing, too.
                while others or heard < len(self._events):
                    if heard < len(self._events):
                        heard += 1
                        yield self._events[heard - 1]
                    else:
                        yield others.popleft()
                await changed.wait()
        finally:
            if listening is not None:
                listening.cancel()


def told(facility: Facility, minted: Minted, now: datetime) -> list[str]:
    """A sentence for each credential: what it is and how long it lasts, or why it is missing."""
    sentences = [
        f"{facility.minters[name].title}{f' ({one.summary})' if one.summary else ''}, {_until(one, now)}"
        for name, one in minted.credentials.items()
    ]
    return sentences + [without(name, reason, later=_later(facility, name)) for name, reason in minted.missing.items()]


#: What follows while the server runs.
_AGAIN, _WITH_TOKEN = "It is tried again while the server runs.", "The running server gets it with your next token."


def without(what: str, why: str, *, later: str = _AGAIN) -> str:
    """That a server starts without something, a credential or an object of Kubernetes; `why` is a sentence."""
    return f"Starting without {what}: {why} {later}"


def _later(facility: Facility, name: str) -> str:
    minter = facility.minters.get(name)
    if minter is None:  # it could not be loaded, and isn't while this hub runs
        return "It can't come before the next start."
    return _WITH_TOKEN if minter.renewal == "token" else _AGAIN


def _until(credential: Credential, now: datetime) -> str:
    if credential.expires_at is None:
        return "without an end"
    end = credential.expires_at.astimezone(UTC)
    return f"valid until {end:%H:%M} UTC" if end < now + timedelta(days=1) else f"valid until {when(end)}"
