"""A cluster of the person who runs the tests, in place of `ControlPlane`: kind, k3d, or one that is there already."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.config import load_kube_config

from casa_hub.demo.packages import Unavailable
from tests.support.kubernetes import build
from tests.support.kubernetes.api import Api, KubernetesError

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
#: How often Kubernetes' garbage collector looks for new kinds, seconds: it doesn't collect what it doesn't know, and
#: tells nobody when it does.
NEW_KINDS = 31


class OwnCluster(Api):
    """It runs already; a context manager that leaves it as it was."""

    def __init__(self, kubeconfig: Path, work_dir: Path, *, crds: Sequence[Mapping[str, Any]] = ()) -> None:
        """Args:
        kubeconfig: of somebody who may make namespaces, and what tests put into them.
        work_dir: for kubeconfigs of others.
        crds: CustomResourceDefinitions; those that are not there are there meanwhile.
        """
        self.kubeconfig = kubeconfig
        self.work_dir = work_dir
        self.crds = crds
        self._configuration = Configuration()
        self._made: list[str] = []
        work_dir.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return str(self._configuration.host)

    @property
    def ca_path(self) -> Path | None:
        authority = self._configuration.ssl_ca_cert
        return Path(authority) if authority else None

    @property
    def program(self) -> Path:
        return Path(shutil.which("kubectl") or build.programs() / "kubectl")

    def log_in(self, context: ssl.SSLContext, headers: dict[str, str]) -> None:
        if self._configuration.cert_file:
            context.load_cert_chain(self._configuration.cert_file, self._configuration.key_file)
        if token := self._configuration.api_key.get("BearerToken"):
            headers["Authorization"] = token

    def __enter__(self) -> Self:
        """
        Raises:
            Unavailable: it can't be used, and why.
        """
        remedy = "See what CASA_HUB_KUBECONFIG names, or unset it: then the tests run a control plane of their own."
        try:
            files = {"temp_file_path": str(self.work_dir)}  # keys of the kubeconfig that are not files
            load = load_kube_config(str(self.kubeconfig), client_configuration=self._configuration, **files)
            asyncio.run(load)
            self.delete_namespace(self.make_namespace())
            there = {each["metadata"]["name"] for each in self.request("GET", DEFINITIONS)["items"]}
            for each in self.crds:
                name = each["metadata"]["name"]
                if name not in there:
                    self.apply(f"{DEFINITIONS}/{name}", each)
                    self._made.append(name)
            if self._made:
                time.sleep(NEW_KINDS)
        except Exception as error:
            self.__exit__()
            raise Unavailable(f"the cluster of {self.kubeconfig}", f"can't be used: {error}", remedy) from error
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._made:
            try:
                self.request("DELETE", f"{DEFINITIONS}/{name}")
            except KubernetesError as error:
                if error.status != 404:
                    raise
        self._made.clear()
