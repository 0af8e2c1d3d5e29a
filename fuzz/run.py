"""`python -m fuzz.run --seconds 60`: every target in turn, by atheris, or by plain mutation.

A finding ends its target: the input is left in build/fuzz; `--target NAME --replay FILE` runs it again.
`--keep FILE` adds a line of JSON for every target: how long it ran, and how many inputs it had.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

PLACE = Path("build/fuzz")
SLOW = 10
"""Seconds that one input may take."""
MEMORY_MB = 2048
LONGEST = 65536
PLAIN = re.compile(r"^fuzz: \S+: (\d+) inputs, (\d+|nothing) found$", re.MULTILINE)
GUIDED = re.compile(r"^stat::number_of_executed_units: +(\d+)$", re.MULTILINE)
"""How many inputs there were, as plain mutation and libFuzzer say it."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=60, help="for all targets together")
    options.add_argument("--target", action="append", help="of fuzz/targets.py; default: all")
    options.add_argument("--engine", choices=["auto", "plain"], default="auto")
    options.add_argument("--seed", type=int, default=0, help="of plain mutation")
    options.add_argument("--keep-going", action="store_true", help="plain: count findings, go on")
    options.add_argument("--replay", type=Path, help="one input that was found")
    options.add_argument("--keep", type=Path, help="file of what each target did")
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.replay is not None:
        _target(asked.target[0])(asked.replay.read_bytes())
        return 0
    if asked.inside:
        return _fuzz(asked.target[0], asked)
    names = asked.target or list(_targets())
    share = max(asked.seconds // len(names), 1)
    failed = [n for n in names if _apart(n, share, asked)]
    print(f"fuzz: {len(names)} targets, {share} s each, findings in: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _targets() -> Mapping[str, Callable[[bytes], None]]:
    from fuzz.targets import TARGETS

    return TARGETS


def _target(name: str) -> Callable[[bytes], None]:
    return _targets()[name]


def _apart(name: str, seconds: int, asked: argparse.Namespace) -> int:
    """The target in a process of its own: atheris ends the one it runs in."""
    command = [sys.executable, "-m", "fuzz.run", "--inside", "--target", name]
    command += ["--seconds", str(seconds), "--engine", asked.engine, "--seed", str(asked.seed)]
    command += ["--keep-going"] if asked.keep_going else []
    if asked.keep is None:
        return subprocess.run(command, check=False).returncode
    began, said = time.monotonic(), []
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **streams, text=True, errors="replace") as child:
        for line in child.stdout or ():
            print(line, end="", flush=True)
            said.append(line)
    spent = min(time.monotonic() - began, seconds)  # without the start
    if row := told("".join(said), child.returncode != 0):
        with open(asked.keep, "a", encoding="utf-8") as lines:
            lines.write(json.dumps({"target": name, "seconds": round(spent, 1)} | row) + "\n")
    else:
        print(f"fuzz: {name}: does not say how many inputs it had, so nothing is kept of it")
    return child.returncode


def told(text: str, failed: bool) -> dict[str, Any]:
    """Engine, inputs and findings, from what the process of a target has said; empty without a count."""
    if plain := PLAIN.search(text):
        findings = 0 if plain[2] == "nothing" else int(plain[2])
        return {"engine": "plain", "inputs": int(plain[1]), "findings": findings}
    if guided := GUIDED.search(text):
        return {"engine": "atheris", "inputs": int(guided[1]), "findings": int(failed)}
    return {}


def _fuzz(name: str, asked: argparse.Namespace) -> int:
    PLACE.mkdir(parents=True, exist_ok=True)
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None or asked.engine == "plain":
        return _mutate(name, asked)
    corpus = PLACE / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    import torch  # noqa: F401  (takes longer than an input may)

    with atheris.instrument_imports(include=["clair_cli"]):
        from fuzz.targets import TARGETS, seeds
    _wait_for_nobody()
    for data in seeds(name):
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    arguments = [sys.argv[0], f"-max_total_time={asked.seconds}", f"-timeout={SLOW}"]
    arguments += [f"-rss_limit_mb={MEMORY_MB}", f"-max_len={LONGEST}", "-verbosity=0"]
    arguments += [f"-artifact_prefix={PLACE}/{name}-", "-print_final_stats=1", str(corpus)]
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()
    return 0


def _wait_for_nobody() -> None:
    """Hash files at once: nobody else writes to them, and waiting takes most of the time."""
    from clair_cli.formats import files

    files.TICK = 0


def _mutate(name: str, asked: argparse.Namespace) -> int:
    """Seeds with bytes changed, cut, doubled or joined, until the time is up or something breaks.

    With --keep-going the first input of every kind of finding is kept, and the others are counted.
    """
    import torch  # noqa: F401

    from fuzz.targets import seeds

    _wait_for_nobody()
    target, pool, draw = _target(name), seeds(name), random.Random(asked.seed)
    signal.signal(signal.SIGALRM, _too_slow)
    until, count, kinds = time.monotonic() + asked.seconds, 0, Counter[str]()
    while time.monotonic() < until:
        data = mutated(draw.choice(pool), draw)
        count += 1
        try:
            signal.alarm(SLOW)
            target(data)
        except Exception as error:
            kind = _kind(error)
            kinds[kind] += 1
            if kinds[kind] == 1:
                found = PLACE / f"{name}-crash-{hashlib.sha256(data).hexdigest()[:16]}"
                found.write_bytes(data)
                print(f"fuzz: {name}: input {count}, kept as {found}: {kind}", file=sys.stderr)
            if not asked.keep_going:
                print(_summary(name, count, kinds), flush=True)
                raise
        finally:
            signal.alarm(0)
    print(_summary(name, count, kinds))
    for kind, times in kinds.most_common():
        print(f"  {times} times {kind}")
    return 1 if kinds else 0


def _summary(name: str, count: int, kinds: Counter[str]) -> str:
    return f"fuzz: {name}: {count} inputs, {sum(kinds.values()) or 'nothing'} found"


def _kind(error: Exception) -> str:
    """What tells one finding from another: where it was raised, and what."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"


def _too_slow(number: int, frame: FrameType | None) -> Any:
    raise TimeoutError(f"one input took more than {SLOW} s")


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A few random edits."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 2, 4, 16))):
        at, kind = draw.randrange(len(found) + 1), draw.randrange(4)
        if kind == 0 and at < len(found):
            found[at] = draw.randrange(256)
        elif kind == 1:
            found[at:at] = draw.randbytes(draw.choice((1, 2, 8, 64)))
        elif kind == 2:
            del found[at : at + draw.choice((1, 4, 32))]
        else:
            found[at:at] = found[at : at + draw.choice((4, 64))]
    return bytes(found[:LONGEST])


if __name__ == "__main__":
    sys.exit(main())
