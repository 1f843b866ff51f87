"""Where the identity provider says that somebody has logged out there: OpenID Connect Back-Channel Logout 1.0.

Register ``https://HUB/hub/backchannel-logout`` with the provider as the client's back-channel logout URI. It ends the
user's browser sessions at once, whichever of them the provider names, for JupyterHub has one cookie for all of a user's
browsers: the hub's cookies, and the tokens by which browsers see servers and services (those
that a server has just asked the hub about may be believed by it for up to five minutes, JupyterHub's cache). Servers
and API tokens are no sessions: they go on as long as the membership counts.
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

if TYPE_CHECKING:
    from casa_hub.authenticator import CasaOAuthenticator

#: Bytes of a request; a logout token has about one thousand.
BODY_LIMIT = 16 * 1024

#: The scope by which a refresh token outlives the log-out (OpenID Connect Core, 11).
_OFFLINE = "offline_access"

#: JupyterHub's own client: its tokens are those that users and servers were given, not those of browsers.
_NO_BROWSER = "jupyterhub"


@web.stream_request_body
class BackchannelLogoutHandler(APIHandler):  # type: ignore[misc]
    """``POST logout_token=...``; nobody but the issuer can make one, so no other proof is asked for."""

    authenticator: CasaOAuthenticator

    # Whoever sends it, it isn't a user: no cookie or token is looked at, nor the membership of who might own it.
    _accept_cookie_auth = False
    _accept_token_auth = False

    def initialize(self, tokens: LogoutTokens) -> None:
        self._tokens = tokens
        self._body = bytearray()

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    def check_xsrf_cookie(self) -> None:
        """It comes from the provider's server, which has no cookie; see the class."""

    async def prepare(self) -> None:
        self.request.connection.set_max_body_size(BODY_LIMIT)  # before any of it is read
        await super().prepare()

    def data_received(self, chunk: bytes) -> None:
        self._body += chunk

    async def post(self) -> None:
        try:
            said = await self._tokens.believe(self._token())
        except OIDCError as error:
            self.log.warning("A log-out by the identity provider is refused: %s", error)
            self._refuse(f"{error.thing}: {error.problem}")
            return
        except ValueError:
            self._refuse("there must be one logout_token in a form")
            return
        try:
            mended(self.db)  # no provider sends it twice
            # Somebody whom nobody knows here, or who isn't logged in, is logged out (2.7).
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
        """Users of this hub who are meant."""
        if said.sub:
            names = self.authenticator.identities.names(issuer=said.issuer, sub=said.sub)
            return [user for user in map(self.find_user, names) if user is not None]
        # Rare, and only after the issuer's signature was found good: no provider that tells the subject comes here.
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
        name, tokens = user.name, 0
        user.orm_user.cookie_id = orm.new_token()
        browsers = self.db.query(orm.APIToken).filter(
            orm.APIToken.user_id == user.id, orm.APIToken.client_id != _NO_BROWSER
        )
        for token in browsers:
            self.db.delete(token)
            tokens += 1
        for code in self.db.query(orm.OAuthCode).filter_by(user_id=user.id):
            self.db.delete(code)
        self.db.commit()
        dropped = await self._drop_refresh_token(user, said)
        also = "; its refresh token is dropped" if dropped else ""
        reason = f"The identity provider says that the user has logged out: cookies and {tokens} tokens end{also}."
        audit.tell(self.settings, audit.Event(audit.Action.LOGGED_OUT, name, reason=reason))

    async def _drop_refresh_token(self, user: HubUser, said: LoggedOut) -> bool:
        """A refresh token ends with its session, unless it is for use without one (2.7)."""
        member = self.authenticator.members[user.name]
        async with member.saving:
            session = Session.from_auth_state(await user.get_auth_state())
            if session is None or not session.refresh_token or self._is_offline(session) or not _means(said, session):
                return False
            # A "no" that is held back must outlive a restart, after which nobody can be asked any more.
            last = member.standing
            refused = last.reason if last is not None and last.verdict is Verdict.NO else session.refused
            await user.save_auth_state(replace(session, refresh_token="", refused=refused).to_auth_state())
        self.authenticator.recheck.doubt(user.name)
        return True

    def _is_offline(self, session: Session) -> bool:
        granted = session.scope if session.scope is not None else self.authenticator.scope
        return _OFFLINE in granted


def _means(said: LoggedOut, session: Session) -> bool:
    """Whether it was this log-in's session that ended; perhaps, if nobody knows."""
    same_session = not said.sid or not session.sid or said.sid == session.sid
    return same_session and same_issuer(said.issuer, session.issuer)
