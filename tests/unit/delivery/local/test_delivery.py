"""Directories, addresses and host names of servers on one machine."""

import asyncio
import contextlib
import json
import os
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from traitlets import TraitError
from traitlets.config import Config

from casa_hub.credentials.base import Route
from casa_hub.delivery import file_layout
from casa_hub.delivery.local import delivery as local
from casa_hub.delivery.local.delivery import LocalDelivery
from casa_hub.errors import ConfigurationError, DeliveryError
from casa_hub.facility import Minted
from casa_hub.naming import Server
from casa_hub.record import NEWER, CredentialRecord, Replaced, ServerRecord, Unreadable, UnreadableCredential

ALICE, BOB = Server("", "alice"), Server("", "bob", "x")


def minted(server: Server, start_id: str = "1", files: dict[str, bytes] | None = None, **others: list[str]) -> Minted:
    """`others`: credentials that the record tells of beside its own."""
    files = {"token": b"secret", "d/token": b"secret"} if files is None else files
    paths = {"ours": sorted(files)} | others
    entries = {name: CredentialRecord(ISSUED, None, {}, {}, tuple(each)) for name, each in paths.items()}
    routes = (Route(server.host("dask", "example.org"), "scheduler", 8786),)
    return Minted(server, start_id, {}, {}, files, routes, ServerRecord(server.identity, start_id, 0, entries, {}))


ISSUED = datetime(2026, 11, 21, 4, tzinfo=UTC)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "traefik").mkdir()
    return Config(
        LocalDelivery={"directory": str(tmp_path / "servers")},
        TraefikRoutes={"directory": str(tmp_path / "traefik")},
    )


@pytest.fixture
def delivery(config: Config) -> Iterator[LocalDelivery]:
    delivery = LocalDelivery(config=config)
    delivery.open()
    yield delivery
    end_hub_of(delivery)


def end_hub_of(delivery: LocalDelivery) -> None:
    """The kernel releases the directory, as it does when a hub's process ends."""
    if delivery._lock_file >= 0:
        os.close(delivery._lock_file)
        delivery._lock_file = -1


async def test_a_server_gets_files_an_address_a_route_and_a_host_name(delivery: LocalDelivery, tmp_path: Path) -> None:
    await delivery.deliver(minted(ALICE))
    directory = tmp_path / "servers" / "alice"
    assert delivery.path(ALICE) == directory
    assert file_layout.read_set(directory) == {"token": b"secret", "d/token": b"secret"}
    assert stat.S_IMODE((tmp_path / "servers").stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "state.json").stat().st_mode) == 0o600
    assert b"secret" not in (directory / "state.json").read_bytes()
    one = delivery.delivered(ALICE)
    assert one is not None
    assert IPv4Address(one.address) in IPv4Network("127.77.0.0/16")
    assert f"{one.address}:8786" in (tmp_path / "traefik" / "alice.yml").read_text()


async def test_withdrawing_leaves_nothing(delivery: LocalDelivery, tmp_path: Path) -> None:
    await delivery.deliver(minted(ALICE))
    await delivery.remove(ALICE, "1")
    await delivery.remove(ALICE, "1")
    assert [path.name for path in (tmp_path / "servers").iterdir()] == [".lock"]
    assert list((tmp_path / "traefik").iterdir()) == []
    assert delivery.delivered(ALICE) is None


async def test_the_withdrawal_of_an_earlier_start_does_not_touch_the_present_one(delivery: LocalDelivery) -> None:
    await delivery.deliver(minted(ALICE, "1"))
    await delivery.deliver(minted(ALICE, "2", {"new": b""}))
    await delivery.remove(ALICE, "1")
    assert file_layout.read_set(delivery.path(ALICE)) == {"new": b""}


async def test_another_server_under_the_same_slug_is_not_touched(delivery: LocalDelivery, tmp_path: Path) -> None:
    """KubeSpawner's slugs end in a short hash: who tries finds two names that share one."""
    await delivery.deliver(minted(ALICE))
    before = (tmp_path / "traefik" / "alice.yml").read_text()
    impostor = Server("other hub", "alice")
    assert impostor.slug == ALICE.slug
    with pytest.raises(DeliveryError, match="another server has this name"):
        await delivery.deliver(minted(impostor, "9"))
    with pytest.raises(DeliveryError):
        await delivery.renew(minted(impostor, "1"))
    await delivery.remove(impostor, "1")
    assert file_layout.read_set(delivery.path(ALICE)) == {"token": b"secret", "d/token": b"secret"}
    assert (tmp_path / "traefik" / "alice.yml").read_text() == before


