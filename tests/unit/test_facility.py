"""Which credentials a server gets, and what happens when one of them can't be had."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from traitlets import Bool, Int, List, TraitError, Unicode
from traitlets.config import Config, LoggingConfigurable

from casa_hub import facility as module
from casa_hub import minters
from casa_hub import record as record_module
from casa_hub.audit import Action, Event
from casa_hub.credentials.base import AccessToken, BearerKind, Credential, Minter, Request, Route
from casa_hub.credentials.fetching import Fetch, Fetched, FetchError, Outcomes, Why
from casa_hub.errors import ConfigurationError, CredentialError, Problem, Severity
from casa_hub.facility import Facility
from casa_hub.hub import CasaHub
from casa_hub.naming import Server
from casa_hub.record import ServerRecord, parse, parse_text

NOW = datetime(2026, 8, 1, 12, 0, tzinfo=UTC)
DIRECTORY = PurePosixPath("/etc/cmsaf-secrets")
ALICE = Server("", "alice")


class Token(Minter):
    """A credential of one file, named as it is itself."""

    title = "Token"
    outside = True
    lifetime = Int(60).tag(config=True)
    works = Bool(True)
    path: ClassVar[str]
    kind: ClassVar[BearerKind | None] = None

    @property
    def bearer_files(self) -> Mapping[str, BearerKind]:
        return {self.path: self.kind} if self.kind else {}

    def mint(self, request: Request) -> Credential:
        if not self.works:
            raise CredentialError("key", "can't be read", "Make it readable.")
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
    kind = BearerKind.MACAROON


class Bearer(Token):
    name, path = "bearer", "access_token"
    kind = BearerKind.OWN
    renewal = "token"

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


class Below(Token):
    """A directory where another one has a file."""

    name, path = "below", "xcache_token/token"


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


class Odd(Token):
    """A third party's, which forgets what a credential is."""

    name, path = "odd", "odd"
    change: ClassVar[dict[str, Any]] = {}

    def mint(self, request: Request) -> Credential:
        return replace(super().mint(request), **self.change)


class Pulled(Token):
    """What is fetched: a section that makes as many credentials as it has audiences."""

    name, path = "pulled", "pulled"
    audiences = List(Unicode(), ["rucio", "panda"]).tag(config=True)

    @classmethod
    def parts(cls, parent: LoggingConfigurable) -> Sequence[type[Minter]]:
        audiences = cls(parent=parent).audiences
        return [type("Part", (Part,), {"name": f"pulled:{one}", "path": f"pulled_{one}"}) for one in audiences]


class Part(Token):
    @property
    def fetch(self) -> Fetch | None:
        return Fetch(f"a token for {self.name}", lambda _: fetched(), form={"audience": self.name})

    def mint(self, request: Request) -> Credential:
        found = request.fetched_for(self.name)
        new = replace(super().mint(request), issued_at=found.at, expires_at=found.expires_at)
        return replace(new, files={self.path: found.value.encode()})


class PulledByToken(Part):
    name, path = "bytoken", "bytoken"
    renewal = "token"


class PulledAtTimes(Part):
    """Its request can't be told."""

    name, path = "attimes", "attimes"

    @property
    def fetch(self) -> Fetch | None:
        raise RuntimeError("SECRET")


class PulledOddly(Part):
    name, path = "oddly", "oddly"
    fetch = "https://service.example.org"  # type: ignore[assignment]


class BadParts(Token):
    name, path = "badparts", "badparts"

    @classmethod
    def parts(cls, parent: LoggingConfigurable) -> Sequence[type[Minter]]:
        raise RuntimeError("SECRET")


class Impostor(Token):
    name, path = "impostor", "impostor"

    @classmethod
    def parts(cls, parent: LoggingConfigurable) -> Sequence[type[Minter]]:
        return [XCache]


def fetched(value: str = "SECRET fetched") -> Fetched:
    return Fetched(value, NOW, NOW + timedelta(hours=1))


