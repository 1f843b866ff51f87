"""The truth table of who may come in."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.errors import ConfigurationError
from casa_hub.identity.providers import GroupSyntax
from casa_hub.membership.groups import GroupSource, MalformedClaim
from casa_hub.membership.policy import Allowed, Policy, Refused, decide

WLCG = GroupSource("wlcg.groups", GroupSyntax.PATHS)
KEYCLOAK = GroupSource("groups", GroupSyntax.PATHS)
CILOGON = GroupSource("isMemberOf", GroupSyntax.NAMES)
PROXY = GroupSource("entitlements", GroupSyntax.ENTITLEMENTS, "urn:geant:example.org", "login.example.org")

HOME = "https://login.example.edu/idp/shibboleth"


def policy(source: GroupSource = WLCG, **settings: Any) -> Policy:
    """A policy from lists, as an operator writes them."""
    return Policy(source=source, **{k: frozenset(v) if isinstance(v, list) else v for k, v in settings.items()})


def of(*groups: str) -> dict[str, object]:
    return {"wlcg.groups": list(groups)}


NO_CLAIM: dict[str, object] = {"sub": "1"}

YES, ADMIN, NO = "in", "in as administrator", "refused"


def outcome_of(decision: Allowed | Refused) -> str:
    if isinstance(decision, Refused):
        return NO
    return ADMIN if decision.admin else YES


TABLE = [
    # Nobody by default.
    ("nothing is configured", {}, of("/cms"), NO),
    ("required_groups alone let nobody in", {"required_groups": ["/cms"]}, of("/cms"), NO),
    ("blocked_groups alone let nobody in", {"blocked_groups": ["/banned"]}, of("/cms"), NO),
    ("allowed_idps alone let nobody in", {"allowed_idps": [HOME]}, of("/cms") | {"idp": HOME}, NO),
    # allowed_groups: any of.
    ("in the group", {"allowed_groups": ["/cms/uscms"]}, of("/cms", "/cms/uscms"), YES),
    ("in one of two", {"allowed_groups": ["/cms/uscms", "/atlas"]}, of("/atlas"), YES),
    ("in another", {"allowed_groups": ["/cms/uscms"]}, of("/cms", "/cms/itcms"), NO),
    ("in the parent only", {"allowed_groups": ["/cms/uscms"]}, of("/cms"), NO),
    ("in a subgroup only", {"allowed_groups": ["/cms"]}, of("/cms/uscms"), NO),
    ("a longer name", {"allowed_groups": ["/cms"]}, of("/cmsx"), NO),
    ("a shorter name", {"allowed_groups": ["/cms"]}, of("/cm"), NO),
    ("another case", {"allowed_groups": ["/cms"]}, of("/CMS"), NO),
    ("the same name elsewhere", {"allowed_groups": ["/uscms"]}, of("/cms/uscms"), NO),
    ("written without a slash", {"allowed_groups": ["cms/uscms"]}, of("/cms/uscms"), YES),
    ("sent without a slash", {"allowed_groups": ["/cms/uscms"]}, of("cms/uscms"), YES),
    # /*
    ("/*: the group itself", {"allowed_groups": ["/cms/uscms/*"]}, of("/cms/uscms"), YES),
    ("/*: a subgroup", {"allowed_groups": ["/cms/uscms/*"]}, of("/cms/uscms/t2"), YES),
    ("/*: a subgroup of a subgroup", {"allowed_groups": ["/cms/uscms/*"]}, of("/cms/uscms/t2/x"), YES),
    ("/*: a group whose name begins so", {"allowed_groups": ["/cms/uscms/*"]}, of("/cms/uscms-x"), NO),
    ("/*: the parent", {"allowed_groups": ["/cms/uscms/*"]}, of("/cms"), NO),
    ("/*: a group that is called so", {"allowed_groups": ["/cms/uscms"]}, of("/cms/*"), NO),
    # Nothing said.
    ("no claim", {"allowed_groups": ["/cms"]}, NO_CLAIM, NO),
    ("null", {"allowed_groups": ["/cms"]}, {"wlcg.groups": None}, NO),
    ("empty claim", {"allowed_groups": ["/cms"]}, of(), NO),
    ("another claim", {"allowed_groups": ["/cms"]}, {"groups": ["/cms"]}, NO),
    # Users.
    ("allow_all", {"allow_all": True}, NO_CLAIM, YES),
    ("allowed_users", {"allowed_users": ["alice"]}, NO_CLAIM, YES),
    ("other allowed_users", {"allowed_users": ["alicia"]}, NO_CLAIM, NO),
    ("admin_users", {"admin_users": ["alice"]}, NO_CLAIM, ADMIN),
    ("admin_users beside allow_all", {"admin_users": ["bob"], "allow_all": True}, NO_CLAIM, YES),
    # Administrators by group.
    ("admin group lets in", {"admin_groups": ["/cms/admins"]}, of("/cms/admins"), ADMIN),
    ("admin group beside allowed", {"admin_groups": ["/a"], "allowed_groups": ["/cms"]}, of("/a", "/cms"), ADMIN),
    ("not in the admin group", {"admin_groups": ["/a"], "allowed_groups": ["/cms"]}, of("/cms"), YES),
    ("admin group, no claim", {"admin_groups": ["/a"], "allow_all": True}, NO_CLAIM, YES),
    # required_groups: all of, for everybody.
    ("required and allowed", {"required_groups": ["/a", "/b"], "allowed_groups": ["/c"]}, of("/a", "/b", "/c"), YES),
    ("one is lacking", {"required_groups": ["/a", "/b"], "allowed_groups": ["/c"]}, of("/a", "/c"), NO),
    ("required, not allowed", {"required_groups": ["/a"], "allowed_groups": ["/c"]}, of("/a"), NO),
    ("required under allow_all", {"required_groups": ["/a"], "allow_all": True}, of("/b"), NO),
    ("required under allow_all, met", {"required_groups": ["/a"], "allow_all": True}, of("/a"), YES),
    ("required of allowed_users", {"required_groups": ["/a"], "allowed_users": ["alice"]}, of("/b"), NO),
    ("required of admin_users", {"required_groups": ["/a"], "admin_users": ["alice"]}, of("/b"), NO),
    ("required of admin_groups", {"required_groups": ["/a"], "admin_groups": ["/b"]}, of("/b"), NO),
    ("required, no claim", {"required_groups": ["/a"], "allow_all": True}, NO_CLAIM, NO),
    ("required, a subgroup only", {"required_groups": ["/a"], "allow_all": True}, of("/a/b"), NO),
    ("required with subgroups", {"required_groups": ["/a/*"], "allow_all": True}, of("/a/b"), YES),
    # blocked_groups beat everything.
    ("blocked beats allowed", {"blocked_groups": ["/x"], "allowed_groups": ["/cms"]}, of("/cms", "/x"), NO),
    ("blocked beats allow_all", {"blocked_groups": ["/x"], "allow_all": True}, of("/x"), NO),
    ("blocked beats allowed_users", {"blocked_groups": ["/x"], "allowed_users": ["alice"]}, of("/x"), NO),
    ("blocked beats admin_users", {"blocked_groups": ["/x"], "admin_users": ["alice"]}, of("/x"), NO),
    ("blocked beats admin_groups", {"blocked_groups": ["/x"], "admin_groups": ["/a"]}, of("/x", "/a"), NO),
    ("blocked beats required", {"blocked_groups": ["/x"], "required_groups": ["/x"], "allow_all": True}, of("/x"), NO),
    ("blocked by a subgroup", {"blocked_groups": ["/x"], "allow_all": True}, of("/x/y"), NO),
    ("blocked by /*", {"blocked_groups": ["/x/*"], "allow_all": True}, of("/x/y"), NO),
    ("not blocked by the parent", {"blocked_groups": ["/x/y"], "allow_all": True}, of("/x"), YES),
    ("not blocked", {"blocked_groups": ["/x"], "allow_all": True}, of("/cms"), YES),
    ("nobody's group is blocked", {"blocked_groups": ["/x"], "allow_all": True}, of(), YES),
    ("no claim is normal for whoever is in no group", {"blocked_groups": ["/x"], "allow_all": True}, NO_CLAIM, YES),
    # Home institutions.
    ("from an allowed one", {"allow_all": True, "allowed_idps": [HOME]}, {"idp": HOME}, YES),
    ("from another", {"allow_all": True, "allowed_idps": [HOME]}, {"idp": "https://evil.example"}, NO),
    ("with a longer name", {"allow_all": True, "allowed_idps": [HOME]}, {"idp": HOME + "/"}, NO),
    ("unknown", {"allow_all": True, "allowed_idps": [HOME]}, {}, NO),
    ("a list", {"allow_all": True, "allowed_idps": [HOME]}, {"idp": [HOME]}, NO),
    ("administrator from another", {"admin_users": ["alice"], "allowed_idps": [HOME]}, {"idp": "https://x"}, NO),
]


@pytest.mark.parametrize(("settings", "claims", "outcome"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_truth_table(settings: dict[str, Any], claims: dict[str, object], outcome: str) -> None:
    assert outcome_of(decide(claims, "alice", policy(**settings))) == outcome


NAME = "CO:COU:OpenData Facility:members:active"


@pytest.mark.parametrize(
    ("source", "allowed", "claims", "outcome"),
    [
        pytest.param(CILOGON, NAME, {"isMemberOf": [NAME]}, YES, id="cilogon list"),
        pytest.param(CILOGON, NAME, {"isMemberOf": f"CO:members:all;{NAME}"}, YES, id="cilogon string"),
        pytest.param(CILOGON, NAME, {"isMemberOf": [NAME + ":x"]}, NO, id="cilogon longer name"),
        pytest.param(CILOGON, "CO:COU:OpenData Facility", {"isMemberOf": [NAME]}, NO, id="cilogon beginning of a name"),
        pytest.param(CILOGON, "cms", {"isMemberOf": ["cms/uscms"]}, NO, id="names have no parents"),
        pytest.param(KEYCLOAK, "/cms", {"groups": ["/cms/uscms"]}, NO, id="keycloak subgroup alone"),
        pytest.param(KEYCLOAK, "/cms/*", {"groups": ["/cms/uscms"]}, YES, id="keycloak subgroup, asked for so"),
        pytest.param(KEYCLOAK, "uscms", {"groups": ["uscms"]}, YES, id="keycloak short name"),
        pytest.param(
            PROXY,
            "/cms/uscms",
            {"entitlements": ["urn:geant:example.org:group:cms:uscms:role=manager#login.example.org"]},
            YES,
            id="who has a role in a group is in it",
        ),
        pytest.param(
            PROXY,
            "/cms/uscms:role=manager",
            {"entitlements": ["urn:geant:example.org:group:cms:uscms#login.example.org"]},
            NO,
            id="who is in a group has no role",
        ),
        pytest.param(
            PROXY,
            "/cms:role=manager",
            {"entitlements": ["urn:geant:example.org:group:cms:uscms:role=manager#login.example.org"]},
            NO,
            id="a role in a subgroup is none in the parent",
        ),
        pytest.param(
            PROXY,
            "/cms",
            {"entitlements": ["urn:geant:example.org:group:cms#evil.example.org"]},
            NO,
            id="another authority",
        ),
    ],
)
def test_every_syntax(source: GroupSource, allowed: str, claims: dict[str, object], outcome: str) -> None:
    assert outcome_of(decide(claims, "alice", policy(source, allowed_groups=[allowed]))) == outcome


# What is told ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "admin", "ways_in"),
    [
        ({"allowed_groups": ["cms/*", "/atlas"]}, False, {"/cms/*"}),
        ({"allowed_groups": ["/cms", "/cms/uscms"], "admin_groups": ["/cms/uscms"]}, True, {"/cms", "/cms/uscms"}),
        ({"allow_all": True, "allowed_users": ["alice", "bob"]}, False, set()),
        ({"admin_users": ["alice"]}, True, set()),
    ],
)
def test_who_is_allowed_is_in_all_their_groups(settings: dict[str, Any], admin: bool, ways_in: set[str]) -> None:
    decision = decide(of("/cms", "/cms/uscms"), "alice", policy(**settings))
    assert decision == Allowed(groups=frozenset({"/cms", "/cms/uscms"}), admin=admin, ways_in=frozenset(ways_in))


def test_members_of_a_subgroup_are_no_administrators_by_it() -> None:
    """Keycloak sends a subgroup without its parents: interns of the staff got the staff's rights."""
    settings: dict[str, Any] = {"allow_all": True, "admin_groups": ["/staff"]}
    decision = decide({"groups": ["/staff/interns"]}, "alice", policy(KEYCLOAK, **settings))
    assert isinstance(decision, Allowed)
    assert not decision.admin


