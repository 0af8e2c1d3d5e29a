"""What is passed through, or looked at in parts, is in memory in pieces, whatever it is packed in."""

from __future__ import annotations

import itertools
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clair_cli.cohort import InputFile, TensorSpec
from clair_cli.errors import LimitExceeded, Malformed
from clair_cli.formats import npz, zip_file
from clair_cli.formats.containers import open_file
from clair_cli.formats.files import PIECE
from clair_cli.settings import Settings

LARGE = 5 * PIECE // 4 + 3
"""Elements of four bytes that take several pieces and do not end with one."""


def saved(path: Path, array: NDArray[np.generic], deflated: bool) -> tuple[InputFile, TensorSpec]:
    (np.savez_compressed if deflated else np.savez)(path, a=array)
    file, tensors, _ = open_file(path, path.name, Settings())
    return file, tensors["a"]


def arrays() -> dict[str, NDArray[np.generic]]:
    values = np.random.default_rng(0).standard_normal(LARGE)
    return {
        "little": values.astype("<f4"),
        "big": values.astype(">f4"),
        "whole numbers": values.astype("<i4"),
        "short": values[:3].astype("<f4"),
        "none": values[:0].astype("<f4"),
        "columns": np.asfortranarray(values[:600].astype("<f4").reshape(20, 30)),
        "halves": values[:1001].astype(">f2"),
    }


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("name", arrays())
def test_pieces_one_after_the_other_are_the_whole(
    name: str, deflated: bool, tmp_path: Path
) -> None:
    array = arrays()[name]
    file, spec = saved(tmp_path / "a.npz", array, deflated)
    pieces = list(npz.read_pieces(file, "a", spec))
    assert b"".join(pieces) == npz.read_bytes(file, "a", spec)
    assert max(map(len, pieces), default=0) <= PIECE + 4096


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 1, 2), (0, 2, 0, 3)])
def test_parts_of_a_deflated_array_are_right_in_any_order(
    order: tuple[int, ...], tmp_path: Path
) -> None:
    array = arrays()["little"]
    file, spec = saved(tmp_path / "a.npz", array, deflated=True)
    edges = [0, 1, PIECE // 4, PIECE, len(array)]
    parts = [*itertools.pairwise(edges)]
    for number in order:
        begin, end = parts[number]
        found = npz.read_elements(file, "a", spec, begin, end)
        np.testing.assert_array_equal(found, array[begin:end])


def test_a_quarter_of_a_gigabyte_that_is_passed_through_takes_some_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zip_file, "SMALL", 2**30)
    file, spec = saved(tmp_path / "a.npz", np.zeros(2**26, "<i4"), deflated=True)
    tracemalloc.start()
    assert sum(map(len, npz.read_pieces(file, "a", spec))) == 2**28
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * PIECE


@pytest.mark.parametrize("where", ["passed", "parts"])
def test_a_checksum_that_does_not_fit_is_found_in_pieces_too(where: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.arange(1000, dtype="<f4"))
    with zipfile.ZipFile(path) as file:
        crc = file.getinfo("a.npy").CRC.to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(crc, b"\1\2\3\4"))
    file_, tensors, _ = open_file(path, path.name, Settings())
    spec = tensors["a"]
    read = {
        "passed": lambda: list(npz.read_pieces(file_, "a", spec)),
        "parts": lambda: [
            npz.read_elements(file_, "a", spec, n, n + 100) for n in range(0, 901, 100)
        ],
    }
    with pytest.raises(Malformed, match="do not match their checksum"):
        read[where]()


def test_a_file_that_unpacks_to_far_more_than_trained_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(2**25, "<f4"))
    with pytest.raises(LimitExceeded, match="bytes unpacked from"):
        open_file(path, path.name, Settings())


def test_an_array_stored_column_by_column_is_read_once_whatever_is_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(60_000, dtype="<f4").reshape(300, 200)
    file, spec = saved(tmp_path / "a.npz", np.asfortranarray(values), deflated=False)
    seen, real = [], npz.read_raw
    monkeypatch.setattr(npz, "read_raw", lambda *given: (seen.append(given), real(*given))[1])
    parts = [npz.read_elements(file, "a", spec, at, at + 700) for at in range(0, 59_500, 700)]
    assert np.array_equal(np.concatenate(parts), values.ravel()[:59_500])
    assert len(seen) == 1


def test_a_larger_one_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.ones((300, 200), dtype="<f4")
    monkeypatch.setattr(npz, "COLUMNS", 2**16)
    saved(tmp_path / "c.npz", values, deflated=False)
    with pytest.raises(LimitExceeded, match=r"column by column.*ascontiguousarray"):
        saved(tmp_path / "a.npz", np.asfortranarray(values), deflated=False)
