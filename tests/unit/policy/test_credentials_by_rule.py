"""Two experiments on one hub: whose credentials somebody gets, by the groups that JupyterHub knows."""

import asyncio
import base64
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from traitlets.config import Config

from casa_hub.credentials.base import Minter, Paths, Request
from casa_hub.errors import CredentialError, Problem, Severity
from casa_hub.facility import Facility, Minted
from casa_hub.naming import Server
from tests.support.issuer import KEY, URL, issuer_in

NOW = datetime.now(UTC)
ATLAS, CMS = "/atlas/users", "/cms/users"


def key(directory: Path, name: str) -> str:
    file = directory / name
    file.write_bytes(base64.b64encode(secrets.token_bytes(64)))
    file.chmod(0o600)
    return str(file)


def two_caches(directory: Path) -> list[dict[str, Any]]:
    return [
        {
            "groups": [f"/{name}/*"],
            "credentials": ["xcache"],
            "XCache": {
                "site_name": f"T2_{name}",
                "host": f"xcache-{name}.example.org",
                "key_file": key(directory, name),
            },
        }
        for name in ("atlas", "cms")
    ]


def facility(rules: list[dict[str, Any]], **sections: dict[str, Any]) -> Facility:
    return Facility(config=Config({"Policy": {"rules": rules}, **sections}))


def person(*groups: str) -> Any:
    return SimpleNamespace(name="alice", groups=[SimpleNamespace(name=group) for group in groups])


async def request_of(one: Facility, *groups: str) -> Request:
    return await one.request_for(person(*groups), SimpleNamespace(), Server("", "alice"), "0" * 32, NOW)


async def minted(one: Facility, *groups: str) -> Minted:
    return one.mint(await request_of(one, *groups))


def issuer_of(token: bytes) -> str:
    iss: str = jwt.decode(token, jwt.PyJWK(dict(KEY.jwk)), algorithms=["ES256"], audience="https://xcache")["iss"]
    return iss


