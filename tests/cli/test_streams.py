"""stdout is the product, stderr the rest, and nothing from a file steers a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clair_cli.cli.streams import pace
from clair_cli.renderers import json as json_renderer
from tests.conftest import Detected
from tests.helpers.commands import (
    CLIENTS,
    CONTAMINATED,
    ENVIRONMENT,
    SAMPLES,
    SCRIPT,
    WEIGHTS,
    change_config,
    clair,
    forked,
    join_weights,
    quick,
    samples,
    split_weights,
    terminal,
    verdicts,
)
from tests.helpers.reports import hostile

HASTY = """
    import time
    real, calls = time.monotonic, [0]
    def monotonic():
        calls[0] += 1
        return real() + calls[0]
    time.monotonic = monotonic
"""
"""Every look at the clock finds a second gone, so that a bar that may be shown is shown."""


RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\udc80-\udcff]")
"""Control characters but the line end, DEL, C1, bidi overrides, bytes that are no UTF-8."""


def on_terminal(*args: object, columns: int = 1000, **env: str) -> str:
    """What the installed script writes when stdout is a terminal."""
    env = ENVIRONMENT | env | {"COLUMNS": f"{columns}"}
    with terminal() as (path, said), open(path, "wb") as stream:
        subprocess.run([str(SCRIPT), *map(str, args)], stdout=stream, env=env)
    return b"".join(said).decode()


def is_clean(text: str) -> bool:
    """Nothing in `text` can steer a terminal."""
    return not RAW.search(text)


# --- one document on stdout, one line on stderr


def test_json_on_stdout_is_one_document_and_stderr_has_the_verdict(detected: Detected) -> None:
    assert json.loads(detected.done.stdout)["exit_code"] == detected.done.returncode == 1
    assert detected.done.stdout.endswith("\n}\n")
    assert detected.done.stderr == "FAIL: 2 contaminated\n"


def test_files_written_beside_stdout_are_what_stdout_would_show(detected: Detected) -> None:
    assert detected.json.read_text() == detected.done.stdout
    assert detected.text.read_text() == clair("report", detected.json).stdout


def test_a_file_replaces_the_one_that_was_there(detected: Detected, tmp_path: Path) -> None:
    target = tmp_path / "there.json"
    target.write_text("old")
    assert clair("report", detected.json, "-q", "-o", f"json={target}").returncode == 1
    assert target.read_text() == detected.done.stdout
    assert os.listdir(tmp_path) == ["there.json"]


def test_quiet_prints_no_table(detected: Detected) -> None:
    done = clair("report", detected.json, "-q")
    assert (done.stdout, done.stderr, done.returncode) == ("", "FAIL: 2 contaminated\n", 1)
    passed = clair("report", detected.json, "-q", "--fail-on", "never")
    assert (passed.stdout, passed.stderr, passed.returncode) == ("", "", 0)


@pytest.mark.parametrize("command", ["detect", "refine", "inspect", "report"])
def test_help_shows_the_exit_codes_and_goes_to_stdout(command: str) -> None:
    done = clair(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: clair {command}")
    assert is_clean(done.stdout)
    assert "Exit code" in done.stdout


# --- colour


def test_colour_is_for_terminals_only(detected: Detected) -> None:
    plain = clair("report", detected.json).stdout
    shown = on_terminal("report", detected.json)
    assert "\x1b[1;31mcontaminated\x1b[0m" in shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == plain
    assert is_clean(plain)


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"NO_COLOR": ""}, {"TERM": "dumb"}], ids=str)
def test_no_colour_where_the_user_wants_none(detected: Detected, env: dict[str, str]) -> None:
    assert on_terminal("report", detected.json, **env) == clair("report", detected.json).stdout


def test_colour_is_not_forced_into_a_pipe(detected: Detected) -> None:
    env = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TERM": "xterm-256color"}
    assert is_clean(clair("report", detected.json, env=env).stdout)


# --- progress


@pytest.mark.parametrize("options", [(), ("--no-progress",), ("-q",)], ids=str)
def test_progress_is_for_terminals_and_can_be_turned_off(
    options: tuple[str, ...], adapters: Path, tmp_path: Path
) -> None:
    with terminal() as (path, said):
        code = forked("detect", adapters, *options, stdout=tmp_path / "1", stderr=path, hook=HASTY)
    shown = b"".join(said).decode()
    assert code == 1
    assert ("reading modules [" in shown) == (not options)
    if options:
        assert shown.split() == (["FAIL:", "2", "contaminated"] if "-q" in options else [])
    else:
        assert shown.endswith("\r\x1b[K")


def test_no_progress_into_a_file(adapters: Path, tmp_path: Path) -> None:
    done = quick(tmp_path, "detect", adapters, hook=HASTY)
    assert (done.returncode, done.stderr) == (1, "")
    assert "contaminated" in done.stdout


# --- hostile names

NAMES = (b"\x1b[31mred", b"[bold]x[/bold]", "\u202etxt".encode(), b"two\nlines", b"\xff\xfe")
EVIL = "\x1b[31m\x1b]0;x\x07[/bold]\u202e\r\n::error::\x7f\x9b2J"


@pytest.fixture(scope="module")
def hostiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples with hostile tensor names in every client, base names, and folder names."""
    folder = samples(tmp_path_factory.mktemp("hostile") / "round")
    for client in CLIENTS:
        rename_tensors(folder / client / WEIGHTS, "mlp.down_proj", f"mlp.{EVIL}down_proj")
        change_config(folder / client, base_model_name_or_path=f"org/{EVIL}")
    change_config(folder / "client-08", base_model_name_or_path=f"other{EVIL}")
    change_config(folder / "client-07", peft_type=EVIL)
    for name in NAMES:
        shutil.copytree(folder / "client-01", folder / os.fsdecode(name))
    return folder


