"""An X.509 proxy on demand, for what still asks for a certificate. Somebody else makes it, for the person's own token.

No certificate authority is inside the hub: nobody would trust it. INDIGO IAM makes proxies of the one that a person has
stored there (``POST /iam/proxycert``; read in the source of IAM 1.12, its `ProxyCertificatesApiController`). A service
of the facility's own may do the same by the contract of US ATLAS' ``/v1/credentials/x509/redeem``: the answer has
``pem``, ``dn``, ``voms_attributes`` and ``expires_at``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from urllib.parse import urlsplit

from traitlets import Enum, Int, TraitError, Unicode, validate

from casa_hub.credentials.base import Credential, Minter, Request
from casa_hub.credentials.fetching import Answer, Fetch, Fetched, FetchError, Why
from casa_hub.credentials.proxy_chain import BadProxyError, ProxyChain, read_proxy
from casa_hub.errors import CredentialError, Problem
from casa_hub.loopback import is_loopback
from casa_hub.naming import Server

#: Without this scope in the person's token, IAM makes no proxy.
SCOPE = "proxy:generate"

_FILE = "x509_proxy"
_PATH = "/iam/proxycert"
_TITLE = "an X.509 proxy"
#: Characters of an address; urlsplit drops some others before it reads it.
_URL = re.compile(r"[!-~]+")
#: IAM's own limits of its form.
_SHORTEST, _LONGEST_ISSUER = 120, 128

_TELL = "Tell the operator of this hub."
#: After whose it is: nobody can renew it then, and the person has to act before the end.
_CUT_SHORT = ", only as long as the one that it was made of"
#: The button's name is IAM's.
_ADD_PROXY = (
    "Sign in to the identity provider. On your page there, link your certificate, press "
    '"Add managed proxy certificate", and paste a proxy. Then start your server again.'
)
#: HTTP status of a refusal -> problem and remedy.
_IAM: Mapping[int, tuple[str, str]] = {
    400: ("the identity provider refuses the request", _TELL),
    401: ("the identity provider refuses this hub's client", _TELL),
    403: (
        f"your token lacks the scope {SCOPE}, or your account at the identity provider is no user's",
        f"{_TELL} CasaOAuthenticator.scope and the client's registration must have that scope.",
    ),
    404: (
        "the identity provider makes none",
        f"{_TELL} IAM does so with proxycert.enabled=true.",
    ),
    412: (
        "your account at the identity provider has no proxy, or one that has expired",
        _ADD_PROXY,
    ),
}
_NOT_KNOWN = ("the service has no certificate of yours", "Register it at the service, or ask the operator of this hub.")
_SERVICE: Mapping[int, tuple[str, str]] = {
    403: ("the service makes none for you", _TELL),
    404: _NOT_KNOWN,
    412: _NOT_KNOWN,
}
#: ``error`` in IAM's 401 if the hub's client is refused, which must show its own secret, too. All others are about the
#: token.
_CLIENT_REFUSED = "unauthorized"


class X509(Minter):
    """Delivers a proxy that IAM, or a service of the facility's own, has made for the user."""

    name: ClassVar[str] = "x509"
    title: ClassVar[str] = "X.509 proxy"
    purpose: ClassVar[str] = "be known by your certificate where no token is taken"
    found_by: ClassVar[str] = "XRootD, gfal, Rucio and other grid tools"
    shortens: ClassVar[bool] = False

    source = Enum(
        ["iam", "service"],
        default_value="iam",
        help="""
        Who makes the proxy, each time for the user's own access token. ``iam`` (default): the IAM that users sign in
        at, which needs ``proxycert.enabled`` there, and the scope ``proxy:generate`` in ``CasaOAuthenticator.scope``
        and in the client's registration. ``service``: the service at `url`.
        """,
    ).tag(config=True)
    url = Unicode(
        "",
        help="""
        For ``source: service``: URL of the service; https, or plain http on loopback. It gets a POST without a body,
        with the user's access token as ``Authorization: Bearer``, and answers with JSON in which ``pem`` is the proxy:
        certificate, key, chain. 404 or 412 means that this user has no certificate there. There is no default.
        Example: ``https://proxies.example.org/v1/credentials/x509/redeem``.

        For ``source: iam``: the path below `CasaOAuthenticator.issuer`, if it isn't ``/iam/proxycert``.
        """,
    ).tag(config=True)
    ca_file = Unicode(
        "",
        help="""
        For ``source: service``: PEM file with the certificate authority of `url`. Default: the system's authorities.
        """,
    ).tag(config=True)
    lifetime = Int(
        43200,
        min=_SHORTEST,
        help="""
        For ``source: iam``: seconds that a proxy shall live; it is renewed while the server runs. IAM refuses less than
        120, and makes none that lives longer than its own ``proxycert.max-lifetime-seconds``. Nobody can revoke a
        proxy. Default: 43200, 12 hours, as grid tools make them. A service decides by itself.
        """,
    ).tag(config=True)
    issuer_dn = Unicode(
        "",
        help="""
        For ``source: iam``: subject of the authority whose certificate shall be taken, of users who have linked several
        to their account; as IAM shows it, at most 128 characters. Default: IAM takes any.
        Example: ``CN=GEANT TLS RSA 1,O=GEANT Vereniging,C=NL``.
        """,
    ).tag(config=True)
    certificate_directory = Unicode(
        "",
        help="""
        Directory with the certificates of grid authorities, as servers see it; they find it as ``X509_CERT_DIR``.
        Default: the variable isn't set, so programs look in ``/etc/grid-security/certificates``, or where their image
        says. Example: ``/cvmfs/grid.cern.ch/etc/grid-security/certificates``.
        """,
    ).tag(config=True)

    @validate("issuer_dn")
    def _not_too_long(self, proposal: dict[str, Any]) -> str:
        text: str = proposal["value"]
        if len(text) > _LONGEST_ISSUER or not text.isprintable():
            raise TraitError(f"X509.issuer_dn must have at most {_LONGEST_ISSUER} printable characters.")
        return text

    @validate("certificate_directory")
    def _absolute(self, proposal: dict[str, Any]) -> str:
        path: str = proposal["value"]
        if path and not PurePosixPath(path).is_absolute():
            raise TraitError(f"X509.certificate_directory is {path!a}, must be an absolute path.")
        return path

    @property
    def paths(self) -> Collection[str]:
        return (_FILE,)

    @property
    def life(self) -> int | None:
        return self.lifetime if self.source == "iam" else None

    @property
    def fetch(self) -> Fetch | None:
        if self._wrong_setting() is not None:
            return None
        if self.source == "service":
            return Fetch(_TITLE, self._read, self.url, ca_file=self.ca_file)
        form = {"lifetimeSecs": str(self.lifetime)} | ({"issuer": self.issuer_dn} if self.issuer_dn else {})
        return Fetch(_TITLE, self._read, self.url or _PATH, form, scope=SCOPE)

    def check(self) -> Sequence[Problem]:
        wrong = self._wrong_setting()
        if wrong is not None:
            return [Problem.of(wrong)]
        if self.ca_file and not Path(self.ca_file).is_file():
            problem = CredentialError(f"X509.ca_file ({self.ca_file})", "is no file", "Name a file with certificates.")
            return [Problem.of(problem)]
        return []

    def mint(self, request: Request) -> Credential:
        wrong = self._wrong_setting()
        if wrong is not None:
            raise wrong
        fetched = request.fetched_for(self.name)
        try:
            proxy = read_proxy(fetched.value, request.now)
        except BadProxyError as error:
            raise CredentialError(self.title, f"what was fetched {error}", "Log out and in again.") from None
        return Credential(
            name=self.name,
            files={_FILE: proxy.pem.encode()},
            issued_at=fetched.at,
            expires_at=min(fetched.expires_at, proxy.expires_at),
            identifiers={"subject": proxy.subject, "issuer": proxy.issuer, "serial": proxy.serial},
            summary=f"of {proxy.identity}{_CUT_SHORT if proxy.cut_short else ''}",
        )

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:  # noqa: ARG002
        variables = {"X509_USER_PROXY": str(directory / _FILE)}
        return variables | ({"X509_CERT_DIR": self.certificate_directory} if self.certificate_directory else {})

    def _wrong_setting(self) -> CredentialError | None:
        told = _malformed(self.url) or (_no_path(self.url) if self.source == "iam" else _no_service(self.url))
        return None if told is None else CredentialError("X509.url", *told)

    # -- an answer

    def _read(self, answer: Answer) -> Fetched:
        if answer.status != HTTPStatus.OK:
            raise self._refusal(answer)
        body = answer.body if isinstance(answer.body, Mapping) else {}
        text = body.get("certificate_chain" if self.source == "iam" else "pem")
        if not isinstance(text, str):
            raise self._error("the answer has none", _TELL, Why.OUTAGE)
        try:
            proxy = read_proxy(text, answer.now)
        except BadProxyError as error:
            raise self._error(f"what was sent {error}", _TELL, Why.OUTAGE) from None
        expires_at = _sooner(proxy, body.get("expires_at"))
        if expires_at <= answer.now:
            raise self._error("what was sent has expired, as the answer says", _TELL, Why.OUTAGE)
        return Fetched(proxy.pem, answer.now, expires_at)

    def _refusal(self, answer: Answer) -> FetchError:
        said = _said(answer.body)
        if answer.status == HTTPStatus.UNAUTHORIZED and not (self.source == "iam" and said == _CLIENT_REFUSED):
            return self._error("your token is refused", "Log out and in again.", Why.SIGN_IN)
        known = _IAM if self.source == "iam" else _SERVICE
        problem, remedy = known.get(answer.status, (f"it is refused with HTTP status {answer.status}", _TELL))
        if self.source == "iam" and answer.status == HTTPStatus.BAD_REQUEST:
            setting = "issuer_dn" if said.startswith("invalid issuer") else "lifetime"
            problem = f"the identity provider refuses the value of X509.{setting}"
        return self._error(problem, remedy)

    def _error(self, problem: str, remedy: str, why: Why = Why.REFUSED) -> FetchError:
        return FetchError(self.title, problem, remedy, why)


