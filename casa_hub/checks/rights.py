"""The rights that the hub needs in Kubernetes: one table with all verbs that it uses."""

from __future__ import annotations

from typing import NamedTuple

from casa_hub.delivery.kubernetes.routes import ROUTES


class Right(NamedTuple):
    """One verb on one kind of objects in the servers' namespace."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f".{self.group}" if self.group else "")


_OBJECTS = ("get", "list", "create", "patch", "delete")


def needed(kind: str, *, secrets: bool, routes: bool, policies: bool, claims: bool) -> list[Right]:
    """The rights that a hub uses.

    Args:
        kind: `TraefikRoutes.kind`.
        secrets: whether servers get credentials.
        routes: whether a credential wants servers to be reachable from outside.
        policies: whether there are `TraefikRoutes.network_policy_peers`.
        claims: whether KubeSpawner creates volume claims (``storage_pvc_ensure``).
    """
    rights = [Right("", "pods", verb) for verb in ("get", "list", "watch", "create", "delete")]
    rights += [Right("", "events", verb) for verb in ("list", "watch")]  # KubeSpawner shows them on the spawn page
    if secrets:
        rights += [Right("", "secrets", verb) for verb in _OBJECTS]
    if claims:
        rights.append(Right("", "persistentvolumeclaims", "create"))
    if routes:
        rights += [Right("", "services", verb) for verb in _OBJECTS]
        group, _, plural = ROUTES.get(kind, ("", "", ""))
        rights += [Right(group, plural, verb) for verb in _OBJECTS if plural]
    if routes and policies:
        rights += [Right("networking.k8s.io", "networkpolicies", verb) for verb in _OBJECTS]
    return rights
