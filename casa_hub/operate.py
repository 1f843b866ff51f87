"""The operator's commands. They send requests to the running hub (`casa_hub.web.operations`) and print its answers.

The hub's address and the token come from its configuration file, or from the environment that JupyterHub gives to its
services. No output and no error holds a token.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from casa_hub.errors import CasaError, ConfigurationError
from casa_hub.operator_words import (
    ALL_WELL,
    CAN_COME_BACK,
    confirmed,
    dask_secrets,
    departed,
    ignored,
    issuer_keys,
    namesakes,
    renewed,
    to_look_at,
)
from casa_hub.text import printable

#: The same as in `casa_hub.web.operations`; an import of that would load JupyterHub's handlers.
SCOPE = "custom:casa-hub:operate"

#: Seconds after which a line says that the hub is still working, and after which the command gives up.
_PATIENCE, _TIMEOUT = 2.0, 1800.0
#: Seconds that connecting to the hub may take.
_CONNECT = 10.0

_HOW = (
    'Add to the hub\'s configuration: c.JupyterHub.services = [{"name": "casa-hub", "api_token": "..."}] and '
    'c.JupyterHub.load_roles = [{"name": "casa-hub", "services": ["casa-hub"], "scopes": ["' + SCOPE + '"]}].'
)


@dataclass(frozen=True, slots=True)
class Hub:
    """Address and token of the running hub's API."""

    #: Such as ``http://127.0.0.1:8081/hub/api``.
    url: str
    token: str = field(repr=False)

    @classmethod
    def find(cls, config_file: Path | None, environment: Mapping[str, str]) -> Hub:
        """Find the hub by its configuration file, or without one by the environment of its services.
        Raises CasaError if the hub's address or token is missing or can't be used.
        """
        if config_file is not None:
            from casa_hub.hub_config import configured_hub  # noqa: PLC0415 - JupyterHub takes a while to load

            return cls.from_app(configured_hub(config_file))
        url, token = environment.get("JUPYTERHUB_API_URL", ""), environment.get("JUPYTERHUB_API_TOKEN", "")
        if not url or not token:
            remedy = "Give its configuration with -f, or set JUPYTERHUB_API_URL and JUPYTERHUB_API_TOKEN."
            raise CasaError("the hub", "its address is unknown", remedy)
        if not (urlsplit(url).scheme in {"http", "https"} and urlsplit(url).hostname):
            raise CasaError("JUPYTERHUB_API_URL", "is not a URL", "Example: http://127.0.0.1:8081/hub/api.")
        return cls(url.rstrip("/"), _checked(token, "JUPYTERHUB_API_TOKEN"))

    @classmethod
    def from_app(cls, app: Any) -> Hub:
        """The hub of a loaded configuration: its address on this machine, and the token of a service with `SCOPE`."""
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
            "can be reached by its own services only (internal_ssl, or a unix socket)",
            "Run this command as one of its services, without -f.",
        )
    # The command runs beside the hub, where its configuration is; the hub's public name may not be reachable there.
    everywhere = hub.ip in {"", "*", "0.0.0.0", "::", "[::]"}  # noqa: S104 - compared, not listened on
    host = "127.0.0.1" if everywhere else hub.ip
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{hub.port}{hub.base_url.rstrip('/')}/api"


def _checked(token: object, name: str) -> str:
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
        raise CasaError(name, "has characters that no token may have", "Make one with: openssl rand -hex 32.")
    return token


# -- requests ----------------------------------------------------------------------------------------------------------


def ask(hub: Hub, method: str, operation: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The hub's answer to a request. Prints a line if it takes long.
    Raises CasaError if the hub can't be reached, or refuses.
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
    """As `ask`, but on the caller's event loop, and without the line that says it takes long."""
    url = f"{hub.url}/casa-hub/{operation}"
    headers = {"Authorization": f"token {hub.token}", "Accept": "application/json"}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT, sock_connect=_CONNECT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            # No redirects, because their target would get the token.
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
            "Is it running? Run this command where the hub runs, such as in its pod, or set JUPYTERHUB_API_URL.",
        ) from None
    if status == HTTPStatus.OK and isinstance(answer, dict):
        return answer
    raise _refused(hub, operation, status, answer)


def _refused(hub: Hub, operation: str, status: int, answer: object) -> CasaError:
    message = printable(answer.get("message", "")) if isinstance(answer, dict) else ""
    if status == HTTPStatus.FORBIDDEN and "credentials" in message:
        remedy = "The hub reads its configuration only when it starts: restart it after a change."
        return CasaError(hub.url, "the hub doesn't know this service's token", remedy)
    if status == HTTPStatus.FORBIDDEN and "scopes" in message:
        return CasaError(hub.url, f"the hub refuses this service: it needs the scope {SCOPE}", _HOW)
    if not message:
        return CasaError(hub.url, f"is not a hub's API (status {status})", "Example: http://HOST:8081/hub/api.")
    if status == HTTPStatus.NOT_FOUND and not message.startswith(("This hub", "No server")):
        remedy = "Its authenticator must be casa (CasaOAuthenticator), of this version."
        return CasaError(hub.url, f"this hub has no operation {operation}", remedy)
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE}:
        return CasaError(operation, message.rstrip(".") or f"status {status}", "")
    return CasaError(hub.url, f"the hub failed with status {status}", "Its log says why.")


