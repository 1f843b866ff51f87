"""The token with which a server submits jobs to an HTCondor pool, of one of two kinds.

- An IDTOKEN (`casa_hub.credentials.idtokens`), signed with a key that the pool has, too. Its subject decides what it
  can do: HTCondor runs the jobs of ``alice@DOMAIN`` as the Unix user alice. So the operator chooses how user names
  become subjects, and two users never share a subject unless the operator says so.
- A token of the facility's own issuer, which HTCondor calls a SCITOKEN. It names a user of the facility, and the pool's
  map file makes an account of the name. Checked against HTCondor 23.9 and 25.14 with scitokens-cpp 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, ClassVar

from cryptography.x509 import load_pem_x509_certificates
from traitlets import Dict, Enum, Int, List, TraitError, Unicode, validate

from casa_hub.credentials.base import Credential, Minter, Request, new_identifier
from casa_hub.credentials.idtokens import MAKE_KEY, SigningKey, mint_idtoken, read_key
from casa_hub.credentials.issued import issue
from casa_hub.credentials.scopes import is_audience
from casa_hub.errors import CredentialError, Problem, Severity
from casa_hub.issuer.tokens import LONGEST
from casa_hub.keys import BadKeyError, KeyFile
from casa_hub.naming import Server, by_username, hub_form

#: Authorisation levels that a user's tools need. WRITE includes READ.
USER_SCOPES = frozenset({"READ", "WRITE"})
#: The WLCG profile's words for them. HTCondor gives WRITE for create, modify and cancel together, and nothing for less.
COMPUTE = {"READ": "compute.read", "WRITE": "compute.read compute.create compute.modify compute.cancel"}
#: HTCondor's other levels: rights over the pool. A scope never adds to what the pool's policy grants to the subject.
POOL_SCOPES = frozenset(
    {"ADMINISTRATOR", "ADVERTISE_MASTER", "ADVERTISE_SCHEDD", "ADVERTISE_STARTD", "CONFIG", "DAEMON", "NEGOTIATOR"}
)
#: Local parts that HTCondor's stock configuration takes for daemons or administrators, in any domain.
RESERVED = frozenset({"condor", "condor_pool", "root"})

#: Names of Unix accounts. Lower case only: some of HTCondor's comparisons ignore case, and ``Alice`` must not become
#: ``alice``. HTCondor itself would accept ``al ice@DOMAIN``, ``d/x@DOMAIN`` and ``*@DOMAIN``.
_LOCAL_PART = re.compile(r"[a-z_][a-z0-9_.-]{0,63}")
_DOMAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_ADDRESS = re.compile(r"[0-9.]+(:[0-9]+)?|\[.*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]+)?")
_GET_CA = "Copy the certificates of the authorities there, in PEM, that have signed those of the pool's daemons."


class HTCondor(Minter):
    """Mints the token that an HTCondor pool accepts: an IDTOKEN, or one of the facility's own issuer."""

    name: ClassVar[str] = "htcondor"
    title: ClassVar[str] = "HTCondor token"
    purpose: ClassVar[str] = "look at the batch farm and submit jobs"
    outside: ClassVar[bool] = True
    found_by: ClassVar[str] = "HTCondor's commands and Python bindings"

    credential = Enum(
        ["idtoken", "token"],
        default_value="idtoken",
        help="""
        Which kind of token: `idtoken` (default) or `token`.

        - `idtoken`: signed with a key that hub and pool share (``key_file``). Who has it can be anybody in the pool.
        - `token`: signed by the facility's own issuer (section `FacilityIssuer`), for a pool that accepts HTCondor's
          SCITOKENS authentication. Nothing in the pool is secret. The token names the user as `FacilityIssuer.subject`
          says, and **the pool's map file decides the account**: ``subject`` and ``subject_map`` must not be set, and
          whether users share an account can be seen only there. ``key_file``, ``key_id`` and ``trust_domain`` aren't
          needed.
        """,
    ).tag(config=True)
    audience = Unicode(
        "",
        help="""
        Of a `token`: ``aud``. It must be one of the words in ``SCITOKENS_SERVER_AUDIENCE`` of the collector and of all
        schedds, which compare it as text.

        Default: ``condor://`` and ``collector``, as that is written: ``condor://condor.example.org``.
        """,
    ).tag(config=True)
    ca_file = Unicode(
        "",
        help="""
        For a `token`: file on the hub with the certificates, in PEM, of the authorities that have signed the
        certificates of the pool's daemons. Read again when it changes. HTCondor's client shows a token only to a daemon
        whose certificate is good for the daemon's host name.

        Servers get a copy, named by ``_CONDOR_AUTH_SSL_CLIENT_CAFILE``. Default: none; HTCondor's client trusts what
        the server's image does. Example: ``/etc/casa/pool-ca.pem``.
        """,
    ).tag(config=True)
    key_file = Unicode(
        "",
        help="""
        File with the pool's signing key, as HTCondor keeps it (scrambled): a copy of ``SEC_PASSWORD_DIRECTORY/KEY_ID``
        or ``SEC_TOKEN_POOL_SIGNING_KEY_FILE``, byte by byte. At least 32 bytes. Read again when it changes.

        Who has this key can be anybody in the pool, its administrator included: better a key of its own for the hub
        than POOL. There is no default. Example: ``/etc/casa/condor.key``.
        """,
    ).tag(config=True)
    key_id = Unicode(
        "POOL",
        help="""
        Name of that key in the pool: ``POOL``, or the name of its file in ``SEC_PASSWORD_DIRECTORY``. A client only
        presents a token whose key the daemon says it has, and a new key needs a condor_reconfig of each daemon.
        """,
    ).tag(config=True)
    trust_domain = Unicode(
        "",
        help="""
        ``TRUST_DOMAIN`` of the pool, exactly, case included. There is no default.

        It is the client that compares it (and doesn't present the token elsewhere), the daemons do not: two pools with
        the same key accept each other's tokens whatever stands here.
        """,
    ).tag(config=True)
    uid_domain = Unicode(
        "",
        help="""
        ``UID_DOMAIN`` of the pool: what follows the @ in a subject; servers find it as ``UID_DOMAIN``. There is no
        default. Example: ``pool.example.org``.
        """,
    ).tag(config=True)
    subject = Unicode(
        "",
        help="""
        How a user name becomes the local part of the token's subject, and so an HTCondor user and a Unix account at the
        pool. There is no default, because this is a decision: with ``{username}`` whoever picks the name ``cmsprod`` at
        the identity provider runs jobs as the pool's ``cmsprod``.

        - ``{username}``: where the identity provider's names are the pool's accounts;
        - ``af-{username}``: accounts of their own for the facility, and for each of several hubs on one pool;
        - ``submituser``: one account for all; demands ``accounting_group``.

        A user whose name doesn't make a valid account name (lower-case letters, digits, ``._-``, at most 64) gets no
        token; names are never altered to fit. condor, condor_pool and root are refused.
        Instead of a template, ``subject_map`` can name each user's account.
        """,
    ).tag(config=True)
    subject_map: Dict[str, str] = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="""
        User name -> local part of the subject, instead of ``subject``. Users who are not in it get no token.
        Two users with the same account demand ``accounting_group``. Example: ``{"asmith": "cms0042"}``.
        """,
    ).tag(config=True)
    accounting_group = Unicode(
        "",
        help="""
        Accounting group of the facility's jobs; declares that users may share an account, which is refused without it.

        Jobs submitted from a server carry ``AccountingGroup = "GROUP.USER"`` unless they bring their own, so that fair
        share goes by user although the account is the same. Sharing remains sharing: each of them can remove the
        others' jobs and read their files. Set it also where the pool's map file gives the users of a `token` one
        account: the hub can't see that. Example: ``group_cms``.
        """,
    ).tag(config=True)
    scopes: List[str] = List(
        Unicode(),
        default_value=["READ", "WRITE"],
        help="""
        Authorisation levels that the token is limited to. READ looks, WRITE submits and removes jobs.

        HTCondor's other levels (ADMINISTRATOR, DAEMON, ...) are rights over the pool; users don't need them. A token
        is never minted without a scope: HTCondor takes that as no limit.

        In a `token` READ is ``compute.read``, and WRITE adds ``compute.create compute.modify compute.cancel``, which
        HTCondor knows only together. There are no words for the other levels.
        """,
    ).tag(config=True)
    lifetime = Int(
        43200,
        min=1,
        help="""
        Seconds that a token is valid; it is renewed while the server runs. Jobs don't need it any more once submitted.
        A `token` lives for 6 hours at most, the longest time that the WLCG profile allows.
        """,
    ).tag(config=True)
    collector = Unicode(
        "",
        help="""
        The pool's collector, ``host`` or ``host:port``; servers find it as ``CONDOR_HOST``. Without it they use the
        pool that their image names. Example: ``condor.example.org``.
        """,
    ).tag(config=True)
    schedd = Unicode(
        "",
        help="""
        Name of the schedd to submit to, as in ``condor_status -schedd``; servers find it as ``SCHEDD_HOST``.
        Without it they use the one that their image names. Example: ``submit.example.org``.
        """,
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._authorities = KeyFile("HTCondor.ca_file", _authorities, _GET_CA)
        # KeyFile keeps the derived key, not the file's content: HKDF costs as much as the rest of a mint.
        self._key = KeyFile("HTCondor.key_file", self.parse_key, MAKE_KEY)

    @validate("scopes")
    def _valid_scopes(self, proposal: Any) -> list[str]:
        value: list[str] = proposal["value"]
        unknown = [word for word in value if word not in USER_SCOPES | POOL_SCOPES]
        if unknown or not value:
            what = (
                f"has {unknown}, which HTCondor doesn't know"
                if unknown
                else "is empty, which HTCondor takes for no limit"
            )
            raise TraitError(f"HTCondor.scopes {what}. Users need READ and WRITE.")
        return list(dict.fromkeys(value))

    @property
    def key_files(self) -> Mapping[str, str]:
        return {} if self.credential == "token" else {"HTCondor.key_file": self.key_file}

    @property
    def life(self) -> int:
        """Seconds that a new credential lives by these settings."""
        lifetime: int = self.lifetime
        return min(lifetime, LONGEST) if self.credential == "token" else lifetime

    @property
    def issued(self) -> bool:
        return bool(self.credential == "token")

    def check(self) -> Sequence[Problem]:
        problems = [] if self.credential == "token" else self._check_key()

        def warn(thing: str, problem: str, remedy: str) -> None:
            problems.append(Problem(Severity.WARNING, thing, problem, remedy))

        for probe in (self._check_settings, self._check_subjects):
            try:
                probe()
            except CredentialError as error:
                problems.append(Problem.of(error))
        for name in self.subject_map:
            if name != hub_form(name):
                problem = f"{name!a} is read as {hub_form(name)!a}, the form in which the hub knows user names"
                warn("HTCondor.subject_map", problem, f"Write {hub_form(name)}.")
        if pool_scopes := [word for word in self.scopes if word in POOL_SCOPES]:
            problem = f"has rights over the pool, which no user needs: {', '.join(pool_scopes)}"
            warn("HTCondor.scopes", problem, "Users need READ and WRITE.")
        for trait in ("collector", "schedd"):
            if not getattr(self, trait):
                problem = f"is not set: servers use the {trait} that their image names"
                warn(f"HTCondor.{trait}", problem, "Set it to that of the pool which accepts these tokens.")
        return problems

    def _check_key(self) -> list[Problem]:
        problems = self._key.check(self.key_file)
        if not any(problem.severity is Severity.ERROR for problem in problems) and self._key.read(self.key_file).text:
            thing = f"HTCondor.key_file ({self.key_file})"
            problem = "is text, not scrambled as HTCondor keeps keys; tokens fit only if the pool's file is the same"
            remedy = "Compare it with the pool's file byte by byte. A Secret must hold the bytes, not base64 of base64."
            problems.append(Problem(Severity.WARNING, thing, problem, remedy))
        return problems

    def mint(self, request: Request) -> Credential:
        self._check_settings()
        return self._token(request) if self.credential == "token" else self._idtoken(request)

    def _token(self, request: Request) -> Credential:
        """A token of the facility's issuer."""
        words = dict.fromkeys(" ".join(COMPUTE[level] for level in self.scopes).split())
        token = issue(self, request, audience=self.token_audience(), scope=" ".join(words), lifetime=self.life)
        subject = token.identifiers["sub"]
        # A map file that takes any name for an account makes a daemon or an administrator of these.
        if subject.partition("@")[0].lower() in RESERVED:
            raise CredentialError(
                f"user name {request.server.username!a}",
                f"makes the subject {subject!a}, which HTCondor takes for a daemon or an administrator",
                "Give this user another name.",
            )
        files = {"condor_token": f"{token.value}\n".encode()}
        if self.ca_file:
            files["condor_ca.pem"] = self._authorities.read(self.ca_file)
        return Credential(
            name=self.name,
            files=files,
            issued_at=token.issued_at,
            expires_at=token.expires_at,
            identifiers=token.identifiers,
            summary=f"{', '.join(self.scopes)} as {subject}",
        )

    def _idtoken(self, request: Request) -> Credential:
        subject = f"{self.local_part(request.server.username)}@{self.uid_domain}"
        # HTCondor 23 refuses tokens whose times are not whole seconds.
        issued_at = request.now.replace(microsecond=0)
        expires_at = issued_at + request.lifetime(self.lifetime)
        identifier = new_identifier(request.server)
        token = mint_idtoken(
            self._key.read(self.key_file).value,
            self.key_id,
            {
                "sub": subject,
                "iss": self.trust_domain,
                "iat": int(issued_at.timestamp()),
                "exp": int(expires_at.timestamp()),
                "jti": identifier,
                "scope": " ".join(f"condor:/{word}" for word in self.scopes),
            },
        )
        content = f"{token}\n".encode()
        return Credential(
            name=self.name,
            # The second file is the only one in its directory: HTCondor reads all files of a token directory, sends
            # the first token that fits, and never tries another.
            files={"condor_token": content, "condor_tokens.d/condor_token": content},
            issued_at=issued_at,
            expires_at=expires_at,
            identifiers={"jti": identifier, "sub": subject},
            summary=f"{', '.join(self.scopes)} as {subject}",
        )

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:
        values = {
            "CONDOR_HOST": self.collector,
            # Images write it into HTCondor's COLLECTOR_NAME, which only describes the pool.
            "COLLECTOR_NAME": self.trust_domain,
            "SCHEDD_HOST": self.schedd,
            "UID_DOMAIN": self.uid_domain,
        }
        if self.credential == "token":
            # Else HTCondor would show its daemons the token that BEARER_TOKEN_FILE names, which is another service's.
            values["_CONDOR_SCITOKENS_FILE"] = str(directory / "condor_token")
            if self.ca_file:
                values["_CONDOR_AUTH_SSL_CLIENT_CAFILE"] = str(directory / "condor_ca.pem")
        else:
            # Not ~/.condor/tokens.d: HTCondor finds that only for users with a passwd entry.
            values["_CONDOR_SEC_TOKEN_DIRECTORY"] = str(directory / "condor_tokens.d")
        if self.accounting_group:
            user = Server(server.hub_id, server.username).slug
            # SUBMIT_EXPRS, the old name of SUBMIT_ATTRS: HTCondor reads both, so the image's own SUBMIT_ATTRS stays.
            values["_CONDOR_SUBMIT_EXPRS"] = "AccountingGroup"
            values["_CONDOR_AccountingGroup"] = f'"{self.accounting_group}.{user}"'
        return {key: value for key, value in values.items() if value}

    @cached_property
    def _accounts(self) -> dict[str, str]:
        """`subject_map` by user names in the hub's form. Raises CredentialError."""
        return by_username(self.subject_map, "HTCondor.subject_map")

    def local_part(self, username: str) -> str:
        """The account of a user, which stands before the @ of the subject.
        Raises CredentialError if the user has no account, or if it is invalid, reserved, or shared without
        `accounting_group`.
        """
        self._check_choice()
        if self.subject_map:
            accounts, name = self._accounts, hub_form(username)
            if name not in accounts:
                raise CredentialError(
                    f"user name {username!a}",
                    "is not in HTCondor.subject_map",
                    "Add it, with the account of this user.",
                )
            local_part = accounts[name]
            shared = sum(other == local_part for other in accounts.values()) > 1
        else:
            local_part = self.subject.replace("{username}", username)
            shared = "{username}" not in self.subject
        if shared and not self.accounting_group:
            raise CredentialError(
                "HTCondor.subject_map" if self.subject_map else "HTCondor.subject",
                f"gives several users the account {local_part!a}",
                "Give each user their own account ({username} in the template), or set HTCondor.accounting_group to"
                " declare that they share it.",
            )
        if not _LOCAL_PART.fullmatch(local_part):
            raise CredentialError(
                f"user name {username!a}",
                f"makes {local_part!a}, which is not an account name",
                "An account name has at most 64 lower-case letters, digits and ._- and begins with a letter or _."
                " HTCondor.subject_map can give this user another one.",
            )
        if local_part in RESERVED:
            raise CredentialError(
                f"user name {username!a}",
                f"makes the subject {local_part!a}, which HTCondor takes for a daemon or an administrator",
                "Use a template such as af-{username}, or HTCondor.subject_map.",
            )
        return local_part

    def parse_key(self, content: bytes) -> SigningKey:
        return read_key(content, self.key_id)

    def token_audience(self) -> str:
        """``aud`` of tokens. Raises CredentialError if it is malformed, or is not set and has no default."""
        if self.audience:
            if not is_audience(self.audience):
                problem = f"{self.audience!a} is not one word of ASCII characters"
                raise CredentialError("HTCondor.audience", problem, "Copy one of the pool's SCITOKENS_SERVER_AUDIENCE.")
            return self.audience
        if not _HOST.fullmatch(self.collector):
            problem = "is not set, and HTCondor.collector is not the name of a host to make it of"
            raise CredentialError("HTCondor.audience", problem, "Copy one of the pool's SCITOKENS_SERVER_AUDIENCE.")
        return f"condor://{self.collector}"

    def _check_settings(self) -> None:
        if self.credential == "token":
            self._check_token_settings()
            return
        for trait, pattern, example in (
            ("key_id", r"[A-Za-z0-9_.-]+", "POOL"),
            ("trust_domain", r"[!-~]+", "pool.example.org"),
            ("uid_domain", _DOMAIN.pattern, "pool.example.org"),
        ):
            value = getattr(self, trait)
            if not re.fullmatch(pattern, value):
                problem = f"{value!a} is not valid" if value else "is not set"
                raise CredentialError(
                    f"HTCondor.{trait}", problem, f"Copy it from the pool's configuration. Example: {example}."
                )

    def _check_token_settings(self) -> None:
        if self.issuer is None:
            raise CredentialError(
                "HTCondor.credential", "is token, but the facility has no issuer", "Set up the section FacilityIssuer."
            )
        for trait in ("subject", "subject_map"):
            if getattr(self, trait):
                raise CredentialError(
                    f"HTCondor.{trait}",
                    "decides nothing with HTCondor.credential = token: the pool's map file makes accounts of users",
                    "Write the accounts into the pool's CERTIFICATE_MAPFILE, and remove this setting.",
                )
        if other := [word for word in self.scopes if word in POOL_SCOPES]:
            raise CredentialError(
                "HTCondor.scopes",
                f"has {', '.join(other)}, for which a token has no word",
                "Users need READ and WRITE.",
            )
        if _ADDRESS.fullmatch(self.collector):
            raise CredentialError(
                "HTCondor.collector",
                f"{self.collector} is an address, and clients verify a daemon's certificate by its host name",
                "Name the host as its certificate does.",
            )
        self.token_audience()
        if self.ca_file:
            self._authorities.read(self.ca_file)

    def _check_choice(self) -> None:
        if bool(self.subject) == bool(self.subject_map):
            raise CredentialError(
                "HTCondor.subject",
                "and HTCondor.subject_map are both set" if self.subject else "is not set",
                "Decide how a user name becomes an account of the pool: set one of HTCondor.subject and"
                " HTCondor.subject_map.",
            )

    def _check_subjects(self) -> None:
        if self.credential != "token":
            self._check_choice()
        if self.accounting_group and not re.fullmatch(r"[A-Za-z0-9_.-]+", self.accounting_group):
            raise CredentialError(
                "HTCondor.accounting_group",
                f"{self.accounting_group!a} is not the name of a group",
                "Such a name has letters, digits and _.- only. Example: group_cms.",
            )
        if self.credential == "token":
            return
        # What is wrong with a template is so for any user name.
        for username in self._accounts or ("somebody",):
            self.local_part(username)


def _authorities(content: bytes) -> bytes:
    """The certificates in a PEM file. Raises BadKeyError if there is none, or if a private key is among them."""
    if b"PRIVATE KEY" in content:
        raise BadKeyError("has a private key, and servers get a copy of this file", _GET_CA)
    try:
        load_pem_x509_certificates(content)
    except ValueError:
        raise BadKeyError("has no certificate in PEM", _GET_CA) from None
    return content