ALL = (
    *(XCache, Bearer, ServiceX, Dask, Clash, Below, Broken, BadPath, BadEnvironment, Odd),
    *(Pulled, PulledByToken, PulledAtTimes, PulledOddly, BadParts, Impostor),
)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """As if a package had brought these minters."""
    points = [EntryPoint(cls.name, f"{__name__}:{cls.__name__}", minters.GROUP) for cls in ALL]
    points.append(EntryPoint("absent", "no_such_module:Absent", minters.GROUP))
    points.append(EntryPoint("misnamed", f"{__name__}:XCache", minters.GROUP))
    points += [EntryPoint("twice", f"{__name__}:{name}", minters.GROUP) for name in ("XCache", "Dask")]
    monkeypatch.setattr(minters, "entry_points", lambda group: [point for point in points if point.group == group])
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
    assert Facility().check_settings() == []


def test_a_section_configures_its_minter() -> None:
    minted = facility("xcache", XCache={"lifetime": 600}).mint(request())
    assert minted.credentials["xcache"].expires_at == NOW + timedelta(seconds=600)


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        (["xcahce"], "there is no credential 'xcahce'. Did you mean xcache?"),
        (["DASK"], "there is no credential 'DASK'. Did you mean dask?"),
        (["twice"], "several packages have a credential 'twice'"),
        (["misnamed"], "is no Minter with the name 'misnamed'"),
        (["absent"], "load failed with ModuleNotFoundError"),
        (["bytoken"], "'bytoken' is made of what is fetched, but isn't renewed by time"),
        (["attimes"], "attimes: load failed with RuntimeError"),
        (["oddly"], "what 'oddly' wants to be fetched is no Fetch"),
        (["badparts"], "badparts: load failed with RuntimeError"),
        (["xcache", "impostor"], "several credentials are called 'xcache'"),
    ],
)
def test_a_credential_that_cannot_be_loaded_is_an_error_that_says_why(credentials: list[str], expected: str) -> None:
    [problem] = facility(*credentials).check_settings()
    assert problem.severity is Severity.ERROR
    assert expected in str(problem)
    assert "SECRET" not in str(problem)


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


@pytest.mark.parametrize("credentials", [("xcache", "below"), ("below", "xcache")])
def test_a_file_and_a_directory_cannot_have_the_same_name(credentials: tuple[str, str]) -> None:
    """No delivery can write both, so no server started; `TokenExchange.services` lets an operator choose names."""
    [problem] = facility(*credentials).check_settings()
    assert problem.severity is Severity.ERROR
    assert "xcache writes the file xcache_token, and below one in a directory of that name" in str(problem)


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


def test_the_variable_may_name_any_file_that_a_credential_delivers() -> None:
    one = facility("dask", "xcache", bearer_token_file="hostcert.pem")
    assert one.environment(one.mint(request()), DIRECTORY)["BEARER_TOKEN_FILE"] == "/etc/cmsaf-secrets/hostcert.pem"
    [problem] = one.check_settings()
    assert (problem.severity, problem.thing) == (Severity.WARNING, "Facility.bearer_token_file")
    assert "isn't known to be one" in problem.problem


def test_a_file_of_no_credential_is_an_error_unless_a_credential_can_t_be_tried() -> None:
    [problem] = facility("xcache", bearer_token_file="xcache_tokn").check_settings()
    assert problem.severity is Severity.ERROR
    assert problem.remedy == "Choose xcache_token or none."
    [problem] = facility("xcache", "broken", bearer_token_file="xcache_tokn").check_settings()
    assert problem.severity is Severity.WARNING


@pytest.mark.parametrize("name", ["", "../x", "/etc/passwd", "a/b/c"])
def test_what_can_t_be_a_file_of_a_server_is_refused(name: str) -> None:
    with pytest.raises(TraitError, match=r"Facility\.bearer_token_file is .*, must be a file of a credential, or none"):
        facility("xcache", bearer_token_file=name)


def test_a_check_that_fails_itself_is_told_without_its_text() -> None:
    [problem] = facility("broken").check_minters()
    assert problem.thing == "broken"
    assert "RuntimeError at" in problem.problem
    assert "SECRET" not in str(problem)


# -- minting


