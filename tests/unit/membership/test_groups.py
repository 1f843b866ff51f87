"""A group claim becomes the groups somebody is in, in one spelling, or an error; never a guess."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.errors import ConfigurationError
from casa_hub.identity.providers import GroupSyntax
from casa_hub.membership.groups import (
    MAX_DEPTH,
    MAX_GROUPS,
    MAX_NAME_LENGTH,
    NO_AUTHORITY,
    GroupSource,
    MalformedClaim,
    groups_of,
    normalised,
)

PATHS = GroupSource("groups", GroupSyntax.PATHS)
NAMES = GroupSource("groups", GroupSyntax.NAMES)
ENTITLEMENTS = GroupSource("groups", GroupSyntax.ENTITLEMENTS, "urn:geant:example.org", "login.example.org")
SOURCES = [pytest.param(source, id=source.syntax) for source in (PATHS, NAMES, ENTITLEMENTS)]

EXAMPLES = sorted((Path(__file__).parents[1] / "claims").glob("*.json"))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def entitlement(group: str, *, authority: str = "#login.example.org") -> dict[str, object]:
    return {"groups": [f"urn:geant:example.org:group:{group}{authority}"]}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_what_providers_send_is_understood(file: Path) -> None:
    example = json.loads(file.read_text())
    source = GroupSource(**example["source"] | {"syntax": GroupSyntax(example["source"]["syntax"])})
    expected = None if example["groups"] is None else frozenset(example["groups"])
    assert groups_of(example["claims"], source) == expected


def test_every_syntax_has_an_example() -> None:
    assert {json.loads(file.read_text())["source"]["syntax"] for file in EXAMPLES} == set(GroupSyntax)


# Where the claim is -----------------------------------------------------------------------------------------------


def test_a_claim_with_a_dot_in_its_name_wins_over_nesting() -> None:
    source = GroupSource("wlcg.groups", GroupSyntax.PATHS)
    assert groups_of({"wlcg.groups": ["/cms"], "wlcg": {"groups": ["/atlas"]}}, source) == {"/cms"}


@pytest.mark.parametrize("claims", [{}, {"groups": None}, {"Groups": ["/cms"]}], ids=["absent", "null", "other case"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_missing_claim_is_told_from_an_empty_one(source: GroupSource, claims: dict[str, object]) -> None:
    assert groups_of(claims, source) is None
    assert groups_of({"groups": []}, source) == frozenset()


@pytest.mark.parametrize("realm_access", [None, "roles", ["roles"], {}], ids=["null", "string", "list", "empty"])
def test_a_nested_claim_that_is_not_there_is_missing(realm_access: object) -> None:
    assert groups_of({"realm_access": realm_access}, GroupSource("realm_access.roles", GroupSyntax.NAMES)) is None


# Paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "groups"),
    [
        (["/cms"], {"/cms"}),
        (["cms"], {"/cms"}),
        (["cms/"], {"/cms"}),
        (["/cms/uscms", "cms/uscms", "/cms/uscms"], {"/cms/uscms"}),
        (["/a/b/c"], {"/a/b/c"}),
        (["/CMS"], {"/CMS"}),
        (["/cms/us cms"], {"/cms/us cms"}),
        (["/cms/Ünïcode"], {"/cms/Ünïcode"}),
    ],
)
def test_paths_have_one_spelling(sent: object, groups: set[str]) -> None:
    assert groups_of({"groups": sent}, PATHS) == groups


@pytest.mark.parametrize(
    "path",
    [
        *["", "/", "//", "//cms", "/cms//uscms", "/cms//", "/cms/../atlas", "/./cms", "..", "/cms\n", "/c\x00ms"],
        *["/\ud800", "/a" * (MAX_DEPTH + 1), "x" * (MAX_NAME_LENGTH + 1)],
    ],
)
def test_a_path_that_names_no_group_is_malformed(path: str) -> None:
    with pytest.raises(MalformedClaim):
        groups_of({"groups": ["/cms", path]}, PATHS)


# Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "groups"),
    [
        ("CO:a;CO:b", {"CO:a", "CO:b"}),
        ("CO:a; CO:b ;", {"CO:a", "CO:b"}),
        ("CO:OpenData Facility", {"CO:OpenData Facility"}),
        ("", set()),
        (["CO:a;CO:b"], {"CO:a;CO:b"}),
        (["/cms/uscms"], {"/cms/uscms"}),
    ],
    ids=["string", "blanks", "one name", "empty string", "a list isn't split", "a name has no parents"],
)
def test_names_are_taken_whole(sent: object, groups: set[str]) -> None:
    assert groups_of({"groups": sent}, NAMES) == groups


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\u2028b", "\udfff"])
def test_a_name_that_is_no_text_is_malformed(name: str) -> None:
    with pytest.raises(MalformedClaim):
        groups_of({"groups": [name]}, NAMES)


# Entitlements -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "groups"),
    [
        ("cms", {"/cms"}),
        ("cms:uscms", {"/cms/uscms"}),
        ("cms:role=manager", {"/cms", "/cms:role=manager"}),
        ("cms:uscms:role=manager", {"/cms/uscms", "/cms/uscms:role=manager"}),
        ("role=manager", {"/role=manager"}),
        ("group:cms", {"/group/cms"}),
        ("cms:role=a:b", {"/cms/role=a/b"}),
        ("cms?+r?=q", {"/cms"}),
        ("us%20cms", {"/us cms"}),
        ("%C3%A9t%c3%a9", {"/été"}),
    ],
)
def test_an_entitlement_is_a_path_and_keeps_its_role(group: str, groups: set[str]) -> None:
    assert groups_of(entitlement(group), ENTITLEMENTS) == groups


@pytest.mark.parametrize(
    ("group", "groups"),
    [
        ("cms%2Fuscms", {"/cms%2Fuscms"}),
        ("cms%2fuscms", {"/cms%2Fuscms"}),
        ("cms/uscms", {"/cms%2Fuscms"}),
        ("cms%3Auscms", {"/cms%3Auscms"}),
        ("cms%3Arole=manager", {"/cms%3Arole=manager"}),
        ("cms%253Arole=manager", {"/cms%253Arole=manager"}),
        ("cms%23x", {"/cms%23x"}),
    ],
)
def test_an_escaped_separator_is_no_separator(group: str, groups: set[str]) -> None:
    """Else whoever may name a group "cms/uscms" or "cms:role=manager" could make members of another group."""
    assert groups_of(entitlement(group), ENTITLEMENTS) == groups


@pytest.mark.parametrize(
    "urn",
    [
        "urn:geant:example.org:group:cms",
        "urn:geant:example.org:group:cms#",
        "urn:geant:example.org:group:cms#evil.example.org",
        "urn:geant:example.org:group:cms#login.example.org.evil.org",
        "urn:geant:example.org:group:cms#LOGIN.example.org",
        "urn:geant:example.org:group:cms#evil#login.example.org",
        "urn:geant:evil.example.org:group:cms#login.example.org",
        "urn:geant:example.org.evil.org:group:cms#login.example.org",
        "urn:geant:example.org:evil:group:cms#login.example.org",
        "urn:geant:evil:urn:geant:example.org:group:cms#login.example.org",
        "urn:mace:example.org:group:cms#login.example.org",
        "urn:geant:example.org:role:cms#login.example.org",
        "urn:geant:example.org:GROUP:cms#login.example.org",
        "urn:geant:example.org:group#login.example.org",
        " urn:geant:example.org:group:cms#login.example.org",
        "https://example.org/cms",
        "\ud800",
        "",
        "/cms",
    ],
)
def test_what_others_assert_is_passed_over(urn: str) -> None:
    assert groups_of({"groups": [urn]}, ENTITLEMENTS) == frozenset()


@pytest.mark.parametrize("group", ["", ":", "cms:", "cms::uscms", "cms:..", "cms:role=", "cms:%ff", "cms:%0A", "%2E."])
def test_an_entitlement_of_ours_that_names_no_group_is_malformed(group: str) -> None:
    with pytest.raises(MalformedClaim):
        groups_of(entitlement(group), ENTITLEMENTS)


def test_no_authority_takes_only_entitlements_without_one() -> None:
    source = GroupSource("groups", GroupSyntax.ENTITLEMENTS, "urn:geant:example.org", NO_AUTHORITY)
    assert groups_of(entitlement("cms", authority=""), source) == {"/cms"}
    assert groups_of(entitlement("cms"), source) == frozenset()
    assert groups_of(entitlement("cms", authority="#none"), source) == frozenset()


@pytest.mark.parametrize(
    ("namespace", "authority", "setting"),
    [
        ("", "login.example.org", "entitlement_namespace"),
        ("geant:example.org", "login.example.org", "entitlement_namespace"),
        ("urn:geant", "login.example.org", "entitlement_namespace"),
        ("urn:geant:example.org#x", "login.example.org", "entitlement_namespace"),
        ("urn:geant:example.org", "", "entitlement_authority"),
        ("urn:geant:example.org", "#login.example.org", "entitlement_authority"),
    ],
)
def test_entitlements_need_namespace_and_authority(namespace: str, authority: str, setting: str) -> None:
    with pytest.raises(ConfigurationError, match=setting):
        GroupSource("entitlements", GroupSyntax.ENTITLEMENTS, namespace, authority)


@pytest.mark.parametrize("setting", ["namespace", "authority"])
def test_settings_of_entitlements_mean_nothing_elsewhere(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=f"entitlement_{setting}"):
        GroupSource("groups", GroupSyntax.PATHS, **{setting: "urn:geant:example.org"})


# Malformed --------------------------------------------------------------------------------------------------------

WRONG = [True, 7, 1.5, {"cms": True}, ["/cms", 7], ["/cms", None], ["/cms", ["/cms"]], ["/cms", {"name": "/cms"}]]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("source", SOURCES)
def test_a_claim_of_another_type_is_malformed(source: GroupSource, value: object) -> None:
    with pytest.raises(MalformedClaim, match="groups"):
        groups_of({"groups": value}, source)


@pytest.mark.parametrize("source", SOURCES)
@given(text=st.text() | st.sampled_from(["/cms", "cms/uscms", "urn:geant:example.org:group:cms#login.example.org"]))
def test_one_text_is_a_list_of_one(source: GroupSource, text: str) -> None:
    """Keycloak sends one value as text where a mapper isn't multivalued: who was in one group could not log in, and who
    left a group that had nothing to do with the hub lost access with the grace.
    """
    if source.syntax is GroupSyntax.NAMES and (";" in text or text != text.strip() or not text):
        return  # several names in one text
    assert read(text, source) == read([text], source)


def read(value: object, source: GroupSource) -> object:
    """The groups, or the problem."""
    try:
        return groups_of({"groups": value}, source)
    except MalformedClaim as error:
        return error.problem


def test_an_error_tells_the_kind_and_never_the_value() -> None:
    with pytest.raises(MalformedClaim) as caught:
        groups_of({"groups": ["/cms", {"token": "s3cr3t"}]}, PATHS)
    assert "s3cr3t" not in str(caught.value)
    with pytest.raises(MalformedClaim) as caught:
        groups_of({"groups": ["//s3cr3t"]}, PATHS)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("source", SOURCES)
@given(value=json_values)
def test_any_json_gives_groups_or_a_malformed_claim(source: GroupSource, value: object) -> None:
    try:
        groups = groups_of({"groups": value}, source)
    except MalformedClaim:
        return
    if value is None:
        assert groups is None
    else:
        assert isinstance(groups, frozenset)
        assert all(isinstance(group, str) and group for group in groups)


segments = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=8).filter(
    lambda text: text not in {".", ".."}
)


@given(path=st.lists(segments.map(lambda text: text.replace("/", "x")), min_size=1, max_size=MAX_DEPTH))
def test_a_path_is_one_group_and_brings_no_other(path: list[str]) -> None:
    assert groups_of({"groups": ["/".join(path)]}, PATHS) == {"/" + "/".join(path)}


def test_more_groups_than_the_event_loop_can_bear_are_malformed() -> None:
    with pytest.raises(MalformedClaim, match="more than 2000 groups"):
        groups_of({"groups": [f"/{number}" for number in range(MAX_GROUPS + 1)]}, PATHS)
    assert len(groups_of({"groups": [f"/{number}" for number in range(MAX_GROUPS)]}, PATHS) or ()) == MAX_GROUPS


@given(first=st.lists(segments, min_size=1, max_size=4), second=st.lists(segments, min_size=1, max_size=4))
def test_two_groups_of_entitlements_never_become_one(first: list[str], second: list[str]) -> None:
    """Whatever characters are in the names: different lists of names are different groups."""

    def group(names: list[str]) -> str:
        escaped = ["".join(f"%{octet:02x}" for octet in name.encode()) for name in names]
        found = groups_of(entitlement(":".join(escaped)), ENTITLEMENTS)
        assert found is not None
        return max(found, key=len)

    assert (group(first) == group(second)) == (first == second)


@given(names=st.lists(segments, min_size=1, max_size=4))
def test_a_group_that_was_found_can_be_written_as_it_stands(names: list[str]) -> None:
    """An operator copies it from the refusal's page into the configuration."""
    escaped = ":".join("".join(f"%{octet:02x}" for octet in name.encode()) for name in names)
    for group in groups_of(entitlement(escaped), ENTITLEMENTS) or ():
        if "*" not in group and group == group.strip():
            assert normalised(group, GroupSyntax.ENTITLEMENTS) == group


