"""Through a whole life of servers, nothing that the hub says holds a piece of a secret.

One hub with all credentials and short lives, at DEBUG: log-in, refusal, start, renewals, renewals that fail, new
keys, a start that fails, a stop, a "no" of the identity provider, an operator's revocation. While it runs, every secret
that it makes or is given is collected from where it is at home; afterwards none may be anywhere else.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from casa_hub.audit import PREFIX
from casa_hub.credentials.base import Request
from casa_hub.credentials.dask import Authority, Start, parse_secrets
from casa_hub.credentials.idtokens import master_key, scramble
from casa_hub.demo import proxies as grid
from casa_hub.issuer.tokens import new_private_key
from casa_hub.naming import Server
from tests.support.facility_config import credentials
from tests.support.hub import CLIENT_SECRET, Browser, Hub, casa_config
from tests.support.idp import IdP
from tests.support.proxycert import beside
from tests.support.waiting import until

CREDENTIALS = credentials("xcache", "htcondor", "dask", "bearer", "servicex", "exchange", "s3", "x509")
CONFIG = """
import logging

c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.services.append({"name": "operator", "api_token": OPERATOR})
c.JupyterHub.services.append({"name": "reader", "api_token": READER})
c.JupyterHub.load_roles += [
    {"name": "operator", "services": ["operator"], "scopes": ["custom:casa-hub:operate"]},
    # All but `admin:auth_state`, which is the right to read tokens.
    {"name": "reader", "services": ["reader"], "scopes": ["list:users", "read:users", "admin:server_state", "servers",
      "tokens", "read:hub", "read:services", "read:roles", "list:groups", "read:metrics"]},
]
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
c.EventLogger.handlers = [logging.FileHandler("events")]
c.Keeper.recheck_interval = 1
c.LocalDelivery.network = "127.83.0.0/16"
c.TraefikRoutes.directory = "traefik"
c.XCache.lifetime = 6
c.HTCondor.lifetime = 6
c.ServiceX.endpoint = "https://servicex.example.org"
c.ServiceX.type = "uproot"
c.ServiceX.mode = "registered"
c.ServiceX.tokens_file = "servicex.yaml"
c.FacilityIssuer.keys = "issuer"
c.FacilityIssuer.vo = "cms"
c.FacilityIssuer.url = f"http://127.0.0.1:{c.JupyterHub.hub_port}/hub/casa/issuer"
c.S3.endpoint = "https://s3.example.org"
c.S3.role_arn = "arn:aws:iam:::role/physicist"
c.S3.lifetime = 6
c.TokenExchange.services = {
    "tape": {"audience": "tape", "scope": "storage.stage:/", "environment": {"TAPE_TOKEN": "{file}"}},
    "closed": {"audience": "closed", "scope": "storage.stage:/"},
}
"""

SCOPES = ["openid", "profile", "email", "offline_access", "wlcg.groups", "proxy:generate"]

#: Characters of a piece that is looked for: short enough for a half, too long for chance.
PIECE = 16


class Secrets:
    """All secrets of a run, each in the forms in which somebody might write it."""

    def __init__(self) -> None:
        self.texts: set[str] = set()

    def add(self, secret: bytes | str) -> None:
        raw = secret.encode() if isinstance(secret, str) else secret
        forms = {raw.hex(), raw.hex().upper(), repr(raw)[2:-1]}
        # What base64 makes of a piece depends on where the piece begins: three ways.
        for begin in range(3):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                forms.add(encode(raw[begin:]).decode().rstrip("="))
        if isinstance(secret, str):
            forms |= {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}
        self.texts |= {form for form in forms if len(form) >= PIECE}

    def add_file(self, name: str, content: bytes) -> None:
        """What is secret in a server's file: certificates, programs, and the address in a configuration are not."""
        text = content.decode()
        if name == "dask_fresh_token.py":
            return
        if name.endswith(".pem") or name == "x509_proxy":
            for key in re.findall(r"-----BEGIN (?:RSA )?PRIVATE KEY-----\n(.*?)\n-----END", text, re.DOTALL):
                self.add(key.replace("\n", ""))
                self.add(base64.b64decode(key)[-32:])
        elif name == ".servicex":
            self.add(re.search(r"token: (\S+)", text)[1])  # type: ignore[index]
        elif name == "xcache_token":
            # Whose it is and until when is no secret, but a macaroon's text is one; its signature in any form.
            self.texts.add(text)
            self.add(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[-33:-1])
        else:
            self.texts.add(text.strip())
            if text.count(".") == 2:
                signature = text.strip().rpartition(".")[2]
                self.add(base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4)))

    def pieces(self) -> set[str]:
        """Any text that holds a run of 2 * `PIECE` characters of a secret holds one of these."""
        return {text[at : at + PIECE] for text in self.texts for at in range(0, len(text) - PIECE + 1, PIECE)} | {
            text[-PIECE:] for text in self.texts
        }

    def found_in(self, text: str) -> list[str]:
        """Where a piece is, without showing it."""
        return [
            f"...{text[max(text.index(piece) - 200, 0) : text.index(piece)]}<here>"
            for piece in self.pieces()
            if piece in text
        ]


