"""What a cache keeps of reading: sketches, stacks and tables, under keys of all that they depend on.

Law: what is found is, bit for bit, what would be computed. So a key says what was read, by hashes; how
it was computed; by which code; and on what machine, since the last bits of a sum depend on that.
Numbers that are not finite are not kept: whoever they belong to is looked at again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

import clair_cli
from clair_cli.cache import Cache, cache_of
from clair_cli.cohort import Adapter, Sketching
from clair_cli.detection.agreement import Array
from clair_cli.detection.packing import Expected, as_expected, packed, unpacked
from clair_cli.detection.sketches import Sketch
from clair_cli.detection.stacks import ModuleStack
from clair_cli.linalg import finite
from clair_cli.records import decode
from clair_cli.settings import Settings
from clair_cli.update import LowRankUpdate

Rest = TypeVar("Rest")
Key = Sequence[Any]
SKETCH = ("left", "right", "down", "energy")
TABLES = ("energies", "inner", "overlap", "rows")
SIDES = ("left", "right", "blocks")
CPU_FACTS = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
"""Lines of /proc/cpuinfo that say which instructions there are."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What is found of one client beside its sketch: the energy of an update that was `cut`; what the
    update and the one that was sent have in common, `shared`, and the energy of that, `sent`."""

    cut: float | None = None
    shared: float | None = None
    sent: float | None = None


@dataclass(frozen=True, slots=True)
class _OfStack:
    shape: tuple[int, int]
    error: float
    sketched: bool
    beside: tuple[Beside, ...]


@dataclass(frozen=True, slots=True)
class _Nothing:
    """Where tensors are all there is."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept in `cache` of computing on `device`."""

    cache: Cache
    device: str
    place: str

    @classmethod
    def of(cls, settings: Settings, device: str = "cpu") -> Kept | None:
        """None where nothing is kept."""
        cache = cache_of(settings)
        if cache is None:
            return None
        return cls(cache, device, place(device, torch.get_num_threads()))

    def _load(
        self, key: Key, expected: Expected, kind: type[Rest]
    ) -> tuple[dict[str, Tensor], Rest] | None:
        data = self.cache.get([self.place, *key])
        found = None if data is None else unpacked(data)
        if found is None or not as_expected(found[0], expected):
            return None
        try:
            return found[0], decode(kind, found[1])
        except ValueError:
            return None

    def _save(self, key: Key, tensors: Mapping[str, Tensor], rest: Any = None) -> None:
        if all(map(finite, tensors.values())):
            self.cache.put(
                [self.place, *key], *packed(tensors, {} if rest is None else asdict(rest))
            )

    # --- one client

    def sketch(
        self, key: Key, shape: tuple[int, int], size: int | None, dtype: str
    ) -> tuple[Sketch, Beside] | None:
        """A client's sketch, of this size, of one module of this shape, (d_out, d_in)."""
        kind = getattr(torch, dtype)
        rows = [d if size is None else min(size, d) for d in shape]
        tensors: Expected = {
            "left": (kind, (rows[0], None)),
            "right": (kind, (rows[1], None)),
            "down": (kind, (None, None)),
            "energy": (kind, ()),
        }
        found = self._load(["sketch", *key], tensors, Beside)
        if found is None:
            return None
        parts = {name: tensor.to(self.device) for name, tensor in found[0].items()}
        made = Sketch(shape=shape, **parts)
        fits = made.right.shape[1] == made.rank and made.down.shape == (made.rank, made.rank)
        return (made, found[1]) if fits else None

    def keep_sketch(self, key: Key, made: Sketch, beside: Beside) -> None:
        """Keep a client's sketch, and what was found beside it."""
        if _finite(beside):
            self._save(["sketch", *key], {name: getattr(made, name) for name in SKETCH}, beside)

    def summary(
        self, adapter: Adapter, module: str, kind: Sketching, make: Callable[[], LowRankUpdate]
    ) -> LowRankUpdate:
        """A client's summary of one module, as a file of sketches has it; made where it is not kept."""
        spec = adapter.updates[module]
        key = ["summary", module, asdict(kind), origin(adapter, lambda a: a.updates.get(module))]
        sides: Expected = {
            "up": (torch.float16, (min(kind.size, spec.d_out), None)),
            "down": (torch.float16, (None, min(kind.size, spec.d_in))),
            "norm": (torch.float64, ()),
        }
        loaded = self._load(key, sides, _Nothing)
        if loaded is not None and loaded[0]["up"].shape[1] == loaded[0]["down"].shape[0]:
            up, down, norm = (loaded[0][name] for name in sides)
            return LowRankUpdate(up.float(), down.float(), float(norm))
        found = make()
        norm = torch.tensor(found.scale, dtype=torch.float64)
        self._save(key, {"up": found.up.half(), "down": found.down.half(), "norm": norm})
        return found

    # --- all clients

    def stack(
        self, key: Key, module: str, clients: int, dtype: str
    ) -> tuple[ModuleStack, tuple[Beside, ...]] | None:
        """The stack of one module of so many clients, and what was found beside their updates."""
        kind, table = getattr(torch, dtype), (torch.float64, (clients, clients))
        tensors: Expected = {
            "left": (kind, (None, None)),
            "right": (kind, (None, None)),
            "blocks": (kind, (clients, None, None)),
            "energies": (torch.float64, (clients,)),
            "inner": table,
            "overlap": table,
            "rows": table,
        }
        loaded = self._load(["stack", module, *key], tensors, _OfStack)
        if loaded is None:
            return None
        found, rest = loaded
        sides = {name: found[name].to(self.device) for name in SIDES}
        made = ModuleStack(
            module=module,
            shape=rest.shape,
            error=rest.error,
            sketched=rest.sketched,
            **sides,
            **{name: found[name] for name in TABLES},
        )
        columns = clients * made.width
        fits = (
            made.left.shape[1] == made.right.shape[1] == columns == clients * len(made.blocks[0].T)
        )
        square = rest.sketched or len(made.left) == len(made.right) == columns
        return (made, rest.beside) if fits and square and len(rest.beside) == clients else None

    def keep_stack(self, key: Key, stack: ModuleStack, beside: Sequence[Beside]) -> None:
        """Keep the stack of one module of all clients."""
        if all(map(_finite, beside)):
            tensors = {name: getattr(stack, name) for name in (*SIDES, *TABLES)}
            rest = _OfStack(stack.shape, stack.error, stack.sketched, tuple(beside))
            self._save(["stack", stack.module, *key], tensors, rest)

    def products(self, key: Key, clients: int, head: bool) -> dict[str, Array] | None:
        """Inner products (K, K) of one matrix that so many clients have trained whole; of a `head` those
        of the sums of its rows, and what moves the frequencies of labels (K,)."""
        double, table = torch.float64, (clients, clients)
        expected: Expected = {"inner": (double, table)}
        if head:
            expected = {**expected, "sums": (double, table), "frequency": (double, (clients,))}
        found = self._load(["full", *key], expected, _Nothing)
        return None if found is None else {name: x.numpy() for name, x in found[0].items()}

    def keep_products(self, key: Key, found: Mapping[str, Array]) -> None:
        """Keep what was found of one matrix."""
        self._save(["full", *key], {name: torch.from_numpy(x) for name, x in found.items()})


