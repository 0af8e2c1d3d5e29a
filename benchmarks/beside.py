"""clair beside what others do with a folder of adapters: time, memory and answers on the same files.

python -m benchmarks.beside --shapes 8b --modules 8 --clients 20 [--venvs DIR] [--json FILE]

Adapters are planted as in benchmarks.speed, the last 15 % of the clients contaminated. Every peer is a
process of its own, from files to answer, in turn with `clair detect` and `clair refine`. A peer that
has not ended after --seconds, or takes more than --memory GB, is ended and said to be. Libraries whose
pins conflict need not lie together: DIR/<library>/bin/python runs a peer where it is there, else this
Python does. A peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.beside_commands import CLAIR, PEERS, Peer, Place
from benchmarks.beside_table import rows, table
from benchmarks.processes import Run, measured
from benchmarks.speed import SHAPES, make_adapters

ATTENTION = {name: shape for name, shape in SHAPES.items() if name.startswith("self_attn")}
SETS = {"8b": ATTENTION, "square": {f"self_attn.{n}_proj": (1024, 1024) for n in "qkvo"}}
"""Modules of a layer: of Llama-3-8B's attention, and small ones."""
QUICK = 60
"""Seconds up to which a peer is run as often as clair."""


class Bench:
    """One set of adapters, and what has been run on it: name -> runs, start-ups, whom it names."""

    def __init__(self, root: Path, bad: int, given: argparse.Namespace) -> None:
        self.root, self.bad, self.given = root, bad, given
        self.runs: dict[str, list[Run]] = {}
        self.starts: dict[str, list[Run]] = {}
        self.named: dict[str, list[str] | None] = {}

    def turn(self, name: str, peer: Peer) -> Run | None:
        """Start-up alone, then the peer; None where it is not installed."""
        python = self.python(peer)
        limits = (self.given.threads, self.given.seconds, self.given.memory)
        start = measured([python, "-c", peer.starts], *limits)
        if start.ended:
            return None
        self.starts.setdefault(name, []).append(start)
        with tempfile.TemporaryDirectory(dir=self.given.scratch) as out:
            place = Place(self.root, Path(out), self.given.threads, self.bad)
            run = measured([python, *peer.command(place)], *limits)
            if not run.ended:
                named = peer.named(place)
                self.named[name] = None if named is None else sorted(named)
        self.runs.setdefault(name, []).append(run)
        return run

    def python(self, peer: Peer) -> str:
        """Of the peer's own virtual environment, where there is one."""
        own = Path(self.given.venvs or ".") / peer.library / "bin" / "python"
        return str(own) if self.given.venvs and own.exists() else sys.executable

    def go(self, on_run: Callable[[str, Run | None], None]) -> None:
        """Every peer in turn with clair, and those that are quick as often as asked for."""
        quick = set(self.given.peers)
        for _ in range(self.given.repeat):
            for name in self.given.peers:
                if name not in quick:
                    continue
                for command, one in CLAIR.items():
                    on_run(command, self.turn(command, one))
                run = self.turn(name, PEERS[name])
                on_run(name, run)
                if run is None or run.ended or run.wall > QUICK:
                    quick.discard(name)


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--shapes", choices=list(SETS), default="8b")
    words.add_argument("--modules", type=int, default=8)
    words.add_argument("--clients", type=int, default=20)
    words.add_argument("--rank", type=int, default=16)
    words.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--repeat", type=int, default=3)
    words.add_argument("--seconds", type=float, default=600, help="after which a peer is ended")
    words.add_argument("--memory", type=float, default=14, help="GB beyond which it is ended")
    words.add_argument("--venvs", type=Path, help="virtual environments, named as libraries are")
    words.add_argument("--scratch", type=Path, help="where adapters and answers lie")
    words.add_argument("--json", type=Path, help="a file for all that was measured")
    return words


def main(words: Sequence[str] | None = None) -> None:
    given = parser().parse_args(words)
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        root = Path(scratch) / "adapters"
        bad = make_adapters(
            root, given.clients, given.modules, given.rank, layer=SETS[given.shapes]
        )
        bench = Bench(root, len(bad), given)
        bench.go(_said)
    loads = [run.load for runs in bench.runs.values() for run in runs]
    told = rows(bench.runs, bench.starts, bench.named, bad)
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{system}, {versions}; load {min(loads):.1f} to {max(loads):.1f}\n\n{table(told)}")
    if given.json:
        runs = {name: [asdict(r) for r in each] for name, each in bench.runs.items()}
        asked = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
        said = {"given": asked, "machine": [system, versions], "rows": told, "runs": runs}
        given.json.write_text(json.dumps(said, indent=1))


def _said(name: str, run: Run | None) -> None:
    """One line per run on stderr: it takes long."""
    if run is None:
        text = "not installed"
    else:
        text = run.ended or f"{run.wall:.1f} s, {run.cpu:.1f} s of the processor"
    print(f"{name}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
