"""A site's own credential: one secret file, its path in a variable, and what identifies it."""

import secrets
from collections.abc import Mapping
from datetime import timedelta
from pathlib import PurePosixPath

from traitlets import Int, Unicode

from casa_hub.credentials.base import Credential, Minter, Request
from casa_hub.errors import CredentialError
from casa_hub.naming import Server


class Site(Minter):
    name = "site"
    title = "Site badge"

    lifetime = Int(3600, help="Seconds that a badge is valid.").tag(config=True)
    barred = Unicode("", help="Who gets none.").tag(config=True)

    def mint(self, request: Request) -> Credential:
        if self.barred and request.server.username == self.barred:
            raise CredentialError("site badge", f"{self.barred} gets none", "Ask the site.")
        return Credential(
            name=self.name,
            files={"site_badge": f"BADGE-{secrets.token_hex(16)}".encode()},
            issued_at=request.now,
            expires_at=request.now + timedelta(seconds=self.lifetime),
            identifiers={"badge": f"{request.server.slug}/{request.start_id}"},
            summary=f"for {request.server.slug}",
        )

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:
        return {"SITE_BADGE_FILE": str(directory / "site_badge"), "SITE_HOST": "badge.example.org"}
