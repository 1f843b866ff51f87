"""Secret, Service and what all objects of a start have in common, by exact comparison."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.credentials.base import Route
from casa_hub.delivery.kubernetes import manifests
from casa_hub.delivery.kubernetes.manifests import HubMark, Pod, Start
from casa_hub.errors import DeliveryError
from casa_hub.naming import Server
from casa_hub.record import ServerRecord
from tests.support.minting import HOSTILE

RECORD = ServerRecord("s", "1", 0, {}, {})
RECORD_TEXT = '{"version": 2, "server": "s", "start_id": "1", "order": 0, "credentials": {}, "missing": {}}'
ID = "0123456789abcdef" * 2
START = Start(
    Server("hub-a", "alice", "lab"), ID, "users", HubMark("hub"), {"team": "cms", "component": "singleuser-server"}
)
POD = Pod("jupyter-alice--lab", "aaaa-bbbb", 1_790_000_000)
NAME = START.name
ROUTES = (
    Route("alice--lab.dask.example.org", "scheduler", 8786),
    Route("alice--lab.dask-worker.example.org", "worker", 8788),
)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?\Z")
DNS_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?\Z")


def metadata(component: str, **annotations: str) -> dict[str, object]:
    return {
        "name": NAME,
        "namespace": "users",
        "labels": {
            "team": "cms",
            "component": "singleuser-server",
            "app.kubernetes.io/managed-by": "casa-hub",
            "app.kubernetes.io/name": "casa-hub",
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/part-of": "jupyterhub",
            "casa-hub/hub": "hub-a",
            "casa-hub/hub-namespace": "hub",
            "casa-hub/start-id": ID,
        },
        "annotations": {"casa-hub/server": '["hub-a", "alice", "lab"]', **annotations},
        "ownerReferences": [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": "jupyter-alice--lab",
                "uid": "aaaa-bbbb",
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }


def test_the_name_is_short_and_says_whose_it_is() -> None:
    assert re.fullmatch(r"casa-alice--lab-[0-9a-f]{8}", NAME)


def test_the_secret_in_full() -> None:
    assert manifests.secret(START, POD, {"xcache_token": b"\0secret", "condor_tokens.d/condor_token": b""}, RECORD) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata("credentials", **{"casa-hub/record": RECORD_TEXT}),
        "type": "casa-hub/credentials",
        "immutable": False,
        "data": {"xcache_token": "AHNlY3JldA==", manifests.key("condor_tokens.d/condor_token"): ""},
    }


def test_the_service_in_full() -> None:
    assert manifests.service(START, POD, ROUTES) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata("service"),
        "spec": {
            "type": "ClusterIP",
            "selector": {"casa-hub/start-id": ID},
            "ports": [
                {"name": "scheduler", "protocol": "TCP", "port": 8786, "targetPort": 8786},
                {"name": "worker", "protocol": "TCP", "port": 8788, "targetPort": 8788},
            ],
        },
    }


def test_a_renewal_replaces_its_files_only_and_only_of_this_start_and_what_it_was_made_from() -> None:
    assert manifests.renewal(START, {"condor_tokens.d/condor_token": b"new"}, RECORD, '{"version":  1}') == [
        {"op": "test", "path": "/metadata/labels/casa-hub~1start-id", "value": ID},
        {"op": "test", "path": "/metadata/annotations/casa-hub~1record", "value": '{"version":  1}'},
        {"op": "replace", "path": "/metadata/annotations/casa-hub~1record", "value": RECORD_TEXT},
        {"op": "add", "path": f"/data/{manifests.key('condor_tokens.d/condor_token')}", "value": "bmV3"},
    ]


def test_operators_labels_do_not_replace_ours() -> None:
    taken = {"casa-hub/start-id": "x", "app.kubernetes.io/managed-by": "x", "app.kubernetes.io/component": "x"}
    described = manifests.metadata(replace(START, common_labels=taken), POD, "credentials")
    assert described["labels"].items() >= START.selector.items()
    assert described["labels"]["app.kubernetes.io/managed-by"] == "casa-hub"
    assert described["labels"]["app.kubernetes.io/component"] == "credentials"


@pytest.mark.parametrize("size", [1024 * 1024, 1024 * 1024 + 1])
def test_files_that_no_secret_holds_are_refused_with_the_largest_named(size: int) -> None:
    files = {"small": b"x", "big": bytes(size - 1)}
    if size <= manifests.MAX_SECRET_SIZE:
        manifests.secret(START, POD, files, RECORD)
        manifests.renewal(START, files, RECORD, "")
        return
    for build in (
        lambda: manifests.secret(START, POD, files, RECORD),
        lambda: manifests.renewal(START, files, RECORD, ""),
    ):
        with pytest.raises(DeliveryError, match=rf"Secret users/{NAME}: .*the largest is big with {size - 1}"):
            build()


def test_each_kind_has_its_place_in_the_api() -> None:
    assert manifests.path(manifests.service(START, POD, ROUTES)) == f"/api/v1/namespaces/users/services/{NAME}"
    route = {
        "apiVersion": "traefik.io/v1alpha1",
        "kind": "IngressRouteTCP",
        "metadata": {"namespace": "users", "name": NAME},
    }
    assert manifests.path(route) == f"/apis/traefik.io/v1alpha1/namespaces/users/ingressroutetcps/{NAME}"


def test_a_pod_is_known_by_name_uid_and_the_second_it_was_made() -> None:
    answer = {"metadata": {"name": "jupyter-alice", "uid": "cccc", "creationTimestamp": "2026-11-21T04:00:00Z"}}
    assert Pod.from_object(answer) == Pod("jupyter-alice", "cccc", 1_795_233_600)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("where", ["hub", "user", "server"])
def test_names_and_labels_are_valid_whatever_anybody_is_called(where: str, name: str) -> None:
    server = {
        "hub": Server(name, "alice", "lab"),
        "user": Server("hub-a", name, ""),
        "server": Server("hub-a", "alice", name),
    }[where]
    described = manifests.metadata(replace(START, server=server), POD, "service")
    assert DNS_LABEL.match(described["name"])
    assert all(LABEL_VALUE.match(value) for value in described["labels"].values())
    assert json.loads(described["annotations"]["casa-hub/server"]) == [server.hub_id, server.username, server.name]
    assert described["annotations"]["casa-hub/server"].isascii()


NAMES = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=80))
SERVERS = st.builds(Server, NAMES, NAMES.filter(bool), NAMES)
IDS = st.binary(min_size=16, max_size=16).map(bytes.hex)


@given(one=st.tuples(SERVERS, IDS), other=st.tuples(SERVERS, IDS))
def test_no_two_servers_or_starts_share_a_name_or_a_selector(
    one: tuple[Server, str], other: tuple[Server, str]
) -> None:
    first, second = (replace(START, server=server, start_id=start_id) for server, start_id in (one, other))
    assert (first.name == second.name) == (one == other)
    assert (first.selector == second.selector) == (one[1] == other[1])


@given(files=st.lists(st.from_regex(r"[a-z_.]{1,5}[a-z](/[a-z_.]{0,4}[a-z]){0,2}", fullmatch=True), unique=True))
def test_keys_of_a_secret_are_valid_and_no_two_files_share_one(files: list[str]) -> None:
    files = [path for path in files if ".." not in path]
    keys = [manifests.key(path) for path in files]
    assert len(set(keys)) == len(files)
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", key) for key in keys)
