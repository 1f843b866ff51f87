"""The names of the demo's authorities, as OpenSSL looks for them in a directory."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from casa_hub.demo.certificates import subject_hash
from casa_hub.demo.packages import Unavailable
from casa_hub.demo.proxies import Authority, pem_of
from tests.support.peers import require


def openssl() -> str:
    program = shutil.which("openssl")
    if program is None:
        raise Unavailable("openssl", "is not there", "On Debian: apt-get install openssl")
    return program


@pytest.mark.parametrize("common_name", ["Test CA", "people of the demo", "A" * 60])
def test_an_authority_has_the_hash_that_openssl_computes(common_name: str) -> None:
    authority = Authority(common_name)
    command = [require(openssl), "x509", "-noout", "-hash"]
    ran = subprocess.run(command, input=pem_of(authority.certificate), check=True, capture_output=True, text=True)
    assert subject_hash(authority.name) == ran.stdout.strip()
