"""The credmon on a directory as HTCondor's credd makes it; the tokens are read with another library (PyJWT)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jwt
import pytest

from casa_hub.credmon.__main__ import main
from casa_hub.credmon.signer import Credmon, Profile
from casa_hub.issuer.tokens import SigningKey, new_private_key

ISSUER = "https://hub.example.org/casa/issuer/cms"
AUDIENCE = "https://cache.example.org"
LIFETIME = 1200


class Schedd:
    """The schedd's machine: the credd's directory, the pool's key, a clock, and a credmon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "credentials.d"
        self.directory.mkdir()
        self.key_file = directory / "pool.pem"
        self.now = 1_800_000_000.0
        self.log: list[str] = []
        self.key = self.new_key()
        self.start()

    def start(self, **profile: Any) -> None:
        said = {"audience": [AUDIENCE], "scopes": ["storage.read:/store/user/{username}"], "lifetime": LIFETIME}
        self.credmon = Credmon(
            self.directory,
            "casa",
            str(self.key_file),
            Profile(ISSUER, **(said | profile)),
            clock=lambda: self.now,
            tell=self.log.append,
        )

    def new_key(self) -> SigningKey:
        self.key, content = new_private_key()
        self.key_file.write_bytes(content)
        return self.key

    def ask(self, user: str, name: str = "casa") -> Path:
        """What the credd does when a user asks for the credential; returns the file that it then waits for."""
        (self.directory / user).mkdir(mode=0o700, exist_ok=True)
        (self.directory / user / f"{name}.top").write_text(name)
        return self.directory / user / f"{name}.use"

    def claims(self, use: Path) -> dict[str, Any]:
        key = jwt.PyJWK(dict(self.key.jwk))
        options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
        claims: dict[str, Any] = jwt.decode(
            use.read_text().strip(), key, algorithms=["ES256"], audience=AUDIENCE, issuer=ISSUER, options=options
        )
        return claims


@pytest.fixture
def schedd(tmp_path: Path) -> Schedd:
    return Schedd(tmp_path)


def test_who_asks_gets_a_token_of_the_wlcg_profile_that_only_its_owner_can_read(schedd: Schedd) -> None:
    use = schedd.ask("alice")
    schedd.credmon.scan()
    claims, now = schedd.claims(use), int(schedd.now)
    assert len(claims.pop("jti")) == 32
    assert claims == {
        "wlcg.ver": "1.0",
        "iss": ISSUER,
        "sub": "alice",
        "aud": AUDIENCE,
        "iat": now,
        "nbf": now - 60,
        "exp": now + LIFETIME,
        "scope": "storage.read:/store/user/alice",
    }
    assert jwt.get_unverified_header(use.read_text()) == {"alg": "ES256", "kid": schedd.key.kid, "typ": "JWT"}
    assert use.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in use.parent.iterdir()) == ["casa.top", "casa.use"]
    assert (schedd.directory / "CREDMON_COMPLETE").exists()


def test_several_audiences_and_scopes(schedd: Schedd) -> None:
    schedd.start(
        audience=[AUDIENCE, "https://other.example.org"],
        scopes=["storage.read:/store", "storage.modify:/store/user/{username}"],
    )
    use = schedd.ask("alice")
    schedd.credmon.scan()
    claims = schedd.claims(use)
    assert claims["aud"] == [AUDIENCE, "https://other.example.org"]
    assert claims["scope"] == "storage.read:/store storage.modify:/store/user/alice"


def test_who_asks_for_another_credential_gets_none(schedd: Schedd) -> None:
    use = schedd.ask("alice", "vault")
    schedd.credmon.scan()
    assert not use.exists()


def test_a_token_is_replaced_when_a_third_of_its_life_is_over_and_not_before(schedd: Schedd) -> None:
    use = schedd.ask("alice")
    schedd.credmon.scan()
    first = schedd.claims(use)
    schedd.now += LIFETIME / 3 - 1
    schedd.credmon.scan()
    assert schedd.claims(use) == first
    schedd.now += 1
    schedd.credmon.scan()
    second = schedd.claims(use)
    assert second["jti"] != first["jti"]
    assert second["exp"] == first["exp"] + LIFETIME / 3


def test_a_clock_that_was_put_back_leaves_no_token_that_is_valid_in_the_future_only(schedd: Schedd) -> None:
    """A machine without a battery for its clock begins with any time, and hears the right one later."""
    use = schedd.ask("alice")
    schedd.credmon.scan()
    schedd.now -= 86400
    schedd.credmon.scan()
    assert schedd.claims(use)["iat"] == int(schedd.now)
    first = use.read_text()
    schedd.now -= 30  # a verifier allows for so much
    schedd.credmon.scan()
    assert use.read_text() == first


