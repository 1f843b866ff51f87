"""For sites with their own spawner class: its servers get the same as servers of `CasaSpawner`.

In ``jupyterhub_config.py``::

    import casa_hub.hooks
    casa_hub.hooks.install(c)

The line may stand anywhere in the file. It works for the spawner class that the hub finally has, whether the class is
set before or after the line, on the command line, or not at all. The hub then starts servers with a subclass of that
class. KubeSpawner's hooks and the sections of the configuration keep their names.
"""

from __future__ import annotations

from functools import cache
from types import new_class

from kubespawner import KubeSpawner
from traitlets.config import Config

from casa_hub.hub import ADDED
from casa_hub.spawner import CredentialsMixin
from casa_hub.startup import begin_with_hub


def install(c: Config) -> None:
    """Make the hub add credentials to the servers of its spawner class. A second call changes nothing."""
    c[ADDED].to_spawner_class = with_credentials
    begin_with_hub()


@cache
def with_credentials(cls: type) -> type:
    """A subclass of a site's spawner class with the same name, or the class itself if nothing has to be added.

    Our mixin comes right before KubeSpawner in the order of base classes. So a method that the site overrides is called
    first, and its `super()` calls ours, which calls KubeSpawner's.
    """
    if not issubclass(cls, KubeSpawner) or issubclass(cls, CredentialsMixin):
        return cls
    ours = (CredentialsMixin, KubeSpawner)
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return new_class(
        cls.__name__, ours if cls is KubeSpawner else (cls, *ours), exec_body=lambda body: body.update(names)
    )
