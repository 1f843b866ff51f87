"""Checks the cluster: version, kinds of routes, clock, the hub's rights, other hubs in the namespace or domain."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from casa_hub.checks import versions
from casa_hub.checks.findings import Finding, error, ok, unseen, warning
from casa_hub.checks.kube import Kube, kube, message
from casa_hub.checks.rights import Right, needed
from casa_hub.checks.site import Site
from casa_hub.checks.web import NoAnswerError, clock
from casa_hub.delivery.kubernetes.delivery import own_namespace, servers_namespace
from casa_hub.delivery.kubernetes.manifests import HUB, HUB_NAMESPACE, INSTANCE, instance_of
from casa_hub.delivery.kubernetes.routes import ROUTES
from casa_hub.unknown_keys import value_of

_API = "the Kubernetes API server"
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
#: Most objects of a kind that are read.
_MOST = 10_000
#: Version of Kubernetes since which native sidecars are on by default.
_SIDECARS = (1, 29)


async def look(site: Site) -> AsyncIterator[Finding]:
    if site.kubernetes is None or site.facility is None or site.routes is None:
        return
    try:
        async with kube(site.kubernetes) as api:
            version = await api.ask("GET", "/version")
            if version.status == HTTPStatus.UNAUTHORIZED:
                remedy = "The hub's ServiceAccount token must be mounted. The token of a kubeconfig may have expired."
                yield error(_API, "doesn't know this account", remedy)
                return
            for finding in clock(_API, version, version.at, fails="tokens of accounts are refused"):
                yield finding
            yield read_version(version.document, sidecar=site.kubernetes.files == "sidecar")
            yield await _account(api)
            kind = site.routes.kind if site.facility.wants_routes else "none"
            if kind in ROUTES:
                yield await _kinds(api, kind)
            namespace = servers_namespace(site.app.config, site.app.spawner_class)
            async for finding in _rights(site, api, kind, namespace):
                yield finding
            async for finding in _others(site, api, namespace):
                yield finding
            async for finding in _domain(site, api, kind, namespace):
                yield finding
            for finding in await _traefik(api, kind):
                yield finding
    except NoAnswerError as problem:
        remedy = "Run this in the hub's pod, or with KUBECONFIG."
        yield error(_API, str(problem), remedy)


# -- version and kinds -------------------------------------------------------------------------------------------------


def read_version(document: Mapping[str, Any], *, sidecar: bool) -> Finding:
    """Whether the API server's version is new enough."""
    found = re.match(r"v(\d+)\.(\d+)", str(document.get("gitVersion", "")))
    if found is None:
        remedy = "Let the hub's ServiceAccount read /version, as all accounts may by default."
        return unseen(_API, "doesn't tell its version", remedy)
    version = int(found[1]), int(found[2])
    if sidecar and version < _SIDECARS:
        remedy = "Upgrade it, or set KubernetesDelivery.files to mount."
        return error(_API, f"version {found[0]} has no native sidecars, which came with 1.29", remedy)
    return ok(_API, f"version {found[0]}")


async def _account(api: Kube) -> Finding:
    """The account whose rights are checked: with an administrator's KUBECONFIG it isn't the hub's."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = await api.ask("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body)
    name = answer.document.get("status", {}).get("userInfo", {}).get("username", "")
    return ok(_API, f"knows this account as {name}" if name else "doesn't tell which account this is")


async def _kinds(api: Kube, kind: str) -> Finding:
    group, version, plural = ROUTES[kind]
    served = await api.ask("GET", f"/apis/{group}/{version}")
    known = [str(each.get("name")) for each in served.document.get("resources", [])]
    versions: list[str] = []
    if plural not in known:
        answer = await api.ask("GET", f"/apis/{group}")
        versions = [str(each.get("version")) for each in answer.document.get("versions", [])]
    return read_kinds(kind, known, versions)


def read_kinds(kind: str, known: Collection[str], versions: Collection[str]) -> Finding:
    """Whether the cluster has the configured kind of routes.

    `known`: plurals of the group in the version that the hub writes. `versions`: those that the cluster has instead.
    """
    group, version, plural = ROUTES[kind]
    thing = f"{plural}.{group}/{version}"
    if plural in known:
        return ok(thing, "is installed")
    there = f"the cluster has {', '.join(versions)} of {group}" if versions else f"nothing of {group} is installed"
    return error(
        thing,
        f"is not installed, but TraefikRoutes.kind = {kind} needs it: {there}",
        "Install the CustomResourceDefinitions of your Traefik (or Gateway API), or set TraefikRoutes.kind to a kind "
        "that is installed.",
    )


async def _traefik(api: Kube, kind: str) -> list[Finding]:
    """Findings about Traefik's version, if this account may list all pods; the hub's own account may not."""
    if kind not in ROUTES or not await _may(api, Right("", "pods", "list"), ""):
        return []
    selector = urlencode({"labelSelector": "app.kubernetes.io/name=traefik", "limit": 500})
    pods = await api.ask("GET", f"/api/v1/pods?{selector}")
    return read_traefik(kind, pods.document.get("items") or [])


def read_traefik(kind: str, pods: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Whether the versions of Traefik in these pods are safe, by the tags of their images."""
    neighbours = [versions.TRAEFIK, *([versions.TRAEFIK_GATEWAY] if kind == "gateway" else [])]
    found = (
        versions.read(neighbour, f"version of Traefik in pod {pod}", tag)
        for tag, pod in versions.of_pods(pods).items()
        for neighbour in neighbours
    )
    return [finding for finding in found if finding is not None]


