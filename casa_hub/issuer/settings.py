"""The section `FacilityIssuer`: the issuer's address, its keys, and whom its tokens name."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

from traitlets import Dict, Enum, Int, List, TraitError, Unicode, default, validate
from traitlets.config import LoggingConfigurable

from casa_hub.errors import CredentialError, Problem, Severity
from casa_hub.issuer.keys import KeyDirectory, shown, signer_of
from casa_hub.issuer.tokens import public_jwk
from casa_hub.loopback import is_loopback
from casa_hub.moments import iso

#: Below the hub's own address.
PATH = "casa/issuer"
#: Members of a JWK that belong to a private or a symmetric key (RFC 7518, 6.2.2, 6.3.2, 6.4).
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
#: The profile's subjects have so many ASCII characters at most.
_LONGEST_SUBJECT = 255


class _JWKs(List[dict[str, Any]]):
    """A list of JWKs whose errors don't show them: one of them may be a private key by mistake."""

    def error(self, obj: Any, value: Any, error: Any = None, info: Any = None) -> NoReturn:  # noqa: ARG002
        raise TraitError("FacilityIssuer.extra_jwks is not a list of JWKs, each of them a dictionary.") from None


class FacilityIssuer(LoggingConfigurable):
    """Signs the facility's own WLCG tokens, and publishes the keys by which anybody verifies them."""

    keys = Unicode(
        "",
        help="""
        Directory of the private keys that sign tokens: files ``*.pem``, each with one EC key of the curve P-256
        (signs with ES256) or one RSA key of at least 2048 bits (RS256), not encrypted. Read again when it changes.
        Without it the facility has no issuer.

        Who has one of these keys can mint any right at all that take this issuer's tokens. Name the files so that their
        order is that of their making. Example: ``/etc/casa-hub-issuer``, with ``2026-11.pem`` made by
        ``casa-hub issuer new-key /etc/casa-hub-issuer/2026-11.pem``.
        """,
    ).tag(config=True)
    vo = Unicode(
        "",
        help="""
        Name of the virtual organisation whose members the tokens are for: the last part of the issuer's address, and so
        of ``iss``, since one issuer serves one VO. Letters, digits and ``._-``. There is no default.
        Example: ``cms``.
        """,
    ).tag(config=True)
    url = Unicode(
        help="""
        Address of the issuer without the VO: ``iss`` is this, a slash and `vo`. Verifiers fetch the keys from there by
        https, so it must lead to this hub, from all of them; http is for this machine's loopback addresses only.
        A change makes all tokens and all verifiers' settings worthless.

        Default: ``casa/issuer`` below the hub's public address, which is `JupyterHub.public_url`, or else that of
        `CasaOAuthenticator.oauth_callback_url`: ``https://hub.example.org/hub/casa/issuer``.
        """,
    ).tag(config=True)
    key_lead = Int(
        4 * 86400,
        min=0,
        help="""
        Seconds that a key is published before it signs, because a verifier may keep the keys that it knows for so long.
        The keys with which the issuer begins sign at once. Default: 345600, four days, the longest time that the WLCG
        profile allows.
        """,
    ).tag(config=True)
    extra_jwks = _JWKs(
        Dict(),
        help="""
        Public keys of the facility's other signers, which are published with the hub's own: JWKs of EC keys of the
        curve P-256 or of RSA keys of at least 2048 bits, such as that of the credmon of the HTCondor pool. Whoever has
        such a private key can mint all that the hub's own keys can. Default: none. Example:
        ``[{"kty": "EC", "crv": "P-256", "x": "...", "y": "...", "kid": "..."}]``, as
        ``casa-hub issuer new-key FILE`` prints it.
        """,
    ).tag(config=True)
    subject = Enum(
        ["username", "provider"],
        default_value="username",
        help="""
        Whom the tokens name as ``sub``: `username`, the user's name in the hub (default), or `provider`, the ``sub`` of
        the user at the identity provider.

        Verifiers map the name to accounts and write it into their logs, and people can read it. But a name may be
        given to somebody else one day, after which what was mapped to it is the new person's. The provider's ``sub`` is
        never given to anybody else; verifiers need a list to map it, and technical users have none.
        """,
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.directory = KeyDirectory(lambda: self.keys, lambda: self.key_lead, self.log.error, self.log.info)

    @default("url")
    def _default_url(self) -> str:
        public = self.config.JupyterHub.get("public_url", "")
        callback = self.config.CasaOAuthenticator.get("oauth_callback_url", "")
        if isinstance(public, str) and public:
            return f"{public.rstrip('/')}/hub/{PATH}"
        if isinstance(callback, str) and callback.endswith("/oauth_callback"):
            return f"{callback.removesuffix('/oauth_callback')}/{PATH}"
        return ""

    @validate("extra_jwks")
    def _public_keys(self, proposal: Any) -> list[Mapping[str, str]]:
        found: dict[str, Mapping[str, str]] = {}
        for number, given in enumerate(proposal["value"]):
            thing = f"FacilityIssuer.extra_jwks[{number}]"
            if _PRIVATE & given.keys():
                raise TraitError(f"{thing} is a private key. Give the public half alone.")
            try:
                jwk = public_jwk(given)
            except ValueError as error:
                raise TraitError(f"{thing} {error}.") from None
            if jwk["kid"] in found:
                raise TraitError(f"{thing} has the kid of another one. Give each key a kid of its own, or none.")
            found[jwk["kid"]] = jwk
        return list(found.values())

    @property
    def iss(self) -> str:
        """``iss`` of all tokens."""
        return f"{self.url.rstrip('/')}/{self.vo}"

    def check(self) -> list[Problem]:
        """Problems of the settings, with which the hub can't start. Does not raise."""

        def problem(name: str, text: str, remedy: str) -> Problem:
            return Problem(Severity.ERROR, f"FacilityIssuer.{name}", text, remedy)

        problems = []
        if not self.keys:
            problems.append(problem("keys", "is not set, but other settings of the issuer are", "Set it."))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.vo):
            text = f"{self.vo!a} is not a name of letters, digits and ._-" if self.vo else "is not set"
            problems.append(problem("vo", text, "Example: cms."))
        if not self.url:
            remedy = "Set it, or JupyterHub.public_url. Example: https://hub.example.org/hub/casa/issuer."
            problems.append(problem("url", "is not set, and the hub's public address is unknown", remedy))
            return problems
        try:
            parts = urlsplit(self.url)
            host = parts.hostname or ""
        except ValueError:
            parts, host = urlsplit(""), ""
        if not host or parts.query or parts.fragment or parts.username is not None or not self.url.isascii():
            problems.append(problem("url", "is not the address of a page", "Example: https://hub.example.org/issuer."))
        elif parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
            text = f"{parts.scheme}://{host} is not https, and verifiers fetch keys by https only"
            problems.append(problem("url", text, "Give an https address; http is for loopback addresses only."))
        return problems

    def check_keys(self) -> list[Problem]:
        """Problems of the key files, which may be put right while the hub runs. Does not raise."""
        return self.directory.check(time.time())

    def key_files(self) -> dict[str, str]:
        """Name for people -> path of each key file; empty if the directory can't be read."""
        try:
            return {shown(file): file for file in self.directory.files()}
        except CredentialError:
            return {}

    def key_states(self, now: float) -> list[dict[str, Any]]:
        """For operators: what each key is for, in the order of the files; empty without a usable key.

        ``signs_from`` is "" for a key that may sign already, whether or not it is the one that does.
        """
        try:
            keys = self.directory.keys(now)
        except CredentialError:
            return []
        signer = signer_of(keys, now)
        return [
            {
                "key": shown(key.file),
                "kid": key.signing.kid,
                "signs": key is signer,
                "signs_from": iso(key.signs_from) if key.signs_from > now else "",
            }
            for key in keys
        ]

    def subject_of(self, username: str, of_provider: str) -> str:
        """``sub`` for a user. Raises CredentialError if the user has none that fits into a token."""
        if self.subject == "provider":
            if not of_provider:
                problem = "has no log-in of the identity provider, whose sub the token would name"
                remedy = "Log out and in again. Technical users get tokens only with FacilityIssuer.subject = username."
                raise CredentialError(f"user {username!a}", problem, remedy)
            name = of_provider
        else:
            name = username
        if not re.fullmatch(rf"[ -~]{{1,{_LONGEST_SUBJECT}}}", name):
            problem = f"can't be the sub of a token, which has 1 to {_LONGEST_SUBJECT} ASCII characters"
            raise CredentialError(f"user {name!a}", problem, "Set FacilityIssuer.subject to the other choice.")
        return name

    def sign(self, claims: Mapping[str, Any], now: float) -> str:
        """A signed token with these claims. `now`: epoch seconds. Raises CredentialError."""
        return self.directory.signing(now).sign(claims)

    def jwks(self, now: float) -> dict[str, list[Mapping[str, Any]]]:
        """The published keys (RFC 7517, 5). Raises CredentialError if the directory has no usable key."""
        own = {key.signing.kid: key.signing.jwk for key in self.directory.keys(now)}
        extra = {jwk["kid"]: jwk for jwk in self.extra_jwks}
        return {"keys": list({**extra, **own}.values())}
