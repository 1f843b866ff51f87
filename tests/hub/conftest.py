"""One identity provider for each module of tests, and hubs that use it; no hub's log may hold a secret of theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casa_hub.testing import casa_hub_factory, casa_idp  # noqa: F401 - fixtures
from tests.support.hub import CLIENT_SECRET, Hub, all_ended, casa_config
from tests.support.idp import IdP
from tests.support.local_hub import LocalHub, build_site_package

MakeHub = Callable[..., Hub]


@pytest.fixture(scope="module")
def provider(casa_idp: IdP) -> IdP:  # noqa: F811
    """That of facilities' own tests."""
    return casa_idp


@pytest.fixture(scope="session")
def claims_of() -> Callable[[str], dict[str, Any]]:
    """The recorded claims of a real provider, by the name of their file."""
    directory = Path(__file__).parents[1] / "unit" / "claims"
    return lambda name: dict(json.loads((directory / f"{name}.json").read_text())["claims"])


def assert_no_secret(log: str, idp: IdP) -> None:
    """Nothing that somebody could use is in a hub's log."""
    secrets = {CLIENT_SECRET} | idp.secrets()
    found = [line for line in log.splitlines() if any(secret in line for secret in secrets)]
    assert not found, f"{len(found)} lines of the log hold a secret, the first: {found[0][:400]}"


@pytest.fixture(scope="module")
def make_hub(provider: IdP, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeHub]:
    """Makes hubs, not yet started, that end with the module. Arguments: configuration text, traits.

    `database_fails`: JupyterHub itself may log a traceback, since its database is taken from it.
    """
    failing: list[Hub] = []

    def make(config: str = "", *, proxy: bool = False, database_fails: bool = False, **traits: object) -> Hub:
        text = casa_config(**{"issuer": provider.issuer, **traits})
        hubs.append(Hub(tmp_path_factory.mktemp("hub"), text + config, proxy=proxy))
        if database_fails:
            failing.append(hubs[-1])
        return hubs[-1]

    with all_ended() as hubs:
        yield make
    for hub in hubs:
        assert_no_secret(hub.log, provider)
        # A hub that ran has said what it had to say without one; one that refused to start ends with it.
        _, ran, log = hub.log.partition("JupyterHub is now running")
        assert not ran or hub in failing or "Traceback" not in log, log[max(log.index("Traceback") - 400, 0) :][:3000]


@pytest.fixture(scope="session")
def site_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a third party's package with a credential is installed."""
    return build_site_package(tmp_path_factory.mktemp("site"))


@pytest.fixture
def make_local_hub(tmp_path: Path, site_package: Path) -> Iterator[Callable[..., LocalHub]]:
    """Makes hubs with the local spawner, one after the other in one directory; argument: more configuration."""
    hubs: list[LocalHub] = []

    def make(config: str = "") -> LocalHub:
        hubs.append(LocalHub(tmp_path, site_package, config))
        return hubs[-1]

    yield make
    for hub in hubs:
        hub.end_all()
