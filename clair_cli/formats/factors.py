"""Updates that are stored as factors: read one module at a time, by the rule of its UpdateSpec."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from clair_cli.cohort import Adapter, UpdateSpec
from clair_cli.errors import NonFinite
from clair_cli.formats.containers import non_finite, read_tensor, read_values
from clair_cli.formats.files import read_range
from clair_cli.formats.rules import RULES, Array
from clair_cli.settings import DtypeName

if TYPE_CHECKING:
    from clair_cli.update import LowRankUpdate

SHARED = 2**29
"""Bytes kept of tensors that hold several updates: every expert of a layer would read all of it."""


def read_update(
    adapter: Adapter, module: str, dtype: DtypeName = "auto", device: str = "cpu"
) -> LowRankUpdate:
    """Delta W of one module as up (d_out, r), down (r, d_in) and scale.

    "auto" is float64 where a factor is stored as float64, else float32, which holds float16 and
    bfloat16 exactly. Raises ChangedWhileRead; does not look for NaN (see `check_finite`).
    """
    import torch

    from clair_cli.update import LowRankUpdate

    spec = adapter.updates[module]
    wanted = ("float64" if spec.dtype == "F64" else "float32") if dtype == "auto" else dtype
    parts = _parts(adapter, spec, read_tensor)
    if spec.parts == 1:  # of shared tensors, a part is a slice: cut out first
        parts = {role: t.to(device, getattr(torch, wanted)) for role, t in parts.items()}
    up, down = (t.to(device, getattr(torch, wanted)) for t in RULES[spec.rule].factors(parts, spec))
    return LowRankUpdate(up, down, spec.scale)


class _Recent:
    """The tensors read last that several updates lie in, up to SHARED bytes of them."""

    def __init__(self) -> None:
        self.held: dict[tuple[Any, ...], Array] = {}

    def read(self, adapter: Adapter, name: str, read: Callable[[Adapter, str], Array]) -> Array:
        """What `read` gives, from memory if this very state of the file has been read before."""
        file = adapter.files[adapter.tensors[name].file]
        read_range(file, 0, 0)  # raises where it is another by now
        key = (file.path, file.identity, name, read)
        found = self.held.pop(key, None)
        if found is None:
            found = read(adapter, name)
            room = SHARED - found.nbytes
            while self.held and sum(t.nbytes for t in self.held.values()) > room:
                del self.held[next(iter(self.held))]
        self.held[key] = found
        return found


_recent = _Recent()


def _parts(
    adapter: Adapter, spec: UpdateSpec, read: Callable[[Adapter, str], Array]
) -> dict[str, Array]:
    """Role -> tensor, of one update."""
    if spec.parts > 1:
        return {role: _recent.read(adapter, name, read) for role, name in spec.tensors.items()}
    return {role: read(adapter, name) for role, name in spec.tensors.items()}


def check_finite(adapter: Adapter, module: str) -> None:
    """Raises NonFinite, naming the first place, where a stored factor of `module` is NaN or Inf."""
    import torch

    spec = adapter.updates[module]
    parts = _parts(adapter, spec, read_tensor)
    if spec.parts > 1 and all(
        bool(t.isfinite().all()) for t in RULES[spec.rule].factors(parts, spec)
    ):
        return
    for role, name in spec.tensors.items():
        tensor = parts[role]
        bad = ~torch.isfinite(tensor)
        if count := int(bad.sum()):
            nans, first = int(torch.isnan(tensor).sum()), torch.nonzero(bad)[0].tolist()
            raise non_finite(adapter.tensors[name].file, name, nans, count, first)


def norm(adapter: Adapter, module: str) -> float:
    """||Delta W||_F of one module, without torch. Raises NonFinite.

    ||B A||_F^2 = sum (B'B o A A'), which needs the r x r cores only.
    """
    import numpy as np

    spec = adapter.updates[module]
    with np.errstate(all="ignore"):
        parts = _parts(adapter, spec, read_values)
        up, down = RULES[spec.rule].factors(parts, spec)
        found = spec.scale * math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))
    if not math.isfinite(found):
        where = adapter.tensors[spec.file_key].file
        raise NonFinite(f"{where}: the update of {module!r} is not finite; retrain it")
    return found


def stored_dtype(dtypes: Sequence[str]) -> str:
    """Of an update whose tensors have these dtypes: float64 decides, else the first."""
    return "F64" if "F64" in dtypes else dtypes[0]
