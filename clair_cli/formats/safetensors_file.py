"""The safetensors container: a bounded header reader, tensors by position, and a writer.

A file is written tensor by tensor, in any order, where its header puts them. The reader is
stricter than the reference parser, which accepts duplicate names and fields of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clair_cli.cohort import InputFile, TensorSpec
from clair_cli.errors import (
    LimitExceeded,
    Malformed,
    PickleFound,
    Unstorable,
    Unsupported,
)
from clair_cli.formats import files
from clair_cli.formats.files import pread, read_range
from clair_cli.output.publish import NewFile
from clair_cli.settings import Settings
from clair_cli.strict_json import parse_object

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_BY_BITS = {
    64: "F64 I64 U64 C64",
    32: "F32 I32 U32",
    16: "F16 BF16 I16 U16",
    8: "I8 U8 BOOL F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    6: "F6_E2M3 F6_E3M2",
    4: "F4",
}
BITS = {name: bits for bits, names in _BY_BITS.items() for name in names.split()}
"""Bits per element of every dtype safetensors 0.8 knows."""

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtypes whose values clair computes with, as torch names them."""

FOR_TORCH = {"format": "pt"}
"""The metadata that loaders of torch expect."""

MAX_NAME_BYTES = 512
MAX_DIMENSIONS = 64
"""Of torch; also keeps the product of a hostile shape cheap."""


def read_header(fd: int, size: int, where: str, settings: Settings) -> dict[str, TensorSpec]:
    """The tensors alone, without what else `read_contents` gives."""
    return read_contents(fd, size, where, settings)[0]


