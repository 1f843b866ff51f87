"""A hub with a setting that can't work says so in one line and doesn't start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kubernetes.conftest import MakeHub
from tests.support.hub import Hub
from tests.support.kubernetes.api import eventually
from tests.support.kubernetes.facility import facility
from tests.support.scale import one_for_both_hubs

SIGN_ON = """
c.JupyterHub.authenticator_class = "casa"
c.CasaOAuthenticator.provider = "cms-iam"
c.CasaOAuthenticator.client_id = "hub"
c.CasaOAuthenticator.client_secret = "SECRET-OF-THE-CLIENT"
c.CasaOAuthenticator.oauth_callback_url = "http://127.0.0.1/hub/oauth_callback"
c.CasaOAuthenticator.allowed_groups = {"/cms"}
del c.Authenticator["allow_all"]
"""


def refused(hub: Hub, line: str) -> None:
    hub.begin()
    assert hub.process is not None
    assert hub.process.wait(60) != 0
    eventually(lambda: line in hub.log)
    assert "Traceback" not in hub.log
    assert "SECRET" not in hub.log


@pytest.mark.parametrize(
    ("setting", "line"),
    one_for_both_hubs(
        [
            ('c.KubernetesDelivery.files = "secret"', "expected any of ['sidecar', 'mount']"),
            ('c.KubernetesDelivery.sidecar_resources = {"cpu": "1"}', "there are requests and limits"),
            ('c.KubernetesDelivery.fils = "mount"', "Did you mean files?"),
            ('c.TraefikRoutes.kind = "gateway"', "TraefikRoutes.gateway"),
            ('c.Facility.secrets_path = "/"', "must be an absolute path below /"),
            ('c.CasaOAuthenticator.provider = "cmsiam"', "'provider' trait"),
            ('c.CasaOAuthenticator.client_secret = ["SECRET"]', "'client_secret' trait"),
        ]
    ),
)
def test_what_cannot_work_is_one_line(make_hub: MakeHub, tmp_path: Path, setting: str, line: str) -> None:
    refused(make_hub(facility(tmp_path) + SIGN_ON + setting + "\n", spawner_class="casa"), line)


@pytest.mark.both_hubs
def test_with_another_authenticator_so_does_a_hub_whose_configuration_asks_for_it(
    make_hub: MakeHub, tmp_path: Path
) -> None:
    asks = "import casa_hub.startup\ncasa_hub.startup.begin_with_hub()\n"
    stock = 'c.JupyterHub.authenticator_class = "dummy"\nc.KubernetesDelivery.fils = "mount"\n'
    refused(make_hub(facility(tmp_path) + asks + stock, spawner_class="casa"), "Did you mean files?")
