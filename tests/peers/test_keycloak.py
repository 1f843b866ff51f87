"""What a real Keycloak answers when somebody is gone, and what the hub makes of it: a row of the table each.

Keycloak says things that no mock would: userinfo's errors stand in a header and nowhere else, and an offline session
(scope `offline_access`) outlives what ends the others.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import requests

from casa_hub.checks import issuer as checks
from casa_hub.checks.findings import Status
from casa_hub.identity.errors import OIDCError
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.tokens import Tokens
from casa_hub.identity.transport import Client
from casa_hub.identity.verdicts import Answer, Verdict
from tests.support.keycloak import OFFLINE, ONLINE, Account, Keycloak, Realm, sign_in

#: Nobody listens there: the code is read where the browser is sent to.
HUB = "http://127.0.0.1:9"
MEMBERS = "/cms/uscms"
YES, NO = Verdict.YES, Verdict.NO
AGAIN, CANT_SAY = Verdict.LOG_IN_AGAIN, Verdict.CANT_SAY


@pytest.fixture(scope="module")
def realm(keycloak: Keycloak) -> Realm:
    return keycloak.realm()


@dataclass
class Member:
    """Somebody who has logged in by a client that nobody else uses."""

    realm: Realm
    client_id: str
    secret: str
    issuer: Issuer
    account: Account
    tokens: Tokens

    async def refreshed(self, refresh_token: str = "") -> Answer:
        """What the token end point says to a refresh; new tokens are kept."""
        try:
            token = refresh_token or self.tokens.refresh_token
            self.tokens = await self.issuer.refresh(token, sub=self.account.id)
        except OIDCError as error:
            return error.answer
        return Answer(YES, "")

    async def seen(self, access_token: str = "") -> Answer:
        """What userinfo says, with the access token of the log-in if no other is given."""
        try:
            await self.claims(access_token)
        except OIDCError as error:
            return error.answer
        return Answer(YES, "")

    async def claims(self, access_token: str = "") -> dict[str, Any]:
        return await self.issuer.userinfo(access_token or self.tokens.access_token, sub=self.account.id)


LogIn = Callable[[list[str]], Awaitable[Member]]


@pytest.fixture
async def log_in(realm: Realm) -> AsyncIterator[LogIn]:
    issuers = []

    async def make(scope: list[str]) -> Member:
        client_id, secret = f"hub-{secrets.token_hex(4)}", secrets.token_urlsafe(24)
        realm.add_client(client_id, secret, HUB)
        account = realm.add_account(MEMBERS)
        issuer = Issuer(Client(realm.issuer, client_id, secret))
        issuers.append(issuer)
        verifier, nonce = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "client_id": client_id,
            "response_type": "code",
            "scope": " ".join(scope),
            "redirect_uri": f"{HUB}/hub/oauth_callback",
            "state": "state",
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        url = f"{(await issuer.metadata()).authorization_endpoint}?{urlencode(query)}"
        sent = sign_in(requests.Session(), url, account, follow=False)
        assert sent.status_code == 302, sent.text
        (code,) = parse_qs(urlsplit(sent.headers["Location"]).query)["code"]
        tokens = await issuer.exchange(code, verifier=verifier, redirect_uri=query["redirect_uri"], nonce=nonce)
        return Member(realm, client_id, secret, issuer, account, tokens)

    yield make
    for issuer in issuers:
        await issuer.close()


SCOPES = pytest.mark.parametrize("scope", [OFFLINE, ONLINE], ids=["offline", "online"])


@SCOPES
async def test_a_member_is_confirmed_again_and_again(log_in: LogIn, scope: list[str]) -> None:
    member = await log_in(scope)
    first = member.tokens.access_token
    for _ in range(2):
        assert (await member.refreshed()).verdict is YES
        assert (await member.claims())["groups"] == [MEMBERS]
    assert (await member.claims(first))["groups"] == [MEMBERS]
    # An offline session of Keycloak has no end by itself; another one has, and says which.
    assert (member.tokens.refresh_expires_at is None) == (scope is OFFLINE)


@SCOPES
async def test_lost_groups_are_seen_at_once_and_the_claim_is_left_out(log_in: LogIn, scope: list[str]) -> None:
    member = await log_in(scope)
    first = member.tokens.access_token
    member.realm.leave(member.account, MEMBERS)
    assert "groups" not in await member.claims(first)
    assert (await member.refreshed()).verdict is YES
    assert "groups" not in await member.claims()


@dataclass(frozen=True)
class Row:
    """What happens, and the verdicts on a refresh and on userinfo with the access token of before."""

    happens: Callable[[Member], None]
    refresh: Verdict
    userinfo: Verdict
    #: In the reason of the refresh, and of userinfo.
    words: tuple[str, str]
    our_fault: bool = False


def _not_before(member: Member) -> None:
    member.realm.change_client(member.client_id, notBefore=int(time.time()) + 60)


BOTH = {
    "account disabled": Row(
        lambda m: m.realm.disable(m.account), NO, NO, ("the account is disabled", "the account is disabled")
    ),
    "client disabled": Row(
        lambda m: m.realm.change_client(m.client_id, enabled=False),
        *(CANT_SAY, CANT_SAY),
        ("invalid_client", "invalid_token: Client disabled"),
        our_fault=True,
    ),
    "secret changed": Row(
        lambda m: m.realm.change_client(m.client_id, secret="another"),
        *(CANT_SAY, YES),
        ("unauthorized_client: Invalid client or Invalid client credentials", ""),
        our_fault=True,
    ),
    "not-before pushed": Row(_not_before, AGAIN, AGAIN, ("invalid_grant: Stale token", "invalid_token")),
}
ROWS = {(name, scope): row for name, row in BOTH.items() for scope in ("offline", "online")} | {
    ("account deleted", "offline"): Row(
        lambda m: m.realm.delete(m.account),
        *(AGAIN, AGAIN),
        ("invalid_grant: Offline user session not found", "invalid_token: user_session_not_found"),
    ),
    ("account deleted", "online"): Row(
        lambda m: m.realm.delete(m.account),
        *(AGAIN, AGAIN),
        ("invalid_grant: Session not active", "invalid_token: user_session_not_found"),
    ),
    ("logged out by an administrator", "offline"): Row(
        lambda m: m.realm.log_out(m.account), AGAIN, YES, ("invalid_grant: Stale token", "")
    ),
    ("session ended", "offline"): Row(lambda m: m.realm.end_sessions(m.account), YES, YES, ("", "")),
    ("session ended", "online"): Row(
        lambda m: m.realm.end_sessions(m.account),
        *(AGAIN, AGAIN),
        ("invalid_grant: Session not active", "invalid_token: user_session_not_found"),
    ),
    ("logged out by an administrator", "online"): Row(
        lambda m: m.realm.log_out(m.account),
        *(AGAIN, AGAIN),
        ("invalid_grant: Session not active", "invalid_token: user_session_not_found"),
    ),
    ("consent revoked", "offline"): Row(
        lambda m: m.realm.revoke_consent(m.account, m.client_id), AGAIN, AGAIN, ("invalid_grant", "invalid_token")
    ),
}


@pytest.mark.parametrize(("name", "scope"), ROWS)
async def test_what_the_provider_s_refusals_mean(log_in: LogIn, name: str, scope: str) -> None:
    row = ROWS[name, scope]
    member = await log_in(OFFLINE if scope == "offline" else ONLINE)
    row.happens(member)
    userinfo, refresh = await member.seen(), await member.refreshed()
    assert (refresh.verdict, userinfo.verdict) == (row.refresh, row.userinfo), (refresh, userinfo)
    for answer, words in zip((refresh, userinfo), row.words, strict=True):
        assert words in answer.reason
        assert answer.our_fault == (row.our_fault and answer.verdict is CANT_SAY)
        assert not answer.unexplained


@SCOPES
async def test_a_refresh_token_used_twice_kills_its_successor(log_in: LogIn, scope: list[str]) -> None:
    """Therefore the hub never lets two refreshes of one person race."""
    member = await log_in(scope)
    first = member.tokens.refresh_token
    assert (await member.refreshed()).verdict is YES
    newer = member.tokens.refresh_token
    assert newer != first
    for token, words in ((first, "Maximum allowed refresh token reuse exceeded"), (newer, "invalid_grant")):
        answer = await member.refreshed(token)
        assert answer.verdict is AGAIN
        assert words in answer.reason
    assert (await member.seen()).verdict is AGAIN


async def test_a_refresh_token_that_never_was_is_no_word_on_anybody(log_in: LogIn) -> None:
    member = await log_in(OFFLINE)
    answer = await member.refreshed("nonsense")
    assert answer.verdict is AGAIN
    assert "Invalid refresh token" in answer.reason
    assert (await member.refreshed()).verdict is YES


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({}, Status.OK, "accepts this hub's client id and secret"),
        ({"secret": "another"}, Status.ERROR, "client_id and client_secret must be those of the registration"),
        ({"enabled": False}, Status.ERROR, "and the client must be enabled there"),
    ],
    ids=["sound", "wrong secret", "client disabled"],
)
async def test_what_the_check_says_of_the_client(
    realm: Realm, change: dict[str, Any], status: Status, words: str
) -> None:
    client_id, secret = f"hub-{secrets.token_hex(4)}", secrets.token_urlsafe(24)
    realm.add_client(client_id, secret, HUB)
    realm.change_client(client_id, **change)
    issuer = Issuer(Client(realm.issuer, client_id, secret))
    try:
        with pytest.raises(OIDCError) as answered:
            await issuer.refresh("casa-hub-check-1", sub="")
    finally:
        await issuer.close()
    found = checks.client("the token end point", answered.value)
    assert (found.status, words in str(found)) == (status, True), found
