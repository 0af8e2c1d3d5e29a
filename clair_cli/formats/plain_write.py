"""Plain matrices written back: the template's container, names and dtypes, other updates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from clair_cli.cohort import Adapter, InputFile, TensorSpec
from clair_cli.errors import OutputError
from clair_cli.formats.npz import SameNpz
from clair_cli.formats.plain import base_values
from clair_cli.formats.safetensors_write import SameSafetensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clair_cli.update import LowRankUpdate

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")


class SameTensors(Protocol):
    """A new file of the same tensors as another, each written once, in any order."""

    def copy(self, file: InputFile, name: str, spec: TensorSpec) -> None:
        """The tensor as it is in `file`."""

    def put(
        self, file: InputFile, name: str, spec: TensorSpec, values: NDArray[np.float64]
    ) -> None:
        """Other values in place of those in `file`. Raises OutputError where they overflow."""

    def close(self) -> None:
        """Everything is on disk."""

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""


WRITERS: Mapping[str, type[SameSafetensors] | type[SameNpz]] = {
    ".safetensors": SameSafetensors,
    ".npz": SameNpz,
}


class PlainWriter:
    """`adapter` with other updates of `modules`, into the empty `folder`, module by module.

    A matrix becomes the update, or base + update, in its stored dtype; a dense matrix has room for
    every rank, so `ranks` ask for nothing. All other tensors keep their bytes. Raises OutputError where
    an update does not fit its module, or its numbers the stored dtype; ChangedWhileRead where the
    template changed, UsageError where the base did.
    """

    def __init__(
        self,
        adapter: Adapter,
        folder: Path,
        modules: Sequence[str],
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        self.adapter, self.due = adapter, set(modules)
        name = next(iter(adapter.files))
        suffix = Path(name).suffix
        self.out: SameTensors = WRITERS[suffix](
            folder / file_name(adapter, name, folder), adapter.tensors
        )
        updated = {adapter.updates[m].file_key for m in modules}
        for key in adapter.tensors.keys() - updated:
            spec = adapter.tensors[key]
            self.out.copy(adapter.files[spec.file], key, spec)

    def put(self, module: str, update: LowRankUpdate) -> None:
        """Write one module's update, once."""
        self.due.remove(module)
        spec = self.adapter.updates[module]
        shape = (update.up.shape[0], update.down.shape[1])
        if shape != (spec.d_out, spec.d_in):
            text = f"an update {shape[0]} x {shape[1]} does not fit {spec.d_out} x {spec.d_in}"
            raise OutputError(f"{module}: {text}")
        values = update.dense().cpu().double().numpy()
        base = base_values(self.adapter, module)
        tensor = self.adapter.tensors[spec.file_key]
        file = self.adapter.files[tensor.file]
        self.out.put(file, spec.file_key, tensor, values if base is None else base + values)

    def keep(self, module: str) -> None:
        """Write one module's matrix as it was, byte for byte."""
        self.due.remove(module)
        key = self.adapter.updates[module].file_key
        spec = self.adapter.tensors[key]
        self.out.copy(self.adapter.files[spec.file], key, spec)

    def close(self) -> None:
        """Everything on disk."""
        if self.due:
            raise OutputError(f"{self.adapter.client}: no update was written for {min(self.due)!r}")
        self.out.close()

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""
        self.out.abandon()


def file_name(adapter: Adapter, name: str, folder: Path) -> str:
    """That of the client's file in its folder; a flat file's is the folder's name."""
    suffix = Path(name).suffix
    if adapter.path.name == name:
        return folder.name + suffix
    return name if PLAIN.fullmatch(name) else "weights" + suffix
