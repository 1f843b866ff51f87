"""The real Keycloak, on a loopback address: identity provider of the tests that depend on what it really answers.

    python -m tests.support.keycloak        fetches and builds it, once; `make test` does it

It comes from Maven as its makers release it (160 MB), is built once (10 seconds) and kept in the cache of the other
servers of the tests. A start takes 15 to 40 seconds on two cores and 600 MB of memory, so there is one for a whole test
run. Tests keep out of each other's way by realms, or by users and clients of their own within a realm.

Needed are Java 17 or newer and Maven. Where peers are required and this is root on Debian, they are installed.
"""

from __future__ import annotations

import contextlib
import html
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urljoin

import requests

from casa_hub.demo.packages import Progress, Unavailable, cache_root, locked, silent
from casa_hub.demo.processes import Process, minimal_environment
from casa_hub.loopback import free_port
from tests.support.hub import Browser

VERSION = "26.4.5"
ARTIFACT = f"org.keycloak:keycloak-quarkus-dist:{VERSION}:zip"
JAVA = 17
#: What has both on Debian: Java 17 in bookworm, a newer one later.
DEBIAN_PACKAGES = ("default-jre-headless", "maven")
INSTALL = f"apt-get install {' '.join(DEBIAN_PACKAGES)}"

_HEAP = "-Xms64m -Xmx640m"
#: For a life of minutes: compile quickly rather than well, and collect by one thread. That halves the processor time.
_SHORT_LIFE = "-XX:TieredStopAtLevel=1 -XX:-UseG1GC -XX:+UseSerialGC"
#: Keycloak's own address of a database in a file, and what is committed is in the file at once.
_FILE = "jdbc:h2:file:{};NON_KEYWORDS=VALUE;DB_CLOSE_ON_EXIT=FALSE;DB_CLOSE_DELAY=0;WRITE_DELAY=0"
_ADMINISTRATOR = "root"
#: Seconds until it serves, on a machine that is busy with other tests.
_START = 240.0
#: Seconds for one request.
_PATIENCE = 60.0

#: Every realm, unless a test says otherwise. A refresh token works once, as Keycloak's makers advise.
REALM: dict[str, Any] = {
    "enabled": True,
    "sslRequired": "NONE",
    "revokeRefreshToken": True,
    "refreshTokenMaxReuse": 0,
    "loginWithEmailAllowed": False,
    "accessTokenLifespan": 300,
    # A password of these tests need not withstand anybody who has its hash.
    "passwordPolicy": "hashAlgorithm(pbkdf2-sha512) and hashIterations(1)",
}

OFFLINE = ["openid", "profile", "email", "offline_access"]
ONLINE = ["openid", "profile", "email"]

# -- where it comes from -----------------------------------------------------------------------------------------------


def distribution(progress: Progress = silent) -> Path:
    """The directory of Keycloak, fetched and built once; two processes may ask at once.

    Raises:
        Unavailable: no Java or no Maven here, or no network.
    """
    home = cache_root() / f"keycloak-{VERSION}"
    whole = home / ".casa-hub-built"
    _demand_java(progress)
    if whole.exists():
        return home
    try:
        with locked(home.with_name(home.name + ".lock"), progress, "builds the same"):
            if not whole.exists():
                shutil.rmtree(home, ignore_errors=True)
                _fetch(home, progress)
                progress("building it, about 10 s")
                build = [home / "bin/kc.sh", "build", "--db=dev-mem"]
                _run(build, "Keycloak", "Try again.", env=os.environ | {"JAVA_OPTS_KC_HEAP": _HEAP})
                whole.touch()  # last: it says that all before is there
    except (OSError, zipfile.BadZipFile) as error:
        remedy = "Point CASA_HUB_CACHE at a directory that you can write, with 500 MB to spare."
        raise Unavailable(str(home), f"can't be filled: {error}", remedy) from error
    return home


def _fetch(home: Path, progress: Progress) -> None:
    if shutil.which("mvn") is None:
        _install(f"Keycloak {VERSION}", "there is no Maven to fetch it with", progress)
    progress("fetching it by Maven, 160 MB")
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        get = ["mvn", "--batch-mode", "--quiet", "dependency:get", f"-Dartifact={ARTIFACT}", "-Dtransitive=false"]
        _run([*get, f"-Dmaven.repo.local={scratch}"], "Maven", "Check the network and Maven's settings.")
        (archive,) = Path(scratch).rglob(f"keycloak-quarkus-dist-{VERSION}.zip")
        with zipfile.ZipFile(archive) as content:
            content.extractall(home.parent)  # its only directory has the name of `home`
    (home / "bin/kc.sh").chmod(0o755)


