"""What a hub finds of the one before it: at a real JupyterHub with a Kubernetes in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery
from casa_hub.delivery.kubernetes.manifests import Object
from casa_hub.errors import CasaError
from casa_hub.hub import CasaHub
from tests.support.kubernetes.memory import MemoryAPI, refusal
from tests.support.kubernetes.memory_hub import MemoryHub, use
from tests.support.waiting import until_async

ALL = ["IngressRouteTCP", "Secret", "Service"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryHub:
    api = MemoryAPI()
    use(monkeypatch, api)
    return MemoryHub(tmp_path, 'c.JupyterHub.spawner_class = "casa"\n', api)


@asynccontextmanager
async def looked(hub: MemoryHub) -> AsyncIterator[KubernetesDelivery]:
    """The hub, when it has looked for the first time."""
    async with hub.running():
        delivery: KubernetesDelivery = hub.spawner("nobody").casa_server.delivery
        leftovers = delivery._leftovers
        assert leftovers is not None
        await until_async(leftovers._looked.is_set)
        yield delivery


async def collected(hub: MemoryHub, *, dry_run: bool) -> dict[str, str]:
    found = await hub.app.spawner_class.collect_garbage(CasaHub.of(hub.app), dry_run=dry_run)
    return {one.thing: one.why for one in found}


def told() -> float | None:
    """How many leftovers the metrics tell of."""
    return REGISTRY.get_sample_value("casa_hub_leftovers")


async def interrupted(hub: MemoryHub) -> Any:
    """A server whose hub is killed before it has an address."""
    async with hub.running():
        spawner = await hub.start("ada")
        spawner.orm_spawner.server.ip = ""
        spawner.orm_spawner.state = {}
        hub.app.db.commit()


async def test_a_start_that_was_interrupted_is_removed_if_something_of_it_is_missing(hub: MemoryHub) -> None:
    await interrupted(hub)
    hub.api.remove("Secret")
    async with looked(hub):
        assert hub.api.there == {}


async def test_a_start_that_was_interrupted_and_has_all_is_kept(hub: MemoryHub) -> None:
    await interrupted(hub)
    async with looked(hub):
        assert hub.api.kinds() == ALL


async def test_an_api_server_that_cannot_say_costs_nobody_the_server(hub: MemoryHub) -> None:
    async def fail(_: Object) -> None:
        raise refusal(None)

    await interrupted(hub)
    hub.api.remove("Secret")
    hub.api.before["get", "Service"] = fail
    async with looked(hub) as delivery:
        assert hub.api.kinds() == ["IngressRouteTCP", "Service"]
        assert told() == 1
        hub.api.before.clear()
        assert delivery._leftovers is not None
        await delivery._leftovers._look()
        assert hub.api.there == {}
        assert told() == 0


async def test_a_pod_whose_server_has_stopped_is_removed_and_an_unknown_servers_only_on_demand(hub: MemoryHub) -> None:
    async with hub.running():
        for name in ("ada", "bob", "eve"):
            spawner = await hub.start(name)
            if name != "eve":
                spawner.orm_spawner.server = None
                spawner.orm_spawner.state = {}
        hub.app.db.delete(hub.spawner("bob").user.orm_user)
        hub.app.db.commit()
    async with looked(hub):
        assert sorted(name for kind, _, name in hub.api.there if kind == "Pod") == ["jupyter-bob", "jupyter-eve"]
        assert await collected(hub, dry_run=True) == {
            "Pod jupyter/jupyter-bob": "server '' of bob isn't in this hub's database"
        }
        assert told() == 1
        assert len(await collected(hub, dry_run=False)) == 1
        assert told() == 0
        assert hub.api.one("Pod")["metadata"]["name"] == "jupyter-eve"


async def test_objects_whose_pod_is_gone_are_collected(hub: MemoryHub) -> None:
    async with looked(hub):
        await hub.start("ada")
        hub.api.remove("Pod")  # as kubectl delete --cascade=orphan
        found = await collected(hub, dry_run=False)
        assert set(found.values()) == {"its pod is gone"}
        assert len(found) == len(ALL)
        assert hub.api.there == {}


async def test_a_pod_that_could_not_be_stopped_is_removed_later(hub: MemoryHub) -> None:
    async def fail(_: Object) -> None:
        raise refusal(503)

    async with looked(hub) as delivery:
        spawner = await hub.start("ada")
        hub.api.before["delete", "Pod"] = fail
        with pytest.raises(CasaError):
            await spawner.user.stop()
        hub.api.before.clear()
        assert [kind for kind, _, _ in hub.api.there] == ["Pod"]
        spawner.orm_spawner.server = None
        hub.app.db.commit()
        assert delivery._leftovers is not None
        await delivery._leftovers._look()
        assert hub.api.there == {}
