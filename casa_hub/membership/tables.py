"""The four tables in the hub's database that must survive a restart.

``casa_hub_identities``: whose name a user name is (`casa_hub.membership.usernames`). ``casa_hub_departures``: accesses
that end, which the next hub process goes on with, and those that have ended, of which the user reads after the next
log-in. ``casa_hub_unknown_log_ins``: for users with a running server or a token but no stored session, when the hub
first noticed; `Keeper.membership_max_age` counts from there. ``casa_hub_ignored``: when an operator ignored the lost
membership of a user that is held back; `Keeper.outage_grace` counts from there.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import (
    Column,
    DateTime,
    Float,
    Integer,
    MetaData,
    Table,
    Unicode,
    UnicodeText,
    delete,
    insert,
    select,
    update,
)

from casa_hub.database import committed, mended, storable

#: Characters of JupyterHub's longest names, and of who asked for the end of an access.
_LENGTH = 255
#: Of double precision: MariaDB's FLOAT has epoch seconds to two minutes only.
_SECONDS = Float(53)

#: Characters of an issuer and of a subject; OpenID Connect Core (2) has subjects of 255 at most.
SUB_LENGTH = 1023

bindings = Table(
    "casa_hub_identities",
    MetaData(),
    Column("username", Unicode(_LENGTH), primary_key=True),
    Column("issuer", Unicode(SUB_LENGTH), nullable=False),
    Column("sub", Unicode(SUB_LENGTH), nullable=False),
    Column("bound_at", DateTime, nullable=False),
)

_revocations = Table(
    "casa_hub_departures",
    MetaData(),
    Column("username", Unicode(_LENGTH), primary_key=True),
    Column("session_id", Unicode(64), nullable=False),
    Column("reason", UnicodeText, nullable=False),
    Column("why", Unicode(64), nullable=False),
    Column("requested_by", Unicode(_LENGTH), nullable=False),
    Column("began", _SECONDS, nullable=False),
    Column("done", _SECONDS, nullable=True),
    Column("servers", Integer, nullable=False),
)


def _times(name: str) -> Table:
    """A table with a time, in epoch seconds, of some users."""
    username = Column("username", Unicode(_LENGTH), primary_key=True)
    return Table(name, MetaData(), username, Column("since", _SECONDS, nullable=False))


_unknown, _ignored = _times("casa_hub_unknown_log_ins"), _times("casa_hub_ignored")

#: Seconds for which a finished revocation is remembered.
_REMEMBERED = 90 * 86400.0


@dataclass(frozen=True, slots=True)
class Entry:
    """The last end of one user's access."""

    username: str
    #: Id of the log-in that ends; "" if no log-in is stored.
    session_id: str
    #: A sentence for people.
    reason: str
    #: See `Revocations.end`.
    why: str
    requested_by: str
    #: Epoch seconds.
    began: float
    #: Epoch seconds; None while a part of it is still to be done.
    done: float | None = None
    #: How many servers were stopped.
    servers: int = 0


class HubTable:
    """One table, through the hub's own database session (which lives on its event loop)."""

    table: Table

    def __init__(self, db: Any) -> None:
        self._db = db
        self._there = False

    def open(self) -> None:
        """Create the table if it is missing. Call it outside of a transaction: it commits one of its own."""
        mended(self._db)
        # Once: a table that vanishes while the hub runs must not come back empty, with every name free again.
        if not self._there:
            self.table.create(self._db.get_bind(), checkfirst=True)
            self._there = True

    def _write(self, *statements: Any) -> None:
        with committed(self._db):
            for statement in statements:
                self._db.execute(statement)


class Ledger(HubTable):
    """The table of accesses that end or have ended. Every method may raise SQLAlchemyError."""

    table = _revocations

    def all(self, now: float) -> list[Entry]:
        """All accesses that end, and those that have ended within the last 90 days."""
        self._write(delete(_revocations).where(_revocations.c.done < now - _REMEMBERED))
        return [Entry(*row) for row in self._db.execute(select(*_revocations.columns))]

    def note(self, entry: Entry) -> None:
        """Note that an access ends. The caller commits."""
        # What people and providers say must not keep an access from ending. "service " and a name may be too long.
        texts = {"reason": storable(entry.reason), "requested_by": storable(entry.requested_by, _LENGTH)}
        self._db.execute(delete(_revocations).where(_revocations.c.username == entry.username))
        self._db.execute(insert(_revocations).values(asdict(entry) | texts))

    def done(self, username: str, at: float, servers: int) -> None:
        self._write(update(_revocations).where(_revocations.c.username == username).values(done=at, servers=servers))

    def remove(self, username: str) -> None:
        self._write(delete(_revocations).where(_revocations.c.username == username))


class _Times(HubTable):
    """A table with a time of some users. Every method may raise SQLAlchemyError."""

    def all(self) -> dict[str, float]:
        """User name -> epoch seconds. Creates the table if it is missing."""
        self.open()
        return {row.username: row.since for row in self._db.execute(select(*self.table.columns))}

    def note(self, usernames: Collection[str], since: float) -> None:
        """Note the same time for all of them."""
        rows = [{"username": name, "since": since} for name in usernames]
        self._write(delete(self.table).where(self.table.c.username.in_(usernames)), insert(self.table).values(rows))

    def remove(self, usernames: Collection[str]) -> None:
        self._write(delete(self.table).where(self.table.c.username.in_(usernames)))


class UnknownLogIns(_Times):
    """When the hub first noticed the servers or tokens of a user without a stored log-in."""

    table = _unknown


class Ignored(_Times):
    """When an operator ignored the lost membership of a user that is held back."""

    table = _ignored
