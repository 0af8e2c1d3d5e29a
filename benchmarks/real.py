"""How well clair judges clients trained on a pretrained model and real text.

python -m benchmarks.real --data DATA --work DIR [--seeds set|held-out|all] [--jobs 1] [--quick]

Pools of clients (real_pools.py) are trained into DIR/pools where they are missing. Cohorts are drawn
from them (real_cohorts.py) and judged by clair; its reports are kept in DIR/reports under a digest of
its source and used again. Everything that was set, was set on the pools of the first seeds; nothing
was on those held out. Tables go to --out.

--python PY and --source CLONE have the cohorts judged by another clair, whose reports --against takes.
Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import real_tables as tables
from benchmarks.real_cohorts import HELD_OUT, SET, Cohort, cohorts
from benchmarks.real_judges import Clair, Judged, clair_of, judge, load
from benchmarks.real_pools import train_pool

HERE = Path(__file__).resolve().parent
SEEDS = {"set": (SET,), "held-out": (HELD_OUT,), "all": (SET, HELD_OUT)}
QUICK = ("even.none.1", "even.random.1", "even.colluder-half.1")


def selected(seeds: str, only: str = "", quick: bool = False) -> list[Cohort]:
    """The cohorts of the seeds whose name holds `only`; `quick`: three of one pool."""
    found = [c for seed in SEEDS[seeds] for c in cohorts(seed)]
    if quick:
        found = [c for c in found if c.pool == found[0].pool and c.name.endswith(QUICK)]
    return [c for c in found if only in c.name]


def sources(wanted: list[Cohort]) -> dict[str, tuple[Cohort, set[str]]]:
    """Pool name -> a cohort of it, and the clients that are needed of it."""
    found: dict[str, tuple[Cohort, set[str]]] = {}
    for cohort in wanted:
        needed = found.setdefault(cohort.pool.name, (cohort, set()))[1]
        needed |= {client.source for client in cohort.clients.values()}
    return found


def train(wanted: list[Cohort], data: Path, work: Path, jobs: int, progress: Progress) -> None:
    """Train the clients that are needed and missing."""
    for name, (cohort, needed) in sources(wanted).items():
        folder = work / "pools" / name
        if all((folder / source).is_dir() for source in needed):
            continue
        bar = progress.add_task(f"training {name}", total=len(needed))
        for _ in train_pool(cohort.pool, data.resolve(), work / "pools", jobs, needed):
            progress.advance(bar)


def ready(wanted: list[Cohort], work: Path) -> list[Cohort]:
    """Those whose clients are all there."""
    return [
        c
        for c in wanted
        if all((work / "pools" / c.pool.name / k.source).is_dir() for k in c.clients.values())
    ]


def judged(
    wanted: list[Cohort], clair: Clair, work: Path, jobs: int, progress: Progress
) -> list[Judged]:
    """What `clair` says of the cohorts."""
    reports = clair.reports(work)
    done = sum(load(c, reports) is not None for c in wanted)
    bar = progress.add_task(
        f"clair {clair.version} {clair.digest}", total=len(wanted), completed=done
    )
    judge(wanted, clair, work, jobs, lambda: progress.advance(bar))
    return kept(wanted, reports)


def kept(wanted: list[Cohort], reports: Path) -> list[Judged]:
    """What is kept of the cohorts."""
    return [found for c in wanted if (found := load(c, reports)) is not None]


# Results


def facts(given: argparse.Namespace, clair: Clair) -> str:
    """How the results were made."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "peft", "transformers"))
    command = f"python -m benchmarks.real --data DATA --work DIR --seeds {given.seeds}"
    for option in ("quick", "refine"):
        command += f" --{option}" * bool(getattr(given, option, False))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return (
        f"`{command}`, on {machine}; python {platform.python_version()}, {packages}, "
        f"clair {clair.version} (source {clair.digest})."
    )


def as_markdown(made: str, now: list[Judged], before: list[Judged]) -> str:
    """Everything."""
    parts = [
        f"""# Real models: {len(now)} cohorts

{made}

Clients are LoRA adapters of one pretrained model of 656 k parameters, trained on real text: language
modelling on plays, news, messages and bank questions; spam or not; 8 banking intents. Cohorts of one
pool share clients.

{tables.__doc__.partition(chr(10) * 2)[2].strip()}
An honest client is a minority that it is not, where its domain, classes and training length are those of
the majority.

Everything that was set was set on the pools of seeds {SET} to {SET + 5}. Nothing was set or tried on
those of seeds {HELD_OUT} to {HELD_OUT + 5}.

## What is wanted

{tables.targets(now, before)}
"""
    ]
    for title, held in (
        ("Seeds that nothing was set on", True),
        ("Seeds that things were set on", False),
    ):
        if these := [j for j in now if j.cohort.held_out == held]:
            parts.append(f"## {title}\n\n{tables.verdict_tables(these)}\n")
    return "\n".join(parts)


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
    add("--python", default=sys.executable, help="the interpreter of another clair")
    add("--source", type=Path, help="where another clair's source lies")
    add("--against", type=Path, help="kept reports of another clair, for a column")
    add("--out", type=Path, default=HERE / "results")
    return parser


def main(words: list[str] | None = None) -> None:
    given = arguments().parse_args(words)
    for library in ("OMP", "OPENBLAS", "MKL"):  # for processes that are started
        os.environ[f"{library}_NUM_THREADS"] = "1"
    work = given.work.resolve()
    ours = given.python == sys.executable and not given.source
    clair = clair_of(given.python, given.source or (HERE.parent if ours else None))
    wanted = selected(given.seeds, given.only, given.quick)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        if not given.no_train:
            train(wanted, given.data, work, given.jobs, progress)
        wanted = ready(wanted, work)
        if not wanted:
            sys.exit("no cohort is left")
        now = judged(wanted, clair, work, given.jobs, progress)
    before = kept(wanted, given.against) if given.against else []
    text = as_markdown(facts(given, clair), now, before)
    print(text)
    print(f"reports: {clair.reports(work)}", file=sys.stderr)
    if ours:
        name = "real-quick.md" if given.quick else "real.md"
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / name).write_text(text)


if __name__ == "__main__":
    main()
