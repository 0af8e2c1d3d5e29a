"""Pure tensor functions against the dense answer."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from clair_cli import linalg
from clair_cli.linalg import dominant, finite, gram, gram_of, standing_out, whiten

DRAW = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 3, 4, 17])
def test_gram_is_every_inner_product(rows: int) -> None:
    x = random(rows, 23)
    torch.testing.assert_close(gram(x), x @ x.T)


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("parts", [1, 2, 23])
def test_gram_is_the_same_of_columns_in_parts(rows: int, parts: int) -> None:
    x = random(rows, 23)
    torch.testing.assert_close(gram_of(x.tensor_split(parts, dim=1)), x @ x.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_finite_is_told_though_its_sum_is_not(dtype: torch.dtype) -> None:
    most = torch.full((64, 3), torch.finfo(dtype).max, dtype=dtype)
    assert finite(most)
    assert finite(most[:0])
    for bad in (math.nan, math.inf, -math.inf):
        for where in ((0, 0), (63, 2)):
            one = most.clone()
            one[where] = bad
            assert not finite(one)
    assert not finite(torch.tensor([math.inf, -math.inf], dtype=dtype))


def test_whitening_makes_the_metric_the_identity_and_drops_what_is_null() -> None:
    b = random(9, 4) @ random(4, 6)
    w = whiten(b.T @ b)
    assert w.shape == (6, 4)
    torch.testing.assert_close((b @ w).T @ (b @ w), torch.eye(4, dtype=torch.float64))


def test_dominant_directions_are_the_eigenvectors_of_the_dense_operator() -> None:
    b, h = random(30, 12), random(12, 12)
    h = h @ h.T
    values, vectors, dual = dominant(lambda x: b.T @ (b @ x), lambda x: h @ x, random(12, 6), 200)
    truth, basis = torch.linalg.eigh(b @ h @ b.T)
    torch.testing.assert_close(values[:3], truth.flip(0)[:3])
    torch.testing.assert_close(dual, b.T @ (b @ vectors))
    found = b @ vectors[:, :3]
    top = basis.flip(1)[:, :3]
    torch.testing.assert_close(found @ found.T, top @ top.T, atol=1e-6, rtol=0)


def test_dominant_of_a_zero_operator_is_zero() -> None:
    b = random(5, 4)
    values, _, _ = dominant(lambda x: b.T @ (b @ x), torch.zeros_like, random(4, 2), 5)
    assert values.abs().max() == 0


@pytest.mark.parametrize(("rows", "columns"), [(64, 160), (300, 80), (40, 240)])
def test_nothing_stands_out_of_noise_and_planted_directions_do(rows: int, columns: int) -> None:
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
        plain = torch.linalg.svdvals(noise).square()
        assert standing_out(plain[:12].tolist(), float(plain.sum()), rows, columns) == 0
        u = torch.linalg.qr(torch.randn(rows, 2, generator=draw, dtype=torch.float64))[0]
        c = torch.randn(2, columns, generator=draw, dtype=torch.float64)
        spiked = torch.linalg.svdvals(noise + 6 * u @ c).square()
        assert standing_out(spiked[:12].tolist(), float(spiked.sum()), rows, columns) == 2


def test_small_symmetric_eigenproblems_are_solved_in_float64_and_in_one_place() -> None:
    """Of finite matrices in float32, LAPACK's eigh has returned NaN."""
    package = Path(linalg.__file__).parent
    found = [
        f"{path.relative_to(package)}"
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\btorch\.(linalg\.)?(eigh|eigvalsh|eig)\(", line)
    ]
    assert found == ["linalg.py"]
    near = torch.ones(6, 6) + 1e-9 * torch.eye(6)  # in float32 its least eigenvalues are noise
    values, vectors = linalg.eigh(near.expand(2, 6, 6))
    assert values.dtype == vectors.dtype == torch.float64
    wanted = torch.linalg.eigvalsh(near.double())
    assert torch.equal(values, wanted.expand(2, 6)) or torch.allclose(values, wanted, atol=1e-14)
    again = vectors @ torch.diag_embed(values) @ vectors.transpose(1, 2)
    assert torch.allclose(again, near.double().expand(2, 6, 6), atol=1e-13)
