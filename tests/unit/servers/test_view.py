"""What a server holds, in the words of the hub's pages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

import pytest

from casa_hub.credentials.base import Credential, Minter, Renewal, Request, Route
from casa_hub.record import CredentialRecord
from casa_hub.servers import view
from casa_hub.servers.renewals import Held, Missing


class ByTime(Minter):
    name = "cache"
    title = "Cache macaroon"
    purpose = "read data"
    found_by = "the cache's client"

    def mint(self, request: Request) -> Credential:
        raise NotImplementedError


class ByToken(ByTime):
    name = "token"
    title = "Access token"
    found_by = ""
    renewal: ClassVar[Renewal] = "token"


class OnRequest(ByTime):
    name = "certificates"
    title = "Certificates"
    renewal: ClassVar[Renewal] = "request"


MINTERS: dict[str, Minter] = {cls.name: cls() for cls in (ByTime, ByToken, OnRequest)}
MOMENT = datetime(2026, 3, 1, tzinfo=UTC)


def entry(*files: str, **identifiers: str) -> CredentialRecord:
    return CredentialRecord(MOMENT, MOMENT, identifiers, {}, files)


ENTRIES = {"cache": entry("cache_token", identifier="one"), "token": entry("access_token", aud="https://cache.test")}


def held(name: str, *, missing: bool = False, why: str = "", next_at: float | None = None) -> Held:
    return Held(name, issued=100.0, expires=1000.0, next_at=next_at, missing=missing, why=why)


def seen(one: Held, in_variable: str = "none") -> view.CredentialView:
    [found] = view.credentials(MINTERS, [one], ENTRIES, in_variable)
    return found


def test_a_credential_says_what_it_is_for_and_when_it_is_renewed() -> None:
    found = seen(held("cache", next_at=700.0))
    assert (found.title, found.purpose, found.files) == ("Cache macaroon", "read data", ("cache_token",))
    assert (found.state, found.expires_at, found.renewed_at, found.problem) == (view.State.GOOD, 1000.0, 700.0, "")


@pytest.mark.parametrize(("name", "words"), [("token", "new token of your sign-in"), ("certificates", "as long as")])
def test_a_credential_that_time_does_not_renew_says_when_it_is(name: str, words: str) -> None:
    found = seen(held(name))
    assert found.renewed_at is None
    assert words in found.renewed


@pytest.mark.parametrize(
    ("name", "in_variable", "readers"),
    [
        ("cache", "none", "the cache's client"),
        ("cache", "cache_token", "programs that read BEARER_TOKEN_FILE; the cache's client"),
        ("token", "cache_token", ""),
    ],
)
def test_a_credential_names_the_programs_that_find_it(name: str, in_variable: str, readers: str) -> None:
    assert seen(held(name), in_variable).found_by == readers


@pytest.mark.parametrize(
    ("name", "next_at", "follows"),
    [
        ("cache", 700.0, "The hub tries again by itself."),
        ("token", None, "It comes with your next token: log out and in again."),
        ("certificates", None, ""),  # the reason says that a restart is needed
    ],
)
def test_a_missing_credential_says_why_and_what_follows(name: str, next_at: float | None, follows: str) -> None:
    found = seen(held(name, missing=True, why="its key can't be read", next_at=next_at))
    assert found.state is view.State.MISSING
    assert (found.expires_at, found.renewed_at, found.files, found.renewed) == (None, None, (), "")
    assert found.problem == f"its key can't be read. {follows}".rstrip()


def test_a_credential_whose_renewal_fails_keeps_its_end_and_says_why() -> None:
    found = seen(held("cache", why="its key can't be read.", next_at=700.0))
    assert (found.state, found.expires_at, found.renewed_at) == (view.State.OVERDUE, 1000.0, None)
    assert found.problem == "its key can't be read. The hub tries again by itself."


def test_a_token_says_for_whom_it_is_and_a_proxy_as_whom_it_makes_known() -> None:
    entries = {"token": ENTRIES["token"], "cache": entry("x509_proxy", subject="/DC=test/CN=Alice", issuer="/DC=test")}
    found = view.credentials(MINTERS, [held("cache"), held("token")], entries, "none")
    assert [(one.audience, one.subject) for one in found] == [("", "/DC=test/CN=Alice"), ("https://cache.test", "")]
    [lacking] = view.credentials(MINTERS, [held("token", missing=True)], entries, "none")
    assert (lacking.audience, lacking.subject) == ("", "")


def test_credentials_come_in_the_order_of_the_facility_and_unknown_ones_last() -> None:
    names = ["removed", "certificates", "cache"]
    found = view.credentials(MINTERS, [held(name) for name in names], ENTRIES, "none")
    assert [one.title for one in found] == ["Cache macaroon", "Certificates", "removed"]


def test_what_a_server_lacks_is_told_of_that_server_only() -> None:
    missing = [Missing("a", "Service", "the API server is away"), Missing("b", "Service", "it is forbidden")]
    assert view.absent("a", missing) == ["Service is missing: the API server is away. The hub tries again by itself."]


def test_addresses_are_those_of_routes_and_the_dashboard_behind_the_server() -> None:
    routes = [Route("alice.dask.example.org", "scheduler", 8786), Route("alice.work.example.org", "worker", 8788)]
    server = "https://hub.example.org/user/alice/"
    assert view.addresses([], server) == []
    assert [(one.title, one.url) for one in view.addresses(routes, server)] == [
        ("Dask scheduler", "tls://alice.dask.example.org:8786"),
        ("Dask worker", "tls://alice.work.example.org:8788"),
        ("Dask dashboard", "https://hub.example.org/user/alice/proxy/8785/status"),
    ]
