"""The operator's commands: they ask the running hub (`casa_hub.web.operations`) and print what it says.

The hub's address and the token come from its configuration file, or from the environment that JupyterHub gives to its
services. No token is ever printed, nor part of an error.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from casa_hub.errors import CasaError, ConfigurationError
from casa_hub.moments import when

#: Of `casa_hub.web.operations`, which takes JupyterHub's handlers with it.
SCOPE = "custom:casa-hub:operate"

#: Seconds after which it is said that the hub works on it, and after which nobody waits any more.
_PATIENCE, _LONGEST = 2.0, 1800.0
#: Seconds for the hub to be reached.
_CONNECT = 10.0

_HOW = (
    'Add to the hub\'s configuration: c.JupyterHub.services = [{"name": "casa-hub", "api_token": "..."}] and '
    'c.JupyterHub.load_roles = [{"name": "casa-hub", "services": ["casa-hub"], "scopes": ["' + SCOPE + '"]}]'
)


@dataclass(frozen=True, slots=True)
class Hub:
    """Where the running hub's API is, and what opens it."""

    #: Such as ``http://127.0.0.1:8081/hub/api``.
    url: str
    token: str = field(repr=False)

    @classmethod
    def find(cls, config_file: Path | None, environment: Mapping[str, str]) -> Hub:
        """By the hub's configuration file, else by the environment of a hub's service.

        Raises:
            CasaError: with what to do.
        """
        if config_file is not None:
            from casa_hub.configured import configured_hub  # noqa: PLC0415 - JupyterHub takes a while to load

            return cls.from_app(configured_hub(config_file))
        url, token = environment.get("JUPYTERHUB_API_URL", ""), environment.get("JUPYTERHUB_API_TOKEN", "")
        if not url or not token:
            remedy = "Give its configuration with -f, or set JUPYTERHUB_API_URL and JUPYTERHUB_API_TOKEN"
            raise CasaError("the hub", "nothing says where it is", remedy)
        if not (urlsplit(url).scheme in {"http", "https"} and urlsplit(url).hostname):
            raise CasaError("JUPYTERHUB_API_URL", "it is no URL", "It looks like http://127.0.0.1:8081/hub/api")
        return cls(url.rstrip("/"), _checked(token, "JUPYTERHUB_API_TOKEN"))

    @classmethod
    def from_app(cls, app: Any) -> Hub:
        """Of a configured application: its address on this machine, and the token of a service with the scope."""
        roles = [role for role in app.load_roles if SCOPE in role.get("scopes", ())]
        operators = {name for role in roles for name in role.get("services", ())}
        services = [service for service in app.services if service.get("name") in operators]
        tokens = {service["name"]: service["api_token"] for service in services if service.get("api_token")}
        if not tokens:
            problem = (
                f"the service {services[0]['name']} has no api_token"
                if services
                else f"no service has the scope {SCOPE}"
            )
            raise ConfigurationError("JupyterHub.services", problem, _HOW)
        name, token = next(iter(tokens.items()))
        return cls(_address(app), _checked(token, f"the api_token of service {name}"))


def _address(app: Any) -> str:
    hub = app.hub
    if app.internal_ssl or hub.bind_url.startswith("unix+"):
        raise ConfigurationError(
            "the hub",
            "it listens where only its own services come (internal_ssl, or a unix socket)",
            "Run this command as one of its services, without -f",
        )
    # The command runs where the configuration is: beside the hub. Its name for others may not lead back here.
    everywhere = hub.ip in {"", "*", "0.0.0.0", "::", "[::]"}  # noqa: S104 - asked, not listened on
    host = "127.0.0.1" if everywhere else hub.ip
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{hub.port}{hub.base_url.rstrip('/')}/api"


def _checked(token: object, name: str) -> str:
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
        raise CasaError(name, "it has characters that no token may have", "Make one with: openssl rand -hex 32")
    return token


# -- asking ------------------------------------------------------------------------------------------------------------


