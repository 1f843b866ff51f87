"""The spawner of a cluster: servers are pods, each with its credentials, Service and route.

`CredentialsMixin` adds credentials to KubeSpawner, in `CasaSpawner` or in a site's own class (`casa_hub.hooks`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

from jupyterhub.utils import maybe_future
from kubespawner import KubeSpawner

from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery
from casa_hub.delivery.removals import Removal
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.errors import Problem, Severity
from casa_hub.hub import ADDED, CasaHub, Home
from casa_hub.jupyterhub import RefusedStart
from casa_hub.pod_server import PodServer
from casa_hub.policy.limits import Asked
from casa_hub.policy.profiles import choosable
from casa_hub.policy.reading import POD
from casa_hub.policy.settings import names_of
from casa_hub.progress import Steps, without
from casa_hub.servers import rules
from casa_hub.startup import not_the_hubs_fault, on_hub_start
from casa_hub.unknown_keys import is_set

_Base: Any = KubeSpawner if TYPE_CHECKING else object


class CredentialsMixin(Home, _Base):  # type: ignore[misc]
    """Gives the servers of a KubeSpawner working credentials of their own, in `Facility.secrets_path`.

    Operators use KubeSpawner's settings and hooks as usual. `modify_pod_hook` sees the pod before this class adds its
    parts, so the hook's containers get the files, too. `after_pod_created_hook` is called when Secret, Service and
    route exist. Variables in `environment`, also of a profile, win over ours.

    The pod's annotations have its record (`casa_hub.delivery.kubernetes.manifests`). A restarted hub relies on them,
    because JupyterHub saves a spawner's state only after the start.
    """

    casa_classes: ClassVar = (KubernetesDelivery, TraefikRoutes)

    @classmethod
    def make_delivery(cls, hub: CasaHub) -> KubernetesDelivery:
        return KubernetesDelivery.of_spawners(cls, hub.facility, hub.app.config)

    @classmethod
    def check_hub(cls, hub: CasaHub) -> list[Problem]:
        return hub.delivery(KubernetesDelivery).check(routes=hub.facility.wants_routes)

    @classmethod
    def begin_hub(cls, hub: CasaHub) -> None:
        """Begin to look for half-made pods of the previous hub process; the hub's start doesn't wait for it."""
        hub.delivery(KubernetesDelivery).begin(hub.app, cls)

    @classmethod
    async def collect_garbage(cls, hub: CasaHub, *, dry_run: bool) -> list[Removal]:
        return await hub.delivery(KubernetesDelivery).collect_garbage(dry_run=dry_run)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._steps = Steps()
        #: Whether the options of the start under way are applied.
        self._loaded = False
        super().__init__(*args, **kwargs)

    @classmethod
    def section_names(cls) -> list[str]:
        """As in the base class, but each name once: a class made by `casa_hub.hooks` has the name of its base class.

        traitlets reads a section for each name. With a name twice, it would append to lists twice
        (``c.KubeSpawner.volumes``).
        """
        return list(dict.fromkeys(super().section_names()))

    @cached_property
    def casa_server(self) -> PodServer:
        """The server, for renewals, mending and revocations (`casa_hub.servers.running.RunningServer`)."""
        return PodServer(self)

    # -- start

    async def _start(self) -> str:
        """Mint credentials, then create the pod and its objects. If any of it fails, the pod is removed again.

        The authenticator's `pre_spawn_start` has already checked the membership.
        """
        try:
            self._loaded = False
            await self.load_user_options()
            for number, sentence in enumerate(await self.casa_server.mint(partial(self._steps.say, 3))):
                self._steps.say(min(5 + 3 * number, 20), sentence)
            url: str = await super()._start()
        except BaseException as error:
            await asyncio.shield(self.casa_server.take_down())
            not_the_hubs_fault(error, self.user.settings["app"])
            raise
        self.casa_server.started()
        return url

    async def load_user_options(self) -> None:
        """As in the base class, within the rules of the server's owner. Raises RefusedStart.

        Once a start: `_start` calls it before anything is minted, and KubeSpawner's own calls it again. A profile that
        is applied twice may add a volume twice.
        """
        if self._loaded:
            return
        profiles = await self._all_profiles()
        if profiles:
            known = [one["slug"] for one in super()._get_initialized_profile_list(profiles)]
            may = self._get_initialized_profile_list(profiles)
            rules.check_profile(self, self.casa_server.facility.policy, may, known)
        await super().load_user_options()
        self._add_parts()
        self.casa_server.admit(self._beside())
        self._loaded = True

    async def _all_profiles(self) -> list[Any]:
        """The setting `profile_list`, whoever the server is for."""
        profiles = self.profile_list
        return list(await maybe_future(profiles(self)) if callable(profiles) else self._sorted_dict_values(profiles))

    def _get_initialized_profile_list(self, profile_list: list[Any]) -> list[Any]:
        """As in the base class, but only what the server's owner may choose: for the form and for starts alike."""
        profiles = super()._get_initialized_profile_list(profile_list)
        on_hub_start(self.user.settings["app"])
        may: list[Any] = choosable(profiles, self.casa_server.entitlement, set(names_of(self.user)))
        return may

    async def get_options_form(self) -> Any:
        """As in the base class, but rendered each time: the user may have other groups than when it was last shown."""
        profiles = self.profile_list
        if not profiles or callable(profiles) or is_set(self.config, type(self), "options_form"):
            return await super().get_options_form()
        profiles = self._sorted_dict_values(profiles)
        # Without anything to choose from, JupyterHub starts at once, and the start says why it can't.
        return self._render_options_form(profiles) if self._get_initialized_profile_list(profiles) else ""

    def _beside(self) -> Asked:
        """What the containers of the setting `extra_containers` ask for. Raises RefusedStart for what is no amount."""
        try:
            return Asked.of_pod({"spec": {"containers": list(self._sorted_dict_values(self.extra_containers))}})
        except ValueError as error:
            raise RefusedStart(
                f"KubeSpawner.extra_containers: {error}. Tell the operator of this hub.", "limit"
            ) from None

    def _add_parts(self) -> None:
        """Add the parts of the pod that the owner's rules have."""
        for name, said in self.casa_server.entitlement.pod.items():
            has = getattr(self, name)
            if POD[name]:
                setattr(self, name, {**has, **said.value})
            else:
                old = list(self._sorted_dict_values(has))
                setattr(self, name, old + [part for part in said.value if part not in old])

    async def _make_create_pod_request(self, pod: Any, request_timeout: float) -> bool:  # noqa: ARG002
        """As in the base class, but also create at once the objects that the pod owns.

        They need the pod's uid, which the answer has. `after_pod_created_hook` is called 0.2 s later or more.
        """
        await asyncio.sleep(0)  # as in `mint`: KubeSpawner may have just made a hundred pods
        # Once more, as `modify_pod_hook` and a site's own class have left it.
        manifest = self.api.api_client.sanitize_for_serialization(pod)
        rules.check_amounts(self, self.casa_server.facility.policy, partial(Asked.of_pod, manifest))
        self.casa_server.dress(pod)
        missing = await self.casa_server.launch(self.api.api_client.sanitize_for_serialization(pod))
        self._steps.say(25, "Pod created, with what it needs")
        for kind, error in missing.items():
            self.log.warning("No %s for %s: %s", kind, self.casa_server.server.identity, error)
            self._steps.say(26, without(f"{kind}, so Dask can't be reached from outside", error))
        return True

    async def _start_reflector(self, *args: Any, **kwargs: Any) -> Any:
        """As in the base class, but not cancelled, because all spawns of this hub wait for the reflector's first load.

        A spawn page starts one, too, and JupyterHub cancels the page's work when the spawn fails, perhaps at once.
        """
        return await asyncio.shield(super()._start_reflector(*args, **kwargs))

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Our steps, and Kubernetes' events below."""
        async for event in self._steps.follow(beside=super().progress()):
            yield event

    # -- after a restart of the hub: the state matters for renamed users; all else is in the pod's annotations

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state()
        return state | self.casa_server.state

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        on_hub_start(self.user.settings["app"])  # with another authenticator, nobody else would before the next start
        self.casa_server.load_state(state)

    def clear_state(self) -> None:
        super().clear_state()
        self.casa_server.clear_state()

    # -- while it runs

    def is_pod_running(self, pod: Any) -> bool:
        """As in the base class, but False for the pod of an earlier start, which a late watch may still show."""
        return self.casa_server.may_run(pod) and bool(super().is_pod_running(pod))

    async def poll(self) -> int | None:
        """As in the base class, but a pod of another server with the same name doesn't count."""
        await self.casa_server.delivery.first_look()
        status: int | None = await super().poll()
        return 1 if status is None and not self.casa_server.has_pod() else status

    # -- the end

    async def _make_delete_pod_request(
        self,
        pod_name: str,  # noqa: ARG002
        delete_options: Any,  # noqa: ARG002
        grace_seconds: int,
        request_timeout: float,  # noqa: ARG002
    ) -> bool:
        """As in the base class, but delete the pod by its uid, so that a late stop doesn't end the next start's pod.

        Transient failures are tried again, as for all our requests.
        """
        await self.casa_server.end(grace_seconds)
        return True

    async def run_post_stop_hook(self) -> None:
        """As in the base class, and remove the secrets of a pod that stays after its end (`delete_stopped_pods`)."""
        await self.casa_server.remove()
        await maybe_future(super().run_post_stop_hook())


class CasaSpawner(CredentialsMixin, KubeSpawner):  # type: ignore[misc]
    """KubeSpawner whose servers have working credentials of their own in `Facility.secrets_path`."""

    @classmethod
    def check_hub(cls, hub: CasaHub) -> list[Problem]:
        if ADDED in hub.app.config:
            problem = f"casa_hub.hooks.install(c) does what {cls.__name__} does already"
            return [Problem(Severity.ERROR, "JupyterHub.spawner_class", problem, "Remove that line.")]
        return super().check_hub(hub)