def test_the_record_tells_all_but_the_secrets() -> None:
    minted = facility("xcache", "bearer", "dask").mint(request())
    assert json.loads(json.dumps(minted.record.to_document())) == {
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
    assert "SECRET" not in repr(minted) + json.dumps(minted.record.to_document())


def test_a_server_starts_without_an_optional_credential_and_says_so() -> None:
    minted = facility("xcache", "bearer", required=["xcache"]).mint(request())
    assert list(minted.credentials) == ["xcache"]
    assert minted.missing == {"bearer": "access token: the user has none. Log in again."}


def test_a_required_one_that_is_missing_ends_the_start() -> None:
    with pytest.raises(CredentialError, match="the user has none"):
        facility("xcache", "bearer", required=["bearer"]).mint(request())


@pytest.mark.parametrize("technical", [True, False], ids=["technical", "a person"])
async def test_a_technical_user_s_server_starts_without_what_is_made_of_a_token_and_gets_nobody_else_s(
    technical: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have logged in under that name before it was a technical user's."""
    told: list[Event] = []
    monkeypatch.setattr(module, "tell", lambda _, event: told.append(event))
    one = facility("xcache", "bearer", required=["xcache", "bearer"])

    async def stored(_: Any) -> AccessToken:
        return AccessToken("SECRET", None)

    names = {"health-check"} if technical else set()
    spawner = SimpleNamespace(
        user=SimpleNamespace(name="health-check", groups=()),
        authenticator=SimpleNamespace(access_token=stored, technical_users=names),
    )
    asked = await one.request_of(spawner, Server("", "health-check"), "0" * 32, NOW)
    assert (asked.token is None, asked.technical) == (technical, technical)
    minted = one.mint(asked)
    assert (list(minted.credentials), minted.missing) == (["xcache"] if technical else ["xcache", "bearer"], {})
    assert {event.reason for event in told} == ({"for a technical user, who has no log-in"} if technical else {""})
    renewed = one.renew(asked, ["bearer"], minted.record, force=True)
    assert list(renewed.credentials) == ([] if technical else ["bearer"])


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


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"expires_at": datetime(2100, 1, 1)}, "its times have no time zone"),  # noqa: DTZ001
        ({"issued_at": None}, "AttributeError"),
        ({"expires_at": NOW}, "expired at"),
        ({"files": {"odd": "text"}}, "its files are not bytes"),
        ({"identifiers": {"jti": 1}}, "are not strings"),
        ({"state": {"key": b"k"}}, "are not strings"),
    ],
)
def test_a_renewal_that_is_no_credential_does_not_take_the_others_along(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], why: str
) -> None:
    one = facility("xcache", "odd")
    first = one.mint(request())
    monkeypatch.setattr(Odd, "change", change)
    second = one.renew(Request(ALICE, "0" * 32, NOW + timedelta(seconds=40)), ["xcache", "odd"], first.record)
    assert list(second.credentials) == ["xcache"]
    assert why in second.missing["odd"]
    json.dumps(second.record.to_document())


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
    entries = second.record.credentials
    assert entries["xcache"].identifiers == {"jti": "xcache-2"}
    assert entries["xcache"].issued_at == NOW + timedelta(seconds=40)
    assert entries["dask"] == first.record.credentials["dask"]


def test_a_credential_that_was_missing_may_come_later() -> None:
    one = facility("xcache", "bearer", "broken")
    first = one.mint(request())
    token = module.AccessToken("t", None)
    second = one.renew(Request(ALICE, first.start_id, NOW, token), ["bearer"], first.record)
    assert second.files == {"access_token": b"SECRET alice 1"}
    assert set(second.record.missing) == {"broken"}


def test_files_that_were_removed_are_made_anew_from_the_state_that_is_known() -> None:
    one = facility("xcache", "dask", "broken")
    before = one.mint(request()).record
    minted = one.mint_lost(request(), before)
    assert set(minted.credentials) == {"xcache", "dask"}
    assert minted.files["xcache_token"] == b"SECRET alice 2"
    assert minted.record.order == before.order + 1
    assert minted.record.credentials["xcache"].earlier[0].identifiers == {"jti": "xcache-1"}
    assert set(minted.record.missing) == {"broken"}


