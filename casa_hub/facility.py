"""Which credentials a server gets. Only this module mints and renews them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from traitlets import Int, List, TraitError, Unicode, default, validate
from traitlets.config import LoggingConfigurable

from casa_hub import bearer_file, minters
from casa_hub.audit import Action, Event, tell
from casa_hub.credentials.base import (
    AccessToken,
    Credential,
    Minter,
    Paths,
    Request,
    Route,
    bad_path,
    is_own_path,
    own_path,
)
from casa_hub.credentials.fetching import Fetch, Outcomes
from casa_hub.errors import ConfigurationError, CredentialError, Problem, Severity
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.jupyterhub import HubApp, HubSpawner, HubUser
from casa_hub.metrics import MINTS
from casa_hub.minters import broken
from casa_hub.moments import exact
from casa_hub.naming import Server
from casa_hub.outside import HandedOut, Outside
from casa_hub.policy.settings import Policy
from casa_hub.policy.table import NOTHING_SAID, Entitlement
from casa_hub.record import EDITED_ENTRY, AnyRecord, ServerRecord, better_from, next_record, outlives
from casa_hub.unknown_keys import did_you_mean, is_set

#: How long after a renewal that the user's groups don't allow it is looked again.
_LOOK_AT_GROUPS = timedelta(minutes=10)
_ASK_OPERATOR = "Tell the operator of this hub; its log says more."


@dataclass(frozen=True, slots=True)
class Minted:
    """The credentials of one server, minted and ready to be delivered (`Facility.mint`, `Facility.renew`)."""

    server: Server
    start_id: str
    credentials: Mapping[str, Credential]
    #: Name of a credential that could not be minted -> why, for people. Not secret.
    missing: Mapping[str, str]
    #: Path below the server's secrets directory (``xcache_token``, ``condor_tokens.d/condor_token``) -> content.
    files: Mapping[str, bytes] = field(repr=False)
    routes: tuple[Route, ...]
    #: What a restarted hub must know of this start. No secret.
    record: ServerRecord
    #: Name of a credential that was not renewed -> when to try again: a shorter lifetime was set and a new one would
    #: expire sooner, or the user's groups don't give it any more. Not in `missing`.
    later: Mapping[str, datetime] = field(default_factory=dict)


class Facility(LoggingConfigurable):
    """The credentials of this hub's servers; one instance for each hub (`CasaHub.facility`)."""

    credentials = List(
        Unicode(),
        help="""Names of the credentials that every server gets, from the entry-point group `casa_hub.credentials`:
        xcache, htcondor, dask, bearer, servicex, exchange, s3, x509, and those of other installed packages.
        Default: none. Each has a configuration section of its own. Example: `[xcache, htcondor, dask, bearer]`.""",
    ).tag(config=True)

    required = List(
        Unicode(),
        help="""Those of `Facility.credentials` without which no server starts. If another one can't be minted, the
        server starts without it, and its spawn page and the hub's log say what is missing and why. Where one section
        makes several, the section's name means all of them. Default: none. Example: `[xcache, "exchange:rucio"]`.""",
    ).tag(config=True)

    hub_id = Unicode(
        "",
        help="""Tells hubs apart that share a namespace, a domain, an HTCondor pool or an XCache. It is part of the
        identity of each server and of the identifiers of its credentials. Two hubs in one namespace with the same id
        end each other's servers. Default: empty, for a hub that shares nothing. Example: `cms-prod`.""",
    ).tag(config=True)

    bearer_token_file = Unicode(
        bearer_file.DEFAULT,
        help="""Which file the variable `BEARER_TOKEN_FILE` of a server names: any file that one of
        `Facility.credentials` delivers, or `none`. `xcache_token` is what the XRootD client plugin of the
        analysis images reads: the macaroon, or the facility's own token with `XCache.credential: token`; with `both`
        that token is `xcache_jwt`. `access_token` is the user's own token, for WLCG tools and a ServiceX that knows its
        issuer. Default: `XCache.token_file`, which is `xcache_token` unless it is set.

        If the server doesn't have the file, or with `none`, the hub doesn't set the variable; one that the image sets
        stays (Coffea-Casa's of 2026 name the file `access_token`). At its start the hub warns of a choice that breaks a
        reader of one of `Facility.credentials`.""",
    ).tag(config=True)

    secrets_path = Unicode(
        "/etc/cmsaf-secrets",
        help="""Directory of the secret files inside a pod; the analysis images expect this default. On one machine,
        each server has a directory below `LocalDelivery.directory` instead.""",
    ).tag(config=True)

    laptop_lifetime = Int(
        3600,
        min=60,
        help="""Seconds that a credential lives at most which somebody takes to a laptop or a CI job, by the hub's API
        or a page. One that lives shorter in a server lives shorter there, too. The user's own token (`bearer`) and what
        ServiceX has issued live as long as their issuer says. Example: `43200`, for half a day without the hub.""",
    ).tag(config=True)

    @default("bearer_token_file")
    def _file_of_xcache(self) -> str:
        of_xcache = [*self._loaded.parts.get("xcache", ())]
        of_xcache += [name for (entry, _), names in self._loaded.by_rule.items() if entry == "xcache" for name in names]
        files = [path for name in of_xcache for path in self.minters[name].bearer_files]
        return files[0] if files else bearer_file.DEFAULT

    @validate("bearer_token_file")
    def _file_name(self, proposal: dict[str, Any]) -> str:
        name: str = proposal["value"]
        if bad_path(name):
            raise TraitError(f"Facility.bearer_token_file is {name!a}, must be a file of a credential, or none.")
        return name

    @validate("secrets_path")
    def _absolute(self, proposal: dict[str, Any]) -> str:
        path = PurePosixPath(proposal["value"])
        if not path.is_absolute() or not path.name or {"..", "."} & {*path.parts} or set(":$") & {*str(path)}:
            raise TraitError(f"Facility.secrets_path is {proposal['value']!a}, must be an absolute path below /.")
        return str(path)

    def __init__(self, app: HubApp | None = None, **kwargs: Any) -> None:
        """`app`: the hub, for the audit; None where there is none."""
        super().__init__(**kwargs)
        self._app = app
        #: What people hold outside of their servers.
        self.outside = Outside()
        self._files_outside: dict[str, tuple[str, ...]] = {}
        #: What the members of which groups get.
        self.policy = Policy(parent=self)
        #: The facility's own issuer of tokens; None without settings for one.
        self.issuer = FacilityIssuer(parent=self) if FacilityIssuer.__name__ in self.config else None
        self._loaded = minters.load(self.credentials, self, self.issuer, self.policy.table.rules)
        #: The minters in use, by the name of what they mint: those of `credentials` in its order, then those by rules.
        self.minters = self._loaded.minters
        self._chosen: dict[tuple[tuple[str, ...], tuple[str, ...]], Mapping[str, Paths]] = {}

    def server(self, username: str, name: str = "") -> Server:
        """The identity of a server of this hub."""
        return Server(self.hub_id, username, name)

    def key_files(self) -> dict[str, str]:
        """Setting -> path of each key file in use, of the issuer and of all credentials. Reads a directory."""
        found = {} if self.issuer is None else self.issuer.key_files()
        for name, minter in self.minters.items():
            found |= {f"{setting}{self._of_rule(name)}": path for setting, path in minter.key_files.items()}
        return found

    def _of_rule(self, name: str) -> str:
        """To be added to what is said of a credential's settings."""
        return f" of rule {self._loaded.rule_of[name][1]}" if name in self._loaded.rule_of else ""

    # -- who gets which

    def chosen(self, entitlement: Entitlement) -> Mapping[str, Paths]:
        """Name of each credential that somebody gets -> its files, in the order of the list of credentials."""
        said = entitlement.credentials
        entries = tuple(self.credentials) if said is None else said.value
        key = entries, entitlement.rules
        if key not in self._chosen:
            self._chosen[key] = self._choose(entries, entitlement.rules)
        return self._chosen[key]

    def _choose(self, entries: Iterable[str], rules: Sequence[str]) -> Mapping[str, Paths]:
        found: dict[str, Paths] = {}
        for entry in entries:
            plain = self._plain(entry, rules)
            name, _, part = entry.partition(":")
            if plain is None and (name, part) in self._loaded.by_rule:
                for each in self._loaded.by_rule[name, part]:
                    found[each] = found.get(each, Paths(0)) | Paths.OWN
            for each in plain or self._part(entry, rules):
                found[each] = found.get(each, Paths(0)) | Paths.PLAIN
        return found

    def _plain(self, entry: str, rules: Iterable[str]) -> tuple[str, ...] | None:
        """What a section's name stands for: by the first of somebody's rules that changes it, or by the hub's settings.

        None if it is no section's name.
        """
        for rule in rules:
            if (entry, rule) in self._loaded.by_rule:
                return self._loaded.by_rule[entry, rule]
        return self._loaded.parts.get(entry)

    def _part(self, entry: str, rules: Sequence[str]) -> tuple[str, ...]:
        """One of several that a section makes, ``exchange:rucio``, by the rule or the settings that count."""
        names = self._plain(entry.partition(":")[0], rules) or ()
        return tuple(name for name in names if self.without_rule(name) == entry)

    def without_rule(self, name: str) -> str:
        """The name of a credential as it is without rules: ``xcache`` for ``xcache:atlas``."""
        return self._loaded.rule_of.get(name, (name, ""))[0]

    def allowed(self, user: HubUser) -> frozenset[str]:
        """Names of the credentials that somebody may hold now."""
        return frozenset(self.chosen(self.policy.of(user)))

    def name_for(self, user: HubUser, name: str) -> str:
        """The credential that somebody gets as `name`: ``xcache:atlas`` for ``xcache``. The same if they get none."""
        chosen = self.chosen(self.policy.of(user))
        plain = (each for each, paths in chosen.items() if Paths.PLAIN in paths and self.without_rule(each) == name)
        return next(plain, name)

    def names_outside(self, user: HubUser) -> list[str]:
        """Names under which somebody may have credentials outside of servers."""
        chosen = self.chosen(self.policy.of(user))
        return [
            self.without_rule(name)
            for name, paths in chosen.items()
            if Paths.PLAIN in paths and self.minters[name].outside
        ]

    async def request_of(
        self,
        spawner: HubSpawner,
        server: Server,
        start_id: str,
        now: datetime,
        *,
        names: Collection[str] | None = None,
        fetched: Outcomes | None = None,
    ) -> Request:
        """What minters may use for a start of the spawner's server, the user's own token included.

        `server`: the identity of that start, which stays the same when the user is renamed. `names`: of the credentials
        that are about to be minted; None for all. `fetched`: by `fetch`; what isn't there, and is kept of an earlier
        one, counts as well.
        """
        user, authenticator = spawner.user, spawner.authenticator
        return await self.request_for(user, authenticator, server, start_id, now, names=names, fetched=fetched)

    async def request_for(
        self,
        user: HubUser,
        authenticator: Any,
        server: Server,
        start_id: str,
        now: datetime,
        *,
        names: Collection[str] | None = None,
        fetched: Outcomes | None = None,
    ) -> Request:
        """As `request_of`, for a user who may have no server."""
        # Only our authenticator has access tokens. A technical user has none: a stored one belongs to a person who had
        # the name before.
        technical = user.name in getattr(authenticator, "technical_users", ())
        get_token = getattr(authenticator, "access_token", None)
        token: AccessToken | None = await get_token(user) if get_token is not None and not technical else None
        brought = fetched or {}
        fetching = getattr(authenticator, "fetching", None)
        # Only for what is about to be minted and was not fetched just now: each look is a read of the stored log-in.
        lacking = {
            name: fetch
            for name, fetch in self.fetches.items()
            if name not in brought and (names is None or name in names)
        }
        kept = await fetching.kept(user, lacking) if lacking and fetching is not None and not technical else {}
        return Request(
            server,
            start_id,
            now,
            token,
            technical=technical,
            fetched={**kept, **brought},
            chosen=self.chosen(self.policy.of(user)),
        )

    def named(self, entries: Iterable[str]) -> list[str]:
        """Names of credentials, for entries of settings and requests: a section that makes several means them all.

        Those by a rule are meant as well.
        """
        by_rule = self._loaded.by_rule.items()
        found: list[str] = []
        for entry in entries:
            of_entry = list(self._loaded.parts.get(entry, ()))
            of_entry += [name for (section, _), names in by_rule if section == entry for name in names]
            of_entry += [name for name, (plain, _) in self._loaded.rule_of.items() if plain == entry]
            found += of_entry if of_entry or entry in self._loaded.parts else [entry]
        return list(dict.fromkeys(found))

    def needs_fetching(self, name: str) -> bool:
        """Whether a credential is made of something that has to be fetched (`Minter.fetch`)."""
        return name in self.fetches

    def _takes_token(self, name: str, minter: Minter) -> bool:
        """Whether a credential is made of the user's own token, or of what is fetched with it."""
        return minter.renewal == "token" or self.needs_fetching(name)

    @property
    def fetches(self) -> Mapping[str, Fetch]:
        """Name of a credential -> what has to be fetched for it (`Minter.fetch`), as it was at the hub's start."""
        return self._loaded.fetches

    async def fetch(
        self,
        spawner: HubSpawner,
        *,
        names: Collection[str] | None = None,
        newer_than: Mapping[str, datetime] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Outcomes:
        """What the credentials of a server are made of, or why it can't be had. Asks others, and never raises.

        `names`: of which credentials; None for all. `newer_than`, `say`: as for `Fetching.of` of our authenticator,
        which has checked the membership.
        """
        allowed = self.allowed(spawner.user)
        wanted = {
            name: fetch for name, fetch in self.fetches.items() if name in allowed and (names is None or name in names)
        }
        authenticator = spawner.authenticator
        if not wanted or spawner.user.name in getattr(authenticator, "technical_users", ()):
            return {}
        fetching = getattr(authenticator, "fetching", None)
        if fetching is None:
            problem = CredentialError("access token", "is missing: the hub's authenticator keeps none", _ASK_OPERATOR)
            return dict.fromkeys(wanted, problem)
        outcomes: Outcomes = await fetching.of(spawner.user, wanted, newer_than=newer_than, say=say)
        return outcomes

    # -- checks before the first start

    def check(self) -> list[Problem]:
        """The problems of all settings and keys, of the facility and its credentials. For a site's own tests."""
        return self.check_settings() + self.check_minters()

    def check_minters(self) -> list[Problem]:
        """The problems of all credentials' settings and keys, the issuer's keys included."""
        problems = [] if self.issuer is None else self.issuer.check_keys()
        return problems + [
            problem for name, minter in self.minters.items() for problem in self.check_minter(name, minter)
        ]

    def check_minter(self, name: str, minter: Minter) -> list[Problem]:
        """The problems of one credential's settings and keys."""
        try:
            found = list(minter.check())
            return [replace(each, thing=f"{each.thing}{self._of_rule(name)}") for each in found]
        except Exception as error:  # noqa: BLE001 - a third party's
            return [broken(name, "check", error)]

    def check_settings(self) -> list[Problem]:
        """Problems of the facility's own settings. With an ERROR among them no server can start."""
        problems = list(self._loaded.problems) + ([] if self.issuer is None else self.issuer.check())
        problems += [
            Problem(
                Severity.ERROR,
                "Facility.required",
                f"{name!r} is not in Facility.credentials",
                # The name of an installed credential is right; any other may be a typing error.
                "Add it there."
                if name in minters.installed()
                else did_you_mean(name, [*self.credentials, *self.minters]) or "Add it there.",
            )
            for name in self.required
            if name not in self.credentials and name not in self.minters and name not in self._listed
        ]
        problems += [*self.policy.problems, *self._check_entries()]
        for issuer in self._loaded.issuers:
            problems += issuer.check()
        files = self._try_files()
        return problems + self._check_bearer_token_file(files) + self._clashes(files)

    @property
    def _listed(self) -> set[str]:
        """Entries of all rules' lists of credentials."""
        return {entry for rule in self.policy.table.rules for entry in rule.credentials or ()}

    def _check_entries(self) -> list[Problem]:
        """Problems of the rules' lists of credentials, and of sections that nobody gets anything by."""
        problems = []
        rules = self.policy.table.rules
        used = {name for rule in rules for name in self._choose(rule.credentials or self.credentials, [rule.name])}
        for rule in rules:
            for entry in rule.credentials or ():
                given = self._choose([entry], [rule.name])
                thing = f"Policy.rules, {rule.name}.credentials"
                sections = {*self._loaded.parts, *(section for section, _ in self._loaded.by_rule)}
                if not given and entry not in sections:
                    known = [*minters.installed(), *(":".join(key) for key in self._loaded.by_rule)]
                    problem = f"there is no credential {entry!a}"
                    problems.append(Problem(Severity.ERROR, thing, problem, did_you_mean(entry, known)))
            for (entry, name), names in self._loaded.by_rule.items():
                if name == rule.name and not used & {*names}:
                    thing = f"Policy.rules, {rule.name}"
                    problem = f"its settings of {entry} are for nobody: {entry} is in no list of credentials"
                    remedy = f"Add {entry} to the rule's credentials."
                    problems.append(Problem(Severity.ERROR, thing, problem, remedy))
        return problems

    def _check_bearer_token_file(self, files: Mapping[str, Collection[str] | None]) -> list[Problem]:
        delivered: dict[str, bearer_file.ServerFile] = {}
        for name, minter in self.minters.items():
            kinds = minter.bearer_files
            for path in (*kinds, *(files[name] or ())):
                delivered.setdefault(path, bearer_file.ServerFile(name, kinds.get(path)))
        return bearer_file.check(
            self.bearer_token_file,
            delivered,
            [*self.credentials, *self._listed],
            chosen=is_set(self.config, type(self), "bearer_token_file"),
            all_known=None not in files.values(),
        )

    def _try_files(self) -> dict[str, Collection[str] | None]:
        """Credential -> paths of its files. Each minter mints once, because only that tells its files.

        None after a failure: `Minter.check` reports it, or it concerns only the user name of this trial.
        """
        request = self._trial()
        found: dict[str, Collection[str] | None] = {}
        for name, minter in self.minters.items():
            try:
                found[name] = minter.mint(request).files.keys() if minter.paths is None else minter.paths
            except Exception:  # noqa: BLE001
                found[name] = None
        return found

    def _clashes(self, files: Mapping[str, Collection[str] | None]) -> list[Problem]:
        """Problems of credentials with the same file name. One server has one of a kind, whichever rule made it."""
        owner: dict[str, str] = {}
        problems = []
        for name, paths in files.items():
            for path in paths or ():
                if path in owner and self.without_rule(owner[path]) != self.without_rule(name):
                    problems.append(self._clash(path, owner[path], name))
                owner.setdefault(path, name)
        inside = ((path, path.partition("/")[0]) for path in owner if "/" in path)
        problems += [
            self._clash(first, owner[first], owner[path], inside=True) for path, first in inside if first in owner
        ]
        return problems

    def _clash(self, path: str, first: str, second: str, *, inside: bool = False) -> Problem:
        """`inside`: the second one writes a file into a directory of that path."""
        problem = f"{first} and {second} both write the file {path}"
        if inside:
            problem = f"{first} writes the file {path}, and {second} one in a directory of that name"
        others = dict.fromkeys(self.minters[name].other_file for name in (first, second) if name in self.minters)
        remedy = " ".join(["Remove one of them.", *(f"Or {other}." for other in others if other)])
        return Problem(Severity.ERROR, "Facility.credentials", problem, remedy)

    def _trial(self) -> Request:
        """Of nobody, to see what a minter makes."""
        token = AccessToken("trial", None, subject="trial")
        return Request(self.server("check"), start_id="0" * 32, now=datetime.now(UTC), token=token)

    # -- for a server

    def mint(self, request: Request) -> Minted:
        """All credentials of a starting server.

        The audit gets each minted credential at once, so its identifier is known even if the start fails.

        Raises:
            CredentialError: a required credential could not be minted.
            ConfigurationError: two credentials want the same file.
        """
        # A technical user has no token of an identity provider, so credentials made of that token are left out.
        given = {name: self.minters[name] for name in self._given(request)}
        left_out = {name for name, minter in given.items() if request.technical and self._takes_token(name, minter)}
        minters = {name: minter for name, minter in given.items() if name not in left_out}
        if left_out:
            self.log.info("%s is a technical user's: no %s", request.server.identity, ", ".join(sorted(left_out)))
        credentials, missing = self._mint_each(minters, request, {})
        for name in self.credentials:
            if name not in self._loaded.parts:
                missing[name] = CredentialError(name, "it could not be loaded at the hub's start", _ASK_OPERATOR)
        for name in self.named(self.required):
            if name not in credentials and name not in left_out and (name in given or name not in self.minters):
                raise missing.get(name) or CredentialError(name, "it is required, but not enabled", _ASK_OPERATOR)
        for name, reason in missing.items():
            self.log.warning("No %s for %s: %s", name, request.server.identity, reason)
        self._audit(Action.MINTED, request, credentials, missing)
        return self._minted(request, credentials, missing)

    def renew(
        self,
        request: Request,
        names: Collection[str],
        record: ServerRecord,
        *,
        force: bool = False,
        username: str = "",
    ) -> Minted:
        """Mint the credentials `names` anew for a running server with this record. Raises ConfigurationError as `mint`.

        `Minted.missing` has each credential that can't be minted now, or that would not be valid for longer than the
        server's present one. The server keeps its present one, whose entry in the record stays, and a required
        credential raises no error. The same goes for a credential with an unreadable entry, because nobody would know
        what the new one replaces.

        `force`: replace a credential whatever its expiry, because its key or its user's token has changed.
        `username`: the user's present name, for the audit; credentials are minted for the name with which the server
        was started.
        """
        states = {name: entry.state for name, entry in record.credentials.items()}
        given = self._given(request)
        # Not another one of a kind, even if a group that came later brings it: it would write the same files.
        held = {*record.missing, *record.names}
        kinds = {self.without_rule(name) for name in held}
        wanted = {
            name: minter
            for name, minter in self.minters.items()
            if name in names and name in given and (name in held or self.without_rule(name) not in kinds)
        }
        chosen = {name: minter for name, minter in wanted.items() if name not in record.unreadable}
        request = self._with_paths_of(request, record)
        credentials, missing = self._mint_each(chosen, request, states)
        for name in wanted.keys() - chosen.keys():
            missing[name] = CredentialError(name, EDITED_ENTRY, "Restart the server.")
        # No failure: it ends when it expires, unless the user is in such a group again.
        lost = {name for name in names if name in self.minters and name not in given}
        still = [name for name in lost if name in record.credentials and name not in record.missing]
        later = dict.fromkeys(still, request.now + _LOOK_AT_GROUPS)
        for name in lost & record.missing.keys():
            missing[name] = CredentialError(name, "the user's groups don't give it any more", "Restart the server.")
        for name, entry in record.credentials.items():
            was_missing = name in record.missing
            if force or was_missing or name not in credentials or outlives(credentials[name][0], entry):
                continue
            new, _ = credentials.pop(name)
            if new.expires_at == entry.expires_at:
                problem = f"a new one would be valid until {exact(entry.expires_at)} as well"
                missing[name] = CredentialError(name, problem, "Its key or token must be replaced first.")
            else:
                later[name] = better_from(new, entry)
        self._audit(Action.RENEWED, request, credentials, missing, username)
        return replace(self._minted(request, credentials, missing, record), later=later)

    def mint_lost(self, request: Request, record: ServerRecord, *, username: str = "") -> Minted:
        """Mint all credentials anew for a running server that has lost all the files in its record.

        A credential that can't be minted now keeps its entry in the record, because it may still have to be blocked.
        The entry gets no files, and the record's ``missing`` names the credential, so that it is tried again.
        `username`: as in `renew`. Raises ConfigurationError as `mint`.
        """
        names = {*record.credentials, *record.missing} - record.unreadable.keys()
        states = {name: entry.state for name, entry in record.credentials.items()}
        given = self._given(request)
        chosen = {name: minter for name, minter in self.minters.items() if name in names and name in given}
        request = self._with_paths_of(request, record)
        credentials, missing = self._mint_each(chosen, request, states)
        for name in record.credentials:
            if name not in self.minters:
                missing[name] = CredentialError(name, "this hub has no such credential any more", _ASK_OPERATOR)
        self._audit(Action.RENEWED, request, credentials, missing, username)
        lost = {name: replace(entry, files=()) for name, entry in record.credentials.items()}
        reasons = {**record.missing, **{name: str(error) for name, error in missing.items()}}
        return self._minted(request, credentials, missing, replace(record, credentials=lost, missing=reasons))

    def mint_outside(
        self,
        request: Request,
        name: str,
        record: ServerRecord | None,
        *,
        user_id: int,
        username: str = "",
        by: str = "",
    ) -> Credential:
        """Mint one credential for a laptop or CI: only the files of a client, for `laptop_lifetime` at most.

        The caller has checked the membership, and nothing was awaited since. The audit is told, and `outside` notes
        what it must tell when the user's access ends.

        Args:
            request: of the user; for a credential of a running server (`Minter.of_start`), of that start.
            name: one of `minters_outside`.
            record: that of the running server; None for what belongs to no server.
            user_id: JupyterHub's, of the user.
            username: as in `renew`.
            by: who asked, for the audit: ``page of alice``, ``token a7 of alice: laptop``.

        Raises CredentialError: with what stands in the way, for people.
        """
        minter = self.minters_outside.get(name)
        if minter is None or Paths.PLAIN not in self._given(request).get(name, Paths(0)):
            raise CredentialError(name, "this hub has no such credential outside of servers", _ASK_OPERATOR)
        if request.technical and self._takes_token(name, minter):
            raise CredentialError(minter.title, "a technical user has no token of an identity provider", "")
        states: dict[str, Mapping[str, str]] = {}
        if minter.of_start:
            entry = None if record is None else record.credentials.get(name)
            if entry is None:
                raise CredentialError(minter.title, "they are those of a running server", "Start it first.")
            states[name] = entry.state
        longest = min(request.longest or self.laptop_lifetime, self.laptop_lifetime)
        now, asked = request.now, replace(request, longest=longest)
        minted, missing = self._mint_each({name: minter}, asked, states, outside=True)
        if name in missing:
            raise missing[name]
        new, _ = minted[name]
        if minter.shortens and (new.expires_at is None or new.expires_at > now + timedelta(seconds=longest)):
            problem = f"what was minted lives for more than the {longest} seconds that it may live outside of servers"
            raise CredentialError(minter.title, problem, _ASK_OPERATOR)
        handed = HandedOut(
            credential=name,
            server=request.server.name if minter.of_start else None,
            start_id=request.start_id if minter.of_start else "",
            started_as=request.server.username,
            identifiers=new.identifiers,
            expires_at=new.expires_at,
        )
        self.outside.note(user_id, handed, now)
        self._tell(handed.event(Action.MINTED, username or request.server.username, by=by))
        return new

    @property
    def minters_outside(self) -> dict[str, Minter]:
        """Those of credentials that people may have outside of servers."""
        return {name: minter for name, minter in self.minters.items() if minter.outside}

    @property
    def issuers(self) -> list[FacilityIssuer]:
        """All issuers of tokens: the hub's own, and those of rules with another VO."""
        return [each for each in (self.issuer, *self._loaded.issuers) if each is not None]

    @property
    def rules(self) -> list[str]:
        """Names of the rules with credentials of their own."""
        return list(dict.fromkeys(rule for _, rule in self._loaded.by_rule))

    def lifetime_outside(self, name: str) -> int | None:
        """Seconds that a credential lives outside of servers, as `mint_outside` makes it; None if its issuer says."""
        minter = self.minters[name]
        if not minter.shortens:
            return None
        return self.laptop_lifetime if minter.life is None else min(minter.life, self.laptop_lifetime)

    def files_outside(self, name: str) -> tuple[str, ...]:
        """Paths of the files of `mint_outside`; empty as long as they aren't known."""
        if name not in self._files_outside:
            try:
                self._files_outside[name] = tuple(sorted(self.minters[name].mint_outside(self._trial()).files))
            except Exception:  # noqa: BLE001 - it concerns the user name of this trial, or is told by `Minter.check`
                return ()
        return self._files_outside[name]

    def routes(self, server: Server, record: AnyRecord | None = None) -> list[Route]:
        """The routes to a server with the credentials of `record`; with all credentials if no record can be read."""
        names = record.names if isinstance(record, ServerRecord) else self.minters.keys()
        return [route for name, minter in self.minters.items() if name in names for route in minter.routes(server)]

    @property
    def wants_routes(self) -> bool:
        """Whether any credential needs routes to its servers."""
        return any(type(minter).routes is not Minter.routes for minter in self.minters.values())

    @property
    def requires_routes(self) -> bool:
        """Whether a required credential needs routes to its servers."""
        required = (self.minters[name] for name in self.named(self.required) if name in self.minters)
        return any(type(minter).routes is not Minter.routes for minter in required)

    def environment(self, minted: Minted, directory: PurePosixPath) -> dict[str, str]:
        """Environment of a server with its secrets in `directory`.

        All variables of a missing credential are left out. A client without any setting says so or does without; a
        client with half of its settings fails later, in a place that says nothing of the cause.
        """
        first = [name for name, new in minted.credentials.items() if self._is_first(name, new.files)]
        return self._environment(minted.server, first, minted.files, directory)

    def _is_first(self, name: str, files: Collection[str]) -> bool:
        """Whether a credential has the plain files, which programs find by the server's environment."""
        if name not in self._loaded.rule_of:
            return True
        _, rule = self._loaded.rule_of[name]
        return not all(is_own_path(path, rule) for path in files)

    def environment_outside(self, server: Server, new: Credential) -> dict[str, str]:
        """Environment of a client with a credential of `mint_outside`. Paths begin with ``{directory}``."""
        return self._environment(server, [new.name], new.files, PurePosixPath("{directory}"), outside=True)

    def _environment(
        self,
        server: Server,
        names: Iterable[str],
        files: Collection[str],
        directory: PurePosixPath,
        *,
        outside: bool = False,
    ) -> dict[str, str]:
        environment: dict[str, str] = {}
        for name in names:
            minter = self.minters[name]
            try:
                environment |= (minter.environment_outside if outside else minter.environment)(server, directory)
            except Exception as error:  # noqa: BLE001 - a third party's
                self.log.error("%s", broken(name, "environment", error))  # noqa: TRY400 - see `broken`
        if self.bearer_token_file in files:
            environment["BEARER_TOKEN_FILE"] = str(directory / self.bearer_token_file)
        return environment

    def _given(self, request: Request) -> Mapping[str, Paths]:
        """Which credentials a request is for."""
        return self.chosen(NOTHING_SAID) if request.chosen is None else request.chosen

    def _with_paths_of(self, request: Request, record: ServerRecord) -> Request:
        """The request for new ones of what a server has: in the files in which it has them."""
        chosen = dict(self._given(request))
        for name, entry in record.credentials.items():
            if name in chosen and name in self._loaded.rule_of and entry.files:
                _, rule = self._loaded.rule_of[name]
                has = {path for path in entry.files if is_own_path(path, rule)}
                plain = Paths.PLAIN if {*entry.files} - has else Paths(0)
                chosen[name] = (Paths.OWN if has else Paths(0)) | plain
        return replace(request, chosen=chosen)

    def _mint_each(
        self,
        minters: Mapping[str, Minter],
        request: Request,
        states: Mapping[str, Mapping[str, str]],
        *,
        outside: bool = False,
    ) -> tuple[dict[str, tuple[Credential, tuple[Route, ...]]], dict[str, CredentialError]]:
        credentials: dict[str, tuple[Credential, tuple[Route, ...]]] = {}
        missing: dict[str, CredentialError] = {}
        for name, minter in minters.items():
            try:
                if self.needs_fetching(name):
                    request.fetched_for(name)
                mint = minter.mint_outside if outside else minter.mint
                credential = mint(replace(request, state=states.get(name, {})))
                credential = self._placed(name, credential, self._given(request).get(name, Paths.PLAIN))
                problem = _malformed(credential, request.now)
                if problem:
                    missing[name] = CredentialError(name, problem, _ASK_OPERATOR)
                    continue
                credentials[name] = credential, tuple(minter.routes(request.server))
            except CredentialError as error:
                missing[name] = error
            except Exception as error:  # noqa: BLE001 - a third party's fault must not break the others
                fault = broken(name, "mint", error)
                self.log.error("%s", fault)  # noqa: TRY400 - see `broken`
                missing[name] = CredentialError(fault.thing, fault.problem, _ASK_OPERATOR)
        return credentials, missing

    def _placed(self, name: str, new: Credential, paths: Paths) -> Credential:
        """A credential in the files that it has in a server."""
        if not paths & Paths.OWN or name not in self._loaded.rule_of:
            return new
        _, rule = self._loaded.rule_of[name]
        files = dict(new.files) if paths & Paths.PLAIN else {}
        files |= {own_path(path, rule): content for path, content in new.files.items()}
        return replace(new, files=files)

    def _audit(
        self,
        action: Action,
        request: Request,
        minted: Mapping[str, tuple[Credential, tuple[Route, ...]]],
        missing: Collection[str],
        username: str = "",
    ) -> None:
        at_start = request.server.username
        for name, (new, _) in minted.items():
            MINTS.labels(name, action.value).inc()
            event = Event(
                action=action,
                username=username or at_start,
                server=request.server.name,
                started_as=at_start if username not in {"", at_start} else "",
                start_id=request.start_id,
                credential=name,
                identifiers=new.identifiers,
                expires_at=exact(new.expires_at),
                reason="for a technical user, who has no log-in" if request.technical else "",
            )
            self._tell(event)
        for name in missing:
            MINTS.labels(name, "failed").inc()

    def _tell(self, event: Event) -> None:
        tell({} if self._app is None else self._app.tornado_settings, event)

    def _minted(
        self,
        request: Request,
        minted: Mapping[str, tuple[Credential, tuple[Route, ...]]],
        missing: Mapping[str, CredentialError],
        before: ServerRecord | None = None,
    ) -> Minted:
        reasons = {name: str(error) for name, error in missing.items()}
        record = next_record(request, {name: new for name, (new, _) in minted.items()}, reasons, before)
        owner: dict[str, str] = {}
        for name, entry in record.credentials.items():
            for path in entry.files:
                if path in owner:
                    problem = self._clash(path, owner[path], name)
                    raise ConfigurationError(problem.thing, problem.problem, problem.remedy)
                owner[path] = name
        return Minted(
            server=request.server,
            start_id=request.start_id,
            credentials={name: new for name, (new, _) in minted.items()},
            missing=reasons,
            files={path: content for new, _ in minted.values() for path, content in new.files.items()},
            routes=tuple(route for _, routes in minted.values() for route in routes),
            record=record,
        )


def _malformed(new: Credential, now: datetime) -> str:
    """Why a minted credential can't be used; "" if it can. One of a third party must not break the others."""
    bad = next(filter(bad_path, new.files), None)
    if bad is not None:
        return f"its file can't be called {bad!r}"
    if not all(isinstance(content, bytes) for content in new.files.values()):
        return "its files are not bytes"
    if new.issued_at.utcoffset() is None or (new.expires_at is not None and new.expires_at.utcoffset() is None):
        return "its times have no time zone"
    if new.expires_at is not None and new.expires_at <= now:
        return f"what was minted expired at {exact(new.expires_at)}"
    for texts in (new.identifiers, new.state):
        if not all(isinstance(text, str) for pair in texts.items() for text in pair):
            return "its identifiers or its state are not strings"
    return ""
