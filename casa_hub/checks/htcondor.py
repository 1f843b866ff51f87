"""Whether the pool takes this hub's IDTOKENs: the client of HTCondor itself asks collector and schedd.

The probe token is for an account that nobody has and for a minute; it may only ask who it is.
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

from casa_hub.checks.findings import Finding, error, ok, unseen, warning
from casa_hub.checks.site import Site
from casa_hub.checks.web import listens, resolve
from casa_hub.credentials.htcondor import HTCondor, mint_idtoken
from casa_hub.keys import KeyFile

_ACCOUNT = "casa-hub-check"
_LIFETIME = 60
#: Seconds that HTCondor's client may take.
_PATIENCE = 10.0
_NOT_INSTALLED = 3
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
        answer = await _ping(minter)
    except TimeoutError:
        remedy = "Check HTCondor.collector; does it run?"
        yield error(thing, f"no answer within {_PATIENCE:g} s", remedy)
        return
    if answer is None:
        remedy = "Build casa_hub[check] into what this runs in, or try condor_ping in a server."
        yield unseen(thing, "HTCondor's client is not installed", remedy)
        return
    for finding in read(minter, answer):
        yield finding


def read(minter: HTCondor, answer: Mapping[str, Any]) -> list[Finding]:
    """What the answer of `htcondor_ping` means."""
    thing = f"HTCondor pool {minter.collector}"
    said = str(answer.get("error", ""))
    if not said and answer.get("authorized") is False and "TOKEN" in answer.get("method", "").upper():
        problem = f"it believes this hub's IDTOKENs, but lets {_ACCOUNT}@{minter.uid_domain} do nothing at its schedd"
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
    if user and user != f"{_ACCOUNT}@{minter.uid_domain}":
        problem = f"the pool takes {_ACCOUNT}@{minter.uid_domain} for {user}"
        remedy = "Compare HTCondor.uid_domain with the pool's UID_DOMAIN, and look at its map file."
        found.append(warning(thing, problem, remedy))
    return found


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


async def _ping(minter: HTCondor) -> dict[str, Any] | None:
    """What the program prints; None if the client isn't installed. Raises TimeoutError."""
    key = KeyFile("HTCondor.key_file", minter.parse_key, "").read(minter.key_file).value
    now = int(time.time())
    claims: dict[str, str | int] = {
        "sub": f"{_ACCOUNT}@{minter.uid_domain}",
        "iss": minter.trust_domain,
        "iat": now,
        "exp": now + _LIFETIME,
        "jti": f"{_ACCOUNT}/{secrets.token_hex(16)}",
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
        program = [sys.executable, "-m", "casa_hub.checks.htcondor_ping", minter.collector, minter.schedd]
        process = await asyncio.create_subprocess_exec(
            *program,
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
        return None
    try:
        answer = json.loads(printed)
    except ValueError:
        return {"step": "collector", "error": "HTCondor's client failed"}
    return answer if isinstance(answer, dict) else {}


def _put(tokens: Path, token: str) -> None:
    tokens.mkdir(mode=0o700)
    file = tokens / "token"
    file.touch(mode=0o600)
    file.write_text(token + "\n", encoding="ascii")
