"""The .npz container: .npy arrays in a zip, read without evaluating a header or unpickling.

numpy.load trusts the directory, takes the last of two equal names, unpacks whatever size it is told
and reads headers as Python; here a header is matched, and a size is compared before it is allocated.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clair_cli.cohort import InputFile, TensorSpec
from clair_cli.errors import LimitExceeded, Malformed, PickleFound, Unsupported
from clair_cli.formats import files
from clair_cli.formats.files import CHUNK, PIECE, pread, read_range
from clair_cli.formats.safetensors_file import FLOATS, MAX_DIMENSIONS
from clair_cli.formats.zip_file import DEFLATED, Member, damaged, read_directory
from clair_cli.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

HEADER = re.compile(
    r"\{'descr': '(?P<descr>[^']{2,40})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,20}, ?)*(?:\d{1,20})?)\),? ?\} *\n?"
)
DESCR = re.compile(r"[<>=|](?P<kind>[biufcmMSUVO])(?P<size>\d{0,9})(?:\[[^\]]*\])?")
MAX_HEADER = 4096
"""Twice what 64 dimensions take."""
COLUMNS = 2**26
"""Bytes of an array that is stored column by column: it is read whole, to be given row by row."""
STREAMS = 64
"""Deflated arrays that are unpacked beside each other, some MiB each: one of each client."""
FLOAT_NAMES = {"f8": "F64", "f4": "F32", "f2": "F16"}


@dataclass(frozen=True, slots=True)
class NpyTensor(TensorSpec):
    """A .npy array: bytes [begin, end) of the zip, `unpacked` bytes long without its deflation, the
    first `head` of them its header. `dtype` is in safetensors terms where these have the type.
    """

    descr: str
    fortran: bool
    head: int
    unpacked: int
    deflated: bool
    crc: int


def read_contents(
    fd: int, size: int, where: str, settings: Settings
) -> tuple[dict[str, TensorSpec], dict[str, str]]:
    """The tensors of `read_header`; an .npz has no metadata."""
    return read_header(fd, size, where, settings), {}


def read_header(fd: int, size: int, where: str, settings: Settings) -> dict[str, TensorSpec]:
    """Every tensor of an open file of `size` bytes, in file order. Raises what `read_directory` does."""
    members = read_directory(fd, size, where, settings)
    return {m.name.removesuffix(".npy"): _tensor(fd, m, where) for m in members}


@dataclass(frozen=True, slots=True)
class Header:
    """What the first `head` bytes of a .npy file say; `dtype` as in `NpyTensor`."""

    head: int
    descr: str
    dtype: str
    shape: tuple[int, ...]
    fortran: bool


def _tensor(fd: int, member: Member, where: str) -> NpyTensor:
    what = f"{where}: tensor {member.name.removesuffix('.npy')!r}"
    data = bytes(pread(fd, member.begin, min(member.end, member.begin + 2 * MAX_HEADER)))
    if member.method == DEFLATED:
        data, _ = _inflated(data, MAX_HEADER, what)
    found = array_header(data, member.unpacked, what)
    if found.fortran and len(found.shape) > 1 and member.unpacked > COLUMNS:
        text = f"{member.unpacked} bytes stored column by column, the limit is {COLUMNS}"
        raise LimitExceeded(f"{what}: {text}; save numpy.ascontiguousarray of it")
    return NpyTensor(
        file=where,
        dtype=found.dtype,
        shape=found.shape,
        begin=member.begin,
        end=member.end,
        descr=found.descr,
        fortran=found.fortran,
        head=found.head,
        unpacked=member.unpacked,
        deflated=member.method == DEFLATED,
        crc=member.crc,
    )


def array_header(data: bytes, size: int, what: str) -> Header:
    """The header of a .npy file of `size` bytes that begins with `data`, if its array takes them all.

    Raises Malformed, Unsupported or PickleFound, which name `what`.
    """
    head, text = _header_text(data, what)
    match = HEADER.fullmatch(text)
    if match is None:
        raise Unsupported(f"{what}: no header of a plain array: {text[:60]!r}; save it as float32")
    shape = tuple(int(n) for n in re.findall(r"\d+", match["shape"]))
    if len(shape) > MAX_DIMENSIONS or any(n >= 2**63 for n in shape):
        raise Malformed(f"{what}: invalid shape ({match['shape'][:60]})")
    dtype, itemsize = dtype_of(match["descr"], what)
    if head + math.prod(shape) * itemsize != size:
        text = f"shape ({match['shape'][:60]}) of {match['descr']!r}"
        raise Malformed(f"{what}: {text} does not take its {size - head} bytes")
    return Header(head, match["descr"], dtype, shape, match["fortran"] == "True")


def _header_text(data: bytes, what: str) -> tuple[int, str]:
    """Length of the whole header, and its text."""
    start = 10 if data[6:7] == b"\1" else 12
    end = start + int.from_bytes(data[8:start], "little")
    if data[:6] != b"\x93NUMPY" or data[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise Malformed(f"{what}: no .npy array; save it again with numpy.savez")
    if end > min(MAX_HEADER, len(data)):
        raise Malformed(f"{what}: .npy header of {end} bytes; save a plain array")
    return end, data[start:end].decode("latin-1")


def dtype_of(descr: str, what: str) -> tuple[str, int]:
    """The dtype in safetensors terms, else in numpy's, and the bytes of one element."""
    match = DESCR.fullmatch(descr)
    if match is None:
        raise Unsupported(f"{what}: dtype {descr!r}; save it as float32")
    if match["kind"] == "O":
        raise PickleFound(f"{what}: an array of Python objects is a pickle, not opened; re-save it")
    size = int(match["size"] or 0) * (4 if match["kind"] == "U" else 1)
    return FLOAT_NAMES.get(match["kind"] + match["size"], descr), size


