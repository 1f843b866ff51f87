"""The API by which people have credentials outside of their servers: on a laptop, in a CI job.

``GET /hub/api/casa/credentials`` lists them, ``POST /hub/api/casa/credentials/NAME`` mints one, with JSON in requests
and answers, and errors as in JupyterHub's API. Each credential has a scope of its own, `scope_of`. Users have those of
all credentials, unless the operator defines JupyterHub's role ``user``; the tokens of servers have none.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from jupyterhub import orm
from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.scopes import define_custom_scopes
from jupyterhub.user import User
from tornado import web

from casa_hub.errors import CasaError
from casa_hub.facility import Facility
from casa_hub.hub import CasaHub
from casa_hub.jupyterhub import HubApp, HubUser
from casa_hub.moments import iso
from casa_hub.startup import begun_hub
from casa_hub.text import printable
from casa_hub.unknown_keys import did_you_mean
from casa_hub.web.handing_out import NotRunningError, hand_out

if TYPE_CHECKING:
    from casa_hub.authenticator import CasaOAuthenticator

#: What JupyterHub allows as the end of a scope.
_NAME = re.compile(r"[a-z0-9_-]*[a-z0-9_]")
#: The fields of a request to mint.
_FIELDS = ("lifetime", "server")
#: JupyterHub's role of all users.
_ROLE = "user"


def scope_of(name: str) -> str | None:
    """The scope for one credential; None for a name that can't be in a scope: that one stays in servers."""
    return f"custom:casa-hub:credential:{name}" if _NAME.fullmatch(name) else None


def define_scopes(names: Iterable[str]) -> None:
    """Make the scopes of these credentials known to JupyterHub, before it reads roles. May be repeated."""
    scopes = {name: scope for name in names if (scope := scope_of(name))}
    define_custom_scopes(
        {scope: {"description": f"Have the credential {name} outside of servers."} for name, scope in scopes.items()}
    )


def let_users(app: HubApp, names: Iterable[str]) -> None:
    """Give the scopes of these credentials to all users, unless the operator says what users may (role ``user``).

    For the hub's start, when it has written its roles: it writes this one anew at each start. So what an earlier start
    has given is gone by then. JupyterHub 6 has a setting for that, JupyterHub 5 has none.
    """
    if any(role.get("name") == _ROLE and "scopes" in role for role in app.load_roles):
        return
    role = orm.Role.find(app.db, _ROLE)
    if role is not None:
        given = {scope for name in names if (scope := scope_of(name))}
        role.scopes = sorted({*role.scopes, *given})
        app.db.commit()


def offered(facility: Facility, user: HubUser, scopes: Collection[str]) -> dict[str, bool]:
    """Name of each credential that somebody can have outside -> whether they may have it with these scopes."""
    return {name: scope in scopes for name in facility.names_outside(user) if (scope := scope_of(name))}


class CredentialsAPI(APIHandler):  # type: ignore[misc]
    """Base of what people and their tokens ask for."""

    authenticator: CasaOAuthenticator

    @property
    def casa(self) -> CasaHub:
        return begun_hub(self.settings["app"])

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    def person(self) -> HubUser:
        """Who asks, in person or by an API token. Raises HTTPError for a service, which has no credentials."""
        user = self.current_user
        if user is None:
            raise web.HTTPError(HTTPStatus.FORBIDDEN, "Missing or invalid credentials: log in, or send an API token")
        if not isinstance(user, User):
            raise web.HTTPError(HTTPStatus.FORBIDDEN, "A service has no credentials. Use the token of a user")
        person: HubUser = user
        return person

    @property
    def by(self) -> str:
        """Who asks, for the audit: a token by its id and note, never by its value."""
        name, token = self.current_user.name, self.get_token()
        if token is None:
            return f"page of {name}"
        # The note is the user's own text: in a log, it must not begin another line.
        return f"token {token.api_id} of {name}" + (f": {printable(token.note)}" if token.note else "")

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """As in tornado, but our own errors are logged as one line without a traceback."""
        if isinstance(value, CasaError):
            self.log.warning("%s, asked by the %s: %s", self.request.path, self.by, value)
        else:
            super().log_exception(typ, value, tb)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = (kwargs.get("exc_info") or (None, None))[1]
        if isinstance(error, CasaError):
            status = HTTPStatus.CONFLICT if isinstance(error, NotRunningError) else HTTPStatus.SERVICE_UNAVAILABLE
            self.set_status(status)
            self.set_header("Content-Type", "application/json")
            self.finish({"status": status, "message": str(error)})
        else:
            super().write_error(status_code, **kwargs)


