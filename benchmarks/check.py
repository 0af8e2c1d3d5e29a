"""How well verdicts by sketches, and those of `clair check`, agree with those of whole adapters.

python -m benchmarks.check --work DIR [--shift 2000] [--left-out 10] [--every 6] [--train] [--trained]

Cohorts are drawn ones, whose clients have a known share of a common update; the samples, and every
attack of attacks.py on them; and with `--trained` those of detection.py from two pools of width 128,
which `--train` makes first. Each is judged by whole adapters and by sketches of every size. In every
sixth (`--every`), up to `--left-out` of them, every client is left out of the reference in turn and
checked against the others. Rows go to DIR/rows.jsonl, and what is there is not made again; `--speed`
keeps its seconds in DIR/speed.json. No number of clair's was set by these cohorts; `--shift 0` has
others to try things on.
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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import check_tables, lines
from benchmarks.attacks import ATTACKS
from benchmarks.cells import draw, grid, put
from benchmarks.check_tables import CHECKED
from benchmarks.pools import Pool, quick_pools, train_pool
from benchmarks.saved import Saved, read, write
from benchmarks.speed import make_adapters
from clair_cli import Settings, pipeline
from clair_cli.cohort import Sketching
from clair_cli.report import Report

SIZES = (32, 64, 128, 256)
SHAPES = ((384, 320), (320, 320), (960, 320), (320, 960))
"""Of the drawn cohorts' modules."""
RANK, CONTENT = 8, 4
SAMPLES = Path(__file__).resolve().parent.parent / "sample_adapters"
README = shutil.ignore_patterns("README.md")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a drawn client has: its share of the common content, its noise, and what it adds."""

    content: float
    noise: float
    added: float = 0.0
    scale: float = 1.0


KINDS = {
    "clean": Kind(1, 1),
    "few": Kind(0.8, 3),
    "half": Kind(0.5, 1.5),
    "random": Kind(0, 1.4),
    "opposed": Kind(-1, 1),
    "adds": Kind(1, 1, 1.0),
    "other": Kind(0, 1, 1.2),
    "large": Kind(1, 1, 0, 5),
}
MIXES: tuple[dict[str, int], ...] = (
    {},
    {"few": 2},
    {"half": 2},
    {"random": 1},
    {"random": 2, "half": 1},
    {"opposed": 1},
    {"adds": 3},
    {"other": 2},
    {"large": 1},
    {"few": 1, "random": 1, "adds": 2},
)


def drawn(folder: Path, clients: int, mix: dict[str, int], own: bool, seed: int) -> None:
    """A cohort: B = content seen through A, noise and additions; A is shared or each client's own."""
    kinds = [k for k, n in mix.items() for _ in range(n)]
    kinds += ["clean"] * (clients - len(kinds))
    for k, name in enumerate(kinds):
        kind, factors = KINDS[name], {}
        for m, (d_out, d_in) in enumerate(SHAPES):
            common = torch.Generator().manual_seed(10**6 * seed + m)
            other = torch.Generator().manual_seed(10**6 * seed + 100 + m)
            alone = torch.Generator().manual_seed(10**6 * seed + 1000 * (k + 1) + m)
            a = torch.randn(RANK, d_in, generator=alone if own else common) / d_in**0.5
            through = torch.randn(CONTENT, RANK, generator=alone if own else common) / RANK**0.5
            b = kind.content * torch.randn(d_out, CONTENT, generator=common) @ through
            b += kind.noise * torch.randn(d_out, RANK, generator=alone)
            b += kind.added * torch.randn(d_out, CONTENT, generator=other) @ through
            factors[f"layers.{m}.proj"] = (0.01 * kind.scale * b).bfloat16(), a.bfloat16()
        config = {
            "peft_type": "LORA",
            "r": RANK,
            "lora_alpha": RANK,
            "target_modules": ["proj"],
            "base_model_name_or_path": "drawn",
        }
        write(Saved(factors, config), folder / f"client-{k + 1:02d}")


def wide(shift: int) -> list[Pool]:
    """Two pools whose modules are wider than the smaller sketches."""
    return [replace(pool, width=128) for pool in quick_pools(shift)]


def cohorts(work: Path, shift: int, trained: bool) -> Iterator[tuple[str, Any]]:
    """Names, and what makes the cohort in a folder."""
    number = 0
    for clients in (6, 9, 14):
        for own in (False, True):
            for mix in MIXES:
                number += 1
                said = " + ".join(f"{k} {n}" for k, n in mix.items()) or "clean"
                name = f"drawn {'own' if own else 'shared'}: {said} of {clients}"
                seed = 100 * (shift + 11) + number

                def make(
                    folder: Path,
                    c: int = clients,
                    m: dict[str, int] = mix,
                    o: bool = own,
                    s: int = seed,
                ) -> None:
                    drawn(folder, c, m, o, s)

                yield name, make
    yield "samples", lambda folder: shutil.copytree(SAMPLES, folder, ignore=README)
    for attack in ATTACKS:
        yield f"samples: {attack.name}", partial(attacked, attack.name, shift)
    if trained:
        pools = {pool.seed: pool for pool in wide(shift)}
        for cell in grid(False, shift):
            cell = replace(cell, pool=pools[cell.pool.seed])
            if not (work / "pools" / cell.pool.name).exists():
                continue

            def made(folder: Path, cell: Any = cell) -> None:
                put(draw(cell, work / "pools"), folder)

            yield cell.name, made


