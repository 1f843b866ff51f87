"""Pure: what the page for administrators says of people, servers, credentials, keys and the identity provider.

Plain values for the template, without a secret. Times are epoch seconds; None where there is none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from casa_hub.credentials.base import Minter
from casa_hub.identity.transport import Contact
from casa_hub.identity.verdicts import Verdict
from casa_hub.membership.member import Access, Member, Outcome
from casa_hub.membership.settings import Keeper
from casa_hub.servers.renewals import Held

#: Rows of a table on one page.
ROWS = 100


class Stands(StrEnum):
    """How it stands with a person, in a word or two."""

    IN = "in"
    UNASKED = "not asked yet"
    UNSURE = "not confirmed"
    LOG_IN = "must log in again"
    HELD_BACK = "held back"
    ENDING = "access is ending"
    OUT = "out"


@dataclass(frozen=True, slots=True)
class PersonView:
    """Somebody who has a log-in or a server."""

    name: str
    stands: Stands
    #: Why, as the provider or the hub has said; "" if all is well.
    reason: str
    #: The last "yes".
    confirmed_at: float | None
    #: When access ends if nothing changes.
    ends_at: float | None


def person(name: str, member: Member | None, outcome: Outcome | None) -> PersonView:
    """A person by the hub's record; None if the hub has none yet, because it has just started."""
    standing = None if member is None else member.standing
    if member is None or outcome is None or standing is None or standing.at == -math.inf:
        confirmed_at = None if standing is None else standing.last_yes or None
        return PersonView(name, Stands.UNASKED, "", confirmed_at, None)
    ends_at = outcome.ends_at if outcome.ends_at < math.inf else None
    if member.revocation is not None:
        return PersonView(name, Stands.ENDING, member.revocation.entry.reason, standing.last_yes or None, None)
    return PersonView(name, _stands(member, outcome), standing.reason, standing.last_yes or None, ends_at)


def _stands(member: Member, outcome: Outcome) -> Stands:
    if member.leaves:
        return Stands.ENDING
    if outcome.access is Access.OFF:
        return Stands.OUT
    if member.held_since is not None:
        return Stands.HELD_BACK
    if outcome.access is Access.LOG_IN:
        return Stands.LOG_IN
    return Stands.UNSURE if member.effective is not Verdict.YES else Stands.IN


@dataclass(frozen=True, slots=True)
class ServerView:
    """A running server."""

    #: As operators read it: ``alice/name``.
    title: str
    #: Why nothing of it is renewed, without a full stop; "" if its credentials are.
    unkept: str
    held: Mapping[str, Held]


@dataclass(slots=True)
class CredentialCount:
    """One credential, in all running servers."""

    title: str
    servers: int = 0
    missing: int = 0
    overdue: int = 0
    #: Expiry of the one that is nearest to its end.
    first_end: float | None = None

    def add(self, held: Held) -> None:
        """Count that of one server."""
        if held.missing:
            self.missing += 1
            return
        self.servers += 1
        self.overdue += bool(held.why)
        if held.expires is not None:
            self.first_end = min(self.first_end or math.inf, held.expires)


class Credentials:
    """The credentials of all running servers, counted; and the servers of some users, in full."""

    def __init__(self, minters: Mapping[str, Minter]) -> None:
        self.counts = {name: CredentialCount(minter.title) for name, minter in minters.items()}
        self.servers = 0
        #: User name -> servers, of the users for whom `add` was told to keep them.
        self.of: dict[str, list[ServerView]] = {}

    def add(self, username: str, server: ServerView, *, keep: bool) -> None:
        """Count one server; `keep`: whether it is also shown by itself."""
        self.servers += 1
        for name, held in server.held.items():
            self.counts.setdefault(name, CredentialCount(name)).add(held)
        if keep:
            self.of.setdefault(username, []).append(server)


#: Verdicts in words, in the order of the page.
_VERDICTS = {
    Verdict.YES: "members",
    Verdict.NO: "no members",
    Verdict.LOG_IN_AGAIN: "must log in again",
    Verdict.CANT_SAY: "not known now",
}


