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
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.field import sentry_actions
from benchmarks.speed import SHAPES, START_UP, WEIGHTS, make_adapters

ATTENTION = {name: shape for name, shape in SHAPES.items() if name.startswith("self_attn")}
SETS = {"8b": ATTENTION, "square": {f"self_attn.{n}_proj": (1024, 1024) for n in "qkvo"}}
"""Modules of a layer: of Llama-3-8B's attention, and small ones."""
TICK = 0.02
"""Seconds between two looks at a process."""
QUICK = 60
"""Seconds up to which a peer is run as often as clair."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the adapters lie, where an answer goes, and what a run is told."""

    root: Path
    out: Path
    threads: int
    bad: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that takes the folder: what it answers, and how it is started.

    `starts` is what it must import; `dense` is whether it forms updates of full size. `named` says whom
    it names, None where it names nobody.
    """

    name: str
    library: str
    dense: bool
    answer: str
    starts: str
    command: Callable[[Place], list[str]]
    named: Callable[[Place], set[str] | None]


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of the clock and of the processor, GB at most, the load before it, and how it ended."""

    wall: float
    cpu: float
    memory: float
    load: float
    ended: str = ""


# what runs


def work(name: str, place: Place) -> list[str]:
    """Of a peer that benchmarks.beside_peers knows."""
    paths = [str(place.root), str(place.out), str(place.bad)]
    return ["-m", "benchmarks.beside_peers", name, *paths]


def answered(place: Place) -> set[str] | None:
    """Whom OUT/answer.json names."""
    found = json.loads((place.out / "answer.json").read_text())
    return None if found is None else set(found)


def sentry(place: Place) -> list[str]:
    """AdapterSentry's batch, nothing of an earlier run in its cache."""
    where = ["--input-dir", str(place.root), "--output-dir", str(place.out)]
    return ["-m", "adaptersentry", "batch", "--workers", str(place.threads), "--no-cache", *where]


def blocked(place: Place) -> set[str]:
    """The clients whose file it would review or block."""
    said = sentry_actions(place.out)
    hashes = {
        path.parent.name: "sha256:" + sha256(path.read_bytes()).hexdigest()
        for path in place.root.glob(f"*/{WEIGHTS}")
    }
    return {client for client, digest in hashes.items() if said.get(digest) != "allow"}


def mergekit(place: Place) -> list[str]:
    """Its merge of raw files, with equal weights; writes the configuration."""
    models = [
        {"model": str(path), "parameters": {"weight": 1.0}}
        for path in sorted(place.root.glob(f"*/{WEIGHTS}"))
    ]
    config = place.out / "merge.yaml"  # JSON is YAML
    config.write_text(json.dumps({"merge_method": "linear", "dtype": "float32", "models": models}))
    call = "from mergekit.scripts.merge_raw_pytorch import main; main()"
    return ["-c", call, str(config), str(place.out / "merged")]


def clair(command: str, place: Place) -> list[str]:
    """A command of clair, with its report as JSON in OUT."""
    report = ["--output", f"json={place.out / 'said.json'}", "--quiet"]
    options = ["--threads", str(place.threads), "--device", "cpu", "--fail-on", "never", *report]
    options += ["--out", str(place.out / "refined")] if command == "refine" else []
    return ["-m", "clair_cli.entry", command, str(place.root), *options]


def verdicts(place: Place) -> set[str]:
    """Whom clair calls contaminated."""
    report = json.loads((place.out / "said.json").read_text())
    return {c["id"] for c in report["clients"] if c["verdict"] == "contaminated"}


def nobody(_: Place) -> None:
    return None


def own(name: str, say: str, library: str, dense: bool, answer: str, starts: str) -> Peer:
    """A peer of benchmarks.beside_peers."""
    return Peer(say, library, dense, answer, starts, partial(work, name), answered)


BYZFL = "import benchmarks.beside_peers, benchmarks.byzfl_alone as b; assert b.aggregators()"
CHORUS = "import benchmarks.beside_peers, chorus.server.aggregation"
PEFT = "import benchmarks.beside_peers, peft"
ONE, VECTOR = "one adapter for all", "one vector for all"
CLAIR = {
    "detect": Peer(
        "clair detect",
        "clair-cli",
        False,
        "a verdict per client, by all",
        START_UP,
        partial(clair, "detect"),
        verdicts,
    ),
    "refine": Peer(
        "clair refine",
        "clair-cli",
        False,
        "the verdicts, an adapter per benign client, and one for all",
        START_UP,
        partial(clair, "refine"),
        verdicts,
    ),
}
PEERS = {
    "peft-svd": own("peft-svd", "PEFT svd", "peft", True, ONE, PEFT),
    "peft-ties-svd": own("peft-ties-svd", "PEFT ties_svd", "peft", True, ONE, PEFT),
    "peft-dare-svd": own("peft-dare-svd", "PEFT dare_linear_svd", "peft", True, ONE, PEFT),
    "peft-dare": own("peft-dare", "PEFT dare_linear", "peft", False, ONE, PEFT),
    "chorus-fedex": own(
        "chorus-fedex", "FedEx-LoRA (chorus-fl)", "chorus-fl", True, f"{ONE}, outliers", CHORUS
    ),
    "chorus-fedavg": own(
        "chorus-fedavg", "FedAvg (chorus-fl)", "chorus-fl", False, f"{ONE}, outliers", CHORUS
    ),
    "mergekit": Peer(
        "mergekit linear",
        "mergekit",
        False,
        ONE,
        "import mergekit.scripts.merge_raw_pytorch",
        mergekit,
        nobody,
    ),
    "krum-dense": own("krum-dense", "byzfl Multi-Krum, dense", "byzfl", True, VECTOR, BYZFL),
    "median-dense": own(
        "median-dense", "byzfl geometric median, dense", "byzfl", True, VECTOR, BYZFL
    ),
    "krum-flat": own("krum-flat", "byzfl Multi-Krum, flat", "byzfl", False, VECTOR, BYZFL),
    "median-flat": own(
        "median-flat", "byzfl geometric median, flat", "byzfl", False, VECTOR, BYZFL
    ),
    "sentry": Peer(
        "AdapterSentry batch",
        "adaptersentry",
        False,
        "a verdict per file, by itself",
        "import adaptersentry.detectors, adaptersentry.parsers, sklearn",
        sentry,
        blocked,
    ),
    "pursuit": own(
        "pursuit",
        "outlier pursuit per module",
        "torch",
        True,
        "the share of each client that is an outlier",
        "import benchmarks.outlier_pursuit",
    ),
    "pcp": own(
        "pcp",
        "PCP per module (skpcp)",
        "skpcp",
        True,
        "the share of each client that is sparse",
        "import benchmarks.beside_peers, skpcp",
    ),
}


