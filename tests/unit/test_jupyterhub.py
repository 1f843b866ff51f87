"""The installed JupyterHub and KubeSpawner have what `casa_hub.jupyterhub` says that this package uses of them."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import pytest
from jupyterhub import orm
from jupyterhub.app import JupyterHub
from jupyterhub.handlers import base
from jupyterhub.proxy import Proxy
from jupyterhub.spawner import Spawner
from jupyterhub.user import User
from kubespawner import KubeSpawner

from casa_hub import jupyterhub as used

#: Protocol -> the classes whose instances are used by it.
THEIRS: dict[type, tuple[type, ...]] = {
    used.OrmUser: (orm.User,),
    used.OrmSpawner: (orm.Spawner,),
    used.HubUser: (User, orm.User),
    used.HubSpawner: (Spawner,),
    used.PodSpawner: (KubeSpawner,),
    used.HubProxy: (Proxy,),
    used.HubApp: (JupyterHub,),
}


def members(protocol: type) -> Iterator[str]:
    for cls in protocol.__mro__:
        if cls.__module__ == used.__name__:
            yield from inspect.get_annotations(cls)
            called = {
                name for name, value in vars(cls).items() if inspect.isroutine(value) or isinstance(value, property)
            }
            yield from sorted(called)


def has(cls: type, name: str) -> bool:
    """Whether instances have it: by the class, or by an assignment in its module or in the handlers'."""
    if hasattr(cls, name):
        return True
    modules = [base, *(sys.modules[each.__module__] for each in cls.__mro__ if each is not object)]
    return any(re.search(rf"\b(self|spawner)\.{name}\b.* = ", inspect.getsource(module)) for module in modules)


def all_members() -> list[tuple[type, str]]:
    found = [(protocol, name) for protocol in THEIRS for name in members(protocol)]
    return [(protocol, name) for protocol, name in dict.fromkeys(found) if not name.startswith("__")]


@pytest.mark.both_hubs
@pytest.mark.parametrize(("protocol", "name"), [pytest.param(p, n, id=f"{p.__name__}.{n}") for p, n in all_members()])
def test_what_is_used_of_jupyterhub_is_there(protocol: type, name: str) -> None:
    assert any(has(cls, name) for cls in THEIRS[protocol])


def test_each_protocol_is_compared_with_a_class() -> None:
    protocols = {value for value in vars(used).values() if getattr(value, "_is_protocol", False)}
    assert {one for one in protocols if one.__module__ == used.__name__} == THEIRS.keys()
