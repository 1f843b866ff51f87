"""Where an operator's command finds the hub, and what it says when it doesn't; `casa-hub check`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from jupyterhub.crypto import CryptKeeper

from casa_hub import operate
from casa_hub.cli import main
from casa_hub.errors import CasaError
from casa_hub.operate import SCOPE, Hub
from casa_hub.web import operations

TOKEN = "a-token-that-nobody-may-see"

SERVICE = f"""
c.JupyterHub.services = [
    {{"name": "culler", "api_token": "another-token"}},
    {{"name": "operator", "api_token": "{TOKEN}"}},
]
c.JupyterHub.load_roles = [
    {{"name": "culler", "services": ["culler"], "scopes": ["list:users"]}},
    {{"name": "operator", "services": ["operator"], "scopes": ["{SCOPE}"]}},
]
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "jupyterhub_config.py"
    file.write_text("c = get_config()\n" + text)
    return file


def test_the_scope_has_one_name() -> None:
    assert operations.SCOPE == SCOPE


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("", "http://127.0.0.1:8081/hub/api"),
        # Zero to JupyterHub's: all addresses of the pod, and a name of the Service.
        (
            'c.JupyterHub.hub_bind_url = "http://:8081"\nc.JupyterHub.hub_connect_url = "http://hub:8081"',
            "http://127.0.0.1:8081/hub/api",
        ),
        ('c.JupyterHub.hub_ip = "0.0.0.0"\nc.JupyterHub.hub_port = 9000', "http://127.0.0.1:9000/hub/api"),
        ('c.JupyterHub.hub_ip = "192.0.2.7"', "http://192.0.2.7:8081/hub/api"),
        ('c.JupyterHub.hub_bind_url = "http://[::1]:8081"', "http://[::1]:8081/hub/api"),
        ('c.JupyterHub.base_url = "/jupyter"', "http://127.0.0.1:8081/jupyter/hub/api"),
        ('c.JupyterHub.bind_url = "https://example.org:443/jupyter/"', "http://127.0.0.1:8081/jupyter/hub/api"),
    ],
)
def test_the_configuration_says_where_the_hub_is(tmp_path: Path, setting: str, url: str) -> None:
    hub = Hub.find(write(tmp_path, SERVICE + setting), {"JUPYTERHUB_API_URL": "http://elsewhere/hub/api"})
    assert hub == Hub(url, TOKEN)
    assert TOKEN not in repr(hub)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", f"no service has the scope {SCOPE}. Add to the hub's configuration: c.JupyterHub.services"),
        (SERVICE.replace(f'"api_token": "{TOKEN}"', '"url": "http://x"'), "the service operator has no api_token"),
        (SERVICE.replace(TOKEN, TOKEN + "\\n"), "the api_token of service operator: has characters"),
        (SERVICE + 'c.JupyterHub.hub_bind_url = "unix+http://%2Ftmp%2Fhub.sock"', "by its own services only"),
        (SERVICE + "c.JupyterHub.internal_ssl = True", "can be reached by its own services only"),
        (SERVICE + f"raise RuntimeError({TOKEN!r})", "fails with RuntimeError in line "),
        (SERVICE + f"{TOKEN} = = 1", "fails with SyntaxError in line "),
        (SERVICE + f"import sys; sys.exit({TOKEN!r})", "ends the program when it is run"),
        (SERVICE + f"c.JupyterHub.hub_port = {TOKEN!r}", "JupyterHub"),
    ],
)
def test_a_configuration_that_doesn_t_say_it_is_told_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    assert main(["confirm", "-f", str(write(tmp_path, text))]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert TOKEN not in printed.err + printed.out
    assert printed.out == ""


def test_a_file_that_isn_t_there_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in ("confirm", "check"):
        assert main([command, "-f", str(tmp_path / "none.py")]) == 2
        assert "none.py: does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "its address is unknown. Give its configuration with -f"),
        ({"JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api"}, "its address is unknown"),
        ({"JUPYTERHUB_API_TOKEN": TOKEN}, "its address is unknown"),
        ({"JUPYTERHUB_API_URL": "hub", "JUPYTERHUB_API_TOKEN": TOKEN}, "JUPYTERHUB_API_URL: is not a URL"),
        (
            {"JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api", "JUPYTERHUB_API_TOKEN": TOKEN + "\r\nX: y"},
            "JUPYTERHUB_API_TOKEN: has characters that no token may have",
        ),
    ],
)
def test_an_environment_that_doesn_t_say_it_is_told_why(environment: dict[str, str], words: str) -> None:
    with pytest.raises(CasaError) as caught:
        Hub.find(None, environment)
    assert words in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_hub_that_isn_t_there_is_said_with_what_to_do() -> None:
    with pytest.raises(CasaError, match=r"can't be reached \(ClientConnectorError\). Is it running\?") as caught:
        operate.ask(Hub("http://127.0.0.1:1/hub/api", TOKEN), "GET", "status")
    assert TOKEN not in str(caught.value)


