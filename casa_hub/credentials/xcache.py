"""The macaroon by which a server reads data through an XCache.

Format: macaroons V1, the only one that XRootD's libXrdMacaroons reads (libmacaroons: packets of a 4-digit hexadecimal
length, a name, a blank, a value, a newline; HMAC-SHA256 chained over identifier and caveats; url-safe base64 without
padding). The key file is XRootD's own ``macaroons.secretkey``, decoded as XRootD decodes it.

XRootD demands no caveats: a macaroon without any is all-powerful and never expires. So each macaroon minted here has
all four: ``name:``, ``activity:``, one ``path:``, ``before:``.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, ClassVar
from urllib.parse import quote

from traitlets import Int, List, TraitError, Unicode, validate

from casa_hub.credentials.base import Credential, Minter, Request, new_identifier
from casa_hub.errors import CredentialError, Problem, Severity
from casa_hub.keys import BadKeyError, KeyFile
from casa_hub.naming import Server

#: XRootD wants at least so many bytes in the decoded ``macaroons.secretkey``.
MIN_KEY_BYTES = 32
#: XRootD refuses a macaroon that is valid for longer than ``macaroons.maxduration`` (86400 s by default), without
#: tolerance for clocks that differ. An hour less leaves room.
MAX_LIFETIME = 82800
#: The activities that XRootD knows (XrdMacaroonsAuthz.cc). It silently ignores others.
ACTIVITIES = ("READ_METADATA", "LIST", "DOWNLOAD", "UPLOAD", "MANAGE", "DELETE", "UPDATE_METADATA")
#: Activities that change data. Through a cache they change it at the origin, if the origin trusts the cache.
WRITING = frozenset({"UPLOAD", "MANAGE", "DELETE", "UPDATE_METADATA"})

#: XRootD uses OpenSSL's base64 reader, which reads 1024 characters at a time and mangles longer lines.
_LONGEST_LINE = 1000
#: A user name that can be a component of a path: no separator, no hidden file, no ``..``.
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,254}")
#: Characters of a ``name:`` that is not shortened. ztn refuses tokens of more than 4096 bytes, and a user name can have
#: 255 characters, which take up to 12 bytes each.
_LONGEST_NAME = 200
_MAKE_KEY = "Put XRootD's macaroons.secretkey there, or make one for both: openssl rand -base64 -out FILE 64."


def mint_macaroon(key: bytes, location: str, identifier: str, caveats: Iterable[str]) -> str:
    """A serialised macaroon V1 with first-party caveats. Pure.
    Raises ValueError if the key is too short, or if a value doesn't fit into a packet.
    """
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"a macaroon key has at least {MIN_KEY_BYTES} bytes")
    signature = hmac.digest(hmac.digest(b"macaroons-key-generator", key, "sha256"), identifier.encode(), "sha256")
    packets = [_packet(b"location", location.encode()), _packet(b"identifier", identifier.encode())]
    for caveat in caveats:
        value = caveat.encode()
        signature = hmac.digest(signature, value, "sha256")
        packets.append(_packet(b"cid", value))
    packets.append(_packet(b"signature", signature))
    return base64.urlsafe_b64encode(b"".join(packets)).rstrip(b"=").decode()


def _packet(name: bytes, value: bytes) -> bytes:
    length = len(name) + len(value) + 6  # four digits, a blank, a newline
    if length > 0xFFFF:  # noqa: PLR2004 - four hexadecimal digits
        raise ValueError(f"the {name.decode()} is too long for a macaroon")
    return b"%04x%b %b\n" % (length, name, value)


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A decoded ``macaroons.secretkey``."""

    value: bytes = field(repr=False)
    #: Whether XRootD itself would start with this file.
    starts_xrootd: bool = True


def parse_secret_key(content: bytes) -> SecretKey:
    """Decode a key file as XRootD does (OpenSSL's ``BIO_f_base64``).
    Raises BadKeyError if XRootD can't decode the file, or would read another key than we do.
    """
    lines = [line.strip() for line in content.split(b"\n")]
    text = b"".join(lines)
    if not text:
        raise BadKeyError("holds no key", _MAKE_KEY)
    if re.fullmatch(rb"[A-Za-z0-9_-]+={0,2}", text) and re.search(rb"[_-]", text):
        raise BadKeyError("is in the url-safe base64 alphabet, which XRootD doesn't read", _MAKE_KEY)
    if max(map(len, lines)) > _LONGEST_LINE:
        raise BadKeyError(
            f"has a line of more than {_LONGEST_LINE} characters, which XRootD decodes wrongly",
            "Break it into lines of 64 characters: fold -w 64.",
        )
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise BadKeyError("is not base64", _MAKE_KEY) from None
    if len(key) < MIN_KEY_BYTES:
        raise BadKeyError(f"holds {len(key)} bytes; XRootD wants at least {MIN_KEY_BYTES}", _MAKE_KEY)
    return SecretKey(key, starts_xrootd=b"\n" in content.lstrip())


