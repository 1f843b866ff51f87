"""`casa_hub.hooks.install(c)`: a site keeps its own spawner class, and its servers have the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.conftest import MakeHub
from tests.kubernetes.hub.servers import NONE, SECRETS, Site, open_site
from tests.support.hub import Hub
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.facility import facility

SITE = """
from kubespawner import KubeSpawner

class SiteSpawner(KubeSpawner):
    async def _start(self):
        tell("_start")
        return await super()._start()

    async def _make_create_pod_request(self, pod, request_timeout):
        tell("_make_create_pod_request")
        pod.metadata.annotations["site/late"] = "kept"
        return await super()._make_create_pod_request(pod, request_timeout)

def tell(hook):
    with open("calls", "a") as file:
        print(hook, file=file)

def pre_spawn(spawner):
    tell("pre_spawn")

async def modify_pod(spawner, pod):
    tell("modify_pod")
    pod.metadata.annotations["site/note"] = "kept"
    return pod

def after_pod_created(spawner, pod):
    tell("after_pod_created")
    if spawner.user.name == "unlucky":
        raise RuntimeError("the site's own hook failed")

c.JupyterHub.spawner_class = SiteSpawner
c.SiteSpawner.volumes.append({"name": "site", "emptyDir": {}})
c.SiteSpawner.pre_spawn_hook = pre_spawn
c.KubeSpawner.modify_pod_hook = modify_pod
c.KubeSpawner.after_pod_created_hook = after_pod_created
c.Spawner.post_stop_hook = lambda spawner: tell("post_stop")
"""
INSTALL = "import casa_hub.hooks\ncasa_hub.hooks.install(c)\n"
#: An authenticator that knows nothing of this package, set after the hooks.
STOCK = """
c.JupyterHub.authenticator_class = "dummy"
c.XCache.lifetime = 9
"""


@pytest.fixture(scope="module")
def site(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(plane, tmp_path_factory, SITE + INSTALL + INSTALL) as opened:
        yield opened


@pytest.fixture(autouse=True)
def cleared(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "site" in request.fixturenames:
        request.getfixturevalue("site").clear()


def calls(hub: Hub) -> list[str]:
    told = hub.directory / "calls"
    lines = told.read_text().splitlines() if told.exists() else []
    told.unlink(missing_ok=True)
    return lines


@pytest.mark.both_hubs
def test_the_servers_of_a_sites_own_class_have_credentials(site: Site) -> None:
    told = [event["message"] for event in site.ready("ada") if "message" in event]
    assert any("XCache" in sentence and "valid until" in sentence for sentence in told), told
    assert "Pod created, with what it needs" in told
    pod = site.pod("ada")
    files = site.files(pod)
    assert {"xcache_token", "condor_token", "hostcert.pem"} <= set(files)
    assert [container["name"] for container in pod["spec"]["initContainers"]] == ["casa-hub-files"]
    assert {pod["metadata"]["annotations"][f"site/{name}"] for name in ("note", "late")} == {"kept"}
    assert [volume["name"] for volume in pod["spec"]["volumes"]].count("site") == 1
    site.stop("ada")
    eventually(lambda: site.ours() == NONE)
    # Each once.
    start = ["pre_spawn", "_start", "modify_pod", "_make_create_pod_request", "after_pod_created"]
    assert calls(site.hub) == [*start, "post_stop"]


def test_a_site_hook_that_fails_leaves_nothing(site: Site) -> None:
    assert "the site's own hook failed" in site.fails("unlucky") + site.hub.log
    eventually(lambda: site.ours() == NONE and not site.names())


@pytest.mark.both_hubs
def test_what_a_refresh_brings_reaches_the_server_also_after_a_restart(site: Site) -> None:
    site.ready("bea")
    assert "access_token" not in site.files(site.pod("bea"))
    token = site.token_of("bea")
    for value in ("first", "second"):
        (site.hub.directory / "token").write_text(value)
        site.hub.api("GET", "/user", token=token)
        eventually(lambda value=value: site.files(site.pod("bea")).get("access_token", b"").strip() == value.encode())
        site.restart()
    (site.hub.directory / "token").unlink()


def test_required_credentials_that_cannot_be_minted_make_no_pod(
    plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = SITE + INSTALL + 'c.Facility.required = ["bearer"]\n'
    with open_site(plane, tmp_path_factory, config) as site:
        assert "access token" in site.fails("ada")
        assert site.list("pods") == []


@pytest.mark.both_hubs
def test_with_another_authenticator_a_restarted_hub_renews_and_sweeps_before_anybody_spawns(
    plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_site(plane, tmp_path_factory, SITE + INSTALL + INSTALL + STOCK) as site:
        site.ready("ada")
        site.ready("bea")
        left = site.pod("bea")
        site.stop("bea")
        eventually(lambda: site.names() == {site.pod("ada")["metadata"]["name"]})
        site.hub.stop()
        site.make_half(left)
        token = site.files(site.pod("ada"))["xcache_token"]
        site.hub.start()
        eventually(lambda: left["metadata"]["name"] not in site.names())
        for _ in range(2):
            eventually(lambda before=token: site.files(site.pod("ada"))["xcache_token"] != before)
            token = site.files(site.pod("ada"))["xcache_token"]
        assert site.hub.api("GET", "/users/ada").json()["servers"][""]["ready"]
        assert "Traceback" not in site.hub.log


def test_with_another_authenticator_what_a_killed_hub_left_half_made_is_removed_by_the_next(
    plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_site(plane, tmp_path_factory, SITE + INSTALL + STOCK, pods=False) as site:
        site.begin("ada")  # and its pod never runs
        eventually(site.has_one_start)
        site.hub.stop(signal.SIGKILL)
        secret = site.of(site.pod("ada"))["Secret"]["metadata"]["name"]
        plane.request("DELETE", f"{SECRETS.format(site.namespace)}/{secret}")  # as if it had died before this
        site.hub.start()  # and not ended before it has begun: Python may wait for ever for what was being started
        eventually(lambda: site.names() == set() and site.ours() == NONE)


def test_with_another_authenticator_a_setting_that_cannot_work_is_one_line_at_the_hubs_start(
    make_hub: MakeHub, tmp_path: Path
) -> None:
    wrong = 'c.KubernetesDelivery.fils = "mount"\nc.Keeper.recheck_intervall = 60\n'
    hub = make_hub(facility(tmp_path) + SITE + INSTALL + STOCK + wrong)
    hub.begin()
    assert hub.process is not None
    assert hub.process.wait(60) != 0
    eventually(lambda: "Did you mean files?" in hub.log and "Did you mean recheck_interval?" in hub.log)
    assert "Traceback" not in hub.log


def test_a_hook_or_a_class_that_is_set_after_the_line_counts_too(
    plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    after = 'c.SiteSpawner.pre_spawn_hook = lambda spawner: tell("another")\n'
    with open_site(plane, tmp_path_factory, INSTALL + SITE + after) as site:
        site.ready("ada")
        assert "xcache_token" in site.files(site.pod("ada"))
        assert calls(site.hub)[0] == "another"


@pytest.mark.both_hubs
def test_hooks_for_a_spawner_without_pods_are_refused_at_the_hubs_start(make_hub: MakeHub, tmp_path: Path) -> None:
    hub = make_hub(facility(tmp_path) + 'c.JupyterHub.spawner_class = "simple"\n' + INSTALL)
    hub.begin()
    assert hub.process is not None
    assert hub.process.wait(60) != 0
    eventually(lambda: "is for KubeSpawner and its subclasses, not for SimpleLocalProcessSpawner" in hub.log)


def test_hooks_beside_our_own_spawner_are_refused_at_the_hubs_start(make_hub: MakeHub, tmp_path: Path) -> None:
    hub = make_hub(facility(tmp_path) + 'c.JupyterHub.spawner_class = "casa"\n' + INSTALL)
    hub.begin()
    assert hub.process is not None
    assert hub.process.wait(60) != 0
    eventually(lambda: "casa_hub.hooks.install(c) does what CasaSpawner does already" in hub.log)


def test_credentials_that_nothing_delivers_are_refused_at_the_hubs_start(make_hub: MakeHub, tmp_path: Path) -> None:
    hub = make_hub(facility(tmp_path) + SITE)
    hub.begin()
    assert hub.process is not None
    assert hub.process.wait(60) != 0
    eventually(lambda: "servers of SiteSpawner would get none of Facility.credentials" in hub.log)
