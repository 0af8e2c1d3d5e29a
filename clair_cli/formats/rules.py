"""How stored tensors make the factors of an update, and where possible the way back.

Array arithmetic that numpy and torch share, so that an adapter can be looked at without torch. A rule
gives up (d_out, r) and down (r, d_in) without the scale. Every closed form is checked against the
library that trains such adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clair_cli.cohort import UpdateSpec

if TYPE_CHECKING:
    from torch import Tensor

Array = Any
"""numpy.ndarray or torch.Tensor."""
Parts = Mapping[str, Array]
Factors = tuple[Array, Array]


@dataclass(frozen=True, slots=True)
class Rule:
    """One closed form by which stored tensors make an update.

    `factors` makes up and down of one update. `store` is its inverse, for all updates that lie in
    the same tensors together; it keeps the row-major order, not the dimensions, which stay those of
    the file. `axes` says along which dimension of each tensor the rank runs. Without `store` the
    tensors cannot hold any low-rank update, and the adapter is written as plain LoRA.
    """

    factors: Callable[[Parts, UpdateSpec], Factors]
    store: Callable[[Sequence[Factors]], dict[str, Tensor]] | None = None
    axes: Mapping[str, int] = field(default_factory=dict)


def _lora(parts: Parts, spec: UpdateSpec) -> Factors:
    """B (d_out, r) A (r, d_in); of a convolution with its kernel flattened into d_in."""
    return parts["B"].reshape(spec.d_out, spec.rank), parts["A"].reshape(spec.rank, spec.d_in)


def _store_lora(factors: Sequence[Factors]) -> dict[str, Tensor]:
    ((up, down),) = factors
    return {"B": up, "A": down}


# --- experts and tied weights of PEFT


def _expert(parts: Parts, spec: UpdateSpec) -> Factors:
    """One of E updates: A (E r, d_in) holds expert after expert, B (d_out, r E) rank after rank."""
    a = parts["A"].reshape(spec.parts, spec.rank, spec.d_in)
    b = parts["B"].reshape(spec.d_out, spec.rank, spec.parts)
    return b[:, :, spec.part], a[spec.part]


def _store_experts(factors: Sequence[Factors]) -> dict[str, Tensor]:
    import torch

    ups, downs = zip(*factors, strict=True)
    return {"B": torch.stack(ups, dim=2), "A": torch.cat(downs)}


def _store_tied(factors: Sequence[Factors]) -> dict[str, Tensor]:
    """An embedding's update (dim, vocab), and again, turned, as that of the head tied to it."""
    ((up, down),) = factors
    return {"B": up, "A": down, "head.B": down.T, "head.A": up.T}


# --- mlx-lm


def _mlx(parts: Parts, spec: UpdateSpec) -> Factors:
    """lora_b (r, d_out) and lora_a (d_in, r), both transposed."""
    return parts["b"].T, parts["a"].T


def _store_mlx(factors: Sequence[Factors]) -> dict[str, Tensor]:
    ((up, down),) = factors
    return {"b": up.T, "a": down.T}


def _mlx_experts(parts: Parts, spec: UpdateSpec) -> Factors:
    """One expert's part of lora_b (E, d_out, r) and lora_a (E, r, d_in)."""
    return parts["b"][spec.part], parts["a"][spec.part]


def _store_mlx_experts(factors: Sequence[Factors]) -> dict[str, Tensor]:
    import torch

    ups, downs = zip(*factors, strict=True)
    return {"b": torch.stack(ups), "a": torch.stack(downs)}


# --- LoCon with a Tucker core


def _locon(parts: Parts, spec: UpdateSpec) -> Factors:
    """B (d_out, r), and the core mid (r, r, kernel) times A (r, in) in place of a LoRA's A."""
    r = spec.rank
    down = parts["mid"].reshape(r, r, -1).swapaxes(1, 2) @ parts["A"].reshape(r, -1)
    return parts["B"].reshape(spec.d_out, r), down.swapaxes(1, 2).reshape(r, spec.d_in)


# --- other tuners of PEFT


def _loha(parts: Parts, spec: UpdateSpec) -> Factors:
    """(w1_a w1_b) o (w2_a w2_b): the row-wise Khatri-Rao products, of rank r^2 (arXiv:2108.06098)."""
    (a, b), (c, d) = (
        _tucker(parts, f"t{i}", f"w{i}") if f"t{i}" in parts else _sides(parts, f"w{i}")
        for i in "12"
    )
    if a.shape[1] ** 2 > spec.rank:
        return thin((a @ b) * (c @ d))
    up = (a[:, :, None] * c[:, None, :]).reshape(spec.d_out, -1)
    return up, (b[:, None, :] * d[None, :, :]).reshape(-1, spec.d_in)


