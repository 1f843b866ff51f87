"""Checks of the log-in's settings when the hub starts: settings that can't work, or let the wrong people in, end it."""

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

#: Traits of the base classes that have no effect here, and what to do instead. Silently ignored, they could let people
#: in.
SUPERSEDED = {
    "authorize_url": "Set issuer: the address is found by discovery.",
    "token_url": "Set issuer: the address is found by discovery.",
    "userdata_url": "Set issuer: the address is found by discovery.",
    "userdata_params": "Remove it: no provider of this class needs it.",
    "userdata_token_method": "Remove it: the token always goes into the header.",
    "userdata_from_id_token": "Remove it: groups always come from userinfo.",
    "token_params": "Remove it: no provider of this class needs it.",
    "extra_params": "Remove it: no provider of this class needs it.",
    "claim_groups_key": "Set groups_claim.",
    "auth_state_groups_key": "Set groups_claim.",
    "allowed_scopes": "Set allowed_groups.",
    "http_request_kwargs": "Set ca_file or http_proxy.",
    "validate_server_cert": "Set ca_file.",
    "tls_verify": "Set ca_file.",
    "username_key": "Set username_claim.",
    "refresh_user_hook": "Remove it: nothing may replace the membership re-check. See the section Keeper.",
    "modify_auth_state_hook": "Use post_auth_hook.",
    "auth_refresh_age": "Set Keeper.recheck_interval.",
}

#: Traits of the base classes that are always on, and why. The operator may set them to True.
ALWAYS_ON = {
    "enable_pkce": "Without it a stolen code can be used.",
    "enable_auth_state": "Without it a membership can't be re-checked.",
    "manage_groups": "Groups come from the identity provider.",
    "auth_refresh_strict": "Without it API tokens would work for people who are no longer members.",
}


def check_settings(authenticator: CasaOAuthenticator) -> None:
    """Refuse settings that can't work or would let the wrong people in. Raises ConfigurationError."""
    section = type(authenticator).__name__
    preset = authenticator.preset
    for name in ("issuer", "client_id", "client_secret", "groups_claim"):
        if not getattr(authenticator, name):
            raise ConfigurationError(f"{section}.{name}", "is not set", f"{preset.title} needs it.")
    address = urlsplit(authenticator.issuer)
    if address.scheme == "http" and not (authenticator.allow_insecure_issuer or is_loopback(address.hostname or "")):
        raise ConfigurationError(
            f"{section}.issuer",
            f"{authenticator.issuer!r} is not https: anybody on the network path could log in as anybody",
            "Give the https address. Plain http is for loopback, and for test clusters with allow_insecure_issuer.",
        )
    if preset.needs_allowed_idps and not authenticator.allowed_idps:
        raise ConfigurationError(
            f"{section}.allowed_idps",
            "is not set",
            "Name the home institutions whose members may log in: any other could assert anybody's name.",
        )
    _check_entity_ids(f"{section}.allowed_idps", authenticator.allowed_idps)
    authenticator.policy()  # raises for groups that can match nobody, and for entitlements without an authority
    if not CryptKeeper.instance(parent=authenticator.parent).keys:
        raise ConfigurationError(
            "CryptKeeper.keys",
            "there is no key to encrypt the stored tokens with",
            "Set JUPYTERHUB_CRYPT_KEY to the output of openssl rand -hex 32. A command needs the running hub's key.",
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
            "%s.scope is without offline_access, so %s may give no lasting refresh token: then a log-in counts for "
            "%g s (Keeper.membership_max_age), and whoever doesn't log in again by then loses the servers",
            section,
            preset.title,
            authenticator.members.settings.membership_max_age,
        )
    if (
        authenticator.blocked_groups
        and not authenticator.required_groups
        and (authenticator.allow_all or authenticator.allowed_users)
    ):
        authenticator.log.warning(
            "%s.blocked_groups doesn't stop people who need no group to log in, if the provider leaves the groups "
            "claim out; set required_groups, too",
            section,
        )


def _check_entity_ids(thing: str, idps: list[str]) -> None:
    for idp in idps:
        # SAML entity IDs are URIs (SAML Core 8.3.6).
        if not re.fullmatch(r"(https?://|urn:)\S+", idp):
            raise ConfigurationError(
                thing,
                f"{idp!r} is not an entity ID, so it lets nobody in",
                "Copy the entity ID from CILogon's list of institutions: an https address, or a text after urn:.",
            )


def advice(authenticator: CasaOAuthenticator, base_url: str) -> Iterator[Problem]:
    """Settings that the hub can start with, but that are probably mistakes. `check_settings` comes first."""
    section = type(authenticator).__name__
    yield from _about_callback(f"{section}.oauth_callback_url", authenticator.oauth_callback_url, base_url)
    for trait, names in authenticator.names_as_written.items():
        for written in sorted(names):
            name = authenticator.normalize_username(written.strip())
            if not name or not authenticator.validate_username(name):
                problem = f"{written!r} can match nobody: this hub doesn't accept such a user name"
                yield Problem(Severity.ERROR, f"{section}.{trait}", problem, "Correct it, or remove it.")
            elif name != written:
                problem = f"{written!r} is read as {name!r}, the form in which this hub knows user names"
                yield Problem(Severity.WARNING, f"{section}.{trait}", problem, f"Write {name}.")


def _about_callback(thing: str, url: str, base_url: str) -> Iterator[Problem]:
    path = f"{base_url.rstrip('/')}/hub/oauth_callback"
    example = f"Set it to https://<the hub's host>{path}, as it is registered with the provider."
    if not url:
        problem = "is not set, so it is guessed from each request, and behind a proxy the guess may be wrong"
        yield Problem(Severity.WARNING, thing, problem, example)
        return
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        yield Problem(Severity.ERROR, thing, f"{url!r} has no scheme and host", example)
    elif parts.path == f"{path}/":
        problem = f"{url!r} ends in a slash, and this hub doesn't answer there"
        yield Problem(Severity.ERROR, thing, problem, "Remove the slash, here and at the provider.")
    elif parts.path != path:
        problem = f"{url!r} does not lead to this hub, whose JupyterHub.base_url is {base_url!r}"
        yield Problem(Severity.ERROR, thing, problem, example)


def refuse_superseded(cls: type[CasaOAuthenticator], config: Config) -> None:
    """Refuse settings of the base classes that would be ignored silently. Raises ConfigurationError."""
    for base in cls.__mro__:
        for name, value in config.get(base.__name__, {}).items():
            if name in SUPERSEDED:
                raise ConfigurationError(f"{base.__name__}.{name}", "has no effect here", SUPERSEDED[name])
            if name in ALWAYS_ON and value is not True:
                raise ConfigurationError(
                    f"{base.__name__}.{name}", "is always on here", f"{ALWAYS_ON[name]} Remove it."
                )
