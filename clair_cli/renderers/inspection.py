"""One adapter as `clair inspect` shows it: its files, then one module a line."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import aligned, few
from clair_cli.results import Inspection

HEAD = ("module", "shape", "rank", "scale", "dtype", "norm")


def as_json(found: Inspection) -> str:
    """One JSON document with a final newline; norms and scales to their last digit."""
    return json.dumps(asdict(found), indent=1, allow_nan=False) + "\n"


def as_text(found: Inspection) -> str:
    """A line on the whole, a line per file, and a table of the modules."""
    total = math.hypot(*(m.norm for m in found.modules))
    size = f"{len(found.modules)} modules, norm {total:.4g}"
    lines = [
        f"{found.client}: {found.format}, base {found.base or 'unknown'}, {size}",
        *(f"  {name}  {size} bytes  sha256 {digest}" for name, size, digest in found.files),
        "",
    ]
    rows = [
        (m.name, f"{m.d_out}x{m.d_in}", str(m.rank), f"{m.scale:g}", m.dtype, f"{m.norm:.4g}")
        for m in found.modules
    ]
    lines += aligned([HEAD, *rows])
    if kept := found.passed_through:
        lines.append(f"passed through untouched: {len(kept)} tensors: {few(kept)}")
    lines += [f"note: {r.code} {r.message}" for r in found.notes]
    return "".join(f"{safe_text(line)}\n" for line in lines)