def read_contents(
    fd: int, size: int, where: str, settings: Settings
) -> tuple[dict[str, TensorSpec], dict[str, str]]:
    """Every tensor of an open file of `size` bytes, with absolute offsets, in file order; its metadata.

    Raises Malformed, LimitExceeded (header bytes, number of tensors) or PickleFound; nothing is
    allocated before its size has been compared with the file and the limits.
    """
    if size > settings.max_file_bytes:
        raise LimitExceeded(f"{where}: {size} bytes, the limit is {settings.max_file_bytes}")
    length = _header_length(fd, size, where, settings)
    header = parse_object(pread(fd, 8, 8 + length), where, Malformed)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # mlx writes null
    _check_metadata(metadata, where)
    if len(header) > settings.max_tensors:
        raise LimitExceeded(f"{where}: {len(header)} tensors, the limit is {settings.max_tensors}")
    start = 8 + length
    tensors = {name: _tensor(name, entry, where, start) for name, entry in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_tiling(ordered, where, start, size)
    return ordered, metadata


def _header_length(fd: int, size: int, where: str, settings: Settings) -> int:
    head = bytes(pread(fd, 0, min(size, 64)))
    length = int.from_bytes(head[:8], "little")
    if len(head) >= 10 and 2 <= length <= size - 8 and head[8:9] == b"{":
        if length > settings.max_header_bytes:
            limit = settings.max_header_bytes
            raise LimitExceeded(f"{where}: header of {length} bytes, the limit is {limit}")
        return length
    # A pickle or zip signature may also be the length of an honest header: it counts only here.
    if head[:1] == b"\x80" or head[:2] == b"PK":
        raise PickleFound(
            f"{where}: a pickle or zip file under a safetensors name, not opened; "
            "re-save it with safetensors"
        )
    raise Malformed(f"{where}: {_why_no_header(head, length, size)}")


def _why_no_header(head: bytes, length: int, size: int) -> str:
    if not head:
        return "the file is empty (0 bytes); upload it again"
    if head.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, not the file itself; run `git lfs pull`"
    if size < 10:
        return f"{size} bytes are too few for a safetensors header; upload it again"
    if length > size - 8:
        return f"header length {length} runs past the end of the file ({size} bytes)"
    return f"expected a header starting with '{{', found {head[8:9]!r}; not a safetensors file"


def _check_metadata(metadata: Any, where: str) -> None:
    fine = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not fine:
        raise Malformed(f"{where}: __metadata__ must map strings to strings; save it again")


def _tensor(name: str, entry: Any, where: str, start: int) -> TensorSpec:
    if len(name.encode()) > MAX_NAME_BYTES:
        text = f"tensor name {name[:60]!r}... is longer than {MAX_NAME_BYTES} bytes"
        raise LimitExceeded(f"{where}: {text}")
    what = f"{where}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Malformed(f"{what}: expected dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise Malformed(f"{what}: unknown dtype {str(dtype)[:20]!r}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise Malformed(f"{what}: invalid shape {str(shape)[:60]}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Malformed(f"{what}: invalid data_offsets {str(offsets)[:60]}")
    begin, end = offsets
    if math.prod(shape) * BITS[dtype] != 8 * (end - begin):
        text = f"shape {str(shape)[:60]} of {dtype} does not take the {end - begin} bytes given"
        raise Malformed(f"{what}: {text} by data_offsets {offsets}")
    return TensorSpec(where, dtype, tuple(shape), start + begin, start + end)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _check_tiling(ordered: Mapping[str, TensorSpec], where: str, start: int, size: int) -> None:
    """The tensors must cover the data exactly: what hides in a hole could be anything."""
    at = start
    for name, t in ordered.items():
        if t.end > size:
            text = f"bytes {t.begin} to {t.end} run past the end of the file ({size} bytes)"
            raise Malformed(f"{where}: tensor {name!r}: {text}; upload it again")
        if t.begin != at:
            kind = "overlap the tensor before" if t.begin < at else "leave a hole before them"
            text = f"bytes {t.begin} to {t.end} {kind}, which ends at {at}"
            raise Malformed(f"{where}: tensor {name!r}: {text}; save it again")
        at = t.end
    if at != size:
        raise Malformed(f"{where}: {size - at} bytes after the last tensor; save it again")


def read_tensor(file: InputFile, name: str, spec: TensorSpec) -> Tensor:
    """The tensor `name`, of its stored shape and dtype, in memory of its own on the CPU.

    Raises Unsupported unless it is F64, F32, F16 or BF16, and ChangedWhileRead.
    """
    import torch

    if spec.dtype not in FLOATS:
        raise Unsupported(f"{spec.file}: tensor {name!r} is {spec.dtype}; re-save it as float32")
    dtype = getattr(torch, FLOATS[spec.dtype])
    if spec.begin == spec.end:
        return torch.empty(spec.shape, dtype=dtype)
    data = read_range(file, spec.begin, spec.end)
    return torch.frombuffer(data, dtype=dtype).reshape(spec.shape)


def read_values(file: InputFile, name: str, spec: TensorSpec) -> NDArray[np.float64]:
    """The tensor `name`, of its shape, in float64 and without torch.

    Raises Unsupported unless it is F64, F32, F16 or BF16, and ChangedWhileRead.
    """
    import numpy as np

    if spec.dtype not in FLOATS:
        raise Unsupported(f"{spec.file}: tensor {name!r} is {spec.dtype}; re-save it as float32")
    data = read_range(file, spec.begin, spec.end)
    if spec.dtype == "BF16":  # unknown to numpy: the upper half of a float32
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(data, f"<f{BITS[spec.dtype] // 8}")
    return values.reshape(spec.shape).astype(np.float64)


def read_elements(
    file: InputFile, name: str, spec: TensorSpec, begin: int, end: int
) -> NDArray[np.float64]:
    """Elements [begin, end) of the tensor `name`, row by row. Otherwise as `read_values`."""
    size = BITS[spec.dtype] // 8
    first, last = spec.begin + begin * size, spec.begin + end * size
    return read_values(file, name, TensorSpec(spec.file, spec.dtype, (end - begin,), first, last))


def read_bytes(file: InputFile, name: str, spec: TensorSpec) -> bytearray:
    """The bytes of the tensor `name`, as they are stored. Raises ChangedWhileRead."""
    return read_range(file, spec.begin, spec.end)


def read_pieces(file: InputFile, name: str, spec: TensorSpec) -> Iterator[bytearray]:
    """The same in pieces of bounded size, in order."""
    return files.read_pieces(file, spec.begin, spec.end)


def to_bytes(tensor: Tensor) -> bytes:
    """The elements row by row, as safetensors stores them."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: bytes = flat.view(torch.uint8).numpy().tobytes()
    return data


def lay_out(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] = FOR_TORCH
) -> tuple[bytes, dict[str, int]]:
    """The head of a file of tensors of these dtypes and shapes, and where in the file each begins.

    Equal tensors and metadata give equal bytes: widest dtypes first, then by name. Written
    here and not by the library, which cannot pass on the bytes of a dtype it does not load. Raises
    OutputError for a dtype that only an .npz can hold.
    """
    for name, (dtype, _) in shapes.items():
        if dtype not in BITS:
            what = f"tensor {name!r} is {dtype}, which safetensors does not hold"
            raise Unstorable(f"{what}; leave it out of the input, or save it as float32")
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    at, begins = 0, {}
    for name in sorted(shapes, key=lambda n: (-BITS[shapes[n][0]], shapes[n][0], n)):
        dtype, shape = shapes[name]
        size = math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        begins[name] = at
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + begin for name, begin in begins.items()}


# --- written


class SafetensorsWriter:
    """`path`, a new file of tensors name -> dtype, shape. Raises OutputError."""

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str] = FOR_TORCH,
    ) -> None:
        head, self.begins = lay_out(shapes, metadata)
        self.file = NewFile(path)
        self.file.write(0, head)

    def write(self, name: str, data: bytes | bytearray, at: int = 0) -> None:
        """All bytes of a tensor, once; or piece by piece, each from byte `at` of the tensor on."""
        self.file.write(self.begins[name] + at, data)

    def close(self) -> None:
        """Everything is on disk, and the library that will load it finds every tensor."""
        from safetensors import SafetensorError, safe_open

        self.file.close()
        name = self.file.path.name
        try:
            with safe_open(self.file.path, "pt") as file:
                found = set(file.keys())
        except SafetensorError as cause:
            raise Unstorable(f"{name}: safetensors does not accept it: {cause}") from cause
        if found != self.begins.keys():
            raise Unstorable(f"{name}: safetensors does not find what was written")

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""
        self.file.abandon()


class SameSafetensors(SafetensorsWriter):
    """A new file of the same tensors, some of them with other values."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorSpec]) -> None:
        super().__init__(path, {name: (t.dtype, t.shape) for name, t in tensors.items()})

    def copy(self, file: InputFile, name: str, spec: TensorSpec) -> None:
        """The tensor as it is in `file`."""
        at = 0
        for piece in read_pieces(file, name, spec):
            self.write(name, piece, at)
            at += len(piece)

    def put(
        self, file: InputFile, name: str, spec: TensorSpec, values: NDArray[np.float64]
    ) -> None:
        """Other values in place of those in `file`. Raises OutputError where they overflow."""
        import torch

        self.write(name, stored(torch.from_numpy(values), spec.dtype, name))

    def put_part(
        self,
        file: InputFile,
        name: str,
        spec: TensorSpec,
        values: NDArray[np.float64],
        begin: int,
    ) -> None:
        """Other values (n,) of the elements from `begin` on. Raises OutputError where they overflow."""
        import torch

        data = stored(torch.from_numpy(values), spec.dtype, name)
        self.write(name, data, begin * BITS[spec.dtype] // 8)


def stored(tensor: Tensor, dtype: str, name: str) -> bytes:
    """The bytes of `tensor` in a dtype of FLOATS. Raises OutputError where values are not finite."""
    import torch

    from clair_cli.linalg import finite

    rounded = tensor.to(getattr(torch, FLOATS[dtype]))
    if not finite(rounded):
        text = f"tensor {name!r}: values are not finite in the stored dtype {dtype}"
        raise Unstorable(f"{text}; save the input as float32 and refine that")
    return to_bytes(rounded)