def _lokr(parts: Parts, spec: UpdateSpec) -> Factors:
    """w1 (x) w2, either of which may be factored: kron(B C, D E) = kron(B, D) kron(C, E)."""
    (a, b), (c, d) = (_either(parts, name) for name in ("w1", "w2"))
    return _kron(a, c), _kron(b, d)


def _either(parts: Parts, name: str) -> Factors:
    """One side of a Kronecker product, of the least rank that its shape alone allows."""
    if name in parts:
        return thin(parts[name].reshape(len(parts[name]), -1))
    tucker = name == "w2" and "t2" in parts
    up, down = _tucker(parts, "t2", name) if tucker else _sides(parts, name)
    return (up, down) if up.shape[1] <= min(len(up), down.shape[1]) else thin(up @ down)


def _sides(parts: Parts, name: str) -> Factors:
    return parts[f"{name}_a"], parts[f"{name}_b"]


def _tucker(parts: Parts, core: str, name: str) -> Factors:
    """a (r, d_out), core (r, r, *kernel), b (r, d_in) as (d_out, r) and (r, d_in * kernel)."""
    (a, b), t = _sides(parts, name), parts[core]
    down = t.reshape(*t.shape[:2], -1).swapaxes(1, 2) @ b
    return a.T, down.swapaxes(1, 2).reshape(len(a), -1)


def _kron(a: Array, b: Array) -> Array:
    rows, columns = (m * n for m, n in zip(a.shape, b.shape, strict=True))
    return (a[:, None, :, None] * b[None, :, None, :]).reshape(rows, columns)


def thin(matrix: Array) -> Factors:
    """The matrix itself, with an identity on its smaller side."""
    d_out, d_in = matrix.shape
    one = _identity(min(d_out, d_in), matrix)
    return (matrix, one) if d_in <= d_out else (one, matrix)


def _identity(size: int, like: Array) -> Array:
    if hasattr(like, "new_zeros"):
        return like.new_zeros((size, size)).fill_diagonal_(1)
    import numpy as np

    return np.eye(size)


def _adalora(parts: Parts, spec: UpdateSpec) -> Factors:
    """B diag(E) A (arXiv:2303.10512); where all ranks are pruned, zeros of rank 1."""
    b, a = parts["B"], parts["A"] * parts["E"]
    return (b, a) if b.shape[1] else (b @ a[:, :1], b[:1] @ a)


def _delora(parts: Parts, spec: UpdateSpec) -> Factors:
    """B diag(lambda / (r |a_i| |b_i|)) A diag(w_norm), norms of 1e-4 at least (arXiv:2503.18225)."""
    a, b = parts["A"], parts["B"]
    lengths = ((a * a).sum(1) ** 0.5).clip(1e-4) * ((b * b).sum(0) ** 0.5).clip(1e-4)
    return b * (parts["lambda"] / spec.rank / lengths), a * parts["w_norm"]


def _vera(parts: Parts, spec: UpdateSpec) -> Factors:
    """diag(b) B diag(d) A, of A and B that all modules share (arXiv:2310.11454)."""
    b, a = parts["B"][: spec.d_out], parts["A"][:, : spec.d_in]
    return parts["b"][:, None] * b, parts["d"][:, None] * a


def _miss(parts: Parts, spec: UpdateSpec) -> Factors:
    """The block itself, turned: the update repeats it along its input side (arXiv:2409.15371)."""
    return thin(parts["block"].T)


def _store_miss(factors: Sequence[Factors]) -> dict[str, Tensor]:
    ((up, down),) = factors
    return {"block": (up @ down).T}


def _column(parts: Parts, spec: UpdateSpec) -> Factors:
    """A vector (d_out,) as a matrix of one column."""
    column = parts["m"].reshape(spec.d_out, 1)
    return column, column[:1] ** 0


def _store_column(factors: Sequence[Factors]) -> dict[str, Tensor]:
    ((up, down),) = factors
    return {"m": up @ down}


RULES: dict[str, Rule] = {
    "lora": Rule(_lora, _store_lora, {"B": 1, "A": 0}),
    "locon": Rule(_locon, None, {"B": 1, "A": 0}),
    "mlx": Rule(_mlx, _store_mlx, {"b": 0, "a": 1}),
    "mlx_experts": Rule(_mlx_experts, _store_mlx_experts, {"b": 2, "a": 1}),
    "experts": Rule(_expert, _store_experts, {"B": 1, "A": 0}),
    "column": Rule(_column, _store_column),
    "tied": Rule(_lora, _store_tied, {"B": 1, "A": 0, "head.B": 1, "head.A": 0}),
    "loha": Rule(_loha),
    "lokr": Rule(_lokr),
    "adalora": Rule(_adalora),
    "delora": Rule(_delora),
    "vera": Rule(_vera),
    "miss": Rule(_miss, _store_miss),
}
"""Name in UpdateSpec.rule -> the rule. "matrix", the plain matrix of `plain`, needs none."""
