"""Clients of the XRootD that knows people by their certificates (`casa_hub.demo.grid_storage`)."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from casa_hub.demo.grid_storage import GsiServer
from casa_hub.demo.processes import minimal_environment
from tests.support.peers import Answer

_CLIENT = """
import json, sys
from XRootD import client
with client.File() as file:
    status, _ = file.open(sys.argv[1])
    content = b""
    if status.ok:
        status, content = file.read()
denied, login = status.errno == 3010, "Auth failed" in status.message
code = 200 if status.ok else 403 if denied else 401 if login else 500
print(json.dumps([code, (content or b"").decode(), status.message]))
"""


def by_root(server: GsiServer, path: str, environment: Mapping[str, str]) -> Answer:
    """Ask by root:// with the real client, in a process of its own.

    `environment` as a server's: ``X509_USER_PROXY``, ``X509_CERT_DIR``. Status 401: the log-in failed.
    """
    variables = minimal_environment(XRD_CONNECTIONRETRY="1", XRD_REQUESTTIMEOUT="60", **environment)
    command = [sys.executable, "-c", _CLIENT, f"root://{server.host}:{server.port}/{path}"]
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    status, content, message = json.loads(ran.stdout)
    return Answer(status, content.encode(), message)


def by_https(server: GsiServer, path: str, environment: Mapping[str, str]) -> Answer:
    """Ask by https:// with the proxy as the client's certificate. Status 401: the server ended the connection."""
    [authority] = Path(environment["X509_CERT_DIR"]).glob("*.0")
    context = ssl.create_default_context(cafile=authority)
    try:
        context.load_cert_chain(environment["X509_USER_PROXY"])
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(f"https://{server.host}:{server.port}{path}", timeout=60) as answer:
            return Answer(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read(), str(error))
    except OSError as error:  # a refusal of TLS, or of whoever is not in the map
        return Answer(401, b"", str(error))
