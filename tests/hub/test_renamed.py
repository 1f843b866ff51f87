"""Servers that run while an administrator renames their user, or the hub is given an id: on one machine.

A server keeps the identity that it was started with. It is renewed, withdrawn and ended by that, by the next hub, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from casa_hub.audit import PREFIX
from casa_hub.naming import Server
from casa_hub.processes import signed_in
from casa_hub.testing import FacilityHub, IdP
from tests.support.local_hub import LocalHub, gone
from tests.support.waiting import until

MakeHub = Callable[..., LocalHub]

#: Lets the tests' service be an operator's, too.
OPERATOR = """
from casa_hub.web import operations
c.JupyterHub.extra_handlers = operations.handlers
c.JupyterHub.load_roles.append({"name": "operator", "services": ["tests"], "scopes": [operations.SCOPE]})
"""
#: Seconds that credentials live.
LIFE = 12


def rename(hub: LocalHub | FacilityHub, before: str, after: str) -> None:
    answer = hub.api("PATCH", f"/users/{before}", json={"name": after})
    assert answer.status_code == 200, answer.text


def order(hub: LocalHub, user: str) -> int:
    return int(hub.state(user)["record"]["credentials"]["xcache"]["order"])  # type: ignore[index]


def events(log: str, action: str) -> list[dict[str, Any]]:
    found = [json.loads(line.partition(PREFIX)[2]) for line in log.splitlines() if PREFIX in line]
    return [event for event in found if event["action"] == action]


def status(hub: LocalHub | FacilityHub) -> dict[str, Any]:
    answer = hub.api("GET", "/casa-hub/status")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("restart", ["no", "stopped", "killed"])
def test_the_server_of_a_renamed_user_is_renewed_and_stops(make_local_hub: MakeHub, restart: str) -> None:
    hub = make_local_hub(OPERATOR + f"c.XCache.lifetime = c.Site.lifetime = {LIFE}\n").start()
    assert hub.spawn("alice")[-1]["ready"], hub.log[-5000:]
    process = hub.remember("alice")
    before = order(hub, "alice")
    rename(hub, "alice", "grace")
    if restart != "no":
        hub.crash() if restart == "killed" else hub.stop()
        hub.start()
    assert hub.ready("grace") == {""}
    since = order(hub, "alice")
    until(lambda: order(hub, "alice") > max(before, since), "a renewal", 60)
    assert process is not None
    assert process.alive
    assert status(hub)["overdue"] == []
    assert status(hub)["unkept"] == {}
    renewed = events(hub.log, "renewed")[-1]
    assert (renewed["username"], renewed["started_as"]) == ("grace", "alice")
    report = hub.api("POST", "/casa-hub/renew", json={"users": ["grace"]}).json()
    assert [*report["renewed"], *report["failed"]] == ["grace (started as alice)"]
    hub.stop_server("grace")
    assert gone(hub, ("alice", ""), ("grace", ""))
    assert not process.alive
    assert hub.spawn("grace")[-1]["ready"], "and has the new name from then on"
    assert hub.state("grace")["server"]["username"] == "grace"  # type: ignore[index]


def test_who_has_the_name_next_waits_until_the_server_that_has_it_is_stopped(make_local_hub: MakeHub) -> None:
    """Files and host names are called so: the next alice must not get those of a running server, nor end it."""
    hub = make_local_hub().start()
    assert hub.spawn("alice")[-1]["ready"]
    process, files = hub.remember("alice"), (hub.path("alice") / "xcache_token").read_bytes()
    rename(hub, "alice", "grace")
    assert hub.api("POST", "/users/alice").status_code == 201
    for _ in range(2):
        # JupyterHub's own names may be in the way before ours are.
        if hub.api("POST", "/users/alice/server").status_code < 400:
            told = hub.api("GET", "/users/alice/server/progress").text
            assert "a server that was started under this name still runs; its user is now called grace" in told
            until(lambda: not hub.api("GET", "/users/alice").json()["pending"], "the start has failed")
        assert process is not None
        assert process.alive
        assert hub.ready("grace") == {""}
        assert (hub.path("alice") / "xcache_token").read_bytes() == files
        hub.crash()  # and so it is for the next hub
        hub.start()
    hub.stop_server("grace")
    assert gone(hub, ("alice", ""))
    assert hub.spawn("alice")[-1]["ready"]


@pytest.mark.parametrize("saved", [True, False], ids=["", "started-by-an-earlier-version"])
def test_a_hub_that_gets_an_id_keeps_the_servers_that_run(make_local_hub: MakeHub, saved: bool) -> None:
    hub = make_local_hub(OPERATOR + f"c.XCache.lifetime = c.Site.lifetime = {LIFE}\n").start()
    assert hub.spawn("alice")[-1]["ready"]
    process = hub.remember("alice")
    rename(hub, "alice", "grace")
    hub.stop()
    if not saved:
        forget_start_ids(hub)
    with (hub.directory / "jupyterhub_config.py").open("a") as config:
        config.write('c.Facility.hub_id = "cms"\n')
    hub.start()
    assert hub.ready("grace") == {""}
    since = order(hub, "alice")
    until(lambda: order(hub, "alice") > since, "a renewal", 60)
    assert Server(**hub.state("alice")["server"]) == Server("", "alice")  # type: ignore[arg-type]
    assert process is not None
    assert process.alive
    hub.stop_server("grace")
    assert gone(hub, ("alice", ""))
    assert not process.alive


def forget_start_ids(hub: LocalHub) -> None:
    """Spawners' states as versions before this test left them."""
    import sqlite3  # noqa: PLC0415

    with sqlite3.connect(hub.directory / "hub.sqlite") as database:
        for number, text in database.execute("select id, state from spawners").fetchall():
            state = json.loads(text) if text else {}
            state.pop("casa_start_id", None)
            database.execute("update spawners set state = ? where id = ?", (json.dumps(state), number))
    database.close()


