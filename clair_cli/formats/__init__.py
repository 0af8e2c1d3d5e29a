"""Adapter formats: find clients, open adapters by their headers, read a module, write a folder.

Nothing here loads torch before a tensor is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clair_cli.cohort import Adapter
from clair_cli.errors import OutputError
from clair_cli.formats import diffusers, factors, flower, kohya, mlx, plain
from clair_cli.formats.bounds import check_dtypes, check_updates
from clair_cli.formats.containers import Contents, Describe, as_adapter, read_contents
from clair_cli.formats.discovery import (
    Source,
    check_client_name,
    client_name,
    discover,
    find_replicates,
    with_replicates,
)
from clair_cli.formats.layout import Layout, locate
from clair_cli.formats.peft import lora, tuners
from clair_cli.formats.peft.miss import MissWriter
from clair_cli.formats.peft.plain_lora import LoraWriter
from clair_cli.settings import DtypeName, ReadAs, Settings

if TYPE_CHECKING:
    from clair_cli.update import LowRankUpdate

__all__ = [
    "FORMATS",
    "AdapterFormat",
    "Source",
    "check_finite",
    "check_writable",
    "converts",
    "discover",
    "find_replicates",
    "norm",
    "open_adapter",
    "open_writer",
    "read_update",
    "with_replicates",
    "write_adapter",
]


class AdapterWriter(Protocol):
    """An adapter being written: every module once, then closed, or abandoned."""

    def put(self, module: str, update: LowRankUpdate) -> None:
        """One module's update."""

    def keep(self, module: str) -> None:
        """One module as it was: the same bytes unless its rank changes."""

    def close(self) -> None:
        """Everything is on disk. Raises OutputError where a module is missing."""

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""


class AdapterFormat(Protocol):
    """One kind of checkpoint. Law: write, open, read is the identity up to the stored dtype."""

    name: str

    def read(
        self, adapter: Adapter, module: str, dtype: DtypeName = "auto", device: str = "cpu"
    ) -> LowRankUpdate:
        """One module's update: up (d_out, r), down (r, d_in), scale."""

    def check_finite(self, adapter: Adapter, module: str) -> None:
        """Raises NonFinite where a stored number of `module` is NaN or Inf."""

    def norm(self, adapter: Adapter, module: str) -> float:
        """||Delta W||_F of one module, without torch; raises NonFinite."""

    def writer(
        self,
        adapter: Adapter,
        folder: Path,
        modules: Sequence[str],
        ranks: Mapping[str, int] | None = None,
    ) -> AdapterWriter:
        """Writes `adapter` with other updates of `modules` into the empty `folder`."""


class FactorsFormat:
    """Updates stored as factors; `recognises` says whether some contents are of this format."""

    read = staticmethod(factors.read_update)
    check_finite = staticmethod(factors.check_finite)
    norm = staticmethod(factors.norm)

    def __init__(
        self,
        name: str,
        recognises: Callable[[Contents], bool],
        describe: Describe,
        writer: type[AdapterWriter],
    ) -> None:
        self.name, self.recognises, self.describe = name, recognises, describe
        self.writer: Any = writer


class PlainFormat:
    """The 2-D float tensors of one .safetensors or .npz file, or these minus a base."""

    read = staticmethod(plain.read_update)
    check_finite = staticmethod(plain.check_finite)
    norm = staticmethod(plain.norm)
    writer = plain.PlainWriter

    def __init__(self, name: str, opening: Callable[[Layout, str, Settings], Adapter]) -> None:
        self.name, self.open = name, opening


