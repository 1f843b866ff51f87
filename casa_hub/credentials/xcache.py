"""What lets a server read data through an XCache: a macaroon, a token of the facility's own issuer, or both.

XRootD demands no caveats: a macaroon without any is all-powerful and never expires. So each macaroon minted here has
all four: ``name:``, ``activity:``, one ``path:``, ``before:``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import PurePosixPath
from typing import Any, ClassVar

from traitlets import Enum, Int, List, TraitError, Unicode, validate

from casa_hub.credentials.base import BearerKind, Credential, Minter, Request, bad_path, new_identifier
from casa_hub.credentials.issued import Issued, issue
from casa_hub.credentials.macaroons import (
    ACTIVITIES,
    MAKE_KEY,
    MAX_LIFETIME,
    SecretKey,
    mint_macaroon,
    name_caveat,
    parse_secret_key,
)
from casa_hub.credentials.scopes import audience, is_audience, storage_path, storage_words
from casa_hub.errors import CredentialError, Problem, Severity
from casa_hub.issuer.tokens import LONGEST
from casa_hub.keys import KeyFile
from casa_hub.naming import Server
from casa_hub.unknown_keys import is_set

#: Activities that change data. Through a cache they change it at the origin, if the origin trusts the cache.
WRITING = frozenset({"UPLOAD", "MANAGE", "DELETE", "UPDATE_METADATA"})
_READING, _DELETING = "storage.read", "storage.modify"
#: The file that programs read by default, and the one that is beside it if an XCache takes both kinds.
_FILE, _SECOND_FILE = "xcache_token", "xcache_jwt"
_TITLES = {"macaroon": "XCache macaroon", "token": "XCache token", "both": "XCache macaroon and token"}

#: A user name that can be a component of a path: no separator, no hidden file, no ``..``.
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,254}")


class XCache(Minter):
    """Mints what an XCache accepts: XRootD with libXrdMacaroons, or with libXrdAccSciTokens."""

    name: ClassVar[str] = "xcache"
    other_file: ClassVar[str] = "name another file in XCache.token_file"
    title: ClassVar[str] = _TITLES["macaroon"]
    purpose: ClassVar[str] = "read the facility's data through XCache"
    outside: ClassVar[bool] = True

    credential = Enum(
        ["macaroon", "token", "both"],
        default_value="macaroon",
        help="""
        What the XCache takes. `macaroon` (default): XRootD with libXrdMacaroons; the hub and the XCache have the same
        key, `key_file`. `token`: XRootD with libXrdAccSciTokens, or any other verifier of WLCG tokens; the hub's
        `FacilityIssuer` signs, the XCache has public keys only, and `key_file` and `site_name` aren't used. `both`: for
        an XCache, or several, of which some need the one and some the other.

        The file ``xcache_token`` (`token_file`) has the macaroon, or the token with `token`. With `both` it has the
        macaroon, as before, and the token is in ``xcache_jwt``; `Facility.bearer_token_file` decides which of them
        programs find.
        """,
    ).tag(config=True)
    token_file = Unicode(
        _FILE,
        help="""
        File with the macaroon, or with ``credential: token`` with the token: a name, or a name in one directory, below
        the server's directory of secrets. It is the default of `Facility.bearer_token_file`. Default: ``xcache_token``.

        ``access_token`` is for jobs in Coffea-Casa's worker image, which takes a token from a job under this name only
        (since 2023). Dask workers need it not: their scheduler sends them the token. If `bearer` is in
        `Facility.credentials`, too, that credential has this file; then give ``xcache/access_token``.

        Change it when no server runs: a running one would get the new file, but not a new variable. On laptops and in
        CI the file is ``xcache_token`` in any case.
        """,
    ).tag(config=True)
    audience = Unicode(
        "",
        help="""
        ``aud`` of the tokens, exactly as ``audience`` in the XCache's ``scitokens.cfg``: they are compared as text. Of
        a redirector and its caches, all must accept the same. Default: the address by https, from `host` and `port`,
        without the port if it is 443: ``https://xcache.example.org:1094``.
        """,
    ).tag(config=True)
    key_file = Unicode(
        "",
        help="""
        File with the key that XCache verifies macaroons with: the one that ``macaroons.secretkey`` of XRootD names.
        Base64, at least 32 bytes, ending in a newline. Read again when it changes.

        Who has this key can mint any right at this XCache. There is no default.
        Example: ``/etc/casa/xcache.key``, made by ``openssl rand -base64 -out xcache.key 64``.
        """,
    ).tag(config=True)
    site_name = Unicode(
        "",
        help="""
        ``all.sitename`` of the XCache, exactly; it refuses macaroons with another one. There is no default.
        Example: ``T2_US_Nebraska``.
        """,
    ).tag(config=True)
    path = Unicode(
        "/store",
        help="""
        The one path that macaroon and token open, with all below it; absolute, as clients ask for it. So ``base_path``
        of the issuer in the XCache's ``scitokens.cfg`` is ``/``.

        ``{username}`` stands for the user's name and must be a whole component: ``/store/user/{username}``. Users whose
        name is not a plain file name get no macaroon then. As the last component it is followed by a slash in the
        macaroon, because XRootD 5 compares beginnings of text, so that ``/store/user/al`` would open
        ``/store/user/alice``. The price: the directory itself has to be listed with the slash
        (``xrdfs HOST ls /store/user/al/``).

        For the same reason a fixed ``/store`` also opens ``/store2`` on XRootD 5, if the XCache exports that; end it
        with a slash where that matters. In tokens such a slash has no effect, because XRootD drops it: before 5.6.9 it
        opens ``/store2`` with a token for ``/store``. ``casa-hub check`` tries it.
        """,
    ).tag(config=True)
    activities: List[str] = List(
        Unicode(),
        default_value=["DOWNLOAD", "LIST"],
        help="""
        What may be done: words of XRootD's ``activity:`` caveat, of READ_METADATA, LIST, DOWNLOAD, UPLOAD, MANAGE,
        DELETE, UPDATE_METADATA. Each includes looking at metadata.

        The default reads. The last four change data, and a cache whose origin trusts it passes them on: a macaroon with
        DELETE removes files at the origin.

        Of tokens, DOWNLOAD is the scope ``storage.read``, UPLOAD ``storage.create``, and MANAGE, DELETE and
        UPDATE_METADATA are ``storage.modify``, which lets do all that these do. READ_METADATA and LIST have no scope of
        their own: XRootD lets list who may read.
        """,
    ).tag(config=True)
    lifetime = Int(
        43200,
        min=1,
        help="""
        Seconds that a macaroon is valid; it is renewed while the server runs. At most 82800 (23 hours): XRootD refuses
        macaroons that are valid for longer than its ``macaroons.maxduration``, a day by default.

        A token is valid for 21600 (6 hours) at most, as the WLCG profile wants it. So with ``credential: token`` or
        `both`, token and macaroon live for the lesser of this setting and 6 hours. Default: 43200, 12 hours.
        """,
    ).tag(config=True)
    host = Unicode(
        "",
        help="""
        Host name of the XCache; servers find it as ``XCACHE_HOST``. Without it they use what their image says.
        Example: ``xcache.example.org``.
        """,
    ).tag(config=True)
    port = Int(
        1094,
        min=1,
        max=65535,
        help="TCP port of the XCache; servers find it as ``XCACHE_PORT``. Effective with ``host``.",
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._key = KeyFile("XCache.key_file", parse_secret_key, MAKE_KEY)
        self.title = _TITLES[self.credential]  # type: ignore[misc]  # people read which of them they have

    @validate("lifetime")
    def _valid_lifetime(self, proposal: Any) -> int:
        value: int = proposal["value"]
        if value > MAX_LIFETIME:
            raise TraitError(
                f"XCache.lifetime is {value}, must be at most {MAX_LIFETIME} seconds: XRootD refuses macaroons valid"
                " for longer than its macaroons.maxduration (86400 by default), without tolerance for clocks."
            )
        return value

    @validate("token_file")
    def _valid_file(self, proposal: Any) -> str:
        value: str = proposal["value"]
        if bad_path(value) or value == _SECOND_FILE:
            raise TraitError(
                f"XCache.token_file is {value!a}, must be a name, or a name in one directory, and not {_SECOND_FILE}."
            )
        return value

    @validate("activities")
    def _valid_activities(self, proposal: Any) -> list[str]:
        value: list[str] = proposal["value"]
        unknown = [word for word in value if word not in ACTIVITIES]
        if unknown or not value:
            what = f"has {unknown}, which XRootD doesn't know" if unknown else "is empty, which allows nothing"
            raise TraitError(f"XCache.activities {what}. Choose from {', '.join(ACTIVITIES)}.")
        return list(dict.fromkeys(value))

    @property
    def takes_macaroons(self) -> bool:
        """Whether the XCache takes macaroons."""
        return self.credential != "token"

    @property
    def takes_tokens(self) -> bool:
        """Whether the XCache takes tokens of the facility's own issuer."""
        return self.credential != "macaroon"

    @property
    def life(self) -> int:
        # With both kinds, one time is true for both, in the audit and on pages.
        lifetime: int = self.lifetime
        return min(lifetime, LONGEST) if self.takes_tokens else lifetime

    @property
    def bearer_files(self) -> Mapping[str, BearerKind]:
        kinds = [BearerKind.MACAROON] * self.takes_macaroons + [BearerKind.ISSUED] * self.takes_tokens
        return dict(zip((self.token_file, _SECOND_FILE), kinds, strict=False))

    @property
    def key_files(self) -> Mapping[str, str]:
        return {"XCache.key_file": self.key_file} if self.takes_macaroons else {}

    @property
    def issued(self) -> bool:
        return bool(self.takes_tokens)

    def check(self) -> Sequence[Problem]:
        problems = self._key.check(self.key_file) if self.takes_macaroons else []
        for probe in self._probes():
            try:
                probe()
            except CredentialError as error:
                problems.append(Problem.of(error))
        sound = not any(problem.severity is Severity.ERROR for problem in problems)
        if self.takes_macaroons and sound and not self._read_key().starts_xrootd:
            problems.append(
                _warning(
                    f"XCache.key_file ({self.key_file})",
                    "is a single line without a newline at its end; XRootD doesn't start with such a file",
                    "Add the newline, in the XCache's copy too: echo >> FILE.",
                )
            )
        return [*problems, *self._advice()]

    def _probes(self) -> list[Callable[[], object]]:
        """What raises CredentialError if a setting can't work."""
        probes: list[Callable[[], object]] = [self._site] if self.takes_macaroons else []
        if self.takes_tokens:
            return [*probes, self._check_issuer, self.token_audience, partial(self.scope_for, "user")]
        return [*probes, self._template]

    def _advice(self) -> list[Problem]:
        """Problems of settings that may be meant so."""
        problems: list[Problem] = []
        writing = [word for word in self.activities if word in WRITING]
        if writing:
            deletes = self.takes_tokens and _DELETING in storage_words(writing) and "DELETE" not in writing
            problem = f"{', '.join(writing)} let users change data, through the cache at the origin too"
            problem += f"; of tokens this is {_DELETING}, which deletes as well" if deletes else ""
            remedy = "DOWNLOAD and LIST are enough for reading. Or export the data read-only at the cache."
            problems.append(_warning("XCache.activities", problem, remedy))
        if self.lifetime > self.life and is_set(self.config, type(self), "lifetime"):
            problem = f"is {self.lifetime}, but with XCache.credential {self.credential} it counts as {LONGEST}"
            problems.append(_warning("XCache.lifetime", problem, f"Set it to {LONGEST} (6 hours) or less."))
        if not self.host:
            proof = "has this key" if self.takes_macaroons else "takes these tokens"
            problem = "is not set: servers use the XCache that their image names"
            problems.append(_warning("XCache.host", problem, f"Set it to the host name of the XCache that {proof}."))
        elif re.search(r"[:/\s]", self.host):
            remedy = "Give the name alone; the port belongs into XCache.port."
            problems.append(Problem(Severity.ERROR, "XCache.host", "is not a host name", remedy))
        return problems

    def mint(self, request: Request) -> Credential:
        if not request.server.username:
            raise CredentialError("user name", "is empty: XRootD refuses a macaroon with it", "Give the user a name.")
        expires_at = (request.now + request.lifetime(self.life)).replace(microsecond=0)
        contents: list[str] = []
        identifiers: dict[str, str] = {}
        summary: list[str] = []
        if self.takes_macaroons:
            macaroon, identifier = self._mint_macaroon(request, expires_at)
            contents.append(macaroon)
            identifiers["identifier"] = identifier
            path = self.path_for(request.server.username)
            summary.append(f"{','.join(self.activities)} below {path} at {self.site_name}")
        if self.takes_tokens:
            issued = self.issue_token(request)
            contents.append(issued.value)
            identifiers |= issued.identifiers
            summary.append(f"{self.scope_for(request.server.username)} at {identifiers['aud']}")
        return Credential(
            name=self.name,
            # No newline: XRootD refuses one behind a token in an HTTP header, and not every reader strips it.
            files={file: content.encode() for file, content in zip(self.bearer_files, contents, strict=True)},
            issued_at=request.now,
            expires_at=expires_at,
            identifiers=identifiers,
            summary="; ".join(summary),
        )

    def mint_outside(self, request: Request) -> Credential:
        # The client knows credentials by the default names; there "access_token" is the user's own.
        minted = self.mint(request)
        names = {self.token_file: _FILE}
        return replace(minted, files={names.get(path, path): content for path, content in minted.files.items()})

    def _mint_macaroon(self, request: Request, expires_at: datetime) -> tuple[str, str]:
        """A macaroon and its identifier."""
        server = request.server
        identifier = new_identifier(server)
        caveats = (
            name_caveat(server.username),
            f"activity:{','.join(self.activities)}",
            f"path:{self.path_for(server.username)}",
            f"before:{expires_at:%Y-%m-%dT%H:%M:%SZ}",
        )
        return mint_macaroon(self._read_key().value, self._site(), identifier, caveats), identifier

    def issue_token(self, request: Request, path: str | None = None) -> Issued:
        """A token for the user of a request; `path`: one that only reads, below this path. Raises CredentialError."""
        scope = self.scope_for(request.server.username, path)
        return issue(self, request, audience=self.token_audience(), scope=scope, lifetime=self.life)

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:  # noqa: ARG002
        return {"XCACHE_HOST": self.host, "XCACHE_PORT": str(self.port)} if self.host else {}

    def path_for(self, username: str) -> str:
        """The path that this user's macaroon opens.
        Raises CredentialError if `path` is malformed, or if it contains the user name and that is no plain file name.
        """
        template = self._template()
        if "{username}" not in template:
            return template
        if not _COMPONENT.fullmatch(username):
            raise CredentialError(
                f"user name {username!a}",
                "can't be a directory of XCache.path",
                "Such names have letters, digits and ._@+- only, and begin with a letter, a digit or an underscore.",
            )
        path = template.replace("{username}", username)
        return f"{path}/" if template.endswith("{username}") else path

    def scope_for(self, username: str, path: str | None = None) -> str:
        """``scope`` of this user's token; `path`: of one that only reads. Raises CredentialError as `path_for`."""
        try:
            opened = storage_path(path or self.path_for(username))
        except ValueError:
            raise CredentialError(
                "XCache.path",
                f"{self.path!a} has characters that the path of a scope can't have",
                "Tokens open paths of letters, digits and ._~!$&'()*+,;=:@- only.",
            ) from None
        words = self._scope_words()
        return " ".join(f"{word}:{opened}" for word in words if path is None or word == _READING)

    def token_audience(self) -> str:
        """``aud`` of tokens. Raises CredentialError if it is unknown or malformed."""
        if not self.audience and not self.host:
            raise CredentialError(
                "XCache.audience",
                "is not set, and there is no XCache.host to make it from",
                "Set it to audience of the XCache's scitokens.cfg, or set XCache.host.",
            )
        chosen = self.audience or audience(self.host, self.port)
        if not is_audience(chosen):
            problem = f"{chosen!a} is not an audience"
            raise CredentialError("XCache.audience", problem, "Copy audience of the XCache's scitokens.cfg exactly.")
        return chosen

    def _check_issuer(self) -> None:
        if self.issuer is None:
            raise CredentialError(
                "XCache.credential",
                f"is {self.credential}, but this hub has no issuer of tokens",
                "Set FacilityIssuer.keys and FacilityIssuer.vo.",
            )

    def _scope_words(self) -> list[str]:
        words = storage_words(self.activities)
        if not words:
            raise CredentialError(
                "XCache.activities",
                f"{', '.join(self.activities)} have no scope, so a token would allow nothing",
                "Add DOWNLOAD.",
            )
        return words

    def _read_key(self) -> SecretKey:
        return self._key.read(self.key_file)

    def _site(self) -> str:
        if not re.fullmatch(r"[!-~]+", self.site_name):
            problem = "is not a site name" if self.site_name else "is not set"
            raise CredentialError("XCache.site_name", problem, "Copy all.sitename of the XCache exactly.")
        return self.site_name

    def _template(self) -> str:
        fixed = [component for component in self.path.split("/") if component != "{username}"]
        odd = any(component in {".", ".."} or re.search(r"[{}\\]", component) for component in fixed)
        # An empty path would open everything on XRootD 5.
        if not self.path.startswith("/") or odd or not self.path.isprintable():
            raise CredentialError(
                "XCache.path",
                f"{self.path!a} is not a path that XRootD matches",
                "Give an absolute path without . and .. in it. {username} must be a whole component.",
            )
        return self.path


def _warning(thing: str, problem: str, remedy: str) -> Problem:
    return Problem(Severity.WARNING, thing, problem, remedy)