def errors(problems: list[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.severity is Severity.ERROR]


def site_of(macaroon: bytes) -> bytes:
    return base64.urlsafe_b64decode(macaroon + b"=" * (-len(macaroon) % 4)).split(b"\n")[0].split(b" ")[1]


@pytest.mark.parametrize(
    ("groups", "name", "site"),
    [
        ([ATLAS], "xcache:atlas", b"T2_atlas"),
        ([CMS], "xcache:cms", b"T2_cms"),
        ([CMS, ATLAS], "xcache:atlas", b"T2_atlas"),
    ],
    ids=["atlas", "cms", "both: the first rule's"],
)
async def test_everybody_gets_the_cache_of_their_own_experiment(
    tmp_path: Path, groups: list[str], name: str, site: bytes
) -> None:
    one = facility(two_caches(tmp_path))
    assert errors(one.check()) == []
    new = await minted(one, *groups)
    assert list(new.credentials) == [name]
    assert list(new.files) == ["xcache_token"]
    assert site_of(new.files["xcache_token"]) == site
    environment = one.environment(new, PurePosixPath("/secrets"))
    assert environment["BEARER_TOKEN_FILE"] == "/secrets/xcache_token"
    assert environment["XCACHE_HOST"] == f"{name.replace(':', '-')}.example.org"


async def test_who_is_in_no_group_of_the_rules_gets_what_the_hub_has_for_everybody(tmp_path: Path) -> None:
    rules = two_caches(tmp_path)
    everybody = {"site_name": "T3", "host": "xcache.example.org", "key_file": key(tmp_path, "all")}
    one = facility(rules, Facility={"credentials": ["xcache"]}, XCache=everybody)
    assert [*(await minted(one, "/belle/users")).credentials] == ["xcache"]
    without = facility(rules)
    assert (await minted(without, "/belle/users")).files == {}


async def test_who_is_in_both_may_have_both_in_files_of_their_own(tmp_path: Path) -> None:
    rules = two_caches(tmp_path)
    both = {"name": "both", "groups": ["/both"], "credentials": ["xcache", "xcache:atlas", "xcache:cms"]}
    one = facility([both, *rules])
    assert errors(one.check()) == []
    new = await minted(one, ATLAS, CMS, "/both")
    assert [*new.credentials] == ["xcache:atlas", "xcache:cms"]
    assert {path: site_of(content) for path, content in new.files.items()} == {
        "xcache_token": b"T2_atlas",
        "xcache_token_atlas": b"T2_atlas",
        "xcache_token_cms": b"T2_cms",
    }
    # The environment is that of the first.
    assert one.environment(new, PurePosixPath("/s"))["XCACHE_HOST"] == "xcache-atlas.example.org"


async def test_a_renewal_keeps_each_cache_and_each_file(tmp_path: Path) -> None:
    one = facility(
        [{"name": "both", "groups": ["/both"], "credentials": ["xcache", "xcache:cms"]}, *two_caches(tmp_path)]
    )
    groups = (ATLAS, CMS, "/both")
    first = await minted(one, *groups)
    again = one.renew(await request_of(one, *groups), [*one.minters], first.record, force=True)
    assert again.missing == {}
    assert {path: site_of(content) for path, content in again.files.items()} == {
        "xcache_token": b"T2_atlas",
        "xcache_token_cms": b"T2_cms",
    }
    lost = one.mint_lost(await request_of(one, *groups), first.record)
    assert lost.files.keys() == first.files.keys()


async def test_nothing_is_renewed_for_a_group_that_was_lost(tmp_path: Path) -> None:
    one = facility(two_caches(tmp_path))
    first = await minted(one, ATLAS)
    again = one.renew(await request_of(one, CMS), [*one.minters], first.record, force=True)
    assert again.files == {}
    assert again.credentials == {}
    assert again.missing == {}
    assert again.later.keys() == {"xcache:atlas"}
    assert one.mint_lost(await request_of(one, CMS), first.record).files == {}


async def test_what_was_missing_and_is_not_given_any_more_is_told_and_not_tried_at_once(tmp_path: Path) -> None:
    """A credential that is neither renewed nor failed would be due again at once, without end."""
    rules = two_caches(tmp_path)
    rules[0]["XCache"]["key_file"] = str(tmp_path / "gone")
    one = facility(rules)
    first = await minted(one, ATLAS)
    assert first.record.missing.keys() == {"xcache:atlas"}
    again = one.renew(await request_of(one, CMS), ["xcache:atlas"], first.record)
    assert "groups don't give it any more" in again.missing["xcache:atlas"]
    assert again.later == {}


async def test_a_group_that_came_later_doesn_t_change_a_running_server(tmp_path: Path) -> None:
    """The rule of the new group stands before: at the next start, the cache is that one's."""
    one = facility(two_caches(tmp_path))
    first = await minted(one, CMS)
    again = one.renew(await request_of(one, CMS, ATLAS), [*one.minters], first.record, force=True)
    assert again.files == {}
    assert [*again.record.credentials] == ["xcache:cms"]


def test_keys_of_two_caches_are_looked_at_each_and_a_wrong_one_names_its_rule(tmp_path: Path) -> None:
    rules = two_caches(tmp_path)
    Path(rules[1]["XCache"]["key_file"]).unlink()
    one = facility(rules)
    [problem] = errors(one.check_minters())
    assert problem.thing.endswith("of rule cms")
    assert one.key_files().keys() == {"XCache.key_file of rule atlas", "XCache.key_file of rule cms"}
    assert asyncio.run(minted(one, ATLAS)).files
    assert asyncio.run(minted(one, CMS)).missing.keys() == {"xcache:cms"}


async def test_a_required_credential_is_required_of_those_who_get_it(tmp_path: Path) -> None:
    rules = two_caches(tmp_path)
    rules[0]["XCache"]["key_file"] = str(tmp_path / "gone")
    one = facility(rules, Facility={"required": ["xcache"]})
    assert errors(one.check_settings()) == []
    with pytest.raises(CredentialError):
        await minted(one, ATLAS)
    assert (await minted(one, CMS)).files
    assert (await minted(one, "/belle")).files == {}


async def test_a_rule_s_vo_is_that_of_its_tokens_alone(tmp_path: Path) -> None:
    issuer_in(tmp_path)  # makes the key
    keys = {"keys": str(tmp_path), "vo": "facility", "url": URL}
    cache = {"credential": "token", "audience": "https://xcache", "host": "xcache.example.org", "path": "/"}
    one = facility(
        [{"groups": ["/atlas/*"], "FacilityIssuer": {"vo": "atlas"}}],
        Facility={"credentials": ["xcache"]},
        FacilityIssuer=keys,
        XCache=cache,
    )
    assert errors(one.check()) == []
    assert [issuer.iss for issuer in one.issuers] == [f"{URL}/facility", f"{URL}/atlas"]
    of_atlas, of_others = await minted(one, ATLAS), await minted(one, CMS)
    issuers = {of: issuer_of(new.files["xcache_token"]) for of, new in (("atlas", of_atlas), ("others", of_others))}
    assert issuers == {"atlas": f"{URL}/atlas", "others": f"{URL}/facility"}


def test_a_laptop_gets_the_one_of_its_owner_s_rule(tmp_path: Path) -> None:
    one = facility(two_caches(tmp_path))
    assert one.names_outside(person(CMS)) == ["xcache"]
    assert one.name_for(person(CMS), "xcache") == "xcache:cms"
    assert one.names_outside(person("/belle")) == []
    request = Request(Server("", "alice"), "0" * 32, NOW, chosen=one.chosen(one.policy.of(person(CMS))))
    assert one.mint_outside(request, "xcache:cms", None, user_id=1).files
    with pytest.raises(CredentialError, match="no such credential outside"):
        one.mint_outside(request, "xcache:atlas", None, user_id=1)
    own = replace(request, chosen={"xcache:atlas": Paths.OWN})
    with pytest.raises(CredentialError, match="no such credential outside"):
        one.mint_outside(own, "xcache:atlas", None, user_id=1)


WRONG = {
    "a section that isn't there": ({"XCash": {"host": "x"}}, "Policy.rules, atlas.XCash: there is no such credential"),
    "a setting that isn't there": (
        {"credentials": ["xcache"], "XCache": {"hots": "x"}},
        "Policy.rules, atlas.XCache.hots: there is no such setting. Did you mean host",
    ),
    "Dask": ({"Dask": {"domain": "x.org"}}, "can't be for some people alone"),
    "a section of a credential that nobody gets": ({"XCache": {"host": "x"}}, "its settings of xcache are for nobody"),
    "a credential that isn't there": ({"credentials": ["xcahce"]}, "there is no credential 'xcahce'"),
    "a rule that isn't there": ({"credentials": ["xcache:cms"]}, "there is no credential 'xcache:cms'"),
    "an issuer where there is none": ({"FacilityIssuer": {"vo": "atlas"}}, "this hub has no issuer of tokens"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_can_t_work_is_told_at_the_start_with_the_rule(name: str) -> None:
    words, told = WRONG[name]
    problems = facility([{"groups": ["/atlas/*"], **words}]).check_settings()
    assert any(told in str(problem) for problem in problems), problems


def test_minters_of_a_rule_keep_their_class_and_its_settings(tmp_path: Path) -> None:
    one = facility(two_caches(tmp_path), Facility={"XCache": {"lifetime": 77}}, XCache={"port": 1095})
    minter: Minter = one.minters["xcache:atlas"]
    assert (minter.host, minter.port, minter.lifetime) == ("xcache-atlas.example.org", 1095, 77)  # type: ignore[attr-defined]
    assert minter.title.endswith("of atlas")
