"""Whose name a user name is: each is bound to the issuer and subject that first came with it.

Names are given to other people in the course of years (IAM: an administrator may change ``preferred_username``), and
homes, jobs and groups hang on them. The bindings have a table of their own in the hub's database: the auth state would
lose them with the crypt key, and the hub's user with the user's deletion.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from casa_hub.database import roll_back
from casa_hub.errors import CasaError
from casa_hub.identity.discovery import same_issuer
from casa_hub.membership.tables import SUB_LENGTH, HubTable, bindings

#: Stands for issuer and subject of a name that was taken from its owner: nobody's, until somebody logs in.
_NOBODY = ""


class IdentityError(CasaError):
    """This user name is somebody else's, or nobody can tell whose."""


class UnknownOwnerError(IdentityError):
    """Nobody can tell whose this name is."""


class AlikeError(IdentityError):
    """The hub's database takes this name for another one."""


class Identities(HubTable):
    """The bindings in the hub's database. Every method but `check` may raise SQLAlchemyError."""

    table = bindings

    def _find(self, username: str) -> Any:
        """The row of exactly this name; None if there is none.
        Raises AlikeError if the database takes another name for it (a collation without case or accents, of MariaDB
        say).
        """
        columns = (bindings.c.username, bindings.c.issuer, bindings.c.sub)
        row = self._db.execute(select(*columns).where(bindings.c.username == username)).first()
        if row is not None and row.username != username:
            raise AlikeError(
                f"user name {username!r}",
                "the hub's database takes it for the name of another user",
                "The administrators of this hub must give its database a collation that tells such names apart",
            )
        return row

    def names(self, *, issuer: str, sub: str) -> list[str]:
        """All names of a subject; several if the provider has given it another one."""
        self.open()
        columns = (bindings.c.username, bindings.c.issuer, bindings.c.sub)
        rows = self._db.execute(select(*columns).where(bindings.c.sub == sub))
        return [row.username for row in rows if _is(row, issuer, sub)]

    def namesakes(self, username: str) -> list[str]:
        """The other names of the subject that a name belongs to."""
        self.open()
        row = self._find(username)
        if row is None or row.sub == _NOBODY:
            return []
        return [name for name in self.names(issuer=row.issuer, sub=row.sub) if name != username]

    def release(self, username: str) -> bool:
        """Take a name from its owner, for the next who logs in with it; False if it had none.

        A log-in of the owner's that is still stored somewhere doesn't take it back.
        """
        self.open()
        row = self._find(username)
        if row is None or row.sub == _NOBODY:
            return False
        self._bind(update(bindings).where(bindings.c.username == username), _NOBODY, _NOBODY)
        return True

    def _bind(self, statement: Any, issuer: str, sub: str) -> None:
        bound_at = datetime.now(UTC).replace(tzinfo=None)
        self._write(statement.values(issuer=issuer, sub=sub, bound_at=bound_at))

    def check(self, username: str, *, issuer: str, sub: str, log_in: bool = False) -> None:
        """Let the first subject of a name in and nobody else; a name without one is bound to this subject.

        `log_in`: whether somebody logs in. Nothing else binds a name that was taken from its owner.
        Raises IdentityError if the name is bound to somebody else, or if the table can't be read.
        """
        if len(issuer) > SUB_LENGTH or len(sub) > SUB_LENGTH:
            # SQLite would take it, and PostgreSQL refuse it each time.
            raise IdentityError(
                f"user name {username!r}",
                f"issuer or subject of who signed in has more than {SUB_LENGTH} characters",
                "Tell the administrators of this hub",
            )
        try:
            self.open()
            row = self._find(username)
            if row is None:
                self._bind(insert(bindings).values(username=username), issuer, sub)
            elif row.sub == _NOBODY and log_in:
                self._bind(update(bindings).where(bindings.c.username == username), issuer, sub)
                row = None
        except SQLAlchemyError as error:
            roll_back(self._db)
            # Unreadable is refused: the name may be anybody's. The driver's text may hold parameters.
            raise UnknownOwnerError(
                f"user name {username!r}",
                f"the hub's database can't say whose it is ({type(error).__name__})",
                "Try again; if it stays so, tell the administrators of this hub",
            ) from None
        if row is not None and not _is(row, issuer, sub):
            raise IdentityError(
                f"user name {username!r}",
                "it belongs to another identity than the one that signed in",
                "If this is your name, ask the administrators of this hub",
            )


def _is(row: Any, issuer: str, sub: str) -> bool:
    """Whether a binding is to this subject."""
    return row.sub == sub and same_issuer(row.issuer, issuer)
