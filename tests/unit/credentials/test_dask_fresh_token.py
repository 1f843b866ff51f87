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


def test_what_htcondor_keeps_fresh_is_left(
    read_by_programs: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by_programs.write_bytes(b"of the job")
    monkeypatch.setenv("_CONDOR_CREDS", str(read_by_programs.parent))
    put(TOKEN, "xcache_token", str(local))
    assert read_by_programs.read_bytes() == b"of the job"
    monkeypatch.setenv("_CONDOR_CREDS", str(local))
    put(TOKEN, "xcache_token", str(local))
    assert read_by_programs.read_bytes() == TOKEN


class Scheduler:
    """As much of one as a sender asks, which notes what is sent."""

    def __init__(self, *listeners: str) -> None:
        self.listeners = [SimpleNamespace(contact_address=address) for address in listeners]
        self.worker_plugins: dict[str, bytes] = {}
        self.workers = {f"tls://{name}:1": f"state of {name}" for name in ("good", "gone")} | {"tcp://clear:1": "clear"}
        self.sent: list[str] = []

    async def broadcast(self, *, msg: dict[str, Any], workers: list[str], on_error: str) -> dict[str, Any]:
        assert msg["plugin"] == self.worker_plugins[msg["name"]]
        assert on_error == "ignore"
        self.sent += workers
        return {worker: {"status": "OK"} for worker in workers if "gone" not in worker}


@pytest.fixture
def delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's files."""
    directory = tmp_path / "delivered"
    directory.mkdir()
    file_layout.write_set(directory, {"xcache_token": b"first"}, datetime.now(UTC))
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(directory / "xcache_token"))
    monkeypatch.setattr(dask_fresh_token, "source", "")
    return directory


@pytest.mark.parametrize("listeners", [(), ("tcp://a:1",), ("tls://a:1", "tcp://a:2"), ("inproc://a",), ("wss://a:1",)])
async def test_a_scheduler_that_takes_others_than_tls_sends_nothing(delivered: Path, listeners: tuple[str]) -> None:
    scheduler = Scheduler(*listeners)
    await dask_fresh_token.Sender(scheduler).look()
    assert (scheduler.worker_plugins, scheduler.sent) == ({}, [])


async def test_who_could_not_be_reached_is_tried_again_and_who_could_only_with_the_next_token(
    delivered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(dask_fresh_token, "time", SimpleNamespace(monotonic=lambda: now))
    scheduler = Scheduler("tls://a:1")
    sender = dask_fresh_token.Sender(scheduler)
    both = ["tls://good:1", "tls://gone:1"]
    for now, sent in ((0, []), (2, both), (4, []), (31, []), (32, both[1:]), (34, [])):
        scheduler.sent.clear()
        await sender.look()
        assert scheduler.sent == sent, now
    file_layout.write_set(delivered, {"xcache_token": b"second"}, datetime.now(UTC))
    await sender.look()
    assert scheduler.sent == both


async def test_a_file_of_the_user_s_own_is_not_sent(delivered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = delivered.parent / "own"
    own.write_bytes(TOKEN)
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(own))
    scheduler = Scheduler("tls://a:1")
    await dask_fresh_token.Sender(scheduler).look()
    assert scheduler.worker_plugins == {}


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
