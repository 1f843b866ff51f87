"""The log-in of a laptop: a page on which a person lets a program have credentials, and the program's token.

``GET /hub/casa/laptop`` shows who asks for what, and its form sends the browser back to the program, with a code or a
refusal. ``POST /hub/casa/laptop/token`` redeems the code (`loopback_log_in`). The token is one of JupyterHub's API
tokens with the scopes of the credentials alone. JupyterHub's own OAuth provider can't do it: it wants one exact address
to go back to, and a client that keeps a secret.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from jupyterhub.apihandlers.base import APIHandler
from tornado import web

from casa_hub.jupyterhub import HubUser
from casa_hub.moments import iso
from casa_hub.web.credentials_api import offered, scope_of
from casa_hub.web.frame import Pages
from casa_hub.web.loopback_log_in import Asked, AskedWronglyError, Codes, Grant

if TYPE_CHECKING:
    from casa_hub.authenticator import CasaOAuthenticator


class _Codes:
    """The codes that the page gives and the program redeems; no cache may keep what is said of them."""

    authenticator: CasaOAuthenticator

    def initialize(self, codes: Codes) -> None:
        self._codes = codes

    def set_default_headers(self) -> None:
        super().set_default_headers()  # type: ignore[misc]
        self.set_header("Cache-Control", "no-store")  # type: ignore[attr-defined]
        self.set_header("Referrer-Policy", "no-referrer")  # type: ignore[attr-defined]


class LaptopHandler(_Codes, Pages):
    """``/hub/casa/laptop``: the page, and its form with ``answer``, ``allow`` or ``deny``."""

    @web.authenticated
    async def get(self) -> None:
        user = self.person()
        found = await self._found()
        if found is None:
            return
        asked, names = found
        facility = self.casa.facility
        await self.show(
            HTTPStatus.OK,
            "casa_laptop.html",
            asked=asked,
            credentials=[facility.minters[facility.name_for(user, name)] for name in names],
            fields={**asked.arguments(), "credentials": ",".join(names)},
            ends_at=datetime.now(UTC) + timedelta(seconds=self._lifetime()),
            person=user.name,
        )

    @web.authenticated
    async def post(self) -> None:
        user = self.person()
        found = await self._found()
        if found is None:
            return
        asked, names = found
        if self.get_body_argument("answer", "") != "allow":
            self.log.info("%s refused the log-in of a laptop", user.name)
            self.redirect(asked.answer(error="access_denied"))
            return
        standing = await self.authenticator.admit(user)
        scopes = tuple(scope for name in names if (scope := scope_of(name)))
        grant = Grant(user.id, user.name, standing.session_id, scopes, asked.client)
        self.redirect(asked.answer(code=self._codes.new(grant, asked.challenge)))

    def _lifetime(self) -> int:
        return token_lifetime(self.authenticator, self.settings)

    async def _found(self) -> tuple[Asked, list[str]] | None:
        """What is asked, and the credentials that the user may let the program have. None: the answer is given."""
        source = self.request.query_arguments if self.request.method == "GET" else self.request.body_arguments
        read = self.get_query_argument if self.request.method == "GET" else self.get_body_argument
        try:
            asked = Asked.parse({name: read(name, strip=False) for name in source})
        except AskedWronglyError as error:
            await self.show(HTTPStatus.BAD_REQUEST, "casa_laptop.html", asked=None, problem=str(error))
            return None
        may = offered(self.casa.facility, self.person(), self.expanded_scopes)
        names = list(asked.credentials) or [name for name, allowed in may.items() if allowed]
        lacking = [name for name in names if not may.get(name)]
        if lacking or not names:
            problem = f"You may not have these credentials outside of servers: {', '.join(lacking) or 'any'}"
            self.redirect(asked.answer(error="invalid_scope", error_description=problem))
            return None
        return asked, names


class LaptopTokenHandler(_Codes, APIHandler):  # type: ignore[misc]
    """``/hub/casa/laptop/token``: the form ``code``, ``code_verifier`` of a program; it brings no cookie."""

    def check_xsrf_cookie(self) -> None:
        """The code and the verifier are what a forged request doesn't have."""

    async def post(self) -> None:
        code, verifier = (self.get_body_argument(name, "", strip=False) for name in ("code", "code_verifier"))
        grant = self._codes.redeem(code, verifier)
        user: HubUser | None = None if grant is None else self.find_user(grant.username)
        if grant is None or user is None or user.id != grant.user_id:
            self._refuse("The code is unknown, used, older than a minute, or another program's. Log in again")
            return
        standing = await self.authenticator.admit(user)
        if standing.session_id != grant.session_id:  # that log-in has ended, and with it what it had allowed
            self._refuse("The log-in that allowed it has ended. Log in again")
            return
        lifetime = token_lifetime(self.authenticator, self.settings)
        # Raises ValueError for a scope that the user has no more.
        try:
            token = user.new_api_token(
                note=f"casa-hub token on {grant.client}", expires_in=lifetime, scopes=list(grant.scopes)
            )
        except ValueError:
            self._refuse("You may not have these credentials outside of servers any more")
            return
        self.log.info("%s has let %r have a token with %s", user.name, grant.client, ", ".join(grant.scopes))
        expires_at = datetime.now(UTC) + timedelta(seconds=lifetime)
        self.write({"token": token, "user": user.name, "expires_at": iso(expires_at), "scopes": list(grant.scopes)})

    def _refuse(self, why: str) -> None:
        """An error as OAuth has it (RFC 6749, 5.2), and as JupyterHub's API."""
        self.set_status(HTTPStatus.BAD_REQUEST)
        self.finish(
            {"error": "invalid_grant", "error_description": why, "status": HTTPStatus.BAD_REQUEST, "message": why}
        )


def token_lifetime(authenticator: CasaOAuthenticator, settings: dict[str, Any]) -> int:
    """Seconds that a laptop's token lives: JupyterHub may have a shorter limit for all tokens."""
    limit = settings.get("token_expires_in_max_seconds") or 0
    return min(authenticator.laptop_token_lifetime, limit) if limit else authenticator.laptop_token_lifetime


def handlers(codes: Codes) -> list[tuple[Any, ...]]:
    """For the hub's application, below its prefix."""
    return [
        (r"/casa/laptop", LaptopHandler, {"codes": codes}),
        (r"/casa/laptop/token", LaptopTokenHandler, {"codes": codes}),
    ]
