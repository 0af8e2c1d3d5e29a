"""Every row of the exit-code table, through the installed script in a process of its own."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Detected
from tests.helpers.adapters import factors, write_folder
from tests.helpers.builders import Planted, planted
from tests.helpers.commands import (
    CLIENTS,
    CONTAMINATED,
    ENVIRONMENT,
    SCRIPT,
    WEIGHTS,
    clair,
    fingerprint,
    hooked,
    quick,
    samples,
)

BENIGN = tuple(c for c in CLIENTS if c not in CONTAMINATED)


def staging(out: Path) -> list[Path]:
    return list(out.parent.glob(f".{out.name}.*"))


@pytest.fixture(scope="module")
def benign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only clean clients."""
    return samples(tmp_path_factory.mktemp("benign") / "round", BENIGN)


@pytest.fixture(scope="module")
def with_broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clean clients and one that cannot be read."""
    folder = samples(tmp_path_factory.mktemp("broken") / "round", BENIGN)
    (folder / BENIGN[0] / WEIGHTS).write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def with_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clean clients and a copy of one of them, which is suspicious."""
    folder = samples(tmp_path_factory.mktemp("copy") / "round", BENIGN)
    shutil.copytree(folder / BENIGN[0], folder / "client-99")
    return folder


# --- the table, one example a row; 70, 130 and 143 are below


