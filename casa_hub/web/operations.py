"""The API for operators, which the commands `casa-hub revoke`, `renew`, `rebind`, `confirm` ... use.

``/hub/api/casa-hub/...``, with JSON in requests and answers, and errors as in JupyterHub's API. All requests need the
scope ``custom:casa-hub:operate``. JupyterHub's own roles don't have it: a hub's administrators are people of the
experiment, but only the facility's operator may end somebody's access or give a user name to another person. Give the
scope to a service, in ``jupyterhub_config.py``::

    c.JupyterHub.services = [{"name": "casa-hub", "api_token": "..."}]
    c.JupyterHub.load_roles = [
        {"name": "casa-hub", "services": ["casa-hub"], "scopes": ["custom:casa-hub:operate"]},
    ]

`CasaOAuthenticator` adds this API to the hub. With another authenticator, add all but `rebind` by
``c.JupyterHub.extra_handlers = casa_hub.web.operations.handlers``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from jupyterhub import orm
from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.scopes import define_custom_scopes, needs_scope
from tornado import web

from casa_hub import audit
from casa_hub.errors import CasaError
from casa_hub.hub import CasaHub
from casa_hub.jupyterhub import HubApp
from casa_hub.membership.member import RevocationReport
from casa_hub.moments import iso
from casa_hub.naming import Server
from casa_hub.policy.settings import names_of
from casa_hub.servers.running import running_servers, shown
from casa_hub.servers.status import Survey, survey
from casa_hub.startup import begun_hub
from casa_hub.tasks import in_turns
from casa_hub.text import printable
from casa_hub.unknown_keys import did_you_mean

if TYPE_CHECKING:
    from casa_hub.authenticator import CasaOAuthenticator

SCOPE = "custom:casa-hub:operate"
define_custom_scopes(
    {SCOPE: {"description": "Operate casa_hub: end a user's access, renew credentials, rebind names, clean up."}}
)

#: Characters of an operator's reason, which goes to the user's page and to the audit.
_REASON_LENGTH = 300


class _Operation(APIHandler):  # type: ignore[misc]
    authenticator: CasaOAuthenticator

    @property
    def by(self) -> str:
        """Who asks, for the audit."""
        who = self.current_user
        return f"service {who.name}" if isinstance(who, orm.Service) else f"user {who.name}"

    @property
    def casa(self) -> CasaHub:
        return begun_hub(self.settings["app"])

    def asked(self, **known: type) -> dict[str, Any]:
        """The fields of the request's JSON object. A field that isn't in `known` (name -> type) is refused."""
        body = self.get_json_body() or {}
        if not isinstance(body, dict):
            raise web.HTTPError(HTTPStatus.BAD_REQUEST, "The request must be a JSON object")
        for name, value in body.items():
            if name not in known:
                raise web.HTTPError(HTTPStatus.BAD_REQUEST, f"There is no field {name!r}. {did_you_mean(name, known)}")
            if not isinstance(value, known[name]):
                raise web.HTTPError(HTTPStatus.BAD_REQUEST, f"{name} must be a {known[name].__name__}")
            if isinstance(value, list) and not all(isinstance(one, str) for one in value):
                raise web.HTTPError(HTTPStatus.BAD_REQUEST, f"{name} must be a list of strings")
            # Half characters, which a terminal of another encoding sends, can't be used in a database query.
            names = value if isinstance(value, list) else [value] if isinstance(value, str) else []
            if name != "reason" and not all(one.isprintable() for one in names):
                raise web.HTTPError(HTTPStatus.BAD_REQUEST, f"{name} has characters that no name has")
        return body

    def user_of(self, name: str) -> Any:
        """The hub's user with this name, in the provider's spelling."""
        user = self.find_user(self.authenticator.normalize_username(name))
        if user is None:
            raise web.HTTPError(HTTPStatus.NOT_FOUND, f"This hub has no user {name!r}")
        return user

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """As in tornado, but our own errors are logged as one line without a traceback."""
        if isinstance(value, CasaError):
            self.log.error("%s: %s", self.request.path, value)
        else:
            super().log_exception(typ, value, tb)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = (kwargs.get("exc_info") or (None, None))[1]
        if isinstance(error, CasaError):
            # 503, not 500: the error says what to do, and the hub itself has not failed.
            self.set_status(HTTPStatus.SERVICE_UNAVAILABLE)
            self.set_header("Content-Type", "application/json")
            self.finish({"status": HTTPStatus.SERVICE_UNAVAILABLE, "message": str(error)})
        else:
            super().write_error(status_code, **kwargs)


async def _shown(app: HubApp) -> Callable[[str], str]:
    """A function that shows a server (`Server.identity`) to people, by its user's present name."""
    known = {
        running.server.identity: shown(user.name, spawner.name, running.server.username)
        async for user, spawner, running in in_turns(running_servers(app))
        if running is not None
    }

    def show(identity: str) -> str:
        server = Server.of_identity(identity)
        return known.get(identity) or (identity if server is None else shown(server.username, server.name))

    return show


