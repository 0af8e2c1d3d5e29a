"""The bounded header reader: what it refuses, by name; and the writer, against the library."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from clair_cli.cohort import TensorSpec
from clair_cli.errors import AdapterError, LimitExceeded, Malformed, PickleFound, Unsupported
from clair_cli.formats.files import hash_file
from clair_cli.formats.safetensors_file import (
    BITS,
    FLOATS,
    lay_out,
    read_header,
    read_tensor,
    to_bytes,
)
from clair_cli.settings import Settings

DEFAULTS = Settings()


def container(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def header_of(path: Path, data: bytes, settings: Settings = DEFAULTS) -> dict[str, TensorSpec]:
    path.write_bytes(data)
    _, found = hash_file(
        path, path.name, lambda fd, size: read_header(fd, size, path.name, settings)
    )
    return found


MALFORMED = {
    "empty file": (b"", Malformed, "0 bytes"),
    "git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid x",
        Malformed,
        "git lfs pull",
    ),
    "too short": (b"\x02\0\0\0", Malformed, "too few"),
    "length beyond the file": (container({}, length=2**63), Malformed, "past the end"),
    "length one too long": (container({}, length=3), Malformed, "past the end"),
    "no brace": (container(b"[1, 2]"), Malformed, "not a safetensors file"),
    "leading newline": (container(b"\n{}"), Malformed, "not a safetensors file"),
    "pickle": (b"\x80\x04\x95" + b"x" * 40, PickleFound, "re-save"),
    "zip": (b"PK\x03\x04" + b"x" * 40, PickleFound, "re-save"),
    "invalid utf-8": (container(b'{"\xff": 1}'), Malformed, "utf-8"),
    "lone surrogate": (container(b'{"\\ud800": 1}'), Malformed, "invalid JSON"),
    "deep nesting": (container(b'{"a":' * 100_000), Malformed, "nested"),
    "NaN": (container(b'{"a": NaN}'), Malformed, "NaN"),
    "long integer": (container(b'{"a": ' + b"9" * 5000 + b"}"), Malformed, "5000 digits"),
    "float beyond range": (container(b'{"a": 1e999}'), Malformed, "float64"),
    "duplicate key": (
        container(
            b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            b' "t": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}',
            b"1234",
        ),
        Malformed,
        "'t' occurs twice",
    ),
    "metadata not strings": (container({"__metadata__": {"a": 1}}), Malformed, "__metadata__"),
    "metadata a list": (container({"__metadata__": []}), Malformed, "__metadata__"),
    "entry not an object": (container({"t": 3}), Malformed, "'t'"),
    "field missing": (container({"t": {"dtype": "F32", "shape": []}}), Malformed, "data_offsets"),
    "field too many": (container({"t": entry() | {"x": 1}}, b"x" * 8), Malformed, "nothing else"),
    "unknown dtype": (container({"t": entry("F128")}, b"x" * 8), Malformed, "F128"),
    "dtype not a string": (container({"t": entry(["F32"])}, b"x" * 8), Malformed, "unknown dtype"),
    "negative dimension": (container({"t": entry(shape=[-2])}, b"x" * 8), Malformed, "shape"),
    "bool dimension": (container({"t": entry(shape=[True, 2])}, b"x" * 8), Malformed, "shape"),
    "float dimension": (container({"t": entry(shape=[2.0])}, b"x" * 8), Malformed, "shape"),
    "overflowing shape": (
        container({"t": entry(shape=[2**62, 4])}, b"x" * 8),
        Malformed,
        "does not take",
    ),
    "zero hides an overflow": (
        container({"t": entry(shape=[0, 2**64], offsets=[0, 0])}),
        Malformed,
        "shape",
    ),
    "65 dimensions": (container({"t": entry(shape=[1] * 65)}, b"x" * 8), Malformed, "shape"),
    "size against shape": (
        container({"t": entry(shape=[3])}, b"x" * 8),
        Malformed,
        "does not take",
    ),
    "offsets reversed": (container({"t": entry(offsets=[8, 0])}, b"x" * 8), Malformed, "offsets"),
    "three offsets": (container({"t": entry(offsets=[0, 4, 8])}, b"x" * 8), Malformed, "offsets"),
    "negative offset": (container({"t": entry(offsets=[-8, 0])}, b"x" * 8), Malformed, "offsets"),
    "truncated": (container({"t": entry()}, b"x" * 7), Malformed, "past the end"),
    "trailing bytes": (container({"t": entry()}, b"x" * 9), Malformed, "1 bytes after"),
    "hole": (
        container({"a": entry(), "t": entry(offsets=[9, 17])}, b"x" * 17),
        Malformed,
        "'t'.*hole",
    ),
    "overlap": (
        container({"a": entry(), "t": entry(offsets=[4, 12])}, b"x" * 12),
        Malformed,
        "'t'.*overlap",
    ),
    "long name": (container({"n" * 513: entry()}, b"x" * 8), LimitExceeded, "512 bytes"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_every_malformed_header_is_refused_by_name_in_one_line(case: str, tmp_path: Path) -> None:
    data, kind, words = MALFORMED[case]
    with pytest.raises(kind, match=words) as caught:
        header_of(tmp_path / "adapter_model.safetensors", data)
    assert str(caught.value).startswith("adapter_model.safetensors: ")
    assert "\n" not in str(caught.value)


def test_limits_hold_for_header_bytes_and_number_of_tensors(tmp_path: Path) -> None:
    many = container({f"t{i}": entry(shape=[0], offsets=[0, 0]) for i in range(30)})
    assert len(header_of(tmp_path / "x", many, Settings(max_tensors=30))) == 30
    with pytest.raises(LimitExceeded, match="30 tensors"):
        header_of(tmp_path / "x", many, Settings(max_tensors=29))
    with pytest.raises(LimitExceeded, match="header of"):
        header_of(tmp_path / "x", many, Settings(max_header_bytes=100))


def test_a_claimed_header_of_exabytes_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with open(path, "wb") as file:
        file.write(container({}, length=2**40))
        file.truncate(2**41)  # sparse: the length is below the size of the file
    for most, words in ((2**42, "header of"), (2**34, "the limit is 17179869184")):
        settings = Settings(max_file_bytes=most)
        began = time.perf_counter()
        with pytest.raises(LimitExceeded, match=words):
            hash_file(path, "x", lambda fd, size, s=settings: read_header(fd, size, "x", s))
        assert time.perf_counter() - began < 1


def test_a_header_whose_length_looks_like_a_pickle_or_zip_is_read(tmp_path: Path) -> None:
    for length in (0x80, int.from_bytes(b"PK", "little"), 0x0280):
        header = json.dumps({"t": entry()}).ljust(length).encode()
        assert list(header_of(tmp_path / "x", container(header, b"x" * 8))) == ["t"]


def test_nothing_but_a_kind_of_adapter_error_escapes_from_mangled_files(tmp_path: Path) -> None:
    whole = save({"a": torch.ones(2, 3), "b": torch.zeros(4)}, {"format": "pt"})
    draw = torch.Generator().manual_seed(0)
    refused = []
    for _ in range(600):
        data = bytearray(whole)
        for at in torch.randint(0, 160, (2,), generator=draw).tolist():
            data[at] = int(torch.randint(0, 256, (1,), generator=draw))
        try:
            header_of(tmp_path / "x", bytes(data))
        except AdapterError as error:
            refused.append(str(error))
    assert len(refused) > 300
    assert not any("\n" in line for line in refused)


@pytest.mark.parametrize("dtype", FLOATS)
def test_tensors_are_read_as_the_library_reads_them(dtype: str, tmp_path: Path) -> None:
    kind = getattr(torch, FLOATS[dtype])
    tensors = {
        "matrix": torch.randn(7, 5).to(kind),
        "scalar": torch.tensor(3.0, dtype=kind),
        "empty": torch.empty(0, 4, dtype=kind),
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(tensors))
    file, specs = hash_file(path, "x", lambda fd, size: read_header(fd, size, "x", Settings()))
    assert set(specs) == set(tensors)
    for name, expected in load(path.read_bytes()).items():
        found = read_tensor(file, name, specs[name])
        assert found.dtype == kind
        assert found.shape == expected.shape
        assert torch.equal(found, expected)
        assert specs[name].dtype == dtype


@pytest.mark.parametrize("dtype", sorted(set(BITS) - set(FLOATS)))
def test_every_other_dtype_is_known_to_the_header_and_refused_as_numbers(
    dtype: str, tmp_path: Path
) -> None:
    size = 8 * BITS[dtype] // 8
    path = tmp_path / "x"
    found = header_of(path, container({"t": entry(dtype, [8], [0, size])}, b"\0" * size))
    file, _ = hash_file(path, "x", lambda fd, size: None)
    with pytest.raises(Unsupported, match=f"'t' is {dtype}"):
        read_tensor(file, "t", found["t"])


def test_the_writer_writes_what_the_library_writes() -> None:
    tensors = {
        "b": torch.randn(3, 4),
        "a": torch.randn(2, 2, dtype=torch.float64),
        "c": torch.randn(5).to(torch.bfloat16),
        "é": torch.randn(4, 3).T,
        "scalar": torch.tensor(1.0),
        "empty": torch.empty(0, 3),
    }
    names = {getattr(torch, v): k for k, v in FLOATS.items()}
    shapes = {k: (names[t.dtype], tuple(t.shape)) for k, t in tensors.items()}
    head, begins = lay_out(shapes)
    data = bytearray(head)
    for name, begin in begins.items():
        assert begin == len(data)
        data += to_bytes(tensors[name])
    expected = save({k: t.contiguous() for k, t in tensors.items()}, {"format": "pt"})
    assert data == expected
    assert lay_out(dict(reversed(shapes.items()))) == (head, begins)