def test_one_odd_group_does_not_hide_a_block() -> None:
    """Where users make groups, a blocked one could have made himself unreadable: access went on as "can't say"."""
    with pytest.raises(MalformedClaim):
        decide(of("/cms", "/odd\n"), "alice", policy(allowed_groups=["/cms"], blocked_groups=["/x"]))
    decision = decide(of("/cms", "/x", "/odd\n"), "alice", policy(allowed_groups=["/cms"], blocked_groups=["/x"]))
    assert isinstance(decision, Refused)


def refusal(
    claims: dict[str, object], scopes: str | None = None, *, source: GroupSource = WLCG, **settings: Any
) -> Refused:
    granted = None if scopes is None else frozenset(scopes.split())
    decision = decide(claims, "alice", policy(source, **settings), granted_scopes=granted)
    assert isinstance(decision, Refused)
    return decision


def test_a_refusal_names_the_groups_asked_for_those_found_and_the_way_to_join() -> None:
    refused = refusal(of("/cms"), allowed_groups=["/cms/uscms", "/atlas/*"], join_url="https://example.org/join")
    assert refused.found == {"/cms"}
    assert not refused.claim_missing
    assert refused.reason == (
        "This hub is for members of /atlas or /cms/uscms. Ask to join at https://example.org/join."
    )