def test_a_removed_file_that_cannot_be_made_anew_is_missing_and_its_identifiers_are_still_known() -> None:
    one = facility("xcache", "dask")
    before = one.mint(request()).record
    xcache = one.minters["xcache"]
    assert isinstance(xcache, Token)
    xcache.works = False
    minted = one.mint_lost(request(), before)
    assert set(minted.credentials) == {"dask"}
    assert "can't be read" in minted.record.missing["xcache"]
    entry = minted.record.credentials["xcache"]
    assert (entry.files, entry.identifiers) == ((), {"jti": "xcache-1"})
    # And it comes later, though it is valid for no longer than the one that is gone.
    xcache.works = True
    record = parse_text(json.dumps(minted.record.to_document()))
    assert isinstance(record, ServerRecord)
    later = one.renew(request(), ["xcache"], record)
    assert later.files == {"xcache_token": b"SECRET alice 2"}
    assert later.record.missing == {}
    assert later.record.credentials["xcache"].files == ("xcache_token",)


def test_a_renewal_that_fails_keeps_what_is_there_even_if_it_is_required() -> None:
    one = facility("xcache", "bearer", required=["bearer"])
    first = one.mint(Request(ALICE, "0" * 32, NOW, module.AccessToken("t", None)))
    second = one.renew(request(), ["bearer"], first.record)
    assert second.files == {}
    assert second.missing == {"bearer": "access token: the user has none. Log in again."}
    assert second.record == first.record


def test_what_was_replaced_is_told_of_until_it_expires() -> None:
    one = facility("xcache", "dask")
    record = one.mint(request()).record
    for second in (40, 50):
        record = one.renew(Request(ALICE, "0" * 32, NOW + timedelta(seconds=second)), ["xcache"], record).record
    assert record.order == 2
    assert (record.credentials["xcache"].order, record.credentials["dask"].order) == (2, 0)
    assert record.credentials["xcache"].to_document()["earlier"] == [
        {"identifiers": {"jti": "xcache-2"}, "expires_at": "2026-08-01T12:01:40+00:00"},
        {"identifiers": {"jti": "xcache-1"}, "expires_at": "2026-08-01T12:01:00+00:00"},
    ]
    # Also when it is another one that is renewed.
    record = one.renew(Request(ALICE, "0" * 32, NOW + timedelta(seconds=70)), ["dask"], record).record
    earlier = record.credentials["xcache"].earlier
    assert [entry.identifiers for entry in earlier] == [{"jti": "xcache-2"}]


@pytest.mark.parametrize("lifetime", [60, 59, 20])
def test_what_would_not_last_longer_is_not_taken_unless_by_force(lifetime: int) -> None:
    first = facility("xcache").mint(request())
    one = facility("xcache", XCache={"lifetime": lifetime})
    kept = one.renew(request(), ["xcache"], first.record)
    assert (kept.files, kept.record) == ({}, first.record)
    if lifetime == 60:
        assert "a new one would be valid until 2026-08-01T12:01:00+00:00 as well" in kept.missing["xcache"]
    else:
        assert kept.missing == {}
        when = kept.later["xcache"]
        assert one.renew(Request(ALICE, "0" * 32, when), ["xcache"], first.record).files
    assert one.renew(request(), ["xcache"], first.record, force=True).files


def test_what_was_edited_in_the_record_is_not_renewed_and_the_rest_is() -> None:
    one = facility("xcache", "dask")
    document = one.mint(request()).record.to_document()
    document["credentials"]["xcache"]["issued_at"] = "yesterday"
    record = parse(document)
    assert isinstance(record, ServerRecord)
    later = one.renew(Request(ALICE, "0" * 32, NOW + timedelta(seconds=40)), ["xcache", "dask"], record, force=True)
    assert list(later.credentials) == ["dask"]
    assert "edited" in later.missing["xcache"]
    assert later.record.unreadable == record.unreadable
    assert "xcache" not in later.record.missing
    assert len(one.routes(ALICE, later.record)) == 1


