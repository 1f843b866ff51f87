"""What operators ask of the running hub: through its API, and by the command."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from casa_hub.audit import PREFIX
from casa_hub.credentials.dask import parse_secrets
from casa_hub.operate import SCOPE
from casa_hub.processes import Process, signed_in
from tests.hub.conftest import MakeHub
from tests.support import forked
from tests.support.hub import Browser, Hub
from tests.support.idp import IdP
from tests.support.local_servers import end
from tests.support.person import Person
from tests.support.scale import one_for_both_hubs

TOKEN = "token-of-the-operator-0123456789"

CONFIG = f"""
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 50, "slow_stop_timeout": 50}}
c.JupyterHub.services.append({{"name": "operator", "api_token": "{TOKEN}"}})
c.JupyterHub.load_roles.append({{"name": "operator", "services": ["operator"], "scopes": ["{SCOPE}"]}})
c.Facility.credentials = ["bearer", "dask"]
c.Facility.bearer_token_file = "access_token"
c.Dask.secret_file = "dask.secret"
c.Dask.domain = "example.org"
c.TraefikRoutes.directory = "traefik"
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.123.0.0/16"
c.Policy.rules = [{{"groups": ["/cms/gpu"], "limits": {{"servers": 9}}}}, {{"limits": {{"servers": 8}}}}]
"""


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Iterator[Hub]:
    hub = make_hub(CONFIG, admin_groups=["/cms/operators"])
    (hub.directory / "traefik").mkdir()
    write_secrets(hub, os.urandom(48))
    yield hub.start()
    end(hub)


def write_secrets(hub: Hub, *secrets: bytes) -> None:
    file = hub.directory / "dask.secret"
    file.write_bytes(b"".join(base64.b64encode(secret) + b"\n" for secret in secrets))
    file.chmod(0o600)


#: What a command with -f begins with.
READING = "casa-hub: reading jupyterhub_config.py ..."


class User(Person):
    """Somebody with a server that runs."""

    def starts(self, name: str = "") -> Process:
        before = set(self.hub.directory.glob("servers/*/process"))
        answer = self.browser.spawn(name)
        assert answer.status_code == 201, answer.text
        (file,) = set(self.hub.directory.glob("servers/*/process")) - before
        self.directory = file.parent
        process = signed_in(file)
        assert process is not None
        return process

    def stops(self) -> None:
        assert self.hub.api("DELETE", f"/users/{self.name}/servers/").status_code in (202, 204)


def ask(hub: Hub, method: str, operation: str, token: str = TOKEN, **body: Any) -> requests.Response:
    return hub.api(method, f"/casa-hub/{operation}", token=token, json=body)


def command(hub: Hub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`casa-hub`, as it is run beside the hub. It never says a token."""
    done = forked.run("casa_hub.cli", arguments, hub.directory, {**hub.environment, **environment})
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def operate(hub: Hub, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Less the line that it begins with."""
    done = command(hub, *arguments, "-f", "jupyterhub_config.py")
    first, _, done.stderr = done.stderr.partition("\n")
    assert first == READING
    return done


def audit(hub: Hub, since: int) -> list[dict[str, Any]]:
    return [json.loads(line.partition(PREFIX)[2]) for line in hub.log[since:].splitlines() if PREFIX in line]


# -- who may -----------------------------------------------------------------------------------------------------------

OPERATIONS = [
    ("POST", "revoke"),
    ("POST", "rebind"),
    ("POST", "renew"),
    ("POST", "confirm"),
    ("POST", "ignore"),
    ("GET", "status"),
    ("POST", "groups"),
    ("POST", "gc"),
]


@pytest.mark.parametrize(("method", "operation"), one_for_both_hubs(OPERATIONS))
def test_nobody_without_the_scope_may_not_even_an_administrator(
    hub: Hub, idp: IdP, method: str, operation: str
) -> None:
    admin = User(hub, idp, groups=["/cms", "/cms/operators"])
    assert hub.api("GET", "/users", token=admin.token).status_code == 200  # he is one
    body = {"user": admin.name} if operation in {"revoke", "rebind"} else {}
    for answer in (
        ask(hub, method, operation, token=admin.token, **body),
        ask(hub, method, operation, token="nobody-s-token", **body),
        ask(hub, method, operation, token=hub.api_token, **body),  # a service with most of JupyterHub's own scopes
        admin.browser.request(method, f"{hub.url}/hub/api/casa-hub/{operation}", json=body, timeout=30),
    ):
        assert answer.status_code == 403
        assert answer.json()["status"] == 403
    assert admin.access() == (True, True)


@pytest.mark.parametrize(
    ("operation", "body", "words"),
    one_for_both_hubs(
        [
            ("revoke", {"user": 7}, "user must be a str"),
            ("revoke", {"usr": "x"}, "There is no field 'usr'. Did you mean user?"),
            ("renew", {"users": "alice"}, "users must be a list"),
            ("renew", {"users": [7]}, "users must be a list of strings"),
            ("gc", {"dry_run": "yes"}, "dry_run must be a bool"),
            ("groups", {"user": ["alice"]}, "user must be a str"),
            ("confirm", {"x": 1}, "There is no field 'x'"),
            ("confirm", {"users": "alice"}, "users must be a list"),
            ("ignore", {"users": "alice"}, "users must be a list"),
            ("revoke", {"user": "caf\udce9"}, "user has characters that no name has"),
            ("rebind", {"user": "caf\udce9"}, "user has characters that no name has"),
            ("renew", {"users": ["caf\udce9"]}, "users has characters that no name has"),
        ]
    ),
)
def test_what_is_asked_wrongly_is_told(hub: Hub, operation: str, body: dict[str, Any], words: str) -> None:
    answer = ask(hub, "POST", operation, **body)
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["message"]


def test_a_body_that_is_no_object_is_told(hub: Hub) -> None:
    answer = hub.api("POST", "/casa-hub/revoke", token=TOKEN, data="[1]")
    assert (answer.status_code, answer.json()["message"]) == (400, "The request must be a JSON object")


# -- revoke ------------------------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_revoke_ends_all_access_until_the_next_log_in(hub: Hub, idp: IdP) -> None:
    user, other = User(hub, idp), User(hub, idp)
    process = user.starts()
    since = len(hub.log)
    done = operate(hub, "revoke", user.name, "--reason", "stolen  laptop\n")
    assert done.returncode == 0, done
    assert f"{user.name}: access ended; stopped: the default server; tokens deleted: " in done.stdout
    assert "blocked_users" in done.stdout
    assert user.access() == (False, False)
    assert not process.alive
    assert not user.directory.exists()
    assert not list((hub.directory / "traefik").glob("*.yml"))
    assert other.access() == (True, True)
    events = [event for event in audit(hub, since) if event["username"] == user.name]
    assert {event["credential"] for event in events if event["action"] == "revoked"} == {"bearer", "dask"}
    assert events[-1]["action"] == "access-ended"
    assert all((event["by"], event["reason"]) == ("service operator", "stolen laptop") for event in events)

    assert user.browser.log_in(user.sub).status_code == 200
    assert user.browser.is_in()


def test_a_reason_that_is_no_text_keeps_nobody_in(hub: Hub, idp: IdP) -> None:
    """As the command sends it from a terminal of another encoding: a half character, which no database stores."""
    user, since = User(hub, idp), len(hub.log)
    answer = ask(hub, "POST", "revoke", user=user.name, reason="caf\udce9 \x1b[2J\x00 closed")
    assert (answer.status_code, answer.json()["still"]) == (200, [])
    assert user.access() == (False, False)
    (event,) = [event for event in audit(hub, since) if event["action"] == "access-ended"]
    assert event["reason"] == "caf [2J closed"


def test_revoke_names_the_same_person_s_other_names(hub: Hub, idp: IdP) -> None:
    """A provider that gave somebody a new name: who blocks the one must know of the other."""
    user, later = User(hub, idp), f"later-{secrets.token_hex(4)}"
    idp.put_user(user.sub, preferred_username=later, **{"wlcg.groups": ["/cms/uscms"]})
    assert Browser(hub).log_in(user.sub).status_code == 200
    done = operate(hub, "revoke", user.name)
    assert f"The same person has other user names here, which keep their access: {later}\n" in done.stdout


def test_who_isn_t_a_user_can_t_be_revoked(hub: Hub) -> None:
    done = operate(hub, "revoke", "nobody")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "casa-hub: revoke: This hub has no user 'nobody'.\n"


# -- renew -------------------------------------------------------------------------------------------------------------


def test_renew_replaces_what_servers_have(hub: Hub, idp: IdP) -> None:
    user, other = User(hub, idp), User(hub, idp)
    user.starts()
    other.starts()

    def leaf(of: User) -> bytes:
        return (of.directory / "usercert.pem").read_bytes()

    before = leaf(user), leaf(other)
    done = operate(hub, "renew", user.name, "--credential", "dask")
    assert (done.returncode, done.stdout) == (0, "Renewed: 1 servers.\n"), done
    assert leaf(user) != before[0]
    assert leaf(other) == before[1]
    done = operate(hub, "renew")
    assert (done.returncode, done.stdout) == (0, "Renewed: 2 servers.\n"), done
    assert leaf(other) != before[1]

    done = operate(hub, "renew", "--credential", "dsk")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No server of this hub gets a credential 'dsk'. Did you mean dask?" in done.stderr
    done = operate(hub, "renew", "nobody")
    assert (done.returncode, done.stderr) == (2, "casa-hub: renew: This hub has no user 'nobody'.\n")

    secret = (hub.directory / "dask.secret").read_bytes()
    (hub.directory / "dask.secret").write_bytes(b"")
    done, told = operate(hub, "renew", user.name), operate(hub, "status")
    (hub.directory / "dask.secret").write_bytes(secret)
    assert done.returncode == 1
    assert f"{user.name}: dask: " in done.stdout
    assert told.returncode == 1
    # As the pages write times.
    assert re.search(rf"Not renewed: dask of {user.name}, which is valid until [0-9-]+ [0-9:]{{5}} UTC: ", told.stdout)
    assert "All is well" not in told.stdout
    assert operate(hub, "renew").returncode == 0
    assert "All is well" in operate(hub, "status").stdout
    for one in (user, other):
        one.stops()


# -- rebind ------------------------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_rebind_gives_a_name_to_who_logs_in_next(hub: Hub, idp: IdP) -> None:
    first = User(hub, idp)
    process = first.starts()
    second = f"{first.sub}-second"
    idp.put_user(second, preferred_username=first.name, **{"wlcg.groups": ["/cms/uscms"]})
    assert Browser(hub).log_in(second).status_code == 403
    since = len(hub.log)

    done = operate(hub, "rebind", first.name)
    assert done.returncode == 0, done
    assert "stopped: the default server" in done.stdout
    assert f"The name {first.name} belongs to the next person who logs in with it" in done.stdout
    assert first.access() == (False, False)
    assert not process.alive
    (event,) = [event for event in audit(hub, since) if event["action"] == "rebound"]
    assert (event["username"], event["by"]) == (first.name, "service operator")

    browser = Browser(hub)
    assert browser.log_in(second).status_code == 200
    assert browser.user() == first.name
    assert Browser(hub).log_in(first.sub).status_code == 403
    assert browser.is_in()


def test_rebind_of_a_name_that_is_nobody_s(hub: Hub, idp: IdP) -> None:
    done = operate(hub, "rebind", "nobody")
    assert done.returncode == 2
    assert "This hub has no user 'nobody', and the name isn't bound" in done.stderr
    user = User(hub, idp)
    assert hub.api("DELETE", f"/users/{user.name}").status_code == 204
    assert operate(hub, "rebind", user.name.upper()).returncode == 0  # still bound, though the hub has no such user
    second = f"{user.sub}-second"
    idp.put_user(second, preferred_username=user.name, **{"wlcg.groups": ["/cms/uscms"]})
    assert Browser(hub).log_in(second).status_code == 200


# -- confirm, status, check --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["confirm", "ignore"])
def test_nothing_to_confirm_or_to_ignore(hub: Hub, command: str) -> None:
    done = operate(hub, command)
    assert (done.returncode, done.stdout) == (0, "Nothing is held back.\n")


def test_check_says_which_dask_secret_may_go(hub: Hub, idp: IdP) -> None:
    (first,) = parse_secrets((hub.directory / "dask.secret").read_bytes())
    new = os.urandom(48)
    user = User(hub, idp)
    user.starts()
    write_secrets(hub, new, first.value)
    second = parse_secrets((hub.directory / "dask.secret").read_bytes())[0]

    done = operate(hub, "status")
    assert (done.returncode, done.stdout) == (0, f"Dask secret {first.id}: in use by 1 servers.\nAll is well.\n")
    done = operate(hub, "check", "--local")
    assert done.returncode == 0, done
    assert f"Dask secret {second.id}: for new servers; in use by 0." in done.stdout
    assert f"Dask secret {first.id}: in use by 1 running servers; it must stay." in done.stdout
    user.stops()
    user.starts()
    done = operate(hub, "check", "--local")
    assert f"Dask secret {second.id}: for new servers; in use by 1." in done.stdout
    assert f"Dask secret {first.id}: in use by no running server; it may be removed." in done.stdout
    assert base64.b64encode(new).decode() not in done.stdout + done.stderr
    user.stops()


# -- policy ------------------------------------------------------------------------------------------------------------


def test_policy_says_what_a_user_gets_by_the_groups_that_the_hub_knows(hub: Hub, idp: IdP) -> None:
    inside, outside = User(hub, idp, groups=["/cms", "/cms/uscms", "/cms/gpu"]), User(hub, idp)
    done = operate(hub, "policy", inside.name)
    assert (done.returncode, done.stdout) == (0, "limits.servers: at most 9 servers (rule cms-gpu)\n"), done
    done = operate(hub, "policy", outside.name)
    assert (done.returncode, done.stdout) == (0, "limits.servers: at most 8 servers (rule rule-1)\n"), done
    done = operate(hub, "policy", "nobody")
    assert (done.returncode, done.stdout) == (2, "")
    assert "This hub has no user 'nobody'" in done.stderr


# -- the hub can't be asked --------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_the_environment_of_a_service_says_where_the_hub_is(hub: Hub) -> None:
    where = {"JUPYTERHUB_API_URL": f"{hub.url}/hub/api", "JUPYTERHUB_API_TOKEN": TOKEN}
    assert command(hub, "confirm", **where).returncode == 0
    done = command(hub, "confirm", **{**where, "JUPYTERHUB_API_TOKEN": hub.api_token})
    assert done.returncode == 2
    assert "needs the scope custom:casa-hub:operate" in done.stderr
    assert hub.api_token not in done.stderr
    done = command(hub, "confirm", **{**where, "JUPYTERHUB_API_URL": f"{hub.url}/elsewhere"})
    assert done.returncode == 2
    assert "is not a hub's API (status 403). Example: http://HOST:8081/hub/api" in done.stderr
    done = command(hub, "confirm", **{**where, "JUPYTERHUB_API_TOKEN": "0" * 32})
    assert done.returncode == 2
    assert "the hub doesn't know this service's token. The hub reads its configuration" in done.stderr
    assert command(hub, "confirm").returncode == 2


def test_a_hub_that_takes_long_is_waited_for(hub: Hub) -> None:
    assert hub.process is not None
    os.kill(hub.process.pid, signal.SIGSTOP)
    try:
        waiting = subprocess.Popen(
            [sys.executable, "-m", "casa_hub.cli", "confirm", "-f", "jupyterhub_config.py"],
            cwd=hub.directory,
            env=hub.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == f"{READING}\n"
        assert waiting.stderr.readline() == "casa-hub: the hub is working on it (confirm) ...\n"
    finally:
        os.kill(hub.process.pid, signal.SIGCONT)
    assert waiting.communicate(timeout=60)[0] == "Nothing is held back.\n"
    assert waiting.returncode == 0


def test_a_hub_that_doesn_t_run(make_hub: MakeHub) -> None:
    hub = make_hub(CONFIG)
    done = operate(hub, "revoke", "alice")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the hub can't be reached (ClientConnectorError). Is it running?" in done.stderr


# -- gc on one machine -------------------------------------------------------------------------------------------------


def files(hub: Hub) -> set[str]:
    return {
        str(path.relative_to(hub.directory))
        for name in ("servers", "traefik")
        for path in (hub.directory / name).iterdir()
    }


def test_gc_removes_what_has_no_server_and_nothing_else(hub: Hub, idp: IdP) -> None:
    user = User(hub, idp)
    process = user.starts()
    before = files(hub)
    directory, traefik = hub.directory / "servers", hub.directory / "traefik"
    (directory / "lost" / "..data").mkdir(parents=True)
    (directory / ".new.0123456789abcdef").mkdir()  # a server that is just being started, perhaps
    mark = '# casa_hub: {"server": "[\\"%s\\", \\"gone\\", \\"\\"]", "start_id": "%s"}\n'
    (traefik / "gone.yml").write_text(mark % ("", "0" * 32))
    (traefik / "other.yml").write_text(mark % ("other hub", "0" * 32))
    (traefik / "foreign.yml").write_text("tcp: {}\n")

    lines = {
        f"{directory}/lost: it is no server's",
        f"{traefik}/gone.yml: its server doesn't run",
    }
    there = files(hub)
    done = operate(hub, "gc", "--dry-run")
    assert (done.returncode, set(done.stdout.splitlines())) == (1, {f"Would remove {line}" for line in lines}), done
    assert files(hub) == there
    done = operate(hub, "gc")
    assert (done.returncode, set(done.stdout.splitlines())) == (0, {f"Removed {line}" for line in lines}), done
    assert files(hub) - before == {"servers/.new.0123456789abcdef", "traefik/other.yml", "traefik/foreign.yml"}
    assert before <= files(hub)
    assert process.alive
    assert user.hub.api("GET", f"/users/{user.name}").json()["servers"][""]["ready"]
    done = operate(hub, "gc")
    assert (done.returncode, done.stdout) == (0, "Nothing is left behind.\n")
    for path in ("servers/.new.0123456789abcdef", "traefik/other.yml", "traefik/foreign.yml"):
        left = hub.directory / path
        left.rmdir() if left.is_dir() else left.unlink()

    assert hub.api("PATCH", f"/users/{user.name}", json={"name": f"renamed-{user.name}"}).status_code == 200
    done = operate(hub, "gc")
    assert (done.returncode, done.stdout) == (0, "Nothing is left behind.\n")
    assert process.alive
