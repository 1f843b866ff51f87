"""What a credential is and what mints one.

A site's own credential is a subclass of `Minter` named in the entry-point group ``casa_hub.credentials``:
set `Minter.name`, write `Minter.mint`; `Minter.check`, `Minter.environment` and `Minter.routes` where there is
something to say.
Settings are traits (``.tag(config=True)``). Nothing else needs to be touched; a minter never knows whether its
files go to a directory of this machine or into a Kubernetes Secret.
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias
from urllib.parse import quote

from traitlets.config import LoggingConfigurable

from casa_hub.naming import Server

if TYPE_CHECKING:
    from casa_hub.delivery.base import Route
    from casa_hub.errors import Problem

_NOTHING: Mapping[str, str] = {}

#: See `Minter.renewal`.
Renewal: TypeAlias = Literal["time", "token", "request"]


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The user's own token, as the identity provider gave it."""

    value: str = field(repr=False)
    #: Aware UTC; None if the identity provider did not say.
    expires_at: datetime | None
    #: Issuer of the identity provider (an URL).
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What a minter may use. All of it is known before anything is asked of anybody: minting is CPU only."""

    server: Server
    #: Random id of this start of the server, 32 hexadecimal digits: a restarted server is another start.
    start_id: str
    #: The clock, read once for all credentials of a server; aware UTC.
    now: datetime
    #: None where the user has no usable token (another authenticator, nobody asked).
    token: AccessToken | None = None
    #: `Credential.state` of the credential that this one replaces; empty at the first mint of a start.
    state: Mapping[str, str] = field(default_factory=dict)
    #: Whether it is for a user of the facility's own (`CasaOAuthenticator.technical_users`), who has no log-in.
    technical: bool = False


@dataclass(frozen=True, slots=True)
class Credential:
    """One minted credential: secret files, and what may be said about them in public."""

    name: str
    #: Path below the server's secrets directory -> content: a name, or a name in one directory
    #: (``condor_tokens.d/condor_token``). Never printed, logged or stored by the hub.
    files: Mapping[str, bytes] = field(repr=False)
    #: Aware UTC.
    issued_at: datetime
    #: Aware UTC; None for what doesn't expire by itself.
    expires_at: datetime | None
    #: What an administrator needs to recognise or block it: ``{"jti": ...}``, ``{"identifier": ...}``. Not secret.
    identifiers: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    #: What it stands for, for people: ``READ, WRITE as alice@pool.example.org``. Not secret.
    summary: str = ""
    #: What the minter needs to renew it later in the same start (see `Request.state`). Not secret.
    state: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


class Minter(LoggingConfigurable):
    """Base of all minters; one instance a hub, shared by all servers."""

    #: The credential's name: in ``Facility.credentials``, in messages, in the entry-point group.
    name: ClassVar[str]
    #: For people, at the start of a sentence: "XCache macaroon".
    title: ClassVar[str]
    #: When a running server gets a new one by itself: in `time`, before the one that it has expires; when there is a
    #: new `token` of its user, of which it is made; or only on `request` of an operator, where a new one is not valid
    #: for longer.
    renewal: ClassVar[Renewal] = "time"

    def check(self) -> Sequence[Problem]:
        """Say what is wrong with settings and key files, before a user finds out. Must not raise."""
        return ()

    @abstractmethod
    def mint(self, request: Request) -> Credential:
        """Mint one credential. CPU only: no network, and no file but keys that changed since last read.

        Raises:
            CredentialError: naming what stands in the way and the remedy.
        """

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:  # noqa: ARG002
        """Environment of the server: paths below `directory` and host names, never a secret."""
        return {}

    def routes(self, server: Server) -> Sequence[Route]:  # noqa: ARG002
        """Host names that are to be led to the server; the same for each start of it."""
        return ()


def new_identifier(server: Server) -> str:
    """A new public id for one credential: ``hub/slug/random``, by which it is found in logs and blocked.

    Whoever reads it in the log of an XCache or an HTCondor daemon sees whose it is and from which hub it comes,
    without asking the hub. ASCII, no blank, no quote: it stands in log lines and in ClassAd expressions.
    The first part is missing for a hub without ``hub_id``.
    """
    owner = [quote(server.hub_id, safe="")] if server.hub_id else []
    return "/".join([*owner, server.slug, secrets.token_hex(16)])
