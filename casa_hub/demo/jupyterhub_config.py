"""The hub of the demo on one machine.

Read it, and `facility_config.py`, as an example: everything but the ports is what a facility writes, too.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from casa_hub.delivery.layout import make_directory

c = get_config()
load_subconfig("facility_config.py", path=str(Path(__file__).parent))
demo = json.loads(Path(os.environ["CASA_HUB_DEMO"]).read_text())
here = Path(demo["directory"])

# How credentials get to a server: directories of this machine, and routes of a Traefik beside the hub.
c.JupyterHub.spawner_class = "casa-local"
c.LocalDelivery.directory = str(here / "servers")
c.LocalDelivery.network = demo["network"]
c.TraefikRoutes.directory = demo["routes"]

# Servers.
c.CasaLocalSpawner.home_dir_template = str(here / "homes/{username}")
# What an analysis image brings along: trust in the site's certificates, DNS.
c.CasaLocalSpawner.environment = demo["image_environment"]
if os.geteuid() == 0:  # in a container, perhaps: Jupyter wants to be told
    c.CasaLocalSpawner.args = ["--allow-root"]


def bring_quickstart(spawner: Any) -> None:
    """As a site's image or its git puller would: the notebook is in everybody's home."""
    home = Path(spawner.home_dir)
    make_directory(home)
    if not (home / "quickstart.ipynb").exists():
        shutil.copyfile(demo["quickstart"], home / "quickstart.ipynb")


c.Spawner.pre_spawn_hook = bring_quickstart
