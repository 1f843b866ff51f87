"""The pytest fixtures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from casa_hub.testing.facility import FacilityHub
from casa_hub.testing.idp import IdP


class MakeHub(Protocol):
    """The type of the fixture `casa_hub_factory`; the arguments are those of `FacilityHub`."""

    def __call__(
        self,
        facility: Path | str | Mapping[str, Any],
        *,
        overrides: str = "",
        environment: Mapping[str, str] | None = None,
        proxy: bool = False,
    ) -> FacilityHub: ...


def pytest_configure(config: pytest.Config) -> None:
    """Hide deprecation warnings about libraries of the mock: the facility can't do anything about them."""
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:authlib.*")


@pytest.fixture(scope="module")
def casa_idp() -> Iterator[IdP]:
    """An identity provider that runs during the tests of a module."""
    with IdP().running() as idp:
        yield idp


@pytest.fixture(scope="module")
def casa_hub_factory(casa_idp: IdP, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeHub]:
    """Makes hubs of a facility's configuration (see `FacilityHub`), not yet started. They end with the module.

    At its end the module fails if a hub wrote a secret into its log.
    """
    hubs: list[FacilityHub] = []

    def make(facility: Path | str | Mapping[str, Any], **options: Any) -> FacilityHub:
        hubs.append(FacilityHub(tmp_path_factory.mktemp("casa_hub"), facility, casa_idp.issuer, **options))
        return hubs[-1]

    try:
        yield make
    finally:
        with contextlib.ExitStack() as ends:
            for hub in hubs:
                hub.end()  # all at once, because each takes a second
                ends.callback(hub.close)
    for hub in hubs:
        hub.assert_no_secret_in_log(casa_idp.secrets())
