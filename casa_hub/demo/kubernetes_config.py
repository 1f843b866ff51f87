"""The hub of the demo on Kubernetes: servers are pods, each with a Secret, a Service and a route of its own.

Read it, and `facility_config.py`, as an example. With Zero to JupyterHub, what is below "Servers" comes from the
chart's values, and the rest goes into `hub.extraConfig`.
"""

import json
import os
from pathlib import Path

c = get_config()
load_subconfig("facility_config.py", path=str(Path(__file__).parent))
demo = json.loads(Path(os.environ["CASA_HUB_DEMO"]).read_text())

# How credentials get to a server: nothing to set. A sidecar keeps the files in the pod, and Traefik finds the routes.
c.JupyterHub.spawner_class = "casa"

# Servers.
c.KubeSpawner.namespace = demo["namespace"]
c.KubeSpawner.image = demo["image"]
c.KubeSpawner.image_pull_policy = "Never"  # the node has it, and no way out to get another
c.KubeSpawner.environment = demo["image_environment"]
c.KubeSpawner.uid = c.KubeSpawner.fs_gid = 1000
c.KubeSpawner.allow_privilege_escalation = False
c.KubeSpawner.container_security_context = {"runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
c.KubeSpawner.automount_service_account_token = False
c.KubeSpawner.volumes = [
    {"name": "home", "emptyDir": {}},  # a facility has a claim here (KubeSpawner.storage_pvc_ensure)
    {"name": "site", "configMap": {"name": demo["config_map"]}},
]
c.KubeSpawner.volume_mounts = [
    {"name": "home", "mountPath": "/home/jovyan"},
    {"name": "site", "mountPath": demo["site_directory"], "readOnly": True},
]
# As a git puller would: the notebook is in everybody's home.
quickstart = demo["site_directory"] + "/quickstart.ipynb"
c.KubeSpawner.lifecycle_hooks = {"postStart": {"exec": {"command": ["cp", "-n", quickstart, "/home/jovyan"]}}}

# The hub: servers reach it at this address. In a cluster, the chart sees to that.
c.JupyterHub.hub_ip = demo["hub_address"]
