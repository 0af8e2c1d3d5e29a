"""Updates that are stored as factors: read one module at a time, by the rule of its UpdateSpec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clair_cli.cohort import Adapter
from clair_cli.errors import NonFinite
from clair_cli.formats.containers import non_finite, read_tensor, read_values
from clair_cli.formats.rules import RULES
from clair_cli.settings import DtypeName

if TYPE_CHECKING:
    from clair_cli.stack import LowRankUpdate


def read_update(
    adapter: Adapter, module: str, dtype: DtypeName = "auto", device: str = "cpu"
) -> LowRankUpdate:
    """Delta W of one module as up (d_out, r), down (r, d_in) and scale.

    "auto" is float64 where a factor is stored as float64, else float32, which holds float16 and
    bfloat16 exactly. Raises ChangedWhileRead; does not look for NaN (see `check_finite`).
    """
    import torch

    from clair_cli.stack import LowRankUpdate

    spec = adapter.updates[module]
    wanted = ("float64" if spec.dtype == "F64" else "float32") if dtype == "auto" else dtype
    parts = {
        role: read_tensor(adapter, name).to(device=device, dtype=getattr(torch, wanted))
        for role, name in spec.tensors.items()
    }
    up, down = RULES[spec.rule].factors(parts, spec)
    return LowRankUpdate(up, down, spec.scale)


def check_finite(adapter: Adapter, module: str) -> None:
    """Raises NonFinite, naming the first place, where a stored factor of `module` is NaN or Inf."""
    import torch

    for name in adapter.updates[module].tensors.values():
        tensor = read_tensor(adapter, name)
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
        parts = {role: read_values(adapter, name) for role, name in spec.tensors.items()}
        up, down = RULES[spec.rule].factors(parts, spec)
        found = spec.scale * math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))
    if not math.isfinite(found):
        where = adapter.tensors[spec.file_key].file
        raise NonFinite(f"{where}: the update of {module!r} is not finite; retrain it")
    return found


def stored_dtype(dtypes: Sequence[str]) -> str:
    """Of an update whose tensors have these dtypes: float64 decides, else the first."""
    return "F64" if "F64" in dtypes else dtypes[0]
