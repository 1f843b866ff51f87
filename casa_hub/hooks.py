"""For sites that keep their own spawner class: what `CasaSpawner` does, by KubeSpawner's hooks.

In ``jupyterhub_config.py``, after the site's own settings::

    import casa_hub.hooks
    casa_hub.hooks.install(c)

A hook that the site has set already is called as well: before ours where a pod is made (what it adds gets the files
too), after ours everywhere else. What CasaSpawner does and hooks can't: sentences on the spawn page, and a Secret
within milliseconds of the pod (KubeSpawner tells a hook of the pod when its watch has seen it: 0.1 s to 0.3 s later,
more when many start, and kubelet then takes 0.6 s longer).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from jupyterhub.utils import maybe_future
from kubespawner import KubeSpawner
from traitlets.config import Config

from casa_hub.configuration import value_of
from casa_hub.delivery.gc import Removal
from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.errors import CasaError, DeliveryError, Problem, Severity
from casa_hub.facility import Facility
from casa_hub.keeper.upkeep import Upkeep
from casa_hub.pod_server import PodServer
from casa_hub.startup import begin_with_hub, not_the_hubs_fault

#: Seconds between two looks for a pod that KubeSpawner has created, but whose watch still shows the one before.
_LOOK_AGAIN = 0.05


class Hook:
    """A hook of ours, with the site's own (None if it has none)."""

    #: What `casa_hub.startup` finds in the configuration, to ask it as it asks our spawner classes.
    casa_home: ClassVar[type]

    def __init__(self, ours: Callable[..., Awaitable[Any]], theirs: Callable[..., Any] | None) -> None:
        self._ours = ours
        self._theirs = theirs

    async def __call__(self, spawner: Any, *arguments: Any) -> Any:
        return await self._ours(self._call_theirs, spawner, *arguments)

    async def _call_theirs(self, *arguments: Any) -> Any:
        return None if self._theirs is None else await maybe_future(self._theirs(*arguments))


Theirs = Callable[..., Awaitable[Any]]


@contextmanager
def _not_counted(spawner: Any) -> Iterator[None]:
    """What fails in here for a reason of ours: see `not_the_hubs_fault`."""
    try:
        yield
    except CasaError as error:
        not_the_hubs_fault(error, spawner.user.settings["app"])
        raise


async def _pre_spawn(theirs: Theirs, spawner: Any) -> None:
    """Credentials are minted. The membership has been checked by the authenticator's `pre_spawn_start`."""
    with _not_counted(spawner):
        try:
            sentences = await PodServer.of(spawner).mint()
        except DeliveryError:
            # What has the pod's name is a renamed user's, and KubeSpawner would end it with the failed start. It
            # gives itself the name again afterwards (`clear_state`).
            spawner.pod_name += "-refused"
            raise
        for sentence in sentences:
            spawner.log.info("%s: %s", spawner._log_name, sentence)  # noqa: SLF001 - JupyterHub's name for logs
    await theirs(spawner)


async def _modify_pod(theirs: Theirs, spawner: Any, pod: Any) -> Any:
    changed = await theirs(spawner, pod)
    pod = pod if changed is None else changed
    with _not_counted(spawner):
        PodServer.of(spawner).dress(pod)
    return pod


async def _after_pod_created(theirs: Theirs, spawner: Any, pod: Any) -> None:
    """KubeSpawner stops the pod if this raises."""
    server = PodServer.of(spawner)
    with _not_counted(spawner):
        async with asyncio.timeout(spawner.k8s_api_request_retry_timeout):
            while not server.is_this_start(pod):  # the watch is late and shows the pod of the start before
                await asyncio.sleep(_LOOK_AGAIN)
                pod = server.pod()
        for kind, error in (await server.deliver(pod)).items():
            spawner.log.warning("No %s for %s: %s", kind, server.server.identity, error)
    await theirs(spawner, pod)


