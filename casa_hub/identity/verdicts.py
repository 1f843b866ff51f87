"""What an identity provider's refusal means for the person: the one place from its answer to a verdict.

Rules, in the order of what a mistake would cost:

- NO ends a person's servers, so it needs the provider's explicit word on *this account*: a sentence known from the
  provider's code, matched from its first to its last character.
- What can be our own fault, or everybody's at once (our client, our secret, the network), is CANT_SAY and never NO.
- What may only mean an old, revoked or used token is LOG_IN_AGAIN.
- The unknown is CANT_SAY: it ends by itself with the grace time, and it ends nobody by mistake.

The token end point says its error in the body (RFC 6749, 5.2). Userinfo is a protected resource and says it in the
header ``WWW-Authenticate`` (RFC 6750, 3); INDIGO IAM repeats it in the body, Keycloak leaves the body empty.

Sources: INDIGO IAM 1.12 and Keycloak 26.4, both measured; IAM's refresh granter and its tests; RFC 6749 5.2; RFC 6750
3 and 3.1; OpenID Connect Core 3.1.2.6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from http import HTTPStatus

from casa_hub.identity.challenges import bearer_error


class Verdict(StrEnum):
    """What somebody's identity provider says of his membership."""

    #: Still a member.
    YES = "yes"
    #: Explicitly not: access ends.
    NO = "no"
    #: The token is no good any more, which says nothing of the person: ask for a new log in.
    LOG_IN_AGAIN = "log-in-again"
    #: No usable answer: access goes on for a grace time since the last yes.
    CANT_SAY = "cant-say"


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict and why; the reason may be shown and logged, it never holds a token."""

    verdict: Verdict
    reason: str
    #: Whether it is about this hub's registration at the provider: everybody's, until the operator acts.
    our_fault: bool = False
    #: HTTP status of the provider's answer; None where no answer came.
    status: int | None = None
    #: Whether userinfo refused the access token without saying why: only another access token can tell.
    unexplained: bool = False


#: The provider's explicit word on an account. Whole sentences, because a description is free text elsewhere.
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

#: IAM's userinfo, 404 with this as its error: the account was deleted while its tokens were refreshed. From then on its
#: token end point answers 500, so this is IAM's only word on the account.
_ACCOUNT_GONE = re.compile(r"User '.+' not found")

#: Errors in whose description a sentence of `_NO` counts. `unauthorized` without one is Spring's word for a request
#: without client authentication: our own fault, and everybody's at once.
_ABOUT_A_PERSON = frozenset({"unauthorized", "invalid_grant", "invalid_token"})

#: Keycloak's userinfo, 401 invalid_token: our client, not the person.
_CLIENT_DISABLED = "Client disabled"

#: The token or the session is no good; a person at the browser can mend it.
_LOG_IN_AGAIN = frozenset(
    {"invalid_grant", "invalid_token", "login_required", "interaction_required", "consent_required"}
)

#: Our registration at the provider is at fault: the operator must act.
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
#: Errors that this module can read; CILogon's userinfo says one of them in the header and another one in the body.
_KNOWN = _ABOUT_A_PERSON | _LOG_IN_AGAIN | _OUR_FAULT

#: The client errors, save those that only say "not now".
_REFUSALS = range(HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR)
_LATER = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


def of_token_answer(status: int, body: object) -> Answer:
    """What a refused refresh grant means.

    Args:
        status: HTTP status; 200 for a success whose body can't be used.
        body: the parsed JSON, or None where it wasn't JSON.
    """
    code, description = _error_of(body)
    return replace(_read("The token end point", status, code, description), status=status)


def of_userinfo_answer(status: int, body: object, challenges: Sequence[str] = ()) -> Answer:
    """What a refusal by userinfo means.

    Args:
        status: HTTP status.
        body: the parsed JSON, or None where it wasn't JSON.
        challenges: the values of the answer's ``WWW-Authenticate`` headers.
    """
    code, description = _error_of(body)
    if status == HTTPStatus.NOT_FOUND and _ACCOUNT_GONE.fullmatch(code):
        return Answer(Verdict.NO, "The identity provider says that the account does not exist any more.", status=status)
    in_header = bearer_error(challenges)
    if in_header[0] in _KNOWN or not code:
        code, description = in_header
    if status == HTTPStatus.UNAUTHORIZED and not code:
        reason = "Userinfo of the identity provider refuses the access token and does not say why."
        return Answer(Verdict.LOG_IN_AGAIN, reason, status=status, unexplained=True)
    return replace(_read("Userinfo", status, code, description), status=status)


def _error_of(body: object) -> tuple[str, str]:
    """Error code and description of a JSON body; "" for what is missing or no text."""
    if not isinstance(body, Mapping):
        return "", ""
    code, description = body.get("error"), body.get("error_description")
    return code if isinstance(code, str) else "", description if isinstance(description, str) else ""


def _read(end_point: str, status: int, code: str, description: str) -> Answer:
    if status in _LATER or status not in _REFUSALS or not code:
        return Answer(Verdict.CANT_SAY, f"{end_point} of the identity provider gave no usable answer (HTTP {status}).")
    said = _sanitised(code, description)
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


_CODE = re.compile(r"[a-z_]{1,40}")
#: Printable ASCII without the quoting characters of HTML and of logs.
_UNSAFE = re.compile(r"[^ !#$%()*+,\-./0-9:;=?@A-Z\[\]^_a-z{|}~]+")
_DESCRIPTION_LENGTH = 120
_WORD_LENGTH = 24
_HANDLE_LENGTH = 8


def _sanitised(code: str, description: str) -> str:
    """Error code and description, without what may be a token: some providers quote the refused one."""
    shown = code if _CODE.fullmatch(code) else "unknown error code"
    words = (word for word in _UNSAFE.sub(" ", description).split() if not _may_be_secret(word))
    text = " ".join(words)[:_DESCRIPTION_LENGTH].rstrip()
    return f"{shown}: {text}" if text else shown


def _may_be_secret(word: str) -> bool:
    """Longer than any word of a known description ("user_session_not_found"), or like hexadecimal digits."""
    return len(word) > _WORD_LENGTH or (len(word) >= _HANDLE_LENGTH and any(c.isdigit() for c in word))
