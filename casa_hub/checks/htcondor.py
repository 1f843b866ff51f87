"""Checks that the HTCondor pool accepts this hub's tokens, and refuses a forged one.

HTCondor's client asks collector and schedd as whom they know it. It has a probe token, which is valid for a minute and
for an account that nobody has. An IDTOKEN isn't forged: a pool that has no key accepts none.
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
from pathlib import Path, PurePosixPath
from typing import Any

from casa_hub.checks.findings import NOBODY, Finding, error, from_problem, ok, unseen, warning
from casa_hub.checks.nobody import forged, nobodys_request
from casa_hub.checks.site import Site
from casa_hub.checks.web import listens, resolve
from casa_hub.credentials.htcondor import HTCondor
from casa_hub.credentials.idtokens import mint_idtoken
from casa_hub.errors import CredentialError, Problem
from casa_hub.keys import KeyFile
from casa_hub.naming import Server

_LIFETIME = 60
#: Seconds that HTCondor's client may take.
_PATIENCE = 10.0
#: Exit code of `htcondor_ping` without HTCondor's client, and what `_ping` returns then.
_NOT_INSTALLED, _MISSING = 3, object()
#: The file of a server that has the token of the facility's issuer.
_FILE = "condor_token"
#: Default port of a collector.
_PORT = 9618

#: Settings of HTCondor's client: it ignores this machine's configuration and must authenticate.
_SETTINGS = {
    "CONDOR_CONFIG": "/dev/null",
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
        # As a server has it.
        token = minter.credential == "token"
        probe = dict(minter.mint(nobodys_request(_LIFETIME)).files) if token else _idtoken(minter)
        answer = await _ping(minter, probe)
        if answer is _MISSING:
            remedy = "Install casa_hub[check] in this environment, or try condor_ping in a server."
            yield unseen(thing, "can't be asked: HTCondor's client is not installed", remedy)
            return
        answer = answer if isinstance(answer, dict) else {"error": "HTCondor's client failed"}
        for finding in read_token(minter, answer) if token else read(minter, answer):
            yield finding
        if token and "user" in answer:
            probe[_FILE] = forged(probe[_FILE].decode().strip()).encode()
            yield read_forged(thing, await _ping(minter, probe))
    except CredentialError as problem:
        yield from_problem(Problem.of(problem))
    except TimeoutError:
        remedy = "Check HTCondor.collector, and that the collector runs."
        yield error(thing, f"no answer within {_PATIENCE:g} s", remedy)


def read(minter: HTCondor, answer: Mapping[str, Any]) -> list[Finding]:
    """What the answer of `htcondor_ping` to an IDTOKEN means."""
    thing = f"HTCondor pool {minter.collector}"
    said = str(answer.get("error", ""))
    if not said and answer.get("authorized") is False and "TOKEN" in answer.get("method", "").upper():
        problem = f"accepts this hub's IDTOKENs, but {NOBODY}@{minter.uid_domain} may not submit at its schedd"
        remedy = "Compare ALLOW_WRITE there with the accounts that HTCondor.subject makes of user names."
        return [warning(thing, problem, remedy)]
    if _refused(answer):
        return [
            error(
                thing,
                f"its {_where(answer)} doesn't accept this hub's IDTOKENs",
                f"HTCondor.key_file must be the pool's key {minter.key_id} byte by byte, HTCondor.key_id its name, "
                f"HTCondor.trust_domain ({minter.trust_domain}) the pool's TRUST_DOMAIN; IDTOKENS must be among its "
                "SEC_DEFAULT_AUTHENTICATION_METHODS, and the clocks must agree. With D_SECURITY its log says why.",
            )
        ]
    found = [ok(thing, "accepts this hub's IDTOKENs")] if "user" in answer else []
    found += _schedds(minter, answer)
    user = str(answer.get("user", ""))
    if user and user != f"{NOBODY}@{minter.uid_domain}":
        problem = f"knows {NOBODY}@{minter.uid_domain} as {user}"
        remedy = "Compare HTCondor.uid_domain with the pool's UID_DOMAIN, and look at its map file."
        found.append(warning(thing, problem, remedy))
    return found


def read_token(minter: HTCondor, answer: Mapping[str, Any]) -> list[Finding]:
    """What the answer of `htcondor_ping` to a token of the facility's issuer means."""
    thing = f"HTCondor pool {minter.collector}"
    if _refused(answer):
        issuer = "" if minter.issuer is None else minter.issuer.iss
        return [
            error(
                thing,
                f"its {_where(answer)} doesn't accept this hub's tokens",
                "SCITOKENS must be among SEC_DEFAULT_AUTHENTICATION_METHODS there, and "
                f"SCITOKENS_SERVER_AUDIENCE must have {minter.token_audience()}. CERTIFICATE_MAPFILE must have a line "
                f"for {issuer} that makes an account of {NOBODY}, too, and ALLOW_WRITE must let it in. It must reach "
                f"{issuer}/.well-known/openid-configuration by https. Its certificate must have its host's name, and "
                "be of an authority in HTCondor.ca_file. The clocks must agree. With D_SECURITY its log says why.",
            )
        ]
    found = [ok(thing, "accepts this hub's tokens")] if "user" in answer else []
    found += _schedds(minter, answer)
    user = str(answer.get("user", ""))
    if user and NOBODY not in user and not minter.accounting_group:
        problem = f"makes {user} of {NOBODY}: users may share this account, and remove each other's jobs"
        remedy = "If they shall, set HTCondor.accounting_group. Else look for the line in its CERTIFICATE_MAPFILE."
        found.append(warning(thing, problem, remedy))
    return found


