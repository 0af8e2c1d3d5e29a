"""A safetensors file written tensor by tensor, in any order, at the places its header gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clair_cli.cohort import InputFile, TensorSpec
from clair_cli.errors import OutputError
from clair_cli.formats.files import read_range
from clair_cli.formats.safetensors_file import FLOATS, PLAIN, lay_out, to_bytes
from clair_cli.output.publish import NewFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class SafetensorsWriter:
    """`path`, a new file of tensors name -> dtype, shape. Raises OutputError."""

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str] = PLAIN,
    ) -> None:
        head, self.begins = lay_out(shapes, metadata)
        self.file = NewFile(path)
        self.file.write(0, head)

    def write(self, name: str, data: bytes | bytearray) -> None:
        """All bytes of a tensor, once."""
        self.file.write(self.begins[name], data)

    def close(self) -> None:
        """Everything is on disk, and the library that will load it finds every tensor."""
        from safetensors import SafetensorError, safe_open

        self.file.close()
        name = self.file.path.name
        try:
            with safe_open(self.file.path, "pt") as file:
                found = set(file.keys())
        except SafetensorError as cause:
            raise OutputError(f"{name}: safetensors does not accept it: {cause}") from cause
        if found != self.begins.keys():
            raise OutputError(f"{name}: safetensors does not find what was written")

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""
        self.file.abandon()


class SameSafetensors(SafetensorsWriter):
    """A new file of the same tensors, some of them with other values."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorSpec]) -> None:
        super().__init__(path, {name: (t.dtype, t.shape) for name, t in tensors.items()})

    def copy(self, file: InputFile, name: str, spec: TensorSpec) -> None:
        """The tensor as it is in `file`."""
        self.write(name, read_range(file, spec.begin, spec.end))

    def put(
        self, file: InputFile, name: str, spec: TensorSpec, values: NDArray[np.float64]
    ) -> None:
        """Other values in place of those in `file`. Raises OutputError where they overflow."""
        import torch

        self.write(name, stored(torch.from_numpy(values), spec.dtype, name))


def stored(tensor: Tensor, dtype: str, name: str) -> bytes:
    """The bytes of `tensor` in a dtype of FLOATS. Raises OutputError where values are not finite."""
    import torch

    rounded = tensor.to(getattr(torch, FLOATS[dtype]))
    if not bool(torch.isfinite(rounded).all()):
        text = f"tensor {name!r}: values are not finite in the stored dtype {dtype}"
        raise OutputError(f"{text}; save the input as float32 and refine that")
    return to_bytes(rounded)
