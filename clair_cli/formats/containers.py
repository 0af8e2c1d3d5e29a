"""The kinds of file that hold named tensors: what is in them, one tensor at a time.

`Contents` is what one client's files hold before it is known which tensors make which update,
`Described` what a format makes of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clair_cli.cache import cache_of
from clair_cli.cohort import Adapter, FullSpec, InputFile, TensorSpec, UpdateSpec
from clair_cli.errors import ConfigInvalid, LimitExceeded, Malformed, NonFinite, ShapeMismatch
from clair_cli.formats import npz, safetensors_file
from clair_cli.formats.files import hash_file, pread
from clair_cli.formats.layout import CONFIG, Layout
from clair_cli.formats.safetensors_file import FLOATS
from clair_cli.report import Reason
from clair_cli.settings import Settings
from clair_cli.strict_json import parse_object

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

MAX_CONFIG_BYTES = 2**20
MAX_BASE = 4096
"""Characters of a base model's name: a path has no more, and a table is as wide as its widest cell."""


class Container(Protocol):
    """What a file of named tensors can do: known from its header, read one tensor at a time."""

    def read_contents(
        self, fd: int, size: int, where: str, settings: Settings
    ) -> tuple[dict[str, TensorSpec], dict[str, str]]:
        """Every tensor, and the metadata; raises the kinds of AdapterError."""

    def read_tensor(self, file: InputFile, name: str, spec: TensorSpec) -> Tensor:
        """One tensor of floats, of its shape and dtype; raises the kinds of AdapterError."""

    def read_values(self, file: InputFile, name: str, spec: TensorSpec) -> NDArray[np.float64]:
        """The same in float64 and without torch."""

    def read_bytes(self, file: InputFile, name: str, spec: TensorSpec) -> bytes | bytearray:
        """Its elements row by row, floats little-endian; raises the kinds of AdapterError."""

    def read_pieces(
        self, file: InputFile, name: str, spec: TensorSpec
    ) -> Iterator[bytes] | Iterator[bytearray]:
        """The same in pieces of bounded size, in order."""

    def read_elements(
        self, file: InputFile, name: str, spec: TensorSpec, begin: int, end: int
    ) -> NDArray[np.float64]:
        """Elements [begin, end), row by row; otherwise as `read_values`."""


class SameTensors(Protocol):
    """A new file of the same tensors as another, each written once, in any order."""

    def copy(self, file: InputFile, name: str, spec: TensorSpec) -> None:
        """The tensor as it is in `file`."""

    def put(
        self, file: InputFile, name: str, spec: TensorSpec, values: NDArray[np.float64]
    ) -> None:
        """Other values in place of those in `file`. Raises OutputError where they overflow."""

    def put_part(
        self,
        file: InputFile,
        name: str,
        spec: TensorSpec,
        values: NDArray[np.float64],
        begin: int,
    ) -> None:
        """Other values (n,) of the elements from `begin` on, in order. Raises what `put` does."""

    def close(self) -> None:
        """See that everything is on disk."""

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""


CONTAINERS: Mapping[str, Container] = {
    ".safetensors": safetensors_file,
    ".npz": npz,
    ".clair": safetensors_file,
}


def container(name: str) -> Container:
    """Of a file by its name, which ends in one of CONTAINERS."""
    return CONTAINERS[os.path.splitext(name)[1]]


def open_file(
    path: Path, name: str, settings: Settings
) -> tuple[InputFile, dict[str, TensorSpec], dict[str, str]]:
    """The hashed file, its tensors and its metadata. Raises the kinds of AdapterError."""
    look = partial(container(name).read_contents, where=name, settings=settings)
    file, (tensors, metadata) = hash_file(path, name, look, cache_of(settings))
    return file, tensors, metadata


def read_tensor(adapter: Adapter, name: str) -> Tensor:
    """One tensor of floats, of its stored shape and dtype. Raises Unsupported, ChangedWhileRead."""
    spec = adapter.tensors[name]
    return container(spec.file).read_tensor(adapter.files[spec.file], name, spec)


def read_bytes(adapter: Adapter, name: str) -> bytes | bytearray:
    """Its elements row by row, floats little-endian. Raises ChangedWhileRead, Malformed."""
    spec = adapter.tensors[name]
    return container(spec.file).read_bytes(adapter.files[spec.file], name, spec)


def read_pieces(adapter: Adapter, name: str) -> Iterator[bytes] | Iterator[bytearray]:
    """The same in pieces of bounded size, in order."""
    spec = adapter.tensors[name]
    return container(spec.file).read_pieces(adapter.files[spec.file], name, spec)


def read_values(adapter: Adapter, name: str) -> NDArray[np.float64]:
    """The same in float64 and without torch; raises NonFinite, too."""
    import numpy as np

    spec = adapter.tensors[name]
    values = container(spec.file).read_values(adapter.files[spec.file], name, spec)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise non_finite(spec.file, name, int(np.isnan(values).sum()), len(bad), bad[0].tolist())
    return values


def non_finite(file: str, name: str, nans: int, count: int, first: list[int]) -> NonFinite:
    """The error for `count` numbers that are not finite, `nans` of them NaN."""
    text = f"tensor {name!r} holds {nans} NaN and {count - nans} Inf, the first at {first}"
    return NonFinite(f"{file}: {text}; retrain it, or leave this client out")


