"""An XRootD origin and an XCache in front of it, which demands macaroons on root://, http:// and https://.

If it trusts an issuer, the same XCache takes the tokens of that issuer, too, on the same port.

Reasons for the configuration, measured on XRootD 5.5.3, 5.8.1 and 6.2.0:

- no ``acc.authdb``: with one, versions before 5.9.6 would try it after a macaroon has failed;
- ``http.header2cgi``: without it the Authorization header is ignored;
- ``readonly``: without it a DELETE that a macaroon allows would reach the origin;
- ``ztn``: the client sends $BEARER_TOKEN_FILE when it logs in. It needs TLS and the name of the library that reads
  tokens. ``unix`` after it is for clients that send their token with each file instead (``?authz=Bearer%20...``);
- ``xrd.allow``: XRootD always listens on every interface, so all addresses but loopback are refused.

For an XCache that takes both kinds:

- two ``ofs.authlib``: the one with ``++`` is asked first, and hands on what it doesn't grant. A refused token falls
  through to nothing: the other library grants only what a macaroon says, a JWT is none, and behind it is nobody;
- ``-tokenlib none``: any library that ztn could ask at the log-in knows one kind only. So ztn takes any token, and the
  two libraries judge each request. XRootD has this since 5.6. Before, ztn takes macaroons only, and tokens must come by
  ``?authz=`` or in HTTP's header;
- ``authorization_strategy``: by default, groups and names in a token would be good for something as well;
- ``XDG_CACHE_HOME``: libscitokens keeps the issuer's keys there (see `XCache.trust`).
"""

from __future__ import annotations

import base64
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from casa_hub.demo import issuer_keys
from casa_hub.demo.certificates import HostCertificate, make_host_certificate
from casa_hub.demo.packages import SUITE, Programs, Progress, Unavailable, silent, unpack
from casa_hub.demo.processes import Process, ProcessError, minimal_environment, read_log
from casa_hub.loopback import free_port

_COMMON = """\
all.adminpath {scratch}
all.pidpath {scratch}
oss.localroot {data}
all.export /store readonly
all.export /other readonly
xrd.port {port}
xrd.network norpipa nodnr
xrd.allow host 127.0.0.1
xrd.allow host ::1
"""

_MACAROONS = """\
all.sitename {site}
xrd.protocol http:{port} libXrdHttp.so
http.header2cgi Authorization authz
ofs.authorize
ofs.authlib libXrdMacaroons.so
{tokens}macaroons.secretkey {key_file}
macaroons.trace info

xrd.tls {certificate} {key}
xrd.tlsca certfile {ca_file}
xrootd.tls capable all
xrootd.seclib libXrdSec.so
sec.protocol ztn -tokenlib {ztn_asks}
sec.protocol unix
sec.protbind * ztn unix
"""

#: What ztn asks at the log-in.
_ONLY_MACAROONS, _NOBODY = "libXrdMacaroons.so -expiry optional", "none"

_TOKENS = """\
ofs.authlib ++ libXrdAccSciTokens.so config={file}
"""

_SCITOKENS = """\
[Global]
audience = {audience}

[Issuer facility]
issuer = {issuer}
base_path = /
authorization_strategy = capability
"""

#: The first version whose ztn takes tokens without judging them.
_ANY_TOKEN = (5, 6)
_CACHE = """\
ofs.osslib libXrdPss.so
pss.cachelib libXrdPfc.so
pss.origin 127.0.0.1:{origin}
pfc.ram 1g
pfc.blocksize 64k
pfc.prefetch 0
"""


def programs(suite: str = SUITE, progress: Progress = silent) -> Programs:
    """XRootD's servers and clients: Debian's, or if they can't be unpacked, those installed on this machine.

    Raises:
        Unavailable: there are neither.
    """
    try:
        return unpack(["xrootd-server", "xrootd-client", "xrootd-scitokens-plugins"], suite=suite, progress=progress)
    except Unavailable:
        installed = shutil.which("xrootd")
        if installed is None:
            raise
        return Programs(Path(installed).resolve().parent.parent.parent, "this machine")