def _reported(report: RevocationReport) -> dict[str, Any]:
    return {"servers": list(report.servers), "tokens": report.tokens, "still": list(report.still)}


async def revoke(casa: CasaHub, user: Any, reason: str, by: str) -> dict[str, Any]:
    """End all access of one of the hub's users; `reason`: an operator's own words, or "". As `Revocations.end`."""
    given = " ".join(printable(reason).split())[:_REASON_LENGTH]
    given = given or "The operator of this hub has ended the access."
    report = await casa.revocations.end(user, given, why="operator", by=by)
    # The provider has given this person another name, or had: what that one runs is a decision of its own.
    identities = getattr(casa.app.authenticator, "identities", None)
    also = [] if identities is None else identities.namesakes(user.name)
    return {"user": user.name, "also": also, **_reported(report)}


async def renew(
    casa: CasaHub, usernames: Collection[str] | None, credentials: Collection[str], by: str
) -> dict[str, Any]:
    """Renew now, and tell the audit who asked. As `Renewals.renew_now`."""
    asked = {user.name for user, _, _ in running_servers(casa.app) if usernames is None or user.name in usernames}
    for name in sorted(asked):
        audit.tell(casa.app.tornado_settings, audit.Event(audit.Action.RENEWAL_ASKED, name, by=by))
    report = await casa.renewals.renew_now(usernames, credentials)
    show = await _shown(casa.app)
    failed = {show(server): why for server, why in report.failed.items()}
    return {"renewed": [show(server) for server in report.renewed], "failed": failed}


async def status(casa: CasaHub, found: Survey) -> dict[str, Any]:
    """All that an operator should look at; what the sentences of `casa_hub.operator_words` are made of."""
    show = await _shown(casa.app)
    held = [
        {
            "user": one.username,
            "reason": one.reason,
            "since": iso(one.since),
            "ignored_until": iso(one.until) if one.ignored else "",
        }
        async for one in in_turns(casa.mass_loss.held())
    ]
    await asyncio.sleep(0)
    overdue = [
        {"server": show(one.server), "credential": one.credential, "until": one.until, "why": one.why}
        async for one in in_turns(casa.renewals.overdue())
    ]
    await asyncio.sleep(0)
    missing = [
        {"server": show(one.server), "what": one.what, "why": one.why} async for one in in_turns(casa.mending.missing())
    ]
    fetching = getattr(casa.app.authenticator, "fetching", None)  # another authenticator has none
    fetches = [
        {"credential": one.credential, "why": one.why, "users": one.users, "problem": one.problem, "remedy": one.remedy}
        for one in ([] if fetching is None else fetching.troubles())
    ]
    return {
        "held_back": held,
        "client_refused": [{"user": name, "reason": reason} for name, reason in casa.mass_loss.client_refused()],
        "overdue": overdue,
        "missing": missing,
        "fetches": fetches,
        "unkept": found.unkept,
        "unsure": found.unsure,
        "dask_secrets": dict(found.dask_secrets),
        "issuer_keys": [] if casa.facility.issuer is None else casa.facility.issuer.key_states(time.time()),
    }


class RevokeHandler(_Operation):
    """``{"user": NAME, "reason": TEXT}``: end all access of a user, until the next log-in."""

    @needs_scope(SCOPE)  # type: ignore[untyped-decorator]
    async def post(self) -> None:
        asked = self.asked(user=str, reason=str)
        name = self.authenticator.normalize_username(asked.get("user", ""))
        if name in self.authenticator.blocked_users and self.find_user(name) is None:
            # The user was blocked before the first log-in, so the hub has no such user and no access to end.
            self.write({"user": name, "also": [], **_reported(RevocationReport((), 0, ()))})
            return
        user = self.user_of(name)
        self.write(await revoke(self.casa, user, asked.get("reason", ""), self.by))


