"""Programs from Debian packages: whole or not there, run with their own libc, and errors that say what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from casa_hub.demo import packages
from casa_hub.demo.packages import Unavailable, unpack
from tests.support.peers import require

#: Small, and needs nothing but libc.
PACKAGE = "dash"

TWICE = f"""
import sys
from casa_hub.demo.packages import unpack
print(unpack([{PACKAGE!r}], progress=lambda line: print(line, flush=True)).program({PACKAGE!r}))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASA_HUB_CACHE", str(cache))
    require(lambda: packages._source(packages.SUITE))


def test_two_processes_that_ask_at_once_unpack_once(cache: Path) -> None:
    both = [
        subprocess.Popen([sys.executable, "-c", TWICE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    lines = [out.splitlines() for out, _ in said]
    assert lines[0][-1] == lines[1][-1]
    assert Path(lines[0][-1]).is_relative_to(cache)
    assert sum("fetching" in line for out in lines for line in out) == 1


def test_a_program_runs_with_its_own_libc() -> None:
    tree = unpack([PACKAGE])
    read_maps = 'while read -r line; do echo "$line"; done < /proc/$$/maps'
    ran = subprocess.run([tree.program(PACKAGE), "-c", read_maps], capture_output=True, text=True, check=True)
    mapped = {line.split()[-1] for line in ran.stdout.splitlines() if ".so" in line}
    assert any("/libc.so.6" in path for path in mapped)
    assert all(path.startswith(str(tree.root)) for path in mapped)


def test_what_is_unpacked_is_not_fetched_again() -> None:
    said: list[str] = []
    unpack([PACKAGE], progress=said.append)
    assert said == []


def test_what_was_not_finished_is_begun_anew_and_the_machine_is_left_alone() -> None:
    """Neither its package lists nor its status are touched: as root nothing would stop us."""
    watched = [Path("/var/lib/dpkg/status"), Path("/var/lib/apt/lists"), Path("/var/cache/apt/archives")]
    before = [path.stat().st_mtime_ns for path in watched if path.exists()]
    tree = unpack([PACKAGE])
    (tree.root.parent / "ok").unlink()
    tree.program(PACKAGE).unlink()
    said: list[str] = []
    assert unpack([PACKAGE], progress=said.append).program(PACKAGE).exists()
    assert any("fetching" in line for line in said)
    assert os.path.lexists(tree.root / "bin")
    assert [path.stat().st_mtime_ns for path in watched if path.exists()] == before


def test_a_package_that_does_not_exist_is_named_and_leaves_nothing(cache: Path) -> None:
    with pytest.raises(Unavailable, match="no-such-package"):
        unpack(["no-such-package"])
    assert not [path for path in cache.glob("*no-such-package*") if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CASA_HUB_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(Unavailable, match="CASA_HUB_CACHE"):
        unpack([PACKAGE])


def test_a_machine_without_apt_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="no apt-get"):
        unpack([PACKAGE])
