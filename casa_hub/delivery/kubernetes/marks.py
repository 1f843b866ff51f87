"""Whose an object in Kubernetes is, by the labels and annotations that `manifests` gives it."""

from __future__ import annotations

from collections.abc import Mapping

from casa_hub.delivery.kubernetes.manifests import INSTANCE, RECORD, SERVER, START_ID, HubMark, Object, Start
from casa_hub.naming import Server
from casa_hub.record import AnyRecord, parse_text

#: KubeSpawner's own annotations, for a pod that was started without this package.
_USER, _SERVER = "hub.jupyter.org/username", "hub.jupyter.org/servername"


def start_id_of(there: Object) -> str:
    """The start that an object belongs to; "" if none."""
    return str((there["metadata"].get("labels") or {}).get(START_ID, ""))


def is_of(pod: Object, server: Server, instance: str) -> bool:
    """Whether a pod is, or was, this server: by our annotation, or by KubeSpawner's if it was started without us.

    The same hub (`instance`) may have had another `hub_id` when it started the pod.
    """
    annotations = pod["metadata"].get("annotations") or {}
    if SERVER in annotations and annotations[SERVER] != server.identity and not is_by(pod, instance):
        return False
    return whose(pod) == (server.username, server.name)


def whose(pod: Object) -> tuple[str, str]:
    """User and server of a pod, by KubeSpawner's annotations, and by ours where there are some; ("", "") if none."""
    annotations = pod["metadata"].get("annotations") or {}
    server = Server.of_identity(annotations.get(SERVER))
    return (server.username, server.name) if server else (annotations.get(_USER, ""), annotations.get(_SERVER, ""))


def is_by(pod: Object, instance: str) -> bool:
    """Whether a pod was made by this installation of a hub."""
    return bool(instance) and (pod["metadata"].get("labels") or {}).get(INSTANCE) == instance


def record_text_of(there: Object, server: Server) -> str | None:
    """The record of a pod or Secret of this server, as it stands there; None if it bears none."""
    annotations = there["metadata"].get("annotations") or {}
    return annotations.get(RECORD) if annotations.get(SERVER) == server.identity else None


def record_of(there: Object, server: Server) -> AnyRecord:
    """The record of a pod or Secret of this server."""
    return parse_text(record_text_of(there, server))


def hub_selector(hub: HubMark) -> str:
    """Label selector of all pods that this hub made, and of what they own."""
    return f"{START_ID},{INSTANCE}={hub.instance}"


def start_of(pod: Object, hub: HubMark, common_labels: Mapping[str, str] | None = None) -> Start | None:
    """The start that a pod of this hub is; None if it isn't marked as one. `common_labels`: see `Start`."""
    server, start_id = Server.of_identity((pod["metadata"].get("annotations") or {}).get(SERVER)), start_id_of(pod)
    if server is None or not start_id or not (server.hub_id == hub.hub_id or is_by(pod, hub.instance)):
        return None
    return Start(server, start_id, pod["metadata"]["namespace"], hub, common_labels or {})


def has_ended(pod: Object) -> bool:
    """Whether the server in a pod has ended: the notebook's container, as KubeSpawner sees it."""
    if pod["status"]["phase"] in {"Succeeded", "Failed"}:
        return True
    containers = pod["status"].get("containerStatuses") or []
    return any(one["name"] == "notebook" and "terminated" in one.get("state", {}) for one in containers)
