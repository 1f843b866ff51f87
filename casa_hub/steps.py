"""What a starting server has come to, in sentences for its spawn page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from casa_hub.credentials.base import Credential
from casa_hub.facility import Facility, Minted


class Steps:
    """What a starting server has come to: told to every spawn page that asks, from the beginning."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()

    def say(self, progress: int, message: str) -> None:
        """`progress` of 100."""
        self._events.append({"progress": progress, "message": message})
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """All events, also those to come; without end: JupyterHub listens as long as the start takes."""
        told = 0
        while True:
            changed = self._changed
            for event in self._events[told:]:
                told += 1
                yield event
            if changed is self._changed:
                await changed.wait()


async def merged(*streams: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """Events of all streams, each as it comes."""
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def pump(stream: AsyncIterator[dict[str, Any]]) -> None:
        async for event in stream:
            events.put_nowait(event)

    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
    getting: asyncio.Task[dict[str, Any]] | None = None
    try:
        while not (events.empty() and all(task.done() for task in pumps)):
            getting = asyncio.create_task(events.get())
            await asyncio.wait([getting, *(task for task in pumps if not task.done())], return_when="FIRST_COMPLETED")
            if getting.done():
                yield getting.result()
            else:
                getting.cancel()
    finally:
        for task in filter(None, [getting, *pumps]):
            task.cancel()


def told(facility: Facility, minted: Minted, now: datetime) -> list[str]:
    """A sentence for each credential: what it is and how long it lasts, or why it is missing."""
    sentences = [
        f"{facility.minters[name].title}{f' ({one.summary})' if one.summary else ''}, {_until(one, now)}"
        for name, one in minted.credentials.items()
    ]
    return sentences + [f"Starting without {name}: {reason}" for name, reason in minted.missing.items()]


def _until(credential: Credential, now: datetime) -> str:
    if credential.expires_at is None:
        return "without an end"
    end = credential.expires_at.astimezone(UTC)
    return f"valid until {end:%H:%M} UTC" if end < now + timedelta(days=1) else f"valid until {end:%Y-%m-%d %H:%M} UTC"
