"""Further adapters of the same client: rep-* folders in its own, or its late checkpoints."""

from __future__ import annotations

import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from clair_cli.cohort import Adapter, natural_key
from clair_cli.formats.layout import CHECKPOINT, is_replicate
from clair_cli.report import Reason
from clair_cli.settings import Settings

LATE = 0.5
"""Checkpoints from this share of the last step on count: earlier ones have not arrived."""


def find_replicates(folder: Path, settings: Settings) -> list[Path]:
    """The folders of further adapters in a client's `folder`, in natural order; none in a file."""
    if settings.replicates == "none" or not os.path.isdir(folder):
        return []
    names = sorted(os.listdir(folder), key=natural_key)
    if settings.replicates == "auto":
        return [folder / n for n in names if is_replicate(folder / n)]
    steps = {n: int(m[1]) for n in names if (m := CHECKPOINT.fullmatch(n))}
    last = max(steps.values(), default=0)
    return [folder / n for n in steps if steps[n] >= LATE * last]


def with_replicates(adapter: Adapter, found: list[Adapter], notes: list[Reason]) -> Adapter:
    """The adapter with those of `found` that adapt the same modules with the same shapes.

    Where it is itself a replicate, the first usable one stands for the client, and all of them make the
    digest: their mean is what is judged.
    """
    alone = is_replicate(adapter.path)
    if alone and found and all(other.path != adapter.path for other in found):
        adapter = replace(found[0], notes=adapter.notes)
    fitting: list[Adapter] = []
    for other in found:
        if other.digest == adapter.digest and other.path != adapter.path:
            text = f"{other.path.name}: a copy of the client's adapter; not used as a replicate"
            notes.append(Reason("CLR205", text))
        elif _shapes(other) == _shapes(adapter):
            fitting.append(other)
        else:
            text = f"{other.path.name}: adapts other modules or shapes; not used as a replicate"
            notes.append(Reason("CLR107", text))
    digest = adapter.digest
    if alone:
        digest = sha256(" ".join(other.digest for other in fitting).encode()).hexdigest()
    told = (*adapter.notes, *notes)
    return replace(adapter, replicates=tuple(fitting), notes=told, digest=digest)


def _shapes(adapter: Adapter) -> dict[str, tuple[int, int]]:
    return {m: (s.d_out, s.d_in) for m, s in adapter.updates.items()}
