"""What `casa-hub gc` does with what it can't remove, and with what is under way on one machine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from traitlets.config import Config

from casa_hub.credentials.base import Route
from casa_hub.delivery import file_layout
from casa_hub.delivery.local import delivery as module
from casa_hub.delivery.local.delivery import LocalDelivery
from casa_hub.delivery.removals import Removal, removal
from casa_hub.errors import DeliveryError
from casa_hub.facility import Minted
from casa_hub.naming import Server
from casa_hub.record import ServerRecord

ADA = Server("", "ada")
START = "0" * 32


@pytest.fixture
def delivery(tmp_path: Path) -> LocalDelivery:
    (tmp_path / "traefik").mkdir()
    config = Config()
    config.LocalDelivery.directory = str(tmp_path / "servers")
    config.TraefikRoutes.directory = str(tmp_path / "traefik")
    made = LocalDelivery(config=config)
    made.open()
    return made


def minted(server: Server = ADA, start_id: str = START) -> Minted:
    routes = (Route(f"{server.slug}.dask.example.org", "scheduler", 8786),)
    record = ServerRecord(server.identity, start_id, 0, {}, {})
    return Minted(server, start_id, {}, {}, {"token": b"secret"}, routes, record)


async def test_a_failure_is_told_and_a_dry_run_does_nothing() -> None:
    done = []

    async def act() -> None:
        done.append(1)

    async def refused() -> None:
        raise DeliveryError("Pod x/y", "it is refused", "Ask.")

    async def denied() -> None:
        raise PermissionError(13, "Permission denied")

    assert await removal("a", "why", act, dry_run=True) == Removal("a", "why")
    assert done == []
    assert await removal("a", "why", act, dry_run=False) == Removal("a", "why")
    assert done == [1]
    assert str(await removal("a", "why", refused, dry_run=False)) == (
        "could not remove a (why): Pod x/y: it is refused. Ask."
    )
    assert (await removal("a", "why", denied, dry_run=False)).error == "Permission denied"


async def test_what_a_failed_withdrawal_left_is_removed(
    delivery: LocalDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNDER_WAY", -1)  # else what has failed may still be under way
    await delivery.deliver(minted())
    remove = file_layout.remove

    def failing(path: Path) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    monkeypatch.setattr(file_layout, "remove", failing)
    with pytest.raises(DeliveryError):
        await delivery.remove(ADA, START)
    found = await delivery.collect("", delivery.all(), dry_run=False)
    assert len(found) == 2
    assert all(one.error == "Device or resource busy" for one in found[1:])
    monkeypatch.setattr(file_layout, "remove", remove)
    found = await delivery.collect("", delivery.all(), dry_run=False)
    assert not any(one.error for one in found)
    assert [path.name for path in delivery.root.iterdir()] == [".lock"]
    assert delivery.all() == []


async def test_a_link_is_removed_and_not_what_it_leads_to(delivery: LocalDelivery, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("x")
    (delivery.root / "lost").symlink_to(tmp_path / "home")
    (found,) = await delivery.collect("", (), dry_run=False)
    assert (found.thing, found.error) == (str(delivery.root / "lost"), "")
    assert not (delivery.root / "lost").is_symlink()
    assert (tmp_path / "home" / "thesis").read_text() == "x"


async def test_what_is_on_its_way_is_left_until_it_is_old(
    delivery: LocalDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    (delivery.root / ".new.0123456789abcdef").mkdir()
    assert await delivery.collect("", (), dry_run=False) == []
    # The clock of a file system may lag behind by a tick, so an age of nothing may not be enough.
    monkeypatch.setattr(module, "_UNDER_WAY", -1)
    assert len(await delivery.collect("", (), dry_run=False)) == 1


async def test_servers_that_come_and_go_meanwhile_lose_nothing(delivery: LocalDelivery, tmp_path: Path) -> None:
    """All that is there at the end of a start is there after any number of collections at the same time."""
    ended = asyncio.Event()

    async def collect() -> list[Removal]:
        found = []
        while not ended.is_set():
            found += await delivery.collect("", (), dry_run=False)
        return found

    collector = asyncio.create_task(collect())
    for turn in range(100):
        server, start_id = Server("", f"user-{turn % 3}"), os.urandom(16).hex()
        await delivery.deliver(minted(server, start_id))
        for _ in range(turn % 4):
            await asyncio.sleep(0)
        assert (delivery.path(server) / "token").read_bytes() == b"secret"
        assert (tmp_path / "traefik" / f"{server.slug}.yml").is_file()
        await delivery.remove(server, start_id)
    ended.set()
    assert [one for one in await collector if one.error] == []