async def test_a_delivery_that_fails_leaves_nothing(delivery: LocalDelivery, tmp_path: Path) -> None:
    (tmp_path / "traefik").rmdir()
    with pytest.raises(DeliveryError, match="nothing was delivered"):
        await delivery.deliver(minted(ALICE))
    assert [path.name for path in (tmp_path / "servers").iterdir()] == [".lock"]
    assert delivery.delivered(ALICE) is None


async def test_an_error_says_no_secret(delivery: LocalDelivery) -> None:
    with pytest.raises(DeliveryError) as caught:
        await delivery.deliver(minted(ALICE, files={"../token": b"MACAROON"}))
    assert "MACAROON" not in str(caught.value)


async def test_renewal_replaces_what_is_renewed_and_keeps_the_rest(delivery: LocalDelivery) -> None:
    await delivery.deliver(minted(ALICE, files={"a": b"1", "b": b"1", "c": b"1"}))
    await delivery.renew(minted(ALICE, files={"a": b"2", "d": b"2"}, another=["b"]))
    assert file_layout.read_set(delivery.path(ALICE)) == {"a": b"2", "b": b"1", "d": b"2"}
    state = json.loads((delivery.path(ALICE) / "state.json").read_text())
    entries = state["record"]["credentials"]
    assert {name: entry["files"] for name, entry in entries.items()} == {"ours": ["a", "d"], "another": ["b"]}


async def test_a_renewal_keeps_files_of_a_credential_whose_entry_was_edited(delivery: LocalDelivery) -> None:
    """Nobody knows any more which ones they are."""
    await delivery.deliver(minted(ALICE, files={"a": b"1", "b": b"1"}))
    again = minted(ALICE, files={"a": b"2"})
    edited = UnreadableCredential({"files": 1}, (Replaced({}, None),))
    await delivery.renew(replace(again, record=replace(again.record, unreadable={"another": edited})))
    assert file_layout.read_set(delivery.path(ALICE)) == {"a": b"2", "b": b"1"}


async def test_renewal_for_a_start_that_is_over_is_refused(delivery: LocalDelivery) -> None:
    with pytest.raises(DeliveryError, match="over"):
        await delivery.renew(minted(ALICE))
    await delivery.deliver(minted(ALICE, "2"))
    with pytest.raises(DeliveryError, match="over"):
        await delivery.renew(minted(ALICE, "1", {"a": b"1"}))
    assert file_layout.read_set(delivery.path(ALICE)) == {"token": b"secret", "d/token": b"secret"}


async def test_an_emptied_server_has_nothing_but_what_its_end_needs(
    delivery: LocalDelivery, config: Config, tmp_path: Path
) -> None:
    await delivery.deliver(minted(ALICE))
    delivery.process_file(ALICE).write_text("signed in")
    await delivery.withdraw(ALICE, "another start")
    assert file_layout.read_set(delivery.path(ALICE))
    for _ in range(2):
        await delivery.withdraw(ALICE, "1")
        left = [path.name for path in delivery.path(ALICE).rglob("*") if path.is_file()]
        assert sorted(left) == ["process", "state.json"]
        assert list((tmp_path / "traefik").iterdir()) == []
        with pytest.raises(DeliveryError, match="over"):
            await delivery.renew(minted(ALICE))
    # A hub that was killed in between doesn't forget it.
    end_hub_of(delivery)
    again = LocalDelivery(config=config)
    again.open()
    assert again.sweep("", {(ALICE.identity, "1")}) == []
    assert list((tmp_path / "traefik").iterdir()) == []
    assert again.delivered(ALICE).withdrawn  # type: ignore[union-attr]
    with pytest.raises(DeliveryError, match="over"):
        await again.renew(minted(ALICE))
    await again.remove(ALICE, "1")
    assert [path.name for path in (tmp_path / "servers").iterdir()] == [".lock"]
    end_hub_of(again)


