"""The badge by itself, and in a real hub with a real log-in. Run: pytest -p casa_hub.testing"""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

import jwt
import pytest
from traitlets.config import Config

from casa_hub.credentials.base import Request
from casa_hub.errors import CredentialError
from casa_hub.facility import Facility
from casa_hub.naming import Server
from casa_hub.testing import IdP, MakeHub

KEY = b"k" * 48
NOW = datetime.now(UTC)
ADA = Server("", "ada", "")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY + b"\n")
    path.chmod(0o400)
    return path


def facility(path: Path, **settings: object) -> Facility:
    """A hub's credentials: only this one, found by its entry point."""
    site = {"key_file": str(path), "host": "badge.example.org", **settings}
    return Facility(config=Config(Facility={"credentials": ["site"], "required": ["site"]}, Site=site))


def request(later: int = 0) -> Request:
    return Request(ADA, "0" * 32, NOW + timedelta(seconds=later))


def test_the_service_sees_whose_badge_it_is(key_file: Path) -> None:
    minted = facility(key_file).mint(request())
    claims = jwt.decode(minted.files["site_badge"], KEY, ["HS256"], audience="badge.example.org")
    assert claims["sub"] == "ada"
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["jti"] == minted.credentials["site"].identifiers["jti"]


def test_a_new_badge_lasts_longer_and_is_another(key_file: Path) -> None:
    one = facility(key_file)
    first = one.mint(request())
    second = one.renew(request(later=60), ["site"], first.record)
    assert second.credentials["site"].expires_at == first.credentials["site"].expires_at + timedelta(seconds=60)
    assert second.credentials["site"].identifiers != first.credentials["site"].identifiers


def test_the_server_is_told_where_it_is_and_not_what_it_is(key_file: Path) -> None:
    one = facility(key_file)
    minted = one.mint(request())
    environment = one.environment(minted, PurePosixPath("/secrets"))
    assert environment == {"SITE_BADGE_FILE": "/secrets/site_badge", "SITE_HOST": "badge.example.org"}
    assert minted.files["site_badge"].decode() not in repr(minted)


def test_who_is_barred_is_told_so(key_file: Path) -> None:
    with pytest.raises(CredentialError, match=r"site badge: ada gets none\. Ask the site\."):
        facility(key_file, barred={"ada"}).mint(request())


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        (KEY, {"host": ""}, "Site.host: is not set. Set it to"),
        (KEY, {"key_file": ""}, "Site.key_file: is not set. Make one"),
        (KEY, {"key_file": "/nonexistent"}, "Site.key_file (/nonexistent): "),
        (b"too short\n", {}, "holds 9 bytes"),
    ],
)
def test_the_operator_is_told_what_is_wrong_before_a_user_is(
    tmp_path: Path, content: bytes, settings: dict[str, object], expected: str
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o400)
    one = facility(path, **settings)
    [problem] = one.check()
    assert expected in str(problem)
    assert content.decode().strip() not in str(problem)
    with pytest.raises(CredentialError):
        one.mint(request())


def test_a_running_server_gets_a_new_badge_in_time(casa_idp: IdP, casa_hub_factory: MakeHub, key_file: Path) -> None:
    """Through log-in, spawn and the hub's Keeper. What it writes into its log is looked through at the end."""
    hub = casa_hub_factory(
        f"""
c.CasaOAuthenticator.provider = "wlcg-iam"
c.CasaOAuthenticator.allow_all = True
c.Facility.credentials = c.Facility.required = ["site"]
c.Site.key_file = {str(key_file)!r}
c.Site.host = "badge.example.org"
c.Site.lifetime = 6
"""
    ).start()
    casa_idp.put_user("sub-of-ada", preferred_username="ada")
    browser = hub.browser()
    assert browser.log_in("sub-of-ada").ok
    assert browser.spawn().ok
    first = hub.given("ada")
    assert stat.S_IMODE((first.directory / "site_badge").stat().st_mode) == 0o600
    assert first.environment["SITE_BADGE_FILE"] == str(first.directory / "site_badge")

    second = hub.renewed(first, "site")
    claims = [jwt.decode(given.files["site_badge"], options={"verify_signature": False}) for given in (first, second)]
    assert claims[0]["exp"] < claims[1]["exp"]
