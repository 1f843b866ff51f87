"""Which credentials a server gets, and what happens when one of them can't be had."""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import ClassVar

import pytest
from traitlets import Int, TraitError
from traitlets.config import Config

from casa_hub import facility as module
from casa_hub.credentials.base import Credential, Minter, Request
from casa_hub.delivery.base import Route
from casa_hub.errors import ConfigurationError, CredentialError, Problem, Severity
from casa_hub.facility import Facility
from casa_hub.naming import Server

NOW = datetime(2026, 8, 1, 12, 0, tzinfo=UTC)
DIRECTORY = PurePosixPath("/etc/cmsaf-secrets")
ALICE = Server("", "alice")


class Token(Minter):
    """A credential of one file, named as it is itself."""

    title = "Token"
    lifetime = Int(60).tag(config=True)
    path: ClassVar[str]

    def mint(self, request: Request) -> Credential:
        generation = int(request.state.get("generation", "0")) + 1
        return Credential(
            name=self.name,
            files={self.path: f"SECRET {request.server.username} {generation}".encode()},
            issued_at=request.now,
            expires_at=request.now + timedelta(seconds=self.lifetime),
            identifiers={"jti": f"{self.name}-{generation}"},
            state={"generation": str(generation)},
        )

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:
        return {f"{self.name.upper()}_FILE": str(directory / self.path), f"{self.name.upper()}_HOST": "x.example.org"}


class XCache(Token):
    name, path = "xcache", "xcache_token"


class Bearer(Token):
    name, path = "bearer", "access_token"

    def mint(self, request: Request) -> Credential:
        if request.token is None:
            raise CredentialError("access token", "the user has none", "Log in again.")
        return super().mint(request)


class ServiceX(Token):
    name, path = "servicex", ".servicex"


class Dask(Token):
    name, path = "dask", "hostcert.pem"

    def routes(self, server: Server) -> Sequence[Route]:
        return [Route(server.host("dask", "example.org"), "scheduler", 8786)]


class Clash(Token):
    name, path = "clash", "xcache_token"


class Broken(Token):
    """A third party's: everything in it fails, with a secret in the text."""

    name, path = "broken", "broken"

    def check(self) -> Sequence[Problem]:
        raise RuntimeError("SECRET")

    def mint(self, request: Request) -> Credential:
        raise KeyError("SECRET")


class BadPath(Token):
    name, path = "badpath", "../../.bashrc"


class BadEnvironment(Token):
    name, path = "badenvironment", "be"

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:
        raise ValueError("SECRET")


ALL = (XCache, Bearer, ServiceX, Dask, Clash, Broken, BadPath, BadEnvironment)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """As if a package had brought these minters."""
    points = [EntryPoint(cls.name, f"{__name__}:{cls.__name__}", module.GROUP) for cls in ALL]
    points.append(EntryPoint("absent", "no_such_module:Absent", module.GROUP))
    points.append(EntryPoint("misnamed", f"{__name__}:XCache", module.GROUP))
    points += [EntryPoint("twice", f"{__name__}:{name}", module.GROUP) for name in ("XCache", "Dask")]
    monkeypatch.setattr(module, "entry_points", lambda group: [point for point in points if point.group == group])
    return points


def facility(*credentials: str, **settings: object) -> Facility:
    sections = {key: settings.pop(key) for key in list(settings) if key[0].isupper()}
    return Facility(config=Config(Facility={"credentials": list(credentials), **settings}, **sections))


def request(server: Server = ALICE) -> Request:
    return Request(server, "0" * 32, NOW)


def messages(problems: Sequence[Problem]) -> list[str]:
    return [str(problem) for problem in problems]


# -- settings


def test_by_default_there_is_no_credential() -> None:
    minted = Facility().mint(request())
    assert (minted.credentials, minted.missing, minted.files, minted.routes) == ({}, {}, {}, ())
    assert Facility().check() == []


def test_a_section_configures_its_minter() -> None:
    minted = facility("xcache", XCache={"lifetime": 600}).mint(request())
    assert minted.credentials["xcache"].expires_at == NOW + timedelta(seconds=600)


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        (["xcahce"], "there is no credential 'xcahce'. Did you mean xcache?"),
        (["DASK"], "there is no credential 'DASK'. Did you mean dask?"),
        (["twice"], "several packages bring a credential 'twice'"),
        (["misnamed"], "is no Minter with the name 'misnamed'"),
        (["absent"], "load failed with ModuleNotFoundError"),
    ],
)
def test_a_credential_that_cannot_be_loaded_is_an_error_that_says_why(credentials: list[str], expected: str) -> None:
    [problem] = facility(*credentials).check_settings()
    assert problem.severity is Severity.ERROR
    assert expected in str(problem)


