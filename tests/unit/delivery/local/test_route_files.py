"""Routes as documents for Traefik's file provider, on one machine."""

import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from traitlets.config import Config

from casa_hub.credentials.base import Route
from casa_hub.delivery.local.route_files import RouteFiles, document
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.errors import DeliveryError, Severity
from casa_hub.naming import Server

ALICE = Server("", "alice", "")
ROUTES = (
    Route("alice.dask.example.org", "scheduler", 8786),
    Route("alice.dask-worker.example.org", "worker", 8788),
)


def test_the_document_in_full() -> None:
    assert document(TraefikRoutes(), ROUTES, "127.77.0.5") == {
        "tcp": {
            "routers": {
                "alice.dask.example.org": {
                    "entryPoints": ["dask"],
                    "rule": "HostSNI(`alice.dask.example.org`)",
                    "service": "alice.dask.example.org",
                    "tls": {"passthrough": True},
                },
                "alice.dask-worker.example.org": {
                    "entryPoints": ["daskworker"],
                    "rule": "HostSNI(`alice.dask-worker.example.org`)",
                    "service": "alice.dask-worker.example.org",
                    "tls": {"passthrough": True},
                },
            },
            "services": {
                "alice.dask.example.org": {"loadBalancer": {"servers": [{"address": "127.77.0.5:8786"}]}},
                "alice.dask-worker.example.org": {"loadBalancer": {"servers": [{"address": "127.77.0.5:8788"}]}},
            },
        }
    }


@given(user=st.text(min_size=1, max_size=200), name=st.text(max_size=200))
def test_any_user_and_server_name_gives_a_rule_for_one_host(user: str, name: str) -> None:
    host = Server("", user, name).host("dask", "example.org")
    [router] = document(TraefikRoutes(), [Route(host, "scheduler", 8786)], "127.77.0.5")["tcp"]["routers"].values()
    assert re.fullmatch(r"HostSNI\(`[a-z0-9-]+\.dask\.example\.org`\)", router["rule"])


@pytest.mark.parametrize(
    "host",
    ["", "*", "*.dask.example.org", "a`) || HostSNI(`*", "a b", "A.example.org", "a..b", "a.", "-a", "a" * 64, "a\n"],
)
def test_what_is_no_host_name_becomes_no_rule(host: str) -> None:
    with pytest.raises(DeliveryError, match="not a DNS name"):
        document(TraefikRoutes(), [Route(host, "scheduler", 1)], "127.77.0.5")


def test_a_host_leads_to_one_port() -> None:
    with pytest.raises(DeliveryError, match="two routes"):
        document(TraefikRoutes(), [ROUTES[0], ROUTES[0]], "127.77.0.5")


def routes(directory: Path, **settings: object) -> RouteFiles:
    return RouteFiles(TraefikRoutes(config=Config(TraefikRoutes={"directory": str(directory), **settings})))


def test_each_server_has_a_file_of_its_own_and_takes_it_along(tmp_path: Path) -> None:
    traefik, bob = routes(tmp_path), Server("", "bob")
    traefik.publish(ALICE, "1", ROUTES, "127.77.0.5")
    traefik.publish(bob, "2", [Route("bob.dask.example.org", "scheduler", 8786)], "127.77.0.6")
    assert {path.name for path in tmp_path.iterdir()} == {"alice.yml", "bob.yml"}
    written = yaml.safe_load((tmp_path / "alice.yml").read_text())
    assert written == document(TraefikRoutes(), ROUTES, "127.77.0.5")
    traefik.retract(ALICE, "another start")
    assert (tmp_path / "alice.yml").exists()
    traefik.retract(ALICE, "1")
    traefik.retract(ALICE, "1")
    assert {path.name for path in tmp_path.iterdir()} == {"bob.yml"}


def test_files_of_others_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "alice.yml").write_text("http: {}\n")
    with pytest.raises(DeliveryError, match="another server"):
        routes(tmp_path).publish(ALICE, "1", ROUTES, "127.77.0.5")
    routes(tmp_path).retract(ALICE, "1")
    routes(tmp_path).sweep("", set())
    assert (tmp_path / "alice.yml").read_text() == "http: {}\n"


