"""A real node with its control plane, started once (five seconds); each test here runs in the cluster's network.

Where it can't be had (not root, not built): skipped with the reason, or failed when the environment has
CASA_HUB_REQUIRE_PEERS=1. Nothing outside the cluster is reached from these tests, and nothing in it from others.

`cluster`    tests.support.kubernetes.cluster.Cluster: `.plane` is its API, `.exec(namespace, pod, ...)` runs a command
             in a pod. Fixtures of wider scope than a test that speak with it do so in `with cluster.network():`.
`plane`      the same `.plane`: `namespace`, `make_hub` and so on of the directory above are of this cluster here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.kubernetes import build
from tests.support.kubernetes.api import Api
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.definitions import definitions
from tests.support.peers import require


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    parts = require(build.node_parts)
    with Cluster(**parts, work_dir=tmp_path_factory.mktemp("cluster") / "work", crds=definitions()) as running:
        yield running


@pytest.fixture(autouse=True)
def in_its_network(cluster: Cluster) -> Iterator[None]:
    with cluster.network():
        yield


@pytest.fixture
def plane(cluster: Cluster) -> Api:
    return cluster.plane