def rename_tensors(file: Path, old: str, new: str) -> None:
    header, data = split_weights(file)
    join_weights(file, {name.replace(old, new): entry for name, entry in header.items()}, data)


@pytest.mark.parametrize("options", [("-v",), ("-f", "json")], ids=str)
def test_hostile_names_do_not_reach_the_terminal(
    options: tuple[str, ...], hostiles: Path, tmp_path: Path
) -> None:
    done = quick(tmp_path, "detect", hostiles, *options)
    assert done.returncode == 1
    assert is_clean(done.stdout + done.stderr)
    assert "\\u202e" in done.stdout
    assert "[/bold]" in done.stdout
    if "json" in options:
        report = json.loads(done.stdout)
        found = verdicts(report)
        assert len(found) == len(CLIENTS) + len(NAMES)
        assert {c for c, v in found.items() if v == "contaminated"} == CONTAMINATED
        assert any(EVIL in m["name"] for m in report["population"]["modules"])


@pytest.mark.parametrize("options", [(), ("-f", "json")], ids=str)
def test_inspecting_hostile_names_is_harmless_too(options: tuple[str, ...], hostiles: Path) -> None:
    done = clair("inspect", hostiles / "client-01", *options)
    assert done.returncode == 0
    assert "\\u202e" in done.stdout
    assert is_clean(done.stdout + done.stderr)


@pytest.mark.parametrize(
    "args",
    [
        ("detect", f"no{EVIL}"),
        ("detect", ".", f"--{EVIL}"),
        ("detect", ".", "-o", EVIL),
        ("detect", ".", "--device", EVIL),
        ("refine", ".", "--out", f"no/{EVIL}/x"),
        ("refine", ".", "--out", "x", "--strength", EVIL),
        ("inspect", EVIL),
        ("inspect", b"\xff\x1b"),
        ("report", EVIL),
        (EVIL,),
    ],
    ids=str,
)
def test_hostile_arguments_are_refused_in_one_clean_line(args: tuple[str | bytes, ...]) -> None:
    done = clair(*(os.fsdecode(a) for a in args))
    assert (done.returncode, done.stdout) == (2, "")
    assert is_clean(done.stderr)
    assert done.stderr.count("\n") == 1


def test_a_hostile_report_is_shown_harmlessly(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json_renderer.render(hostile()))
    for options in ((), ("-v",), ("-f", "json")):
        done = clair("report", file, *options)
        assert (done.returncode, is_clean(done.stdout + done.stderr)) == (1, True)
        assert "\\u202e" in done.stdout


# --- poor terminals

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}


def test_an_ascii_terminal_gets_escapes_and_the_same_code(tmp_path: Path) -> None:
    folder = samples(tmp_path / "räume")
    (folder / "client-04").rename(folder / "käse-日本")
    change_config(folder / "käse-日本", peft_type="LÖRA")
    done = clair("detect", folder, env=ASCII)
    assert done.returncode == 1
    assert "k\\xe4se-\\u65e5\\u672c" in done.stdout
    assert "'L\\xd6RA' is not LORA" in done.stdout
    assert done.stdout.isascii()
    assert done.stderr == ""


@pytest.mark.parametrize("columns", [80, 90])
def test_a_terminal_gets_the_same_words_in_lines_that_fit(columns: int, detected: Detected) -> None:
    plain = clair("report", detected.json).stdout
    shown = on_terminal("report", detected.json, columns=columns, NO_COLOR="1")
    assert max(map(len, plain.splitlines())) > columns >= max(map(len, shown.splitlines()))
    assert sorted([*shown.split(), "why"]) == sorted(plain.replace(";", "").split())


