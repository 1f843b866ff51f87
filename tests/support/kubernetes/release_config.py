"""Stands in for the `jupyterhub_config.py` of Zero to JupyterHub where its chart is not to be had.

It reads the same files from the same places in the hub's pod, and of the values what the tests set: `hub.config` goes
to the sections as it is, after the chart's own settings and before `jupyterhub_config.d`.
"""

import os
from pathlib import Path
from typing import Any

import yaml

c = get_config()  # noqa: F821 - JupyterHub's
here = Path("/usr/local/etc/jupyterhub")


def merged(first: Any, second: Any) -> Any:
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    return first | {key: merged(first[key], value) if key in first else value for key, value in second.items()}


values = {}
for source in "secret", "existing-secret":
    if (here / source / "values.yaml").exists():
        values = merged(values, yaml.safe_load((here / source / "values.yaml").read_text()))
singleuser = values["singleuser"]

c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
c.JupyterHub.cleanup_servers = False
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
c.JupyterHub.db_url = "sqlite://"
c.JupyterHub.hub_bind_url = "http://:8081"
c.JupyterHub.hub_connect_url = f"http://hub:{os.environ['HUB_SERVICE_PORT']}"
c.JupyterHub.cookie_secret = bytes.fromhex((here / "existing-secret/hub.config.JupyterHub.cookie_secret").read_text())
c.CryptKeeper.keys = (here / "existing-secret/hub.config.CryptKeeper.keys").read_text().split(";")
c.ConfigurableHTTPProxy.api_url = f"http://proxy-api:{os.environ['PROXY_API_SERVICE_PORT']}"
c.ConfigurableHTTPProxy.should_start = False

c.KubeSpawner.namespace = os.environ["POD_NAMESPACE"]
c.KubeSpawner.image = "{name}:{tag}".format(**singleuser["image"])
c.KubeSpawner.image_pull_policy = singleuser["image"]["pullPolicy"]
c.KubeSpawner.allow_privilege_escalation = False
c.KubeSpawner.start_timeout = singleuser["startTimeout"]
c.KubeSpawner.volumes = singleuser["storage"]["extraVolumes"]
c.KubeSpawner.volume_mounts = singleuser["storage"]["extraVolumeMounts"]
c.KubeSpawner.mem_limit = singleuser["memory"]["limit"]
c.KubeSpawner.mem_guarantee = singleuser["memory"]["guarantee"]
c.Spawner.cmd = singleuser["cmd"]
for trait, key in ("uid", "uid"), ("fs_gid", "fsGid"):
    if singleuser[key] is not None:
        c.KubeSpawner[trait] = singleuser[key]

for section, settings in values["hub"]["config"].items():
    c[section].update(settings)
for snippet in sorted(here.glob("jupyterhub_config.d/*.py")):
    exec(compile(snippet.read_text(), snippet.name, "exec"))
