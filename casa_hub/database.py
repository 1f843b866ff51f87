"""Keeps the hub's database session usable. All code on the hub's event loop shares this one session.

Three failures leave the session unusable until it is rolled back:

- A flush failed. Any user can cause that, by a token's note with half a character in it.
- A statement failed. PostgreSQL aborts the whole transaction then.
- The connection was lost: the database was restarted, failed over, or ends idle transactions after some time. The hub's
  session is in a transaction nearly always, because JupyterHub reads without committing.

JupyterHub rolls back only after a request has failed. So code that must not fail begins with `mended`, and calls
`roll_back` if a statement of its own fails; `committed` does both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

#: Characters that databases other than SQLite refuse: half characters (lone surrogates), and NUL.
_REFUSED = {0: None, **dict.fromkeys(range(0xD800, 0xE000))}


def mended(db: Any) -> Any:
    """The session, rolled back if it was unusable. Costs one empty query if a transaction is open.

    A rollback loses nothing that could still have been committed.
    """
    if not db.is_active:
        roll_back(db)
    elif db.in_transaction():
        try:
            # By the connection, not the session: that would first flush what others are just changing.
            db.connection().scalar(select(1))
        except SQLAlchemyError:
            roll_back(db)  # the next statement gets a new connection
    return db


def roll_back(db: Any) -> None:
    """End the session's transaction, so that the session can be used again. Never raises.

    A rollback is a statement, too, and fails over a lost connection. SQLAlchemy sends none if it knows of the loss. But
    a driver may report the server's last message ("terminating connection due to administrator command") a moment
    before it sees the connection closed.
    """
    with contextlib.suppress(SQLAlchemyError):
        db.rollback()


@contextlib.contextmanager
def committed(db: Any) -> Iterator[None]:
    """A context whose changes are committed at its end, all or none of them. For code that doesn't wait."""
    mended(db)
    try:
        yield
        db.commit()
    except Exception:  # whatever it is: half of it must not wait in the hub's session for the next commit
        roll_back(db)
        raise


def storable(text: str, length: int | None = None) -> str:
    """A text without characters that databases refuse, cut to a column's length."""
    return text.translate(_REFUSED)[:length]