async def _post_stop(theirs: Theirs, spawner: Any) -> None:
    await PodServer.of(spawner).withdraw_ended()
    await theirs(spawner)


_OURS: dict[str, Callable[..., Awaitable[Any]]] = {
    "pre_spawn_hook": _pre_spawn,
    "modify_pod_hook": _modify_pod,
    "after_pod_created_hook": _after_pod_created,
    "post_stop_hook": _post_stop,
}


def install(c: Config) -> None:
    """Set KubeSpawner's four hooks to ours, which call those that `c` has so far. A second call changes nothing."""
    for slot, ours in _OURS.items():
        sections = [section for section in c.values() if isinstance(section, Config) and slot in section]
        # The most specific section wins, so each that has a hook gets ours.
        for section in sections or [c.KubeSpawner]:
            theirs = section.get(slot)
            if not isinstance(theirs, Hook):
                section[slot] = Hook(ours, theirs)
    begin_with_hub()


def installed(config: Config) -> bool:
    """Whether `install` was called for this configuration."""
    return any(
        isinstance(value, Hook)
        for section in config.values()
        if isinstance(section, Config)
        for value in section.values()
    )


class HookedSpawner:
    """What `casa_hub.startup` asks of a spawner class, for one that has hooks instead."""

    casa_classes: ClassVar = (KubernetesDelivery, TraefikRoutes)

    @staticmethod
    def check_hub(app: Any, facility: Facility) -> list[Problem]:
        """What is wrong with the hub's configuration."""
        cls = app.spawner_class
        if not issubclass(cls, KubeSpawner):
            problem = f"casa_hub.hooks.install(c) is for KubeSpawner and its subclasses, not for {cls.__name__}"
            return [Problem(Severity.ERROR, "JupyterHub.spawner_class", problem, "Choose one of them.")]
        problems = KubernetesDelivery.in_settings(app.tornado_settings, app.config, cls).check(
            routes=facility.wants_routes
        )
        for slot in _OURS:
            if not isinstance(value_of(app.config, cls, slot), Hook):
                problem = "it was set after casa_hub.hooks.install(c), so servers would get no credentials"
                remedy = "Set it before that line; it is called then, too."
                problems.append(Problem(Severity.ERROR, f"{cls.__name__}.{slot}", problem, remedy))
        return problems

    @staticmethod
    async def collect_garbage(app: Any, facility: Facility, *, dry_run: bool) -> list[Removal]:
        """As `CasaSpawner.collect_garbage`."""
        delivery = KubernetesDelivery.in_settings(app.tornado_settings, app.config, app.spawner_class)
        return await delivery.collect_garbage(facility, dry_run=dry_run)

    @staticmethod
    def begin_hub(app: Any, facility: Facility) -> None:
        """See to pods that an earlier hub left half made; and give the class what the Keeper and authenticator use."""
        cls = app.spawner_class
        KubernetesDelivery.in_settings(app.tornado_settings, app.config, cls).begin(app, facility, cls)
        cls.casa_kept = property(PodServer.of)
        cls.renew_credentials = _renew_credentials
        _keep_with_state(cls)


Hook.casa_home = HookedSpawner


def _keep_with_state(cls: Any) -> None:
    """Let a spawner's state say which start runs: a user may be renamed, and KubeSpawner has no hook for that."""
    get_state, load_state, clear_state = cls.get_state, cls.load_state, cls.clear_state

    def get(spawner: Any) -> dict[str, Any]:
        return {**get_state(spawner), **PodServer.of(spawner).state}

    def load(spawner: Any, state: dict[str, Any]) -> None:
        load_state(spawner, state)
        PodServer.of(spawner).load_state(state)

    def clear(spawner: Any) -> None:
        clear_state(spawner)
        PodServer.of(spawner).clear_state()

    cls.get_state, cls.load_state, cls.clear_state = get, load, clear


async def _renew_credentials(spawner: Any, names: Collection[str]) -> None:
    await Upkeep.of(spawner.user.settings).renewals.bring(spawner, names)
