"""The authenticator: log-in with OpenID Connect, access by group. Nobody is allowed by default.

Sites configure the traits. For a rule of its own, a site makes a subclass and overrides `decide`; `authenticate` and
`refresh_user` should stay as they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from http import HTTPStatus
from typing import Any

from oauthenticator.generic import GenericOAuthenticator
from sqlalchemy.exc import SQLAlchemyError
from tornado import web
from traitlets import Bool, Enum, Float, Int, List, Set, TraitError, Unicode, default, validate

from casa_hub import audit
from casa_hub.database import roll_back
from casa_hub.errors import ConfigurationError, Severity, without_text
from casa_hub.hub import CasaHub
from casa_hub.identity.errors import OIDCError
from casa_hub.identity.fetches import Fetches
from casa_hub.identity.logout import LogoutTokens
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.providers import PROVIDERS, Provider
from casa_hub.identity.session import Session
from casa_hub.identity.settings import advice, check_settings, refuse_superseded
from casa_hub.identity.transport import Client
from casa_hub.identity.verdicts import Answer, Verdict
from casa_hub.jupyterhub import HubApp, HubUser
from casa_hub.membership.admission import Admission, MembershipError
from casa_hub.membership.fetching import Fetching
from casa_hub.membership.groups import GroupSource
from casa_hub.membership.log_ins import LogIns
from casa_hub.membership.member import Members, Standing
from casa_hub.membership.policy import Allowed, Policy, Refused, RefusedError, decide
from casa_hub.membership.recheck import Recheck
from casa_hub.membership.rights import NAME_LENGTH, Rights
from casa_hub.membership.usernames import Identities, IdentityError
from casa_hub.minters import installed
from casa_hub.startup import on_hub_start
from casa_hub.unknown_keys import without_value
from casa_hub.web import admin, bundle_download, credentials_api, credentials_page, frame, laptop, operations
from casa_hub.web.backchannel import BackchannelLogoutHandler
from casa_hub.web.loopback_log_in import Codes
from casa_hub.web.page_notices import show_notices
from casa_hub.web.pages import CasaCallbackHandler, CasaLoginHandler

_HOOK = "CasaOAuthenticator.post_auth_hook"


class CasaOAuthenticator(GenericOAuthenticator):  # type: ignore[misc]
    """JupyterHub authenticator for CMS, ATLAS and WLCG IAM, CILogon, Keycloak and any OpenID Connect provider."""

    login_handler = CasaLoginHandler
    callback_handler = CasaCallbackHandler

    #: Epoch seconds.
    clock = staticmethod(time.time)

    #: Practically zero: JupyterHub calls `refresh_user` for every request, and we answer from the person's standing.
    #: JupyterHub's own cache has one answer for each user, so a page could pass by an answer meant for an API token.
    auth_refresh_age = Float(1e-9)

    provider = Enum(
        sorted(PROVIDERS),
        default_value=None,
        allow_none=True,
        help="""The identity provider. It decides which scopes are asked for, and which claims hold user name and
        groups. `oidc` is any OpenID Connect issuer. Example: `cms-iam`.""",
    ).tag(config=True)

    issuer = Unicode(
        help="""URL of the identity provider (its issuer); OpenID Connect Discovery finds all end points. Default: the
        provider's issuer, if there is only one. Example: `https://iam.example.org/`.""",
    ).tag(config=True)

    allow_insecure_issuer = Bool(
        False,
        help="""Allow plain http to an issuer on another machine. For test clusters only: anybody on the network path
        can then log in as anybody.""",
    ).tag(config=True)

    ca_file = Unicode(
        help="""PEM file with the issuer's certificate authority, if it is a private one. Default: the system's
        authorities.""",
    ).tag(config=True)

    http_proxy = Unicode(
        help="""HTTP proxy to the issuer. Default: none. Example: `http://proxy.example.org:3128`.""",
    ).tag(config=True)

    leeway = Float(
        60.0,
        min=0,
        max=600,
        help="""Seconds that the clocks of issuer and hub may differ when the times in a token are checked.""",
    ).tag(config=True)

    basic_auth = Bool(
        True,
        config=True,
        help="""Send client id and secret to the token end point in the Authorization header (RFC 6749, 2.3.1: every
        provider must accept that). If false, in the body of the request. It must match the client's registration. Set
        it to false if the provider refuses a secret with characters other than letters, digits, `-`, `.` and `_`: not
        every provider decodes the header as the RFC says.""",
    )

    groups_claim = Unicode(
        help="""The claim of userinfo that holds the groups. Default: that of the provider. A dot names a claim inside
        another: `realm_access.roles`. With `eduperson_entitlement`, the next two settings are needed, too.""",
    ).tag(config=True)

    entitlement_namespace = Unicode(
        help="""Namespace of the entitlements (AARC-G069) that count as groups. Entitlements of other namespaces are
        ignored. Example: `urn:geant:example.org`.""",
    ).tag(config=True)

    entitlement_authority = Unicode(
        help="""Authority (the part after `#`) of the entitlements that count as groups. Example: `iam.example.org`.""",
    ).tag(config=True)

    allowed_groups = Set(
        Unicode(),
        config=True,
        help="""Groups whose members are allowed: one of them is enough. A group must match exactly; `/cms/uscms/*` is
        the group with all its subgroups. A string of CILogon must match as a whole. Default: none, so that nobody is
        allowed. Example: `["/cms/uscms"]`.""",
    )

    required_groups = Set(
        Unicode(),
        help="""Groups of which everybody must be a member, too: of all of them. Default: none.""",
    ).tag(config=True)

    blocked_groups = Set(
        Unicode(),
        help="""Groups whose members are refused, even if `allow_all`, `allowed_users` or an administrator's rights
        would allow them. Default: none.""",
    ).tag(config=True)

    admin_groups = Set(
        Unicode(),
        config=True,
        help="""Groups whose members are allowed, and are administrators of this hub as long as they are members.
        Default: none; then only `admin_users` and the hub's administration page make administrators.""",
    )

    allowed_idps = List(
        Unicode(),
        help="""CILogon: entity IDs of the home institutions whose members may log in. It has no default, because
        otherwise any institution in the world could assert anybody's name. Example:
        `["https://login.example.edu/idp/shibboleth"]`.""",
    ).tag(config=True)

    technical_users = Set(
        Unicode(),
        config=True,
        help="""Names of users without a log-in, whose servers a service of the facility starts, such as a health
        check. They may have servers and API tokens of the hub, but no browser session: a log-in under such a name is
        refused. Their servers get all credentials but those made of the user's own token (`bearer`). Default: none.
        Example: `["health-check"]`.""",
    )

    laptop_token_lifetime = Int(
        604800,
        min=60,
        help="""Seconds after which somebody who has logged in on a laptop (`casa-hub token`) does so again: the life
        of the API token that the program gets. It is good for credentials only. Default: 7 days.""",
    ).tag(config=True)

    join_url = Unicode(
        help="""Web page where a refused person can ask for the missing group; the refusal links to it. Only
        http(s).""",
    ).tag(config=True)

    @validate("join_url")
    def _web_page(self, proposal: Any) -> str:
        url: str = proposal["value"]
        if url and not url.startswith(("https://", "http://")):
            raise TraitError(f"CasaOAuthenticator.join_url: {url!r} is no web page. Begin it with https://")
        return url

    # -- defaults that depend on the provider ----------------------------------------------------------------------

    @property
    def preset(self) -> Provider:
        if not self.provider:
            raise ConfigurationError(
                "CasaOAuthenticator.provider", "it is not set", f"Choose one of {', '.join(sorted(PROVIDERS))}"
            )
        return PROVIDERS[self.provider]

    @default("issuer")
    def _issuer_default(self) -> str:
        return self.preset.issuer

    @default("scope")
    def _scope_default(self) -> list[str]:
        return list(self.preset.scopes)

    @default("username_claim")
    def _username_claim_default(self) -> str:
        return self.preset.username_claim

    @default("groups_claim")
    def _groups_claim_default(self) -> str:
        return self.preset.groups_claim

    @default("login_service")
    def _login_service_default(self) -> str:
        return self.preset.title

    @default("enable_auth_state")
    def _enable_auth_state_default(self) -> bool:
        return True

    @default("manage_groups")
    def _manage_groups_default(self) -> bool:
        return True

    @default("auth_refresh_strict")
    def _auth_refresh_strict_default(self) -> bool:
        return True

    # -- start -----------------------------------------------------------------------------------------------------

    def __init__(self, **kwargs: Any) -> None:
        try:
            self._begin(**kwargs)
        except (ConfigurationError, TraitError) as error:
            if not hasattr(kwargs.get("parent"), "tornado_settings"):
                raise
            # One line for the operator instead of a traceback.
            line = f"{without_value(error)}. Correct it." if isinstance(error, TraitError) else error
            kwargs["parent"].log.critical("%s", line)
            raise SystemExit(1) from None

    def _begin(self, **kwargs: Any) -> None:
        self.members = Members.configured(self.clock, parent=kwargs.get("parent"), config=kwargs.get("config"))
        refuse_superseded(type(self), self.members.settings.config)  # before the base classes wonder about it
        super().__init__(**kwargs)
        if self.parent is not None:
            # The lines of this package's loggers go into the hub's log; JupyterHub does the same for tornado.
            logger = logging.getLogger(__package__)
            logger.parent = self.parent.log
            logger.setLevel(self.parent.log.level)
        # Names are compared in one form. Otherwise a blocked user with another spelling would not be blocked.
        self.names_as_written = {name: getattr(self, name) for name in ("blocked_users", "technical_users")}
        for trait in self.names_as_written:
            setattr(self, trait, {self.normalize_username(name.strip()) for name in getattr(self, trait)})
        check_settings(self)
        self.provider_side = Issuer(
            Client(
                issuer=self.issuer,
                client_id=self.client_id,
                client_secret=self.client_secret,
                basic_auth=self.basic_auth,
                ca_file=self.ca_file,
                proxy=self.http_proxy,
                allow_insecure=self.allow_insecure_issuer,
                leeway=self.leeway,
            ),
            clock=self.clock,
        )
        self.log_ins = LogIns(self.members, self.provider_side, self.technical_users - self.blocked_users)
        self.rights = Rights(self.policy)
        if self._hub is not None:  # which has its database by now and serves nobody yet
            for problem in advice(self, self.parent.base_url):
                self.log.log(logging.ERROR if problem.severity is Severity.ERROR else logging.WARNING, "%s", problem)
            on_hub_start(self.parent, recheck=self.recheck)
            credentials_api.define_scopes(installed())
            show_notices(self.parent, self.admission.notice)

    @property
    def _hub(self) -> CasaHub | None:
        """The hub; None for an authenticator that no hub has made, or that is inside another one."""
        return CasaHub.of(self.parent) if hasattr(self.parent, "tornado_settings") else None

    @cached_property
    def recheck(self) -> Recheck:
        return Recheck(
            self.log_ins,
            self.identities,
            self._decide,
            groups_live=self.preset.groups_live_in_userinfo,
            on_yes=self.rights.apply,
        )

    @cached_property
    def admission(self) -> Admission:
        return Admission(self.recheck, self.technical_users)

    @cached_property
    def fetching(self) -> Fetching:
        """What the credentials of servers are made of, fetched with the person's own token."""
        return Fetching(self.recheck, Fetches(self.provider_side, self.clock))

    @cached_property
    def identities(self) -> Identities:
        return Identities(self.parent.db)

    def policy(self) -> Policy:
        """Who is allowed by the present settings. `allow_existing_users` adds to `allowed_users` while the hub runs."""
        return Policy(
            allowed_groups=frozenset(self.allowed_groups),
            required_groups=frozenset(self.required_groups),
            blocked_groups=frozenset(self.blocked_groups),
            admin_groups=frozenset(self.admin_groups),
            allowed_idps=frozenset(self.allowed_idps),
            allow_all=self.allow_all,
            allowed_users=frozenset(self.allowed_users),
            admin_users=frozenset(self.admin_users),
            source=GroupSource(
                claim=self.groups_claim,
                syntax=self.preset.syntax_of(self.groups_claim),
                namespace=self.entitlement_namespace,
                authority=self.entitlement_authority,
            ),
            join_url=self.join_url,
        )

    def decide(
        self, username: str, claims: Mapping[str, Any], granted_scopes: frozenset[str] | None
    ) -> Allowed | Refused:
        """Whether somebody with these claims is allowed. Override it to add a rule of the site's own."""
        return decide(claims, username, self.policy(), granted_scopes=granted_scopes)

    def _decide(
        self, username: str, claims: Mapping[str, Any], granted_scopes: frozenset[str] | None
    ) -> Allowed | Refused:
        if username in self.technical_users:
            reason = f"{username} is the name of a technical user of this hub, and nobody can log in with it"
        elif username in self.blocked_users:
            reason = f"{username} is blocked on this hub"
        else:
            return self.decide(username, claims, granted_scopes)
        return Refused(reason=reason, found=frozenset(), claim_missing=False)

    def get_handlers(self, app: HubApp) -> list[tuple[Any, ...]]:
        """The pages of a log-in, the address for the provider's log-outs, and the operators' API."""
        logout_tokens = LogoutTokens(self.provider_side, clock=self.clock)
        handlers = [
            *super().get_handlers(app),
            (r"/backchannel-logout", BackchannelLogoutHandler, {"tokens": logout_tokens}),
            *operations.handlers,
            *frame.handlers,
        ]
        if self._hub is None:  # inside another authenticator, which is the hub's
            return handlers
        facility = self._hub.facility
        credentials_api.let_users(app, {facility.without_rule(name) for name in facility.minters_outside})
        frame.compile_templates(app.tornado_settings["jinja2_env"])
        return [
            *handlers,
            *credentials_page.handlers,
            *bundle_download.handlers,
            *credentials_api.handlers,
            *laptop.handlers(Codes(time.monotonic)),
            *admin.handlers,
        ]

    # -- log in ----------------------------------------------------------------------------------------------------

    async def authenticate(self, handler: Any, data: Any = None, **kwargs: Any) -> dict[str, Any]:  # noqa: ARG002
        """Redeem the code of a log-in, and return JupyterHub's auth model.

        Raises:
            RefusedError: the person is not allowed here; the callback handler shows a page with the reason.
            IdentityError: the name is somebody else's.
            OIDCError: the provider's answer is not usable.
        """
        verifier, nonce = handler.pkce()
        issuer = self.provider_side
        tokens = await issuer.exchange(
            handler.get_argument("code"),
            verifier=verifier,
            redirect_uri=self.get_callback_url(handler),
            nonce=nonce,
        )
        claims = await issuer.userinfo(tokens.access_token, sub=tokens.id_claims["sub"])
        metadata = await issuer.metadata()
        username = self.normalize_username(self.user_info_to_username(claims))
        if not self.validate_username(username):
            raise _unusable("user name", f"{username[:80]!r} is not a user name that this hub takes")
        session = Session.of_login(tokens, issuer=metadata.issuer, claims=claims)
        decision = await self._allowed(handler, username, session)
        if not session.refresh_token and not self.preset.groups_live_in_userinfo:
            self.log.warning(
                "%s gave no refresh token for %s: the membership can't be re-checked and counts for %g s. "
                "Register the client for refresh tokens and ask for the scope offline_access.",
                self.preset.title,
                username,
                self.members.settings.membership_max_age,
            )
        return {
            "name": username,
            "admin": self.rights.admin(username, decision),
            "groups": self.rights.groups(username, decision),
            "auth_state": session.to_auth_state(),
            "casa": (session, decision),
        }

    async def run_post_auth_hook(self, handler: Any, auth_model: dict[str, Any]) -> dict[str, Any]:
        """Call the site's `post_auth_hook`, and bind the resulting name to the person.

        The hook's additions to auth state and groups stay as long as the log-in. A changed name goes through the same
        checks as any other name.

        Raises:
            RefusedError: the changed name is not allowed here.
            IdentityError: the name is somebody else's, or the hook's result can't be used.
        """
        session, decision = auth_model["casa"]
        name, groups = auth_model["name"], list(auth_model["groups"])
        if self.post_auth_hook is not None:
            auth_model = await self._call_post_auth_hook(handler, auth_model)
            if auth_model["name"] != name:
                name, decision = await self._renamed(handler, auth_model["name"], session)
                auth_model |= {"name": name, "admin": self.rights.admin(name, decision)}
            added = tuple(group for group in auth_model["groups"] if group not in groups)
            session = replace(session, added_groups=added)
            auth_model["auth_state"] |= {"casa": session.to_auth_state()["casa"]}
        # Last, because a refused person must not bind a name.
        self.identities.check(name, issuer=session.issuer, sub=session.sub, log_in=True)
        return auth_model | {"casa": (session, decision)}

    async def _call_post_auth_hook(self, handler: Any, auth_model: dict[str, Any]) -> dict[str, Any]:
        try:
            changed = await super().run_post_auth_hook(handler, auth_model)
        except web.HTTPError:
            raise
        except Exception as error:  # noqa: BLE001 - a site's own program
            problem = f"it failed with {without_text(error)}"
            raise IdentityError(_HOOK, problem, "The operator of this hub must correct it") from None
        match changed:
            case {"name": str(), "groups": list(groups), "auth_state": {"access_token": _, "casa": _}} if all(
                isinstance(group, str) for group in groups
            ):
                return dict(changed)
        problem = "it did not return the model that it was given, with name, groups and auth_state"
        raise IdentityError(
            _HOOK, problem, "The operator of this hub must correct it: it changes the model, returns it"
        )

    async def _renamed(self, handler: Any, name: str, session: Session) -> tuple[str, Allowed]:
        """The name that the hook chose, in the hub's form, and the decision for it. Raises RefusedError."""
        name = self.normalize_username(name)
        if not name or not self.validate_username(name):
            problem = f"it changed the name to {name[:80]!r}, which is not a user name that this hub takes"
            raise IdentityError(_HOOK, problem, "The operator of this hub must correct it")
        return name, await self._allowed(handler, name, session)

    async def _allowed(self, handler: Any, name: str, session: Session) -> Allowed:
        """The decision for a log-in with this name. Raises RefusedError."""
        decision = self._decide(name, session.claims, session.scope)
        if isinstance(decision, Refused):
            audit.tell(handler.settings, audit.Event(audit.Action.REFUSED, name, reason=decision.reason))
            # Earlier log-ins of this person may still rest on a "yes" that is no longer true.
            await self._end_earlier_log_ins(handler, name, session)
            raise RefusedError(name, decision)
        return decision

    async def _end_earlier_log_ins(self, handler: Any, username: str, session: Session) -> None:
        """Count a refused log-in as a "no" for the person's earlier log-ins, which perhaps can't be checked again.

        They may have other names, given by a hook or changed at the provider. Somebody else's log-in under the same
        name is left alone; otherwise anybody could end anybody's access.
        """
        self.recheck.doubt(username)
        try:
            names = self.identities.names(issuer=session.issuer, sub=session.sub)
        except SQLAlchemyError:
            roll_back(self.parent.db)
            return
        for name in names:
            user, decision = handler.find_user(name), self._decide(name, session.claims, session.scope)
            if user is None or name in self.technical_users:
                continue
            if isinstance(decision, Refused) and not decision.claim_withheld:
                await self.recheck.refused(user, decision.reason, decision)

    def user_info_to_username(self, user_info: Mapping[str, Any]) -> str:
        """The user name by the configured claim. An e-mail address counts only if the provider has verified it."""
        claim = self.username_claim
        name = claim(user_info) if callable(claim) else user_info.get(claim)
        shown = "the result of username_claim" if callable(claim) else f"the claim {claim}"
        if not isinstance(name, str) or not name.strip():
            raise _unusable("userinfo", f"{shown}, from which the user name is taken, is missing", "Ask for its scope")
        if not name.isprintable() or len(name) > NAME_LENGTH:
            raise _unusable("userinfo", f"{shown} can't be a user name: it is too long, or has control characters")
        if claim == "email" and user_info.get("email_verified") is not True:
            raise _unusable("userinfo", "the e-mail address, which is the user name here, is not verified")
        return name

    async def check_allowed(self, username: str, auth_model: Mapping[str, Any] | None) -> bool:  # noqa: ARG002
        """Whether `authenticate` has allowed the user; it also applies `allow_all`. Any other auth model is refused."""
        return auth_model is not None and isinstance(auth_model.get("casa", (None, None))[1], Allowed)

    # -- afterwards ------------------------------------------------------------------------------------------------

    async def refresh_user(self, user: HubUser, handler: Any = None, **kwargs: Any) -> bool:  # noqa: ARG002
        """Whether this user's pages and API requests go on. Asks the provider every `Keeper.recheck_interval`.

        It stores groups, rights and tokens itself. If it returned them, JupyterHub would write the auth state that it
        had read before, over a newer one.
        """
        goes_on = await self.admission.of_request(user, handler)
        if handler is not None and not hasattr(handler, "_token_authenticated"):
            # JupyterHub 6.1 doesn't set it for a cookie, but reads it, and would log a traceback for every "no".
            handler._token_authenticated = False  # noqa: SLF001
        return goes_on

    async def pre_spawn_start(self, user: HubUser, spawner: Any) -> None:
        """Check the membership before every start, whoever asks for it and whatever the spawner is."""
        super().pre_spawn_start(user, spawner)
        # For revocations: they don't end a server that a newer log-in has started.
        spawner.casa_log_in = (await self.admit(user, server=spawner.name)).session_id

    async def admit(self, user: HubUser, *, server: str | None = None) -> Standing:
        """Check the membership for a start, or for what somebody takes outside of servers (`server`: None).

        Raises tornado.web.HTTPError: 403 with what the user should do, or 503 if nobody can say so now and it is for
        outside; the audit is told.
        """
        try:
            return await self.admission.of_start(user)
        except MembershipError as error:
            event = audit.Event(audit.Action.REFUSED, user.name, server=server, reason=error.problem)
            audit.tell(user.settings, event)
            # JupyterHub doesn't count an HTTP error as a failure of the hub, and shows its text in the API (also 5.x).
            # A start is refused by 403 in any case; a program on a laptop tries again after 503.
            later = error.later and server is None
            status = HTTPStatus.SERVICE_UNAVAILABLE if later else HTTPStatus.FORBIDDEN
            refusal: Any = web.HTTPError(status, "%s", error.jupyterhub_message)
            refusal.jupyterhub_message = error.jupyterhub_message
            raise refusal from error

    async def delete_user(self, user: HubUser) -> None:
        """End all access of a user whom an administrator removes from the hub.

        JupyterHub has stopped the default server before, and deletes the user afterwards. It would leave the user's
        other servers running.
        """
        super().delete_user(user)
        hub = self._hub
        if hub is None or not hub.begun:
            return
        reason = "An administrator has removed the user from this hub."
        await hub.revocations.end(user, reason, why="deleted", by="an administrator of the hub")
        if user.active:
            message = f"Servers of {user.name} are still being stopped. Try again in a minute."
            raise web.HTTPError(HTTPStatus.SERVICE_UNAVAILABLE, "%s", message)
        hub.mass_loss.release(user.name)

    async def access_token(self, user: HubUser) -> Any:
        """The user's own token, for the credentials of a server; None if there is none."""
        session = await self.log_ins.session(user)
        return session.bearer() if session is not None else None


def _unusable(thing: str, problem: str, remedy: str = "") -> OIDCError:
    return OIDCError(thing, Answer(Verdict.NO, problem), remedy)
