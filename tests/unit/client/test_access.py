"""Which hub is asked, and with which token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casa_hub.client.access import Access, environment_token, find_hub
from casa_hub.client.errors import ClientError, RefusedError, TokenRefusedError
from casa_hub.client.hub import LogIn
from casa_hub.client.places import Machine
from casa_hub.client.store import Store
from casa_hub.client.wire import Wire

HUB, OTHER = "https://hub.example.org", "https://other.example.org"
SERVER = {"JUPYTERHUB_API_URL": "http://hub:8081/hub/api", "JUPYTERHUB_API_TOKEN": "OF-THE-SERVER"}


def machine(**environment: str) -> Machine:
    return Machine(environment, Path("/home/alice"), 1000, "linux")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def log_in(hub: str = HUB, *credentials: str, token: str = "STORED") -> LogIn:
    return LogIn(hub, token, "alice", None, credentials)


@pytest.mark.parametrize(
    ("given", "environment", "hub"),
    [
        (f"{HUB}/hub/home", {"CASA_HUB_URL": OTHER}, HUB),
        (None, {"CASA_HUB_URL": OTHER} | SERVER, OTHER),
        (None, SERVER, "http://hub:8081"),
        ("http://127.0.0.1:8000", {}, "http://127.0.0.1:8000"),
    ],
)
def test_the_hub_is_the_given_one_or_that_of_the_environment(
    given: str | None, environment: dict[str, str], hub: str, store: Store
) -> None:
    assert find_hub(given, machine(**environment), store, insecure=False) == hub


def test_the_only_hub_with_a_log_in_needs_no_name(store: Store) -> None:
    with pytest.raises(ClientError, match=r"the hub's address: is not known. Name it: --hub"):
        find_hub(None, machine(), store, insecure=False)
    store.write(log_in())
    assert find_hub(None, machine(), store, insecure=False) == HUB
    store.write(log_in(OTHER))
    with pytest.raises(ClientError, match=f"could be one of {HUB}, {OTHER}"):
        find_hub(None, machine(), store, insecure=False)


def test_without_encryption_only_to_this_machine_or_a_server_s_own_hub(store: Store) -> None:
    for environment in ({}, SERVER):
        with pytest.raises(ClientError, match="no token is sent there"):
            find_hub("http://hub.example.org", machine(**environment), store, insecure=False)
    assert find_hub("http://hub.example.org", machine(), store, insecure=True) == "http://hub.example.org"


@pytest.mark.parametrize(
    ("hub", "environment", "token"),
    [
        (HUB, {"CASA_HUB_TOKEN": "CI"}, ("CI", False)),
        (HUB, {"CASA_HUB_TOKEN": "CI\n"}, ("CI", False)),
        (HUB, {"CASA_HUB_TOKEN": "CI"} | SERVER, ("CI", False)),
        (HUB, {"JUPYTERHUB_API_TOKEN": "CI"}, ("CI", True)),
        ("http://hub:8081", SERVER, ("OF-THE-SERVER", True)),
        (HUB, {"CASA_HUB_TOKEN": ""}, None),
        (HUB, {}, None),
    ],
)
def test_the_environment_s_token_is_used(hub: str, environment: dict[str, str], token: tuple[str, bool] | None) -> None:
    assert environment_token(hub, machine(**environment)) == token


def test_the_token_of_a_server_goes_to_no_other_hub() -> None:
    """Whoever talks a user into `--hub https://evil.example.org` in a terminal of a server gets nothing."""
    assert environment_token(OTHER, machine(**SERVER)) is None


def test_what_is_no_token_is_refused_without_repeating_it() -> None:
    with pytest.raises(ClientError, match="CASA_HUB_TOKEN: has characters") as told:
        environment_token(HUB, machine(CASA_HUB_TOKEN="SECRET SECRET"))
    assert "SECRET" not in str(told.value)


class Asking:
    """An access whose log-ins and questions are counted."""

    def __init__(self, store: Store, taken: str, *, log_ins: bool = True, **environment: str) -> None:
        self.taken, self.said = taken, list[str]()
        self.asked: list[str] = []
        self.wished: list[tuple[str, ...]] = []
        self.access = Access(HUB, machine(**environment), store, self.said.append, self.logs_in if log_ins else None)

    def logs_in(self, credentials: tuple[str, ...]) -> LogIn:
        self.wished.append(credentials)
        return log_in(HUB, *credentials, token="NEW")

    def question(self, wire: Wire) -> str:
        self.asked.append(wire.token)
        if wire.token != self.taken:
            raise TokenRefusedError(HUB, "Missing or invalid credentials")
        return "answer"

    def ask(self, credential: str = "xcache") -> str:
        wire, answer = self.access.ask(credential, self.question)
        assert wire == Wire(HUB, self.taken)
        return answer


def test_a_log_in_is_used_again_for_what_it_is_for(store: Store) -> None:
    first = Asking(store, "NEW")
    assert first.ask() == "answer"
    assert (first.wished, first.said) == ([("xcache",)], ["Logged in as alice."])
    again = Asking(store, "NEW")
    assert again.ask() == again.ask("") == "answer"
    assert again.wished == []
    # The next one keeps what the first was for.
    assert again.ask("dask") == "answer"
    assert again.wished == [("dask", "xcache")]


def test_a_log_in_that_the_hub_has_ended_is_followed_by_a_new_one(store: Store) -> None:
    store.write(log_in(HUB, "xcache"))
    asking = Asking(store, "NEW")
    assert asking.ask() == "answer"
    assert asking.asked == ["STORED", "NEW"]
    assert f"{HUB} doesn't take the earlier log-in any more." in asking.said
    assert Asking(store, "NEW", log_ins=False).ask() == "answer"


def test_a_token_of_the_environment_stands_alone(store: Store) -> None:
    """In CI nobody logs in: a refusal is the job's end, and no log-in of somebody's is used instead."""
    store.write(log_in(HUB, "xcache"))
    assert Asking(store, "CI", CASA_HUB_TOKEN="CI").ask() == "answer"
    asking = Asking(store, "STORED", CASA_HUB_TOKEN="CI")
    with pytest.raises(TokenRefusedError):
        asking.ask()
    assert (asking.asked, asking.wished) == (["CI"], [])


def test_a_server_s_own_token_without_the_scope_is_followed_by_a_log_in(store: Store) -> None:
    """In a terminal of a server: its token has no scope of a credential, unless an operator gave it one."""
    asking = Asking(store, "NEW", JUPYTERHUB_API_TOKEN="OF-THE-SERVER")
    assert asking.ask() == "answer"
    assert (asking.asked, asking.wished) == (["OF-THE-SERVER", "NEW"], [("xcache",)])
    assert Asking(store, "OF-THE-SERVER", JUPYTERHUB_API_TOKEN="OF-THE-SERVER").ask() == "answer"


def test_a_no_to_the_person_is_no_reason_to_log_in(store: Store) -> None:
    store.write(log_in(HUB, "xcache"))
    asking = Asking(store, "NEW")

    def refused(wire: Wire) -> Any:
        raise RefusedError(HUB, "you are no member any more")

    with pytest.raises(RefusedError, match="no member"):
        asking.access.ask("xcache", refused)
    assert asking.wished == []


def test_where_nobody_can_log_in_it_is_said_what_to_do(store: Store) -> None:
    asking = Asking(store, "NEW", log_ins=False)
    with pytest.raises(ClientError, match=f"Make a token on {HUB}/hub/token and set CASA_HUB_TOKEN"):
        asking.ask()
    assert asking.asked == []


def test_a_log_in_of_another_hub_is_not_used(store: Store) -> None:
    store.write(log_in(OTHER, "xcache"))
    asking = Asking(store, "NEW")
    asking.ask()
    assert asking.asked == ["NEW"]


@pytest.fixture(autouse=True)
def _no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    assert not (tmp_path / "home").exists()
