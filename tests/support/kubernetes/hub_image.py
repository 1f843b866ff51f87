"""The image of a hub with casa_hub in, from a wheel of this source: the cached one and a small layer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.kubernetes import build
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.image import add_layer

NAME, TAG = "casa-hub.test/hub", "1"
_PROGRAM = "#!/usr/bin/env python3\nfrom casa_hub.cli import main\nraise SystemExit(main())\n"


def add_hub_image(cluster: Cluster, scratch: Path) -> None:
    """Build a wheel and bring the image to a cluster; `scratch` is an empty directory."""
    root = Path(__file__).parents[3]
    wheel = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(scratch)]
    subprocess.run(wheel, cwd=root, check=True, capture_output=True)
    (built,) = scratch.glob("casa_hub-*.whl")
    tree = scratch / "tree"
    install = ["pip", "install", "--quiet", "--offline", "--no-deps", "--target", str(tree / "opt/hub"), str(built)]
    subprocess.run([sys.executable, "-m", "uv", *install], check=True, capture_output=True)
    # As it is in the image; the package's own program would look for this machine's Python.
    (tree / "opt/hub/bin/casa-hub").write_text(_PROGRAM, encoding="ascii")
    archive = scratch / "hub-with-casa.tar"
    add_layer(f"{NAME}:{TAG}", build.directory() / "images" / "hub.tar", tree, archive)
    cluster.add_image(archive)