def test_a_wrong_value_of_a_minter_s_setting_is_told_without_the_value() -> None:
    [problem] = facility("xcache", XCache={"lifetime": "SECRET"}).check_settings()
    assert "'lifetime' trait of a XCache instance expected an int" in str(problem)
    assert "SECRET" not in str(problem)


def test_what_is_required_must_be_enabled() -> None:
    [problem] = facility("xcache", required=["xcach"]).check_settings()
    assert (problem.severity, problem.thing) == (Severity.ERROR, "Facility.required")
    assert problem.remedy == "Did you mean xcache?"
    [problem] = facility("xcache", required=["dask"]).check_settings()
    assert problem.remedy == "Add it there."


def test_two_credentials_cannot_write_the_same_file() -> None:
    broken = facility("xcache", "clash")
    [problem] = broken.check_settings()
    assert "xcache and clash both write the file xcache_token" in str(problem)
    with pytest.raises(ConfigurationError, match="both write"):
        broken.mint(request())


@pytest.mark.parametrize(
    ("choice", "credentials", "expected"),
    [
        ("xcache_token", ["xcache"], None),
        ("xcache_token", ["xcache", "servicex"], "ServiceX client takes a macaroon"),
        ("xcache_token", ["xcache", "bearer"], "WLCG tools"),
        ("access_token", ["bearer"], None),
        ("access_token", ["bearer", "servicex"], None),
        ("access_token", ["bearer", "xcache"], "shows that token to every root:// server"),
        ("none", ["dask"], None),
        ("none", ["xcache"], "finds no macaroon"),
    ],
)
def test_a_bearer_token_file_that_breaks_a_reader_is_a_warning(
    choice: str, credentials: list[str], expected: str | None
) -> None:
    problems = facility(*credentials, bearer_token_file=choice).check_settings()
    assert [problem.severity for problem in problems] == [Severity.WARNING] * (expected is not None)
    assert expected is None or expected in str(problems[0])


@pytest.mark.parametrize(("choice", "needs"), [("xcache_token", "xcache"), ("access_token", "bearer")])
def test_a_bearer_token_file_that_nothing_delivers_is_an_error_if_it_was_asked_for(choice: str, needs: str) -> None:
    [problem] = facility("dask", bearer_token_file=choice).check_settings()
    assert problem.severity is Severity.ERROR
    assert f"needs the credential {needs}" in str(problem)
    assert facility("dask").check_settings() == []


def test_a_check_that_fails_itself_is_told_without_its_text() -> None:
    [problem] = facility("broken").check_minters()
    assert problem.thing == "broken"
    assert "RuntimeError at" in problem.problem
    assert "SECRET" not in str(problem)


# -- minting


def test_the_record_tells_all_but_the_secrets() -> None:
    minted = facility("xcache", "bearer", "dask").mint(request())
    assert json.loads(json.dumps(minted.record)) == {
        "version": 2,
        "server": '["", "alice", ""]',
        "start_id": "0" * 32,
        "order": 0,
        "credentials": {
            name: {
                "issued_at": "2026-08-01T12:00:00+00:00",
                "expires_at": "2026-08-01T12:01:00+00:00",
                "identifiers": {"jti": f"{name}-1"},
                "state": {"generation": "1"},
                "files": [path],
                "order": 0,
                "earlier": [],
            }
            for name, path in (("xcache", "xcache_token"), ("dask", "hostcert.pem"))
        },
        "missing": {"bearer": "access token: the user has none. Log in again."},
    }
    assert minted.files == {"xcache_token": b"SECRET alice 1", "hostcert.pem": b"SECRET alice 1"}
    assert minted.routes == (Route("alice.dask.example.org", "scheduler", 8786),)
    assert "SECRET" not in repr(minted) + repr(minted.parcel()) + json.dumps(minted.record)


def test_a_server_starts_without_an_optional_credential_and_says_so() -> None:
    minted = facility("xcache", "bearer", required=["xcache"]).mint(request())
    assert list(minted.credentials) == ["xcache"]
    assert minted.missing == {"bearer": "access token: the user has none. Log in again."}


def test_a_required_one_that_is_missing_ends_the_start() -> None:
    with pytest.raises(CredentialError, match="the user has none"):
        facility("xcache", "bearer", required=["bearer"]).mint(request())


