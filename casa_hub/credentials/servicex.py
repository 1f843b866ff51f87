"""The configuration file of the ServiceX client, with the user's refresh token if the ServiceX asks for one.

Nobody but the ServiceX can mint a refresh token: it compares tokens with its own database. So the tokens come from a
file that the operator keeps; or the ServiceX runs without authentication inside the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar
from urllib.parse import urlsplit

import yaml
from traitlets import Enum, Unicode

from casa_hub.credentials.base import Credential, Minter, Request
from casa_hub.credentials.tokens import expiry, unverified_claims
from casa_hub.errors import CredentialError, Problem, Severity
from casa_hub.keys import BadKeyError, KeyFile
from casa_hub.loopback import is_loopback
from casa_hub.moments import when
from casa_hub.naming import Server, hub_form

_MAKE_TOKENS = "Write a line for each user: USER: REFRESH_TOKEN (the token of the user's ServiceX page)."


def parse_tokens(content: bytes) -> Mapping[str, str]:
    """User name, in the hub's form (lower case) -> refresh token, from a YAML mapping.
    Raises BadKeyError, which names the line or the entry.
    """
    try:
        tokens = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both safe
    except yaml.MarkedYAMLError as error:  # its text quotes the file
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise BadKeyError(f"is not YAML{where}", _MAKE_TOKENS) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise BadKeyError("is not YAML", _MAKE_TOKENS) from None
    if tokens is None:
        return {}
    if not isinstance(tokens, dict):
        raise BadKeyError("is not a mapping of user names", _MAKE_TOKENS)
    normal: dict[str, str] = {}
    # Errors number the entries and quote none: a token may stand where the user name belongs.
    for number, (user, token) in enumerate(tokens.items(), 1):
        if not isinstance(user, str):
            raise BadKeyError(f"has a user name in entry {number} that is not text in YAML", "Put it into quotes.")
        if not isinstance(token, str) or not token or not token.isprintable():
            raise BadKeyError(f"has no token in entry {number}", _MAKE_TOKENS)
        if normal.setdefault(hub_form(user), token) != token:
            raise BadKeyError(f"has a second token in entry {number} for the same user", "Remove one of them.")
    return normal


class ServiceX(Minter):
    """Writes the ServiceX client's ``.servicex``."""

    name: ClassVar[str] = "servicex"
    shortens: ClassVar[bool] = False
    title: ClassVar[str] = "ServiceX configuration"
    purpose: ClassVar[str] = "ask ServiceX for columns of data"
    outside: ClassVar[bool] = True
    found_by: ClassVar[str] = "the ServiceX client"

    endpoint = Unicode(
        "",
        help="""
        URL of the ServiceX; servers find it as ``SERVICEX_HOST``. There is no default.
        Example: ``https://servicex.example.org``.
        """,
    ).tag(config=True)
    type = Unicode(
        "",
        help="""
        Kind of the ServiceX, which is also its name in the client; servers find it as ``SERVICEX_TYPE``. There is no
        default. Example: ``uproot``.
        """,
    ).tag(config=True)
    mode = Enum(
        ["none", "registered"],
        default_value="none",
        help="""
        Whether this ServiceX asks who somebody is. ``none``: it runs without authentication and no token is
        delivered; it must then be reachable from inside the facility only. ``registered``: each user has a refresh
        token that the ServiceX knows; it is taken from ``tokens_file``.
        """,
    ).tag(config=True)
    tokens_file = Unicode(
        "",
        help="""
        YAML file, user name -> refresh token, for ``mode: registered``. Read again when it changes. A user who is not
        in it gets no configuration. Example of a line: ``alice: eyJhbGciOi...``.
        """,
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._tokens = KeyFile("ServiceX.tokens_file", parse_tokens, _MAKE_TOKENS)

    @property
    def key_files(self) -> Mapping[str, str]:
        return {"ServiceX.tokens_file": self.tokens_file} if self.tokens_file else {}

    def check(self) -> Sequence[Problem]:
        problems: list[Problem] = []
        try:
            self._check_settings()
        except CredentialError as error:
            problems.append(Problem.of(error))
        if self.mode == "registered" and self.tokens_file:
            problems += self._tokens.check(self.tokens_file)
            address = urlsplit(self.endpoint)
            if address.scheme == "http" and not is_loopback(address.hostname or ""):
                problems.append(
                    Problem(
                        Severity.WARNING,
                        "ServiceX.endpoint",
                        "is plain http: refresh tokens are sent in clear",
                        "Use the https address.",
                    )
                )
        return problems

    def mint(self, request: Request) -> Credential:
        self._check_settings()
        endpoint = {"name": self.type, "endpoint": self.endpoint, "type": self.type}
        expires_at = None
        if self.mode == "registered":
            token = self._token_of(request.server.username)
            endpoint["token"] = token
            expires_at = expiry(unverified_claims(token))
            if expires_at is not None and expires_at <= request.now:
                raise CredentialError(
                    f"ServiceX.tokens_file ({self.tokens_file})",
                    f"has a token of {request.server.username!a} that expired at {when(expires_at)}",
                    "Put the user's present refresh token there.",
                )
        return Credential(
            name=self.name,
            files={".servicex": yaml.safe_dump({"api_endpoints": [endpoint]}, sort_keys=False).encode()},
            issued_at=request.now,
            expires_at=expires_at,
            identifiers={"endpoint": self.endpoint},
            summary=f"{self.type} at {self.endpoint}, "
            + ("with a token" if "token" in endpoint else "without a token"),
        )

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:  # noqa: ARG002
        return {"SERVICEX_HOST": self.endpoint, "SERVICEX_TYPE": self.type}

    def _token_of(self, username: str) -> str:
        try:
            return self._tokens.read(self.tokens_file)[hub_form(username)]
        except KeyError:
            raise CredentialError(
                f"ServiceX.tokens_file ({self.tokens_file})",
                f"has no token for {username!a}",
                "The user has to sign up with ServiceX. Then add the user's refresh token.",
            ) from None

    def _check_settings(self) -> None:
        for trait, example in (("endpoint", "https://servicex.example.org"), ("type", "uproot")):
            if not getattr(self, trait):
                raise CredentialError(
                    f"ServiceX.{trait}", "is not set", f"Set both endpoint and type, such as {example}."
                )
        address = urlsplit(self.endpoint)
        if address.scheme not in {"http", "https"} or not address.hostname:
            raise CredentialError(
                "ServiceX.endpoint", f"{self.endpoint!a} is not a URL", "Begin it with http:// or https://."
            )
        if (self.mode == "registered") != bool(self.tokens_file):
            raise CredentialError(
                "ServiceX.mode",
                f"is {self.mode!a}, but tokens_file is {'set' if self.tokens_file else 'not set'}",
                "Set tokens_file with mode: registered, and only then.",
            )
