"""Servers in pods from their start to their end, at a real JupyterHub with a Kubernetes in memory.

All of it goes through `CasaSpawner`, or through a site's own class with credentials added (`casa_hub.hooks`): one path.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from casa_hub.delivery.kubernetes.manifests import RECORD, SERVER, START_ID, Object
from casa_hub.errors import CasaError
from tests.support.kubernetes.memory import MemoryAPI, refusal
from tests.support.kubernetes.memory_hub import MemoryHub, use

OURS = 'c.JupyterHub.spawner_class = "casa"\n'
THEIRS = """
from kubespawner import KubeSpawner

calls = []

class SiteSpawner(KubeSpawner):
    calls = calls

    async def _start(self):
        calls.append("_start")
        return await super()._start()

    async def _make_create_pod_request(self, pod, request_timeout):
        calls.append("_make_create_pod_request")
        pod.metadata.annotations["site/late"] = "kept"
        return await super()._make_create_pod_request(pod, request_timeout)

def modify_pod(spawner, pod):
    calls.append("modify_pod")
    return pod

import casa_hub.hooks
casa_hub.hooks.install(c)
c.JupyterHub.spawner_class = SiteSpawner
c.SiteSpawner.pre_spawn_hook = lambda spawner: calls.append("pre_spawn")
c.KubeSpawner.modify_pod_hook = modify_pod
c.KubeSpawner.after_pod_created_hook = lambda spawner, pod: calls.append("after_pod_created")
c.Spawner.post_stop_hook = lambda spawner: calls.append("post_stop")
"""
ALL = ["IngressRouteTCP", "Secret", "Service"]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> MemoryAPI:
    made = MemoryAPI()
    use(monkeypatch, made)
    return made


@pytest.fixture(params=[OURS, THEIRS], ids=["casa", "theirs"])
def made(request: pytest.FixtureRequest, tmp_path: Path, api: MemoryAPI) -> MemoryHub:
    return MemoryHub(tmp_path, request.param, api)


@pytest.fixture
async def hub(made: MemoryHub) -> AsyncIterator[MemoryHub]:
    async with made.running() as running:
        yield running


async def refuse(_: Object) -> None:
    raise refusal(403)


def record(one: Object) -> Any:
    return json.loads(one["metadata"]["annotations"][RECORD])


async def test_a_server_has_its_credentials_from_the_start_to_the_end(hub: MemoryHub) -> None:
    spawner = await hub.start("ada")
    pod, secret = hub.api.one("Pod"), hub.api.one("Secret")
    assert hub.api.kinds() == ALL
    assert "xcache_token" in secret["data"]
    assert {one["metadata"]["ownerReferences"][0]["uid"] for one in hub.api.there.values() if one is not pod} == {
        pod["metadata"]["uid"]
    }
    assert pod["metadata"]["annotations"][SERVER] == json.dumps(["", "ada", ""])
    # The Secret follows the pod at once, before anything else is asked.
    first = hub.api.asked.index(("create", "Pod"))
    assert hub.api.asked[first + 1] == ("apply", "Secret")
    told = hub.told(spawner)
    assert any("valid until" in sentence for sentence in told), told
    assert told[-1] == "Pod created, with what it needs"
    assert spawner.casa_server.running_start == pod["metadata"]["labels"][START_ID]
    assert spawner.get_state()["casa_start_id"] == spawner.casa_server.running_start
    await spawner.user.stop()
    assert hub.api.there == {}
    assert spawner.casa_server.running_start is None
    if hasattr(spawner, "calls"):
        start = ["pre_spawn", "_start", "modify_pod", "_make_create_pod_request", "after_pod_created"]
        assert spawner.calls == [*start, "post_stop"]
        assert pod["metadata"]["annotations"]["site/late"] == "kept"


async def test_a_start_without_its_secret_is_taken_down(hub: MemoryHub) -> None:
    hub.api.before["apply", "Secret"] = refuse
    with pytest.raises(CasaError):
        await hub.start("ada")
    assert hub.api.there == {}
    hub.api.before.clear()
    await hub.start("ada")
    assert hub.api.kinds() == ALL


async def test_what_a_start_could_not_have_is_told_and_brought_later(hub: MemoryHub) -> None:
    hub.api.before["apply", "Service"] = refuse
    spawner = await hub.start("ada")
    assert any(sentence.startswith("Starting without Service") for sentence in hub.told(spawner))
    assert hub.api.kinds() == ["IngressRouteTCP", "Secret"]
    assert await spawner.casa_server.bring_back(["Service"]) == {}
    assert hub.api.kinds() == ALL


async def test_a_renewal_replaces_files_and_record(hub: MemoryHub) -> None:
    spawner = await hub.start("ada")
    before = hub.api.one("Secret")["data"]["xcache_token"]
    holding = await spawner.casa_server.renew(["xcache"], force=True)
    assert hub.api.one("Secret")["data"]["xcache_token"] != before
    assert holding.record.order == 1 == record(hub.api.one("Secret"))["order"]
    assert (await spawner.casa_server.holding()).record == holding.record


async def test_after_an_answer_that_got_lost_a_renewal_looks_at_what_there_is(hub: MemoryHub) -> None:
    spawner = await hub.start("ada")

    async def lost(what: Object) -> None:
        raise refusal(None)

    hub.api.before["patch", "Secret"] = lost
    with pytest.raises(CasaError):
        await spawner.casa_server.renew(["xcache"], force=True)
    hub.api.before.clear()
    hub.api.asked.clear()
    assert (await spawner.casa_server.renew(["xcache"], force=True)).record.order == 1
    assert hub.api.asked == [("get", "Secret"), ("patch", "Secret")]


async def test_a_secret_that_was_deleted_is_made_anew_with_other_credentials(hub: MemoryHub) -> None:
    spawner = await hub.start("ada")
    before = hub.api.one("Secret")["data"]["xcache_token"]
    hub.api.remove("Secret")
    assert await spawner.casa_server.lacks(float("-inf")) == ["Secret"]
    assert await spawner.casa_server.bring_back(["Secret"]) == {}
    assert hub.api.one("Secret")["data"]["xcache_token"] != before
    assert (await spawner.casa_server.holding()).record.credentials.keys() == {"xcache", "dask"}


async def test_what_was_withdrawn_is_not_brought_back_also_by_the_next_hub(made: MemoryHub) -> None:
    async with made.running():
        spawner = await made.start("ada")
        await spawner.casa_server.withdraw()
        assert made.api.kinds() == []
        assert spawner.casa_server.known_holding() is None
        assert await spawner.casa_server.renew(["xcache"], force=True) is None
        assert await spawner.casa_server.lacks(float("-inf")) is None
    async with made.running():
        spawner = made.spawner("ada")
        assert spawner.casa_server.running_start is None
        assert await spawner.casa_server.bring_back(["Secret", "Service"]) == {}
        assert made.api.kinds() == []


async def test_a_restarted_hub_goes_on_with_what_runs(made: MemoryHub) -> None:
    async with made.running():
        spawner = await made.start("ada")
        first = spawner.casa_server.known_holding()
    async with made.running():
        spawner = made.spawner("ada")
        assert spawner.casa_server.known_holding() == first
        assert (await spawner.casa_server.renew(["xcache"], force=True)).record.order == 1


async def test_a_renamed_users_server_keeps_its_credentials_and_its_name(hub: MemoryHub) -> None:
    spawner = await hub.start("ada")
    spawner.user.name = "lovelace"
    hub.app.db.commit()
    assert spawner.casa_server.server.username == "ada"
    assert (await spawner.casa_server.renew(["xcache"], force=True)).record.order == 1
    with pytest.raises(CasaError, match="its user is now called lovelace"):
        await hub.spawner("ada").casa_server.mint()
    assert hub.api.kinds() == ALL


async def test_another_servers_pod_under_this_name_is_left_alone(hub: MemoryHub) -> None:
    spawner = await hub.start("ada")
    pod = hub.api.one("Pod")
    pod["metadata"]["annotations"][SERVER] = json.dumps(["", "bob", ""])
    pod["metadata"]["labels"] |= {START_ID: "b" * 32, "casa-hub/instance": "another"}
    assert not spawner.casa_server.has_pod()
    assert await spawner.poll() == 1
    with pytest.raises(CasaError, match="it is another server's"):
        await spawner.casa_server.end(1)
    assert hub.api.one("Pod") is pod
