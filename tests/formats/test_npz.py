"""The strict npz reader: it agrees with numpy on honest files, and names what it refuses."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clair_cli.cohort import InputFile, TensorSpec
from clair_cli.errors import (
    AdapterError,
    ChangedWhileRead,
    LimitExceeded,
    Malformed,
    PickleFound,
    UnsafePath,
    Unsupported,
)
from clair_cli.formats import npz, npz_writer, zip_file
from clair_cli.formats.files import hash_file
from clair_cli.settings import Settings

DEFAULTS = Settings()
ARRAYS: dict[str, Any] = {
    "layers/0": np.arange(12, dtype="<f4").reshape(3, 4),
    "größe": np.asfortranarray(np.arange(10.0).reshape(5, 2)),
    "turned": np.arange(12, dtype="<f8").reshape(3, 4).T,
    "big": np.arange(4, dtype=">f4").reshape(2, 2),
    "half": np.full((2, 2), 1 / 3, dtype="<f2"),
    "count": np.arange(3),
    "text": np.array("hello"),
    "day": np.array(["2020-01-01"], dtype="M8[D]"),
    "none": np.zeros((0, 3)),
    "scalar": np.float32(1.5),
    "long": np.ones((2, 2), dtype=np.longdouble),
}
FLOATS = {"F64", "F32", "F16"}
Opened = tuple[InputFile, dict[str, TensorSpec]]


def opened(path: Path, settings: Settings = DEFAULTS) -> Opened:
    return hash_file(path, path.name, partial(npz.read_header, where=path.name, settings=settings))


def read_whole(path: Path) -> None:
    """Open the file and read every tensor of it."""
    file, found = opened(path)
    for name, spec in found.items():
        npz.read_raw(file, name, spec)
        if spec.dtype in FLOATS:
            npz.read_values(file, name, spec)


def saved(path: Path, arrays: Any = None, compressed: bool = False) -> Path:
    arrays = ARRAYS if arrays is None else arrays
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_what_numpy_saves_is_read_as_numpy_reads_it(compressed: bool, tmp_path: Path) -> None:
    file, found = opened(saved(tmp_path / "x.npz", compressed=compressed))
    assert found.keys() == ARRAYS.keys()
    assert sum(t.dtype in FLOATS for t in found.values()) >= 7
    for name, spec in found.items():
        assert spec.shape == ARRAYS[name].shape
        if spec.dtype in FLOATS:
            assert (npz.read_values(file, name, spec) == ARRAYS[name]).all(), name


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("large", [2**32 - 1, 1000, 0], ids=["zip", "mixed", "zip64"])
def test_what_is_written_is_what_numpy_saved(
    large: int, compressed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zip64 records, which only gigabytes need, are written from `large` bytes on."""
    monkeypatch.setattr(zip_file, "ZIP64_FROM", large)
    file, found = opened(saved(tmp_path / "x.npz", compressed=compressed))
    for target, order in (("y.npz", list(found)), ("z.npz", list(reversed(found)))):
        out = npz_writer.SameNpz(tmp_path / target, found)
        for name in order:
            if found[name].dtype in FLOATS:
                values = npz.read_values(file, name, found[name])
                out.put(file, name, found[name], values)
            else:
                out.copy(file, name, found[name])
        out.close()
    assert (tmp_path / "y.npz").read_bytes() == (tmp_path / "z.npz").read_bytes()
    with np.load(tmp_path / "y.npz", allow_pickle=False) as there:
        assert sorted(there.files) == sorted(ARRAYS)
        for name, array in ARRAYS.items():
            assert (there[name] == array).all()
            assert there[name].dtype == array.dtype
            assert there[name].flags.fnc == array.flags.fnc
    again, same = opened(tmp_path / "y.npz")
    for name, spec in found.items():
        assert npz.read_raw(again, name, same[name]) == npz.read_raw(file, name, spec)


# --- files no honest program writes


def npy(
    descr: str = "'<f4'", shape: str = "(2, 2)", order: str = "False", data: bytes = b"x" * 16
) -> bytes:
    """A .npy file of this header, true or not."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + data


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these members, as the library writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one name twice
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return out.getvalue()


GOOD = zipped(("w.npy", npy()), ("v.npy", npy()))
DIRECTORY = GOOD.index(b"PK\1\2")


def patched(*places: tuple[int, str, int]) -> bytes:
    """GOOD with numbers written over: offset, struct format, number."""
    data = bytearray(GOOD)
    for at, kind, number in places:
        struct.pack_into(f"<{kind}", data, at % len(data), number)
    return bytes(data)


def stream(data: bytes, tail: bytes = b"") -> bytes:
    """A member whose packed bytes are `data` deflated, and `tail` after the end of the stream."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packed.compress(data) + packed.flush() + tail
    crc, sizes = zlib.crc32(data), (len(body), len(data))
    head = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 33, crc, *sizes, 5, 0) + b"w.npy"
    entry = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 33, crc, *sizes, 5, 0, 0, 0, 0, 0, 0
    )
    end = (len(entry) + 5, len(head) + len(body))
    return head + body + entry + b"w.npy" + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, *end, 0)