# how it is measured


def measured(command: Sequence[str], threads: int, seconds: float, gigabytes: float) -> Run:
    """The cost of a process, which is ended after so many seconds, or beyond so much memory.

    Seconds of the processor hold those of its own children; memory is that of the largest of them.
    """
    few = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as said:
        env = os.environ | few | {"HOME": home, "HF_HUB_OFFLINE": "1"}
        load, began = os.getloadavg()[0], time.perf_counter()
        process = subprocess.Popen(
            command, stdout=said, stderr=said, env=env, start_new_session=True
        )
        ended = ""
        while not (found := os.wait4(process.pid, os.WNOHANG))[0]:
            if time.perf_counter() - began > seconds:
                ended = f"not done after {seconds:.0f} s"
            elif _resident(process.pid) > gigabytes:
                ended = f"took more than {gigabytes:.0f} GB"
            if ended:
                os.killpg(process.pid, signal.SIGKILL)
                found = os.wait4(process.pid, 0)
                break
            time.sleep(TICK)
        wall, (_, status, usage) = time.perf_counter() - began, found
        process.returncode = os.waitstatus_to_exitcode(status)
        if not ended and process.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            ended = f"failed: {' '.join(last)[:200]}"
    cpu = usage.ru_utime + usage.ru_stime
    return Run(wall, cpu, usage.ru_maxrss / 2**20, load, ended)


def _resident(pid: int) -> float:
    """GB that the process holds; 0 where it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


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


# what is told


def rows(bench: Bench, bad: Sequence[str]) -> list[dict[str, Any]]:
    """Per peer: medians of what it cost, how often clair's cost that is, and whom it names."""
    found = []
    for name, peer in (CLAIR | PEERS).items():
        runs = bench.runs.get(name)
        if not runs:
            continue
        start = bench.starts[name]
        row: dict[str, Any] = {
            "peer": peer.name,
            "dense": peer.dense,
            "answer": peer.answer,
            "runs": len(runs),
            "ended": runs[-1].ended,
            "memory": max(r.memory for r in runs),
            "named": hits(bench.named.get(name), bad),
        }
        for kind in ("wall", "cpu"):
            row[kind] = median(getattr(r, kind) for r in runs)
            row[f"start_{kind}"] = median(getattr(r, kind) for r in start)
            for command in CLAIR:
                ours = median(getattr(r, kind) for r in bench.runs[command])
                begun = median(getattr(r, kind) for r in bench.starts[command])
                row[f"{command}_{kind}"] = row[kind] / ours
                work = max(row[kind] - row[f"start_{kind}"], 0.0)
                row[f"{command}_{kind}_work"] = work / max(ours - begun, TICK)
        found.append(row)
    return found


def hits(named: Sequence[str] | None, bad: Sequence[str]) -> str:
    """How many of the contaminated clients are named, and how many others."""
    if named is None:
        return "names nobody"
    right = len(set(named) & set(bad))
    return f"{right} of {len(bad)}, {len(named) - right} honest"


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown. A peer that did not end has `>` before what it had cost by then."""
    head = (
        "peer",
        "dense",
        "wall, s",
        "processor, s",
        "of it start-up, s",
        "peak, GB",
        "times detect, wall",
        "times detect, processor",
        "the same less start-up",
        "times refine, processor",
        "answer",
        "contaminated named",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in found:
        over = ">" if row["ended"] else ""
        numbers = [row["wall"], row["cpu"]]
        ratios = [row[f"detect_{k}"] for k in ("wall", "cpu", "cpu_work")] + [row["refine_cpu"]]
        cells = [
            row["peer"],
            "yes" if row["dense"] else "no",
            *(f"{over}{x:.1f}" for x in numbers),
            f"{row['start_cpu']:.1f}",
            f"{over}{row['memory']:.2f}",
            *(f"{over}{x:.1f}" if x < 10 else f"{over}{x:.0f}" for x in ratios),
            row["ended"] or row["answer"],
            "-" if row["ended"] else row["named"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
        shape = SETS[given.shapes]
        bad = make_adapters(root, given.clients, given.modules, given.rank, shape)
        bench = Bench(root, len(bad), given)
        bench.go(_said)
    loads = [run.load for runs in bench.runs.values() for run in runs]
    told = rows(bench, bad)
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
