"""Names of a server's things: valid wherever they are used, KubeSpawner's own where it has one, and nobody else's."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kubespawner import KubeSpawner

from casa_hub.credentials.base import Route
from casa_hub.delivery.kubernetes.manifests import HubMark, Pod, Start
from casa_hub.delivery.kubernetes.routes import route_objects
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.naming import Server, is_label_value
from tests.support.minting import HOSTILE

#: RFC 1123, as Kubernetes has it for Services and for the labels of a host name; Services begin with a letter.
DNS_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", re.ASCII)

#: Look alike or become alike where somebody cuts, folds or escapes: pairs to be told apart.
TRICKY = [
    *HOSTILE,
    "alice-a",
    "alice--a",
    "alice---2bd806c9",
    "a\u017fb",
    "a\u212ab",
    "b" * 48,
    "b" * 49,
    "b" * 60,
    "0",
]
text = st.one_of(st.sampled_from(TRICKY), st.text(max_size=300))
names = st.one_of(st.just(""), text)
start_ids = st.binary(min_size=16, max_size=16).map(bytes.hex)


def encodable(name: str) -> bool:
    """JupyterHub's database takes no other."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


text, names = text.filter(encodable), names.filter(encodable)
servers = st.builds(Server, names, text, names)


@given(servers, start_ids)
@example(Server("a\u212ab", "a\u017fb", "a\u0131b"), "0" * 32)
def test_every_name_is_valid_wherever_it_is_used(server: Server, start_id: str) -> None:
    name = server.object_name(start_id)
    assert DNS_LABEL.fullmatch(name)
    assert DNS_LABEL.fullmatch(server.slug)
    assert LABEL_VALUE.fullmatch(server.hub_label), server.hub_label
    host = server.host("dask-worker", "af.example.org")
    assert all(DNS_LABEL.fullmatch(label) for label in host.split("."))
    assert len(host) <= 253


@given(servers)
def test_an_identity_is_read_back(server: Server) -> None:
    assert Server.of_identity(server.identity) == server


@pytest.mark.parametrize(
    "text", [None, "", "abc", '"abc"', "[]", '["a", "b"]', '["a", "b", 1]', '["a", "b", "c", "d"]', "[" * 10**5]
)
def test_what_is_no_identity_is_nobodys(text: str | None) -> None:
    assert Server.of_identity(text) is None


@given(servers, start_ids)
def test_the_names_of_all_its_objects_are_valid(server: Server, start_id: str) -> None:
    start = Start(server, start_id, "users", HubMark("hub"))
    routes = [
        Route(server.host("dask", "example.org"), "scheduler", 8786),
        Route(server.host("dask-worker", "example.org"), "worker", 8788),
    ]
    for kind in ("traefik", "gateway"):
        settings = TraefikRoutes(kind=kind, gateway="traefik/dask")
        objects = route_objects(settings, start, Pod("jupyter-x", "0"), routes)
        found = [one["metadata"]["name"] for one in objects]
        assert len(set(found)) == len(found)
        assert all(DNS_LABEL.fullmatch(name) for name in found)
        values = [value for one in objects for value in one["metadata"]["labels"].values()]
        assert all(LABEL_VALUE.fullmatch(value) for value in values)


@given(st.tuples(servers, start_ids), st.tuples(servers, start_ids))
@example((Server("", "a", "b"), "0" * 32), (Server("", "a--b", ""), "0" * 32))
@example((Server("a", "b", ""), "0" * 32), (Server("", "a", "b"), "0" * 32))
@example((Server("a", "alice"), "0" * 32), (Server("b", "alice"), "0" * 32))
@example((Server("", "alice"), "0" * 32), (Server("", "alice"), "0" * 31 + "1"))
@example((Server("", "a" * 199 + "b"), "0" * 32), (Server("", "a" * 199 + "c"), "0" * 32))
def test_two_starts_have_different_names(one: tuple[Server, str], other: tuple[Server, str]) -> None:
    assert (one == other) == (one[0].object_name(one[1]) == other[0].object_name(other[1]))
    assert (one[0] == other[0]) == (one[0].identity == other[0].identity)


@given(servers, servers)
@example(Server("", "a", "b"), Server("", "a--b", ""))
@example(Server("", "ab", "c"), Server("", "a", "bc"))
@example(Server("", "b" * 49, "a"), Server("", "b" * 50, "a"))
def test_two_servers_of_a_hub_have_different_slugs(one: Server, other: Server) -> None:
    same = (one.username, one.name) == (other.username, other.name)
    assert same == (one.slug == other.slug)


@given(names, names)
def test_two_hubs_have_different_labels(one: str, other: str) -> None:
    assert (one == other) == (Server(one, "a").hub_label == Server(other, "a").hub_label)


def user_server(username: str, name: str) -> str:
    """What KubeSpawner puts into a pod's name for ``{user_server}``."""
    spawner = SimpleNamespace(
        user=SimpleNamespace(name=username, id=1), name=name, slug_scheme="safe", _namespace_default=lambda: "users"
    )
    return str(KubeSpawner._expand_user_properties(spawner, "{user_server}"))


@given(text, names)
def test_the_slug_is_kubespawners(username: str, name: str) -> None:
    assert Server("", username, name).slug == user_server(username, name)


@pytest.mark.parametrize("username", HOSTILE)
def test_the_host_begins_with_kubespawners_slug(username: str) -> None:
    for name in ("", *HOSTILE):
        host = Server("hub", username, name).host("dask", "example.org")
        assert host == f"{user_server(username, name)}.dask.example.org"


@given(st.one_of(st.text(max_size=70), st.from_regex(LABEL_VALUE, fullmatch=True)))
@example("a\u212ab")
@example("a\n")
def test_a_label_value_is_what_kubernetes_takes(text: str) -> None:
    assert is_label_value(text) == bool(LABEL_VALUE.fullmatch(text))
