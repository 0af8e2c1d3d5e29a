"""How well clair judges and refines clients trained on a pretrained model and real text.

python -m benchmarks.real --data DATA --work DIR [--seeds set|held-out|all] [--jobs 1] [--quick]

Pools of clients (real_pools.py) are trained into DIR/pools where they are missing. Cohorts are drawn
from them (real_cohorts.py) and judged by clair; its reports are kept in DIR/reports under a digest of
its source and used again. Everything that was set, was set on the pools of the first seeds; nothing
was on those held out. Tables and a picture go to --out.

--peers lets others judge them, too. --refine has some cohorts refined and tests every honest client on
held-out texts. --python PY and --source CLONE have the cohorts judged by another clair, whose reports
--against takes; --synthetic shows the figures of detection.py beside. Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import real_document, real_peers, real_refine, real_synthetic
from benchmarks.real_cells import digest, fill, load
from benchmarks.real_cohorts import HELD_OUT, SET, Cohort, cohorts
from benchmarks.real_document import Results
from benchmarks.real_judges import Clair, Judged, clair_of, judge, said_of
from benchmarks.real_pools import train_pool
from benchmarks.real_refine_tables import Row

HERE = Path(__file__).resolve().parent
SEEDS = {"set": (SET,), "held-out": (HELD_OUT,), "all": (SET, HELD_OUT)}
QUICK = ("even.none.1", "even.random.1", "even.colluder-half.1")
PEERS = digest(HERE / "real_peers.py", HERE / "field.py")
FIELD = digest(HERE / "real_refine.py", HERE / "merging.py", HERE / "field.py")
CLAIR = digest(HERE.parent / "clair_cli", HERE / "real_refine.py")
"""Under which results are kept."""


def selected(seeds: str, only: str = "", quick: bool = False) -> list[Cohort]:
    """The cohorts of the seeds whose name holds `only`; `quick`: three of one pool."""
    found = [c for seed in SEEDS[seeds] for c in cohorts(seed)]
    if quick:
        found = [c for c in found if c.pool == found[0].pool and c.name.endswith(QUICK)]
    return [c for c in found if only in c.name]


# Making what is missing


def train(wanted: list[Cohort], data: Path, work: Path, jobs: int, progress: Progress) -> None:
    """Train the clients that are needed and missing."""
    for pool in dict.fromkeys(c.pool for c in wanted):
        needed = {k.source for c in wanted if c.pool == pool for k in c.clients.values()}
        folder = work / "pools" / pool.name
        if all((folder / source).is_dir() for source in needed):
            continue
        bar = progress.add_task(f"training {pool.name}", total=len(needed))
        for _ in train_pool(pool, data, work / "pools", jobs, needed):
            progress.advance(bar)


def is_trained(cohort: Cohort, work: Path) -> bool:
    """Its clients are all there."""
    folder = work / "pools" / cohort.pool.name
    return all((folder / client.source).is_dir() for client in cohort.clients.values())


def judged(
    wanted: list[Cohort], clair: Clair, work: Path, jobs: int, progress: Progress
) -> list[Judged]:
    """What `clair` says of the cohorts."""
    reports = clair.reports(work)
    done = len(kept(wanted, reports))
    name = f"clair {clair.version} {clair.digest}"
    bar = progress.add_task(name, total=len(wanted), completed=done)
    judge(wanted, clair, work, jobs, lambda: progress.advance(bar))
    return kept(wanted, reports)


def kept(wanted: list[Cohort], reports: Path) -> list[Judged]:
    """What is kept of the cohorts."""
    return [found for c in wanted if (found := said_of(c, reports)) is not None]


def there(wanted: list[Cohort], *folders: Path) -> list[Cohort]:
    """Those of whom something is kept in each of the folders."""
    return [c for c in wanted if all(load(c, folder) is not None for folder in folders)]


def made(
    name: str,
    wanted: list[Cohort],
    folder: Path,
    make: Callable[[Cohort], dict[str, Any]],
    jobs: int,
    progress: Progress,
) -> list[tuple[Cohort, dict[str, Any]]]:
    """The cohorts, and what `make` makes of them or has made."""
    done = sum(load(c, folder) is not None for c in wanted)
    bar = progress.add_task(name, total=len(wanted), completed=done)
    fill(wanted, folder, make, jobs, lambda: progress.advance(bar))
    return [(c, found) for c in wanted if (found := load(c, folder)) is not None]


def results(given: argparse.Namespace, clair: Clair, progress: Progress) -> Results:
    """Everything that is asked for."""
    data, work, jobs = given.data.resolve(), given.work.resolve(), given.jobs
    wanted = selected(given.seeds, given.only, given.quick)
    if given.ready:
        wanted = there(wanted, clair.reports(work))
    else:
        if not given.no_train:
            train(wanted, data, work, jobs, progress)
        wanted = [c for c in wanted if is_trained(c, work)]
    if not wanted:
        sys.exit("no cohort is left")
    now = judged(wanted, clair, work, jobs, progress)
    before = kept(wanted, given.against) if given.against else []
    scores, rows = {}, []
    if given.peers:
        make = partial(real_peers.judged, data, work)
        folder = work / "peers" / PEERS
        those = there(wanted, folder) if given.ready else wanted
        found = made("peers", those, folder, make, jobs, progress)
        scores = {c.name: said["scores"] for c, said in found}
    if given.refine:
        unseen = [c for c in wanted if c.held_out] or wanted
        these = real_refine.chosen(unseen, given.refine, given.conditions)
        if given.ready:
            these = there(these, work / "refined" / FIELD, work / "refined" / CLAIR)
        rows = refined(these, data, work, jobs, progress)
    synthetic = real_synthetic.cohorts(given.synthetic) if given.synthetic else []
    return Results(facts(given, clair), now, before, synthetic, scores, rows)


def refined(
    wanted: list[Cohort], data: Path, work: Path, jobs: int, progress: Progress
) -> list[Row]:
    """What clair and others make of the cohorts."""
    field, ours = (partial(make, data, work) for make in (real_refine.field, real_refine.ours))
    folder = work / "refined"
    theirs = made("refined by others", wanted, folder / FIELD, field, jobs, progress)
    own = made("refined by clair", wanted, folder / CLAIR, ours, jobs, progress)
    return [
        Row(cohort, their["quality"] | our["quality"])
        for (cohort, their), (_, our) in zip(theirs, own, strict=True)
    ]


# Results


def facts(given: argparse.Namespace, clair: Clair) -> str:
    """How the results were made."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "peft", "transformers"))
    command = f"python -m benchmarks.real --data DATA --work DIR --seeds {given.seeds}"
    command += " --quick" * given.quick + " --peers" * given.peers
    command += f" --refine {given.refine}" * bool(given.refine)
    command += f" --conditions {' '.join(given.conditions)}" * bool(given.conditions)
    command += f" --only {given.only}" * bool(given.only)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return (
        f"`{command}`,\non {machine}; python {platform.python_version()}, {packages},\n"
        f"clair {clair.version} (source {clair.digest})."
    )


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the pretrained model and the texts")
    add("--work", type=Path, required=True, help="pools, reports and results are kept here")
    add("--seeds", choices=SEEDS, default="all", help="that things were set on, or nothing was")
    add("--quick", action="store_true", help="three cohorts")
    add("--only", default="", metavar="TEXT", help="cohorts whose name holds this")
    add("--jobs", type=int, default=1, help="processes")
    add("--no-train", action="store_true", help="leave out cohorts of clients not trained yet")
    add("--ready", action="store_true", help="make nothing, tables of what is there")
    add("--peers", action="store_true", help="what others would say")
    add(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="refine N of each pool and condition, held out",
    )
    add("--conditions", nargs="+", default=[], help="refine cohorts of these only; all by default")
    add("--python", default=sys.executable, help="the interpreter of another clair")
    add("--source", type=Path, help="where another clair's source lies")
    add("--against", type=Path, help="kept reports of another clair, to compare with")
    add("--synthetic", type=Path, help="what detection.py wrote as JSON, to show beside")
    add("--out", type=Path, help="default: benchmarks/results; none with --only")
    return parser


def main(words: list[str] | None = None) -> None:
    given = arguments().parse_args(words)
    for library in ("OMP", "OPENBLAS", "MKL"):  # for processes that are started
        os.environ[f"{library}_NUM_THREADS"] = "1"
    ours = given.python == sys.executable and not given.source
    clair = clair_of(given.python, HERE.parent if ours else given.source)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    try:
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
            found = results(given, clair, progress)
    except KeyboardInterrupt:
        print("interrupted; what was made is kept, run again to go on", file=sys.stderr)
        sys.exit(130)
    out = given.out or (None if given.only or not ours else HERE / "results")
    publish(found, out, "real-quick" if given.quick else "real")
    print(f"reports: {clair.reports(given.work.resolve())}", file=sys.stderr)


def publish(found: Results, out: Path | None, name: str) -> None:
    """Print the tables; write them and the picture into the folder `out`, where one is given."""
    picture = f"{name}-roc.png"
    text = real_document.as_markdown(found, picture)
    print(text)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text)
    if find_spec("matplotlib"):
        real_document.draw(found, out / picture)
    else:
        print("no picture: matplotlib is not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
