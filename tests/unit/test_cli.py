"""What `casa-hub` prints."""

from __future__ import annotations

import pytest

from casa_hub.cli import main


def test_the_reference_has_every_section_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    printed = capsys.readouterr().out
    for name in ("CasaOAuthenticator", "Keeper", "Facility", "XCache", "HTCondor", "Dask", "ServiceX", "TraefikRoutes"):
        assert f"\n{name}\n{'=' * len(name)}\n" in f"\n{printed}"
    assert "by ``openssl rand -base64" in " ".join(printed.split())


def test_one_section_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "HTCondor"]) == 0
    printed = capsys.readouterr().out
    assert "HTCondor.trust_domain" in printed
    assert "XCache" not in printed


def test_a_misspelt_section_is_told_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "HTCondr"]) == 2
    assert "HTCondor" in capsys.readouterr().err
