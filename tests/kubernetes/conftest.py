"""A real Kubernetes control plane, started once (three seconds) for all tests that want it; nothing of it is emulated.

Where it is not built (see `tests.support.kubernetes.build`): skipped with the reason, or failed when the environment
has CASA_HUB_REQUIRE_PEERS=1.

`plane`      tests.support.kubernetes.control_plane.ControlPlane: `.kubeconfig` (administrator's), `.request(...)`,
             `.apply(...)`, `.kubectl(...)`, `.make_account(...)`. There is no kubelet and no node.
`namespace`  name of a fresh namespace there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.kubernetes import build
from tests.support.kubernetes.api import Api
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.peers import require

try:
    from tests.support.kubernetes.definitions import definitions
except ImportError:  # until they are written: their names only

    def definitions() -> list[dict[str, Any]]:
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": anything}}}
        kinds = ["IngressRoute", "IngressRouteTCP", "IngressRouteUDP", "Middleware", "MiddlewareTCP", "TraefikService"]
        kinds += ["ServersTransport", "ServersTransportTCP", "TLSOption", "TLSStore"]
        return [
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{kind.lower()}s.traefik.io"},
                "spec": {
                    "group": "traefik.io",
                    "scope": "Namespaced",
                    "names": {"kind": kind, "plural": f"{kind.lower()}s", "singular": kind.lower()},
                    "versions": [{"name": "v1alpha1", "served": True, "storage": True, "schema": schema}],
                },
            }
            for kind in kinds
        ]


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    programs = require(build.programs)
    with ControlPlane(programs, tmp_path_factory.mktemp("plane") / "work", crds=definitions()) as running:
        yield running


@pytest.fixture
def namespace(plane: Api) -> Iterator[str]:
    name = plane.make_namespace()
    yield name
    plane.delete_namespace(name)
