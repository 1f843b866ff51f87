"""An XRootD that knows people by their certificates (GSI on root://, TLS on https://), and its clients."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from casa_hub.demo import xrootd
from casa_hub.demo.packages import Programs
from casa_hub.demo.processes import minimal_environment
from tests.support.peers import Answer
from tests.support.proxies import Authority, Holder, pem_of, pem_of_key

#: ``-crl:3``: a revocation list must be there and up to date. ``-gmapopt:2`` and ``required``: who is not in the map is
#: refused.
_CONFIGURATION = """\
all.adminpath {scratch}
all.pidpath {scratch}
oss.localroot {data}
all.export /store readonly
xrd.port {port}
xrd.network norpipa nodnr
xrd.allow host 127.0.0.1
xrd.allow host ::1

xrootd.seclib libXrdSec.so
sec.protocol gsi -certdir:{authorities} -crldir:{authorities} -crl:3 -cert:{certificate} -key:{key} \\
 -gridmap:{map} -gmapopt:2
sec.protbind * only gsi

xrd.protocol http:{port} libXrdHttp.so
xrd.tls {certificate} {key}
xrd.tlsca certdir {authorities}
xrootd.tls capable none
http.gridmap required {map}

ofs.authorize
acc.authdb {rights}
"""


class GsiServer(xrootd._Server):
    """The server; a context manager. Each of `people` may read ``/store/user/NAME`` of their own, and nothing else."""

    def __init__(self, tree: Programs, directory: Path, authority: Authority, people: Mapping[str, Holder]) -> None:
        """Args:
        tree: see `casa_hub.demo.xrootd.programs`.
        directory: is made.
        authority: of all certificates; what it revoked before is refused.
        people: name -> certificate.
        """
        super().__init__("XRootD with GSI", tree, directory, directory / "data", _CONFIGURATION)
        host = authority.certify("localhost", key_number=2)
        #: For ``X509_CERT_DIR``.
        self.authorities = directory / "authorities"
        authority.publish(self.authorities)
        certificate, key, grid_map, rights = (directory / name for name in ("host.pem", "key.pem", "map", "rights"))
        certificate.write_text(pem_of(host.certificate))
        key.touch(mode=0o600)
        key.write_text(pem_of_key(host.key))
        key.chmod(0o400)
        grid_map.write_text("".join(f'"{holder.identity}" {name}\n' for name, holder in people.items()))
        rights.write_text("".join(f"u {name} {self.file(name).rpartition('/')[0]} lr\n" for name in people))
        for name in people:
            file = self.data / self.file(name).lstrip("/")
            file.parent.mkdir(parents=True)
            file.write_bytes(self.content(name))
        self._settings = {
            "authorities": self.authorities,
            "certificate": certificate,
            "key": key,
            "map": grid_map,
            "rights": rights,
        }

    @staticmethod
    def file(name: str) -> str:
        """Path of a file that only one of the people may read."""
        return f"/store/user/{name}/file"

    @staticmethod
    def content(name: str) -> bytes:
        return f"of {name}\n".encode()


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
