"""What is applied to Kubernetes for a server: pure functions from a start to JSON objects.

A start is one life of a server's pod. Its objects are named after it, so that no two starts ever share one: what is
late for the one before (its pod's garbage collection, its stop) finds nothing of the next. Kubernetes before 1.33
deletes dependants of a vanished owner by uid alone: an object handed on to a new pod could go with the old one.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from casa_hub.credentials.base import Route
from casa_hub.errors import DeliveryError
from casa_hub.naming import Server
from casa_hub.record import ServerRecord

Object = dict[str, Any]

#: Who manages the fields of our objects (server-side apply), and the value of ``app.kubernetes.io/managed-by``.
MANAGER = "casa-hub"

#: The one label that a Service or a policy selects its pod by. Its value is random and only in the hub's hands, unlike
#: a name: no pod that a user can start somehow answers for another's.
START_ID = "casa-hub/start-id"
#: Which hub an object is of: `Facility.hub_id` (or its hash, where that is no label value), and the hub's namespace.
HUB, HUB_NAMESPACE = "casa-hub/hub", "casa-hub/hub-namespace"
#: Which installation of a hub made it, whatever it is called: what is removed unasked must be certain to be ours.
INSTANCE = "casa-hub/instance"
#: Annotations: `Server.identity`, and what a restarted hub must know (`casa_hub.record` as JSON).
SERVER, RECORD = "casa-hub/server", "casa-hub/record"

#: Bytes of all values of a Secret together (Kubernetes, ``MaxSecretSize``).
MAX_SECRET_SIZE = 1024 * 1024
#: What the Secret is to the API server: anything but `kubernetes.io/...` is free to choose and can't be changed later.
SECRET_TYPE = "casa-hub/credentials"  # noqa: S105

#: The kinds that we ask for, by the plural that the API has for each in a path.
PLURALS = {
    "Pod": "pods",
    "Secret": "secrets",
    "Service": "services",
    "IngressRouteTCP": "ingressroutetcps",
    "TLSRoute": "tlsroutes",
    "NetworkPolicy": "networkpolicies",
}


def instance_of(cookie_secret: bytes) -> str:
    """The value of the label `INSTANCE`: a hash of what the hub alone has and keeps."""
    return hashlib.sha256(b"casa_hub instance " + cookie_secret).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class HubMark:
    """What the objects of one hub's servers tell of that hub."""

    #: The hub's own.
    namespace: str
    #: `Facility.hub_id`.
    hub_id: str = ""
    #: See `instance_of`; "" if nothing is looked for by it.
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a server in Kubernetes: what all its objects have in common."""

    server: Server
    #: 32 hexadecimal digits.
    start_id: str
    #: Where the pod and its objects are.
    namespace: str
    hub: HubMark
    #: The operator's, for all objects of this hub (KubeSpawner's ``common_labels``).
    common_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its Secret, Service and route."""
        return self.server.object_name(self.start_id)

    @property
    def labels(self) -> dict[str, str]:
        """Labels of everything of this start, the pod included, which else keeps KubeSpawner's."""
        return {
            **self.common_labels,
            HUB: self.server.hub_label,
            HUB_NAMESPACE: self.hub.namespace,
            **({INSTANCE: self.hub.instance} if self.hub.instance else {}),
            START_ID: self.start_id,
        }

    @property
    def selector(self) -> dict[str, str]:
        """Labels that only this start's pod has."""
        return {START_ID: self.start_id}


@dataclass(frozen=True, slots=True)
class Pod:
    """The pod that owns a start's objects, as the API server knows it."""

    name: str
    uid: str
    #: Unix time of its creation; 0 if there is none yet.
    created: int = 0

    @classmethod
    def of(cls, described: Object) -> Pod:
        """The pod that an answer of the API server describes."""
        meta = described["metadata"]
        return cls(meta["name"], meta["uid"], int(datetime.fromisoformat(meta["creationTimestamp"]).timestamp()))


