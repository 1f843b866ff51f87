"""Proxies as `X509` delivers them at a real XRootD: by root:// with GSI, and by https:// with TLS.

They are made by a stand-in of IAM's end point, of certificates of an authority that the server trusts. The server maps
people by their certificates' names, and refuses who is not in its map. At the end a whole hub delivers and renews them.
"""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casa_hub.credentials.base import Credential, Request
from casa_hub.credentials.fetching import Answer as Sent
from casa_hub.credentials.fetching import FetchError
from casa_hub.credentials.x509 import SCOPE, X509
from casa_hub.demo import xrootd
from casa_hub.demo.grid_storage import GsiServer
from casa_hub.demo.packages import Programs, unpack
from casa_hub.demo.processes import minimal_environment
from casa_hub.demo.proxies import Authority, Holder, key, pem_of, pem_of_key
from casa_hub.naming import Server
from casa_hub.processes import signed_in
from tests.support.gsi import by_https, by_root
from tests.support.hub import CLIENT_SECRET, Hub, casa_config
from tests.support.idp import IdP
from tests.support.local_servers import end
from tests.support.peers import Answer, require, suites
from tests.support.person import Person
from tests.support.proxycert import Proxies, beside
from tests.support.scale import LIVES, scaled

HOUR = timedelta(hours=1)
AUTHORITY = Authority()
ALICE = AUTHORITY.certify("Alice A. Liddell")
BOB = AUTHORITY.certify("Bob", key_number=3)
#: In the map, but revoked by the authority.
EVE = AUTHORITY.certify("Eve", key_number=4)
AUTHORITY.revoke(EVE)
#: Not in the map.
MALLORY = AUTHORITY.certify("Mallory", key_number=5)

#: From this version on, GSI refuses a revoked certificate.
HEEDS_REVOCATION = (6,)

WAYS: dict[str, Callable[[GsiServer, str, Mapping[str, str]], Answer]] = {"root": by_root, "https": by_https}


@pytest.fixture(scope="module", params=suites("bookworm", "trixie", "sid"))
def server(request: pytest.FixtureRequest, peers_directory: Path) -> Iterator[GsiServer]:
    tree = require(lambda: xrootd.programs(request.param))
    people = {"alice": ALICE, "bob": BOB, "eve": EVE}
    with GsiServer(tree, peers_directory / f"gsi-{request.param}", AUTHORITY, people) as running:
        yield running


def minted_of(pem: str) -> Credential:
    """What a server gets of an answer with this proxy. Raises FetchError."""
    minter, now = X509(), datetime.now(UTC)
    assert minter.fetch is not None
    fetched = minter.fetch.read(Sent(200, {"certificate_chain": pem}, now, "https://iam.example.org/", "sub"))
    return minter.mint(Request(Server("", "alice"), "0" * 32, now, fetched={"x509": fetched}))


def delivered(chain: Holder) -> bytes:
    return minted_of(chain.pem).files["x509_proxy"]


def ask(way: str, server: GsiServer, path: str, proxy: bytes, directory: Path) -> Answer:
    file = directory / "x509_proxy"
    file.touch(mode=0o600)
    file.write_bytes(proxy)
    return WAYS[way](server, path, {"X509_USER_PROXY": str(file), "X509_CERT_DIR": str(server.authorities)})


@pytest.mark.parametrize("way", WAYS)
def test_a_person_is_known_by_the_proxy_and_reads_what_is_theirs(server: GsiServer, tmp_path: Path, way: str) -> None:
    """IAM makes a proxy of a proxy that the person has stored."""
    for name, holder in (("alice", ALICE), ("bob", BOB)):
        proxy = delivered(holder.proxy(100 * HOUR).proxy(HOUR))
        answer = ask(way, server, server.file(name), proxy, tmp_path)
        assert (answer.status, answer.content) == (200, server.content(name)), answer.message
        other = "bob" if name == "alice" else "alice"
        answer = ask(way, server, server.file(other), proxy, tmp_path)
        assert answer.status == 403, answer.message


