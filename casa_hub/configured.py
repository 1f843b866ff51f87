"""A hub as its configuration file has it, without starting it: for commands beside the hub that runs."""

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


def configured_hub(path: Path) -> Any:
    """JupyterHub's application with the configuration of a file (Python, or JSON), and nothing begun.

    Zero to JupyterHub's is ``/usr/local/etc/jupyterhub/jupyterhub_config.py`` in the hub's pod. The file is run, as
    the hub runs it, so it needs the hub's environment.

    Raises:
        ConfigurationError: it isn't there, or can't be run, or JupyterHub doesn't take it.
    """
    app = JupyterHub(log_level="ERROR")
    config = _read(path)
    config.JupyterHub.pop("log_level", None)
    try:
        app.update_config(config)
        app.init_hub()
    except TraitError as error:
        raise ConfigurationError(str(path), without_value(error), "Correct it.") from None
    except Exception as error:  # noqa: BLE001 - JupyterHub's, whose text may hold the value
        problem = f"JupyterHub refuses a setting of section JupyterHub with {type(error).__name__}"
        raise ConfigurationError(str(path), problem, "Check its addresses (bind_url, hub_bind_url) and keys.") from None
    return app


def without_value(error: TraitError) -> str:
    """What traitlets says before ", not" and the value, which may be a secret."""
    return str(error).split(", not ")[0].split(", but ")[0].rstrip(".")


def trait_problem(error: TraitError) -> Problem:
    return Problem(Severity.ERROR, "the configuration", without_value(error), "Correct it.")


def _named(error: Exception) -> str:
    """Which file, or variable of the environment, isn't there: names that hold no secret."""
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return f" ({error.filename!a})"
    if isinstance(error, KeyError) and error.args and re.fullmatch(r"[A-Z][A-Z0-9_]*", str(error.args[0])):
        return f" ({error.args[0]})"
    return ""


def _read(path: Path) -> Config:
    loader = JSONFileConfigLoader if path.suffix == ".json" else PyFileConfigLoader
    if not path.is_file():
        raise ConfigurationError(str(path), "there is no such file", "Give the hub's configuration file with -f.")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the chart's own files print what they load
            return loader(path.name, path=str(path.resolve().parent)).load_config()
    except SystemExit:
        problem = "it ends the program when it is run"
    except Exception as error:  # noqa: BLE001 - whatever is in there
        # Type and place: its text, and the line, may hold a secret.
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path.resolve())]
        line = (
            getattr(error, "lineno", None) if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
        )
        problem = f"it fails with {type(error).__name__}{_named(error)}" + (f" in line {line}" if line else "")
    raise ConfigurationError(str(path), problem, "Run this command where the hub runs, in its environment.")
