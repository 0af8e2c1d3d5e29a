"""inspect says of one adapter what its numbers are, without torch, and refuses what is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clair_cli.errors import NonFinite
from clair_cli.inspection import inspect
from clair_cli.renderers import RENDERERS
from clair_cli.settings import Settings
from tests.helpers.adapters import CONFIG, MODULES, factors, write_folder

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_are_those_of_the_dense_update(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = factors(dtype=dtype)
    found = inspect(write_folder(tmp_path / "c", tensors), Settings())
    down, up = (t.double() for t in list(tensors.values())[:2])
    first = found.modules[0]
    assert [m.name for m in found.modules] == list(MODULES)
    assert (first.d_out, first.d_in, first.rank, first.scale) == (6, 5, 2, 2.0)
    assert first.norm == pytest.approx(float((2.0 * up @ down).norm()), rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_number_that_is_none_is_found(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = factors(dtype=dtype)
    name = list(tensors)[-1]
    tensors[name][0, 1] = value
    with pytest.raises(NonFinite, match=f"{name}.*(1 NaN and 0|0 NaN and 1) Inf"):
        inspect(write_folder(tmp_path / "c", tensors), Settings())


def test_an_overflowing_product_is_found(tmp_path: Path) -> None:
    tensors = {name: t * 1e200 for name, t in factors(dtype=torch.float64).items()}
    with pytest.raises(NonFinite, match="update"):
        inspect(write_folder(tmp_path / "c", tensors), Settings())


def test_json_and_text_say_the_same(tmp_path: Path) -> None:
    found = inspect(write_folder(tmp_path / "c", config={**CONFIG, "use_rslora": True}), Settings())
    data, text = json.loads(RENDERERS["json"](found)), RENDERERS["text"](found)
    lines = text.splitlines()
    assert data["modules"][0]["scale"] == pytest.approx(4 / 2**0.5)
    assert [m["name"] for m in data["modules"]] == [line.split()[0] for line in lines[-2:]]
    assert data["files"][0][2] in text
