"""What the values files promise of themselves, without the chart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from traitlets.config import Config

from casa_hub.authenticator import CasaOAuthenticator
from casa_hub.spawner import CasaSpawner
from casa_hub.startup import sections
from casa_hub.unknown_keys import unknown_keys
from tests.helm.conftest import FILES, VALUES

#: Settings whose name speaks of a secret and whose value is none.
REFERENCES = {"existingSecret", "secretName", "key_id", "key"}


def load(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((VALUES / f"{name}.yaml").read_text())
    return values


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    else:
        yield path, value


@pytest.mark.parametrize("name", FILES)
def test_it_is_read_in_a_sitting_and_says_what_it_is(name: str) -> None:
    lines = (VALUES / f"{name}.yaml").read_text().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 125
    assert lines[0].startswith("# ")
    assert sum("#" in line for line in lines) >= 8


@pytest.mark.parametrize("name", FILES)
def test_it_holds_no_secret(name: str) -> None:
    for path, value in leaves(load(name)):
        if re.search("secret|password|token|key|crypt", path[-1], re.IGNORECASE) and path[-1] not in REFERENCES:
            assert path[-1] == "bearer_token_file" or str(value).startswith("/etc/casa-hub/"), path
        assert not re.search("[0-9A-Za-z+/=]{32,}", str(value).replace("/", " ")), path


@pytest.mark.parametrize("name", FILES)
def test_every_key_file_is_of_the_secret_that_is_mounted(name: str) -> None:
    hub = load(name)["hub"]
    (mount,), (volume,) = hub["extraVolumeMounts"], hub["extraVolumes"]
    assert mount["name"] == volume["name"]
    assert mount["readOnly"] is True
    assert volume["secret"] == {"secretName": "casa-hub-keys", "defaultMode": 0o440}
    named = {value for path, value in leaves(hub["config"]) if str(value).startswith("/etc/")}
    assert named <= {f"{mount['mountPath']}/{key}" for key in ("xcache", "condor", "dask")}
    wanted = {"xcache": "xcache", "htcondor": "condor", "dask": "dask"}
    credentials = hub["config"]["Facility"]["credentials"]
    assert named == {f"{mount['mountPath']}/{wanted[one]}" for one in credentials if one in wanted}


@pytest.mark.parametrize("name", FILES)
def test_every_setting_of_ours_exists(name: str) -> None:
    config = Config(load(name)["hub"]["config"])
    assert not [str(problem) for problem in unknown_keys(config, sections(CasaOAuthenticator, CasaSpawner))]


@pytest.mark.parametrize(
    ("name", "provider", "groups"),
    [
        ("cms", "cms-iam", ["/cms/uscms"]),
        ("atlas", "atlas-iam", ["/atlas/usatlas"]),
        ("opendata", "cilogon", ["CO:COU:OpenData Facility:members:active"]),
    ],
)
def test_a_group_lets_in_and_nothing_else(name: str, provider: str, groups: list[str]) -> None:
    config = load(name)["hub"]["config"]
    assert config["CasaOAuthenticator"]["provider"] == provider
    assert config["CasaOAuthenticator"]["allowed_groups"] == groups
    assert "allow_all" not in config["CasaOAuthenticator"]
    assert "Authenticator" not in config
