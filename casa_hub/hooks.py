"""For sites that keep a spawner class of their own: its servers get what those of `CasaSpawner` get.

In ``jupyterhub_config.py``::

    import casa_hub.hooks
    casa_hub.hooks.install(c)

The line may stand anywhere: it is about the spawner class that the hub has in the end, whether that is set before it or
after it, on the command line, or nowhere. The hub starts its servers with a subclass of that class. The site's hooks
are KubeSpawner's own, and sections of the configuration keep their names.
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
    """Have the hub add credentials to the servers of its spawner class. A second call changes nothing."""
    c[ADDED].to_spawner_class = with_credentials
    begin_with_hub()


@cache
def with_credentials(cls: type) -> type:
    """A subclass of a site's spawner class, with the same name; the class itself if there is nothing to add.

    What is ours comes right before KubeSpawner in the order of its classes. So a method that the site overrides is
    called first, and goes on to ours by `super()`, as it went on to KubeSpawner's.
    """
    if not issubclass(cls, KubeSpawner) or issubclass(cls, CredentialsMixin):
        return cls
    ours = (CredentialsMixin, KubeSpawner)
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return new_class(
        cls.__name__, ours if cls is KubeSpawner else (cls, *ours), exec_body=lambda body: body.update(names)
    )
