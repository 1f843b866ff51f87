"""What the other tests rely on: the API server, its admission and the garbage collector are the real ones."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.kubernetes.api import Api, KubernetesError, eventually

POD = {"containers": [{"name": "main", "image": "none.test/none:1"}]}


def make_pod(plane: Api, namespace: str, name: str = "jupyter-ada") -> dict[str, Any]:
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": POD}
    return dict(plane.request("POST", f"/api/v1/namespaces/{namespace}/pods", body))


def test_what_a_pod_owns_goes_when_the_pod_goes(plane: Api, namespace: str) -> None:
    core = f"/api/v1/namespaces/{namespace}"
    pod = make_pod(plane, namespace)
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "jupyter-ada", "uid": pod["metadata"]["uid"]}
    owned = {"name": "jupyter-ada", "ownerReferences": [owner]}
    route = {"entryPoints": ["dask"], "routes": [{"match": "HostSNI(`ada.test`)", "services": []}]}
    objects: dict[str, dict[str, Any]] = {
        f"{core}/secrets/jupyter-ada": {"apiVersion": "v1", "kind": "Secret", "metadata": owned},
        f"{core}/services/jupyter-ada": {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": owned,
            "spec": {"selector": {"user": "ada"}, "ports": [{"port": 8786}]},
        },
        f"/apis/traefik.io/v1alpha1/namespaces/{namespace}/ingressroutetcps/jupyter-ada": {
            "apiVersion": "traefik.io/v1alpha1",
            "kind": "IngressRouteTCP",
            "metadata": owned,
            "spec": route,
        },
    }
    for path, body in objects.items():
        plane.apply(path, body)
    plane.request("DELETE", f"{core}/pods/jupyter-ada")
    eventually(lambda: all(plane.gone(path) for path in objects))


def test_a_field_of_another_manager_is_not_taken_unasked(plane: Api, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps/shared"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": {"a": "1"}}
    plane.apply(path, body, manager="one")
    with pytest.raises(KubernetesError, match='conflict with "one"') as caught:
        plane.apply(path, body | {"data": {"a": "2"}}, manager="two", force=False)
    assert caught.value.status == 409
    assert plane.request("GET", path)["data"] == {"a": "1"}


def test_an_account_may_only_what_its_role_says(plane: Api, namespace: str) -> None:
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    plane.make_account("hub", namespace, rules)
    token = plane.token_for("hub", namespace)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    assert plane.request("GET", pods, token=token)["items"] == []
    for method, path in (
        ("DELETE", f"{pods}/x"),
        ("GET", f"/api/v1/namespaces/{namespace}/secrets"),
        ("GET", "/api/v1/pods"),
    ):
        with pytest.raises(KubernetesError, match=f"system:serviceaccount:{namespace}:hub") as caught:
            plane.request(method, path, token=token)
        assert caught.value.status == 403


def test_pod_security_refuses_what_is_not_restricted(plane: Api) -> None:
    namespace = plane.make_namespace({"pod-security.kubernetes.io/enforce": "restricted"})
    with pytest.raises(KubernetesError, match="violates PodSecurity") as caught:
        make_pod(plane, namespace)
    assert caught.value.status == 403
    plane.delete_namespace(namespace)
