"""The part of the demo's pool that accepts tokens of the facility's own issuer, which HTCondor calls SCITOKENS."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casa_hub.demo import issuer_keys
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
#: Without ^ and $ it would take parts of a name; it has no capitals, because HTCondor compares some names without case.
_MAP = """\
SCITOKENS "^{issuer},([a-z_][a-z0-9_.-]*)$" \\1@{domain}
"""


@dataclass(frozen=True, slots=True)
class IssuerTokens:
    """Which tokens the pool accepts. Its clients reach it by the name localhost, which the certificate has."""

    #: `FacilityIssuer.iss`.
    issuer: str
    #: `HTCondor.token_audience`.
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
        for path in (self.directory, self._keys.parent, self._keys):
            path.mkdir(exist_ok=True)
            os.chown(path, *owner)
        self._map_file.write_text(_MAP.format(issuer=re.escape(self.issuer), domain=domain))

    def trust(self, jwks: Mapping[str, Any]) -> None:
        """Know these keys of the issuer, and no others, until the next call; at once, also while the pool runs."""
        issuer_keys.know(self._keys, self.issuer, jwks)

    def configuration(self) -> str:
        """The lines of the pool's configuration."""
        return _CONFIG.format(
            audience=self.audience,
            cache=self._keys.parent,
            map_file=self._map_file,
            certificate=self.certificate.certificate,
            key=self.certificate.key,
        )

    @property
    def _map_file(self) -> Path:
        return self.directory / "mapfile"

    @property
    def _keys(self) -> Path:
        return self.directory / "cache" / "scitokens"
