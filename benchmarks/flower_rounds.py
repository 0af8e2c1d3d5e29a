"""Flower's own strategies and clair around them, in Flower's simulation engine: held-out loss by round.

python -m benchmarks.flower_rounds --work DIR [--seeds 9001 9002] [--rounds 3] [--tasks none family]

Ten clients copy text (examples/flower_app), three of them contaminated in every round. Every run is kept
in DIR and not made again, and all of them in DIR/flower.json. The tables are printed, and the picture
goes to benchmarks/results/flower.png.
Needs the extra [flower], flwr's simulation, peft, transformers and matplotlib.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

RESULTS = Path(__file__).parent / "results"
SERVERS: dict[str, dict[str, str]] = {
    "FedAvg": {"strategy": "FedAvg", "mode": "none"},
    "Krum, told 3": {"strategy": "Krum", "mode": "none"},
    "FedTrimmedAvg, told 0.3": {"strategy": "FedTrimmedAvg", "mode": "none"},
    "clair, exclude, FedAvg": {"strategy": "FedAvg", "mode": "exclude"},
    "clair, mean": {"strategy": "FedAvg", "mode": "mean"},
    "clair, refined": {"strategy": "FedAvg", "mode": "refined"},
}
TITLES = {"none": "one task for all", "family": "a family of tasks"}
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
Runs = Mapping[tuple[str, str, int], list[dict[str, Any]]]
"""Task, server, seed -> a record for each round."""


def run(config: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """One run of the app in a process of its own, or what it gave before."""
    out = folder / "rounds.json"
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        given = dict(config) | {"out": str(out), "reports": str(folder / "reports")}
        code = "import json, sys; from examples.flower_app.rounds import simulate; "
        command = [sys.executable, "-c", code + "simulate(json.loads(sys.argv[1]))"]
        environment = os.environ | QUIET | {"PYTHONPATH": str(RESULTS.parents[1])}
        with open(folder / "log", "w") as log:
            subprocess.run(
                [*command, json.dumps(given)], env=environment, stdout=log, stderr=log, check=True
            )
    read: list[dict[str, Any]] = json.loads(out.read_text())
    return read


def kept(file: Path) -> tuple[Runs, dict[str, int]]:
    """What `main` keeps: the runs, and how many clients are contaminated in each task."""
    rows = json.loads(file.read_text())
    runs = {(r["task"], r["server"], r["seed"]): r["rounds"] for r in rows}
    return runs, {r["task"]: r["bad"] for r in rows}


def losses(runs: Runs, task: str, server: str) -> list[float]:
    """Mean held-out loss of the benign clients after each round, over the seeds."""
    mine = [rounds for (t, s, _), rounds in runs.items() if (t, s) == (task, server)]
    return [fmean(r["loss"] for r in same) for same in zip(*mine, strict=True)]


def table(runs: Runs, task: str, bad: int) -> str:
    """Loss by round, accuracy after the last, and whom clair left out over all rounds and seeds."""
    count = len(next(iter(runs.values())))
    heads = ["server", *(f"loss, round {n + 1}" for n in range(count)), "accuracy at the end"]
    lines = [[*heads, "contaminated left out", "benign left out"]]
    lines.append(["---"] * len(lines[0]))
    for server in SERVERS:
        mine = [rounds for (t, s, _), rounds in runs.items() if (t, s) == (task, server)]
        cells = [f"{loss:.3f}" for loss in losses(runs, task, server)]
        cells.append(f"{fmean(rounds[-1]['accuracy'] for rounds in mine):.3f}")
        every = [r for rounds in mine for r in rounds if "contaminated" in r]
        right, wrong = (sum(r[key] for r in every) for key in ("right", "wrong"))
        cells += [f"{right} of {bad * len(every)}", str(wrong)] if every else ["-", "-"]
        lines.append([server, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def marked(rounds: list[dict[str, Any]], bad: frozenset[str]) -> list[dict[str, Any]]:
    """With how many of those left out are contaminated, and how many are not."""
    return [
        r | {"right": len(r["left_out"].keys() & bad), "wrong": len(r["left_out"].keys() - bad)}
        if "left_out" in r
        else r
        for r in rounds
    ]


def draw(runs: Runs, tasks: Sequence[str], path: Path) -> None:
    """A panel for each task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tasks), figsize=(5.5 * len(tasks), 4), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for server in SERVERS:
            ys = losses(runs, task, server)
            style = "-" if server.startswith("clair") else "--"
            axis.plot(range(1, len(ys) + 1), ys, style, marker="o", markersize=4, label=server)
        axis.set(title=TITLES[task], xlabel="round", ylabel="held-out loss, nats", yscale="log")
        axis.set_xticks(range(1, len(ys) + 1))
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--work", type=Path, required=True)
    add("--rounds", type=int, default=3)
    add("--seeds", type=int, nargs="+", default=[9001])
    add("--tasks", choices=TITLES, nargs="+", default=[*TITLES])
    add("--plot", type=Path, default=RESULTS / "flower.png")
    given = parser.parse_args()
    from examples.flower_app.rounds import DEFAULTS, specs

    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        for task in given.tasks:
            shared = {"seed": seed, "task": task, "rounds": given.rounds}
            bad = frozenset(s.name for s in specs(DEFAULTS | shared) if not s.benign)
            for server, options in SERVERS.items():
                name = server.replace(",", "").replace(" ", "-")
                folder = given.work.absolute() / f"{task}-{seed}-{given.rounds}" / name
                rounds = run(shared | options, folder)
                row = {"task": task, "server": server, "seed": seed, "bad": len(bad)}
                rows.append(row | {"rounds": marked(rounds, bad)})
                print(f"{task}, seed {seed}, {server}: {rounds[-1]['loss']:.3f}", file=sys.stderr)
    (given.work / "flower.json").write_text(json.dumps(rows) + "\n")
    runs, counts = kept(given.work / "flower.json")
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    for task in given.tasks:
        print(f"\n{TITLES[task]}\n\n{table(runs, task, counts[task])}")
    draw(runs, given.tasks, given.plot)


if __name__ == "__main__":
    main()
