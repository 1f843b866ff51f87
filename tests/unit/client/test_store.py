"""The log-ins that are remembered."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from casa_hub.client.errors import ClientError
from casa_hub.client.hub import LogIn
from casa_hub.client.store import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HUB = "https://hub.example.org/jupyter"


def log_in(hub: str = HUB, expires_at: str | None = "2026-03-01T12:00:01+00:00") -> LogIn:
    return LogIn(hub, "TOKEN", "alice", expires_at, ("dask", "xcache"))


def test_a_log_in_is_remembered_until_its_end_or_the_user_s_wish(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.read(HUB, NOW) is None
    assert store.hubs() == []
    store.write(log_in())
    assert store.read(HUB, NOW) == log_in()
    assert "TOKEN" not in repr(store.read(HUB, NOW))
    assert store.read("https://other.example.org", NOW) is None
    assert store.read(HUB, NOW.replace(second=1)) is None
    assert store.hubs() == [HUB]
    (file,) = tmp_path.rglob("*.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert store.remove(HUB)
    assert not store.remove(HUB)
    assert store.hubs() == []


def test_each_hub_has_a_log_in_of_its_own(tmp_path: Path) -> None:
    store, hubs = Store(tmp_path), ["https://a.example.org", "https://a.example.org/b", "http://127.0.0.1:8000"]
    for hub in hubs:
        store.write(log_in(hub, None))
    assert sorted(store.hubs()) == sorted(hubs)
    assert [store.read(hub, NOW) for hub in hubs] == [log_in(hub, None) for hub in hubs]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "null",
        "\xff",
        f'{{"hub": "{HUB}", "token": "a b", "user": "u", "expires_at": null, "credentials": []}}',
        f'{{"hub": "{HUB}", "token": "T", "user": "u", "expires_at": "soon", "credentials": []}}',
        f'{{"hub": "{HUB}", "token": "T", "user": "u", "expires_at": null, "credentials": 5}}',
    ],
)
def test_a_file_that_is_no_log_in_is_none_and_is_replaced(tmp_path: Path, content: str) -> None:
    store = Store(tmp_path)
    store.write(log_in())
    (file,) = tmp_path.rglob("*.json")
    file.write_text(content, encoding="latin-1")
    assert store.read(HUB, NOW) is None
    assert store.hubs() == []
    store.write(log_in())
    assert store.read(HUB, NOW) == log_in()


def test_a_log_in_that_others_could_have_made_is_refused(tmp_path: Path) -> None:
    """Whoever could write it could have the user get credentials of somebody else."""
    store = Store(tmp_path)
    store.write(log_in())
    (file,) = tmp_path.rglob("*.json")
    file.chmod(0o602)
    with pytest.raises(ClientError, match="is not a file that only you can read"):
        store.read(HUB, NOW)
