"""Child processes that end with this program, however it ends (see `supervise`)."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from casa_hub.errors import CasaError

_SUPERVISOR = Path(__file__).with_name("supervise.py")
#: Seconds between two looks at a log or a state: there is no event to wait for.
_POLL = 0.01

_T = TypeVar("_T")


class ProcessError(CasaError):
    """A program did not get ready, or ended. The text has the last lines of its log."""


class Process:
    """One supervised command, its output in a log file. Use as a context manager, or call `start` and `stop`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace: float = 5.0,
        scratch: Path | None = None,
    ) -> None:
        """Args:
        name: for people, in messages.
        command: program and arguments.
        log: file for standard output and error; emptied at each start.
        env: the whole environment; None for this process's.
        cwd: working directory.
        stop_signal: the signal that asks the command to end.
        grace: seconds between `stop_signal` and SIGKILL for all that still runs.
        scratch: directory that is removed after the end.
        """
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.env = env
        self.cwd = cwd
        self.stop_signal = stop_signal
        self.grace = grace
        self.scratch = scratch
        self._supervisor: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it and return at once; see `wait_until`."""
        supervise = [sys.executable, "-I", "-S", str(_SUPERVISOR), str(int(self.stop_signal)), str(self.grace)]
        supervise.append(str(self.scratch or ""))
        with self.log.open("wb") as log:
            self._supervisor = subprocess.Popen(
                [*supervise, *self.command],
                stdin=subprocess.PIPE,  # closed by `stop`, or by the end of this process
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self.cwd,
                start_new_session=True,  # so that Ctrl-C reaches only this process, which ends its children in order
            )
        return self

    @property
    def running(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the command ends by itself, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds.
        """
        assert self._supervisor is not None  # noqa: S101
        return self._supervisor.wait(timeout)

    def wait_until(self, what: str, ready: Callable[[], _T | None], timeout: float = 60.0) -> _T:
        """Wait for the first true answer of `ready` and return it.

        Raises:
            ProcessError: the command ended, or `timeout` seconds passed.
        """
        end = time.monotonic() + timeout
        while not (answer := ready()):
            if not self.running:
                raise ProcessError(self.name, f"ended before it was ready ({what})", self.last_lines())
            if time.monotonic() > end:
                raise ProcessError(self.name, f"is not ready after {timeout:g} s ({what})", self.last_lines())
            time.sleep(_POLL)
        return answer

    def last_lines(self, count: int = 30) -> str:
        """End of the log."""
        lines = read_log(self.log).splitlines()[-count:]
        return "\n".join([f"Last lines of {self.log}:", *lines])

    def stop(self) -> None:
        """End the command and all that it started; returns when everything has ended."""
        if self._supervisor is not None:
            assert self._supervisor.stdin is not None  # noqa: S101
            self._supervisor.stdin.close()
            self._supervisor.wait()

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def read_log(path: Path) -> str:
    """Content of a log file; "" if it doesn't exist yet."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def free_loopback_address(*ports: int, address: str | None = None) -> str:
    """A loopback address (127.0.0.0/8) with these ports free; by default a random one, against collisions.

    Raises:
        OSError: a port is not free at the address, or this machine doesn't allow its use.
    """
    address = address or f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.1"  # noqa: S311
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    return address


def minimal_environment(**more: str) -> dict[str, str]:
    """The few variables of our environment that every program needs, and `more`."""
    kept = {name: value for name in ("PATH", "HOME", "LANG", "TZ") if (value := os.environ.get(name)) is not None}
    return kept | more
