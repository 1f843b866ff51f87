"""Pure: the laptop bundle, a zip with all that a program on a laptop needs to reach a server's Dask scheduler."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from casa_hub.moments import when
from casa_hub.text import printable

_CONNECT = '''\
"""Connect to the Dask scheduler of a server: python connect.py

In a program or a notebook:

    from connect import connect
    client = connect()
"""

from pathlib import Path

from distributed import Client, Security

HERE = Path(__file__).resolve().parent
SCHEDULER = {scheduler!r}


def connect(**options):
    """A client of the scheduler; `options` are those of distributed.Client."""
    security = Security(
        tls_ca_file=str(HERE / "ca.pem"),
        tls_client_cert=str(HERE / "usercert.pem"),
        tls_client_key=str(HERE / "usercert.pem"),
        require_encryption=True,
    )
    return Client(SCHEDULER, security=security, **options)


if __name__ == "__main__":
    with connect(timeout="30s") as client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        print(f"Connected to {{SCHEDULER}}: {{workers}} workers")
        versions = client.get_versions()
        here, there = versions["client"], versions["scheduler"]
        print(f"Python here {{here['host']['python']}}, there {{there['host']['python']}}")
        for name in ("dask", "distributed"):
            mine, theirs = here["packages"].get(name), there["packages"].get(name)
            if mine != theirs:
                print(f"{{name}} is {{mine}} here and {{theirs}} there: install the same version")
'''

_README = """\
Laptop bundle of {server}
{rule}

It connects a program on your laptop to the Dask scheduler of this server:

    {scheduler}

Made {made}. Good until {until}, but not longer than the server runs: a server that
is started again has another certificate authority, and needs another bundle.

1. Start a scheduler in the server: "New cluster" in JupyterLab's Dask panel, or in a terminal

       dask scheduler --protocol tls --port {port} --tls-ca-file $CERT_DIR/ca.pem \\
           --tls-cert $CERT_DIR/hostcert.pem --tls-key $CERT_DIR/hostcert.pem

2. On the laptop, with the versions of Python, dask and distributed that the server has:

       python connect.py

   It says which versions differ. In a program of yours: from connect import connect

ca.pem         the certificate authority of this server
usercert.pem   a certificate for you, with its key
connect.py     connects to the scheduler

Keep usercert.pem like a password: whoever has it can run programs in this server until it
stops. "certificate verify failed" means that this bundle belongs to an earlier start.
"""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle is made of."""

    #: For people: ``alice`` or ``alice/name``.
    server: str
    #: ``tls://HOST:PORT``.
    scheduler: str
    #: Path -> content: `ca.pem` and `usercert.pem`.
    files: Mapping[str, bytes]
    made_at: datetime
    expires_at: datetime | None

    def archive(self) -> bytes:
        """The zip. Its files can be read by their owner only."""
        server = printable(self.server)
        title = f"Laptop bundle of {server}"
        texts = {
            "connect.py": _CONNECT.format(scheduler=self.scheduler),
            "README.txt": _README.format(
                server=server,
                rule="=" * len(title),
                scheduler=self.scheduler,
                port=self.scheduler.rpartition(":")[2],
                made=when(self.made_at),
                until="the server stops" if self.expires_at is None else when(self.expires_at),
            ),
        }
        contents = {**self.files, **{name: text.encode() for name, text in texts.items()}}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                entry = zipfile.ZipInfo(name, self.made_at.timetuple()[:6])
                entry.external_attr = 0o600 << 16
                archive.writestr(entry, content)
        return buffer.getvalue()
