"""The hub's database session, which everything on its event loop shares, and what databases refuse that SQLite takes.

Three things leave the session unusable until somebody rolls it back:

- a flush that failed (any user can bring it about: a token's note with half a character in it);
- a statement that failed: PostgreSQL ends the whole transaction with it, "current transaction is aborted";
- a connection that was lost: the database was restarted, failed over, or has a time-out for idle transactions. The
  hub's session is idle in a transaction nearly always, since JupyterHub reads without committing.

JupyterHub rolls back once a request has failed for it. What must not fail begins with `mended`.
"""

from __future__ import annotations

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
        db.rollback()
    elif db.in_transaction():
        try:
            # By the connection: the session would write what others have half changed first.
            db.connection().scalar(select(1))
        except SQLAlchemyError:
            db.rollback()  # the next statement gets a new connection
    return db


def storable(text: str, length: int | None = None) -> str:
    """A text for people, without what a database refuses, and cut to a column's length."""
    return text.translate(_REFUSED)[:length]
