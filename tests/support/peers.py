"""Real counterparts: there, or the test is skipped with the reason; never skipped where they are demanded."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casa_hub.demo.packages import Unavailable


@contextmanager
def needed() -> Iterator[None]:
    """What is made in the block is a counterpart. With ``CASA_HUB_REQUIRE_PEERS=1`` a missing one is a failure."""
    try:
        yield
    except Unavailable as error:
        if os.environ.get("CASA_HUB_REQUIRE_PEERS") == "1":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@contextmanager
def open_directory(name: str) -> Iterator[Path]:
    """A directory that other users can enter: servers that are started as root change to another user.

    Not pytest's, which is closed to others, and too deep for the paths of sockets.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"casa-{name}-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
