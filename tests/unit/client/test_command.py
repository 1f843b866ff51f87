"""What `casa-hub token` and `casa-hub bundle` write, print and return."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from casa_hub.client import command, login
from casa_hub.client.hub import LogIn
from casa_hub.client.store import Store
from tests.support.scripted_hub import Answer, Asked, ScriptedHub, credential, scripted_hub
from tests.unit.client.test_bundle import GOOD, zipped

TOKEN = "SECRET-OF-THE-HUB"
CREDENTIALS = "/hub/api/casa/credentials"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    """A hub, and the environment of a CI job that uses it. No test prints a secret."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    with scripted_hub() as running:
        for name in list(os.environ):
            if name.startswith(("XDG_", "JUPYTERHUB_", "CASA_HUB_", "BEARER_", "_CONDOR_", "CONDOR_")):
                monkeypatch.delenv(name)
        for name, value in {
            "HOME": str(tmp_path / "home"),
            "XDG_RUNTIME_DIR": str(tmp_path / "runtime"),
            "CASA_HUB_URL": f"{running.url}/hub/home",
            "CASA_HUB_TOKEN": TOKEN,
            "CI": "true",
        }.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def bearer(tmp_path: Path) -> Path:
    return tmp_path / "runtime" / f"bt_u{os.getuid()}"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    code = command.main(list(arguments))
    out, err = capsys.readouterr()
    for secret in (TOKEN, "MACAROON", "CERT"):
        assert secret not in out + err
    return code, out, err


