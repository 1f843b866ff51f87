"""The pages of a log-in: the redirect to the identity provider, and the callback.

They extend oauthenticator's handlers by what OpenID Connect needs: discovery before the redirect, and a nonce that
binds the ID token to this browser. They also have pages that say what went wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from oauthenticator.oauth2 import (
    STATE_COOKIE_NAME,
    OAuthCallbackHandler,
    OAuthLoginHandler,
    _deserialize_state,
    _serialize_state,
)
from tornado import web

from casa_hub.errors import CasaError
from casa_hub.identity.errors import OIDCError, TokenError
from casa_hub.identity.session import Session
from casa_hub.identity.verdicts import Verdict
from casa_hub.jupyterhub import HubUser
from casa_hub.membership.groups import MalformedClaim
from casa_hub.membership.policy import Refused, RefusedError
from casa_hub.membership.usernames import IdentityError
from casa_hub.text import printable
from casa_hub.web.frame import Pages

if TYPE_CHECKING:
    from casa_hub.authenticator import CasaOAuthenticator


#: Attempts to log in that one browser may make at the same time, seconds for one attempt, and characters of the link
#: that it leads to in the end. All cookies together stay far below the 8 KiB of headers that proxies accept.
ATTEMPTS, ATTEMPT_AGE, LONGEST_LINK = 3, 3600, 1024

_ATTEMPT = f"{STATE_COOKIE_NAME}-"

#: Errors at the callback that only the operator can solve -> the setting, and the remedy.
_FOR_OPERATORS = {
    "invalid_scope": ("scope", "Give the client these scopes at the provider, or take them out of the setting"),
    "unauthorized_client": (
        "client_id",
        "Allow the grant authorization code and the response type code in the client's registration",
    ),
}


def _attempt(state_id: str) -> str:
    """Name of the cookie of one attempt to log in."""
    return _ATTEMPT + hashlib.sha256(state_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def nonce_of(verifier: str) -> str:
    """The nonce of a log-in: a hash of the verifier, which only this browser's cookie holds (OIDC Core, 15.5.2)."""
    digest = hashlib.sha256(b"casa_hub nonce " + verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class ClientRefusedError(CasaError):
    """The provider refuses this hub's client. Only the operator can solve that."""

    def __init__(self, code: str, said: str) -> None:
        setting, remedy = _FOR_OPERATORS[code]
        problem = f"the identity provider refuses it ({code}{f': {said}' if said else ''})"
        super().__init__(f"CasaOAuthenticator.{setting}", problem, remedy)


class _LogInPages(Pages):
    """Pages for people who are not signed in."""

    authenticator: CasaOAuthenticator

    async def show_unavailable(self) -> None:
        self.set_header("Retry-After", "60")
        await self.show(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "casa_unavailable.html",
            provider=self.authenticator.preset.title,
            login_url=self.authenticator.login_url(self.hub.base_url),
        )


class CasaLoginHandler(_LogInPages, OAuthLoginHandler):  # type: ignore[misc]
    """Send the browser to the identity provider."""

    @property
    def _OAUTH_AUTHORIZE_URL(self) -> str:  # noqa: N802 - tornado's name
        metadata = self.authenticator.provider_side.known
        assert metadata is not None, "get() discovers before it redirects"  # noqa: S101
        return metadata.authorization_endpoint

    async def get(self) -> None:
        try:
            await self.authenticator.provider_side.metadata()
        except OIDCError as error:
            self.log.error("Nobody can log in: %s", error)  # noqa: TRY400 - the reason is all there is to say
            await self.show_unavailable()
            return
        super().get()

    def set_state_cookie(self, state_cookie_value: str) -> None:
        """Set one cookie for each attempt, so that two tabs can log in at the same time. Removes the oldest ones."""
        state = _deserialize_state(state_cookie_value)
        self._verifier = state["code_verifier"]
        # The length in the cookie, where a character that isn't ASCII takes up to twelve.
        if len(json.dumps(state["next_url"] or "")) - len('""') > LONGEST_LINK:
            # A browser drops a cookie of more than 4096 bytes. So the person logs in, but must open the link again.
            self.log.warning("A link of %d characters is too long to be kept during a log-in", len(state["next_url"]))
            state["next_url"] = None
        earlier = sorted((name for name in self.cookies if name.startswith(_ATTEMPT)), key=self._begun)
        for name in earlier[: max(0, len(earlier) + 1 - ATTEMPTS)]:
            self.clear_cookie(name)
        value = _serialize_state(state | {"begun": int(time.time())})
        self._set_cookie(_attempt(state["state_id"]), value, expires_days=ATTEMPT_AGE / 86400, httponly=True)

    def _begun(self, cookie: str) -> float:
        """Epoch seconds at which an attempt began; 0 for a cookie that can't be read."""
        value = (self.get_secure_cookie(cookie) or b"").decode("ascii", "replace")
        try:
            return float(_deserialize_state(value)["begun"])
        except (KeyError, TypeError, ValueError):
            return 0.0

    def authorize_redirect(self, *args: Any, extra_params: dict[str, Any], **kwargs: Any) -> None:
        super().authorize_redirect(*args, extra_params={**extra_params, "nonce": nonce_of(self._verifier)}, **kwargs)


class CasaCallbackHandler(_LogInPages, OAuthCallbackHandler):  # type: ignore[misc]
    """Receive the browser from the identity provider, and log the user in or say why not."""

    _state: str | None = None

    def check_arguments(self) -> None:
        """Check the state first: with a wrong state, anybody may have made the rest of the address."""
        self.check_state()
        self.check_error()
        self.check_code()

    def get_state_cookie(self) -> str:
        """The state of the attempt that the address names. Its cookie can be used once."""
        if self._state is None:
            name = _attempt(str(_deserialize_state(self.get_state_url()).get("state_id")))
            self._state = (self.get_secure_cookie(name) or b"").decode("ascii", "replace")
            self.clear_cookie(name)
        return self._state

    def check_error(self) -> None:
        """Check for an error that the provider sends instead of a code (RFC 6749, 4.1.2.1)."""
        code = self.get_argument("error", "")
        if code in _FOR_OPERATORS:
            said = printable(self.get_argument("error_description", ""))[:200]
            raise ClientRefusedError(code, said)
        super().check_error()

    def get_state_url(self) -> str:
        state: str = super().get_state_url()
        # Checked here, because oauthenticator would log a state that isn't JSON, so anybody could write log lines.
        try:
            readable = isinstance(json.loads(base64.urlsafe_b64decode(state.encode("ascii"))), dict)
        except (ValueError, RecursionError):
            readable = False
        if not readable:
            raise web.HTTPError(HTTPStatus.BAD_REQUEST, "OAuth state mismatch")
        return state

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """As tornado, but without the address's query: it may hold a code that can still be redeemed."""
        if isinstance(value, web.HTTPError):
            self.log.warning("%d %s: %s", value.status_code, self.request.path, printable(value.get_message() or ""))
        elif value is not None:
            self.log.error("Uncaught exception at %s", self.request.path, exc_info=(typ, value, tb))

    def pkce(self) -> tuple[str, str]:
        """PKCE verifier and nonce of this browser's log-in."""
        verifier = _deserialize_state(self.get_state_cookie()).get("code_verifier")
        if not isinstance(verifier, str) or not verifier:
            raise web.HTTPError(HTTPStatus.BAD_REQUEST, "This log-in was not begun in this browser. Please try again.")
        return verifier, nonce_of(verifier)

    async def get(self) -> None:
        try:
            await super().get()
        except RefusedError as error:
            self.log.warning("Log-in of %s refused: %s", error.thing, error.decision.reason)
            await self.show_refused(error.decision)
        except ClientRefusedError as error:
            self.log.error("Nobody can log in: %s", error)  # noqa: TRY400 - the reason is all there is to say
            await self.show_failed(f"{error.problem}. The operator of this hub must act; trying again doesn't help.")
        except web.HTTPError as error:
            if error.status_code != HTTPStatus.BAD_REQUEST:
                raise
            # Two tabs, a reloaded page, a refused consent: the person only has to try again.
            self.log.warning("Log-in not finished: %s", printable(error.get_message() or ""))
            await self.show_failed(error.get_message() or "", status=HTTPStatus.BAD_REQUEST)
        except (IdentityError, MalformedClaim) as error:
            self.log.error("Log-in refused: %s", error)  # noqa: TRY400
            await self.show_failed(str(error))
        except OIDCError as error:
            self.log.error("Log-in failed: %s", error)  # noqa: TRY400
            if isinstance(error, TokenError) or error.answer.verdict is not Verdict.CANT_SAY:
                await self.show_failed(str(error))
            else:
                await self.show_unavailable()

    async def auth_to_user(self, authenticated: dict[str, Any], user: HubUser | None = None) -> Any:
        session, decision = authenticated.pop("casa", (None, None))
        async with self.authenticator.members[authenticated["name"]].saving:
            if session is not None:
                session = await self._remember_browsers(authenticated, session)
            user = await super().auth_to_user(authenticated, user)
        if session is not None:
            self.authenticator.recheck.logged_in(user.name, session, decision)
        return user

    async def _remember_browsers(self, authenticated: dict[str, Any], session: Session) -> Session:
        """Add the ids of the provider's earlier browser sessions to the session, also to the one that is stored."""
        known = self.find_user(authenticated["name"])
        if known is None:
            return session
        session = session.after(Session.from_auth_state(await known.get_auth_state()))
        state = authenticated.get("auth_state")
        if isinstance(state, dict) and "casa" in state:  # a site's hook may have replaced it
            state["casa"] = session.to_auth_state()["casa"]
        return session

    async def show_refused(self, decision: Refused) -> None:
        """The page for somebody whom the provider knows, but who may not use this hub."""
        await self.show(
            HTTPStatus.FORBIDDEN,
            "casa_refused.html",
            reason=decision.reason,
            found=sorted(decision.found),
            login_url=self.authenticator.login_url(self.hub.base_url),
        )

    async def show_failed(self, reason: str, *, status: int = HTTPStatus.FORBIDDEN) -> None:
        """The page for a log-in that failed or can't be trusted."""
        await self.show(
            status,
            "casa_failed.html",
            reason=reason,
            provider=self.authenticator.preset.title,
            login_url=self.authenticator.login_url(self.hub.base_url),
        )
