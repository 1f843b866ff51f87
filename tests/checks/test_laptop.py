"""`casa-hub check` from a laptop, before there is a hub and beside one: as docs/operations.md has it, word by word."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from casa_hub.delivery.kubernetes.manifests import HUB, HUB_NAMESPACE
from tests.checks.conftest import CLIENT_SECRET, Facility
from tests.docs.pages import ROOT, Block, blocks, commands
from tests.support.kubernetes.api import eventually
from tests.support.kubernetes.release import merged


def block(holds: str) -> Block:
    page = ROOT / "docs" / "operations.md"
    (found,) = [one for one in blocks() if one.page == page and holds in one.content]
    return found


@pytest.fixture
def laptop(facility: Facility) -> Iterator[Path]:
    """The directory of the page: values for this facility, the files of the two Secrets, and check.py."""
    facility.sound()
    directory = facility.directory
    values = yaml.safe_load((ROOT / "helm-values" / "cms.yaml").read_text())
    here: dict[str, Any] = {
        "CasaOAuthenticator": {"provider": "wlcg-iam", "issuer": facility.idp.issuer},
        "XCache": {"site_name": facility.xcache.site, "host": "127.0.0.1", "port": facility.xcache.port},
        "HTCondor": {
            "key_id": "POOL",
            "trust_domain": facility.pool.domain,
            "uid_domain": facility.pool.domain,
            "collector": facility.pool.address,
            "schedd": "schedd@localhost",
        },
        "Dask": {"domain": "sound.test"},
    }
    files = {
        "cms.yaml": yaml.safe_dump(merged(values, {"hub": {"config": here}})).encode(),
        "values.yaml": f"hub: {{config: {{CasaOAuthenticator: {{client_secret: {CLIENT_SECRET}}}}}}}\n".encode(),
        "xcache": facility.xcache.key_file.read_bytes(),
        "condor": facility.pool.key_file("POOL").read_bytes(),
        "check.py": block("c.CryptKeeper.keys").content.replace("NAMESPACE", facility.namespace).encode(),
    }
    for name, content in files.items():
        (directory / name).touch(mode=0o600)
        (directory / name).write_bytes(content)
    yield directory
    for name in files:
        (directory / name).unlink()


def test_values_are_checked_with_the_administrator_s_rights_and_with_the_hub_s(
    facility: Facility, laptop: Path
) -> None:
    def account() -> str:
        checked = facility.command("check", "-f", "check.py")
        # What every hub with these credentials is told of; see docs/reference.md.
        assert (checked.code, [one["thing"] for one in checked.bad]) == (0, ["Facility.bearer_token_file"]), checked
        assert not [text for text in facility.secrets() if text in checked.printed]
        looked = {one["check"] for one in checked.findings}
        assert looked == {"configuration", "issuer", "kubernetes", "traefik", "xcache", "htcondor"}
        (known,) = [one["problem"] for one in checked.findings if "knows this account" in one["problem"]]
        return known

    facility.use_account(facility.plane.kubeconfig.read_text())
    assert "serviceaccount" not in account()

    *lines, last = commands(block("kubectl config view"))
    assert last == "KUBECONFIG=kubeconfig casa-hub check -f check.py"
    (laptop / "bin").mkdir()
    (laptop / "bin" / "kubectl").symlink_to(facility.plane.program)
    script = "\n".join(lines).replace("NAMESPACE", facility.namespace).replace("> kubeconfig", "> of-the-hub")
    script = script.replace(
        "--kubeconfig kubeconfig", "--kubeconfig of-the-hub"
    )  # `kubeconfig` is the laptop's own here
    environment = {
        "PATH": f"{laptop}/bin:{os.environ['PATH']}",
        "HOME": str(laptop),
        "KUBECONFIG": str(laptop / "kubeconfig"),
    }
    subprocess.run(["bash", "-euc", script], cwd=laptop, env=environment, check=True, timeout=60)
    facility.use_account((laptop / "of-the-hub").read_text())
    assert account() == f"knows this account as system:serviceaccount:{facility.namespace}:hub"


def test_the_hub_s_own_servers_are_not_taken_for_another_hub_s(facility: Facility, laptop: Path) -> None:
    """The hub of the chart is where its servers are; it isn't `default`, and cms.yaml has no hub_id."""
    labels = {HUB: "", HUB_NAMESPACE: facility.namespace}
    route = {
        "apiVersion": "traefik.io/v1alpha1",
        "kind": "IngressRouteTCP",
        "metadata": {"name": "casa-ada", "labels": labels},
        "spec": {"routes": [{"match": "HostSNI(`ada.dask.sound.test`)"}]},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "jupyter-ada", "labels": labels},
        "spec": {"containers": [{"name": "notebook", "image": "none.test/x:1"}]},
    }
    paths = {
        f"/api/v1/namespaces/{facility.namespace}/pods": pod,
        f"/apis/traefik.io/v1alpha1/namespaces/{facility.namespace}/ingressroutetcps": route,
    }
    for path, body in paths.items():
        facility.plane.request("POST", path, body)
    checked = facility.command("check", "-f", str(laptop / "check.py"))
    for path, body in paths.items():
        where = f"{path}/{body['metadata']['name']}"
        facility.plane.request("DELETE", where)
        eventually(lambda where=where: facility.plane.gone(where))  # type: ignore[misc]
    assert (checked.code, [one["thing"] for one in checked.bad]) == (0, ["Facility.bearer_token_file"]), checked
