"""Routes on the real API server, with the real Traefik: whoever comes with a server's name gets to this server only.

There are pods and no kubelet: a test writes down where a pod runs and that it is ready, as a kubelet does, and what
follows (endpoints, routes, their end) is Kubernetes' and Traefik's own. At the pods' addresses are TLS servers with
the certificates that a Dask scheduler and a worker would have.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from casa_hub.credentials.base import Request, Route
from casa_hub.credentials.dask import Dask
from casa_hub.delivery.kubernetes import manifests
from casa_hub.delivery.kubernetes.manifests import HubMark, Object, Pod, Start
from casa_hub.delivery.kubernetes.routes import route_objects
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.demo.packages import venv_program
from casa_hub.demo.processes import Process, minimal_environment
from casa_hub.naming import Server
from tests.support.kubernetes import build
from tests.support.kubernetes.api import APPLY, MERGE, Api, KubernetesError, eventually
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.definitions import definitions
from tests.support.kubernetes.pods import running
from tests.support.network import own_network
from tests.support.peers import require

PODS = "10.77.0.0/16"
PORTS = {"scheduler": 8786, "worker": 8788}
ALICE, LAB, BOB = Server("", "alice"), Server("", "alice", "lab"), Server("", "bob")
NODE = "node"
PEERS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]
#: Settings of each kind, all options that there are included.
KINDS: dict[str, dict[str, Any]] = {
    "traefik": {"external_dns_target": "traefik.example.org"},
    "traefik-v2": {"ingress_class": "old", "external_dns_target": "traefik.example.org"},
    "gateway": {"gateway": "dask"},
}
#: With these, a Traefik leads connections.
LEADING = ["traefik", "gateway"]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Another one than the session's, in a network where pods have addresses that a Service may lead to."""
    programs = require(build.programs)
    with contextlib.ExitStack() as stack:
        require(lambda: stack.enter_context(own_network(PODS)))
        work = tmp_path_factory.mktemp("plane") / "work"
        plane = stack.enter_context(ControlPlane(programs, work, crds=definitions()))
        # Endpoints are made for pods on nodes that exist.
        plane.request("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        controller = {"controllerName": "traefik.io/gateway-controller"}
        gateway_class = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "spec": controller}
        gateway_class["metadata"] = {"name": "traefik"}
        plane.apply("/apis/gateway.networking.k8s.io/v1/gatewayclasses/traefik", gateway_class)
        yield plane


@contextlib.contextmanager
def running_traefik(plane: Api, directory: Path, address: str, **options: str) -> Iterator[str]:
    """The address of a Traefik that serves both kinds of routes."""
    options = {
        "entryPoints.dask.address": f"{address}:{PORTS['scheduler']}",
        "entryPoints.daskworker.address": f"{address}:{PORTS['worker']}",
        "providers.kubernetesCRD": "true",
        "providers.kubernetesCRD.throttleDuration": "100ms",
        "providers.kubernetesGateway": "true",
        "providers.kubernetesGateway.throttleDuration": "100ms",
        "providers.providersThrottleDuration": "100ms",
        "global.checkNewVersion": "false",
        "global.sendAnonymousUsage": "false",
        "log.level": "INFO",
        "log.noColor": "true",
        **options,
    }
    traefik = Process(
        "Traefik",
        [venv_program("traefik"), *(f"--{name}={value}" for name, value in options.items())],
        log=directory / "traefik.log",
        env={**minimal_environment(), "KUBECONFIG": str(plane.kubeconfig)},
        cwd=directory,
        grace=1,
    )

    def listens() -> bool:
        for port in PORTS.values():
            with socket.socket() as probe:
                if probe.connect_ex((address, port)) != 0:
                    return False
        return True

    with traefik:
        traefik.wait_until("its ports", listens)
        yield address


