"""An HTCondor pool of one machine that accepts IDTOKENs: collector, negotiator, schedd and startd.

Started by an ordinary user, the daemons and all jobs run as that user. Started by root, jobs run as Unix accounts of
their owners (`accounts`). These accounts exist for the pool only, which has its own passwd file in a mount namespace.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from casa_hub.demo.credd import JobTokens
from casa_hub.demo.htcondor_tokens import IssuerTokens
from casa_hub.demo.packages import SUITE, Programs, Progress, Unavailable, silent, unpack
from casa_hub.demo.processes import Process, minimal_environment, read_log
from casa_hub.loopback import free_port

_CONFIG = """\
RELEASE_DIR = {release}
BIN = $(RELEASE_DIR)/bin
SBIN = $(RELEASE_DIR)/sbin
LIB = $(RELEASE_DIR)/lib/condor
LIBEXEC = $(RELEASE_DIR)/libexec/condor
SHARE = $(RELEASE_DIR)/share/condor
LOCAL_DIR = {directory}
LOG = $(LOCAL_DIR)/log
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
ETC = $(LOCAL_DIR)/etc
LOCAL_CONFIG_DIR = $(LOCAL_DIR)/config.d
# Sockets are in here: their paths must stay below 108 characters.
RUN = {scratch}
LOCK = {scratch}
CONDOR_IDS = {uid}.{gid}

# A name with "@" is taken as it is, else the machine's is added.
SCHEDD_NAME = {schedd}
DAEMON_LIST = MASTER, COLLECTOR, NEGOTIATOR, SCHEDD, STARTD
CONDOR_HOST = {host}
COLLECTOR_HOST = {host}:{port}
NETWORK_INTERFACE = {host}
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
FULL_HOSTNAME = localhost
UID_DOMAIN = {domain}
TRUST_DOMAIN = {domain}

use SECURITY:recommended_v9_0
# The default lets anybody read, with a forged or expired token too.
SEC_READ_AUTHENTICATION = REQUIRED
SEC_READ_INTEGRITY = REQUIRED
SEC_READ_ENCRYPTION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, IDTOKENS
SEC_PASSWORD_DIRECTORY = $(LOCAL_DIR)/passwords.d
SEC_TOKEN_POOL_SIGNING_KEY_FILE = $(LOCAL_DIR)/passwords.d/POOL
SEC_TOKEN_SYSTEM_DIRECTORY = $(LOCAL_DIR)/tokens.d
COLLECTOR_BOOTSTRAP_SSL_CERTIFICATE = False
ALL_DEBUG = D_SECURITY

# Leave the machine as it is: no kernel tuning, no control groups, no mounts.
ENABLE_KERNEL_TUNING = False
BASE_CGROUP =
MOUNT_UNDER_SCRATCH =
MOUNT_PRIVATE_DEV_SHM = False