def path(described: Object) -> str:
    """Where an object of ours is in the API: ``/api/v1/namespaces/NAMESPACE/secrets/NAME``.

    Without a namespace: of a list that goes through all of them.
    """
    version, meta = described["apiVersion"], described["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    where = f"/namespaces/{meta['namespace']}" if meta["namespace"] else ""
    return f"{root}{where}/{PLURALS[described['kind']]}/{meta['name']}"


def metadata(start: Start, pod: Pod, component: str, *, name: str = "") -> Object:
    """Metadata of an object that lives as long as `pod`; `component`: what it is to the facility."""
    return {
        "name": name or start.name,
        "namespace": start.namespace,
        "labels": {
            **start.labels,
            "app.kubernetes.io/managed-by": MANAGER,
            "app.kubernetes.io/name": MANAGER,
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/part-of": "jupyterhub",
        },
        "annotations": {SERVER: start.server.identity},
        "ownerReferences": [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod.name,
                "uid": pod.uid,
                "controller": True,
                # OKD refuses true to who may not update a pod's finalizers.
                "blockOwnerDeletion": False,
            }
        ],
    }


def reference(kind: str, start: Start, name: str | None = None) -> Object:
    """A core object of the start, by name only (default: that of the start's own objects)."""
    metadata = {"name": start.name if name is None else name, "namespace": start.namespace}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}


def secret(start: Start, pod: Pod, files: Mapping[str, bytes], record: ServerRecord | None = None) -> Object:
    """The Secret with a server's files; without a record, one that is only to be looked for or removed.

    Raises:
        DeliveryError: they are too large for one.
    """
    check_size(start, files)
    described = metadata(start, pod, "credentials")
    if record is not None:
        described["annotations"][RECORD] = record_text(record)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": described,
        "type": SECRET_TYPE,
        "immutable": False,  # renewed in place
        "data": {key(path): base64.b64encode(content).decode() for path, content in files.items()},
    }


def service(start: Start, pod: Pod, routes: Iterable[Route]) -> Object:
    """The Service that leads to this start's pod, with a port for each purpose."""
    ports = {route.purpose: route.port for route in routes}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(start, pod, "service"),
        "spec": {
            "type": "ClusterIP",
            "selector": start.selector,
            "ports": [
                {"name": purpose, "protocol": "TCP", "port": port, "targetPort": port}
                for purpose, port in sorted(ports.items())
            ],
        },
    }


def record_text(record: ServerRecord) -> str:
    """A record as the value of an annotation."""
    return json.dumps(record.to_document())


def renewal(start: Start, files: Mapping[str, bytes], record: ServerRecord, before: str) -> list[Object]:
    """JSON Patch (RFC 6902) that gives this start's Secret new contents of `files` and leaves the others.

    The tests in front make it fail (422) on an object that isn't this start's, and on one whose record is not the text
    `before`: a request that was given up, but is still on its way, never brings back an older state.
    """
    check_size(start, files)
    return [
        {"op": "test", "path": f"/metadata/labels/{_pointer(START_ID)}", "value": start.start_id},
        {"op": "test", "path": f"/metadata/annotations/{_pointer(RECORD)}", "value": before},
        {"op": "replace", "path": f"/metadata/annotations/{_pointer(RECORD)}", "value": record_text(record)},
        *(
            {"op": "add", "path": f"/data/{_pointer(key(path))}", "value": base64.b64encode(content).decode()}
            for path, content in files.items()
        ),
    ]


def key(path: str) -> str:
    """The key of a Secret for a file: "/" isn't allowed there, and ".." is in no path (`bad_path`)."""
    return path.replace("/", "..")


def check_size(start: Start, files: Mapping[str, bytes]) -> None:
    """Refuse what the API server would refuse, but say which file it is.

    Raises:
        DeliveryError: the files are too large for a Secret.
    """
    size = sum(map(len, files.values()))
    if size > MAX_SECRET_SIZE:
        largest = max(files, key=lambda path: len(files[path]))
        raise DeliveryError(
            f"Secret {start.namespace}/{start.name}",
            f"the files have {size} bytes, and a Secret holds {MAX_SECRET_SIZE}; the largest is {largest} with "
            f"{len(files[largest])}",
            "The credential that brings it must deliver less.",
        )


def _pointer(token: str) -> str:
    """One token of a JSON Pointer (RFC 6901)."""
    return token.replace("~", "~0").replace("/", "~1")
