"""`clair select`: the user's command decides per client, and nothing it does or prints is trusted."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from clair_cli.output import publish
from tests import ROOT
from tests.helpers.commands import clair

SAMPLES = ROOT / "sample_adapters"
BENIGN = {f"client-{n:02d}" for n in (1, 2, 4, 5, 7, 8)}
LOSS = """
import sys
strength = sys.argv[1].split("strength-")[1].split("/")[0]
print("loss", {"0": 3, "0.5": 1, "1": 2}[strength])
"""


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("select") / "candidates"
    done = clair("refine", SAMPLES, "--out", out, "--path", "0,0.5,1", "-q")
    assert done.returncode == 0, done.stderr
    return out


def command(code: str, folder: Path, *more: str) -> str:
    """A command that runs `code` with the adapter's folder as its argument."""
    script = folder / "score.py"
    script.write_text(code)
    return " ".join([sys.executable, str(script), "{adapter}", *more])


def chosen(stdout: str) -> dict[str, str | None]:
    return {c["id"]: c["chosen"] for c in json.loads(stdout)["clients"]}


def test_the_lowest_loss_wins_for_every_client(candidates: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = clair(
        "select", candidates, "--eval", command(LOSS, tmp_path), "--out", out, "-f", "json"
    )
    assert done.returncode == 0, done.stderr
    assert chosen(done.stdout) == {c: f"strength-0.5/{c}" for c in BENIGN}
    assert {p.name for p in out.iterdir() if p.is_dir()} == BENIGN
    assert publish.verify(out) == []
    for client in BENIGN:
        for file in (candidates / "strength-0.5" / client).iterdir():
            assert (out / client / file.name).read_bytes() == file.read_bytes()
    assert json.loads((out / "selection.json").read_text()) == json.loads(done.stdout)


def test_the_highest_accuracy_wins_when_asked(candidates: Path, tmp_path: Path) -> None:
    words = ("--eval", command(LOSS, tmp_path), "--higher-is-better", "-f", "json")
    assert set(chosen(clair("select", candidates, *words).stdout).values()) == {
        f"strength-0/{c}" for c in BENIGN
    }


def test_of_equal_scores_the_one_nearest_to_the_local_adapter_wins(
    candidates: Path, tmp_path: Path
) -> None:
    done = clair("select", candidates, "--eval", command("print(1)", tmp_path), "-f", "json")
    assert {str(p).split("/")[0] for p in chosen(done.stdout).values()} == {"strength-0"}


def test_the_client_is_named_to_the_command(candidates: Path, tmp_path: Path) -> None:
    code = "import sys; assert sys.argv[1].endswith('/' + sys.argv[2]); print(0)"
    done = clair("select", candidates, "--eval", command(code, tmp_path, "{client}"))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; print(1); sys.exit('no data')", "exit code 1: no data"),
        ("print('nan')", "expected a finite number"),
        ("print('inf')", "expected a finite number"),
        ("print()", "expected a finite number"),
        ("print('fine, thanks')", "expected a finite number"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit code -9"),
    ],
)
def test_a_command_that_fails_makes_no_choice(
    code: str, why: str, candidates: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--eval", command(code, tmp_path), "--out", out, "-f", "json")
    done = clair("select", candidates, *words)
    assert done.returncode == 3
    tried = [t for c in json.loads(done.stdout)["clients"] for t in c["candidates"]]
    assert len(tried) == 3 * len(BENIGN)
    assert all(t["score"] is None and why in t["error"] for t in tried)
    assert not out.exists()


def test_one_client_without_a_choice_is_a_finding(candidates: Path, tmp_path: Path) -> None:
    code = "import sys; print(1 if 'client-04' not in sys.argv[1] else 'x')"
    out = tmp_path / "out"
    done = clair("select", candidates, "--eval", command(code, tmp_path), "--out", out)
    assert done.returncode == 1
    assert "5 of 6 clients have a choice" in done.stdout
    assert {p.name for p in out.iterdir() if p.is_dir()} == BENIGN - {"client-04"}


def test_a_command_that_hangs_is_ended_with_its_children(candidates: Path, tmp_path: Path) -> None:
    late = tmp_path / "late"
    child = f"import time; time.sleep(4); open({str(late)!r}, 'w')"
    code = (
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "time.sleep(60)\n"
    )
    small = tmp_path / "one"
    done = clair("refine", SAMPLES, "--out", small, "--path", "0.5", "-q")
    assert done.returncode == 0, done.stderr
    began = time.monotonic()
    done = clair("select", small, "--eval", command(code, tmp_path), "--timeout", "0.5")
    assert done.returncode == 3
    assert "took more than 0.5 s" in done.stdout
    assert time.monotonic() - began < 40
    time.sleep(5)
    assert not late.exists()


def test_a_flood_of_output_is_bounded(candidates: Path, tmp_path: Path) -> None:
    code = "import sys\nfor _ in range(2000): sys.stdout.write('x' * 10000)\nprint(); print(0.5)"
    done = clair("select", candidates, "--eval", command(code, tmp_path), "-f", "json")
    assert done.returncode == 0
    assert len(done.stdout) < 100_000


def test_no_shell_reads_the_command(candidates: Path, tmp_path: Path) -> None:
    words = ("--eval", f"{command(LOSS, tmp_path)} $(touch {tmp_path / 'made'})")
    assert clair("select", candidates, *words).returncode == 0
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("tail", ["&& echo 1", "| tail -1", "; echo 1", "2>/dev/null", "> loss"])
def test_what_only_a_shell_understands_is_refused(
    tail: str, candidates: Path, tmp_path: Path
) -> None:
    done = clair("select", candidates, "--eval", f"{command(LOSS, tmp_path)} {tail}")
    assert done.returncode == 2
    assert "no shell runs the command" in done.stderr
    done = clair("select", candidates, "--eval", f"SEED=1 {command(LOSS, tmp_path)}")
    assert "no shell runs the command" in done.stderr


def test_an_output_without_a_path_has_nothing_to_choose_from(tmp_path: Path) -> None:
    assert clair("refine", SAMPLES, "--out", tmp_path / "out", "-q").returncode == 0
    done = clair("select", tmp_path / "out", "--eval", "echo {adapter} 1")
    assert done.returncode == 2
    assert "clair refine --path" in done.stderr


def test_one_way_to_fail_is_said_once_and_who_has_nothing_is_named(
    candidates: Path, tmp_path: Path
) -> None:
    code = "import sys; sys.exit('no data' if 'client-04' in sys.argv[1] else print(1))"
    done = clair("select", candidates, "--eval", command(code, tmp_path))
    assert done.returncode == 1
    assert "failed 3 times: exit code 1: no data" in done.stdout
    assert "without: client-04; they get no adapter" in done.stdout


@pytest.mark.parametrize("evaluate", ["python score.py", "", "'", "no-such-program {adapter}"])
def test_a_command_that_cannot_run_is_a_usage_error(evaluate: str, candidates: Path) -> None:
    assert clair("select", candidates, "--eval", evaluate).returncode == 2


def test_only_a_whole_output_of_clair_is_chosen_from(candidates: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(candidates, copy)
    (copy / "strength-0" / "client-01" / "more").write_text("x")
    done = clair("select", copy, "--eval", command(LOSS, tmp_path))
    assert done.returncode == 2
    assert "not in the manifest" in done.stderr
    assert clair("select", SAMPLES, "--eval", command(LOSS, tmp_path)).returncode == 2


def test_a_command_that_changes_a_candidate_is_found_out(candidates: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(candidates, copy)
    code = "import sys; open(sys.argv[1] + '/adapter_config.json', 'a').write(' '); print(1)"
    done = clair("select", copy, "--eval", command(code, tmp_path), "--out", out)
    assert done.returncode == 2
    assert "the command changed it" in done.stderr
    assert not out.exists()
