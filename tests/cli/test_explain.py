"""Explanations, rules, schema and completion through the installed script."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from clair_cli.reasons import RULES, plain
from clair_cli.renderers.words import as_high
from clair_cli.report import Report, from_dict
from tests import ROOT
from tests.conftest import Detected
from tests.helpers.commands import CONTAMINATED, ENVIRONMENT, SCRIPT, clair, hooked, quick, samples

WORST = max(CONTAMINATED)


@pytest.fixture(scope="module")
def report(detected: Detected) -> Report:
    """What the report of the samples says."""
    return from_dict(json.loads(detected.json.read_text()))


# --- codes


@pytest.mark.parametrize("code", ["CLR203", "clr105", "CLR301"])
def test_a_code_is_explained_in_the_words_of_the_table(code: str, tmp_path: Path) -> None:
    rule = RULES[code.upper()]
    done = quick(tmp_path, "explain", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{rule.code} {rule.title}\n")
    for text in (rule.seen, rule.means, rule.do):
        assert plain(text) in done.stdout


def test_rules_have_every_code_in_text_and_in_json(tmp_path: Path) -> None:
    lines = quick(tmp_path, "rules").stdout.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [[r.code, r.severity] for r in RULES.values()]
    found = json.loads(quick(tmp_path, "rules", "-f", "json").stdout)["rules"]
    assert [r["code"] for r in found] == list(RULES)
    for one in found:
        rule = RULES[one["code"]]
        assert (one["do"], one["severity"], one["family"]) == (rule.do, rule.severity, rule.family)
    alone = json.loads(quick(tmp_path, "explain", "CLR203", "-f", "json").stdout)["rules"]
    assert alone == [r for r in found if r["code"] == "CLR203"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("CLR216",), "CLR216: there is no such code; did you mean CLR"),
        (("CLR999",), "CLR999: there is no such code; `clair rules` lists them\n"),
        (("client-06",), "client-06: is neither a reason code, such as CLR203, nor a saved report"),
        (("/no/such/report.json",), "cannot be read"),
        (("CLR203", "client-06"), "CLR203: is a reason code, which is explained alone"),
    ],
    ids=str,
)
def test_what_is_not_there_is_a_usage_error(
    args: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = quick(tmp_path, "explain", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


# --- clients


def test_a_client_is_explained_by_what_was_seen_how_rare_it_is_where_and_what_to_do(
    detected: Detected, report: Report, tmp_path: Path
) -> None:
    (client,) = [c for c in report.clients if c.client == WORST]
    assert client.rarity is not None
    done = quick(tmp_path, "explain", detected.json, WORST)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{WORST}: contaminated, score {client.score:.1f}, where 3.0 is")
    assert f"how rare: {as_high(client.rarity)}\n" in done.stdout
    assert len(client.reasons) > 2
    for reason in client.reasons:
        assert f"here: {reason.message}\n" in done.stdout
        assert f"to do: {plain(RULES[reason.code].do)}\n" in done.stdout
    worst = sorted(client.modules, key=lambda m: -m.score)[:5]
    table = done.stdout.partition("worst modules")[2].splitlines()[1:]
    assert [line.split()[0] for line in table] == [m.name for m in worst]


def test_a_copy_is_not_told_to_be_one_without_what_it_copies(tmp_path: Path) -> None:
    samples(tmp_path / "round")
    shutil.copytree(tmp_path / "round" / "client-08", tmp_path / "round" / "client-09")
    done = clair("detect", tmp_path / "round", "--explain", "client-09")
    stable = next(line for line in done.stdout.splitlines() if "how stable" in line)
    assert stable.endswith(
        "without any one of the others, but without what it is like it is no copy"
    )


def test_without_a_name_all_that_are_not_benign_are_explained(
    detected: Detected, tmp_path: Path
) -> None:
    text = quick(tmp_path, "explain", detected.json).stdout
    found: list[dict[str, Any]] = json.loads(
        quick(tmp_path, "explain", detected.json, "-f", "json").stdout
    )["clients"]
    assert {c["id"] for c in found} == CONTAMINATED
    for one in found:
        assert f"{one['id']}: {one['verdict']}, score" in text
        assert one["meaning"] in text
        assert [r["code"] for r in one["rules"]] == list(
            dict.fromkeys(r["code"] for r in one["reasons"])
        )


def test_a_name_that_is_not_there_gets_the_nearest(detected: Detected, tmp_path: Path) -> None:
    for command in (("explain", detected.json, "clinet-06"),):
        done = quick(tmp_path, *command)
        assert (done.returncode, done.stdout) == (2, "")
        assert (
            "there is no client 'clinet-06' in the report; did you mean client-06?" in done.stderr
        )


@pytest.mark.parametrize("command", ["detect", "report"])
def test_the_option_adds_the_explanation_and_changes_no_finding(
    command: str, detected: Detected, tmp_path: Path
) -> None:
    what = detected.folder if command == "detect" else detected.json
    whole = quick(tmp_path, "explain", detected.json, WORST).stdout
    done = quick(tmp_path, command, what, "--explain", WORST, "--explain", "clinet-01")
    assert done.returncode == 1
    assert done.stdout.endswith(f"FAIL: 2 contaminated\n\n{whole}")
    assert done.stderr == (
        "clair: --explain: there is no client 'clinet-01' in the report; did you mean client-01?\n"
    )
    alone = quick(tmp_path, command, what, "-q", "--explain", WORST)
    assert (alone.returncode, alone.stdout) == (1, f"\n{whole}")
    passing = ("--fail-on", "never", "-q", "--explain")
    assert quick(tmp_path, command, what, *passing, WORST).returncode == 0
    assert quick(tmp_path, command, what, *passing, "clinet-01").returncode == 2


@pytest.mark.parametrize("command", ["detect", "report"])
def test_beside_a_document_for_a_machine_the_option_is_refused(
    command: str, detected: Detected, tmp_path: Path
) -> None:
    what = detected.folder if command == "detect" else detected.json
    done = quick(tmp_path, command, what, "--explain", WORST, "-f", "json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--explain: is text, and stdout gets json" in done.stderr


# --- the schema


def test_the_schema_is_that_of_the_package_and_holds_for_a_report(
    detected: Detected, tmp_path: Path
) -> None:
    done = quick(tmp_path, "schema")
    assert done.stdout == (ROOT / "clair_cli" / "report.schema.json").read_text()
    schema = json.loads(done.stdout)
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(json.loads(detected.done.stdout))
    unknown = quick(tmp_path, "schema", "reprot")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "there is report" in unknown.stderr


# --- completion


def asked(shell: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return clair(env={"_CLAIR_COMPLETE": f"complete_{shell}", **variables})


def test_bash_completes_commands_options_and_values_with_the_printed_script() -> None:
    script = clair("completion", "bash").stdout
    lines = {
        "clair det": "detect",
        "clair refine --fai": "--fail-on",
        "clair detect --as w": "weights",
    }
    for typed, completed in lines.items():
        words = typed.split()
        ask = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _clair_completion '{SCRIPT}'"
        done = subprocess.run(
            ["bash", "-c", f'{script}\n{ask}; echo "${{COMPREPLY[@]}}"; complete -p clair'],
            env=ENVIRONMENT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[0] == completed
        assert done.stdout.splitlines()[1] == "complete -o default -F _clair_completion clair"


def test_zsh_and_fish_get_a_script_that_asks_this_very_program() -> None:
    for shell, typed in (("zsh", "clair ref"), ("fish", "clair ref")):
        script = clair("completion", shell)
        assert script.returncode == 0
        assert f"_CLAIR_COMPLETE=complete_{shell}" in script.stdout
        done = asked(shell, _TYPER_COMPLETE_ARGS=typed, _TYPER_COMPLETE_FISH_ACTION="get-args")
        assert (done.returncode, done.stderr) == (0, "")
        assert "refine" in done.stdout


def test_fish_is_told_by_the_exit_code_whether_there_is_anything_to_complete_with() -> None:
    codes = [
        asked("fish", _TYPER_COMPLETE_ARGS=typed, _TYPER_COMPLETE_FISH_ACTION="is-args").returncode
        for typed in ("clair ref", "clair nothing-begins-like-this")
    ]
    assert codes == [0, 1]


def test_a_shell_that_is_not_known_is_a_usage_error() -> None:
    assert clair("completion", "tcsh").returncode == 2


# --- none of them needs torch


@pytest.mark.parametrize(
    "args",
    [("explain", "CLR203"), ("explain", "{report}", WORST), ("rules",), ("schema",)]
    + [("completion", shell) for shell in ("bash", "zsh", "fish")],
    ids=" ".join,
)
def test_they_run_where_torch_cannot_be_loaded(
    args: tuple[str, ...], detected: Detected, tmp_path: Path
) -> None:
    env = hooked(tmp_path / "hook", "raise OSError('no torch')", "torch.py")
    done = clair(*(a.format(report=detected.json) for a in args), env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_completing_needs_no_torch(tmp_path: Path) -> None:
    env = hooked(tmp_path / "hook", "raise OSError('no torch')", "torch.py")
    done = asked("bash", COMP_WORDS="clair det", COMP_CWORD="1", **env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "detect\n", "")
