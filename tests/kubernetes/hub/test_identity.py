"""Whose is what: servers, users and hubs that share a namespace, and starts of one server, never mix."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cryptography import x509

from casa_hub.naming import Server
from tests.kubernetes.hub.servers import KINDS, NONE, Site, open_site
from tests.support.kubernetes.api import Api, eventually
from tests.support.scale import STOP_AND_START

SELECTOR = "casa-hub/start-id"
PROFILES = """
c.KubeSpawner.profile_list = [
    {"display_name": "Plain", "slug": "plain", "default": True},
    {"display_name": "Labelled", "slug": "labelled", "profile_options": {"label": {
        "display_name": "Label",
        "unlisted_choice": {
            "enabled": True,
            "display_name": "Label",
            "kubespawner_override": {
                "extra_labels": {"casa-hub/start-id": "{value}", "casa-hub/hub": "{value}"},
                "extra_annotations": {"casa-hub/server": "{value}", "casa-hub/record": "{value}"},
                "common_labels": {"casa-hub/start-id": "{value}", "app.kubernetes.io/managed-by": "{value}"},
            },
        },
    }}},
]
"""
#: A start id that a test knows beforehand; only while the file is there.
KNOWN_START = """
import casa_hub.server_credentials
import secrets as real_secrets

class KnownSecrets:
    @staticmethod
    def token_hex(size):
        return "0" * 32 if Path("known-start").exists() else real_secrets.token_hex(size)

casa_hub.server_credentials.secrets = KnownSecrets
"""
NAMES = ["", "one", "two"]
#: Those that JupyterHub takes: without "/", and not of dots only.
HOSTILE = ["josé", "jose\u0301", "a" * 200, "a" * 199 + "b", "😀", "a b", "{username}", "-rf", "a--b"]


@pytest.fixture(scope="module")
def site(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    config = 'c.Facility.hub_id = "a"\nc.Spawner.consecutive_failure_limit = 5\n'
    with open_site(plane, tmp_path_factory, config + PROFILES + KNOWN_START) as one:
        yield one


@pytest.fixture(scope="module")
def neighbour(site: Site, plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Another hub, with servers in the same namespace."""
    config = 'c.Facility.hub_id = "b"\nc.KubeSpawner.pod_name_template = "b-{user_server}"\n'
    with open_site(plane, tmp_path_factory, config, namespace=site.namespace, pods=False) as other:
        yield other


@pytest.fixture(autouse=True)
def empty(site: Site) -> Iterator[None]:
    yield
    site.clear()


def hosts(route: dict[str, Any]) -> set[str]:
    return {each["match"] for each in route["spec"]["routes"]}


def selected(site: Site, service: dict[str, Any]) -> list[str]:
    """Names of the pods that a Service leads to."""
    selector = ",".join(f"{key}={value}" for key, value in service["spec"]["selector"].items())
    found = site.plane.request("GET", f"{site.pods}?labelSelector={selector}")["items"]
    return [pod["metadata"]["name"] for pod in found]


