"""Updates stored as factors: read and written module by module, by the rule of their UpdateSpec."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clair_cli.cohort import Adapter, FullSpec, UpdateSpec
from clair_cli.errors import NonFinite, Unstorable
from clair_cli.formats.containers import non_finite, read_pieces, read_tensor, read_values
from clair_cli.formats.files import read_range
from clair_cli.formats.full import FullWriter
from clair_cli.formats.npz_writer import NpzWriter
from clair_cli.formats.rules import RULES, Array, Factors
from clair_cli.formats.safetensors_file import BITS, SafetensorsWriter, stored
from clair_cli.settings import DtypeName

if TYPE_CHECKING:
    from torch import Tensor

    from clair_cli.update import LowRankUpdate

LEVEL = 2.0**30
"""Factors whose norm is between its inverse and it are multiplied as they are. All others are first
brought to one size: in float32 the square of 1e19 is Inf, and that of 1e-23 is 0."""
EVEN = 2.0**10
"""How many times as large a column of `up` may be as its row of `down`, or the other way round: one that
is larger by far would drown the others' columns in rounding where all are decomposed together."""
APART = 2.0**8
"""How far the scale of an update may be from the written one for `up` to take the difference alone."""
SHARED = 2**29
"""Bytes kept of tensors that hold several updates: every expert of a layer would read all of it."""

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor name -> dtype in safetensors terms, shape."""
Group = tuple[str, ...]
"""Modules whose updates lie in the same tensors, in the order of their parts."""


def read_update(
    adapter: Adapter, module: str, dtype: DtypeName = "auto", device: str = "cpu"
) -> LowRankUpdate:
    """Delta W of one module as up (d_out, r), down (r, d_in) and scale, r <= min(d_out, d_in).

    How large one factor is beside the other does not matter, nor does a rank that the product cannot
    have. "auto" is float64 where a factor is stored as float64, else float32, which holds float16 and
    bfloat16 exactly. Raises ChangedWhileRead; does not look for NaN (see `check_finite`).
    """
    import torch

    from clair_cli.linalg import balanced, moved, shortened
    from clair_cli.update import LowRankUpdate

    spec = adapter.updates[module]
    wanted = ("float64" if spec.dtype == "F64" else "float32") if dtype == "auto" else dtype
    kind, parts = getattr(torch, wanted), _parts(adapter, spec, read_tensor)
    level = True
    if spec.parts == 1:  # of shared tensors, a part is a slice: cut out first
        parts = {role: moved(t, device).to(kind) for role, t in parts.items()}
        level = _level(parts.values(), spec.scale)
        if not level:
            parts = {role: t.double() for role, t in parts.items()}
    up, down = (moved(t, device) for t in RULES[spec.rule].factors(parts, spec))
    level = level and (spec.parts == 1 or _level((up, down), spec.scale)) and _even(up, down)
    if level and up.shape[1] <= min(spec.d_out, spec.d_in):
        return LowRankUpdate(up.to(kind), down.to(kind), spec.scale)
    up, down, scale = balanced(up.double(), down.double(), spec.scale)
    up, down = shortened(up, down)
    return LowRankUpdate(up.to(kind), down.to(kind), scale)


def _level(tensors: Iterable[Tensor], scale: float) -> bool:
    """Whether all are of a size to be multiplied as they are; zeros are, and NaN."""
    import torch

    sizes = [abs(scale)]
    for tensor in tensors:
        size = float(torch.linalg.vector_norm(tensor))
        if size == 0 and bool(tensor.any()):  # too small even to be squared
            return False
        sizes.append(size)
    return not any(0 < size < 1 / LEVEL or size > LEVEL for size in sizes)


def _even(up: Tensor, down: Tensor) -> bool:
    """Whether every column of `up` (d_out, r) is about as large as its row of `down`, or one is zero."""
    left, right = _largest(up), down.abs().amax(dim=1)
    both = (left > 0) & (right > 0)
    fine = (left <= EVEN * right) & (right <= EVEN * left)
    return bool(fine[both].all())


def _largest(columns: Tensor) -> Tensor:
    """The largest absolute value of each column of (d, r). Of a few columns, many rows are looked at as
    one: reducing over short rows takes ten times as long."""
    d, r = columns.shape
    rows = max(math.gcd(d, 64), 1)
    return columns.abs().reshape(d // rows, rows * r).amax(dim=0).reshape(rows, r).amax(dim=0)


class _Recent:
    """The tensors read last that several updates lie in, up to SHARED bytes of them."""

    def __init__(self) -> None:
        self.held: dict[tuple[Any, ...], Array] = {}
        self.lock = threading.Lock()

    def read(self, adapter: Adapter, name: str, read: Callable[[Adapter, str], Array]) -> Array:
        """What `read` gives, from memory if this very state of the file has been read before."""
        file = adapter.files[adapter.tensors[name].file]
        read_range(file, 0, 0)  # raises where it is another by now
        key = (file.path, file.identity, name, read)
        with self.lock:  # a thread may be reading ahead
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

    from clair_cli.linalg import finite

    spec = adapter.updates[module]
    parts = _parts(adapter, spec, read_tensor)
    if spec.parts > 1 and all(map(finite, RULES[spec.rule].factors(parts, spec))):
        return
    for role, name in spec.tensors.items():
        tensor = parts[role]
        bad = ~torch.isfinite(tensor)
        if count := int(bad.sum()):
            nans, first = int(torch.isnan(tensor).sum()), torch.nonzero(bad)[0].tolist()
            raise non_finite(adapter.tensors[name].file, name, nans, count, first)


def norm(adapter: Adapter, module: str) -> float:
    """||Delta W||_F of one module, without torch. Raises NonFinite.

    ||B A||_F^2 = sum (B'B o A A'), which needs the r x r cores only; the product where it is smaller.
    """
    import numpy as np

    spec = adapter.updates[module]
    with np.errstate(all="ignore"):
        parts = _parts(adapter, spec, read_values)
        up, down = RULES[spec.rule].factors(parts, spec)
        if up.shape[1] ** 2 > spec.d_out * spec.d_in:
            size = float(np.linalg.norm(up @ down))
        else:
            size = math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))
        found = spec.scale * size
    if not math.isfinite(found):
        where = adapter.tensors[spec.file_key].file
        raise NonFinite(f"{where}: the update of {module!r} is not finite; retrain it")
    return found


def stored_dtype(dtypes: Sequence[str]) -> str:
    """Of an update whose tensors have these dtypes: float64 decides, else the first."""
    return "F64" if "F64" in dtypes else dtypes[0]


# --- written back


class FactorsWriter(FullWriter):
    """`adapter` with other updates of `modules`, into the empty `folder`, module by module.

    A module in `ranks` is zero-padded to the rank given there, with the scale in its factors; all
    others keep rank and scale, and tensors that no update touches keep their bytes. A format says
    by its own methods what the file is called, what each tensor is called in it, and what lies
    beside it. Raises OutputError where an update does not fit its module, or its numbers the stored
    dtype; ChangedWhileRead where the template changed.
    """

    def __init__(
        self,
        adapter: Adapter,
        folder: Path,
        modules: Sequence[str],
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        self.adapter, self.folder, self.due = adapter, folder, set(modules)
        self.groups = groups(adapter.updates)
        self.ranks = self.spread(ranks or {})
        self.held: dict[Group, dict[str, Factors | None]] = {}
        self.put_so_far = {}
        shapes = self.shapes()
        self.out = self.open(shapes)
        touched = {self.groups[m] for m in self.due | self.ranks.keys()}
        used = {name for g in touched for name in adapter.updates[g[0]].tensors.values()}
        used |= {spec.tensor for spec in adapter.full.values()}
        for name in (shapes.keys() & adapter.tensors.keys()) - used:
            self._pass(name)
        for group in touched:
            for module in group:
                if module not in self.due:
                    self._hold(module, None)

    # --- what a format says

    def open(self, shapes: Shapes) -> SafetensorsWriter | NpzWriter:
        """The new file of these tensors."""
        named = {self.key(name): shape for name, shape in shapes.items()}
        return SafetensorsWriter(self.folder / self.file_name(), named, self.metadata())

    def file_name(self) -> str:
        """Of the file of tensors: that of the client's file."""
        return next(iter(self.adapter.files))

    def key(self, name: str) -> str:
        """What a tensor is called in the new file."""
        return name

    def metadata(self) -> Mapping[str, str]:
        """The metadata of the new file."""
        return {"format": "pt"}

    def passed(self, name: str) -> Iterable[bytes | bytearray]:
        """The bytes of a tensor that is no factor of an update written, in pieces."""
        return read_pieces(self.adapter, name)

    def beside(self) -> None:
        """Write what belongs beside the file."""

    # --- what all share

    def spread(self, ranks: Mapping[str, int]) -> dict[str, int]:
        """Modules in the same tensors have one rank, the largest of theirs."""
        found: dict[str, int] = {}
        for group in {self.groups[m] for m in ranks}:
            found |= dict.fromkeys(group, max(ranks.get(m, 0) for m in group))
        return found

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Every tensor of the new file: as in the template but for the ranks."""
        found = {name: (t.dtype, t.shape) for name, t in self.adapter.tensors.items()}
        for module, rank in self.ranks.items():
            spec = self.adapter.updates[module]
            for role, axis in RULES[spec.rule].axes.items():
                name = spec.tensors[role]
                shape = list(self.adapter.tensors[name].shape)
                shape[axis] = shape[axis] // spec.rank * rank
                found[name] = found[name][0], tuple(shape)
        return found

    def put(self, module: str, update: LowRankUpdate) -> None:
        """Write one module's update, once."""
        self.due.remove(module)
        spec = self.adapter.updates[module]
        self._hold(module, fitted(update, spec, module, self.ranks.get(module)))

    def keep(self, module: str) -> None:
        """Write one module as it was, byte for byte where its rank stays."""
        self.due.remove(module)
        self._hold(module, None)

    def _hold(self, module: str, factors: Factors | None) -> None:
        """Write a group as soon as the last of it is there; None stands for what the template has."""
        group = self.groups[module]
        held = self.held.setdefault(group, {})
        held[module] = factors
        if len(held) == len(group):
            self._write(group, self.held.pop(group))

    def _write(self, group: Group, held: Mapping[str, Factors | None]) -> None:
        spec = self.adapter.updates[group[0]]
        if group[0] not in self.ranks and all(f is None for f in held.values()):
            for name in spec.tensors.values():
                self._pass(name)
            return
        store = RULES[spec.rule].store
        if store is None:
            raise Unstorable(f"{group[0]}: {spec.rule} cannot hold a low-rank update")
        parts = store([held[m] or self._own(m) for m in group])
        for role, name in spec.tensors.items():
            if role not in parts:
                self._pass(name)
                continue
            dtype = self.adapter.tensors[name].dtype
            self.out.write(self.key(name), stored(parts[role], dtype, name))

    def _pass(self, name: str) -> None:
        at = 0
        for piece in self.passed(name):
            self.out.write(self.key(name), piece, at)
            at += len(piece)

    def _own(self, module: str) -> Factors:
        """The template's factors, for the rank and scale that are written."""
        update = read_update(self.adapter, module, "float64")
        return fitted(update, self.adapter.updates[module], module, self.ranks.get(module))

    def close(self) -> None:
        """Everything on disk, and what lies beside it."""
        if self.due:
            raise Unstorable(f"{self.adapter.client}: no update was written for {min(self.due)!r}")
        self._finish_full()
        self.out.close()
        self.beside()

    def _write_full(self, spec: FullSpec, begin: int, values: Tensor) -> None:
        data = stored(values, spec.dtype, spec.tensor)
        self.out.write(self.key(spec.tensor), data, begin * BITS[spec.dtype] // 8)

    def _pass_full(self, spec: FullSpec) -> None:
        self._pass(spec.tensor)

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""
        self.out.abandon()


def groups(updates: Mapping[str, UpdateSpec]) -> dict[str, Group]:
    """Module -> all modules in the same tensors, itself included."""
    together: dict[Group, list[str]] = {}
    for module, spec in updates.items():
        together.setdefault((*spec.tensors.values(),), []).append(module)
    ordered = [tuple(sorted(ms, key=lambda m: updates[m].part)) for ms in together.values()]
    return {module: group for group in ordered for module in group}


def fitted(update: LowRankUpdate, spec: UpdateSpec, module: str, rank: int | None) -> Factors:
    """up (d_out, n) and down (n, d_in) of the written rank n, for the scale that goes with it."""
    from torch.nn.functional import pad

    n, scale = (spec.rank, spec.scale) if rank is None else (rank, 1.0)
    r = update.down.shape[0]
    if update.up.shape != (spec.d_out, r) or update.down.shape != (r, spec.d_in) or r > n:
        raise Unstorable(
            f"{module}: an update {tuple(update.up.shape)} @ {tuple(update.down.shape)} does not "
            f"fit {spec.d_out} x {spec.d_in} of rank {n}"
        )
    up, down, share = update.up, update.down, update.scale / scale
    if not 1 / APART <= share <= APART:  # one factor alone might not take it in the stored dtype
        half = 2.0 ** round(math.log2(share) / 2)
        down, share = down * half, share / half
    up = up if share == 1 else up * share
    return pad(up, (0, n - r)), pad(down, (0, 0, 0, n - r))
