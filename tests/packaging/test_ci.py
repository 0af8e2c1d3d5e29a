"""The action, the GitLab template and the hook: well-formed, and their shell run with the real clair."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.helpers.commands import CLIENTS, CONTAMINATED, ENVIRONMENT, SCRIPT, samples

yaml = pytest.importorskip("yaml")
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
GITLAB: dict[str, Any] = yaml.safe_load((ROOT / "templates" / "clair.gitlab-ci.yml").read_text())
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
BENIGN = tuple(client for client in CLIENTS if client not in CONTAMINATED)
PLACE = re.compile(r"\$\{\{ (.+?) \}\}")
PATH = f"{SCRIPT.parent}{os.pathsep}{ENVIRONMENT['PATH']}"


def tool(name: str) -> str:
    """A linter beside this Python; the test is skipped without it."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def bash(script: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script as a runner starts it."""
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    env = ENVIRONMENT | {"PATH": PATH} | environment
    return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)


def outputs(file: Path) -> dict[str, str]:
    """What steps wrote to GITHUB_OUTPUT."""
    lines = file.read_text().splitlines() if file.exists() else []
    return dict(line.split("=", 1) for line in lines)


def filled(text: str, known: dict[str, str]) -> str:
    """A text with what its expressions stand for."""
    return PLACE.sub(lambda match: known.get(match[1], ""), text)


def act(home: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run the action's own steps but for the installation; the last one's end is the job's."""
    given = {n.replace("-", "_"): str(i.get("default", "")) for n, i in ACTION["inputs"].items()}
    values = {f"inputs.{n.replace('_', '-')}": v for n, v in (given | inputs).items()}
    values["github.action_path"] = str(ROOT)
    files = {n: str(home / n) for n in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    done = None
    for step in STEPS:
        if "run" not in step or step["id"] == "install":
            continue
        results = {
            f"steps.result.outputs.{n}": v for n, v in outputs(home / "GITHUB_OUTPUT").items()
        }
        known = values | results
        env = {name: filled(text, known) for name, text in step.get("env", {}).items()}
        done = bash(step["run"], home, **files, **env)
        if done.returncode and step["id"] != "gate":
            raise AssertionError(f"{step['id']}: {done.stdout}{done.stderr}")
    assert done is not None
    return done


def page_of(path: Path) -> int:
    """How many clients the page has a card of."""
    page = path.read_text()
    assert page.startswith("<!DOCTYPE html>")
    return page.count('class="card" data-verdict')


@pytest.mark.parametrize(
    ("clients", "options", "code"),
    [(CLIENTS, {}, 1), (CLIENTS, {"fail_on": "never"}, 0), (BENIGN, {"options": "-v -q"}, 0)],
    ids=["contaminated", "no gate", "benign"],
)
def test_the_action_says_what_clair_said(
    clients: tuple[str, ...], options: dict[str, str], code: int, tmp_path: Path
) -> None:
    samples(tmp_path / "adapters", clients)
    done = act(tmp_path, adapters="adapters", **options)
    assert done.returncode == code
    told = outputs(tmp_path / "GITHUB_OUTPUT")
    assert told["exit-code"] == str(code)
    assert told["contaminated"] == str(len(CONTAMINATED & set(clients)))
    assert told["clients"] == str(len(clients))
    assert set(ACTION["outputs"]) <= told.keys()
    assert (tmp_path / told["report"]).is_file()
    assert (tmp_path / told["sarif"]).is_file()
    assert page_of(tmp_path / told["page"]) == len(clients)
    assert (tmp_path / "GITHUB_STEP_SUMMARY").stat().st_size > 100


def test_options_of_the_action_run_nothing(tmp_path: Path) -> None:
    samples(tmp_path / "adapters", BENIGN)
    act(tmp_path, adapters="adapters", options="--ignore $(touch${IFS}bad);touch bad")
    assert not (tmp_path / "bad").exists()
    assert outputs(tmp_path / "GITHUB_OUTPUT")["exit-code"] == "2"


def test_a_folder_that_is_missing_fails_the_job(tmp_path: Path) -> None:
    assert act(tmp_path, adapters="absent").returncode == 2
    assert "page" not in outputs(tmp_path / "GITHUB_OUTPUT")


def test_no_script_of_the_action_holds_an_expression_and_what_it_uses_is_pinned() -> None:
    assert [step["id"] for step in STEPS if "${{" in step.get("run", "")] == []
    used = [step["uses"] for step in STEPS if "uses" in step]
    assert len(used) == 5
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name) for name in used)
    (upload,) = [step for step in STEPS if "upload-sarif" in step.get("uses", "")]
    (keep,) = [step for step in STEPS if "upload-artifact" in step.get("uses", "")]
    assert upload["if"].startswith("always()")
    assert keep["if"].startswith("always()")
    assert "steps.result.outputs.page" in keep["with"]["path"]


def test_the_cache_key_changes_with_adapters_and_settings_only(tmp_path: Path) -> None:
    def key(settings: str) -> str:
        command = [sys.executable, "-I", ROOT / "action" / "key.py", folder, settings]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    folder = samples(tmp_path / "adapters", BENIGN[:3])
    first = key("never")
    assert re.fullmatch(r"key=clair-[\w.]+-[0-9a-f]{64}\n", first)
    assert key("never") == first != key("broken")
    config = folder / BENIGN[0] / "adapter_config.json"
    config.write_bytes(config.read_bytes() + b" ")
    assert key("never") != first


