"""What is changed in a server's pod: files, environment, labels, annotations. Pure.

The pod is KubeSpawner's, and an operator's ``modify_pod_hook`` may have been at it: below the pod's own spec, any part
may be a model of the client or the same as a dict (``extra_containers`` are models with dicts inside), and may be
shared with other servers' pods. So containers are replaced by changed copies, and lists by new ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from kubernetes_asyncio.client.models import (
    V1Capabilities,
    V1Container,
    V1EmptyDirVolumeSource,
    V1EnvVar,
    V1ExecAction,
    V1KeyToPath,
    V1Lifecycle,
    V1LifecycleHandler,
    V1Pod,
    V1ResourceRequirements,
    V1SeccompProfile,
    V1SecretVolumeSource,
    V1SecurityContext,
    V1Volume,
    V1VolumeMount,
)

from casa_hub.delivery.kubernetes.manifests import key
from casa_hub.errors import DeliveryError

#: Name of the sidecar, and of the volume with the files. Names that begin with ``casa-hub-`` are ours in a pod.
FILES = "casa-hub-files"
#: The volume with the Secret itself, where a sidecar copies it.
SECRET = "casa-hub-secret"  # noqa: S105

#: Where the sidecar has the two volumes.
_SOURCE, _TARGET = "/casa-hub/secret", "/casa-hub/files"
#: Two sets of the largest Secret (1 MiB), in pages of 4 KiB; it counts against the memory limit of the sidecar.
_SIZE = "8Mi"

#: Enough for a shell: it takes 5 MiB, and less than a thousandth of a core. But a lower limit on CPU delays the server,
#: for a container's start needs more: 0.1 s with 200m, 0.5 s with 100m. A pod whose other containers have limits equal
#: to their requests is "Guaranteed" to Kubernetes only if these are equal too.
RESOURCES: Mapping[str, Any] = {
    "requests": {"cpu": "1m", "memory": "8Mi"},
    "limits": {"cpu": "500m", "memory": "32Mi"},
}

#: The uid that images which start as root take on where no NB_UID is set (Jupyter's docker-stacks).
_NB_UID = 1000


@dataclass(frozen=True, slots=True)
class Outfit:
    """What the pod of a start is given."""

    #: Name of the Secret with its files; empty if it gets none.
    secret: str
    #: The files that are known now. A plain mount shows these only, also later.
    paths: Sequence[str]
    #: `Facility.secrets_path`.
    directory: PurePosixPath
    #: Depends on the server and not on the start, so what an earlier patch put there can stay.
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The container that keeps a copy of the Secret which belongs to the server's user."""

    #: Empty: the notebook container's own. It needs no more than a POSIX shell with cat, mkdir, ln, mv, rm and sleep.
    image: str = ""
    #: The uid that the files belong to; None: see `_uid`.
    uid: int | None = None
    resources: Mapping[str, Any] = field(default_factory=lambda: RESOURCES)


def patch(pod: V1Pod, outfit: Outfit, sidecar: Sidecar | None) -> None:
    """Give `pod` its files by a sidecar, or by a plain mount of the Secret where `sidecar` is None.

    Files and environment reach every container and the operator's own native sidecars, but no ordinary init container:
    those may run privileged and from images that have nothing to do with the user. What a container has already stays;
    of two values of an environment variable, its own. Patched again, for the same start or the next, a pod is as if
    patched once.

    Raises:
        DeliveryError: a container has something else where the files go; the pod is unchanged then.
    """
    spec = pod.spec
    mounts = _mounts(outfit.directory) if outfit.secret else []
    init: list[Any] = [part for part in spec.init_containers or [] if _get(part, "name") != FILES]
    served = [*spec.containers, *filter(_restarts, init)]
    for container in served:
        _check_mounts(pod, container, mounts)

    spec.containers = [_equip(container, mounts, outfit.environment) for container in spec.containers]
    init = [_equip(part, mounts, outfit.environment) if _restarts(part) else part for part in init]
    volumes = [volume for volume in spec.volumes or [] if _get(volume, "name") not in (FILES, SECRET)]
    if outfit.secret and sidecar:
        memory = V1EmptyDirVolumeSource(medium="Memory", size_limit=_SIZE)
        # Files of a Secret volume are root's, whoever reads them; of all containers, only the sidecar sees these.
        secret = V1SecretVolumeSource(secret_name=outfit.secret, default_mode=0o444)
        volumes += [V1Volume(name=FILES, empty_dir=memory), V1Volume(name=SECRET, secret=secret)]
        # First: what the operator's init containers wait for or do may need it, and nothing is gained by being later.
        init = [_container(pod, sidecar), *init]
    elif outfit.secret:
        items = [V1KeyToPath(key=key(path), path=path) for path in outfit.paths]
        # They stay root's. With fsGroup, kubelet gives them to that group and lets it read (0440); without, only a
        # mode for everybody in the pod lets a user read them at all.
        mode = 0o444 if _get(spec.security_context, "fs_group") is None else 0o400
        secret = V1SecretVolumeSource(secret_name=outfit.secret, items=items, default_mode=mode)
        volumes.append(V1Volume(name=FILES, secret=secret))
    spec.volumes = volumes
    spec.init_containers = init or None  # type: ignore[assignment]
    pod.metadata.labels = {**(pod.metadata.labels or {}), **outfit.labels}
    pod.metadata.annotations = {**(pod.metadata.annotations or {}), **outfit.annotations}


def _mounts(directory: PurePosixPath) -> list[V1VolumeMount]:
    paths = directory, directory.with_name(f"{directory.name}-chown")
    return [V1VolumeMount(name=FILES, mount_path=str(path), read_only=True) for path in paths]


