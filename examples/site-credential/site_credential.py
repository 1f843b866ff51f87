"""A site's own credential: a badge that a web service of the site takes for its users' password.

The badge is a JSON Web Token signed with HS256 (RFC 7519). The service has the same key, and verifies `aud` and `exp`.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import PurePosixPath
from typing import ClassVar

import jwt
from traitlets import Int, Set, Unicode

from casa_hub.credentials.base import Credential, Minter, Renewal, Request, new_identifier
from casa_hub.errors import CredentialError, Problem
from casa_hub.keys import BadKeyError, KeyFile
from casa_hub.naming import Server

_MAKE_KEY = "Make one for hub and service: openssl rand -base64 48 > FILE; chmod 400 FILE."


def _parse_key(content: bytes) -> bytes:
    key = content.strip()
    if len(key) < 32:
        # Says how long it is, never what it is.
        raise BadKeyError(f"holds {len(key)} bytes; whoever has a badge can guess a key of less than 32", _MAKE_KEY)
    return key


class Site(Minter):
    """Mints badges. Its name is that of its section in the configuration: ``c.Site.lifetime = 600``."""

    #: As in `Facility.credentials` and in the entry point.
    name: ClassVar[str] = "site"
    #: What people read: "Site badge (for ada), valid until 12:00 UTC".
    title: ClassVar[str] = "Site badge"
    #: The hub's Keeper asks for a new one before this one expires, and replaces the file in the running server.
    renewal: ClassVar[Renewal] = "time"

    key_file = Unicode(
        "",
        help="""File with the key that the service has, too: 32 bytes or more. Read again when it changes. There is no
        default. Example: `/etc/casa-hub/site`.""",
    ).tag(config=True)
    host = Unicode(
        "",
        help="""Host of the service; servers find it as `SITE_HOST`, and a badge is for it only. There is no default.
        Example: `badge.example.org`.""",
    ).tag(config=True)
    lifetime = Int(3600, min=1, help="Seconds that a badge is valid. Default: an hour.").tag(config=True)
    barred = Set(Unicode(), help="Names of users who get none. Default: nobody.").tag(config=True)

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        # Reads the file when it has changed, and knows what to say of one that is missing, empty or for all to read.
        self._key = KeyFile("Site.key_file", _parse_key, _MAKE_KEY)

    def check(self) -> Sequence[Problem]:
        """What an operator reads at the hub's start; it does not raise."""
        problems = self._key.check(self.key_file)
        try:
            self._check_host()
        except CredentialError as error:
            problems.append(Problem.of(error))
        return problems

    def mint(self, request: Request) -> Credential:
        """CPU only: the hub's event loop waits for it."""
        username = request.server.username
        if username in self.barred:
            # The user reads this on the spawn page: what, why, and what to do.
            raise CredentialError("site badge", f"{username} gets none", "Ask the site.")
        self._check_host()
        issued_at = request.now.replace(microsecond=0)  # a token's times are whole seconds
        expires_at = issued_at + timedelta(seconds=self.lifetime)
        identifier = new_identifier(request.server)  # by which the service's log leads to the server
        claims = {"sub": username, "aud": self.host, "iat": issued_at, "exp": expires_at, "jti": identifier}
        return Credential(
            name=self.name,
            files={"site_badge": jwt.encode(claims, self._key.read(self.key_file), "HS256").encode()},
            issued_at=issued_at,
            expires_at=expires_at,
            identifiers={"jti": identifier},
            summary=f"for {request.server.slug}",
        )

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:  # noqa: ARG002
        """Paths and names; a secret would be seen by everything that the server starts."""
        return {"SITE_BADGE_FILE": str(directory / "site_badge"), "SITE_HOST": self.host}

    def _check_host(self) -> None:
        if not self.host:
            raise CredentialError("Site.host", "is not set", "Set it to the host of the service.")
