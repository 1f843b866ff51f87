"""The configuration and the key files: what the hub's start would say, and more of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from casa_hub.checks.findings import Finding, ok
from casa_hub.checks.site import Site


async def look(site: Site) -> AsyncIterator[Finding]:
    for finding in site.findings:
        yield finding
    if not site.findings:
        yield ok("the configuration", "nothing is wrong with it")