@pytest.mark.parametrize("required", ["absent", "xcahce"])
def test_a_required_one_that_never_loaded_ends_the_start(required: str) -> None:
    """Even if the hub had started with such a configuration."""
    with pytest.raises(CredentialError):
        facility("xcache", "absent", required=[required]).mint(request())


def test_a_third_party_s_fault_does_not_take_the_others_along(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        minted = facility("broken", "badpath", "xcache").mint(request())
    assert list(minted.credentials) == ["xcache"]
    assert "KeyError" in minted.missing["broken"]
    assert "can't be called '../../.bashrc'" in minted.missing["badpath"]
    assert "KeyError at" in caplog.text
    assert "SECRET" not in caplog.text + str(minted.missing)


# -- environment and routes


def test_the_environment_names_only_files_that_are_there() -> None:
    one = facility("xcache", "bearer", "dask")
    assert one.environment(one.mint(request()), DIRECTORY) == {
        "XCACHE_FILE": "/etc/cmsaf-secrets/xcache_token",
        "XCACHE_HOST": "x.example.org",
        "DASK_FILE": "/etc/cmsaf-secrets/hostcert.pem",
        "DASK_HOST": "x.example.org",
        "BEARER_TOKEN_FILE": "/etc/cmsaf-secrets/xcache_token",
    }


@pytest.mark.parametrize("choice", ["access_token", "none"])
def test_bearer_token_file_is_not_set_to_what_is_not_there(choice: str) -> None:
    one = facility("xcache", "bearer", bearer_token_file=choice)
    assert "BEARER_TOKEN_FILE" not in one.environment(one.mint(request()), DIRECTORY)


def test_a_minter_without_environment_costs_its_own_only(caplog: pytest.LogCaptureFixture) -> None:
    one = facility("badenvironment", "xcache")
    with caplog.at_level(logging.DEBUG):
        assert "XCACHE_FILE" in one.environment(one.mint(request()), DIRECTORY)
    assert "ValueError at" in caplog.text
    assert "SECRET" not in caplog.text


def test_routes_of_a_missing_credential_do_not_exist() -> None:
    assert facility("xcache").mint(request()).routes == ()
    assert not facility("xcache").wants_routes
    assert facility("xcache", "dask").wants_routes


# -- renewal


def test_renewal_mints_what_is_named_from_the_state_that_is_known() -> None:
    one = facility("xcache", "dask")
    first = one.mint(request())
    later = Request(ALICE, first.start_id, NOW + timedelta(seconds=40))
    second = one.renew(later, ["xcache"], first.record)
    assert second.files == {"xcache_token": b"SECRET alice 2"}
    entries = second.record["credentials"]
    assert entries["xcache"]["identifiers"] == {"jti": "xcache-2"}
    assert entries["xcache"]["issued_at"] == "2026-08-01T12:00:40+00:00"
    assert entries["dask"] == first.record["credentials"]["dask"]


def test_a_credential_that_was_missing_may_come_later() -> None:
    one = facility("xcache", "bearer", "broken")
    first = one.mint(request())
    token = module.AccessToken("t", None)
    second = one.renew(Request(ALICE, first.start_id, NOW, token), ["bearer"], first.record)
    assert second.files == {"access_token": b"SECRET alice 1"}
    assert set(second.record["missing"]) == {"broken"}


def test_a_renewal_that_fails_keeps_what_is_there_even_if_it_is_required() -> None:
    one = facility("xcache", "bearer", required=["bearer"])
    first = one.mint(Request(ALICE, "0" * 32, NOW, module.AccessToken("t", None)))
    second = one.renew(request(), ["bearer"], first.record)
    assert second.files == {}
    assert second.missing == {"bearer": "access token: the user has none. Log in again."}
    assert second.record == first.record


# -- one a hub


def test_there_is_one_facility_a_hub() -> None:
    def spawner(settings: dict[str, object]) -> SimpleNamespace:
        return SimpleNamespace(user=SimpleNamespace(settings=settings))

    one = {"config": Config(Facility={"hub_id": "one"})}
    other = {"config": Config(Facility={"hub_id": "other"})}
    assert Facility.of(spawner(one)) is Facility.of(spawner(one))
    assert Facility.of(spawner(other)).hub_id == "other"
    assert Facility.of(spawner(one)).server("alice", "x") == Server("one", "alice", "x")


@pytest.mark.parametrize("path", ["", "/", "secrets", "/a/../b", "/a:b", "/$HOME"])
def test_a_secrets_path_that_cannot_be_mounted_is_refused(path: str) -> None:
    with pytest.raises(TraitError, match="secrets_path"):
        Facility(secrets_path=path)
