"""Whether the pool takes this hub's IDTOKENs, and who else submits there: HTCondor's client asks collector and schedd.

The probe token is for an account that nobody has and for a minute; with it one asks who one is, and looks at the queue.
Each job there bears the public id of the token that it was submitted with, which begins with the hub that minted it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from casa_hub.checks.findings import NOBODY, Finding, Status, error, ok, unseen, warning
from casa_hub.checks.site import Site
from casa_hub.checks.web import listens, resolve
from casa_hub.credentials.htcondor import HTCondor, mint_idtoken
from casa_hub.errors import CredentialError
from casa_hub.keys import KeyFile
from casa_hub.naming import Server

_LIFETIME = 60
#: Seconds that HTCondor's client may take.
_PATIENCE = 10.0
_NOT_INSTALLED, _MISSING = 3, object()
#: Of a collector, where nothing else is said.
_PORT = 9618

#: HTCondor's client by our settings alone: none of this machine's, and no way in but the token.
_SETTINGS = {
    "CONDOR_CONFIG": "/dev/null",
    "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",
    "_CONDOR_SEC_CLIENT_AUTHENTICATION": "REQUIRED",
    # Longer than our patience: the client says the same of a pool that is silent and of one that refuses.
    "_CONDOR_SEC_TCP_SESSION_TIMEOUT": "20",
    "_CONDOR_QUERY_TIMEOUT": "20",
}


async def look(site: Site) -> AsyncIterator[Finding]:
    minter = site.minter("htcondor")
    if minter is None or not minter.collector:
        return
    thing = f"HTCondor pool {minter.collector}"
    if not await _listens(minter.collector):
        yield error(thing, "it can't be reached", "Check HTCondor.collector; does it run?")
        return
    try:
        answer = await _client(minter, "htcondor_ping", minter.schedd)
    except TimeoutError:
        remedy = "Check HTCondor.collector; does it run?"
        yield error(thing, f"no answer within {_PATIENCE:g} s", remedy)
        return
    if answer is _MISSING:
        remedy = "Build casa_hub[check] into what this runs in, or try condor_ping in a server."
        yield unseen(thing, "HTCondor's client is not installed", remedy)
        return
    believed = False
    for finding in read(minter, answer if isinstance(answer, dict) else {"error": "HTCondor's client failed"}):
        believed = believed or finding.status is Status.OK
        yield finding
    if believed and site.facility is not None:
        hub_id = site.facility.hub_id
        try:
            tokens = await _client(minter, "htcondor_jobs", minter.schedd, quote(hub_id, safe="") + "/" * bool(hub_id))
        except TimeoutError:  # a long queue, or a busy schedd
            tokens = None
        for finding in read_jobs(minter, hub_id, tokens if isinstance(tokens, list) else None):
            yield finding


def read(minter: HTCondor, answer: Mapping[str, Any]) -> list[Finding]:
    """What the answer of `htcondor_ping` means."""
    thing = f"HTCondor pool {minter.collector}"
    said = str(answer.get("error", ""))
    if not said and answer.get("authorized") is False and "TOKEN" in answer.get("method", "").upper():
        problem = f"it believes this hub's IDTOKENs, but lets {NOBODY}@{minter.uid_domain} do nothing at its schedd"
        return [warning(thing, problem, "Compare ALLOW_WRITE there with what HTCondor.subject makes of user names.")]
    refused = said or not answer.get("authorized", True) or "TOKEN" not in answer.get("method", "TOKEN").upper()
    if refused:
        where = "schedd" if answer.get("step") == "schedd" else "collector"
        return [
            error(
                thing,
                f"its {where} doesn't take this hub's IDTOKENs",
                f"HTCondor.key_file must be the pool's key {minter.key_id} byte by byte, HTCondor.key_id its name, "
                f"HTCondor.trust_domain ({minter.trust_domain}) the pool's TRUST_DOMAIN; IDTOKENS must be among its "
                "SEC_DEFAULT_AUTHENTICATION_METHODS, and the clocks must agree. Its log says why with: D_SECURITY.",
            )
        ]
    found = [ok(thing, "it takes this hub's IDTOKENs")] if "user" in answer else []
    names = answer.get("schedds", [])
    if minter.schedd and minter.schedd not in names:
        there = (
            f"There {'is' if len(names) == 1 else 'are'} {', '.join(sorted(names)[:10])}." if names else "It has none."
        )
        found.append(error("HTCondor.schedd", f"the pool has no schedd {minter.schedd!a}", there))
    elif not names:
        found.append(error(thing, "it has no schedd, so nobody can submit", "Start one."))
    user = str(answer.get("user", ""))
    if user and user != f"{NOBODY}@{minter.uid_domain}":
        problem = f"the pool takes {NOBODY}@{minter.uid_domain} for {user}"
        remedy = "Compare HTCondor.uid_domain with the pool's UID_DOMAIN, and look at its map file."
        found.append(warning(thing, problem, remedy))
    return found


def read_jobs(minter: HTCondor, hub_id: str, tokens: Iterable[tuple[str, str]] | None) -> list[Finding]:
    """Which other hubs' users have jobs in the queue, and whether they are the same accounts as this hub's.

    Args:
        minter: says which account a user has.
        hub_id: of this hub.
        tokens: public ids and subjects of tokens that jobs of others were submitted with; None: can't be said.
    """
    thing = "HTCondor.subject"
    if tokens is None:
        return [ok(thing, "whether other hubs submit there can't be said: the queue can't be looked at")]
    others, alike = set(), set()
    for identifier, subject in tokens:
        *owner, slug, _ = identifier.split("/")
        hub = f"hub {unquote(owner[0])!a}" if owner else "a hub without hub_id"
        others.add(hub)
        if subject.lower() == _subject_of(minter, slug):
            alike.add(hub)
    named = ", ".join(sorted(others))
    if not others:
        return [ok(thing, "no other hub has jobs in the queue")]
    if not hub_id:
        problem = f"it is not set, and others submit to the same pool ({named})"
        return [warning("Facility.hub_id", problem, "Set it: nobody can tell this hub's tokens from others' else.")]
    if alike:
        return [
            warning(
                thing,
                f"jobs of {', '.join(sorted(alike))} belong to the accounts that users of those names have here",
                "If a name isn't the same person at both, give this hub accounts of its own, such as af-{username}: "
                "each can remove the other's jobs else. If it was this hub, under another hub_id, it will pass.",
            )
        ]
    return [ok(thing, f"in the queue there are jobs of {named}, with other accounts than this hub's")]


def _subject_of(minter: HTCondor, slug: str) -> str:
    """What a token says of the user with a server of this slug; "" where that can't be read from it."""
    username = slug.partition("--")[0]
    try:
        known = Server("", username).slug == username and "---" not in slug
        return f"{minter.local_part(username)}@{minter.uid_domain}".lower() if known else ""
    except CredentialError:
        return ""


