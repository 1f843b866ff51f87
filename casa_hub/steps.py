"""The progress of a starting server, in sentences for its spawn page."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from casa_hub.credentials.base import Credential
from casa_hub.facility import Facility, Minted
from casa_hub.moments import when


class Steps:
    """The events of one start. Each spawn page that asks gets all of them, from the beginning."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()

    def say(self, progress: int, message: str) -> None:
        """Add an event; `progress` is in percent."""
        self._events.append({"progress": progress, "message": message})
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, beside: AsyncIterator[dict[str, Any]] | None = None) -> AsyncIterator[dict[str, Any]]:
        """All events, past and future. Never ends: JupyterHub stops listening when the start is over.

        Args:
            beside: events of another source, passed on as they come.
        """
        others: deque[dict[str, Any]] = deque()
        given = 0

        async def listen(stream: AsyncIterator[dict[str, Any]]) -> None:
            async for event in stream:
                others.append(event)
                self._wake()

        listening = asyncio.create_task(listen(beside)) if beside is not None else None
        try:
            while True:
                changed = self._changed
                # Without an await: when the start is over, JupyterHub takes the events that are ready and doesn't even
                # wait for one turn of the event loop. So the page of a quick start shows missing credentials, too.
                while others or given < len(self._events):
                    if given < len(self._events):
                        given += 1
                        yield self._events[given - 1]
                    else:
                        yield others.popleft()
                await changed.wait()
        finally:
            if listening is not None:
                listening.cancel()


def told(facility: Facility, minted: Minted, now: datetime) -> list[str]:
    """A sentence for each credential: what it is and how long it lasts, or why it is missing."""
    sentences = [
        f"{facility.minters[name].title}{f' ({new.summary})' if new.summary else ''}, {_until(new, now)}"
        for name, new in minted.credentials.items()
    ]
    return sentences + [without(name, reason, later=_later(facility, name)) for name, reason in minted.missing.items()]


#: When the running server will get a missing credential.
_AGAIN, _WITH_TOKEN = "It is tried again while the server runs.", "The running server gets it with your next token."


def without(what: str, why: str, *, later: str = _AGAIN) -> str:
    """The sentence for a server that starts without a credential or an object of Kubernetes.

    Args:
        what: the thing that is missing.
        why: a sentence.
        later: when the server will get it, as a sentence.
    """
    return f"Starting without {what}: {why} {later}"


def _later(facility: Facility, name: str) -> str:
    minter = facility.minters.get(name)
    if minter is None:  # its module could not be loaded, and is not loaded again while this hub runs
        return "It can't come before the next start."
    return _WITH_TOKEN if minter.renewal == "token" else _AGAIN


def _until(credential: Credential, now: datetime) -> str:
    if credential.expires_at is None:
        return "without an end"
    end = credential.expires_at.astimezone(UTC)
    return f"valid until {end:%H:%M} UTC" if end < now + timedelta(days=1) else f"valid until {when(end)}"
