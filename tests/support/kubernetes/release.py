"""A hub and its proxy as pods: what to apply for values of Zero to JupyterHub."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.helm import template
from tests.support.kubernetes.hub import CHART_RULES

Object = dict[str, Any]

#: Where the chart's hub has its configuration.
PLACE = "/usr/local/etc/jupyterhub"
LOADER = Path(__file__).with_name("release_config.py")


def merged(first: Any, second: Any) -> Any:
    """Values over values, as Helm has it: a null removes nothing here, for it means something to the chart."""
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        return second
    return {**first, **{key: merged(first[key], each) if key in first else each for key, each in second.items()}}


def of_chart(chart: Path, scratch: Path, values: Mapping[str, Any], namespace: str) -> list[Object]:
    """What Helm makes of the chart, and nothing else; `scratch` is a directory."""
    file = scratch / f"{namespace}.yaml"
    file.write_text(yaml.safe_dump(dict(values)))
    return template(chart, [file], namespace=namespace)


def of_our_own(values: Mapping[str, Any], namespace: str) -> list[Object]:
    """The same objects by the same names, as plain as can be, with a loader of our own."""
    hub, chp = values["hub"], values["proxy"]["chp"]
    extra = hub.get("extraFiles", {})
    token = secrets.token_hex(32)
    held = {
        "values.yaml": yaml.safe_dump(dict(values)),
        "hub.config.ConfigurableHTTPProxy.auth_token": token,
        **{name: file["stringData"] for name, file in extra.items()},
    }
    proxy_token = {"name": "CONFIGPROXY_AUTH_TOKEN", "value": token}
    hub_pod = {
        "serviceAccountName": "hub",
        "securityContext": _context(
            {"runAsNonRoot": True, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            hub.get("podSecurityContext"),
        ),
        "volumes": [
            {"name": "config", "configMap": {"name": "hub"}},
            {"name": "secret", "secret": {"secretName": "hub"}},
            {"name": "existing-secret", "secret": {"secretName": hub["existingSecret"]}},
            *hub["extraVolumes"],
        ],
        "initContainers": hub.get("initContainers", []),
        "containers": [
            {
                "name": "hub",
                "image": "{name}:{tag}".format(**hub["image"]),
                "args": ["jupyterhub", "--config", f"{PLACE}/jupyterhub_config.py"],
                "env": [
                    {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
                    proxy_token,
                ],
                "volumeMounts": [
                    _file("config", f"{PLACE}/jupyterhub_config.py", "jupyterhub_config.py"),
                    {"name": "secret", "mountPath": f"{PLACE}/secret"},
                    {"name": "existing-secret", "mountPath": f"{PLACE}/existing-secret"},
                    *(_file("secret", file["mountPath"], name) for name, file in extra.items()),
                    *hub["extraVolumeMounts"],
                ],
                "ports": [{"name": "http", "containerPort": 8081}],
                "readinessProbe": {"periodSeconds": 2, "httpGet": {"path": "/hub/health", "port": "http"}},
                "securityContext": _context(_restricted(1000, 1000), hub.get("containerSecurityContext")),
            }
        ],
    }
    proxy_pod = {
        "containers": [
            {
                "name": "chp",
                "image": "{name}:{tag}".format(**chp["image"]),
                "command": [
                    "configurable-http-proxy",
                    "--ip=",
                    "--api-ip=",
                    "--api-port=8001",
                    "--port=8000",
                    "--default-target=http://hub:$(HUB_SERVICE_PORT)",
                    "--error-target=http://hub:$(HUB_SERVICE_PORT)/hub/error",
                ],
                "env": [proxy_token],
                "ports": [{"name": "http", "containerPort": 8000}, {"name": "api", "containerPort": 8001}],
                "securityContext": _context(
                    _restricted(65534, 65534) | {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                    chp.get("containerSecurityContext"),
                ),
            }
        ]
    }
    group = "rbac.authorization.k8s.io"
    reference = {"kind": "Role", "name": "hub", "apiGroup": group}
    account = {"kind": "ServiceAccount", "name": "hub", "namespace": namespace}
    return [
        _object("v1", "ServiceAccount", "hub"),
        _object(f"{group}/v1", "Role", "hub", rules=CHART_RULES),
        _object(f"{group}/v1", "RoleBinding", "hub", roleRef=reference, subjects=[account]),
        _object("v1", "ConfigMap", "hub", data={"jupyterhub_config.py": LOADER.read_text(encoding="utf-8")}),
        secret("hub", {name: text.encode() for name, text in held.items()}),
        service("hub", "hub", 8081, 8081),
        service("proxy-api", "proxy", 8001, 8001),
        deployment("hub", hub_pod),
        deployment("proxy", proxy_pod),
    ]


def secret(name: str, content: Mapping[str, bytes]) -> Object:
    """A Secret."""
    data = {key: base64.b64encode(value).decode() for key, value in content.items()}
    return _object("v1", "Secret", name, data=data)


def service(name: str, component: str, port: int, target: int) -> Object:
    """A Service for the pod of a component."""
    spec = {"selector": {"component": component}, "ports": [{"port": port, "targetPort": target}]}
    return _object("v1", "Service", name, spec=spec)


def deployment(name: str, pod: Object) -> Object:
    """One pod, kept."""
    labels = {"component": name}
    template = {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 1, **pod}}
    return _object("apps/v1", "Deployment", name, spec={"selector": {"matchLabels": labels}, "template": template})


def identity_provider(image: str, port: int, *accounts: str) -> Object:
    """oidc-provider-mock as a pod; `accounts` are claims as JSON. It runs as whomever the namespace wants."""
    command = ["python3", "-W", "ignore", "-m", "oidc_provider_mock", "--host", "0.0.0.0", "--port", str(port)]
    container = {
        "name": "idp",
        "image": image,
        "command": [*command, *(option for claims in accounts for option in ("--user-claims", claims))],
        "readinessProbe": {"periodSeconds": 1, "httpGet": {"path": "/.well-known/openid-configuration", "port": port}},
        "securityContext": {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return deployment("idp", {"containers": [container]})


def assigned_user(label: str, uid: int) -> list[Object]:
    """What OKD does in its own way: pods of namespaces with a label run as the namespace's uid, in its group."""
    group = "admissionregistration.k8s.io"
    user = "Object.spec.securityContext"
    expression = f"Object{{spec: Object.spec{{securityContext: {user}{{runAsUser: {uid}, fsGroup: {uid}}}}}}}"
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    policy = {
        "matchConstraints": {
            "namespaceSelector": {"matchLabels": {label: str(uid)}},
            "resourceRules": [pods],
        },
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
    }
    name = f"assigned-user-{uid}"
    return [
        _object(f"{group}/v1", "MutatingAdmissionPolicy", name, spec=policy),
        _object(f"{group}/v1", "MutatingAdmissionPolicyBinding", name, spec={"policyName": name}),
    ]


def _object(version: str, kind: str, name: str, **content: Any) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **content}


def _file(volume: str, path: str, key: str) -> Object:
    return {"name": volume, "mountPath": path, "subPath": key}


def _restricted(uid: int, gid: int) -> Object:
    drop = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {"runAsUser": uid, "runAsGroup": gid, **drop}


def _context(default: Object, values: Object | None) -> Object:
    """As Helm merges the chart's defaults with values: a null takes away."""
    return {key: value for key, value in (default | (values or {})).items() if value is not None}