def name_caveat(username: str) -> str:
    """``name:`` and the user name as printable ASCII; different names stay different.

    XRootD accepts any UTF-8, but writes the name into its log and may compare it with an authorisation file, whose
    fields end at a blank. So characters other than letters, digits and ``._-~@+`` are percent-encoded. A long name is
    cut, and a digest of the whole follows behind a colon, which encoded names don't have.
    """
    encoded = quote(username, safe="@+")
    if len(encoded) > _LONGEST_NAME:
        digest = sha256(encoded.encode()).hexdigest()
        encoded = f"{encoded[: _LONGEST_NAME - len(digest) - 1]}:{digest}"
    return f"name:{encoded}"


class XCache(Minter):
    """Mints the macaroon that an XCache (XRootD with libXrdMacaroons) accepts."""

    name: ClassVar[str] = "xcache"
    title: ClassVar[str] = "XCache macaroon"
    purpose: ClassVar[str] = "read the facility's data through XCache"
    outside: ClassVar[bool] = True

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
        The one path that the macaroon opens, with all below it; absolute, as clients ask for it.

        ``{username}`` stands for the user's name and must be a whole component: ``/store/user/{username}``. Users whose
        name is not a plain file name get no macaroon then. As the last component it is followed by a slash in the
        macaroon, because XRootD 5 compares beginnings of text, so that ``/store/user/al`` would open
        ``/store/user/alice``. The price: the directory itself has to be listed with the slash
        (``xrdfs HOST ls /store/user/al/``).

        For the same reason a fixed ``/store`` also opens ``/store2`` on XRootD 5, if the XCache exports that; end it
        with a slash where that matters.
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
        """,
    ).tag(config=True)
    lifetime = Int(
        43200,
        min=1,
        help="""
        Seconds that a macaroon is valid; it is renewed while the server runs. At most 82800 (23 hours): XRootD refuses
        macaroons that are valid for longer than its ``macaroons.maxduration``, a day by default.
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
        self._key = KeyFile("XCache.key_file", parse_secret_key, _MAKE_KEY)

    @validate("lifetime")
    def _valid_lifetime(self, proposal: Any) -> int:
        value: int = proposal["value"]
        if value > MAX_LIFETIME:
            raise TraitError(
                f"XCache.lifetime is {value}, must be at most {MAX_LIFETIME} seconds: XRootD refuses macaroons valid"
                " for longer than its macaroons.maxduration (86400 by default), without tolerance for clocks."
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
    def key_files(self) -> Mapping[str, str]:
        return {"XCache.key_file": self.key_file}

    def check(self) -> Sequence[Problem]:
        problems = self._key.check(self.key_file)
        for probe in (self._site, self._template):
            try:
                probe()
            except CredentialError as error:
                problems.append(Problem.of(error))

        def warn(thing: str, problem: str, remedy: str) -> None:
            problems.append(Problem(Severity.WARNING, thing, problem, remedy))

        if not any(problem.severity is Severity.ERROR for problem in problems) and not self._read_key().starts_xrootd:
            warn(
                f"XCache.key_file ({self.key_file})",
                "is a single line without a newline at its end; XRootD doesn't start with such a file",
                "Add the newline, in the XCache's copy too: echo >> FILE.",
            )
        writing = [word for word in self.activities if word in WRITING]
        if writing:
            warn(
                "XCache.activities",
                f"{', '.join(writing)} let users change data, through the cache at the origin too",
                "DOWNLOAD and LIST are enough for reading. Or export the data read-only at the cache.",
            )
        if not self.host:
            warn(
                "XCache.host",
                "is not set: servers use the XCache that their image names",
                "Set it to the host name of the XCache that has this key.",
            )
        elif re.search(r"[:/\s]", self.host):
            remedy = "Give the name alone; the port belongs into XCache.port."
            problems.append(Problem(Severity.ERROR, "XCache.host", "is not a host name", remedy))
        return problems

    def mint(self, request: Request) -> Credential:
        server = request.server
        if not server.username:
            raise CredentialError("user name", "is empty: XRootD refuses a macaroon with it", "Give the user a name.")
        expires_at = (request.now + request.lifetime(self.lifetime)).replace(microsecond=0)
        path = self.path_for(server.username)
        activities = ",".join(self.activities)
        identifier = new_identifier(server)
        macaroon = mint_macaroon(
            self._read_key().value,
            self._site(),
            identifier,
            (
                name_caveat(server.username),
                f"activity:{activities}",
                f"path:{path}",
                f"before:{expires_at:%Y-%m-%dT%H:%M:%SZ}",
            ),
        )
        return Credential(
            name=self.name,
            # No newline: XRootD refuses one behind a token in an HTTP header, and not every reader strips it.
            files={"xcache_token": macaroon.encode()},
            issued_at=request.now,
            expires_at=expires_at,
            identifiers={"identifier": identifier},
            summary=f"{activities} below {path} at {self.site_name}",
        )

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
