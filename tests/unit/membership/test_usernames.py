"""Whose name a name is, and how it becomes another's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from casa_hub.membership.usernames import Identities, IdentityError

IAM = "https://iam.example.org/"


@pytest.fixture
def identities() -> Iterator[Identities]:
    with Session(create_engine("sqlite://")) as db:
        yield Identities(db)


def test_the_names_of_a_subject_are_found(identities: Identities) -> None:
    identities.check("ada", issuer=IAM, sub="s-1")
    identities.check("lovelace", issuer=IAM.rstrip("/"), sub="s-1")
    identities.check("bea", issuer=IAM, sub="s-2")
    identities.check("cyd", issuer="https://other.example.org", sub="s-1")
    assert sorted(identities.names(issuer=IAM, sub="s-1")) == ["ada", "lovelace"]
    assert identities.names(issuer=IAM, sub="nobody") == []
    assert identities.namesakes("ada") == ["lovelace"]
    assert identities.namesakes("bea") == identities.namesakes("nobody") == []


def test_a_released_name_is_the_next_one_s_who_logs_in(identities: Identities) -> None:
    identities.check("ada", issuer=IAM, sub="first")
    assert identities.release("ada")
    assert not identities.release("ada")
    assert identities.names(issuer=IAM, sub="first") == []
    # What is left of the owner's log-in doesn't take it back.
    with pytest.raises(IdentityError, match="it belongs to another identity"):
        identities.check("ada", issuer=IAM, sub="first")
    identities.check("ada", issuer=IAM, sub="second", log_in=True)
    identities.check("ada", issuer=IAM, sub="second")
    for log_in in (False, True):
        with pytest.raises(IdentityError):
            identities.check("ada", issuer=IAM, sub="first", log_in=log_in)


def test_a_name_that_nobody_has_can_t_be_released(identities: Identities) -> None:
    assert not identities.release("ada")
    identities.check("ada", issuer=IAM, sub="first")
    assert identities.names(issuer=IAM, sub="first") == ["ada"]


def test_the_mark_of_a_released_name_is_nobody_s_subject(identities: Identities) -> None:
    identities.check("ada", issuer=IAM, sub="first")
    identities.release("ada")
    assert identities.namesakes("ada") == []
    assert identities.names(issuer="", sub="") == ["ada"]  # which no token can say: an empty sub is refused
    assert identities.names(issuer=IAM, sub="") == []


def test_a_database_that_takes_two_names_for_one_gives_neither_to_the_other(identities: Identities) -> None:
    """MariaDB's usual collations have no accents and no last space; here SQLite's without case stands for them."""
    db = identities._db
    db.execute(
        text(
            "CREATE TABLE casa_hub_identities (username VARCHAR COLLATE NOCASE PRIMARY KEY, issuer VARCHAR NOT NULL, "
            "sub VARCHAR NOT NULL, bound_at DATETIME NOT NULL)"
        )
    )
    identities.check("ada", issuer=IAM, sub="1", log_in=True)
    for sub in ("1", "2"):  # not the same person's either: JupyterHub would find the user of the other name
        with pytest.raises(IdentityError, match="takes it for the name of another user"):
            identities.check("ADA", issuer=IAM, sub=sub, log_in=True)
    with pytest.raises(IdentityError):
        identities.release("ADA")
    identities.check("ada", issuer=IAM, sub="1")


def test_a_subject_that_not_every_database_takes_is_refused(identities: Identities) -> None:
    with pytest.raises(IdentityError, match="more than 1023 characters"):
        identities.check("ada", issuer=IAM, sub="s" * 1024)
    assert not identities.names(issuer=IAM, sub="s" * 1024)
