"""Adapter formats: find clients, open adapters by their headers, read a module, write a folder.

Nothing here loads torch before a tensor is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from clair_cli.cohort import Adapter
from clair_cli.formats import peft, peft_write, plain, plain_write
from clair_cli.formats.discovery import Source, check_client_name, client_name, discover
from clair_cli.formats.layout import Layout, locate
from clair_cli.formats.plain_layout import locate_plain
from clair_cli.formats.replicates import find_replicates, with_replicates
from clair_cli.settings import DtypeName, ReadAs, Settings

if TYPE_CHECKING:
    from clair_cli.stack import LowRankUpdate

__all__ = [
    "FORMATS",
    "AdapterFormat",
    "Source",
    "check_finite",
    "discover",
    "find_replicates",
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

    def locate(self, path: Path, root: Path | None, settings: Settings) -> Layout:
        """Where the parts of the client at `path` lie; raises the kinds of AdapterError."""

    def open(self, layout: Layout, client: str, settings: Settings) -> Adapter:
        """The adapter from its headers; raises the kinds of AdapterError."""

    def read(
        self, adapter: Adapter, module: str, dtype: DtypeName = "auto", device: str = "cpu"
    ) -> LowRankUpdate:
        """One module's update: up (d_out, r), down (r, d_in), scale."""

    def check_finite(self, adapter: Adapter, module: str) -> None:
        """Raises NonFinite where a stored number of `module` is NaN or Inf."""

    def writer(
        self, adapter: Adapter, folder: Path, modules: Sequence[str], rank: int | None = None
    ) -> AdapterWriter:
        """Writes `adapter` with other updates of `modules` into the empty `folder`."""


class PeftFormat:
    """PEFT LoRA: adapter_model.safetensors with adapter_config.json."""

    name = "peft"
    locate = staticmethod(locate)
    open = staticmethod(peft.open_peft)
    read = staticmethod(peft.read_update)
    check_finite = staticmethod(peft.check_finite)
    writer = peft_write.PeftWriter


class UpdateFormat:
    """Plain updates: the 2-D float tensors of one .safetensors or .npz file."""

    name = "update"
    locate = staticmethod(locate_plain)
    open = staticmethod(plain.open_update)
    read = staticmethod(plain.read_update)
    check_finite = staticmethod(plain.check_finite)
    writer = plain_write.PlainWriter


class WeightsFormat(UpdateFormat):
    """Full weights in such a file; the updates are what differs from the base model's weights."""

    name = "weights"
    open = staticmethod(plain.open_weights)


FORMATS: dict[str, AdapterFormat] = {
    f.name: f for f in (PeftFormat(), UpdateFormat(), WeightsFormat())
}
CHOICES: dict[ReadAs, str] = {"lora": "peft", "update": "update", "weights": "weights"}
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
    form = FORMATS[CHOICES[settings.read_as]]
    return form.open(form.locate(path, root, settings), client, settings)


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


def open_writer(
    adapter: Adapter, folder: Path, modules: Sequence[str], rank: int | None = None
) -> AdapterWriter:
    """Writes `adapter` with other updates of `modules`, module by module, into the empty `folder`.

    `rank` None keeps every module's rank and the config; a number makes it the rank of every
    updated module, with the scale in the factors. What is not in `modules` keeps its bytes. Raises
    OutputError.
    """
    return FORMATS[adapter.format].writer(adapter, folder, modules, rank)


def write_adapter(
    adapter: Adapter,
    updates: Mapping[str, LowRankUpdate],
    folder: Path,
    rank: int | None = None,
) -> None:
    """`open_writer` and all of `updates` at once."""
    writer = open_writer(adapter, folder, list(updates), rank)
    try:
        for module, update in updates.items():
            writer.put(module, update)
        writer.close()
    finally:
        writer.abandon()