def test_a_refusal_names_only_the_required_groups_that_are_lacking() -> None:
    refused = refusal(of("/a"), required_groups=["/a", "/b", "/c"], allow_all=True)
    assert refused.reason == "This hub is for members of /b and /c. Ask the hub's operator how to join."


@pytest.mark.parametrize(
    ("claims", "missing"), [(NO_CLAIM, True), (of(), False)], ids=["claim left out", "empty claim"]
)
def test_without_any_group_both_causes_are_named(claims: dict[str, object], missing: bool) -> None:
    refused = refusal(claims, allowed_groups=["/cms"])
    assert refused.claim_missing is missing
    assert not refused.claim_withheld
    assert "either you are in none there, or it doesn't tell this hub your groups" in refused.reason


def test_granted_scopes_make_the_cause_more_precise() -> None:
    settings: dict[str, Any] = {"allowed_groups": ["/cms"]}
    assert "didn't grant this hub the scope wlcg.groups" in refusal(NO_CLAIM, "openid profile", **settings).reason
    assert "the scope wlcg.groups was granted" in refusal(NO_CLAIM, "openid wlcg.groups", **settings).reason
    assert "the scope wlcg.groups was granted" in refusal(NO_CLAIM, "wlcg.groups:/cms/production", **settings).reason
    # Its scope policy can keep the scope from one person (INDIGO IAM 1.12, measured): the client may be all right.
    assert "a policy of the provider keeps it from you" in refusal(NO_CLAIM, "openid profile", **settings).reason
    # Where no scope brings the claim, scopes prove nothing.
    assert (
        "may lack the scope, the mapper or the profile"
        in refusal(NO_CLAIM, "openid", source=KEYCLOAK, **settings).reason
    )