def version(tree: Programs) -> tuple[int, ...]:
    """The version of XRootD: (5, 8, 1)."""
    ran = subprocess.run([tree.program("xrootd"), "-v"], capture_output=True, text=True, check=False)
    return tuple(map(int, re.findall(r"\d+", (ran.stdout + ran.stderr).partition("-")[0])))


def make_key_file(path: Path) -> Path:
    """Write a new macaroon secret in XRootD's format: lines of base64, also the last one with a newline."""
    path.touch(mode=0o600)
    path.write_bytes(base64.encodebytes(os.urandom(64)))
    return path


class XRootDServer:
    """One xrootd; a context manager. It can be stopped and started again, at the same port."""

    host = "localhost"

    def __init__(self, name: str, tree: Programs, directory: Path, data: Path, template: str) -> None:
        self.name = name
        self.port = free_port(self)
        self.directory = directory
        self.data = data
        self.tree = tree
        self._template = template
        self._settings: dict[str, object] = {}
        self._environment: dict[str, str] = {}
        self._process: Process | None = None
        directory.mkdir(parents=True, exist_ok=True)
        data.mkdir(exist_ok=True)

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self) -> Self:
        """Start and wait until it serves.

        Raises:
            ProcessError: it doesn't serve in time.
        """
        # A short path: XRootD makes sockets in it, whose paths must stay below 108 characters.
        scratch = Path(tempfile.mkdtemp(prefix="casa-xrootd-"))
        config = self.directory / "xrootd.cfg"
        config.write_text(self._template.format(scratch=scratch, data=self.data, port=self.port, **self._settings))
        command: list[str | Path] = [self.tree.program("xrootd"), "-c", config, "-s", scratch / "pid"]
        if os.geteuid() == 0:  # xrootd refuses to run as root
            user = _servant()
            command += ["-R", user.pw_name]
            for top in (self.directory, scratch):
                for path in (top, *top.rglob("*")):
                    os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        self._process = Process(
            self.name,
            command,
            log=self.log,
            env=minimal_environment(**self._environment),
            cwd=self.directory,
            scratch=scratch,
        ).start()
        try:
            # By the log, not the port: the port is open before the configuration is read.
            pattern = re.compile(rf"^------ xrootd \S+:{self.port} initialization (completed|failed)", re.MULTILINE)
            outcome = self._process.wait_until("its log says so", lambda: pattern.search(read_log(self.log)))
        except BaseException:
            self.stop()
            raise
        if outcome[1] == "failed":
            self.stop()
            raise ProcessError(self.name, "did not start", self._process.last_lines())
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class XRootDOrigin(XRootDServer):
    """The origin: serves `data` (``store/...``, ``other/...``) read-only to everybody on this machine."""

    def __init__(self, tree: Programs, directory: Path) -> None:
        super().__init__("XRootD origin", tree, directory, directory / "data", _COMMON)

    def add(self, path: str, content: bytes) -> None:
        """Put a file at a logical path (``/store/...``)."""
        file = self.data / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


