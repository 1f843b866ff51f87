"""Pure: adds files, environment, labels and annotations to a server's pod.

KubeSpawner makes the pod, and an operator's ``modify_pod_hook`` may have changed it. Below the pod's own spec, each
part may be a model of the client or a dict (``extra_containers`` are models with dicts inside), and other servers' pods
may share it. So containers are replaced by changed copies, and lists by new lists.
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

#: Name of the sidecar, and of the volume with the files. Names in a pod that begin with ``casa-hub-`` are ours.
FILES = "casa-hub-files"
#: Name of the volume with the Secret itself, from which the sidecar copies.
SECRET = "casa-hub-secret"  # noqa: S105

#: Mount paths of the two volumes in the sidecar.
_SOURCE, _TARGET = "/casa-hub/secret", "/casa-hub/files"
#: Room for two sets of the largest Secret (1 MiB), in pages of 4 KiB. It counts towards the sidecar's memory limit.
_SIZE = "8Mi"

#: The shell takes 5 MiB and less than a thousandth of a core. But its start needs more CPU, so a lower limit delays the
#: server: by 0.1 s with 200m, by 0.5 s with 100m. A pod has the QoS class "Guaranteed" only if requests equal limits
#: here, too.
RESOURCES: Mapping[str, Any] = {
    "requests": {"cpu": "1m", "memory": "8Mi"},
    "limits": {"cpu": "500m", "memory": "32Mi"},
}

#: The uid that Jupyter's docker-stacks, which start as root, change to if NB_UID is not set.
_NB_UID = 1000


@dataclass(frozen=True, slots=True)
class Outfit:
    """What is added to the pod of a start."""

    #: Name of the Secret with the files; "" if the pod gets none.
    secret: str
    #: Files of the Secret at the start. A plain mount never shows other files.
    paths: Sequence[str]
    #: `Facility.secrets_path`.
    directory: PurePosixPath
    #: The same for each start of a server, so variables of an earlier patch can stay.
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The container that copies the Secret's files, so that they belong to the server's user."""

    #: Needs a POSIX shell with cat, mkdir, ln, mv, rm and sleep. "": the notebook container's image.
    image: str = ""
    #: The owner of the files; None: see `_uid`.
    uid: int | None = None
    resources: Mapping[str, Any] = field(default_factory=lambda: RESOURCES)


def patch(pod: V1Pod, outfit: Outfit, sidecar: Sidecar | None) -> None:
    """Add the outfit to `pod`. Files come by a sidecar, or by a plain mount of the Secret if `sidecar` is None.

    All containers and the operator's native sidecars get files and environment. Ordinary init containers do not: they
    may run privileged, from images that have nothing to do with the user. A container's own mounts and variables win
    over ours. Patching a pod again, for the same start or the next, changes nothing more.
    Raises DeliveryError if a container mounts something else at our path; the pod is unchanged then.
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
        # Files of a Secret volume belong to root, so all may read them. Only the sidecar mounts this volume.
        secret = V1SecretVolumeSource(secret_name=outfit.secret, default_mode=0o444)
        volumes += [V1Volume(name=FILES, empty_dir=memory), V1Volume(name=SECRET, secret=secret)]
        # First, because the operator's init containers may need the files.
        init = [_container(pod, sidecar), *init]
    elif outfit.secret:
        items = [V1KeyToPath(key=key(path), path=path) for path in outfit.paths]
        # The files stay root's. With fsGroup, kubelet lets that group read them (0440). Without it, the user can only
        # read files that everybody in the pod can read.
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
    """Kubernetes refuses two mounts at one path, and a mount below a read-only mount fails on the node."""
    ours = [PurePosixPath(mount.mount_path) for mount in mounts]
    for mount in _get(container, "volume_mounts") or []:
        path = PurePosixPath(_get(mount, "mount_path"))
        if _get(mount, "name") != FILES and any(path.is_relative_to(our_path) for our_path in ours):
            raise DeliveryError(
                f"container {_get(container, 'name')} of pod {pod.metadata.name}",
                f"it mounts {_get(mount, 'name')} at {path}, where the secret files go",
                "Mount it elsewhere, or set Facility.secrets_path to another directory.",
            )


def _equip(container: Any, mounts: Iterable[V1VolumeMount], environment: Mapping[str, str]) -> Any:
    own = _get(container, "env") or []
    names = {_get(variable, "name") for variable in own}
    # In front, so that the container's own variables can refer to ours. Kubernetes writes "$" as "$$".
    ours = [V1EnvVar(name, value.replace("$", "$$")) for name, value in environment.items() if name not in names]
    others = [mount for mount in _get(container, "volume_mounts") or [] if _get(mount, "name") != FILES]
    return _changed(container, env=[*ours, *own], volume_mounts=[*others, *mounts])


def _container(pod: V1Pod, sidecar: Sidecar) -> V1Container:
    """The sidecar.

    Kubelet starts the next container when this one's postStart hook is done and it has looked at the pod again. Time
    from the pod's creation to ready, medians of 12 on one node (2 cores): 0.57 s with a plain mount, 0.77 s with this
    sidecar, 2.07 s with a startup probe instead of the hook. Kubelets before 1.36 look only once a second: 0.98 s,
    2.00 s and 2.98 s. A deletion takes the same time with all three, 1.0-1.1 s.
    """
    notebook = _notebook(pod)
    own_image = not sidecar.image
    return V1Container(
        name=FILES,
        image=sidecar.image or _get(notebook, "image"),
        image_pull_policy=_get(notebook, "image_pull_policy") if own_image else None,
        restart_policy="Always",
        # The image's own may be a home that only the image's user may enter.
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
        # As Pod Security's "restricted" and OKD's restricted-v2 demand, whatever the pod's own context says.
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
    """The owner of the files: the setting, else the user of the notebook container.

    If that is root, as for images that start as root and change to NB_UID: the value of NB_UID, else 1000. None if the
    pod sets no user: both containers then run as the image's user, or as the one that OKD gives to the namespace. (If
    the image's user is root or a name without a number, kubelet refuses to start the sidecar; only the setting helps.)
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
    """The container with the server: KubeSpawner names it ``notebook`` and puts it first."""
    containers = pod.spec.containers
    return next((each for each in containers if _get(each, "name") == "notebook"), containers[0])


def _restarts(container: Any) -> bool:
    """Whether an init container is a native sidecar."""
    return bool(_get(container, "restart_policy") == "Always")


def _get(part: Any, attribute: str) -> Any:
    """An attribute of a model, or the key of a dict in JSON's spelling; None if it is missing."""
    return part.get(_json(attribute)) if isinstance(part, Mapping) else getattr(part, attribute, None)


def _changed(part: Any, **attributes: Any) -> Any:
    """A copy with changed attributes."""
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
    """``sidecar.sh`` without its comments, because the hub keeps it in memory for each running pod."""
    text = files("casa_hub.delivery.kubernetes").joinpath("sidecar.sh").read_text()
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
