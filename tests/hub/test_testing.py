"""What facilities' tests stand on: `casa_hub.testing`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from casa_hub.processes import signed_in
from casa_hub.testing import FacilityHub, IdP, MakeHub

ROOT = Path(__file__).parents[2]

#: What a facility's configuration may hold that a test can't have, besides the pods that its servers are.
PRODUCTION = """
c.JupyterHub.authenticator_class = "casa"
c.JupyterHub.spawner_class = "casa"
c.JupyterHub.bind_url = "https://:443/jupyter"
c.JupyterHub.base_url = "/jupyter/"
c.JupyterHub.hub_ip = "0.0.0.0"
c.JupyterHub.hub_connect_url = "http://hub:8081"
c.JupyterHub.ssl_key = c.JupyterHub.ssl_cert = "/nonexistent/tls"
c.JupyterHub.db_url = "postgresql://db.example.org/hub"
c.JupyterHub.services = [{"name": "monitor", "api_token": "token-of-the-monitor"}]
c.JupyterHub.load_roles = [{"name": "monitor", "services": ["monitor"], "scopes": ["list:users"]}]
c.CasaOAuthenticator.provider = "keycloak"
c.CasaOAuthenticator.issuer = "https://iam.example.org/realms/af"
c.CasaOAuthenticator.client_secret = "the-facility's-own"
c.CasaOAuthenticator.oauth_callback_url = "https://hub.example.org/jupyter/hub/oauth_callback"
c.CasaOAuthenticator.ca_file = "/nonexistent/ca.pem"
c.CasaOAuthenticator.http_proxy = "http://proxy.example.org:3128"
c.CasaOAuthenticator.allowed_groups = {"/af"}
c.Facility.credentials = ["xcache"]
c.XCache.key_file = "/nonexistent/xcache"
c.XCache.site_name = "T2_US_Example"
c.XCache.host = "xcache.example.org"
c.KubeSpawner.image = "registry.example.org/analysis:1"
c.CasaSpawner.cpu_limit = 4
c.KubernetesDelivery.files = "mount"
c.JupyterHub.tornado_settings = {"headers": {"X-Facility": "yes"}}
import casa_hub.hooks
casa_hub.hooks.install(c)
"""


@pytest.fixture(scope="module")
def production(casa_hub_factory: MakeHub) -> FacilityHub:
    return casa_hub_factory(PRODUCTION).start()


def test_a_configuration_for_production_is_overruled_where_a_test_cannot_follow(
    production: FacilityHub, casa_idp: IdP
) -> None:
    casa_idp.put_user("s1", preferred_username="ada", groups=["/af"])
    browser = production.browser()
    assert browser.log_in("s1").ok
    assert browser.spawn().ok
    assert production.given("ada").environment["XCACHE_HOST"] == "xcache.example.org"
    # And not where it can.
    assert browser.page("/hub/home").headers["X-Facility"] == "yes"
    assert production.api("GET", "/users", token="token-of-the-monitor").ok
    assert production.browser().log_in("s1").url.startswith(production.url)


@pytest.mark.parametrize(
    ("values", "claims", "name"),
    [
        ("cms", {"preferred_username": "bob", "wlcg.groups": ["/cms", "/cms/uscms"]}, "bob"),
        (
            "opendata",
            {
                "eppn": "bob@example.org",
                "email": "bob@example.org",
                "idp": "https://login.example.edu/idp/shibboleth",
                "isMemberOf": ["CO:COU:OpenData Facility:members:active"],
            },
            "bob@example.org",
        ),
    ],
)
def test_the_values_of_a_chart_are_a_configuration(
    casa_hub_factory: MakeHub, casa_idp: IdP, values: str, claims: dict[str, Any], name: str
) -> None:
    document = yaml.safe_load((ROOT / "helm-values" / f"{values}.yaml").read_text())
    hub = casa_hub_factory(document["hub"]["config"]).start()
    casa_idp.put_user(f"sub-at-{values}", **claims)
    browser = hub.browser()
    answer = browser.log_in(f"sub-at-{values}")
    assert answer.ok, answer.text
    assert browser.user() == name
    assert browser.spawn().ok
    assert set(hub.given(name).credentials) >= set(document["hub"]["config"]["Facility"]["required"])


def test_a_server_that_is_not_there_is_told_from_one_that_did_not_start(
    casa_hub_factory: MakeHub, casa_idp: IdP
) -> None:
    fail = 'c.CasaLocalSpawner.cmd = ["/nonexistent"]\n'
    hub = casa_hub_factory(PRODUCTION, overrides=fail).start()
    casa_idp.put_user("s2", preferred_username="eve", groups=["/af"])
    browser = hub.browser()
    browser.log_in("s2")
    with pytest.raises(AssertionError, match="there is no server of eve"):
        hub.given("eve")
    assert browser.spawn().status_code >= 400


def test_nothing_runs_on_after_a_hub_that_was_killed(casa_hub_factory: MakeHub, casa_idp: IdP) -> None:
    hub = casa_hub_factory(PRODUCTION).start()
    casa_idp.put_user("s3", preferred_username="eve", groups=["/af"])
    browser = hub.browser()
    browser.log_in("s3")
    assert browser.spawn().ok
    process = signed_in(hub.given("eve").directory / "process")
    hub.stop(signal.SIGKILL)
    assert process is not None
    assert process.alive
    hub.close()
    assert not process.alive


def test_a_secret_in_the_log_is_found_and_not_told(tmp_path: Path) -> None:
    hub = FacilityHub(tmp_path, PRODUCTION, "http://localhost:1")
    hub._said += ["all is well\n"]
    hub.assert_no_secret_in_log({"refresh-token-of-ada"})
    for secret in ("refresh-token-of-ada", hub.client_secret, hub.api_token):
        hub._said[:] = [f"DEBUG answer: {secret}\n"]
        with pytest.raises(AssertionError, match=r"1 secrets? .* character 14") as found:
            hub.assert_no_secret_in_log({"refresh-token-of-ada"})
        assert secret not in str(found.value).partition("\n")[0]


def test_without_the_extra_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['oidc_provider_mock'] = None; import casa_hub.testing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "needs oidc_provider_mock: pip install 'casa_hub[testing]'" in done.stderr
