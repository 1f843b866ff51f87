"""The part of the demo's pool that keeps the tokens of running jobs fresh: HTCondor's credd, and our credmon.

A job that asks for the credential (`JobTokens.name`) finds a token at ``$_CONDOR_CREDS/NAME.use``, which is replaced
while the job runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_CONFIG = """\
DAEMON_LIST = $(DAEMON_LIST), CREDD, CREDMON_OAUTH
# As HTCondor 24 does: through the pool's one port. Before, all credds of a machine wanted port 9620.
CREDD_ARGS = -f
# A client that doesn't know the credd's address asks the collector for a credd with the schedd's name.
CREDD_HOST = $(SCHEDD_NAME)
SEC_CREDENTIAL_DIRECTORY_OAUTH = $(LOCAL_DIR)/credentials.d
# HTCondor 24.12 and newer: the credd asks the credmon by itself when a job is submitted.
LOCAL_CREDMON_PROVIDER_NAMES = {name}
# Seconds between two copies into a running job.
SEC_CREDENTIAL_REFRESH = {refresh}
# Programs of the job find the token, unless the job names another file itself.
JOB_TRANSFORM_NAMES = $(JOB_TRANSFORM_NAMES) JobTokens
JOB_TRANSFORM_JobTokens @=end
   REQUIREMENTS stringListMember("{name}", OAuthServicesNeeded)
   EVALSET Environment mergeEnvironment("BEARER_TOKEN_FILE=$$(CondorScratchDir)/.condor_creds/{name}.use", Environment)
@end

# HTCondor's master gives a program its name without the path, by which Python wouldn't find its packages.
CREDMON_OAUTH = /usr/bin/env
CREDMON_OAUTH_ARGS = "{arguments}"
"""


@dataclass(frozen=True, slots=True)
class JobTokens:
    """What the tokens of running jobs say, and who signs them."""

    #: `FacilityIssuer.iss`.
    issuer: str
    #: PEM file with the pool's own key; its public half belongs into `FacilityIssuer.extra_jwks`.
    key_file: Path
    #: Of the XCache.
    audience: Sequence[str]
    #: With ``{username}``.
    scopes: Sequence[str]
    #: Of the credential: ``use_oauth_services = casa``.
    name: str = "casa"
    #: Seconds.
    lifetime: int = 1200
    #: Seconds between two copies into a running job.
    refresh: int = 300

    def configuration(self) -> str:
        """The lines of the pool's configuration."""
        arguments = [sys.executable, "-m", "casa_hub.credmon", "--directory", "$(SEC_CREDENTIAL_DIRECTORY_OAUTH)"]
        arguments += ["--log", "$(LOG)/CredmonLog", "--name", self.name, "--key", str(self.key_file)]
        arguments += ["--issuer", self.issuer, "--lifetime", str(self.lifetime)]
        for option, values in (("--audience", self.audience), ("--scope", self.scopes)):
            for value in values:
                arguments += [option, value]
        return _CONFIG.format(
            name=self.name,
            refresh=self.refresh,
            # HTCondor's quoting of arguments (condor_submit(1), "arguments"), between double quotes.
            arguments=" ".join("'" + part.replace("'", "''").replace('"', '""') + "'" for part in arguments),
        )