@pytest.mark.parametrize(
    ("syntax", "text", "spelled"),
    [
        (GroupSyntax.PATHS, "cms/uscms", "/cms/uscms"),
        (GroupSyntax.PATHS, "/cms/uscms/", "/cms/uscms"),
        (GroupSyntax.PATHS, "cms/uscms/*", "/cms/uscms/*"),
        (GroupSyntax.NAMES, "cms/uscms", "cms/uscms"),
        (GroupSyntax.NAMES, "CO:COU:OpenData Facility:members:active", "CO:COU:OpenData Facility:members:active"),
        (GroupSyntax.ENTITLEMENTS, "cms/us cms", "/cms/us cms"),
        (GroupSyntax.ENTITLEMENTS, "/cms/us%20cms", "/cms/us cms"),
        (GroupSyntax.ENTITLEMENTS, "/cms%2fuscms", "/cms%2Fuscms"),
        (GroupSyntax.ENTITLEMENTS, "/cms/uscms:role=manager", "/cms/uscms:role=manager"),
    ],
)
def test_the_operator_may_write_a_group_in_several_ways(syntax: GroupSyntax, text: str, spelled: str) -> None:
    assert normalised(text, syntax) == spelled


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        *[
            (GroupSyntax.PATHS, text)
            for text in ("", "/", "/*", "*", "/cms*", "/*/uscms", "/cms/**", "/cms//x", "/cms/..")
        ],
        *[(GroupSyntax.PATHS, text) for text in ("/cms ", " /cms", "/cms\n")],
        *[(GroupSyntax.NAMES, text) for text in ("", " ", "CO:COU:*", "cms/*", "CO:a ")],
        *[
            (GroupSyntax.ENTITLEMENTS, text)
            for text in ("urn:geant:example.org:group:cms", "/cms:manager", "/cms:role=")
        ],
        *[(GroupSyntax.ENTITLEMENTS, text) for text in ("/cms/*/x", "/%ff", "")],
    ],
)
def test_a_group_that_could_match_nothing_is_refused(syntax: GroupSyntax, text: str) -> None:
    """In blocked_groups it would let in whom it was to keep out, and nobody would notice."""
    with pytest.raises(ValueError):
        normalised(text, syntax)
