"""Pure: what an identity provider says about somebody -> let in, or refused with the reason.

Contract:

- `decide` is the one decision for log in, refresh, re-check and spawn; it raises nothing but `MalformedClaim`;
- nobody is let in by default, and nothing is let in by a claim that is missing, empty or malformed;
- in this order: home institution, blocked groups, required groups, then any one of the ways in. So `blocked_groups` and
  `required_groups` hold for everybody: under `allow_all`, for `allowed_users` and for administrators.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from urllib.parse import unquote_to_bytes

from casa_hub.errors import CasaError, ConfigurationError
from casa_hub.providers import GroupSyntax

#: `GroupSource.authority` for a provider that writes no authority (INDIGO IAM itself; AARC-G069 made it optional): only
#: entitlements *without* one count. A word and not "", so that nobody gets this by leaving the setting out.
NO_AUTHORITY = "none"

#: Characters of a group's name and levels of a path: far above any provider's own limit, low enough to be harmless.
MAX_NAME_LENGTH = 1024
MAX_DEPTH = 32


class MalformedClaim(CasaError):  # noqa: N818 - a claim is what it names
    """The group claim can't be read as the configured syntax: nobody may be let in by a guess."""

    def __init__(self, claim: str, problem: str) -> None:
        super().__init__(
            f"group claim {claim}",
            problem,
            "The operator must see to the identity provider's group mapping, or choose another groups_claim.",
        )


