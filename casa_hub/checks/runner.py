"""Runs the checks side by side, prints the findings of each as soon as it is done, and sums up."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from casa_hub.checks import (
    cluster,
    configuration,
    exchange,
    facility_issuer,
    htcondor,
    hub,
    issuer,
    probe,
    s3,
    servicex,
    traefik,
    x509,
    xcache,
)
from casa_hub.checks.findings import Finding, Status, unseen
from casa_hub.checks.site import Site
from casa_hub.hub_config import configured_hub
from casa_hub.text import printable

Look = Callable[[Site], AsyncIterator[Finding]]

#: Checks that need only the configuration and the hub that runs beside it.
LOCAL: Mapping[str, Look] = {"configuration": configuration.look, "hub": hub.look}
#: Checks that ask the neighbours.
REMOTE: Mapping[str, Look] = {
    "issuer": issuer.look,
    "facility-issuer": facility_issuer.look,
    "kubernetes": cluster.look,
    "traefik": traefik.look,
    "xcache": xcache.look,
    "htcondor": htcondor.look,
    "servicex": servicex.look,
    "exchange": exchange.look,
    "s3": s3.look,
    "x509": x509.look,
}
#: Of these, the checks of one credential, which are repeated for each rule that has another one.
BY_RULE = frozenset({"xcache", "htcondor", "servicex", "s3", "x509"})
#: Checks that create something.
PROBE: Mapping[str, Look] = {"probe": probe.look}

#: Seconds after which the names of the unfinished checks are printed.
_PATIENCE = 2.0
#: Seconds that one check may take. Each of its requests also has its own time-out.
_LONGEST = 30.0


def check(path: Path, *, local: bool = False, probing: bool = False, as_json: bool = False) -> int:
    """Run the checks and print their findings. Raises ConfigurationError if the file can't be read.

    Returns the exit code. 0: sound, or warnings only; 1: an error; 2: something couldn't be looked at.
    """
    site = Site.from_app(configured_hub(path))
    looks = {**LOCAL, **({} if local else REMOTE), **(PROBE if probing else {})}
    found = asyncio.run(_run(site, looks, sys.stderr if as_json else sys.stdout))
    code = exit_code(found.values())
    if as_json:
        findings = [{"check": name, **asdict(finding)} for name, of_check in found.items() for finding in of_check]
        print(json.dumps({"exit_code": code, "findings": findings}, indent=1))
    else:
        print(summary(found.values()))
    return code


async def _run(site: Site, looks: Mapping[str, Look], stream: Any) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {name: [] for name in looks}

    async def run(name: str, look: Look) -> None:
        begin = time.monotonic()
        found[name] = await _all(name, look, site)
        took = time.monotonic() - begin
        lines = [
            f"{name} ({took:.1f} s)" + ("" if found[name] else ": nothing that it can look at"),
            *map(_line, found[name]),
        ]
        print("\n".join(lines), file=stream, flush=True)

    async with asyncio.TaskGroup() as group:
        tasks = {group.create_task(run(name, look)): name for name, look in looks.items()}
        _, waiting = await asyncio.wait(tasks, timeout=_PATIENCE)
        if waiting:
            names = ", ".join(name for task, name in tasks.items() if task in waiting)
            print(f"casa-hub: still looking at {names} ...", file=sys.stderr, flush=True)
    return found


async def _all(name: str, look: Look, site: Site) -> list[Finding]:
    found: list[Finding] = []
    try:
        async with asyncio.timeout(_LONGEST):
            for each in (site, *site.by_rules()) if name in BY_RULE else (site,):
                async for finding in look(each):
                    found.append(finding)  # noqa: PERF401 - the findings before a time-out must not be lost
    except TimeoutError:
        found.append(unseen(name, f"took more than {_LONGEST:g} s", "Try again."))
    except Exception as problem:  # noqa: BLE001 - a check that fails must not hide the others' findings
        # Only the type: the text may hold a secret.
        remedy = "This is a fault of casa_hub."
        found.append(unseen(name, f"the check failed with {type(problem).__name__}", remedy))
    return found


def exit_code(found: Iterable[Iterable[Finding]]) -> int:
    seen = {finding.status for of_check in found for finding in of_check}
    return 1 if Status.ERROR in seen else 2 if Status.UNSEEN in seen else 0


def summary(found: Iterable[Iterable[Finding]]) -> str:
    count = Counter(finding.status for of_check in found for finding in of_check)
    bad = [
        f"{count[status]} {text}{'s' if count[status] > 1 and status is not Status.UNSEEN else ''}"
        for status, text in (
            (Status.ERROR, "error"),
            (Status.WARNING, "warning"),
            (Status.UNSEEN, "couldn't be looked at"),
        )
        if count[status]
    ]
    return f"{', '.join(bad)}; {count[Status.OK]} ok" if bad else f"Sound: {count[Status.OK]} ok"


def _line(finding: Finding) -> str:
    """A line for the terminal: parts of it are texts of the neighbours."""
    return f"  {printable(finding)}"
