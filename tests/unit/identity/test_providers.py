"""The presets, and which syntax goes with a claim of the operator's choice."""

from urllib.parse import urlsplit

import pytest

from casa_hub.identity.providers import PROVIDERS, GroupSyntax, Provider, group_syntax_for
from casa_hub.membership.groups import GroupSource
from casa_hub.membership.policy import Policy, Refused, decide

EACH = [pytest.param(provider, id=name) for name, provider in PROVIDERS.items()]


def test_the_names_are_the_operators_surface() -> None:
    assert list(PROVIDERS) == ["cms-iam", "atlas-iam", "wlcg-iam", "cilogon", "keycloak", "oidc"]
    assert all(name == provider.name for name, provider in PROVIDERS.items())


def test_the_presets_can_not_be_changed() -> None:
    with pytest.raises(TypeError):
        PROVIDERS["cms-iam"] = PROVIDERS["oidc"]  # type: ignore[index]


@pytest.mark.parametrize("provider", EACH)
def test_an_issuer_is_a_plain_https_address(provider: Provider) -> None:
    if not provider.issuer:
        assert provider.name in {"keycloak", "oidc"}
        return
    parts = urlsplit(provider.issuer)
    assert parts.scheme == "https"
    assert parts.hostname
    assert not parts.query + parts.fragment


@pytest.mark.parametrize("name", ["cms-iam", "atlas-iam", "wlcg-iam"])
def test_issuers_of_iam_end_in_a_slash(name: str) -> None:
    """It is compared with the discovery document and with `iss` to the last character."""
    assert PROVIDERS[name].issuer.endswith("/")


def test_the_issuer_of_cilogon_does_not() -> None:
    assert PROVIDERS["cilogon"].issuer == "https://cilogon.org"


@pytest.mark.parametrize("provider", EACH)
def test_each_asks_for_an_id_token_and_for_its_groups(provider: Provider) -> None:
    assert provider.scopes[0] == "openid"
    assert len(set(provider.scopes)) == len(provider.scopes)
    scope_of_claim = {"wlcg.groups": "wlcg.groups", "isMemberOf": "org.cilogon.userinfo"}
    if provider.groups_claim in scope_of_claim:
        assert scope_of_claim[provider.groups_claim] in provider.scopes


@pytest.mark.parametrize("provider", EACH)
def test_a_preset_reads_its_claim_as_an_operator_who_names_it_does(provider: Provider) -> None:
    assert provider.group_syntax is group_syntax_for(provider.groups_claim)


@pytest.mark.parametrize("provider", EACH)
def test_no_preset_lets_anybody_in(provider: Provider) -> None:
    source = GroupSource(provider.groups_claim, provider.group_syntax)
    claims: dict[str, object] = {provider.username_claim: "alice", provider.groups_claim: ["cms"]}
    assert isinstance(decide(claims, "alice", Policy(source=source)), Refused)


def test_only_cilogon_has_many_institutions_behind_it() -> None:
    assert [provider.name for provider in PROVIDERS.values() if provider.needs_allowed_idps] == ["cilogon"]


def test_only_keycloak_shows_a_lost_group_with_an_old_token() -> None:
    assert [provider.name for provider in PROVIDERS.values() if provider.groups_live_in_userinfo] == ["keycloak"]


@pytest.mark.parametrize(
    ("groups_claim", "syntax"),
    [
        ("groups", GroupSyntax.PATHS),
        ("wlcg.groups", GroupSyntax.PATHS),
        ("eduperson_entitlement", GroupSyntax.ENTITLEMENTS),
        ("entitlements", GroupSyntax.ENTITLEMENTS),
        ("isMemberOf", GroupSyntax.NAMES),
        ("roles", GroupSyntax.NAMES),
        ("realm_access.roles", GroupSyntax.NAMES),
        ("resource_access.hub.example.org.roles", GroupSyntax.NAMES),
    ],
)
def test_syntax_of_a_claim(groups_claim: str, syntax: GroupSyntax) -> None:
    assert group_syntax_for(groups_claim) is syntax
