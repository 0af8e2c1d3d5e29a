"""`clair select`: the user's command decides per client, and nothing it does or prints is trusted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clair_cli.output import publish
from tests import ROOT
from tests.helpers.cohorts import save_cohort
from tests.helpers.commands import SCRIPT, clair

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


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Candidates of one strength, of clients whose names are shell code, options, or clair's own."""
    folder = tmp_path_factory.mktemp("hostile")
    save_cohort(folder / "in", len(NAMED))
    for number, name in enumerate(NAMED, start=1):
        (folder / "in" / f"client-{number}").rename(folder / "in" / name)
    done = clair("refine", folder / "in", "--out", folder / "out", "--path", "0.5", "-q")
    assert done.returncode == 0, done.stderr
    return folder / "out"


NAMED = ('"; touch pwned; "', "$(touch pwned)", "-n", "manifest.json", "selection.json")


def test_no_name_is_run_and_a_client_called_as_clairs_own_files_gets_its_adapter(
    hostile: Path, tmp_path: Path
) -> None:
    right = ('sh -c \'echo "$1" "$CLAIR_CLIENT" >> said; echo 1\' sh {adapter}', 0)
    for command, code in [right, ("sh -c 'echo 1 {client}' x {adapter}", 2)]:
        out = tmp_path / f"out-{code}"
        done = clair("select", hostile, "--eval", command, "--out", out, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert not (tmp_path / "pwned").exists()
        assert ("$CLAIR_CLIENT" in done.stderr) == bool(code)
    said = (tmp_path / "said").read_text().splitlines()
    assert {s.split(" ", 1)[1] for s in said} == set(NAMED)
    assert all(s.startswith("/") for s in said)
    out = tmp_path / "out-0"
    assert json.loads((out / "selection.json").read_text())["clients"]
    assert len([p for p in out.iterdir() if p.is_dir()]) == len(NAMED)
    assert publish.verify(out) == []


def test_a_name_like_an_option_costs_nobody_else_a_choice(hostile: Path) -> None:
    done = clair("select", hostile, "--eval", "echo {adapter} {client} 1", "-f", "json")
    assert done.returncode == 1
    assert [c for c, path in chosen(done.stdout).items() if path is None] == ["-n"]


def test_jobs_change_the_time_and_nothing_else(candidates: Path, tmp_path: Path) -> None:
    slow = "import time; time.sleep(1.0)" + LOSS
    said, took = [], []
    for jobs in (1, 9):
        began = time.monotonic()
        words = ("--eval", command(slow, tmp_path), "--jobs", jobs, "-f", "json")
        said.append(clair("select", candidates, *words).stdout)
        took.append(time.monotonic() - began)
    assert said[0] == said[1]
    assert took[1] < 0.7 * took[0]


def test_what_was_scored_is_not_run_again_unless_it_has_changed(
    candidates: Path, tmp_path: Path
) -> None:
    copy, scores, runs = tmp_path / "copy", tmp_path / "scores.json", tmp_path / "runs"
    shutil.copytree(candidates, copy)
    count = f"open({str(runs)!r}, 'a').write('x')" + LOSS
    fails = count + "\nif 'client-08' in sys.argv[1]: sys.exit(1)"

    def run(code: str) -> tuple[str, int]:
        runs.write_text("")
        words = ("--eval", command(code, tmp_path), "--resume", scores, "-f", "json")
        done = clair("select", copy, *words)
        return done.stdout, len(runs.read_text())

    once = run(count)
    assert once[1] == 3 * len(BENIGN)
    assert run(count) == (once[0], 0)
    assert run(fails)[1] == 3 * len(BENIGN)  # another script
    assert run(fails)[1] == 3  # what failed may work now
    weights = copy / "strength-0" / "client-01" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    manifest = copy / "manifest.json"
    manifest.unlink()
    publish.write_manifest(copy, "0")
    assert run(count)[1] == 1


KEPT = (
    '{"kind": "clair scores", "scores": [{"client": "a", "path": "b", "digest": "c", "score": 1}]}'
)


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        ('{"kind": "clair scores", "scores": [{"client": 1}]}', "scores[0].client"),
        ('{"kind": "other", "scores": []}', "kind"),
        (KEPT, "scores[0].digest"),
        ("[]", "JSON object"),
        ("", "invalid JSON"),
    ],
)  # fmt: skip
def test_a_file_of_scores_is_parsed_not_trusted(
    spoiled: str, why: str, candidates: Path, tmp_path: Path
) -> None:
    (tmp_path / "scores.json").write_text(spoiled)
    done = clair(
        "select", candidates, "--eval", "echo {adapter} 1", "--resume", tmp_path / "scores.json"
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert why in done.stderr


def test_an_interrupt_ends_every_command_and_keeps_the_scores(
    candidates: Path, tmp_path: Path
) -> None:
    late, scores = tmp_path / "late", tmp_path / "scores.json"
    code = "import sys, time\nif 'strength-0/' in sys.argv[1]: print(1); sys.exit()\n"
    code += f"time.sleep(6); open({str(late)!r}, 'a')"
    words = ("--eval", command(code, tmp_path), "--resume", scores, "--jobs", "8")
    child = subprocess.Popen([str(SCRIPT), "select", str(candidates), *map(str, words)])
    while not scores.exists():
        time.sleep(0.1)
    time.sleep(1)
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 143
    assert time.monotonic() - began < 2
    time.sleep(6)
    assert not late.exists()
    assert json.loads(scores.read_text())["scores"]


def test_a_pipe_is_no_place_for_scores(candidates: Path, tmp_path: Path) -> None:
    """Nobody may ever write into it: it is refused before anything is run, and not waited for."""
    pipe, ran = tmp_path / "scores.json", tmp_path / "ran"
    os.mkfifo(pipe)
    done = clair("select", candidates, "--eval", f"touch {ran} {{adapter}}", "--resume", pipe)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"--resume {str(pipe)!r}: not a regular file" in done.stderr
    assert not ran.exists()


def test_silence_says_why_the_exit_code_is_not_0(candidates: Path) -> None:
    done = clair("select", candidates, "--eval", "false {adapter}", "-q")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("0 of 6 clients have a choice; without: client-01, ")
    assert done.stderr.count("\n") == 1
    assert clair("select", candidates, "--eval", "echo {adapter} 1", "-q").stderr == ""