@pytest.mark.parametrize("version", [1, 3])
async def test_a_server_with_another_versions_record_is_kept(
    delivery: LocalDelivery, config: Config, tmp_path: Path, version: int
) -> None:
    """The first version's is read; a later one's is left alone, and so is the server."""
    await delivery.deliver(minted(ALICE))
    state = tmp_path / "servers" / "alice" / "state.json"
    document = json.loads(state.read_text())
    issued_at = "2026-11-21T04:00:00+00:00"
    entry = {"issued_at": issued_at, "expires_at": None, "identifiers": {}, "state": {}, "files": ["token"]}
    document["record"] = {"version": version, "credentials": {"ours": entry}, "missing": {}}
    del document["withdrawn"]  # which the first version didn't know
    state.write_text(json.dumps(document))
    end_hub_of(delivery)
    again = LocalDelivery(config=config)
    again.open()
    assert again.sweep("", {(ALICE.identity, "1")}) == []
    one = again.delivered(ALICE)
    assert one is not None
    assert file_layout.read_set(again.path(ALICE)) == {"token": b"secret", "d/token": b"secret"}
    if version == 1:
        assert one.record.to_document()["credentials"] == {"ours": {**entry, "order": 0, "earlier": []}}
    else:
        assert one.record == Unreadable(NEWER, document["record"], one.record.credentials)
    await again.withdraw(ALICE, "1")
    assert json.loads(state.read_text())["record"] == one.record.to_document(), "what it can't read isn't lost"
    end_hub_of(again)


