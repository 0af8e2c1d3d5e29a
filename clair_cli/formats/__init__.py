"""Adapter formats: find clients, open adapters by their headers, read a module, write a folder.

Nothing here loads torch before a tensor is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clair_cli.cohort import Adapter, Cohort
from clair_cli.errors import Unstorable
from clair_cli.formats import diffusers, flower, kohya, mlx, peft, plain, sketch
from clair_cli.formats.bounds import check_dtypes, check_updates, check_work
from clair_cli.formats.containers import as_adapter, read_contents
from clair_cli.formats.discovery import (
    Source,
    check_client_name,
    client_name,
    discover,
    find_replicates,
    with_replicates,
)
from clair_cli.formats.full import (
    check_full,
    full_norm,
    read_full_elements,
    read_full_rows,
    read_full_tensor,
)
from clair_cli.formats.interface import AdapterFormat, AdapterWriter, FactoredFormat
from clair_cli.formats.layout import Layout, locate
from clair_cli.settings import DtypeName, Settings

if TYPE_CHECKING:
    from clair_cli.update import LowRankUpdate

__all__ = [
    "FORMATS",
    "AdapterFormat",
    "AdapterWriter",
    "FactoredFormat",
    "Source",
    "check_finite",
    "check_full",
    "check_writable",
    "client_name",
    "discover",
    "factored",
    "find_replicates",
    "full_norm",
    "norm",
    "open_adapter",
    "open_writer",
    "place",
    "read_full_elements",
    "read_full_rows",
    "read_full_tensor",
    "read_update",
    "record",
    "with_replicates",
    "write_adapter",
]

FORMATS: dict[str, AdapterFormat] = {
    form.name: form
    for form in (
        sketch.FORMAT,
        diffusers.FORMAT,
        *peft.TUNERS,
        mlx.FORMAT,
        flower.FORMAT,
        kohya.FORMAT,
        peft.LORA,
        *plain.FORMATS,
    )
}
"""By name. Of those of factors, the first that recognises the contents reads them."""
DEFAULTS = Settings()


def open_adapter(
    path: Path | str,
    settings: Settings = DEFAULTS,
    client: str | None = None,
    root: Path | None = None,
) -> Adapter:
    """One adapter, known from its headers and its config.

    `path` is a client's folder, with the adapter in it or in a checkpoint of it, or its file;
    `settings.read_as` says of which format, but for sketches, which are told at sight. `client` is its
    id, by default the name of the folder or file; `root` is the folder that was scanned, by default
    `path` itself: links may not leave it.
    Raises the kinds of AdapterError, and UsageError where `settings.base` cannot be used.
    """
    path = Path(path)
    client = client_name(path) if client is None else client
    check_client_name(client)
    layout = locate(path, root, settings)
    if settings.read_as == "lora" or sketch.is_sketch(layout):
        adapter = _open_factors(layout, client, settings)
    else:
        adapter = plain.open_matrices(layout, client, settings)
    check_work(adapter, settings)
    return adapter


def _open_factors(layout: Layout, client: str, settings: Settings) -> Adapter:
    """An adapter of the first format that recognises what lies there."""
    contents = read_contents(layout, settings)
    of_factors = (f for f in FORMATS.values() if isinstance(f, FactoredFormat))
    form = next(f for f in of_factors if f.recognises(contents))
    found = form.describe(contents, settings)
    check_updates(found.updates, contents.where, settings)
    if form.stores == "safetensors":
        check_dtypes(contents.tensors)
    return as_adapter(contents, client, form.name, found)


def record(adapter: Adapter) -> AdapterFormat:
    """The format of an adapter: how it is read and written, and what it can do."""
    return FORMATS[adapter.format]


def factored(cohort: Cohort) -> bool:
    """Whether some clients' updates are factors, which began somewhere; plain matrices did not."""
    return any(record(adapter).factored for adapter in cohort.clients)


def place(adapter: Adapter) -> str:
    """The machine that has the adapter's files, where they were fetched to it; else an empty name."""
    return next((f.machine for f in adapter.files.values() if f.origin is not None), "")


def read_update(
    adapter: Adapter, module: str, dtype: DtypeName = "auto", device: str = "cpu"
) -> LowRankUpdate:
    """Delta W of one module: up (d_out, r), down (r, d_in), scale.

    "auto" is float64 where a factor is stored as float64, else float32. Raises ChangedWhileRead;
    NaN and Inf pass through (see `check_finite`).
    """
    return record(adapter).read(adapter, module, dtype, device)


def check_finite(adapter: Adapter, module: str) -> None:
    """Raises NonFinite, naming the first place, where a stored number of `module` is NaN or Inf."""
    record(adapter).check_finite(adapter, module)


def norm(adapter: Adapter, module: str) -> float:
    """||Delta W||_F of one module, without torch. Raises NonFinite."""
    return record(adapter).norm(adapter, module)


def check_writable(adapter: Adapter, ranks: bool) -> None:
    """Raises OutputError where no loader could start from it, with other `ranks` or at all."""
    check_start = record(adapter).check_start
    if check_start is not None:
        check_start(adapter, ranks)


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
            raise Unstorable(f"{adapter.client}: no module {module!r} to write an update to")
    return record(adapter).writer(adapter, folder, modules, ranks)


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