FACILITY = """
c = get_config()
c.CasaOAuthenticator.provider = "keycloak"
c.CasaOAuthenticator.client_id = "hub-client"
c.CasaOAuthenticator.oauth_callback_url = "https://hub.example.org/hub/oauth_callback"
c.CasaOAuthenticator.allowed_groups = {"/phys/analysis"}
c.Facility.credentials = ["xcache", "dask", "bearer"]
c.XCache.key_file = "/etc/casa-hub/xcache"
c.XCache.site_name = "T9_XX_Test"
c.XCache.host = "xcache.example.org"
c.Dask.secret_file = "/etc/casa-hub/dask"
c.Dask.domain = "example.org"
c.Keeper.recheck_interval = 5
"""


@pytest.mark.parametrize("restart", [False, True])
def test_a_renamed_user_who_loses_the_group_loses_the_server(
    casa_hub_factory: Callable[..., FacilityHub], casa_idp: IdP, restart: bool
) -> None:
    name = f"tester-{restart}".lower()
    casa_idp.put_user(name, preferred_username=name, groups=["/phys/analysis"])
    hub = casa_hub_factory(FACILITY, overrides="c.JupyterHub.cleanup_servers = False\n").start()
    browser = hub.browser()
    assert browser.log_in(name).ok
    assert browser.spawn().ok
    given = hub.given(name)
    process = signed_in(given.directory / "process")
    assert process is not None
    routes = list((hub.directory / "routes").iterdir())
    assert routes
    rename(hub, name, f"{name}-1")
    if restart:
        hub.stop()
        hub.start()
    casa_idp.put_user(name, preferred_username=name, groups=["/phys"])
    hub.wait_for(r'"action": "access-ended"', timeout=90)
    until(lambda: not process.alive, "the server is stopped")
    until(lambda: not given.directory.exists(), "its files are gone")
    assert not any(route.exists() for route in routes)
    revoked = events(hub.log, "revoked")
    assert {event["credential"]: event["identifiers"] for event in revoked} == {
        credential: entry["identifiers"] for credential, entry in given.credentials.items()
    }
    assert {(event["username"], event["started_as"]) for event in revoked} == {(f"{name}-1", name)}


def test_a_renewal_of_a_renamed_user_s_server_has_the_name_of_its_start(make_local_hub: MakeHub) -> None:
    hub = make_local_hub(OPERATOR).start()
    assert hub.spawn("alice")[-1]["ready"]
    rename(hub, "alice", "grace")
    before = hub.state("alice")["record"]["credentials"]["xcache"]["identifiers"]["identifier"]  # type: ignore[index]
    assert hub.api("POST", "/casa-hub/renew", json={"credentials": ["xcache"]}).json()["failed"] == {}
    after = hub.state("alice")["record"]["credentials"]["xcache"]["identifiers"]["identifier"]  # type: ignore[index]
    assert before != after
    assert before.partition("/")[0] == after.partition("/")[0] == "alice"
    hub.stop_server("grace")