def _malformed(url: str) -> tuple[str, str] | None:
    """Problem and remedy of an address or path that can't be meant."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for what is no number
    except ValueError:
        return f"{url!a} is not a URL", "Correct it."
    if parts.username is not None:  # it would be told wherever the address is
        return "has a user name or a password in it, and the hub sends the user's token instead", "Remove them."
    if url and (not _URL.fullmatch(url) or parts.fragment):
        return f"{url!a} is not a URL", "Correct it."
    return None


def _no_path(url: str) -> tuple[str, str] | None:
    parts = urlsplit(url)
    if not url or (url.startswith("/") and not parts.netloc and ".." not in parts.path.split("/")):
        return None
    return f"{url!a} is no path below CasaOAuthenticator.issuer", "Remove it, or set source: service."


def _no_service(url: str) -> tuple[str, str] | None:
    if not url:
        return "is not set", "Set it to the address of the service, or source: iam."
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    if host and (scheme == "https" or (scheme == "http" and is_loopback(host))):
        return None
    problem = f"{url!a} is no https address, so users' tokens would be sent in clear"
    return problem, "Give the https address of the service."


def _said(body: object) -> str:
    """``error`` of a body, to be compared with known words, never shown."""
    error = body.get("error") if isinstance(body, Mapping) else None
    return error if isinstance(error, str) else ""


def _sooner(proxy: ProxyChain, told: object) -> datetime:
    """When the proxy ends: by its certificates, or sooner, if a service says so of the attributes in it."""
    try:
        moment = datetime.fromisoformat(told) if isinstance(told, str) else proxy.expires_at
        return proxy.expires_at if moment.utcoffset() is None else min(proxy.expires_at, moment.astimezone(UTC))
    except (ValueError, OverflowError):
        return proxy.expires_at
