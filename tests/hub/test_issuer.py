"""The pages of the facility's issuer: what anybody reads there, whatever else the hub does."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
import requests
from traitlets.config import Config

from casa_hub.checks import facility_issuer
from casa_hub.checks.site import Site
from casa_hub.facility import Facility
from casa_hub.issuer.tokens import SigningKey, new_private_key
from tests.hub.conftest import MakeHub
from tests.support.hub import Hub

CONFIG = """
c.FacilityIssuer.keys = "issuer"
c.FacilityIssuer.vo = "cms"
c.FacilityIssuer.key_lead = 3600
"""
OWN_NAME = 'c.FacilityIssuer.url = f"http://127.0.0.1:{c.JupyterHub.hub_port}/hub/casa/issuer"\n'
FOREIGN = """
c.JupyterHub.authenticator_class = "dummy"
import casa_hub.startup
casa_hub.startup.begin_with_hub()
c.FacilityIssuer.url = "https://hub.example.org/hub/casa/issuer"
"""


def add_key(hub: Hub, name: str) -> SigningKey:
    key, content = new_private_key()
    (hub.directory / "issuer").mkdir(exist_ok=True)
    (hub.directory / "issuer" / name).write_bytes(content)
    return key


def published(hub: Hub) -> set[str]:
    """Names of the keys that a stranger finds from the issuer's address alone."""
    description = requests.get(f"{hub.url}/hub/casa/issuer/cms/.well-known/openid-configuration", timeout=10).json()
    path = description["jwks_uri"].partition("/hub/")[2]
    answer = requests.get(f"{hub.url}/hub/{path}", timeout=10)
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert "Set-Cookie" not in answer.headers
    return {key.key_id for key in jwt.PyJWKSet.from_dict(answer.json()).keys if key.key_id}


@pytest.fixture(scope="module")
def make_issuer(make_hub: MakeHub) -> Callable[[str], tuple[Hub, SigningKey]]:
    def make(more: str = "") -> tuple[Hub, SigningKey]:
        callback = "https://hub.example.org/hub/oauth_callback"
        hub = make_hub(CONFIG + more, oauth_callback_url=callback, database_fails=True)
        key = add_key(hub, "1.pem")
        return hub.start(), key

    return make


@pytest.fixture(scope="module")
def issuer(make_issuer: Callable[[str], tuple[Hub, SigningKey]]) -> tuple[Hub, SigningKey]:
    """A hub, and the one key that it has before and after each test."""
    return make_issuer(OWN_NAME)


@pytest.mark.both_hubs
def test_a_stranger_finds_the_keys_and_a_new_one_as_soon_as_its_file_is_there(
    issuer: tuple[Hub, SigningKey],
) -> None:
    hub, first = issuer
    assert published(hub) == {first.kid}
    second = add_key(hub, "2.pem")
    assert published(hub) == {first.kid, second.kid}
    assert "cms/jwks" not in hub.log, "each look of a verifier is a line in the log"
    (hub.directory / "issuer/2.pem").unlink()
    assert published(hub) == {first.kid}


@pytest.mark.both_hubs
def test_a_hub_with_another_authenticator_publishes_them_too(
    make_issuer: Callable[[str], tuple[Hub, SigningKey]],
) -> None:
    hub, key = make_issuer(FOREIGN)
    assert published(hub) == {key.kid}


def test_without_a_usable_key_the_answer_is_no_empty_set(issuer: tuple[Hub, SigningKey]) -> None:
    """A verifier would take an empty set for the truth, and keep it for days."""
    hub, _ = issuer
    key_file = Path(hub.directory, "issuer/1.pem")
    key_file.rename(key_file.with_suffix(".away"))
    answer = requests.get(f"{hub.url}/hub/casa/issuer/cms/jwks", timeout=10)
    key_file.with_suffix(".away").rename(key_file)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (503, "no-store")


async def test_the_check_finds_the_issuer_where_its_name_says_and_a_key_that_no_file_explains(
    issuer: tuple[Hub, SigningKey],
) -> None:
    hub, key = issuer

    async def problems(keys: str = "issuer", vo: str = "cms") -> list[str]:
        section = {"keys": str(hub.directory / keys), "vo": vo, "url": f"{hub.url}/hub/casa/issuer"}
        site = Site(None, facility=Facility(config=Config(FacilityIssuer=section)))
        return [finding.problem for finding in [one async for one in facility_issuer.look(site)]]

    assert await problems() == [
        "agrees with this machine's",
        "describes itself under this very name",
        "publishes the keys of this configuration and no others (1)",
    ]
    assert (await problems(vo="atlas"))[1:] == ["isn't there (status 404)"]
    foreign = add_key(hub, "2.pem")
    (hub.directory / "elsewhere").mkdir()
    (hub.directory / "issuer/1.pem").rename(hub.directory / "elsewhere/1.pem")
    assert [text[:60] for text in (await problems("elsewhere"))[2:]] == [
        f"publishes the key {foreign.kid!a}"[:60],
        f"lacks the key {key.kid!a}, so verifiers will refuse what it signs"[:60],
    ]
    (hub.directory / "issuer/2.pem").unlink()
    (hub.directory / "elsewhere/1.pem").rename(hub.directory / "issuer/1.pem")


def test_the_keys_are_published_while_the_database_is_away(issuer: tuple[Hub, SigningKey]) -> None:
    """The last one: it ends the hub's database."""
    hub, first = issuer
    assert hub.api("POST", "/users/alice").ok
    with sqlite3.connect(hub.directory / "hub.sqlite") as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            db.execute(f"DROP TABLE {table}")
    assert not hub.api("GET", "/users/alice").ok
    second = add_key(hub, "2.pem")
    assert published(hub) == {first.kid, second.kid}
