"""Tensors that were trained whole: read in parts, and put into a file that is being written in rows."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from clair_cli.cohort import Adapter, FullSpec
from clair_cli.errors import NonFinite, Unstorable
from clair_cli.formats.containers import container, non_finite
from clair_cli.settings import DtypeName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

PART = 2**22
"""Elements looked at together where one adapter is read by itself."""


def read_full_elements(
    adapter: Adapter,
    name: str,
    begin: int,
    end: int,
    dtype: DtypeName = "auto",
    device: str = "cpu",
) -> Tensor:
    """Elements [begin, end) of the full matrix `name`, row by row: (end - begin,).

    "auto" is float64 where it is stored so, else float32. Raises ChangedWhileRead, Malformed; NaN and
    Inf pass through (see `check_full`).
    """
    import torch

    spec = adapter.full[name]
    wanted = ("float64" if spec.dtype == "F64" else "float32") if dtype == "auto" else dtype
    values = torch.from_numpy(_values(adapter, spec, begin, end))
    return values.to(device, getattr(torch, wanted))


def _values(adapter: Adapter, spec: FullSpec, begin: int, end: int) -> NDArray[np.float64]:
    """Elements [begin, end) of a full matrix, without torch."""
    tensor = adapter.tensors[spec.tensor]
    file = adapter.files[tensor.file]
    values = container(tensor.file).read_elements(file, spec.tensor, tensor, begin, end)
    return values if spec.scale == 1 else values * spec.scale


def read_full_rows(
    adapter: Adapter,
    name: str,
    start: int,
    stop: int,
    dtype: DtypeName = "auto",
    device: str = "cpu",
) -> Tensor:
    """Rows [start, stop) of the full matrix `name`, (stop - start, *shape[1:]); a single number is one
    row. Otherwise as `read_full_elements`.
    """
    shape = adapter.full[name].shape
    width = math.prod(shape[1:])
    values = read_full_elements(adapter, name, start * width, stop * width, dtype, device)
    return values.reshape(stop - start, *shape[1:])


def read_full_tensor(
    adapter: Adapter, name: str, dtype: DtypeName = "auto", device: str = "cpu"
) -> Tensor:
    """The whole full matrix `name`, of its shape. Otherwise as `read_full_elements`."""
    import torch

    spec = adapter.full[name]
    parts = [
        read_full_elements(adapter, name, begin, end, dtype, device)
        for begin, end in spans(spec.size, PART)
    ]
    return torch.cat(parts).reshape(spec.shape)


def check_full(adapter: Adapter, name: str) -> None:
    """Raises NonFinite, naming the first place, where a number of the full matrix is NaN or Inf.

    It counts those near that place alone: in a part of PART elements.
    """
    for _ in _finite_parts(adapter, adapter.full[name]):
        pass


def full_norm(adapter: Adapter, name: str) -> float:
    """||W||_F of the full matrix `name`. Raises NonFinite, where it is too large, too."""
    import numpy as np

    spec = adapter.full[name]
    with np.errstate(over="ignore"):
        found = math.hypot(*(float(np.linalg.norm(x)) for x in _finite_parts(adapter, spec)))
    if not math.isfinite(found):
        where = f"{adapter.tensors[spec.tensor].file}: tensor {spec.tensor!r}"
        raise NonFinite(f"{where} is too large to be compared; retrain it")
    return found


def _finite_parts(adapter: Adapter, spec: FullSpec) -> Iterator[NDArray[np.float64]]:
    """All elements of a full matrix, PART of them at a time. Raises NonFinite."""
    import numpy as np

    for begin, end in spans(spec.size, PART):
        values = _values(adapter, spec, begin, end)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            place, nans = _place(begin + int(bad[0]), spec.shape), int(np.isnan(values).sum())
            file = adapter.tensors[spec.tensor].file
            raise non_finite(file, spec.tensor, nans, len(bad), place)
        yield values


def spans(size: int, most: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of parts of at most `most` that make up `size`."""
    return ((begin, min(begin + most, size)) for begin in range(0, size, most))


def _place(index: int, shape: tuple[int, ...]) -> list[int]:
    """The indices of the element that is at `index` row by row."""
    found = []
    for size in reversed(shape):
        index, here = divmod(index, size)
        found.append(here)
    return found[::-1]


# --- written


class FullWriter:
    """The part of a writer that takes full matrices: whole or in rows, from the first to the last.

    A name that nothing is put under passes through byte by byte when the writer closes.
    """

    adapter: Adapter
    put_so_far: dict[str, int]
    """Name -> how many elements were put."""

    def put_full(self, name: str, tensor: Tensor) -> None:
        """Write another matrix of the same shape under `name`, once, in the stored dtype.

        Raises OutputError where it is of another shape, or its numbers do not fit the dtype.
        """
        spec = self._full_spec(name)
        if tuple(tensor.shape) != spec.shape:
            raise self._misfit(name, spec, tuple(tensor.shape))
        self._put_elements(name, spec, 0, tensor)

    def put_full_rows(self, name: str, start: int, rows: Tensor) -> None:
        """Write rows (n, *shape[1:]) from row `start` on: in order, every row once.

        Raises OutputError where they do not fit, or do not follow those before.
        """
        spec = self._full_spec(name)
        if tuple(rows.shape[1:]) != spec.shape[1:] or rows.dim() == 0:
            raise self._misfit(name, spec, tuple(rows.shape))
        self._put_elements(name, spec, start * math.prod(spec.shape[1:]), rows)

    def _full_spec(self, name: str) -> FullSpec:
        if name not in self.adapter.full:
            raise Unstorable(f"{self.adapter.client}: no full matrix {name!r} to write to")
        return self.adapter.full[name]

    def _misfit(self, name: str, spec: FullSpec, shape: tuple[int, ...]) -> Unstorable:
        return Unstorable(f"{name}: {list(shape)} does not fit the full matrix {list(spec.shape)}")

    def _put_elements(self, name: str, spec: FullSpec, begin: int, values: Tensor) -> None:
        end, done = begin + values.numel(), self.put_so_far.get(name, 0)
        if begin != done or end > spec.size:
            text = f"elements {begin} to {end} of {spec.size}, of which {done} are written"
            raise Unstorable(f"{name}: {text}; rows are put in order, every one once")
        scale = self._written_scale(spec)
        self._write_full(
            spec, begin, values.reshape(-1) / scale if scale != 1 else values.reshape(-1)
        )
        self.put_so_far[name] = end

    def _finish_full(self) -> None:
        """Pass through what was not put. Raises OutputError where rows are missing."""
        for name, spec in self.adapter.full.items():
            done = self.put_so_far.get(name)
            if done is None:
                self._pass_full(spec)
            elif done < spec.size:
                text = f"{done} of {spec.size} elements of {name!r} were written"
                raise Unstorable(f"{self.adapter.client}: {text}")

    def _written_scale(self, spec: FullSpec) -> float:
        """The scale that the tensor will be read with from the new file."""
        return spec.scale

    @abstractmethod
    def _write_full(self, spec: FullSpec, begin: int, values: Tensor) -> None:
        """Write `values` (n,) of the stored tensor from element `begin` on."""

    @abstractmethod
    def _pass_full(self, spec: FullSpec) -> None:
        """Write the tensor as it is in the template."""