# -- commands: each returns the exit code ------------------------------------------------------------------------------


def revoke(hub: Hub, options: argparse.Namespace) -> int:
    body = {"user": options.user} | ({"reason": options.reason} if options.reason else {})
    answer = ask(hub, "POST", "revoke", body)
    _say(*departed(answer), *namesakes(answer), CAN_COME_BACK)
    return 1 if answer["still"] else 0


def rebind(hub: Hub, options: argparse.Namespace) -> int:
    answer = ask(hub, "POST", "rebind", {"user": options.user})
    _say(*departed(answer))
    if answer["rebound"]:
        _say(f"The name {answer['user']} belongs to the next person who logs in with it. Home and jobs are unchanged.")
    elif not answer["still"]:
        _say(f"The name {answer['user']} was bound to nobody.")
    else:
        _say(f"The name {answer['user']} is still bound to its owner. Try again in a minute.")
    return 1 if answer["still"] else 0


def renew(hub: Hub, options: argparse.Namespace) -> int:
    body = ({"users": options.user} if options.user else {}) | {"credentials": options.credential or []}
    answer = ask(hub, "POST", "renew", body)
    _say(*renewed(answer))
    return 1 if answer["failed"] else 0


def confirm(hub: Hub, options: argparse.Namespace) -> int:
    body = {"users": options.user} if options.user else {}
    _say(confirmed(ask(hub, "POST", "confirm", body)))
    return 0


def ignore(hub: Hub, options: argparse.Namespace) -> int:
    body = {"users": options.user} if options.user else {}
    _say(ignored(ask(hub, "POST", "ignore", body)))
    return 0


def status(hub: Hub, _: argparse.Namespace) -> int:
    answer = ask(hub, "GET", "status")
    found = to_look_at(answer)
    _say(*found, *dask_secrets(answer), *issuer_keys(answer), *([] if found else [ALL_WELL]))
    return 1 if found else 0


def groups_of(app: Any, user: str) -> list[str]:
    """The groups of a user, as the running hub of this application knows them. Raises CasaError."""
    groups: list[str] = ask(Hub.from_app(app), "POST", "groups", {"user": user})["groups"]
    return groups


def gc(hub: Hub, options: argparse.Namespace) -> int:
    found = ask(hub, "POST", "gc", {"dry_run": options.dry_run})["found"]
    for leftover in found:
        verb = "Would remove" if options.dry_run else "Could not remove" if leftover["error"] else "Removed"
        _say(f"{verb} {leftover['thing']}: {leftover['error'] or leftover['why']}")
    if not found:
        _say("Nothing is left behind.")
    return 1 if any(options.dry_run or leftover["error"] for leftover in found) else 0


def _say(*lines: str) -> None:
    for line in lines:
        print(printable(line))


COMMANDS: dict[str, Callable[[Hub, argparse.Namespace], int]] = {
    "revoke": revoke,
    "renew": renew,
    "rebind": rebind,
    "confirm": confirm,
    "ignore": ignore,
    "status": status,
    "gc": gc,
}


def add_commands(commands: Any) -> None:
    """Add the parsers of all commands that ask the running hub."""

    def add(name: str, summary: str, description: str = "") -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description or summary)
        parser.add_argument(
            "-f",
            dest="config_file",
            type=Path,
            metavar="FILE",
            help="the hub's configuration, which has its address; else JUPYTERHUB_API_URL and JUPYTERHUB_API_TOKEN",
        )
        return parser

    command = add("revoke", "end all access of a user", "End a user's servers, credentials, tokens and sessions.")
    command.add_argument("user")
    command.add_argument("--reason", help="for the user's page and the audit")
    command = add(
        "renew",
        "renew credentials of running servers now",
        "Renew credentials of running servers now, such as after a key was replaced.",
    )
    command.add_argument("user", nargs="*", help="only the servers of these users")
    command.add_argument("--credential", action="append", metavar="NAME", help="only this one; may be repeated")
    command = add(
        "rebind",
        "give a user name to another identity",
        "End all access of a user name and give the name to the next identity that logs in with it.",
    )
    command.add_argument("user")
    command = add("confirm", "end the access of users whose lost membership is held back")
    command.add_argument("user", nargs="*", help="only of these users")
    command = add("ignore", "let access go on, for another grace, of users whose lost membership is held back")
    command.add_argument("user", nargs="*", help="only of these users")
    add("status", "show what an operator should look at")
    command = add(
        "gc", "remove what has no living server", "Remove pods, Secrets, routes and files without a living server."
    )
    command.add_argument("--dry-run", action="store_true", help="only show what would be removed")
