"""Credentials of real servers of a real hub, which live for seconds, and of which none may ever expire."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from pymacaroons import Macaroon

from casa_hub.delivery import file_layout
from tests.support.called import CALLED, call
from tests.support.local_hub import LocalHub, gone
from tests.support.waiting import until

MakeHub = Callable[..., LocalHub]

#: Seconds; and where a hub is killed, or a key is put back, and the next renewal must come in time: a start takes three
#: seconds, or ten on a busy machine; a missing key is told in the last sixth of a life, and tried again after a second.
LIFE, LONG, LONGEST = 9, 27, 42


def config(life: int) -> str:
    return f"""
c.XCache.lifetime = c.Site.lifetime = {life}
c.JupyterHub.authenticate_prometheus = False
"""


def record(hub: LocalHub) -> dict[str, Any]:
    found: dict[str, Any] = hub.state("alice")["record"]  # type: ignore[assignment]
    return found


def order(hub: LocalHub, name: str = "xcache") -> int:
    return int(record(hub)["credentials"][name]["order"])


def end_of(macaroon: bytes) -> datetime:
    """When a macaroon expires, as XCache reads it."""
    caveats = [caveat.caveat_id for caveat in Macaroon.deserialize(macaroon.decode()).caveats]
    [before] = [text.removeprefix("before:") for text in caveats if text.startswith("before:")]
    return datetime.fromisoformat(before)


@contextmanager
def always_valid(hub: LocalHub) -> Iterator[list[datetime]]:
    """Looks all the time whether alice's macaroon is there, is valid, and never a worse one. All expiries, in order."""
    over, wrong, ends = threading.Event(), [], []
    path: Path = hub.path("alice") / "xcache_token"

    def look() -> None:
        last = False
        while not last:  # once more when all is over: what was waited for is seen, too
            last = over.wait(0.01)
            try:
                end = end_of(path.read_bytes())
            except Exception as error:  # noqa: BLE001 - whatever it is, a client had no credential
                wrong.append(repr(error))
                continue
            if end <= datetime.now(UTC):
                wrong.append(f"expired at {end}")
            if ends and end < ends[-1]:
                wrong.append(f"{end} after {ends[-1]}")
            if not ends or end != ends[-1]:
                ends.append(end)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield ends
    finally:
        over.set()
        looking.join()
    assert wrong == [], hub.log[-9000:]


def test_a_server_never_has_an_expired_file_also_when_its_hub_is_killed(make_local_hub: MakeHub) -> None:
    hub = make_local_hub(config(LONG)).start()
    assert hub.spawn("alice")[-1]["ready"], hub.log[-5000:]
    ca = (hub.path("alice") / "hostcert.pem").read_bytes()
    with always_valid(hub) as ends:
        until(lambda: order(hub) == 1, "a renewal")
        hub.crash()
        time.sleep(0.2)
        hub.start()
        until(lambda: order(hub) == 2, "a renewal by the next hub")
    assert len(ends) == 3
    state = record(hub)
    assert state["credentials"]["site"]["order"] == state["credentials"]["xcache"]["order"] == state["order"] == 2
    assert state["credentials"]["dask"]["order"] == 0
    assert (hub.path("alice") / "hostcert.pem").read_bytes() == ca
    assert "No new " not in hub.log
    hub.stop_server("alice")
    assert gone(hub, ("alice", ""))


def test_an_unreadable_key_is_told_and_the_old_file_stays_until_it_is_back(make_local_hub: MakeHub) -> None:
    hub = make_local_hub(config(LONGEST)).start()
    assert hub.spawn("alice")[-1]["ready"]
    key = hub.directory / "xcache.key"
    with always_valid(hub):
        key.rename(hub.directory / "away")
        hub.wait_for(r"No new xcache for .*alice.* keeps the one it has, which is valid until .*does not exist")
        before = order(hub)
        metrics = requests.get(f"{hub.url}/hub/metrics", timeout=30).text
        assert 'casa_hub_mints_total{credential="xcache",outcome="failed"} ' in metrics
        until(lambda: order(hub, "site") > before, "the other one is renewed")
        hub.wait_for(r"xcache of .*alice.* expires at .* and there is no new one")
        assert order(hub) == before
        (hub.directory / "away").rename(key)
        hub.wait_for(r"xcache of .*alice.* is renewed after all")
    assert order(hub) > before


