"""How well clair finds contaminated clients whose truth is known, beside what other projects would say.

python -m benchmarks.detection --work DIR [--quick | --full] [--shift N] [--jobs 2] [--only TEXT]

A cell is one cohort: clients drawn from a pool of trained ones (pools.py, trained into DIR/pools where
they are missing), some replaced by planted attacks (attacks.py) or honestly changed (controls.py), under
names that say nothing. clair and the rules of field.py judge it; the truth stays with the cell's result
in DIR/cells, which is used again until the code changes. Tables, one row per cell and pictures go to
--out. Needs `pip install -e '.[bench]'`; `pip install --no-deps byzfl==0.0.11` makes some of the peers'
rules run from their library, else the same formulas run from here.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import measures
from benchmarks.cells import Cell, Client, differs, draw, flat, grid, plant, put
from benchmarks.field import RULES, adaptersentry, delta_view, factors_view
from benchmarks.pools import CONTAMINATED, Pool, label_of, train, train_pool
from benchmarks.saved import Saved, read
from clair_cli import Settings, detect

HERE = Path(__file__).resolve().parent
VIEWS = {"factors": factors_view, "Delta W": delta_view}
JUDGES = [
    {"name": f"{rule.name}, {view}", "code": rule.library, "told": rule.needs_count}
    for view in VIEWS
    for rule in RULES
]
"""The peers, in the order of a cell's `field`."""
Row = dict[str, Any]


# What is said about it


def judge(cell: Cell, trained: Path) -> dict[str, Any]:
    """Draw the cohort of a cell and let everybody judge it; the truth beside the verdicts."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "round"
        truth = put(draw(cell, trained), folder)
        said = clair_says(folder, truth)
        peers = field_says([read(folder / name) for name in truth], cell.bad)
    return {
        "cell": cell.name,
        "pool": cell.pool.name,
        "init": "own" if cell.pool.own_init else "shared",
        "kind": cell.pool.heterogeneity,
        "samples": cell.pool.samples,
        "group": cell.group,
        "what": cell.what,
        "attack": cell.attack,
        **said,
        "field": peers,
    }


def clair_says(folder: Path, truth: dict[str, Client]) -> dict[str, Any]:
    """clair's verdict on every client, beside what it is."""
    began = time.perf_counter()
    report = detect(folder, Settings(threads=1))
    seconds = time.perf_counter() - began
    verdicts = {v.client: v for v in report.clients}
    clients = []
    for name, client in truth.items():
        said = verdicts[name]
        named = [m.name for m in said.modules if said.limit and m.score >= said.limit]
        clients.append(
            {
                "client": name,
                "source": client.source.name,
                "kind": client.kind,
                "bad": client.bad,
                "poisoned": client.poisoned,
                "copied": client.copied,
                "verdict": said.verdict,
                "score": said.score,
                "codes": sorted({r.code for r in said.reasons}),
                "modules": named if said.modules else None,
            }
        )
    return {
        "clients": clients,
        "status": report.status,
        "findings": sorted({r.code for r in report.population.findings}),
        "seconds": seconds,
    }


def field_says(cohort: list[Saved], count: int) -> list[dict[str, Any] | None]:
    """Scores and flags of every peer, by JUDGES; they are told how many are contaminated.

    They see the modules that all clients have. A client that is not finite is flagged, as a server
    would refuse it. None: the ranks differ, so the factors are no vectors of one length.
    """
    common = [m for m in cohort[0].factors if all(m in c.factors for c in cohort)]
    alike = [
        replace(c, factors={m: tuple(f.float() for f in c.factors[m]) for m in common})
        for c in cohort
    ]
    said: list[dict[str, Any] | None] = []
    for view in VIEWS.values():
        began = time.perf_counter()
        try:
            x = view(alike)
        except RuntimeError:
            said += [None] * len(RULES)
            continue
        with np.errstate(over="ignore"):
            usable = np.isfinite(np.square(x).sum(axis=1))
        x, left = x[usable], max(0, count - int((~usable).sum()))
        reading = time.perf_counter() - began
        for rule in RULES:
            began = time.perf_counter()
            scores, flagged = np.full(len(cohort), np.inf), np.ones(len(cohort), bool)
            scores[usable], flagged[usable] = rule.judge(x, left)
            seconds = reading + time.perf_counter() - began
            said.append(
                {"scores": scores.tolist(), "flagged": flagged.tolist(), "seconds": seconds}
            )
    return said


