"""Pure: what a refusal of the identity provider means for the person. Only here an answer becomes a verdict.

Rules, the most expensive mistake first:

- NO ends a person's servers. So it needs the provider's explicit statement about *this account*: a sentence known from
  the provider's code, matched from its first to its last character.
- An answer that can be this hub's fault, or can concern everybody (our client, our secret, the network), is CANT_SAY
  and never NO.
- An answer that may only mean an old, revoked or used token is LOG_IN_AGAIN.
- An unknown answer is CANT_SAY: access goes on for the grace time, and nobody loses servers by mistake.

The token endpoint tells its error in the body (RFC 6749, 5.2). Userinfo is a protected resource and tells it in the
header ``WWW-Authenticate`` (RFC 6750, 3); INDIGO IAM repeats it in the body, Keycloak leaves the body empty.

Sources: INDIGO IAM 1.12 and Keycloak 26.4, both measured; IAM's refresh granter and its tests; RFC 6749 5.2; RFC 6750
3 and 3.1; OpenID Connect Core 3.1.2.6.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from http import HTTPStatus

from casa_hub.identity.challenges import bearer_error
from casa_hub.text import oauth_error, provider_words


class Verdict(StrEnum):
    """The identity provider's word on a person's membership."""

    #: Still a member.
    YES = "yes"
    #: Explicitly not a member: access ends.
    NO = "no"
    #: The token is not valid any more, which says nothing about the person: they have to log in again.
    LOG_IN_AGAIN = "log-in-again"
    #: No usable answer: access goes on for a grace time after the last "yes".
    CANT_SAY = "cant-say"


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict and its reason, which may be shown and logged: it never holds a token."""

    verdict: Verdict
    reason: str
    #: Whether the provider refuses this hub's client, which concerns all users until the operator acts.
    our_fault: bool = False
    #: HTTP status of the provider's answer; None if there was no answer.
    status: int | None = None
    #: Whether userinfo refused the access token without a reason: only a try with another access token can tell it.
    unexplained: bool = False


#: Statements about one account. Whole sentences, because other providers' descriptions are free text.
_NO = (
    # IAM, IamRefreshTokenGranter: 401 unauthorized.
    (re.compile(r"User .+ is not active\."), "The identity provider says that the account is disabled."),
    # IAM, same place: 400 invalid_grant; with "User with uuid ..." in newer versions.
    (
        re.compile(r"User .+ needs to sign AUP for this organization in order to proceed\."),
        "The acceptable use policy (AUP) has to be signed at the identity provider, then log in again.",
    ),
    # Keycloak: 400 invalid_grant at the token end point, 401 invalid_token at userinfo.
    (re.compile(r"User disabled"), "The identity provider says that the account is disabled."),
)

#: The error of IAM's userinfo, with status 404, for an account that was deleted while its tokens were refreshed. The
#: token endpoint answers 500 from then on, so this is IAM's only statement about the account.
_ACCOUNT_GONE = re.compile(r"User '.+' not found")

#: Errors whose description may be a sentence of `_NO`. With another description, `unauthorized` is Spring's error for a
#: request without client authentication, which concerns all users.
_ABOUT_A_PERSON = frozenset({"unauthorized", "invalid_grant", "invalid_token"})

#: Keycloak's userinfo, 401 invalid_token: it means this hub's client, not the person.
_CLIENT_DISABLED = "Client disabled"

#: The token or the session is not valid any more; the person can mend it by a log-in.
_LOG_IN_AGAIN = frozenset(
    {"invalid_grant", "invalid_token", "login_required", "interaction_required", "consent_required"}
)

#: This hub's registration at the provider is at fault: the operator must act.
_OUR_FAULT = frozenset(
    {
        "invalid_client",
        "unauthorized_client",
        "unauthorized",
        "invalid_request",
        "invalid_scope",
        "unsupported_grant_type",
        "insufficient_scope",
    }
)
#: Errors that this module knows. CILogon's userinfo has one of them in the header and another one in the body.
_KNOWN = _ABOUT_A_PERSON | _LOG_IN_AGAIN | _OUR_FAULT

#: Statuses of a refusal, and those among them that only say "not now".
_REFUSALS = range(HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR)
NOT_NOW = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


def of_token_answer(status: int, body: object) -> Answer:
    """What the token endpoint's refusal of a refresh means. Status 200: a success with an unusable body."""
    code, description = oauth_error(body)
    return replace(_read("The token end point", status, code, description), status=status)


def of_userinfo_answer(status: int, body: object, challenges: Sequence[str] = ()) -> Answer:
    """What a refusal of userinfo means; `challenges`: the values of its ``WWW-Authenticate`` headers."""
    code, description = oauth_error(body)
    if status == HTTPStatus.NOT_FOUND and _ACCOUNT_GONE.fullmatch(code):
        return Answer(Verdict.NO, "The identity provider says that the account does not exist any more.", status=status)
    in_header = bearer_error(challenges)
    if in_header[0] in _KNOWN or not code:
        code, description = in_header
    if status == HTTPStatus.UNAUTHORIZED and not code:
        reason = "Userinfo of the identity provider refuses the access token and does not say why."
        return Answer(Verdict.LOG_IN_AGAIN, reason, status=status, unexplained=True)
    return replace(_read("Userinfo", status, code, description), status=status)


def _read(end_point: str, status: int, code: str, description: str) -> Answer:
    if status in NOT_NOW or status not in _REFUSALS or not code:
        return Answer(Verdict.CANT_SAY, f"{end_point} of the identity provider gave no usable answer (HTTP {status}).")
    said = provider_words(code, description)
    if code in _ABOUT_A_PERSON:
        for sentence, reason in _NO:
            if sentence.fullmatch(description):
                return Answer(Verdict.NO, reason)
    if code in _OUR_FAULT or (code == "invalid_token" and description == _CLIENT_DISABLED):
        reason = f"The identity provider refuses this hub's client, its operator must act ({said})."
        return Answer(Verdict.CANT_SAY, reason, our_fault=True)
    if code in _LOG_IN_AGAIN:
        return Answer(Verdict.LOG_IN_AGAIN, f"The identity provider asks for a new log in ({said}).")
    return Answer(
        Verdict.CANT_SAY, f"{end_point} of the identity provider gave an unknown answer (HTTP {status}, {said})."
    )
