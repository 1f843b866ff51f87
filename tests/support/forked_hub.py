"""Hubs that need not import JupyterHub: each is a fork of a process that has imported it.

To import JupyterHub, SQLAlchemy, Alembic and the client of Kubernetes takes three times the processor time of all else
that a hub does until it serves, and the tests start hundreds of hubs. So a process beside each pytest imports these
packages once, and forks when a test starts a hub. It doesn't import casa_hub: every hub does so itself, as its
configuration wants it.

    python -m tests.support.forked_hub SOCKET

A connection to SOCKET is for one hub. The request is a line of JSON and the file descriptor for the hub's output. The
first answer is the hub's process ID, the second its exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import re
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: What every hub imports and what takes long, if its import reads no environment that a test sets.
PACKAGES = ("alembic.command", "jupyterhub.app", "kubernetes_asyncio.client", "sqlalchemy.dialects.sqlite")


class ForkedHub(subprocess.Popen[bytes]):
    """A hub, as if this process had started ``python -m jupyterhub``, in a process group of its own.

    Its output and errors come from `stdout`.
    """

    def __init__(self, arguments: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.args = ["jupyterhub", *arguments]
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_socket())
        self._answers = self._connection.makefile()
        request = {"arguments": arguments, "directory": str(directory), "environment": dict(environment)}
        output, written = os.pipe()
        self.stdout = os.fdopen(output, "rb")
        socket.send_fds(self._connection, [json.dumps(request).encode() + b"\n"], [written])
        os.close(written)
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        ended = select.poll()
        ended.register(self._connection, select.POLLIN)
        if self.returncode is None and not ended.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        with self._lock:
            if self.returncode is None:
                self.returncode = int(self._answers.readline())
                self._connection.close()
            return self.returncode


@functools.cache
def _socket() -> str:
    """Where hubs are asked for; the first one waits until the packages are imported."""
    directory = tempfile.TemporaryDirectory()
    path = Path(directory.name) / "hubs"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked_hub", path],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,  # Ctrl-C is for pytest, which ends its hubs
    )

    def end() -> None:
        process.communicate()
        directory.cleanup()

    atexit.register(end)
    assert process.stdout is not None
    assert process.stdout.readline(), "see above why it does not import"
    return str(path)


def _next_request(path: str) -> dict[str, Any] | None:
    """Fork for every request, and return it in the hub's process; None when pytest has ended."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _request(connection)
        connection.close()
        _reap()
    _reap()
    return None


def _reap() -> None:
    """So that the hubs' processor time counts for this process, and at last for pytest."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _request(connection: socket.socket) -> dict[str, Any]:
    """In a process for this hub: fork once more, to wait for the hub in one and return in the other."""
    text, [output], *_ = socket.recv_fds(connection, 1 << 20, 1)
    while not text.endswith(b"\n"):
        text += connection.recv(1 << 20)
    if hub := os.fork():
        os.close(output)
        code = os.waitstatus_to_exitcode(os.waitpid(hub, 0)[1])
        with contextlib.suppress(OSError):  # pytest has ended before
            connection.sendall(f"{code}\n".encode())
        os._exit(0)
    os.setpgid(0, 0)
    connection.sendall(f"{os.getpid()}\n".encode())
    connection.close()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    return dict(json.loads(text))


def _run(arguments: Sequence[str], directory: str, environment: Mapping[str, str]) -> None:
    """As ``python -m jupyterhub`` in a new process."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.path[0:1] = [directory, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[1:] = arguments
    runpy.run_module("jupyterhub", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for package in PACKAGES:
        importlib.import_module(package)
    # The rest of it reads KUBECONFIG: each hub imports it again.
    for name in [name for name in sys.modules if re.match(r"kubernetes_asyncio(?!\.client)", name)]:
        del sys.modules[name]
    gc.freeze()
    if (request := _next_request(sys.argv[1])) is not None:
        _run(**request)