def test_a_client_without_the_profile_is_told_from_somebody_without_groups() -> None:
    """INDIGO IAM 1.12, measured: the scope is granted, and userinfo is that of IAM's own profile for everybody."""
    claims: dict[str, object] = {"sub": "s", "groups": ["cms"], "organisation_name": "indigo-dc"}
    refused = refusal(claims, "openid wlcg.groups", allowed_groups=["/cms"])
    assert refused.claim_withheld == "profile"
    assert "give the client the profile wlcg again" in refused.reason
    assert not refusal(NO_CLAIM, "openid wlcg.groups", allowed_groups=["/cms"]).claim_withheld


def test_foreign_entitlements_are_said_to_be_foreign() -> None:
    claims: dict[str, object] = {"entitlements": ["urn:geant:example.org:group:cms#evil.example.org"]}
    refused = refusal(claims, source=PROXY, allowed_groups=["/cms"])
    assert "in the namespace and by the authority that this hub goes by" in refused.reason
    assert "evil" not in refused.reason


def test_blocked_people_are_not_sent_to_join_anything() -> None:
    refused = refusal(
        of("/x", "/cms"), blocked_groups=["/x/*"], allowed_groups=["/cms"], join_url="https://join.example"
    )
    assert refused.reason == "This hub is closed to members of /x. Ask its operator."