def _finite(beside: Beside) -> bool:
    return all(x is None or math.isfinite(x) for x in (beside.cut, beside.shared, beside.sent))


# --- what was read, by whom


def origin(adapter: Adapter, specs: Callable[[Adapter], Any]) -> list[Any]:
    """What is read of a client, JSON-ready: the hashes of its files, and what `specs` says of it.

    So of its replicates, where it has nothing else, and of what it was sent.
    """
    own = adapter.replicates if adapter.only_replicates else (adapter,)
    since = () if adapter.since is None else (adapter.since,)
    return [[_read_of(a, specs) for a in group] for group in (own, since)]


def _read_of(adapter: Adapter, specs: Callable[[Adapter], Any]) -> list[Any]:
    kinds = sorted({os.path.splitext(name)[1] for name in adapter.files})
    return [adapter.digest, adapter.format, kinds, repr(specs(adapter))]


@lru_cache(maxsize=4)
def place(device: str, threads: int) -> str:
    """A sha256 of the code and the machine, on which the last bits of all numbers depend."""
    versions = (code(), torch.__version__, np.__version__)
    machine = (platform.machine(), _processor(), torch.backends.cpu.get_cpu_capability(), threads)
    card = (torch.cuda.get_device_name(device), torch.version.cuda) if device != "cpu" else ()
    return hashlib.sha256(json.dumps([versions, machine, card]).encode()).hexdigest()


@lru_cache(maxsize=1)
def code() -> str:
    """The sha256 of all of clair's source: nobody has to remember that a change changes numbers."""
    top, digest = Path(clair_cli.__file__).parent, hashlib.sha256()
    for path in sorted(top.rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(top).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _processor() -> str:
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(line for line in first.splitlines() if line.startswith(CPU_FACTS))
