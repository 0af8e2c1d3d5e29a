"""The kinds of file that hold named tensors: what is in them, one tensor at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from clair_cli.cohort import Adapter, InputFile, TensorSpec
from clair_cli.errors import NonFinite
from clair_cli.formats import npz, safetensors_file
from clair_cli.formats.files import hash_file
from clair_cli.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


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


CONTAINERS: Mapping[str, Container] = {".safetensors": safetensors_file, ".npz": npz}


def container(name: str) -> Container:
    """Of a file by its name, which ends in one of CONTAINERS."""
    return CONTAINERS[os.path.splitext(name)[1]]


def open_file(
    path: Path, name: str, settings: Settings
) -> tuple[InputFile, dict[str, TensorSpec], dict[str, str]]:
    """The hashed file, its tensors and its metadata. Raises the kinds of AdapterError."""
    look = partial(container(name).read_contents, where=name, settings=settings)
    file, (tensors, metadata) = hash_file(path, name, look)
    return file, tensors, metadata


def read_tensor(adapter: Adapter, name: str) -> Tensor:
    """One tensor of floats, of its stored shape and dtype. Raises Unsupported, ChangedWhileRead."""
    spec = adapter.tensors[name]
    return container(spec.file).read_tensor(adapter.files[spec.file], name, spec)


def read_bytes(adapter: Adapter, name: str) -> bytes | bytearray:
    """Its elements row by row, floats little-endian. Raises ChangedWhileRead, Malformed."""
    spec = adapter.tensors[name]
    return container(spec.file).read_bytes(adapter.files[spec.file], name, spec)


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