#: What the hub can't see, because it knows no authority and no map.
REFUSED_BY_SERVERS: dict[str, Callable[[], Holder]] = {
    "of another authority": lambda: Authority(key_number=6).certify("Alice A. Liddell").proxy(HOUR),
    "of somebody who is not in the map": lambda: MALLORY.proxy(HOUR),
    "of a person who is none": lambda: replace(ALICE, certificate=BOB.certificate).proxy(HOUR),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", REFUSED_BY_SERVERS.values(), ids=REFUSED_BY_SERVERS)
def test_a_forged_or_foreign_proxy_is_refused(
    server: GsiServer, tmp_path: Path, way: str, make: Callable[[], Holder]
) -> None:
    chain = make()
    answer = ask(way, server, server.file("alice"), chain.pem.encode(), tmp_path)
    assert answer.status == 401, answer
    # The proxies of this test are sound but for that.
    answer = ask(way, server, server.file("alice"), ALICE.proxy(HOUR).pem.encode(), tmp_path)
    assert answer.status == 200, answer.message


def test_only_new_versions_of_xrootd_heed_the_list_of_revoked_certificates(server: GsiServer, tmp_path: Path) -> None:
    """Older ones demand the list, and read it; docs/security.md counts with them."""
    answer = ask("root", server, server.file("eve"), EVE.proxy(HOUR).pem.encode(), tmp_path)
    assert answer.status == (401 if xrootd.version(server.tree) >= HEEDS_REVOCATION else 200), answer.message


def _late(life: timedelta) -> datetime:
    return datetime.now(UTC) - 2 * life


#: What the hub can see: nobody gets it.
NEVER_DELIVERED: dict[str, Callable[[], Holder]] = {
    "expired": lambda: ALICE.proxy(HOUR, now=_late(HOUR)),
    "made of an expired one": lambda: ALICE.proxy(HOUR, now=_late(HOUR)).proxy(HOUR),
    "made of an expired certificate": lambda: AUTHORITY.certify("Alice A. Liddell", life=-HOUR).proxy(HOUR),
    "of a time to come": lambda: ALICE.proxy(HOUR, now=datetime.now(UTC) + HOUR),
    "with another key": lambda: replace(ALICE.proxy(HOUR), key=key(9)),
    "without its chain": lambda: replace(ALICE.proxy(HOUR), above=()),
    "signed by another key": lambda: replace(ALICE, key=key(9)).proxy(HOUR),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", NEVER_DELIVERED.values(), ids=NEVER_DELIVERED)
def test_a_proxy_that_no_server_takes_is_not_delivered(
    server: GsiServer, tmp_path: Path, way: str, make: Callable[[], Holder]
) -> None:
    chain = make()
    answer = ask(way, server, server.file("alice"), chain.pem.encode(), tmp_path)
    assert answer.status == 401, answer
    with pytest.raises(FetchError):
        delivered(chain)


_SESSION = """
import sys, time
from XRootD import client
begin, read = time.monotonic(), 0
while time.monotonic() - begin < float(sys.argv[2]):
    with client.File() as file:
        status, _ = file.open(sys.argv[1])
        assert status.ok, status.message
    read += 1
    time.sleep(0.1)
print(read)
"""


def test_a_session_of_xrootd_goes_on_when_its_proxy_has_expired(server: GsiServer, tmp_path: Path) -> None:
    """So a program that runs for days isn't disturbed, and who has stolen a proxy can go on as long."""
    file = tmp_path / "x509_proxy"
    file.touch(mode=0o600)
    proxy = ALICE.proxy(timedelta(seconds=4))
    file.write_text(proxy.pem)
    environment = {"X509_USER_PROXY": str(file), "X509_CERT_DIR": str(server.authorities)}
    command = [sys.executable, "-c", _SESSION, f"root://{server.host}:{server.port}/{server.file('alice')}", "7"]
    ran = subprocess.run(command, env=minimal_environment(**environment), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert datetime.now(UTC) > proxy.certificate.not_valid_after_utc + timedelta(seconds=1)
    assert by_root(server, server.file("alice"), environment).status == 401


TOOLS: dict[str, list[str]] = {
    "grid-proxy-init": ["-valid", "12:00"],
    "voms-proxy-init2": ["-valid", "12:00"],
    # With the attributes that a VOMS server would put into it.
    "voms-proxy-fake": [
        *("-rfc", "-newformat", "-hours", "12", "-hostcert", "host.pem", "-hostkey", "hostkey.pem"),
        *("-voms", "cms", "-fqan", "/cms/Role=NULL/Capability=NULL", "-uri", "voms.example.org:15000"),
    ],
}


@pytest.fixture(scope="module")
def tools() -> Programs:
    return require(lambda: unpack(["globus-proxy-utils", "voms-clients"]))


@pytest.mark.parametrize("tool", TOOLS)
def test_what_grid_tools_make_is_delivered_as_it_is_and_named_as_they_name_it(
    tools: Programs, server: GsiServer, tmp_path: Path, tool: str
) -> None:
    """A facility's own service calls one of these."""
    for name, holder in {"": ALICE, "host": AUTHORITY.certify("voms.example.org", key_number=2)}.items():
        (tmp_path / f"{name}.pem").write_text(pem_of(holder.certificate))
        (tmp_path / f"{name}key.pem").write_text(pem_of_key(holder.key))
        (tmp_path / f"{name}key.pem").chmod(0o400)

    def run(program: str, *arguments: str) -> str:
        environment = minimal_environment(X509_CERT_DIR=str(server.authorities))
        command = [str(tools.program(program)), *arguments]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    run(tool, "-cert", ".pem", "-key", "key.pem", "-out", "made", *TOOLS[tool])
    made = (tmp_path / "made").read_text()
    minted = minted_of(made)
    assert minted.files["x509_proxy"].decode() == made
    assert minted.summary == "of " + run("grid-proxy-info", "-file", "made", "-identity")
    for name in ("subject", "issuer"):
        assert minted.identifiers[name] == run("grid-proxy-info", "-file", "made", f"-{name}")
    assert minted.expires_at is not None
    left = (minted.expires_at - datetime.now(UTC)).total_seconds()
    assert abs(left - int(run("grid-proxy-info", "-file", "made", "-timeleft"))) < 10
    for way in WAYS:
        answer = ask(way, server, server.file("alice"), made.encode(), tmp_path)
        assert answer.status == 200, answer.message


#: Seconds that a proxy lives; it is renewed when a third of that is left.
LIFE = 10
#: Seconds between two rounds of reads, each by new programs.
PAUSE = scaled(0.5, 0.0)

CONFIG = """
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 60, "slow_stop_timeout": 60}}
c.Facility.credentials = ["x509"]
c.X509.certificate_directory = {authorities!r}
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.91.0.0/16"
"""


@pytest.fixture
def proxies(idp: IdP) -> Proxies:
    """Where people have stored proxies, at the identity provider."""
    made = beside(idp)
    idp.answers["/iam/proxycert"] = made.iam("hub", CLIENT_SECRET)
    return made


@pytest.fixture
def hub(tmp_path: Path, idp: IdP, proxies: Proxies, server: GsiServer) -> Iterator[Hub]:
    scope = ["openid", "profile", "email", "offline_access", "wlcg.groups", SCOPE]
    text = casa_config(idp.issuer, scope=scope) + CONFIG.format(authorities=str(server.authorities))
    made = Hub(tmp_path, text, proxy=False)
    with made.running():
        yield made
    end(made)
    assert not [line for chain in proxies.handed_out for line in chain.splitlines()[1:] if line[:40] in made.log]


@pytest.mark.shortened
def test_a_server_reads_on_through_several_lives_of_its_proxy(
    hub: Hub, idp: IdP, proxies: Proxies, server: GsiServer
) -> None:
    """A file is opened again and again, each time by a new process, as with XRootD's own programs."""
    alice = Person(hub, idp)
    proxies.stored[alice.sub] = ALICE.proxy(100 * HOUR)
    proxies.life = LIFE
    assert alice.browser.spawn().status_code == 201, hub.log[-3000:]
    directory = hub.directory / "servers" / Server("", alice.name).slug
    process = signed_in(directory / "process")
    assert process is not None
    environment = {name: process.environment()[name] for name in ("X509_USER_PROXY", "X509_CERT_DIR")}
    file = Path(environment["X509_USER_PROXY"])
    assert file == directory / "x509_proxy"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    ends, seen, refused = time.monotonic() + LIVES * LIFE + 2, set(), []
    asked = 0
    while time.monotonic() < ends:
        for way, ask_by in WAYS.items():
            asked += 1
            seen.add(file.read_bytes())
            answer = ask_by(server, server.file("alice"), environment)
            if answer.content != server.content("alice"):
                refused.append((way, answer))
        time.sleep(PAUSE)
    assert refused == []
    assert asked > LIVES * LIFE / scaled(2, 1)
    # Renewed after two thirds of each life.
    assert len(seen) >= LIVES + 1
    assert {sub for sub, _ in proxies.asked} == {alice.sub}
    # The first ones are worth nothing now; the last one is.
    old = directory.with_name("old")
    old.touch(mode=0o600)
    old.write_text(proxies.handed_out[0])
    for ask_by in WAYS.values():
        answer = ask_by(server, server.file("alice"), environment | {"X509_USER_PROXY": str(old)})
        assert answer.status == 401, answer
