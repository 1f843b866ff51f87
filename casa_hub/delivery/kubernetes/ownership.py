"""Reads which server, start and hub an object belongs to, from the labels and annotations that `manifests` gives it."""

from __future__ import annotations

from collections.abc import Mapping

from casa_hub.delivery.kubernetes.manifests import INSTANCE, RECORD, SERVER, START_ID, HubMark, Object, Start
from casa_hub.naming import Server
from casa_hub.record import AnyRecord, parse_text

#: KubeSpawner's own annotations, for pods that were started without this package.
_USER, _SERVER = "hub.jupyter.org/username", "hub.jupyter.org/servername"


def start_id_of(found: Object) -> str:
    """The id of the start that an object belongs to; "" if it has none."""
    return str((found["metadata"].get("labels") or {}).get(START_ID, ""))


def is_of(pod: Object, server: Server, instance: str) -> bool:
    """Whether a pod belongs to this server, by our annotation, or by KubeSpawner's if it was started without us.

    A pod that this hub (`instance`) started while it had another `hub_id` belongs to it, too.
    """
    annotations = pod["metadata"].get("annotations") or {}
    if SERVER in annotations and annotations[SERVER] != server.identity and not is_by(pod, instance):
        return False
    return owner_of(pod) == (server.username, server.name)


def owner_of(pod: Object) -> tuple[str, str]:
    """Names of user and server of a pod, by our annotation, else by KubeSpawner's; ("", "") if it has neither."""
    annotations = pod["metadata"].get("annotations") or {}
    server = Server.of_identity(annotations.get(SERVER))
    return (server.username, server.name) if server else (annotations.get(_USER, ""), annotations.get(_SERVER, ""))


def is_by(pod: Object, instance: str) -> bool:
    """Whether this installation of a hub made a pod."""
    return bool(instance) and (pod["metadata"].get("labels") or {}).get(INSTANCE) == instance


def record_text_of(found: Object, server: Server) -> str | None:
    """The text of the record on a pod or Secret of this server; None if it has none."""
    annotations = found["metadata"].get("annotations") or {}
    return annotations.get(RECORD) if annotations.get(SERVER) == server.identity else None


def record_of(found: Object, server: Server) -> AnyRecord:
    """The record on a pod or Secret of this server."""
    return parse_text(record_text_of(found, server))


def hub_selector(hub: HubMark) -> str:
    """Label selector of all pods that this hub made, and of the objects that they own."""
    return f"{START_ID},{INSTANCE}={hub.instance}"


def start_of(pod: Object, hub: HubMark, common_labels: Mapping[str, str] | None = None) -> Start | None:
    """The start of a pod of this hub; None if the pod isn't marked as this hub's. `common_labels`: see `Start`."""
    server, start_id = Server.of_identity((pod["metadata"].get("annotations") or {}).get(SERVER)), start_id_of(pod)
    if server is None or not start_id or not (server.hub_id == hub.hub_id or is_by(pod, hub.instance)):
        return None
    return Start(server, start_id, pod["metadata"]["namespace"], hub, common_labels or {})


def has_ended(pod: Object) -> bool:
    """Whether a pod's notebook container has ended, as KubeSpawner sees it."""
    if pod["status"]["phase"] in {"Succeeded", "Failed"}:
        return True
    containers = pod["status"].get("containerStatuses") or []
    return any(each["name"] == "notebook" and "terminated" in each.get("state", {}) for each in containers)
