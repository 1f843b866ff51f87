"""Slips in the configuration's names are found before anything is built from them."""

import pytest
from jupyterhub.app import JupyterHub
from kubespawner import KubeSpawner
from oauthenticator.generic import GenericOAuthenticator
from traitlets import Bool, Int, Unicode
from traitlets.config import Config, Configurable
from traitlets.config.loader import DeferredConfigString

from casa_hub.facility import Facility as RealFacility
from casa_hub.local_spawner import CasaLocalSpawner
from casa_hub.unknown_keys import did_you_mean, is_set, unknown_keys, value_of

pytestmark = pytest.mark.both_hubs


class Base(Configurable):
    inherited = Int(1).tag(config=True)


class XCache(Base):
    key_file = Unicode().tag(config=True)
    lifetime = Int(5).tag(config=True)
    public = Bool(False).tag(config=True)
    internal = Unicode()


class Facility(Configurable):
    hub_id = Unicode().tag(config=True)


CLASSES = [XCache, Facility]


def found(config: Config) -> list[tuple[str, str]]:
    return [(problem.thing, problem.remedy) for problem in unknown_keys(config, CLASSES)]


def test_what_is_known_is_not_mentioned() -> None:
    config = Config(
        XCache={"key_file": "k", "lifetime": 1, "inherited": 2},
        Facility={"hub_id": "x"},
        KubeSpawner={"imagePolicy": 1},
        JupyterHub={"anything": 1},
    )
    config.Facility.XCache.lifetime = 3  # a section within a section
    assert found(config) == []


@pytest.mark.parametrize(
    ("section", "key", "thing", "remedy"),
    [
        ("XCache", "keyfile", "XCache.keyfile", "Did you mean key_file?"),
        ("XCache", "lifetime_", "XCache.lifetime_", "Did you mean lifetime?"),
        ("XCache", "Lifetime", "XCache.Lifetime", "Did you mean lifetime?"),
        ("XCache", "internal", "XCache.internal", "Known are: inherited, key_file, lifetime, public."),
        ("Facility", "credentals", "Facility.credentals", "Known are: hub_id."),
        ("Xcache", "lifetime", "Xcache", "Did you mean XCache?"),
        ("X_Cache", "lifetime", "X_Cache", "Did you mean XCache?"),
        ("Facilty", "hub_id", "Facilty", "Did you mean Facility?"),
    ],
)
def test_a_slip_is_named_with_the_nearest_right_name(section: str, key: str, thing: str, remedy: str) -> None:
    assert found(Config({section: {key: 1}})) == [(thing, remedy)]


def test_slips_in_a_section_within_a_section_are_found() -> None:
    config = Config()
    config.Facility.XCache.lifetme = 1
    assert found(config) == [("Facility.XCache.lifetme", "Did you mean lifetime?")]


def test_sections_of_other_packages_are_none_of_our_business() -> None:
    others = {cls.__name__ for cls in JupyterHub().classes if not cls.__module__.startswith("casa_hub.")}
    others |= {"JupyterHub", KubeSpawner.__name__, GenericOAuthenticator.__name__}
    others |= {"Spawner", "LocalProcessSpawner", "SimpleLocalProcessSpawner", "ConfigurableHTTPProxy", "TraefikProxy"}
    config = Config({name: {"x": 1} for name in others})
    assert unknown_keys(config, [RealFacility, CasaLocalSpawner, *CasaLocalSpawner.casa_classes]) == []


def test_without_a_near_name_all_are_told() -> None:
    assert did_you_mean("zzz", ["b", "a"]) == "Known are: a, b."
    assert did_you_mean("zzz", []) == ""


def test_a_value_before_there_is_an_instance_is_the_instance_s() -> None:
    config = Config(Base={"inherited": 3}, XCache={"lifetime": 9, "public": DeferredConfigString("true")})
    instance = XCache(config=config)
    for name in ("inherited", "lifetime", "public", "key_file"):
        assert value_of(config, XCache, name) == getattr(instance, name)
        assert is_set(config, XCache, name) == (name != "key_file")
    assert value_of(Config(Base={"inherited": 3}, XCache={"inherited": 4}), XCache, "inherited") == 4
