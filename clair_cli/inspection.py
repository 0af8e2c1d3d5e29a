"""One adapter looked at by itself: modules, shapes, ranks, scaling, norms. Numpy only."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from clair_cli.cohort import Adapter, natural_key
from clair_cli.errors import NonFinite
from clair_cli.formats import open_adapter, plain
from clair_cli.formats.safetensors_file import read_values
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Reason
from clair_cli.settings import Settings


@dataclass(frozen=True, slots=True)
class InspectedModule:
    """One update: Delta W is d_out x d_in, `norm` its Frobenius norm, scale included."""

    name: str
    d_out: int
    d_in: int
    rank: int
    scale: float
    dtype: str
    norm: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one adapter is, and that every number in it is finite."""

    client: str
    format: str
    base: str | None
    files: tuple[tuple[str, int, str], ...]
    modules: tuple[InspectedModule, ...]
    passed_through: tuple[str, ...]
    notes: tuple[Reason, ...]

    def as_json(self) -> str:
        """One JSON document with a final newline."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    def as_text(self) -> str:
        """A table, one module a line."""
        total = math.sqrt(sum(m.norm**2 for m in self.modules))
        size = f"{len(self.modules)} modules, norm {total:.4g}"
        lines = [
            f"{self.client}: {self.format}, base {self.base or 'unknown'}, {size}",
            *(f"  {name}  {size} bytes  sha256 {digest}" for name, size, digest in self.files),
            "",
        ]
        head = ("module", "shape", "rank", "scale", "dtype", "norm")
        rows = [
            (m.name, f"{m.d_out}x{m.d_in}", str(m.rank), f"{m.scale:g}", m.dtype, f"{m.norm:.4g}")
            for m in self.modules
        ]
        widths = [max(len(safe_text(r[i])) for r in [head, *rows]) for i in range(6)]
        lines += [_row(r, widths) for r in [head, *rows]]
        if self.passed_through:
            names = ", ".join(self.passed_through[:5]) + (
                ", ..." if self.passed_through[5:] else ""
            )
            lines.append(f"passed through untouched: {len(self.passed_through)} tensors: {names}")
        lines += [f"note: {r.code} {r.message}" for r in self.notes]
        return "\n".join(safe_text(line) for line in lines) + "\n"


def _row(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = (safe_text(c).ljust(w) for c, w in zip(cells, widths, strict=True))
    return "  " + "  ".join(padded).rstrip()


def inspect(path: Path, settings: Settings) -> Inspection:
    """Open one adapter and look at every number in it. Raises the kinds of AdapterError."""
    adapter = open_adapter(path, settings)
    names = sorted(adapter.updates, key=natural_key)
    used = {t for s in adapter.updates.values() for t in (s.up, s.down)}
    return Inspection(
        client=adapter.client,
        format=adapter.format,
        base=adapter.base,
        files=tuple((f.name, f.size, f.sha256) for f in adapter.files.values()),
        modules=tuple(_module(adapter, name) for name in names),
        passed_through=tuple(sorted(set(adapter.tensors) - used)),
        notes=adapter.notes,
    )


def _module(adapter: Adapter, name: str) -> InspectedModule:
    """||B A||_F^2 = sum (B'B o A A'), which needs the r x r cores only; of a plain matrix, its own."""
    import numpy as np

    spec = adapter.updates[name]
    if adapter.format != "peft":
        size = plain.norm(adapter, name)
        return InspectedModule(name, spec.d_out, spec.d_in, spec.rank, spec.scale, spec.dtype, size)
    up, down = _matrix(adapter, spec.up), _matrix(adapter, spec.down)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = spec.scale * math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))
    if not math.isfinite(norm):
        raise NonFinite(f"{adapter.tensors[spec.up].file}: the update of {name!r} is not finite")
    return InspectedModule(name, spec.d_out, spec.d_in, spec.rank, spec.scale, spec.dtype, norm)


def _matrix(adapter: Adapter, key: str):  # type: ignore[no-untyped-def]
    """One factor in float64."""
    import numpy as np

    spec = adapter.tensors[key]
    matrix = read_values(adapter.files[spec.file], key, spec)
    if not np.isfinite(matrix).all():
        count = int((~np.isfinite(matrix)).sum())
        raise NonFinite(f"{spec.file}: tensor {key!r} holds {count} values that are NaN or Inf")
    return matrix
