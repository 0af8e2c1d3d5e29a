"""Adapters to sketches: every module read once and summarised; small tensors trained whole kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clair_cli import formats
from clair_cli.cohort import (
    SKETCH_SIZE,
    WHOLE,
    Adapter,
    Broken,
    Entries,
    Sketching,
    Start,
    natural_key,
)
from clair_cli.errors import AdapterError, NonFinite, SketchUnusable, UsageError, contained
from clair_cli.formats.containers import read_bytes
from clair_cli.formats.deadline import deadline
from clair_cli.formats.sketch import (
    Head,
    SketchedModule,
    check_energy,
    document,
    new_head,
)
from clair_cli.output.publish import write_bytes
from clair_cli.progress import Progress, silent
from clair_cli.report import Reason
from clair_cli.settings import Settings

if TYPE_CHECKING:
    from clair_cli.update import LowRankUpdate

DEFAULT = Sketching(SKETCH_SIZE, 0)
LARGER, TOGETHER = (256, 128), 2**14
"""Sizes of a cohort that is sketched as a whole, and coordinates of all modules together up to which
each is taken: a few modules are known by more of each, in about as many bytes."""
Stored = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Tensor name -> dtype, shape, bytes."""


def sketched(adapter: Adapter, kind: Sketching, settings: Settings) -> tuple[Head, bytes]:
    """The sketch of an adapter, as the bytes of its file. Raises the kinds of AdapterError."""
    with contained("cannot be sketched"), deadline(settings.client_timeout):
        return _sketched(adapter, kind, settings)


def _sketched(adapter: Adapter, kind: Sketching, settings: Settings) -> tuple[Head, bytes]:
    if adapter.sketch is not None:
        text = f"is a sketch of {adapter.sketch} itself; sketch the adapter that it was made of"
        raise SketchUnusable(f"{adapter.client} {text}")
    tensors: Stored = {}
    modules = []
    for name in sorted(adapter.updates, key=natural_key):
        start = adapter.updates[name].start
        if start is Start.MOVED_BASE:
            text = (
                "holds a part of the base model, and is judged by differences, which no sketch has"
            )
            raise SketchUnusable(f"{adapter.client}: {name!r} {text}; judge the adapter itself")
        if start is Start.ZERO:
            modules.append(_add_module(adapter, name, kind, settings, tensors))
    lengths = len(adapter.updates) - len(modules)
    left_out = [f"the lengths of the rows of {lengths} modules of DoRA"] * bool(lengths)
    for name in sorted(adapter.full, key=natural_key):
        if adapter.full[name].size > WHOLE:
            left_out.append(f"{name!r}, of which more than {WHOLE} numbers were trained whole")
        else:
            tensors[f"{name}.full"] = _full(adapter, name)
    head = new_head(adapter, kind, modules, left_out)
    return head, document(head, tensors)


def _add_module(
    adapter: Adapter, name: str, kind: Sketching, settings: Settings, into: Stored
) -> SketchedModule:
    """One module's sides, put among the tensors."""
    from clair_cli.detection.forms import summarised

    spec = adapter.updates[name]
    found = summarised(adapter, name, kind, settings)
    _check_finite(adapter, name, found)
    check_energy(found, spec, kind, f"{adapter.client}: {name[:200]!r}")
    for side, tensor in (("left", found.up), ("right", found.down.T)):
        data = tensor.half().contiguous().numpy().tobytes()
        into[f"{name}.{side}"] = "F16", tuple(tensor.shape), data
    return SketchedModule(name, spec.d_out, spec.d_in, max(spec.rank, found.rank), found.scale)


def _check_finite(adapter: Adapter, name: str, found: LowRankUpdate) -> None:
    if not math.isfinite(found.scale):
        formats.check_finite(adapter, name)
        text = f"the update of {name[:200]!r} overflows though its factors are finite; retrain it"
        raise NonFinite(f"{adapter.client}: {text}")


def _full(adapter: Adapter, name: str) -> tuple[str, tuple[int, ...], bytes]:
    """A tensor trained whole: its own bytes, or in float64 where it is scaled or a mean."""
    from clair_cli.detection.full import read_full_estimate

    formats.check_full(adapter, name)
    spec = adapter.full[name]
    if spec.scale == 1 and not adapter.only_replicates:
        return spec.dtype, spec.shape, bytes(read_bytes(adapter, spec.tensor))
    values = read_full_estimate(adapter, name, 0, spec.size)
    return "F64", spec.shape, values.numpy().tobytes()


def all_sketched(
    entries: Entries,
    kind: Sketching,
    folder: Path,
    settings: Settings,
    on_progress: Progress = silent,
) -> Entries:
    """The same clients as sketches: those that are none are sketched into the empty `folder`.

    Each adapter is read once. Who cannot be sketched is broken, and the others go on.
    """
    made: list[Adapter] = []
    broken = list(entries.broken)
    for number, adapter in enumerate(entries.adapters):
        try:
            if adapter.sketch is None:
                adapter = _as_file(adapter, kind, folder / f"{number}.safetensors", settings)
            made.append(adapter)
        except AdapterError as error:
            broken.append(Broken(adapter.client, Reason(error.code, str(error))))
        on_progress("sketching adapters", number + 1, len(entries.adapters))
    return replace(entries, adapters=tuple(made), broken=tuple(broken))


def _as_file(adapter: Adapter, kind: Sketching, file: Path, settings: Settings) -> Adapter:
    write_bytes(file, sketched(adapter, kind, settings)[1])
    found = formats.open_adapter(file, settings, adapter.client)
    return replace(found, notes=(*adapter.notes, *found.notes))


def kind_of(adapters: Sequence[Adapter], asked: Sketching | None = None) -> Sketching:
    """The kind that most sketches among the adapters have, else the one asked for, or one of a size
    that suits their number of modules.

    Raises UsageError where they are of another kind than asked for.
    """
    count = Counter(a.sketch for a in adapters if a.sketch is not None).most_common(1)
    if count and asked is not None and asked != count[0][0]:
        text = f"there are sketches of {count[0][0]}, which all others are made like"
        raise UsageError(f"--size: {text}; leave --size and --seed out")
    if count:
        return count[0][0]
    if asked is not None:
        return asked
    modules = max((len(a.updates) for a in adapters), default=0)
    fits = (size for size in LARGER if size * modules <= TOGETHER)
    return replace(DEFAULT, size=next(fits, DEFAULT.size))