def _check_mounts(pod: V1Pod, container: Any, mounts: Iterable[V1VolumeMount]) -> None:
    """Two mounts at one path are refused by Kubernetes; one below a read-only one fails on the node."""
    ours = [PurePosixPath(mount.mount_path) for mount in mounts]
    for mount in _get(container, "volume_mounts") or []:
        path = PurePosixPath(_get(mount, "mount_path"))
        if _get(mount, "name") != FILES and any(path.is_relative_to(one) for one in ours):
            raise DeliveryError(
                f"container {_get(container, 'name')} of pod {pod.metadata.name}",
                f"it mounts {_get(mount, 'name')} at {path}, where the secret files go",
                "Mount it elsewhere, or set Facility.secrets_path to another directory.",
            )


def _equip(container: Any, mounts: Iterable[V1VolumeMount], environment: Mapping[str, str]) -> Any:
    own = _get(container, "env") or []
    names = {_get(variable, "name") for variable in own}
    # In front, so that the container's own can refer to them. "$$" is Kubernetes' way to write a "$".
    more = [V1EnvVar(name, value.replace("$", "$$")) for name, value in environment.items() if name not in names]
    others = [mount for mount in _get(container, "volume_mounts") or [] if _get(mount, "name") != FILES]
    return _changed(container, env=[*more, *own], volume_mounts=[*others, *mounts])


def _container(pod: V1Pod, sidecar: Sidecar) -> V1Container:
    """The sidecar.

    Kubelet goes on to the next container when this one's postStart hook is done and it has looked at the pod again.
    From the pod's creation to ready, medians of 12 on one node (2 cores): 0.57 s with a plain mount, 0.77 s with
    this sidecar, 2.07 s with a startup probe instead of the hook. Kubelets before 1.36 look once a second only: 0.98 s,
    2.00 s and 2.98 s. Deleted, the pod is gone after the same time, 1.0-1.1 s.
    """
    notebook = _notebook(pod)
    own_image = not sidecar.image
    return V1Container(
        name=FILES,
        image=sidecar.image or _get(notebook, "image"),
        image_pull_policy=_get(notebook, "image_pull_policy") if own_image else None,
        restart_policy="Always",
        # The image's own may be a home that only the image's user may enter; the notebook has a volume there.
        working_dir="/",
        command=["sh", "-c", _script().replace("$", "$$"), FILES, _SOURCE, _TARGET],
        lifecycle=V1Lifecycle(
            post_start=V1LifecycleHandler(
                _exec=V1ExecAction(
                    command=["sh", "-c", f"until [ -e {_TARGET}/..ready ]; do sleep 0.02 || sleep 1; done"]
                )
            )
        ),
        resources=V1ResourceRequirements(**sidecar.resources),
        # What Pod Security's "restricted" and OKD's restricted-v2 ask for, whatever the pod's own context says.
        security_context=V1SecurityContext(
            run_as_user=_uid(pod, sidecar),
            run_as_non_root=True,
            allow_privilege_escalation=False,
            privileged=False,
            read_only_root_filesystem=True,
            capabilities=V1Capabilities(drop=["ALL"]),
            seccomp_profile=V1SeccompProfile(type="RuntimeDefault"),
        ),
        volume_mounts=[
            V1VolumeMount(name=SECRET, mount_path=_SOURCE, read_only=True),
            V1VolumeMount(name=FILES, mount_path=_TARGET),
        ],
    )


def _uid(pod: V1Pod, sidecar: Sidecar) -> int | None:
    """Whose the files are: the setting, else who the notebook container runs as.

    Where that is root, as in images that begin as root and go on as NB_UID: that variable's value, else 1000. Where
    nothing says it, None: the image's user, or what OKD gives the namespace, is the same for both containers then. (If
    that is root, or a name and no number, kubelet refuses to start the sidecar: only the setting helps.)
    """
    if sidecar.uid is not None:
        return sidecar.uid
    notebook = _notebook(pod)
    uid = _get(_get(notebook, "security_context"), "run_as_user")
    if uid is None:
        uid = _get(pod.spec.security_context, "run_as_user")
    if uid != 0:
        return None if uid is None else int(uid)
    values = {_get(variable, "name"): _get(variable, "value") for variable in _get(notebook, "env") or []}
    named = str(values.get("NB_UID"))
    return int(named) if named.isdecimal() and int(named) > 0 else _NB_UID


def _notebook(pod: V1Pod) -> Any:
    """The container with the server: KubeSpawner calls it so, and puts it first."""
    containers = pod.spec.containers
    return next((one for one in containers if _get(one, "name") == "notebook"), containers[0])


def _restarts(container: Any) -> bool:
    """Whether an init container is a native sidecar."""
    return bool(_get(container, "restart_policy") == "Always")


def _get(part: Any, attribute: str) -> Any:
    """An attribute of a model, or of a dict in JSON's spelling; None of what isn't there."""
    return part.get(_json(attribute)) if isinstance(part, Mapping) else getattr(part, attribute, None)


def _changed(part: Any, **attributes: Any) -> Any:
    """A copy with other attributes."""
    if isinstance(part, Mapping):
        return {**part, **{_json(name): value for name, value in attributes.items()}}
    changed = copy.copy(part)
    for name, value in attributes.items():
        setattr(changed, name, value)
    return changed


def _json(attribute: str) -> str:
    first, *others = attribute.split("_")
    return first + "".join(map(str.capitalize, others))


@cache
def _script() -> str:
    """``sidecar.sh`` without its comments: each running pod carries it, also in the hub's memory."""
    text = files("casa_hub.delivery.kubernetes").joinpath("sidecar.sh").read_text()
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
