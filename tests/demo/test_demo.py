"""The demo as its user meets it: the command, what it prints, and that nothing is left of it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
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


def begin(directory: Path) -> tuple[subprocess.Popen[str], list[str]]:
    """A demo that is ready, and what it has printed by then."""
    demo = subprocess.Popen(
        [*COMMAND, "--directory", str(directory)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert demo.stdout is not None
    lines: list[str] = []
    for line in demo.stdout:
        lines.append(line)
        if "Ctrl-C ends everything" in line:
            threading.Thread(target=demo.stdout.read, daemon=True).start()
            return demo, lines
    pytest.fail("".join(lines))


def sign_in(lines: list[str]) -> None:
    (url,) = [line.split()[1] for line in lines if line.startswith("  Open http")]
    answer = Browser(url).log_in("oksana")
    assert answer.status_code == 200, answer.text


def test_ctrl_c_ends_all_of_it_and_who_signed_in_can_sign_in_at_the_next_run(tmp_path: Path) -> None:
    """A person presses Ctrl-C in the terminal, and nothing of the facility is left but what the next run is to know.

    The identity provider had another port in each run, so names bound in the first were somebody else's later.
    """
    tmp_path.chmod(0o711)
    demo, lines = begin(tmp_path / "demo")
    try:
        assert processes_of(tmp_path), "a running demo must be found by this test, or its end could not be"
        command = lines[next(n for n, line in enumerate(lines) if "To operate it" in line) + 1]
        checked = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=120)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert "error" not in checked.stdout
        sign_in(lines)
    finally:
        demo.send_signal(signal.SIGINT)
    assert demo.wait(60) == 0
    assert processes_of(tmp_path) == []

    demo, lines = begin(tmp_path / "demo")
    try:
        sign_in(lines)
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(60)


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
