"""What every update must keep, whatever format describes it: real dimensions, and room in memory.

A closed form can make much out of little: the Kronecker product of two matrices of 2^20 numbers each has
2^40.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from clair_cli.cohort import Adapter, TensorSpec, UpdateSpec
from clair_cli.errors import ConfigInvalid, LimitExceeded, ShapeMismatch, Unsupported
from clair_cli.formats.safetensors_file import BITS
from clair_cli.settings import Settings


def check_updates(updates: Mapping[str, UpdateSpec], where: str, settings: Settings) -> None:
    """Raises ShapeMismatch, ConfigInvalid or LimitExceeded, naming the first module that breaks them."""
    for module, spec in updates.items():
        what = f"{where}: the update of {module[:200]!r}"
        if min(spec.d_out, spec.d_in, spec.rank) < 1:
            text = f"is {spec.d_out} x {spec.d_in} of rank {spec.rank}"
            raise ShapeMismatch(f"{what} {text}; save the adapter again, whole")
        if not math.isfinite(spec.scale):
            raise ConfigInvalid(f"{what} has the scale {spec.scale}; put its own config beside it")
        if max(spec.d_out, spec.d_in) > settings.max_dim:
            text = f"is {spec.d_out} x {spec.d_in}"
            raise LimitExceeded(f"{what} {text}, the limit is {settings.max_dim} a side")
        if (count := (spec.d_out + spec.d_in) * spec.rank) > settings.max_elements:
            text = f"has {count} numbers in its factors, the limit is {settings.max_elements}"
            raise LimitExceeded(f"{what} {text}; train a smaller rank")


READ, MADE = 1e8, 1e9
"""Bytes read and products made in a second by the slowest machine that is thought of."""
REREAD = 2**29
"""Bytes of tensors of several updates that are read once for all of them, as `factors.SHARED` says."""


def check_work(adapter: Adapter, settings: Settings) -> None:
    """Raises LimitExceeded where headers alone say that reading takes more memory or time than it may.

    Shared tensors are read for every update that lies in them, and a rank above that of the product is
    reduced: a small file can ask for both without end.
    """
    seconds = 0.0
    for module, spec in adapter.updates.items():
        tensors = [adapter.tensors[name] for name in spec.tensors.values()]
        where = f"{tensors[0].file}: the update of {module[:200]!r}"
        if (needed := _memory(spec, tensors)) > settings.max_memory:
            text = f"takes {needed} bytes to read, the limit is {settings.max_memory}"
            raise LimitExceeded(f"{where} {text}; allow more with --max-memory")
        seconds += _seconds(spec, tensors)
    if seconds > settings.client_timeout:
        where, most = next(iter(adapter.files)), settings.client_timeout
        text = f"reading its updates takes {seconds:.0f} s, the limit is {most:.0f}"
        raise LimitExceeded(f"{where}: {text}; allow more with --client-timeout")


def _memory(spec: UpdateSpec, tensors: Sequence[TensorSpec]) -> int:
    """Bytes: the tensors as they are stored, this update's as they are computed with, its factors."""
    count, rank = sum(math.prod(t.shape) for t in tensors), min(spec.rank, spec.d_out, spec.d_in)
    wide = spec.dtype == "F64" or rank < spec.rank or spec.rule == "matrix"
    factors = (spec.d_out + spec.d_in) * rank if spec.rule not in ("lora", "matrix") else 0
    copies = 3 if rank < spec.rank else 1
    own = count // spec.parts * copies + factors
    return _bytes(tensors) + own * (8 if wide else 4)


def _seconds(spec: UpdateSpec, tensors: Sequence[TensorSpec]) -> float:
    size = _bytes(tensors)
    read = size / spec.parts if size <= REREAD else size
    least = min(spec.d_out, spec.d_in)
    made = 0 if spec.rank <= least else 4 * (spec.d_out + spec.d_in) * spec.rank * least
    return read / READ + made / MADE


def _bytes(tensors: Sequence[TensorSpec]) -> int:
    """What they take unpacked, as they are stored."""
    return sum(math.prod(t.shape) * BITS.get(t.dtype, 128) // 8 for t in tensors)


def check_dtypes(tensors: Mapping[str, TensorSpec]) -> None:
    """Raises Unsupported where a tensor has a dtype of numpy's that safetensors does not store."""
    for name, spec in tensors.items():
        if spec.dtype not in BITS:
            text = f"{spec.file}: tensor {name!r} is {spec.dtype}"
            raise Unsupported(f"{text}, which safetensors does not store; save it as float32")
