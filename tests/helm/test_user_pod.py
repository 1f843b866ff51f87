"""A user's pod of each values file: what the chart's defaults would block is open, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.helm.conftest import FILES, VALUES, Probe, Render
from tests.helm.test_release import RESTRICTED
from tests.support.hub_pod import find
from tests.support.kubernetes.api import Api
from tests.support.policies import Peer, may_come, may_go

NAMESPACE = "facility"
XCACHE, CONDOR, SCHEDULER, WORKER, NOTEBOOK = 1094, 9618, 8786, 8788, 8888
TRAEFIK = {"app.kubernetes.io/name": "traefik"}
#: In each of the three private networks.
PRIVATE = ("10.1.2.3", "172.20.0.9", "192.168.7.7")


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


@pytest.fixture(params=FILES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pod(name: str, probe: Probe) -> dict[str, Any]:
    made: dict[str, Any] = probe(name)["pod"]
    return made


@pytest.fixture
def policies(name: str, render: Render) -> list[dict[str, Any]]:
    extra = yaml.safe_load((VALUES / "network-policy.yaml").read_text())
    return [*(one for one in render(name) if one["kind"] == "NetworkPolicy"), extra]


@pytest.fixture
def restricted(plane: Api) -> Iterator[str]:
    space = plane.make_namespace(RESTRICTED)
    yield space
    plane.delete_namespace(space)


def test_the_api_server_takes_it_in_a_restricted_namespace(pod: dict[str, Any], plane: Api, restricted: str) -> None:
    body = pod | {"metadata": pod["metadata"] | {"namespace": restricted}}
    plane.request("POST", f"/api/v1/namespaces/{restricted}/pods?dryRun=All&fieldValidation=Strict", body)


def test_no_container_has_more_rights_than_the_user(name: str, pod: dict[str, Any]) -> None:
    for container in containers(pod):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, container["name"]
        assert context["capabilities"] == {"drop": ["ALL"]}, container["name"]
        assert not context.get("privileged")
    assert [one["name"] for one in pod["spec"]["initContainers"]] == ["casa-hub-files"]


def test_the_files_are_the_users(name: str, pod: dict[str, Any]) -> None:
    """The notebook and the sidecar that writes its files are one user: the values', or whom OKD chooses."""
    users = {container["securityContext"].get("runAsUser") for container in containers(pod)}
    assert users == ({None} if name == "atlas" else {1000})
    group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
    assert group == {"cms": 1000, "atlas": None, "opendata": 100, "dev": 100}[name]
    (notebook,) = pod["spec"]["containers"]
    assert "/etc/cmsaf-secrets" in [mount["mountPath"] for mount in notebook["volumeMounts"]]


def test_images_start_as_they_are_meant_to(name: str, pod: dict[str, Any]) -> None:
    (notebook,) = pod["spec"]["containers"]
    assert notebook.get("args") == (None if name in {"cms", "atlas"} else ["jupyterhub-singleuser"])


def test_dask_is_reached_through_traefik_only(name: str, pod: dict[str, Any], policies: list[dict[str, Any]]) -> None:
    labels = pod["metadata"]["labels"]
    (notebook,) = pod["spec"]["containers"]
    named = {port["name"]: port["containerPort"] for port in notebook["ports"]}
    server = Peer(labels, NAMESPACE)

    def open_to(peer: Peer, port: int) -> bool:
        return may_come(policies, server, peer, port, named)

    home = NAMESPACE if name == "dev" else "traefik"
    traefik, others = Peer(TRAEFIK, home), Peer({"app": "other"}, home)
    neighbour, outside = Peer(labels, NAMESPACE), Peer(address="10.9.9.9")
    for port in (SCHEDULER, WORKER):
        assert open_to(traefik, port)
        assert not any(open_to(peer, port) for peer in (others, neighbour, outside, Peer(TRAEFIK, "elsewhere")))
    assert not open_to(traefik, NOTEBOOK)
    assert not open_to(neighbour, NOTEBOOK)


def test_the_hub_and_its_proxy_reach_the_notebook(
    name: str, pod: dict[str, Any], policies: list[dict[str, Any]], render: Render
) -> None:
    (notebook,) = pod["spec"]["containers"]
    named = {port["name"]: port["containerPort"] for port in notebook["ports"]}
    server = Peer(pod["metadata"]["labels"], NAMESPACE)
    for deployment in ("hub", "proxy"):
        labels = find(render(name), "Deployment", deployment)["spec"]["template"]["metadata"]["labels"]
        peer = Peer(labels, NAMESPACE)
        assert may_come(policies, server, peer, NOTEBOOK, named)
        assert may_go(policies, peer, server, NOTEBOOK)
        assert not may_come(policies, server, peer, SCHEDULER, named)


def test_servers_reach_xcache_and_the_pool_at_private_addresses(
    pod: dict[str, Any], policies: list[dict[str, Any]]
) -> None:
    server = Peer(pod["metadata"]["labels"], NAMESPACE)
    for address in PRIVATE:
        there = Peer(address=address)
        assert all(may_go(policies, server, there, port) for port in (XCACHE, CONDOR, SCHEDULER, WORKER))
        # ssh, the API server, kubelet: what a private network is closed for.
        assert not any(may_go(policies, server, there, port) for port in (22, 443, 6443, 10250))
    assert may_go(policies, server, Peer(address="192.0.2.1"), 443)
    assert not may_go(policies, server, Peer(address="169.254.169.254"), 80)


def test_a_hub_that_may_go_nowhere_else_reaches_the_api_server(render: Render) -> None:
    rules = dict.fromkeys(("privateIPs", "nonPrivateIPs"), False)
    objects = render("cms", {"hub": {"networkPolicy": {"egressAllowRules": rules}}})
    labels = find(objects, "Deployment", "hub")["spec"]["template"]["metadata"]["labels"]
    hub = Peer(labels, NAMESPACE)
    charts = [one for one in objects if one["kind"] == "NetworkPolicy"]
    both = [*charts, yaml.safe_load((VALUES / "network-policy.yaml").read_text())]
    for address, port in ("10.96.0.1", 443), ("192.0.2.10", 6443):
        assert not may_go(charts, hub, Peer(address=address), port)
        assert may_go(both, hub, Peer(address=address), port)
    assert not may_go(both, hub, Peer(address="10.96.0.1"), 80)


def test_the_charts_own_defaults_would_block_it(render: Render, probe: Probe) -> None:
    """Why the values files say it: a release without these lines."""
    plain = render({})
    policies = [one for one in plain if one["kind"] == "NetworkPolicy"]
    server = Peer(probe("dev")["pod"]["metadata"]["labels"], NAMESPACE)
    assert not may_go(policies, server, Peer(address=PRIVATE[0]), XCACHE)
    assert not may_come(policies, server, Peer(TRAEFIK, "traefik"), SCHEDULER, {})