def test_who_is_not_on_the_list_is_not_told_about_groups() -> None:
    refused = refusal(NO_CLAIM, allowed_users=["bob"])
    assert refused.reason == "This hub is for the users on its list, and you aren't on it. Ask its operator."


def test_a_home_institution_that_is_not_told_is_told_from_a_wrong_one() -> None:
    settings: dict[str, Any] = {"allowed_idps": [HOME], "allow_all": True}
    foreign, unknown = refusal({"idp": "https://evil.example"}, **settings), refusal({}, **settings)
    assert "isn't open to your home institution" in foreign.reason
    assert "doesn't say which home institution" in unknown.reason
    assert (foreign.claim_missing, unknown.claim_missing) == (False, True)


def test_a_block_that_could_not_be_checked_refuses() -> None:
    """Without the scope no group of anybody arrives: blocked people would come in, and nobody would notice."""
    settings: dict[str, Any] = {"blocked_groups": ["/x"], "allow_all": True}
    refused = refusal(NO_CLAIM, "openid profile", **settings)
    assert refused.claim_missing
    assert refused.claim_withheld
    assert "didn't grant this hub the scope wlcg.groups" in refused.reason
    assert outcome_of(decide(NO_CLAIM, "alice", policy(**settings), granted_scopes=frozenset({"wlcg.groups"}))) == YES


# Malformed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"allowed_groups": ["/cms"]}, {"allow_all": True}, {"admin_users": ["alice"]}], ids=str
)
def test_a_claim_that_can_not_be_read_lets_nobody_in(settings: dict[str, Any]) -> None:
    with pytest.raises(MalformedClaim):
        decide({"wlcg.groups": [{"name": "/cms"}]}, "alice", policy(**settings))