def certificate(content: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(content)


def check_apart(site: Site, servers: list[tuple[str, str]]) -> None:
    """Each has a pod, a Secret, a Service, routes, host names and certificates that no other has."""
    seen: dict[str, list[Any]] = {"host": [], "ca": [], "start": [], "name": [], "token": []}
    for user, name in servers:
        pod = site.pod(user, name)
        owned = site.of(pod)
        identity = Server("a", user, name).identity
        assert {each["metadata"]["annotations"]["casa-hub/server"] for each in (pod, *owned.values())} == {identity}
        assert selected(site, owned["Service"]) == [pod["metadata"]["name"]]
        files = site.files(pod)
        host = certificate(files["hostcert.pem"])
        names = host.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        certified = {f"HostSNI(`{each}`)" for each in names.get_values_for_type(x509.DNSName)}
        assert hosts(owned["IngressRouteTCP"]) <= certified
        seen["host"] += hosts(owned["IngressRouteTCP"])
        seen["ca"].append(files["ca.pem"])
        seen["start"].append(pod["metadata"]["labels"][SELECTOR])
        seen["name"] += {each["metadata"]["name"] for each in owned.values()}
        seen["token"].append(files["xcache_token"])
    assert {what: len(set(values)) for what, values in seen.items()} == {
        what: len(servers) * (2 if what == "host" else 1) for what in seen
    }
    assert {kind: len(objects) for kind, objects in site.ours().items()} == dict.fromkeys(KINDS, len(servers))


def start_all(site: Site, servers: list[tuple[str, str]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda server: site.ready(*server), servers))


def stop_all(site: Site, servers: list[tuple[str, str]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda server: site.stop(*server), servers))


def test_servers_of_a_user_have_all_of_their_own(site: Site) -> None:
    servers = [(user, name) for user in ("ada", "bob") for name in NAMES]
    start_all(site, servers)
    check_apart(site, servers)

    site.stop("ada", "one")
    rest = [server for server in servers if server != ("ada", "one")]
    eventually(lambda: len(site.ours()["IngressRouteTCP"]) == len(rest))
    check_apart(site, rest)
    stop_all(site, rest)


def test_users_whose_names_are_meant_to_harm_have_all_of_their_own(site: Site) -> None:
    servers = [(name, "") for name in HOSTILE]
    start_all(site, servers)
    check_apart(site, servers)
    stop_all(site, servers)


def test_two_hubs_in_a_namespace_leave_each_others_servers_alone(site: Site, neighbour: Site) -> None:
    site.ready("ada")
    neighbour.ready("ada")
    found = site.ours()
    assert {kind: len(objects) for kind, objects in found.items()} == dict.fromkeys(KINDS, 2)
    for objects in found.values():
        assert {one["metadata"]["labels"]["casa-hub/hub"] for one in objects} == {"a", "b"}
        assert len({one["metadata"]["name"] for one in objects}) == 2

    neighbour.stop("ada")
    eventually(lambda: {len(objects) for objects in site.ours().values()} == {1})
    site.of(site.pod("ada"))
    site.stop("ada")


def test_a_hub_that_starts_removes_half_made_pods_of_its_own_only(site: Site, neighbour: Site) -> None:
    site.ready("ada")
    neighbour.ready("bob")
    halves = [site.pod("ada"), neighbour.pod("bob")]
    site.stop("ada")
    neighbour.stop("bob")

    for hub in (site.hub, neighbour.hub):
        hub.stop()
    for pod in halves:
        site.make_half(pod)
    site.hub.start()
    eventually(lambda: site.names() == {"b-bob"})
    neighbour.hub.start()
    eventually(lambda: site.names() == set())
    assert "Removing pod" in site.hub.log
    assert "b-bob" not in site.hub.log


def in_the_way(site: Site, name: str, annotations: dict[str, str]) -> str:
    """The uid of a pod with the name of a server's."""
    labels = {"component": "singleuser-server", "app.kubernetes.io/component": "singleuser-server"}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {"containers": [{"name": "notebook", "image": "none.test/old:1"}]},
    }
    return str(site.plane.request("POST", site.pods, body)["metadata"]["uid"])


@pytest.mark.parametrize(
    "annotations",
    [
        {"casa-hub/server": Server("b", "ada").identity, "hub.jupyter.org/username": "ada"},
        {"casa-hub/server": Server("a", "bob").identity, "hub.jupyter.org/username": "ada"},
        {"casa-hub/server": Server("a", "ada", "one").identity},
        {"hub.jupyter.org/username": "bob"},
        {"hub.jupyter.org/username": "ada", "hub.jupyter.org/servername": "one"},
        {},
    ],
    ids=["another-hub", "another-user", "another-server", "stock-of-another-user", "stock-named", "no-server"],
)
def test_a_pod_in_the_way_that_is_anothers_is_left_alone(site: Site, annotations: dict[str, str]) -> None:
    uid = in_the_way(site, "jupyter-ada", annotations)
    since = len(site.hub.log)
    for _ in range(2):  # of two in a row, the hub would tell
        said = site.fails("ada")
        assert f"Pod {site.namespace}/jupyter-ada" in said
        assert "another server's" in said
    assert site.plane.request("GET", f"{site.pods}/jupyter-ada")["metadata"]["uid"] == uid
    assert site.ours() == NONE
    assert "consecutive" not in site.hub.log[since:]

    site.plane.request("DELETE", f"{site.pods}/jupyter-ada")
    site.ready("ada")
    site.stop("ada")


