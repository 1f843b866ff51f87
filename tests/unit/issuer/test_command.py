"""``casa-hub issuer``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from casa_hub.cli import main
from casa_hub.issuer.tokens import read_private_key


def config(tmp_path: Path) -> list[str]:
    file = tmp_path / "jupyterhub_config.py"
    file.write_text(
        f'c.FacilityIssuer.keys = "{tmp_path}"\nc.FacilityIssuer.vo = "cms"\n'
        'c.FacilityIssuer.url = "https://hub.example.org/issuer"\n'
    )
    return ["-f", str(file)]


@pytest.mark.parametrize("options", [[], ["--rsa"]])
def test_a_new_key_is_in_the_file_and_its_public_half_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    file = tmp_path / "1.pem"
    assert main(["issuer", "new-key", str(file), *options]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == read_private_key(file.read_bytes()).jwk
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "1.pem"
    file.write_text("a key")
    assert main(["issuer", "new-key", str(file)]) == 2
    assert "exists already. Name another file" in capsys.readouterr().err
    assert file.read_text() == "a key"


def test_what_verifiers_read_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["issuer", "new-key", str(tmp_path / "1.pem")])
    jwk = json.loads(capsys.readouterr().out)
    assert main(["issuer", "jwks", *config(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"keys": [jwk]}
    assert main(["issuer", "cache", *config(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["https://hub.example.org/issuer/cms"]["jwks"] == {"keys": [jwk]}
    assert "/var/cache/jwks/" in printed.err


def test_without_a_key_the_command_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["issuer", "jwks", *config(tmp_path)]) == 2
    assert "has no file *.pem. Make one: casa-hub issuer new-key FILE." in capsys.readouterr().err
