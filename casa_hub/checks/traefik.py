"""Checks that the servers' host names lead to a listening Traefik, as seen from this machine.

It looks up a name that no server has: with wildcard DNS all names lead to the same address.
"""

from __future__ import annotations

import asyncio
import shutil
import sysconfig
from collections.abc import AsyncIterator

from casa_hub.checks import versions
from casa_hub.checks.findings import NOBODY, Finding, error, ok
from casa_hub.checks.site import Site
from casa_hub.checks.web import TIMEOUT, listens, resolve
from casa_hub.credentials.dask import SCHEDULER_PORT, WORKER_PORT


async def look(site: Site) -> AsyncIterator[Finding]:
    dask, routes = site.dask, site.routes
    if dask is None or routes is None or routes.kind == "none" or not dask.domain:
        return
    for label, port, entry_point in (
        (dask.scheduler_label, SCHEDULER_PORT, routes.entry_points[0]),
        (dask.worker_label, WORKER_PORT, routes.entry_points[1]),
    ):
        name = f"{NOBODY}.{label}.{dask.domain}"
        remedy = f"Make a DNS record *.{label}.{dask.domain} that leads to Traefik."
        if routes.external_dns_target:  # there is no wildcard: external-dns makes a record for each started server
            name = routes.external_dns_target
            remedy = "Set TraefikRoutes.external_dns_target to the name or address of Traefik as users reach it."
        try:
            addresses = await resolve(name, port)
        except OSError:
            yield error(f"DNS name {name}", "has no address", remedy)
            continue
        yield ok(f"DNS name {name}", f"leads to {', '.join(addresses[:3])}")
        if await listens(addresses, port):
            yield ok(f"Traefik at {name}:{port}", "something listens there")
            continue
        yield error(
            f"Traefik at {name}:{port}",
            "nothing listens there",
            f"Traefik needs the entry point {entry_point} at port {port}, and its Service and the firewall must let it "
            "through.",
        )
    if site.kubernetes is None:
        version = await _of_this_machine()
        if version is not None:
            yield version


async def _of_this_machine() -> Finding | None:
    """Whether the version of the installed program ``traefik`` is safe. The running one may be another."""
    program = shutil.which("traefik", path=sysconfig.get_path("scripts")) or shutil.which("traefik")
    if program is None:
        return None
    try:
        async with asyncio.timeout(TIMEOUT):
            asked = await asyncio.create_subprocess_exec(
                program,
                "version",
                "--format={{.Version}}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            said, _ = await asked.communicate()
    except (OSError, TimeoutError):
        return None
    return versions.read(versions.TRAEFIK, f"version of {program}", said.decode(errors="replace").strip())
