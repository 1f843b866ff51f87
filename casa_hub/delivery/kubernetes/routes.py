"""Routes of a server in Kubernetes: pure functions from its hosts to route objects.

Traefik: one ``IngressRouteTCP``. Gateway API: a ``TLSRoute`` for each host, because its rules can't tell hosts apart.
Both lead to the Service of this start, so only to this start's pod.

Two starts of a server have the same hosts. Routes of the earlier start may still exist, because garbage collection
comes some time after the pod's end. Traefik uses the route with the highest priority: we give it to the newest. Without
a priority it could use a route without a pod, if it allows empty services, as its Helm chart does. A `TLSRoute` has no
priority, and in Gateway API the oldest wins: the host leads nowhere until the old route is collected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from casa_hub.credentials.base import Route
from casa_hub.delivery.kubernetes.manifests import Object, Pod, Start, metadata
from casa_hub.delivery.traefik import TraefikRoutes, checked, rule

#: `TraefikRoutes.kind` -> API group, version and plural of its route objects.
ROUTES = {
    "traefik": ("traefik.io", "v1alpha1", "ingressroutetcps"),
    "traefik-v2": ("traefik.containo.us", "v1alpha1", "ingressroutetcps"),
    "gateway": ("gateway.networking.k8s.io", "v1", "tlsroutes"),
}
#: Annotations in which external-dns looks for the target of a name: since 0.22, and before.
EXTERNAL_DNS_TARGET = ("external-dns.kubernetes.io/target", "external-dns.alpha.kubernetes.io/target")
#: Traefik 2 and 3 read this annotation; only recent versions know the field `spec.ingressClassName`.
INGRESS_CLASS = "kubernetes.io/ingress.class"

#: Zero to JupyterHub gives this label to the pods that may connect to servers: hub and proxy.
_NETWORK_ACCESS = {"hub.jupyter.org/network-access-singleuser": "true"}
#: KubeSpawner's name of the notebook's port.
_NOTEBOOK_PORT = "notebook-port"


def route_objects(settings: TraefikRoutes, start: Start, pod: Pod, routes: Iterable[Route]) -> list[Object]:
    """The route objects and the network policy, according to the settings. The Service is `manifests.service`.
    Raises DeliveryError as `traefik.checked`.
    """
    ordered = checked(routes)
    if not ordered:
        return []
    objects: list[Object] = []
    if settings.kind == "gateway":
        objects.extend(_tls_route(settings, start, pod, route) for route in ordered)
    elif settings.kind in ROUTES:
        objects.append(_ingress_route(settings, start, pod, ordered))
    if settings.network_policy_peers:
        objects.append(_network_policy(settings, start, pod, ordered))
    return objects


def _ingress_route(settings: TraefikRoutes, start: Start, pod: Pod, routes: Sequence[Route]) -> Object:
    described = _metadata(settings, start, pod)
    if settings.ingress_class:
        described["annotations"][INGRESS_CLASS] = settings.ingress_class
    if settings.external_dns_target:
        described["annotations"] |= dict.fromkeys(EXTERNAL_DNS_TARGET, settings.external_dns_target)
    return {
        "apiVersion": _api_version(settings.kind),
        "kind": "IngressRouteTCP",
        "metadata": described,
        "spec": {
            "entryPoints": list(dict.fromkeys(map(settings.entry_point, routes))),
            "routes": [
                {
                    "match": rule(route),
                    "priority": pod.created,
                    "services": [{"name": start.name, "port": route.port}],
                }
                for route in routes
            ],
            "tls": {"passthrough": True},
        },
    }


def _tls_route(settings: TraefikRoutes, start: Start, pod: Pod, route: Route) -> Object:
    namespace, _, gateway = settings.gateway.rpartition("/")
    return {
        "apiVersion": _api_version(settings.kind),
        "kind": "TLSRoute",
        # One letter only, so that the name stays below 64 characters.
        "metadata": _metadata(settings, start, pod, name=f"{start.name}{route.purpose[0]}"),
        "spec": {
            "parentRefs": [
                {
                    # These two are the defaults. Written here, the fields are ours, and nobody else can change them.
                    "group": "gateway.networking.k8s.io",
                    "kind": "Gateway",
                    "namespace": namespace or start.namespace,
                    "name": gateway,
                    "sectionName": settings.listener(route),
                }
            ],
            "hostnames": [route.host],
            "rules": [
                {"backendRefs": [{"group": "", "kind": "Service", "name": start.name, "port": route.port, "weight": 1}]}
            ],
        },
    }


def _network_policy(settings: TraefikRoutes, start: Start, pod: Pod, routes: Sequence[Route]) -> Object:
    hub = {"kubernetes.io/metadata.name": start.hub.namespace}  # Kubernetes puts it on every namespace
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(start, pod, "policy"),
        "spec": {
            "podSelector": {"matchLabels": start.selector},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": settings.network_policy_peers,
                    "ports": [{"protocol": "TCP", "port": port} for port in sorted({route.port for route in routes})],
                },
                # A policy isolates its pods. Without this rule, and without another policy that lets them in, hub and
                # proxy could not connect.
                {
                    "from": [
                        {"namespaceSelector": {"matchLabels": hub}, "podSelector": {"matchLabels": _NETWORK_ACCESS}}
                    ],
                    "ports": [{"protocol": "TCP", "port": _NOTEBOOK_PORT}],
                },
            ],
        },
    }


def _api_version(kind: str) -> str:
    group, version, _ = ROUTES[kind]
    return f"{group}/{version}"


def _metadata(settings: TraefikRoutes, start: Start, pod: Pod, *, name: str = "") -> Object:
    described = metadata(start, pod, "route", name=name)
    described["labels"] = {**settings.labels, **described["labels"]}
    described["annotations"] = {**settings.annotations, **described["annotations"]}
    return described