async def _listens(collector: str) -> bool:
    """Whether somebody is there: HTCondor's client says the same of a pool that is away and of one that refuses."""
    found = re.fullmatch(r"([A-Za-z0-9.-]+)(?::(\d+))?", collector)
    if found is None:  # a list, or an address in HTCondor's own notation
        return True
    port = int(found[2] or _PORT)
    try:
        return await listens(await resolve(found[1], port), port)
    except (OSError, OverflowError):
        return False


async def _client(minter: HTCondor, program: str, *arguments: str) -> Any:
    """What a program beside this file prints (JSON), `_MISSING` without HTCondor's client, None if it fails.

    Args:
        minter: says which pool, and makes the token.
        program: its module's name.
        arguments: after the collector.

    Raises:
        TimeoutError: it takes too long.
    """
    key = KeyFile("HTCondor.key_file", minter.parse_key, "").read(minter.key_file).value
    now = int(time.time())
    claims: dict[str, str | int] = {
        "sub": f"{NOBODY}@{minter.uid_domain}",
        "iss": minter.trust_domain,
        "iat": now,
        "exp": now + _LIFETIME,
        "jti": f"{NOBODY}/{secrets.token_hex(16)}",
        "scope": "condor:/READ condor:/WRITE",
    }
    with tempfile.TemporaryDirectory(prefix="casa-hub-check-") as home:
        tokens = Path(home, "tokens.d")
        await asyncio.to_thread(_put, tokens, mint_idtoken(key, minter.key_id, claims))
        surroundings = {name: value for name, value in os.environ.items() if not name.upper().startswith("_CONDOR_")}
        environment = {
            **surroundings,
            **_SETTINGS,
            "HOME": home,
            "_CONDOR_SEC_TOKEN_DIRECTORY": str(tokens),
            "_CONDOR_SEC_KNOWN_HOSTS": str(Path(home, "known_hosts")),
        }
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", f"casa_hub.checks.{program}", minter.collector, *arguments],
            env=environment,
            cwd=home,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_PATIENCE):
                printed, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode == _NOT_INSTALLED:
        return _MISSING
    try:
        return json.loads(printed)
    except ValueError:
        return None


def _put(tokens: Path, token: str) -> None:
    tokens.mkdir(mode=0o700)
    file = tokens / "token"
    file.touch(mode=0o600)
    file.write_text(token + "\n", encoding="ascii")