def test_a_macaroon_goes_where_programs_look(
    hub: ScriptedHub, bearer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.answers[f"{CREDENTIALS}/xcache"] = (
        200,
        credential(environment={"XCACHE_HOST": "x.example.org", "XCACHE_PORT": "1094"}),
    )
    code, out, err = run(capsys, "token", "xcache", "--lifetime", "1h")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith("XCache macaroon of alice, valid until ")
    assert first.endswith(f", in {bearer}")
    assert second == "Programs also need: export XCACHE_HOST=x.example.org XCACHE_PORT=1094"
    assert bearer.read_bytes() == b"MACAROON"
    assert stat.S_IMODE(bearer.stat().st_mode) == 0o600
    (asked,) = hub.asked
    assert (asked.headers["Authorization"], asked.body) == (f"token {TOKEN}", b'{"lifetime": 3600}')
    _, out, _ = run(capsys, "token", "xcache")
    assert out.splitlines()[0].endswith(f"{bearer}, in place of the one that was there")


def test_files_of_a_server_go_where_the_user_says(
    hub: ScriptedHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.answers[f"{CREDENTIALS}/dask"] = 200, credential("dask", environment={"HOST_IP": "alice.dask.example.org"})
    there = tmp_path / "there"
    code, out, _ = run(capsys, "token", "dask", "--server", "lab", "--directory", str(there))
    assert code == 0
    assert out.splitlines()[0].endswith(f", in {there}")
    assert sorted(path.name for path in there.iterdir()) == ["ca.pem", "usercert.pem"]
    assert hub.asked[0].body == b'{"server": "lab"}'


def test_a_shell_is_given_what_it_needs_and_nothing_that_runs(
    hub: ScriptedHub, bearer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"XCACHE_HOST": "x; touch pwned $(touch pwned)", "LD_PRELOAD": "/tmp/evil.so", "SITE_HOST": "s"}
    hub.answers[f"{CREDENTIALS}/xcache"] = 200, credential(environment=environment)
    code, out, err = run(capsys, "token", "xcache", "--shell")
    assert (code, out) == (0, "export XCACHE_HOST='x; touch pwned $(touch pwned)'\n")
    assert f"in {bearer}" in err
    assert "Left to you: LD_PRELOAD=/tmp/evil.so SITE_HOST=s" in err
    script = f'{out}printf %s "$XCACHE_HOST"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, cwd=bearer.parent)
    assert done.stdout == environment["XCACHE_HOST"]
    assert [path.name for path in bearer.parent.iterdir()] == [bearer.name]


def test_a_variable_that_is_set_already_is_not_told(
    hub: ScriptedHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.answers[f"{CREDENTIALS}/xcache"] = 200, credential(environment={"XCACHE_HOST": "x"})
    monkeypatch.setenv("XCACHE_HOST", "x")
    monkeypatch.setenv("BEARER_TOKEN", "another")
    _, out, err = run(capsys, "token", "xcache")
    assert len(out.splitlines()) == 1
    assert err == "BEARER_TOKEN is set, and programs prefer it to the file: unset BEARER_TOKEN\n"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (
            (403, {"message": "You are no member of /cms/uscms any more."}),
            (1, "you are no member of /cms/uscms any more."),
        ),
        ((403, {"message": "Missing or invalid credentials."}), (1, "missing or invalid credentials.")),
        ((409, {"message": "Start your server first."}), (1, "start your server first.")),
        ((503, {"message": "The key is missing."}), (2, "the key is missing. try again later.")),
        ((502, b"<html>"), (2, "its answer is not that of a hub (status 502)")),
        ((200, {}), (2, "xcache: the hub's answer is no credential")),
        ((200, credential("htcondor")), (2, "xcache: the hub's answer is another credential")),
        ((200, credential(files={"../../x": b"x"})), (2, "xcache: the hub's answer is no credential")),
    ],
)
def test_each_failure_is_a_sentence_and_a_code_and_leaves_the_old_file(
    hub: ScriptedHub, bearer: Path, capsys: pytest.CaptureFixture[str], answer: Answer, outcome: tuple[int, str]
) -> None:
    code, words = outcome
    bearer.write_text("old")
    hub.answers[f"{CREDENTIALS}/xcache"] = answer
    done = run(capsys, "token", "xcache")
    assert done[:2] == (code, "")
    assert done[2].startswith("casa-hub: ")
    assert words in done[2].lower() or words in done[2]
    assert bearer.read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["token", "xcache", "--lifetime", "soon"], "--lifetime: is no time"),
        (["token", "xcache", "--hub", "http://hub.example.org"], "no token is sent there"),
        (["token", "xcache", "--hub", "nonsense"], "the hub's address: is not a URL"),
    ],
)
def test_what_can_t_be_done_is_said_before_anybody_is_asked(
    hub: ScriptedHub, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert hub.asked == []


def test_a_name_that_is_none_reaches_no_address(hub: ScriptedHub, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "token", "../../users")
    assert code == 1
    assert "is not the name of a credential. What there is: casa-hub token list" in err
    assert hub.asked == []


def test_in_ci_without_a_token_nobody_is_waited_for(
    hub: ScriptedHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CASA_HUB_TOKEN")
    monkeypatch.setenv("DISPLAY", ":0")
    code, _, err = run(capsys, "token", "xcache")
    assert code == 2
    assert "set CASA_HUB_TOKEN" in err


def test_list_says_what_there_is(hub: ScriptedHub, capsys: pytest.CaptureFixture[str]) -> None:
    xcache = {"name": "xcache", "title": "XCache macaroon", "lifetime": 5400, "allowed": True}
    bearer = {"name": "bearer", "title": "Access token", "lifetime": None, "allowed": False}
    hub.answers[CREDENTIALS] = 200, {"user": "alice", "credentials": [xcache, bearer]}
    code, out, err = run(capsys, "token", "list")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"alice at {hub.url}:",
        "  xcache       XCache macaroon          1 h 30 min at most",
        "  bearer       Access token             as long as it lives; log in for it",
    ]
    hub.answers[CREDENTIALS] = 200, {"user": "alice", "credentials": []}
    assert "nothing: the hub gives no credentials to laptops" in run(capsys, "token", "list")[1]


def test_a_log_in_is_remembered_and_forgotten(
    hub: ScriptedHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CASA_HUB_TOKEN")
    wished = []

    def logs_in(hub: str, credentials: tuple[str, ...], **how: Any) -> LogIn:
        wished.append((credentials, how["browser"]))
        return LogIn(hub, TOKEN, "alice", None, credentials)

    monkeypatch.setattr(login, "log_in", logs_in)
    hub.answers[f"{CREDENTIALS}/xcache"] = 200, credential()
    assert run(capsys, "token", "xcache", "--no-browser")[0] == 0
    monkeypatch.delenv("CASA_HUB_URL")
    assert run(capsys, "token", "xcache")[0] == 0
    assert wished == [(("xcache",), False)]
    assert Store(tmp_path / "home" / ".local" / "state" / "casa-hub").hubs() == [hub.url]
    code, out, _ = run(capsys, "token", "logout")
    assert (code, out) == (
        0,
        f"Forgotten: the log-in at {hub.url}. It also ends at once if you delete it on {hub.url}/hub/token\n",
    )
    assert run(capsys, "token", "logout", "--hub", hub.url)[1] == f"There is no log-in at {hub.url}.\n"


def test_a_bundle_is_unpacked(hub: ScriptedHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.answers["/hub/api/casa/bundle/lab"] = 200, zipped(GOOD)
    there = tmp_path / "there"
    code, out, _ = run(capsys, "bundle", "lab", "--directory", str(there))
    assert (code, out) == (0, f"Dask cluster of lab: README.txt, ca.pem, connect.py, usercert.pem in {there}\n")
    assert (there / "usercert.pem").read_bytes() == b"CERT"
    assert hub.asked[0].method == "POST"


# -- --keep, as a process of its own -----------------------------------------------------------------------------------


#: With hardly a pause between two requests.
_QUICKLY = """
from casa_hub.client import command, schedule
schedule._SHORTEST = schedule._LONGEST = 0.1
raise SystemExit(command.main())
"""


class Keeping:
    """`casa-hub token xcache --keep`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _QUICKLY, "token", "xcache", "--keep"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def test_keep_renews_through_an_outage_until_the_hub_says_no(hub: ScriptedHub, bearer: Path) -> None:
    numbers = iter(range(10))

    def answer(_: Asked) -> Answer:
        match number := next(numbers):
            case 1:
                return 503, b"<html>the hub is being restarted</html>"
            case 3:
                return 403, {"status": 403, "message": "You are no member any more."}
        return 200, credential(life=0.3, files={"xcache_token": f"M{number}".encode()})

    hub.answers[f"{CREDENTIALS}/xcache"] = answer
    with Keeping() as keeping:
        assert keeping.line().startswith("XCache macaroon of alice, valid until ")
        assert bearer.read_text() == "M0"
        assert f"XCache macaroon of alice, valid until {time.strftime('%H')}" in keeping.line()  # renewed
        assert bearer.read_text() == "M2"
        _, err = keeping.process.communicate(timeout=60)
    assert keeping.process.returncode == 1
    said = err.splitlines()
    assert said[0].startswith("Not renewed yet; tried again until it can be. ")
    assert said[1] == f"casa-hub: xcache: not renewed any more: {hub.url}: You are no member any more."
    assert len(said) == 2
    assert bearer.read_text() == "M2"


def test_ctrl_c_ends_it_quietly(hub: ScriptedHub, bearer: Path) -> None:
    hub.answers[f"{CREDENTIALS}/xcache"] = 200, credential()
    with Keeping() as keeping:
        keeping.line()
        keeping.process.send_signal(signal.SIGINT)
        out, err = keeping.process.communicate(timeout=60)
    assert (keeping.process.returncode, out, err) == (0, "", "")
    assert bearer.exists()


def test_no_secret_is_an_argument_or_in_the_output_of_a_process(hub: ScriptedHub) -> None:
    hub.answers[f"{CREDENTIALS}/xcache"] = 200, credential()
    with Keeping() as keeping:
        assert "MACAROON" not in keeping.line()
        line = Path(f"/proc/{keeping.process.pid}/cmdline").read_bytes()
        assert TOKEN.encode() not in line
