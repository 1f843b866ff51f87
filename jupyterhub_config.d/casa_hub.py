"""What a hub needs to be told of this package: two classes, and where the usual key files are.

For the chart's hub.extraFiles. It runs after hub.config, and what is set there stays, but for the chart's own default
authenticator and spawner. A spawner class of the site's own stays, too: ours is added to it.
"""

from pathlib import Path

import casa_hub.hooks
import casa_hub.startup

if c.JupyterHub.get("authenticator_class", "dummy") == "dummy":
    c.JupyterHub.authenticator_class = "casa"
if c.JupyterHub.get("spawner_class", "kubespawner.KubeSpawner") == "kubespawner.KubeSpawner":
    c.JupyterHub.spawner_class = "casa"
if c.JupyterHub.spawner_class != "casa":
    casa_hub.hooks.install(c)
# With an authenticator of the site's own, too, what is wrong is told, and what runs renewed, from the hub's start on.
casa_hub.startup.begin_with_hub()
# Where the values of this project mount the Secret with the keys.
for setting in ("XCache.key_file", "xcache"), ("HTCondor.key_file", "condor"), ("Dask.secret_file", "dask"):
    section, trait = setting[0].split(".")
    if Path("/etc/casa-hub", setting[1]).exists():
        c[section].setdefault(trait, f"/etc/casa-hub/{setting[1]}")
