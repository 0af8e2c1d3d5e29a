"""Runs that several tests look at, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest

from tests.helpers.commands import clair, fingerprint, samples


@dataclass(frozen=True)
class Detected:
    """One `clair detect -f json` with a file of each format beside it."""

    folder: Path
    before: str
    done: CompletedProcess[str]
    text: Path
    json: Path


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of sample_adapters that nobody changes."""
    return samples(tmp_path_factory.mktemp("samples") / "round-1")


@pytest.fixture(scope="session")
def detected(adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Detected:
    """`clair detect` on the samples, through the installed script."""
    folder = tmp_path_factory.mktemp("detected")
    text, json = folder / "report.txt", folder / "report.json"
    before = fingerprint(adapters)
    done = clair("detect", adapters, "-f", "json", "-o", f"text={text}", "-o", f"json={json}")
    return Detected(adapters, before, done, text, json)


@pytest.fixture(scope="session")
def text_copy() -> SimpleNamespace:
    """The text-copying example."""
    from examples.text_copy import evaluate, task, train

    train.one_thread()
    return SimpleNamespace(
        make_cohort=train.make_cohort, CohortPlan=task.CohortPlan, evaluate=evaluate.evaluate
    )