@dataclass(frozen=True, slots=True)
class GroupSource:
    """Where the groups stand, and how to read them.

    Raises:
        ConfigurationError: entitlements without namespace and authority, or these without entitlements.
    """

    #: One claim; a dot means nesting unless a claim has just this name.
    claim: str
    syntax: GroupSyntax
    #: Entitlements: all before ``:group:``, sub-namespaces included: ``urn:geant:example.org``.
    namespace: str = ""
    #: Entitlements: what must stand behind ``#``, or `NO_AUTHORITY`.
    authority: str = ""

    def __post_init__(self) -> None:
        if self.syntax is not GroupSyntax.ENTITLEMENTS:
            for name in ("namespace", "authority"):
                if getattr(self, name):
                    raise ConfigurationError(
                        f"entitlement_{name}", f"means nothing to groups_claim {self.claim}", "Take it away."
                    )
            return
        if not re.fullmatch(r"(?i:urn):[^:?#]+(:[^:?#]+)+", self.namespace):
            raise ConfigurationError(
                "entitlement_namespace",
                f"groups_claim {self.claim} needs the namespace that counts",
                "Set it to all that stands before :group: in the entitlements, like urn:geant:example.org.",
            )
        if not self.authority:
            raise ConfigurationError(
                "entitlement_authority",
                f"groups_claim {self.claim} needs the authority that counts",
                f"Set it to what stands behind # in the entitlements, or to {NO_AUTHORITY} where they have none.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who may come in. Group names are normalised as the claim's are: ``cms/uscms`` is ``/cms/uscms``.

    Raises:
        ConfigurationError: a group name that can't match anything.
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

    #: All groups the person is in, parents included.
    groups: frozenset[str]
    #: What let him in: patterns of `allowed_groups` and `admin_groups`, or allow_all, allowed_users, admin_users.
    matched: frozenset[str]
    #: False takes the rights of an administrator away again.
    admin: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Not let in."""

    #: For the person: what is missing, why, where to ask.
    reason: str
    #: The groups of which one is needed, or which are all needed.
    missing: frozenset[str]
    #: The groups the person is in.
    found: frozenset[str]
    #: Whether the claim itself was missing. Many of these at once are a fault of the provider or of our client.
    claim_missing: bool


def groups_of(claims: Mapping[str, object], source: GroupSource) -> frozenset[str] | None:
    """All groups the claims put somebody in, parents included; None where the claim is missing.

    Roles of entitlements stay: ``/cms/uscms:role=manager`` beside ``/cms/uscms``, since a role in a group is held by a
    member of it (AARC-G002).

    Raises:
        MalformedClaim: not a list of strings, or a string that names no group.
    """
    value = _find(claims, source.claim)
    if value is None:
        return None
    if isinstance(value, str) and source.syntax is GroupSyntax.NAMES:
        value = [name for name in (part.strip() for part in value.split(";")) if name]
    if not isinstance(value, list | tuple):
        raise MalformedClaim(source.claim, f"holds {_kind(value)} instead of a list of strings")
    groups: set[str] = set()
    for item in value:
        if not isinstance(item, str):
            raise MalformedClaim(source.claim, f"holds {_kind(item)} among its strings")
        try:
            groups.update(_read(item, source))
        except ValueError as error:
            raise MalformedClaim(source.claim, str(error)) from None
    return frozenset(groups)


def decide(
    claims: Mapping[str, object],
    username: str,
    policy: Policy,
    *,
    granted_scopes: frozenset[str] | None = None,
) -> Allowed | Refused:
    """Let in, or refused with the reason.

    Args:
        claims: of userinfo or the verified ID token.
        username: JupyterHub's name, already normalised.
        policy: the operator's.
        granted_scopes: of the token response; None where it had no ``scope``. Makes the reason more precise.

    Raises:
        MalformedClaim: the group claim can't be read.
    """
    if policy.allowed_idps and (refused := _foreign(claims, policy)):
        return refused
    stated = groups_of(claims, policy.source)
    groups = stated or frozenset()

    def refuse(reason: str, missing: frozenset[str]) -> Refused:
        return Refused(reason, missing, groups, claim_missing=stated is None)

    if blocked := _matching(policy.blocked_groups, groups):
        return refuse(f"This hub is closed to members of {_listed(blocked)}.", frozenset())
    not_granted = _scope_granted(policy.source.claim, granted_scopes) is False
    if policy.blocked_groups and stated is None and not_granted:
        # Nobody could be blocked any more, and nobody would notice.
        return refuse(_why_no_groups(policy, stated, granted_scopes), frozenset())
    if lacking := policy.required_groups - _matching(policy.required_groups, groups):
        return refuse(
            f"This hub is for members of {_listed(lacking)}. {_remedy(policy, stated, granted_scopes)}", lacking
        )
    admin_by_group = _matching(policy.admin_groups, groups)
    matched = set(_matching(policy.allowed_groups, groups) | admin_by_group)
    if policy.allow_all:
        matched.add("allow_all")
    if username in policy.allowed_users:
        matched.add("allowed_users")
    if username in policy.admin_users:
        matched.add("admin_users")
    if matched:
        return Allowed(groups, frozenset(matched), admin=bool(admin_by_group) or username in policy.admin_users)
    if not policy.allowed_groups:
        return refuse("This hub is for the users on its list, and you aren't on it. Ask its operator.", frozenset())
    wanted = "" if len(policy.allowed_groups) == 1 else "one of "
    return refuse(
        f"This hub is for members of {wanted}{_listed(policy.allowed_groups, ' or ')}."
        f" {_remedy(policy, stated, granted_scopes)}",
        policy.allowed_groups,
    )


# Groups -------------------------------------------------------------------------------------------------------------


def _find(claims: Mapping[str, object], path: str) -> object:
    """The claim's value; a claim of just that name wins over nesting. None where missing (JSON's null is missing)."""
    if path in claims:
        return claims[path]
    # Each dot may be nesting or part of a name: Keycloak's resource_access.<client id>.roles with a dot in the id.
    for dot in (i for i, character in enumerate(path) if character == "."):
        inner = claims.get(path[:dot])
        if isinstance(inner, Mapping) and (found := _find(inner, path[dot + 1 :])) is not None:
            return found
    return None


def _read(item: str, source: GroupSource) -> frozenset[str]:
    """The groups that one string of the claim means. Raises ValueError with the problem."""
    _check_text(item)
    match source.syntax:
        case GroupSyntax.NAMES:
            if not item:
                raise ValueError("holds an empty name")
            return frozenset({item})
        case GroupSyntax.PATHS:
            return _with_parents(_segments(item))
        case GroupSyntax.ENTITLEMENTS:
            return _read_entitlement(item, source)


def _check_text(text: str) -> None:
    """No control characters (they would reach logs and pages), no lone surrogates (nothing can store them)."""
    if len(text) > MAX_NAME_LENGTH:
        raise ValueError(f"holds a name of more than {MAX_NAME_LENGTH} characters")
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in text):
        raise ValueError("holds a name with control characters")


def _segments(path: str) -> list[str]:
    """The names on a path. Raises ValueError."""
    segments = path.removeprefix("/").removesuffix("/").split("/")
    _check_segments(segments)
    return segments


def _check_segments(segments: list[str]) -> None:
    if any(segment in {"", ".", ".."} for segment in segments):
        raise ValueError("holds a path with an empty, '.' or '..' name")
    if len(segments) > MAX_DEPTH:
        raise ValueError(f"holds a path of more than {MAX_DEPTH} levels")


def _with_parents(segments: list[str]) -> frozenset[str]:
    return frozenset("/" + "/".join(segments[:depth]) for depth in range(1, len(segments) + 1))


_ROLE = "role="
#: What structures a name here and in the URN, and the sign of the escape itself: stays percent-encoded, so that a group
#: called "cms/uscms" (``cms%2Fuscms``) is never taken for the subgroup (``cms:uscms``).
_STRUCTURE = re.compile(r"[%/:#]|[\x00-\x1f\x7f]")


def _read_entitlement(urn: str, source: GroupSource) -> frozenset[str]:
    """The groups of ``urn:<nid>:<namespace>[:<sub>]:group:<group>[:<subgroup>][:role=<role>][#<authority>]``.

    AARC-G002 and, for what is equal, AARC-G069: case doesn't count up to ``:group:``, percent-encoded octets are the
    octets; RFC 8141 2.3: r- and q-components don't count. What others assert is none of ours and passed over.
    """
    name, _, authority = urn.partition("#")
    if authority != ("" if source.authority == NO_AUTHORITY else source.authority):
        return frozenset()
    name = re.split(r"\?[+=]", name, maxsplit=1)[0]
    head = f"{source.namespace}:group:"
    if name[: len(head)].lower() != head.lower():
        return frozenset()
    *segments, last = [_component(part) for part in name[len(head) :].split(":")]
    role = last if last.startswith(_ROLE) and segments else ""
    if not role:
        segments.append(last)
    _check_segments(segments)
    groups = _with_parents(segments)
    return groups | {f"/{'/'.join(segments)}:{role}"} if role else groups


def _component(text: str) -> str:
    """A component of a URN, readable: percent-encoding undone, except where it keeps names apart."""
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        decoded = text
    return _STRUCTURE.sub(lambda character: f"%{ord(character[0]):02X}", decoded)


# The operator's names -----------------------------------------------------------------------------------------------


def _pattern(setting: str, text: str, syntax: GroupSyntax) -> str:
    """A group name of the operator in the form that `groups_of` gives. Raises ConfigurationError."""
    base, subgroups = (text[:-2], "/*") if text.endswith("/*") else (text, "")
    try:
        _check_text(text)
        if "*" in base or (subgroups and syntax is GroupSyntax.NAMES):
            raise ValueError("has a '*' that would match nothing: names are matched whole")  # noqa: TRY301
        if syntax is GroupSyntax.NAMES:
            if not text.strip():
                raise ValueError("is empty")  # noqa: TRY301
            return text
        if syntax is GroupSyntax.ENTITLEMENTS:
            if base.lower().startswith("urn:"):
                raise ValueError("is a URN")  # noqa: TRY301
            group, colon, role = base.partition(":")
            path = "/".join(_component(segment) for segment in _segments(group))
            return f"/{path}{colon}{_component(role)}{subgroups}"
        return f"/{'/'.join(_segments(base))}{subgroups}"
    except ValueError as error:
        remedy = (
            "Write the name as the identity provider sends it."
            if syntax is GroupSyntax.NAMES
            else "Write a path like /cms/uscms, or /cms/uscms/* for the group with its subgroups."
        )
        raise ConfigurationError(f"{setting}: {text!r}", str(error), remedy) from None


def _matching(patterns: frozenset[str], groups: frozenset[str]) -> frozenset[str]:
    """The patterns that the groups satisfy; the parents are among the groups, so ``/*`` needs nothing more."""
    return frozenset(pattern for pattern in patterns if pattern.removesuffix("/*") in groups)


# Words --------------------------------------------------------------------------------------------------------------


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
    return Refused(reason, frozenset(), frozenset(), claim_missing=False)


def _scope_granted(claim: str, granted: frozenset[str] | None) -> bool | None:
    """Whether the client was given the scope that brings the claim; None where that can't be known.

    Known for ``wlcg.groups`` alone: the WLCG profile makes the claim hang on the scope of the same name, plain or with
    a group behind it. Elsewhere a mapper at the provider decides.
    """
    if claim != "wlcg.groups" or granted is None:
        return None
    return any(scope == claim or scope.startswith(f"{claim}:") for scope in granted)


def _why_no_groups(policy: Policy, stated: frozenset[str] | None, granted: frozenset[str] | None) -> str:
    """Why no group arrived, as far as it can be told: a provider leaves the claim out in both cases."""
    claim = policy.source.claim
    if stated:
        return ""
    if _scope_granted(claim, granted) is False:
        return (
            f"The identity provider didn't grant this hub the scope {claim}, so it doesn't tell your groups:"
            " the hub's operator has to add the scope to the client's registration."
        )
    if policy.source.syntax is GroupSyntax.ENTITLEMENTS and stated is not None:
        return (
            f"The identity provider named no group of yours in the claim {claim} that is of the namespace and the"
            " authority which this hub goes by: either you are in none, or the hub is set to others."
        )
    scope = f"the scope {claim} was granted, but " if _scope_granted(claim, granted) else ""
    return (
        f"The identity provider named no group of yours (claim {claim}): either you are in none there, or this hub isn't"
        f" told your groups ({scope}the client may lack the scope, the mapper or the profile for that claim)."
    )


def _remedy(policy: Policy, stated: frozenset[str] | None, granted: frozenset[str] | None) -> str:
    ask = f"Ask to join at {policy.join_url}." if policy.join_url else "Ask the hub's operator how to join."
    return " ".join(part for part in (_why_no_groups(policy, stated, granted), ask) if part)


def _listed(names: Iterable[str], link: str = " and ") -> str:
    return link.join(sorted(names))


def _kind(value: object) -> str:
    kinds = {
        str: "a string",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        list: "a list",
        type(None): "null",
    }
    return kinds.get(type(value), "an object")
