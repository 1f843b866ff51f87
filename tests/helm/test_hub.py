"""The chart's own configuration with ours, byte for byte, in a real JupyterHub that is about to serve."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.conftest import CLIENT_SECRET, FILES, ROOT, VALUES, HubIn, Probe, Render
from tests.support.helm import template
from tests.support.hub_pod import HubPod
from tests.support.scale import one_for_both_hubs

CONFIG_D = "/usr/local/etc/jupyterhub/jupyterhub_config.d"
SNIPPET = ROOT / "jupyterhub_config.d" / "casa_hub.py"
PARTS = ("authenticator_class", "spawner_class")


def config_of(name: str) -> dict[str, dict[str, Any]]:
    config: dict[str, dict[str, Any]] = yaml.safe_load((VALUES / f"{name}.yaml").read_text())["hub"]["config"]
    return config


def test_the_charts_files_are_where_it_wants_them(chart: Path, render: Render) -> None:
    files = HubPod(render("dev"), {"casa-hub-keys": {"dask": b""}}).files()
    for name in ("jupyterhub_config.py", "z2jh.py"):
        file = files[f"/usr/local/etc/jupyterhub/{name}"]
        if chart.is_dir():
            assert file.data == (chart / "files" / "hub" / name).read_bytes()
        assert b"get_config" in file.data


@pytest.mark.parametrize("name", one_for_both_hubs(FILES))
def test_each_setting_arrives(name: str, probe: Probe) -> None:
    settings = probe(name)["settings"]
    for section, values in config_of(name).items():
        for key, value in values.items():
            if section == "JupyterHub":
                continue
            arrived = settings[section][key]
            assert arrived == (sorted(value) if isinstance(value, list) and key.endswith(("groups", "idps")) else value)
    assert settings["JupyterHub"]["spawner_class"] == "casa_hub.spawner.CasaSpawner"
    if name != "dev":
        assert settings["JupyterHub"]["authenticator_class"] == "casa_hub.authenticator.CasaOAuthenticator"
        assert settings["CasaOAuthenticator"]["client_secret"] == CLIENT_SECRET


@pytest.mark.parametrize("name", one_for_both_hubs(FILES))
def test_the_hub_has_nothing_to_complain_of(name: str, probe: Probe) -> None:
    """But what is an operator's choice, or due to nobody having logged in here."""
    log = probe(name)["log"]
    lines = [line for line in log.splitlines() if line.startswith(("[W", "[E", "[C"))]
    expected = ("bearer_token_file", "No bearer", "DummyAuthenticator", "127.0.0.1:1")
    assert [line for line in lines if not any(word in line for word in expected)] == []
    assert CLIENT_SECRET not in log


@pytest.mark.parametrize(
    ("section", "key", "remedy"),
    one_for_both_hubs(
        [
            ("XCache", "key_fil", "Did you mean key_file?"),
            ("CasaOAuthenticator", "allowed_group", "Did you mean allowed_groups?"),
            ("Facilty", "required", "Did you mean Facility?"),
        ]
    ),
)
def test_a_wrong_key_is_refused_with_the_right_one(section: str, key: str, remedy: str, hub_in: HubIn) -> None:
    command = [sys.executable, "-m", "jupyterhub", "--config", "/usr/local/etc/jupyterhub/jupyterhub_config.py"]
    done = hub_in(["cms", {"hub": {"config": {section: {key: ["x"]}}}}], command)
    assert done.returncode == 1
    refusals = [line for line in (done.stdout + done.stderr).splitlines() if remedy in line]
    assert refusals
    assert all(section in line for line in refusals)


@pytest.mark.parametrize("name", one_for_both_hubs([name for name in FILES if name != "dev"]))
def test_an_operator_s_commands_find_the_hub_and_a_token_for_it(name: str, hub_in: HubIn) -> None:
    command = [sys.executable, "-m", "casa_hub.cli", "status", "-f", "/usr/local/etc/jupyterhub/jupyterhub_config.py"]
    done = hub_in([name], command)
    assert done.returncode == 2
    assert "http://127.0.0.1:8081/hub/api" in done.stderr  # which nobody listens at here: so it would have asked