MOMENTS = st.integers(0, 300)


@given(steps=st.lists(st.tuples(MOMENTS, st.integers(1, 300), st.booleans(), st.booleans()), max_size=30))
def test_a_renewal_is_never_to_something_worse(steps: list[tuple[int, int, bool, bool]]) -> None:
    """Whatever the clock, the settings and the keys do."""
    one = facility("xcache")
    token = one.minters["xcache"]
    record = one.mint(request()).record
    valid: dict[str, datetime] = {}  # identifiers of all that were delivered
    for second, lifetime, works, force in steps:
        before = record.credentials["xcache"]
        now = NOW + timedelta(seconds=second)
        assert before.expires_at is not None
        valid[before.identifiers["jti"]] = before.expires_at
        token.lifetime, token.works = lifetime, works  # type: ignore[attr-defined]
        minted = one.renew(Request(ALICE, "0" * 32, now), ["xcache"], record, force=force)
        entry = minted.record.credentials["xcache"]
        assert bool(minted.files) == (entry.order > before.order) == (minted.record.order > record.order)
        assert bool(minted.files) + ("xcache" in minted.missing) + ("xcache" in minted.later) == 1
        if not force:
            assert entry.expires_at is not None
            assert entry.expires_at >= before.expires_at
        if not works:
            assert entry.identifiers == before.identifiers
        read = parse_text(json.dumps(minted.record.to_document()))
        assert isinstance(read, ServerRecord)
        assert read == minted.record
        record = read
        # What was dropped because it had expired stays dropped when the clock is set back.
        valid = {jti: end for jti, end in valid.items() if end > now and jti != entry.identifiers["jti"]}
        told = [earlier.identifiers["jti"] for earlier in entry.earlier]
        assert set(told) == set(sorted(valid, key=lambda jti: -int(jti.partition("-")[2]))[: record_module._EARLIER])
    one.minters["xcache"].works = True  # type: ignore[attr-defined]


# -- what the operator sees


def test_each_mint_is_told_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Event] = []
    settings: dict[str, object] = {}
    monkeypatch.setattr(module, "tell", lambda given, event: told.append(event) if given is settings else None)
    config = Config(Facility={"credentials": ["xcache", "bearer"]})
    one = Facility(SimpleNamespace(tornado_settings=settings), config=config)  # type: ignore[arg-type]

    def count(credential: str, outcome: str) -> float:
        labels = {"credential": credential, "outcome": outcome}
        return REGISTRY.get_sample_value("casa_hub_mints_total", labels) or 0

    before = [count(*labels) for labels in (("xcache", "minted"), ("xcache", "renewed"), ("bearer", "failed"))]
    one.check_settings()  # mints to see which files there are; that is nobody's business
    record = one.mint(Request(Server("", "alice", "lab"), "1" * 32, NOW)).record
    one.renew(Request(ALICE, "1" * 32, NOW + timedelta(seconds=40)), ["xcache", "bearer"], record)
    one.renew(Request(ALICE, "1" * 32, NOW), ["xcache"], record)  # nothing new
    assert told == [
        Event(Action.MINTED, "alice", "lab", "1" * 32, "xcache", {"jti": "xcache-1"}, "2026-08-01T12:01:00+00:00"),
        Event(Action.RENEWED, "alice", "", "1" * 32, "xcache", {"jti": "xcache-2"}, "2026-08-01T12:01:40+00:00"),
    ]
    after = [count(*labels) for labels in (("xcache", "minted"), ("xcache", "renewed"), ("bearer", "failed"))]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 2]


# -- one a hub


def test_there_is_one_facility_a_hub() -> None:
    def app(hub_id: str) -> SimpleNamespace:
        return SimpleNamespace(config=Config(Facility={"hub_id": hub_id}), tornado_settings={})

    one, other = app("one"), app("other")
    assert CasaHub.of(one).facility is CasaHub.of(one).facility
    assert CasaHub.of(other).facility.hub_id == "other"
    assert CasaHub.of(one).facility.server("alice", "x") == Server("one", "alice", "x")


