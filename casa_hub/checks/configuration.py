"""The configuration and the key files: what the hub's start would say, and more of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.metadata import version

from casa_hub.checks import versions
from casa_hub.checks.findings import Finding, ok
from casa_hub.checks.site import Site


async def look(site: Site) -> AsyncIterator[Finding]:
    for finding in site.findings:
        yield finding
    if not site.findings:
        yield ok("the configuration", "nothing is wrong with it")
    # Of this environment, which is the hub's: its configuration could be loaded.
    jupyterhub = versions.read(versions.JUPYTERHUB, "JupyterHub", version("jupyterhub"))
    if jupyterhub is not None:
        yield jupyterhub
