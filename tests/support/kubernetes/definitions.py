"""The kinds of Traefik and of the Gateway API, as far as the tests need them.

Written by hand, from Traefik's and the Gateway API's own types: each field of ours is here with its type, so that the
API server refuses one that is misspelt, and says so where it is asked to (``fieldValidation=Strict``). What only has to
exist, for a provider of Traefik to start, takes anything.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

ANYTHING: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
STRING: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 253}
PORT: Schema = {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535}
#: Traefik's provider `kubernetesCRD` waits for all of them before it starts.
TRAEFIK_KINDS = (
    "IngressRoute",
    "IngressRouteTCP",
    "IngressRouteUDP",
    "Middleware",
    "MiddlewareTCP",
    "ServersTransport",
    "ServersTransportTCP",
    "TLSOption",
    "TLSStore",
    "TraefikService",
)
GATEWAY_API = "gateway.networking.k8s.io"


def _object(properties: dict[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


def _list(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


_INGRESS_ROUTE_TCP = _object(
    {
        "entryPoints": _list(STRING),
        "routes": _list(
            _object(
                {
                    "match": STRING,
                    "priority": {"type": "integer"},
                    "services": _list(
                        _object(
                            {"name": STRING, "port": {"x-kubernetes-int-or-string": True}},
                            required=("name", "port"),
                        )
                    ),
                },
                required=("match",),
            )
        ),
        "tls": _object({"passthrough": {"type": "boolean"}}),
    },
    required=("routes",),
)

_TLS_ROUTE = _object(
    {
        "parentRefs": _list(
            _object(
                {
                    "group": {**STRING, "default": GATEWAY_API},
                    "kind": {**STRING, "default": "Gateway"},
                    "namespace": {"type": "string", "minLength": 1, "maxLength": 63},
                    "name": NAME,
                    "sectionName": NAME,
                },
                required=("name",),
            ),
            maxItems=32,
        ),
        "hostnames": _list(NAME, minItems=1, maxItems=16),
        "rules": _list(
            _object(
                {
                    "backendRefs": _list(
                        _object(
                            {
                                "group": {**STRING, "default": ""},
                                "kind": {**STRING, "default": "Service"},
                                "name": NAME,
                                "port": PORT,
                                "weight": {"type": "integer", "format": "int32", "default": 1},
                            },
                            required=("name",),
                        ),
                        minItems=1,
                        maxItems=16,
                    )
                },
                required=("backendRefs",),
            ),
            minItems=1,
            maxItems=1,
        ),
    },
    required=("hostnames", "rules"),
)

_GATEWAY = _object(
    {
        "gatewayClassName": NAME,
        "listeners": _list(
            _object(
                {
                    "name": NAME,
                    "hostname": NAME,
                    "port": PORT,
                    "protocol": STRING,
                    "tls": _object({"mode": STRING}),
                    "allowedRoutes": _object({"namespaces": _object({"from": STRING})}),
                },
                required=("name", "port", "protocol"),
            )
        ),
    },
    required=("gatewayClassName", "listeners"),
)


def definitions() -> list[dict[str, Any]]:
    """CustomResourceDefinitions of Traefik 3, of Traefik 2's route, and of the Gateway API (1.5, standard channel)."""
    return [
        *(
            _definition("traefik.io", "v1alpha1", kind, _INGRESS_ROUTE_TCP if kind == "IngressRouteTCP" else ANYTHING)
            for kind in TRAEFIK_KINDS
        ),
        _definition("traefik.containo.us", "v1alpha1", "IngressRouteTCP", _INGRESS_ROUTE_TCP),
        _definition(
            GATEWAY_API,
            "v1",
            "GatewayClass",
            _object({"controllerName": STRING}, required=("controllerName",)),
            plural="gatewayclasses",
            scope="Cluster",
        ),
        _definition(GATEWAY_API, "v1", "Gateway", _GATEWAY),
        _definition(GATEWAY_API, "v1", "TLSRoute", _TLS_ROUTE),
        _definition(GATEWAY_API, "v1", "HTTPRoute", ANYTHING),
        _definition(GATEWAY_API, "v1", "GRPCRoute", ANYTHING),
        _definition(GATEWAY_API, "v1", "BackendTLSPolicy", ANYTHING, plural="backendtlspolicies"),
        _definition(GATEWAY_API, "v1beta1", "ReferenceGrant", ANYTHING),
    ]


def _definition(
    group: str, version: str, kind: str, spec: Schema, *, plural: str = "", scope: str = "Namespaced"
) -> dict[str, Any]:
    plural = plural or f"{kind.lower()}s"
    metadata: dict[str, Any] = {"name": f"{plural}.{group}"}
    if group.endswith(".k8s.io"):  # the API server wants to know who allowed a name in Kubernetes' own domain
        metadata["annotations"] = {"api-approved.kubernetes.io": "unapproved, for tests"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _object({"spec": spec, "status": ANYTHING}, required=("spec",))},
                    "subresources": {"status": {}} if group == GATEWAY_API else {},
                }
            ],
        },
    }