class XCache(XRootDServer):
    """The cache. Reading needs a macaroon made with the secret in `key_file` for the site `site`.

    Or a token of `issuer` for `audience`, if there is an issuer.
    """

    def __init__(
        self,
        tree: Programs,
        directory: Path,
        *,
        origin: XRootDOrigin,
        key_file: Path,
        site: str,
        issuer: str = "",
        names: Sequence[str] = (),
        clients: Sequence[str] = (),
    ) -> None:
        """Args:
        tree: see `programs`. If it lacks the proxy plugins, the origin's files are served without a cache.
        directory: is made; after the cache's end only its log is of use.
        origin: a running origin.
        key_file: see `make_key_file`. It is copied, because a server started by root runs as another user.
        site: ``all.sitename``, the location of macaroons.
        issuer: ``iss`` of tokens that are taken, too. The cache asks an https issuer for its keys; its certificate must
            be of an authority in `tls.ca_file`. Call `trust` for any other one.
        names: more host names of the cache, besides localhost. The first is that in `audience`.
        clients: IPv4 addresses that may connect, besides this machine's; "*" may stand for a part of an address.
        """
        self.site = site
        self.key_file = key_file
        self.origin = origin
        self.version = version(tree)
        #: ``iss`` of the tokens that this cache takes; "" if it takes none, also for lack of the plugin.
        self.issuer = issuer if tree.libraries("libXrdAccSciTokens-*.so") else ""
        self.caching = bool(tree.libraries("libXrdPfc-*.so") and tree.libraries("libXrdPss-*.so"))
        directory.mkdir(parents=True, exist_ok=True)
        self.tls: HostCertificate = make_host_certificate(directory / "tls", ("localhost", "127.0.0.1", *names))
        copy = directory / "macaroon-secret"
        copy.touch(mode=0o600)
        copy.write_bytes(key_file.read_bytes())
        data = directory / "cache" if self.caching else origin.data
        template = _COMMON + allowed(clients) + _MACAROONS + (_CACHE if self.caching else "")
        super().__init__("XCache", tree, directory, data, template)
        self._settings = {
            "site": site,
            "key_file": copy,
            "certificate": self.tls.certificate,
            "key": self.tls.key,
            "ca_file": self.tls.ca_file,
            "origin": origin.port,
            "tokens": "",
            "ztn_asks": _ONLY_MACAROONS,
        }
        #: ``aud`` of tokens, as the WLCG profile writes it.
        self.audience = f"https://{next(iter(names), self.host)}:{self.port}"
        self._keys = directory / "keys" / "scitokens"
        if self.issuer:
            self._take_tokens()

    def _take_tokens(self) -> None:
        file = self.directory / "scitokens.cfg"
        file.write_text(_SCITOKENS.format(audience=self.audience, issuer=self.issuer))
        self._keys.mkdir(parents=True)
        self._environment["XDG_CACHE_HOME"] = str(self._keys.parent)
        self._settings["tokens"] = _TOKENS.format(file=file)
        if self.ztn_takes_tokens:
            self._settings["ztn_asks"] = _NOBODY

    @property
    def ztn_takes_tokens(self) -> bool:
        """Whether a program can log in with a token, as it can with a macaroon."""
        return bool(self.issuer) and self.version >= _ANY_TOKEN

    def trust(self, jwks: Mapping[str, Any]) -> None:
        """Know these keys of the issuer, and no others, until the next call; at once, also while the server runs.

        For an issuer that the cache can't ask: libscitokens asks by https only, and here it thinks that it has asked
        already. A token that was shown before counts for a minute more, because XRootD remembers what it granted.
        """
        issuer_keys.know(self._keys, self.issuer, jwks)

    def url(self, path: str, scheme: str = "root") -> str:
        """URL of a logical path (``/store/...``) by ``root``, ``http`` or ``https``."""
        return f"{scheme}://{self.host}:{self.port}/{'/' if scheme.startswith('root') else ''}{path.lstrip('/')}"

    def cached(self, path: str) -> Path:
        """The cache's file for a logical path; it exists after a first read."""
        return self.data / path.lstrip("/")

    @property
    def client_environment(self) -> dict[str, str]:
        """Variables with which an XRootD client trusts this server's certificate."""
        return {"X509_CERT_DIR": str(self.tls.ca_directory)}


def allowed(clients: Sequence[str]) -> str:
    """Lines that let these IPv4 addresses connect, too; "*" may stand for a part of an address.

    XRootD compares patterns with the text of an address, and a server that listens on both sees IPv6 addresses.
    """
    return "".join(f"xrd.allow host [::ffff:{client}]\n" for client in clients)


def _servant() -> pwd.struct_passwd:
    """The account to which a server started by root changes."""
    for name in ("xrootd", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Unavailable("XRootD", "refuses to run as root, and there is no user xrootd or nobody", "Add one.")
