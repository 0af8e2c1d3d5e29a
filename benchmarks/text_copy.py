"""Held-out loss of the benign clients by what is made of a round's adapters: clair beside the field.

python -m benchmarks.text_copy --work DIR [--samples 8] [--kind KIND] [--quick] [--jobs 1]

A cohort is 14 benign and 6 contaminated adapters of a small Transformer (pools.py, trained into
DIR/pools where they are missing, each with two replicates on the halves of its samples), under names
that say nothing. Every benign client is tested on fresh samples of its own task. clair runs as `clair
refine`, in a process of its own, once on folders without the replicates and once with them; the peers
get the same files. --samples says which regimes: by default clients that have too few to learn the task
alone; --kind keeps one of the cohorts' contaminations. Results are kept in DIR/cells by group (peers,
clair, clair-replicates); --again makes a group anew. Tables and a picture go to --out.

Needs `pip install -e '.[bench]'`; some rules run from byzfl where it is installed (field.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoModelForCausalLM

from benchmarks import text_copy_tables as tables
from benchmarks.detection import is_trained, kept, quiet, train_missing
from benchmarks.field import AGGREGATES, BYZFL, delta_view, multi_krum
from benchmarks.measures import CONVICTED
from benchmarks.merging import Delta, mean_of_factors, mean_of_updates, robust, stacked, svd_merge
from benchmarks.pools import Pool, label_of, train
from benchmarks.saved import Saved, read, write
from clair_cli import __version__
from examples.text_copy.evaluate import Weights, merged, quality
from examples.text_copy.task import ClientSpec, Heterogeneity

HERE = Path(__file__).resolve().parent
BENIGN, BAD, REPLICATES = 14, 6, 2
SHIFTS = (3000, 4000, 5000, 6000, 7000)
"""Added to the numbers of the pools; no default was set on these seeds."""
KINDS = ("random", "cipher", "common-cipher", "reverse", "corrupt-50", "backdoor-30")
ALONE = {kind: {kind: BAD} for kind in KINDS}
MIXED = {"mixed": dict.fromkeys(KINDS, 1)}
PAIR = {"mixed": {"random": 3, "cipher": 3}}
Drawn = dict[str, dict[str, int]]
"""Kind of a cohort -> label of contaminated clients -> how many."""
REGIMES: tuple[tuple[Heterogeneity, int, int, Drawn], ...] = (
    ("family", 3, 24, ALONE | MIXED),
    ("none", 0, 16, PAIR),
    ("personal", 2, 48, PAIR),
    ("family", 3, 8, ALONE | MIXED),
    ("none", 0, 8, PAIR),
    ("personal", 2, 8, PAIR),
)
"""Honest heterogeneity, swaps, samples of a client, cohorts. The samples of the first three teach the
task by themselves; those of the others do not."""
QUICK = (("family", 3, 24, {kind: ALONE[kind] for kind in ("random", "corrupt-50")}),)
NO_VERDICT = 3
PATH, VALIDATION = "0,0.25,0.5,0.75,1,auto", 8
"""Strengths that clients choose from, and the samples they hold out for it."""
Row = dict[str, Any]


# Cohorts


@dataclass(frozen=True, slots=True)
class Cohort:
    """The benign clients of a pool beside some contaminated ones: their labels and how many."""

    pool: Pool
    kind: str
    bad: tuple[tuple[str, int], ...]
    seed: int  # cohorts of one seed are one draw of the table

    @property
    def name(self) -> str:
        """Unique; decides the order of the clients."""
        return f"{self.pool.name} {self.kind}"

    def clients(self) -> dict[str, ClientSpec]:
        """A name that says nothing -> the client."""
        wanted = {"clean": self.pool.clean, **dict(self.bad)}
        specs = [
            s for s in self.pool.specs() if int(s.name[-2:]) <= wanted.get(label_of(s.name), 0)
        ]
        Random(self.name).shuffle(specs)
        return {f"client-{n:02d}": spec for n, spec in enumerate(specs, start=1)}


def cohorts(quick: bool) -> list[Cohort]:
    """Every cohort of the mode; the pools of the quick one are its own."""
    found = []
    for shift in SHIFTS[:1] if quick else SHIFTS:
        seed = shift + (31 if quick else 11)
        for heterogeneity, swaps, samples, drawn in QUICK if quick else REGIMES:
            most = {k: max(bad.get(k, 0) for bad in drawn.values()) for k in KINDS}
            for own in (False, True):
                pool = Pool("llama", 64, own, heterogeneity, samples, swaps, seed=seed)
                pool = replace(pool, clean=BENIGN, odd=(*most.items(),), replicates=REPLICATES)
                found += [Cohort(pool, k, tuple(bad.items()), shift) for k, bad in drawn.items()]
                seed += 1
    return found


def put(cohort: Cohort, trained: Path, folder: Path, replicates: bool) -> None:
    """Write the cohort into `folder`, one sub-folder per client, its replicates inside or left out."""
    ignore = None if replicates else shutil.ignore_patterns("rep-*")
    for name, spec in cohort.clients().items():
        shutil.copytree(trained / cohort.pool.name / spec.name, folder / name, ignore=ignore)


# Quality


class Bench:
    """A cohort's folder, the base model and the held-out data of the benign clients."""

    def __init__(self, cohort: Cohort, folder: Path) -> None:
        self.folder, self.base = folder, train.default_base(cohort.pool.recipe)
        self.model = AutoModelForCausalLM.from_pretrained(self.base)
        self.start: Weights = {k: w.clone() for k, w in self.model.state_dict().items()}
        self.names = [*cohort.clients()]
        self.benign = {n: spec for n, spec in cohort.clients().items() if spec.benign}

    def read(self) -> list[Saved]:
        """The adapters of all clients."""
        return [read(self.folder / name) for name in self.names]

    def plus(self, delta: Delta) -> Weights:
        """The base model's weights and an update."""
        added = {f"{module}.weight": update for module, update in delta.items()}
        return {key: w + added[key] if key in added else w for key, w in self.start.items()}

    def each(self, weights: dict[str, Weights], **facts: Any) -> Row:
        """Loss and accuracy of every benign client with its own weights, beside `facts`."""
        said = [quality(self.model, weights[name], spec) for name, spec in self.benign.items()]
        return {"losses": [q.loss for q in said], "accuracies": [q.accuracy for q in said], **facts}

    def one(self, weights: Weights, **facts: Any) -> Row:
        """As `each`, with the same weights for all."""
        return self.each(dict.fromkeys(self.benign, weights), **facts)

    def timed(self, make: Callable[[], Delta]) -> Row:
        """As `one`, with the seconds it took to make one update for all from the files."""
        began = time.perf_counter()
        delta = make()
        return self.one(self.plus(delta), seconds=time.perf_counter() - began)

    def adapters(self, folder: Path) -> dict[str, Weights]:
        """The benign clients with their adapters in `folder`, else with those they sent; PEFT loads."""
        paths = {n: (folder if (folder / n).is_dir() else self.folder) / n for n in self.benign}
        return {name: merged(self.base, path) for name, path in paths.items()}

    def detection(self, flagged: Iterable[str]) -> Row:
        """How many are flagged, and how many of these are contaminated."""
        names = set(flagged)
        return {"flagged": len(names), "right": len(names - self.benign.keys())}


