"""`python -m fuzz.kills --kills 500`: `clair refine --overwrite` killed at random, over and over.

Beside it a reader verifies OUT all the time. After every kill OUT must be there, whole, and byte for
byte one of the outputs that were being written: `torn` counts where it is not. Prints tables,
and keeps what they are made of in `--keep FILE`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from clair_cli._version import __version__
from clair_cli.output.manifest import differences
from fuzz import tables
from tests.helpers.cohorts import save_cohort
from tests.helpers.commands import ENVIRONMENT, PRELOADED, SCRIPT, _forked, quick
from tests.helpers.faults import Runs, weights

STRENGTHS = (0, 1)
"""Of the outputs that take turns at OUT."""
LONGER = 1.15
"""Kills are drawn from a whole run and a little more."""
MOMENTS = {"run": 0.15, "writing": 0.55, "exchange": 0.3}
"""Shares of the kills that are drawn from a whole run, from its writing, from just around the moment
at which the new output takes the place of the old."""
AROUND = 0.006
"""Seconds after the exchange from which the last are drawn."""


@dataclass
class Tally:
    """What one part of the campaign has seen."""

    kills: int = 0
    torn: int = 0
    looks: int = 0
    torn_looks: int = 0
    ends: Counter[str] = field(default_factory=Counter)


class Place:
    """A cohort, an OUT that is overwritten, and the bytes of the outputs that it may be."""

    def __init__(self, folder: Path) -> None:
        self.cohort, self.out = folder / "in", folder / "place" / "out"
        self.out.parent.mkdir()
        save_cohort(self.cohort, 3)
        self.wanted = []
        for strength in STRENGTHS:
            done = quick(folder, *self.words(strength, folder / f"out-{strength}"))
            assert done.returncode == 0, done.stderr
            self.wanted.append(weights(folder / f"out-{strength}"))
        assert quick(folder, *self.words(0)).returncode == 0
        self.seconds = self.writing = 0.0
        for strength in (1, 0, 1, 0):
            began = time.monotonic()
            process = forked_writer(self, strength)
            self.await_writing(process.is_alive)
            seen = time.monotonic()
            process.join()
            self.seconds = max(self.seconds, time.monotonic() - began)
            self.writing = max(self.writing, time.monotonic() - seen)

    def await_writing(self, alive: Callable[[], bool]) -> None:
        """Until something lies beside OUT, or nobody can put it there any more."""
        while not self.left() and alive():
            time.sleep(0.0005)

    def words(self, strength: int, out: Path | None = None) -> list[str]:
        """The arguments of a run that overwrites OUT."""
        words = ["refine", self.cohort, "--out", out or self.out, "--strength", strength]
        return [*map(str, words), "--overwrite", "-q"]

    def span(self, draw: random.Random, alive: Callable[[], bool]) -> float:
        """Wait for the beginning of one of MOMENTS: how many seconds from now a kill is to come."""
        (what,) = draw.choices([*MOMENTS], [*MOMENTS.values()])
        if what == "run":
            return self.seconds * LONGER
        self.await_writing(alive)
        if what == "writing":
            return self.writing * LONGER
        before = self.out.stat().st_ino
        while self.out.stat().st_ino == before and alive():
            pass
        return AROUND

    def state(self) -> str:
        """old or new; anything else is a torn output."""
        if differences(self.out):
            return "torn"
        found = weights(self.out)
        return next(
            (n for n, w in zip(("old", "new"), self.wanted, strict=True) if w == found), "torn"
        )

    def left(self) -> list[Path]:
        """What killed runs left beside OUT; the next campaign would only wait a day to sweep it."""
        return [p for p in self.out.parent.iterdir() if p != self.out]

    def tidy(self) -> None:
        """Remove it."""
        for path in self.left():
            shutil.rmtree(path, ignore_errors=True)


# --- writers and the reader


def forked_writer(place: Place, strength: int) -> BaseProcess:
    """A run in a process of its own, from one that has loaded torch already."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    streams = (os.devnull, os.devnull)
    process: BaseProcess = context.Process(
        target=_forked, args=(place.words(strength), streams, "")
    )
    process.start()
    return process


def read_on(out: Path, looks: Any, torn: Any) -> None:
    """Verify OUT, all the time."""
    while True:
        looks.value += 1
        torn.value += bool(differences(out))


def ended(process: BaseProcess) -> bool:
    """Whether it was killed, after it is no more. An exit code that clair has not is an error."""
    process.join()
    assert process.exitcode in (0, 4, -signal.SIGKILL), process.exitcode
    return process.exitcode == -signal.SIGKILL


# --- the parts of the campaign


