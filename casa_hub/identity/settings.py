"""The operator's settings of the log-in: what can't work, or would let the wrong people in, is refused at the start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from jupyterhub.crypto import CryptKeeper
from traitlets.config import Config

from casa_hub.errors import ConfigurationError, Problem, Severity
from casa_hub.loopback import is_loopback

if TYPE_CHECKING:
    from casa_hub.authenticator import CasaOAuthenticator

#: Traits of the base classes that mean nothing here, and what to use. Ignoring them in silence could let people in.
SUPERSEDED = {
    "authorize_url": "found by discovery; set issuer",
    "token_url": "found by discovery; set issuer",
    "userdata_url": "found by discovery; set issuer",
    "userdata_params": "no provider of this class needs it",
    "userdata_token_method": "the token always goes in the header",
    "userdata_from_id_token": "groups always come from userinfo",
    "token_params": "no provider of this class needs it",
    "extra_params": "no provider of this class needs it",
    "claim_groups_key": "set groups_claim",
    "auth_state_groups_key": "set groups_claim",
    "allowed_scopes": "set allowed_groups",
    "http_request_kwargs": "set ca_file or http_proxy",
    "validate_server_cert": "set ca_file",
    "tls_verify": "set ca_file",
    "username_key": "set username_claim",
    "refresh_user_hook": "a membership re-check can't be replaced; see Keeper",
    "modify_auth_state_hook": "use post_auth_hook",
    "auth_refresh_age": "set Keeper.recheck_interval",
}

#: Traits of the base classes that are always on, and why; saying so is harmless.
ALWAYS_ON = {
    "enable_pkce": "a stolen code is worth nothing with it",
    "enable_auth_state": "a membership can't be re-checked without",
    "manage_groups": "groups come from the identity provider",
    "auth_refresh_strict": "who is no member has no access by API tokens either",
}


def check_settings(authenticator: CasaOAuthenticator) -> None:
    """Refuse what can't work or would let the wrong people in.

    Raises:
        ConfigurationError: naming trait and remedy.
    """
    section = type(authenticator).__name__
    preset = authenticator.preset
    for name in ("issuer", "client_id", "client_secret", "groups_claim"):
        if not getattr(authenticator, name):
            raise ConfigurationError(f"{section}.{name}", "it is not set", f"{preset.title} needs it")
    address = urlsplit(authenticator.issuer)
    if address.scheme == "http" and not (authenticator.allow_insecure_issuer or is_loopback(address.hostname or "")):
        raise ConfigurationError(
            f"{section}.issuer",
            f"{authenticator.issuer!r} is not https: anybody on the way could log in as anybody",
            "Give the https address; plain http is for loopback, else for test clusters with allow_insecure_issuer",
        )
    if preset.needs_allowed_idps and not authenticator.allowed_idps:
        raise ConfigurationError(
            f"{section}.allowed_idps",
            "it is not set",
            "Name the home institutions that may log in: any other could assert anybody's name",
        )
    _check_entity_ids(f"{section}.allowed_idps", authenticator.allowed_idps)
    authenticator.policy()  # refuses groups that can match nothing, and entitlements of nobody in particular
    if not CryptKeeper.instance(parent=authenticator.parent).keys:
        raise ConfigurationError(
            "CryptKeeper.keys",
            "there is no key to encrypt the stored tokens with",
            "Set JUPYTERHUB_CRYPT_KEY to the output of openssl rand -hex 32; a command needs the running hub's",
        )
    if not (
        authenticator.allowed_groups
        or authenticator.admin_groups
        or authenticator.allow_all
        or authenticator.allowed_users
        or authenticator.admin_users
        or authenticator.allow_existing_users
    ):
        authenticator.log.warning("%s: nobody is allowed to log in; set allowed_groups", section)
    if "offline_access" in set(preset.scopes) - set(authenticator.scope):
        authenticator.log.warning(
            "%s.scope is without offline_access, so %s may give no refresh token that lasts: a log-in then counts "
            "for %g s (Keeper.membership_max_age), and who doesn't log in anew loses the servers",
            section,
            preset.title,
            authenticator.keeper.membership_max_age,
        )
    if (
        authenticator.blocked_groups
        and not authenticator.required_groups
        and (authenticator.allow_all or authenticator.allowed_users)
    ):
        authenticator.log.warning(
            "%s.blocked_groups: who is let in without any group isn't stopped by it if the provider leaves the "
            "claim out; set required_groups, too",
            section,
        )


def _check_entity_ids(thing: str, idps: list[str]) -> None:
    for idp in idps:
        # SAML entity IDs are URIs (SAML Core 8.3.6); anything else is no institution's.
        if not re.fullmatch(r"(https?://|urn:)\S+", idp):
            raise ConfigurationError(
                thing,
                f"{idp!r} is not an entity ID, so nobody can log in by it",
                "An entity ID is an https address or begins with urn:, as CILogon's list of institutions shows it",
            )


def advice(authenticator: CasaOAuthenticator, base_url: str) -> Iterator[Problem]:
    """What is likely to be a mistake, though the hub can start with it.

    Args:
        authenticator: with its settings checked by `check_settings`.
        base_url: `JupyterHub.base_url`.
    """
    section = type(authenticator).__name__
    yield from _about_callback(f"{section}.oauth_callback_url", authenticator.oauth_callback_url, base_url)
    for trait, names in authenticator.names_as_written.items():
        for written in sorted(names):
            name = authenticator.normalize_username(written.strip())
            if not name or not authenticator.validate_username(name):
                problem = f"{written!r} can match nobody: it is not a user name that this hub takes"
                yield Problem(Severity.ERROR, f"{section}.{trait}", problem, "Correct it, or remove it.")
            elif name != written:
                problem = f"{written!r} is read as {name!r}, the form in which this hub knows user names"
                yield Problem(Severity.WARNING, f"{section}.{trait}", problem, f"Write {name}.")


def _about_callback(thing: str, url: str, base_url: str) -> Iterator[Problem]:
    path = f"{base_url.rstrip('/')}/hub/oauth_callback"
    example = f"Set it to https://<the hub's host>{path}, as it is registered with the provider."
    if not url:
        problem = "is not set, so it is guessed from each request: behind a proxy it may be another one"
        yield Problem(Severity.WARNING, thing, problem, example)
        return
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        yield Problem(Severity.ERROR, thing, f"{url!r} has no scheme and host", example)
    elif parts.path == f"{path}/":
        problem = f"{url!r} ends in a slash, and nothing of this hub answers there"
        yield Problem(Severity.ERROR, thing, problem, "Remove the slash, here and at the provider.")
    elif parts.path != path:
        problem = f"{url!r} does not lead to this hub, whose JupyterHub.base_url is {base_url!r}"
        yield Problem(Severity.ERROR, thing, problem, example)


def refuse_superseded(cls: type[CasaOAuthenticator], config: Config) -> None:
    """Refuse settings of the base classes that would be ignored in silence; else ConfigurationError."""
    for base in cls.__mro__:
        for name, value in config.get(base.__name__, {}).items():
            if name in SUPERSEDED:
                raise ConfigurationError(f"{base.__name__}.{name}", "it has no effect here", SUPERSEDED[name])
            if name in ALWAYS_ON and value is not True:
                raise ConfigurationError(f"{base.__name__}.{name}", "it is always on here", ALWAYS_ON[name])
