"""Somebody at a hub and at its identity provider, and what real providers answer when somebody is gone.

The tables are those of docs/identity-providers.md. The answers are those that INDIGO IAM 1.12 and Keycloak 26.4 were
seen to give, to the letter but for names and ids; a running Keycloak is asked in `tests/peers/test_keycloak.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.hub import Browser, Hub
from tests.support.idp import IdP

MEMBER = ["/cms", "/cms/uscms"]
numbers = itertools.count(1)


@dataclass
class Person:
    """Somebody new who has logged in, with a browser and an API token."""

    hub: Hub
    idp: IdP
    claim: str = "wlcg.groups"
    groups: list[str] = field(default_factory=lambda: list(MEMBER))

    def __post_init__(self) -> None:
        number = next(numbers)
        self.sub, self.name = f"sub-{number}", f"person-{number}"
        self.is_in_groups(*self.groups)
        self.browser = Browser(self.hub)
        answer = self.browser.log_in(self.sub)
        assert answer.status_code == 200, answer.text
        self.token = self.browser.token()

    def is_in_groups(self, *groups: str) -> None:
        """What the provider says from now on; no groups, no claim."""
        self.idp.put_user(self.sub, preferred_username=self.name, **({self.claim: list(groups)} if groups else {}))

    def api(self) -> int:
        """The status of a request with the API token."""
        return self.hub.api("GET", "/user", token=self.token).status_code

    def access(self) -> tuple[bool, bool]:
        """Whether pages, and whether API requests go on."""
        page = self.browser.is_in()
        api = self.api()
        assert api in (200, 403)
        return page, api == 200

    def stored(self) -> dict[str, Any]:
        return dict(self.hub.api("GET", f"/users/{self.name}").json()["auth_state"])


def refused(status: int, error: str, description: str = "") -> tuple[int, Any]:
    return status, {"error": error} | ({"error_description": description} if description else {})


def in_header(error: str, description: str) -> Any:
    """A refusal by Keycloak's userinfo: the body is empty, the error is in the header (RFC 6750, 3)."""

    def userinfo(_: Any, start_response: Any) -> list[bytes]:
        challenge = f'Bearer realm="facility", error="{error}", error_description="{description}"'
        start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", challenge)])
        return []

    return userinfo


def dead(person: Person, *, refresh: Any = None, userinfo: Any = None) -> None:
    """From now on the provider answers so where this person is concerned."""
    if refresh is not None:
        person.idp.refresh_answers[person.sub] = refresh
    if userinfo is not None:
        person.idp.userinfo_answers[person.sub] = userinfo


def scope_taken(person: Person) -> None:
    """The client's registration has lost the scope: no groups come any more, which says nothing of anybody."""

    def without(document: dict[str, Any]) -> dict[str, Any]:
        if person.idp.owner(document["access_token"]) != person.sub:
            return document
        return document | {"scope": document["scope"].replace("wlcg.groups", "").strip()}

    person.is_in_groups()
    person.idp.change["/oauth2/token"] = without


Row = Callable[[Person], None]


def of_iam(refresh: Any) -> Row:
    return lambda person: dead(person, refresh=refresh)


NO: dict[str, tuple[str, Row]] = {
    "IAM: in no group any more, claim left out": ("iam", lambda p: p.is_in_groups()),
    "IAM: in other groups": ("iam", lambda p: p.is_in_groups("/cms", "/cms/other")),
    "IAM: account disabled": ("iam", of_iam(refused(401, "unauthorized", "User x is not active."))),
    "IAM: AUP not signed": (
        "iam",
        of_iam(refused(400, "invalid_grant", "User x needs to sign AUP for this organization in order to proceed.")),
    ),
    "IAM: account deleted during a refresh": (
        "iam",
        lambda p: dead(
            p,
            refresh=refused(500, "server_error", "Internal Server Error"),
            userinfo=refused(404, "User 'x' not found"),
        ),
    ),
    "Keycloak: in no group any more": ("keycloak", lambda p: p.is_in_groups()),
    "Keycloak: account disabled, by userinfo": (
        "keycloak",
        lambda p: dead(
            p,
            refresh=refused(400, "invalid_grant", "User disabled"),
            userinfo=in_header("invalid_token", "User disabled"),
        ),
    ),
    "Keycloak: account disabled, by refresh": (
        "keycloak-due",
        lambda p: dead(p, refresh=refused(400, "invalid_grant", "User disabled")),
    ),
}