# -- rights ------------------------------------------------------------------------------------------------------------


async def _rights(site: Site, api: Kube, kind: str, namespace: str) -> AsyncIterator[Finding]:
    assert site.facility is not None  # noqa: S101 - for the type checker
    assert site.routes is not None  # noqa: S101
    wanted = needed(
        kind,
        secrets=bool(site.facility.credentials or site.facility.minters),
        routes=site.facility.wants_routes,
        policies=bool(site.routes.network_policy_peers),
        claims=bool(value_of(site.app.config, site.app.spawner_class, "storage_pvc_ensure")),
    )
    answers = await asyncio.gather(*(_may(api, right, namespace) for right in wanted))
    for finding in read_rights(dict(zip(wanted, answers, strict=True)), namespace):
        yield finding


async def _may(api: Kube, right: Right, namespace: str) -> bool | None:
    attributes = {**right._asdict(), **({"namespace": namespace} if namespace else {})}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await api.ask("POST", _REVIEWS, body)
    if answer.status not in {HTTPStatus.OK, HTTPStatus.CREATED}:
        return None
    return bool(answer.document.get("status", {}).get("allowed"))


def read_rights(answers: Mapping[Right, bool | None], namespace: str) -> list[Finding]:
    """Findings about the hub's rights; `answers`: right -> whether the API server grants it; None: it didn't say."""
    where = f"in namespace {namespace}" if namespace else "in all namespaces"
    lacking: dict[tuple[str, str], list[str]] = {}
    for right, allowed in answers.items():
        if allowed is False:
            lacking.setdefault((right.group, right.resource), []).append(right.verb)
    found = [
        error(
            f"the hub's right to {resource}" + (f".{group}" if group else ""),
            f"the hub's account may not {', '.join(verbs)} them {where}",
            "Apply casa_hub's helm-values/role.yaml there, beside the Role of Zero to JupyterHub.",
        )
        for (group, resource), verbs in lacking.items()
    ]
    unknown = sum(allowed is None for allowed in answers.values())
    if unknown:
        remedy = "Check that the cluster still knows the account of KUBECONFIG, or of the pod."
        found.append(unseen("the hub's rights", f"the API server doesn't tell {unknown} of them", remedy))
    return found or [ok("the hub's rights", f"the hub has all {len(answers)} of them {where}")]


# -- other hubs --------------------------------------------------------------------------------------------------------


async def _others(site: Site, api: Kube, namespace: str) -> AsyncIterator[Finding]:
    if not namespace or site.facility is None:
        return
    pods = await api.ask(
        "GET", f"/api/v1/namespaces/{namespace}/pods?{urlencode({'labelSelector': HUB, 'limit': 500})}"
    )
    if pods.status != HTTPStatus.OK:
        if pods.status != HTTPStatus.FORBIDDEN:  # reported by `_rights`
            yield unseen(f"pods in namespace {namespace}", message(pods), "Try again in a minute.")
        return
    label, spaces = site.facility.server("").hub_label, _hub_namespaces(namespace)
    own = (label, spaces[0], await asyncio.to_thread(_instance, site))
    seen = {_labels(each) for each in pods.document.get("items", [])}
    for finding in read_hubs(own, {(hub, spaces[0] if where in spaces else where, one) for hub, where, one in seen}):
        yield finding


async def _domain(site: Site, api: Kube, kind: str, namespace: str) -> AsyncIterator[Finding]:
    """Whether others have host names below the hub's domain, in all namespaces that this account may list.

    An administrator's account may list all of them; the hub's own may list only its servers' namespace.
    """
    if kind not in ROUTES or site.dask is None or site.facility is None:
        return
    routes: list[Mapping[str, Any]] = []
    seen = ""
    for each, (group, version, plural) in ROUTES.items():  # the routes of another hub may be of another kind
        found = None
        if await _may(api, Right(group, plural, "list"), ""):
            found, where = await _listed(api, f"/apis/{group}/{version}/{plural}"), "in the cluster"
        elif each == kind and namespace:
            found = await _listed(api, f"/apis/{group}/{version}/namespaces/{namespace}/{plural}")
            where = f"in namespace {namespace}; this account may not list those of other namespaces"
        if found is not None:
            routes += found
            seen = where if each == kind else seen
    labels = (site.dask.scheduler_label, site.dask.worker_label)
    suffixes = tuple(f".{label}.{site.dask.domain}" for label in labels)
    own = [(site.facility.server("").hub_label, where) for where in _hub_namespaces(namespace)]
    for finding in read_routes(own, namespace, routes, suffixes, seen):
        yield finding


