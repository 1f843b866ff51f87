"""The demo facility with its servers on Kubernetes: `make demo-kubernetes`.

    python -m tests.support.kubernetes.demo [--check]

The facility of `casa_hub.demo`, and the same check, but servers are pods of a one-node cluster. Hub, identity provider,
XCache, HTCondor and Traefik run beside it in the node's network, which has no way out; doors lead from this machine's
loopback addresses to the hub, to the identity provider and to Traefik.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from casa_hub.cli import add_demo_options
from casa_hub.delivery.kubernetes.manifests import SERVER
from casa_hub.demo.accounts import DOMAIN
from casa_hub.demo.doors import Doors
from casa_hub.demo.facility import QUICKSTART, Facility
from casa_hub.demo.names import HostNames
from casa_hub.demo.run import run
from casa_hub.demo.traefik import DASK_PORT, DASK_WORKER_PORT, Traefik
from casa_hub.errors import CasaError
from casa_hub.naming import Server
from tests.support.kubernetes import build
from tests.support.kubernetes.api import eventually
from tests.support.kubernetes.cluster import NODE_ADDRESS, POD_CIDR, Cluster, cgroup_roots
from tests.support.kubernetes.definitions import TRAEFIK_KINDS, definitions
from tests.support.kubernetes.hub import hub_account

NAMESPACE = "jupyterhub"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
#: Of each of these a running server has one, annotated with whose it is.
KINDS = (
    f"{CORE}/pods",
    f"{CORE}/secrets",
    f"{CORE}/services",
    f"/apis/traefik.io/v1alpha1/namespaces/{NAMESPACE}/ingressroutetcps",
)
#: Where pods find the ConfigMap of this name: the notebook, and whom they trust.
SITE, SITE_DIRECTORY = "site", "/etc/demo"
#: Of Traefik's ClusterRole, what its provider `kubernetesCRD` needs for one namespace.
TRAEFIK_RULES = [
    {"apiGroups": [""], "resources": ["services", "secrets", "configmaps"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    {
        "apiGroups": ["traefik.io"],
        "resources": [f"{kind.lower()}s" for kind in TRAEFIK_KINDS],
        "verbs": ["get", "list", "watch"],
    },
]
#: Seconds: longer than any demo.
LONG = 365 * 24 * 3600


class KubernetesFacility(Facility):
    """Servers are pods; the hub has the rights of the chart's Role and of ``helm-values/role.yaml``."""

    name = "casa-hub-demo-kubernetes"
    config = "kubernetes_config.py"
    peers_address, xcache_name = NODE_ADDRESS, f"xcache.{DOMAIN}"
    more_names = MappingProxyType({xcache_name: NODE_ADDRESS})
    xcache_clients = (f"{POD_CIDR.split('.0.')[0]}.*",)

    def _home(self, stack: ExitStack) -> None:
        self._progress("Kubernetes: one node, in namespaces of its own")
        work_dir = self.directory / "cluster"
        shutil.rmtree(work_dir, ignore_errors=True)
        self.cluster = Cluster(
            **build.node_parts(), work_dir=work_dir, crds=definitions(), wildcards={DOMAIN: NODE_ADDRESS}
        )
        stack.enter_context(self.cluster)
        self.names = HostNames(self.directory / "hosts")  # XCache isn't where this machine may have *.localhost
        with self.network():
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
            self.cluster.plane.apply(f"/api/v1/namespaces/{NAMESPACE}", body)
            eventually(lambda: self.cluster.plane.request("GET", f"{CORE}/serviceaccounts/default"))

    @contextmanager
    def network(self) -> Iterator[None]:
        with self.cluster.network():
            yield

    def _inside(self, *command: str) -> list[str]:
        return self.cluster.inside(*command)

    def _doors(self, stack: ExitStack) -> None:
        ports = {urlsplit(url).port or 80 for url in (self.url, self.issuer)}
        doors = {("127.0.0.1", port): ("127.0.0.1", port) for port in ports}
        doors |= {(self.address, port): (NODE_ADDRESS, port) for port in (DASK_PORT, DASK_WORKER_PORT)}
        stack.enter_context(Doors(doors, self.network))

    def _traefik(self, stack: ExitStack) -> None:
        self._progress("Traefik")
        provider = {
            "providers.kubernetesCRD": "true",
            "providers.kubernetesCRD.namespaces": NAMESPACE,
            "providers.kubernetesCRD.disableClusterScopeResources": "true",
        }
        self.cluster.plane.make_account("traefik", NAMESPACE, TRAEFIK_RULES)
        # At all addresses, for jobs of the farm know the one that it has outside.
        where = self.directory / "traefik"
        environment = self._account("traefik")
        stack.enter_context(Traefik(where, address="0.0.0.0", provider=provider, environment=environment))

    def _hub_environment(self) -> dict[str, str]:
        hub_account(self.cluster.plane, NAMESPACE)
        return self._account("hub")

    def _account(self, name: str) -> dict[str, str]:
        """To be this ServiceAccount."""
        plane = self.cluster.plane
        token = {"token": plane.token_for(name, NAMESPACE, LONG)}
        return {"KUBECONFIG": str(plane.write_kubeconfig(self.directory / f"{name}.kubeconfig", token, NAMESPACE))}

    def _home_settings(self) -> dict[str, Any]:
        data = {"quickstart.ipynb": QUICKSTART.read_text(encoding="utf-8")}
        if self.xcache is not None:
            data |= {path.name: path.read_text() for path in self.xcache.tls.ca_directory.iterdir()}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": SITE}, "data": data}
        self.cluster.plane.apply(f"{CORE}/configmaps/{SITE}", body)
        return {
            "namespace": NAMESPACE,
            "image": build.IMAGE,
            "config_map": SITE,
            "site_directory": SITE_DIRECTORY,
            "hub_address": NODE_ADDRESS,
        }

    def _image_environment(self) -> dict[str, str]:
        # All may write to the directory of a volume, as its mode has it: XRootD trusts nobody in such a one.
        return {"X509_CERT_DIR": f"{SITE_DIRECTORY}/..data"}

    def about_servers(self) -> list[str]:
        plane = self.cluster.plane
        kubectl = [plane.program, f"--kubeconfig={plane.kubeconfig}", f"--namespace={NAMESPACE}", "get"]
        kubectl.append("pods,secrets,services,ingressroutetcps.traefik.io")
        return [
            f"Keys, logs and the image's files are in {self.directory}, which may be removed after the end;",
            "a home goes with its pod. To look at the cluster:",
            f"  {' '.join(self.cluster.inside(*kubectl))}",
        ]

    def server_runs(self, name: str) -> bool:
        found = [self._objects(kind, name) for kind in KINDS]
        return list(map(len, found)) == [1] * len(KINDS) and found[0][0]["status"]["phase"] == "Running"

    def left_of(self, name: str) -> list[str]:
        def left() -> list[str]:
            return [f"{kind}/{each['metadata']['name']}" for kind in KINDS for each in self._objects(kind, name)]

        try:
            eventually(lambda: not left())  # Kubernetes collects what the pod owned
        except AssertionError:
            return left()
        return []

    def left(self) -> list[str]:
        return [str(group) for root in cgroup_roots() if (group := root / self.cluster.cgroup).exists()]

    def _objects(self, kind: str, name: str) -> list[dict[str, Any]]:
        """Objects of this user's server."""
        with self.network():
            found = self.cluster.plane.request("GET", kind)["items"]
        whose = Server("demo", name).identity
        return [each for each in found if each["metadata"].get("annotations", {}).get(SERVER) == whose]


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo-kubernetes", description=__doc__)
    add_demo_options(parser)
    try:
        return run(parser.parse_args(), KubernetesFacility)
    except CasaError as error:
        print(f"demo-kubernetes: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