@pytest.mark.parametrize("path", ["", "/", "secrets", "/a/../b", "/a:b", "/$HOME"])
def test_a_secrets_path_that_cannot_be_mounted_is_refused(path: str) -> None:
    with pytest.raises(TraitError, match="secrets_path"):
        Facility(secrets_path=path)


# -- outside of servers


class Deaf(Token):
    """A site's own minter that was written before there was `Request.longest`."""

    name, path = "deaf", "deaf"


class OfStart(Token):
    """Belongs to one start of a server, as Dask's certificates do."""

    name, path = "ofstart", "ofstart"
    of_start = True

    def mint_outside(self, request: Request) -> Credential:
        short = replace(self.mint(request), expires_at=request.now + request.lifetime(self.lifetime))
        return replace(short, files={"client": short.files[self.path]})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, installed: list[EntryPoint]) -> list[Event]:
    events: list[Event] = []
    monkeypatch.setattr(module, "tell", lambda _, event: events.append(event))
    installed += [EntryPoint(cls.name, f"{__name__}:{cls.__name__}", minters.GROUP) for cls in (Deaf, OfStart)]
    return events


def test_what_lives_longer_than_it_may_outside_stays_in_servers(told: list[Event]) -> None:
    made = facility("deaf", laptop_lifetime=60, Deaf={"lifetime": 61})
    with pytest.raises(CredentialError, match="lives for more than the 60 seconds"):
        made.mint_outside(request(), "deaf", None, user_id=7)
    assert told == []
    assert made.outside.held(7, NOW) == []


@pytest.mark.parametrize(("longest", "expected"), [(None, 100), (7200, 100), (90, 90)])
def test_the_asker_can_only_shorten_the_life(told: list[Event], longest: int | None, expected: int) -> None:
    made = facility("ofstart", laptop_lifetime=100, OfStart={"lifetime": 3600})
    record = made.mint(request()).record
    new = made.mint_outside(replace(request(), longest=longest), "ofstart", record, user_id=7)
    assert new.expires_at == NOW + timedelta(seconds=expected)


def test_what_belongs_to_a_start_is_minted_by_that_start_s_state(told: list[Event]) -> None:
    made = facility("ofstart")
    record = made.mint(request()).record
    told.clear()
    new = made.mint_outside(request(), "ofstart", record, by="page of alice", user_id=7)
    assert new.files == {"client": b"SECRET alice 2"}
    (event,) = told
    assert (event.action, event.server, event.start_id, event.by) == (Action.MINTED, "", "0" * 32, "page of alice")
    for lacking in (None, replace(record, credentials={})):
        with pytest.raises(CredentialError, match="they are those of a running server"):
            made.mint_outside(request(), "ofstart", lacking, user_id=7)


def test_what_belongs_to_no_server_is_told_as_the_user_s(told: list[Event]) -> None:
    made = facility("xcache")
    made.mint_outside(request(), "xcache", None, by="token a1 of bob", username="bob", user_id=7)
    (event,) = told
    assert (event.username, event.started_as, event.server, event.start_id) == ("bob", "alice", None, "")
    (held,) = made.outside.take(7, NOW)
    assert held.identifiers == event.identifiers == {"jti": "xcache-1"}


def test_a_third_party_s_fault_outside_shows_no_secret(told: list[Event]) -> None:
    with pytest.raises(CredentialError) as error:
        facility("broken").mint_outside(request(), "broken", None, user_id=7)
    assert "SECRET" not in str(error.value)
    with pytest.raises(CredentialError, match="this hub has no such credential"):
        facility("broken").mint_outside(request(), "xcache", None, user_id=7)


def test_a_technical_user_takes_no_token_of_a_person_outside(told: list[Event]) -> None:
    asked = replace(request(), token=AccessToken("t", None), technical=True)
    with pytest.raises(CredentialError, match="a technical user has no token"):
        facility("bearer").mint_outside(asked, "bearer", None, user_id=7)