def with_snippet(config: dict[str, Any], *names: str) -> dict[str, Any]:
    text = SNIPPET.read_text()
    files = {
        f"snippet{number}": {"mountPath": f"{CONFIG_D}/{name}", "stringData": text} for number, name in enumerate(names)
    }
    return {"hub": {"config": config, "extraFiles": files}}


def without_what_the_snippet_finds() -> dict[str, Any]:
    """cms.yaml less the two classes and the key files."""
    values: dict[str, Any] = yaml.safe_load((VALUES / "cms.yaml").read_text())
    config = values["hub"]["config"]
    del config["JupyterHub"]
    for section, key in ("XCache", "key_file"), ("HTCondor", "key_file"), ("Dask", "secret_file"):
        del config[section][key]
    return values


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("90-casa-hub.py",), id="once", marks=pytest.mark.both_hubs),
        pytest.param(("10-casa-hub.py", "90-casa-hub.py"), id="twice"),
    ],
)
def test_the_snippet_says_the_same_as_hub_config(names: tuple[str, ...], probe: Probe) -> None:
    assert len(SNIPPET.read_text().splitlines()) <= 30
    told = probe(without_what_the_snippet_finds(), with_snippet({}, *names))
    said = probe("cms")["settings"]
    for section in ("CasaOAuthenticator", "Facility", "XCache", "HTCondor", "Dask", "KubeSpawner"):
        assert told["settings"][section] == said[section]
    assert {key: told["settings"]["JupyterHub"][key] for key in PARTS} == {
        key: said["JupyterHub"][key] for key in PARTS
    }
    for name in names:
        assert f"Loading {CONFIG_D} config: {name}" in told["log"]


def test_the_snippet_is_mounted_as_the_readme_says(chart: Path) -> None:
    text = (VALUES / "README.md").read_text()
    option = re.findall(r"`--set-file (\S+)`", text)
    (path,) = re.findall(r"`hub\.extraFiles\.casa_hub\.mountPath: (\S+)`", text)
    values = [VALUES / "dev.yaml"]
    key, file = option[0].split("=")
    more = ["--set-file", f"{key}={ROOT / file}", "--set", f"hub.extraFiles.casa_hub.mountPath={path}"]
    files = HubPod(template(chart, values, *more), {"casa-hub-keys": {"dask": b""}}).files()
    assert files[path].data == SNIPPET.read_bytes()
    assert path.startswith(CONFIG_D)


def test_the_snippet_leaves_what_is_set(probe: Probe) -> None:
    config = {"XCache": {"key_file": "/etc/casa-hub/dask"}, "JupyterHub": {"spawner_class": "casa"}}
    told = probe("cms", with_snippet(config, "90-casa-hub.py"))
    assert told["settings"]["XCache"]["key_file"] == "/etc/casa-hub/dask"


@pytest.mark.both_hubs
def test_a_spawner_class_of_the_sites_own_gets_the_same_pod(probe: Probe) -> None:
    """Here KubeSpawner by another of its names, which is none that the snippet takes for the chart's default."""
    own = {"JupyterHub": {"spawner_class": "kubespawner.spawner.KubeSpawner"}}
    told = probe("cms", with_snippet(own, "10-casa-hub.py", "90-casa-hub.py"))
    assert told["settings"]["JupyterHub"]["spawner_class"] == "kubespawner.spawner.KubeSpawner"
    ours, theirs = told["pod"]["spec"], probe("cms")["pod"]["spec"]
    assert [one["name"] for one in ours["initContainers"]] == [one["name"] for one in theirs["initContainers"]]
    assert ours["containers"][0]["volumeMounts"] == theirs["containers"][0]["volumeMounts"]
