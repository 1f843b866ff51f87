"""A real Kubernetes control plane, started once (three seconds) for all tests that want it; nothing of it is emulated.

Where it is not built (see `tests.support.kubernetes.build`): skipped with the reason, or failed when the environment
has CASA_HUB_REQUIRE_PEERS=1. CASA_HUB_KUBECONFIG=FILE takes a cluster of your own instead: what needs more of it than
its API is skipped, and what the tests make there is removed.

`plane`      tests.support.kubernetes.control_plane.ControlPlane: `.kubeconfig` (administrator's), `.request(...)`,
             `.apply(...)`, `.kubectl(...)`, `.make_account(...)`. There is no kubelet and no node. Or an `OwnCluster`.
`control_plane`  the same, and surely a ControlPlane.
`namespace`  name of a fresh namespace there.
`running_pods`  has the pods of `namespace` reported as running, and a server of theirs answers JupyterHub
             (tests.support.kubernetes.pods); a test that wants to see other states writes them itself.
`make_hub`   makes hubs, not yet started, whose pods are in `namespace`; they end with the test. Arguments:
             configuration text, and what `tests.support.kubernetes.hub.kubernetes_hub` takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub import Hub, all_ended
from tests.support.kubernetes import build
from tests.support.kubernetes.api import Api
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.definitions import definitions
from tests.support.kubernetes.hub import kubernetes_hub
from tests.support.kubernetes.own_cluster import OwnCluster
from tests.support.kubernetes.pods import RunningPods
from tests.support.peers import require

MakeHub = Callable[..., Hub]


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    work_dir = tmp_path_factory.mktemp("plane") / "work"
    own = os.environ.get("CASA_HUB_KUBECONFIG")

    def cluster() -> ControlPlane | OwnCluster:
        if own:
            return OwnCluster(Path(own).expanduser(), work_dir, crds=definitions()).__enter__()
        return ControlPlane(build.programs(), work_dir, crds=definitions()).__enter__()

    running = require(cluster)
    yield running
    running.__exit__()


@pytest.fixture
def control_plane(plane: Api) -> ControlPlane:
    """For a test that needs more of it than its API."""
    if not isinstance(plane, ControlPlane):
        pytest.skip("needs the insides of a control plane, and CASA_HUB_KUBECONFIG names somebody's own")
    return plane


@pytest.fixture
def namespace_labels() -> dict[str, str]:
    """Labels of `namespace`; a module may have its own."""
    return {}


@pytest.fixture
def namespace(plane: Api, namespace_labels: dict[str, str]) -> Iterator[str]:
    name = plane.make_namespace(namespace_labels)
    yield name
    plane.delete_namespace(name)


@pytest.fixture
def running_pods(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[RunningPods]:
    with RunningPods(control_plane, namespace, tmp_path) as pods:
        yield pods


@pytest.fixture
def make_hub(plane: Api, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeHub]:
    def make(config: str = "", **options: Any) -> Hub:
        hubs.append(kubernetes_hub(tmp_path_factory.mktemp("hub"), plane, namespace, config=config, **options))
        return hubs[-1]

    with all_ended() as hubs:
        yield make
