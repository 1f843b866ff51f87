"""The hub's database session, which everything on its event loop shares."""

from __future__ import annotations

from typing import Any


def mended(db: Any) -> Any:
    """The session, so that it can be used.

    A request that fails in the middle of a flush leaves it unusable until somebody rolls it back, as JupyterHub does
    once another request has failed for that. Any user can bring it about (a token's note with half a character in it),
    so what must not fail begins with this. Nothing is lost that could still be committed.
    """
    if not db.is_active:
        db.rollback()
    return db
