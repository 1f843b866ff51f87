"""A server for JupyterHub with a Dask cluster in it, as the analysis images start one: by the files in ``CERT_DIR``."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

from distributed import LocalCluster
from distributed.security import Security

from tests.support.hub import SMALL_SERVER


async def main() -> None:
    address = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"]).hostname
    secrets = Path(os.environ["CERT_DIR"])
    certificate = {
        f"tls_{role}_{part}": str(secrets / "hostcert.pem")
        for role in ("scheduler", "worker", "client")
        for part in ("cert", "key")
    }
    security = Security(require_encryption=True, tls_ca_file=str(secrets / "ca.pem"), **certificate)
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "asynchronous": True}
    async with LocalCluster(
        **options, dashboard_address=None, protocol="tls://", host=address, scheduler_port=8786, security=security
    ):
        server = await asyncio.create_subprocess_exec(sys.executable, SMALL_SERVER)
        for told in (signal.SIGINT, signal.SIGTERM):  # else the child would run on after this process's end
            asyncio.get_running_loop().add_signal_handler(told, server.terminate)
        await server.wait()


if __name__ == "__main__":
    asyncio.run(main())