def test_reasons_stand_below_the_client_one_a_line(detected: Detected) -> None:
    report = json.loads(detected.json.read_text())
    shown = on_terminal("report", detected.json, columns=80, NO_COLOR="1").splitlines()
    for client in report["clients"]:
        reasons = [r["message"] for r in client["reasons"]]
        if client["verdict"] == "contaminated":
            (at,) = (i for i, line in enumerate(shown) if client["id"] in line.split())
            assert [line.strip() for line in shown[at + 1 : at + 1 + len(reasons)]] == reasons


def test_a_terminal_too_narrow_to_fold_gets_whole_lines(detected: Detected) -> None:
    shown = on_terminal("report", detected.json, columns=1, NO_COLOR="1")
    assert shown == clair("report", detected.json).stdout


def test_one_column_changes_nothing(detected: Detected) -> None:
    narrow = clair("report", detected.json, env={"COLUMNS": "1", "LINES": "1"})
    assert narrow.stdout == detected.text.read_text()
    assert clair("--help", env={"COLUMNS": "1"}).returncode == 0


# --- torch only where numbers begin


LIGHT = {
    "help": "--help",
    "help of detect": "detect --help",
    "version": "--version",
    "inspect": "inspect {folder}/client-01",
    "report": "report {json}",
    "a bad option": "detect {folder} --alpha -1",
}
"""Commands that compute nothing with tensors."""


def light(name: str, detected: Detected) -> list[str]:
    return [word.format(**vars(detected)) for word in LIGHT[name].split()]


@pytest.mark.parametrize("name", LIGHT)
def test_torch_is_not_imported_for(name: str, detected: Detected) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "clair_cli.entry", *light(name, detected)]
    said = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT).stderr
    loaded = set(re.findall(r"\| +([\w.]+)$", said, re.MULTILINE))
    assert "clair_cli.cli" in loaded
    assert not {m for m in loaded if m.split(".")[0] in {"torch", "safetensors", "peft"}}


LIBRARIES_ALONE = """
import numpy, rich.console, rich.table, typer
from pathlib import Path
app = typer.Typer(add_completion=False)
@app.command()
def show(path: Path) -> None:
    print(path)
app()
"""
"""A command of one path, as typer, rich and numpy alone would have it."""


def work(command: list[str]) -> float:
    """CPU seconds of a command, start-up included: the least of five runs."""
    seconds = []
    for _ in range(5):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        seconds.append(used.ru_utime + used.ru_stime)
    return min(seconds)


@pytest.mark.parametrize("name", ["help", "inspect"])
def test_the_answer_takes_at_most_twice_the_work_of_its_libraries(
    name: str, detected: Detected
) -> None:
    floor = work([sys.executable, "-c", LIBRARIES_ALONE, "x"])
    assert work([str(SCRIPT), *light(name, detected)]) < 2 * floor


@pytest.mark.parametrize(
    ("done", "left", "seconds", "shown"),
    [
        (5, 10, 1.0, ""),
        (0, 10, 60.0, ""),
        (100, 50, 5.0, ", 20/s, 2 s left"),
        (30, 300, 10.0, ", 3.0/s, 1:40 left"),
        (2, 1000, 20.0, ", 10.0 s each, 2:46:40 left"),
    ],
)
def test_long_work_says_its_rate_and_the_time_left(
    done: int, left: int, seconds: float, shown: str
) -> None:
    assert pace(done, left, seconds) == shown


@pytest.mark.parametrize("command", ["detect", "refine"])
def test_timings_say_where_the_seconds_went_and_stand_in_the_report(
    command: str, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "out"] if command == "refine" else []
    saved = tmp_path / "report.json"
    done = clair(command, SAMPLES, *out, "--timings", "-q", "-o", f"json={saved}")
    run = json.loads(saved.read_text())["run"]
    spent = {t["what"]: t["seconds"] for t in run["timings"]}
    assert sum(spent.values()) == pytest.approx(run["duration_s"], rel=0.05)
    assert {"opening adapters", "reading modules", "judging"} <= set(spent)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("FAIL")]
    told = [line.split("  ")[1] for line in lines]
    assert set(told) == set(spent)


def test_without_timings_nothing_is_said_of_them() -> None:
    assert "reading modules" not in clair("detect", SAMPLES, "-q").stderr


def test_a_remark_of_the_library_is_said_to_be_of_clair(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = clair("detect", SAMPLES, "-q", "--fail-on", "never", "--cache", tmp_path / "file" / "c")
    assert done.returncode == 0
    assert done.stderr.startswith(f"clair: --cache '{tmp_path}/file/c': cannot be used: ")
    assert done.stderr.count("\n") == 1