def test_a_server_that_the_first_version_started_is_renewed_and_one_of_a_later_version_runs_on(
    make_local_hub: MakeHub,
) -> None:
    hub = make_local_hub(config(LONG)).start()
    for user in ("bob", "alice"):  # hers are the ones that live on
        assert hub.spawn(user)[-1]["ready"]
    hub.crash()
    states = {user: hub.state(user) for user in ("alice", "bob")}
    for state in states.values():
        del state["withdrawn"]
    old: Any = states["alice"]["record"]
    old["version"] = 1
    del old["order"]
    for entry in old["credentials"].values():
        del entry["order"], entry["earlier"]
    states["bob"]["record"]["version"] = 3  # type: ignore[index]
    for user, state in states.items():
        (hub.path(user) / "state.json").write_text(json.dumps(state))
    bobs = {path.name: path.read_bytes() for path in (hub.path("bob") / "..data").iterdir()}
    with always_valid(hub):
        hub.start()
        until(lambda: record(hub)["version"] == 2, "the first renewal")
    assert order(hub) == 1
    until(lambda: hub.ready("bob") == {""}, "bob's server is known to the hub")
    assert {path.name: path.read_bytes() for path in (hub.path("bob") / "..data").iterdir()} == bobs
    [line] = [line for line in hub.log.splitlines() if "No credential of the server" in line]
    assert "bob" in line
    metrics = requests.get(f"{hub.url}/hub/metrics", timeout=30).text
    assert "casa_hub_servers_unkept 1.0" in metrics
    hub.stop_server("bob")
    assert gone(hub, ("bob", ""))


@pytest.mark.parametrize("killed", [False, True])
def test_a_withdrawn_server_has_nothing_any_more_and_stops_as_ever(make_local_hub: MakeHub, killed: bool) -> None:
    hub = make_local_hub(config(LIFE) + CALLED).start()
    assert hub.spawn("alice")[-1]["ready"]
    call(hub, "withdraw", "alice")
    directory = hub.path("alice")
    assert sorted(path.name for path in directory.rglob("*") if path.is_file()) == ["process", "state.json"]
    assert list((hub.directory / "traefik").iterdir()) == []
    if killed:
        hub.stop(signal.SIGKILL)
        hub.start()
    until(lambda: hub.ready("alice") == {""}, "the server runs on")
    time.sleep(LIFE * 0.8)  # it would have been renewed by then
    assert file_layout.read_set(directory) == {}
    assert "No new " not in hub.log
    process = hub.remember("alice")
    assert process is not None
    assert process.alive
    hub.stop_server("alice")
    assert gone(hub, ("alice", ""))
    assert not process.alive


def test_all_is_renewed_on_request_with_a_new_key(make_local_hub: MakeHub) -> None:
    hub = make_local_hub(config(LIFE) + CALLED + "c.XCache.lifetime = 3600\n").start()
    (hub.directory / "token").write_text("the-users-token")
    assert hub.spawn("alice")[-1]["ready"]
    before = {path.name: path.read_bytes() for path in (hub.path("alice") / "..data").iterdir()}
    (hub.directory / "xcache.key").write_text("b" * 64 + "\n")
    (hub.directory / "token").write_text("the-users-other-token")
    call(hub, "renew", "alice")
    hub.wait_for(r"REPORT Report\(renewed=\('\[\"\", \"alice\", \"\"\]',\), failed=\{\}\)")
    after = {path.name: path.read_bytes() for path in (hub.path("alice") / "..data").iterdir()}
    changed = {name for name in before if after[name] != before[name]}
    # The CA is the start's: what has run since then and what comes now still know each other.
    assert set(before) - changed == {"ca.pem", "dask_fresh_token.py"}
    assert set(after) == set(before)
    earlier = record(hub)["credentials"]["xcache"]["earlier"]
    assert len(earlier) == 1, "what was made with the old key may have to be blocked"
