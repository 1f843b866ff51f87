"""The laptop bundle: downloaded in a real browser, and its program run against a real Dask behind a real Traefik."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from casa_hub.demo.names import HostNames
from casa_hub.demo.traefik import Traefik
from casa_hub.testing import casa_hub_factory, casa_idp  # noqa: F401 - fixtures
from casa_hub.testing.facility import FacilityHub
from casa_hub.testing.fixtures import MakeHub
from tests.support.chromium import OpenTab
from tests.support.facility_config import credentials
from tests.support.idp import IdP

pytestmark = pytest.mark.debian

FACILITY = """
c.CasaOAuthenticator.provider = "wlcg-iam"
c.CasaOAuthenticator.allow_all = True
""" + credentials("dask")
SERVERS = """
c.CasaLocalSpawner.cmd = [sys.executable, "-m", "tests.support.server_with_dask"]
c.CasaLocalSpawner.environment = {{"PYTHONPATH": {root!r}}}
c.TraefikRoutes.directory = {routes!r}
c.Dask.domain = "localhost"
c.CasaLocalSpawner.start_timeout = c.CasaLocalSpawner.http_timeout = 120
c.JupyterHub.tornado_settings.update({{"slow_spawn_timeout": 120}})
"""


def connected(bundle: Path, names: HostNames) -> subprocess.CompletedProcess[str]:
    """What connect.py says on a laptop, which knows nothing of the facility but its names."""
    command = [sys.executable, "connect.py"]
    environment = {"PATH": "/usr/bin:/bin", **names.environment}
    return subprocess.run(
        command, cwd=bundle, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def hub(casa_hub_factory: MakeHub, traefik: Traefik, names: HostNames) -> FacilityHub:  # noqa: F811
    names.replace({f"{user}.dask.localhost": traefik.address for user in ("ada", "bob")})
    overrides = SERVERS.format(root=str(Path(__file__).parents[2]), routes=str(traefik.routes))
    return casa_hub_factory(FACILITY, overrides=overrides, proxy=True).start()


def test_a_bundle_from_the_page_connects_to_the_cluster_of_its_server_and_to_no_other(
    hub: FacilityHub,
    casa_idp: IdP,  # noqa: F811
    open_tab: OpenTab,
    names: HostNames,
    tmp_path: Path,
) -> None:
    for user in ("ada", "bob"):
        casa_idp.put_user(f"sub-of-{user}", preferred_username=user)
        tab = open_tab(hub)
        tab.sign_in(f"sub-of-{user}")
        hub.api("POST", f"/users/{user}/server").raise_for_status()
        tab.page.goto("/hub/casa/credentials")
        expect(tab.page.locator('[data-credential="dask"]')).to_be_visible()
        with tab.page.expect_download() as download:
            tab.page.get_by_role("button", name="Download laptop bundle").click()
        with zipfile.ZipFile(download.value.path()) as bundle:
            bundle.extractall(tmp_path / user)

    done = connected(tmp_path / "ada", names)
    assert done.returncode == 0, done.stderr
    assert "Connected to tls://ada.dask.localhost:8786: 1 workers" in done.stdout
    assert "install the same version" not in done.stdout

    foreign = (tmp_path / "bob" / "usercert.pem").read_bytes()
    (tmp_path / "ada" / "usercert.pem").write_bytes(foreign)
    refused = connected(tmp_path / "ada", names)
    assert refused.returncode != 0
    assert "Connected" not in refused.stdout
