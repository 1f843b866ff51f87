from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from casa_hub.errors import CredentialError, Severity
from casa_hub.keys import BadKeyError, KeyFile, changed_at
from tests.support.minting import assert_tells_nothing, write

SECRET = b"correct horse battery staple"


@pytest.fixture
def parsed() -> list[bytes]:
    """What the parse function was called with, call by call."""
    return []


@pytest.fixture
def key(parsed: list[bytes]) -> KeyFile[bytes]:
    def parse(content: bytes) -> bytes:
        parsed.append(content)
        if content.startswith(b"bad"):
            raise BadKeyError("is bad", "Make a good one.")
        return content.strip()

    return KeyFile("Thing.key_file", parse, "Make one.")


def age(path: str, seconds: float = 60) -> None:
    """Let a file have been written a while ago, so that its times tell its versions apart."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_reads_and_parses(key: KeyFile[bytes], tmp_path: Path) -> None:
    assert key.read(write(tmp_path / "key", SECRET + b"\n")) == SECRET


def test_an_unchanged_file_is_parsed_once(key: KeyFile[bytes], parsed: list[bytes], tmp_path: Path) -> None:
    path = write(tmp_path / "key", SECRET)
    age(path)
    assert [key.read(path), key.read(path), key.read(path)] == [SECRET] * 3
    assert parsed == [SECRET]


def test_a_replaced_file_is_read_again(key: KeyFile[bytes], tmp_path: Path) -> None:
    path = write(tmp_path / "key", b"first")
    age(path)
    assert key.read(path) == b"first"
    write(tmp_path / "key", b"secnd")
    assert key.read(path) == b"secnd"


def test_a_file_changed_twice_within_a_tick_is_not_taken_for_unchanged(key: KeyFile[bytes], tmp_path: Path) -> None:
    """Same inode, size and time stamp: only its youth gives it away."""
    path = write(tmp_path / "key", b"first", mode=0o600)
    status = Path(path).stat()
    assert key.read(path) == b"first"
    Path(path).write_bytes(b"secnd")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert key.read(path) == b"secnd"


def test_follows_the_link_that_kubernetes_switches(key: KeyFile[bytes], tmp_path: Path) -> None:
    for version in ("old", "new"):
        (tmp_path / version).mkdir()
        age(write(tmp_path / version / "key", version.encode()))
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "key").symlink_to("..data/key")
    assert key.read(str(tmp_path / "key")) == b"old"
    (tmp_path / "link").symlink_to("new")
    (tmp_path / "link").rename(tmp_path / "..data")
    assert key.read(str(tmp_path / "key")) == b"new"


def test_the_metrics_tell_when_the_key_that_was_read_last_was_modified(key: KeyFile[bytes], tmp_path: Path) -> None:
    def told() -> float | None:
        return REGISTRY.get_sample_value("casa_hub_key_modified_timestamp_seconds", {"setting": "Thing.key_file"})

    path = write(tmp_path / "key", SECRET)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    key.read(path)
    assert told() == 1_700_000_000
    write(tmp_path / "key", b"bad")
    with pytest.raises(CredentialError):
        key.read(path)
    assert told() == 1_700_000_000
    write(tmp_path / "key", b"good")
    os.utime(path, (1_800_000_000, 1_800_000_000))
    key.read(path)
    assert told() == 1_800_000_000


def test_a_file_that_went_on_purpose_has_no_age(tmp_path: Path) -> None:
    """One of several files of a setting: it has a label of its own, and its age would be told for ever."""

    def told() -> float | None:
        return REGISTRY.get_sample_value("casa_hub_key_modified_timestamp_seconds", {"setting": "Thing.keys: one"})

    one: KeyFile[bytes] = KeyFile("Thing.keys", bytes, "", label="Thing.keys: one")
    one.forget()  # never read
    one.read(write(tmp_path / "one", b"one"))
    assert told() is not None
    one.forget()
    assert told() is None


def test_two_paths_are_two_keys(key: KeyFile[bytes], tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", b"one"), write(tmp_path / "two", b"two")
    assert [key.read(one), key.read(two), key.read(one)] == [b"one", b"two", b"one"]


def test_a_broken_replacement_is_an_error_and_the_old_key_is_not_used(key: KeyFile[bytes], tmp_path: Path) -> None:
    path = write(tmp_path / "key", b"good")
    age(path)
    assert key.read(path) == b"good"
    write(tmp_path / "key", b"bad")
    for _ in range(2):
        with pytest.raises(CredentialError, match="is bad"):
            key.read(path)
    Path(path).unlink()
    with pytest.raises(CredentialError, match="does not exist"):
        key.read(path)
    age(write(tmp_path / "key", b"good again"))
    assert key.read(path) == b"good again"


def _missing(directory: Path) -> str:
    return str(directory / "nothing")


def _directory(directory: Path) -> str:
    return str(directory)


def _below_a_file(directory: Path) -> str:
    return write(directory / "file", b"x") + "/key"


def _loop(directory: Path) -> str:
    (directory / "loop").symlink_to("loop")
    return str(directory / "loop")


def _pipe(directory: Path) -> str:
    os.mkfifo(directory / "pipe")
    return str(directory / "pipe")


UNUSABLE = {
    "not set": (lambda _: "", "is not set", "Make one."),
    "missing": (_missing, "does not exist", "Make one."),
    "a directory": (_directory, "is a directory", "Name the file itself."),
    "below a file": (_below_a_file, "can't be read: Not a directory", "Name a file that the hub can read."),
    "a loop of links": (_loop, "can't be read: Too many levels", "Name a file that the hub can read."),
    "a pipe": (_pipe, "is not a regular file", "Name the file itself."),
    "no path at all": (lambda _: "a\0b", "embedded null", "Name a file that the hub can read."),
    "empty": (lambda directory: write(directory / "key", b""), "is empty", "Make one."),
    "malformed": (lambda directory: write(directory / "key", b"bad " + SECRET), "is bad", "Make a good one."),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_file_is_named_with_problem_and_remedy(key: KeyFile[bytes], tmp_path: Path, case: str) -> None:
    make, problem, remedy = UNUSABLE[case]
    path = make(tmp_path)
    with pytest.raises(CredentialError) as caught:
        key.read(path)
    assert caught.value.thing == (f"Thing.key_file ({path})" if path else "Thing.key_file")
    assert problem in caught.value.problem
    assert caught.value.remedy == remedy
    assert_tells_nothing(caught.value, SECRET)
    (found,) = key.check(path)
    assert (found.severity, found.thing, found.remedy) == (Severity.ERROR, caught.value.thing, remedy)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(key: KeyFile[bytes], tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="can't be read by the hub"):
        key.read(write(tmp_path / "key", SECRET, mode=0))


def test_permission_denied_names_the_remedy(
    key: KeyFile[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where the tests run as root, whom no mode keeps out."""

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "key", SECRET)
    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(CredentialError, match="can't be read by the hub"):
        key.read(path)


@pytest.mark.parametrize(("mode", "warned"), [(0o400, False), (0o640, False), (0o604, True), (0o644, True)])
def test_a_file_that_everybody_can_read_is_warned_of(
    key: KeyFile[bytes], tmp_path: Path, mode: int, warned: bool
) -> None:
    path = write(tmp_path / "key", SECRET, mode)
    problems = key.check(path)
    assert [problem.severity for problem in problems] == [Severity.WARNING] * warned
    assert all(f"mode {mode:04o}" in str(problem) for problem in problems)
    assert key.read(path) == SECRET


def test_nothing_shows_the_key(key: KeyFile[bytes], tmp_path: Path) -> None:
    path = write(tmp_path / "key", SECRET, 0o444)
    age(path)
    key.read(path)
    for thing in (key, *key.check(path)):
        assert_tells_nothing(thing, SECRET)


def test_a_key_is_as_old_as_its_file_and_a_file_that_can_t_be_seen_has_no_age(tmp_path: Path) -> None:
    path = write(tmp_path / "key", SECRET)
    os.utime(path, (1.7e9, 1.7e9))
    assert changed_at(path) == 1.7e9
    assert changed_at(str(tmp_path / "none")) is None
    assert changed_at("\0") is None