#: Ends a command with the first thing that it says, and tells whether JupyterHub was loaded before.
FIRST_WORDS = """
import io, sys
from casa_hub.cli import main
class FirstWords(io.StringIO):
    def write(self, text):
        print(text, "jupyterhub" in sys.modules)
        raise SystemExit(0)
sys.stderr = FirstWords()
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["check", "--json", "-f", "hub.py"], "casa-hub: reading hub.py ..."),
        (["renew", "-f", "hub.py"], "casa-hub: reading hub.py ..."),
        (["revoke", "ada", "-f", "hub.py"], "casa-hub: reading hub.py ..."),
        (["settings"], "casa-hub: loading the settings ..."),
    ],
)
def test_what_takes_seconds_is_told_at_once(tmp_path: Path, command: list[str], words: str) -> None:
    run = [sys.executable, "-c", FIRST_WORDS, *command]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{words} False\n"


# -- check -------------------------------------------------------------------------------------------------------------

SOUND = """
c.JupyterHub.authenticator_class = "casa"
c.JupyterHub.spawner_class = "casa"
c.CryptKeeper.keys = ["00" * 32]
c.CasaOAuthenticator.provider = "cms-iam"
c.CasaOAuthenticator.client_id = "hub"
c.CasaOAuthenticator.client_secret = "secret-of-the-client"
c.CasaOAuthenticator.oauth_callback_url = "https://hub.example.org/hub/oauth_callback"
c.CasaOAuthenticator.allowed_groups = ["/cms"]
"""


def checked(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> tuple[int, str]:
    CryptKeeper.clear_instance()  # one a process, with the keys of whoever came first
    code = main(["check", "--local", "-f", str(write(tmp_path, text))])
    CryptKeeper.clear_instance()
    printed = capsys.readouterr()
    assert "secret-of-the-client" not in printed.out + printed.err
    return code, printed.out


def test_a_sound_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = checked(tmp_path, capsys, SOUND)
    assert (code, printed.splitlines()[-1]) == (0, "Sound: 2 ok")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "c.Facility.credentails = []",
            "error: Facility.credentails: there is no such setting. Did you mean credentials?",
        ),
        ("c.Facilty.credentials = []", "error: Facilty: there is no such section. Did you mean Facility?"),
        ('c.Facility.credentials = ["dsk"]', "error: Facility.credentials: "),
        ('c.Facility.credentials = ["dask"]', "error: Dask.secret_file"),
        ("c.CasaOAuthenticator.client_secret = ''", "error: CasaOAuthenticator.client_secret: is not set."),
        ("c.CasaOAuthenticator.leeway = 'secret-of-the-client'", "error: the configuration: "),
        ("c.Keeper.recheck_interval = 'secret-of-the-client'", "error: the configuration: "),
        ("c.Facility.hub_id = 7", "error: the configuration: "),
        ("c.CryptKeeper.keys = [b'secret-of-the-client']", "error: CryptKeeper.keys: has a malformed key"),
        (
            'c.JupyterHub.spawner_class = "simple"\nc.Facility.credentials = ["dask"]',
            "error: JupyterHub.spawner_class: ",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: str) -> None:
    code, printed = checked(tmp_path, capsys, SOUND + text)
    assert code == 1
    assert [each for each in printed.splitlines() if each.strip().startswith(line)], printed


def test_a_value_that_jupyterhub_chokes_on_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SOUND + "c.JupyterHub.hub_bind_url = 'http://127.0.0.1:secret-of-the-client'\n"
    assert main(["check", "--local", "-f", str(write(tmp_path, text))]) == 2
    printed = capsys.readouterr()
    assert "JupyterHub refuses a setting" in printed.err
    assert "secret-of-the-client" not in printed.out + printed.err


def test_what_a_configuration_prints_is_no_part_of_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files of Zero to JupyterHub's chart print what they load."""
    file = write(tmp_path, SOUND + "print('Loading /usr/local/etc/jupyterhub/secret/values.yaml')\n")
    assert main(["check", "--local", "--json", "-f", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["exit_code"] == 0


def test_a_warning_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "dask.secret"
    key.write_text("00" * 40)
    key.chmod(0o644)
    text = f'c.Facility.credentials = ["dask"]\nc.Dask.secret_file = "{key}"\nc.Dask.domain = "example.org"\n'
    code, printed = checked(tmp_path, capsys, SOUND + text)
    assert (code, printed.splitlines()[-1]) == (0, "1 warning; 1 ok"), printed


def test_old_dask_secrets_without_a_hub_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "dask.secret"
    key.write_text("A" * 44 + "\n" + "B" * 44 + "\n")
    key.chmod(0o600)
    text = f'c.Facility.credentials = ["dask"]\nc.Dask.secret_file = "{key}"\nc.Dask.domain = "example.org"\n'
    _, printed = checked(tmp_path, capsys, SOUND + text)
    assert "only the running hub knows whether older secrets" in printed
    assert "BBBB" not in printed


def test_status_says_once_why_the_provider_refuses_this_hub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = [{"user": f"user-{number}", "reason": "invalid_client"} for number in range(3)]
    held = [{"user": "ada", "reason": "not in /cms", "since": "2026-03-01T12:05:59+00:00"}]
    answer = {"held_back": held, "client_refused": refused, "overdue": [], "unkept": {}, "unsure": {}}
    monkeypatch.setattr(operate, "ask", lambda *_: answer | {"dask_secrets": {}})
    assert operate.status(Hub("", TOKEN), argparse.Namespace()) == 1
    assert capsys.readouterr().out.splitlines() == [
        "Held back since 2026-03-01 12:05 UTC: ada: not in /cms",
        "If these are true, end their access: casa-hub confirm",
        "The membership of 3 users can't be checked: invalid_client",
    ]
