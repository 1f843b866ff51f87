"""Today's Coffea-Casa with the files and variables of a server: its package, and the entry points of its images.

What stands in for what this machine hasn't: the jobs run in HTCondor's vanilla universe instead of Docker, so they have
the ports that Docker would have been given in their ClassAd, and the worker image's entry point and variables from the
submit description. The scheduler gets an address of its own, which it has anyway in a pod.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from traitlets.config import Config

from casa_hub.credentials.base import AccessToken, Request
from casa_hub.delivery import file_layout
from casa_hub.delivery.local.route_files import RouteFiles
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.demo.htcondor import SCHEDD, HTCondorPool
from casa_hub.demo.names import HostNames
from casa_hub.demo.packages import cache_root, locked, silent
from casa_hub.demo.processes import free_loopback_address
from casa_hub.demo.traefik import Traefik
from casa_hub.demo.xrootd import XCache
from casa_hub.facility import Facility, Minted
from casa_hub.loopback import free_ports
from casa_hub.naming import Server
from tests.peers.conftest import FILES
from tests.support.coffea_casa import CoffeaCasa, Image, coffea_casa
from tests.support.peers import require

DIRECTORY = PurePosixPath("/etc/cmsaf-secrets")
ALICE = Server("", "alice")
#: Where the worker image has its token: `ENV` in its Dockerfile, and written by its entry point.
IN_WORKER = Path("/tmp/.xcache/access_token")

#: What a user's notebook does. `there` runs at the worker, in the job.
NOTEBOOK = """
import json, os, socket, ssl, sys
from coffea_casa import CoffeaCasaCluster, bearer_token_path
from distributed import Client

def there(url):
    import urllib.request
    token = open(os.environ["BEARER_TOKEN_FILE"]).read()
    ad = dict(line.rstrip().split(" = ", 1) for line in open(os.environ["_CONDOR_JOB_AD"]) if " = " in line)
    asked = urllib.request.Request(url, headers={"Authorization": "Bearer " + token})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return {"token": token, "ad": ad, "read": opener.open(asked, timeout=60).read().decode(),
            "user": os.getuid(), "files": os.listdir(os.environ["_CONDOR_JOB_IWD"])}

def without_certificate(host, port=8786):
    context = ssl.create_default_context(cafile=os.environ["CERT_DIR"] + "/ca.pem")
    try:
        with socket.create_connection((host, port), 60) as connection:
            with context.wrap_socket(connection, server_hostname=host) as tls:
                return "let in" if tls.recv(1) else "closed"
    except ssl.SSLError as error:
        return error.reason

url, options = sys.argv[1], json.loads(sys.argv[2])
with CoffeaCasaCluster(**options) as cluster:
    with Client(cluster) as client:
        cluster.scale(1)
        client.wait_for_workers(1, timeout=150)
        found = {"bearer": bearer_token_path(), "contact": cluster.scheduler.contact_address,
                 "workers": list(client.scheduler_info()["workers"]),
                 "stranger": without_certificate(os.environ["HOST_IP"]),
                 "there": client.submit(there, url).result(100)}
print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module")
def package() -> CoffeaCasa:
    return require(coffea_casa)


@dataclass
class Site:
    """A facility, and a server of alice's in the image of today."""

    package: CoffeaCasa
    pool: HTCondorPool
    xcache: XCache
    traefik: Traefik
    names: HostNames
    config: Config
    directory: Path

    def server(self, name: str = "server", **settings: Mapping[str, Any]) -> tuple[Minted, Image, dict[str, str]]:
        """What was minted, the image with the files, and the server's variables."""
        config = self.config.copy()
        for section, values in settings.items():
            config[section].update(values)
        facility = Facility(config=config)
        assert facility.check_minters() == []
        token = AccessToken("of.the.user", None)
        minted = facility.mint(Request(ALICE, secrets.token_hex(16), datetime.now(UTC), token))
        assert not minted.missing
        delivered = self.directory / name
        delivered.mkdir(mode=0o700)
        file_layout.write_set(delivered, minted.files, datetime.now(UTC))
        image = Image(self.package, delivered, self.directory / f"image of {name}")
        return minted, image, facility.environment(minted, DIRECTORY)

    def lead_to(self, minted: Minted, address: str) -> None:
        """What leads the server's host names to an address of this machine."""
        RouteFiles(TraefikRoutes(config=self.config)).publish(ALICE, minted.start_id, minted.routes, address)
        self.names.replace({route.host: self.traefik.address for route in minted.routes})


@pytest.fixture
def facility_of(pool: HTCondorPool, xcache: XCache, traefik: Traefik, tmp_path: Path) -> Config:
    secret = tmp_path / "dask.secret"
    secret.touch(mode=0o600)
    secret.write_bytes(base64.b64encode(os.urandom(48)) + b"\n")
    return Config(
        Facility={"credentials": ["xcache", "htcondor", "dask"]},
        XCache={"key_file": str(xcache.key_file), "site_name": xcache.site, "host": "localhost", "port": xcache.port},
        HTCondor={
            "key_file": str(pool.key_file("hub")),
            "key_id": "hub",
            "trust_domain": pool.domain,
            "uid_domain": pool.domain,
            "subject": "{username}",
            "collector": pool.address,
            "schedd": SCHEDD,
        },
        Dask={"secret_file": str(secret), "domain": "localhost"},
        TraefikRoutes={"directory": str(traefik.routes)},
    )