# --- the files of one client


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of one client: tensors in file order, and adapter_config.json, if any."""

    layout: Layout
    files: Mapping[str, InputFile]
    tensors: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None

    @property
    def where(self) -> str:
        """The name of the file of tensors, for messages."""
        return self.layout.weights[0][0]


@dataclass(frozen=True, slots=True)
class Described:
    """What a format makes of it: `config` with what the command line added, the rest as in Adapter."""

    updates: Mapping[str, UpdateSpec]
    config: Mapping[str, Any]
    base: str | None = None
    notes: tuple[Reason, ...] = ()
    traits: Mapping[str, str] = field(default_factory=dict)
    full: Mapping[str, FullSpec] = field(default_factory=dict)
    digest: str | None = None


Describe = Callable[[Contents, Settings], Described]


def read_contents(layout: Layout, settings: Settings) -> Contents:
    """Every header, and the config. Raises the kinds of AdapterError."""
    files: dict[str, InputFile] = {}
    tensors: dict[str, TensorSpec] = {}
    metadata: dict[str, str] = {}
    for name, path in layout.weights:
        files[name], found, metadata = open_file(path, name, settings)
        for key in tensors.keys() & found.keys():
            text = f"{name}: tensor {key!r} is also in {tensors[key].file}"
            raise Malformed(f"{text}; keep the shards of one saving")
        tensors |= found
        if len(tensors) > settings.max_tensors:
            text = f"{len(tensors)} tensors with the shards before it"
            raise LimitExceeded(f"{name}: {text}, the limit is {settings.max_tensors}")
    config = None
    if layout.config is not None:
        files[CONFIG], config = hash_file(layout.config, CONFIG, _read_config)  # it is read anyway
    return Contents(layout, files, tensors, metadata, config)


def _read_config(fd: int, size: int) -> dict[str, Any]:
    if size > MAX_CONFIG_BYTES:
        text = f"{size} bytes, the limit is {MAX_CONFIG_BYTES}; upload the trainer's own config"
        raise ConfigInvalid(f"{CONFIG}: {text}")
    return parse_object(pread(fd, 0, size), CONFIG, ConfigInvalid)


def find_full(
    tensors: Mapping[str, TensorSpec],
    updates: Mapping[str, UpdateSpec],
    name_of: Callable[[str], str | None] = str,
) -> dict[str, FullSpec]:
    """Name -> what was trained whole: tensors of floats beside the updates, in file order.

    `name_of` says what a tensor is called, None where it is not to be judged. Raises ShapeMismatch
    where two are called the same.
    """
    used = {key for spec in updates.values() for key in spec.tensors.values()}
    found: dict[str, FullSpec] = {}
    for key, spec in tensors.items():
        judged = key not in used and spec.dtype in FLOATS and 0 not in spec.shape
        name = name_of(key) if judged else None
        if name in found:
            text = (
                f"{spec.file}: tensors {found[name].tensor!r} and {key!r} both stand for {name!r}"
            )
            raise ShapeMismatch(f"{text}; keep one adapter per file")
        if name is not None:
            found[name] = FullSpec(key, spec.shape, spec.dtype)
    return found


def not_judged(
    tensors: Mapping[str, TensorSpec],
    updates: Mapping[str, UpdateSpec],
    full: Mapping[str, FullSpec],
) -> tuple[Reason, ...]:
    """A note on what is neither an update nor trained whole; single numbers go without saying."""
    used = {key for spec in updates.values() for key in spec.tensors.values()}
    used |= {spec.tensor for spec in full.values()}
    passed = [k for k, spec in tensors.items() if k not in used and math.prod(spec.shape) != 1]
    return (Reason("CLR115", f"not judged and passed through: {listed(passed)}"),) if passed else ()


def listed(keys: Sequence[str]) -> str:
    """The first three of the keys, and how many more there are, for a message."""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(map(repr, keys[:3])) + more


def as_adapter(contents: Contents, client: str, form: str, found: Described) -> Adapter:
    """The adapter of the format `form`. Raises ConfigInvalid where the name of its base is endless."""
    if found.base is not None and len(found.base) > MAX_BASE:
        text = f"the name of its base model has {len(found.base)} characters"
        raise ConfigInvalid(f"{contents.where}: {text}, the limit is {MAX_BASE}; shorten it")
    return Adapter(
        client=client,
        path=contents.layout.path,
        format=form,
        digest=found.digest or _digest(contents.files, found.updates),
        updates=found.updates,
        tensors=contents.tensors,
        files=contents.files,
        config=found.config,
        metadata=contents.metadata,
        base=found.base,
        notes=(*contents.layout.notes, *found.notes),
        traits=found.traits,
        full=found.full,
        card=contents.layout.card,
    )


def _digest(files: Mapping[str, InputFile], updates: Mapping[str, UpdateSpec]) -> str:
    """Equal for equal tensors and scales, wherever they lie and whatever else the config says."""
    weights = sorted(f.sha256 for name, f in files.items() if name != CONFIG)
    scales = sorted((module, spec.scale.hex()) for module, spec in updates.items())
    return hashlib.sha256(json.dumps([weights, scales]).encode()).hexdigest()
