"""Pure: what the token endpoint's answer to a token exchange means (RFC 8693, 2.2).

A token is believed as far as TLS to the provider goes, and no further than asked: one for somebody else, of another
issuer or without the audience is refused. A token that is no JSON Web Token can't be looked into, and passes.

The provider's words of a refusal are free text. So who has to act is told by sentences that are known from the code of
INDIGO IAM 1.12 and from Keycloak 26.4, both measured, and by RFC 6749's error codes for all others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from casa_hub.credentials.exchange_services import Service
from casa_hub.credentials.fetching import Answer, Fetched, FetchError, Why
from casa_hub.credentials.tokens import expiry, is_bearer, unverified_claims
from casa_hub.moments import when
from casa_hub.text import oauth_error, provider_words

_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:"  # noqa: S105 - no secret
#: What is asked for, and what IAM calls the same; "" if the answer doesn't say.
_ISSUED = frozenset({"", f"{_TOKEN_TYPE}access_token", f"{_TOKEN_TYPE}jwt"})
#: Longest life in seconds that is believed: ten years.
_LONGEST = 10 * 366 * 86400.0
#: Characters of a token. Those of ten services have to fit into one Secret (1 MiB).
_LONGEST_TOKEN = 65536

_TELL = "Tell the operator of this hub"
_LOG_IN = "Log out and in again."
_ADMINISTRATORS = "Ask the identity provider's administrators."


def read(answer: Answer, service: Service) -> Fetched:
    """The token that was given. Raises FetchError."""
    thing = f"{service.title} token"
    if answer.status != HTTPStatus.OK:
        raise _refusal(answer, service, thing)
    body = answer.body if isinstance(answer.body, Mapping) else {}
    token = body.get("access_token")
    if not isinstance(token, str) or not token:
        raise FetchError(thing, "the identity provider's answer has none", _ADMINISTRATORS)
    problem = _unusable(body, token, answer, service)
    if problem:
        raise FetchError(thing, problem, _ADMINISTRATORS, Why.REFUSED)
    expires_at = _end(body, unverified_claims(token), answer.now)
    if expires_at is None:
        problem = "the identity provider doesn't say when it expires"
        raise FetchError(thing, problem, "Its administrators have to let it tell expires_in.", Why.REFUSED)
    if expires_at <= answer.now:
        raise FetchError(thing, f"what was given expired at {when(expires_at)}", "Compare the clocks.")
    return Fetched(token, answer.now, expires_at)


def _unusable(body: Mapping[str, Any], token: str, answer: Answer, service: Service) -> str:
    """Why a token must not be delivered, as a clause; "" if it may."""
    if len(token) > _LONGEST_TOKEN:
        return f"what was given has more than {_LONGEST_TOKEN} characters"
    if not is_bearer(token):
        return "what was given has characters that a bearer token can't have"
    if (
        str(body.get("token_type", "Bearer")).lower() != "bearer"
        or str(body.get("issued_token_type", "")) not in _ISSUED
    ):
        return "what was given is no access token"
    claims = unverified_claims(token)
    return _not_meant(claims, answer, service) if claims else ""


def _not_meant(claims: Mapping[str, Any], answer: Answer, service: Service) -> str:
    if claims.get("sub") != answer.subject:
        return "what was given doesn't name this person as its subject"
    if claims.get("iss") != answer.issuer:
        return "what was given is not of this hub's identity provider"
    if service.audience and service.audience not in audiences(claims):
        return f"what was given is not for the audience {service.audience}"
    return ""


def audiences(claims: Mapping[str, Any]) -> list[str]:
    """``aud`` (RFC 7519, 4.1.3), one text or several."""
    aud = claims.get("aud")
    return [one for one in (aud if isinstance(aud, list) else [aud]) if isinstance(one, str) and one]


def _end(body: Mapping[str, Any], claims: Mapping[str, Any], now: datetime) -> datetime | None:
    """The earlier of what the answer and the token say; None if neither says."""
    told = []
    try:
        seconds = float(body.get("expires_in", math.nan))  # some providers send the number as a text
        if seconds < _LONGEST:  # not a number is not
            told.append(now + timedelta(seconds=max(seconds, 0)))
    except (TypeError, ValueError, OverflowError):
        pass
    own = expiry(claims)
    return min([*told, *([] if own is None else [own])], default=None)


# -- refusals


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What an error code with a known description means."""

    code: str
    #: Matched from the description's first character on.
    description: str
    #: A clause after "Rucio token: ", and who does what. ``{audience}`` and ``{scope}`` are the service's.
    problem: str
    remedy: str
    why: Why = Why.REFUSED


