"""What an adapter format is: one record that says how it is read and written, and what it can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from clair_cli.cohort import Adapter
from clair_cli.formats import factors
from clair_cli.formats.containers import Contents, Describe
from clair_cli.settings import DtypeName

if TYPE_CHECKING:
    from torch import Tensor

    from clair_cli.update import LowRankUpdate


class AdapterWriter(Protocol):
    """An adapter being written: every module once, full matrices where others are to stand, then closed,
    or abandoned.
    """

    def put(self, module: str, update: LowRankUpdate) -> None:
        """Write one module's update."""

    def keep(self, module: str) -> None:
        """Write one module as it was: the same bytes unless its rank changes."""

    def put_full(self, name: str, tensor: Tensor) -> None:
        """Write another full matrix of the shape of `adapter.full[name]` in its stored dtype, once.

        `tensor` is what `read_full_tensor` is to give: the scale of a bias included. Names that
        nothing is put under pass through byte by byte. Raises OutputError where it does not fit.
        """

    def put_full_rows(self, name: str, start: int, rows: Tensor) -> None:
        """The same in rows (n, *shape[1:]) from row `start` on: in order, and every row once."""

    def close(self) -> None:
        """See that everything is on disk. Raises OutputError where a module or a row is missing."""

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""


class ReadUpdate(Protocol):
    """Reads one module's update: up (d_out, r), down (r, d_in), scale."""

    def __call__(
        self, adapter: Adapter, module: str, dtype: DtypeName = "auto", device: str = "cpu"
    ) -> LowRankUpdate:
        """NaN and Inf pass through. Raises ChangedWhileRead."""


class MakeWriter(Protocol):
    """Begins to write `adapter` with other updates of `modules` into the empty `folder`."""

    def __call__(
        self,
        adapter: Adapter,
        folder: Path,
        modules: Sequence[str],
        ranks: Mapping[str, int] | None = None,
    ) -> AdapterWriter:
        """Modules in `ranks` get that rank, with the scale in the factors. Raises OutputError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFormat:
    """One kind of checkpoint. Law: write, open, read is the identity up to the stored dtype."""

    name: str
    """What reports call it."""
    read: ReadUpdate
    check_finite: Callable[[Adapter, str], None]
    """Raises NonFinite where a stored number of a module is NaN or Inf."""
    norm: Callable[[Adapter, str], float]
    """||Delta W||_F of one module, without torch. Raises NonFinite."""
    writer: MakeWriter
    factored: bool
    """Updates are factors, which began somewhere; plain matrices did not."""
    served: bool = False
    """What is written is PEFT LoRA, which a server takes with --max-lora-rank."""
    converts: bool = False
    """It is written back as plain LoRA: its own tensors hold no other update."""
    needs_reference: bool = False
    """Tensors may be stored without names, which an adapter given with --reference lends them."""
    stores: Literal["safetensors", "numpy"] = "safetensors"
    """Whose dtypes the file written can hold."""
    summary: bool = False
    """It holds sketches: it can be judged, and no update can be written into it."""
    check_start: Callable[[Adapter, bool], None] | None = None
    """Raises OutputError where no loader could start from it, with other ranks or at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoredFormat(AdapterFormat):
    """A format of factors, told by what its files hold.

    `recognises` says whether some contents are of this format; `describe` says which tensors make
    which update, by which rule, and raises the kinds of AdapterError.
    """

    recognises: Callable[[Contents], bool]
    describe: Describe
    read: ReadUpdate = factors.read_update
    check_finite: Callable[[Adapter, str], None] = factors.check_finite
    norm: Callable[[Adapter, str], float] = factors.norm
    factored: bool = True