# The field


def peers(cohort: Cohort, folder: Path) -> Row:
    """Everything but clair."""
    bench, stack = Bench(cohort, folder), folder.parent / "stacked"
    benign = [folder / name for name in bench.benign]
    rows = {
        "base model": bench.one(bench.start),
        "local": bench.each(bench.adapters(folder)),
        "FedAvg of factors": bench.timed(lambda: mean_of_factors(bench.read()).dense()),
        "FedAvg of Delta W": bench.timed(lambda: mean_of_updates(bench.read())),
        "FedAvg of the benign": bench.timed(lambda: mean_of_updates([*map(read, benign)])),
    }
    for name, rule in AGGREGATES.items():
        rows[name] = bench.timed(lambda rule=rule: robust(rule, bench.read(), BAD))
    flags = multi_krum(delta_view(bench.read()), BAD)[1]
    rows["Multi-Krum"] |= bench.detection(
        n for n, bad in zip(bench.names, flags, strict=True) if bad
    )
    began = time.perf_counter()
    write(stacked(bench.read()), stack)
    weights = merged(bench.base, stack)
    rows["stacking (FLoRA)"] = bench.one(
        weights,
        seconds=time.perf_counter() - began,
        off=distance(weights, bench.plus(mean_of_updates(bench.read())), bench.start),
    )
    began = time.perf_counter()
    weights = svd_merge(bench.base, [folder / n for n in bench.names], cohort.pool.rank)
    rows["PEFT svd merge"] = bench.one(weights, seconds=time.perf_counter() - began)
    return rows


