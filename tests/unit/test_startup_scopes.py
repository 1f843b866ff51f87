"""What the start of a hub says of scopes that a credential needs and that the log-in doesn't ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from casa_hub.hub import CasaHub
from casa_hub.hub_config import configured_hub
from casa_hub.startup import problems

CONFIG = """
c.JupyterHub.authenticator_class = "casa"
c.JupyterHub.spawner_class = "casa"
c.CasaOAuthenticator.provider = "wlcg-iam"
c.Facility.credentials = ["x509"]
"""


def complaints(tmp_path: Path, config: str) -> list[str]:
    file = tmp_path / "jupyterhub_config.py"
    file.write_text(CONFIG + config)
    return [str(one) for one in problems(CasaHub(configured_hub(file)))]


@pytest.mark.parametrize("config", ["", 'c.CasaOAuthenticator.scope = ["openid"]'])
def test_a_scope_that_nobody_asks_for_is_told(tmp_path: Path, config: str) -> None:
    [said] = complaints(tmp_path, config)
    assert said.startswith("CasaOAuthenticator.scope: is without proxy:generate, so nobody gets the credential X.509")


@pytest.mark.parametrize(
    "config",
    [
        'c.CasaOAuthenticator.scope = ["openid", "proxy:generate"]',
        'c.CasaOAuthenticator.scope.append("proxy:generate")',
        'c.X509.source = "service"\nc.X509.url = "https://proxies.example.org/redeem"',
        'c.JupyterHub.authenticator_class = "dummy"',
    ],
)
def test_a_scope_that_is_asked_for_or_not_needed_is_not_told(tmp_path: Path, config: str) -> None:
    assert complaints(tmp_path, config) == []
