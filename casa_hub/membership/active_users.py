"""Whose membership is checked in the background: everybody with a running server or a valid API token."""

from __future__ import annotations

from typing import Any

from jupyterhub import orm
from sqlalchemy import or_

from casa_hub.database import mended


def watched(db: Any) -> dict[str, bool]:
    """User name -> whether the user has a server that runs or starts. Costs two queries."""
    mended(db)
    tokens = db.query(orm.User.name).join(orm.APIToken, orm.APIToken.user_id == orm.User.id)
    tokens = tokens.filter(or_(orm.APIToken.expires_at.is_(None), orm.APIToken.expires_at >= orm.APIToken.now()))
    servers = db.query(orm.User.name).join(orm.Spawner, orm.Spawner.user_id == orm.User.id)
    servers = servers.filter(orm.Spawner.server_id.is_not(None))
    people = dict.fromkeys((name for (name,) in tokens.distinct()), False)
    return people | dict.fromkeys((name for (name,) in servers.distinct()), True)
