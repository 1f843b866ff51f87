"""Programs that need not import JupyterHub: each is a fork of a process that has imported it.

To import JupyterHub, SQLAlchemy, Alembic and the client of Kubernetes takes three times the processor time of all else
that a hub does until it serves, and nearly all that an operator's command takes. The tests start hundreds of them. So a
process beside each pytest imports these packages once, and forks when a test starts a program. It doesn't import
casa_hub: every hub does so itself, as its configuration wants it.

    python -m tests.support.forked SOCKET

A connection to SOCKET is for one program. The request is a line of JSON and the file descriptors for the program's
output and errors. The first answer is the program's process ID, the second its exit code.
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
import signal
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
PACKAGES = (
    "alembic.command",
    "jupyterhub.app",
    "jwt",
    "kubernetes_asyncio.client",
    "requests",
    "ruamel.yaml",
    "sqlalchemy.dialects.sqlite",
)


class Forked(subprocess.Popen[bytes]):
    """A program, as if this process had started ``python -m MODULE``, in a process group of its own.

    Its output and errors come from `stdout`, or go to the two file descriptors of `outputs`.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        *,
        outputs: tuple[int, int] | None = None,
    ) -> None:
        self.args = [module, *arguments]
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_socket())
        self._answers = self._connection.makefile()
        request = {
            "module": module,
            "arguments": arguments,
            "directory": str(directory),
            "environment": dict(environment),
        }
        if outputs is None:
            output, written = os.pipe()
            self.stdout = os.fdopen(output, "rb")
        socket.send_fds(self._connection, [json.dumps(request).encode() + b"\n"], outputs or (written, written))
        if outputs is None:
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


def run(
    module: str, arguments: Sequence[str], directory: Path, environment: Mapping[str, str], *, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """A program to its end, as `subprocess.run` with what it printed."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        program = Forked(module, arguments, directory, environment, outputs=(output.fileno(), errors.fileno()))
        try:
            code = program.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            raise
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(program.args, code, output.read(), errors.read())


@functools.cache
def _socket() -> str:
    """Where programs are asked for; the first one waits until the packages are imported."""
    directory = tempfile.TemporaryDirectory()
    path = Path(directory.name) / "forks"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked", path],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,  # Ctrl-C is for pytest, which ends its programs
    )

    def end() -> None:
        process.communicate()
        directory.cleanup()

    atexit.register(end)
    assert process.stdout is not None
    assert process.stdout.readline(), "see above why it does not import"
    return str(path)


def _next_request(path: str) -> dict[str, Any] | None:
    """Fork for every request, and return it in the program's process; None when pytest has ended."""
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
    """So that the programs' processor time counts for this process, and at last for pytest."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _request(connection: socket.socket) -> dict[str, Any]:
    """In a process for this program: fork once more, to wait for the program in one and return in the other."""
    text, outputs, *_ = socket.recv_fds(connection, 1 << 20, 2)
    while not text.endswith(b"\n"):
        text += connection.recv(1 << 20)
    if program := os.fork():
        for each in outputs:
            os.close(each)
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        with contextlib.suppress(OSError):  # pytest has ended before
            connection.sendall(f"{code}\n".encode())
        os._exit(0)
    os.setpgid(0, 0)
    connection.sendall(f"{os.getpid()}\n".encode())
    connection.close()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in zip((nothing, *outputs), (0, 1, 2), strict=True):
        os.dup2(source, target)
        os.close(source)
    return dict(json.loads(text))


def _run(module: str, arguments: Sequence[str], directory: str, environment: Mapping[str, str]) -> None:
    """As ``python -m MODULE`` in a new process."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.path[0:1] = [directory, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for package in PACKAGES:
        importlib.import_module(package)
    importlib.import_module("sqlalchemy.orm").configure_mappers()
    # The rest of it reads KUBECONFIG: each hub imports it again.
    for name in [name for name in sys.modules if re.match(r"kubernetes_asyncio(?!\.client)", name)]:
        del sys.modules[name]
    gc.freeze()
    if (request := _next_request(sys.argv[1])) is not None:
        _run(**request)