def test_outside_the_user_s_own_token_lives_as_its_issuer_says(told: list[Event]) -> None:
    bearer = facility("bearer", laptop_lifetime=60, Bearer={"lifetime": 7200})
    bearer.minters["bearer"].shortens = False  # type: ignore[misc]
    new = bearer.mint_outside(replace(request(), token=AccessToken("t", None)), "bearer", None, user_id=7)
    assert new.expires_at == NOW + timedelta(seconds=7200)
    assert bearer.lifetime_outside("bearer") is None
    assert facility("xcache", laptop_lifetime=3600).lifetime_outside("xcache") == 60


class Inside(Token):
    """A site's own minter that says nothing of laptops."""

    name, path, outside = "inside", "inside", False


def test_a_site_s_own_credential_stays_in_servers_unless_its_class_says_otherwise(
    told: list[Event], installed: list[EntryPoint]
) -> None:
    assert Minter.outside is False
    installed.append(EntryPoint("inside", f"{__name__}:Inside", minters.GROUP))
    made = facility("inside", "xcache")
    assert list(made.minters_outside) == ["xcache"]
    with pytest.raises(CredentialError, match="no such credential outside of servers"):
        made.mint_outside(request(), "inside", None, user_id=7)
    assert told == []


def test_the_environment_outside_has_places_to_fill_in(told: list[Event]) -> None:
    made = facility("xcache")
    new = made.mint_outside(request(), "xcache", None, user_id=7)
    assert made.environment_outside(ALICE, new) == {
        "XCACHE_FILE": "{directory}/xcache_token",
        "XCACHE_HOST": "x.example.org",
        "BEARER_TOKEN_FILE": "{directory}/xcache_token",
    }
    assert made.files_outside("xcache") == ("xcache_token",)
    assert facility("broken").files_outside("broken") == ()


# -- what is fetched

RUCIO, PANDA = "pulled:rucio", "pulled:panda"
REFUSED = FetchError("a token for panda", "you may not have it", "Ask for the group.", Why.REFUSED)


class Fetching:
    """In place of `casa_hub.membership.fetching`."""

    def __init__(self, outcomes: Outcomes, kept: Outcomes | None = None) -> None:
        self.outcomes, self.has = outcomes, kept or {}
        self.asked: list[tuple[list[str], Any]] = []

    async def kept(self, user: Any, wanted: Mapping[str, Fetch]) -> Outcomes:
        return {name: one for name, one in self.has.items() if name in wanted}

    async def of(self, user: Any, wanted: Mapping[str, Fetch], *, newer_than: Any = None, say: Any = None) -> Outcomes:
        self.asked.append(([*wanted], newer_than))
        return {name: self.outcomes[name] for name in wanted}


def spawner(fetching: Fetching | None, *, technical: bool = False) -> Any:
    names = {"alice"} if technical else set()
    ours = SimpleNamespace(fetching=fetching, technical_users=names)
    return SimpleNamespace(
        user=SimpleNamespace(name="alice", groups=()), authenticator=SimpleNamespace() if fetching is None else ours
    )


async def asked_for(one: Facility, whose: Any) -> Request:
    return await one.request_of(whose, ALICE, "0" * 32, NOW, fetched=await one.fetch(whose))


async def test_what_is_fetched_is_handed_to_its_own_minter() -> None:
    one = facility("pulled", "xcache")
    fetching = Fetching({RUCIO: fetched("for rucio"), PANDA: fetched("for panda")})
    minted = one.mint(await asked_for(one, spawner(fetching)))
    assert minted.files["pulled_rucio"] == b"for rucio"
    assert minted.files["pulled_panda"] == b"for panda"
    assert minted.missing == {}
    assert fetching.asked == [([RUCIO, PANDA], None)]


async def test_one_fetch_that_fails_is_told_and_leaves_the_others_alone() -> None:
    one = facility("pulled", "xcache", required=["xcache", RUCIO])
    minted = one.mint(await asked_for(one, spawner(Fetching({RUCIO: fetched(), PANDA: REFUSED}))))
    assert list(minted.credentials) == [RUCIO, "xcache"]
    assert minted.missing == {PANDA: "a token for panda: you may not have it. Ask for the group."}


