"""The progress of a starting server, as sentences for its spawn page."""

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
    """The events of one start. Each open spawn page gets all of them, from the beginning."""

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
        """All events, past and future, and with them those of another source (`beside`).
        Never ends: JupyterHub stops listening when the start is over.
        """
        others: deque[dict[str, Any]] = deque()
        sent = 0

        async def listen(stream: AsyncIterator[dict[str, Any]]) -> None:
            async for event in stream:
                others.append(event)
                self._wake()

        listening = asyncio.create_task(listen(beside)) if beside is not None else None
        try:
            while True:
                changed = self._changed
                # Without an await: when the start is over, JupyterHub takes only the events that are ready. So the page
                # of a quick start shows missing credentials, too.
                while others or sent < len(self._events):
                    if sent < len(self._events):
                        sent += 1
                        yield self._events[sent - 1]
                    else:
                        yield others.popleft()
                await changed.wait()
        finally:
            if listening is not None:
                listening.cancel()


def sentences_of(facility: Facility, minted: Minted, now: datetime) -> list[str]:
    """A sentence for each credential: its name and expiry, or why it is missing."""
    sentences = [
        f"{facility.minters[name].title}{f' ({new.summary})' if new.summary else ''}, {_until(new, now)}"
        for name, new in minted.credentials.items()
    ]
    return sentences + [without(name, reason, later=_later(facility, name)) for name, reason in minted.missing.items()]


#: When the running server gets a missing credential.
_AGAIN, _WITH_TOKEN = "It is tried again while the server runs.", "The running server gets it with your next token."


def without(what: str, why: str, *, later: str = _AGAIN) -> str:
    """The sentence for a server that starts without `what`, a credential or an object of Kubernetes.

    `why`: the reason, as a sentence. `later`: when the server gets it, as a sentence.
    """
    return f"Starting without {what}: {why} {later}"


def _later(facility: Facility, name: str) -> str:
    minter = facility.minters.get(name)
    if minter is None:  # its module could not be loaded, and this hub process doesn't try again
        return "It can't come before the next start."
    return _WITH_TOKEN if minter.renewal == "token" else _AGAIN


def _until(credential: Credential, now: datetime) -> str:
    if credential.expires_at is None:
        return "without expiry"
    end = credential.expires_at.astimezone(UTC)
    return f"valid until {end:%H:%M} UTC" if end < now + timedelta(days=1) else f"valid until {when(end)}"
