"""A server's files that are renewed in place, again and again, as a hub does it; and a program that reads on."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from casa_hub.delivery import file_layout
from casa_hub.demo.processes import minimal_environment
from casa_hub.demo.xrootd import XCache
from tests.support import xrootd_client


@contextmanager
def renewed_files(directory: Path, every: float, mint: Callable[[datetime], Mapping[str, bytes]]) -> Iterator[None]:
    """A context in which `directory` has the files that `mint` makes, and new ones after each `every` seconds."""
    ended = threading.Event()

    def renew() -> None:
        now = datetime.now(UTC)
        file_layout.write_set(directory, mint(now), now)

    def go_on() -> None:
        while not ended.wait(every):
            renew()

    renew()
    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)


def read_on(xcache: XCache, token: Path, seconds: float, *ways: str, pause: float = 0.02) -> dict[str, Any]:
    """What one process has read in some seconds, each way once after each pause (see `xrootd_client`).

    Args:
        xcache: the server.
        token: file with the token, which may be renewed meanwhile.
        seconds: for which it reads.
        ways: names of the methods of `xrootd_client.Reader`.
        pause: seconds.
    """
    for number in range(xrootd_client.FILES):
        xcache.origin.add(xrootd_client.path_of(number), xrootd_client.content_of(number))
    environment = minimal_environment(
        BEARER_TOKEN_FILE=str(token),
        XCACHE_HOST=xcache.host,
        XCACHE_PORT=str(xcache.port),
        XRD_REQUESTTIMEOUT="60",
        PAUSE=str(pause),
        **xcache.client_environment,
    )
    command = [sys.executable, xrootd_client.__file__, str(time.time() + seconds), str(xcache.tls.ca_file), *ways]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer
