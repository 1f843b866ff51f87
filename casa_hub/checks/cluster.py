"""The cluster: version, kinds, clock, the hub's rights, and other hubs in the namespace or below the same domain."""

from __future__ import annotations

import asyncio
import hashlib
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
from casa_hub.checks.rights import ROUTES, Right, needed
from casa_hub.checks.site import Site
from casa_hub.checks.web import NoAnswerError, clock
from casa_hub.configuration import value_of
from casa_hub.delivery.kubernetes.delivery import own_namespace
from casa_hub.delivery.kubernetes.manifests import HUB, HUB_NAMESPACE, INSTANCE

_API = "the Kubernetes API server"
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
#: Objects of a kind that are looked at.
_MOST = 10_000
#: Kubernetes since when native sidecars are on by default.
_SIDECARS = (1, 29)


async def look(site: Site) -> AsyncIterator[Finding]:
    if site.kubernetes is None or site.facility is None or site.routes is None:
        return
    try:
        async with kube(site.kubernetes) as api:
            version = await api.ask("GET", "/version")
            if version.status == HTTPStatus.UNAUTHORIZED:
                remedy = "The hub's ServiceAccount token must be mounted; a kubeconfig's may have expired."
                yield error(_API, "it doesn't know this account", remedy)
                return
            for finding in clock(_API, version, version.at, fails="tokens of accounts are refused"):
                yield finding
            yield read_version(version.document, sidecar=site.kubernetes.files == "sidecar")
            yield await _account(api)
            kind = site.routes.kind if site.facility.wants_routes else "none"
            if kind in ROUTES:
                yield await _kinds(api, kind)
            namespace = namespace_of(site)
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


def namespace_of(site: Site) -> str:
    """Of the servers; "" where each user has one."""
    cls, config = site.app.spawner_class, site.app.config
    if value_of(config, cls, "enable_user_namespaces"):
        return ""
    return value_of(config, cls, "namespace") or own_namespace()


# -- version and kinds -------------------------------------------------------------------------------------------------


def read_version(document: Mapping[str, Any], *, sidecar: bool) -> Finding:
    """Whether the API server's version is new enough."""
    found = re.match(r"v(\d+)\.(\d+)", str(document.get("gitVersion", "")))
    if found is None:
        return unseen(_API, "it doesn't tell its version", "Give the hub's ServiceAccount the group of all accounts.")
    version = int(found[1]), int(found[2])
    if sidecar and version < _SIDECARS:
        remedy = "Upgrade it, or set KubernetesDelivery.files to mount."
        return error(_API, f"version {found[0]} has no native sidecars, which came with 1.29", remedy)
    return ok(_API, f"version {found[0]}")


async def _account(api: Kube) -> Finding:
    """Whose rights are looked at: with an administrator's KUBECONFIG they aren't the hub's."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = await api.ask("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body)
    name = answer.document.get("status", {}).get("userInfo", {}).get("username", "")
    return ok(_API, f"it knows this account as {name}" if name else "it doesn't tell which account this is")


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
    """Whether the cluster has the kind of routes that is set.

    Args:
        kind: `TraefikRoutes.kind`.
        known: plurals that its group has in the version that we write.
        versions: of the group, if that isn't among them.
    """
    group, version, plural = ROUTES[kind]
    thing = f"{plural}.{group}/{version}"
    if plural in known:
        return ok(thing, "the cluster has it")
    there = f"of {group} it serves {', '.join(versions)}" if versions else f"nothing of {group} is installed"
    return error(
        thing,
        f"the cluster doesn't have it, which TraefikRoutes.kind = {kind} needs: {there}",
        "Install the CustomResourceDefinitions of your Traefik (or Gateway API), or set TraefikRoutes.kind to what is "
        "there.",
    )


async def _traefik(api: Kube, kind: str) -> list[Finding]:
    """Versions of Traefik in the cluster, if this account may list pods there (the hub's may not)."""
    if kind not in ROUTES or not await _may(api, Right("", "pods", "list"), ""):
        return []
    selector = urlencode({"labelSelector": "app.kubernetes.io/name=traefik", "limit": 500})
    pods = await api.ask("GET", f"/api/v1/pods?{selector}")
    return read_traefik(kind, pods.document.get("items") or [])


def read_traefik(kind: str, pods: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Whether each version of Traefik in these pods is safe, by the tags of their images."""
    neighbours = [versions.TRAEFIK, *([versions.TRAEFIK_GATEWAY] if kind == "gateway" else [])]
    found = (
        versions.read(neighbour, f"version of Traefik in pod {pod}", tag)
        for tag, pod in versions.of_pods(pods).items()
        for neighbour in neighbours
    )
    return [one for one in found if one is not None]


# -- rights ------------------------------------------------------------------------------------------------------------


async def _rights(site: Site, api: Kube, kind: str, namespace: str) -> AsyncIterator[Finding]:
    assert site.facility is not None  # noqa: S101 - for the type checker
    assert site.routes is not None  # noqa: S101
    wanted = needed(
        kind,
        secrets=bool(site.facility.credentials),
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
    """Findings of what the API server said to each right; None: it didn't say."""
    where = f"in namespace {namespace}" if namespace else "in all namespaces"
    lacking: dict[tuple[str, str], list[str]] = {}
    for right, allowed in answers.items():
        if allowed is False:
            lacking.setdefault((right.group, right.resource), []).append(right.verb)
    found = [
        error(
            f"the hub's right to {resource}" + (f".{group}" if group else ""),
            f"its account may not {', '.join(verbs)} them {where}",
            "Apply casa_hub's helm-values/role.yaml there, beside the Role of Zero to JupyterHub.",
        )
        for (group, resource), verbs in lacking.items()
    ]
    unknown = sum(allowed is None for allowed in answers.values())
    if unknown:
        remedy = "Is the account of KUBECONFIG, or of the pod, still known to the cluster?"
        found.append(unseen("the hub's rights", f"the API server doesn't say {unknown} of them", remedy))
    return found or [ok("the hub's rights", f"it has all {len(answers)} of them {where}")]


# -- other hubs --------------------------------------------------------------------------------------------------------


async def _others(site: Site, api: Kube, namespace: str) -> AsyncIterator[Finding]:
    if not namespace or site.facility is None:
        return
    pods = await api.ask(
        "GET", f"/api/v1/namespaces/{namespace}/pods?{urlencode({'labelSelector': HUB, 'limit': 500})}"
    )
    if pods.status != HTTPStatus.OK:
        if pods.status != HTTPStatus.FORBIDDEN:  # which is told among the rights
            yield unseen(f"pods in namespace {namespace}", message(pods), "Try again in a minute.")
        return
    label, spaces = site.facility.server("").hub_label, _hub_namespaces(namespace)
    own = (label, spaces[0], await asyncio.to_thread(_instance, site))
    seen = {_labels(each) for each in pods.document.get("items", [])}
    for finding in read_hubs(own, {(hub, spaces[0] if where in spaces else where, one) for hub, where, one in seen}):
        yield finding


async def _domain(site: Site, api: Kube, kind: str, namespace: str) -> AsyncIterator[Finding]:
    """Of all namespaces, if this account may list there: an administrator's may, the hub's own need not."""
    if kind not in ROUTES or site.dask is None or site.facility is None:
        return
    routes: list[Mapping[str, Any]] = []
    seen = ""
    for each, (group, version, plural) in ROUTES.items():  # another hub's may be of another kind
        found = None
        if await _may(api, Right(group, plural, "list"), ""):
            found, where = await _listed(api, f"/apis/{group}/{version}/{plural}"), "in the cluster"
        elif each == kind and namespace:
            found = await _listed(api, f"/apis/{group}/{version}/namespaces/{namespace}/{plural}")
            where = f"in namespace {namespace}; this account may not look into others"
        if found is not None:
            routes += found
            seen = where if each == kind else seen
    labels = (site.dask.scheduler_label, site.dask.worker_label)
    suffixes = tuple(f".{label}.{site.dask.domain}" for label in labels)
    own = [(site.facility.server("").hub_label, where) for where in _hub_namespaces(namespace)]
    for finding in read_routes(own, namespace, routes, suffixes, seen):
        yield finding


async def _listed(api: Kube, path: str) -> list[Mapping[str, Any]] | None:
    """Objects of a kind; None where they can't be looked at, or the cluster hasn't the kind, which others tell."""
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
    """What labels may say of the namespace of this hub; `namespace` is its servers'.

    In a pod it is known. From elsewhere it may be a hub's beside this command, or one's in the cluster, which is where
    its servers are, as Zero to JupyterHub has it.
    """
    elsewhere = namespace and "KUBERNETES_SERVICE_HOST" not in os.environ
    return [own_namespace(), *([namespace] if elsewhere else [])]


#: Labels of a pod: hub id, the hub's namespace, installation.
_Labels = tuple[str, str, str]


def _labels(described: Mapping[str, Any]) -> _Labels:
    labels = described["metadata"].get("labels") or {}
    return labels.get(HUB, ""), labels.get(HUB_NAMESPACE, ""), labels.get(INSTANCE, "")


def read_hubs(own: _Labels, seen: Iterable[_Labels]) -> list[Finding]:
    """Which other hubs have pods in the namespace, and whether they can be told from this one.

    Args:
        own: labels that pods of this hub have; its installation may be "", unknown.
        seen: labels of all pods.
    """
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
                "Give each hub a Facility.hub_id of its own.",
            )
        )
    if others and not own[0]:
        found.append(
            warning(
                "Facility.hub_id",
                f"it is not set, and other hubs have servers in the same namespace ({_named(others)})",
                "Set it: credentials of this hub's servers can't be told from others' else.",
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
    """Whether others have host names below this hub's: who is called alike would meet there.

    Args:
        own: labels that this hub's routes may have: hub id and the hub's namespace.
        namespace: of its servers; "" where each user has one.
        items: routes.
        suffixes: what its host names end with.
        seen: where these routes are all that there are; "" if nowhere.
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
        elif where != namespace:  # in this hub's own they are left of what was there before it
            clash.add(f"something in namespace {where}, which is no hub with casa_hub, has")
    if clash:
        return [
            error(
                "Dask.domain",
                f"{' and '.join(sorted(clash))} host names below the same domain",
                "Give each hub a Dask.domain of its own: a user's servers at both hubs have the same names else.",
            )
        ]
    return [ok("Dask.domain", f"nobody else has routes below it {seen}")] if seen else []


def _named(hubs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{hub or 'without hub_id'} of namespace {namespace}" for hub, namespace in sorted(hubs))


def _instance(site: Site) -> str:
    """As `Start.instance`; "" if the hub has not been started here and its cookie secret is nowhere to be read."""
    secret = site.app.cookie_secret
    if not secret:
        try:
            secret = bytes.fromhex(Path(site.app.cookie_secret_file).read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            return ""
    return hashlib.sha256(b"casa_hub instance " + secret).hexdigest()[:12]
