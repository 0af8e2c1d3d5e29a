"""What a cache keeps of reading: tensors, under a key of all that they depend on.

Law: what is found is, bit for bit, what would be computed. So a key says what was read, by hashes; how it
was computed; by which code; and on what machine, since the last bits of a sum depend on that. Numbers
that are not finite are not kept: whoever they belong to is looked at again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import clair_cli
from clair_cli.cache import Cache, cache_of
from clair_cli.cohort import Adapter
from clair_cli.settings import Settings

Shape = tuple[int | None, ...]
"""Of a tensor, with None for a side that may have any length."""
Expected = Mapping[str, tuple[torch.dtype, Shape]]
"""Name -> dtype and shape of what a value is made of."""
CPU_FACTS = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
"""Lines of /proc/cpuinfo that say which instructions there are."""
ALIGNED = 8
"""Bytes to whose multiples every tensor of an entry is padded."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept in `cache` of computing on `device`, under `settings`."""

    cache: Cache
    place: str

    @classmethod
    def of(cls, settings: Settings, device: str) -> Kept | None:
        """None where nothing is kept."""
        cache = cache_of(settings)
        return None if cache is None else cls(cache, place(device, torch.get_num_threads()))

    def load(self, key: Sequence[Any], expected: Expected) -> tuple[dict[str, Tensor], Any] | None:
        """The tensors and the JSON-ready rest under this key; None where there is nothing as expected."""
        data = self.cache.get([self.place, *key])
        found = None if data is None else unpacked(data)
        if found is None:
            return None
        tensors = found[0]
        fits = tensors.keys() == expected.keys() and all(
            t.dtype == expected[name][0] and _fits(t.shape, expected[name][1]) and _finite(t)
            for name, t in tensors.items()
        )
        return found if fits else None

    def save(self, key: Sequence[Any], tensors: Mapping[str, Tensor], rest: Any = None) -> None:
        """Keep them, if all of them are finite."""
        if all(map(_finite, tensors.values())):
            self.cache.put([self.place, *key], *packed(tensors, rest))


def origin(adapter: Adapter, specs: Callable[[Adapter], Any]) -> list[Any]:
    """What is read of a client, JSON-ready: the hashes of its files, and what `specs` says of an adapter.

    So of its replicates, where it has nothing else, and of what it was sent.
    """
    own = adapter.replicates if adapter.only_replicates else (adapter,)
    since = () if adapter.since is None else (adapter.since,)
    return [[_read_of(a, specs) for a in group] for group in (own, since)]


def _read_of(adapter: Adapter, specs: Callable[[Adapter], Any]) -> list[Any]:
    kinds = sorted({os.path.splitext(name)[1] for name in adapter.files})
    return [adapter.digest, adapter.format, kinds, repr(specs(adapter))]


# --- by whom it was computed


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


# --- tensors and bytes


def packed(tensors: Mapping[str, Tensor], rest: Any = None) -> list[bytes]:
    """Tensors (at least one dtype of numpy's each) and a JSON-ready rest, as bytes."""
    arrays = {name: np.ascontiguousarray(t.detach().cpu().numpy()) for name, t in tensors.items()}
    head = {name: [str(a.dtype), list(tensors[name].shape)] for name, a in arrays.items()}
    text = json.dumps([head, rest]).encode()
    text += b" " * (-len(text) % ALIGNED)
    parts = [len(text).to_bytes(8, "little"), text]
    for array in arrays.values():
        parts.append(array.tobytes() + b"\0" * (-array.nbytes % ALIGNED))
    return parts


DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def unpacked(data: bytearray) -> tuple[dict[str, Tensor], Any] | None:
    """What `packed` made the bytes of, in memory of torch's own; None where it made them not."""
    begin = 8 + int.from_bytes(data[:8], "little")
    try:
        head, rest = json.loads(bytes(data[8:begin]))
        found = {}
        for name, (dtype, shape) in head.items():
            sides = tuple(int(side) for side in shape)
            if any(side < 0 for side in sides):
                return None
            size = math.prod(sides) * DTYPES[dtype].itemsize
            end = begin + size
            values = np.frombuffer(memoryview(data)[begin:end], dtype).reshape(sides)
            found[str(name)] = torch.from_numpy(values).clone()
            begin = end + -size % ALIGNED
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return (found, rest) if begin == len(data) else None


def _fits(shape: Sequence[int], expected: Shape) -> bool:
    pairs = zip(shape, expected, strict=False)
    return len(shape) == len(expected) and all(e is None or s == e for s, e in pairs)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