def read_forged(thing: str, answer: Any) -> Finding:
    """What the answer means to a forged token, with the name of the hub's key and signed by another one."""
    if not isinstance(answer, dict):
        return unseen(thing, "couldn't be asked with a forged token: HTCondor's client failed", "Try again.")
    if _refused(answer):
        return ok(thing, "refuses a forged token")
    remedy = "Its library of tokens (libSciTokens) must verify signatures. Take it out of service until it does."
    return error(thing, "doesn't refuse a forged token: anybody can be anybody there", remedy)


def _refused(answer: Mapping[str, Any]) -> bool:
    known = "TOKEN" in answer.get("method", "TOKEN").upper()
    return bool(answer.get("error")) or not answer.get("authorized", True) or not known


def _where(answer: Mapping[str, Any]) -> str:
    return "schedd" if answer.get("step") == "schedd" else "collector"


def _schedds(minter: HTCondor, answer: Mapping[str, Any]) -> list[Finding]:
    names = answer.get("schedds", [])
    if minter.schedd and minter.schedd not in names:
        remedy = f"Choose one of {', '.join(sorted(names)[:10])}." if names else "Start a schedd: the pool has none."
        return [error("HTCondor.schedd", f"the pool has no schedd {minter.schedd!a}", remedy)]
    if not names:
        thing = f"HTCondor pool {minter.collector}"
        return [error(thing, "has no schedd, so nobody can submit", "Start a schedd.")]
    return []


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


def _idtoken(minter: HTCondor) -> dict[str, bytes]:
    """Files with a probe token, as a server has them."""
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
    return {"condor_tokens.d/condor_token": mint_idtoken(key, minter.key_id, claims).encode()}


async def _ping(minter: HTCondor, files: Mapping[str, bytes]) -> Any:
    """Run `htcondor_ping` with a server's files and return the JSON that it prints; None if it fails.
    `_MISSING` if HTCondor's client is not installed. Raises TimeoutError.
    """
    with tempfile.TemporaryDirectory(prefix="casa-hub-check-") as home:
        await asyncio.to_thread(_put, Path(home), files)
        surroundings = {name: value for name, value in os.environ.items() if not name.upper().startswith("_CONDOR_")}
        of_server = minter.environment(Server("", NOBODY), PurePosixPath(home))
        environment = {
            **surroundings,
            **_SETTINGS,
            **{name: value for name, value in of_server.items() if name.startswith("_CONDOR_")},
            "HOME": home,
            "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "SCITOKENS" if minter.credential == "token" else "IDTOKENS",
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


def _put(home: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        file = home / name
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(content)