def distance(one: Weights, other: Weights, start: Weights) -> float:
    """Of two models, over the second's distance from `start`."""
    off = sum((one[k] - other[k]).square().sum() for k in start)
    return float((off / sum((other[k] - start[k]).square().sum() for k in start)).sqrt())


# clair


def clair(cohort: Cohort, folder: Path) -> Row:
    """`clair refine`: each benign client's refined adapter, and the global one.

    Benign clients without a refined adapter are counted as left out, and keep their own.
    """
    out = folder.parent / "refined"
    status, seconds = refine(folder, out, "--global")
    bench = Bench(cohort, folder)
    if status == NO_VERDICT:
        refined = bench.each(bench.adapters(folder), seconds=seconds, left_out=len(bench.benign))
        refined |= bench.detection(())
        return {"code": code(), "refined": refined, "global": refined, "chosen": refined}
    verdicts = json.loads((out / "report.json").read_bytes())["clients"]
    said = bench.detection(c["id"] for c in verdicts if c["verdict"] in CONVICTED)
    said |= {"seconds": seconds, "left_out": sum(not (out / n).is_dir() for n in bench.benign)}
    results = {
        "code": code(),
        "refined": bench.each(bench.adapters(out), **said),
        "global": bench.one(merged(bench.base, out / "global"), **said),
    }
    if not any(folder.glob("*/rep-*")):
        results["chosen"] = chosen(bench, folder.parent / "candidates", said)
    return results


def refine(folder: Path, out: Path, *options: str) -> tuple[int, float]:
    """Run `clair refine` as a process: its exit code, 0 or NO_VERDICT, and seconds."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "clair_cli.entry", "refine", folder, "--out", out, *options],
        cwd=folder.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        check=False,
    )
    if done.returncode not in (0, NO_VERDICT):
        raise RuntimeError(f"clair refine ended with {done.returncode}: {done.stderr.decode()}")
    return done.returncode, time.perf_counter() - began


def chosen(bench: Bench, out: Path, said: Row) -> Row:
    """Every client's best of a path of strengths by VALIDATION samples of its own, as `clair select`."""
    _, seconds = refine(bench.folder, out, "--path", PATH)
    best: dict[str, Weights] = {}
    for name, spec in bench.benign.items():
        own = replace(
            spec, seed=spec.seed + 500_000
        )  # neither what it trained nor what it is judged on
        places = sorted(out.glob(f"strength-*/{name}")) or [bench.folder / name]
        candidates = [merged(bench.base, place) for place in places]
        losses = [quality(bench.model, w, own, VALIDATION).loss for w in candidates]
        best[name] = candidates[losses.index(min(losses))]
    return bench.each(best, **said | {"seconds": seconds})