@pytest.mark.parametrize(
    "mark",
    [
        "",
        "[1]",
        "null",
        '{"server": 5, "start_id": "1"}',
        '{"server": "[\\"\\", \\"alice\\", \\"\\"]"}',
        '{"server": "[\\"\\", \\"alice\\", \\"\\"]", "start_id": 1}',
        '{"server": "zzz", "start_id": "1"}',
        '{"server": "[]", "start_id": "1"}',
        '{"server": "[\\"\\", 5, \\"\\"]", "start_id": "1"}',
        '{"server": "null", "start_id": "1"}',
        "[" * 100_000,
        "\udcff",
    ],
    ids=lambda mark: repr(mark[:50]),
)
def test_a_mark_that_is_not_ours_leaves_the_file_alone(mark: str, tmp_path: Path) -> None:
    """Such a first line once kept the whole hub from starting."""
    content = f"# casa_hub: {mark}\n".encode(errors="surrogateescape")
    (tmp_path / "alice.yml").write_bytes(content)
    routes(tmp_path).sweep("", set())
    routes(tmp_path).retract(ALICE, "1")
    with pytest.raises(DeliveryError, match="another server"):
        routes(tmp_path).publish(ALICE, "1", ROUTES, "127.77.0.5")
    assert (tmp_path / "alice.yml").read_bytes() == content


@pytest.mark.parametrize("kind", ["directory", "pipe", "link", "dangling link"])
def test_what_is_no_plain_file_is_left_alone(kind: str, tmp_path: Path) -> None:
    directory, path = tmp_path / "routes", tmp_path / "routes" / "alice.yml"
    directory.mkdir()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        (tmp_path / "kept").mkdir()
        if kind == "link":
            routes(tmp_path / "kept").publish(ALICE, "1", ROUTES, "127.77.0.5")
        path.symlink_to(tmp_path / "kept" / "alice.yml")
    before = path.lstat().st_ino
    routes(directory).sweep("", set())
    routes(directory).retract(ALICE, "1")
    with pytest.raises(DeliveryError, match="another server"):
        routes(directory).publish(ALICE, "1", ROUTES, "127.77.0.5")
    assert path.lstat().st_ino == before


def test_the_sweep_takes_documents_that_a_killed_hub_did_not_come_to_name(tmp_path: Path) -> None:
    routes(tmp_path).publish(ALICE, "1", ROUTES, "127.77.0.5")
    [document_] = tmp_path.iterdir()
    unnamed = tmp_path / f".{document_.stem}.0badc0de.new"
    unnamed.write_text(document_.read_text())
    others = [tmp_path / ".somebody.0badc0de.new", tmp_path / ".x.new"]
    for other in others:
        other.write_text("not ours")
    routes(tmp_path).sweep("", {(ALICE.identity, "1")})
    assert sorted(tmp_path.iterdir()) == sorted([document_, *others])


def test_the_sweep_takes_what_this_hub_left_only(tmp_path: Path) -> None:
    traefik, other = routes(tmp_path), Server("other-hub", "carol")
    for number, server in enumerate((ALICE, Server("", "bob"), other)):
        traefik.publish(server, str(number), ROUTES, "127.77.0.5")
    traefik.sweep("", {(ALICE.identity, "0")})
    assert {path.name for path in tmp_path.iterdir()} == {"alice.yml", "carol.yml"}


def test_nothing_is_written_without_routes_or_with_none(tmp_path: Path) -> None:
    routes(tmp_path).publish(ALICE, "1", (), "127.77.0.5")
    routes(tmp_path, kind="none").publish(ALICE, "1", ROUTES, "127.77.0.5")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_said_before_anybody_spawns(tmp_path: Path) -> None:
    [unset] = RouteFiles(TraefikRoutes()).check(wanted=True)
    assert unset.severity is Severity.ERROR
    assert "TraefikRoutes.kind to none" in unset.remedy
    [absent] = routes(tmp_path / "absent").check(wanted=True)
    assert "absent" in absent.problem
    assert routes(tmp_path).check(wanted=True) == []
    assert RouteFiles(TraefikRoutes()).check(wanted=False) == []
    assert routes(tmp_path / "absent", kind="none").check(wanted=True) == []