class RebindHandler(_Operation):
    """``{"user": NAME}``: end the owner's access, and give the name to the next identity that logs in with it."""

    @needs_scope(SCOPE)  # type: ignore[untyped-decorator]
    async def post(self) -> None:
        name = self.authenticator.normalize_username(self.asked(user=str).get("user", ""))
        user = self.find_user(name)
        answer: dict[str, Any] = {"user": name, "rebound": False, "servers": [], "tokens": 0, "still": []}
        if user is not None:
            reason = "The operator of this hub gives the name to another identity."
            answer |= _reported(await self.casa.revocations.end(user, reason, why="operator", by=self.by))
            if not answer["still"] and self.casa.revocations.has_any(user):
                answer["still"] = ["the owner has logged in again meanwhile."]
        # As long as a server of the owner may run, nobody else may get the name, and with it that server.
        if not answer["still"]:
            answer["rebound"] = self.authenticator.identities.release(name)
            if answer["rebound"]:
                audit.tell(self.settings, audit.Event(audit.Action.REBOUND, name, by=self.by))
            elif user is None:
                raise web.HTTPError(HTTPStatus.NOT_FOUND, f"This hub has no user {name!r}, and the name isn't bound")
        self.write(answer)


class RenewHandler(_Operation):
    """``{"users": [NAME ...], "credentials": [NAME ...]}``: renew now. Without users: for all running servers."""

    @needs_scope(SCOPE)  # type: ignore[untyped-decorator]
    async def post(self) -> None:
        asked = self.asked(users=list, credentials=list)
        minters = self.casa.facility.minters
        for name in self.casa.facility.named(asked.get("credentials", ())):
            if name not in minters:
                problem = f"No server of this hub gets a credential {name!r}. {did_you_mean(name, minters)}"
                raise web.HTTPError(HTTPStatus.NOT_FOUND, problem)
        usernames = [self.user_of(name).name for name in asked["users"]] if "users" in asked else None
        self.write(await renew(self.casa, usernames, tuple(asked.get("credentials", ())), by=self.by))


class ConfirmHandler(_Operation):
    """``{"users": [NAME ...]}``: end the access of these users, whose "no" is held back. Without users: of all."""

    @needs_scope(SCOPE)  # type: ignore[untyped-decorator]
    async def post(self) -> None:
        chosen = self.asked(users=list).get("users")
        names = None if chosen is None else [self.authenticator.normalize_username(name) for name in chosen]
        self.write({"confirmed": self.casa.mass_loss.confirm(self.by, names)})


class IgnoreHandler(_Operation):
    """``{"users": [NAME ...]}``: what is held back of these users is a mistake. Without users: of all."""

    @needs_scope(SCOPE)  # type: ignore[untyped-decorator]
    async def post(self) -> None:
        chosen = self.asked(users=list).get("users")
        losses = self.casa.mass_loss
        held = [one.username for one in losses.held()]
        names = held if chosen is None else [self.authenticator.normalize_username(name) for name in chosen]
        self.write({"ignored": losses.ignore(self.by, names)})


class StatusHandler(_Operation):
    """All that an operator should look at."""

    @needs_scope(SCOPE)  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        self.write(await status(self.casa, await survey(self.casa.app, self.casa.facility)))


class GroupsHandler(_Operation):
    """``{"user": NAME}``: the groups that JupyterHub knows of a user, by which the rules of `Policy` count."""

    @needs_scope(SCOPE)  # type: ignore[untyped-decorator]
    async def post(self) -> None:
        user = self.user_of(self.asked(user=str).get("user", ""))
        self.write({"user": user.name, "groups": sorted(names_of(user))})


class CollectHandler(_Operation):
    """``{"dry_run": true}``: remove pods, objects and files without a living server, or only list them."""

    @needs_scope(SCOPE)  # type: ignore[untyped-decorator]
    async def post(self) -> None:
        dry_run = self.asked(dry_run=bool).get("dry_run", False)
        hub = self.casa
        if hub.home is None:
            name = hub.spawner_class.__name__
            raise web.HTTPError(HTTPStatus.NOT_FOUND, f"This hub has no spawner of casa_hub, but {name}")
        found = await hub.home.collect_garbage(hub, dry_run=dry_run)
        if not dry_run:
            for one in found:
                self.log.warning("Asked for by %s: %s", self.by, one)
        self.write({"found": [{"thing": one.thing, "why": one.why, "error": one.error} for one in found]})


handlers = [
    (r"/api/casa-hub/revoke", RevokeHandler),
    (r"/api/casa-hub/rebind", RebindHandler),
    (r"/api/casa-hub/renew", RenewHandler),
    (r"/api/casa-hub/confirm", ConfirmHandler),
    (r"/api/casa-hub/ignore", IgnoreHandler),
    (r"/api/casa-hub/status", StatusHandler),
    (r"/api/casa-hub/groups", GroupsHandler),
    (r"/api/casa-hub/gc", CollectHandler),
]
