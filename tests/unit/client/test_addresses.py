"""Which hub is meant, and whether a token may go there."""

from __future__ import annotations

import pytest

from casa_hub.client.addresses import base_address, check_secrecy
from casa_hub.client.errors import ClientError


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("https://hub.example.org", "https://hub.example.org"),
        (" https://hub.example.org/ ", "https://hub.example.org"),
        ("https://hub.example.org/hub/home?x=1#y", "https://hub.example.org"),
        ("https://hub.example.org:8443/jupyter/hub/token", "https://hub.example.org:8443/jupyter"),
        ("https://hub.example.org/jupyter/user/alice/lab/tree/x", "https://hub.example.org/jupyter"),
        ("http://hub:8081/hub/api", "http://hub:8081"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
        ("https://HUB.example.org", "https://hub.example.org"),
    ],
)
def test_any_address_of_the_hub_names_it(text: str, base: str) -> None:
    assert base_address(text) == base
    assert base_address(base) == base


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hub.example.org",
        "ftp://hub.example.org",
        "file:///etc/passwd",
        "https://",
        "https://user:secret@hub.example.org",
        "https://hub.example.org:port",
        "https://hub.example.org:99999",
        "https://hub example.org",
        "https://hub.example.org/a b",
        "https://[::1",
        "https://hub.example.org/\r\nX: y",
        "https://hüb.example.org",
    ],
)
def test_what_is_no_address_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ClientError, match="the hub's address: ") as refused:
        base_address(text)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "address", ["https://hub.example.org", "http://127.0.0.1:8000", "http://localhost", "http://[::1]:1"]
)
def test_a_token_may_go_where_nobody_else_reads_it(address: str) -> None:
    check_secrecy(address)


@pytest.mark.parametrize("address", ["http://hub.example.org", "http://10.0.0.1", "http://localhost.example.org"])
def test_a_token_goes_to_no_other_machine_without_encryption(address: str) -> None:
    with pytest.raises(ClientError, match="--insecure"):
        check_secrecy(address)
