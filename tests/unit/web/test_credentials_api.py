"""The scopes of credentials: their names, and which users have them by themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyterhub import orm, scopes
from jupyterhub.roles import create_role

from casa_hub.web.credentials_api import define_scopes, let_users, scope_of

pytestmark = pytest.mark.both_hubs


@pytest.fixture
def app() -> Any:
    db = orm.new_session_factory("sqlite:///:memory:")()
    create_role(db, {"name": "user", "scopes": ["self"]})
    define_scopes(["xcache", "dask"])
    return SimpleNamespace(db=db, load_roles=[])


def scopes_of_users(app: Any) -> set[str]:
    return set(orm.Role.find(app.db, "user").scopes)


@given(st.text(max_size=12) | st.from_regex(r"[a-z0-9_.-]{1,12}", fullmatch=True))
def test_each_name_has_a_scope_that_jupyterhub_takes_or_none(name: str) -> None:
    scope = scope_of(name)
    if scope is not None:
        define_scopes([name])
        assert scope in scopes.scope_definitions
        assert scope.endswith(f":{name}")


@pytest.mark.parametrize("name", ["", "A", "a.b", "a-", "a:b", "a*", "é", "a\n"])
def test_a_name_that_can_t_be_in_a_scope_has_none(name: str) -> None:
    assert scope_of(name) is None


def test_scopes_may_be_defined_again(app: Any) -> None:
    define_scopes(["xcache", "Odd.Name"])
    assert scope_of("xcache") in scopes.scope_definitions


def test_users_have_the_scopes_of_the_hub_s_credentials(app: Any) -> None:
    for _ in range(2):
        let_users(app, ["xcache", "Odd.Name"])
    assert scopes_of_users(app) == {"self", "custom:casa-hub:credential:xcache"}


def test_an_operator_s_role_is_left_alone(app: Any) -> None:
    app.load_roles = [{"name": "user", "scopes": ["self"]}]
    let_users(app, ["xcache"])
    assert scopes_of_users(app) == {"self"}


def test_a_role_that_says_nothing_of_scopes_is_jupyterhub_s_own(app: Any) -> None:
    app.load_roles = [{"name": "user", "description": "People."}, {"name": "other", "scopes": []}]
    let_users(app, ["dask"])
    assert scopes_of_users(app) == {"self", "custom:casa-hub:credential:dask"}
