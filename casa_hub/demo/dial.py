"""Connects to a Dask scheduler by its name, as from a user's laptop: `python -m casa_hub.demo.dial HOST CA [CERT]`.

Exit code 0: connected; `REFUSED`: refused by TLS; 1: anything else.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

from distributed import Client
from distributed.security import Security

#: Exit code if TLS refuses.
REFUSED = 3


async def dial(host: str, ca: str, certificate: str | None) -> int:
    context = ssl.create_default_context(cafile=ca)
    if certificate:
        context.load_cert_chain(certificate)
    # First plain TLS, to tell a refusal from an absent server. TLS 1.3 refuses a client only after the handshake.
    try:
        reader, writer = await asyncio.open_connection(host, 8786, ssl=context)
        writer.write(b"\0")
        await asyncio.wait_for(reader.read(1), 10)
        writer.close()
    except ssl.SSLError as error:
        print(f"refused: {error.reason}")
        return REFUSED
    security = Security(
        require_encryption=True, tls_ca_file=ca, tls_client_cert=certificate, tls_client_key=certificate
    )
    async with Client(f"tls://{host}:8786", security=security, asynchronous=True, timeout="20s") as client:
        print(f"connected, 1 + 1 is {await client.submit(sum, [1, 1])}")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(dial(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)))  # noqa: PLR2004
