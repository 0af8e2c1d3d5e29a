"""The tables of check.py. Pure functions of what it keeps."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from benchmarks.measures import table

Row = dict[str, Any]
CHECKED = 256
"""The size of the references that clients are left out of."""
HEADS = ("size", "cohorts", "clients", "same verdict", "other side of the gate")
HEADS += ("score error, median", "90 %", "99 %", "worst", "worst within 1 of the limit")
HEADS += ("verdict or none differs",)


def by_size(rows: list[Row]) -> str:
    """What differs between sketches and whole adapters, by size."""
    sizes = sorted({int(size) for row in rows for size in row["by"]})
    return table([*HEADS], [_by_size(rows, str(size)) for size in sizes])


def _by_size(rows: list[Row], size: str) -> list[str]:
    errors, near, same, gate, count, other, used = [], [], 0, 0, 0, 0, 0
    for row in rows:
        by = row["by"].get(size)
        if by is None or row["status"] != "complete" or by["status"] != "complete":
            other += by is not None and row["status"] != by["status"]
            continue
        used += 1
        for client, (verdict, score) in row["exact"].items():
            there, found = by["clients"][client]
            count += 1
            same += verdict == there
            gate += (verdict == "contaminated") != (there == "contaminated")
            if score is not None and found is not None:
                errors.append(abs(score - found))
                if abs(score - 3) < 1:
                    near.append(abs(score - found))
    if not errors:
        return [size, "0", *[""] * 8, str(other)]
    spread = [f"{error:.2f}" for error in np.quantile(errors, (0.5, 0.9, 0.99, 1.0))]
    close = f"{max(near, default=0.0):.2f} ({len(near)})"
    return [
        size,
        str(used),
        str(count),
        f"{same / count:.4f}",
        str(gate),
        *spread,
        close,
        str(other),
    ]


def left_out(rows: list[Row]) -> str:
    """Clients that were left out of references and checked against them; empty where none was."""
    count = same = joint = 0
    for row in rows:
        for client, (verdict, score, _) in row["checked"].items():
            sketch = row["by"][str(CHECKED)]["clients"][client]
            count += 1
            close = score is not None and sketch[1] is not None and abs(score - sketch[1]) < 1e-6
            same += (verdict == sketch[0]) and close
            joint += verdict == row["exact"][client][0]
    if not count:
        return ""
    cohorts = sum(bool(row["checked"]) for row in rows)
    alike = ["verdict and score as in a `detect` of all sketches, to 1e-6", f"{same / count:.3f}"]
    whole = "verdict as in a `detect` of all whole adapters (wanted 0.98)"
    text = table(["", "share"], [alike, [whole, f"{joint / count:.3f}"]])
    return f"{text}\n\nOf {count} clients in {cohorts} cohorts."


def speed(found: Row) -> str:
    """Seconds of whole commands, and beside those of detect in the same turn."""
    whole, lines = found["seconds"]["detect DIR"], []
    for name, spent in found["seconds"].items():
        share = median(one / all_of for one, all_of in zip(spent, whole, strict=True))
        lines.append([name, f"{median(spent):.1f}", f"{share:.2f}"])
    sizes = f"{found['adapters_mb']:.0f} MB, the reference {found['reference_mb']:.1f} MB"
    text = table(["command", "seconds, median", "beside detect"], lines)
    return f"{text}\n\nThe adapters take {sizes}."
