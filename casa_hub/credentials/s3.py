"""A token with which the AWS SDKs get themselves keys for an S3 (``AssumeRoleWithWebIdentity``), and how they find it.

It is of the facility's own issuer, or of the identity provider, by an exchange.

The hub knows no key of the S3. It delivers a token and names its file; an SDK shows the token to the STS of the S3,
which answers with keys of some minutes or hours, and reads the file again when it needs new ones.

Sources: AWS STS API Reference (AssumeRoleWithWebIdentity), AWS SDKs and Tools Reference Guide ("Assume role credential
provider", "Service-specific endpoints") for the variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar
from urllib.parse import SplitResult, urlsplit

from traitlets import Enum, Int, TraitError, Unicode, validate

from casa_hub.credentials.base import BearerKind, Credential, Minter, Request
from casa_hub.credentials.exchange import asking, identifiers, living
from casa_hub.credentials.exchange_services import Service
from casa_hub.credentials.fetching import Fetch
from casa_hub.credentials.issued import issue
from casa_hub.credentials.scopes import is_audience, is_scope
from casa_hub.errors import CredentialError, Problem, Severity
from casa_hub.issuer.tokens import LONGEST
from casa_hub.loopback import is_loopback
from casa_hub.naming import Server
from casa_hub.unknown_keys import is_set

_FILE = "s3_token"
_PORTS = {"https": 443, "http": 80}
#: What AWS allows in the name of a session, and how long it is.
_NOT_IN_SESSIONS = re.compile(r"[^A-Za-z0-9_+=,.@-]")
_SHORTEST, _LONGEST = 2, 64
#: AWS has an account in it, Ceph a tenant or nothing.
_ROLE = re.compile(r"arn:[a-z0-9-]+:iam:[^\s/]*:?role/[A-Za-z0-9_+=,.@/-]+")
_ROLE_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{1,64}")
_USERNAME = "{username}"
#: An S3 may put ``sub`` into a policy as it is, where these would be a pattern, or another variable.
_PATTERN = re.compile(r"[*?${}]")


class S3(Minter):
    """Delivers a token for the STS of an S3."""

    name: ClassVar[str] = "s3"
    title: ClassVar[str] = "S3 token"
    purpose: ClassVar[str] = "read and write the facility's object store"
    found_by: ClassVar[str] = "boto3 and other AWS SDKs"

    endpoint = Unicode(
        "",
        help="""
        URL of the S3; servers find it as ``AWS_ENDPOINT_URL_S3``. There is no default.
        Example: ``https://s3.example.org``.
        """,
    ).tag(config=True)
    sts_endpoint = Unicode(
        "",
        help="""
        URL of the STS that gives keys for the token; servers find it as ``AWS_ENDPOINT_URL_STS``. Default: `endpoint`,
        where Ceph and SeaweedFS have it.
        """,
    ).tag(config=True)
    role_arn = Unicode(
        "",
        help="""
        The role that users take there; servers find it as ``AWS_ROLE_ARN``. Its trust policy decides whose tokens it
        takes, and its own policy what they open. There is no default.
        Example: ``arn:aws:iam:::role/physicist`` at a Ceph, ``arn:aws:iam::123456789012:role/physicist`` elsewhere.

        ``{username}`` stands for the user's name, where each user has a role: ``arn:aws:iam:::role/{username}``. Each
        trust policy must then demand the user's ``sub``. A user whose name can't be that of a role gets no token.
        """,
    ).tag(config=True)
    region = Unicode(
        "us-east-1",
        help="""
        Region that requests are signed for; servers find it as ``AWS_REGION`` and ``AWS_DEFAULT_REGION``. A Ceph takes
        any, or has its zone group's name. Default: ``us-east-1``, which SDKs expect of a service without regions.
        """,
    ).tag(config=True)
    source = Enum(
        ["issuer", "exchange"],
        default_value="issuer",
        help="""
        Where the tokens come from. `issuer` (default): the hub's own `FacilityIssuer` signs them. `exchange`: the
        identity provider gives one for the user's own token (RFC 8693), for an S3 that trusts the provider and not the
        hub. This hub's client must then be allowed to exchange tokens there, as for `TokenExchange`.
        """,
    ).tag(config=True)
    audience = Unicode(
        "",
        help="""
        ``aud`` of the tokens, as the STS has it among the client IDs of the issuer: compared as text. An audience of
        its own keeps the S3 from using these tokens elsewhere. Default: the STS' URL, without its default port and a
        slash at the end: ``https://s3.example.org``. With ``source: exchange`` there is no default; in Keycloak it is
        the name of a client.
        """,
    ).tag(config=True)
    scope = Unicode(
        "",
        help="""
        ``scope`` of the tokens: words with a blank between them, for a trust policy that asks for one. Default: none,
        so that a token opens nothing but the role. With ``source: exchange`` it is asked for; INDIGO IAM gives no token
        without a scope.
        """,
    ).tag(config=True)
    lifetime = Int(
        3600,
        min=1,
        help="""
        Seconds that a token is valid, at most 21600 (6 hours); it is renewed while the server runs. The keys that the
        STS gives for it have a life of their own, which the role limits, and may outlive the token. With ``source:
        exchange`` the identity provider decides. Default: 3600, an hour.
        """,
    ).tag(config=True)

    @validate("lifetime")
    def _valid_lifetime(self, proposal: Any) -> int:
        value: int = proposal["value"]
        if value > LONGEST:
            raise TraitError(f"S3.lifetime is {value}, must be at most {LONGEST} seconds: the WLCG profile's longest.")
        return value

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shortens = self.source == "issuer"  # type: ignore[misc]

    @property
    def fetch(self) -> Fetch | None:
        return asking(self._service()) if self.source == "exchange" and self.audience else None

    @property
    def life(self) -> int | None:
        return self.lifetime if self.source == "issuer" else None

    @property
    def paths(self) -> Sequence[str]:
        return (_FILE,)

    @property
    def bearer_files(self) -> Mapping[str, BearerKind]:
        return {_FILE: BearerKind.ISSUED if self.source == "issuer" else BearerKind.EXCHANGED}

    @property
    def issued(self) -> bool:
        return bool(self.source == "issuer")

    def check(self) -> Sequence[Problem]:
        problems: list[Problem] = []
        probes: tuple[Callable[[], object], ...] = (
            self._check_addresses,
            self._check_role,
            self.token_audience,
            self._check_scope,
            self._check_source,
        )
        for probe in probes:
            try:
                probe()
            except CredentialError as error:
                problems.append(Problem.of(error))
        return [*dict.fromkeys(problems), *self._advice()]

    def _advice(self) -> list[Problem]:
        """Problems of settings that may be meant so."""
        problems = self._in_clear()
        if self.source == "exchange" and is_set(self.config, type(self), "lifetime"):
            problem = "has no effect with S3.source exchange: the identity provider decides"
            problems.append(Problem(Severity.WARNING, "S3.lifetime", problem, "Remove it."))
        return problems

    def _in_clear(self) -> list[Problem]:
        setting = "S3.sts_endpoint" if self.sts_endpoint else "S3.endpoint"
        try:
            address = _address(setting, self.sts_endpoint or self.endpoint)
        except CredentialError:
            return []
        if address.scheme == "http" and not is_loopback(address.hostname or ""):
            problem = "is plain http: tokens, and the keys that the STS gives, are sent in clear"
            return [Problem(Severity.WARNING, setting, problem, "Use the https address.")]
        return []

    def mint(self, request: Request) -> Credential:
        self._check_addresses()
        self._check_scope()
        role = self.role_for(request.server.username)
        made = self._exchanged if self.source == "exchange" else self._issued
        return made(request, f"{role} at {self.endpoint}")

    def _issued(self, request: Request, summary: str) -> Credential:
        issued = issue(self, request, audience=self.token_audience(), scope=self.scope, lifetime=self.lifetime)
        subject = issued.identifiers["sub"]
        if _PATTERN.search(subject):
            problem = "has characters that are a pattern in policies of an S3"
            raise CredentialError(f"user {subject!a}", problem, "Names without *?${} get a token.")
        return Credential(
            name=self.name,
            files=_file(issued.value),
            issued_at=issued.issued_at,
            expires_at=issued.expires_at,
            identifiers=issued.identifiers,
            summary=summary,
        )

    def _exchanged(self, request: Request, summary: str) -> Credential:
        self.token_audience()
        fetched = living(self, request)
        return Credential(
            name=self.name,
            files=_file(fetched.value),
            issued_at=fetched.at,
            expires_at=fetched.expires_at,
            identifiers=identifiers(fetched.value, self._service()),
            summary=summary,
        )

    def _service(self) -> Service:
        return Service("s3", "S3", self.audience, self.scope, _FILE, {}, setting="S3.scope")

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:
        return {
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(directory / _FILE),
            "AWS_ROLE_ARN": self.role_for(server.username),
            "AWS_ROLE_SESSION_NAME": session_name(server.username),
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ENDPOINT_URL_STS": self.sts_endpoint or self.endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }

    def token_audience(self) -> str:
        """``aud`` of tokens. Raises CredentialError if it is unknown or malformed."""
        if self.audience:
            if not is_audience(self.audience):
                remedy = "Copy the client ID that the STS has for this issuer exactly."
                raise CredentialError("S3.audience", f"{self.audience!a} is not an audience", remedy)
            return self.audience
        if self.source == "exchange":
            remedy = "Set it to the client ID that the STS has for the identity provider."
            raise CredentialError("S3.audience", "is not set, so a token would be for any service", remedy)
        address = _address("S3.endpoint", self.sts_endpoint or self.endpoint)
        host = (address.hostname or "").lower()
        host = f"[{host}]" if ":" in host else host
        port = "" if address.port in (None, _PORTS[address.scheme]) else f":{address.port}"
        return f"{address.scheme}://{host}{port}{address.path.rstrip('/')}"

    def _check_addresses(self) -> None:
        _address("S3.endpoint", self.endpoint)
        if self.sts_endpoint:
            _address("S3.sts_endpoint", self.sts_endpoint)
        if not re.fullmatch(r"[A-Za-z0-9-]+", self.region):
            raise CredentialError("S3.region", f"{self.region!a} is not a region", "Example: us-east-1.")

    def role_for(self, username: str) -> str:
        """The ARN of this user's role. Raises CredentialError if it is unknown or malformed, or not for this name."""
        self._check_role()
        if _USERNAME in self.role_arn and not _ROLE_NAME.fullmatch(username):
            remedy = "Such names have letters, digits and _+=,.@- only, and at most 64 of them."
            raise CredentialError(f"user name {username!a}", "can't be that of a role in S3.role_arn", remedy)
        return self.role_arn.replace(_USERNAME, username)

    def _check_role(self) -> None:
        if not _ROLE.fullmatch(self.role_arn.replace(_USERNAME, "user")):
            problem = f"{self.role_arn!a} is not the ARN of a role" if self.role_arn else "is not set"
            raise CredentialError("S3.role_arn", problem, "Example: arn:aws:iam::123456789012:role/physicist.")

    def _check_scope(self) -> None:
        if self.scope and not is_scope(self.scope):
            raise CredentialError(
                "S3.scope", f"{self.scope!a} is not a scope", "Give words with one blank between them."
            )

    def _check_source(self) -> None:
        if self.source == "issuer" and self.issuer is None:
            problem = "is issuer, but this hub has no issuer of tokens"
            raise CredentialError("S3.source", problem, "Set FacilityIssuer.keys and FacilityIssuer.vo.")


def session_name(username: str) -> str:
    """The name that a user's sessions have in the S3's logs: the user's name, in what AWS allows.

    It proves nothing, because the client chooses it.
    """
    return _NOT_IN_SESSIONS.sub("-", username)[:_LONGEST].ljust(_SHORTEST, "-")


def _file(token: str) -> Mapping[str, bytes]:
    # No newline: SDKs send the file as it is.
    return {_FILE: token.encode()}


def _address(setting: str, url: str) -> SplitResult:
    """Raises CredentialError unless it is the address of a service."""
    if not url:
        raise CredentialError(setting, "is not set", "Example: https://s3.example.org.")
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError:
        address, port = urlsplit(""), None
    odd = address.query or address.fragment or address.username is not None or port == 0
    if address.scheme not in _PORTS or not address.hostname or odd or not re.fullmatch(r"[!-~]+", url):
        raise CredentialError(setting, f"{url!a} is not the URL of a service", "Example: https://s3.example.org.")
    return address
