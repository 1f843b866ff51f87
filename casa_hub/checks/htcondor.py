"""Checks that the HTCondor pool accepts this hub's IDTOKENs.

HTCondor's client asks collector and schedd as whom they know it. It has a probe token, which is valid for a minute and
for an account that nobody has.
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
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from casa_hub.checks.findings import NOBODY, Finding, error, ok, unseen, warning
from casa_hub.checks.site import Site
from casa_hub.checks.web import listens, resolve
from casa_hub.credentials.htcondor import HTCondor
from casa_hub.credentials.idtokens import mint_idtoken
from casa_hub.keys import KeyFile

_LIFETIME = 60
#: Seconds that HTCondor's client may take.
_PATIENCE = 10.0
#: Exit code of `htcondor_ping` without HTCondor's client, and what `_ping` returns then.
_NOT_INSTALLED, _MISSING = 3, object()
#: Default port of a collector.
_PORT = 9618

#: Settings of HTCondor's client: it ignores this machine's configuration and authenticates by the token only.
_SETTINGS = {
    "CONDOR_CONFIG": "/dev/null",
    "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",
    "_CONDOR_SEC_CLIENT_AUTHENTICATION": "REQUIRED",
    # Longer than our own time-out: the client has the same message for a pool that is silent and one that refuses.
    "_CONDOR_SEC_TCP_SESSION_TIMEOUT": "20",
    "_CONDOR_QUERY_TIMEOUT": "20",
}


async def look(site: Site) -> AsyncIterator[Finding]:
    minter = site.minter("htcondor")
    if minter is None or not minter.collector:
        return
    thing = f"HTCondor pool {minter.collector}"
    if not await _listens(minter.collector):
        yield error(thing, "can't be reached", "Check HTCondor.collector, and that the collector runs.")
        return
    try:
        answer = await _ping(minter)
    except TimeoutError:
        remedy = "Check HTCondor.collector, and that the collector runs."
        yield error(thing, f"no answer within {_PATIENCE:g} s", remedy)
        return
    if answer is _MISSING:
        remedy = "Install casa_hub[check] in this environment, or try condor_ping in a server."
        yield unseen(thing, "can't be asked: HTCondor's client is not installed", remedy)
        return
    for finding in read(minter, answer if isinstance(answer, dict) else {"error": "HTCondor's client failed"}):
        yield finding


def read(minter: HTCondor, answer: Mapping[str, Any]) -> list[Finding]:
    """What the answer of `htcondor_ping` means."""
    thing = f"HTCondor pool {minter.collector}"
    said = str(answer.get("error", ""))
    if not said and answer.get("authorized") is False and "TOKEN" in answer.get("method", "").upper():
        problem = f"accepts this hub's IDTOKENs, but {NOBODY}@{minter.uid_domain} may not submit at its schedd"
        remedy = "Compare ALLOW_WRITE there with the accounts that HTCondor.subject makes of user names."
        return [warning(thing, problem, remedy)]
    refused = said or not answer.get("authorized", True) or "TOKEN" not in answer.get("method", "TOKEN").upper()
    if refused:
        where = "schedd" if answer.get("step") == "schedd" else "collector"
        return [
            error(
                thing,
                f"its {where} doesn't accept this hub's IDTOKENs",
                f"HTCondor.key_file must be the pool's key {minter.key_id} byte by byte, HTCondor.key_id its name, "
                f"HTCondor.trust_domain ({minter.trust_domain}) the pool's TRUST_DOMAIN; IDTOKENS must be among its "
                "SEC_DEFAULT_AUTHENTICATION_METHODS, and the clocks must agree. With D_SECURITY its log says why.",
            )
        ]
    found = [ok(thing, "accepts this hub's IDTOKENs")] if "user" in answer else []
    names = answer.get("schedds", [])
    if minter.schedd and minter.schedd not in names:
        remedy = f"Choose one of {', '.join(sorted(names)[:10])}." if names else "Start a schedd: the pool has none."
        found.append(error("HTCondor.schedd", f"the pool has no schedd {minter.schedd!a}", remedy))
    elif not names:
        found.append(error(thing, "has no schedd, so nobody can submit", "Start a schedd."))
    user = str(answer.get("user", ""))
    if user and user != f"{NOBODY}@{minter.uid_domain}":
        problem = f"knows {NOBODY}@{minter.uid_domain} as {user}"
        remedy = "Compare HTCondor.uid_domain with the pool's UID_DOMAIN, and look at its map file."
        found.append(warning(thing, problem, remedy))
    return found


async def _listens(collector: str) -> bool:
    """Whether the collector listens: HTCondor's client can't tell an unreachable pool from one that refuses."""
    found = re.fullmatch(r"([A-Za-z0-9.-]+)(?::(\d+))?", collector)
    if found is None:  # a list, or an address in HTCondor's own notation: leave it to HTCondor's client
        return True
    port = int(found[2] or _PORT)
    try:
        return await listens(await resolve(found[1], port), port)
    except (OSError, OverflowError):
        return False


async def _ping(minter: HTCondor) -> Any:
    """Run `htcondor_ping` and return the JSON that it prints; None if it fails.
    `_MISSING` if HTCondor's client is not installed. Raises TimeoutError.
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
            *[sys.executable, "-m", "casa_hub.checks.htcondor_ping", minter.collector, minter.schedd],
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