class Watcher(threading.Thread):
    """Reads each file of each server as soon as it is there."""

    def __init__(self, root: Path, found: Secrets) -> None:
        super().__init__(daemon=True)
        self._root, self._found = root, found
        self._ended = threading.Event()
        self.versions: dict[str, set[bytes]] = {}

    def run(self) -> None:
        while not self._ended.wait(0.05):
            with contextlib.suppress(OSError):  # replaced while it is read; each set stays for a second
                for path in self._root.glob("*/..[0-9]*/**/*"):
                    self._read(path)

    def _read(self, path: Path) -> None:
        content = path.read_bytes() if path.is_file() else b""
        seen = self.versions.setdefault(path.name, set())
        if content and content not in seen:
            self._found.add_file(path.name, content)
            seen.add(content)

    def end(self) -> None:
        self._ended.set()
        self.join(10)


def key(directory: Path, name: str, found: Secrets) -> None:
    """A new key of the hub, put in place of the one that is there."""
    raw = os.urandom(64)
    content = raw if name == "htcondor.key" else base64.b64encode(raw) + b"\n"
    found.add(raw)
    if name == "htcondor.key":
        found.add(scramble(raw))
        found.add(master_key(raw, "POOL"))
    new = directory / f"{name}.new"
    new.touch(mode=0o600)
    before = (directory / name).read_bytes() if name == "dask.secret" and (directory / name).exists() else b""
    new.write_bytes(content + before)
    new.replace(directory / name)


class Run:
    """A hub, what is asked of it, and all that it answers."""

    def __init__(self, hub: Hub, idp: IdP, reader: str, operator: str) -> None:
        self.hub, self.idp, self.reader, self.operator = hub, idp, reader, operator
        self.answers: list[str] = []

    def note(self, answer: requests.Response) -> requests.Response:
        self.answers += [str(dict(answer.headers)), answer.text]
        return answer

    def ask(self, method: str, path: str, token: str | None = None, **kwargs: object) -> requests.Response:
        return self.note(self.hub.api(method, path, token=token or self.reader, **kwargs))

    def look(self, *browsers: Browser) -> None:
        """All pages, all of the API, the metrics."""
        for path in ("/users", "/users/alice", "/users/bob", "/users/alice/tokens", "/services", "/info", "/proxy"):
            self.ask("GET", path)
        self.ask("GET", "/casa-hub/status", self.operator)
        metrics = f"{self.hub.url}/hub/metrics"
        self.note(requests.get(metrics, headers={"Authorization": f"token {self.reader}"}, timeout=60))
        for browser in browsers:
            for page in ("/hub/home", "/hub/token", "/hub/spawn", "/hub/spawn-pending/alice"):
                self.note(browser.page(page))

    def spawn(self, browser: Browser, user: str) -> None:
        self.note(browser.spawn())
        with requests.get(
            f"{self.hub.url}/hub/api/users/{user}/server/progress",
            headers={"Authorization": f"token {self.reader}"},
            timeout=60,
        ) as progress:
            self.note(progress)