def attacked(name: str, shift: int, folder: Path) -> None:
    """The six benign samples, and two attackers who know them."""
    (attack,) = (a for a in ATTACKS if a.name == name)
    benign = [read(SAMPLES / f"client-{k:02d}") for k in (1, 2, 4, 5, 7, 8)]
    draws = torch.Generator().manual_seed(shift + 11)
    for k, adapter in enumerate([*benign, *attack.make(benign[:2], benign[2:], draws)]):
        write(adapter, folder / f"client-{k + 1:02d}")


def said(report: Report) -> dict[str, tuple[str | None, float | None]]:
    """Verdict and score of every client."""
    return {c.client: (c.verdict, c.score) for c in report.clients}


def judged(name: str, make: Any, sizes: list[int], left_out: bool) -> Row:
    """One cohort by whole adapters, and by sketches of every size."""
    settings = Settings(threads=1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, file = Path(scratch) / "round", Path(scratch) / "all.clair"
        make(folder)
        began = time.perf_counter()
        exact = pipeline.detect(folder, settings)
        row: Row = {"name": name, "detect_s": time.perf_counter() - began}
        row |= {"status": exact.status, "exact": said(exact), "by": {}, "checked": {}}
        for size in sorted({*sizes, CHECKED} if left_out else sizes):
            began = time.perf_counter()
            report, _ = pipeline.fit(folder, file, settings, Sketching(size, 0))
            row["by"][str(size)] = {
                "clients": said(report),
                "status": report.status,
                "seconds": time.perf_counter() - began,
                "error": max((m.sketch_error for m in report.population.modules), default=0.0),
            }
        if left_out and exact.status == "complete":
            row["checked"] = checked(folder, Path(scratch), settings)
    return row


def checked(folder: Path, scratch: Path, settings: Settings) -> Row:
    """Every client left out of the reference and checked against it: verdict, score, seconds."""
    found: Row = {}
    for client in sorted(folder.iterdir()):
        aside = scratch / "uploads" / client.name
        aside.parent.mkdir(exist_ok=True)
        shutil.move(client, aside)
        file = scratch / "rest.clair"
        _, fitted = pipeline.fit(folder, file, settings, Sketching(CHECKED, 0))
        if fitted is not None:
            began = time.perf_counter()
            _, one = pipeline.check(aside, file, settings)
            spent = time.perf_counter() - began
            found[client.name] = (one.verdict.verdict, one.verdict.score, spent)
        shutil.move(aside, client)
    return found


# --- seconds


def speed(work: Path, clients: int = 20, layers: int = 2, repeat: int = 2) -> Row:
    """Seconds of whole commands, one after the other: detect, fit, check; 8B shapes of rank 16."""
    folder, file = work / "speed", work / "speed.clair"
    upload = work / f"client-{clients:02d}"
    if not folder.exists():
        make_adapters(folder, clients, layers, 16)
        shutil.move(folder / upload.name, upload)
    commands = {
        "detect DIR": ["detect", folder],
        "fit DIR": ["fit", folder, "-o", file],
        "check UPLOAD --against DIR": ["check", upload, "--against", folder],
        "check UPLOAD --against FILE": ["check", upload, "--against", file],
    }
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeat):
        for name, words in commands.items():
            began = time.perf_counter()
            code = "import sys; from clair_cli.entry import main; sys.argv[0] = 'clair'; main()"
            quiet = [sys.executable, "-c", code, *map(str, words), "-q", "--no-progress"]
            done = subprocess.run(quiet, capture_output=True, check=False)
            assert done.returncode in (0, 1), done.stderr
            spent[name].append(time.perf_counter() - began)
    sizes = [sum(f.stat().st_size for f in folder.rglob("*.safetensors")), file.stat().st_size]
    return {"seconds": spent, "adapters_mb": sizes[0] / 1e6, "reference_mb": sizes[1] / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shift", type=int, default=2000)
    parser.add_argument("--only", default="")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--left-out", type=int, default=10)
    parser.add_argument(
        "--every", type=int, default=6, help="Leave clients out of every so manieth."
    )
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--train", action="store_true", help="Train the pools first.")
    parser.add_argument("--speed", action="store_true", help="Time whole commands, and no more.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    if given.speed:
        found = speed(given.work)
        (given.work / "speed.json").write_text(json.dumps(found) + "\n")
        print(check_tables.speed(found))
        return
    if given.train:
        for pool in wide(given.shift):
            for spec in train_pool(pool, given.work / "pools", jobs=1):
                print(pool.name, spec.name, flush=True)
    kept = given.work / "rows.jsonl"
    rows = lines.kept(kept)
    known = {row["name"] for row in rows}
    for number, (name, make) in enumerate(cohorts(given.work, given.shift, given.trained)):
        if name in known or given.only not in name:
            continue
        left_out = number % given.every == 0 and number < given.every * given.left_out
        rows.append(judged(name, make, given.sizes, left_out))
        lines.keep(kept, rows[-1])
    print(check_tables.by_size(rows))
    print(check_tables.left_out(rows))
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")


if __name__ == "__main__":
    main()
