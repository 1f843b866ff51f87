"""Zips that a hub, or somebody in its place, could send."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.client.bundle import unpack
from casa_hub.client.errors import ClientError

GOOD = {"ca.pem": b"CA", "usercert.pem": b"CERT", "connect.py": b"print()", "README.txt": b"Read me"}


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def test_a_bundle_becomes_files_for_their_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "bundle"
    assert unpack(zipped(GOOD), directory) == ["README.txt", "ca.pem", "connect.py", "usercert.pem"]
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == GOOD
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    unpack(zipped({"ca.pem": b"NEW"}), directory)
    assert (directory / "ca.pem").read_bytes() == b"NEW"


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/../../x", ".bashrc", ".ssh/config", "a/b/c", "a\\..\\x", "dir/", "C:x", "ü"]
)
def test_nothing_is_written_of_a_zip_with_a_bad_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClientError, match="the bundle: has a file of a bad name"):
        unpack(zipped(GOOD | {name: b"x"}), tmp_path / "bundle")
    assert names_in(tmp_path) == []


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"README.txt is too large"):
        unpack(zipped(GOOD | {"README.txt": bytes(50_000_000)}), tmp_path)
    with pytest.raises(ClientError, match="has no files, or too many"):
        unpack(zipped({f"f{number}": b"" for number in range(21)}), tmp_path)
    with pytest.raises(ClientError, match="has no files, or too many"):
        unpack(zipped({}), tmp_path)
    assert names_in(tmp_path) == []


def test_a_link_in_a_zip_becomes_a_file(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("ca.pem")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    unpack(content.getvalue(), tmp_path)
    assert not (tmp_path / "ca.pem").is_symlink()
    assert (tmp_path / "ca.pem").read_text() == "/etc/passwd"


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_no_hub_compresses_so(tmp_path: Path, kind: int) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as archive:
        archive.writestr("ca.pem", "authority")
    with pytest.raises(ClientError, match="is compressed in a way that no hub uses"):
        unpack(content.getvalue(), tmp_path / "there")
    assert not (tmp_path / "there").exists()


@given(at=st.integers(min_value=0, max_value=len(zipped(GOOD)) - 1), byte=st.integers(min_value=0, max_value=255))
def test_no_damage_breaks_it_or_writes_elsewhere(at: int, byte: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("bundle")
    content = bytearray(zipped(GOOD))
    content[at] = byte
    try:
        names = unpack(bytes(content), directory / "there")
    except ClientError:
        return
    assert names_in(directory) == ["there"]
    assert names_in(directory / "there") == names


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x05\x06"])
def test_what_is_no_zip_is_told(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ClientError, match="the bundle: is not a zip file"):
        unpack(content, tmp_path)