class CredentialsHandler(CredentialsAPI):
    """What there is, and what the asker may have."""

    async def get(self) -> None:
        user, facility = self.person(), self.casa.facility
        may = offered(facility, user, self.expanded_scopes)
        if self.get_token() is not None and not any(may.values()):
            raise web.HTTPError(HTTPStatus.FORBIDDEN, "This token has the scope of no credential")
        found = [
            {
                "name": name,
                "title": facility.minters[minted].title,
                "lifetime": facility.lifetime_outside(minted),
                "files": facility.files_outside(minted),
                "scope": scope_of(name),
                "allowed": allowed,
            }
            for name, allowed in may.items()
            for minted in (facility.name_for(user, name),)
        ]
        self.write({"user": user.name, "credentials": found})


class CredentialHandler(CredentialsAPI):
    """``{"lifetime": SECONDS, "server": NAME}``, both optional: mint one credential for the asker."""

    async def post(self, name: str) -> None:
        user, facility = self.person(), self.casa.facility
        lifetime, server = self._asked()
        may = offered(facility, user, self.expanded_scopes)
        # Without the scope, nobody is told what there is.
        if scope_of(name) not in self.expanded_scopes and (name in may or not any(may.values())):
            needed = scope_of(name) or "of a credential"
            raise web.HTTPError(HTTPStatus.FORBIDDEN, f"This needs the scope {needed}")
        if name not in may:
            problem = f"This hub has no credential {name!r} for use outside of servers. {did_you_mean(name, may)}"
            raise web.HTTPError(HTTPStatus.NOT_FOUND, problem)
        handed = await hand_out(self.settings["app"], user, name, by=self.by, server=server, longest=lifetime)
        new = handed.credential
        self.write(
            {
                "user": user.name,
                "name": name,
                "title": handed.title,
                "issued_at": iso(new.issued_at),
                "expires_at": None if new.expires_at is None else iso(new.expires_at),
                "identifiers": dict(new.identifiers),
                "files": {path: base64.b64encode(content).decode() for path, content in new.files.items()},
                "environment": dict(handed.environment),
            }
        )

    def _asked(self) -> tuple[int | None, str]:
        """Lifetime and server of the request. Raises HTTPError."""
        body = self.get_json_body()
        body = {} if body is None else body
        if not isinstance(body, dict):
            raise web.HTTPError(HTTPStatus.BAD_REQUEST, "The request must be a JSON object")
        for field in body:
            if field not in _FIELDS:
                raise web.HTTPError(
                    HTTPStatus.BAD_REQUEST, f"There is no field {field!r}. {did_you_mean(field, _FIELDS)}"
                )
        lifetime, server = body.get("lifetime"), body.get("server", "")
        if lifetime is not None and (isinstance(lifetime, bool) or not isinstance(lifetime, int) or lifetime < 1):
            raise web.HTTPError(HTTPStatus.BAD_REQUEST, "lifetime must be a number of seconds, 1 or more")
        if not isinstance(server, str) or not server.isprintable():
            raise web.HTTPError(HTTPStatus.BAD_REQUEST, "server must be the name of a server")
        return lifetime, server


handlers: list[tuple[Any, ...]] = [
    (r"/api/casa/credentials", CredentialsHandler),
    (r"/api/casa/credentials/([^/]+)", CredentialHandler),
]