def _inflated(data: bytes, most: int, what: str) -> tuple[bytes, bool]:
    """The first `most` bytes of what `data` unpacks to, and whether that is all there is."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(data, most)
    except zlib.error as cause:
        raise Malformed(f"{what}: cannot be unpacked: {cause}; save it again") from None
    return found, unpacker.eof and not unpacker.unused_data


def read_raw(file: InputFile, name: str, spec: TensorSpec) -> bytes:
    """The whole .npy file of a tensor. Raises Malformed where it is not what the directory says."""
    assert isinstance(spec, NpyTensor)
    data, whole = bytes(read_range(file, spec.begin, spec.end)), True
    if spec.deflated:
        data, whole = _inflated(data, spec.unpacked + 1, f"{spec.file}: tensor {name!r}")
    if not whole or len(data) != spec.unpacked or zlib.crc32(data) != spec.crc:
        raise damaged(spec.file, f"the bytes of tensor {name!r} do not match their checksum")
    return data


def read_values(file: InputFile, name: str, spec: TensorSpec) -> NDArray[np.float64]:
    """A tensor of a dtype in FLOAT_NAMES, of its shape, in float64."""
    import numpy as np

    assert isinstance(spec, NpyTensor)
    data = read_raw(file, name, spec)
    flat = np.frombuffer(data, np.dtype(spec.descr[:3]), offset=spec.head)
    return flat.reshape(spec.shape, order="F" if spec.fortran else "C").astype(np.float64)


def read_bytes(file: InputFile, name: str, spec: TensorSpec) -> bytes:
    """The elements of a tensor row by row, those of a dtype in FLOATS little-endian."""
    import numpy as np

    assert isinstance(spec, NpyTensor)
    data = read_raw(file, name, spec)[spec.head :]
    big = spec.descr.startswith(">") and spec.dtype in FLOATS
    if not data or not (spec.fortran or big):
        return data
    kind = spec.descr[:3] if big else f"V{len(data) // math.prod(spec.shape)}"
    values = np.frombuffer(data, kind).reshape(spec.shape, order="F" if spec.fortran else "C")
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def read_pieces(file: InputFile, name: str, spec: TensorSpec) -> Iterator[bytes]:
    """What `read_bytes` gives in pieces of bounded size, in order.

    An array that is stored column by column is one piece, of at most COLUMNS bytes.
    """
    import numpy as np

    assert isinstance(spec, NpyTensor)
    if spec.fortran and len(spec.shape) > 1:
        yield read_bytes(file, name, spec)
        return
    big = spec.descr.startswith(">") and spec.dtype in FLOATS
    skip = spec.head
    for piece in raw_pieces(file, name, spec):
        data, skip = piece[skip:], max(skip - len(piece), 0)
        if big:
            kind = np.dtype(spec.descr[:3])
            data = np.frombuffer(data, kind).astype(kind.newbyteorder("<")).tobytes()
        yield data


def raw_pieces(file: InputFile, name: str, spec: NpyTensor) -> Iterator[bytes]:
    """The whole .npy file of an array, cut where elements end. Raises Malformed as `read_raw` does."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS) if spec.deflated else None
    crc, done, rest = 0, 0, b""
    try:
        for packed in files.read_pieces(file, spec.begin, spec.end):
            for data in _unpacked(unpacker, bytes(packed)):
                crc, done = zlib.crc32(data, crc), done + len(data)
                if done > spec.unpacked:
                    raise damaged(spec.file, f"tensor {name!r} is longer than its directory says")
                rest += data
                end = len(rest) - (done - spec.head) % 8 if done > spec.head + 8 else 0
                yield rest[:end]
                rest = rest[end:]
    except zlib.error as cause:
        text = f"{spec.file}: tensor {name!r}: cannot be unpacked: {cause}; save it again"
        raise Malformed(text) from None
    whole = unpacker is None or (unpacker.eof and not unpacker.unused_data)
    if not whole or done != spec.unpacked or crc != spec.crc:
        raise damaged(spec.file, f"the bytes of tensor {name!r} do not match their checksum")
    yield rest