def forked_kills(place: Place, count: int, writers: int, draw: random.Random) -> Tally:
    """`writers` at once, each killed at a moment of its own, until `count` kills have hit."""
    tally = Tally()
    while tally.kills < count:
        before = place.state()
        writing = []
        for number in range(writers):
            writing.append(forked_writer(place, (before == "old") ^ number & 1))
        span = place.span(draw, writing[0].is_alive)
        moments = sorted(draw.uniform(0, span * writers) for _ in writing)
        began = time.monotonic()
        for moment, process in zip(moments, writing, strict=True):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            process.kill()
        hits = sum(map(ended, writing))
        _count(place, tally, hits, before)
    return tally


def step_kills(runs: Runs) -> Tally:
    """One writer, killed before each of the calls that change the file system, the first to the last."""
    tally, code, number = Tally(), -signal.SIGKILL, 0
    while code == -signal.SIGKILL:
        number += 1
        if weights(runs.out) == runs.wanted["new"]:
            runs.refine(STRENGTHS[0])
        code = runs.faulty(number, "kill")
        try:
            after = runs.state()
        except (AssertionError, ValueError, OSError):
            after = "torn"
        tally.kills += code == -signal.SIGKILL
        tally.torn += after in ("torn", "absent")
        left = "staging left" if runs.left() else "nothing left"
        tally.ends[f"at the {after} output, {left}"] += code == -signal.SIGKILL
        for path in runs.left():
            shutil.rmtree(path, ignore_errors=True)
    return tally


def script_kills(place: Place, count: int, draw: random.Random) -> Tally:
    """The installed script, killed once it has begun to write, or has already written."""
    tally = Tally()
    while tally.kills < count:
        before = place.state()
        command = [str(SCRIPT), *place.words(int(before == "old"))]
        child = subprocess.Popen(command, env=ENVIRONMENT | path(), stderr=subprocess.DEVNULL)
        place.await_writing(partial(running, child))
        time.sleep(draw.uniform(0, place.writing * LONGER))
        child.kill()
        _count(place, tally, int(child.wait() == -signal.SIGKILL), before)
    return tally


def running(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has not ended."""
    return child.poll() is None


def path() -> dict[str, str]:
    """So that the script runs this checkout."""
    return {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}


def _count(place: Place, tally: Tally, hits: int, before: str) -> None:
    after = place.state()
    tally.kills += hits
    tally.torn += after == "torn"
    where = "at the old output" if after == before else "at the new output"
    tally.ends[f"{where}, {'staging left' if place.left() else 'nothing left'}"] += hits > 0
    place.tidy()


def watched(out: Path, part: Any) -> Tally:
    """The part with the reader beside it."""
    context = multiprocessing.get_context("fork")
    looks, torn = context.Value("q", 0), context.Value("q", 0)
    reader = context.Process(target=read_on, args=(out, looks, torn), daemon=True)
    reader.start()
    tally: Tally = part()
    assert reader.is_alive()
    reader.kill()
    tally.looks, tally.torn_looks = looks.value, torn.value
    return tally


def campaign(kills: int, scripts: int, seed: int, steps: bool = False) -> dict[str, Tally]:
    """All parts, in a folder that is removed afterwards."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        (Path(folder) / "steps").mkdir()
        wanted = dict(zip(("old", "new"), place.wanted, strict=True))
        runs = Runs(place.cohort, Path(folder) / "steps", wanted)
        one, two = kills // 2, kills - kills // 2
        parts: dict[str, Any] = {
            "one writer, at random": lambda: forked_kills(place, one, 1, draw),
            "two writers at once, at random": lambda: forked_kills(place, two, 2, draw),
            "the installed script, at random": lambda: script_kills(place, scripts, draw),
        }
        found = {name: watched(place.out, part) for name, part in parts.items()}
        if steps:
            runs.reset(True)
            found["one writer, before every call"] = watched(runs.out, partial(step_kills, runs))
        return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--kills", type=int, default=500, help="by forked runs, half of them two at once"
    )
    options.add_argument("--scripts", type=int, default=20, help="by runs of the installed script")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", type=Path, help="file of the tallies")
    given = options.parse_args()
    began = time.monotonic()
    found = campaign(given.kills, given.scripts, given.seed, steps=True)
    print(
        f"`python -m fuzz.kills {' '.join(sys.argv[1:])}`, {time.monotonic() - began:.0f} s on ",
        end="",
    )
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores; clair {__version__}, ",
        end="",
    )
    print(f"Python {platform.python_version()}\n")
    tallies = {name: vars(t) for name, t in found.items()}
    if given.keep:
        given.keep.write_text(json.dumps(tallies) + "\n")
    print("\n\n".join(tables.kills(tallies).values()))
    return int(any(t.torn or t.torn_looks for t in found.values()))


if __name__ == "__main__":
    sys.exit(main())
