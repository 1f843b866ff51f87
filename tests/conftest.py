"""For all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.scale import EXAMPLES

if TYPE_CHECKING:
    from tests.support.idp import IdP

# How long an example takes is the machine's affair: a busy one must not fail a test.
settings.register_profile("casa_hub", deadline=None, max_examples=EXAMPLES)
settings.load_profile("casa_hub")

# Whoever runs the tests in the background of a shell has Ctrl-C ignored, and so has every program they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def provider() -> Iterator[IdP]:
    """An identity provider for the tests of a module; its users and tokens stay."""
    from tests.support.idp import IdP  # noqa: PLC0415 - most tests have none

    with IdP().running() as running:
        yield running


@pytest.fixture
def idp(provider: IdP) -> IdP:
    """It as it was at first, but for users and tokens."""
    provider.reset()
    return provider


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what the chosen tests run on, if CASA_HUB_BUILD=1 asks for it, as `make test TESTS=...` does.

    Kubernetes and SeaweedFS are built before the first test, because a test's time-out is shorter than the build.
    """
    if os.environ.get("CASA_HUB_BUILD") != "1" or session.config.option.collectonly:
        return
    paths = {item.path.relative_to(HERE) for item in session.items if item.path.is_relative_to(HERE)}
    fixtures = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    tell = partial(print, file=sys.__stderr__, flush=True)
    with_node = any(path.is_relative_to("kubernetes/node") for path in paths)
    if with_node or "plane" in fixtures or any(path.is_relative_to("kubernetes") for path in paths):
        from tests.support.kubernetes import build  # noqa: PLC0415 - most tests don't need it

        build.prepare(with_node=with_node, write=tell)
    if "weed" in fixtures:
        from tests.support import seaweedfs  # noqa: PLC0415

        seaweedfs.prepare(tell)
