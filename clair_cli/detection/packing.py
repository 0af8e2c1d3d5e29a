"""Tensors and a JSON-ready rest as bytes, and back: what is read back is parsed, not trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clair_cli.linalg import finite

DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
ALIGNED = 8
"""Bytes to whose multiples every tensor is padded."""
Shape = tuple[int | None, ...]
"""Of a tensor, with None for a side that may have any length."""
Expected = Mapping[str, tuple[torch.dtype, Shape]]
"""Name -> dtype and shape of each tensor."""


def packed(tensors: Mapping[str, Tensor], rest: Any = None) -> list[bytes]:
    """The bytes of tensors of DTYPES and of a JSON-ready rest, in pieces."""
    arrays = {name: t.detach().cpu().numpy() for name, t in tensors.items()}
    head = {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()}
    text = json.dumps([head, rest]).encode()
    text += b" " * (-len(text) % ALIGNED)
    parts = [len(text).to_bytes(8, "little"), text]
    for array in arrays.values():
        parts.append(array.tobytes() + b"\0" * (-array.nbytes % ALIGNED))
    return parts


def unpacked(data: bytearray) -> tuple[dict[str, Tensor], Any] | None:
    """What `packed` made the bytes of, in memory of torch's own; None where it made them not."""
    begin = 8 + int.from_bytes(data[:8], "little")
    try:
        head, rest = json.loads(bytes(data[8:begin]))
        found = {}
        for name, (dtype, shape) in head.items():
            sides = tuple(int(side) for side in shape)
            if any(side < 0 for side in sides):
                return None
            size = math.prod(sides) * DTYPES[dtype].itemsize
            end = begin + size
            values = np.frombuffer(memoryview(data)[begin:end], dtype).reshape(sides)
            found[str(name)] = torch.from_numpy(values).clone()
            begin = end + -size % ALIGNED
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return (found, rest) if begin == len(data) else None


def as_expected(tensors: Mapping[str, Tensor], expected: Expected) -> bool:
    """Whether the tensors are these, of these dtypes and shapes, and finite."""
    return tensors.keys() == expected.keys() and all(
        t.dtype == expected[name][0] and _fits(t.shape, expected[name][1]) and finite(t)
        for name, t in tensors.items()
    )


def _fits(shape: Sequence[int], expected: Shape) -> bool:
    pairs = zip(shape, expected, strict=False)
    return len(shape) == len(expected) and all(e is None or s == e for s, e in pairs)
