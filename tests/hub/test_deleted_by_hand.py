"""What a running server on this machine was given and somebody removes, or its start could not have: it comes back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from casa_hub.delivery import file_layout
from tests.support.called import CALLED, call
from tests.support.local_hub import LocalHub, gone
from tests.support.waiting import until

MakeHub = Callable[..., LocalHub]

#: Seconds: the operators' guide promises a minute, and a busy machine is given more.
PATIENCE = 120
#: Configuration with which the hub looks more often at what servers have.
LOOKS = """
from casa_hub.servers import mending
mending._LOOK = 1.0
"""

OPERATOR = """
from casa_hub.web import operations
c.JupyterHub.extra_handlers = operations.handlers
c.JupyterHub.load_roles.append({"name": "operator", "services": ["tests"], "scopes": [operations.SCOPE]})
"""


def missing(hub: LocalHub) -> dict[str, str]:
    """What `casa-hub status` names: thing -> why. Nobody here has an access token."""
    answer = hub.api("GET", "/casa-hub/status")
    assert answer.status_code == 200, answer.text
    return {one["what"]: one["why"] for one in answer.json()["missing"] if one["what"] != "bearer"}


def files(hub: LocalHub) -> dict[str, bytes]:
    return file_layout.read_set(hub.path("alice"))


@pytest.mark.parametrize("what", ["a file", "all of it"])
def test_files_that_are_removed_by_hand_come_back(make_local_hub: MakeHub, what: str) -> None:
    hub = make_local_hub(OPERATOR).start()
    assert hub.spawn("alice")[-1]["ready"], hub.log[-5000:]
    directory, before, process = hub.path("alice"), files(hub), hub.remember("alice")
    state = hub.state("alice")
    route = hub.directory / "traefik" / "alice.yml"
    led = route.read_bytes()
    if what == "a file":
        (directory / "..data" / "xcache_token").unlink()
    else:
        shutil.rmtree(directory)
        route.unlink()
    until((directory / "xcache_token").exists, "the macaroon is there again", PATIENCE)
    until(lambda: hub.remember("alice") == process, "the process is known again", PATIENCE)
    until(lambda: route.exists() and route.read_bytes() == led, "the route is there again", PATIENCE)
    after = files(hub)
    assert set(after) == set(before)
    kept = {name for name in before if before[name] == after[name]}
    assert kept == (set(before) - {"xcache_token"} if what == "a file" else {"ca.pem", "dask_fresh_token.py"})
    record: Any = hub.state("alice")["record"]
    assert record["order"] == 1
    earlier = record["credentials"]["xcache"]["earlier"]
    was: Any = state["record"]
    assert was["credentials"]["xcache"]["identifiers"] in [one["identifiers"] for one in earlier]
    until(lambda: missing(hub) == {}, "nothing is missing any more")
    # The next hub knows it.
    hub.crash()
    hub.start()
    until(lambda: hub.ready("alice") == {""}, "the server runs on")
    assert hub.remember("alice") == process
    hub.stop_server("alice")
    assert gone(hub, ("alice", ""))


def test_what_could_not_be_minted_at_the_start_comes_with_its_route(make_local_hub: MakeHub) -> None:
    hub = make_local_hub(OPERATOR).start()
    secret = hub.directory / "dask.secret"
    secret.rename(hub.directory / "away")
    events = hub.spawn("alice")
    assert events[-1]["ready"]
    told = " / ".join(str(event["message"]) for event in events)
    assert "Starting without dask: " in told
    assert "It is tried again while the server runs." in told
    assert "does not exist" in missing(hub)["dask"]
    assert not (hub.directory / "traefik" / "alice.yml").exists()
    (hub.directory / "away").rename(secret)
    until((hub.path("alice") / "hostcert.pem").exists, "the certificates are there", PATIENCE)
    until((hub.directory / "traefik" / "alice.yml").exists, "the route is there", PATIENCE)
    address = hub.state("alice")["address"]
    assert f"{address}:8786" in (hub.directory / "traefik" / "alice.yml").read_text()
    until(lambda: missing(hub) == {}, "nothing is missing any more")
    hub.stop_server("alice")
    assert gone(hub, ("alice", ""))


@pytest.mark.parametrize("restarted", [False, True])
def test_nothing_comes_back_to_a_server_that_was_withdrawn(make_local_hub: MakeHub, restarted: bool) -> None:
    hub = make_local_hub(CALLED + OPERATOR + LOOKS).start()
    for user in ("alice", "bob"):
        assert hub.spawn(user)[-1]["ready"]
    call(hub, "withdraw", "alice")
    if restarted:
        hub.crash()
        hub.start()
    for _ in range(2):
        (hub.path("bob") / "..data" / "xcache_token").unlink()
        until((hub.path("bob") / "xcache_token").exists, "bob's is there again, so there was a look", PATIENCE)
    assert files(hub) == {}
    assert json.loads((hub.path("alice") / "state.json").read_text())["withdrawn"]
    assert not (hub.directory / "traefik" / "alice.yml").exists()
