"""The Kubernetes objects of a server: pure functions from a start to JSON objects.

A start is one life of a server's pod. Its objects are named after it, so that two starts never share an object, and
late work for the earlier start (garbage collection, a stop) can't hit the next one. Kubernetes before 1.33 deletes
dependants of a vanished owner by uid alone: an object handed on to a new pod could be deleted with the old one.
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

#: The field manager of our objects (server-side apply), and the value of ``app.kubernetes.io/managed-by``.
MANAGER = "casa-hub"

#: The only label by which a Service or a policy selects its pod. Unlike a name, its value is random and known to the
#: hub only, so a pod that a user manages to start can't receive another server's traffic.
START_ID = "casa-hub/start-id"
#: The hub of an object: `Facility.hub_id` (its hash, if it isn't a valid label value), and the hub's namespace.
HUB, HUB_NAMESPACE = "casa-hub/hub", "casa-hub/hub-namespace"
#: The installation that made an object, whatever its hub id: only its own leftovers may be removed without being asked.
INSTANCE = "casa-hub/instance"
#: Annotations: `Server.identity`, and the record for a restarted hub (`casa_hub.record` as JSON).
SERVER, RECORD = "casa-hub/server", "casa-hub/record"

#: Largest size of all values of a Secret together, in bytes (Kubernetes, ``MaxSecretSize``).
MAX_SECRET_SIZE = 1024 * 1024
#: The type of our Secrets: free to choose apart from `kubernetes.io/...`, but fixed once a Secret exists.
SECRET_TYPE = "casa-hub/credentials"  # noqa: S105

#: Kind -> its plural in the paths of the API.
PLURALS = {
    "Pod": "pods",
    "Secret": "secrets",
    "Service": "services",
    "IngressRouteTCP": "ingressroutetcps",
    "TLSRoute": "tlsroutes",
    "NetworkPolicy": "networkpolicies",
}


def instance_of(cookie_secret: bytes) -> str:
    """The value of the label `INSTANCE`: a hash of the hub's cookie secret, which only the hub has."""
    return hashlib.sha256(b"casa_hub instance " + cookie_secret).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class HubMark:
    """What marks the objects of one hub's servers."""

    #: Namespace of the hub itself.
    namespace: str
    #: `Facility.hub_id`.
    hub_id: str = ""
    #: See `instance_of`; "" before the hub begins to look for leftovers.
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a server in Kubernetes: the properties that all its objects share."""

    server: Server
    #: 32 hexadecimal digits.
    start_id: str
    #: Of the pod and its objects.
    namespace: str
    hub: HubMark
    #: The operator's labels for all objects of this hub (KubeSpawner's ``common_labels``).
    common_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the start's Secret, Service and route."""
        return self.server.object_name(self.start_id)

    @property
    def labels(self) -> dict[str, str]:
        """Labels of all objects of this start. The pod has them beside KubeSpawner's."""
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
    """The pod that owns a start's objects."""

    name: str
    uid: str
    #: Unix time of its creation; 0 before that.
    created: int = 0

    @classmethod
    def from_object(cls, described: Object) -> Pod:
        """The pod in an answer of the API server."""
        meta = described["metadata"]
        return cls(meta["name"], meta["uid"], int(datetime.fromisoformat(meta["creationTimestamp"]).timestamp()))


def path(described: Object) -> str:
    """Path of an object in the API: ``/api/v1/namespaces/NAMESPACE/secrets/NAME``.

    If the namespace is empty, the path is that of a list of all namespaces.
    """
    version, meta = described["apiVersion"], described["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    namespace = f"/namespaces/{meta['namespace']}" if meta["namespace"] else ""
    return f"{root}{namespace}/{PLURALS[described['kind']]}/{meta['name']}"


def metadata(start: Start, pod: Pod, component: str, *, name: str = "") -> Object:
    """Metadata of an object that lives as long as `pod`; `component` is its part in the facility."""
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
                # OKD allows true only to clients that may update a pod's finalizers.
                "blockOwnerDeletion": False,
            }
        ],
    }


def reference(kind: str, start: Start, name: str | None = None) -> Object:
    """A core object of the start without contents. Default name: that of the start's own objects."""
    metadata = {"name": start.name if name is None else name, "namespace": start.namespace}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}


def secret(start: Start, pod: Pod, files: Mapping[str, bytes], record: ServerRecord | None = None) -> Object:
    """The Secret with a server's files. Without a record it only serves to look the Secret up or to remove it.
    Raises DeliveryError if the files are too large.
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
    """The Service of this start's pod, with a port for each purpose of its routes."""
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
    """JSON Patch (RFC 6902) that replaces `files` in this start's Secret and leaves the other files.

    Its tests make it fail (422) if the Secret is another start's, or if its record is not the text `before`. So a
    request that was given up, but is still on its way, never brings back an older state.
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
    """The key of a file in a Secret. A key may not contain "/", and no path contains ".." (`bad_path`)."""
    return path.replace("/", "..")


def check_size(start: Start, files: Mapping[str, bytes]) -> None:
    """Refuse files that are too large for a Secret, and name the largest; the API server would name none.
    Raises DeliveryError.
    """
    size = sum(map(len, files.values()))
    if size > MAX_SECRET_SIZE:
        largest = max(files, key=lambda path: len(files[path]))
        raise DeliveryError(
            f"Secret {start.namespace}/{start.name}",
            f"the files have {size} bytes, and a Secret holds {MAX_SECRET_SIZE}; the largest is {largest} with "
            f"{len(files[largest])}",
            "The credential with that file must deliver less.",
        )


def _pointer(token: str) -> str:
    """One token of a JSON Pointer (RFC 6901)."""
    return token.replace("~", "~0").replace("/", "~1")
