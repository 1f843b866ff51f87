"""What a worker does with a token that its scheduler sends. The rest is in tests/peers/test_dask_fresh_token.py."""

from __future__ import annotations

import logging
import os
import pickle
import stat
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from casa_hub.credentials import dask_fresh_token
from casa_hub.credentials.dask_fresh_token import put
from casa_hub.delivery import file_layout

TOKEN = b"new-token"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A worker's local directory."""
    directory = tmp_path / "local"
    directory.mkdir()
    return directory


@pytest.fixture(autouse=True)
def read_by_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    file = tmp_path / "read" / "access_token"
    file.parent.mkdir()
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(file))
    return file


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_it_goes_where_programs_look(read_by_programs: Path, local: Path) -> None:
    for content in (b"copy of the job", None):
        if content:
            read_by_programs.write_bytes(content)
        put(TOKEN, "xcache_token", str(local))
        assert read_by_programs.read_bytes() == TOKEN
        assert mode(read_by_programs) == 0o600
        assert [*read_by_programs.parent.iterdir()] == [read_by_programs]
        assert not [*local.iterdir()]
        read_by_programs.unlink()


@pytest.mark.parametrize("value", ["", "/nowhere/token", "/proc/token", "{directory}"])
def test_it_goes_to_the_local_directory_where_that_can_t_be(
    value: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEARER_TOKEN_FILE", value.format(directory=local.parent))
    put(TOKEN, "xcache_token", str(local))
    own = local / "xcache_token"
    assert own.read_bytes() == TOKEN
    assert mode(own) == 0o600
    assert os.environ["BEARER_TOKEN_FILE"] == str(own)


def test_a_link_is_replaced_and_not_what_it_leads_to(read_by_programs: Path, local: Path) -> None:
    other = local.parent / "precious"
    other.write_bytes(b"precious")
    read_by_programs.symlink_to(other)
    put(TOKEN, "xcache_token", str(local))
    assert other.read_bytes() == b"precious"
    assert read_by_programs.read_bytes() == TOKEN


def test_what_a_delivery_keeps_fresh_is_left(
    read_by_programs: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is newer than what was sent, and by whatever way the worker sees it."""
    delivered = local.parent / "delivered"
    delivered.mkdir()
    file_layout.write_set(delivered, {"xcache_token": b"newer"}, datetime.now(UTC))
    read_by_programs.symlink_to(delivered / "xcache_token")
    for path in (delivered / "xcache_token", delivered / "..data" / "xcache_token", read_by_programs):
        monkeypatch.setenv("BEARER_TOKEN_FILE", str(path))
        put(TOKEN, "xcache_token", str(local))
        assert path.read_bytes() == b"newer"
    assert (delivered / "xcache_token").is_symlink()
    assert not [*local.iterdir()]


def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As a worker gets it, that has none of our modules."""
    monkeypatch.setattr(dask_fresh_token, "source", Path(dask_fresh_token.__file__).read_text())
    sent = pickle.dumps(dask_fresh_token.FreshToken("xcache_token", TOKEN))
    assert b"casa_hub.credentials.dask_fresh_token" not in sent.replace(dask_fresh_token.source.encode(), b"")
    return pickle.loads(sent)


def test_a_worker_writes_it_and_forgets_it(
    read_by_programs: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = plugin(monkeypatch)
    assert type(got) is not dask_fresh_token.FreshToken
    assert "new-token" not in repr(got)
    got.setup(SimpleNamespace(local_directory=str(local)))
    assert read_by_programs.read_bytes() == TOKEN
    assert TOKEN not in vars(got).values()


def test_a_worker_that_can_t_write_it_works_on(
    local: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BEARER_TOKEN_FILE", "")
    with caplog.at_level(logging.WARNING, "distributed.casa_hub"):
        plugin(monkeypatch).setup(SimpleNamespace(local_directory=str(local / "nowhere")))
    assert "could not be written: FileNotFoundError" in caplog.text
    assert "new-token" not in caplog.text