def _demand_java(progress: Progress) -> None:
    if _java() < JAVA:
        _install(f"Java {JAVA} or newer", "is not on this machine, and Keycloak needs it", progress)
    if _java() < JAVA:
        raise Unavailable(f"Java {JAVA} or newer", "is not what `java` runs", "Put a newer one first in PATH.")


def _java() -> int:
    """The version of what `java` runs; 0 if there is none."""
    if shutil.which("java") is None:
        return 0
    said = subprocess.run(["java", "-version"], check=False, capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', said)
    return int(found[1]) if found else 0


def _install(thing: str, problem: str, progress: Progress) -> None:
    """Let Debian install Java and Maven, where somebody wants every peer and this is allowed to.

    Raises:
        Unavailable: it isn't wanted, not allowed, or fails.
    """
    wanted = os.environ.get("CASA_HUB_REQUIRE_PEERS") == "1"
    if not (wanted and os.geteuid() == 0 and shutil.which("apt-get")):
        raise Unavailable(thing, problem, f"On Debian: {INSTALL}")
    progress(f"installing {', '.join(DEBIAN_PACKAGES)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *DEBIAN_PACKAGES]):
        # Another test may be installing something.
        _run(["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", *command], thing, INSTALL, env=environment)


def _run(command: list[Any], thing: str, remedy: str, *, env: dict[str, str] | None = None) -> None:
    ran = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    )
    if ran.returncode:
        said = " ".join(ran.stdout.decode(errors="replace").split())[-500:] or f"exit code {ran.returncode}"
        raise Unavailable(thing, f"{Path(command[0]).name} failed: {said}", remedy)


# -- a running one -----------------------------------------------------------------------------------------------------


class Keycloak:
    """A Keycloak that runs as long as this is entered; it ends with this process, however that ends."""

    def __init__(self, home: Path, directory: Path, *, lasting: bool = False) -> None:
        """Args:
        home: what `distribution` returns.
        directory: for its log, and its database.
        lasting: whether what it knows is in a file, for who enters it again after `kill`; else in memory.
        """
        port = free_port(self)
        self.url = f"http://127.0.0.1:{port}"
        self._password = secrets.token_urlsafe(18)
        self._http = requests.Session()
        self._http.trust_env = False
        self._process = Process(
            "Keycloak",
            [
                *(home / "bin/kc.sh", "start", "--optimized", "--http-enabled=true", "--http-host=127.0.0.1"),
                *(f"--http-port={port}", f"--hostname={self.url}", "--cache=local"),
            ],
            log=directory / "keycloak.log",
            env=minimal_environment(
                JAVA_OPTS_KC_HEAP=_HEAP,
                JAVA_OPTS_APPEND=_SHORT_LIFE,
                **({"KC_DB_URL": _FILE.format(directory / "keycloak")} if lasting else {}),
                KC_BOOTSTRAP_ADMIN_USERNAME=_ADMINISTRATOR,
                KC_BOOTSTRAP_ADMIN_PASSWORD=self._password,
            ),
        )

    def __enter__(self) -> Self:
        self._process.start()
        try:
            self._process.wait_until("it serves", self._serves, _START)
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    @property
    def _java(self) -> int:
        """The id of its process, which is the Java with its port among the arguments."""
        port = f"--http-port={self.url.rpartition(':')[2]}"
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # one that has ended meanwhile
                program, *arguments = file.read_text(errors="replace").split("\0")
                if port in arguments and Path(program).name == "java":
                    return int(file.parent.name)
        raise AssertionError("Keycloak does not run")

    @property
    def cpu(self) -> float:
        """Seconds of CPU since its start."""
        fields = Path(f"/proc/{self._java}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which it stands still: it takes connections, and answers none of them until the end."""
        java = self._java
        os.kill(java, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(java, signal.SIGCONT)

    def kill(self) -> None:
        """End it without warning. Enter it again to start it."""
        os.kill(self._java, signal.SIGKILL)
        self._process.wait(10)

    def _serves(self) -> bool:
        try:
            return self._http.get(f"{self.url}/realms/master", timeout=5).ok
        except requests.RequestException:
            return False

    def admin(self, method: str, path: str, json: Any = None) -> requests.Response:
        """A request to the administrators' interface, below ``/admin/realms``."""
        url = f"{self.url}/admin/realms{path}"
        answer = self._http.request(method, url, json=json, timeout=_PATIENCE)
        if answer.status_code == 401:  # its token lives for a minute
            form = {"grant_type": "password", "client_id": "admin-cli", "username": _ADMINISTRATOR}
            token = self._http.post(
                f"{self.url}/realms/master/protocol/openid-connect/token",
                data=form | {"password": self._password},
                headers={"Authorization": ""},
                timeout=_PATIENCE,
            )
            token.raise_for_status()
            self._http.headers["Authorization"] = "Bearer " + token.json()["access_token"]
            answer = self._http.request(method, url, json=json, timeout=_PATIENCE)
        assert answer.status_code in (200, 201, 204), f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        return answer

    def realm(self, **settings: Any) -> Realm:
        """A new realm; `settings` are those of Keycloak's RealmRepresentation, beside `REALM`."""
        name = f"realm-{secrets.token_hex(4)}"
        self.admin("POST", "", {"realm": name} | REALM | settings)
        # A person without mail and last name is asked for them after the log-in, which no test is about.
        profile = self.admin("GET", f"/{name}/users/profile").json()
        for attribute in profile["attributes"]:
            attribute.pop("required", None)
        self.admin("PUT", f"/{name}/users/profile", profile)
        return Realm(self, name)


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody whom a realm knows."""

    name: str
    id: str
    password: str = field(repr=False)


@dataclass
class Realm:
    """One realm of a running Keycloak, and what its administrators do."""

    server: Keycloak
    name: str
    _groups: dict[str, str] = field(default_factory=dict)
    _clients: dict[str, str] = field(default_factory=dict)

    @property
    def issuer(self) -> str:
        return f"{self.server.url}/realms/{self.name}"

    def _admin(self, method: str, path: str, json: Any = None) -> requests.Response:
        return self.server.admin(method, f"/{self.name}{path}", json)

    # -- clients

    def add_client(self, client_id: str, secret: str, hub_url: str, *, backchannel: bool = False) -> None:
        """A confidential client as docs/identity-providers.md has it registered for a hub."""
        attributes = {"pkce.code.challenge.method": "S256"}
        if backchannel:
            attributes["backchannel.logout.url"] = f"{hub_url}/hub/backchannel-logout"
            attributes["backchannel.logout.session.required"] = "true"
        groups = {"claim.name": "groups", "full.path": "true", "userinfo.token.claim": "true"}
        client = {
            "clientId": client_id,
            "secret": secret,
            "protocol": "openid-connect",
            "publicClient": False,
            "standardFlowEnabled": True,
            "directAccessGrantsEnabled": False,
            "frontchannelLogout": False,
            "redirectUris": [f"{hub_url}/hub/oauth_callback"],
            "attributes": attributes,
            "protocolMappers": [
                {
                    "name": "groups",
                    "protocol": "openid-connect",
                    "protocolMapper": "oidc-group-membership-mapper",
                    "config": groups,
                }
            ],
        }
        self._clients[client_id] = _made(self._admin("POST", "/clients", client))

    def change_client(self, client_id: str, **settings: Any) -> None:
        """`settings` are those of Keycloak's ClientRepresentation."""
        path = f"/clients/{self._clients[client_id]}"
        self._admin("PUT", path, self._admin("GET", path).json() | settings)

    def let_exchange(self, client_id: str, *, allowed: bool = True) -> None:
        """Let a client exchange tokens ("Standard token exchange" in its settings), or no longer."""
        attributes = self._admin("GET", f"/clients/{self._clients[client_id]}").json()["attributes"]
        attributes["standard.token.exchange.enabled"] = str(allowed).lower()
        self.change_client(client_id, attributes=attributes)

    def add_audience(self, client_id: str, audience: str, scope: str) -> None:
        """Let a client ask for a scope that brings an audience, which is another client of the realm."""
        mapper = {
            "name": "audience",
            "protocol": "openid-connect",
            "protocolMapper": "oidc-audience-mapper",
            "config": {"included.client.audience": audience, "access.token.claim": "true"},
        }
        made = {
            "name": scope,
            "protocol": "openid-connect",
            "attributes": {"include.in.token.scope": "true"},
            "protocolMappers": [mapper],
        }
        scope_id = _made(self._admin("POST", "/client-scopes", made))
        self._admin("PUT", f"/clients/{self._clients[client_id]}/optional-client-scopes/{scope_id}")

    # -- people

    def add_account(self, *groups: str) -> Account:
        """Somebody new, in these groups."""
        name, password = f"person-{secrets.token_hex(4)}", secrets.token_urlsafe(12)
        person = {
            "username": name,
            "enabled": True,
            "credentials": [{"type": "password", "value": password, "temporary": False}],
        }
        account = Account(name, _made(self._admin("POST", "/users", person)), password)
        for path in groups:
            self._admin("PUT", f"/users/{account.id}/groups/{self._group(path)}")
        return account

    def add_accounts(self, count: int, group: str) -> list[Account]:
        """Many at once, in one group; their passwords are for the token end point."""
        made = [Account(f"person-{secrets.token_hex(4)}", "", secrets.token_urlsafe(12)) for _ in range(count)]
        self._group(group)
        people = [
            {
                "username": one.name,
                "enabled": True,
                "groups": [group],
                "realmRoles": [f"default-roles-{self.name}"],  # which Keycloak gives only to who is made one by one
                "credentials": [{"type": "password", "value": one.password, "temporary": False}],
            }
            for one in made
        ]
        answer = self._admin("POST", "/partialImport", {"ifResourceExists": "FAIL", "users": people}).json()
        ids = {one["resourceName"]: one["id"] for one in answer["results"]}
        return [replace(one, id=ids[one.name]) for one in made]

    def leave(self, account: Account, group: str) -> None:
        self._admin("DELETE", f"/users/{account.id}/groups/{self._group(group)}")

    def disable(self, account: Account) -> None:
        path = f"/users/{account.id}"
        self._admin("PUT", path, self._admin("GET", path).json() | {"enabled": False})

    def delete(self, account: Account) -> None:
        self._admin("DELETE", f"/users/{account.id}")

    def log_out(self, account: Account) -> None:
        """What an administrator's button "Logout all sessions" of this person does, a second later.

        It ends the online sessions and makes all tokens stale that were given before that very second.
        """
        begun = int(time.time())
        while int(time.time()) == begun:
            time.sleep(0.05)
        self._admin("POST", f"/users/{account.id}/logout")

    def end_sessions(self, account: Account) -> None:
        """What an administrator's "Sign out" of single sessions does; offline ones are not among them."""
        for session in self._admin("GET", f"/users/{account.id}/sessions").json():
            self._admin("DELETE", f"/sessions/{session['id']}")

    def revoke_consent(self, account: Account, client_id: str) -> None:
        """What a person's own account page does: it ends the offline session of one client."""
        self._admin("DELETE", f"/users/{account.id}/consents/{client_id}")

    def _group(self, path: str) -> str:
        """The id of a group, which is made with its parents if it isn't there."""
        if path not in self._groups:
            parent, _, name = path.rpartition("/")
            where = f"/groups/{self._group(parent)}/children" if parent else "/groups"
            self._admin("POST", where, {"name": name})
            self._groups[path] = self._admin("GET", f"/group-by-path{quote(path)}").json()["id"]
        return self._groups[path]


def _made(answer: requests.Response) -> str:
    """The id of what was made."""
    return answer.headers["Location"].rpartition("/")[2]


def sign_in(browser: requests.Session, url: str, account: Account, *, follow: bool = True) -> requests.Response:
    """Fill in Keycloak's form, to which `url` leads; who is signed in there already isn't shown it."""
    _as_on_loopback(browser)
    page = browser.get(url, timeout=_PATIENCE)
    form = re.search(r'<form id="kc-form-login"[^>]* action="([^"]+)"', page.text)
    if form is None:
        return page
    _as_on_loopback(browser)
    fields = {"username": account.name, "password": account.password}
    return browser.post(html.unescape(form[1]), data=fields, allow_redirects=follow, timeout=_PATIENCE)


def _as_on_loopback(browser: requests.Session) -> None:
    """Real browsers send a cookie that is for https to a loopback address without it, too."""
    for cookie in browser.cookies:
        cookie.secure = False


def sign_out(browser: requests.Session, realm: Realm) -> None:
    """What a person does at Keycloak's own page to log out there."""
    _as_on_loopback(browser)
    page = browser.get(f"{realm.issuer}/protocol/openid-connect/logout", timeout=_PATIENCE)
    form = re.search(r'<form[^>]* action="([^"]+)"', page.text)
    code = re.search(r'name="session_code" value="([^"]+)"', page.text)
    assert form is not None, page.text
    assert code is not None, page.text
    _as_on_loopback(browser)
    fields = {"session_code": code[1], "confirmLogout": "Logout"}
    done = browser.post(urljoin(page.url, html.unescape(form[1])), data=fields, timeout=_PATIENCE)
    assert "You are logged out" in done.text, done.text


def log_in(browser: Browser, account: Account) -> requests.Response:
    """From the hub's log-in to wherever it ends: 200 for who is let in, 403 with the reason for who isn't."""
    return sign_in(browser, f"{browser.hub.url}/hub/oauth_login?next=/hub/home", account)


def main() -> int:
    """Never a failure: the tests that want it are skipped, or fail, and say why."""

    def tell(line: str) -> None:
        print(f"Keycloak {VERSION} for the tests: {line}", flush=True)

    try:
        distribution(tell)
    except Unavailable as missing:
        tell(str(missing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
