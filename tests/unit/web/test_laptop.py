"""How long the token of a laptop lives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from casa_hub.web.laptop import token_lifetime


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 86400),
        ({"token_expires_in_max_seconds": 0}, 86400),
        ({"token_expires_in_max_seconds": 3600}, 3600),
        ({"token_expires_in_max_seconds": 10**7}, 86400),
    ],
)
def test_the_shorter_limit_counts(settings: dict[str, Any], expected: int) -> None:
    """JupyterHub has one for all tokens, this package one for laptops."""
    authenticator: Any = SimpleNamespace(laptop_token_lifetime=86400)
    assert token_lifetime(authenticator, settings) == expected