def code() -> str:
    """Digest of clair's source."""
    digest = sha256()
    for path in sorted((HERE.parent / "clair_cli").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


# Running


GROUPS = {"peers": peers, "clair": clair, "clair-replicates": clair}
"""What is kept, and made anew, together."""


def place(cohort: Cohort, group: str, work: Path) -> Path:
    """Where a result is kept."""
    return work / "cells" / group / f"{cohort.name}.json"


def judge(cohort: Cohort, group: str, work: Path) -> Row:
    """Write the cohort down and let the group have it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "round"
        put(cohort, work / "pools", folder, replicates=group == "clair-replicates")
        return GROUPS[group](cohort, folder)


def cell(cohort: Cohort, group: str, work: Path) -> Row:
    """The result of a group on a cohort, made where it is missing."""
    try:
        return kept(place(cohort, group, work), judge, cohort, group, work)
    except Exception as error:
        raise RuntimeError(f"{group}, {cohort.name}: {error}") from error


def fill(wanted: list[Cohort], work: Path, jobs: int, progress: Progress) -> None:
    """Make what is missing, in processes of their own."""
    for group in GROUPS:
        (work / "cells" / group).mkdir(parents=True, exist_ok=True)
        missing = [c for c in wanted if not place(c, group, work).exists()]
        bar = progress.add_task(group, total=len(wanted), completed=len(wanted) - len(missing))
        workers = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=quiet)
        try:
            for task in as_completed([workers.submit(cell, c, group, work) for c in missing]):
                task.result()
                progress.advance(bar)
        finally:
            workers.shutdown(cancel_futures=True)


def row(cohort: Cohort, work: Path) -> Row:
    """All that the tables are made of: the cohort, and method -> result."""
    said = {group: cell(cohort, group, work) for group in GROUPS}
    methods = dict(said["peers"])
    for group, suffix in (("clair", ""), ("clair-replicates", ", replicates")):
        results = {what: result for what, result in said[group].items() if what != "code"}
        methods |= {f"clair {what}{suffix}": result for what, result in results.items()}
    return {
        "regime": f"{cohort.pool.heterogeneity} n{cohort.pool.samples}",
        "init": "own" if cohort.pool.own_init else "shared",
        "kind": cohort.kind,
        "seed": cohort.seed,
        "bad": sum(count for _, count in cohort.bad),
        "methods": methods,
        "code": sorted({said["clair"]["code"], said["clair-replicates"]["code"]}),
    }


def facts_of(given: argparse.Namespace, rows: list[Row]) -> dict[str, str]:
    """How the results were made."""
    codes = sorted({code for r in rows for code in r["code"]})
    if codes != [code()]:
        print(f"clair's rows are of code {codes}, now it is {code()}: see --again", file=sys.stderr)
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "peft", "transformers", "numpy"))
    return {
        "command": "python -m benchmarks.text_copy --work DIR"
        + " --quick" * given.quick
        + f" --samples {' '.join(map(str, given.samples))}" * (given.samples != [8])
        + f" --kind {given.kind}" * bool(given.kind)
        + " --ready" * given.ready,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": f"python {platform.python_version()}, {packages}, "
        + (f"byzfl {version('byzfl')}, " if BYZFL else "")
        + f"clair {__version__} (source {', '.join(codes)})",
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="pools and results are kept here")
    parser.add_argument("--quick", action="store_true", help="one seed, a family, two kinds")
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[8], help="regimes by a client's samples"
    )
    parser.add_argument("--kind", help="cohorts of one contamination, such as mixed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--again", choices=GROUPS, action="append", default=[], help="make it anew")
    parser.add_argument("--trained", action="store_true", help="leave out pools not trained yet")
    parser.add_argument(
        "--ready", action="store_true", help="make nothing, tables of what is there"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args(words)
    for library in ("OMP", "OPENBLAS", "MKL"):  # for the workers; here it is too late
        os.environ[f"{library}_NUM_THREADS"] = "1"
    train.one_thread()
    wanted = cohorts(given.quick)
    if not given.quick:
        wanted = [c for c in wanted if c.pool.samples in given.samples]
    if given.kind:
        wanted = [c for c in wanted if c.kind == given.kind]
    if given.trained:
        ready = {p for p in {c.pool for c in wanted} if is_trained(p, given.work)}
        wanted = [c for c in wanted if c.pool in ready]
    if given.ready:
        wanted = [c for c in wanted if all(place(c, g, given.work).exists() for g in GROUPS)]
        if not wanted:
            sys.exit("nothing is ready")
    for group in given.again:
        for cohort in wanted:
            place(cohort, group, given.work).unlink(missing_ok=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        if not given.ready:
            pools = dict.fromkeys(c.pool for c in wanted)
            train_missing(pools, given.work, given.jobs, progress)
        fill(wanted, given.work, given.jobs, progress)
    rows = [row(c, given.work) for c in wanted]
    publish(rows, facts_of(given, rows), given.out / f"text_copy{suffix(given)}.md")


def suffix(given: argparse.Namespace) -> str:
    """What tells the files of other regimes from the headline table's."""
    if given.quick:
        return "-quick"
    return "" if given.samples == [8] else "".join(f"-n{n}" for n in given.samples)


def publish(rows: list[Row], facts: dict[str, str], path: Path) -> None:
    """Print the tables; write them and the picture."""
    text = tables.as_markdown(rows, facts, path.with_suffix(".png").name)
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    tables.draw(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