def test_the_cache_key_changes_with_what_is_remembered(tmp_path: Path) -> None:
    def key(settings: str = "never", day: str = "2027, 3, 1", **env: str) -> str:
        code = (
            "import datetime, runpy, sys\n"
            "class Day(datetime.datetime):\n"
            f"    now = classmethod(lambda c, tz: datetime.datetime({day}))\n"
            "datetime.datetime = Day\n"
            f"sys.argv[1:] = {[str(folder), settings]!r}\n"
            f"runpy.run_path({str(ROOT / 'action' / 'key.py')!r}, run_name='__main__')\n"
        )
        command = [sys.executable, "-I", "-c", code]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CLAIR_")} | env
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=place, env=clean
        )
        return done.stdout

    folder, place = samples(tmp_path / "adapters", BENIGN[:3]), tmp_path / "place"
    place.mkdir()
    (place / "pyproject.toml").write_text("[tool.other]\n")
    first = key()
    assert key(day="2027, 3, 2") == first
    keys = {first, key(CLAIR_FAIL_ON="broken"), key(CLAIR_FAIL_ON="never")}
    (place / "old.json").write_text("{}")
    keys |= {key("never --baseline=old.json")}
    (place / "old.json").write_text("{ }")
    keys |= {key("never --baseline old.json"), key("never --baseline=old.json")}
    (tmp_path / "clair.toml").write_text("verbose = 1\n")
    keys |= {key(), key(day="2027, 3, 2")}
    (place / "pyproject.toml").write_text("[tool.clair]\n")
    keys |= {key()}
    assert len(keys) == 9


def test_the_gitlab_job_writes_the_reports_that_it_declares(tmp_path: Path) -> None:
    samples(tmp_path / "adapters")
    job = GITLAB["clair"]
    done = bash("\n".join(job["script"]), tmp_path, **job["variables"])
    assert done.returncode == 1, done.stderr
    for report in job["artifacts"]["reports"].values():
        assert (tmp_path / report).stat().st_size > 100
    assert page_of(tmp_path / "clair-report" / "clair.html") == len(CLIENTS)
    assert job["artifacts"]["paths"] == ["clair-report/"]
    assert job["artifacts"]["when"] == "always"


LINTS = {
    "action": ("check-jsonschema", "--builtin-schema", "vendor.github-actions", "action.yml"),
    "gitlab": ("check-jsonschema", "--builtin-schema", "vendor.gitlab-ci",
               "templates/clair.gitlab-ci.yml"),
    "citation": ("check-jsonschema", "--builtin-schema", "vendor.citation-file-format",
                 "CITATION.cff"),
    "yaml": ("yamllint", "--strict", "action.yml", "templates", ".pre-commit-hooks.yaml",
             "CITATION.cff"),
    "image": ("hadolint", "Dockerfile"),
    "hook": ("pre-commit", "validate-manifest", ".pre-commit-hooks.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("lint", LINTS)
def test_the_linter_of_each_kind_of_file_says_nothing(lint: str) -> None:
    name, *arguments = LINTS[lint]
    done = subprocess.run(
        [tool(name), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_shellcheck_finds_nothing_in_the_scripts(tmp_path: Path) -> None:
    scripts = [step["run"] for step in STEPS if "run" in step]
    scripts += ["\n".join(GITLAB["clair"][part]) for part in ("before_script", "script")]
    assert len(scripts) >= 6
    for script in scripts:
        (tmp_path / "script.sh").write_text(f"#!/bin/bash\n{script}\n")
        command = [tool("shellcheck"), str(tmp_path / "script.sh")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_pre_commit_runs_the_hook(tmp_path: Path) -> None:
    """With the clair of this environment in place of one that it would install."""
    program = tool("pre-commit")
    hooks, home = tmp_path / "hooks", tmp_path / "home"
    hooks.mkdir()
    text = (ROOT / ".pre-commit-hooks.yaml").read_text()
    (hooks / ".pre-commit-hooks.yaml").write_text(
        text.replace("language: python", "language: system")
    )
    samples(home / "adapters")
    for folder in (hooks, home):
        quiet = ("-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-qm", "all")
        for command in (("init", "-q"), ("add", "-A"), quiet):
            subprocess.run(["git", *command], cwd=folder, check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=hooks, text=True).strip()
    config = {"repo": str(hooks), "rev": commit}
    config["hooks"] = [{"id": "clair-detect", "args": ["adapters", "-q"]}]  # type: ignore[assignment]
    (home / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [config]}))
    env = ENVIRONMENT | {"PATH": PATH, "PRE_COMMIT_HOME": str(tmp_path / "cache")}
    run = [program, "run", "--all-files"]
    done = subprocess.run(run, cwd=home, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, "exit code: 1" in done.stdout) == (1, True), done.stdout + done.stderr
    for client in CONTAMINATED:
        shutil.rmtree(home / "adapters" / client)
    subprocess.run(["git", "add", "-A"], cwd=home, check=True)
    done = subprocess.run(run, cwd=home, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, "Passed" in done.stdout) == (0, True), done.stdout + done.stderr
