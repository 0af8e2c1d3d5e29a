"""Updates so small that their squares are no numbers, or zero: they cost nobody a verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clair_cli import Settings, detect, refine
from clair_cli.update import LowRankUpdate, faint
from tests.helpers.adapters import write_folder
from tests.helpers.commands import clair
from tests.hostile.costly import config, honest

SIZES = (0.0, 1e-45, 1e-37, 1e-30, 1e-25, 1e-23, 1e-20, 1e-14)


def cohort(folder: Path, sizes: list[float]) -> Path:
    for k, size in enumerate(sizes):
        tensors = {n: t * size if "lora_B" in n else t for n, t in honest(k).items()}
        write_folder(folder / f"client-{k}", tensors, config())
    return folder


@pytest.mark.parametrize("columns", [512, 8], ids=["whole", "sketched"])
@pytest.mark.parametrize("size", SIZES)
def test_a_client_that_has_next_to_nothing_is_told_and_the_others_are_judged(
    size: float, columns: int, tmp_path: Path
) -> None:
    """Its inner products with others are numbers where its own with itself is none."""
    folder = cohort(tmp_path, [1.0] * 6 + [size])
    numbers = replace(Settings().detection, max_columns=columns)
    report = detect(folder, Settings(detection=numbers))
    found = {c.client: c.verdict for c in report.clients}
    assert report.status == "complete"
    assert {v for c, v in found.items() if c != "client-6"} == {"benign"}
    assert found["client-6"] == "contaminated"


def test_a_client_of_next_to_nothing_that_is_included_costs_nobody_an_adapter(
    tmp_path: Path,
) -> None:
    folder = cohort(tmp_path / "round", [1.0] * 6 + [1e-25])
    report = refine(folder, tmp_path / "out", Settings(include=("client-6",), write_global=True))
    assert report.refinement is not None
    assert len(report.refinement.clients) == 7


@pytest.mark.parametrize("sizes", [[0.0] * 7, [1.0] + [0.0] * 6, [0.0] * 5 + [1.0] * 2])
def test_no_warning_of_a_library_reaches_the_screen(sizes: list[float], tmp_path: Path) -> None:
    done = clair("detect", cohort(tmp_path, sizes))
    assert (done.returncode, done.stderr) == (3, "")


def test_faint_is_what_the_dtype_cannot_square() -> None:
    def of(size: float, dtype: torch.dtype) -> bool:
        return faint(
            LowRankUpdate(torch.full((8, 2), size, dtype=dtype), torch.ones(2, 8).to(dtype))
        )

    assert [of(x, torch.float32) for x in (0.0, 1e-20, 1e-10, 1.0)] == [True, True, False, False]
    assert [of(x, torch.float64) for x in (0.0, 1e-160, 1e-20)] == [True, True, False]
    assert not of(float("nan"), torch.float32)
    assert not of(float("inf"), torch.float32)
