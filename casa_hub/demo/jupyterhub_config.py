"""Configuration of the demo's hub on one machine.

With `facility_config.py` it is an example: except for the ports, a facility writes the same.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from casa_hub.delivery.file_layout import make_directory

c = get_config()
load_subconfig("facility_config.py", path=str(Path(__file__).parent))
demo = json.loads(Path(os.environ["CASA_HUB_DEMO"]).read_text())
here = Path(demo["directory"])

# How credentials and routes reach a server: by directories of this machine, and by a Traefik beside the hub.
c.JupyterHub.spawner_class = "casa-local"
c.LocalDelivery.directory = str(here / "servers")
c.LocalDelivery.network = demo["network"]
c.TraefikRoutes.directory = demo["routes"]

# Servers.
c.CasaLocalSpawner.home_dir_template = str(here / "homes/{username}")
# Variables that an analysis image would set: the site's certificates, DNS.
c.CasaLocalSpawner.environment = demo["image_environment"]
if os.geteuid() == 0:  # such as in a container: Jupyter refuses to run as root without the option
    c.CasaLocalSpawner.args = ["--allow-root"]


def bring_quickstart(spawner: Any) -> None:
    """Put the notebook into the user's home, as a site's image or git puller would."""
    home = Path(spawner.home_dir)
    make_directory(home)
    if not (home / "quickstart.ipynb").exists():
        shutil.copyfile(demo["quickstart"], home / "quickstart.ipynb")


c.Spawner.pre_spawn_hook = bring_quickstart