@pytest.fixture(scope="module")
def traefik(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_traefik(plane, tmp_path_factory.mktemp("traefik"), "127.0.0.1") as address:
        yield address


@dataclass
class Running:
    """A start of a server whose pod "runs"."""

    start: Start
    pod: Pod
    address: str
    routes: tuple[Route, ...]
    objects: list[Object]
    #: Its certificates' directory.
    directory: Path
    #: Purposes of the connections that came in, in order.
    visits: list[str] = field(default_factory=list)

    def host(self, purpose: str) -> str:
        return next(route.host for route in self.routes if route.purpose == purpose)

    def answer(self, purpose: str) -> bytes:
        return f"{purpose} of {self.pod.name}".encode()

    def context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        context = ssl.create_default_context(purpose, cafile=self.directory / "ca.pem")
        context.load_cert_chain(self.directory / "hostcert.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for route in self.routes:

                async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter, of: str = route.purpose) -> None:
                    self.visits.append(of)
                    writer.write(self.answer(of))
                    writer.close()

                context = self.context(ssl.Purpose.CLIENT_AUTH)
                await stack.enter_async_context(
                    await asyncio.start_server(reply, self.address, route.port, ssl=context)
                )
            yield


class Site:
    """A namespace with servers, and how they are reached."""

    addresses = IPv4Network(PODS).hosts()

    def __init__(self, plane: Api, namespace: str, directory: Path, kind: str, **settings: Any) -> None:
        self.plane, self.namespace, self.directory = plane, namespace, directory
        self.settings = TraefikRoutes(config=Config(TraefikRoutes={"kind": kind, **settings}))
        secret = directory / "dask.secret"
        secret.write_text("c2VjcmV0" * 8)
        secret.chmod(0o600)
        self.domain = f"{namespace}.example.org"  # no two tests share a host
        self.dask = Dask(secret_file=str(secret), domain=self.domain)
        if kind == "gateway":
            listeners = [
                {
                    "name": name,
                    "protocol": "TLS",
                    "port": port,
                    "hostname": f"*.{label}.{self.domain}",
                    "tls": {"mode": "Passthrough"},
                    "allowedRoutes": {"namespaces": {"from": "Same"}},
                }
                for name, label, port in (("dask", "dask", 8786), ("daskworker", "dask-worker", 8788))
            ]
            self.apply(
                f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/gateways/dask",
                {
                    "apiVersion": "gateway.networking.k8s.io/v1",
                    "kind": "Gateway",
                    "metadata": {"name": "dask", "namespace": namespace},
                    "spec": {"gatewayClassName": "traefik", "listeners": listeners},
                },
            )

    def apply(self, path: str, described: Object, **query: str) -> Object:
        """Server-side apply as the hub does it, but no field may be unknown."""
        text = "".join(f"&{key}={value}" for key, value in query.items())
        path = f"{path}?fieldManager=casa-hub&fieldValidation=Strict{text}"
        return dict(self.plane.request("PATCH", path, described, content_type=APPLY))

    def start(self, server: Server) -> Running:
        """What a start of a server leaves in Kubernetes: pod, Service, routes."""
        start_id = secrets.token_hex(16)
        start = Start(server, start_id, self.namespace, HubMark(self.namespace))
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        spec = {"nodeName": NODE, "containers": [{"name": "notebook", "image": "none.test/none:1"}]}
        metadata = {"name": f"pod-{start_id[:8]}", "labels": start.labels}
        made = self.plane.request("POST", pods, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        pod, address = Pod.from_object(made), str(next(self.addresses))
        status = {"status": running(made, address)}
        self.plane.request("PATCH", f"{pods}/{pod.name}/status", status, content_type=MERGE)
        directory = self.directory / start_id
        directory.mkdir()
        for name, content in self.dask.mint(Request(server, start_id, datetime.now(UTC))).files.items():
            (directory / name).write_bytes(content)
        routes = tuple(self.dask.routes(server))
        objects = [manifests.service(start, pod, routes), *route_objects(self.settings, start, pod, routes)]
        for each in objects:
            self.apply(manifests.path(each), each)
        return Running(start, pod, address, routes, objects, directory)

    def delete(self, one: Running, *, grace: int = 0) -> None:
        options = {"gracePeriodSeconds": grace, "preconditions": {"uid": one.pod.uid}}
        self.plane.request("DELETE", f"/api/v1/namespaces/{self.namespace}/pods/{one.pod.name}", options)


@pytest.fixture
def site(plane: Api, namespace: str, tmp_path: Path, request: pytest.FixtureRequest) -> Site:
    """Of the kind that the test's parameter says."""
    kind: str = request.param
    return Site(plane, namespace, tmp_path, kind, network_policy_peers=PEERS, **KINDS[kind])


def whole(described: Object) -> Object:
    """An object as read from the API server, without what it adds to each."""
    added = {"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"}
    kept = {key: value for key, value in described["metadata"].items() if key not in added}
    return {key: value for key, value in described.items() if key != "status"} | {"metadata": kept}


async def ask(address: str, purpose: str, host: str, client: ssl.SSLContext) -> bytes:
    """What answers at Traefik's entry point to somebody who wants `host`."""
    reader, writer = await asyncio.wait_for(
        asyncio.open_connection(address, PORTS[purpose], ssl=client, server_hostname=host), 30
    )
    try:
        writer.write(b"\r\n\r\n")  # for Traefik's own HTTP server, which else waits for a request
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


async def refusal(*arguments: Any) -> bytes:
    """As `ask`, but empty if there is no route: Traefik ends the connection, or it answers itself, as to a web page."""
    try:
        answer = await ask(*arguments)
    except OSError:
        return b""
    return b"" if answer.startswith(b"HTTP/1.1 4") else answer


async def until(expected: bytes, address: str, purpose: str, host: str, client: ssl.SSLContext) -> float:
    """Ask until this is the answer ("": a refusal), since Traefik tells nobody what it knows; seconds that it took."""
    begin = time.monotonic()
    while True:
        answer = await refusal(address, purpose, host, client)
        if answer == expected:
            return time.monotonic() - begin
        assert time.monotonic() < begin + 60, f"{host}: {answer!r} and not {expected!r}"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("site", LEADING, indirect=True)
async def test_each_server_is_reached_by_its_own_names_only(site: Site, traefik: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        servers = [site.start(server) for server in (ALICE, LAB, BOB)]
        for one in servers:
            await stack.enter_async_context(one.serving())
        for one in servers:
            client = one.context(ssl.Purpose.SERVER_AUTH)
            for purpose in PORTS:
                await until(one.answer(purpose), traefik, purpose, one.host(purpose), client)
        for one in servers:
            assert set(one.visits) == set(PORTS)
            one.visits.clear()

        alice, _, bob = servers
        client = alice.context(ssl.Purpose.SERVER_AUTH)
        with pytest.raises(ssl.SSLCertVerificationError):  # led to Bob's server, whose CA Alice's client doesn't know
            await ask(traefik, "scheduler", bob.host("scheduler"), client)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE  # a client that goes wherever it is led
        for host in (f"mallory.dask.{site.domain}", f"x.{alice.host('scheduler')}", site.domain, ""):  # "": no SNI
            assert await refusal(traefik, "scheduler", host, client) == b""
        assert [one.visits for one in servers] == [[], [], []]


@pytest.mark.parametrize("site", LEADING, indirect=True)
async def test_at_the_other_entry_point_a_name_leads_to_no_other_server(site: Site, traefik: str) -> None:
    """The entry points of an `IngressRouteTCP` are those of all its routes; a `TLSRoute` has one listener."""
    alice = site.start(ALICE)
    async with alice.serving():
        client = alice.context(ssl.Purpose.SERVER_AUTH)
        for purpose in PORTS:
            await until(alice.answer(purpose), traefik, purpose, alice.host(purpose), client)
        led = [
            await refusal(traefik, entry_point, alice.host(purpose), client)
            for entry_point, purpose in (("worker", "scheduler"), ("scheduler", "worker"))
        ]
    assert led == ([b"", b""] if site.settings.kind == "gateway" else [alice.answer(purpose) for purpose in PORTS])


@pytest.mark.parametrize("site", LEADING, indirect=True)
async def test_the_routes_go_with_the_pod_and_the_others_stay(site: Site, traefik: str) -> None:
    alice, bob = site.start(ALICE), site.start(BOB)
    async with alice.serving(), bob.serving():
        clients = [one.context(ssl.Purpose.SERVER_AUTH) for one in (alice, bob)]
        for one, client in zip((alice, bob), clients, strict=True):
            await until(one.answer("scheduler"), traefik, "scheduler", one.host("scheduler"), client)
        site.delete(alice)
        await until(b"", traefik, "scheduler", alice.host("scheduler"), clients[0])
        await asyncio.to_thread(
            eventually, lambda: all(site.plane.gone(manifests.path(each)) for each in alice.objects)
        )
        await until(b"", traefik, "scheduler", alice.host("scheduler"), clients[0])
        assert await ask(traefik, "scheduler", bob.host("scheduler"), clients[1]) == bob.answer("scheduler")
        assert not any(site.plane.gone(manifests.path(each)) for each in bob.objects)


@pytest.mark.parametrize("empty", ["false", "true"])
@pytest.mark.parametrize("site", ["traefik"], indirect=True)
async def test_while_earlier_starts_linger_the_newest_is_reached(
    site: Site, plane: Api, tmp_path: Path, empty: str
) -> None:
    """Pods whose node is lost stay, and so does what they own; with empty services allowed, Traefik routes to them."""
    option = {"providers.kubernetesCRD.allowEmptyServices": empty}
    with running_traefik(plane, tmp_path, "127.0.0.2", **option) as traefik:
        earlier = [site.start(ALICE) for _ in range(4)]
        for one in earlier:
            site.delete(one, grace=30)
        # Kubernetes writes down the second of a creation, no more.
        await asyncio.sleep(max(0.0, earlier[-1].pod.created + 1 - time.time()))
        newest = site.start(ALICE)
        async with contextlib.AsyncExitStack() as stack:
            for one in (*earlier, newest):
                await stack.enter_async_context(one.serving())
            client = newest.context(ssl.Purpose.SERVER_AUTH)
            for purpose in PORTS:
                await until(newest.answer(purpose), traefik, purpose, newest.host(purpose), client)
            assert not any(site.plane.gone(manifests.path(each)) for one in earlier for each in one.objects)
            assert [one.visits for one in earlier] == [[]] * 4


@pytest.mark.parametrize("site", ["gateway"], indirect=True)
async def test_a_gateway_leads_to_the_new_start_once_the_one_before_is_collected(site: Site, traefik: str) -> None:
    old = site.start(ALICE)
    site.delete(old, grace=30)
    new = site.start(ALICE)
    async with new.serving(), old.serving():
        client = new.context(ssl.Purpose.SERVER_AUTH)
        assert await refusal(traefik, "scheduler", new.host("scheduler"), client) in (b"", new.answer("scheduler"))
        site.delete(old)
        await until(new.answer("scheduler"), traefik, "scheduler", new.host("scheduler"), client)
        assert old.visits == []


async def test_a_class_leads_to_the_traefik_of_this_class_only(
    plane: Api, namespace: str, tmp_path: Path, traefik: str
) -> None:
    site = Site(plane, namespace, tmp_path, "traefik", ingress_class="facility")
    other = Site(plane, namespace, tmp_path, "traefik")
    with running_traefik(
        plane, tmp_path, "127.0.0.2", **{"providers.kubernetesCRD.ingressClass": "facility"}
    ) as public:
        alice = site.start(ALICE)
        bob = other.start(BOB)
        async with alice.serving(), bob.serving():
            clients = [one.context(ssl.Purpose.SERVER_AUTH) for one in (alice, bob)]
            await until(alice.answer("scheduler"), public, "scheduler", alice.host("scheduler"), clients[0])
            # Made after Alice's: when it is known, hers would be.
            await until(bob.answer("scheduler"), traefik, "scheduler", bob.host("scheduler"), clients[1])
            assert await refusal(traefik, "scheduler", alice.host("scheduler"), clients[0]) == b""
            assert await refusal(public, "scheduler", bob.host("scheduler"), clients[1]) == b""


@pytest.mark.parametrize("site", KINDS, indirect=True)
def test_what_is_stored_is_what_was_sent(site: Site) -> None:
    """No field is dropped, none is added that another version of Kubernetes might fill differently."""
    one = site.start(ALICE)
    _, *objects = one.objects
    assert [each["kind"] for each in objects] == [
        *(["TLSRoute", "TLSRoute"] if site.settings.kind == "gateway" else ["IngressRouteTCP"]),
        "NetworkPolicy",
    ]
    for sent in one.objects:
        stored = site.plane.request("GET", manifests.path(sent))
        if sent["kind"] == "Service":  # Kubernetes gives it an address
            spec = stored["spec"]
            assert {key: value for key, value in spec.items() if key in sent["spec"]} == sent["spec"]
            assert whole(stored) | {"spec": ...} == sent | {"spec": ...}
        else:
            assert whole(stored) == sent
        again = site.apply(manifests.path(sent), sent)
        # Not the resource version: Traefik writes the status of a TLSRoute.
        assert again["metadata"].get("generation") == stored["metadata"].get("generation")
        assert whole(again) == whole(stored)


def fields(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where each field of an object is."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(key, str):
            yield (*at, key)
        yield from fields(inner, (*at, key))


@pytest.mark.parametrize("site", KINDS, indirect=True)
def test_a_misspelt_field_would_be_noticed(site: Site) -> None:
    """So the definitions here check each field of ours; else the test before would show nothing."""
    one = site.start(ALICE)
    for sent in one.objects[1:]:
        for place in fields({"spec": sent["spec"]}):
            if "matchLabels" in place[:-1] or place == ("spec",):  # there, any name is good
                continue
            misspelt = json.loads(json.dumps(sent))
            inside = misspelt
            for key in place[:-1]:
                inside = inside[key]
            inside[f"{place[-1]}x"] = inside.pop(place[-1])
            with pytest.raises(KubernetesError) as refused:
                site.apply(manifests.path(sent), misspelt, dryRun="All")
            assert refused.value.status in (400, 422, 500), place
            assert f"{place[-1]}x" in str(refused.value), place


@pytest.mark.parametrize("site", ["traefik"], indirect=True)
def test_the_policy_selects_this_pod_and_lets_the_named_ones_in(site: Site) -> None:
    """The API server itself says whom each selector means; that they are kept apart is the network's business."""
    alice, _ = site.start(ALICE), site.start(BOB)
    core = f"/api/v1/namespaces/{site.namespace}/pods"
    for name, labels in {
        "hub": {"hub.jupyter.org/network-access-singleuser": "true"},
        "other": {"app": "x"},
    }.items():
        body = {
            "metadata": {"name": name, "labels": labels},
            "spec": {"containers": [{"name": "c", "image": "i.test/i"}]},
        }
        site.plane.request("POST", core, body)

    def selected(path: str, selector: dict[str, dict[str, str]]) -> list[str]:
        text = ",".join(f"{key}%3D{value}" for key, value in selector["matchLabels"].items())
        found = site.plane.request("GET", f"{path}?labelSelector={text}")["items"]
        return [each["metadata"]["name"] for each in found]

    [policy] = [each for each in alice.objects if each["kind"] == "NetworkPolicy"]
    spec = site.plane.request("GET", manifests.path(policy))["spec"]
    assert selected(core, spec["podSelector"]) == [alice.pod.name]
    dask, notebook = spec["ingress"]
    assert selected("/api/v1/namespaces", dask["from"][0]["namespaceSelector"]) == ["kube-system"]
    assert [port["port"] for port in dask["ports"]] == [8786, 8788]
    assert selected("/api/v1/namespaces", notebook["from"][0]["namespaceSelector"]) == [site.namespace]
    assert selected(core, notebook["from"][0]["podSelector"]) == ["hub"]
    site.delete(alice)
    eventually(lambda: site.plane.gone(manifests.path(policy)), 30)
