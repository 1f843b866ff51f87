"""Configuration of the demo's hub on Kubernetes: servers are pods, each with its own Secret, Service and routes.

With `facility_config.py` it is an example. With Zero to JupyterHub, the part below "Servers" comes from the chart's
values, and the rest goes into `hub.extraConfig`.
"""

import json
import os
from pathlib import Path

c = get_config()
load_subconfig("facility_config.py", path=str(Path(__file__).parent))
demo = json.loads(Path(os.environ["CASA_HUB_DEMO"]).read_text())

# How credentials and routes reach a server needs no setting: a sidecar keeps the files, and Traefik finds the routes.
c.JupyterHub.spawner_class = "casa"

# Servers.
c.KubeSpawner.namespace = demo["namespace"]
c.KubeSpawner.image = demo["image"]
c.KubeSpawner.image_pull_policy = "Never"  # the node has the image, and can't reach a registry
c.KubeSpawner.environment = demo["image_environment"]
c.KubeSpawner.uid = c.KubeSpawner.fs_gid = 1000
c.KubeSpawner.allow_privilege_escalation = False
c.KubeSpawner.container_security_context = {"runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
c.KubeSpawner.automount_service_account_token = False
c.KubeSpawner.volumes = [
    {"name": "home", "emptyDir": {}},  # a facility would use a volume claim (KubeSpawner.storage_pvc_ensure)
    {"name": "site", "configMap": {"name": demo["config_map"]}},
]
c.KubeSpawner.volume_mounts = [
    {"name": "home", "mountPath": "/home/jovyan"},
    {"name": "site", "mountPath": demo["site_directory"], "readOnly": True},
]
# Put the notebook into the user's home, as a git puller would.
quickstart = demo["site_directory"] + "/quickstart.ipynb"
c.KubeSpawner.lifecycle_hooks = {"postStart": {"exec": {"command": ["cp", "-n", quickstart, "/home/jovyan"]}}}

# The hub's address for servers. Zero to JupyterHub's chart sets it.
c.JupyterHub.hub_ip = demo["hub_address"]
