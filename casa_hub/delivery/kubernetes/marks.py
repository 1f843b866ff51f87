"""Whose an object in Kubernetes is, by the labels and annotations that `manifests` gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from casa_hub.delivery.base import RECORD_VERSION
from casa_hub.delivery.kubernetes.manifests import HUB, HUB_NAMESPACE, RECORD, SERVER, START_ID, Object, Start
from casa_hub.naming import Server

#: KubeSpawner's own annotations, for a pod that was started without this package.
_USER, _SERVER = "hub.jupyter.org/username", "hub.jupyter.org/servername"


def start_id_of(there: Object) -> str:
    """The start that an object belongs to; "" if none."""
    return str((there["metadata"].get("labels") or {}).get(START_ID, ""))


def is_of(pod: Object, server: Server) -> bool:
    """Whether a pod is, or was, this server: by our annotation, or by KubeSpawner's if it was started without us."""
    annotations = pod["metadata"].get("annotations") or {}
    if SERVER in annotations:
        return bool(annotations[SERVER] == server.identity)
    return (annotations.get(_USER), annotations.get(_SERVER, "")) == (server.username, server.name)


def record_of(there: Object, server: Server) -> Mapping[str, Any] | None:
    """The record of a pod or Secret of this server; None if it bears none that this version can read."""
    annotations = there["metadata"].get("annotations") or {}
    if annotations.get(SERVER) != server.identity:
        return None
    try:
        record = json.loads(annotations[RECORD])
    except (KeyError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("version") == RECORD_VERSION else None


def hub_selector(hub: Start) -> str:
    """Label selector of all that this hub made; `hub`: any start of it."""
    return f"{START_ID},{HUB}={hub.server.hub_label},{HUB_NAMESPACE}={hub.hub_namespace}"


def start_of(pod: Object, hub: Start) -> Start | None:
    """The start that a pod of this hub is; None if it isn't marked as one."""
    try:
        hub_id, username, name = json.loads(pod["metadata"]["annotations"][SERVER])
    except (KeyError, TypeError, ValueError):
        return None
    start_id = start_id_of(pod)
    if hub_id != hub.server.hub_id or not start_id:
        return None
    return Start(Server(hub_id, username, name), start_id, hub.namespace, hub.hub_namespace, hub.common_labels)


def has_ended(pod: Object) -> bool:
    """Whether all containers of a pod have ended."""
    return pod["status"]["phase"] in {"Succeeded", "Failed"}
