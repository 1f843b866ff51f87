"""Checks the configuration and the key files, more thoroughly than the hub's start does."""

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
    # The version in this environment, which is the hub's: its configuration could be loaded here.
    jupyterhub = versions.read(versions.JUPYTERHUB, "JupyterHub", version("jupyterhub"))
    if jupyterhub is not None:
        yield jupyterhub
