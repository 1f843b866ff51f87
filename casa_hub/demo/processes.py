"""Child processes that leave nothing behind, however this program ends (see `supervise`)."""

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
#: How often a log or a state is looked at while waiting, seconds: files and servers give no event to wait for.
_LOOK = 0.01

_T = TypeVar("_T")


class ProcessError(CasaError):
    """A server did not come up, or ended; the text holds the last lines of its log."""


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
        log: takes standard output and error; begun anew at each start.
        env: the whole environment; None for this process's.
        cwd: working directory.
        stop_signal: asks the command to end.
        grace: seconds between `stop_signal` and SIGKILL for everything still there.
        scratch: directory that is removed when all have ended.
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
                stdin=subprocess.PIPE,  # closes when we stop it or die
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self.cwd,
                start_new_session=True,  # Ctrl-C is for us; we end our children in order
            )
        return self

    @property
    def running(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for it to end by itself and return its exit code.

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
            time.sleep(_LOOK)
        return answer

    def last_lines(self, count: int = 30) -> str:
        """End of the log."""
        lines = read_log(self.log).splitlines()[-count:]
        return "\n".join([f"Last lines of {self.log}:", *lines])

    def stop(self) -> None:
        """End the command and everything it started; returns when all of it is gone."""
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
    """Content of a log file; "" if it isn't there yet."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at `address` just now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def free_loopback_address(*ports: int, address: str | None = None) -> str:
    """A loopback address (127.0.0.0/8) with these ports free: facilities side by side keep out of each other's way.

    Raises:
        OSError: a port is not free at `address`, or this machine doesn't let us bind to it.
    """
    address = address or f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.1"  # noqa: S311
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    return address


def minimal_environment(**more: str) -> dict[str, str]:
    """What a server needs of our environment, and nothing that a person or another test left in it."""
    kept = {name: value for name in ("PATH", "HOME", "LANG", "TZ") if (value := os.environ.get(name)) is not None}
    return kept | more