def ask(hub: Hub, method: str, operation: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the hub answers. Says that it is waiting if that takes long.

    Raises:
        CasaError: the hub can't be asked, or refuses.
    """
    return asyncio.run(_ask_patiently(hub, method, operation, body))


async def _ask_patiently(hub: Hub, method: str, operation: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    task = asyncio.create_task(ask_once(hub, method, operation, body))
    try:
        done, _ = await asyncio.wait({task}, timeout=_PATIENCE)
        if not done:
            print(f"casa-hub: the hub is working on it ({operation}) ...", file=sys.stderr, flush=True)
        return await task
    finally:
        task.cancel()


async def ask_once(hub: Hub, method: str, operation: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    """As `ask`, for who has an event loop and a patience of its own."""
    url = f"{hub.url}/casa-hub/{operation}"
    headers = {"Authorization": f"token {hub.token}", "Accept": "application/json"}
    timeout = aiohttp.ClientTimeout(total=_LONGEST, sock_connect=_CONNECT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            # Not after a redirect: whoever sends one would get the token.
            session.request(method, url, headers=headers, json=body, allow_redirects=False) as response,
        ):
            status = response.status
            try:
                answer = await response.json(content_type=None)
            except ValueError:
                answer = None
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise CasaError(
            hub.url,
            f"the hub can't be reached ({type(error).__name__})",
            "Is it running? Run this command where the hub runs, in its pod say, or set JUPYTERHUB_API_URL",
        ) from None
    if status == HTTPStatus.OK and isinstance(answer, dict):
        return answer
    raise _refused(hub, operation, status, answer)


def _refused(hub: Hub, operation: str, status: int, answer: object) -> CasaError:
    said = _plain(answer.get("message", "")) if isinstance(answer, dict) else ""
    if status == HTTPStatus.FORBIDDEN and "credentials" in said:
        remedy = "It takes those of its configuration when it starts; restart it after a change"
        return CasaError(hub.url, "the hub doesn't know this service's token", remedy)
    if status == HTTPStatus.FORBIDDEN and "scopes" in said:
        return CasaError(hub.url, f"the hub refuses this service: it needs the scope {SCOPE}", _HOW)
    if not said:
        return CasaError(hub.url, f"this isn't a hub's API (status {status})", "It looks like http://HOST:8081/hub/api")
    if status == HTTPStatus.NOT_FOUND and not said.startswith(("This hub", "No server")):
        remedy = "Its authenticator must be casa (CasaOAuthenticator), of this version"
        return CasaError(hub.url, f"there is no {operation} at this hub", remedy)
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE}:
        return CasaError(operation, said.rstrip(".") or f"status {status}", "")
    return CasaError(hub.url, f"the hub failed with status {status}", "Its log says why")


def _plain(text: object) -> str:
    """On a terminal, without what could move its cursor."""
    return "".join(character if character.isprintable() else " " for character in str(text))


# -- commands: each returns the exit code ------------------------------------------------------------------------------


def revoke(hub: Hub, options: argparse.Namespace) -> int:
    body = {"user": options.user} | ({"reason": options.reason} if options.reason else {})
    answer = ask(hub, "POST", "revoke", body)
    code = _departed(answer)
    if answer["also"]:
        _say(f"The same person has other names here, whose access goes on: {_plain(', '.join(answer['also']))}")
    _say("Who is still a member can log in again; to prevent that, add the name to CasaOAuthenticator.blocked_users.")
    return code


def rebind(hub: Hub, options: argparse.Namespace) -> int:
    answer = ask(hub, "POST", "rebind", {"user": options.user})
    code = _departed(answer)
    if answer["rebound"]:
        _say(f"{answer['user']} belongs to whoever logs in with this name next. Home and jobs are as they were.")
    elif not answer["still"]:
        _say(f"{answer['user']} was bound to nobody.")
    else:
        _say(f"{answer['user']} is still bound to its owner. Try again in a minute.")
    return code


def _departed(answer: Mapping[str, Any]) -> int:
    servers = [f"server {name}" if name else "the default server" for name in answer["servers"]]
    stopped = ", ".join(servers) or "nothing"
    _say(f"{answer['user']}: access ended; stopped: {stopped}; tokens deleted: {answer['tokens']}.")
    for sentence in answer["still"]:
        _say(f"Not yet: {sentence}")
    return 1 if answer["still"] else 0


def renew(hub: Hub, options: argparse.Namespace) -> int:
    body = ({"users": options.user} if options.user else {}) | {"credentials": options.credential or []}
    answer = ask(hub, "POST", "renew", body)
    _say(f"Renewed: {len(answer['renewed'])} servers.")
    for server, why in sorted(answer["failed"].items()):
        _say(f"{server}: {why}")
    return 1 if answer["failed"] else 0


def confirm(hub: Hub, _: argparse.Namespace) -> int:
    confirmed = ask(hub, "POST", "confirm", {})["confirmed"]
    _say(f"Access ends: {', '.join(confirmed)}." if confirmed else "Nothing is held back.")
    return 0


def status(hub: Hub, _: argparse.Namespace) -> int:
    answer = ask(hub, "GET", "status")
    for held in answer["held_back"]:
        _say(f"Held back since {_when(held['since'])}: {held['user']}: {held['reason']}")
    if answer["held_back"]:
        _say("If these are true, end their access: casa-hub confirm")
    refused = Counter(one["reason"] for one in answer["client_refused"])
    for reason, count in sorted(refused.items()):
        _say(f"The identity provider doesn't speak with this hub about {count} users: {reason}")
    for overdue in answer["overdue"]:
        until = f", which is valid until {_when(overdue['until'])}" if overdue["until"] else ""
        _say(f"Not renewed: {overdue['credential']} of {overdue['server']}{until}: {overdue['why']}")
    missing = answer.get("missing", [])  # a hub before this version tells nothing of it
    for one in missing:
        _say(f"Missing, and tried again: {one['what']} of {one['server']}: {one['why']}")
    for server, why in sorted(answer["unkept"].items()):
        _say(f"Not renewed: all credentials of {server}: {why}. Restart it to have them renewed.")
    for server, why in sorted(answer["unsure"].items()):
        _say(f"Of server {server} can't be said now what it has: {why}")
    for secret, count in sorted(answer["dask_secrets"].items()):
        _say(f"Dask secret {secret}: in use by {count} servers.")
    found = bool(missing) or any(
        answer[name] for name in ("held_back", "client_refused", "overdue", "unkept", "unsure")
    )
    if not found:
        _say("All is well.")
    return 1 if found else 0


def gc(hub: Hub, options: argparse.Namespace) -> int:
    found = ask(hub, "POST", "gc", {"dry_run": options.dry_run})["found"]
    for one in found:
        verb = "Would remove" if options.dry_run else "Could not remove" if one["error"] else "Removed"
        _say(f"{verb} {one['thing']}: {one['error'] or one['why']}")
    if not found:
        _say("Nothing is left behind.")
    return 1 if any(options.dry_run or one["error"] for one in found) else 0


def _when(moment: str) -> str:
    """A time of the API as the pages have it."""
    return when(datetime.fromisoformat(moment))


def _say(line: str) -> None:
    print(_plain(line))


COMMANDS: dict[str, Callable[[Hub, argparse.Namespace], int]] = {
    "revoke": revoke,
    "renew": renew,
    "rebind": rebind,
    "confirm": confirm,
    "status": status,
    "gc": gc,
}


def add_commands(commands: Any) -> None:
    """The parsers of all commands that ask the running hub."""

    def add(name: str, summary: str, description: str = "") -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description or summary)
        parser.add_argument(
            "-f",
            dest="config_file",
            type=Path,
            metavar="FILE",
            help="the hub's configuration, which says where it is; else JUPYTERHUB_API_URL and JUPYTERHUB_API_TOKEN do",
        )
        return parser

    one = add("revoke", "end all access of a user", "End a user's servers, credentials, tokens and sessions at once.")
    one.add_argument("user")
    one.add_argument("--reason", help="for the user's page and the audit")
    one = add(
        "renew",
        "renew credentials of running servers now",
        "Renew credentials of running servers now: after a key was replaced, say.",
    )
    one.add_argument("user", nargs="*", help="only the servers of these")
    one.add_argument("--credential", action="append", metavar="NAME", help="only this one; may be repeated")
    one = add(
        "rebind",
        "give a user name to another identity",
        "End all access of a user name and let the next identity that logs in with it have it.",
    )
    one.add_argument("user")
    add("confirm", "end the access of those whose lost membership is held back")
    add("status", "what an operator should look at")
    one = add(
        "gc", "remove what has no living server", "Remove pods, Secrets, routes and files without a living server."
    )
    one.add_argument("--dry-run", action="store_true", help="only say what would be removed")