def sentry(pool: Pool, trained: Path) -> dict[str, Any] | None:
    """AdapterSentry on some thirty files of one pool: kind -> how often which action."""
    names = [s.name for s in pool.specs() if int(s.name[-2:]) <= 2 or s.name < "clean-10"]
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            shutil.copytree(trained / pool.name / name, Path(scratch) / name)
        said = adaptersentry(Path(scratch))
    if said is None:
        return None
    actions: dict[str, Counter[str]] = {"honest": Counter(), "contaminated": Counter()}
    for name, action in said.items():
        actions["contaminated" if label_of(name) in CONTAMINATED else "honest"][action] += 1
    return {"pool": pool.name, **{who: dict(counts) for who, counts in actions.items()}}


# Running


def sources() -> str:
    """Digest of the code that a cell's result depends on."""
    digest = sha256()
    for path in sorted((HERE.parent / "clair_cli").rglob("*.py")):
        digest.update(path.read_bytes())
    for name in ("pools", "attacks", "controls", "field", "saved"):
        digest.update((HERE / f"{name}.py").read_bytes())
    for piece in (Cell, Client, draw, plant, differs, flat, put, judge, clair_says, field_says):
        digest.update(inspect.getsource(piece).encode())
    return digest.hexdigest()


def place(work: Path, *key: object) -> Path:
    """Where the result for a key is kept."""
    return work / "cells" / f"{sha256(json.dumps(key).encode()).hexdigest()[:24]}.json"


def kept(path: Path, make: Callable[..., Any], *args: Any) -> Any:
    """What is in the file, made and written there (whole or not at all) where it is missing."""
    if path.exists():
        return json.loads(path.read_text())
    result = make(*args)
    staging = path.with_suffix(f".{os.getpid()}")
    staging.write_text(json.dumps(result))
    staging.rename(path)
    return result


def run(cell: Cell, work: Path, code: str) -> Row:
    """The row of a cell, judged unless that was done before by the same code."""
    path = place(work, asdict(cell), code)
    try:
        return measures.row(kept(path, judge, cell, work / "pools"))
    except Exception as error:
        raise RuntimeError(f"cell {cell.name}: {error}") from error


def rows_of(cells: list[Cell], work: Path, jobs: int, progress: Progress) -> list[Row]:
    """The rows of all cells, in their order; more jobs than one are processes of their own."""
    (work / "cells").mkdir(parents=True, exist_ok=True)
    code = sources()
    missing = [cell for cell in cells if not place(work, asdict(cell), code).exists()]
    bar = progress.add_task("cells", total=len(cells), completed=len(cells) - len(missing))
    if jobs > 1 and missing:
        workers = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=quiet)
        try:
            for task in as_completed([workers.submit(run, c, work, code) for c in missing]):
                task.result()
                progress.advance(bar)
        finally:
            workers.shutdown(cancel_futures=True)
    elif missing:
        for cell in missing:
            run(cell, work, code)
            progress.advance(bar)
    return [run(cell, work, code) for cell in cells]


def quiet() -> None:
    """One thread; Ctrl-C is for the parent, so that a cell that has begun is finished."""
    train.one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def is_trained(pool: Pool, work: Path) -> bool:
    """Every client of the pool is there."""
    return all((work / "pools" / pool.name / s.name).is_dir() for s in pool.specs())


