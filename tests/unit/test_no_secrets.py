"""Whatever is wrong with a key, a state or a user: no text that is shown or logged holds a piece of a secret."""

from __future__ import annotations

import base64
import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest

from casa_hub.credentials.base import AccessToken, Credential, Minter
from casa_hub.credentials.bearer import Bearer
from casa_hub.credentials.dask import Dask
from casa_hub.credentials.htcondor import HTCondor
from casa_hub.credentials.idtokens import scramble
from casa_hub.credentials.servicex import ServiceX
from casa_hub.credentials.xcache import XCache
from casa_hub.errors import CredentialError
from tests.support.minting import HOSTILE, request, write

SECRET = bytes(range(33, 33 + 60)) + b"\xf0\x9f\x98\x80"
TOKEN = jwt.encode({"sub": "alice", "exp": 1}, SECRET, "HS256")
BASE64 = base64.b64encode(SECRET) + b"\n"

#: Pieces of what must not be seen, in every form it might be written in.
FORMS = {
    form
    for secret in (SECRET, scramble(SECRET))
    for form in (secret.hex(), base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode())
}
FORMS |= {
    SECRET[:60].decode(),
    repr(SECRET)[2:-1],
    repr(scramble(SECRET))[2:-1],
    TOKEN.split(".")[1],
    TOKEN.split(".")[2],
}
PIECES = {form[at : at + 12] for form in FORMS for at in range(0, len(form) - 12, 3)}

MINTERS: dict[str, tuple[Callable[[str], Minter], bytes]] = {
    "xcache": (lambda path: XCache(key_file=path, site_name="T2", path="/u/{username}"), BASE64),
    "htcondor": (
        lambda path: HTCondor(key_file=path, trust_domain="x", uid_domain="x", subject="{username}"),
        scramble(SECRET),
    ),
    "dask": (lambda path: Dask(secret_file=path, domain="example.org"), BASE64),
    "servicex": (
        lambda path: ServiceX(endpoint="http://x", type="uproot", mode="registered", tokens_file=path),
        f"alice: {TOKEN}\n".encode(),
    ),
    "bearer": (lambda _: Bearer(), b"-"),
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda content: content,
    "short": lambda content: content[:20],
    "cut": lambda content: content[:-7],
    "twice": lambda content: content + content,
    "with a quote": lambda content: content[:30] + b'"' + content[30:],
    "with a colon": lambda content: content[:30] + b": " + content[30:],
    "with a bracket": lambda content: b"[" + content,
    "with a byte that is no text": lambda content: content[:30] + b"\xff" + content[30:],
    "encoded once more": base64.b64encode,
    "url-safe": lambda content: content.replace(b"+", b"-").replace(b"/", b"_") + b"-_",
    "in a line of a thousand": lambda content: content.strip() * 40,
    "raw": lambda _: SECRET,
}


def assert_silent(text: str) -> None:
    assert not {piece for piece in PIECES if piece in text}, "a secret is shown"


def test_the_search_finds_a_secret() -> None:
    for text in (f"bad key: {BASE64.decode()}", f"{SECRET!r}", TOKEN, SECRET.hex()[5:40]):
        with pytest.raises(AssertionError, match="a secret is shown"):
            assert_silent(text)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", MINTERS)
def test_no_text_shows_a_secret(name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    make, content = MINTERS[name]
    minter = make(write(tmp_path / "key", DAMAGES[damage](content), 0o444))
    tokens = (None, AccessToken(TOKEN, None), AccessToken(TOKEN + "\n", None))
    states = ({}, {"secret": "gone", "key_type": "ed25519", "not_before": "0", "not_after": "9"}, {"secret": "x"})
    texts = [repr(minter), str(minter), *map(str, minter.check()), *map(repr, minter.check())]
    for username in HOSTILE:
        for token in tokens:
            for state in states:
                asked = request(username, token=token, state=state)
                texts.append(repr(asked))
                try:
                    texts += public(minter.mint(asked))
                except CredentialError as error:
                    texts += [str(error), repr(error), error.jupyterhub_message, *traceback.format_exception(error)]
    assert_silent("\n".join([*texts, caplog.text]))


def public(credential: Credential) -> list[str]:
    shown = (credential, dict(credential.identifiers), dict(credential.state), credential.summary)
    return [repr(one) for one in shown]
