"""The shapes that the tensors of one module must have, by tuner, and what its update then is.

Each function gives d_out, d_in and the rank of the factors that `rules` makes. Raises ShapeMismatch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from clair_cli.cohort import TensorSpec
from clair_cli.errors import ShapeMismatch, Unsupported


@dataclass(frozen=True, slots=True)
class Module:
    """The tensors of one module by their roles, and its rank by the config."""

    name: str
    names: Mapping[str, str]
    tensors: Mapping[str, TensorSpec]
    rank: int

    def shape(self, role: str, dimensions: int) -> tuple[int, ...]:
        """Of a tensor. Raises ShapeMismatch unless it has so many dimensions."""
        tensor = self.tensors[self.names[role]]
        if len(tensor.shape) != dimensions:
            expected = f"{dimensions} dimensions"
            raise ShapeMismatch(f"{self._has_shape(role)}, expected {expected}; save it again")
        return tensor.shape

    def expect(self, **shapes: tuple[int, ...]) -> None:
        """Raises ShapeMismatch where a tensor has another shape than the rest and the config say."""
        for role, shape in shapes.items():
            if self.tensors[self.names[role]].shape != shape:
                text = f"{self._has_shape(role)}, expected {list(shape)} for rank {self.rank}"
                raise ShapeMismatch(f"{text}; put the config of this very adapter beside it")

    def _has_shape(self, role: str) -> str:
        tensor = self.tensors[self.names[role]]
        return f"{tensor.file}: tensor {self.names[role]!r} has shape {list(tensor.shape)}"


def loha(m: Module) -> tuple[int, int, int]:
    r = m.rank
    if "t1" in m.names:
        kernel = m.shape("t1", 4)[2:]
        d_out, d_in = m.shape("w1_a", 2)[1], m.shape("w1_b", 2)[1]
        m.expect(w1_a=(r, d_out), w1_b=(r, d_in), w2_a=(r, d_out), w2_b=(r, d_in))
        m.expect(t1=(r, r, *kernel), t2=(r, r, *kernel))
        d_in *= math.prod(kernel)
    else:
        d_out, d_in = m.shape("w1_a", 2)[0], m.shape("w1_b", 2)[1]
        m.expect(w1_a=(d_out, r), w1_b=(r, d_in), w2_a=(d_out, r), w2_b=(r, d_in))
    return d_out, d_in, min(r * r, d_out, d_in)


def lokr(m: Module) -> tuple[int, int, int]:
    if "w1" in m.names:
        a, c = m.shape("w1", 2)
    else:
        a, c = m.shape("w1_a", 2)[0], m.shape("w1_b", 2)[1]
        m.expect(w1_a=(a, m.rank), w1_b=(m.rank, c))
    first = min(a, c) if "w1" in m.names else min(m.rank, a, c)
    b, d = _second(m)
    second = min(b, d) if "w2" in m.names else min(m.rank, b, d)
    return a * b, c * d, first * second


def _second(m: Module) -> tuple[int, int]:
    """d_out and d_in of w2, its kernel included."""
    if "w2" in m.names:
        shape = m.tensors[m.names["w2"]].shape
        if len(shape) == 3:
            text = "LoKr of a one-dimensional convolution, which PEFT does not apply as a product"
            where = f"{m.tensors[m.names['w2']].file}: {m.name!r}"
            raise Unsupported(f"{where} is {text}; leave it out of target_modules")
        first, *rest = m.shape("w2", 4 if len(shape) == 4 else 2)
        return first, math.prod(rest)
    if "t2" in m.names:
        kernel = m.shape("t2", 4)[2:]
        b, d = m.shape("w2_a", 2)[1], m.shape("w2_b", 2)[1]
        m.expect(w2_a=(m.rank, b), w2_b=(m.rank, d), t2=(m.rank, m.rank, *kernel))
        return b, d * math.prod(kernel)
    b, d = m.shape("w2_a", 2)[0], m.shape("w2_b", 2)[1]
    m.expect(w2_a=(b, m.rank), w2_b=(m.rank, d))
    return b, d


def adalora(m: Module) -> tuple[int, int, int]:
    d_out, d_in = m.shape("B", 2)[0], m.shape("A", 2)[1]
    m.expect(B=(d_out, m.rank), A=(m.rank, d_in), E=(m.rank, 1))
    return d_out, d_in, max(m.rank, 1)


def delora(m: Module) -> tuple[int, int, int]:
    d_out, d_in = m.shape("B", 2)[0], m.shape("A", 2)[1]
    m.expect(B=(d_out, m.rank), A=(m.rank, d_in), w_norm=(d_in,))
    m.expect(**{"lambda": (1,)})
    return d_out, d_in, m.rank


def vera(m: Module) -> tuple[int, int, int]:
    (d_out,), most, d_in = m.shape("b", 1), m.shape("B", 2)[0], m.shape("A", 2)[1]
    m.expect(d=(m.rank,), A=(m.rank, d_in), B=(max(most, d_out), m.rank))
    return d_out, d_in, m.rank


def miss(m: Module) -> tuple[int, int, int]:
    d_out = m.shape("block", 2)[1]
    m.expect(block=(m.rank, d_out))
    return d_out, m.rank, min(d_out, m.rank)
