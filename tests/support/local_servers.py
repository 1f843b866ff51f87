"""Servers that a hub with the local spawner has started, and that go on without it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from casa_hub.processes import signed_in
from casa_hub.testing.hub import Hub


def end(hub: Hub) -> None:
    """End the hub, and all of its servers."""
    hub.stop()
    for path in hub.directory.glob("servers/*/process"):
        process = signed_in(path)
        if process is not None and process.alive:
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def ended_with(hub: Hub) -> Iterator[None]:
    """A context after which neither the hub nor any of its servers runs, whatever happened."""
    try:
        yield
    finally:
        end(hub)
