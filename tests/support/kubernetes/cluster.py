"""A real one-node Kubernetes cluster for tests: `ControlPlane`, scheduler, containerd, kubelet, kube-proxy, CoreDNS.

Everything runs as root in network, mount, process, UTS and IPC namespaces of its own, without a way out: nothing
listens in the host's network, and its sysctls, mounts, /run and /var/lib stay as they are. Only cgroups are shared with
the host: the pods' lie under one group, which goes when the cluster stops or this program ends, however it ends.

Pods, Services and the API server are reached at their own addresses from inside `Cluster.network`, and only from there.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from casa_hub.demo.packages import Unavailable
from casa_hub.demo.processes import Process, ProcessError, minimal_environment, read_log
from tests.support.kubernetes.control_plane import ControlPlane

NODE = "node"
NODE_ADDRESS = "10.100.0.1"
POD_CIDR = "10.200.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
CLUSTER_DOMAIN = "cluster.local"
PAUSE_IMAGE = "casa-hub.test/pause:1"
CGROUPS = Path("/sys/fs/cgroup")

#: Process 1 of the namespaces; when it ends, the kernel kills all others. bash reaps orphans (the shims of containerd).
INIT = r"""
set -eu
work=$1
read -r pid _ < /proc/self/stat  # as the host counts, for this is still the host's /proc
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p "$work/var-lib" "$work/var-lib.work" "$work/kubelet"
mount -t overlay -o "lowerdir=/var/lib,upperdir=$work/var-lib,workdir=$work/var-lib.work" overlay /var/lib
mkdir -p /var/lib/kubelet && mount --bind "$work/kubelet" /var/lib/kubelet && mount --make-shared /var/lib/kubelet
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys
# The kubelet insists on writing these: give it files of its own.
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
    kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    mkdir -p "/run/sysctl/${name%/*}"
    cat "/proc/sys/$name" > "/run/sysctl/$name"
    mount --bind "/run/sysctl/$name" "/proc/sys/$name"
done
hostname "$2"
ip link set lo up
ip address add "$3/32" dev lo
ip route add "$4" dev lo src "$3"
echo 1 > /proc/sys/net/ipv4/ip_forward
echo "ready $pid"
sleep infinity &
wait
"""

#: A zone file (RFC 1035) of a domain and the address of everything below it.
ZONE = """\
$ORIGIN {0}.
@ 1 IN SOA dns root 1 60 60 60 1
@ 1 IN NS dns
* 1 IN A {1}
"""

#: In containerd's directory, the directories of blobs and of layers.
STORED = ("io.containerd.content.v1.content/blobs/sha256", "io.containerd.snapshotter.v1.overlayfs/snapshots")

#: Removes directories of cgroups, from the leaves up, once their processes have gone and whoever started this has too.
REMOVE_CGROUPS = r"""
cat > /dev/null
for _ in $(seq 1200); do
    find "$@" -depth -type d -exec rmdir {} \; 2> /dev/null
    left=$(for directory; do [ -e "$directory" ] && echo "$directory"; done)
    [ -z "$left" ] && exit 0
    sleep 0.05
done
"""

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


def cgroup_roots() -> list[Path]:
    """The root of the one hierarchy (cgroup v2), or of each (v1)."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def demand_a_place_for_a_node() -> None:
    """
    Raises:
        Unavailable: this process may not do what a node does.
    """
    if os.geteuid() != 0:
        raise Unavailable("a node of Kubernetes", "needs root", "Run this as root.")
    try:
        roots = cgroup_roots()
        probes = [root / f"casa-hub-probe-{os.getpid()}" for root in roots]
        for probe in probes:
            probe.mkdir()
            probe.rmdir()
    except OSError as error:
        remedy = "In a container: give it a writable /sys/fs/cgroup (docker run --privileged)."
        raise Unavailable("a node of Kubernetes", f"can't make a cgroup: {error}", remedy) from error
    unshare = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    if unshare.returncode:
        remedy = "In a container: give it CAP_SYS_ADMIN (docker run --privileged)."
        raise Unavailable("a node of Kubernetes", f"can't make namespaces: {unshare.stderr.strip()}", remedy)


