"""Route objects and policies in Kubernetes by exact comparison; the operator's settings for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traitlets import TraitError
from traitlets.config import Config

from casa_hub.credentials.base import Route
from casa_hub.delivery.kubernetes import manifests
from casa_hub.delivery.kubernetes.manifests import HubMark, Object, Pod, Start
from casa_hub.delivery.kubernetes.routes import route_objects
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.errors import DeliveryError, Severity
from casa_hub.naming import Server
from tests.support.minting import HOSTILE

ID = "0123456789abcdef" * 2
START = Start(Server("", "alice"), ID, "users", HubMark("hub"))
POD = Pod("jupyter-alice", "aaaa-bbbb", 1_790_000_000)
SCHEDULER = Route("alice.dask.example.org", "scheduler", 8786)
WORKER = Route("alice.dask-worker.example.org", "worker", 8788)
ROUTES = (SCHEDULER, WORKER)
TRAEFIK = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "traefik"}}}]


def routes(**settings: Any) -> TraefikRoutes:
    return TraefikRoutes(config=Config(TraefikRoutes=settings))


def built(*, of: tuple[Route, ...] = ROUTES, start: Start = START, **settings: Any) -> list[Object]:
    return route_objects(routes(**settings), start, POD, of)


# -- objects


@pytest.mark.parametrize(
    ("kind", "group"), [("traefik", "traefik.io"), ("traefik-v2", "traefik.containo.us")], ids=["3", "2"]
)
def test_one_route_of_traefik_for_both_hosts(kind: str, group: str) -> None:
    assert built(kind=kind) == [
        {
            "apiVersion": f"{group}/v1alpha1",
            "kind": "IngressRouteTCP",
            "metadata": manifests.metadata(START, POD, "route"),
            "spec": {
                "entryPoints": ["dask", "daskworker"],
                "routes": [
                    {
                        "match": "HostSNI(`alice.dask.example.org`)",
                        "priority": 1_790_000_000,
                        "services": [{"name": START.name, "port": 8786}],
                    },
                    {
                        "match": "HostSNI(`alice.dask-worker.example.org`)",
                        "priority": 1_790_000_000,
                        "services": [{"name": START.name, "port": 8788}],
                    },
                ],
                "tls": {"passthrough": True},
            },
        }
    ]


def test_a_tls_route_for_each_host_at_its_listener() -> None:
    def expected(name: str, host: str, listener: str, port: int) -> Object:
        return {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "TLSRoute",
            "metadata": manifests.metadata(START, POD, "route", name=name),
            "spec": {
                "parentRefs": [
                    {
                        "group": "gateway.networking.k8s.io",
                        "kind": "Gateway",
                        "namespace": "edge",
                        "name": "shared",
                        "sectionName": listener,
                    }
                ],
                "hostnames": [host],
                "rules": [
                    {"backendRefs": [{"group": "", "kind": "Service", "name": START.name, "port": port, "weight": 1}]}
                ],
            },
        }

    assert built(kind="gateway", gateway="edge/shared", listeners=["a", "b"]) == [
        expected(f"{START.name}s", SCHEDULER.host, "a", 8786),
        expected(f"{START.name}w", WORKER.host, "b", 8788),
    ]


def test_a_gateway_without_namespace_is_in_the_servers_own() -> None:
    [one] = built(kind="gateway", gateway="shared", of=(SCHEDULER,))
    assert one["spec"]["parentRefs"][0]["namespace"] == "users"


def test_only_the_entry_points_of_the_routes_that_there_are() -> None:
    [one] = built(of=(WORKER,), entry_points=["first", "second"])
    assert one["spec"]["entryPoints"] == ["second"]
    [one] = built(entry_points=["shared", "shared"])
    assert one["spec"]["entryPoints"] == ["shared"]


@pytest.mark.parametrize("kind", ["traefik", "traefik-v2"])
def test_options_of_traefik_become_annotations(kind: str) -> None:
    [one] = built(
        kind=kind,
        labels={"traefik": "public"},
        annotations={"external-dns.alpha.kubernetes.io/ttl": "60"},
        ingress_class="facility",
        external_dns_target="traefik.example.org",
    )
    plain = manifests.metadata(START, POD, "route")
    assert one["metadata"] == plain | {
        "labels": plain["labels"] | {"traefik": "public"},
        "annotations": plain["annotations"]
        | {
            "external-dns.alpha.kubernetes.io/ttl": "60",
            "kubernetes.io/ingress.class": "facility",
            "external-dns.kubernetes.io/target": "traefik.example.org",
            "external-dns.alpha.kubernetes.io/target": "traefik.example.org",
        },
    }


@pytest.mark.parametrize("kind", ["traefik", "traefik-v2", "gateway"])
def test_the_operators_labels_do_not_replace_ours(kind: str) -> None:
    for one in built(
        kind=kind,
        gateway="shared" if kind == "gateway" else "",
        labels={"casa-hub/start-id": "x"},
        annotations={"casa-hub/server": "x"},
    ):
        assert one["metadata"]["labels"].items() >= START.labels.items()
        assert one["metadata"]["annotations"] == {"casa-hub/server": START.server.identity}


def test_the_policy_lets_the_named_peers_in_and_does_not_cut_off_the_hub() -> None:
    assert built(kind="none", network_policy_peers=TRAEFIK, labels={"not": "here"}) == [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": manifests.metadata(START, POD, "policy"),
            "spec": {
                "podSelector": {"matchLabels": {"casa-hub/start-id": ID}},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {
                        "from": TRAEFIK,
                        "ports": [{"protocol": "TCP", "port": 8786}, {"protocol": "TCP", "port": 8788}],
                    },
                    {
                        "from": [
                            {
                                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "hub"}},
                                "podSelector": {"matchLabels": {"hub.jupyter.org/network-access-singleuser": "true"}},
                            }
                        ],
                        "ports": [{"protocol": "TCP", "port": "notebook-port"}],
                    },
                ],
            },
        }
    ]


def test_the_policy_stands_beside_the_routes() -> None:
    assert [one["kind"] for one in built(network_policy_peers=TRAEFIK)] == ["IngressRouteTCP", "NetworkPolicy"]


def test_nothing_without_routes_or_with_none() -> None:
    assert built(kind="none") == []
    assert built(of=(), network_policy_peers=TRAEFIK) == []


@pytest.mark.parametrize("kind", ["traefik", "traefik-v2", "gateway", "none"])
@pytest.mark.parametrize("host", ["", "*", "*.example.org", "a`) || HostSNI(`*", "A.example.org", "a..b", "a\n"])
def test_what_is_no_host_name_becomes_no_route(kind: str, host: str) -> None:
    with pytest.raises(DeliveryError, match="not a DNS name"):
        built(kind=kind, of=(SCHEDULER, Route(host, "worker", 1)))


def test_a_host_leads_to_one_port() -> None:
    with pytest.raises(DeliveryError, match="two routes"):
        built(of=(SCHEDULER, replace(SCHEDULER, port=1)))


@given(
    user=st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1)), name=st.one_of(st.sampled_from(HOSTILE), st.text())
)
@pytest.mark.parametrize("kind", ["traefik", "traefik-v2", "gateway"])
def test_all_objects_have_names_and_places_of_their_own(kind: str, user: str, name: str) -> None:
    server = Server("", user, name)
    hosts = (Route(server.host("dask", "example.org"), "scheduler", 1), Route(server.host("w", "x"), "worker", 2))
    objects = built(
        kind=kind,
        gateway="shared" if kind == "gateway" else "",
        network_policy_peers=TRAEFIK,
        start=replace(START, server=server),
        of=hosts,
    )
    assert len({manifests.path(one) for one in objects}) == len(objects)
    assert all(len(one["metadata"]["name"]) <= 63 for one in objects)
    assert all(one["metadata"]["ownerReferences"][0]["uid"] == POD.uid for one in objects)


# -- settings


def problems(*, local: bool, wanted: bool = True, **settings: Any) -> list[tuple[Severity, str]]:
    found = routes(**settings).check(wanted=wanted, local=local)
    return [(problem.severity, problem.thing.removeprefix("TraefikRoutes.")) for problem in found]


@pytest.mark.parametrize(
    ("local", "settings", "expected"),
    [
        (False, {}, []),
        (False, {"kind": "traefik-v2"}, []),
        (False, {"kind": "none"}, []),
        (False, {"kind": "gateway"}, [(Severity.ERROR, "gateway")]),
        (False, {"kind": "gateway", "gateway": "edge/shared"}, []),
        (True, {}, [(Severity.ERROR, "directory")]),
        (True, {"directory": "routes"}, []),
        (True, {"kind": "none"}, []),
        (True, {"kind": "traefik-v2", "directory": "routes"}, [(Severity.ERROR, "kind")]),
        (True, {"kind": "gateway", "gateway": "shared"}, [(Severity.ERROR, "kind")]),
    ],
    ids=str,
)
def test_what_a_kind_needs(local: bool, settings: dict[str, Any], expected: list[Any]) -> None:
    assert problems(local=local, **settings) == expected
    assert problems(local=local, wanted=False, **settings) == []


EVERYTHING = {
    "annotations": {"a": "b"},
    "directory": "routes",
    "entry_points": ["a", "b"],
    "external_dns_target": "traefik.example.org",
    "gateway": "shared",
    "ingress_class": "facility",
    "labels": {"a": "b"},
    "listeners": ["a", "b"],
    "network_policy_peers": TRAEFIK,
}


@pytest.mark.parametrize(
    ("local", "kind", "effective"),
    [
        (True, "traefik", {"entry_points", "directory"}),
        (False, "traefik", EVERYTHING.keys() - {"directory", "gateway", "listeners"}),
        (False, "traefik-v2", EVERYTHING.keys() - {"directory", "gateway", "listeners"}),
        (False, "gateway", {"gateway", "listeners", "labels", "annotations", "network_policy_peers"}),
        (False, "none", {"network_policy_peers"}),
    ],
)
def test_a_setting_without_effect_is_said(local: bool, kind: str, effective: set[str]) -> None:
    assert EVERYTHING.keys() | {"kind"} == TraefikRoutes.class_own_traits(config=True).keys()
    expected = [(Severity.WARNING, name) for name in sorted(EVERYTHING.keys() - effective)]
    assert problems(local=local, kind=kind, **EVERYTHING) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "nginx"),
        ("entry_points", ["dask"]),
        ("listeners", ["dask", "Dask Worker"]),
        ("gateway", "a/b/c"),
        ("gateway", "/shared"),
        ("gateway", "Shared"),
        ("labels", {"a b": "c"}),
        ("labels", {"a": "b c"}),
        ("labels", {"a": 1}),
        ("labels", {"a": "b" * 64}),
        ("labels", {"a": "a\u212ab"}),  # a Kelvin sign, which folds to a "k"
        ("labels", {"a." * 127 + "a/b": "c"}),
        ("annotations", {"": "c"}),
        ("annotations", {"a/b/c": "c"}),
        ("annotations", {"a": None}),
        ("network_policy_peers", [{}]),
        ("network_policy_peers", [{"namespaceselector": {}}]),
        ("network_policy_peers", ["traefik"]),
    ],
    ids=str,
)
def test_what_kubernetes_would_refuse_at_each_spawn_is_refused_at_the_start(name: str, value: object) -> None:
    with pytest.raises(TraitError, match=name):
        routes(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gateway", "shared.gateway"),
        ("labels", {"example.org/a_b.c": ""}),
        ("annotations", {"external-dns.kubernetes.io/ttl": "any text: ü"}),
        ("network_policy_peers", [{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"podSelector": {}, "namespaceSelector": {}}]),
    ],
    ids=str,
)
def test_what_kubernetes_takes_is_taken(name: str, value: object) -> None:
    assert getattr(routes(**{name: value}), name) == value
