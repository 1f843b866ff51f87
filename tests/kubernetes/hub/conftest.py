"""Hubs whose servers are pods with credentials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.kubernetes.conftest import MakeHub
from tests.support.hub import Hub
from tests.support.kubernetes.facility import facility

MakeCasaHub = Callable[..., Hub]


@pytest.fixture
def make_casa_hub(make_hub: MakeHub, tmp_path_factory: pytest.TempPathFactory) -> MakeCasaHub:
    """As `make_hub`, with `CasaSpawner` and the facility of `tests.support.kubernetes.facility`."""
    settings = facility(tmp_path_factory.mktemp("keys"))

    def make(config: str = "", **options: Any) -> Hub:
        return make_hub(settings + config, **{"spawner_class": "casa", **options})

    return make


@pytest.fixture
def casa_hub(make_casa_hub: MakeCasaHub) -> Hub:
    return make_casa_hub()
