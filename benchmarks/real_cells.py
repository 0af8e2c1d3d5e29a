"""Results on cohorts, one file each, used again as long as they are of the same cohort."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_cohorts import Cohort, put


def identity(cohort: Cohort) -> dict[str, list[str]]:
    """What a kept result must be of, to be used again."""
    return {name: [c.source, c.label] for name, c in cohort.clients.items()}


def load(cohort: Cohort, folder: Path) -> dict[str, Any] | None:
    """What is kept of the same cohort; None where nothing is."""
    path = folder / f"{cohort.name}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    return kept if kept.get("clients") == identity(cohort) else None


def keep(cohort: Cohort, folder: Path, result: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    path = folder / f"{cohort.name}.json"
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_text(json.dumps(result | {"clients": identity(cohort)}))
    staging.replace(path)


@contextmanager
def written(cohort: Cohort, work: Path) -> Iterator[Path]:
    """The cohort's folder, for as long as it is needed; what lies beside it goes with it."""
    place = work / "scratch" / f"{cohort.name}.{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    try:
        put(cohort, work / "pools", place / "round")
        yield place / "round"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def digest(*paths: Path) -> str:
    """Of source files, and of those below folders."""
    found = sha256()
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            name = str(file.relative_to(path.parent))
            found.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def fill(
    cohorts: list[Cohort],
    folder: Path,
    make: Callable[[Cohort], dict[str, Any]],
    jobs: int,
    advance: Callable[[], None],
) -> None:
    """Make and keep what is missing; more jobs than one are processes of their own.

    `advance` is called after each. Raises RuntimeError, naming the cohort, where one fails; what was
    made until then is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [c for c in cohorts if load(c, folder) is None]
    if jobs == 1:
        torch.set_num_threads(1)
        for cohort in missing:
            _made(cohort, folder, make)
            advance()
        return
    workers = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_one_thread)
    try:
        for task in as_completed([workers.submit(_made, c, folder, make) for c in missing]):
            task.result()
            advance()
    finally:
        workers.shutdown(cancel_futures=True)


def _one_thread() -> None:
    """Ctrl-C is for the parent, so that what has begun is finished."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _made(cohort: Cohort, folder: Path, make: Callable[[Cohort], dict[str, Any]]) -> None:
    try:
        keep(cohort, folder, make(cohort))
    except Exception as error:
        raise RuntimeError(f"{cohort.name}: {type(error).__name__}: {error}") from error
