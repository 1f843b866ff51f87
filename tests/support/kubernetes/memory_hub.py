"""A real JupyterHub in this process, whose servers are pods in memory (`memory.MemoryAPI`) and run at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub import orm
from jupyterhub.app import JupyterHub
from jupyterhub.user import User
from kubespawner import KubeSpawner

from casa_hub.delivery.kubernetes import delivery as delivery_module
from casa_hub.delivery.kubernetes.manifests import Object
from tests.support.facility_config import credentials, make_keys
from tests.support.kubernetes.memory import MemoryAPI

BASE = """
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.db_url = "sqlite:///{directory}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{directory}/cookie_secret"
c.JupyterHub.cleanup_servers = False
c.JupyterHub.init_spawners_timeout = -1
c.KubeSpawner.events_enabled = False
c.KubeSpawner.namespace = "jupyter"
"""


class MemoryHub:
    """The hub; `api` is its Kubernetes, also when it is restarted."""

    def __init__(self, directory: Path, config: str, api: MemoryAPI) -> None:
        make_keys(directory)
        facility = credentials("xcache", "dask", keys=directory, required=())
        self._file = directory / "jupyterhub_config.py"
        self._file.write_text(BASE.format(directory=directory) + facility + config)
        self.api = api
        self.app: Any = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[MemoryHub]:
        before = asyncio.all_tasks()
        JupyterHub.clear_instance()
        self.app = JupyterHub.instance()
        try:
            await self.app.initialize(["--config", str(self._file)])
            yield self
        finally:
            for task in asyncio.all_tasks() - before - {asyncio.current_task()}:  # as the hub at its end
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
            self.app.db.close()
            JupyterHub.clear_instance()

    def spawner(self, name: str) -> Any:
        """That of a user's server; the user is made if there is none."""
        person = orm.User.find(self.app.db, name)
        if person is None:
            person = orm.User(name=name)
            self.app.db.add(person)
            self.app.db.commit()
        return self.app.users[person].spawners[""]

    async def start(self, name: str) -> Any:
        """Start a user's server."""
        spawner = self.spawner(name)
        await spawner.user.spawn()
        return spawner

    @staticmethod
    def told(spawner: Any) -> list[str]:
        """What the spawn page is told."""
        return [event["message"] for event in spawner._steps._events]


def use(monkeypatch: pytest.MonkeyPatch, api: MemoryAPI) -> None:
    """Let hubs of this process have `api` for their Kubernetes, and believe that servers answer."""

    async def watch(*_: Any, **__: Any) -> None:
        pass

    async def answers(_: User, spawner: Any) -> None:
        spawner._spawn_pending = False

    class Pods(Mapping[str, Object]):
        """As KubeSpawner's watch shows them."""

        def __getitem__(self, key: str) -> Object:
            namespace, name = key.split("/")
            return api.there["Pod", namespace, name]

        def __iter__(self) -> Any:
            return (f"{namespace}/{name}" for kind, namespace, name in list(api.there) if kind == "Pod")

        def __len__(self) -> int:
            return len(list(iter(self)))

    monkeypatch.setattr("kubespawner.spawner.load_config", lambda **_: None)
    monkeypatch.setattr(delivery_module, "KubernetesAPI", lambda *_: api)
    monkeypatch.setattr(KubeSpawner, "_start_watching_pods", watch)
    monkeypatch.setattr(KubeSpawner, "pod_reflector", SimpleNamespace(pods=Pods()))
    monkeypatch.setattr(User, "_wait_up", answers)
