#!/usr/bin/env python3
"""Fetch the public keys of a facility's issuer, and put them where XRootD's library looks for them (libscitokens).

For cron on the machine of an XCache, each five minutes, as the user that xrootd becomes. It needs Python 3.8, and
nothing else. If the issuer doesn't answer, the keys that are there stay, for four days after the last answer.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import ssl
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

#: Seconds that the keys are used without an answer: what the WLCG profile allows at most.
KEPT = 4 * 86400


def fetch(url: str, ca_file: str | None) -> Any:
    """A JSON document."""
    context = ssl.create_default_context(cafile=ca_file)
    with urllib.request.urlopen(url, timeout=20, context=context) as answer:
        return json.load(answer)


def keep(cache: str, issuer: str, jwks: Any) -> None:
    """Write the keys into a new file, and put it in place of the old one, which xrootd may have open."""
    directory = Path(cache, "scitokens")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    file, new = directory / "scitokens_cpp.sqllite", directory / f"new-{os.getpid()}"
    new.unlink(missing_ok=True)
    until = int(time.time()) + KEPT
    rows = {issuer: json.dumps({"jwks": jwks, "next_update": until, "expires": until})}
    if file.exists():
        with closing(sqlite3.connect(file)) as old:
            rows = dict(old.execute("SELECT issuer, keys FROM keycache")) | rows
    with closing(sqlite3.connect(new)) as database, database:
        database.execute("CREATE TABLE keycache (issuer text UNIQUE PRIMARY KEY NOT NULL, keys text NOT NULL)")
        database.executemany("INSERT INTO keycache VALUES (?, ?)", rows.items())
    new.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("issuer", help="as in scitokens.cfg: https://hub.example.org/hub/casa/issuer/cms")
    parser.add_argument("cache", help="the directory that xrootd has as XDG_CACHE_HOME")
    parser.add_argument("--ca", metavar="FILE", help="certificate authorities that are believed; default: the system's")
    options = parser.parse_args()
    try:
        description = fetch(f"{options.issuer}/.well-known/openid-configuration", options.ca)
        jwks = fetch(description["jwks_uri"], options.ca)
        if description["issuer"] != options.issuer or not jwks["keys"]:
            sys.exit(f"xcache_keys: {options.issuer} is not the issuer of these keys, or has none")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(
            f"xcache_keys: {options.issuer} gives no keys ({error}); those that are there stay for four days at most"
        )
    keep(options.cache, options.issuer, jwks)


if __name__ == "__main__":
    main()
