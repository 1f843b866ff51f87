"""`casa-hub policy`, without a hub that runs."""

import json
from pathlib import Path

import pytest

from casa_hub.cli import main

RULES = [
    {"groups": ["/cms/*"], "limits": {"memory": "4G"}},
    {"groups": ["/atlas/*"], "profiles": ["small", "large"], "limits": {"cpu": 16}},
    {"groups": ["/closed"], "profiles": []},
]


def write(tmp_path: Path, rules: object = RULES) -> str:
    file = tmp_path / "jupyterhub_config.py"
    file.write_text(f"c.Policy.rules = {rules!r}\n")
    return str(file)


def test_the_command_says_what_somebody_gets_and_which_rule_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "--groups", "/cms/users, /atlas/users", "-f", write(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "profiles: small, large (rule atlas)",
        "limits.memory: at most 4G of memory (rule cms)",
        "limits.cpu: at most 16 CPUs (rule atlas)",
    ]
    assert main(["policy", "--groups", "/closed", "-f", write(tmp_path)]) == 0
    assert capsys.readouterr().out == "profiles: none (rule closed)\n"


def test_json_has_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "--groups", "/cms/users", "--json", "-f", write(tmp_path)]) == 0
    said = {"thing": "limits.memory", "value": "at most 4G of memory", "rule": "cms"}
    assert json.loads(capsys.readouterr().out) == [said]


def test_somebody_in_no_group_gets_what_is_for_everybody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "--groups", "", "-f", write(tmp_path)]) == 0
    assert "No rule says anything" in capsys.readouterr().out
    everybody = {"name": "all", "limits": {"servers": 2}}
    assert main(["policy", "--groups", "", "-f", write(tmp_path, [*RULES, everybody])]) == 0
    assert "limits.servers" in capsys.readouterr().out


def test_a_table_that_can_not_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "--groups", "/cms", "-f", write(tmp_path, [{"groups": []}])]) == 2
    assert "is empty, so the rule is for nobody" in capsys.readouterr().err


def test_a_user_s_groups_are_the_running_hub_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a way to ask it, nothing is guessed."""
    assert main(["policy", "alice", "-f", write(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no service has the scope custom:casa-hub:operate" in printed.err


@pytest.mark.parametrize("who", [[], ["alice", "--groups", "/cms"]])
def test_it_is_one_of_the_two_a_user_or_groups(tmp_path: Path, who: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["policy", *who, "-f", write(tmp_path)])
    assert ended.value.code == 2