def test_the_installed_script_exits_as_its_report_says(
    detected: Detected, benign: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert detected.done.returncode == json.loads(detected.done.stdout)["exit_code"] == 1
    assert clair("refine", benign, "--out", out, "-q").returncode == 0
    assert json.loads((out / "report.json").read_text())["exit_code"] == 0
    assert clair("refine", benign, "--out", out).returncode == 2
    assert clair("detect", samples(tmp_path / "two", CLIENTS[:2])).returncode == 3
    assert clair("report", detected.json, "-o", "json=/dev/full").returncode == 4


def test_an_empty_folder_has_a_report_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    saved, out = tmp_path / "r.json", tmp_path / "out"
    for command in (("detect",), ("refine", "--out", out), ("detect", "--ignore", "*")):
        done = clair(command[0], tmp_path / "in", *command[1:], "-q", "-o", f"json={saved}")
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.count("\n") == 1
        assert f"NO VERDICT: {tmp_path / 'in'}: no client in it; expected a folder" in done.stderr
        found = json.loads(saved.read_text())
        assert (found["status"], found["exit_code"], found["clients"]) == ("no_verdict", 3, [])
        assert [f["code"] for f in found["population"]["findings"]] == ["CLR301"]
        again = clair("report", saved)
        assert (again.returncode, again.stdout.splitlines()[0]) == (3, "no clients")
        saved.unlink()
    assert not out.exists()


# --- 0 and 1


@pytest.mark.parametrize(
    ("folder", "options", "code"),
    [
        ("benign", (), 0),
        ("adapters", ("-f", "json", "-q"), 1),
        ("adapters", ("--fail-on", "never"), 0),
        ("adapters", ("--fail-on", "broken"), 0),
        ("with_broken", ("-q",), 1),
        ("with_broken", ("--fail-on", "broken"), 1),
        ("with_copy", ("-f", "json"), 0),
        ("with_copy", ("--fail-on", "suspicious", "-q"), 1),
    ],
)
def test_detect_exits_1_where_a_client_is_at_or_above_fail_on(
    folder: str,
    options: tuple[str, ...],
    code: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    path = request.getfixturevalue(folder)
    before = fingerprint(path)
    done = quick(tmp_path, "detect", path, *options)
    assert (done.returncode, fingerprint(path)) == (code, before), done.stderr
    assert (done.stdout == "") == ("-q" in options and "json" not in options)


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--fail-on", "contaminated"), 1)])
def test_refine_exits_0_when_the_output_is_complete_unless_asked_otherwise(
    options: tuple[str, ...], code: int, adapters: Path, tmp_path: Path
) -> None:
    before, out = fingerprint(adapters), tmp_path / "out"
    done = quick(tmp_path, "refine", adapters, "--out", out, *options)
    assert (done.returncode, done.stderr) == (code, "")
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == list(BENIGN)
    assert {p.name for p in out.iterdir() if p.is_file()} == {"report.json", "manifest.json"}
    assert json.loads((out / "report.json").read_text())["exit_code"] == code
    assert (fingerprint(adapters), staging(out)) == (before, [])


OPTIONS = [(), ("-q",), ("-f", "json", "-q"), ("-v", "-o", "json=/dev/null")]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_format_and_quiet_never_change_the_code(
    options: tuple[str, ...], detected: Detected, tmp_path: Path
) -> None:
    two = samples(tmp_path / "two", CLIENTS[:2])
    never = ("--fail-on", "never")
    assert clair("report", detected.json, *options).returncode == 1
    assert clair("report", detected.json, *never, *options).returncode == 0
    assert clair("detect", two, *options).returncode == 3


@pytest.mark.parametrize("what", ["folder", "file", "broken"])
def test_inspect_exits_1_only_where_the_adapter_is_broken(
    what: str, adapters: Path, tmp_path: Path
) -> None:
    (write_folder(tmp_path / "broken") / WEIGHTS).write_bytes(b"nothing")
    own = adapters / CLIENTS[0]
    path = {"folder": own, "file": own / WEIGHTS, "broken": tmp_path / "broken"}[what]
    done = clair("inspect", path, "--alpha", "16")
    assert done.returncode == (1 if what == "broken" else 0)
    assert (done.stdout == "") == (what == "broken")


# --- 2


USAGE = {
    "unknown command": "scan {samples}",
    "unknown option": "detect {samples} --bogus",
    "unknown format": "detect {samples} -f xml",
    "unknown verdict": "detect {samples} --fail-on bad",
    "unknown device": "detect {samples} --device tpu",
    "negative threads": "detect {samples} --threads -1",
    "too many threads": "detect {samples} --threads 257",
    "alpha of zero": "detect {samples} --alpha 0",
    "alpha is NaN": "detect {samples} --alpha nan",
    "tiny header": "detect {samples} --max-header 1",
    "config missing": "detect {samples} --adapter-config {tmp}/none.json",
    "no folder": "detect",
    "missing folder": "detect {tmp}/none",
    "a file": "detect {samples}/client-01/adapter_config.json",
    "one adapter": "detect {samples}/client-01",
    "output of no format": "detect {samples} -o xml={tmp}/x",
    "output without path": "detect {samples} -o json=",
    "output without format": "detect {samples} -o {tmp}/x",
    "output in no folder": "detect {samples} -o json={tmp}/none/x",
    "output is a folder": "detect {samples} -o json={tmp}",
    "output in the input": "detect {samples} -o json={samples}/report.json",
    "output over an adapter": "detect {samples} -o json={tmp}/link/client-01/adapter_config.json",
    "output in out": "refine {samples} --out {tmp}/there --overwrite -o json={tmp}/there/x.json",
    "no out": "refine {samples}",
    "out exists": "refine {samples} --out {tmp}/there",
    "out exists and is not clair's": "refine {samples} --out {tmp}/there --overwrite",
    "out is the input": "refine {samples} --out {samples}",
    "out is the input by another name": "refine {samples} --out {tmp}/link",
    "out in the input": "refine {samples} --out {samples}/out",
    "out in the input by another name": "refine {samples} --out {tmp}/link/out",
    "out around the input": "refine {samples} --out {samples}/..",
    "out without parent": "refine {samples} --out {tmp}/none/out",
    "strength beyond 1": "refine {samples} --out {tmp}/out --strength 1.5",
    "strength below 0": "refine {samples} --out {tmp}/out --strength -0.1",
    "strength is NaN": "refine {samples} --out {tmp}/out --strength nan",
    "strength is a word": "refine {samples} --out {tmp}/out --strength much",
    "rank of zero": "refine {samples} --out {tmp}/out --rank 0",
    "negative subspace": "refine {samples} --out {tmp}/out --subspace-rank -1",
    "inspect nothing": "inspect {tmp}/none",
    "report of nothing": "report {tmp}/none.json",
    "report of a folder": "report {samples}",
    "report of garbage": "report {samples}/client-01/adapter_config.json",
    "no CUDA": "detect {samples} --device cuda",
}


@pytest.mark.parametrize("name", USAGE)
def test_misuse_exits_2_with_one_line_and_writes_nothing(
    name: str, adapters: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    (work / "there").mkdir(parents=True)
    (work / "link").symlink_to(adapters)
    before = fingerprint(adapters.parent), fingerprint(work)
    done = quick(tmp_path, *USAGE[name].format(samples=adapters, tmp=work).split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("clair: ")
    assert (fingerprint(adapters.parent), fingerprint(work)) == before


def test_without_a_command_the_help_is_shown_and_the_code_is_2() -> None:
    done = clair()
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == clair("--help").stdout


def test_misuse_is_found_before_anything_is_read(adapters: Path, tmp_path: Path) -> None:
    hook = hooked(tmp_path / "hook", "import os\ndel os.preadv")
    out = ("--out", tmp_path / "out")
    assert clair("refine", adapters, *out, "--strength", "2", env=hook).returncode == 2
    assert clair("refine", adapters, "--out", adapters / "out", env=hook).returncode == 2
    assert clair("refine", adapters, *out, env=hook).returncode == 70


# --- 3


def write_planted(folder: Path, truth: Planted) -> None:
    """One adapter per client, in PEFT's layout."""
    for k, updates in enumerate(truth.updates):
        tensors = {}
        for m, update in enumerate(updates):
            name = f"base_model.model.layers.{m}.q_proj.lora_"
            tensors[f"{name}A.weight"] = update.down.contiguous()
            tensors[f"{name}B.weight"] = update.up.contiguous()
        write_folder(folder / f"client-{k}", tensors, {"peft_type": "LORA", "lora_alpha": 4})


def no_verdict(name: str, folder: Path) -> Path:
    """A folder about which nothing can be said."""
    if name == "empty":
        folder.mkdir()
    elif name == "two clients":
        samples(folder, CLIENTS[:2])
    elif name == "two usable clients":
        (samples(folder, CLIENTS[:3]) / CLIENTS[0] / WEIGHTS).write_bytes(b"")
    elif name == "copies of two":
        samples(folder, CLIENTS[:2])
        for client in CLIENTS[:2]:
            shutil.copytree(folder / client, folder / f"{client}-again")
    elif name == "no common module":
        for k in range(3):
            write_folder(folder / f"client-{k}", factors({f"layers.{k}.q_proj": (6, 5)}))
    else:
        bad = {"half colluding": (4, "colluding"), "unrelated": (8, "random")}[name]
        write_planted(folder, planted(8, *bad, seed=3))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "empty",
        "two clients",
        "two usable clients",
        "copies of two",
        "no common module",
        "half colluding",
        "unrelated",
    ],
)
def test_without_a_verdict_the_code_is_3_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    folder, out = no_verdict(name, tmp_path / "round"), tmp_path / "out"
    before = fingerprint(folder)
    done = quick(tmp_path, "refine", folder, "--out", out, "-f", "json", "--fail-on", "broken")
    assert done.returncode == 3, done.stdout + done.stderr
    assert (out.exists(), staging(out), fingerprint(folder)) == (False, [], before)
    if name != "empty":
        report = json.loads(done.stdout)
        assert report["status"] == "no_verdict"
        assert {c["verdict"] for c in report["clients"]} <= {None, "broken"}
        assert done.stderr.startswith("NO VERDICT: ")
    assert done.stderr.count("\n") == 1


def test_quiet_without_a_verdict_says_why_on_one_line(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    for options in ((), ("-o", f"json={report}")):
        folder = tmp_path / f"round-{len(options)}"
        done = quick(tmp_path, "detect", no_verdict("two clients", folder), "-q", *options)
        assert (done.returncode, done.stdout) == (3, "")
        assert (
            done.stderr
            == "NO VERDICT: 2 usable clients, at least 3 are needed to tell who is the odd one out\n"
        )
    assert clair("report", report, "-q").stderr == done.stderr


# --- 4


@pytest.mark.parametrize("options", [(), ("-f", "json")], ids=str)
def test_a_full_disk_behind_stdout_exits_4(options: tuple[str, ...], detected: Detected) -> None:
    with open("/dev/full", "wb") as full:
        done = clair("report", detected.json, *options, stdout=full)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "No space left" in done.stderr


@pytest.mark.parametrize("args", [(), ("--help",), ("detect", "-h"), ("--version",)], ids=str)
def test_help_on_a_full_disk_exits_4(args: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = clair(*args, stdout=full)
    assert (done.returncode, done.stderr) == (4, "clair: stdout: No space left on device\n")


@pytest.mark.parametrize("path", ["/dev/full", "/proc/report.json"])
def test_a_file_that_cannot_be_written_exits_4(path: str, detected: Detected) -> None:
    done = clair("report", detected.json, "--fail-on", "never", "-o", f"json={path}")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert path in done.stderr
    assert "no gate set" in done.stdout  # what was computed is shown all the same


def limit_files() -> None:
    """No file may grow beyond 20 kB: the adapters of the samples are larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


FULL = """
    import errno, os
    real, calls = os.fsync, []
    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor)
    os.fsync = fsync
"""


def refine_limited(adapters: Path, out: Path) -> subprocess.CompletedProcess[str]:
    whole = {"PYTHONDONTWRITEBYTECODE": "1"}  # the limit would cut Python's own files off, too
    return clair("refine", adapters, "--out", out, preexec_fn=limit_files, env=whole)


def refine_full(adapters: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return quick(out.parent, "refine", adapters, "--out", out, hook=FULL)


@pytest.mark.parametrize("refine", [refine_limited, refine_full])
def test_a_disk_that_fills_up_exits_4_and_leaves_nothing(
    refine: Callable[[Path, Path], subprocess.CompletedProcess[str]], adapters: Path, tmp_path: Path
) -> None:
    out, before = tmp_path / "out", fingerprint(adapters)
    done = refine(adapters, out)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert (out.exists(), staging(out), fingerprint(adapters)) == (False, [], before)


# --- 70


CRASHES = {
    "typer": "raise ImportError('boom')",
    "rich": "raise RuntimeError('boom')",
    "torch": "raise OSError('boom')",
    "numpy": "raise SystemExit('boom')",
    "sitecustomize": """
        import os
        def preadv(*arguments):
            raise RuntimeError("boom")
        os.preadv = preadv
    """,
}
"""Modules that come before the real ones."""


@pytest.mark.parametrize("module", CRASHES)
def test_what_nobody_expected_exits_70_with_one_line(
    module: str, adapters: Path, tmp_path: Path
) -> None:
    env = hooked(tmp_path / "hook", CRASHES[module], f"{module}.py")
    done = clair("detect", adapters, env=env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (70, "", 1)
    assert done.stderr.startswith("clair: internal error: ")
    assert "boom" in done.stderr
    wordy = clair("detect", adapters, "-vv", env=env)
    assert (wordy.returncode, "Traceback" in wordy.stderr) == (70, True)


# --- 130 and 143

SLOW = """
    import os, time
    real = os.fsync
    def fsync(descriptor):
        time.sleep(60)
        return real(descriptor)
    os.fsync = fsync
"""
"""The first file that is written whole takes a minute to reach the disk."""


def default_signals() -> None:
    """As in a shell, also where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def refine_slowly(adapters: Path, out: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A refine that is in the middle of writing when this returns."""
    env = ENVIRONMENT | hooked(tmp_path / "hook", SLOW)
    child = subprocess.Popen(
        [str(SCRIPT), "refine", str(adapters), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        preexec_fn=default_signals,
    )  # fmt: skip
    until = time.monotonic() + 40
    while not any(s.rglob(WEIGHTS) for s in staging(out)) and child.poll() is None:
        assert time.monotonic() < until, "no staging folder appeared"
        time.sleep(0.02)
    time.sleep(0.2)
    return child


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "hung up"),
    ],
)
def test_a_signal_while_writing_removes_the_staging(
    number: signal.Signals, code: int, word: str, adapters: Path, tmp_path: Path
) -> None:
    out, before = tmp_path / "out", fingerprint(adapters)
    child = refine_slowly(adapters, out, tmp_path)
    assert staging(out)
    child.send_signal(number)
    said = child.communicate(timeout=20)
    assert child.returncode == code
    assert said[0] == ""
    assert said[1] == f"clair: {word}; nothing was left behind\n"
    assert (out.exists(), staging(out), fingerprint(adapters)) == (False, [], before)


def test_who_copies_everybody_takes_no_refinement_away(adapters: Path, tmp_path: Path) -> None:
    """Three clients, each there twice: no copy is told from its original."""
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("client-01", "client-02", "client-04"):
        for copy in "ab":
            shutil.copytree(adapters / name, source / f"{name}{copy}")
    done = clair("refine", source, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "refined 6 clients" in done.stdout
    assert done.stdout.count("copies of one adapter") == 3


@pytest.mark.parametrize(
    "command", [["detect", ""], ["refine", "", "--out", "out"], ["inspect", ""]]
)
def test_an_empty_argument_is_not_the_current_folder(command: list[str], tmp_path: Path) -> None:
    done = clair(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is a variable not set?" in done.stderr


def test_a_report_never_lands_where_the_input_links_to(adapters: Path, tmp_path: Path) -> None:
    store, source = tmp_path / "store", tmp_path / "in"
    shutil.copytree(adapters, store)
    source.mkdir()
    for client in store.iterdir():
        if client.is_dir():
            (source / client.name).symlink_to(client)
    before = fingerprint(store)
    for target in (store / "client-01" / "adapter_config.json", source / "client-01" / "x.json"):
        done = clair("detect", source, "--follow-symlinks", "-q", "-o", f"json={target}")
        assert done.returncode == 2
    assert fingerprint(store) == before


def test_a_report_can_go_to_a_pipe_by_name(adapters: Path) -> None:
    done = clair("detect", adapters, "-q", "-o", "json=/dev/stdout")
    assert done.returncode == 1
    assert json.loads(done.stdout)["counts"]["contaminated"] == 2


# --- streams that are not there


def test_a_reader_that_has_gone_changes_nothing(detected: Detected) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as gone:
        for code, args in {
            1: ("report", detected.json),
            0: ("--help",),
            3: ("detect", detected.folder.parent),
        }.items():
            done = clair(*args, stdout=gone)
            assert (done.returncode, "Traceback" in done.stderr) == (code, False)


def test_the_first_line_is_enough_for_head(detected: Detected) -> None:
    pipe = f"'{SCRIPT}' detect '{detected.folder}' | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout.splitlines()[1:] == ["1"]
    assert done.stderr == ""


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(closed: str, detected: Detected) -> None:
    for code, fail_on in enumerate(("never", "contaminated")):
        line = f"'{SCRIPT}' report '{detected.json}' --fail-on {fail_on} -f json {closed}"
        assert subprocess.run(["bash", "-c", line], env=ENVIRONMENT).returncode == code


@pytest.mark.parametrize("command", [(), ("detect",), ("refine",), ("report",)], ids=str)
def test_the_help_states_every_code(command: tuple[str, ...]) -> None:
    said = clair(*command, "--help").stdout.partition("Exit codes:")[2]
    assert set(re.findall(r"\d+", said)) - {"3"} == {"0", "1", "2", "4", "70", "129", "130", "143"}
    assert re.search(r"^ +3 +no verdict", said, re.MULTILINE)
