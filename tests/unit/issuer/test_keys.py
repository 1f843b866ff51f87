"""Which keys of the directory are published, and which one signs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from casa_hub.errors import CredentialError
from casa_hub.issuer.keys import KeyDirectory
from casa_hub.issuer.tokens import new_private_key

NOW = 1_800_000_000.0
LEAD = 100


class Hub:
    """A key directory over the database of a hub, which can be started again."""

    def __init__(self, path: Path, db: Session | None) -> None:
        self.path, self.db, self.told = path, db, list[str]()
        self.start()

    def start(self) -> None:
        self.keys = KeyDirectory(lambda: str(self.path), lambda: LEAD, self.told.append)
        self.keys.check(NOW)  # as a hub does before it uses its database
        self.told.clear()
        if self.db is not None:
            self.keys.published.open(self.db)

    def add(self, name: str) -> str:
        key, content = new_private_key()
        (self.path / name).write_bytes(content)
        return key.kid

    def published(self, now: float = NOW) -> set[str]:
        return {key.signing.kid for key in self.keys.keys(now)}

    def signing(self, now: float = NOW) -> str:
        return self.keys.signing(now).kid


@pytest.fixture
def db() -> Iterator[Session]:
    with Session(create_engine("sqlite://")) as session:
        yield session


@pytest.fixture
def hub(tmp_path: Path, db: Session) -> Hub:
    return Hub(tmp_path, db)


def test_the_first_key_signs_at_once(hub: Hub) -> None:
    first = hub.add("1.pem")
    assert hub.signing() == first


def test_of_several_first_keys_that_of_the_first_file_signs(hub: Hub) -> None:
    kids = {name: hub.add(name) for name in ("2.pem", "1.pem", "3.pem")}
    assert hub.signing() == kids["1.pem"]


def test_a_new_key_is_published_at_once_and_signs_when_verifiers_know_it(hub: Hub) -> None:
    first = hub.add("1.pem")
    hub.signing()
    second = hub.add("2.pem")
    assert hub.published(NOW) == {first, second}
    assert hub.signing(NOW + LEAD - 1) == first
    assert hub.signing(NOW + LEAD) == second


def test_the_time_of_a_key_survives_a_restart(hub: Hub) -> None:
    """Else each restart would put off the new key, whose file looks new with each mount of a Secret."""
    first = hub.add("1.pem")
    hub.signing()
    second = hub.add("2.pem")
    assert hub.signing(NOW) == first
    hub.start()
    assert hub.signing(NOW + LEAD) == second


def test_a_key_that_came_after_a_restart_has_its_time_stored(hub: Hub) -> None:
    first = hub.add("1.pem")
    hub.signing()
    hub.start()
    second = hub.add("2.pem")
    assert hub.signing(NOW) == first
    hub.start()
    assert hub.signing(NOW + LEAD) == second


def test_a_key_that_the_check_at_the_start_has_seen_may_be_gone_then(hub: Hub) -> None:
    first = hub.add("1.pem")
    hub.signing()
    hub.add("2.pem")
    hub.start()
    (hub.path / "2.pem").unlink()
    assert hub.signing() == first


def test_the_time_of_a_key_is_that_of_the_hub_that_stored_it_first(tmp_path: Path) -> None:
    """The old pod of a hub and the new one see a key together for a moment; both store what they see."""
    (tmp_path / "keys").mkdir()
    engine = create_engine(f"sqlite:///{tmp_path}/hub.sqlite")
    with Session(engine) as of_old, Session(engine) as of_new:
        old = Hub(tmp_path / "keys", of_old)
        first = old.add("1.pem")
        assert old.signing() == first
        new = Hub(tmp_path / "keys", of_new)
        second = new.add("2.pem")
        assert old.signing(NOW) == first
        assert new.signing(NOW + LEAD - 1) == first
        assert new.signing(NOW + LEAD) == second
        third = new.add("3.pem")
        new.signing(NOW + LEAD)
        new.start()
        assert new.signing(NOW + 2 * LEAD) == third


def test_a_rotation_is_remembered_also_if_nobody_minted_before_the_restart(hub: Hub) -> None:
    first = hub.add("1.pem")
    hub.keys.remember(NOW)
    second = hub.add("2.pem")
    hub.start()
    hub.keys.remember(NOW)
    assert hub.signing(NOW + LEAD - 1) == first
    assert hub.signing(NOW + LEAD) == second


def test_the_log_says_when_a_key_begins_and_ends_to_be_published(tmp_path: Path) -> None:
    said: list[str] = []
    hub = Hub(tmp_path, None)
    hub.keys = KeyDirectory(lambda: str(tmp_path), lambda: LEAD, print, said.append)
    first, second = hub.add("1.pem"), hub.add("2.pem")
    hub.published()
    (tmp_path / "1.pem").unlink()
    hub.published()
    hub.published()
    assert sorted(said) == sorted(
        [
            f"The issuer publishes the key {first} of {tmp_path}/1.pem",
            f"The issuer publishes the key {second} of {tmp_path}/2.pem",
            f"The issuer no longer publishes the key {first}, which was in {tmp_path}/1.pem",
        ]
    )


def test_a_key_that_came_while_the_hub_was_down_is_new(hub: Hub) -> None:
    first = hub.add("1.pem")
    hub.signing()
    hub.add("2.pem")
    hub.start()
    assert hub.signing(NOW + 50 * LEAD) == first


def test_without_the_key_before_it_a_new_one_does_not_sign_too_early(hub: Hub) -> None:
    hub.add("1.pem")
    hub.signing()
    hub.add("2.pem")
    (hub.path / "1.pem").unlink()
    with pytest.raises(CredentialError, match=r"2\.pem.*would sign too early: verifiers may know it only at 2027"):
        hub.signing()
    assert "would sign too early" in str(hub.keys.check(NOW)[-1])


def test_a_withdrawn_key_is_not_published_and_signs_no_more(hub: Hub) -> None:
    hub.add("1.pem")
    hub.signing()
    second = hub.add("2.pem")
    hub.published()
    (hub.path / "1.pem").unlink()
    assert hub.published(NOW + LEAD) == {second}
    assert hub.signing(NOW + LEAD) == second


def test_a_directory_that_was_empty_for_a_moment_makes_nobody_wait(hub: Hub) -> None:
    first = hub.add("1.pem")
    assert hub.signing() == first
    (hub.path / "1.pem").rename(hub.path / "away")
    with pytest.raises(CredentialError, match=r"has no file \*\.pem"):
        hub.signing()
    (hub.path / "away").rename(hub.path / "1.pem")
    assert hub.signing() == first


def test_without_the_database_keys_are_published_and_sign(tmp_path: Path) -> None:
    hub = Hub(tmp_path, None)
    first = hub.add("1.pem")
    assert (hub.published(), hub.signing()) == ({first}, first)


def test_a_time_that_the_database_did_not_take_is_stored_later(hub: Hub) -> None:
    first = hub.add("1.pem")
    assert hub.db is not None
    hub.signing()
    hub.add("2.pem")
    second = max(hub.published(NOW) - {first})
    hub.db.connection().exec_driver_sql("ALTER TABLE casa_hub_issuer_keys RENAME TO away")
    hub.db.commit()
    assert hub.signing(NOW) == first
    hub.db.connection().exec_driver_sql("ALTER TABLE away RENAME TO casa_hub_issuer_keys")
    hub.db.commit()
    hub.signing(NOW + 60)
    hub.start()
    assert hub.signing(NOW + LEAD) == second


def test_a_bad_file_is_told_once_and_the_others_go_on(hub: Hub) -> None:
    first = hub.add("1.pem")
    (hub.path / "2.pem").write_bytes(b"correct horse battery staple")
    assert [hub.signing(), hub.signing()] == [first, first]
    (told,) = hub.told
    assert "2.pem" in told
    assert "is not a private key in PEM" in told
    assert "horse" not in told


@pytest.mark.parametrize(
    ("path", "problem"),
    [("", "is not set"), ("/nowhere/at/all", "can't be read: No such file"), ("/etc/passwd", "Not a directory")],
)
def test_a_directory_that_is_none_is_told(path: str, problem: str) -> None:
    with pytest.raises(CredentialError, match=problem):
        KeyDirectory(lambda: path, lambda: LEAD, print).signing(NOW)


def test_a_file_that_everybody_can_read_is_told(hub: Hub) -> None:
    hub.add("1.pem")
    (hub.path / "1.pem").chmod(0o644)
    (problem,) = hub.keys.check(NOW)
    assert "can be read by everybody" in problem.problem


def test_names_of_kubernetes_own_are_no_keys(hub: Hub) -> None:
    """A mounted Secret: ``1.pem -> ..data/1.pem``, ``..data -> ..2026_…``."""
    real = hub.path / "..2026_11"
    real.mkdir()
    key, content = new_private_key()
    (real / "1.pem").write_bytes(content)
    (hub.path / "..data").symlink_to(real.name)
    (hub.path / "1.pem").symlink_to("..data/1.pem")
    assert hub.published() == {key.kid}


def test_a_replaced_file_is_another_key(hub: Hub) -> None:
    hub.add("1.pem")
    hub.signing()
    os.utime(hub.path / "1.pem", (1, 1))
    new: Any = hub.add("1.pem")
    assert hub.published() == {new}


def test_each_file_has_an_age_of_its_own_as_long_as_it_is_there(hub: Hub) -> None:
    def aged() -> set[str]:
        return {
            sample.labels["setting"]
            for metric in REGISTRY.collect()
            for sample in metric.samples
            if sample.name == "casa_hub_key_modified_timestamp_seconds"
        }

    hub.add("old.pem")
    hub.add("new.pem")
    hub.signing()
    assert {"FacilityIssuer.keys: old.pem", "FacilityIssuer.keys: new.pem"} <= aged()
    (hub.path / "old.pem").unlink()
    hub.signing()
    assert "FacilityIssuer.keys: old.pem" not in aged()
    assert "FacilityIssuer.keys: new.pem" in aged()
