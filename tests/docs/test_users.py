"""docs/users.md, "Connect from a laptop", with a real scheduler; without Traefik, which tests/peers has in the way."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from traitlets.config import Config

from casa_hub.credentials.base import Request
from casa_hub.credentials.dask import Dask
from casa_hub.demo.processes import Process, minimal_environment, read_log
from casa_hub.loopback import free_port
from casa_hub.naming import Server
from casa_hub.web.bundle import Bundle
from tests.docs.pages import ROOT, blocks, commands

PAGE = ROOT / "docs" / "users.md"
#: A server whose image has no `dask` on its path: the trial's.
TRIAL = ROOT / "docs" / "getting-started.md"


def secrets(directory: Path, start_id: str) -> Path:
    """A server's files, of one start."""
    directory.mkdir()
    key = directory.parent / f"{directory.name}.secret"
    key.write_text("c2VjcmV0" * 8 + "\n")
    config = Config({"Dask": {"secret_file": str(key), "domain": "example.org"}})
    request = Request(Server("", "alice"), start_id, datetime.now(UTC))
    for name, content in Dask(config=config).mint(request).files.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture(params=[PAGE, TRIAL], ids=lambda page: page.stem)
def port(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """That of a scheduler which the page's command started."""
    (command,) = [
        command
        for block in blocks()
        if block.page == request.param
        for command in commands(block)
        if "dask scheduler" in command
    ]
    files, port, log = secrets(tmp_path / "server", "0" * 32), free_port(request), tmp_path / "log"
    command = command.replace("--port 8786", f"--port {port} --host 127.0.0.1 --no-dashboard")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = minimal_environment(PATH=path, CERT_DIR=str(files))
    scheduler = Process("dask", ["bash", "-c", f"exec {command}"], log=log, env=environment, cwd=tmp_path)
    scheduler.start()
    try:
        scheduler.wait_until("its log says where it is", lambda: "Scheduler at:" in read_log(log), 90)
        yield port
    finally:
        scheduler.stop()


def connect(port: int, files: Path) -> subprocess.CompletedProcess[str]:
    """Run the page's Python where the bundle with these files is."""
    certificates = {name: (files / name).read_bytes() for name in ("ca.pem", "usercert.pem")}
    bundle = Bundle("alice", f"tls://127.0.0.1:{port}", certificates, datetime.now(UTC), None)
    laptop = files.parent / "laptop"
    with zipfile.ZipFile(io.BytesIO(bundle.archive())) as archive:
        archive.extractall(laptop)
    (block,) = [block for block in blocks() if block.page == PAGE and "client = connect()" in block.content]
    program = block.content.replace("connect()", "connect(timeout='60s')")
    program += "\nprint(client.scheduler_info()['type'])\nclient.close()\n"
    return subprocess.run([sys.executable, "-c", program], cwd=laptop, capture_output=True, text=True, timeout=120)


def test_a_laptop_connects_as_the_page_says(port: int, tmp_path: Path) -> None:
    done = connect(port, tmp_path / "server")
    assert done.stdout == "Scheduler\n", done.stderr


def test_with_files_of_another_start_it_says_what_the_page_says(port: int, tmp_path: Path) -> None:
    done = connect(port, secrets(tmp_path / "before", "1" * 32))
    assert done.returncode != 0
    assert "certificate verify failed" in done.stderr
