"""CasaSpawner in a real JupyterHub, on a real API server with its garbage collector."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from casa_hub.naming import Server
from tests.support.hub import Hub
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.pods import RunningPods

KINDS = {
    "Secret": "/api/v1/namespaces/{}/secrets",
    "Service": "/api/v1/namespaces/{}/services",
    "IngressRouteTCP": "/apis/traefik.io/v1alpha1/namespaces/{}/ingressroutetcps",
}


def ours(plane: Api, namespace: str) -> dict[str, list[dict[str, Any]]]:
    """What casa_hub has made in the namespace, by kind."""
    selector = "?labelSelector=app.kubernetes.io/managed-by=casa-hub"
    return {kind: plane.request("GET", path.format(namespace) + selector)["items"] for kind, path in KINDS.items()}


def pod_of(plane: Api, namespace: str, name: str = "jupyter-ada") -> dict[str, Any]:
    pod: dict[str, Any] = plane.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
    return pod


def start(hub: Hub, user: str, server: str = "") -> list[dict[str, Any]]:
    """Start a server, and what its spawn page was told until it was ready (or failed)."""
    if hub.api("GET", f"/users/{user}").status_code == 404:
        assert hub.api("POST", f"/users/{user}").status_code == 201
    answer = hub.api("POST", f"/users/{user}/servers/{server}")
    assert answer.status_code in {201, 202}, answer.text
    return progress(hub, user, server)


def progress(hub: Hub, user: str, server: str = "") -> list[dict[str, Any]]:
    lines = hub.api("GET", f"/users/{user}/servers/{server}/progress").text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def stop(hub: Hub, user: str, server: str = "") -> None:
    assert hub.api("DELETE", f"/users/{user}/servers/{server}").status_code in {202, 204}
    eventually(lambda: server not in hub.api("GET", f"/users/{user}").json()["servers"])


@pytest.mark.both_hubs
def test_a_server_has_its_secret_service_and_route_while_its_pod_is_there(
    plane: Api, namespace: str, running_pods: RunningPods, casa_hub: Hub
) -> None:
    with casa_hub.running():
        assert start(casa_hub, "ada")[-1].get("ready"), casa_hub.log
        pod = pod_of(plane, namespace)
        found = ours(plane, namespace)
        assert {kind: len(objects) for kind, objects in found.items()} == dict.fromkeys(KINDS, 1)
        for [one] in found.values():
            metadata = one["metadata"]
            [owner] = metadata["ownerReferences"]
            assert owner == {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": "jupyter-ada",
                "uid": pod["metadata"]["uid"],
                "controller": True,
                "blockOwnerDeletion": False,
            }
            assert metadata["annotations"]["casa-hub/server"] == Server("", "ada").identity
            assert {entry["manager"] for entry in metadata["managedFields"]} == {"casa-hub"}
            assert metadata["name"].startswith("casa-ada-")
        [secret] = found["Secret"]
        files = {key: base64.b64decode(value) for key, value in secret["data"].items()}
        assert {"xcache_token", "condor_token", "ca.pem", "hostcert.pem", "usercert.pem"} <= set(files)
        [service] = found["Service"]
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()

        stop(casa_hub, "ada")
        eventually(lambda: ours(plane, namespace) == {kind: [] for kind in KINDS})
    assert not any(value.decode().strip() in casa_hub.log for key, value in files.items() if "token" in key)