# A pool for people who wait: jobs start within a second or two.
NUM_CPUS = {slots}
START = TRUE
UPDATE_INTERVAL = 2
# A credd whose first word came before the collector listened would be unknown for five minutes.
CREDD_UPDATE_INTERVAL = 2
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
RUNBENCHMARKS = False
# Asking each transfer plugin what it can do takes four seconds of the start.
ENABLE_URL_TRANSFERS = False
FILETRANSFER_PLUGINS =
STARTER_JOB_ENVIRONMENT = "{job_environment}"
"""

#: Name of the pool's schedd.
SCHEDD = "schedd@localhost"

#: First user id of the accounts that exist only in the pool's own passwd file.
FIRST_UID = 64_000
#: Log line of a daemon that reads its configuration again. The daemon does nothing else until it has read it.
_REREAD = "Re-reading config files"


def programs(suite: str = SUITE, progress: Progress = silent) -> Programs:
    """HTCondor's daemons and tools.

    Raises:
        Unavailable: they can't be had on this machine.
    """
    return unpack(["condor"], suite=suite, progress=progress)


class HTCondorPool:
    """A pool; a context manager."""

    def __init__(
        self,
        tree: Programs,
        directory: Path,
        *,
        domain: str = "pool.localhost",
        host: str = "127.0.0.1",
        key_ids: Sequence[str] = ("POOL",),
        accounts: Sequence[str] = (),
        job_environment: Mapping[str, str] | None = None,
        slots: int = 2,
        job_tokens: JobTokens | None = None,
        issuer_tokens: IssuerTokens | None = None,
    ) -> None:
        """Args:
        tree: see `programs`.
        directory: is made; for root in a place that other users can enter.
        domain: UID domain and trust domain.
        host: address of this machine at which the pool listens.
        key_ids: names of the signing keys to make.
        accounts: users who get Unix accounts in this pool; used by root only.
        job_environment: variables for each job.
        slots: number of jobs that run at once; each has one CPU.
        job_tokens: for the tokens that running jobs get; None for no such tokens.
        issuer_tokens: tokens that the pool accepts besides IDTOKENs.
        """
        self.domain = domain
        self.host = host
        self.port = free_port(self, host)
        self.directory = directory
        self.accounts = tuple(accounts) if os.geteuid() == 0 else ()
        self.issuer_tokens = issuer_tokens
        self._tree = tree
        self.job_tokens = job_tokens
        self._slots = slots
        self._job_environment = dict(job_environment or {})
        self._process: Process | None = None
        for name in ("log", "spool", "execute", "etc", "config.d"):
            (directory / name).mkdir(parents=True)
        for name in ("passwords.d", "tokens.d"):
            (directory / name).mkdir(mode=0o700)
        for key_id in key_ids:
            self.make_key(key_id)

    @property
    def address(self) -> str:
        """Address of the collector, for clients."""
        return f"{self.host}:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def key_file(self, key_id: str = "POOL") -> Path:
        """File of a signing key, scrambled as HTCondor keeps it."""
        return self.directory / "passwords.d" / key_id

    def make_key(self, key_id: str) -> Path:
        """Write a new signing key. A running pool sees a replaced key at once; a new name needs `reconfigure`."""
        file = self.key_file(key_id)
        file.touch(mode=0o600)
        file.write_bytes(os.urandom(64))  # scrambled random bytes are random bytes
        return file

    def log(self, name: str = "SchedLog") -> str:
        """Content of a daemon's log."""
        return read_log(self.directory / "log" / name)

    def start(self) -> Self:
        """Start and wait until jobs can be submitted and run.

        Raises:
            ProcessError: the pool doesn't get ready.
            Unavailable: root may not make mount namespaces here, as in most containers.
        """
        if os.geteuid() == 0:
            _check_namespaces()
        if not _has_name(os.geteuid()):
            raise Unavailable(
                "HTCondor", f"refuses to run: user {os.geteuid()} has no entry in /etc/passwd", "Add one."
            )
        scratch = Path(tempfile.mkdtemp(prefix="casa-condor-"))
        command: list[str | Path] = [self._tree.program("condor_master"), "-f"]
        uid, gid = os.geteuid(), os.getegid()
        if uid == 0:
            uid = gid = FIRST_UID
            command = self._with_accounts(command)
            for path in (scratch, *(self.directory / name for name in ("log", "spool", "execute"))):
                os.chown(path, uid, gid)
                path.chmod(0o755)
        if self.issuer_tokens is not None:
            self.issuer_tokens.prepare(self.domain, (uid, gid))
        config = self.directory / "condor_config"
        config.write_text(
            _CONFIG.format(
                release=self._tree.root / "usr",
                directory=self.directory,
                scratch=scratch,
                uid=uid,
                gid=gid,
                host=self.host,
                port=self.port,
                domain=self.domain,
                slots=self._slots,
                schedd=SCHEDD,
                job_environment=_quoted(self._job_environment),
            )
            + ("" if self.job_tokens is None else self.job_tokens.configuration())
            + ("" if self.issuer_tokens is None else self.issuer_tokens.configuration())
        )
        self._process = Process(
            "HTCondor",
            command,
            log=self.directory / "log/Output",
            env=self._environment(),
            cwd=self.directory,
            grace=0,  # jobs needn't end in order
            scratch=scratch,
        ).start()
        try:
            self._process.wait_until("its daemons in the collector", self._ready, 60)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tool(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of HTCondor's tools as the pool's administrator (``condor@<domain>``)."""
        command: Sequence[str | Path] = [self._tree.program(name), *arguments]
        return subprocess.run(
            self._with_accounts(command) if os.geteuid() == 0 else command,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            # A tool that can read the POOL key makes its own token.
            env=self._environment() | {"_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS"},
        )

    def reconfigure(self, text: str) -> None:
        """Replace the additional configuration; returns when collector and schedd have read it."""
        (self.directory / "config.d/90-more").write_text(text)
        logs = ("CollectorLog", "SchedLog")
        before = {log: self.log(log).count(_REREAD) for log in logs}
        for daemon in ("collector", "schedd"):  # only with -daemon does 23.9 see a key with a new name
            self.tool("condor_reconfig", "-daemon", daemon).check_returncode()
        self.tool("condor_reconfig").check_returncode()
        assert self._process is not None  # noqa: S101
        self._process.wait_until(
            "collector and schedd say that they read", lambda: all(self.log(n).count(_REREAD) > before[n] for n in logs)
        )

    def _environment(self) -> dict[str, str]:
        # HTCondor notes there whom it has met over TLS; by default in the home of who runs the demo.
        hosts = str(self.directory / "known_hosts")
        return minimal_environment(CONDOR_CONFIG=str(self.directory / "condor_config"), _CONDOR_SEC_KNOWN_HOSTS=hosts)

    def _ready(self) -> bool:
        log = self.log("CollectorLog")
        ads = ["ScheddAd", "MachineSlotAd|StartdAd"]
        if self.job_tokens is not None:
            ads.append("CredD")
            # Who asks for a token waits for the credmon, but for 20 seconds only.
            if not self.log("CredmonLog"):
                return False
        return all(re.search(rf"(?:{ad})\s*: Inserting", log) for ad in ads)

    def _with_accounts(self, command: Sequence[str | Path]) -> list[str | Path]:
        """The command in a mount namespace, whose passwd and group files have condor and the accounts."""
        etc = self.directory / "etc"
        names = ("condor", *self.accounts)
        users = [f"{name}:x:{FIRST_UID + n}:{FIRST_UID + n}::/tmp:/bin/sh" for n, name in enumerate(names)]
        users += [":".join(map(str, entry)) for entry in pwd.getpwall() if entry.pw_name not in names]
        groups = [f"{name}:x:{FIRST_UID + n}:" for n, name in enumerate(names)]
        groups += [f"{g.gr_name}:x:{g.gr_gid}:{','.join(g.gr_mem)}" for g in grp.getgrall() if g.gr_name not in names]
        (etc / "passwd").write_text("\n".join(users) + "\n")
        (etc / "group").write_text("\n".join(groups) + "\n")
        script = 'mount --bind "$1" /etc/passwd && mount --bind "$2" /etc/group && shift 2 && exec "$@"'
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        return [*enter, etc / "passwd", etc / "group", *command]


def _check_namespaces() -> None:
    tried = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "true"], check=False, capture_output=True, text=True
    )
    if tried.returncode:
        raise Unavailable(
            "HTCondor as root",
            tried.stderr.strip(),
            "Start it as an ordinary user, or with the capability CAP_SYS_ADMIN.",
        )


def _has_name(uid: int) -> bool:
    try:
        return bool(pwd.getpwuid(uid))
    except KeyError:
        return False


def _quoted(environment: Mapping[str, str]) -> str:
    """Variables in HTCondor's quoting (condor_submit(1), "environment"), to be put between double quotes."""
    parts = (f"{name}={value}" for name, value in environment.items())
    return " ".join("'" + part.replace("'", "''").replace('"', '""') + "'" for part in parts)
