"""`casa_hub.hooks.install(c)`: which class a hub's servers get, wherever and however the site has set its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jupyterhub.spawner import LocalProcessSpawner
from kubespawner import KubeSpawner
from traitlets.config import Config

from casa_hub.errors import Severity
from casa_hub.hooks import with_credentials
from casa_hub.hub import ADDED, CasaHub
from casa_hub.hub_config import configured_hub
from casa_hub.local_spawner import CasaLocalSpawner
from casa_hub.spawner import CasaSpawner, CredentialsMixin
from casa_hub.startup import problems, sections
from casa_hub.unknown_keys import unknown_keys, value_of

INSTALL = "import casa_hub.hooks\ncasa_hub.hooks.install(c)\n"
CLASS = """
from kubespawner import KubeSpawner
from traitlets.config import Config
class SiteSpawner(KubeSpawner):
    pass
c.JupyterHub.spawner_class = SiteSpawner
"""


def hub(tmp_path: Path, text: str) -> Any:
    file = tmp_path / "jupyterhub_config.py"
    file.write_text(text)
    return configured_hub(file)


def complaints(app: Any) -> list[str]:
    return [str(one) for one in problems(CasaHub(app)) if one.severity is Severity.ERROR]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (CLASS + INSTALL, "SiteSpawner"),
        (INSTALL + CLASS, "SiteSpawner"),
        (INSTALL + CLASS + INSTALL, "SiteSpawner"),
        ('c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"\n' + INSTALL, "KubeSpawner"),
        (INSTALL + 'c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"\n', "KubeSpawner"),
    ],
)
def test_the_sites_class_gets_credentials_wherever_it_is_set(tmp_path: Path, text: str, name: str) -> None:
    app = hub(tmp_path, text)
    cls = CasaHub(app).spawner_class
    assert issubclass(cls, CredentialsMixin)
    assert CasaHub(app).home is cls
    assert issubclass(cls, app.spawner_class)
    assert (cls.__name__, cls.__module__) == (name, app.spawner_class.__module__)
    assert CasaHub(app).spawner_class is cls
    assert with_credentials(cls) is cls
    assert complaints(app) == []


def test_a_class_on_the_command_line_counts(tmp_path: Path) -> None:
    app = hub(tmp_path, INSTALL + 'c.JupyterHub.spawner_class = "simple"\n')
    app.update_config(Config(JupyterHub={"spawner_class": "kubespawner.KubeSpawner"}))
    assert issubclass(CasaHub(app).spawner_class, CredentialsMixin)


def test_without_the_line_nothing_is_added(tmp_path: Path) -> None:
    app = hub(tmp_path, CLASS + 'c.Facility.credentials = ["xcache"]\n')
    assert CasaHub(app).spawner_class is app.spawner_class
    assert CasaHub(app).home is None
    assert ADDED not in app.config  # looking doesn't make the section
    assert any("servers of SiteSpawner would get none of Facility.credentials" in one for one in complaints(app))


@pytest.mark.parametrize(
    ("spawner", "why"),
    [
        ("simple", "is for KubeSpawner and its subclasses, not for SimpleLocalProcessSpawner"),
        ("casa", "casa_hub.hooks.install(c) does what CasaSpawner does already"),
    ],
)
def test_a_class_to_which_nothing_can_be_added_is_refused(tmp_path: Path, spawner: str, why: str) -> None:
    app = hub(tmp_path, INSTALL + f'c.JupyterHub.spawner_class = "{spawner}"\n')
    [told] = complaints(app)
    assert "JupyterHub.spawner_class" in told
    assert why in told


def test_our_classes_are_left_as_they_are() -> None:
    """A configuration that is meant for many hubs may have the line, and `casa-local` for this one."""
    for cls in (CasaSpawner, CasaLocalSpawner, LocalProcessSpawner):
        assert with_credentials(cls) is cls


async def test_sections_keep_their_names_and_each_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubespawner.spawner.load_config", lambda **_: None)  # there is no API server
    settings = """
c.SiteSpawner.image = "site/image:1"
c.KubeSpawner.image = "other/image:1"
c.SiteSpawner.volumes.append({"name": "data"})
"""
    app = hub(tmp_path, CLASS + settings + INSTALL)
    cls = CasaHub(app).spawner_class
    assert cls.section_names()[-2:] == ["KubeSpawner", "SiteSpawner"]
    for _ in range(2):  # and nothing of one server is added to the next one's
        spawner = cls(config=app.config, _mock=True)
        assert spawner.volumes == [{"name": "data"}]
        assert spawner.image == "site/image:1"
    assert value_of(app.config, cls, "image") == "site/image:1"
    assert unknown_keys(app.config, sections(cls)) == []
    json.dumps(app.config, default=repr)  # as `jupyterhub --show-config-json`


class Overriding(KubeSpawner):  # type: ignore[misc]
    pass


def test_a_method_that_the_site_overrides_goes_on_to_ours_and_ours_to_kubespawners() -> None:
    order = [cls.__name__ for cls in with_credentials(Overriding).__mro__]
    assert order[:4] == ["Overriding", "Overriding", "CredentialsMixin", "KubeSpawner"]
