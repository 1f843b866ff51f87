"""What tests do with servers of a hub on the control plane, and see of them."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.hub import Hub
from tests.support.kubernetes.api import MERGE, Api, eventually
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.facility import facility
from tests.support.kubernetes.hub import kubernetes_hub
from tests.support.kubernetes.pods import RunningPods

SECRETS = "/api/v1/namespaces/{}/secrets"
SERVICES = "/api/v1/namespaces/{}/services"
ROUTES = "/apis/traefik.io/v1alpha1/namespaces/{}/ingressroutetcps"
#: What a server has beside its pod.
KINDS = {"Secret": SECRETS, "Service": SERVICES, "IngressRouteTCP": ROUTES}
NONE: dict[str, list[Any]] = {kind: [] for kind in KINDS}

#: Lets the tests' service be an operator's (`casa_hub.web.operations`).
OPERATOR = """
from casa_hub.web import operations
c.JupyterHub.extra_handlers = operations.handlers
c.JupyterHub.load_roles.append({"name": "operator", "services": ["tests"], "scopes": [operations.SCOPE]})
"""

Event = dict[str, Any]
#: By kind.
Objects = dict[str, list[dict[str, Any]]]


@dataclass
class Site:
    """A hub, and the namespace with the pods of its servers."""

    plane: Api
    namespace: str
    hub: Hub

    def start(self, user: str, server: str = "", options: Mapping[str, Any] | None = None) -> list[Event]:
        """Start a server. What its spawn page is told until it is ready, or why it isn't."""
        self.begin(user, server, options)
        return self.progress(user, server)

    def begin(self, user: str, server: str = "", options: Mapping[str, Any] | None = None) -> None:
        self.make_user(user)
        answer = self.hub.api("POST", _path(user, server), json=dict(options or {}))
        assert answer.status_code in {201, 202}, answer.text

    def make_user(self, user: str) -> None:
        if self.hub.api("GET", f"/users/{quote(user, safe='')}").status_code == 404:
            made = self.hub.api("POST", f"/users/{quote(user, safe='')}")
            assert made.status_code in {201, 409}, made.text  # 409: made by another thread

    def progress(self, user: str, server: str = "") -> list[Event]:
        lines = self.hub.api("GET", _path(user, server) + "/progress").text.splitlines()
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    def ready(self, user: str, server: str = "", options: Mapping[str, Any] | None = None) -> list[Event]:
        """Start a server, which must become ready."""
        events = self.start(user, server, options)
        assert events[-1].get("ready"), (events, self.hub.log[-20000:])
        return events

    def fails(self, user: str, server: str = "", options: Mapping[str, Any] | None = None) -> str:
        """Start a server, which must fail. What the user reads, now or on her page."""
        self.make_user(user)
        since = len(self.hub.log)
        answer = self.hub.api("POST", _path(user, server), json=dict(options or {}))
        if answer.status_code >= 400:
            self.settle(user, server)
            return str(answer.json()["message"])
        events = self.progress(user, server)
        self.settle(user, server)
        if not events:  # it failed before we asked
            assert "is not starting" in self.hub.log[since:]
            return self.hub.log[since:]
        assert events[-1].get("failed"), events
        return str(events[-1]["message"])

    def settle(self, user: str, server: str = "") -> None:
        """Wait until the hub has nothing to do with a server any more."""

        def settled() -> bool:
            servers = self.hub.api("GET", f"/users/{quote(user, safe='')}").json()["servers"]
            return server not in servers or not servers[server]["pending"]

        eventually(settled)

    def stop(self, user: str, server: str = "") -> None:
        assert self.hub.api("DELETE", _path(user, server)).status_code in {202, 204}
        self.settle(user, server)

    def end(self, user: str, server: str = "") -> None:
        """The server's pod ends by itself, and the hub sees it (at its next poll: `Spawner.poll_interval`)."""
        path = f"{self.pods}/{self.pod(user, server)['metadata']['name']}/status"
        ended = {"name": "notebook", "image": "", "imageID": "", "ready": False, "restartCount": 0}
        ended["state"] = {"terminated": {"exitCode": 1, "reason": "Error"}}
        body = {"status": {"phase": "Failed", "containerStatuses": [ended]}}
        self.plane.request("PATCH", path, body, content_type=MERGE)

        def seen() -> bool:
            servers = self.hub.api("GET", f"/users/{quote(user, safe='')}").json()["servers"]
            return server not in servers or servers[server]["stopped"]

        eventually(seen)
        self.settle(user, server)

    def names(self) -> set[str]:
        """Names of all pods."""
        return {pod["metadata"]["name"] for pod in self.list("pods")}

    @property
    def pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    def pod(self, user: str, server: str = "") -> dict[str, Any]:
        """The pod of a user's server, by KubeSpawner's own annotations."""
        [pod] = [
            pod
            for pod in self.list("pods")
            if (pod["metadata"]["annotations"].get("hub.jupyter.org/username")) == user
            and pod["metadata"]["annotations"].get("hub.jupyter.org/servername", "") == server
        ]
        return pod

    def list(self, plural: str) -> list[dict[str, Any]]:
        """Objects of a core kind."""
        items: list[dict[str, Any]] = self.plane.request("GET", f"/api/v1/namespaces/{self.namespace}/{plural}")[
            "items"
        ]
        return items

    def ours(self, start_id: str = "") -> Objects:
        """What casa_hub has made, by kind; of one start, or of all."""
        selector = "app.kubernetes.io/managed-by=casa-hub" + (f",casa-hub/start-id={start_id}" if start_id else "")
        return {
            kind: self.plane.request("GET", f"{path.format(self.namespace)}?labelSelector={selector}")["items"]
            for kind, path in KINDS.items()
        }

    def has_one_start(self) -> bool:
        """Whether one start has all of its objects, and nothing else is there."""
        return [len(objects) for objects in self.ours().values()] == [1] * len(KINDS)

    def of(self, pod: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What a pod owns: one object of each kind."""
        found = self.ours(pod["metadata"]["labels"]["casa-hub/start-id"])
        for objects in found.values():
            [one] = objects
            assert [owner["uid"] for owner in one["metadata"]["ownerReferences"]] == [pod["metadata"]["uid"]]
        return {kind: objects[0] for kind, objects in found.items()}

    def files(self, pod: Mapping[str, Any]) -> dict[str, bytes]:
        """The secret files of a pod's server."""
        data = self.of(pod)["Secret"]["data"]
        return {key: base64.b64decode(value) for key, value in data.items()}

    def make_half(self, pod: Mapping[str, Any]) -> None:
        """A pod (like one that was started and stopped) as if its hub had died right after the creation."""
        metadata = {key: pod["metadata"][key] for key in ("name", "annotations", "labels")}
        spec = {key: pod["spec"][key] for key in ("containers", "initContainers", "volumes")}
        for container in spec["containers"] + spec["initContainers"]:  # without what Kubernetes added
            mounts = container["volumeMounts"]
            container["volumeMounts"] = [mount for mount in mounts if mount["name"].startswith("casa-hub")]
        spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"].startswith("casa-hub")]
        self.plane.request("POST", self.pods, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        path = f"{self.pods}/{metadata['name']}"
        # It is reported as running like all the others; a kubelet would wait for the Secret.
        eventually(lambda: self.plane.request("GET", path)["status"]["phase"] == "Running")
        self.plane.request("PATCH", f"{path}/status", {"status": {"phase": "Pending"}}, content_type=MERGE)

    def collect(self, *, dry_run: bool = False) -> dict[str, str]:
        """`casa-hub gc`, at a hub with `OPERATOR`: what was found, and why."""
        answer = self.hub.api("POST", "/casa-hub/gc", json={"dry_run": dry_run})
        assert answer.status_code == 200, answer.text
        found = answer.json()["found"]
        assert not [one for one in found if one["error"]], found
        return {one["thing"]: one["why"] for one in found}

    def token_of(self, user: str) -> str:
        """A JupyterHub token with which the user makes requests."""
        return str(self.hub.api("POST", f"/users/{quote(user, safe='')}/tokens", json={}).json()["token"])

    def clear(self) -> None:
        """Leave nothing of a test to the next one, also after a failure."""
        for user in self.hub.api("GET", "/users").json():
            for server in user["servers"]:
                self.stop(user["name"], server)
        for pod in self.list("pods"):
            self.plane.request("DELETE", f"{self.pods}/{pod['metadata']['name']}?gracePeriodSeconds=0")
        eventually(lambda: self.ours() == NONE)

    def restart(self) -> None:
        self.hub.stop()
        self.hub.start()


def _path(user: str, server: str) -> str:
    # With an empty name, the default server.
    return f"/users/{quote(user, safe='')}/servers/{quote(server, safe='')}"


@contextlib.contextmanager
def open_site(
    plane: Api,
    directories: pytest.TempPathFactory,
    config: str = "",
    *,
    pods: bool = True,
    namespace: str | None = None,
    namespace_labels: Mapping[str, str] | None = None,
    kubeconfig: Path | None = None,
    running: bool = True,
) -> Iterator[Site]:
    """A hub with `CasaSpawner`, the facility of `tests.support.kubernetes.facility`, and more configuration.

    Args:
        plane: the cluster.
        directories: for the hub's files.
        config: Python text.
        pods: whether pods are reported as running (`tests.support.kubernetes.pods`).
        namespace: of the pods, if it isn't to be a new one.
        namespace_labels: those of a new one.
        kubeconfig: whom the hub is to the API server. Default: an administrator.
        running: whether the hub is started.
    """
    if not isinstance(plane, ControlPlane):
        pytest.skip("reports pods as running, and CASA_HUB_KUBECONFIG names a cluster where others do that")
    name = namespace or plane.make_namespace(namespace_labels)
    directory = directories.mktemp("site")
    (directory / "keys").mkdir()
    (directory / "hub").mkdir()
    text = facility(directory / "keys") + config
    hub = kubernetes_hub(directory / "hub", plane, name, spawner_class="casa", config=text, kubeconfig=kubeconfig)
    with contextlib.ExitStack() as stack:
        if namespace is None:
            stack.callback(plane.delete_namespace, name)
        if pods:
            stack.enter_context(RunningPods(plane, name, directory))
        stack.callback(hub.stop)
        if running:
            hub.start()
        yield Site(plane, name, hub)
