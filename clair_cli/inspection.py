"""One adapter looked at by itself: modules, shapes, ranks, scaling, norms. Numpy only."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from clair_cli import formats
from clair_cli.cohort import Adapter, natural_key
from clair_cli.formats import open_adapter
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
        total = math.hypot(*(m.norm for m in self.modules))
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
    used = {t for s in adapter.updates.values() for t in s.tensors.values()}
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
    spec, norm = adapter.updates[name], formats.norm(adapter, name)
    return InspectedModule(name, spec.d_out, spec.d_in, spec.rank, spec.scale, spec.dtype, norm)