def test_a_disk_that_takes_no_new_file_does_not_end_it(schedd: Schedd) -> None:
    (schedd.directory / "CREDMON_COMPLETE").symlink_to("no/such/directory")
    schedd.ask("alice")
    schedd.credmon.scan()
    schedd.credmon.scan()
    problem = f"{schedd.directory}/CREDMON_COMPLETE: can't be written: No such file or directory."
    assert [line for line in schedd.log if "made token" not in line] == [
        f"{problem} Run the credmon as root, or as the user of HTCondor's daemons."
    ]


def test_a_new_key_signs_at_once(schedd: Schedd) -> None:
    use = schedd.ask("alice")
    schedd.credmon.scan()
    schedd.new_key()
    schedd.credmon.scan()
    assert schedd.claims(use)["sub"] == "alice"


def test_a_restarted_credmon_makes_all_tokens_anew_with_what_it_is_told_now(schedd: Schedd) -> None:
    use = schedd.ask("alice")
    schedd.credmon.scan()
    schedd.start(scopes=["storage.read:/store"])
    schedd.credmon.scan()
    assert schedd.claims(use)["scope"] == "storage.read:/store"


def test_what_the_credd_removed_is_not_made_again(schedd: Schedd) -> None:
    use = schedd.ask("alice")
    schedd.credmon.scan()
    for file in use.parent.iterdir():
        file.unlink()
    use.parent.rmdir()
    schedd.now += LIFETIME
    schedd.credmon.scan()
    assert not use.parent.exists()
    assert schedd.ask("alice") == use
    schedd.credmon.scan()
    assert schedd.claims(use)["iat"] == int(schedd.now)


def test_with_a_bad_key_the_tokens_stay_and_the_log_says_so_once(schedd: Schedd) -> None:
    use = schedd.ask("alice")
    schedd.credmon.scan()
    token = use.read_text()
    schedd.key_file.write_text("nonsense")
    schedd.log.clear()
    schedd.now += LIFETIME / 3
    schedd.credmon.scan()
    schedd.credmon.scan()
    assert use.read_text() == token
    assert schedd.log == [
        f"--key ({schedd.key_file}): is not a private key in PEM. Make one: casa-hub issuer new-key FILE."
    ]
    schedd.new_key()
    schedd.credmon.scan()
    assert schedd.claims(use)["iat"] == int(schedd.now)


@pytest.mark.parametrize("user", ["a b", "a;b", ".a", "-a", "ä"])
def test_a_name_that_would_change_the_scope_gets_no_token_and_the_others_get_theirs(schedd: Schedd, user: str) -> None:
    refused, alice = schedd.ask(user), schedd.ask("alice")
    schedd.credmon.scan()
    assert not refused.exists()
    assert schedd.claims(alice)["sub"] == "alice"
    problem = f"{refused.parent}: is not a name that can stand in a scope. This user's jobs get no token."
    assert problem in schedd.log
    assert not (schedd.directory / "CREDMON_COMPLETE").exists()


def test_a_directory_that_cant_be_read_is_told(schedd: Schedd) -> None:
    schedd.directory.rmdir()
    schedd.credmon.scan()
    problem = f"{schedd.directory}: can't be read: No such file or directory."
    assert schedd.log == [f"{problem} Run the credmon as root, or as the user of HTCondor's daemons."]


def test_the_log_names_tokens_and_has_none(schedd: Schedd) -> None:
    use = schedd.ask("alice")
    schedd.credmon.scan()
    token = use.read_text().strip()
    assert schedd.claims(use)["jti"] in schedd.log[0]
    assert not any(part in line for line in schedd.log for part in token.split("."))


@pytest.mark.parametrize("lifetime", ["0", "-60", "21601"])
def test_a_life_that_the_profile_does_not_allow_is_refused(
    tmp_path: Path, lifetime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With none at all it would sign without a pause."""
    given = {
        "directory": tmp_path,
        "key": "k",
        "issuer": ISSUER,
        "audience": "a",
        "scope": "s",
        "log": tmp_path / "log",
    }
    with pytest.raises(SystemExit):
        main([*(f"--{name}={value}" for name, value in given.items()), f"--lifetime={lifetime}"])
    assert f"--lifetime is {lifetime}, must be 1 to 21600 seconds" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_it_needs_no_jupyterhub() -> None:
    program = (
        "import sys, casa_hub.credmon.__main__; "
        "print([name for name in ('jupyterhub', 'tornado', 'traitlets', 'sqlalchemy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "[]\n"
