"""Asks the running hub, if there is one, for its problems, for the Dask secrets that it no longer needs, and for what
each key of the facility's issuer is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from casa_hub import operate
from casa_hub.checks.findings import Finding, error, ok, unseen, warning
from casa_hub.checks.site import Site
from casa_hub.credentials.dask import parse_secrets
from casa_hub.errors import CasaError, ConfigurationError
from casa_hub.keys import BadKeyError
from casa_hub.operator_words import PUT_BACK, none_signs, what_for

#: Seconds. The hub asks others in turn, such as the API server.
_PATIENCE = 20.0


async def look(site: Site) -> AsyncIterator[Finding]:
    secrets = _dask_secrets(site)
    try:
        async with asyncio.timeout(_PATIENCE):
            answer = await operate.ask_once(operate.Hub.from_app(site.app), "GET", "status", None)
    except TimeoutError:
        yield unseen("the running hub", f"no answer within {_PATIENCE:g} s", "See what casa-hub status says.")
        return
    except CasaError as why:
        # No fault: before its first start there is no hub to ask.
        signs = site.facility is not None and site.facility.issuer is not None
        text = str(why).rstrip(".") if not isinstance(why, ConfigurationError) or len(secrets) > 1 or signs else ""
        if text:
            yield ok("the running hub", f"can't be asked yet. {text}")
        if signs:
            yield ok(
                "FacilityIssuer.keys", "only the running hub knows which key signs, and from when the next one does"
            )
        if len(secrets) > 1:
            dask = site.dask
            named = dask.secret_file if dask else ""
            yield ok("Dask.secret_file", f"only the running hub knows whether older secrets of {named} are in use")
        return
    for finding in read(answer):
        yield finding
    for finding in (*read_secrets(secrets, answer), *read_issuer_keys(answer)):
        yield finding


def read(answer: Mapping[str, Any]) -> list[Finding]:
    """Findings from the answer that `casa-hub status` prints."""
    texts = {
        "held_back": "memberships are lost, so many at once that they are held back",
        "client_refused": "users can't be checked, because the identity provider refuses this hub's client",
        "overdue": "credentials were not renewed in time",
        "missing": "credentials or objects of running servers are missing",
        "fetches": "credentials can't be fetched for some users",
        "unkept": "servers run without renewal of their credentials",
        "unsure": "servers run whose credentials can't be read now",
    }
    found = [
        warning("the running hub", f"{len(answer[name])} {text}", "casa-hub status tells which.")
        for name, text in texts.items()
        if answer.get(name)
    ]
    return found or [ok("the running hub", "all is well")]


def read_issuer_keys(answer: Mapping[str, Any]) -> list[Finding]:
    """What each key of the facility's issuer is for: only the running hub knows since when a key is published."""
    found = [ok(state["key"], what_for(state)) for state in answer.get("issuer_keys", [])]
    if why := none_signs(answer):
        found.append(error("FacilityIssuer.keys", f"no key signs now, so no token can be made: {why}", PUT_BACK))
    return found


def read_secrets(ids: list[str], answer: Mapping[str, Any]) -> list[Finding]:
    """Which of several secrets (public ids, the newest first) are in use by running servers."""
    if len(ids) < 2:  # noqa: PLR2004 - a single secret is in use for new servers
        return []
    used = answer["dask_secrets"]
    found = [ok(f"Dask secret {ids[0]}", f"for new servers; in use by {used.get(ids[0], 0)}")]
    for name in ids[1:]:
        count, unsure = used.get(name, 0), len(answer["unsure"]) + len(answer["unkept"])
        if count:
            verdict = f"in use by {count} running servers; it must stay"
        elif unsure:
            verdict = f"nobody knows whether one of {unsure} servers uses it (casa-hub status); it must stay"
        else:
            verdict = "in use by no running server; it may be removed"
        found.append(ok(f"Dask secret {name}", verdict))
    return found


def _dask_secrets(site: Site) -> list[str]:
    if site.dask is None:
        return []
    try:
        return [secret.id for secret in parse_secrets(Path(site.dask.secret_file).read_bytes())]
    except (OSError, BadKeyError):
        return []  # the minter's own check reports it
