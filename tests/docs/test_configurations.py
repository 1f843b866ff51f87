"""Each configuration on the pages is one: it can be read, its settings exist, its values are of their types.

A block of YAML is the values of Zero to JupyterHub if it has `hub`, a configuration if it has one of our sections; a
block of Python is one if it sets `c.SECTION.SETTING`.
"""

from __future__ import annotations

import ast
from typing import Any

import pytest
import yaml
from jupyterhub.app import JupyterHub
from jupyterhub.crypto import CryptKeeper
from jupyterhub.spawner import Spawner
from kubespawner import KubeSpawner
from oauthenticator.generic import GenericOAuthenticator
from traitlets import HasTraits
from traitlets.config import Config, Configurable

from casa_hub.authenticator import CasaOAuthenticator
from casa_hub.local_spawner import CasaLocalSpawner
from casa_hub.spawner import CasaSpawner
from casa_hub.startup import sections
from casa_hub.unknown_keys import unknown_keys
from tests.docs.pages import ROOT, Block, blocks

OURS = sections(CasaOAuthenticator, CasaSpawner, CasaLocalSpawner)
CLASSES: list[type[Configurable]] = [
    *OURS, JupyterHub, CryptKeeper, Spawner, KubeSpawner, GenericOAuthenticator
]  # fmt: skip
BY_NAME = {cls.__name__: cls for cls in CLASSES}
#: Stands for what a block computes when it is run (``open(...)``).
COMPUTED = object()


def settings(block: Block) -> dict[str, dict[str, Any]]:
    """Section -> setting -> value."""
    if block.language == "python":
        return _assigned(ast.parse(block.content))
    document = yaml.safe_load(block.content)
    if not isinstance(document, dict):
        return {}
    if "hub" in document:
        config = document["hub"].get("config", {})
    else:
        config = document if any(name in BY_NAME for name in document) else {}
    return {name: section for name, section in config.items() if isinstance(section, dict)}


def _assigned(tree: ast.Module) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for node in ast.walk(tree):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            match target:
                case ast.Attribute(value=ast.Attribute(value=ast.Name(id="c"), attr=section), attr=setting):
                    try:
                        value = ast.literal_eval(node.value)  # type: ignore[attr-defined]
                    except ValueError:
                        value = COMPUTED
                    found.setdefault(section, {})[setting] = value
    return found


def configurations() -> list[Any]:
    return [pytest.param(block, id=block.where) for block in blocks() if block.language in {"yaml", "python"}]


@pytest.mark.parametrize("block", configurations())
def test_it_can_be_read_and_every_setting_exists(block: Block) -> None:
    found = settings(block)
    assert not unknown_keys(Config(found), CLASSES)
    for name, section in found.items():
        for setting, value in section.items():
            if name in BY_NAME and value is not COMPUTED:
                BY_NAME[name].class_traits(config=True)[setting].validate(HasTraits(), value)


def test_some_of_them_are_configurations() -> None:
    """Else a change of how they are told would go unseen."""
    told = [set(settings(param.values[0])) for param in configurations()]
    assert sum(bool(one & {cls.__name__ for cls in OURS}) for one in told) >= 4


@pytest.mark.parametrize(
    ("language", "content"),
    [
        ("yaml", "hub: {config: {XCache: {sitename: T2}}}"),
        ("yaml", "CasaOAuthenticator: {alowed_groups: [/cms]}"),
        ("python", "c.Facilty.credentials = []"),
        ("python", 'c.XCache.port = "many"'),
    ],
)
def test_a_wrong_one_would_be_seen(language: str, content: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 - an assertion or a TraitError
        test_it_can_be_read_and_every_setting_exists(Block(ROOT / "README.md", 1, language, content))
