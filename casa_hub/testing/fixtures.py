"""The fixtures, for pytest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from casa_hub.testing.facility import FacilityHub
from casa_hub.testing.idp import IdP


class MakeHub(Protocol):
    """What the fixture `casa_hub_factory` is."""

    def __call__(
        self,
        facility: Path | str | Mapping[str, Any],
        *,
        overrides: str = "",
        environment: Mapping[str, str] | None = None,
        proxy: bool = False,
    ) -> FacilityHub: ...


def pytest_configure(config: pytest.Config) -> None:
    """What the mock uses of others that is to be another one soon is not the facility's affair."""
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:authlib.*")


@pytest.fixture(scope="module")
def casa_idp() -> Iterator[IdP]:
    """An identity provider that runs as long as the tests of a module."""
    with IdP().running() as idp:
        yield idp


@pytest.fixture(scope="module")
def casa_hub_factory(casa_idp: IdP, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeHub]:
    """Makes hubs, not yet started, of a facility's configuration (see `FacilityHub`); they end with the module.

    The module fails at its end if one of them wrote a secret into its log.
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
                hub.end()  # all at once; each takes a second
                ends.callback(hub.close)
    for hub in hubs:
        hub.assert_no_secret_in_log(casa_idp.secrets())