@pytest.fixture
def made() -> Secrets:
    return Secrets()


@pytest.fixture
def run(idp: IdP, made: Secrets, tmp_path: Path) -> Iterator[Run]:
    reader, operator = secrets.token_hex(16), secrets.token_hex(16)
    tokens_of_services = f"READER, OPERATOR = {reader!r}, {operator!r}\n"
    hub = Hub(tmp_path, casa_config(idp.issuer, scope=SCOPES) + tokens_of_services + CREDENTIALS + CONFIG, proxy=False)
    (hub.directory / "traefik").mkdir()
    for name in ("xcache.key", "htcondor.key", "dask.secret"):
        key(hub.directory, name, made)
    (hub.directory / "issuer").mkdir()
    signing, pem = new_private_key()
    (hub.directory / "issuer/1.pem").write_bytes(pem)
    made.add(signing.private.private_numbers().private_value.to_bytes(32))  # type: ignore[union-attr]
    for line in pem.decode().splitlines()[1:-1]:
        made.add(line)
    tokens = {user: secrets.token_urlsafe(40) for user in ("alice", "bob")}
    (hub.directory / "servicex.yaml").write_text("".join(f"{user}: {token}\n" for user, token in tokens.items()))
    (hub.directory / "servicex.yaml").chmod(0o600)
    for secret in (reader, operator, hub.api_token, CLIENT_SECRET, hub.environment["JUPYTERHUB_CRYPT_KEY"]):
        made.add(secret)
    for token in tokens.values():
        made.add(token)
    proxies = beside(idp)
    idp.answers["/iam/proxycert"] = proxies.iam("hub", CLIENT_SECRET)
    proxies.stored["alice"] = proxies.stored["bob"] = grid.Authority().certify("Somebody").proxy(timedelta(days=1))
    proxies.life = 6
    idp.exchange_life = 6
    quoted = secrets.token_urlsafe(40)
    made.add(quoted)
    refusal = {"error": "invalid_scope", "error_description": f"not with the token {quoted}"}
    idp.exchange_answers["closed"] = 403, refusal
    with hub.running():
        yield Run(hub, idp, reader, operator)


def given(idp: IdP) -> Iterable[str]:
    """All that the identity provider gave or was shown."""
    for answer in idp.token_answers:
        yield from (str(value) for name, value in answer.items() if name.endswith("_token") and value)
    for form in idp.token_requests:
        yield from (
            form[name]
            for name in ("code", "code_verifier", "refresh_token", "client_secret", "subject_token")
            if form.get(name)
        )


def derived(directory: Path, states: Iterable[dict[str, Any]]) -> Iterable[bytes]:
    """Keys of the Dask authorities: never written anywhere."""
    known = {secret.id: secret.value for secret in parse_secrets((directory / "dask.secret").read_bytes())}
    for state in states:
        dask = state["record"]["credentials"]["dask"]["state"]
        request = Request(Server(**state["server"]), state["start_id"], datetime.now(UTC), state=dask)
        start = Start.from_state(request)
        yield Authority(start, known[start.secret_id])._key.private_bytes_raw()  # type: ignore[union-attr]


def test_the_search_finds_halves_in_any_form(made: Secrets) -> None:
    secret = secrets.token_bytes(48)
    made.add(secret)
    made.add("hunter2" * 10)
    for text in (
        secret.hex()[31:75],
        base64.b64encode(b"x" + secret).decode()[9:50],
        base64.urlsafe_b64encode(secret[7:45]).decode(),
        f"token {repr(secret)[2:-1]}",
        "hunter2" * 5,
    ):
        assert made.found_in(f"[E 2026] {text} !"), text
    assert not made.found_in(secrets.token_hex(100_000))


