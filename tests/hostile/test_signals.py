"""A signal is answered within two seconds, whatever is being computed, and nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT
from tests.helpers.cohorts import save_cohort
from tests.helpers.commands import ENVIRONMENT, WEIGHTS

SECONDS = 2.0
LONG = "torch.linalg.svd(torch.randn(6000, 6000))"
"""One call that takes a minute of one core, and in which Python runs nothing."""
BUSY = {
    "one step of the linear algebra": ("clair_cli.detection.forms", "stack_module"),
    "the decomposition": ("clair_cli.detection.judging", "decompose"),
    "a refined update": ("clair_cli.formats.factors", "fitted"),
}
SCRIPT = """
import importlib, pathlib, sys
import torch
module, name, marker, *sys.argv[1:] = sys.argv[1:]
def busy(*_, **__):
    pathlib.Path(marker).touch()
    LONG
if name:
    setattr(importlib.import_module(module), name, busy)
from clair_cli.entry import main
main()
"""
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def started(marker: Path, place: tuple[str, str], *args: object) -> subprocess.Popen[str]:
    """clair in a process of its own, in which `place` takes a minute."""
    command = [sys.executable, "-c", SCRIPT.replace("LONG", LONG), *place, str(marker)]
    return subprocess.Popen(
        [*command, *map(str, args)],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def answered(child: subprocess.Popen[str], number: signal.Signals) -> tuple[float, str]:
    """Seconds until the process has ended, and what it said."""
    began = time.monotonic()
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    return time.monotonic() - began, said


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("step", BUSY)
def test_a_signal_is_answered_in_the_middle_of_a_step(
    step: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    save_cohort(tmp_path / "round", 4)
    marker, out = tmp_path / "busy", tmp_path / "out"
    child = started(marker, BUSY[step], "refine", tmp_path / "round", "--out", out)
    until = time.monotonic() + 60
    while not marker.exists() and time.monotonic() < until:
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    seconds, said = answered(child, number)
    assert (child.returncode, seconds < SECONDS) == (code, True), (seconds, said)
    assert said.endswith("; nothing was left behind\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["busy", "round"]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_is_answered_while_gigabytes_are_hashed(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    save_cohort(tmp_path / "round", 4)
    for name in ("a", "b", "c"):  # more of them than are opened at a time
        folder = tmp_path / "round" / name
        folder.mkdir()
        head = b'{"x":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (15 << 30, 15 << 30)
        with open(folder / WEIGHTS, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.truncate(8 + len(head) + (15 << 30))
    child = started(tmp_path / "busy", ("", ""), "detect", tmp_path / "round")
    time.sleep(6)
    assert child.poll() is None, child.communicate()
    seconds, said = answered(child, number)
    assert (child.returncode, seconds < SECONDS) == (code, True), (seconds, said)