LOG_IN_AGAIN: dict[str, tuple[str, Row]] = {
    "IAM: refresh token revoked": ("iam", lambda p: p.idp.revoke(p.sub)),
    "IAM: account deleted": (
        "iam",
        of_iam(refused(401, "invalid_token", "Refresh token for value eyJhbGciOiJub25lIn0.eyJqdGkiOiIx was not found")),
    ),
    "IAM: invalid_grant": ("iam", of_iam(refused(400, "invalid_grant", "Invalid refresh token: x"))),
    "IAM: invalid_token": ("iam", of_iam(refused(400, "invalid_token"))),
    "Keycloak: deleted, or logged out everywhere": (
        "keycloak",
        lambda p: dead(
            p,
            refresh=refused(400, "invalid_grant", "Session not active"),
            userinfo=in_header("invalid_token", "user_session_not_found"),
        ),
    ),
    "Keycloak: refresh token used twice": (
        "keycloak-due",
        lambda p: dead(p, refresh=refused(400, "invalid_grant", "Maximum allowed refresh token reuse exceeded")),
    ),
    "Keycloak: dead session": (
        "keycloak-due",
        lambda p: dead(p, refresh=refused(400, "invalid_grant", "Session doesn't have required client")),
    ),
    "Keycloak: not-before pushed": (
        "keycloak-due",
        lambda p: dead(p, refresh=refused(400, "invalid_grant", "Stale token")),
    ),
    "Keycloak: nonsense": (
        "keycloak-due",
        lambda p: dead(p, refresh=refused(400, "invalid_grant", "Invalid refresh token")),
    ),
}

CANT_SAY: dict[str, tuple[str, Row]] = {
    "IAM: our client suspended": ("iam", of_iam(refused(401, "invalid_client", "Client is suspended: hub-client"))),
    "IAM: our secret is wrong, or our client deleted": ("iam", of_iam(refused(401, "unauthorized", "Bad credentials"))),
    "IAM: our client lost the grant": ("iam", of_iam(refused(401, "invalid_client", "Unauthorized grant type"))),
    "IAM: no client authentication": ("iam", of_iam(refused(401, "unauthorized", "Full authentication is required"))),
    "IAM: 500": ("iam", of_iam((500, {"error": "server_error"}))),
    "IAM: 503 with a page": ("iam", of_iam((503, "<html><h1>Maintenance</h1></html>"))),
    "IAM: 200 with a page": ("iam", of_iam((200, "<html>Log in</html>"))),
    "IAM: 200, not JSON": ("iam", of_iam((200, "access_token=1"))),
    "IAM: 200, JSON of another kind": ("iam", of_iam((200, [1, 2]))),
    "IAM: 429": ("iam", of_iam((429, {"error": "invalid_grant"}))),
    "IAM: userinfo 502": ("iam", lambda p: dead(p, userinfo=(502, "<html>"))),
    "IAM: userinfo of somebody else": ("iam", lambda p: dead(p, userinfo=(200, {"sub": "x"}))),
    "IAM: the claim's scope was taken from our client": ("iam", scope_taken),
    "IAM: the profile wlcg was taken from our client": (
        "iam",
        lambda p: dead(
            p, userinfo=(200, {"sub": p.sub, "groups": ["cms", "cms/uscms"], "organisation_name": "indigo-dc"})
        ),
    ),
    "IAM: malformed claim": ("iam", lambda p: dead(p, userinfo=(200, {"sub": p.sub, "wlcg.groups": {"a": 1}}))),
    "Keycloak: our secret is wrong": (
        "keycloak-due",
        lambda p: dead(p, refresh=refused(401, "unauthorized_client", "Invalid client or Invalid client credentials")),
    ),
    "Keycloak: our client disabled, by userinfo": (
        "keycloak",
        lambda p: dead(
            p,
            refresh=refused(401, "invalid_client", "Invalid client or Invalid client credentials"),
            userinfo=in_header("invalid_token", "Client disabled"),
        ),
    ),
    "Keycloak: our client disabled, by refresh": (
        "keycloak-due",
        lambda p: dead(p, refresh=refused(401, "invalid_client", "Invalid client or Invalid client credentials")),
    ),
}
