"""New .npz files: of the same tensors as another, or of any that are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clair_cli.cohort import InputFile, TensorSpec
from clair_cli.errors import Unstorable
from clair_cli.formats.npz import FLOAT_NAMES, NpyTensor, dtype_of, head_of, raw_pieces
from clair_cli.formats.zip_file import ZipWriter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SameNpz:
    """A new .npz of the same tensors, in any order, unpacked; equal tensors give equal bytes."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorSpec]) -> None:
        sizes = {f"{k}.npy": t.unpacked for k, t in tensors.items() if isinstance(t, NpyTensor)}
        self.file = ZipWriter(path, sizes)
        self.held: dict[str, NDArray[np.float64]] = {}

    def copy(self, file: InputFile, name: str, spec: TensorSpec) -> None:
        """The tensor as it is in `file`."""
        assert isinstance(spec, NpyTensor)
        at = 0
        for piece in raw_pieces(file, name, spec):
            self.file.write(f"{name}.npy", piece, at)
            at += len(piece)

    def put(
        self, file: InputFile, name: str, spec: TensorSpec, values: NDArray[np.float64]
    ) -> None:
        """Other values in place of those in `file`. Raises OutputError where they overflow."""
        assert isinstance(spec, NpyTensor)
        data = _stored(values, spec, name).tobytes(order="F" if spec.fortran else "C")
        self.file.write(f"{name}.npy", head_of(file, name, spec) + data)

    def put_part(
        self,
        file: InputFile,
        name: str,
        spec: TensorSpec,
        values: NDArray[np.float64],
        begin: int,
    ) -> None:
        """Other values (n,) of the elements from `begin` on, in order. Raises what `put` does.

        What is stored column by column is kept until the last of it is there.
        """
        import numpy as np

        assert isinstance(spec, NpyTensor)
        end = begin + len(values)
        if spec.fortran:
            whole = self.held.setdefault(name, np.empty(math.prod(spec.shape)))
            whole[begin:end] = values
            if end == len(whole):
                self.put(file, name, spec, self.held.pop(name).reshape(spec.shape))
            return
        data = _stored(values, spec, name).tobytes()
        at = spec.head + begin * (len(data) // max(len(values), 1))
        if begin == 0:
            data, at = head_of(file, name, spec) + data, 0
        self.file.write(f"{name}.npy", data, at)

    def close(self) -> None:
        """See that everything is on disk."""
        self.file.close()

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""
        self.file.abandon()


def _stored(values: NDArray[np.float64], spec: NpyTensor, name: str) -> NDArray[Any]:
    """`values` in the dtype of the array. Raises OutputError where they are not finite in it."""
    import numpy as np

    with np.errstate(over="ignore"):
        stored = values.astype(spec.descr[:3])
    if not np.isfinite(stored).all():
        text = f"tensor {name!r}: values are not finite in the stored dtype {spec.dtype}"
        raise Unstorable(f"{text}; save the input as float32 and refine that")
    return stored


class NpzWriter:
    """A new .npz of tensors name -> dtype, shape, which lie in it in this order, unpacked.

    A reader that takes the arrays by their places finds them there.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self.heads = {name: _head(*what) for name, what in shapes.items()}
        items = {name: dtype_of(_descr(dtype), name)[1] for name, (dtype, _) in shapes.items()}
        sizes = {
            f"{name}.npy": len(self.heads[name]) + math.prod(shape) * items[name]
            for name, (_, shape) in shapes.items()
        }
        self.file = ZipWriter(path, sizes)

    def write(self, name: str, data: bytes | bytearray, at: int = 0) -> None:
        """All bytes of a tensor, once, as `read_bytes` gives them; or piece by piece, in order."""
        head = self.heads[name]
        place = (f"{name}.npy", data, len(head) + at) if at else (f"{name}.npy", head + data, 0)
        self.file.write(*place)

    def close(self) -> None:
        """See that everything is on disk."""
        self.file.close()

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""
        self.file.abandon()


def _descr(dtype: str) -> str:
    """numpy's name of a dtype that is given as in `NpyTensor`."""
    return {name: f"<{descr}" for descr, name in FLOAT_NAMES.items()}.get(dtype, dtype)


def _head(dtype: str, shape: tuple[int, ...]) -> bytes:
    from io import BytesIO

    from numpy.lib.format import write_array_header_1_0

    text = BytesIO()
    header = {"descr": _descr(dtype), "fortran_order": False, "shape": shape}
    write_array_header_1_0(text, header)
    return text.getvalue()
