"""A facility for hubs on a cluster: keys, and the configuration that mints with them."""

from __future__ import annotations

from pathlib import Path

from tests.support.facility_config import credentials, make_keys
from tests.support.with_token import WITH_TOKEN

CONFIG = (
    WITH_TOKEN
    + """
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
c.HTCondor.uid_domain = "example.org"
c.HTCondor.collector = "cm.example.org"
c.HTCondor.schedd = "schedd.example.org"
"""
)


def facility(keys: Path) -> str:
    """Configuration (Python text) of a facility whose keys are made in `keys`."""
    make_keys(keys)
    return credentials("xcache", "htcondor", "dask", "bearer", keys=keys) + CONFIG
