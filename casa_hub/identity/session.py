"""What the hub stores of a log-in. It is stored only in JupyterHub's auth state, which is encrypted."""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from casa_hub.credentials.base import AccessToken
from casa_hub.credentials.fetching import Fetched
from casa_hub.identity.tokens import Tokens

#: Raised when the meaning of the section "casa" in the auth state changes.
VERSION = 1

#: Most earlier browser sessions of a user that are remembered: more than anybody has browsers.
_EARLIER_SIDS = 8
#: Keys of the auth state that this module writes. All others are the site's own.
_OURS = frozenset({"access_token", "refresh_token", "scope", "oauth_user", "casa"})

#: A person is warned so many seconds before the sign-in ends, or a tenth of its life before, whichever is less.
_WARNING = 86400.0
#: Two times that differ by less seconds are the same end: providers round.
_SAME_END = 5.0


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that was fetched with the log-in's token."""

    #: `Fetch.fingerprint` of the request.
    fingerprint: str
    fetched: Fetched


@dataclass(frozen=True, slots=True)
class Session:
    """One log-in of one user, and its newest tokens."""

    #: Random id of the log-in: tokens of an earlier log-in never overwrite those of a later one.
    id: str
    issuer: str
    sub: str
    access_token: str = field(repr=False)
    #: "" if the provider gives none.
    refresh_token: str = field(repr=False)
    #: Epoch seconds; None if the provider did not say.
    expires_at: float | None
    #: When the tokens were obtained, epoch seconds.
    obtained_at: float
    #: Granted scopes; None if the provider did not say.
    scope: frozenset[str] | None
    #: When the provider last confirmed the membership, epoch seconds.
    last_yes: float
    #: The provider's last userinfo.
    claims: Mapping[str, Any] = field(repr=False)
    #: The provider's id of the browser session (Back-Channel Logout 1.0, 2.1); "" if it didn't name one.
    sid: str = ""
    #: Why a later log-in of the same person was refused; "" if none was. With a reason, this log-in no longer counts
    #: merely because it is young enough.
    refused: str = ""
    #: When the refresh token expires, epoch seconds; None if it doesn't, or if nobody says.
    refresh_expires_at: float | None = None
    #: When the provider first told this expiry, epoch seconds.
    refresh_told_at: float = 0.0
    #: Groups that the site's `post_auth_hook` added at the log-in. They stay as long as this log-in does.
    added_groups: tuple[str, ...] = ()
    #: The site's own entries of the auth state, which are written back as they were read.
    others: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: Since when the provider refuses the refresh token before its expiry, epoch seconds; 0 if it doesn't refuse it.
    revoked_at: float = 0.0
    #: `sid` of the same person's earlier log-ins, the newest first: JupyterHub's cookies in those browsers still work.
    earlier_sids: tuple[str, ...] = ()
    #: Name of a credential -> what was fetched for it (`casa_hub.membership.fetching`).
    fetched: Mapping[str, Kept] = field(default_factory=dict)

    @classmethod
    def of_login(cls, tokens: Tokens, *, issuer: str, claims: Mapping[str, Any]) -> Session:
        return cls(
            id=secrets.token_hex(8),
            issuer=issuer,
            sub=tokens.id_claims["sub"],
            access_token=tokens.access_token,
            refresh_token=tokens.refresh_token,
            expires_at=tokens.expires_at,
            obtained_at=tokens.obtained_at,
            scope=tokens.scope,
            last_yes=tokens.obtained_at,
            claims=claims,
            sid=sid if isinstance(sid := tokens.id_claims.get("sid"), str) else "",
            refresh_expires_at=tokens.refresh_expires_at,
            refresh_told_at=tokens.obtained_at,
        )

    def after(self, earlier: Session | None) -> Session:
        """This log-in with the browser sessions of the same person's log-in before it."""
        if earlier is None or (earlier.issuer, earlier.sub) != (self.issuer, self.sub):
            return self
        sids = dict.fromkeys((earlier.sid, *earlier.earlier_sids))
        return replace(self, earlier_sids=tuple(sid for sid in sids if sid not in ("", self.sid))[:_EARLIER_SIDS])

    def refreshed(self, tokens: Tokens) -> Session:
        """The same log-in with newer tokens. If the answer has no refresh token or no scope, the old one stays."""
        end, told_at = self.refresh_expires_at, self.refresh_told_at
        if tokens.refresh_token:
            before, end = end, tokens.refresh_expires_at
            # If each refresh prolongs the session, its end moves on. An end that doesn't move was told before.
            if before is None or end is None or abs(end - before) > _SAME_END:
                told_at = tokens.obtained_at
        return replace(
            self,
            access_token=tokens.access_token,
            refresh_token=tokens.refresh_token or self.refresh_token,
            expires_at=tokens.expires_at,
            obtained_at=tokens.obtained_at,
            scope=self.scope if tokens.scope is None else tokens.scope,
            refresh_expires_at=end,
            refresh_told_at=told_at,
            revoked_at=0.0,
        )

    @property
    def warn_at(self) -> float:
        """When to warn the person that the sign-in is about to end, epoch seconds; infinite if it has no end."""
        if not self.refresh_token or self.refresh_expires_at is None:
            return math.inf
        return self.refresh_expires_at - min(_WARNING, (self.refresh_expires_at - self.refresh_told_at) / 10)

    def outlived(self, now: float, leeway: float) -> bool:
        """Whether the refresh token has expired; `leeway`: seconds that the provider's clock may differ."""
        end = self.refresh_expires_at
        return end is not None and now >= end - min(leeway, (end - self.refresh_told_at) / 10)

    @property
    def due_at(self) -> float | None:
        """When two thirds of the access token's life are over, epoch seconds; None if its life is unknown."""
        return None if self.expires_at is None else self.obtained_at + (self.expires_at - self.obtained_at) * 2 / 3

    def due(self, now: float) -> bool:
        """Whether two thirds of the access token's life are over; always, if its life is unknown."""
        return self.due_at is None or now >= self.due_at

    def to_auth_state(self) -> dict[str, Any]:
        """The content of the auth state. The top-level names are oauthenticator's, which hooks of sites use."""
        return {
            **self.others,
            "access_token": self.access_token,
            "refresh_token": self.refresh_token or None,
            "scope": sorted(self.scope or ()),
            "oauth_user": dict(self.claims),
            "casa": {
                "version": VERSION,
                "session": self.id,
                "issuer": self.issuer,
                "sub": self.sub,
                "expires_at": self.expires_at,
                "obtained_at": self.obtained_at,
                "scope_known": self.scope is not None,
                "last_yes": self.last_yes,
                "sid": self.sid,
                "refused": self.refused,
                "refresh_expires_at": self.refresh_expires_at,
                "refresh_told_at": self.refresh_told_at,
                "revoked_at": self.revoked_at,
                "added_groups": list(self.added_groups),
                "earlier_sids": list(self.earlier_sids),
                "fetched": {
                    name: {**kept.fetched.to_document(), "for": kept.fingerprint} for name, kept in self.fetched.items()
                },
            },
        }

    @classmethod
    def from_auth_state(cls, state: Mapping[str, Any] | None) -> Session | None:
        """The stored log-in; None if there is none, or none that this version can read.

        That is so after another authenticator, or if the crypt key was lost.
        """
        try:
            casa = state["casa"]  # type: ignore[index]
            if casa["version"] != VERSION:
                return None
            return cls(
                id=casa["session"],
                issuer=casa["issuer"],
                sub=casa["sub"],
                access_token=state["access_token"],  # type: ignore[index]
                refresh_token=state["refresh_token"] or "",  # type: ignore[index]
                expires_at=casa["expires_at"],
                obtained_at=float(casa["obtained_at"]),
                scope=frozenset(state["scope"]) if casa["scope_known"] else None,  # type: ignore[index]
                last_yes=float(casa["last_yes"]),
                claims=state["oauth_user"],  # type: ignore[index]
                sid=casa.get("sid", ""),
                refused=casa.get("refused", ""),
                refresh_expires_at=casa.get("refresh_expires_at"),
                refresh_told_at=float(casa.get("refresh_told_at", 0.0)),
                revoked_at=float(casa.get("revoked_at", 0.0)),
                added_groups=tuple(casa.get("added_groups", ())),
                others={name: value for name, value in state.items() if name not in _OURS},  # type: ignore[union-attr]
                earlier_sids=tuple(casa.get("earlier_sids", ())),
                fetched=_kept(casa.get("fetched")),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def bearer(self) -> AccessToken:
        """The access token, for minters."""
        expires_at = None if self.expires_at is None else datetime.fromtimestamp(self.expires_at, UTC)
        return AccessToken(self.access_token, expires_at, self.issuer, self.sub)


def _kept(documents: Any) -> dict[str, Kept]:
    """What can be read of it. The rest is fetched again."""
    found = {}
    for name, document in documents.items() if isinstance(documents, dict) else ():
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError, OSError):
            found[name] = Kept(str(document["for"]), Fetched.from_document(document))
    return found
