"""The operator's settings of routes, on one machine and in Kubernetes, and the check of host names.

A route leads TLS connections with a certain SNI to a server, and leaves them encrypted. Dask terminates TLS itself,
with certificates of the server's own CA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from traitlets import Dict, Enum, List, TraitError, Unicode, validate
from traitlets.config import LoggingConfigurable

from casa_hub.credentials.base import Route
from casa_hub.errors import DeliveryError, Problem, Severity
from casa_hub.naming import DNS_LABEL, DNS_NAME, is_label_value

#: ``alice.dask.example.org``: a DNS name (RFC 1123) of at most 253 characters. Other characters may not get into a
#: rule: a back quote or "*" would make it match other hosts, too.
_HOST = re.compile(rf"(?=.{{1,253}}\Z){DNS_NAME}\Z")
#: ``NAME`` or ``NAMESPACE/NAME``.
_GATEWAY = re.compile(rf"({DNS_LABEL}/)?{DNS_NAME}\Z")
#: Key of a label or an annotation (Kubernetes, "qualified name"): maybe a DNS name and "/", then up to 63 characters.
_KEY = re.compile(rf"((?=[^/]{{1,253}}/){DNS_NAME}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{{0,61}}[A-Za-z0-9])?\Z")
#: Fields of Kubernetes' `NetworkPolicyPeer`.
_PEER_FIELDS = frozenset({"namespaceSelector", "podSelector", "ipBlock"})

_TRAEFIK = frozenset({"kind", "entry_points", "labels", "annotations", "ingress_class", "external_dns_target"})
#: Kind -> settings that have an effect in Kubernetes. `network_policy_peers` always has one.
_EFFECTIVE = {
    "traefik": _TRAEFIK,
    "traefik-v2": _TRAEFIK,
    "gateway": frozenset({"kind", "labels", "annotations", "gateway", "listeners"}),
    "none": frozenset({"kind"}),
}
_EFFECTIVE_LOCALLY = frozenset({"kind", "entry_points", "directory"})


def checked(routes: Iterable[Route]) -> list[Route]:
    """The same routes. Raises DeliveryError if a host is not a DNS name, or if two routes have the same host."""
    by_host: dict[str, Route] = {}
    for route in routes:
        if not _HOST.match(route.host):
            raise DeliveryError(repr(route.host), "is not a DNS name, so it can't have a route", "Check the domain.")
        if route.host in by_host:
            remedy = "Enable only one of the credentials that want this host."
            raise DeliveryError(route.host, "two routes lead to it", remedy)
        by_host[route.host] = route
    return list(by_host.values())


def rule(route: Route) -> str:
    """The rule of a checked route, for Traefik 2 and 3."""
    return f"HostSNI(`{route.host}`)"


class TraefikRoutes(LoggingConfigurable):
    """How Dask clients outside reach servers, by SNI."""

    kind = Enum(
        ["traefik", "traefik-v2", "gateway", "none"],
        default_value="traefik",
        help="""What leads from outside to a server's Dask scheduler and worker. `traefik` (default): Traefik 3; in
        Kubernetes an `IngressRouteTCP` of `traefik.io/v1alpha1` for each server, on one machine a file for each in
        `TraefikRoutes.directory`. `traefik-v2`: the same object in `traefik.containo.us/v1alpha1`, which Traefik 2
        reads and Traefik 3 does not. `gateway`: Gateway API, two `TLSRoute` of `gateway.networking.k8s.io/v1` for each
        server (Gateway API 1.5 or newer; Traefik 3.7 or newer, or another implementation). A server that is started
        again at once can be reached when Kubernetes has collected the routes of its earlier start, usually within a
        second. `none`: no routes; schedulers can only be reached inside the cluster, or on this machine. `traefik-v2`
        and `gateway` are for Kubernetes.""",
    ).tag(config=True)

    entry_points = List(
        Unicode(),
        default_value=["dask", "daskworker"],
        minlen=2,
        maxlen=2,
        help="""Names of the two entry points in Traefik's own configuration: the one for Dask schedulers, then the one
        for Dask workers. In Kubernetes, each of a server's two names works at both. For `traefik` and `traefik-v2`.
        Default: `[dask, daskworker]`.""",
    ).tag(config=True)

    directory = Unicode(
        "",
        help="""Directory of Traefik's file provider (`providers.file.directory`, with `watch: true`), which must exist
        and be writable by the hub. Each running server has one file there. On one machine only; no default: needed
        there as soon as a credential wants routes. Example: `/etc/traefik/casa-hub`.""",
    ).tag(config=True)

    gateway = Unicode(
        "",
        help="""The `Gateway` that servers' routes attach to, `NAME` (in the servers' namespace) or `NAMESPACE/NAME`.
        Its listeners must let routes of the servers' namespace in (`allowedRoutes.namespaces`). For `gateway`, needed
        there. Example: `traefik/dask`.""",
    ).tag(config=True)

    listeners = List(
        Unicode(),
        default_value=["dask", "daskworker"],
        minlen=2,
        maxlen=2,
        help="""Names of two listeners of `TraefikRoutes.gateway`: the one for Dask schedulers, then the one for Dask
        workers. Both have `protocol: TLS` and `tls.mode: Passthrough`, and Traefik wants their ports to be those of
        its entry points. For `gateway`. Default: `[dask, daskworker]`.""",
    ).tag(config=True)

    labels = Dict(
        value_trait=Unicode(),
        key_trait=Unicode(),
        help="""Labels of the route objects, beside ours, which win: for a Traefik that looks at some objects only
        (`providers.kubernetesCRD.labelSelector`). Kubernetes only. Default: none. Example: `{traefik: public}`.""",
    ).tag(config=True)

    annotations = Dict(
        value_trait=Unicode(),
        key_trait=Unicode(),
        help="""Annotations of the route objects, beside ours, which win. Kubernetes only. Default: none. Example, how
        long resolvers keep the names: `{external-dns.alpha.kubernetes.io/ttl: "60"}`.""",
    ).tag(config=True)

    ingress_class = Unicode(
        "",
        help="""Class of the Traefik that is to serve the routes, where there are several
        (`providers.kubernetesCRD.ingressClass`); becomes the annotation `kubernetes.io/ingress.class`. For `traefik`
        and `traefik-v2` in Kubernetes. Default: none, which every Traefik without such a setting serves. Example:
        `traefik-public`.""",
    ).tag(config=True)

    external_dns_target = Unicode(
        "",
        help="""Address or host name of Traefik as users reach it, for external-dns, whose source `traefik-proxy` then
        makes a DNS record for each server; becomes the annotation `target` of external-dns (both spellings: with
        `alpha` before external-dns 0.22, without it since). For `traefik` and `traefik-v2` in Kubernetes; with
        `gateway`, the source `gateway-tlsroute` takes it from the Gateway. Default: none, for a site with wildcard
        records. Example: `traefik.example.org`.""",
    ).tag(config=True)

    network_policy_peers = List(
        Dict(),
        help="""Who may connect to the Dask ports of servers: peers as in `ingress.from` of a `NetworkPolicy`. If any is
        given, each server has such a policy, which selects this server's pod only. Policies add up. Where the chart's
        own (`singleuser.networkPolicy`) is on, this policy opens the Dask ports to these peers and changes nothing
        else. Where there is no other, it also closes all ports but two kinds: the Dask ports for these peers, and the
        notebook's port for pods in the hub's namespace with the chart's label
        `hub.jupyter.org/network-access-singleuser: "true"` (hub and proxy). It does not limit what a server connects
        to. Kubernetes only, with a network that enforces policies. Default: no policy. Example, Traefik in its own
        namespace:
        `[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: traefik}}}]`.""",
    ).tag(config=True)

    @validate("gateway")
    def _valid_gateway(self, proposal: dict[str, Any]) -> str:
        value: str = proposal["value"]
        if value and not _GATEWAY.match(value):
            raise TraitError(f"TraefikRoutes.gateway is {value!a}, must be NAME or NAMESPACE/NAME.")
        return value

    @validate("listeners")
    def _valid_listeners(self, proposal: dict[str, Any]) -> list[str]:
        value: list[str] = proposal["value"]
        for name in value:
            if not _HOST.match(name):  # Gateway API: the name of a listener has the form of a DNS name
                raise TraitError(f"TraefikRoutes.listeners: {name!a} is not the name of a listener.")
        return value

    @validate("labels", "annotations")
    def _valid_keys(self, proposal: dict[str, Any]) -> dict[str, str]:
        value: dict[str, str] = proposal["value"]
        name = f"TraefikRoutes.{proposal['trait'].name}"
        for key, text in value.items():
            if not _KEY.match(key):
                raise TraitError(f"{name}: {key!a} is not the name of a label or an annotation.")
            if proposal["trait"].name == "labels" and not is_label_value(text):
                raise TraitError(f"{name}: {text!a} is not a value of a label.")
        return value

    @validate("network_policy_peers")
    def _valid_peers(self, proposal: dict[str, Any]) -> list[dict[str, Any]]:
        value: list[dict[str, Any]] = proposal["value"]
        for peer in value:
            if not peer or not _PEER_FIELDS.issuperset(peer):
                raise TraitError(
                    f"TraefikRoutes.network_policy_peers: {peer!a} must have one or more of "
                    f"{', '.join(sorted(_PEER_FIELDS))}."
                )
        return value

    def entry_point(self, route: Route) -> str:
        """Traefik's entry point for the route."""
        return _of_purpose(self.entry_points, route)

    def listener(self, route: Route) -> str:
        """The Gateway's listener for the route."""
        return _of_purpose(self.listeners, route)

    def check(self, *, wanted: bool, local: bool) -> list[Problem]:
        """Problems of the settings.
        `wanted`: whether any credential wants routes. `local`: whether servers run on one machine, not in Kubernetes.
        """
        if not wanted:
            return []
        if local and self.kind not in {"traefik", "none"}:
            remedy = "Set it to traefik (on one machine, Traefik's file provider), or to none."
            return [Problem(Severity.ERROR, "TraefikRoutes.kind", f"is {self.kind}, which needs Kubernetes", remedy)]
        problems = []
        if local and self.kind == "traefik" and not self.directory:
            remedy = "Set it to the directory of Traefik's file provider, or set TraefikRoutes.kind to none."
            problems.append(Problem(Severity.ERROR, "TraefikRoutes.directory", "is not set", remedy))
        if self.kind == "gateway" and not self.gateway:
            remedy = "Set it to the Gateway that routes attach to, NAMESPACE/NAME."
            problems.append(Problem(Severity.ERROR, "TraefikRoutes.gateway", "is not set", remedy))
        return problems + self._without_effect(local=local)

    def _without_effect(self, *, local: bool) -> list[Problem]:
        if local:
            where, effective = "on one machine", _EFFECTIVE_LOCALLY
        else:
            where, effective = f"in Kubernetes with kind {self.kind}", _EFFECTIVE[self.kind] | {"network_policy_peers"}
        return [
            Problem(Severity.WARNING, f"TraefikRoutes.{name}", f"has no effect {where}", "Remove it.")
            for name in sorted(self.class_own_traits(config=True))
            if name not in effective and getattr(self, name) != self.trait_defaults(name)
        ]


def _of_purpose(names: list[str], route: Route) -> str:
    return dict(zip(("scheduler", "worker"), names, strict=True))[route.purpose]