async def test_old_sets_are_removed_a_while_after_they_were_replaced(
    delivery: LocalDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_GRACE", 0.01)
    await delivery.deliver(minted(ALICE))
    old = (delivery.path(ALICE) / "..data").resolve()
    await delivery.renew(minted(ALICE))
    await asyncio.gather(*delivery._background.tasks)
    assert not old.exists()
    assert file_layout.read_set(delivery.path(ALICE)) == {"token": b"secret", "d/token": b"secret"}


async def test_a_set_that_was_replaced_just_now_stays_whatever_was_replaced_before(
    delivery: LocalDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_GRACE", 0.2)
    await delivery.deliver(minted(ALICE))
    await delivery.renew(minted(ALICE))
    [first] = delivery._background.tasks
    await asyncio.sleep(0)  # it waits for as long as it should
    monkeypatch.setattr(local, "_GRACE", 2)
    old = (delivery.path(ALICE) / "..data").resolve()
    await delivery.renew(minted(ALICE))
    await first
    assert old.exists()
    await asyncio.gather(*delivery._background.tasks)
    assert not old.exists()


async def test_a_cancelled_delivery_is_followed_by_its_withdrawal(
    delivery: LocalDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that takes too long is cancelled while a thread still writes, then JupyterHub stops the server."""
    loop, writing, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    place = delivery._place

    def slow(*args: object) -> None:
        loop.call_soon_threadsafe(writing.set)
        assert go_on.wait(60)
        place(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(delivery, "_place", slow)
    start = asyncio.create_task(delivery.deliver(minted(ALICE)))
    await writing.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    withdrawal = asyncio.create_task(delivery.remove(ALICE, "1"))
    done, _ = await asyncio.wait([withdrawal], timeout=0.2)
    assert not done, "the withdrawal didn't wait for the thread"
    go_on.set()
    await withdrawal
    assert not delivery.path(ALICE).exists()


async def test_each_of_many_servers_at_once_has_an_address_of_its_own(config: Config, tmp_path: Path) -> None:
    config.LocalDelivery.network = "127.77.1.0/28"
    delivery = LocalDelivery(config=config)
    delivery.open()
    servers = [Server("", f"user{number}") for number in range(15)]
    results = await asyncio.gather(*(delivery.deliver(minted(server)) for server in servers), return_exceptions=True)
    failed = [result for result in results if result is not None]
    assert [type(error) for error in failed] == [DeliveryError]  # 14 addresses
    assert "Choose a larger network" in str(failed[0])
    assert len({one.address for one in delivery.all()}) == 14
    await delivery.remove(delivery.all()[0].server, "1")
    await delivery.deliver(minted(servers[results.index(failed[0])]))
    end_hub_of(delivery)


@pytest.mark.parametrize("network", ["10.0.0.0/8", "127.0.0.1/32", "127.0.0.5/8", "nonsense"])
def test_only_a_loopback_network_will_do(network: str) -> None:
    with pytest.raises(TraitError, match=r"LocalDelivery\.network"):
        LocalDelivery(config=Config(LocalDelivery={"network": network}))


async def test_after_a_crash_the_living_are_kept_and_the_rest_is_swept(
    delivery: LocalDelivery, config: Config, tmp_path: Path
) -> None:
    for server in (ALICE, BOB):
        await delivery.deliver(minted(server))
    address = delivery.delivered(ALICE).address  # type: ignore[union-attr]
    root = tmp_path / "servers"
    for leftover in (".new.0", ".old.0", "unreadable"):
        (root / leftover).mkdir()
    (root / "unreadable" / "state.json").write_text("{")
    (tmp_path / "traefik" / "alice.yml").unlink()
    end_hub_of(delivery)
    again = LocalDelivery(config=config)
    again.open()
    assert again.sweep("", {(ALICE.identity, "1")}) == [".new.0", ".old.0", "bob--x", "unreadable"]
    assert sorted(path.name for path in root.iterdir()) == [".lock", "alice"]
    assert [path.name for path in (tmp_path / "traefik").iterdir()] == ["alice.yml"]
    assert again.delivered(ALICE).address == address  # type: ignore[union-attr]
    end_hub_of(again)


async def test_links_are_removed_and_never_followed(config: Config, delivery: LocalDelivery, tmp_path: Path) -> None:
    """One link to a directory once kept the whole hub from starting."""
    await delivery.deliver(minted(ALICE))
    root, elsewhere = tmp_path / "servers", tmp_path / "elsewhere"
    (root / "alice").rename(elsewhere)
    for name in ("alice", "odd", ".old.0"):
        (root / name).symlink_to(elsewhere)
    (root / "dangling").symlink_to(tmp_path / "absent")
    end_hub_of(delivery)
    again = LocalDelivery(config=config)
    again.open()
    assert again.all() == []
    assert again.sweep("", {(ALICE.identity, "1")}) == [".old.0", "alice", "dangling", "odd"]
    assert [path.name for path in root.iterdir()] == [".lock"]
    assert file_layout.read_set(elsewhere) == {"token": b"secret", "d/token": b"secret"}
    end_hub_of(again)


async def test_a_link_or_file_in_place_of_a_server_goes_with_it(delivery: LocalDelivery, tmp_path: Path) -> None:
    root = tmp_path / "servers"
    await delivery.deliver(minted(ALICE))
    (root / "alice").rename(tmp_path / "elsewhere")
    (root / "alice").symlink_to(tmp_path / "elsewhere")
    await delivery.remove(ALICE, "1")
    (root / "bob--x").touch()
    await delivery.deliver(minted(BOB))
    assert sorted(path.name for path in root.iterdir()) == [".lock", "bob--x"]
    assert (tmp_path / "elsewhere" / "state.json").exists()


def test_two_hubs_cannot_share_a_directory(delivery: LocalDelivery, config: Config) -> None:
    with pytest.raises(ConfigurationError, match="another running hub"):
        LocalDelivery(config=config).open()


def test_a_directory_with_files_of_others_is_refused(config: Config, tmp_path: Path) -> None:
    (tmp_path / "servers").mkdir()
    (tmp_path / "servers" / "thesis.tex").touch()
    with pytest.raises(ConfigurationError, match="aren't the hub's"):
        LocalDelivery(config=config).open()
    assert (tmp_path / "servers" / "thesis.tex").exists()


#: Reads as clients do: by name, and a whole set through "..data". Prints what must never happen, then "done".
READER = """
import os, sys
directory, seen, rounds = sys.argv[1], 0, 0
print("ready", flush=True)
while not os.path.exists(directory + "/../stop") or rounds < 100:
    rounds += 1
    current = os.path.join(directory, os.readlink(directory + "/..data"))
    for paths in ([current + "/" + n for n in ("a", "b", "d/c")], [directory + "/" + n for n in ("a", "b", "d/c")]):
        numbers = []
        for path in paths:
            try:
                content = open(path, "rb").read()
            except OSError as error:
                print("missing", path, error)
                continue
            head, _, tail = content.partition(b"|")
            if len(content) != 5000 or not head:
                print("not whole", path, len(content))
            numbers.append(int(head))
        if paths[0].startswith(current) and len(set(numbers)) != 1:
            print("mixed", numbers)
        if numbers != sorted(numbers) or numbers[0] < seen:
            print("older than before", numbers, seen)
        seen = numbers[-1]
print("done", seen, rounds, flush=True)
"""


async def test_a_reader_in_a_tight_loop_never_sees_a_missing_partial_or_mixed_set(
    delivery: LocalDelivery, tmp_path: Path
) -> None:
    def generation(number: int) -> Minted:
        content = f"{number}|".encode().ljust(5000, b".")
        return minted(ALICE, files={"a": content, "b": content, "d/c": content})

    await delivery.deliver(generation(1))
    reader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READER, str(delivery.path(ALICE)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert reader.stdout is not None
        assert await reader.stdout.readline() == b"ready\n"
        for number in range(2, 301):
            await delivery.renew(generation(number))
            if number % 100 == 0:
                await asyncio.gather(*delivery._background.tasks)  # old sets go while the reader reads
        (tmp_path / "servers" / "stop").touch()
        output, _ = await asyncio.wait_for(reader.communicate(), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            reader.kill()
    *wrong, last = output.splitlines()
    assert wrong == []
    assert last.split()[:2] == [b"done", b"300"]
