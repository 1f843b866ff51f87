"""pytest fixtures with which a facility tests its own hub: real log-ins and real servers, all on this machine.

Install ``casa_hub[testing]``, and say ``pytest_plugins = ["casa_hub.testing"]`` in the top-most ``conftest.py``, or
``pytest -p casa_hub.testing``. Then::

    def test_a_member_gets_a_macaroon(casa_idp, casa_hub_factory):
        hub = casa_hub_factory(Path("jupyterhub_config.py")).start()
        casa_idp.put_user("sub-of-ada", preferred_username="ada", **{"wlcg.groups": ["/cms/uscms"]})
        browser = hub.browser()
        assert browser.log_in("sub-of-ada").ok
        assert browser.spawn().ok
        assert "xcache_token" in hub.given("ada").files

``casa_idp`` is an `IdP`: a test sets its users, their claims and its failures. ``casa_hub_factory`` makes a
`FacilityHub` of a configuration: a file, its text, or ``hub.config`` of Zero to JupyterHub's values. A hub and its
servers run on this machine (Linux) as processes of the tests' user, with keys made for the test; see docs/testing.md.
"""

from importlib.util import find_spec

for _name in ("oidc_provider_mock", "pytest", "requests"):
    if find_spec(_name) is None:
        raise ModuleNotFoundError(f"casa_hub.testing needs {_name}: pip install 'casa_hub[testing]'", name=_name)

from casa_hub.testing.browser import Browser
from casa_hub.testing.facility import FacilityHub, Given
from casa_hub.testing.fixtures import MakeHub, casa_hub_factory, casa_idp, pytest_configure
from casa_hub.testing.hub import Hub
from casa_hub.testing.idp import IdP

__all__ = [
    "Browser",
    "FacilityHub",
    "Given",
    "Hub",
    "IdP",
    "MakeHub",
    "casa_hub_factory",
    "casa_idp",
    "pytest_configure",
]