def _unpacked(unpacker: Any, data: bytes) -> Iterator[bytes]:
    """What some bytes unpack to, in pieces."""
    if unpacker is None:
        yield data
        return
    found = b"" if not data else unpacker.decompress(data, PIECE)
    while found:
        yield found
        found = unpacker.decompress(unpacker.unconsumed_tail, PIECE)


def read_tensor(file: InputFile, name: str, spec: TensorSpec) -> Tensor:
    """The same as a tensor of its stored dtype; Unsupported unless it is one of FLOAT_NAMES."""
    import torch

    if spec.dtype not in FLOATS:
        raise Unsupported(f"{spec.file}: tensor {name!r} is {spec.dtype}; save it as float32")
    dtype = getattr(torch, FLOATS[spec.dtype])
    return torch.from_numpy(read_values(file, name, spec)).to(dtype)


def read_elements(
    file: InputFile, name: str, spec: TensorSpec, begin: int, end: int
) -> NDArray[np.float64]:
    """Elements [begin, end) of a tensor of a dtype in FLOAT_NAMES, row by row, in float64.

    The checksum is of the whole, and looked at with the first of them; of what is deflated with the
    last, and parts that follow each other are unpacked once. What is stored column by column is read
    whole, and the last such array is kept.
    """
    import numpy as np

    assert isinstance(spec, NpyTensor)
    if spec.fortran and len(spec.shape) > 1:
        return _streams.whole(file, name, spec)[begin:end].astype(np.float64)
    kind = np.dtype(spec.descr[:3])
    if spec.deflated:
        unpacked = _streams.read(file, name, spec, begin * kind.itemsize, end * kind.itemsize)
        return np.frombuffer(unpacked, kind).astype(np.float64)
    if begin == 0:
        _check_sum(file, name, spec)
    at = spec.begin + spec.head
    data = read_range(file, at + begin * kind.itemsize, at + end * kind.itemsize)
    return np.frombuffer(data, kind).astype(np.float64)


class _Streams:
    """Arrays that are being unpacked from their beginning on, those read last; and the last one that was
    turned round, row by row."""

    def __init__(self) -> None:
        self.held: dict[tuple[Any, ...], tuple[Iterator[bytes], int, bytes]] = {}
        self.turned: tuple[tuple[Any, ...], NDArray[Any]] | None = None

    def whole(self, file: InputFile, name: str, spec: NpyTensor) -> NDArray[Any]:
        """All elements of an array that is stored column by column, row by row, in its own dtype."""
        import numpy as np

        key = (file.path, file.identity, name)
        if self.turned is None or self.turned[0] != key:
            self.turned = None
            flat = np.frombuffer(read_raw(file, name, spec), spec.descr[:3], offset=spec.head)
            self.turned = key, flat.reshape(spec.shape, order="F").ravel()
        return self.turned[1]

    def read(self, file: InputFile, name: str, spec: NpyTensor, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of the elements as they are stored."""
        key = (file.path, file.identity, name)
        pieces, at, rest = self.held.pop(key, (None, 0, b""))
        if pieces is None or begin < at:
            pieces, at, rest = raw_pieces(file, name, spec), -spec.head, b""
        found = bytearray()
        while at < end:
            if not rest and not (rest := next(pieces, b"")):
                continue
            found += rest[max(begin - at, 0) : end - at]
            taken = min(len(rest), end - at)
            at, rest = at + taken, rest[taken:]
        if end == spec.unpacked - spec.head:
            list(pieces)  # looks at the checksum
            return bytes(found)
        self.held[key] = pieces, at, rest
        while len(self.held) > STREAMS:
            del self.held[next(iter(self.held))]
        return bytes(found)


_streams = _Streams()


def _check_sum(file: InputFile, name: str, spec: NpyTensor) -> None:
    crc = 0
    for at in range(spec.begin, spec.end, CHUNK):
        crc = zlib.crc32(read_range(file, at, min(at + CHUNK, spec.end)), crc)
    if crc != spec.crc:
        raise damaged(spec.file, f"the bytes of tensor {name!r} do not match their checksum")


def head_of(file: InputFile, name: str, spec: NpyTensor) -> bytes:
    """The header of an array, as it is stored."""
    if spec.deflated:
        end = min(spec.end, spec.begin + 2 * MAX_HEADER)
        data = bytes(read_range(file, spec.begin, end))
        return _inflated(data, spec.head, f"{spec.file}: tensor {name!r}")[0]
    return bytes(read_range(file, spec.begin, spec.begin + spec.head))