_NOT_ENABLED = "this hub's client may not exchange tokens"
_REGISTER = (
    "the client needs the grant type token exchange in its registration, which an administrator of INDIGO IAM adds"
)
_NO_AUDIENCE = "the identity provider doesn't give this hub's client tokens for {audience}"
_MAPPER = (
    f"{_TELL}: in Keycloak, {{audience}} has to be a client, and this hub's client has to "
    "have a client scope with an audience mapper for it: by default, or as one that the service's scope names."
)
_STALE = "the identity provider doesn't accept the sign-in any more"

#: The first that fits counts.
_KNOWN = (
    # -- INDIGO IAM
    _Refusal(
        "invalid_request",
        "The scope parameter is required",
        "INDIGO IAM gives none without a scope",
        f"{_TELL}: the service needs scope in {{setting}}.",
    ),
    _Refusal("invalid_client", "Unauthorized grant type", _NOT_ENABLED, f"{_TELL}: {_REGISTER}."),
    _Refusal(
        "access_denied",
        ".*offline_access",
        "the identity provider gives none with the scope offline_access",
        f"{_TELL}: offline_access has to go from the service's scope in {{setting}}.",
    ),
    _Refusal(
        "invalid_grant",
        ".*needs to sign AUP",
        "the acceptable use policy (AUP) is not signed",
        "Sign it at the identity provider, then log out and in again.",
    ),
    # -- Keycloak
    _Refusal(
        "invalid_request",
        "Standard token exchange is not enabled",
        _NOT_ENABLED,
        f"{_TELL}: in Keycloak, the client needs Standard token exchange (standard.token.exchange.enabled).",
    ),
    _Refusal("access_denied", "Client not allowed to exchange", _NOT_ENABLED, f"{_TELL}: {_REGISTER}."),
    _Refusal("invalid_request", "Requested audience not available", _NO_AUDIENCE, _MAPPER),
    _Refusal("invalid_client", "Audience not found", _NO_AUDIENCE, _MAPPER),
    _Refusal("invalid_client", "Client disabled", "the client {audience} is disabled in Keycloak", f"{_TELL}."),
    # What it says of a session that was ended or taken back, and of an account that is disabled or deleted.
    _Refusal("invalid_request", "Invalid token", _STALE, _LOG_IN, Why.SIGN_IN),
    # -- whatever they say
    _Refusal(
        "invalid_scope",
        "",
        "this hub's client may not ask for the scope {scope}",
        f"{_TELL}: the scope has to be registered for the client at the identity provider, or changed in {{setting}}.",
    ),
    _Refusal("invalid_target", "", _NO_AUDIENCE, f"{_TELL}: the provider has to know the audience (RFC 8693, 2.2.2)."),
    _Refusal("invalid_token", "", _STALE, _LOG_IN, Why.SIGN_IN),
    _Refusal("invalid_grant", "", _STALE, _LOG_IN, Why.SIGN_IN),
    _Refusal(
        "unsupported_grant_type",
        "",
        "the identity provider can't exchange tokens",
        f"{_TELL}: it has no token exchange.",
    ),
    _Refusal(
        "access_denied",
        "",
        "the identity provider refuses it",
        f"{_TELL}: its rules for token exchange have to let this hub's client have it.",
    ),
    *(
        _Refusal(
            code,
            "",
            "the identity provider refuses this hub's client",
            f"{_TELL}: client_id and client_secret must be those of the registration, and the grant token exchange has "
            "to be enabled for it.",
        )
        for code in ("invalid_client", "unauthorized_client", "unauthorized")
    ),
)


def _refusal(answer: Answer, service: Service, thing: str) -> FetchError:
    code, description = oauth_error(answer.body)
    if answer.status < HTTPStatus.BAD_REQUEST or not code:
        return FetchError(thing, f"the identity provider gave no usable answer (HTTP {answer.status})", _ADMINISTRATORS)
    said = provider_words(code, description)
    for known in _KNOWN:
        if code == known.code and re.match(known.description, description):
            names = {
                "audience": service.audience or "any audience",
                "scope": service.scope or "that it has by default",
                "setting": service.setting,
            }
            problem = f"{known.problem.format(**names)} ({said})"
            return FetchError(thing, problem, known.remedy.format(**names), known.why)
    return FetchError(thing, f"the identity provider refuses it ({said})", f"{_TELL}.", Why.REFUSED)
