"""The proxy as `X509` reads, keeps and delivers it; what it says when there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import gcd
from pathlib import PurePosixPath
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from hypothesis import example, given, settings
from hypothesis import strategies as st
from traitlets import TraitError

from casa_hub.credentials.base import Request
from casa_hub.credentials.fetching import Answer, Fetch, Fetched, FetchError, Why
from casa_hub.credentials.x509 import X509
from casa_hub.demo.proxies import Authority, Holder, key, pem_of, pem_of_key
from casa_hub.errors import CredentialError
from tests.support.minting import assert_tells_nothing, public_text, request

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
AUTHORITY = Authority()
ALICE = AUTHORITY.certify("Alice A. Liddell")
#: What Alice has stored at IAM, and what IAM makes of it.
STORED = ALICE.proxy(100 * HOUR, now=NOW)
PROXY = STORED.proxy(12 * HOUR, now=NOW)
SECRETS = [line.encode() for line in PROXY.pem.splitlines() if not line.startswith("-")]

SERVICE = "https://proxies.example.org/redeem"


def x509(**options: Any) -> X509:
    return X509(**options)


def service(**options: Any) -> X509:
    return X509(**{"source": "service", "url": SERVICE} | options)


def fetch_of(minter: X509) -> Fetch:
    assert minter.fetch is not None
    return minter.fetch


def read(minter: X509, body: object, status: int = 200, now: datetime = NOW) -> Fetched:
    return fetch_of(minter).read(Answer(status, body, now, "https://iam.example.org/", "sub-of-alice"))


def of_iam(pem: str) -> dict[str, str]:
    return {"subject": "CN=1", "issuer": "CN=x", "identity": "CN=x", "not_after": "0", "certificate_chain": pem}


def with_fetched(fetched: Fetched | CredentialError, now: datetime = NOW) -> Request:
    return replace(request(now=now), fetched={"x509": fetched})


def test_what_iam_sends_is_delivered_as_certificate_key_and_chain() -> None:
    fetched = read(x509(), of_iam(PROXY.pem))
    minted = x509().mint(with_fetched(fetched))
    assert minted.files == {"x509_proxy": PROXY.pem.encode()}
    assert list(x509().paths) == list(minted.files)
    assert minted.expires_at == PROXY.certificate.not_valid_after_utc == NOW + 12 * HOUR
    assert minted.issued_at == NOW
    assert minted.summary == "of /DC=test/CN=Alice A. Liddell"
    assert minted.identifiers["subject"].startswith("/DC=test/CN=Alice A. Liddell/CN=")
    assert minted.identifiers["issuer"] == minted.identifiers["subject"].rpartition("/")[0]
    assert int(minted.identifiers["serial"], 16) == PROXY.certificate.serial_number
    assert_tells_nothing(public_text(minted), *SECRETS)
    assert_tells_nothing(fetched, *SECRETS)


def test_another_order_and_words_between_are_put_right() -> None:
    words = "subject=alice\n" + pem_of(PROXY.certificate) + "".join(map(pem_of, PROXY.above)) + pem_of_key(PROXY.key)
    assert read(x509(), of_iam(words)).value == PROXY.pem


def test_a_proxy_is_over_when_the_first_of_its_certificates_is() -> None:
    """IAM makes proxies that outlive the one which the person has stored: no server takes them any more then."""
    soon = ALICE.proxy(HOUR, now=NOW).proxy(12 * HOUR, now=NOW)
    fetched = read(x509(), of_iam(soon.pem))
    assert fetched.expires_at == NOW + HOUR
    told = x509().mint(with_fetched(fetched)).summary
    assert told == "of /DC=test/CN=Alice A. Liddell, only as long as the one that it was made of"


def test_a_key_on_an_elliptic_curve_is_a_key() -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    proxy = ALICE.proxy(HOUR, now=NOW, own=own)
    assert read(x509(), of_iam(proxy.pem)).expires_at == NOW + HOUR
    other = replace(proxy, key=ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(FetchError, match="doesn't belong"):
        read(x509(), of_iam(other.pem))


def test_a_service_sends_the_same_under_other_names() -> None:
    sent = {"pem": PROXY.pem, "dn": "/CN=x", "voms_attributes": ["/atlas"], "expires_at": "2099-01-01T00:00:00+00:00"}
    fetched = read(service(), sent)
    assert fetched.value == PROXY.pem
    assert fetched.expires_at == NOW + 12 * HOUR
    assert read(service(), sent | {"expires_at": (NOW + HOUR).isoformat()}).expires_at == NOW + HOUR
    for nonsense in (None, 7, "soon", "2020-01-01T00:00:00", "0001-01-01T00:00:00+14:00"):
        assert read(service(), sent | {"expires_at": nonsense}).expires_at == NOW + 12 * HOUR
    with pytest.raises(FetchError, match="has expired, as the answer says"):
        read(service(), sent | {"expires_at": "2020-01-01T00:00:00Z"})


def _wrong_exponent() -> str:
    """A key of the same modulus: only whoever signs with it sees that it is none."""
    numbers = PROXY.key.private_numbers()
    changed = {name: getattr(numbers, name) for name in ("p", "q", "dmp1", "dmq1", "iqmp")}
    wrong = rsa.RSAPrivateNumbers(d=numbers.d + 2, public_numbers=numbers.public_numbers, **changed)
    return pem_of_key(wrong.private_key(unsafe_skip_rsa_key_validation=True))


def _slow() -> rsa.RSAPrivateKey:
    """A key whose signatures take tens of milliseconds to verify."""
    numbers = key(10).private_numbers()
    order = (numbers.p - 1) * (numbers.q - 1)
    exponent = next(odd for odd in range(order - 3, 0, -2) if gcd(odd, order) == 1)
    d = pow(exponent, -1, order)
    public = rsa.RSAPublicNumbers(exponent, numbers.p * numbers.q)
    made = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, d, d % (numbers.p - 1), d % (numbers.q - 1), numbers.iqmp, public
    )
    return made.private_key(unsafe_skip_rsa_key_validation=True)


def _encrypted() -> str:
    form, password = PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    return str(PROXY.key.private_bytes(Encoding.PEM, form, password).decode())


PUBLIC, CHAIN, KEY = pem_of(PROXY.certificate), "".join(map(pem_of, PROXY.above)), pem_of_key(PROXY.key)
REFUSED = {
    "empty": ("", "has no certificate in PEM"),
    "no PEM": ("-----BEGIN CERTIFICATE-----", "has no certificate in PEM"),
    "oversized": (PROXY.pem + "\n" * 65536, "more than 65536 characters"),
    "no key": (PUBLIC + CHAIN, "has no private key without a password"),
    "a key with a password": (PUBLIC + _encrypted() + CHAIN, "has no private key without a password"),
    "two keys": (PUBLIC + KEY + KEY + CHAIN, "more than one private key"),
    "another key": (PUBLIC + pem_of_key(key(7)) + CHAIN, "doesn't belong to its certificate"),
    "a wrong exponent": (PUBLIC + _wrong_exponent() + CHAIN, "doesn't belong to its certificate"),
    "the key of the person": (PUBLIC + pem_of_key(ALICE.key) + CHAIN, "doesn't belong to its certificate"),
    "another kind of key": (
        PUBLIC + pem_of_key(ed25519.Ed25519PrivateKey.generate(), PrivateFormat.PKCS8) + CHAIN,
        "neither RSA nor on an elliptic curve",
    ),
    "damaged": (PROXY.pem.replace(SECRETS[4].decode(), SECRETS[5].decode(), 1), "can't be read"),
    "the person's own certificate": (ALICE.pem, "is no proxy certificate"),
    "an old kind of proxy": (ALICE.proxy(HOUR, now=NOW, extensions=[]).pem, "is no proxy certificate"),
    "alone": (PUBLIC + KEY, "lacks the certificate of the person"),
    "without the person": (PUBLIC + KEY + pem_of(STORED.certificate), "lacks the certificate of the person"),
    "with a gap": (PUBLIC + KEY + pem_of(ALICE.certificate), "that the next one in the chain didn't sign"),
    "of another authority": (
        PUBLIC
        + KEY
        + pem_of(STORED.certificate)
        + pem_of(AUTHORITY.certify("Alice A. Liddell", key_number=8).certificate),
        "that the next one in the chain didn't sign",
    ),
    "of a key that takes long": (ALICE.proxy(HOUR, now=NOW, own=_slow()).proxy(HOUR, now=NOW).pem, "that nobody uses"),
    "endless": (PUBLIC + KEY + CHAIN * 6, "more than 10 certificates"),
    "expired": (STORED.proxy(HOUR, now=NOW - 2 * HOUR).pem, "expired at"),
    "of an expired one": (ALICE.proxy(HOUR, now=NOW - HOUR).proxy(HOUR, now=NOW).pem, "expired at"),
    "of tomorrow": (STORED.proxy(HOUR, now=NOW + 24 * HOUR).pem, "the clocks of the two sides differ"),
}


@pytest.mark.parametrize(("pem", "why"), REFUSED.values(), ids=REFUSED)
def test_a_proxy_that_nobody_could_use_is_refused_and_not_quoted(pem: str, why: str) -> None:
    for minter, body in ((x509(), of_iam(pem)), (service(), {"pem": pem})):
        with pytest.raises(FetchError, match=why) as caught:
            read(minter, body)
        assert caught.value.why is Why.OUTAGE
        assert_tells_nothing(caught.value, *SECRETS)


REFUSALS: dict[str, tuple[X509, int, object, Why, str]] = {
    "no proxy stored": (
        x509(),
        412,
        {"error": "No proxy found for account 'alice'"},
        Why.REFUSED,
        "link your certificate",
    ),
    "no scope": (x509(), 403, {"error": "access_denied"}, Why.REFUSED, "lacks the scope proxy:generate"),
    "switched off": (x509(), 404, None, Why.REFUSED, r"proxycert\.enabled=true"),
    "a dead token": (x509(), 401, {"error": "invalid_token"}, Why.SIGN_IN, "your token is refused"),
    "a wrong secret": (x509(), 401, {"error": "unauthorized"}, Why.REFUSED, "refuses this hub's client"),
    "too short": (x509(), 400, {"error": "invalid lifetime: minimum is 120 seconds"}, Why.REFUSED, r"X509\.lifetime"),
    "a long name": (x509(), 400, {"error": "invalid issuer: max length"}, Why.REFUSED, r"X509\.issuer_dn"),
    "something else": (x509(), 418, None, Why.REFUSED, "HTTP status 418"),
    "no chain": (x509(), 200, {"certificate_chain": 1}, Why.OUTAGE, "the answer has none"),
    "no JSON": (x509(), 200, None, Why.OUTAGE, "the answer has none"),
    "not known to the service": (service(), 404, {"detail": "no proxy"}, Why.REFUSED, "has no certificate of yours"),
    "not allowed by the service": (service(), 403, None, Why.REFUSED, "makes none for you"),
    "a dead token at the service": (service(), 401, {"error": "unauthorized"}, Why.SIGN_IN, "your token is refused"),
    "no body of the service": (service(), 200, [], Why.OUTAGE, "the answer has none"),
}


@pytest.mark.parametrize(("minter", "status", "body", "why", "text"), REFUSALS.values(), ids=REFUSALS)
def test_each_refusal_says_who_does_what(minter: X509, status: int, body: object, why: Why, text: str) -> None:
    with pytest.raises(FetchError, match=text) as caught:
        read(minter, body, status)
    assert caught.value.why is why
    assert caught.value.remedy
    assert str(caught.value).startswith("X.509 proxy: ")


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
_WORDS = st.sampled_from(["certificate_chain", "pem", "error", "expires_at"])


@given(
    status=st.sampled_from([200, 201, 301, 400, 401, 403, 404, 412, 422]),
    body=_JSON | st.dictionaries(_WORDS, _JSON | st.just(PROXY.pem), max_size=4),
    at_iam=st.booleans(),
)
def test_no_answer_is_believed_by_accident(status: int, body: Any, at_iam: bool) -> None:
    minter = x509() if at_iam else service()
    try:
        fetched = read(minter, body, status)
    except FetchError as error:
        assert_tells_nothing(error, *SECRETS)
    else:
        assert status == 200
        assert body["certificate_chain" if at_iam else "pem"] == PROXY.pem == fetched.value
        assert NOW < fetched.expires_at <= NOW + 12 * HOUR


_PIECES = [PUBLIC, KEY, *map(pem_of, PROXY.above), pem_of(AUTHORITY.certificate), pem_of_key(key(7)), "x", "-----", ""]


@settings(deadline=None)
@given(pieces=st.lists(st.sampled_from(_PIECES), max_size=7), cut=st.integers(0, 9000), put=st.binary(max_size=3))
@example(pieces=_PIECES[:4], cut=9000, put=b"")
def test_only_whole_chains_pass(pieces: list[str], cut: int, put: bytes) -> None:
    """Any mixture of blocks, with a place where something else stands."""
    text = "".join(pieces)
    cut = min(cut, len(text))
    text = text[:cut] + put.decode("latin-1") + text[cut + len(put) :]
    try:
        fetched = read(x509(), of_iam(text))
    except FetchError as error:
        assert_tells_nothing(error, *SECRETS)
        return
    certificates = [piece for piece in (PUBLIC, *map(pem_of, PROXY.above), _PIECES[4]) if piece in fetched.value]
    assert fetched.value == certificates[0] + KEY + "".join(certificates[1:])
    assert fetched.expires_at == NOW + 12 * HOUR


def test_the_form_says_what_the_operator_has_chosen() -> None:
    assert fetch_of(x509()).url == "/iam/proxycert"
    assert fetch_of(x509()).form == {"lifetimeSecs": "43200"}
    chosen = x509(lifetime=600, issuer_dn="CN=CA,O=Grid", url="/iam/v2/proxycert")
    assert fetch_of(chosen).form == {"lifetimeSecs": "600", "issuer": "CN=CA,O=Grid"}
    assert fetch_of(chosen).url == "/iam/v2/proxycert"
    assert chosen.life == 600
    asked = fetch_of(service(ca_file="/ca.pem"))
    assert (asked.url, dict(asked.form), asked.ca_file) == (SERVICE, {}, "/ca.pem")
    assert service().life is None


WRONG = {
    "no address": ({"source": "service"}, "X509.url: is not set"),
    "in clear": ({"source": "service", "url": "http://proxies.example.org/"}, "is no https address"),
    "no host": ({"source": "service", "url": "https:///x"}, "is no https address"),
    "half an address": ({"source": "service", "url": "https://[proxies"}, "is not a URL"),
    "no port": ({"source": "service", "url": "https://proxies.example.org:x/"}, "is not a URL"),
    "half a path": ({"url": "//[iam"}, "is not a URL"),
    "a path": ({"source": "service", "url": "/iam/proxycert"}, "is no https address"),
    "an address for IAM": ({"url": "https://iam.example.org/iam/proxycert"}, "is no path below"),
    "above IAM": ({"url": "/../other/proxycert"}, "is no path below"),
    "above IAM, further on": ({"url": "/iam/../../proxycert"}, "is no path below"),
    "a line's end": ({"url": "/iam/\nproxycert"}, "is not a URL"),
    "a blank": ({"source": "service", "url": "https://proxies.example.org/a b"}, "is not a URL"),
    "a fragment": ({"source": "service", "url": "https://proxies.example.org/#x"}, "is not a URL"),
    "another host for IAM": ({"url": "//evil.example.org/iam/proxycert"}, "is no path below"),
}


@pytest.mark.parametrize(("options", "text"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_told_at_the_start_and_nothing_is_asked_for(options: dict[str, Any], text: str) -> None:
    minter = x509(**options)
    assert text in str(minter.check()[0])
    assert minter.fetch is None
    with pytest.raises(CredentialError, match=text):
        minter.mint(request())


@pytest.mark.parametrize("source", ["iam", "service"])
@pytest.mark.parametrize("scheme", ["http:", "https:", ""])
def test_a_password_in_an_address_is_neither_used_nor_told(source: str, scheme: str) -> None:
    """Every failed request told its address, on the spawn page and in the log."""
    minter = x509(source=source, url=f"{scheme}//hub:sesame@proxies.example.org/redeem")
    assert minter.fetch is None
    [problem] = minter.check()
    assert "has a user name or a password in it" in str(problem)
    assert "sesame" not in str(problem)


def test_right_settings_are_not_complained_about(tmp_path: Any) -> None:
    assert x509().check() == []
    assert service().check() == []
    assert service(url="http://127.0.0.1:8000/redeem").check() == []
    assert "is no file" in str(service(ca_file=str(tmp_path / "ca.pem")).check()[0])


@pytest.mark.parametrize(
    "options", [{"lifetime": 119}, {"issuer_dn": "x" * 129}, {"issuer_dn": "a\nb"}, {"certificate_directory": "certs"}]
)
def test_a_value_that_can_never_be_right_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TraitError):
        x509(**options)


def test_a_server_finds_the_proxy_and_the_authorities_only_if_told() -> None:
    server, directory = request().server, PurePosixPath("/etc/cmsaf-secrets")
    assert x509().environment(server, directory) == {"X509_USER_PROXY": "/etc/cmsaf-secrets/x509_proxy"}
    grid = "/cvmfs/grid.cern.ch/etc/grid-security/certificates"
    assert x509(certificate_directory=grid).environment(server, directory)["X509_CERT_DIR"] == grid


def test_without_a_fetched_proxy_the_reason_is_told() -> None:
    with pytest.raises(FetchError, match="because of this"):
        x509().mint(with_fetched(FetchError("X.509 proxy", "because of this", "Do that.")))
    with pytest.raises(CredentialError, match="has not asked for it"):
        x509().mint(request())


def test_a_proxy_that_was_kept_too_long_is_not_delivered() -> None:
    fetched = read(x509(), of_iam(PROXY.pem))
    with pytest.raises(CredentialError, match="what was fetched expired at"):
        x509().mint(with_fetched(fetched, NOW + 13 * HOUR))
    kept = Fetched.from_document(json.loads(json.dumps(fetched.to_document())))
    assert x509().mint(with_fetched(kept)).files["x509_proxy"] == PROXY.pem.encode()


def test_a_name_of_anything_is_shown_in_one_line() -> None:
    """A certificate's subject is chosen by whoever asked for it."""
    proxy = AUTHORITY.certify("a" * 60).proxy(HOUR, now=NOW)
    minted = x509().mint(with_fetched(read(x509(), of_iam(proxy.pem))))
    assert minted.summary == "of /DC=test/CN=" + "a" * 60
    hostile = Holder(_certificate_of("x\n/CN=admin\x1b[2J"), key(1)).proxy(HOUR, now=NOW)
    minted = x509().mint(with_fetched(read(x509(), of_iam(hostile.pem))))
    assert minted.summary == "of /DC=test/CN=x /CN=admin [2J"


def _certificate_of(common_name: str) -> Any:
    from cryptography import x509 as library  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415

    [domain] = list(AUTHORITY.name.rdns[0])
    subject = library.Name([domain, library.NameAttribute(library.NameOID.COMMON_NAME, common_name)])
    builder = library.CertificateBuilder(AUTHORITY.name, subject, key(1).public_key(), 7)
    builder = builder.not_valid_before(NOW - HOUR).not_valid_after(NOW + HOUR)
    return builder.sign(AUTHORITY.key, hashes.SHA256())
