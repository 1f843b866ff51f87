"""The API of a Kubernetes cluster, as its administrator or as somebody else, for tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tests.support.waiting import first_true

T = TypeVar("T")

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


class KubernetesError(Exception):
    """An answer of the API server that is not 2xx; `status` is the HTTP code and `body` the Status object."""

    def __init__(self, status: int, body: Any) -> None:
        message = body.get("message") if isinstance(body, dict) else body
        super().__init__(f"{status}: {message}")
        self.status = status
        self.body = body


def eventually(condition: Callable[[], T], timeout: float = 60.0) -> T:
    """The first true answer of `condition`; a 404 of the API server means: not yet."""

    def asked() -> T | None:
        try:
            return condition()
        except KubernetesError as error:
            if error.status != 404:
                raise
            return None

    result = first_true(asked, "the cluster is as expected", timeout)
    assert result is not None
    return result


Answer = tuple[http.client.HTTPResponse, bytes]


def _send(
    connection: http.client.HTTPSConnection, *, method: str, path: str, body: Any, headers: dict[str, str]
) -> Answer:
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    return response, response.read()


class Api(ABC):
    """What tests do with a cluster. `kubeconfig` is an administrator's; files go to `work_dir`."""

    kubeconfig: Path
    work_dir: Path

    @property
    @abstractmethod
    def url(self) -> str:
        """``https://host:port`` of the API server."""

    @property
    @abstractmethod
    def ca_path(self) -> Path | None:
        """Who signed the API server's certificate; None for a public authority."""

    @property
    @abstractmethod
    def program(self) -> Path:
        """kubectl."""

    @abstractmethod
    def log_in(self, context: ssl.SSLContext, headers: dict[str, str]) -> None:
        """Be an administrator: by a client certificate or by a header."""

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        token: str | None = None,
        timeout: float = 30.0,
    ) -> Any:
        """One call of the API as administrator, or as the bearer of `token`.

        Raises:
            KubernetesError: the answer is not 2xx.
        """
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
            context = ssl.create_default_context(cafile=self.ca_path)
        else:
            context, login = self._administrator
            headers |= login
        send = partial(_send, method=method, path=urlsplit(self.url).path + path, body=body, headers=headers)
        if method == "GET" and token is None:
            response, data = self._look(context, send, timeout)
        else:
            with contextlib.closing(self._connection(context, timeout)) as connection:
                response, data = send(connection)
        is_json = response.headers.get_content_type() == "application/json"
        answer = json.loads(data) if is_json else data.decode(errors="replace")
        if response.status >= 300:
            raise KubernetesError(response.status, answer)
        return answer

    @cached_property
    def _administrator(self) -> tuple[ssl.SSLContext, dict[str, str]]:
        """TLS and headers, read once."""
        context, headers = ssl.create_default_context(cafile=self.ca_path), dict[str, str]()
        self.log_in(context, headers)
        return context, headers

    @cached_property
    def _kept(self) -> threading.local:
        """The connection with which a thread looks as administrator."""
        return threading.local()

    def _connection(self, context: ssl.SSLContext, timeout: float) -> http.client.HTTPSConnection:
        at = urlsplit(self.url)
        assert at.hostname is not None
        return http.client.HTTPSConnection(at.hostname, at.port or 443, context=context, timeout=timeout)

    def _look(
        self, context: ssl.SSLContext, send: Callable[[http.client.HTTPSConnection], Answer], timeout: float
    ) -> Answer:
        """By the connection of the last time: tests look many times a second, and most of a look is its handshake."""
        kept: http.client.HTTPSConnection | None = self._kept.__dict__.pop("connection", None)
        if kept is not None and kept.sock is not None:
            kept.sock.settimeout(timeout)
            with contextlib.suppress(
                ConnectionError, http.client.HTTPException, ssl.SSLError
            ):  # the server's end of it
                answer = send(kept)
                self._kept.connection = kept
                return answer
            kept.close()
        connection = self._connection(context, timeout)
        answer = send(connection)
        self._kept.connection = connection
        return answer

    def apply(self, path: str, body: Any, *, manager: str = "tests", force: bool = True, **options: Any) -> Any:
        """Server-side apply of one object at its own path."""
        query = f"?fieldManager={manager}&force={str(force).lower()}"
        return self.request("PATCH", path + query, body, content_type=APPLY, **options)

    def gone(self, path: str) -> bool:
        """Whether there is no such object."""
        try:
            self.request("GET", path)
        except KubernetesError as error:
            if error.status == 404:
                return True
            raise
        return False

    def make_namespace(self, labels: Mapping[str, str] | None = None) -> str:
        """Name of a fresh namespace which pods can be made in: its ServiceAccount `default` is there."""
        metadata = {"generateName": "casa-test-", "labels": dict(labels or {})}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        name = str(self.request("POST", "/api/v1/namespaces", body)["metadata"]["name"])
        eventually(lambda: self.request("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default"))
        return name

    def delete_namespace(self, name: str) -> None:
        """Ask for it, and don't wait: Kubernetes takes five seconds."""
        self.request("DELETE", f"/api/v1/namespaces/{name}")

    def make_account(self, name: str, namespace: str, rules: list[dict[str, Any]]) -> Path:
        """The kubeconfig of a ServiceAccount whose Role, of the same name, has these rules."""
        group = "rbac.authorization.k8s.io"
        rbac = f"/apis/{group}/v1/namespaces/{namespace}"
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
        self.apply(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}", account)
        role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules}
        self.apply(f"{rbac}/roles/{name}", role)
        binding = {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
        }
        self.apply(f"{rbac}/rolebindings/{name}", binding)
        return self.kubeconfig_for(name, namespace)

    def token_for(self, account: str, namespace: str, seconds: int = 3600, **spec: Any) -> str:
        """A token of a ServiceAccount; `spec` is that of a TokenRequest (audiences, boundObjectRef)."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        answer = self.request("POST", path, {"spec": {"expirationSeconds": seconds, **spec}})
        return str(answer["status"]["token"])

    def kubeconfig_for(self, account: str, namespace: str) -> Path:
        """A kubeconfig with a token of a ServiceAccount."""
        path = self.work_dir / f"{namespace}.{account}.kubeconfig"
        return self.write_kubeconfig(path, {"token": self.token_for(account, namespace)}, namespace)

    def write_kubeconfig(
        self, path: Path, user: Mapping[str, Any], namespace: str = "default", *, url: str | None = None
    ) -> Path:
        """A kubeconfig for a user (its part of that format); `url` if not the API server's own, say a proxy's."""
        cluster = {"server": url or self.url}
        if self.ca_path is not None:
            cluster["certificate-authority"] = str(self.ca_path)
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(document, indent=1))  # JSON is YAML, and every client reads it
        return path

    def kubectl(self, *arguments: str, **options: Any) -> str:
        """Standard output of kubectl, run as administrator."""
        command = [self.program, "--kubeconfig", self.kubeconfig, f"--cache-dir={self.work_dir}/kubectl-cache"]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.work_dir)}  # no proxy setting of the surroundings
        options = {"check": True, "text": True, "stdout": subprocess.PIPE, "env": environment, **options}
        return str(subprocess.run([*map(str, command), *arguments], **options).stdout)