async def _listed(api: Kube, path: str) -> list[Mapping[str, Any]] | None:
    """Objects of a kind; None if they can't be listed or the cluster doesn't have the kind (see `_kinds`)."""
    found: list[Mapping[str, Any]] = []
    query = {"limit": "500"}
    while len(found) < _MOST:
        answer = await api.ask("GET", f"{path}?{urlencode(query)}")
        if answer.status != HTTPStatus.OK:
            return None
        found += answer.document.get("items") or []
        if not (more := (answer.document.get("metadata") or {}).get("continue")):
            break
        query["continue"] = more
    return found


def _hub_namespaces(namespace: str) -> list[str]:
    """Namespaces that this hub may have; `namespace` is that of its servers.

    In a pod the namespace is known. Elsewhere the hub may run beside this command; or in the cluster, and then in the
    namespace of its servers, as with Zero to JupyterHub.
    """
    elsewhere = namespace and "KUBERNETES_SERVICE_HOST" not in os.environ
    return [own_namespace(), *([namespace] if elsewhere else [])]


#: Labels of a pod: hub id, the hub's namespace, installation.
_Labels = tuple[str, str, str]


def _labels(described: Mapping[str, Any]) -> _Labels:
    labels = described["metadata"].get("labels") or {}
    return labels.get(HUB, ""), labels.get(HUB_NAMESPACE, ""), labels.get(INSTANCE, "")


def read_hubs(own: _Labels, seen: Iterable[_Labels]) -> list[Finding]:
    """Which other hubs have pods in the namespace, and whether their labels (`seen`) differ from this hub's (`own`)."""
    found, others = [], set()
    instances = {own[2]} - {""}
    for hub, hub_namespace, instance in seen:
        if (hub, hub_namespace) == own[:2]:
            instances |= {instance} - {""}
        else:
            others.add((hub, hub_namespace))
    called = f"hub_id {own[0]!a}" if own[0] else "no hub_id"
    if len(instances) > 1:
        found.append(
            warning(
                "Facility.hub_id",
                f"another hub with {called} has servers in the same namespace, or this one had another cookie secret",
                "Give each hub its own Facility.hub_id.",
            )
        )
    if others and not own[0]:
        found.append(
            warning(
                "Facility.hub_id",
                f"is not set, and other hubs have servers in the same namespace ({_named(others)})",
                "Set it: else nobody can tell the credentials of this hub's servers from the others'.",
            )
        )
    if not found:
        seen_others = f"other hubs there: {_named(others)}" if others else "no other hub has servers there"
        found.append(ok("Facility.hub_id", f"{called}; {seen_others}"))
    return found


def read_routes(
    own: Collection[tuple[str, str]],
    namespace: str,
    items: Iterable[Mapping[str, Any]],
    suffixes: tuple[str, ...],
    seen: str,
) -> list[Finding]:
    """Whether others have host names below this hub's domain: users of the same name would share a host name.

    Args:
        own: labels that this hub's routes may have: hub id and the hub's namespace.
        namespace: of its servers; "" if each user has one.
        items: routes.
        suffixes: ends of this hub's host names.
        seen: where all routes were listed; "" if they were listed nowhere.
    """
    clash = set()
    for each in items:
        other, where = _labels(each)[:2], each["metadata"].get("namespace", "")
        spec = each.get("spec") or {}
        hosts = [*spec.get("hostnames", []), *re.findall(r"`([^`]+)`", str(spec.get("routes", "")))]
        if other in own or not any(host.endswith(suffixes) for host in hosts):
            continue
        if any(other):
            clash.add(f"servers of another hub ({_named([other])}) have")
        elif where != namespace:  # in the hub's own namespace they are left from what ran there before it
            clash.add(f"something in namespace {where} that is not a casa_hub hub has")
    if clash:
        return [
            error(
                "Dask.domain",
                f"{' and '.join(sorted(clash))} host names below the same domain",
                "Give each hub its own Dask.domain: else a user's servers at both hubs have the same names.",
            )
        ]
    return [ok("Dask.domain", f"nobody else has routes below it {seen}")] if seen else []


def _named(hubs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{hub or 'without hub_id'} of namespace {namespace}" for hub, namespace in sorted(hubs))


def _instance(site: Site) -> str:
    """The label value of this installation; "" if the cookie secret can't be read."""
    secret = site.app.cookie_secret
    if not secret:
        try:
            secret = bytes.fromhex(Path(site.app.cookie_secret_file).read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            return ""
    return instance_of(secret)
