"""The interface of all credentials: `Minter` mints a `Credential` for a `Request`.

A site's own credential is a subclass of `Minter`, named in the entry-point group ``casa_hub.credentials``:

- `name`, `title` and `mint` must be there;
- `renewal`, `key_files`, `bearer_files`, `check`, `environment` and `routes` where the defaults don't fit;
- `fetch`, if it is made of something that somebody else gives for the person's token (`casa_hub.credentials.fetching`);
- `outside`, and perhaps `mint_outside`, if people may have it on a laptop or in CI, too;
- settings are traits (``.tag(config=True)``).

Nothing else needs to be touched. A minter never knows whether its files go to a directory of this machine or into a
Kubernetes Secret.
"""

from __future__ import annotations

import re
import secrets
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Flag, StrEnum, auto
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias
from urllib.parse import quote

from traitlets.config import LoggingConfigurable

from casa_hub.credentials.fetching import Fetch, Fetched, Outcomes
from casa_hub.errors import CredentialError
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.naming import Server

if TYPE_CHECKING:
    from casa_hub.errors import Problem

_NOTHING: Mapping[str, str] = {}

#: See `Minter.renewal`.
Renewal: TypeAlias = Literal["time", "token", "request"]

#: A valid key of a Kubernetes Secret, so that the file can also be delivered to a pod. In such a key ".." stands for
#: the "/" of a path. So a name has no "..", and doesn't end in ".", which would make the place of the "/" ambiguous.
_NAME = re.compile(r"(?!.*\.\.)[-._a-zA-Z0-9]*[-_a-zA-Z0-9]")
_LONGEST = 252


class BearerKind(StrEnum):
    """What a file with a bearer token holds; by that a program can do with it, or can't (`casa_hub.bearer_file`)."""

    #: A macaroon.
    MACAROON = "a macaroon"
    #: A token of the facility's own issuer, for the one service whose credential it is.
    ISSUED = "a token of the facility's own issuer"
    #: A token of the identity provider that was got for the user's own one, for one service alone.
    EXCHANGED = "a token of the identity provider for one service"
    #: The user's own token of the identity provider.
    OWN = "the user's own token"


class Paths(Flag):
    """Which files of a server one of its credentials has (`own_path`)."""

    #: Those that the minter names.
    PLAIN = auto()
    #: Files of its own, because its owner may have several of a kind.
    OWN = auto()


def own_path(path: str, rule: str) -> str:
    """Path of a file for the credential by a rule: ``condor_tokens.d/condor_token_atlas``, ``usercert_atlas.pem``."""
    whole = PurePosixPath(path)
    return str(whole.with_name(f"{whole.stem}_{rule}{whole.suffix}"))


def is_own_path(path: str, rule: str) -> bool:
    """Whether `own_path` has made a path."""
    return PurePosixPath(path).stem.endswith(f"_{rule}")


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The user's own access token of the identity provider."""

    value: str = field(repr=False)
    #: Aware UTC; None if the identity provider did not say.
    expires_at: datetime | None
    #: Issuer of the identity provider (an URL).
    issuer: str = ""
    #: ``sub`` of the user at that issuer.
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What a credential is minted for. A minter uses nothing else but its settings and key files."""

    server: Server
    #: Random id of this start of the server, 32 hexadecimal digits: a restarted server is another start.
    start_id: str
    #: The clock, read once for all credentials of a server; aware UTC.
    now: datetime
    #: None if the hub has no usable token of the user (another authenticator), or if no minter needs one.
    token: AccessToken | None = None
    #: `Credential.state` of the credential that this one replaces; empty at the first mint of a start.
    state: Mapping[str, str] = field(default_factory=dict)
    #: Whether the user is one of `CasaOAuthenticator.technical_users`, who have no log-in.
    technical: bool = False
    #: Name of a credential -> what was fetched for it, or why nothing was (see `Minter.fetch`).
    fetched: Outcomes = field(default_factory=dict, repr=False)
    #: Name of each credential that the user gets -> which files, for `Facility`; None: those of `Facility.credentials`.
    chosen: Mapping[str, Paths] | None = None
    #: Seconds that the credential may live at most; None: as long as the minter's settings say (see `Minter.shortens`).
    longest: int | None = None

    def lifetime(self, configured: int) -> timedelta:
        """How long the credential lives, by the minter's own setting (seconds) and `longest`."""
        return timedelta(seconds=configured if self.longest is None else min(configured, self.longest))

    def fetched_for(self, name: str) -> Fetched:
        """What was fetched for this credential. Raises CredentialError: nothing was."""
        found = self.fetched.get(name)
        if isinstance(found, Fetched):
            return found
        raise found or CredentialError(name, "the hub has not asked for it", "Log out and in again.")


@dataclass(frozen=True, slots=True)
class Credential:
    """One minted credential: secret files, and public facts about them."""

    name: str
    #: Path below the server's secrets directory -> content: a name, or a name in one directory
    #: (``condor_tokens.d/condor_token``). Never printed, logged or stored by the hub.
    files: Mapping[str, bytes] = field(repr=False)
    #: Aware UTC.
    issued_at: datetime
    #: Aware UTC; None if the credential doesn't expire.
    expires_at: datetime | None
    #: By these an administrator recognises or blocks it: ``{"jti": ...}``, ``{"identifier": ...}``. Not secret.
    identifiers: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    #: What it allows, for people: ``READ, WRITE as alice@pool.example.org``. Not secret.
    summary: str = ""
    #: What the minter needs to renew it in the same start (see `Request.state`). Not secret.
    state: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class Route:
    """One host name whose TLS connections, told by SNI, are led untouched to a port of the server."""

    host: str
    #: What listens there; which entry point of Traefik that means is `TraefikRoutes`' business.
    purpose: Literal["scheduler", "worker"]
    #: Port at the server.
    port: int


