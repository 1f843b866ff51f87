"""`casa-hub check --probe`: creates a Secret, a Service and routes like those of a server, and removes them again.

First in a dry run of the API server, which asks admission and validation but no quota; then really. The objects have no
owner and lead to no pod.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http import HTTPStatus

from casa_hub.checks.findings import NOBODY, Finding, error, ok, warning
from casa_hub.checks.kube import Kube, kube, message
from casa_hub.checks.site import Site
from casa_hub.checks.web import NoAnswerError
from casa_hub.delivery.kubernetes import manifests
from casa_hub.delivery.kubernetes.api import APPLY, described
from casa_hub.delivery.kubernetes.delivery import own_namespace, servers_namespace
from casa_hub.delivery.kubernetes.manifests import MANAGER, HubMark, Object, Pod, Start
from casa_hub.delivery.kubernetes.routes import route_objects
from casa_hub.naming import Server


async def look(site: Site) -> AsyncIterator[Finding]:
    if site.kubernetes is None or site.facility is None or site.routes is None:
        return
    namespace = servers_namespace(site.app.config, site.app.spawner_class)
    if not namespace:
        yield ok("the probe", "is skipped: each user has a namespace, so there is none to try it in")
        return
    objects = _objects(site, namespace)
    try:
        async with kube(site.kubernetes) as api:
            for finding in await _try(api, objects):
                yield finding
    except NoAnswerError as problem:
        yield error("the Kubernetes API server", str(problem), "Run this in the hub's pod, or with KUBECONFIG.")


async def _try(api: Kube, objects: list[Object]) -> list[Finding]:
    dry = [finding for one in objects for finding in await _apply(api, one, "&dryRun=All")]
    if dry:
        return dry
    found: list[Finding] = []
    try:
        for one in objects:
            found += await _apply(api, one)
    finally:
        # Shielded: the objects must be removed even if this command is interrupted now.
        found += await asyncio.shield(_remove(api, objects))
    return found or [ok(described(one), "was created and removed again") for one in objects]


async def _apply(api: Kube, one: Object, options: str = "") -> list[Finding]:
    path = f"{manifests.path(one)}?fieldManager={MANAGER}{options}"
    answer = await api.ask("PATCH", path, one, content_type=APPLY)
    if answer.status in {HTTPStatus.OK, HTTPStatus.CREATED}:
        return []
    remedy = "A server would start without it, or not at all. Correct the Role, the quota, the policy or the setting."
    return [error(described(one), f"can't be created ({message(answer)})", remedy)]


async def _remove(api: Kube, objects: list[Object]) -> list[Finding]:
    found = []
    for one in objects:
        try:
            answer = await api.ask("DELETE", manifests.path(one))
            gone, why = answer.status in {HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NOT_FOUND}, message(answer)
        except NoAnswerError as problem:
            gone, why = False, str(problem)
        if not gone:
            remedy = (
                f"Delete it: kubectl delete -n {one['metadata']['namespace']} {one['kind']} {one['metadata']['name']}"
            )
            found.append(warning(described(one), f"could not be removed again ({why})", remedy))
    return found


def _objects(site: Site, namespace: str) -> list[Object]:
    """The objects of a starting server, without owner and without the labels by which hubs find their objects."""
    assert site.facility is not None  # noqa: S101 - for the type checker
    assert site.routes is not None  # noqa: S101
    server = Server(site.facility.hub_id, NOBODY)
    start = Start(server, secrets.token_hex(16), namespace, HubMark(own_namespace()))
    pod = Pod("none", "none", int(datetime.now(UTC).timestamp()))
    objects = [manifests.secret(start, pod, {"casa-hub-check": b"nothing"})]
    routes = site.facility.routes(server)
    if routes:
        objects += [manifests.service(start, pod, routes), *route_objects(site.routes, start, pod, routes)]
    for one in objects:
        del one["metadata"]["ownerReferences"], one["metadata"]["annotations"][manifests.SERVER]
        for label in (manifests.HUB, manifests.HUB_NAMESPACE):
            del one["metadata"]["labels"][label]
    return objects