def one(data: bytes, name: str = "w.npy") -> bytes:
    return zipped((name, data))


def unreadable(header: bytes) -> bytes:
    return one(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)


class Canary:
    """Unpickled, it raises."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit(99)",))


def objects() -> bytes:
    out = io.BytesIO()
    np.savez(out, w=np.array([Canary()], dtype=object), v=np.eye(2))
    return out.getvalue()


REFUSED: dict[str, tuple[bytes, type[AdapterError], str]] = {
    "empty file": (b"", Malformed, "0 bytes"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", Malformed, "lfs pull"),
    "a single array": (npy(), Malformed, "without a name"),
    "a pickle": (pickle.dumps(Canary()), PickleFound, "not opened"),
    "text": (b"hello" * 20, Malformed, "no zip directory"),
    "cut off": (GOOD[:-1], Malformed, "no zip directory"),
    "cut in the middle": (GOOD[:200], Malformed, "no zip directory"),
    "bytes behind": (GOOD + b"x", Malformed, "no zip directory"),
    "bytes in front": (b"x" * 40 + GOOD, Malformed, "does not fit"),
    "another zip in front": (GOOD + GOOD, Malformed, "does not fit"),
    "comment at the end": (GOOD[:-2] + b"\2\0hi", Malformed, "no zip directory"),
    "two disks": (patched((-18, "H", 1)), Malformed, "does not fit"),
    "more members than stated": (patched((-14, "H", 1), (-12, "H", 1)), Malformed, "holds more"),
    "fewer members than stated": (patched((-14, "H", 3), (-12, "H", 3)), Malformed, "malformed"),
    "a directory elsewhere": (patched((-6, "L", 0)), Malformed, "does not fit"),
    "a directory beyond": (patched((-10, "L", 2**31)), Malformed, "does not fit"),
    "zip64 without record": (patched((-6, "L", 2**32 - 1)), Malformed, "zip64"),
    "zip64 size nowhere": (patched((DIRECTORY + 20, "L", 2**32 - 1)), Malformed, "missing"),
    "overlap": (patched((GOOD.rindex(b"PK\1\2") + 42, "L", 0)), Malformed, "overlaps"),
    "another size in front": (patched((22, "L", 3)), Malformed, "another in the directory"),
    "another name in front": (GOOD.replace(b"w.npy", b"u.npy", 1), Malformed, "another in the"),
    "stored size": (patched((DIRECTORY + 24, "L", 3)), Malformed, "contradict"),
    "encrypted": (patched((DIRECTORY + 8, "H", 1)), Unsupported, "encrypted"),
    "streamed": (patched((DIRECTORY + 8, "H", 8)), Unsupported, "streamed"),
    "bzip2": (zipped(("w.npy", npy()), method=zipfile.ZIP_BZIP2), Unsupported, "deflate"),
    "lzma": (zipped(("w.npy", npy()), method=zipfile.ZIP_LZMA), Unsupported, "deflate"),
    "one name twice": (zipped(("w.npy", npy()), ("w.npy", npy())), Malformed, "'w.npy' occurs twice"),
    "path upwards": (one(npy(), "../w.npy"), UnsafePath, "elsewhere"),
    "absolute path": (one(npy(), "/w.npy"), UnsafePath, "elsewhere"),
    "drive": (one(npy(), "C:w.npy"), UnsafePath, "elsewhere"),
    "backslashes": (one(npy(), "..\\w.npy"), UnsafePath, "elsewhere"),
    "long name": (one(npy(), "w" * 600 + ".npy"), LimitExceeded, "512 bytes"),
    "no array": (one(npy(), "w.txt"), Unsupported, "no .npy array"),
    "torch.save": (one(b"x", "archive/data.pkl"), PickleFound, "data.pkl"),
    "objects": (objects(), PickleFound, "Python objects"),
    "not npy": (one(b"hello" * 20), Malformed, "no .npy array"),
    "too short": (one(b"\x93NUMPY"), Malformed, "no .npy array"),
    "npy 4": (one(npy().replace(b"Y\1\0", b"Y\4\0")), Malformed, "no .npy array"),
    "header runs out": (one(npy()[:40]), Malformed, "header of"),
    "header of 60 kB": (unreadable(b"{" + b" " * 60_000), Malformed, "header of"),
    "code in the header": (one(npy(shape="(__import__('os').abort(),)")), Unsupported, "plain array"),
    "a product": (one(npy(shape="(2*2,)")), Unsupported, "plain array"),
    "negative": (one(npy(shape="(-2, 2)")), Unsupported, "plain array"),
    "huge": (one(npy(shape=f"({2**63}, 0)")), Malformed, "invalid shape"),
    "65 dimensions": (one(npy(shape=f"({'1, ' * 65})")), Malformed, "invalid shape"),
    "no order": (one(npy(order="1")), Unsupported, "plain array"),
    "record": (one(npy("[('a', '<f4')]")), Unsupported, "plain array"),
    "unknown dtype": (one(npy("'<q4'")), Unsupported, "dtype"),
    "size against shape": (one(npy(shape="(3, 2)")), Malformed, "does not take"),
    "too little data": (one(npy(data=b"x" * 15)), Malformed, "does not take"),
    "no deflate": (stream(npy())[:35] + b"\xff" + stream(npy())[36:], Malformed, "unpacked"),
    "bytes behind a stream": (stream(npy(), b"hidden"), Malformed, "checksum"),
    "other values": (GOOD.replace(b"x" * 16, b"y" * 16, 1), Malformed, "checksum"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_two_meanings_or_none_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    data, kind, words = REFUSED[name]
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(AdapterError, match=words) as caught:
        read_whole(tmp_path / "x.npz")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("x.npz: ")


def test_the_files_they_were_made_from_are_read(tmp_path: Path) -> None:
    for k, data in enumerate((GOOD, stream(npy()), one(npy(order="True")), zipped())):
        (tmp_path / f"{k}.npz").write_bytes(data)
        assert len(opened(tmp_path / f"{k}.npz")[1]) == (2, 1, 1, 0)[k]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"max_file_bytes": 300}, "bytes, the limit"),
        ({"max_header_bytes": 50}, "bytes of directory"),
        ({"max_tensors": 1}, "2 tensors"),
    ],
)
def test_limits_hold_before_anything_is_read(
    limit: dict[str, int], words: str, tmp_path: Path
) -> None:
    (tmp_path / "x.npz").write_bytes(GOOD)
    assert len(opened(tmp_path / "x.npz")[1]) == 2
    with pytest.raises(LimitExceeded, match=words):
        opened(tmp_path / "x.npz", Settings(**limit))  # type: ignore[arg-type]


def test_a_bomb_is_refused_by_what_it_would_unpack_to(tmp_path: Path) -> None:
    bomb = zipped(("w.npy", npy(shape="(1024, 4096)", data=bytes(2**24))), method=8)
    (tmp_path / "x.npz").write_bytes(bomb)
    assert len(bomb) < 2**24 / 500
    with pytest.raises(LimitExceeded, match="once unpacked"):
        opened(tmp_path / "x.npz", Settings(max_file_bytes=2**23))


def test_a_stream_that_unpacks_to_more_than_it_says_stops_there(tmp_path: Path) -> None:
    """The directory promises 1 kB; the stream would give 16 MB."""
    liar = bytearray(stream(npy(shape="(4, 64)", data=bytes(2**24))))
    said = len(npy(shape="(4, 64)", data=bytes(1024)))
    for at in (22, liar.index(b"PK\1\2") + 24):
        struct.pack_into("<L", liar, at, said)
    (tmp_path / "x.npz").write_bytes(liar)
    file, found = opened(tmp_path / "x.npz")
    with pytest.raises(Malformed, match="checksum"):
        npz.read_raw(file, "w", found["w"])


def test_a_file_that_changes_is_not_read_on(tmp_path: Path) -> None:
    file, found = opened(saved(tmp_path / "x.npz"))
    saved(tmp_path / "y.npz", ARRAYS | {"half": np.zeros((2, 2), "<f2")}).replace(file.path)
    with pytest.raises(ChangedWhileRead):
        npz.read_values(file, "half", found["half"])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, len(GOOD)),
)
def test_whatever_is_changed_only_adapter_errors_leave_the_reader(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "x.npz"
    data = bytearray(GOOD)
    for at, value in changes:
        data[at] = value
    for content in (data, data[:cut]):
        path.write_bytes(content)
        with suppress(AdapterError):
            read_whole(path)
