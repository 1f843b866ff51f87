"""The demo as its user meets it: the command, what it prints, and that nothing is left of it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from itertools import takewhile
from pathlib import Path

import pytest

from casa_hub.demo.browser import Browser

pytestmark = pytest.mark.timeout(600)

COMMAND = [sys.executable, "-m", "casa_hub.cli", "demo"]


def processes_of(directory: Path) -> list[str]:
    """Command lines of processes that work in, or were told of, this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                where = str((entry / "cwd").readlink())
            except OSError:
                continue
            if str(directory) in command or where.startswith(str(directory)):
                found.append(command)
    return found


def test_the_check_passes_every_step() -> None:
    """`make demo-check`: log-in, spawn, every credential used inside a server, every refusal, and a clean end."""
    done = subprocess.run([*COMMAND, "--check"], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " 0 failed" in done.stdout
    for step in ("refused and told why", "inside: a Dask scheduler", "everything has ended"):
        assert step in done.stdout


def test_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    """A person presses Ctrl-C in the terminal, and nothing of the facility is left."""
    tmp_path.chmod(0o711)
    demo = subprocess.Popen(
        [*COMMAND, "--directory", str(tmp_path / "demo")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert demo.stdout is not None
    lines: list[str] = []
    for line in demo.stdout:
        lines.append(line)
        if "Ctrl-C ends everything" in line:
            break
    else:
        pytest.fail("".join(lines))
    assert processes_of(tmp_path), "a running demo must be found by this test, or its end could not be"
    command = lines[next(n for n, line in enumerate(lines) if "To operate it" in line) + 1]
    checked = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "error" not in checked.stdout
    rest = threading.Thread(target=demo.stdout.read, daemon=True)
    rest.start()
    demo.send_signal(signal.SIGINT)
    assert demo.wait(60) == 0
    assert processes_of(tmp_path) == []


def test_who_signed_in_at_an_earlier_run_can_sign_in_again(tmp_path: Path) -> None:
    """The identity provider had another port in each run, so names bound in the first were somebody else's later."""
    tmp_path.chmod(0o711)
    for _ in range(2):
        with subprocess.Popen(
            [*COMMAND, "--directory", str(tmp_path / "demo")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as demo:
            assert demo.stdout is not None
            lines = list(takewhile(lambda line: line != "  Ctrl-C ends everything.\n", demo.stdout))
            (url,) = [line.split()[1] for line in lines if line.startswith("  Open http")]
            answer = Browser(url).log_in("oksana")
            demo.send_signal(signal.SIGINT)
        assert answer.status_code == 200, answer.text


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*COMMAND, "--port", str(port), "--directory", str(tmp_path)], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "Choose another" in done.stderr
