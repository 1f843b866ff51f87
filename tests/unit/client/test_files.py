"""Secrets on a machine that others use, too."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from casa_hub.client.errors import ClientError
from casa_hub.client.files import read_private, write_private

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of other users")


@pytest.fixture(params=[0o000, 0o077], ids=["umask 000", "umask 077"])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.usefixtures("_umask")
def test_only_the_owner_reads_the_file_and_the_directories_that_were_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "token"
    write_private(path, b"SECRET")
    assert path.read_bytes() == b"SECRET"
    assert mode(path) == 0o600
    assert mode(path.parent) == mode(path.parent.parent) == 0o700
    assert read_private(path) == b"SECRET"


def test_what_others_could_read_is_replaced_by_what_they_can_t(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)


def test_a_reader_finds_the_old_or_the_new_content(tmp_path: Path) -> None:
    path, contents = tmp_path / "token", [b"a" * 70_000, b"b" * 70_000]
    write_private(path, contents[0])
    seen, over = set(), threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        write_private(path, contents[number % 2])
    over.set()
    reader.join()
    assert seen <= set(contents)
    assert names_in(tmp_path) == ["token"]


def test_a_link_is_not_followed_whoever_made_it(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    link = tmp_path / "token"
    for to in (target, tmp_path / "nothing"):
        link.unlink(missing_ok=True)
        link.symlink_to(to)
        with pytest.raises(ClientError, match="is a link, and is not followed"):
            write_private(link, b"SECRET")
        with pytest.raises(ClientError, match="can't be read"):
            read_private(link)
    assert target.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


def test_no_trace_is_left_of_a_file_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "token", b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(ClientError, match=r"token: can't be written .No space left on device"):
        write_private(tmp_path / "token", b"SECRET")
    assert names_in(tmp_path) == ["token"]
    assert (tmp_path / "token").read_bytes() == b"old"


def test_a_directory_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "token").mkdir()
    with pytest.raises(ClientError, match="is there, and is not a file"):
        write_private(tmp_path / "token", b"SECRET")
    (tmp_path / "file").write_text("")
    with pytest.raises(ClientError, match="can't be written"):
        write_private(tmp_path / "file" / "token", b"SECRET")


def test_a_directory_where_everybody_replaces_everything_is_no_place(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ClientError, match="everybody can replace files there"):
        write_private(tmp_path / "token", b"SECRET")
    tmp_path.chmod(0o1777)  # as /tmp
    write_private(tmp_path / "token", b"SECRET")
    assert mode(tmp_path / "token") == 0o600


@needs_root
def test_a_file_that_another_user_has_put_there_is_refused(tmp_path: Path) -> None:
    """Its owner could read what is written, if it were written into it."""
    trap = tmp_path / "bt_u0"
    trap.write_text("")
    os.chown(trap, 12345, 12345)
    with pytest.raises(ClientError, match="belongs to another user"):
        write_private(trap, b"SECRET")
    assert trap.read_text() == ""
    with pytest.raises(ClientError, match="is not a file that only you can read"):
        read_private(trap)


@needs_root
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    os.chown(other, 12345, 12345)
    with pytest.raises(ClientError, match="belongs to another user"):
        write_private(other / "token", b"SECRET")
    assert names_in(other) == []


def test_what_others_could_have_written_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "log-in"
    assert read_private(path) is None
    write_private(path, b"{}")
    path.chmod(0o660)
    with pytest.raises(ClientError, match=r"is not a file that only you can read. Remove it"):
        read_private(path)
    path.unlink()
    os.mkfifo(path, 0o600)  # opening it for reading would wait for a writer
    with pytest.raises(ClientError, match="is not a file"):
        read_private(path)
