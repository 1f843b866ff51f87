"""Two experiments on one hub: whose credentials a real server gets, and how many its owner may have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pymacaroons import Macaroon

from tests.support.local_hub import LocalHub
from tests.support.waiting import until

RULES = """
c.Policy.rules = [
    {"groups": ["atlas"], "XCache": {"site_name": "T2_ATLAS", "key_file": "atlas.key"}, "limits": {"servers": 1}},
    {"groups": ["cms"], "XCache": {"site_name": "T2_CMS", "key_file": "cms.key"}},
    {"groups": ["both"], "credentials": ["xcache", "xcache:cms"]},
]
c.JupyterHub.setdefault("load_roles", []).append(
    {"name": "groups", "services": ["tests"], "scopes": ["admin:groups"]}
)
"""


@pytest.fixture
def hub(make_local_hub: Callable[..., LocalHub]) -> LocalHub:
    one = make_local_hub(RULES)
    for name in ("atlas", "cms"):
        # Another key each, as each cache has its own.
        content = (one.directory / "xcache.key").read_bytes()
        (one.directory / f"{name}.key").write_bytes(content[::-1].strip() + b"\n" if name == "cms" else content)
        (one.directory / f"{name}.key").chmod(0o600)
    one.start()
    for group, users in {"atlas": ["ann", "eve"], "cms": ["carl", "eve"], "both": ["eve"]}.items():
        one.api("POST", f"/groups/{group}")
        for user in users:
            one.api("POST", f"/users/{user}")
        assert one.api("POST", f"/groups/{group}/users", json={"users": users}).status_code == 200
    return one


def site(path: Path) -> str:
    return str(Macaroon.deserialize(path.read_text().strip()).location)


def test_each_server_holds_the_macaroon_of_its_owner_s_experiment(hub: LocalHub) -> None:
    for user in ("ann", "carl", "eve", "somebody"):
        assert hub.spawn(user)[-1].get("ready"), user
    sites = {user: site(hub.path(user) / "xcache_token") for user in ("ann", "carl", "eve", "somebody")}
    assert sites == {"ann": "T2_ATLAS", "carl": "T2_CMS", "eve": "T2_ATLAS", "somebody": "T3_TEST"}
    assert site(hub.path("eve") / "xcache_token_cms") == "T2_CMS"
    assert not (hub.path("ann") / "xcache_token_cms").exists()
    assert '"credential": "xcache:cms"' in hub.log


def test_a_lost_group_counts_at_the_next_start(hub: LocalHub) -> None:
    assert hub.spawn("carl")[-1].get("ready")
    old = (hub.path("carl") / "xcache_token").read_bytes()
    assert hub.api("DELETE", "/groups/cms/users", json={"users": ["carl"]}).status_code == 200
    assert "xcache:cms" in str(hub.state("carl"))
    hub.stop_server("carl")
    until(lambda: hub.ready("carl") == set(), "the server to end")
    assert hub.spawn("carl")[-1].get("ready")
    assert site(hub.path("carl") / "xcache_token") == "T3_TEST"
    assert (hub.path("carl") / "xcache_token").read_bytes() != old


def test_one_server_too_many_is_refused_by_the_api_and_the_others_run_on(hub: LocalHub) -> None:
    assert hub.spawn("ann")[-1].get("ready")
    last = hub.spawn("ann", "second")[-1]
    assert last.get("failed")
    assert "RefusedStart" not in str(last)
    assert "1 server (limit servers of rule atlas)" in str(last)
    assert hub.ready("ann") == {""}
    assert hub.spawn("carl")[-1].get("ready")
    assert hub.spawn("carl", "second")[-1].get("ready")
    assert "Unhandled error" not in hub.log