class Cluster:
    """A node and its control plane, `plane`; a context manager."""

    def __init__(
        self,
        programs: Path,
        work_dir: Path,
        *,
        system: Path,
        images: Sequence[Path] = (),
        store: Path | None = None,
        crds: Sequence[Mapping[str, Any]] = (),
        wildcards: Mapping[str, str] | None = None,
    ) -> None:
        """Args:
        programs: directory of the executables.
        work_dir: for data and logs; made if need be. Not in /run or /var/lib, which the node has its own of.
        system: tree of Debian packages: runc, ip, nft, plugins of CNI.
        images: archives to import.
        store: what containerd made of these archives (see `save_store`): taken instead, at no cost, if it lies on the
            file system of `work_dir`.
        crds: see `ControlPlane`.
        wildcards: domain -> address of all names below it, for pods; a site's DNS has such records.
        """
        self.programs = programs
        self.work_dir = work_dir.resolve()
        self.system = system
        self.images = images
        self.store = store
        self.wildcards = dict(wildcards or {})
        self.path = f"{programs}:{system}/usr/sbin:{system}/usr/bin:{os.environ['PATH']}"
        self.cgroup = f"casa-hub-test-{os.getpid()}"
        self.plane = ControlPlane(
            programs,
            self.work_dir / "plane",
            crds=crds,
            address=NODE_ADDRESS,
            service_cidr=SERVICE_CIDR,
            controllers=["*"],
            apiserver_options=["--endpoint-reconciler-type=lease", "--kubelet-preferred-address-types=InternalIP"],
            controller_options=["--node-monitor-period=1s"],
        )
        self._processes: list[Process] = []
        self._remover: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all and wait until a pod can be scheduled and its image is there."""
        self._make_namespaces()
        with self.network():
            linked = self._link_store()
            self._start_containerd()
            imports = [] if linked else self._import_images(self.images)
            self.plane.start()
            kubelet = self._start_node()
            kubelet.wait_until("the node is ready", self._node_ready, timeout=120)
            self._finish(imports)

    def save_store(self, store: Path) -> None:
        """Import the images and keep what containerd made of them, in place of `start`."""
        try:
            self._make_namespaces()
            self._start_containerd()
            self._finish(self._import_images(self.images))
        finally:
            self.stop()
        shutil.move(self.work_dir / "containerd", store)

    def add_image(self, image: Path) -> None:
        """One more archive, which may lack what images here have already."""
        self._finish(self._import_images([image]))

    def stop(self) -> None:
        self.plane.stop()
        for process in self._processes:  # process 1 of the namespaces first, and with it all that is in them
            process.stop()
        self._processes.clear()
        if self._remover is not None:
            assert self._remover.stdin is not None
            self._remover.stdin.close()
            self._remover.wait()
            self._remover = None

    @contextmanager
    def network(self) -> Iterator[None]:
        """The calling thread, and what it starts, is in the cluster's network: nothing outside is reached meanwhile."""
        outside = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(Path(f"/proc/{self._init}/ns/net"))
            try:
                yield
            finally:
                _enter(Path(f"/proc/self/fd/{outside}"))
        finally:
            os.close(outside)

    def inside(self, *command: str | Path) -> list[str]:
        """A command for a process in all namespaces of the node."""
        flags = ["--net", "--mount", "--pid", "--uts", "--ipc"]
        return ["nsenter", f"--target={self._init}", *flags, "--", *map(str, command)]

    def exec(self, namespace: str, pod: str, *command: str, container: str | None = None) -> str:
        """What a command in a container writes, by way of the API server and the kubelet."""
        choice = ["-c", container] if container else []
        return self.plane.kubectl("exec", "-n", namespace, pod, *choice, "--", *command, stderr=subprocess.STDOUT)

    def _run(self, name: str, command: Sequence[str | Path]) -> Process:
        process = Process(
            name,
            command,
            log=self.work_dir / f"{name}.log",
            env=minimal_environment(PATH=self.path, HOME=str(self.work_dir)),
            stop_signal=signal.SIGKILL,
        )
        self._processes.append(process.start())
        return process

    def _make_namespaces(self) -> None:
        self.work_dir.mkdir(parents=True, exist_ok=True)
        groups = [root / self.cgroup for root in cgroup_roots()]
        self._remover = subprocess.Popen(
            ["sh", "-c", REMOVE_CGROUPS, "sh", *groups], stdin=subprocess.PIPE, start_new_session=True
        )
        for group in groups:
            group.mkdir(exist_ok=True)
        unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        arguments = [str(self.work_dir), NODE, NODE_ADDRESS, SERVICE_CIDR]
        init = self._run("init", [*unshare, "bash", "-c", INIT, "init", *arguments])
        last = init.wait_until("its namespaces", lambda: [s for s in read_log(init.log).split() if s.isdecimal()])
        self._init = int(last[-1])

    def _start_containerd(self) -> None:
        config = self.work_dir / "containerd.toml"
        config.write_text(
            f"""
version = 3
root = "{self.work_dir}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  # Without CAP_SYS_RESOURCE, runc dies when the kubelet wants an OOM score below the present one.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{self.system}/usr/lib/cni"]
    conf_dir = "{self.work_dir}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""
        )
        # Point-to-point links, not a bridge: what pods of one node say to each other by way of a Service then passes
        # the node's packet filter without br_netfilter, whose switch would be a sysctl of the host.
        ranges = {"type": "host-local", "ranges": [[{"subnet": POD_CIDR}]], "routes": [{"dst": "0.0.0.0/0"}]}
        network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": ranges}]}
        (self.work_dir / "cni").mkdir(exist_ok=True)
        (self.work_dir / "cni" / "10-pods.conflist").write_text(json.dumps(network))
        containerd = self._run("containerd", self.inside(self.programs / "containerd", "--config", config))
        containerd.wait_until("its socket", Path(f"/proc/{self._init}/root/run/containerd/containerd.sock").exists)

    def _link_store(self) -> bool:
        """Whether there was a store. Links do, across file systems too: containerd writes to no blob and no layer a
        second time, and where it removes one it removes the link.
        """
        if self.store is None:
            return False
        root = self.work_dir / "containerd"
        shutil.copytree(self.store, root, ignore=self._linked)
        for part in STORED:
            for path in (self.store / part).iterdir():
                (root / part / path.name).symlink_to(path)
        return True

    def _linked(self, directory: str, names: list[str]) -> list[str]:
        """The names of what isn't copied."""
        return names if Path(directory).relative_to(self.store or "").as_posix() in STORED else []

    def _import_images(self, images: Sequence[Path]) -> list[Process]:
        ctr = self.inside(self.programs / "ctr", "--namespace=k8s.io", "images", "import", "--local")
        return [self._run(f"import-{image.stem}", [*ctr, str(image)]) for image in images]

    def _finish(self, imports: Sequence[Process]) -> None:
        for process in imports:
            if process.wait(120) != 0:
                raise ProcessError(process.name, "can't import an image", process.last_lines())

    def _start_node(self) -> Process:
        def kubeconfig(name: str, user: str, group: str | None = None) -> Path:
            return self.plane.write_kubeconfig(
                self.work_dir / f"{name}.kubeconfig", self.plane.issue(name, user, group)
            )

        def write(name: str, content: dict[str, Any] | str) -> Path:
            path = self.work_dir / name
            path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
            return path

        kubelet = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_ADDRESS,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(self.plane.ca_path)},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "clusterDNS": [NODE_ADDRESS],
            "clusterDomain": CLUSTER_DOMAIN,
            "resolvConf": str(write("resolv.conf", "")),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "evictionHard": dict.fromkeys(("memory.available", "nodefs.available", "imagefs.available"), "0%"),
            "imageGCHighThresholdPercent": 100,
            "podLogsDir": str(self.work_dir / "pod-logs"),
            "volumePluginDir": str(self.work_dir / "volume-plugins"),
            # A changed Secret reaches its volume at the next sync of the pod.
            "configMapAndSecretChangeDetectionStrategy": "Watch",
            "syncFrequency": "1s",
            "nodeStatusUpdateFrequency": "2s",
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
        }
        proxy = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": POD_CIDR,
            "clientConnection": {"kubeconfig": str(kubeconfig("kube-proxy", "system:kube-proxy"))},
            "hostnameOverride": NODE,
            # The conntrack sysctls belong to the host.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        zones = ""
        for domain, address in self.wildcards.items():
            zone = write(f"{domain}.zone", ZONE.format(domain, address))
            zones += f"{domain}:53 {{\n    bind {NODE_ADDRESS}\n    errors\n    file {zone}\n}}\n"
        corefile = f"""{zones}.:53 {{
    bind {NODE_ADDRESS}
    errors
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        kubeconfig {kubeconfig("coredns", "coredns", "system:masters")}
        ttl 1
    }}
}}
"""
        options: dict[str, list[str]] = {
            "kube-scheduler": [
                f"--kubeconfig={kubeconfig('kube-scheduler', 'system:kube-scheduler')}",
                f"--bind-address={NODE_ADDRESS}",
                "--leader-elect=false",
                "--authentication-skip-lookup",
            ],
            "kube-proxy": [f"--config={write('kube-proxy.json', proxy)}"],
            "coredns": [f"-conf={write('Corefile', corefile)}"],
            "kubelet": [
                f"--config={write('kubelet.json', kubelet)}",
                f"--kubeconfig={kubeconfig('kubelet', f'system:node:{NODE}', 'system:nodes')}",
                f"--hostname-override={NODE}",
                f"--node-ip={NODE_ADDRESS}",
                f"--cert-dir={self.work_dir}/kubelet-pki",
            ],
        }
        for name, its in options.items():
            started = self._run(name, self.inside(self.programs / name, *its))
        return started

    def _node_ready(self) -> bool:
        for node in self.plane.request("GET", "/api/v1/nodes")["items"]:
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", []))
            return ready and not node["spec"].get("taints")
        return False


def _enter(network: Path) -> None:
    with network.open("rb") as namespace:
        if _libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns", str(network))
