"""The rules of a user's groups hold for pods that a real API server stores, whichever way the start was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from pymacaroons import Macaroon

from tests.kubernetes.hub.servers import NONE, Site, open_site
from tests.support.kubernetes.api import Api, eventually

RULES = """
c.JupyterHub.load_groups = {"atlas": {"users": ["ada", "eve"]}, "cms": {"users": ["carl", "eve"]}}
c.KubeSpawner.profile_list = [
    {"display_name": "Small", "kubespawner_override": {"cpu_limit": 0.5, "mem_limit": "256M"}},
    {"display_name": "Large", "kubespawner_override": {"cpu_limit": 16}},
    {"display_name": "Other", "allowed_groups": ["cms"], "kubespawner_override": {"mem_limit": "128M"}},
]
c.Policy.rules = [
    {"name": "staff", "groups": ["staff"], "limits": {"cpu": 64}},
    {
        "groups": ["atlas"],
        "limits": {"cpu": 2, "servers": 1},
        "pod": {"extra_labels": {"experiment": "atlas"}},
        "XCache": {"site_name": "T2_ATLAS", "key_file": "atlas.key"},
    },
    {"groups": ["cms"], "profiles": ["small", "other"], "XCache": {"site_name": "T2_CMS", "key_file": "cms.key"}},
    {"name": "all", "limits": {"memory": "1G"}},
]
"""


@pytest.fixture(scope="module")
def site(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(plane, tmp_path_factory, RULES, running=False) as opened:
        for name in ("atlas", "cms"):
            shutil.copy(opened.hub.directory.parent / "keys" / "xcache.key", opened.hub.directory / f"{name}.key")
        opened.hub.start()
        yield opened


@pytest.fixture(autouse=True)
def cleared(site: Site) -> Iterator[None]:
    yield
    site.clear()


def cache_of(site: Site, user: str) -> str:
    token = site.files(site.pod(user))["xcache_token"].decode().strip()
    return str(Macaroon.deserialize(token).location)


@pytest.mark.both_hubs
def test_each_pod_is_that_of_its_owner_s_groups(site: Site) -> None:
    site.ready("ada", options={"profile": "small"})
    site.ready("carl", options={"profile": "other"})
    site.ready("eve")
    assert [cache_of(site, user) for user in ("ada", "carl", "eve")] == ["T2_ATLAS", "T2_CMS", "T2_ATLAS"]
    ada, carl = site.pod("ada"), site.pod("carl")
    assert ada["metadata"]["labels"]["experiment"] == "atlas"
    assert "experiment" not in carl["metadata"]["labels"]
    resources = {pod["metadata"]["name"]: pod["spec"]["containers"][0]["resources"]["limits"] for pod in (ada, carl)}
    assert resources[ada["metadata"]["name"]] == {"cpu": "500m", "memory": str(256 * 2**20)}
    # Nobody has set a limit of CPU for carl; that of memory is the profile's.
    assert resources[carl["metadata"]["name"]] == {"memory": str(128 * 2**20)}


@pytest.mark.both_hubs
def test_what_is_beyond_the_rules_makes_no_pod_and_nothing_is_minted(site: Site) -> None:
    since = len(site.hub.log)
    told = site.fails("ada", options={"profile": "large"})
    assert "This server asks for 16 CPUs, and the most for the groups of ada is 2 CPUs" in told
    assert "(limit cpu of rule atlas). Members of staff may." in told
    assert "Profile 'large' is not for the groups of carl" in site.fails("carl", options={"profile": "large"})
    assert "Profile 'other' is not for the groups of ada" in site.fails("ada", options={"profile": "other"})
    assert "no profile 'huge'" in site.fails("carl", options={"profile": "huge"})
    eventually(lambda: site.ours() == NONE and not site.names())
    log = site.hub.log[since:]
    assert '"action": "minted"' not in log
    assert log.count('"action": "refused"') == 4
    assert "consecutive spawns failed" not in log


def test_one_server_too_many_is_refused_and_the_first_one_runs_on(site: Site) -> None:
    small = {"profile": "small"}
    site.ready("ada", options=small)
    assert "limit servers of rule atlas" in site.fails("ada", "second", options=small)
    assert len(site.names()) == 1
    site.ready("carl", options=small)
    site.ready("carl", "second", options=small)
