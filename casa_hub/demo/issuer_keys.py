"""The keys of an issuer as scitokens-cpp keeps them, which XRootD's and HTCondor's daemons verify tokens with.

The library asks an issuer by https only. The demo's servers have no such way to the demo's issuer: they are told the
keys here, and the library thinks that it has asked already.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

#: Seconds that the keys count: ten years, for they are replaced and never asked for.
_KNOWN = 10 * 365 * 86400


def know(directory: Path, issuer: str, jwks: Mapping[str, Any]) -> None:
    """Know these keys of the issuer, and no others, until the next call.

    Args:
        directory: `scitokens` below the library's ``keycache.cache_home``; its owner gets the file.
        issuer: ``iss``.
        jwks: the published keys.
    """
    # A new file in place of the old one: the library opens it for each look, and waits for no lock.
    file = directory / "scitokens_cpp.sqllite"
    new = file.with_name("new")
    new.unlink(missing_ok=True)
    until = int(time.time()) + _KNOWN
    known = json.dumps({"jwks": dict(jwks), "next_update": until, "expires": until})
    with closing(sqlite3.connect(new)) as database, database:
        database.execute("CREATE TABLE keycache (issuer text UNIQUE PRIMARY KEY NOT NULL, keys text NOT NULL)")
        database.execute("INSERT INTO keycache VALUES (?, ?)", (issuer, known))
    owner = directory.stat()
    os.chown(new, owner.st_uid, owner.st_gid)
    new.replace(file)
