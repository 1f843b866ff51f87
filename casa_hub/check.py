"""`casa-hub check`: what is wrong with a hub's configuration, and which Dask secret isn't needed any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jupyterhub.crypto import CryptKeeper
from traitlets import TraitError

from casa_hub import operate
from casa_hub.authenticator import CasaOAuthenticator
from casa_hub.configured import configured_hub, trait_problem
from casa_hub.credentials.dask import Dask, parse_secrets
from casa_hub.errors import CasaError, ConfigurationError, Problem, Severity
from casa_hub.facility import Facility
from casa_hub.keys import BadKeyError
from casa_hub.startup import home_of, problems


def check(path: Path) -> int:
    """Print what is found. Exit code 0: sound, or warnings only; 1: an error.

    Raises:
        ConfigurationError: the file can't be read.
    """
    app = configured_hub(path)
    found, facility = _of_authenticator(app), None
    try:
        facility = Facility.in_settings(app.tornado_settings, app.config)
        found += [*problems(app, facility, home_of(app)), *facility.check_minters()]
    except TraitError as error:
        found.append(trait_problem(error))
    for problem in found:
        print(f"{problem.severity}: {problem}")
    for sentence in _dask_secrets(app, facility) if facility is not None else []:
        print(sentence)
    if not found:
        print("The configuration is sound.")
    return 1 if any(problem.severity is Severity.ERROR for problem in found) else 0


def _of_authenticator(app: Any) -> list[Problem]:
    """What would keep the hub's authenticator from starting."""
    cls = app.authenticator_class
    if not issubclass(cls, CasaOAuthenticator):
        return []
    try:
        CryptKeeper.instance(config=app.config)
        cls(config=app.config)  # without a parent, which is a hub that starts
    except ConfigurationError as error:
        return [Problem.of(error)]
    except TraitError as error:
        return [trait_problem(error)]
    return []


def _dask_secrets(app: Any, facility: Facility) -> list[str]:
    """Of several secrets, which are used by running servers."""
    dask = facility.minters.get("dask")
    if not isinstance(dask, Dask):
        return []
    try:
        newest, *older = parse_secrets(Path(dask.secret_file).read_bytes())
    except (OSError, BadKeyError):
        return []  # told by the minter's own check
    if not older:
        return []
    try:
        answer = operate.ask(operate.Hub.of(app), "GET", "status")
    except CasaError as error:
        return [f"Whether an older secret of {dask.secret_file} is still in use, the running hub must say. {error}"]
    used = answer["dask_secrets"]
    lines = [f"Dask secret {newest.id}: for new servers; in use by {used.get(newest.id, 0)}."]
    for secret in older:
        count = used.get(secret.id, 0)
        unsure = len(answer["unsure"]) + len(answer["unkept"])
        if count:
            verdict = f"in use by {count} running servers, it must stay"
        elif unsure:
            verdict = f"nobody knows whether one of {unsure} servers uses it (casa-hub status), it must stay"
        else:
            verdict = "in use by no running server, it may go"
        lines.append(f"Dask secret {secret.id}: {verdict}.")
    return lines
