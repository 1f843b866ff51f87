"""What the start of a hub finds in a configuration that no part of it can find alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casa_hub.hub import CasaHub
from casa_hub.hub_config import configured_hub
from casa_hub.startup import problems

CONFIG = """
c.JupyterHub.authenticator_class = {authenticator!r}
c.JupyterHub.spawner_class = "casa"
c.CasaOAuthenticator.provider = {provider!r}
c.Facility.credentials = ["bearer", "exchange"]
c.TokenExchange.services = {services}
"""
BARE, SCOPED = {"audience": "https://tape.example.org"}, {"audience": "x", "scope": "storage.stage:/"}


def complaints(tmp_path: Path, services: Any, *, provider: str = "keycloak", authenticator: str = "casa") -> list[str]:
    file = tmp_path / "jupyterhub_config.py"
    text = CONFIG.format(authenticator=authenticator, provider=provider, services=json.dumps(services))
    file.write_text(text)
    return [str(one) for one in problems(CasaHub(configured_hub(file)))]


@pytest.mark.parametrize("provider", ["cms-iam", "atlas-iam", "wlcg-iam"])
def test_an_iam_wants_a_scope_for_each_exchange(tmp_path: Path, provider: str) -> None:
    (said,) = complaints(tmp_path, {"tape": BARE, "disk": SCOPED, "rucio": {"preset": "rucio"}}, provider=provider)
    assert said.startswith("the scope of exchange:tape: ")
    assert "is not set, and" in said
    assert "IAM gives a token only for a scope. Set scope" in said


@pytest.mark.parametrize(("provider", "authenticator"), [("keycloak", "casa"), ("oidc", "casa"), ("cms-iam", "dummy")])
def test_other_providers_do_not(tmp_path: Path, provider: str, authenticator: str) -> None:
    found = complaints(tmp_path, {"tape": BARE}, provider=provider, authenticator=authenticator)
    assert not [one for one in found if "scope" in one]


@pytest.mark.parametrize(
    ("services", "words"),
    [
        ({"tape": BARE | {"audiance": "x"}}, "tape has an unknown key 'audiance' (Did you mean audience?)"),
        ({}, "TokenExchange.services is empty"),
        ({"tape": BARE | {"file": "access_token"}}, "both write the file access_token"),
        (
            {"one": BARE | {"file": "t"}, "two": BARE | {"file": "t"}},
            "exchange:one and exchange:two both write the file t",
        ),
    ],
)
def test_a_service_that_can_not_be_is_told_before_the_start(tmp_path: Path, services: Any, words: str) -> None:
    (said,) = complaints(tmp_path, services)
    assert words in said