def test_nothing_that_the_hub_says_holds_a_secret(run: Run, made: Secrets) -> None:
    root = run.hub.directory / "casa-hub-servers"
    watcher = Watcher(root, made)
    watcher.start()
    states = live(run, made, watcher, root)
    watcher.end()
    run.hub.stop()

    for secret in given(run.idp):
        made.add(secret)
    for raw in derived(run.hub.directory, states):
        made.add(raw)
    assert len(made.texts) > 500

    # What must be there is there.
    events = (run.hub.directory / "events").read_text()
    actions = {json.loads(line)["action"] for line in events.splitlines()}
    assert actions >= {"minted", "renewed", "revoked", "refused", "access-ended"}
    assert events.count("urn:casa-hub:audit") == run.hub.log.count(PREFIX)
    assert any("casa_hub_mints_total" in answer for answer in run.answers)
    for what, text in {"log": run.hub.log, "events": events, "answers": "\n".join(run.answers)}.items():
        assert len(text) > 5_000
        assert not (found := made.found_in(text)), f"the {what} holds a secret: {found[0]}"


def live(run: Run, made: Secrets, watcher: Watcher, root: Path) -> list[dict[str, Any]]:
    """All that happens; returns what the state files of the servers said."""
    hub, idp = run.hub, run.idp

    def hub_log() -> str:
        return hub.log[-6000:]

    for user, group in {"alice": "/cms/uscms", "bob": "/cms/uscms", "guest": "/atlas"}.items():
        idp.put_user(user, preferred_username=user, **{"wlcg.groups": [group]})
    alice, bob, guest = Browser(hub), Browser(hub), Browser(hub)
    for browser, user in ((alice, "alice"), (bob, "bob"), (guest, "guest")):
        run.note(browser.log_in(user))
    made.add(bob.token())
    run.spawn(alice, "alice")
    run.spawn(bob, "bob")
    states = [json.loads(path.read_bytes()) for path in root.glob("*/state.json")]
    assert len(states) == 2, hub.log[-5000:]
    assert "(invalid_scope: not with the token)" in hub.log
    run.look(alice, bob, guest)

    # Of two servers, each at least twice.
    for name in ("xcache_token", "condor_token", "access_token", "tape_token", "x509_proxy"):
        until(lambda name=name: len(watcher.versions[name]) >= 6, f"renewals of {name}", more=hub_log)  # type: ignore[misc]
    run.look(alice, bob)

    # Renewals that fail: with a key that is none, and with none at all. Then a start that does.
    (hub.directory / "xcache.key").write_text(f"not base64, {secrets.token_hex(16)}")
    (hub.directory / "htcondor.key").unlink()
    since = len(hub.log)
    for name in ("XCache.key_file", "HTCondor.key_file"):
        hub.wait_for_all(re.escape(name), 1, since=since)
    run.ask("POST", "/casa-hub/renew", run.operator, json={})
    run.look(alice)
    run.ask("DELETE", "/users/bob/server")
    until(lambda: not (root / "bob").exists(), "his server has stopped", more=hub_log)
    run.spawn(bob, "bob")
    run.note(bob.page("/hub/spawn/bob"))
    for name in ("xcache.key", "htcondor.key", "dask.secret"):
        key(hub.directory, name, made)
    answer = run.ask("POST", "/casa-hub/renew", run.operator, json={"users": ["alice"]})
    assert answer.json()["renewed"], answer.text
    run.spawn(bob, "bob")
    states.append(json.loads((root / "bob" / "state.json").read_bytes()))

    # A "no" of the provider; an operator's revocation; and who asks once more.
    idp.put_user("alice", preferred_username="alice", **{"wlcg.groups": ["/cms"]})
    until(lambda: not (root / "alice").exists(), "her server has ended", more=hub_log)
    run.note(alice.page("/hub/home"))
    run.note(alice.log_in("alice"))
    run.ask("POST", "/casa-hub/revoke", run.operator, json={"user": "bob", "reason": "A test."})
    until(lambda: not (root / "bob").exists(), "his server has ended", more=hub_log)
    run.note(bob.page("/hub/home"))
    run.look()
    return states
