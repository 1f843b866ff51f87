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
    if policy.allowed_idps and (foreign := _foreign(claims, policy)):
        return foreign
    stated = groups_of(claims, policy.source)
    groups = stated or frozenset()
    why = _Why(policy, stated, granted_scopes)
    if refused := _barred(policy, groups, why):
        return refused
    admin_by_group = _matching(policy.admin_groups, groups)
    users = {
        "allow_all": policy.allow_all,
        "allowed_users": username in policy.allowed_users,
        "admin_users": username in policy.admin_users,
    }
    matched = _matching(policy.allowed_groups, groups) | admin_by_group | {way for way, open_ in users.items() if open_}
    if matched:
        return Allowed(groups, matched, admin=bool(admin_by_group) or users["admin_users"])
    if policy.allowed_groups:
        return why.refused(
            f"This hub is for members of {_listed(policy.allowed_groups, ' or ')}.", policy.allowed_groups
        )
    return why.refused("This hub is for the users on its list, and you aren't on it. Ask its operator.")


def _barred(policy: Policy, groups: frozenset[str], why: _Why) -> Refused | None:
    """What holds for everybody, whichever way he comes in."""
    if blocked := _matching(policy.blocked_groups, groups):
        return why.refused(f"This hub is closed to members of {_listed(blocked)}. Ask its operator.")
    if policy.blocked_groups and why.stated is None and why.scope_granted is False:
        # Nobody could be blocked any more, and nobody would notice. Where the scope can't be known, a missing claim has
        # to count as "in no group" here: else a hub for everybody but the blocked would refuse whoever has no group.
        return why.refused("This hub has to know your groups.")
    if lacking := policy.required_groups - _matching(policy.required_groups, groups):
        return why.refused(f"This hub is for members of {_listed(lacking)}.", lacking)
    return None


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
    if source.syntax is GroupSyntax.ENTITLEMENTS:
        return _read_entitlement(item, source)
    _check_text(item)
    if source.syntax is GroupSyntax.PATHS:
        return _with_parents(_segments(item))
    if not item.strip():
        raise ValueError("holds an empty name")
    return frozenset({item})


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
_STRUCTURE = re.compile("[%/:#]")


def _read_entitlement(urn: str, source: GroupSource) -> frozenset[str]:
    """The groups of ``urn:<nid>:<namespace>[:<sub>]:group:<group>[:<subgroup>][:role=<role>][#<authority>]``.

    AARC-G002 and, where it says the same, AARC-G069: case doesn't count in the namespace, percent-encoded octets are
    the octets; RFC 8141 2.3: r- and q-components don't count. What others assert is none of ours and passed over.
    """
    name, _, authority = urn.partition("#")
    if authority != ("" if source.authority == NO_AUTHORITY else source.authority):
        return frozenset()
    namespace, group_ = name[: len(source.namespace)], name[len(source.namespace) :]
    if namespace.lower() != source.namespace.lower() or not group_.startswith(":group:"):
        return frozenset()
    _check_text(urn)
    group_ = re.split(r"\?[+=]", group_.removeprefix(":group:"), maxsplit=1)[0]
    *segments, last = group_.split(":")
    if last.startswith(_ROLE) and segments:
        return _with_role(segments, last)
    return _with_parents(_components([*segments, last]))


def _with_role(segments: list[str], role: str) -> frozenset[str]:
    """A role belongs to the deepest group, and who holds it is a member (AARC-G002)."""
    groups = _components(segments)
    return _with_parents(groups) | {_role_name("/" + "/".join(groups), role)}


def _role_name(group: str, role: str) -> str:
    if not role.startswith(_ROLE) or role == _ROLE:
        raise ValueError("has a ':' without a role behind it")
    return f"{group}:{_ROLE}{_component(role.removeprefix(_ROLE))}"


def _components(texts: list[str]) -> list[str]:
    components = [_component(text) for text in texts]
    _check_segments(components)
    return components


def _component(text: str) -> str:
    """A component of a URN, readable: percent-encoding undone, except where it keeps names apart."""
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise ValueError("holds a percent-encoded name that isn't UTF-8") from None
    _check_text(decoded)
    return _STRUCTURE.sub(lambda character: f"%{ord(character[0]):02X}", decoded)


# The operator's names -----------------------------------------------------------------------------------------------


def _pattern(setting: str, text: str, syntax: GroupSyntax) -> str:
    """A group name of the operator in the form that `groups_of` gives. Raises ConfigurationError."""
    try:
        return _normalised(text, syntax)
    except ValueError as error:
        remedy = (
            "Write the name just as the identity provider sends it."
            if syntax is GroupSyntax.NAMES
            else "Write a path like /cms/uscms, or /cms/uscms/* for the group with its subgroups."
        )
        raise ConfigurationError(f"{setting} {text!r}", str(error), remedy) from None


def _normalised(text: str, syntax: GroupSyntax) -> str:
    _check_text(text)
    base = text.removesuffix("/*")
    subgroups = text[len(base) :]
    if "*" in base or (subgroups and syntax is GroupSyntax.NAMES):
        raise ValueError("has a '*' that would match nothing, names are matched whole")
    if syntax is GroupSyntax.NAMES:
        if not text.strip():
            raise ValueError("is empty")
        return text
    if syntax is GroupSyntax.PATHS:
        return f"/{'/'.join(_segments(base))}{subgroups}"
    if base.lower().startswith("urn:"):
        raise ValueError("is a URN, the namespace and the authority have settings of their own")
    path, colon, role = base.partition(":")
    group = "/" + "/".join(_components(_segments(path)))
    return f"{_role_name(group, role) if colon else group}{subgroups}"


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


@dataclass(frozen=True, slots=True)
class _Why:
    """Turns a refusal into words: what is missing, why it may be, where to ask."""

    policy: Policy
    #: The groups claimed; None where the claim is missing.
    stated: frozenset[str] | None
    granted_scopes: frozenset[str] | None

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

    def refused(self, problem: str, missing: frozenset[str] | None = None) -> Refused:
        """Without `missing` no group would help, so nothing is said of joining one."""
        sentences = [problem]
        if not self.stated and (missing or self.scope_granted is False):
            sentences.append(self._no_groups())
        if missing:
            join_url = self.policy.join_url
            sentences.append(f"Ask to join at {join_url}." if join_url else "Ask the hub's operator how to join.")
        return Refused(
            " ".join(sentences),
            missing or frozenset(),
            self.stated or frozenset(),
            claim_missing=self.stated is None,
        )

    def _no_groups(self) -> str:
        """Why no group arrived, as far as it can be told: providers leave the claim out in either case."""
        claim = self.policy.source.claim
        if self.scope_granted is False:
            return (
                f"The identity provider didn't grant this hub the scope {claim}, so it doesn't tell your groups:"
                " the hub's operator has to add the scope to the client's registration."
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
