"""What the hub's database keeps of memberships for the hub after this one.

Departures: a hub that is killed goes on with one, and whoever is back reads why it was. And since when users are known
of whose log-in isn't: their time must not begin anew with each restart.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Column, Float, Integer, MetaData, Table, Unicode, UnicodeText, delete, insert, select, update

from casa_hub.database import mended, storable

#: Characters of JupyterHub's longest names, and of who asked for a departure.
_LENGTH = 255
#: Of double precision: MariaDB's FLOAT has epoch seconds to two minutes only.
_SECONDS = Float(53)

_departures = Table(
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

_unknown = Table(
    "casa_hub_unknown_log_ins",
    MetaData(),
    Column("username", Unicode(_LENGTH), primary_key=True),
    Column("since", _SECONDS, nullable=False),
)

#: Seconds for which a departure that is done is remembered.
_REMEMBERED = 90 * 86400.0


@dataclass(frozen=True, slots=True)
class Entry:
    """The last departure of one user."""

    username: str
    #: Of the log-in that ends; "" if none is known.
    session_id: str
    #: A sentence for people.
    reason: str
    #: See `Departures.end`.
    why: str
    requested_by: str
    #: Epoch seconds.
    began: float
    #: Epoch seconds; None while it isn't done in all parts.
    done: float | None = None
    #: How many servers were stopped.
    servers: int = 0


class Ledger:
    """The table, through the hub's own session (which lives on its event loop). Raises SQLAlchemyError."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self._there = False

    def open(self) -> None:
        """Make the table if there is none; before a transaction, since it takes one of its own."""
        mended(self._db)
        if not self._there:
            _departures.create(self._db.get_bind(), checkfirst=True)
            self._there = True

    def all(self, now: float) -> list[Entry]:
        """All that aren't done, or not for long."""
        mended(self._db)
        self._db.execute(delete(_departures).where(_departures.c.done < now - _REMEMBERED))
        self._db.commit()
        return [Entry(*row) for row in self._db.execute(select(*_departures.columns))]

    def note(self, entry: Entry) -> None:
        """One has begun; it counts with the caller's commit."""
        # What people and providers say must not keep an access from ending. "service " and a name may be too long.
        texts = {"reason": storable(entry.reason), "requested_by": storable(entry.requested_by, _LENGTH)}
        self._db.execute(delete(_departures).where(_departures.c.username == entry.username))
        self._db.execute(insert(_departures).values(asdict(entry) | texts))

    def done(self, username: str, at: float, servers: int) -> None:
        mended(self._db)
        self._db.execute(update(_departures).where(_departures.c.username == username).values(done=at, servers=servers))
        self._db.commit()

    def remove(self, username: str) -> None:
        mended(self._db)
        self._db.execute(delete(_departures).where(_departures.c.username == username))
        self._db.commit()


class UnknownLogIns:
    """The other table: user name -> epoch seconds since when. Raises SQLAlchemyError."""

    def __init__(self, db: Any) -> None:
        self._db = db

    def all(self) -> dict[str, float]:
        """Makes the table if there is none."""
        mended(self._db)
        _unknown.create(self._db.get_bind(), checkfirst=True)
        return {row.username: row.since for row in self._db.execute(select(*_unknown.columns))}

    def note(self, username: str, since: float) -> None:
        mended(self._db)
        self._db.execute(delete(_unknown).where(_unknown.c.username == username))
        self._db.execute(insert(_unknown).values(username=username, since=since))
        self._db.commit()

    def remove(self, usernames: Collection[str]) -> None:
        mended(self._db)
        self._db.execute(delete(_unknown).where(_unknown.c.username.in_(usernames)))
        self._db.commit()
