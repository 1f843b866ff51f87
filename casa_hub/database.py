"""The hub's database session, which everything on its event loop shares, and what databases refuse that SQLite takes.

Three things leave the session unusable until somebody rolls it back:

- a flush that failed (any user can bring it about: a token's note with half a character in it);
- a statement that failed: PostgreSQL ends the whole transaction with it, "current transaction is aborted";
- a connection that was lost: the database was restarted, failed over, or has a time-out for idle transactions. The
  hub's session is idle in a transaction nearly always, since JupyterHub reads without committing.

JupyterHub rolls back once a request has failed for it. What must not fail begins with `mended`, and what has failed
ends with `roll_back`.
"""

from __future__ import annotations

import contextlib
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

#: Half characters, which no encoding has, and NUL, which PostgreSQL's text can't hold.
_REFUSED = {0: None, **dict.fromkeys(range(0xD800, 0xE000))}


def mended(db: Any) -> Any:
    """The session, so that it can be used.

    It costs one empty query where a transaction is open. Nothing is lost that could still be committed.
    """
    if not db.is_active:
        roll_back(db)
    elif db.in_transaction():
        try:
            # By the connection: the session would write what others have half changed first.
            db.connection().scalar(select(1))
        except SQLAlchemyError:
            roll_back(db)  # the next statement gets a new connection
    return db


def roll_back(db: Any) -> None:
    """End the session's transaction, whatever has become of its connection; the session can be used then.

    A rollback is a statement, too: over a connection that was lost it fails. SQLAlchemy sends none where it knows of
    the loss already, but a driver may pass on the server's last word ("terminating connection due to administrator
    command") a moment before it sees the connection closed.
    """
    with contextlib.suppress(SQLAlchemyError):
        db.rollback()


def storable(text: str, length: int | None = None) -> str:
    """A text for people, without what a database refuses, and cut to a column's length."""
    return text.translate(_REFUSED)[:length]