@pytest.mark.parametrize("setting", ["allowed_groups", "required_groups", "blocked_groups", "admin_groups"])
def test_a_group_that_could_match_nothing_ends_the_start(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{setting} '/cms/\*x'.*Write a path like /cms/uscms"):
        policy(**{setting: ["/cms/*x"]})
    with pytest.raises(ConfigurationError, match=rf"{setting} 'CO:\*'.*just as the identity provider sends it"):
        policy(CILOGON, **{setting: ["CO:*"]})


# Whatever is configured -----------------------------------------------------------------------------------------------

GROUPS = ["/a", "/a/b", "/a/b/c", "/b", "/b/a", "/c"]
some_groups = st.frozensets(st.sampled_from(GROUPS))
some_patterns = st.frozensets(st.sampled_from([*GROUPS, *(f"{group}/*" for group in GROUPS)]), max_size=3)
some_users = st.frozensets(st.sampled_from(["alice", "bob"]))
policies = st.builds(
    Policy,
    source=st.just(WLCG),
    allowed_groups=some_patterns,
    required_groups=some_patterns,
    blocked_groups=some_patterns,
    admin_groups=some_patterns,
    allow_all=st.booleans(),
    allowed_users=some_users,
    admin_users=some_users,
)


@given(policy=policies, groups=some_groups, blocked=st.sampled_from(GROUPS))
def test_blocked_is_refused_whatever_else_is_said(policy: Policy, groups: frozenset[str], blocked: str) -> None:
    claims = of(*groups, blocked)
    blocking = Policy(
        source=WLCG,
        allowed_groups=policy.allowed_groups,
        required_groups=policy.required_groups,
        blocked_groups=policy.blocked_groups | {blocked},
        admin_groups=policy.admin_groups,
        allow_all=True,
        allowed_users=policy.allowed_users,
        admin_users=frozenset({"alice"}),
    )
    assert outcome_of(decide(claims, "alice", blocking)) == NO


@given(policy=policies, groups=some_groups, more=some_groups)
def test_another_group_never_takes_access_away_but_by_a_block(
    policy: Policy, groups: frozenset[str], more: frozenset[str]
) -> None:
    before = decide(of(*groups), "alice", policy)
    after = decide(of(*groups, *more), "alice", policy)
    if isinstance(before, Allowed) and isinstance(after, Refused):
        blocked = {pattern.removesuffix("/*") for pattern in policy.blocked_groups}
        # A block takes all below it.
        assert any(group == root or group.startswith(f"{root}/") for group in after.found for root in blocked)
    if isinstance(before, Allowed) and isinstance(after, Allowed):
        assert after.admin >= before.admin


@given(policy=policies, groups=some_groups)
def test_who_is_let_in_by_groups_alone_is_in_one_of_them(policy: Policy, groups: frozenset[str]) -> None:
    decision = decide(of(*groups), "carol", policy)
    if isinstance(decision, Allowed) and not policy.allow_all:
        ways = {pattern.removesuffix("/*") for pattern in policy.allowed_groups | policy.admin_groups}
        assert any(f"{group}/".startswith(f"{way}/") for group in groups for way in ways)


@given(policy=policies)
def test_a_missing_claim_gives_what_an_empty_one_gives(policy: Policy) -> None:
    assert outcome_of(decide(NO_CLAIM, "alice", policy)) == outcome_of(decide(of(), "alice", policy))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
CLAIMS = ["wlcg.groups", "wlcg", "groups", "entitlements", "isMemberOf", "idp"]


@pytest.mark.parametrize("source", [pytest.param(s, id=s.claim) for s in (WLCG, KEYCLOAK, CILOGON, PROXY)])
@given(
    claims=st.dictionaries(st.sampled_from(CLAIMS) | st.text(), json_values),
    scopes=st.none() | st.frozensets(st.text()),
)
def test_any_claims_give_a_decision_or_a_malformed_claim(
    source: GroupSource, claims: dict[str, object], scopes: frozenset[str] | None
) -> None:
    policy_ = policy(source, allowed_groups=["cms"], blocked_groups=["x"], allowed_idps=[HOME])
    for claims_ in (claims, claims | {"idp": HOME}):
        try:
            decision = decide(claims_, "alice", policy_, granted_scopes=scopes)
        except MalformedClaim:
            continue
        assert isinstance(decision, Allowed | Refused)