def test_a_pod_of_the_same_server_that_was_started_without_us_is_replaced(site: Site) -> None:
    uid = in_the_way(site, "jupyter-ada", {"hub.jupyter.org/username": "ada"})
    site.ready("ada")
    pod = site.pod("ada")
    assert pod["metadata"]["uid"] != uid
    site.of(pod)
    site.stop("ada")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("Secret", {"apiVersion": "v1", "type": "Opaque", "stringData": {"xcache_token": "theirs"}}),
        ("Service", {"apiVersion": "v1", "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]}}),
    ],
)
def test_a_foreign_object_with_a_name_of_ours_is_not_overwritten(site: Site, kind: str, body: dict[str, Any]) -> None:
    name = Server("a", "ada").object_name("0" * 32)
    path = KINDS[kind].format(site.namespace)
    before = site.plane.request("POST", path, {"kind": kind, "metadata": {"name": name}, **body})
    known = site.hub.directory / "known-start"
    known.touch()
    try:
        events = site.start("ada")
        said = "\n".join(event["message"] for event in events)
        assert f"{kind} {site.namespace}/{name}" in said
        site.settle("ada")
        # What nothing required needs is missing; without its Secret there is no server.
        assert bool(events[-1].get("ready")) == (kind != "Secret"), events
        assert site.plane.request("GET", f"{path}/{name}") == before
        if kind == "Secret":
            eventually(lambda: site.list("pods") == [])
        else:
            site.stop("ada")
    finally:
        known.unlink()
    assert site.plane.request("GET", f"{path}/{name}") == before  # nor did it go with the pod
    site.plane.request("DELETE", f"{path}/{name}")
    site.ready("ada")
    site.stop("ada")


def test_what_a_user_chooses_never_becomes_the_label_that_a_service_selects(site: Site) -> None:
    site.ready("ada")
    victim = site.pod("ada")
    stolen = victim["metadata"]["labels"][SELECTOR]
    options = {"profile": "labelled", "label--unlisted-choice": stolen, SELECTOR: stolen}
    site.ready("mallory", options=options)
    pod = site.pod("mallory")
    assert pod["metadata"]["labels"][SELECTOR] != stolen
    assert pod["metadata"]["labels"]["casa-hub/hub"] == "a"
    assert pod["metadata"]["annotations"]["casa-hub/server"] == Server("a", "mallory").identity
    assert pod["metadata"]["annotations"]["casa-hub/record"] != stolen
    check_apart(site, [("ada", ""), ("mallory", "")])
    stop_all(site, [("ada", ""), ("mallory", "")])


def test_the_label_that_a_service_selects_is_not_told_by_anything_else(site: Site) -> None:
    seen = set()
    for _ in range(3):
        site.ready("ada")
        pod = site.pod("ada")
        start_id = pod["metadata"]["labels"].pop(SELECTOR)
        assert len(bytes.fromhex(start_id)) == 16
        seen.add(start_id)
        names = [
            one["metadata"]["name"]
            for one in site.of({**pod, "metadata": {**pod["metadata"], "labels": {SELECTOR: start_id}}}).values()
        ]
        assert not any(start_id[:8] in name for name in names)
        site.stop("ada")
    assert len(seen) == 3


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_many_stops_followed_at_once_by_a_start(site: Site) -> None:
    """Five servers, each stopped and started again without a pause: only the newest start's objects are left."""
    servers = [("ada", ""), ("ada", "one"), ("bob", ""), ("bob", "one"), ("eve", "")]

    def again(server: tuple[str, str]) -> str:
        starts = set()
        for _ in range(STOP_AND_START):
            site.ready(*server)
            pod = site.pod(*server)
            assert set(site.of(pod)) == set(KINDS)
            starts.add(pod["metadata"]["uid"])
            site.stop(*server)
        site.ready(*server)
        return str(len(starts))

    with ThreadPoolExecutor(len(servers)) as pool:
        assert list(pool.map(again, servers)) == [str(STOP_AND_START)] * len(servers)
    eventually(lambda: {len(objects) for objects in site.ours().values()} == {len(servers)})
    check_apart(site, servers)
    stop_all(site, servers)
