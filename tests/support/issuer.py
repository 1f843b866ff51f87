"""An issuer of the unit tests, and a verifier of its tokens that shares no line with it: PyJWT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jwt

from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.issuer.tokens import new_private_key
from tests.support.minting import write

KEY, CONTENT = new_private_key()
URL = "https://hub.example.org/hub/casa/issuer"
ISS = f"{URL}/cms"


def issuer_in(directory: Path, **settings: Any) -> FacilityIssuer:
    """An issuer that signs with `KEY`, whose file is in this directory."""
    write(directory / "1.pem", CONTENT)
    return FacilityIssuer(**{"keys": str(directory), "vo": "cms", "url": URL, **settings})


def claims_of(token: str | bytes, audience: str) -> dict[str, Any]:
    """Those of a token that this issuer has signed, for this audience. Its times are not compared with the clock."""
    options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    claims: dict[str, Any] = jwt.decode(
        token, jwt.PyJWK(dict(KEY.jwk)), algorithms=["ES256"], audience=audience, issuer=ISS, options=options
    )
    return claims
