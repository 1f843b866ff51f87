"""Load a hub's configuration file into a JupyterHub application without starting it.

For `casa-hub check` and the operator's commands, which run beside the hub.
"""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from jupyterhub.app import JupyterHub
from traitlets import TraitError
from traitlets.config.loader import Config, JSONFileConfigLoader, PyFileConfigLoader

from casa_hub.errors import ConfigurationError, Problem, Severity
from casa_hub.unknown_keys import without_value


def configured_hub(path: Path) -> Any:
    """JupyterHub's application with the configuration of a file (Python or JSON); nothing is started.

    With Zero to JupyterHub it is ``/usr/local/etc/jupyterhub/jupyterhub_config.py`` in the hub's pod. The file is
    executed, so it needs the hub's environment.
    Raises ConfigurationError if the file is missing or fails, or if JupyterHub refuses its content.
    """
    app = JupyterHub(log_level="ERROR")
    config = _read(path)
    config.JupyterHub.pop("log_level", None)
    try:
        app.update_config(config)
        app.init_hub()
    except TraitError as error:
        raise ConfigurationError(str(path), without_value(error), "Correct it.") from None
    except Exception as error:  # noqa: BLE001 - JupyterHub raises anything; the text may hold the value
        problem = f"JupyterHub refuses a setting of section JupyterHub with {type(error).__name__}"
        raise ConfigurationError(str(path), problem, "Check its addresses (bind_url, hub_bind_url) and keys.") from None
    return app


def trait_problem(error: TraitError) -> Problem:
    """A TraitError as a problem, without the value."""
    return Problem(Severity.ERROR, "the configuration", without_value(error), "Correct it.")


def _named(error: Exception) -> str:
    """The name of the missing file or environment variable, in parentheses; such names hold no secret."""
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return f" ({error.filename!a})"
    if isinstance(error, KeyError) and error.args and re.fullmatch(r"[A-Z][A-Z0-9_]*", str(error.args[0])):
        return f" ({error.args[0]})"
    return ""


def _read(path: Path) -> Config:
    loader = JSONFileConfigLoader if path.suffix == ".json" else PyFileConfigLoader
    if not path.is_file():
        raise ConfigurationError(str(path), "does not exist", "Give the hub's configuration file with -f.")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the chart's own files print what they load
            return loader(path.name, path=str(path.resolve().parent)).load_config()
    except SystemExit:
        problem = "ends the program when it is run"
    except Exception as error:  # noqa: BLE001 - a configuration file can raise anything
        # Only type and line number: the error's text and the line itself may hold a secret.
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path.resolve())]
        line = (
            getattr(error, "lineno", None) if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
        )
        problem = f"fails with {type(error).__name__}{_named(error)}" + (f" in line {line}" if line else "")
    raise ConfigurationError(str(path), problem, "Run this command where the hub runs, in its environment.")
