"""A real JupyterHub whose servers are pods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from casa_hub.checks.rights import Right
from tests.support.hub import Hub
from tests.support.kubernetes.api import Api
from tests.support.kubernetes.cluster import NODE_ADDRESS

#: What a hub of Zero-to-JupyterHub has set where it matters here.
BASE = """
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = {spawner_class!r}
c.JupyterHub.cleanup_servers = False
c.KubeSpawner.namespace = {namespace!r}
c.KubeSpawner.image = "none.test/singleuser:1"
c.KubeSpawner.start_timeout = 60
c.KubeSpawner.http_timeout = 30
"""

#: What the hub needs beside.
ROLE = Path(__file__).parents[3] / "helm-values" / "role.yaml"
#: What the chart's hub may do (templates/hub/rbac.yaml of Zero-to-JupyterHub 4.4).
CHART_RULES = [
    {
        "apiGroups": [""],
        "resources": ["pods", "persistentvolumeclaims", "secrets", "services"],
        "verbs": ["get", "watch", "list", "create", "delete"],
    },
    {"apiGroups": [""], "resources": ["events"], "verbs": ["get", "watch", "list"]},
]


def hub_account(api: Api, namespace: str) -> Path:
    """The kubeconfig of the hub's ServiceAccount with the chart's Role and ours."""
    kubeconfig = api.make_account("hub", namespace, CHART_RULES)
    for document in yaml.safe_load_all(ROLE.read_text(encoding="utf-8")):
        plural, name = f"{document['kind'].lower()}s", document["metadata"]["name"]
        api.apply(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{plural}/{name}", document)
    return kubeconfig


def kubernetes_hub(
    directory: Path,
    api: Api,
    namespace: str,
    *,
    spawner_class: str = "kubespawner.KubeSpawner",
    config: str = "",
    kubeconfig: Path | None = None,
    proxy: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Hub:
    """A hub, not yet started.

    Args:
        directory: its own.
        api: the cluster.
        namespace: of the pods.
        spawner_class: as in the configuration.
        config: more configuration (Python text), which comes last: may choose another authenticator, too
            (`tests.support.hub.casa_config`, followed by the spawner class once more, which that sets).
        kubeconfig: whom the hub is to the API server. Default: an administrator.
        proxy: whether servers are to be reached through the hub's address.
        environment: more variables for the hub.
    """
    text = BASE.format(namespace=namespace, spawner_class=spawner_class) + config
    variables = {"KUBECONFIG": str(kubeconfig or api.kubeconfig), **(environment or {})}
    return Hub(directory, text, environment=variables, proxy=proxy)


def node_config(image: str) -> str:
    """Configuration for servers which are real pods on the node, and reach the hub from there."""
    return f"""
c.JupyterHub.hub_ip = {NODE_ADDRESS!r}
# JupyterLab takes 3 s to start; on a machine that is busy with other things, ten times that.
c.KubeSpawner.start_timeout = 120
c.KubeSpawner.http_timeout = 120
c.KubeSpawner.image = {image!r}
c.KubeSpawner.image_pull_policy = "Never"
c.KubeSpawner.automount_service_account_token = False
c.KubeSpawner.uid = 1000
c.KubeSpawner.fs_gid = 1000
c.KubeSpawner.allow_privilege_escalation = False
c.KubeSpawner.container_security_context = {{"capabilities": {{"drop": ["ALL"]}}, "runAsNonRoot": True}}
c.KubeSpawner.extra_pod_config = {{"terminationGracePeriodSeconds": 1}}
c.KubeSpawner.volumes = [{{"name": "home", "emptyDir": {{}}}}]
c.KubeSpawner.volume_mounts = [{{"name": "home", "mountPath": "/home/jovyan"}}]
"""


def granted_by(rules: list[dict[str, Any]]) -> set[Right]:
    """What the rules of a Role allow."""
    return {
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
