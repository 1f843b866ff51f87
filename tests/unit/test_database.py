"""The hub's session, and texts that every database takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from casa_hub.database import committed, mended, storable

#: With half characters, which hypothesis leaves out by itself.
texts = st.text(st.characters(codec=None))


@given(texts, st.integers(0, 20))
def test_a_storable_text_is_what_is_left_of_it(given: str, length: int) -> None:
    stored = storable(given, length)
    assert len(stored) <= length
    assert "\0" not in stored
    assert stored.encode() or not stored  # no half characters
    assert stored == storable(given)[:length] == storable(stored)


@given(st.text().filter(lambda text: "\0" not in text))
def test_an_ordinary_text_is_stored_as_it_is(given: str) -> None:
    assert storable(given) == given


def test_what_others_have_half_changed_is_neither_written_nor_lost() -> None:
    with Session(create_engine("sqlite://")) as db:
        db.execute(text("CREATE TABLE things (name TEXT)"))
        db.execute(text("INSERT INTO things VALUES ('a')"))
        assert mended(db).scalar(text("SELECT count(*) FROM things")) == 1
        db.commit()
        assert mended(db).scalar(text("SELECT count(*) FROM things")) == 1


def test_changes_are_committed_together_or_not_at_all() -> None:
    with Session(create_engine("sqlite://")) as db:
        db.execute(text("CREATE TABLE things (name TEXT)"))

        def insert_half() -> None:
            with committed(db):
                db.execute(text("INSERT INTO things VALUES ('half')"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            insert_half()
        with committed(db):
            db.execute(text("INSERT INTO things VALUES ('whole')"))
        db.rollback()
        assert db.scalars(text("SELECT name FROM things")).all() == ["whole"]