@dataclass(slots=True)
class ProviderView:
    """The identity provider, as the hub hears of it."""

    title: str
    issuer: str
    contact: Contact
    #: Users about whom it refuses to speak with this hub.
    refused: int = 0
    _last: Counter[Verdict] = field(default_factory=Counter)

    def add(self, member: Member) -> None:
        """Count what it says of one user."""
        self.refused += member.client_refused
        if member.standing is not None and member.standing.at > -math.inf:
            self._last[member.standing.verdict] += 1

    @property
    def verdicts(self) -> Mapping[str, int]:
        """Verdict, in words -> users of whom it is the last one."""
        return {words: self._last[verdict] for verdict, words in _VERDICTS.items() if self._last[verdict]}


@dataclass(frozen=True, slots=True)
class EventView:
    """An event of the audit."""

    at: float
    action: str
    #: User, and server if it is about one.
    who: str
    credential: str
    reason: str
    by: str
    #: Public identifiers of the credential, by which it is blocked.
    identifiers: str


def event(data: Mapping[str, Any]) -> EventView:
    """An event for people; `data`: `casa_hub.audit.fields`."""
    server = data.get("servername", "")
    started_as = f" (started as {data['started_as']})" if "started_as" in data else ""
    return EventView(
        at=datetime.fromisoformat(data["time"]).timestamp(),
        action=data["action"],
        who=f"{data['username']}{'/' if server else ''}{server}{started_as}",
        credential=data.get("credential", ""),
        reason=data.get("reason", ""),
        by=data.get("by", ""),
        identifiers=", ".join(f"{name} {value}" for name, value in data.get("identifiers", {}).items()),
    )


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key file."""

    setting: str
    #: When the file was changed last, and so how old the key is; None if it can't be seen.
    changed_at: float | None
    #: Whole days since then.
    days: int = field(default=0)


def key(setting: str, changed_at: float | None, now: float) -> KeyView:
    return KeyView(setting, changed_at, 0 if changed_at is None else max(int((now - changed_at) // 86400), 0))


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a table."""

    number: int
    #: Rows of the whole table.
    total: int

    @classmethod
    def asked(cls, number: str, total: int) -> Page:
        """The page that an address asks for, as text; the first or the last one if there is none of that number."""
        wanted = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 1  # noqa: PLR2004
        return cls(min(max(wanted, 1), max(math.ceil(total / ROWS), 1)), total)

    @property
    def first(self) -> int:
        """How many rows come before it."""
        return (self.number - 1) * ROWS

    @property
    def last(self) -> int:
        """How many rows there are up to its end."""
        return min(self.first + ROWS, self.total)


#: What the page can be asked to do.
ACTIONS = ("revoke", "renew", "confirm", "ignore")


_REVOKE = """\
Servers stop; their files, routes, tokens and sessions end at once. Files in the home stay.
A copy of a credential that somebody made is valid until it expires; the audit names each.
Whoever is still a member can log in again. To prevent that: CasaOAuthenticator.blocked_users."""
_RENEW = "All credentials of the running servers are made anew now. Nothing stops."
_CONFIRM = """\
You say that they are no members any more. Pages refuse them at once; servers and tokens end, for 25 users a second."""
_IGNORE = """\
You say that the "no" is a mistake of the identity provider. Access goes on for another {grace} from now, but not \
beyond {longest} since the last confirmation.
The next "yes" ends this; a "no" after it counts again."""


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} hours"


@dataclass(frozen=True, slots=True)
class Question:
    """What the page asks before it does something."""

    action: str
    title: str
    #: What follows, as sentences.
    follows: Sequence[str]
    button: str
    users: Sequence[str]
    #: Whether a reason can be given.
    reason: bool = False


def question(action: str, users: Sequence[str], settings: Keeper) -> Question:
    """The question before an action on some users. Raises ValueError for another action than `ACTIONS`."""
    who = users[0] if len(users) == 1 else f"{len(users)} users"
    match action:
        case "revoke":
            title, button, text = f"End all access of {who}?", "End the access", _REVOKE
        case "renew":
            title, button, text = f"Renew the credentials of {who}?", "Renew now", _RENEW
        case "confirm":
            title, button, text = f"End the access of {who}?", "It is true: end the access", _CONFIRM
        case "ignore":
            title, button, text = f"Ignore what is held back of {who}?", "It is a mistake: go on", _IGNORE
        case _:
            raise ValueError(action)
    times = {"grace": _hours(settings.outage_grace), "longest": _hours(settings.membership_max_age)}
    return Question(action, title, text.format(**times).splitlines(), button, users, reason=action == "revoke")