def train_missing(needed: Iterable[Pool], work: Path, jobs: int, progress: Progress) -> None:
    """Train the pools that are not complete."""
    for pool in needed:
        if not is_trained(pool, work):
            bar = progress.add_task(f"training {pool.name}", total=len(pool.specs()))
            for _ in train_pool(pool, work / "pools", jobs):
                progress.advance(bar)


# Results


def document(rows: list[Row], facts: dict[str, str], said: dict[str, Any] | None) -> Row:
    """Everything that the tables and the pictures are made of."""
    numbers = Settings().detection
    return {
        "facts": facts,
        "suspicious": numbers.suspicious,
        "limit": numbers.limit,
        "judges": JUDGES,
        "adaptersentry": said,
        "rows": rows,
    }


def as_json(doc: Row) -> str:
    """One line per cell."""
    head = json.dumps({k: v for k, v in doc.items() if k != "rows"}, indent=1)
    lines = ",\n".join(json.dumps(rounded(row), separators=(",", ":")) for row in doc["rows"])
    return f'{head[:-2]},\n "rows": [\n{lines}\n]}}\n'


def rounded(value: Any) -> Any:
    """Floats to 3 digits."""
    if isinstance(value, float):
        short = float(f"{value:.3g}")
        return int(short) if short.is_integer() else short
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def facts_of(given: argparse.Namespace) -> dict[str, str]:
    """How the results were made."""
    options = " --full" if given.full else " --quick"
    options += f" --shift {given.shift}" * bool(given.shift)
    options += f" --only {given.only!r}" * bool(given.only)
    return {
        "command": f"python -m benchmarks.detection --work DIR{options}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {np.__version__}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="pools and results are kept here")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="two small pools, minutes (the default)")
    mode.add_argument("--full", action="store_true", help="the published results")
    parser.add_argument("--shift", type=int, default=0, help="added to every seed of the pools")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--trained", action="store_true", help="leave out pools not trained yet")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results; none with --only")
    given = parser.parse_args()
    for library in ("OMP", "OPENBLAS", "MKL"):  # for the workers; here it is too late
        os.environ[f"{library}_NUM_THREADS"] = "1"
    train.one_thread()
    cells = [c for c in grid(given.full, given.shift) if given.only in c.name]
    if given.trained:
        ready = {p for p in {c.pool for c in cells} if is_trained(p, given.work)}
        cells = [c for c in cells if c.pool in ready]
    if not cells:
        parser.error("no cell is left")
    try:
        results = measured(cells, given)
    except KeyboardInterrupt:
        print("interrupted; what was judged is kept, run again to go on", file=sys.stderr)
        sys.exit(130)
    publish(results, given)


def measured(cells: list[Cell], given: argparse.Namespace) -> Row:
    """Train what is missing, judge every cell, and AdapterSentry's word on the first pool."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        train_missing(dict.fromkeys(c.pool for c in cells), given.work, given.jobs, progress)
        rows = rows_of(cells, given.work, given.jobs, progress)
    said = None
    if not given.only:
        first, code = cells[0].pool, (HERE / "field.py").read_text()
        said = kept(place(given.work, asdict(first), code), sentry, first, given.work / "pools")
    return document(rows, facts_of(given), said)


def publish(results: Row, given: argparse.Namespace) -> None:
    """Print the tables; write them, the rows and the pictures."""
    text = measures.as_markdown(results)
    print(text)
    if given.only and not given.out:
        return
    out = given.out or HERE / "results"
    out.mkdir(parents=True, exist_ok=True)
    mode = "full" if given.full else "quick"
    path = out / f"detection-{mode}{f'-{given.shift}' if given.shift else ''}.json"
    path.write_text(as_json(results))
    path.with_suffix(".md").write_text(text)
    if find_spec("matplotlib") is None:
        print("no pictures: matplotlib is not installed", file=sys.stderr)
        return
    from benchmarks import pictures

    pictures.draw(results, path)


if __name__ == "__main__":
    main()
