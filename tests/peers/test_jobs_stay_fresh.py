"""Jobs of a real HTCondor pool read from a real XCache for longer than a token lives.

The pool's credd and our credmon are set up as the guide says (docs/operators.md, "Tokens for running jobs"), with lives
of seconds instead of minutes. XRootD remembers for a minute what it granted to a token; so it is asked with tokens that
it has not seen, and the test reads the lives of the others itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest

from casa_hub.credentials.base import Request
from casa_hub.credentials.htcondor import HTCondor
from casa_hub.demo import htcondor, xrootd
from casa_hub.demo.credd import JobTokens
from casa_hub.demo.htcondor import SCHEDD, HTCondorPool
from casa_hub.demo.xrootd import XCache
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.issuer.tokens import new_private_key
from casa_hub.naming import Server
from tests.support.peers import ISSUER, condor, http, require, suites
from tests.support.waiting import until

FILE = "/store/user/alice/file"
#: Seconds. A token is replaced after a third of it, and copied into jobs two seconds later at most.
LIFE = 12
LIVES = 3
#: Of a credd, until HTCondor 23.
USUAL_PORT = 9620
#: Values of JobStatus.
RUNNING, HELD = 2, 5

#: Reads for so many seconds, and says when with which token. It begins with the second token; the first one, which
#: XCache has not seen, is tried at the end.
READER = """\
#!/bin/sh
xrdcp=$1 address=$2 seconds=$3
read_file() { BEARER_TOKEN_FILE=$1 "$xrdcp" --silent "$address" - 2>>errors; }
cp "$BEARER_TOKEN_FILE" copy
while cmp -s copy "$BEARER_TOKEN_FILE"; do sleep 0.2; done
end=$(($(date +%s) + seconds))
while [ "$(date +%s)" -lt "$end" ]; do
  echo "$(date +%s) $(cat "$BEARER_TOKEN_FILE") $(read_file "$BEARER_TOKEN_FILE")"
  sleep 0.5
done
echo "copy $(cat copy) $(read_file copy)"
cat errors >&2
"""


class Farm:
    """A pool with a credd and the credmon, and the hub's part of it."""

    def __init__(self, pool: HTCondorPool, issuer: FacilityIssuer) -> None:
        self.pool = pool
        self.issuer = issuer

    def idtoken(self, username: str = "alice") -> str:
        minter = HTCondor(
            key_file=str(self.pool.key_file()),
            key_id="POOL",
            trust_domain=self.pool.domain,
            uid_domain=self.pool.domain,
            subject="{username}",
            collector=self.pool.address,
        )
        request = Request(Server("hub-1", username, "lab"), "0" * 32, datetime.now(UTC))
        return minter.mint(request).files["condor_token"].decode().strip()

    def ask_for_tokens(self, username: str = "alice") -> None:
        """As the user's guide says."""
        answer = condor(self.pool, self.idtoken(username), "credential", name="casa")
        assert answer == {"stored": True}

    def run(self, job: dict[str, str], username: str = "alice") -> dict[str, Any]:
        return condor(self.pool, self.idtoken(username), "run", job=job | {"use_oauth_services": "casa"})

    def token(self, username: str = "alice") -> Path:
        return self.pool.directory / "credentials.d" / username / "casa.use"

    def claims(self, token: str) -> dict[str, Any]:
        """Of a token of the pool, by its key."""
        key = jwt.PyJWK(self.issuer.extra_jwks[0])
        claims: dict[str, Any] = jwt.decode(
            token, key, algorithms=["ES256"], issuer=ISSUER, options={"verify_exp": False, "verify_aud": False}
        )
        return claims


@pytest.fixture(scope="module")
def the_key_of_the_pool(peers_directory: Path) -> tuple[Path, dict[str, str]]:
    """Made as the guide says: its file, and the public half that is printed."""
    file = peers_directory / "credmon.pem"
    command = [sys.executable, "-m", "casa_hub.cli", "issuer", "new-key", file]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return file, json.loads(printed)


@pytest.fixture(scope="module", params=suites("trixie", "sid") or ["trixie"])
def farm(
    request: pytest.FixtureRequest,
    peers_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
    xcache: XCache,
    the_key_of_the_pool: tuple[Path, dict[str, str]],
) -> Iterator[Farm]:
    file, public = the_key_of_the_pool
    keys = tmp_path_factory.mktemp("keys")
    (keys / "hub.pem").write_bytes(new_private_key()[1])
    url, _, vo = ISSUER.rpartition("/")
    issuer = FacilityIssuer(keys=str(keys), url=url, vo=vo, extra_jwks=[public])
    xcache.trust(issuer.jwks(time.time()))
    tokens = JobTokens(
        ISSUER, file, [xcache.audience], ["storage.read:/store/user/{username}"], lifetime=LIFE, refresh=2
    )
    pool = HTCondorPool(
        require(lambda: htcondor.programs(request.param)),
        peers_directory / f"condor-tokens-{request.param}",
        domain="pool.test",
        accounts=("alice", "bob"),
        job_tokens=tokens,
    )
    with socket.socket() as taken:  # as by the credd of another pool on this machine
        with contextlib.suppress(OSError):  # there is one
            taken.bind(("127.0.0.1", USUAL_PORT))
        require(pool.start)
    yield Farm(pool, issuer)
    pool.stop()


