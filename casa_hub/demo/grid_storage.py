"""An XRootD that knows people by their certificates: GSI on root://, TLS on https://."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from casa_hub.demo import xrootd
from casa_hub.demo.packages import Programs
from casa_hub.demo.proxies import Authority, Holder, pem_of, pem_of_key

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


class GsiServer(xrootd.XRootDServer):
    """The server; a context manager. Each of `people` may read ``/store/user/NAME`` of their own, and nothing else."""

    def __init__(
        self,
        tree: Programs,
        directory: Path,
        authority: Authority,
        people: Mapping[str, Holder],
        *,
        names: Sequence[str] = (),
        clients: Sequence[str] = (),
    ) -> None:
        """Args:
        tree: see `casa_hub.demo.xrootd.programs`.
        directory: is made.
        authority: of all certificates; what it revoked before is refused.
        people: name -> certificate.
        names: more host names of the server, besides localhost.
        clients: see `casa_hub.demo.xrootd.allowed`.
        """
        template = _CONFIGURATION + xrootd.allowed(clients)
        super().__init__("XRootD with GSI", tree, directory, directory / "data", template)
        host = authority.certify("localhost", key_number=2, names=names)
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
