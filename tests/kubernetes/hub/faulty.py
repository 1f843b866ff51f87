"""A site whose hub reaches the API server through a proxy that goes wrong (`tests.support.kubernetes.fault_proxy`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.kubernetes.hub.servers import NONE, Site, open_site
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.fault_proxy import Answer, Fault, FaultProxy, Hold, Reset

#: Short times: what is never answered ends soon.
TIMES = """
c.KubeSpawner.k8s_api_request_timeout = 2
c.KubeSpawner.k8s_api_request_retry_timeout = 6
c.KubeSpawner.start_timeout = 40
c.KubeSpawner.http_timeout = 5
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0, "slow_stop_timeout": 0}
"""
#: Without its routes a server doesn't start.
ROUTES_REQUIRED = 'c.Facility.required = ["xcache", "dask"]\n'

#: Rights of the hub here: `test_permissions` is about them.
EVERYTHING = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]

#: Where the requests of a server's life go to.
POD, SECRET, SERVICE, ROUTE = r"/pods(\?|$)", r"/secrets/casa-", r"/services/casa-", r"/ingressroutetcps/casa-"
THIS_POD = r"/pods/[^/?]+(\?|$)"

#: Faults that pass.
PASSING: dict[str, Fault] = {
    "429": Answer(429, retry_after=1),
    "500": Answer(500),
    "503": Answer(503),
    "time-out": Hold(),
    "reset": Reset(),
    "answer lost": Reset(after=True),
    "answer late": Hold(after=True),
}


@dataclass
class Faulty(Site):
    """A site with the proxy."""

    proxy: FaultProxy

    def nothing_left(self, timeout: float = 60) -> None:
        """Wait until there are no pods, and none of our objects."""
        eventually(lambda: self.list("pods") == [] and self.ours() == NONE, timeout=timeout)

    def whole(self, user: str) -> dict[str, Any]:
        """The user's only pod, which owns one object of each kind."""
        pod = self.pod(user)
        self.of(pod)
        return pod


@contextlib.contextmanager
def open_faulty(plane: Api, directories: pytest.TempPathFactory, config: str = "", **options: Any) -> Iterator[Faulty]:
    """As `open_site`, with a proxy."""
    namespace = plane.make_namespace()
    try:
        with FaultProxy(plane, directories.mktemp("proxy")) as proxy:
            kubeconfig = proxy.kubeconfig(plane.make_account("hub", namespace, EVERYTHING))
            text = TIMES + config
            with open_site(plane, directories, text, namespace=namespace, kubeconfig=kubeconfig, **options) as site:
                try:
                    yield Faulty(**vars(site), proxy=proxy)
                finally:
                    proxy.clear()
                    proxy.come_back()
    finally:
        plane.delete_namespace(namespace)
