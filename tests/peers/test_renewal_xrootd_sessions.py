"""How long an XRootD client goes on in one process, while the file with its macaroon is renewed.

A session of ztn keeps the macaroon of its log-in: XRootD compares each file that is opened with that one. What follows
for programs is in docs/operations.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from casa_hub.credentials import xcache as credential
from casa_hub.credentials.base import Request
from casa_hub.demo.xrootd import XCache
from casa_hub.naming import Server
from tests.support.renewed_files import read_on, renewed_files

#: Seconds that a macaroon lives, after which there is a new one, and that a client reads. Much of a life, which ends
#: with a whole second, is left when there is: the machine may be busy.
LIFE, EVERY, LONG = 8, 2, 13


@contextmanager
def renewed(xcache: XCache, directory: Path) -> Iterator[Path]:
    """A file with a macaroon that is renewed, as in a server, before its life is gone."""
    minter = credential.XCache(key_file=str(xcache.key_file), site_name=xcache.site, lifetime=LIFE)

    def mint(now: datetime) -> Mapping[str, bytes]:
        return minter.mint(Request(Server("", "alice"), "0" * 32, now)).files

    with renewed_files(directory, EVERY, mint):
        yield directory / "xcache_token"


def read(xcache: XCache, token: Path, *ways: str) -> dict[str, Any]:
    """What one process has read in `LONG` seconds."""
    return read_on(xcache, token, LONG, *ways)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def test_programs_that_show_the_macaroon_of_now_are_never_refused(xcache: XCache, directory: Path) -> None:
    """With each file, with each request, or with a log-in of its own for each macaroon; an open file is read on."""
    ways = ("open", "authz", "named", "https")
    with renewed(xcache, directory) as token:
        answer = read(xcache, token, *ways)
    assert answer["failures"] == []
    assert all(answer["read"][way] > 10 for way in ways), answer["read"]


def test_a_session_of_ztn_ends_with_the_macaroon_of_its_log_in(xcache: XCache, directory: Path) -> None:
    """A limit of XRootD's, from 5.5 to 6: if this fails it has learnt to log in anew, and the guide can be shorter."""
    with renewed(xcache, directory) as token:
        answer = read(xcache, token, "ztn")
    assert answer["read"]["ztn"] > 20
    after, _, why = answer["failures"][0]
    # It has outlived at least one renewal, and not its macaroon.
    assert 2 * EVERY < after < LIFE + 3
    assert "permission denied" in why
