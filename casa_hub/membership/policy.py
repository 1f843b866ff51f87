"""Pure: what an identity provider says about somebody -> let in, or refused with the reason.

Contract:

- `decide` is the one decision for log in, refresh, re-check and spawn; it raises nothing but `MalformedClaim`;
- nobody is let in by default, and nobody is let in by a group claim that is missing, empty or malformed;
- the order is: home institution, blocked groups, required groups, then any one of the ways in. So `blocked_groups` and
  `required_groups` hold for everybody: under `allow_all`, for `allowed_users` and for administrators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from casa_hub.errors import CasaError, ConfigurationError
from casa_hub.identity.providers import GroupSyntax
from casa_hub.membership.groups import GroupSource, MalformedClaim, groups_of, normalised

#: A claim that INDIGO IAM's userinfo has in its own profile and never in the profile `wlcg` (IAM 1.12, measured).
_IAMS_OWN_PROFILE = "organisation_name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who may come in. Group names are normalised as the claim's are: ``cms/uscms`` is ``/cms/uscms``.
    Raises ConfigurationError for a group name that can't match anything.
    """

    source: GroupSource
    #: Any one of them lets in. ``/cms/uscms/*`` is the group with all its subgroups.
    allowed_groups: frozenset[str] = frozenset()
    #: All of them are needed, whichever way somebody comes in; alone they let nobody in.
    required_groups: frozenset[str] = frozenset()
    #: Any one of them refuses, whichever way somebody comes in.
    blocked_groups: frozenset[str] = frozenset()
    #: Any one of them lets in and makes an administrator.
    admin_groups: frozenset[str] = frozenset()
    #: SAML entity IDs; where set, the claim ``idp`` must be one of them.
    allowed_idps: frozenset[str] = frozenset()
    allow_all: bool = False
    allowed_users: frozenset[str] = frozenset()
    #: They come in as JupyterHub lets them in.
    admin_users: frozenset[str] = frozenset()
    #: Where a refused person asks for the missing group.
    join_url: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name.endswith("_groups"):
                patterns = frozenset(_pattern(field.name, p, self.source.syntax) for p in getattr(self, field.name))
                object.__setattr__(self, field.name, patterns)


@dataclass(frozen=True, slots=True)
class Allowed:
    """Let in."""

    #: The groups the person is in, as the provider says.
    groups: frozenset[str]
    #: False takes the rights of an administrator away again.
    admin: bool
    #: Those of the policy's groups that let the person in, as the operator wrote them; empty if a list of names did.
    ways_in: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Refused:
    """Not let in."""

    #: For the person: what is missing, why, where to ask.
    reason: str
    #: The groups the person is in.
    found: frozenset[str]
    #: Whether the claim itself, of groups or of the home institution, was missing. Many of these at once are a fault of
    #: the provider or of our client.
    claim_missing: bool
    #: What keeps the claim from this hub, where the provider is known to have left it out for that, so that nobody was
    #: said to be out. "scope": it wasn't granted, to the client or to this person; "profile": the client lacks it; "".
    claim_withheld: Literal["", "scope", "profile"] = ""


class RefusedError(CasaError):
    """Somebody whom the identity provider knows, and who is not allowed here; `decision` has the groups."""

    def __init__(self, username: str, decision: Refused) -> None:
        super().__init__(username, decision.reason, "")
        self.decision = decision


def decide(
    claims: Mapping[str, object],
    username: str,
    policy: Policy,
    *,
    granted_scopes: frozenset[str] | None = None,
) -> Allowed | Refused:
    """Let in, or refused with the reason. Raises MalformedClaim if the group claim can't be read.

    `claims`: of userinfo or the verified ID token. `username`: JupyterHub's name, already normalised.
    `granted_scopes`: of the token response, to make the reason more precise; None where it had no ``scope``.
    """
    if policy.allowed_idps and (foreign := _foreign(claims, policy)):
        return foreign
    try:
        stated = groups_of(claims, policy.source)
    except MalformedClaim as error:
        # What can be read of it may still bar: else somebody could unread a block with one odd group.
        if refused := _barred_by(policy, error.readable, granted_scopes):
            return refused
        raise
    groups = stated or frozenset()
    why = _Why(policy, stated, granted_scopes, claims)
    if refused := _barred(policy, groups, why):
        return refused
    as_admin, ways_in = _matching(policy.admin_groups, groups), _matching(policy.allowed_groups, groups)
    admin = bool(as_admin) or username in policy.admin_users
    if admin or policy.allow_all or username in policy.allowed_users or ways_in:
        return Allowed(groups, admin=admin, ways_in=as_admin | ways_in)
    if policy.allowed_groups:
        return why.refused(
            f"This hub is for members of {_listed(policy.allowed_groups, ' or ')}.", policy.allowed_groups
        )
    return why.refused("This hub is for the users on its list, and you aren't on it. Ask its operator.")


def _barred_by(policy: Policy, groups: frozenset[str], granted_scopes: frozenset[str] | None) -> Refused | None:
    if blocked := _blocked(policy, groups):
        why = _Why(policy, groups, granted_scopes, {})
        return why.refused(f"This hub is closed to members of {_listed(blocked)}. Ask its operator.")
    return None


