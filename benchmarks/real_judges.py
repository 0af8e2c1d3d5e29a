"""Reports of a clair on cohorts, kept under a digest of its source; any version, any interpreter."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.real_cells import digest, keep, load, written
from benchmarks.real_cohorts import Cohort

WORKER = Path(__file__).with_name("real_worker.py")
ASK = "import clair_cli; print(clair_cli.__file__); print(clair_cli.__version__)"


@dataclass(frozen=True, slots=True)
class Judged:
    """What was said of a cohort: client -> verdict, None without one; client -> score."""

    cohort: Cohort
    verdicts: dict[str, str | None]
    scores: dict[str, float]
    seconds: float

    @property
    def silent(self) -> bool:
        """There was no verdict."""
        return None in self.verdicts.values()


@dataclass(frozen=True, slots=True)
class Clair:
    """A clair: its interpreter, where its source is looked for first, and what that finds."""

    python: str
    environment: dict[str, str]
    version: str
    digest: str

    def reports(self, work: Path) -> Path:
        """Where what it said is kept."""
        return work / "reports" / self.digest


def clair_of(python: str, source: Path | None) -> Clair:
    """The clair that `python` finds, in `source` before anywhere else."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    if source:
        environment["PYTHONPATH"] = str(source.resolve())
    asked = [python, "-c", ASK]
    said = subprocess.run(
        asked, env=environment, cwd=WORKER.anchor, check=True, capture_output=True, text=True
    )
    path, version = said.stdout.split("\n")[:2]
    return Clair(python, environment, version, digest(Path(path).parent))


def said_of(cohort: Cohort, reports: Path) -> Judged | None:
    """What is kept of the cohort; None where nothing is."""
    kept = load(cohort, reports)
    if kept is None:
        return None
    said = {c["id"]: c for c in kept["report"]["clients"]}
    silent = kept["report"]["status"] == "no_verdict"
    return Judged(
        cohort,
        {name: None if silent else said[name]["verdict"] for name in cohort.clients},
        {name: said[name].get("score") or 0.0 for name in cohort.clients},
        kept["seconds"],
    )


def judge(
    cohorts: list[Cohort], clair: Clair, work: Path, jobs: int, advance: Callable[[], None]
) -> None:
    """Have judged and keep what is missing; `advance` is called after each.

    Raises RuntimeError, naming the cohort, where clair fails; what was judged until then is kept.
    """
    clair.reports(work).mkdir(parents=True, exist_ok=True)
    missing = [c for c in cohorts if load(c, clair.reports(work)) is None]
    if not missing:
        return
    with asking(clair, min(jobs, len(missing))) as ask, ThreadPoolExecutor(jobs) as threads:
        tasks = [threads.submit(judge_one, c, clair, work, ask) for c in missing]
        try:
            for task in as_completed(tasks):
                task.result()
                advance()
        finally:
            threads.shutdown(cancel_futures=True)


def judge_one(cohort: Cohort, clair: Clair, work: Path, ask: Callable[..., Any]) -> None:
    """Write the cohort down, have it judged, keep the report whole or not at all."""
    with written(cohort, work) as folder:
        answer = ask(str(folder), {})
    if "error" in answer:
        raise RuntimeError(f"{cohort.name}: {answer['error']}")
    keep(cohort, clair.reports(work), answer)


@contextmanager
def asking(clair: Clair, jobs: int) -> Iterator[Callable[..., Any]]:
    """A function that has a folder judged by the next of `jobs` processes that is free."""
    free: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
    command = [clair.python, "-c", WORKER.read_text()]
    started = [
        subprocess.Popen(
            command,
            env=clair.environment,
            cwd=WORKER.anchor,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(jobs)
    ]
    for process in started:
        free.put(process)

    def ask(*request: Any) -> Any:
        process = free.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline() or '{"error": "the process has ended"}')
        finally:
            free.put(process)

    try:
        yield ask
    finally:
        for process in started:
            process.terminate()
            process.wait()
