"""The operator's configuration of the log-in: what is refused names the setting and the remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.crypto import CryptKeeper
from traitlets.config import Config

from casa_hub.authenticator import CasaOAuthenticator
from casa_hub.errors import CasaError, ConfigurationError
from casa_hub.identity.errors import OIDCError
from casa_hub.identity.providers import PROVIDERS
from casa_hub.identity.settings import ALWAYS_ON, SUPERSEDED
from casa_hub.membership import admission
from casa_hub.membership.policy import Allowed

pytestmark = pytest.mark.both_hubs

GOOD: dict[str, Any] = {
    "provider": "cms-iam",
    "client_id": "hub",
    "client_secret": "secret",
    "allowed_groups": ["/cms/uscms"],
}


@pytest.fixture(autouse=True)
def _crypt_key(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("JUPYTERHUB_CRYPT_KEY", "00" * 32)
    CryptKeeper.clear_instance()
    yield
    CryptKeeper.clear_instance()


def configured(section: str = "CasaOAuthenticator", /, **traits: Any) -> CasaOAuthenticator:
    """The authenticator with these settings on top of good ones; None takes one away."""
    config = Config()
    for name, value in GOOD.items():
        if traits.get(name, value) is not None:
            config.CasaOAuthenticator[name] = traits.get(name, value)
    for name, value in traits.items():
        if name not in GOOD:
            config[section][name] = value
    return CasaOAuthenticator(config=config)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_preset_needs_only_what_nobody_can_know(provider: str) -> None:
    known = PROVIDERS[provider]
    more: dict[str, Any] = {} if known.issuer else {"issuer": "https://idp.example.org"}
    if known.needs_allowed_idps:
        more["allowed_idps"] = ["https://login.example.edu/idp"]
    one = configured(provider=provider, allowed_groups=["group"], **more)
    assert one.issuer == (known.issuer or "https://idp.example.org")
    assert tuple(one.scope) == known.scopes
    assert (one.username_claim, one.groups_claim) == (known.username_claim, known.groups_claim)
    assert one.login_service == known.title
    assert (one.enable_auth_state, one.manage_groups, one.enable_pkce) == (True, True, True)


def test_what_the_operator_sets_wins_over_the_preset() -> None:
    one = configured(
        issuer="https://iam.example.org/",
        scope=["openid", "wlcg.groups:/cms/production"],
        username_claim="sub",
        groups_claim="groups",
        login_service="CMS",
    )
    assert one.provider_side.client.issuer == "https://iam.example.org/"
    assert list(one.scope) == ["openid", "wlcg.groups:/cms/production"]
    assert (one.username_claim, one.groups_claim, one.login_service) == ("sub", "groups", "CMS")


@pytest.mark.parametrize("trait", SUPERSEDED)
@pytest.mark.parametrize("section", ["CasaOAuthenticator", "OAuthenticator"])
def test_a_setting_of_the_base_class_without_effect_is_refused(section: str, trait: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured(section, **{trait: "anything"})
    assert caught.value.thing == f"{section}.{trait}"
    assert SUPERSEDED[trait] in str(caught.value)


@pytest.mark.parametrize("trait", ALWAYS_ON)
def test_what_is_always_on_may_be_said_but_not_denied(trait: str) -> None:
    configured("Authenticator", **{trait: True})
    with pytest.raises(ConfigurationError, match=rf"Authenticator\.{trait}: is always on here"):
        configured("Authenticator", **{trait: False})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no provider": ({"provider": None}, r"CasaOAuthenticator\.provider: it is not set\. Choose one of .*cms-iam"),
    "no issuer": ({"provider": "keycloak"}, r"CasaOAuthenticator\.issuer: is not set\. Keycloak needs it"),
    "no client id": ({"client_id": None}, r"CasaOAuthenticator\.client_id: is not set"),
    "no client secret": ({"client_secret": None}, r"CasaOAuthenticator\.client_secret: is not set"),
    "issuer is no URL": ({"issuer": "iam.example.org"}, r"OAuthenticator\.issuer: 'iam\.example\.org' is not a URL"),
    "issuer in the clear": (
        {"issuer": "http://127.0.0.1.example.org"},
        r"CasaOAuthenticator\.issuer: 'http://127\.0\.0\.1\.example\.org' is not https",
    ),
    "proxy is no URL": ({"http_proxy": "proxy:3128"}, r"CasaOAuthenticator\.http_proxy: 'proxy:3128' is not a URL"),
    "CILogon for everybody": ({"provider": "cilogon"}, r"CasaOAuthenticator\.allowed_idps: is not set\. Name the"),
    "entitlements of anybody": (
        {"groups_claim": "eduperson_entitlement"},
        r"entitlement_namespace: groups_claim eduperson_entitlement needs the namespace that counts",
    ),
    "entitlements of any authority": (
        {"groups_claim": "entitlements", "entitlement_namespace": "urn:geant:example.org"},
        r"entitlement_authority: groups_claim entitlements needs the authority",
    ),
    "a group that can't be": ({"allowed_groups": ["/cms//uscms"]}, r"allowed_groups '/cms//uscms'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_configuration_that_can_t_work_is_refused(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    for name in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    traits, words = WRONG[case]
    with pytest.raises(CasaError, match=words):
        configured(**traits)


def test_without_a_crypt_key_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUPYTERHUB_CRYPT_KEY")
    CryptKeeper.clear_instance()
    with pytest.raises(ConfigurationError, match=r"CryptKeeper\.keys: .*openssl rand -hex 32"):
        configured()


@pytest.mark.parametrize("scope", [["openid", "wlcg.groups"], None])
def test_a_provider_that_will_give_no_lasting_refresh_token_is_a_warning(
    scope: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    configured(**({} if scope is None else {"scope": scope}))
    assert ("scope is without offline_access" in caplog.text) is (scope is not None)


def test_nobody_allowed_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    configured(allowed_groups=[])
    assert "nobody is allowed to log in; set allowed_groups" in caplog.text
    caplog.clear()
    configured(allowed_groups=[], admin_groups=["/cms/operators"])
    assert not caplog.text


def test_every_setting_of_ours_says_what_it_is() -> None:
    ours = CasaOAuthenticator.class_own_traits(config=True)
    assert len(ours) > 15
    assert all(len(trait.help.split()) > 4 for trait in ours.values())
    assert not set(ours) & set(SUPERSEDED)
    assert admission.PATIENCE == 2.0


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\ud800", "\u202eecila", "x" * 256])
def test_what_the_hub_can_t_store_or_show_is_no_user_name(name: str) -> None:
    with pytest.raises(OIDCError, match="can't be a user name"):
        configured().user_info_to_username({"preferred_username": name})


def test_group_names_too_long_for_the_hub_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    long = "/" + "x" * 255
    decision = Allowed(groups=frozenset({"/cms", long}), admin=False)
    assert configured().rights.groups("alice", decision) == ["/cms"]
    assert "Groups of alice longer than 255 characters" in caplog.text


def test_a_block_beside_ways_in_without_groups_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    configured(blocked_groups=["/cms/suspended"], allow_all=True)
    assert "set required_groups, too" in caplog.text
    caplog.clear()
    configured(blocked_groups=["/cms/suspended"], allow_all=True, required_groups=["/cms"])
    assert "required_groups" not in caplog.text


async def test_an_authenticator_without_a_hub_forgets_a_user_who_is_deleted() -> None:
    """Nothing runs there that would have to end."""
    authenticator = configured(allowed_users={"alice", "bob"})
    await authenticator.delete_user(SimpleNamespace(name="alice", active=False))  # type: ignore[arg-type]
    assert authenticator.allowed_users == {"bob"}
