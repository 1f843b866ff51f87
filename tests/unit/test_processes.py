"""A process is known by more than its number."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from casa_hub.processes import Process, _parse, sign_in, signed_in


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    path = os.fsencode(tmp_path / "process")
    environment = {"NAME": "a=b", "EMPTY": ""}
    child = subprocess.Popen(["/bin/sleep", "60"], preexec_fn=lambda: sign_in(path), env=environment)  # noqa: PLW1509
    yield child
    child.kill()
    child.wait()


def test_a_child_signs_in_before_its_program_begins(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    process = signed_in(tmp_path / "process")
    assert process is not None
    assert process.pid == child.pid
    assert process.alive
    assert process.environment() == {"NAME": "a=b", "EMPTY": ""}
    assert (tmp_path / "process").stat().st_mode & 0o777 == 0o600


def test_another_process_with_the_same_number_is_another(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    process = signed_in(tmp_path / "process")
    assert process is not None
    assert not replace(process, started=process.started - 1).alive
    assert not replace(process, boot_id="an earlier boot").alive


def test_who_has_ended_is_dead_even_if_nobody_reaped_it(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    process = signed_in(tmp_path / "process")
    assert process is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
    assert not process.alive
    child.wait()
    assert not process.alive
    assert process.environment() == {}


def test_who_cannot_sign_in_does_not_start(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "absent" / "process")
    with pytest.raises(subprocess.SubprocessError):
        subprocess.Popen([sys.executable, "-c", ""], preexec_fn=lambda: sign_in(path))  # noqa: PLW1509


@pytest.mark.parametrize("content", [None, "", "boot", "boot\n", "boot\n12 (x", "boot\n12 (x) S 1 2"])
def test_half_a_signature_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "process").write_text(content)
    assert signed_in(tmp_path / "process") is None


def test_the_name_of_a_command_may_hold_anything() -> None:
    rest = " ".join(str(number) for number in range(4, 53))
    assert _parse(f"12 (a) R 5 (b\n) S {rest}", "boot\n") == ("S", Process(12, 22, "boot"))