@pytest.fixture
def site(request: pytest.FixtureRequest, facility_of: Config, tmp_path: Path) -> Site:
    peers = [request.getfixturevalue(name) for name in ("package", "pool", "xcache", "traefik", "names")]
    return Site(*peers, facility_of, tmp_path)


@pytest.fixture
def worker_log(peers_directory: Path) -> Iterator[Path]:
    """What a worker says; one test at a time on this machine, because all workers have their token in one place."""
    directory = peers_directory / "coffea-casa"
    directory.mkdir()
    directory.chmod(0o777)
    there_before = IN_WORKER.parent.exists()
    with locked(cache_root() / "coffea-casa-worker.lock", silent, "runs a worker"):
        yield directory / "worker.log"
        if not there_before:
            shutil.rmtree(IN_WORKER.parent, ignore_errors=True)
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    "token_file",
    [
        "xcache_token",  # the worker image doesn't look for it: it comes from the scheduler
        "access_token",  # from the job; later ones come from the scheduler
    ],
)
def test_its_cluster_submits_to_the_pool_and_a_worker_reads_through_the_xcache(
    site: Site, worker_log: Path, token_file: str
) -> None:
    minted, image, environment = site.server(XCache={"token_file": token_file})
    address = free_loopback_address(8786)
    site.lead_to(minted, address)
    worker, nanny = free_ports(2, site)
    in_worker = {
        "CONDA_DIR": str(site.package.environment),
        "BEARER_TOKEN_FILE": str(IN_WORKER),
        "SEC_TOKEN_SYSTEM_DIRECTORY": "/tmp/.condor",
        **site.names.environment,
    }
    options = {
        "scheduler_options": {"host": address, "dashboard_address": f"{address}:0"},
        "memory": "512MiB",
        "disk": "10MiB",
        "job_script_prologue": [f"exec bash {site.package.worker_entry_point} >{worker_log} 2>&1"],
        "job_extra_directives": {
            "universe": "vanilla",
            "docker_image": "",
            "+dask_ContainerPort": worker,
            "+dask_HostPort": worker,
            "+nanny_ContainerPort": nanny,
            "+nanny_HostPort": nanny,
            "environment": '"{}"'.format(" ".join(f"{name}={value}" for name, value in in_worker.items())),
        },
    }
    program = [site.package.python, "-c", NOTEBOOK, site.xcache.url("/store/user/al/file", "http"), json.dumps(options)]
    ran = require(lambda: image.run(program, environment | dict(site.names.environment)))
    said = worker_log.read_text()[-2000:] if worker_log.exists() else "nothing"
    assert ran.returncode == 0, f"{ran.stderr[-4000:]}\nThe worker: {said}"
    found = json.loads(ran.stdout.rpartition("FOUND ")[2])
    assert found["bearer"] == f"/etc/cmsaf-secrets/{token_file}"
    assert found["contact"] == f"tls://{minted.routes[0].host}:8786"
    assert found["workers"] == [f"tls://127.0.0.1:{worker}"]
    assert found["stranger"] == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    there = found["there"]
    assert {"ca.pem", "hostcert.pem", token_file} <= {*there["files"]}
    assert there["token"].encode() == minted.files[token_file]
    assert there["read"].encode() == FILES["/store/user/al/file"]
    assert json.loads(there["ad"]["AuthTokenId"]) == minted.credentials["htcondor"].identifiers["jti"]
    assert json.loads(there["ad"]["User"]) == f"alice@{site.pool.domain}"
    assert (there["user"] != os.getuid()) == bool(site.pool.accounts)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        # The image's own variable names the user's own.
        ({}, "/etc/cmsaf-secrets/xcache_token"),
        ({"XCache": {"token_file": "xcache/access_token"}}, "/etc/cmsaf-secrets/xcache/access_token"),
        # The image's own variable, and the user's own token.
        ({"Facility": {"bearer_token_file": "none"}}, "/etc/cmsaf-secrets-chown/access_token"),
    ],
    ids=["as it is without settings", "beside the user's own", "none"],
)
def test_which_token_its_cluster_sends_to_workers(site: Site, settings: dict[str, Any], found: str) -> None:
    with_bearer = {"Facility": {"credentials": ["xcache", "htcondor", "dask", "bearer"]}}
    merged = {
        section: {**with_bearer.get(section, {}), **settings.get(section, {})} for section in {*with_bearer, *settings}
    }
    _, image, environment = site.server(**merged)
    program = "from coffea_casa import bearer_token_path; print('FOUND', bearer_token_path())"
    ran = require(lambda: image.run([site.package.python, "-c", program], environment))
    assert ran.stdout.splitlines()[-1:] == [f"FOUND {found}"], ran.stderr


def test_its_own_tests_pass_in_a_server(site: Site) -> None:
    """All but two, which start a worker without TLS: the image's own dask_tls.yaml forbids that."""
    _, image, environment = site.server(XCache={"token_file": "access_token"})
    tests = site.package.source / "tests"
    without = "not shipped_code_imports_on_worker and not without_shipped_paths_worker_cannot_import"
    files = [tests / f"test_{name}.py" for name in ("coffeacasa", "ship_paths", "env_pack")]
    options = ["-q", "-p", "no:cacheprovider", "-k", without]
    ran = require(lambda: image.run([site.package.python, "-m", "pytest", *options, *files], environment))
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert ran.stdout.splitlines()[-1].startswith("39 passed, 2 deselected"), ran.stdout[-400:]
