"""Hubs as in tests/hub, with Chromium in front of them."""

from casa_hub.testing import casa_hub_factory, casa_idp  # noqa: F401 - fixtures
from tests.hub.conftest import make_hub, make_local_hub, provider, site_package  # noqa: F401 - fixtures
from tests.support.chromium import chromium, open_tab  # noqa: F401 - fixtures
from tests.support.hub import forked_facility_hubs  # noqa: F401 - a fixture
