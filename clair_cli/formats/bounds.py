"""What every update must keep, whatever format describes it: real dimensions, and room in memory.

A closed form can make much out of little: the Kronecker product of two matrices of 2^20 numbers each has
2^40.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from clair_cli.cohort import TensorSpec, UpdateSpec
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


def check_dtypes(tensors: Mapping[str, TensorSpec]) -> None:
    """Raises Unsupported where a tensor has a dtype of numpy's that safetensors does not store."""
    for name, spec in tensors.items():
        if spec.dtype not in BITS:
            text = f"{spec.file}: tensor {name!r} is {spec.dtype}"
            raise Unsupported(f"{text}, which safetensors does not store; save it as float32")
