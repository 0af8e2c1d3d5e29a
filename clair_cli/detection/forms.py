"""What is compared of a client's update of one module: itself, its sketch, or what a file says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from clair_cli import formats
from clair_cli.cohort import Adapter, Cohort, Sketching
from clair_cli.detection.differences import centred
from clair_cli.detection.kept import Kept, Key, origin
from clair_cli.detection.sketches import Sketch, sketch_size, sketched
from clair_cli.detection.stacks import ModuleStack, stack_module, stack_sketches
from clair_cli.detection.summaries import as_sketch, summary
from clair_cli.formats.sketch import check_energy
from clair_cli.linalg import shortened
from clair_cli.settings import DtypeName, Settings
from clair_cli.update import LowRankUpdate, combined

NO_CHANCE = 2**60
"""Width of a module whose clients' rows cannot be strangers."""
ANY = 2**62
"""More columns than there are."""
WIDE, PROPORTION = 64, 4
"""Columns that any client may have, and how many times the usual number."""
COPIES = 8
"""How many times the distinct clients there may be before copies count as clients of their own."""


@dataclass(frozen=True, slots=True)
class Form:
    """What is kept of each client's update of one module, and how these are stacked.

    All clients are padded to the largest rank, so one may have no more than `most`: it must not make
    the work of all its own. `size` is that of their sketches, None where whole updates are kept. Where
    some client is a sketch, all are compared by sketches of that `kind`, rounded alike.
    """

    module: str
    settings: Settings
    absolute: bool
    most: int
    size: int | None
    kind: Sketching | None = None

    @classmethod
    def of(cls, cohort: Cohort, settings: Settings, module: str) -> Form:
        """From the headers alone."""
        if kind := cohort.sketch:
            return cls(module, settings, True, ANY, kind.size, kind)
        first = {a.digest: rank_of(a, module) for a in cohort.clients}  # a copy counts once
        ranks, spec = sorted(first.values()), cohort.clients[0].updates[module]
        most = max(WIDE, PROPORTION * ranks[len(ranks) // 2])
        absolute = all(adapter.updates[module].absolute for adapter in cohort.clients)
        # a few copies turn no exact comparison into sketches; very many must not cost their square
        counted = max(len(ranks), len(cohort.clients) // COPIES)
        many = counted * min(ranks[-1], most) > settings.detection.max_columns
        if not many or not absolute or settings.exact:
            return cls(module, settings, absolute, most, None)
        size = sketch_size(len(ranks), (spec.d_out, spec.d_in))
        return cls(module, settings, absolute, most, size)

    def read(self, adapter: Adapter, dtype: DtypeName, device: str) -> LowRankUpdate | Sketch:
        """The client's update, or its sketch of the `kind`, which may be all there is of it."""
        if self.kind is None:
            return read_estimate(adapter, self.module, dtype, device)
        spec = adapter.updates[self.module]
        if spec.sketch is not None:
            return as_sketch(formats.read_update(adapter, self.module, "float32"), spec, device)
        found = summarised(adapter, self.module, self.kind, self.settings)
        check_energy(found, spec, self.kind, repr(self.module))
        return as_sketch(found, spec, device)

    def sketch_key(self, adapter: Adapter, dtype: DtypeName) -> Key | None:
        """What a client's sketch depends on; None where none is made of updates."""
        if self.size is None or self.kind is not None:
            return None
        spec = adapter.updates[self.module]
        sizes = [min(self.size, spec.d_out), min(self.size, spec.d_in)]
        cut = self.most if rank_of(adapter, self.module) > self.most else None
        read = origin(adapter, lambda a: a.updates.get(self.module))
        return [self.module, sizes, dtype, self.settings.seed, cut, read]

    def whole_key(self, cohort: Cohort, dtype: DtypeName) -> Key:
        """What the stack of whole updates of all clients depends on."""
        numbers = self.settings.detection.as_dict()
        how = [dtype, self.settings.seed, self.settings.exact, self.absolute, self.most, numbers]
        return [*how, [origin(a, lambda a: a.updates.get(self.module)) for a in cohort.clients]]

    def __call__(self, update: LowRankUpdate | Sketch, adapter: Adapter) -> LowRankUpdate | Sketch:
        """The update, or its sketch."""
        if isinstance(update, Sketch):
            return update
        if self.kind is not None:
            spec = adapter.updates[self.module]
            return as_sketch(summary(update, self.kind), spec, update.up.device.type)
        return update if self.size is None else sketched(update, self.size, self.settings.seed)

    def stacked(self, updates: Sequence[Any], kept: Sequence[int]) -> ModuleStack:
        """The stack of the updates at the positions `kept`, and of zeros at the others."""
        inside, numbers = set(kept), self.settings.detection
        used = [u if k in inside else u.zeroed() for k, u in enumerate(updates)]
        if self.size is not None:
            return stack_sketches(self.module, used)
        if not self.absolute:
            used = centred(used, self.settings.seed, numbers)
        most = ANY if self.settings.exact or self.absolute else numbers.max_columns
        stack = stack_module(self.module, used, most, self.settings.seed)
        if self.absolute:
            return stack
        # there is no chance in what a common entry makes alike
        return replace(stack, shape=(stack.shape[0], NO_CHANCE))


def summarised(adapter: Adapter, module: str, kind: Sketching, settings: Settings) -> LowRankUpdate:
    """The summary of a client's update, as a file of sketches has it."""

    def made() -> LowRankUpdate:
        return summary(read_estimate(adapter, module, "float64", "cpu"), kind)

    kept = Kept.of(settings)
    return made() if kept is None else kept.summary(adapter, module, kind, made)


def rank_of(adapter: Adapter, module: str) -> int:
    """The largest that the client's update can have, as its header says."""
    spec = adapter.updates[module]
    parts = len(adapter.replicates) if adapter.only_replicates else 1
    sent = adapter.since.updates.get(module) if adapter.since is not None else None
    return min(spec.rank * parts + (sent.rank if sent else 0), spec.d_out, spec.d_in)


def read_estimate(adapter: Adapter, module: str, dtype: DtypeName, device: str) -> LowRankUpdate:
    """The client's update, with what it was sent: its adapter, or the mean of its replicates where it
    has nothing else."""
    if not adapter.only_replicates:
        return formats.read_update(adapter, module, dtype, device)
    found = [formats.read_update(r, module, dtype, device) for r in adapter.replicates]
    mean = combined(found, [1 / len(found)] * len(found))
    return LowRankUpdate(*shortened(mean.up, mean.down), mean.scale)


def nothing(adapter: Adapter, module: str, dtype: str, device: str) -> LowRankUpdate:
    """The update zero of the module's shape."""
    spec, kind = adapter.updates[module], getattr(torch, dtype)
    return LowRankUpdate(
        torch.zeros(spec.d_out, 1, dtype=kind, device=device),
        torch.zeros(1, spec.d_in, dtype=kind, device=device),
    )
