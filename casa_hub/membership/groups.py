"""Pure: a group claim -> the groups somebody is in, in one spelling whatever the provider's.

Contract:

- a group reads ``/cms/uscms``, a role in it ``/cms/uscms:role=manager``, an opaque name as it was sent;
- the groups are those that were sent: a provider that means the parents of a subgroup, too, sends them (IAM does);
- nothing is guessed: what can't be read is an error, what another authority asserts is passed over.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from casa_hub.errors import CasaError, ConfigurationError
from casa_hub.identity.providers import GroupSyntax

#: `GroupSource.authority` for a provider that writes no authority (INDIGO IAM itself; AARC-G069 made it optional): only
#: entitlements *without* one count. A word and not "", so that nobody gets this by leaving the setting out.
NO_AUTHORITY = "none"

#: Characters of a group's name and levels of a path: far above any provider's own limit, low enough to be harmless.
MAX_NAME_LENGTH = 1024
MAX_DEPTH = 32
#: Groups of one person: reading them holds the hub's event loop.
MAX_GROUPS = 2000


class MalformedClaim(CasaError):  # noqa: N818 - a claim is what it names
    """The group claim can't be read as the configured syntax: nobody may be let in by a guess."""

    def __init__(self, claim: str, problem: str, readable: frozenset[str] = frozenset()) -> None:
        super().__init__(
            f"group claim {claim}",
            problem,
            "The operator must see to the identity provider's group mapping, or choose another groups_claim.",
        )
        #: The groups that could be read all the same: enough to refuse by, never to let in.
        self.readable = readable


@dataclass(frozen=True, slots=True)
class GroupSource:
    """Where the groups stand, and how to read them.
    Raises ConfigurationError for entitlements without namespace and authority, or these without entitlements.
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
        if not re.fullmatch(r"[^#\s]+", self.authority):
            raise ConfigurationError(
                "entitlement_authority",
                f"groups_claim {self.claim} needs the authority that counts",
                f"Set it to what stands behind # in the entitlements, or to {NO_AUTHORITY} where they have none.",
            )


def groups_of(claims: Mapping[str, object], source: GroupSource) -> frozenset[str] | None:
    """The groups that the claims put somebody in; None where the claim is missing.

    Roles of entitlements stay: ``/cms/uscms:role=manager`` beside ``/cms/uscms``, since a role in a group is held by a
    member of it (AARC-G002). Raises MalformedClaim for anything but a list of strings that name groups.
    """
    value = _find(claims, source.claim)
    if value is None:
        return None
    if isinstance(value, str):
        # One value as text: Keycloak's mappers without "multivalued", ADFS. SAML gateways join names with semicolons.
        names = [name for name in (part.strip() for part in value.split(";")) if name]
        value = names if source.syntax is GroupSyntax.NAMES else [value]
    if not isinstance(value, list | tuple):
        raise MalformedClaim(source.claim, f"holds {_kind(value)} instead of a list of strings")
    if len(value) > MAX_GROUPS:
        raise MalformedClaim(source.claim, f"holds more than {MAX_GROUPS} groups")
    groups: set[str] = set()
    problem = ""
    for item in value:
        try:
            groups.update(_read(item, source))
        except ValueError as error:
            problem = problem or str(error)
    if problem:
        raise MalformedClaim(source.claim, problem, frozenset(groups))
    return frozenset(groups)


def normalised(text: str, syntax: GroupSyntax) -> str:
    """A group as the operator writes it, in the spelling of `groups_of`; the end ``/*`` of a path stays.
    Raises ValueError with what keeps it from matching any group.
    """
    if text != text.strip():
        raise ValueError("has a space at its beginning or end")
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
        return f"{_path(_segments(base))}{subgroups}"
    if base.lower().startswith("urn:"):
        raise ValueError("is a URN, the namespace and the authority have settings of their own")
    path, colon, role = base.partition(":")
    group = _path(_components(_segments(path)))
    return f"{_role_name(group, role) if colon else group}{subgroups}"


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


def _read(item: object, source: GroupSource) -> frozenset[str]:
    """The groups that one string of the claim means. Raises ValueError with the problem."""
    if not isinstance(item, str):
        raise ValueError(f"holds {_kind(item)} among its strings")  # noqa: TRY004 - one kind of error for all of it
    if source.syntax is GroupSyntax.ENTITLEMENTS:
        return _read_entitlement(item, source)
    _check_text(item)
    if source.syntax is GroupSyntax.PATHS:
        return frozenset({_path(_segments(item))})
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


def _path(segments: list[str]) -> str:
    return "/" + "/".join(segments)


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
    return frozenset({_path(_components([*segments, last]))})


def _with_role(segments: list[str], role: str) -> frozenset[str]:
    """A role belongs to the deepest group, and who holds it is a member (AARC-G002)."""
    group = _path(_components(segments))
    return frozenset({group, _role_name(group, role)})


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
