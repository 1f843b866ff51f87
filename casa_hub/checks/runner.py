"""Runs the checks side by side, tells of each as soon as it is done, and sums up."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from casa_hub.checks import cluster, configuration, htcondor, hub, issuer, probe, servicex, traefik, xcache
from casa_hub.checks.findings import Finding, Status, unseen
from casa_hub.checks.site import Site
from casa_hub.configured import configured_hub

Look = Callable[[Site], AsyncIterator[Finding]]

#: What is looked at with the configuration and the hub beside it alone.
LOCAL: Mapping[str, Look] = {"configuration": configuration.look, "hub": hub.look}
#: What others are asked for, too.
REMOTE: Mapping[str, Look] = {
    "issuer": issuer.look,
    "kubernetes": cluster.look,
    "traefik": traefik.look,
    "xcache": xcache.look,
    "htcondor": htcondor.look,
    "servicex": servicex.look,
}
#: And what makes things.
PROBE: Mapping[str, Look] = {"probe": probe.look}

#: Seconds after which it is said which of them aren't done yet.
_PATIENCE = 2.0
#: Seconds that one of them may take; each of its requests has a time-out of its own.
_LONGEST = 30.0


def check(path: Path, *, local: bool = False, probing: bool = False, as_json: bool = False) -> int:
    """Look, and print. Exit code 0: sound, or warnings only; 1: an error; 2: something couldn't be looked at.

    Raises:
        ConfigurationError: the file can't be read.
    """
    site = Site.of(configured_hub(path))
    looks = {**LOCAL, **({} if local else REMOTE), **(PROBE if probing else {})}
    found = asyncio.run(_run(site, looks, sys.stderr if as_json else sys.stdout))
    code = exit_code(found.values())
    if as_json:
        findings = [
            {
                "check": name,
                "status": one.status.value,
                "thing": one.thing,
                "problem": one.problem,
                "remedy": one.remedy,
            }
            for name, some in found.items()
            for one in some
        ]
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
            async for one in look(site):
                found.append(one)  # noqa: PERF401 - what was found before a time-out counts
    except TimeoutError:
        found.append(unseen(name, f"it took more than {_LONGEST:g} s", "Try again."))
    except Exception as problem:  # noqa: BLE001 - one that fails must not hide what the others find
        # Its type only: its text may hold a secret.
        found.append(unseen(name, f"the check failed with {type(problem).__name__}", "This is a fault of casa_hub."))
    return found


def exit_code(found: Iterable[Iterable[Finding]]) -> int:
    seen = {one.status for some in found for one in some}
    return 1 if Status.ERROR in seen else 2 if Status.UNSEEN in seen else 0


def summary(found: Iterable[Iterable[Finding]]) -> str:
    count = Counter(one.status for some in found for one in some)
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


def _line(one: Finding) -> str:
    """On a terminal, without what could move its cursor: some of it comes from others."""
    return "  " + "".join(letter if letter.isprintable() else " " for letter in str(one))
