"""A preset for each kind of identity provider: its issuer, the scopes to ask for, the claims to read.

All endpoints come from OpenID Connect discovery, so the issuer is the only address. Sources: INDIGO IAM's code (claims
and scopes by profile), the WLCG Common JWT Profile (``wlcg.groups``), CILogon's OIDC page, Keycloak's mappers.
docs/identity-providers.md has the table for operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class GroupSyntax(StrEnum):
    """How to read the strings of a group claim."""

    #: Paths with or without the leading slash: ``/cms/uscms``, ``cms/uscms``.
    PATHS = "paths"
    #: Opaque names, matched whole: a list, or one string with ``;`` between the names.
    NAMES = "names"
    #: URNs of AARC-G002 and AARC-G069: ``urn:geant:example.org:group:cms:uscms:role=manager#authority``.
    ENTITLEMENTS = "entitlements"


@dataclass(frozen=True, slots=True)
class Provider:
    """One preset. Each field but the name and the title can be overridden by the operator."""

    #: Value of ``CasaOAuthenticator.provider``.
    name: str
    #: For the log-in button.
    title: str
    #: Exactly as in the discovery document, including a last slash; "" if the operator must set it.
    issuer: str = ""
    #: Requested at the log-in, in this order. Without `offline_access`, Keycloak's refresh token ends with the session,
    #: after 30 idle minutes by default.
    scopes: tuple[str, ...] = ("openid", "profile", "email", "offline_access")
    #: The claim that becomes the JupyterHub user name.
    username_claim: str = "preferred_username"
    #: The one claim with the groups. Never a union of claims: whoever can write one of them could let people in.
    #: A dot means nesting (``realm_access.roles``), unless a claim has exactly that name (``wlcg.groups``).
    groups_claim: str = "groups"
    group_syntax: GroupSyntax = GroupSyntax.PATHS
    #: Whether userinfo shows a lost group even with an *old* access token. If False, the token freezes the groups:
    #: a re-check first refreshes the token, then asks userinfo with the new one.
    groups_live_in_userinfo: bool = False
    #: Whether it speaks for many institutions, so that the operator must list those whose members may log in.
    needs_allowed_idps: bool = False
    #: Whether it refuses to exchange a token (RFC 8693) without being asked for a scope.
    exchange_needs_scope: bool = False

    def syntax_of(self, groups_claim: str) -> GroupSyntax:
        """How to read a groups claim, this provider's own or another one that the operator set."""
        return self.group_syntax if groups_claim == self.groups_claim else group_syntax_for(groups_claim)


#: IAM: ``profile`` brings ``preferred_username``, ``offline_access`` the refresh token, ``wlcg.groups`` the groups.
_IAM_SCOPES = ("openid", "profile", "email", "offline_access", "wlcg.groups")


def _iam(name: str, title: str, issuer: str) -> Provider:
    """An INDIGO IAM whose client is registered with the ``wlcg`` profile.

    `wlcg.groups` rather than `groups` of IAM's own profile, for two reasons. The log-in also gives the user an access
    token, which storage wants in the WLCG profile, and a client has only one profile. And the claim needs a scope of
    the same name, so that a client without the claim can be told from a person without groups.
    """
    return Provider(
        name=name,
        title=title,
        issuer=issuer,
        scopes=_IAM_SCOPES,
        groups_claim="wlcg.groups",  # IAM's userinfo reads it out of the token presented to it: the groups are frozen
        exchange_needs_scope=True,
    )


PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {
        provider.name: provider
        for provider in (
            _iam("cms-iam", "CMS IAM", "https://cms-auth.cern.ch/"),
            _iam("atlas-iam", "ATLAS IAM", "https://atlas-auth.cern.ch/"),
            _iam("wlcg-iam", "WLCG IAM", "https://wlcg.cloud.cnaf.infn.it/"),
            Provider(
                name="cilogon",
                title="CILogon",
                issuer="https://cilogon.org",
                # No offline_access: at CILogon the client's registration decides about refresh tokens.
                scopes=("openid", "profile", "email", "org.cilogon.userinfo"),
                username_claim="eppn",
                groups_claim="isMemberOf",  # live in userinfo or not: that depends on the client's registration
                group_syntax=GroupSyntax.NAMES,
                needs_allowed_idps=True,
            ),
            Provider(name="keycloak", title="Keycloak", groups_live_in_userinfo=True),
            # `sub`: the only claim that no issuer may ever give to a second person (OIDC Core 2, 5.7).
            Provider(name="oidc", title="OpenID Connect", username_claim="sub"),
        )
    }
)


def group_syntax_for(groups_claim: str) -> GroupSyntax:
    """How to read a groups claim that the operator set instead of the preset's."""
    if groups_claim in {"eduperson_entitlement", "entitlements"}:
        return GroupSyntax.ENTITLEMENTS
    # Keycloak: realm_access.roles, resource_access.<client>.roles, or either mapped to plain `roles`.
    if groups_claim in {"isMemberOf", "roles"} or groups_claim.endswith(".roles"):
        return GroupSyntax.NAMES
    return GroupSyntax.PATHS
