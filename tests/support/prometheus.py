"""A real Prometheus of Debian's package, and its promtool; the metrics of a hub, and what queries ask for."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import requests
import yaml

from casa_hub.demo.packages import Programs, unpack
from casa_hub.demo.processes import Process, minimal_environment
from casa_hub.loopback import free_port

FILES = Path(__file__).parents[2] / "helm-values" / "monitoring"
RULES = FILES / "casa-hub-rules.yaml"
DASHBOARD = FILES / "casa-hub-dashboard.json"


def programs() -> Programs:
    """Raises Unavailable as `unpack` does."""
    return unpack(["prometheus"])


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool. Raises Unavailable as `unpack` does."""
    command = [programs().program("promtool"), *arguments]
    return subprocess.run(command, env=minimal_environment(), capture_output=True, text=True, timeout=120)


def rules() -> dict[str, dict[str, Any]]:
    """The alerts of the rules file, by their names."""
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    found = {rule["alert"]: rule for rule in group["rules"]}
    assert len(found) == len(group["rules"]), "two have the same name"
    return found


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return content


def panel_queries() -> dict[str, str]:
    """Title of the panel and reference of the query -> query, with Grafana's variables in it."""
    return {
        f"{panel['title']}, {target['refId']}": target["expr"]
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    }


def filled_in(query: str) -> str:
    """A panel's query as Grafana sends it, with all hubs chosen."""
    return query.replace("$hub", ".*").replace("$__rate_interval", "10s")


_SELECTOR = re.compile(r"\b((?:casa_hub|jupyterhub)_\w+)\s*(\{[^}]*\})?")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


@dataclass(frozen=True)
class Selector:
    """A metric's name and the condition on its labels, as in a query."""

    name: str
    #: With its braces; "" if there is none.
    condition: str

    def __str__(self) -> str:
        return self.name + self.condition

    @property
    def labels(self) -> set[str]:
        return set(_LABEL.findall(self.condition))


def selectors(query: str) -> list[Selector]:
    """All that a query asks for. A handler's name, which begins like a metric, stands in a condition."""
    found = _SELECTOR.findall(query)
    return [Selector(name, re.sub(r"\s+", " ", condition).strip()) for name, condition in found]


def series(text: str) -> dict[str, set[str]]:
    """Of metrics as a hub serves them: name of each series -> names of its labels."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"(\w+)(?:\{(.*)\})? \S+$", line):
            found.setdefault(match[1], set()).update(re.findall(r'(\w+)="', match[2] or ""))
    return found


@dataclass(frozen=True)
class Target:
    """What Prometheus reads."""

    #: Of the server, without a path.
    url: str
    #: None to ask without one.
    token: str | None


class Prometheus:
    """One server on loopback that reads its targets each second; a context manager."""

    def __init__(self, directory: Path, targets: Mapping[str, Target], *, rules: Iterable[Path] = ()) -> None:
        """Args:
        directory: for its configuration, data and log; made if need be.
        targets: by the name of their job.
        rules: files of rules, evaluated each second.

        Raises:
            Unavailable: as `unpack`.
        """
        program = programs().program("prometheus")
        self.url = f"http://127.0.0.1:{free_port(self)}"
        directory.mkdir(parents=True, exist_ok=True)
        jobs = [
            {
                "job_name": name,
                "metrics_path": "/hub/metrics",
                "static_configs": [
                    {"targets": [target.url.removeprefix("http://")], "labels": {"namespace": "facility"}}
                ],
                **({} if target.token is None else {"authorization": {"credentials": target.token}}),
            }
            for name, target in targets.items()
        ]
        configuration = directory / "prometheus.yml"
        configuration.touch(mode=0o600)
        configuration.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(path) for path in rules],
                    "scrape_configs": jobs,
                }
            )
        )
        self.process = Process(
            "Prometheus",
            [
                program,
                f"--config.file={configuration}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--log.level=warn",
            ],
            log=directory / "log",
            env=minimal_environment(),
            cwd=directory,
        )

    def start(self) -> Self:
        self.process.start()
        self.process.wait_until("ready", self._ready)
        return self

    def _ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/-/ready", timeout=5).ok
        except requests.ConnectionError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API; fails with what it says if it refuses."""
        answer = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]

    def query(self, query: str) -> list[dict[str, Any]]:
        """The samples that a query finds now."""
        found: list[dict[str, Any]] = self.ask("query", query=query)["result"]
        return found

    def rules(self) -> dict[str, dict[str, Any]]:
        """Its rules as it sees them, by their names."""
        return {rule["name"]: rule for group in self.ask("rules")["groups"] for rule in group["rules"]}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.process.stop()