def _barred(policy: Policy, groups: frozenset[str], why: _Why) -> Refused | None:
    """What holds for everybody, whichever way in."""
    if refused := _barred_by(policy, groups, why.granted_scopes):
        return refused
    if policy.blocked_groups and why.withheld:
        # Nobody could be blocked any more, and nobody would notice. Where the scope can't be known, a missing claim has
        # to count as "in no group" here: else a hub for everybody but the blocked would refuse whoever has no group.
        return why.refused("This hub has to know your groups.")
    if lacking := policy.required_groups - _matching(policy.required_groups, groups):
        return why.refused(f"This hub is for members of {_listed(lacking)}.", lacking)
    return None


def _pattern(setting: str, text: str, syntax: GroupSyntax) -> str:
    """A group name of the operator in the form that `groups_of` gives. Raises ConfigurationError."""
    try:
        return normalised(text, syntax)
    except ValueError as error:
        remedy = (
            "Write the name just as the identity provider sends it."
            if syntax is GroupSyntax.NAMES
            else "Write a path like /cms/uscms, or /cms/uscms/* for the group with its subgroups."
        )
        raise ConfigurationError(f"{setting} {text!r}", str(error), remedy) from None


def _matching(patterns: frozenset[str], groups: frozenset[str]) -> frozenset[str]:
    """The patterns that one of the groups satisfies: exactly, or with ``/*`` by the group or any subgroup of it."""
    return frozenset(pattern for pattern in patterns if pattern in groups or _holds(pattern, groups))


def _holds(pattern: str, groups: frozenset[str]) -> bool:
    base = pattern.removesuffix("/*")
    return base != pattern and any(group == base or group.startswith(f"{base}/") for group in groups)


def _blocked(policy: Policy, groups: frozenset[str]) -> frozenset[str]:
    """The blocks that the groups meet. Who is in a subgroup is in its parents: a block takes all below it."""
    if policy.source.syntax is GroupSyntax.NAMES:
        return _matching(policy.blocked_groups, groups)
    wide = {pattern.removesuffix("/*") + "/*": pattern for pattern in policy.blocked_groups}
    return frozenset(wide[pattern] for pattern in _matching(frozenset(wide), groups))


def _foreign(claims: Mapping[str, object], policy: Policy) -> Refused | None:
    idp = claims.get("idp")
    if isinstance(idp, str) and idp in policy.allowed_idps:
        return None
    reason = (
        "This hub isn't open to your home institution. Log in with another one, or ask the hub's operator."
        if isinstance(idp, str)
        else "The identity provider doesn't say which home institution you come from (claim idp), and this hub is open"
        " to some only. Its operator has to ask for the scope org.cilogon.userinfo."
    )
    return Refused(reason, frozenset(), claim_missing=idp is None)


@dataclass(frozen=True, slots=True)
class _Why:
    """Turns a refusal into words: what is missing, why it may be, where to ask."""

    policy: Policy
    #: The groups claimed; None where the claim is missing.
    stated: frozenset[str] | None
    granted_scopes: frozenset[str] | None
    claims: Mapping[str, object]

    @property
    def scope_granted(self) -> bool | None:
        """Whether the client was given the scope that brings the claim; None where that can't be known.

        Known for ``wlcg.groups`` alone: the WLCG profile makes the claim hang on the scope of the same name, plain or
        with a group behind it. Elsewhere a mapper at the provider decides.
        """
        claim = self.policy.source.claim
        if claim != "wlcg.groups" or self.granted_scopes is None:
            return None
        return any(scope == claim or scope.startswith(f"{claim}:") for scope in self.granted_scopes)

    @property
    def withheld(self) -> Literal["", "scope", "profile"]:
        """See `Refused.claim_withheld`."""
        if self.stated is not None:
            return ""
        if self.scope_granted is False:
            return "scope"
        return "profile" if self.scope_granted and _IAMS_OWN_PROFILE in self.claims else ""

    def refused(self, problem: str, missing: frozenset[str] | None = None) -> Refused:
        """Without `missing` no group would help, so nothing is said of joining one."""
        sentences = [problem]
        if not self.stated and (missing or self.withheld):
            sentences.append(self._no_groups())
        if missing:
            join_url = self.policy.join_url
            sentences.append(f"Ask to join at {join_url}." if join_url else "Ask the hub's operator how to join.")
        return Refused(
            " ".join(sentences),
            self.stated or frozenset(),
            claim_missing=self.stated is None,
            claim_withheld=self.withheld,
        )

    def _no_groups(self) -> str:
        """Why no group arrived, as far as it can be told: providers leave the claim out in either case."""
        claim = self.policy.source.claim
        if self.withheld == "scope":
            return (
                f"The identity provider didn't grant this hub the scope {claim}, so it doesn't tell your groups:"
                " either the hub's client lacks the scope, and the hub's operator has to add it to the registration,"
                " or a policy of the provider keeps it from you, and its administrators have to change that."
            )
        if self.withheld == "profile":
            return (
                "The identity provider answered in its own profile, so it doesn't tell your groups"
                f" (claim {claim}): the hub's operator has to give the client the profile wlcg again."
            )
        if self.policy.source.syntax is GroupSyntax.ENTITLEMENTS and self.stated is not None:
            return (
                f"The identity provider named no group of yours (claim {claim}) in the namespace and by the authority"
                " that this hub goes by: either you are in none there, or the hub is set to others."
            )
        given = (
            f"the scope {claim} was granted, but the client may lack the profile"
            if self.scope_granted
            else ("the client may lack the scope, the mapper or the profile")
        )
        return (
            f"The identity provider named no group of yours (claim {claim}): either you are in none there,"
            f" or it doesn't tell this hub your groups ({given} for that claim)."
        )


def _listed(names: Iterable[str], link: str = " and ") -> str:
    return link.join(sorted(name.removesuffix("/*") for name in names))