@pytest.mark.parametrize("required", ["pulled", PANDA], ids=["the section's name", "its own name"])
async def test_a_required_one_that_can_t_be_fetched_ends_the_start_with_the_reason(required: str) -> None:
    one = facility("pulled", required=[required])
    assert one.check_settings() == []
    request = await asked_for(one, spawner(Fetching({RUCIO: fetched(), PANDA: REFUSED})))
    with pytest.raises(FetchError, match="you may not have it") as caught:
        one.mint(request)
    assert caught.value.why is Why.REFUSED


async def test_what_was_refused_just_now_is_not_taken_from_what_is_kept() -> None:
    one = facility("pulled")
    fetching = Fetching({RUCIO: fetched("new"), PANDA: REFUSED}, kept={RUCIO: fetched("old"), PANDA: fetched("old")})
    minted = one.mint(await asked_for(one, spawner(fetching)))
    assert minted.files == {"pulled_rucio": b"new"}


async def test_who_asks_nobody_gets_what_is_kept() -> None:
    """A laptop's request, and the mending of a server that has lost its files."""
    one = facility("pulled")
    request = await one.request_of(spawner(Fetching({}, kept={RUCIO: fetched("kept")})), ALICE, "0" * 32, NOW)
    assert one.mint_outside(request, RUCIO, None, user_id=1).files == {"pulled_rucio": b"kept"}
    with pytest.raises(CredentialError, match="the hub has not asked for it"):
        one.mint_outside(request, PANDA, None, user_id=1)


async def test_nothing_is_fetched_for_a_technical_user_and_nothing_of_it_is_required() -> None:
    one = facility("pulled", "xcache", required=["pulled"])
    fetching = Fetching({}, kept={RUCIO: fetched("of who had the name before")})
    asked = await asked_for(one, spawner(fetching, technical=True))
    minted = one.mint(asked)
    assert (list(minted.credentials), minted.missing, fetching.asked) == (["xcache"], {}, [])
    assert one.renew(asked, [RUCIO], minted.record, force=True).credentials == {}
    with pytest.raises(CredentialError, match="a technical user has no token"):
        one.mint_outside(asked, RUCIO, None, user_id=1)


async def test_with_another_authenticator_what_is_fetched_is_missing_and_says_why() -> None:
    one = facility("pulled", "xcache")
    minted = one.mint(await asked_for(one, spawner(None)))
    assert list(minted.credentials) == ["xcache"]
    assert minted.missing.keys() == {RUCIO, PANDA}
    assert "the hub's authenticator keeps none" in minted.missing[RUCIO]


async def test_only_what_is_named_is_fetched_and_nothing_without_a_need() -> None:
    one, fetching = facility("pulled", "xcache"), Fetching({RUCIO: fetched(), PANDA: fetched()})
    assert await one.fetch(spawner(fetching), names=["xcache"]) == {}
    assert (await one.fetch(spawner(fetching), names=[PANDA], newer_than={PANDA: NOW})).keys() == {PANDA}
    assert fetching.asked == [([PANDA], {PANDA: NOW})]
    assert await facility("xcache").fetch(spawner(fetching)) == {}


async def test_no_secret_of_what_is_fetched_is_told(caplog: pytest.LogCaptureFixture) -> None:
    one = facility("pulled")
    with caplog.at_level(logging.DEBUG):
        request = await asked_for(one, spawner(Fetching({RUCIO: fetched(), PANDA: REFUSED})))
        minted = one.mint(request)
    told = [repr(request), repr(minted), json.dumps(minted.record.to_document()), caplog.text]
    told.append(repr(one.environment(minted, DIRECTORY)))
    assert "SECRET" not in "".join(told)


def test_a_section_may_make_nothing() -> None:
    one = facility("pulled", "xcache", Pulled={"audiences": []}, required=["pulled"])
    assert one.check_settings() == []
    assert list(one.mint(request()).credentials) == ["xcache"]


def test_two_parts_of_one_name_are_refused_at_the_hub_s_start() -> None:
    [problem] = facility("pulled", Pulled={"audiences": ["rucio", "rucio"]}).check_settings()
    assert "several credentials are called 'pulled:rucio'" in str(problem)