FACTORS = (
    FactorsFormat("diffusers", diffusers.recognises, diffusers.describe, diffusers.DiffusersWriter),
    *(
        FactorsFormat(
            kind.lower(),
            partial(tuners.recognises, kind),
            tuners.describe,
            MissWriter if kind == "MISS" else LoraWriter,
        )
        for kind in tuners.TUNERS
    ),
    FactorsFormat("mlx", mlx.recognises, mlx.describe, mlx.MlxWriter),
    FactorsFormat("flower", flower.recognises, flower.describe, flower.FlowerWriter),
    FactorsFormat("kohya", kohya.recognises, kohya.describe, kohya.KohyaWriter),
    FactorsFormat("peft", lambda _: True, lora.describe, lora.PeftWriter),
)
"""The first that recognises the contents reads them."""
PLAIN: dict[ReadAs, PlainFormat] = {
    "update": PlainFormat("update", plain.open_update),
    "weights": PlainFormat("weights", plain.open_weights),
}
FORMATS: dict[str, AdapterFormat] = {f.name: f for f in FACTORS} | {
    f.name: f for f in PLAIN.values()
}
DEFAULTS = Settings()


def open_adapter(
    path: Path | str,
    settings: Settings = DEFAULTS,
    client: str | None = None,
    root: Path | None = None,
) -> Adapter:
    """One adapter, known from its headers and its config.

    `path` is a client's folder, with the adapter in it or in a checkpoint of it, or its file;
    `settings.read_as` says of which format. `client` is its id, by default the name of the folder or
    file; `root` is the folder that was scanned, by default `path` itself: links may not leave it.
    Raises the kinds of AdapterError, and UsageError where `settings.base` cannot be used.
    """
    path = Path(path)
    client = client_name(path) if client is None else client
    check_client_name(client)
    if settings.read_as != "lora":
        layout = locate(path, root, settings)
        return PLAIN[settings.read_as].open(layout, client, settings)
    contents = read_contents(locate(path, root, settings), settings)
    form = next(f for f in FACTORS if f.recognises(contents))
    found = form.describe(contents, settings)
    check_updates(found.updates, contents.where, settings)
    if form.name != "flower":  # all others are written as safetensors
        check_dtypes(contents.tensors)
    return as_adapter(contents, client, form.name, found)


def read_update(
    adapter: Adapter, module: str, dtype: DtypeName = "auto", device: str = "cpu"
) -> LowRankUpdate:
    """Delta W of one module: up (d_out, r), down (r, d_in), scale.

    "auto" is float64 where a factor is stored as float64, else float32. Raises ChangedWhileRead;
    NaN and Inf pass through (see `check_finite`).
    """
    return FORMATS[adapter.format].read(adapter, module, dtype, device)


def check_finite(adapter: Adapter, module: str) -> None:
    """Raises NonFinite, naming the first place, where a stored number of `module` is NaN or Inf."""
    FORMATS[adapter.format].check_finite(adapter, module)


def norm(adapter: Adapter, module: str) -> float:
    """||Delta W||_F of one module, without torch. Raises NonFinite."""
    return FORMATS[adapter.format].norm(adapter, module)


def converts(adapter: Adapter) -> bool:
    """Written back it is plain LoRA: its own tensors hold no other update."""
    return getattr(FORMATS[adapter.format], "writer", None) is LoraWriter


def check_writable(adapter: Adapter, ranks: bool) -> None:
    """Raises OutputError where no loader could start from it, with other `ranks` or at all."""
    if adapter.format == "peft":
        lora.check_start(adapter, ranks)


def open_writer(
    adapter: Adapter,
    folder: Path,
    modules: Sequence[str],
    ranks: Mapping[str, int] | None = None,
) -> AdapterWriter:
    """Writes `adapter` with other updates of `modules`, module by module, into the empty `folder`.

    Without `ranks` every module keeps its rank, and the config its bytes; modules in `ranks` get
    that rank, with the scale in the factors. Tensors that no update touches keep their bytes.
    Raises OutputError.
    """
    for module in modules:
        if module not in adapter.updates:
            raise OutputError(f"{adapter.client}: no module {module!r} to write an update to")
    return FORMATS[adapter.format].writer(adapter, folder, modules, ranks)


def write_adapter(
    adapter: Adapter,
    updates: Mapping[str, LowRankUpdate],
    folder: Path,
    ranks: Mapping[str, int] | None = None,
) -> None:
    """`open_writer` and all of `updates` at once."""
    writer = open_writer(adapter, folder, list(updates), ranks)
    try:
        for module, update in updates.items():
            writer.put(module, update)
        writer.close()
    finally:
        writer.abandon()
