"""A facility for hubs on a cluster: keys, and the configuration that mints with them."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from tests.support.with_token import WITH_TOKEN

CONFIG = (
    WITH_TOKEN
    + """
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0}}
c.Facility.credentials = ["xcache", "htcondor", "dask", "bearer"]
c.Facility.required = ["xcache"]
c.XCache.key_file = "{keys}/xcache.key"
c.XCache.site_name = "T3_TEST"
c.XCache.host = "xcache.example.org"
c.HTCondor.key_file = "{keys}/htcondor.key"
c.HTCondor.trust_domain = "pool.example.org"
c.HTCondor.subject = "{{username}}"
c.HTCondor.uid_domain = "example.org"
c.HTCondor.collector = "cm.example.org"
c.HTCondor.schedd = "schedd.example.org"
c.Dask.secret_file = "{keys}/dask.secret"
c.Dask.domain = "example.org"
"""
)


def facility(keys: Path) -> str:
    """Configuration (Python text) of a facility whose keys are made in `keys`."""
    for name in ("xcache.key", "dask.secret"):
        (keys / name).write_bytes(base64.b64encode(os.urandom(48)) + b"\n")
    (keys / "htcondor.key").write_bytes(os.urandom(32))
    for key in keys.iterdir():
        key.chmod(0o600)
    return CONFIG.format(keys=keys)
