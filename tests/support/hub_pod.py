"""The chart's hub without a cluster: its pod's files at their own paths, its environment, and a program run with them.

The chart's configuration reads its files by absolute paths (`/usr/local/etc/jupyterhub/...`). So a program runs in a
mount namespace of its own, where what the rendered Deployment mounts is there byte for byte; this machine's files stay
as they are.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from casa_hub.demo.packages import Unavailable

Object = dict[str, Any]
#: Where the chart mounts into the hub's pod, and the hub's working directory.
TOPS = ("/etc", "/usr/local/etc", "/srv")
#: Of this machine's /etc, what a Python program needs.
KEPT = ("passwd", "group", "hosts", "nsswitch.conf", "resolv.conf", "ssl", "ld.so.cache", "localtime")


def find(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The object of a release; there is one."""
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def content(secret: Object) -> dict[str, bytes]:
    """What a Secret or a ConfigMap holds."""
    if secret["kind"] == "ConfigMap":
        return {key: value.encode() for key, value in secret.get("data", {}).items()}
    data = {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}
    return data | {key: value.encode() for key, value in (secret.get("stringData") or {}).items()}


class File(NamedTuple):
    data: bytes
    mode: int


@dataclass(frozen=True)
class HubPod:
    """The hub's pod of a rendered release; `secrets` are the operator's own, by name."""

    objects: Sequence[Object]
    secrets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    namespace: str = "facility"

    @property
    def spec(self) -> Object:
        spec: Object = find(self.objects, "Deployment", "hub")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        (container,) = [one for one in self.spec["containers"] if one["name"] == "hub"]
        return dict(container)

    def files(self) -> dict[str, File]:
        """Path in the container -> what kubelet would mount there."""
        volumes = {volume["name"]: self._volume(volume) for volume in self.spec["volumes"]}
        found: dict[str, File] = {}
        for mount in self.container["volumeMounts"]:
            held = volumes[mount["name"]]
            path = mount["mountPath"].rstrip("/")
            if "subPath" in mount:
                if held is not None:
                    found[path] = held[mount["subPath"]]
            else:
                found |= {f"{path}/{key}": value for key, value in (held or {}).items()}
        return found

    def _volume(self, volume: Object) -> dict[str, File] | None:
        if "configMap" in volume:
            held: Mapping[str, bytes] = content(find(self.objects, "ConfigMap", volume["configMap"]["name"]))
        elif "secret" in volume:
            held = self._secret(volume["secret"]["secretName"])
        else:
            return None  # the database's
        source = volume.get("secret") or volume["configMap"]
        mode = source.get("defaultMode", 0o644)
        if "items" not in source:
            return {key: File(data, mode) for key, data in held.items()}
        return {item["path"]: File(held[item["key"]], item.get("mode", mode)) for item in source["items"]}

    def _secret(self, name: str) -> Mapping[str, bytes]:
        if name in self.secrets:
            return self.secrets[name]
        return content(find(self.objects, "Secret", name))

    def environment(self) -> dict[str, str]:
        """Variables of the container, and those that Kubernetes adds for the Services."""
        found = {}
        for service in (one for one in self.objects if one["kind"] == "Service"):
            name = service["metadata"]["name"].upper().replace("-", "_")
            found[f"{name}_SERVICE_HOST"] = "127.0.0.1"
            found[f"{name}_SERVICE_PORT"] = str(service["spec"]["ports"][0]["port"])
        for variable in self.container["env"]:
            source = variable.get("valueFrom")
            if source is None:
                found[variable["name"]] = variable["value"]
            elif "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == "metadata.namespace"
                found[variable["name"]] = self.namespace
            else:
                reference = source["secretKeyRef"]
                found[variable["name"]] = self._secret(reference["name"])[reference["key"]].decode()
        return found

    def run(
        self, command: Sequence[str], directory: Path, *, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` where the pod's files are mounted; `directory` is a fresh one.

        Raises:
            Unavailable: this machine lets nobody have a mount namespace.
        """
        for top in TOPS:
            (directory / "root" / top[1:]).mkdir(parents=True)
        for name in KEPT:
            source, target = Path("/etc", name), directory / "root" / "etc" / name
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("private"))
            elif source.exists():
                shutil.copy(source, target)
        for path, file in self.files().items():
            target = directory / "root" / path[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.data)
            target.chmod(file.mode)
        work = directory / "root" / "srv" / "jupyterhub"
        work.mkdir()
        binds = " && ".join(f"mount --bind '{directory}/root{top}' {top}" for top in TOPS)
        own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        inside = ["unshare", *own, "--mount", "sh", "-c"]
        if not shutil.which("unshare") or subprocess.run([*inside, binds], capture_output=True).returncode != 0:
            remedy = "Be root, or allow namespaces of users."
            raise Unavailable("a mount namespace", "unshare(1) and mount(8) are refused here", remedy)
        variables = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **self.environment(),
            **(environment or {}),
        }
        return subprocess.run(
            [*inside, f'{binds} && cd /srv/jupyterhub && exec "$@"', "hub", *command],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=250,
        )
