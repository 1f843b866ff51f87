"""The least versions that are safe: in the checks as in the guide, and what is one of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.checks import versions
from casa_hub.checks.cluster import read_traefik
from casa_hub.checks.findings import Status
from casa_hub.checks.versions import JUPYTERHUB, TRAEFIK, TRAEFIK_GATEWAY, XROOTD, Neighbour
from tests.docs.pages import ROOT

NEIGHBOURS = [JUPYTERHUB, TRAEFIK, TRAEFIK_GATEWAY, XROOTD]


def test_the_guide_has_the_same_table() -> None:
    section = (ROOT / "docs" / "operators.md").read_text().partition("## The least versions")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (\d.+?) \| (.+?) \|$", section, re.MULTILINE)
    assert rows == [(one.name, " or ".join(map(versions.shown, one.least)), one.fault) for one in NEIGHBOURS]


@pytest.mark.parametrize(
    ("neighbour", "text", "safe"),
    [
        (XROOTD, "v5.8.1", False),
        (XROOTD, "v5.9.5", False),
        (XROOTD, "v5.9.6", True),
        (XROOTD, "v5.10.0", True),
        (XROOTD, "v6.0.3", False),
        (XROOTD, "6.2.1", True),
        (XROOTD, "v4.12.7", False),
        (XROOTD, "v7.0.0", True),
        (XROOTD, "v5.9.6-rc1", True),
        (XROOTD, "v5.8.1+git", False),
        (TRAEFIK, "2.11.40", False),
        (TRAEFIK, "2.11.41", True),
        (TRAEFIK, "v3.6.10", False),
        (TRAEFIK, "3.7.15", True),
        (TRAEFIK_GATEWAY, "3.7.0", False),
        (TRAEFIK_GATEWAY, "3.7.1", True),
        (JUPYTERHUB, "5.5.0", False),
        (JUPYTERHUB, "5.5.4", True),
        (JUPYTERHUB, "6.0.2", False),
        (JUPYTERHUB, "6.1.1", True),
    ],
)
def test_a_version_is_compared_with_the_corrected_one_of_its_own_line(
    neighbour: Neighbour, text: str, safe: bool
) -> None:
    finding = versions.read(neighbour, "it", text)
    assert finding is not None
    assert finding.status is (Status.OK if safe else Status.WARNING)
    if not safe:
        assert neighbour.fault in finding.problem
        assert f"Upgrade to {' or '.join(map(versions.shown, neighbour.least))}" in finding.remedy


@pytest.mark.parametrize("text", ["", "latest", "v3", "v3.6", "3.6-alpine", "dev", "v1.2.3.4", "\u0663.6.1", "v3.6.x"])
def test_of_what_is_no_whole_version_nothing_is_said(text: str) -> None:
    assert versions.read(TRAEFIK, "it", text) is None


@given(st.text())
def test_whatever_a_server_calls_itself(text: str) -> None:
    versions.read(XROOTD, "it", versions.of_server_header({"SERVER": text}))


def test_only_xrootd_s_own_header_counts() -> None:
    """A proxy in front of it has versions, too."""
    assert versions.of_server_header({"Server": "XrootD/v5.8.1"}) == "v5.8.1"
    assert versions.of_server_header({"server": "nginx/1.2.3"}) == ""
    assert versions.of_server_header({}) == ""


def pod(name: str, *images: str) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "traefik", "name": name},
        "spec": {"containers": [{"name": "c", "image": image} for image in images]},
    }


def test_traefik_s_pods_are_known_by_their_images() -> None:
    pods = [
        pod("old", "registry.example.org:5000/library/traefik:v3.6.10@sha256:0", "example.org/agent:1.0.0"),
        pod("old-2", "traefik:v3.6.10"),
        pod("new", "docker.io/traefik:3.7.0"),
        pod("moving", "traefik:v3.6"),
        pod("pinned", "traefik@sha256:0"),
        pod("another", "example.org/traefik-forward-auth:2.0.0"),
        {"metadata": {"namespace": "traefik", "name": "empty"}},
    ]
    found = read_traefik("traefik", pods)
    assert [(one.status, one.thing) for one in found] == [
        (Status.WARNING, "version of Traefik in pod traefik/old"),
        (Status.OK, "version of Traefik in pod traefik/new"),
    ]
    # Whoever uses the Gateway API needs a later one.
    assert [one.status for one in read_traefik("gateway", pods)].count(Status.WARNING) == 3
