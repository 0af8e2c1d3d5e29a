"""How a product is parted into two factors changes nothing: neither their sizes nor a rank in excess."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clair_cli import open_adapter, read_update
from clair_cli.detection.stacks import stack_module
from clair_cli.linalg import balanced, shortened
from tests.helpers.adapters import CONFIG, PREFIX, factors, normal, write_folder

MODULE = "model.layers.0.self_attn.q_proj"
A, B = (f"{PREFIX}{MODULE}.lora_{side}.weight" for side in "AB")


def one(rank: int, d_out: int, d_in: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return factors({MODULE: (d_out, d_in)}, rank, dtype=dtype)


def product(folder: Path, tensors: dict[str, Tensor], **config: object) -> Tensor:
    rank = tensors[A].shape[0]
    found = CONFIG | {"r": rank, "lora_alpha": rank} | config
    update = read_update(open_adapter(write_folder(folder, tensors, found)), MODULE)
    assert update.up.shape[1] <= min(update.up.shape[0], update.down.shape[1])
    energies = stack_module(MODULE, [update, update, update]).energies
    assert torch.isfinite(energies).all()
    dense = update.dense()
    torch.testing.assert_close(energies[0].sqrt(), dense.norm().double(), rtol=1e-5, atol=0)
    return dense


@pytest.mark.parametrize("factor", [1e-30, 1e-19, 2.0**-31, 1e10, 1e19, 1e30])
@pytest.mark.parametrize("rows", [slice(None), slice(0, 1), slice(0, 2)])
def test_the_balance_of_the_factors_changes_no_bit_worth_mentioning(
    factor: float, rows: slice, tmp_path: Path
) -> None:
    """Of all columns, and of single ones."""
    honest = one(3, 6, 5)
    tensors = {name: tensor.clone() for name, tensor in honest.items()}
    tensors[A][rows] *= factor
    tensors[B][:, rows] /= factor
    found, truth = product(tmp_path / "a", tensors), product(tmp_path / "b", honest)
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("power", [-29, -12, 12, 29])
@pytest.mark.parametrize("rows", [slice(None), slice(0, 1)])
def test_no_column_is_out_of_proportion_once_it_is_read(
    power: int, rows: slice, tmp_path: Path
) -> None:
    """It would drown the columns of other clients in rounding where all are decomposed together."""
    tensors = one(3, 6, 5)
    tensors[A][rows] *= 2.0**power
    tensors[B][:, rows] *= 2.0**-power
    client = write_folder(tmp_path / "a", tensors, CONFIG | {"r": 3, "lora_alpha": 3})
    update = read_update(open_adapter(client), MODULE)
    up, down = update.up.abs().amax(dim=0), update.down.abs().amax(dim=1)
    assert float((up / down).log2().abs().max()) < 5


@pytest.mark.parametrize("power", [-90, -40, 40, 90])
def test_balance_by_a_power_of_two_is_exact(power: int, tmp_path: Path) -> None:
    honest = one(3, 6, 5)
    tensors = {A: honest[A] * 2.0**power, B: honest[B] * 2.0**-power}
    assert torch.equal(product(tmp_path / "a", tensors), product(tmp_path / "b", honest))


def test_a_scale_of_1e30_over_factors_as_small_is_the_same_update(tmp_path: Path) -> None:
    honest = one(2, 6, 5)
    small = {A: honest[A], B: honest[B] * 1e-30}
    found = product(tmp_path / "a", small, lora_alpha=2e30)
    torch.testing.assert_close(found, product(tmp_path / "b", honest), rtol=1e-5, atol=1e-6)


def test_zeros_beside_the_largest_numbers_are_zero(tmp_path: Path) -> None:
    """Nothing that overflows by itself and is multiplied by zero."""
    tensors = {A: torch.full((2, 5), 3e38), B: torch.zeros(6, 2)}
    assert not product(tmp_path / "a", tensors).any()


@pytest.mark.parametrize(
    ("rank", "d_out", "d_in"), [(50, 6, 5), (50, 5, 6), (7, 6, 6), (900, 1, 8)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_rank_that_no_product_has_is_reduced_and_the_product_stays(
    rank: int, d_out: int, d_in: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = one(rank, d_out, d_in, dtype)
    truth = tensors[B].double() @ tensors[A].double()
    found = product(tmp_path / "a", tensors).double()
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5 * math.sqrt(rank))


def test_shortening_keeps_balance_and_product() -> None:
    up, down = normal(7, 30).double(), normal(30, 4, seed=1).double()
    size = torch.logspace(-150, 150, 30, dtype=torch.float64)
    left, right, scale = balanced(up * size, down / size[:, None], 3.0)
    assert 2 / 3 <= scale < 4 / 3
    b, a = shortened(left, right)
    assert (b.shape, a.shape) == ((7, 4), (4, 4))
    torch.testing.assert_close(scale * b @ a, 3 * up @ down)