def test_a_job_of_three_lives_reads_without_a_refusal_and_a_copy_is_refused(
    farm: Farm, xcache: XCache, peers_directory: Path
) -> None:
    script = peers_directory / "reader.sh"
    script.write_text(READER)
    script.chmod(0o755)
    xrdcp = xrootd.programs().program("xrdcp")
    farm.ask_for_tokens()
    trust = " ".join(f"{name}={value}" for name, value in xcache.client_environment.items())
    ran = farm.run(
        {
            "executable": str(script),
            "arguments": f"{xrdcp} {xcache.url(FILE)} {LIVES * LIFE}",
            "environment": f'"{trust} XRD_CONNECTIONRETRY=1"',
        }
    )
    assert ran["JobStatus"] == 4, ran
    *reads, copy = [line.split(" ", 2) for line in ran["out"].splitlines()]
    assert {content for _, _, content in reads} == {"of alice"}, ran["err"]
    assert all(int(at) < farm.claims(token)["exp"] for at, token, _ in reads)
    assert {farm.claims(token)["sub"] for _, token, _ in reads} == {"alice"}
    assert len({token for _, token, _ in reads}) > LIVES
    assert int(reads[-1][0]) - int(reads[0][0]) > (LIVES - 0.5) * LIFE
    assert copy[0] == "copy"
    assert farm.claims(copy[1])["exp"] < time.time()
    assert copy[2] == "", "a copied token is good for longer than its life"


def test_a_token_of_a_job_is_good_for_its_owner_s_files_and_for_what_the_issuer_publishes(
    farm: Farm, xcache: XCache
) -> None:
    farm.ask_for_tokens("bob")
    until(farm.token("bob").exists, "bob's token")
    token = farm.token("bob").read_text()
    assert http(xcache, "/store/user/bob/file", token).status == 404
    assert http(xcache, FILE, token).status == 403
    xcache.trust(farm.issuer.jwks(time.time()) | {"keys": []})
    until(lambda: farm.token("bob").read_text() != token, "a token that XCache has not seen")
    assert http(xcache, "/store/user/bob/file", farm.token("bob").read_text()).status == 403
    xcache.trust(farm.issuer.jwks(time.time()))


def test_without_the_user_s_directory_the_pool_holds_the_user_s_jobs(farm: Farm) -> None:
    """So a job of somebody who has not asked is held; and an operator ends what somebody's jobs can read."""
    job = {"executable": "/bin/sleep", "arguments": "60", "initialdir": "/tmp", "use_oauth_services": "casa"}
    idtoken = farm.idtoken()
    farm.ask_for_tokens()
    cluster = condor(farm.pool, idtoken, "submit", job=job)["ClusterId"]

    def state() -> tuple[int, str]:
        (found,) = condor(farm.pool, idtoken, "query", constraint=f"ClusterId == {cluster}")["jobs"]
        return found["JobStatus"], found.get("HoldReason", "")

    until(lambda: state()[0] == RUNNING, "the job runs")
    shutil.rmtree(farm.token().parent)
    until(lambda: state() == (HELD, "Job credentials are not available"), "the job is held")
    assert not farm.token().exists()
    condor(farm.pool, idtoken, "remove", constraint=f"ClusterId == {cluster}")


def test_condor_submit_asks_by_itself_with_what_the_guide_says_for_its_version(farm: Farm, tmp_path: Path) -> None:
    submit = farm.pool._tree.program("condor_submit")
    (tmp_path / "tokens.d").mkdir()
    (tmp_path / "tokens.d/token").touch(mode=0o600)
    (tmp_path / "tokens.d/token").write_text(farm.idtoken("bob") + "\n")
    (tmp_path / "job").write_text(
        "executable = /bin/true\nrequirements = false\nuse_oauth_services = casa\nrequest_disk = 1M\nqueue\n"
    )
    client = {
        "PATH": os.environ["PATH"],
        "CONDOR_CONFIG": "/dev/null",
        "_CONDOR_SEC_TOKEN_DIRECTORY": str(tmp_path / "tokens.d"),
        "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",
        "_CONDOR_SEC_KNOWN_HOSTS": str(tmp_path / "known_hosts"),
        "_CONDOR_COLLECTOR_HOST": farm.pool.address,
    }

    def submitted(**more: str) -> subprocess.CompletedProcess[str]:
        command = [submit, "-spool", "-name", SCHEDD, "-pool", farm.pool.address, "job"]
        return subprocess.run(command, env=client | more, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    shutil.rmtree(farm.token("bob").parent, ignore_errors=True)
    if "23." in farm.pool.tool("condor_version").stdout:
        refused = submitted(_CONDOR_CREDD_HOST=SCHEDD)
        assert "casa_CLIENT_SECRET_FILE is not configured" in refused.stdout
        ran = submitted(
            _CONDOR_CREDD_HOST=SCHEDD,
            _CONDOR_LOCAL_CREDMON_PROVIDER_NAME="casa",
            _CONDOR_SEC_PROCESS_SUBMIT_TOKENS="False",
        )
    else:
        ran = submitted()
    assert ran.returncode == 0, ran.stdout
    assert farm.claims(farm.token("bob").read_text())["sub"] == "bob"
    condor(farm.pool, farm.idtoken("bob"), "remove", constraint="true")
