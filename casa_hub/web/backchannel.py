"""OpenID Connect Back-Channel Logout 1.0: the identity provider says that somebody has logged out there.

Register ``https://HUB/hub/backchannel-logout`` with the provider as the client's back-channel logout URI. It ends all
of the user's browser sessions at once, because JupyterHub has one cookie value for all browsers of a user. It ends the
hub's cookies and the tokens by which browsers reach servers and services. (A server may accept such a token for up to
five more minutes, from JupyterHub's cache.) Servers and API tokens go on as long as the membership counts.
"""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from jupyterhub import orm
from jupyterhub.apihandlers.base import APIHandler
from sqlalchemy.exc import SQLAlchemyError
from tornado import web

from casa_hub import audit
from casa_hub.database import mended, roll_back
from casa_hub.identity.discovery import same_issuer
from casa_hub.identity.errors import OIDCError
from casa_hub.identity.logout import LoggedOut, LogoutTokens
from casa_hub.identity.session import Session
from casa_hub.identity.verdicts import Verdict
from casa_hub.jupyterhub import HubUser
from casa_hub.membership.revocation import end_tokens

if TYPE_CHECKING:
    from casa_hub.authenticator import CasaOAuthenticator

#: Largest request, in bytes; a logout token has about one thousand.
BODY_LIMIT = 16 * 1024

#: With this scope, a refresh token outlives the log-out (OpenID Connect Core, 11).
_OFFLINE = "offline_access"


@web.stream_request_body
class BackchannelLogoutHandler(APIHandler):  # type: ignore[misc]
    """``POST logout_token=...``. Only the issuer can make such a token, so no other proof is needed."""

    authenticator: CasaOAuthenticator

    # The sender is not a user, so cookies and tokens of the request are ignored.
    _accept_cookie_auth = False
    _accept_token_auth = False

    def initialize(self, tokens: LogoutTokens) -> None:
        self._tokens = tokens
        self._body = bytearray()

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    def check_xsrf_cookie(self) -> None:
        """No check: the request comes from the provider's server, which has no cookie."""

    async def prepare(self) -> None:
        self.request.connection.set_max_body_size(BODY_LIMIT)  # before any of it is read
        await super().prepare()

    def data_received(self, chunk: bytes) -> None:
        self._body += chunk

    async def post(self) -> None:
        try:
            said = await self._tokens.believe(self._token())
        except OIDCError as error:
            self.log.warning("Refused a log-out that claims to be the identity provider's: %s", error)
            self._refuse(f"{error.thing}: {error.problem}")
            return
        except ValueError:
            self._refuse("there must be one logout_token in a form")
            return
        try:
            mended(self.db)  # because no provider sends a log-out twice
            # The answer is "OK" also for somebody who is unknown or not logged in here (2.7).
            for user in await self._users(said):
                await self._end(user, said)
        except SQLAlchemyError as error:
            roll_back(self.db)
            self.log.error("A log-out by the identity provider failed (%s)", type(error).__name__)  # noqa: TRY400
            self._refuse("the hub's database failed; send another one")
            return
        self.set_status(HTTPStatus.OK)
        self.finish()

    def _token(self) -> str:
        """The token of the form. Raises ValueError."""
        (token,) = parse_qs(self._body.decode("ascii"), max_num_fields=10).get("logout_token", [])
        return token

    def _refuse(self, why: str) -> None:
        self.set_status(HTTPStatus.BAD_REQUEST)
        self.finish({"error": "invalid_request", "error_description": why})

    async def _users(self, said: LoggedOut) -> list[Any]:
        """The users of this hub whom the logout token means."""
        if said.sub:
            names = self.authenticator.identities.names(issuer=said.issuer, sub=said.sub)
            return [user for user in map(self.find_user, names) if user is not None]
        # Reads all log-ins, but rarely: only for providers that name no subject, and after the signature was verified.
        stored = self.db.query(orm.User.name).filter(orm.User.encrypted_auth_state.is_not(None))
        found = []
        for (name,) in stored.all():
            user = self.find_user(name)
            session = await self.authenticator.log_ins.session(user) if user is not None else None
            if (
                session is not None
                and said.sid in (session.sid, *session.earlier_sids)
                and same_issuer(said.issuer, session.issuer)
            ):
                found.append(user)
        return found

    async def _end(self, user: HubUser, said: LoggedOut) -> None:
        name, tokens = user.name, end_tokens(self.db, user, browsers_only=True)
        self.db.commit()
        dropped = await self._drop_refresh_token(user, said)
        also = "; its refresh token is dropped" if dropped else ""
        reason = f"The identity provider says that the user has logged out: cookies and {tokens} tokens end{also}."
        audit.tell(self.settings, audit.Event(audit.Action.LOGGED_OUT, name, reason=reason))

    async def _drop_refresh_token(self, user: HubUser, said: LoggedOut) -> bool:
        """Drop the refresh token of the session that ended, unless its scope is for offline access (2.7)."""
        member = self.authenticator.members[user.name]
        async with member.saving:
            session = Session.from_auth_state(await user.get_auth_state())
            if session is None or not session.refresh_token or self._is_offline(session) or not _means(said, session):
                return False
            # A "no" that is held back must survive a restart: without the refresh token nobody can be asked again.
            last = member.standing
            refused = last.reason if last is not None and last.verdict is Verdict.NO else session.refused
            await user.save_auth_state(replace(session, refresh_token="", refused=refused).to_auth_state())
        self.authenticator.recheck.doubt(user.name)
        return True

    def _is_offline(self, session: Session) -> bool:
        granted = session.scope if session.scope is not None else self.authenticator.scope
        return _OFFLINE in granted


def _means(said: LoggedOut, session: Session) -> bool:
    """Whether the session that ended is, or without session ids may be, this log-in's."""
    same_session = not said.sid or not session.sid or said.sid == session.sid
    return same_session and same_issuer(said.issuer, session.issuer)
