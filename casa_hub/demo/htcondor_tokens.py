"""The part of the demo's pool that accepts tokens of the facility's own issuer, which HTCondor calls SCITOKENS.

HTCondor's library (scitokens-cpp) fetches the issuer's keys by https, and keeps them in a database of its own. This
pool has no way to the issuer: `IssuerTokens.publish` writes into that database what the library would have fetched.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casa_hub.demo.certificates import HostCertificate

_CONFIG = """\
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, IDTOKENS, SCITOKENS
SCITOKENS_SERVER_AUDIENCE = {audience}
SEC_SCITOKENS_CACHE = {cache}
CERTIFICATE_MAPFILE = {map_file}
AUTH_SSL_SERVER_CERTFILE = {certificate}
AUTH_SSL_SERVER_KEYFILE = {key}
# The name by which the collector tells clients of a daemon; they compare it with the certificate.
HOST_ALIAS = localhost
"""
#: Seconds until the library would fetch the keys again, and until it forgets them.
_FRESH, _KEPT = 6 * 3600, 4 * 86400


@dataclass(frozen=True, slots=True)
class IssuerTokens:
    """Which tokens the pool accepts. Its clients reach it by the name localhost, which the certificate has."""

    #: `FacilityIssuer.iss`.
    issuer: str
    #: `HTCondor.pool_audience`.
    audience: str
    certificate: HostCertificate
    #: Is made by `prepare`.
    directory: Path

    def prepare(self, domain: str, owner: tuple[int, int]) -> None:
        """Make the map file, and the place of the keys.

        Args:
            domain: of the accounts.
            owner: uid and gid of the daemons.
        """
        for path in (self.directory, self._keys.parent.parent, self._keys.parent):
            path.mkdir(exist_ok=True)
            os.chown(path, *owner)
        # Without ^ and $ the line would match parts of a name, and it has no capitals: see the operator's guide.
        line = rf'SCITOKENS "^{re.escape(self.issuer)},([a-z_][a-z0-9_.-]*)$" \1@{domain}'
        self._map_file.write_text(f"{line}\n")

    def publish(self, jwks: Mapping[str, Any]) -> None:
        """Let the daemons know these keys, and no others, from their next look on."""
        now = int(time.time())
        known = json.dumps({"jwks": jwks, "next_update": now + _FRESH, "expires": now + _KEPT})
        with closing(sqlite3.connect(self._keys, timeout=30)) as database, database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS keycache (issuer text UNIQUE PRIMARY KEY NOT NULL,keys text NOT NULL)"
            )
            database.execute("INSERT OR REPLACE INTO keycache VALUES (?, ?)", (self.issuer, known))
        status = self._keys.parent.stat()
        os.chown(self._keys, status.st_uid, status.st_gid)

    def configuration(self) -> str:
        """The lines of the pool's configuration."""
        return _CONFIG.format(
            audience=self.audience,
            cache=self._keys.parent.parent,
            map_file=self._map_file,
            certificate=self.certificate.certificate,
            key=self.certificate.key,
        )

    @property
    def _map_file(self) -> Path:
        return self.directory / "mapfile"

    @property
    def _keys(self) -> Path:
        return self.directory / "cache/scitokens/scitokens_cpp.sqllite"  # the library's own spelling