def bad_path(path: str) -> bool:
    """Whether a credential's file must not have this path. Allowed are a name, and a name in one directory.

    Names with ".." are reserved for the layout.
    """
    if len(path) > _LONGEST:
        return True
    first, slash, second = path.partition("/")
    names = (first, second) if slash else (first,)
    return not all(map(_NAME.fullmatch, names))


class Minter(LoggingConfigurable):
    """Base of all minters; one instance a hub, shared by all servers."""

    #: The credential's name: in ``Facility.credentials``, in messages, in the entry-point group.
    name: ClassVar[str]
    #: For people, at the start of a sentence: "XCache macaroon".
    title: ClassVar[str]
    #: What it is for, for people, after "to": "read the facility's data through XCache". "" if the title says it.
    purpose: ClassVar[str] = ""
    #: Programs that find it by themselves, for people: "HTCondor's commands and Python bindings". "" if none does.
    found_by: ClassVar[str] = ""
    #: Where its file gets another name if another credential writes it, too; for people, after "Or ". "" if nowhere.
    other_file: ClassVar[str] = ""
    #: When a running server gets a new one. `time`: before the present one expires. `token`: it is made of the user's
    #: access token, so when there is a new token. `request`: only when an operator asks for it, because a new one would
    #: not be valid for longer.
    renewal: ClassVar[Renewal] = "time"
    #: Whether people may have it outside of servers, on a laptop or in CI, if the operator lets them (`mint_outside`).
    outside: ClassVar[bool] = False
    #: Whether each credential belongs to one start of a server. Outside of servers, it is then minted by the state of
    #: a running one.
    of_start: ClassVar[bool] = False
    #: Whether `Request.longest` is heeded. False for what somebody else has issued, such as the user's own token: it
    #: lives as long as it lives.
    shortens: ClassVar[bool] = True

    #: The facility's own issuer of tokens (`casa_hub.credentials.issued`), set by `Facility`; None: it has none.
    issuer: FacilityIssuer | None = None

    @classmethod
    def parts(cls, parent: LoggingConfigurable) -> Sequence[type[Minter]]:  # noqa: ARG003
        """The classes of the credentials that this section makes, each with a `name` of its own; `parent`: `Facility`.

        Raises TraitError for a wrong setting.
        """
        return (cls,)

    @property
    def fetch(self) -> Fetch | None:
        """What has to be fetched before a mint, by the minter's settings alone; `renewal` must be `time` then.

        It is asked once, at the hub's start, and must not raise: a wrong setting is a matter of `check`. The
        credential's `issued_at` is `Fetched.at`, and it expires no later than what was fetched: by that a renewal sees
        whether something newer has been fetched already.
        """
        return None

    @property
    def paths(self) -> Collection[str] | None:
        """Paths of the files of each of its credentials; None if only a mint tells them."""
        return None

    @property
    def key_files(self) -> Mapping[str, str]:
        """Setting -> path of each key file in use, so that the page for administrators says how old the key is."""
        return _NOTHING

    @property
    def bearer_files(self) -> Mapping[str, BearerKind]:
        """Path of each file that holds one bearer token and nothing else -> what kind of token."""
        return {}

    @property
    def life(self) -> int | None:
        """Seconds that a new credential lives by the minter's own settings; None if they don't say."""
        own = getattr(self, "lifetime", None)
        return own if isinstance(own, int) else None

    @property
    def issued(self) -> bool:
        """Whether the facility's own issuer signs it, so that settings of the issuer change what is minted."""
        return False

    def check(self) -> Sequence[Problem]:
        """Problems of settings and key files, to be found before a user meets them. Must not raise."""
        return ()

    @abstractmethod
    def mint(self, request: Request) -> Credential:
        """Mint one credential. CPU only: no network, and no files but key files that have changed.

        Raises:
            CredentialError: with the thing that stands in the way, and the remedy.
        """

    def mint_outside(self, request: Request) -> Credential:
        """Mint one for a person's laptop or CI, not longer than `Request.longest`: what a client needs, and no more.

        Otherwise as `mint`.
        """
        return self.mint(request)

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:  # noqa: ARG002
        """Environment variables of the server: paths below `directory` and host names, never a secret."""
        return {}

    def environment_outside(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:
        """Environment variables of a client with a credential of `mint_outside`; otherwise as `environment`."""
        return self.environment(server, directory)

    def routes(self, server: Server) -> Sequence[Route]:  # noqa: ARG002
        """Host names to be routed to the server; the same for each of its starts."""
        return ()


def new_identifier(server: Server) -> str:
    """A new public id for one credential, ``hub/slug/random``: by it the credential is found in logs and blocked.

    So the log of an XCache or an HTCondor daemon shows the hub and the server without asking the hub. ASCII, no blank,
    no quote: the id stands in log lines and in ClassAd expressions. A hub without ``hub_id`` leaves out the first part.
    """
    owner = [quote(server.hub_id, safe="")] if server.hub_id else []
    return "/".join([*owner, server.slug, secrets.token_hex(16)])
