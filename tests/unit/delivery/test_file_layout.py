"""Files that change all at once, in the layout of a Secret volume."""

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.credentials.base import bad_path
from casa_hub.delivery import file_layout
from casa_hub.files import replace_file

NOW = datetime(2026, 8, 1, 12, 0, tzinfo=UTC)
FILES = {"xcache_token": b"m", "ca.pem": b"c", ".servicex": b"s", "condor_tokens.d/condor_token": b"t"}


def names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir() if not entry.name.startswith("..")}


def test_a_set_is_laid_out_as_kubelet_does(tmp_path: Path) -> None:
    file_layout.write_set(tmp_path, FILES, NOW)
    assert str((tmp_path / "xcache_token").readlink()) == "..data/xcache_token"
    assert str((tmp_path / "condor_tokens.d").readlink()) == "..data/condor_tokens.d"
    current = str((tmp_path / "..data").readlink())
    assert current.startswith("..2026_08_01_12_00_00.")
    assert {entry.name for entry in tmp_path.iterdir()} == {
        "xcache_token",
        "ca.pem",
        ".servicex",
        "condor_tokens.d",
        "..data",
        current,
    }
    assert {path: (tmp_path / path).read_bytes() for path in FILES} == FILES
    assert (tmp_path / "..data" / "ca.pem").read_bytes() == b"c"  # as old sidecars read it


def test_only_the_owner_can_read_whatever_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file_layout.write_set(tmp_path, FILES, NOW)
    finally:
        os.umask(before)
    for path in (tmp_path / "..data").resolve().rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "..data").stat().st_mode) == 0o700


def test_a_new_set_replaces_the_old_one_and_vanished_names_go(tmp_path: Path) -> None:
    file_layout.write_set(tmp_path, FILES, NOW)
    old = (tmp_path / "..data").resolve()
    file_layout.write_set(tmp_path, {"xcache_token": b"m2", "new": b"n"}, NOW)
    assert names(tmp_path) == {"xcache_token", "new"}
    assert file_layout.read_set(tmp_path) == {"xcache_token": b"m2", "new": b"n"}
    assert (old / "xcache_token").read_bytes() == b"m"  # for who has just followed the link
    file_layout.remove_old_sets(tmp_path)
    assert not old.exists()
    assert file_layout.read_set(tmp_path) == {"xcache_token": b"m2", "new": b"n"}


def test_files_beside_the_set_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    file_layout.write_set(tmp_path, FILES, NOW)
    file_layout.write_set(tmp_path, {"a": b""}, NOW)
    file_layout.remove_old_sets(tmp_path)
    assert names(tmp_path) == {"state.json", "a"}


def test_a_set_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_layout.write_set(tmp_path, FILES, NOW)
    before = {entry.name for entry in tmp_path.iterdir()}
    write = file_layout.write_new

    def full(path: Path, content: bytes, mode: int) -> None:
        if path.name == "b":
            raise OSError(28, "No space left on device")
        write(path, content, mode)

    monkeypatch.setattr(file_layout, "write_new", full)
    with pytest.raises(OSError, match="No space"):
        file_layout.write_set(tmp_path, {"a": b"1", "b": b"2"}, NOW)
    assert {entry.name for entry in tmp_path.iterdir()} == before
    assert file_layout.read_set(tmp_path) == FILES


def test_links_that_a_crash_left_do_not_stay(tmp_path: Path) -> None:
    file_layout.write_set(tmp_path, FILES, NOW)
    (tmp_path / "..0badc0de.new").symlink_to("..data/x")
    file_layout.write_set(tmp_path, FILES, NOW)
    file_layout.remove_old_sets(tmp_path)
    assert not (tmp_path / "..0badc0de.new").is_symlink()
    assert names(tmp_path) == {"xcache_token", "ca.pem", ".servicex", "condor_tokens.d"}


def test_a_file_that_a_killed_hub_left_without_its_name_is_removed(tmp_path: Path) -> None:
    file_layout.write_set(tmp_path, {**FILES, ".mine.0badc0de.new": b"a credential's"}, NOW)
    before = names(tmp_path)
    (tmp_path / ".state.0badc0de.new").write_text("{")
    file_layout.remove_old_sets(tmp_path)
    assert names(tmp_path) == before
    assert ".mine.0badc0de.new" in before


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "..data",
        "..x",
        "/etc/passwd",
        "a/b/c",
        "a/",
        "/a",
        "a/..",
        "../a",
        "a/.",
        "a b",
        "a\n",
        "é",
        "x" * 254,
    ],
)
def test_paths_that_lead_elsewhere_are_refused(tmp_path: Path, path: str) -> None:
    assert bad_path(path)
    with pytest.raises(ValueError):
        file_layout.write_set(tmp_path, {path: b""}, NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_name_cannot_be_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        file_layout.write_set(tmp_path, {"a": b"", "a/b": b""}, NOW)


@given(st.text(max_size=300))
def test_any_path_that_is_accepted_stays_inside(path: str) -> None:
    if not bad_path(path):
        joined = os.path.normpath("/root/" + path)
        assert joined == "/root/" + path
        assert path.count("/") <= 1
        assert not any(part.startswith("..") for part in path.split("/"))


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, b"1")
    replace_file(path, b"2", 0o644)
    assert path.read_bytes() == b"2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777], ids=oct)
def test_who_may_enter_a_made_directory_is_not_up_to_the_umask(umask: int, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o750)
    before = os.umask(umask)
    try:
        file_layout.make_directory(there / "a" / "b" / "home")
    finally:
        os.umask(before)
    parts = (there, there / "a", there / "a" / "b", there / "a" / "b" / "home")
    assert [stat.S_IMODE(path.stat().st_mode) for path in parts] == [0o750, 0o711, 0o711, 0o700]
    file_layout.make_directory(there)
    assert stat.S_IMODE(there.stat().st_mode) == 0o750


def test_a_file_in_the_place_of_a_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(FileExistsError):
        file_layout.make_directory(tmp_path / "home")
