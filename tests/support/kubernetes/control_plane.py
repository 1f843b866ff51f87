"""A real Kubernetes control plane for tests: etcd, kube-apiserver and kube-controller-manager on one address.

    with ControlPlane(directory / "bin", work_dir) as plane:
        plane.kubectl("get", "namespaces")

No root, no node: there is no kubelet, so a pod stays Pending until somebody writes its status (see `pods`), and a
deleted one goes at once. All else is the real thing: RBAC, admission, server-side apply, TokenRequest, garbage
collection.
"""

from __future__ import annotations

import http.client
import ipaddress
import signal
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import trustme

from casa_hub.demo.processes import Process, minimal_environment
from casa_hub.loopback import free_port
from tests.support.kubernetes.api import Api, KubernetesError

#: What objects without a node need; a node needs "*".
CONTROLLERS = (
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
    "endpointslice-controller",
    "endpoints-controller",
    "resourcequota-controller",
    "pod-garbage-collector-controller",
)
#: A tenth of the processor time less than with Go's 100, for 100 MB of memory more.
_COLLECT_AT = "400"


class ControlPlane(Api):
    """etcd, API server and controllers, in `work_dir`; a context manager."""

    def __init__(
        self,
        programs: Path,
        work_dir: Path,
        *,
        crds: Sequence[Mapping[str, Any]] = (),
        address: str = "127.0.0.1",
        service_cidr: str = "10.96.0.0/16",
        controllers: Sequence[str] = CONTROLLERS,
        apiserver_options: Sequence[str] = (),
        controller_options: Sequence[str] = (),
    ) -> None:
        """Args:
        programs: directory of the executables.
        work_dir: for data, keys and logs; made if need be.
        crds: CustomResourceDefinitions, created before the controllers start: the garbage collector looks
            for new kinds only every 30 s, so one made later isn't collected for up to that long.
        address: where all of them listen.
        service_cidr: the addresses of Services.
        controllers: which ones run.
        apiserver_options: more options for the API server.
        controller_options: and for the controller manager.
        """
        self.programs = programs
        self.work_dir = work_dir
        self.crds = crds
        self.address = address
        self.service_cidr = ipaddress.ip_network(service_cidr)
        self.controllers = controllers
        self.apiserver_options = apiserver_options
        self.controller_options = controller_options
        self.kubeconfig = work_dir / "admin.kubeconfig"
        self.pki = work_dir / "pki"
        self.pki.mkdir(mode=0o700, parents=True)
        self._authority = trustme.CA(organization_name="casa-hub tests")
        self._authority.cert_pem.write_to_path(self.ca_path)
        self._processes: list[Process] = []

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self._port}"

    @property
    def ca_path(self) -> Path:
        return self.pki / "ca.crt"

    @property
    def program(self) -> Path:
        return self.programs / "kubectl"

    def log_in(self, context: ssl.SSLContext, headers: dict[str, str]) -> None:
        context.load_cert_chain(self._admin["client-certificate"], self._admin["client-key"])

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 120.0) -> None:
        """Start all and wait until pods can be made in the namespace `default`."""
        deadline = time.monotonic() + timeout
        self._admin = self.issue("admin", "admin", "system:masters")
        self.issue("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
        self.issue("service-account", "service-account")
        self.service_address = str(self.service_cidr[1])
        names = [f"kubernetes{rest}" for rest in ("", ".default", ".default.svc", ".default.svc.cluster.local")]
        hosts = [*dict.fromkeys(["localhost", "127.0.0.1", self.address, self.service_address]), *names]
        self.issue("apiserver", "kube-apiserver", hosts=hosts)

        etcd = self._start_etcd()
        apiserver = self._start_apiserver(etcd)
        self._wait(apiserver, "an answer", lambda: self._answers("/livez/ping"), deadline)
        self._wait(apiserver, "the kinds are defined", self._define, deadline)
        manager = self._start_controller_manager()
        self._wait(apiserver, "ready", lambda: self._answers("/readyz"), deadline)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait(manager, "a ServiceAccount", lambda: self._answers(account), deadline)

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.stop()
        self._processes.clear()

    def issue(self, name: str, user: str, group: str | None = None, hosts: Sequence[str] = ()) -> dict[str, str]:
        """Files NAME.crt and NAME.key: a certificate for a client, and for a server at `hosts`.

        Returns:
            The user part of a kubeconfig.
        """
        certificate, key = self.pki / f"{name}.crt", self.pki / f"{name}.key"
        issued = self._authority.issue_cert(*(hosts or ["client.test"]), common_name=user, organization_name=group)
        issued.cert_chain_pems[0].write_to_path(certificate)
        key.touch(mode=0o600)
        # As "EC PRIVATE KEY": the API server doesn't read the key for ServiceAccounts in PKCS#8.
        issued.private_key_pem.write_to_path(key)
        return {"client-certificate": str(certificate), "client-key": str(key)}

    def _run(self, name: str, *options: str) -> Process:
        process = Process(
            name,
            [self.programs / name, *options],
            log=self.work_dir / f"{name}.log",
            env=minimal_environment(HOME=str(self.work_dir), GOGC=_COLLECT_AT),
            stop_signal=signal.SIGKILL,  # nobody reads its data again
        )
        self._processes.append(process.start())
        return process

    def _start_etcd(self) -> str:
        client, peer = (f"http://{self.address}:{free_port(self, self.address)}" for _ in range(2))
        self._run(
            "etcd",
            f"--data-dir={self.work_dir}/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        return client

    def _start_apiserver(self, etcd: str) -> Process:
        self._port = free_port(self, self.address)
        self.write_kubeconfig(self.kubeconfig, self._admin)
        return self._run(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--etcd-compaction-interval=0",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self._port}",
            f"--tls-cert-file={self.pki}/apiserver.crt",
            f"--tls-private-key-file={self.pki}/apiserver.key",
            f"--client-ca-file={self.ca_path}",
            f"--kubelet-client-certificate={self.pki}/kubelet-client.crt",
            f"--kubelet-client-key={self.pki}/kubelet-client.key",
            f"--service-cluster-ip-range={self.service_cidr}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-signing-key-file={self.pki}/service-account.key",
            f"--service-account-key-file={self.pki}/service-account.key",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            "--endpoint-reconciler-type=none",
            "--enable-priority-and-fairness=false",
            "--profiling=false",
            *self.apiserver_options,
        )

    def _start_controller_manager(self) -> Process:
        # In system:masters, the controllers need not wait until the API server has written the bootstrap roles.
        user = self.issue("controller-manager", "system:kube-controller-manager", "system:masters")
        kubeconfig = self.write_kubeconfig(self.work_dir / "controller-manager.kubeconfig", user)
        return self._run(
            "kube-controller-manager",
            f"--kubeconfig={kubeconfig}",
            f"--controllers={','.join(self.controllers)}",
            "--leader-elect=false",
            f"--bind-address={self.address}",
            f"--secure-port={free_port(self, self.address)}",
            f"--cert-dir={self.work_dir}/controller-manager",
            "--authentication-skip-lookup",
            f"--root-ca-file={self.ca_path}",
            f"--service-account-private-key-file={self.pki}/service-account.key",
            f"--service-cluster-ip-range={self.service_cidr}",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--profiling=false",
            *self.controller_options,
        )

    def _define(self) -> bool:
        for each in self.crds:
            path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{each['metadata']['name']}"
            try:
                self.apply(path, each)
            except KubernetesError as error:
                if error.status < 500:
                    raise
                return False
        return True

    def _answers(self, path: str) -> bool:
        try:
            self.request("GET", path)
        except (OSError, http.client.HTTPException):
            return False
        except KubernetesError as error:
            if error.status == 401:
                raise
            return False
        return True

    def _wait(self, process: Process, what: str, ready: Callable[[], bool], deadline: float) -> None:
        process.wait_until(what, ready, timeout=deadline - time.monotonic())
