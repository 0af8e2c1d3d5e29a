"""What is fuzzed, each with its oracle: only the errors clair means to raise, nothing hostile shown."""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from clair_cli import formats
from clair_cli.cohort import Adapter
from clair_cli.errors import AdapterError, ClairError, OutputError, UsageError
from clair_cli.inspection import inspect
from clair_cli.renderers import RENDERERS
from clair_cli.renderers.safe import safe_text
from clair_cli.report import from_dict, to_dict
from clair_cli.settings import Settings
from clair_cli.strict_json import parse_object
from fuzz import clients
from fuzz.clients import CONFIG, WEIGHTS, ByteDraw

LIMITS = Settings(max_file_bytes=2**24)
AS_UPDATE = Settings(max_file_bytes=2**24, read_as="update")
MEMORY = Path("/dev/shm")


def clean(text: str) -> bool:
    """Nothing in `text` but its line ends steers a terminal."""
    return all(c == "\n" or unicodedata.category(c)[0] not in "CZ" or c == " " for c in text)


def refused(error: ClairError) -> None:
    """What every message must be: one line that says where, and harmless once shown."""
    text = str(error)
    assert text.splitlines() == [text], repr(text)
    assert clean(safe_text(text)), repr(text)


def look(path: Path, settings: Settings = LIMITS, write: bool = False) -> Adapter | None:
    """Open, check, measure and show an adapter; None where it was refused as it should be.

    With `write`, what could be read must come back from a copy, or be refused as an output.
    """
    try:
        adapter = formats.open_adapter(path, settings)
    except AdapterError as error:
        refused(error)
        return None
    assert adapter.updates
    finite = [module for module in adapter.updates if _read(adapter, module)]
    try:
        found = inspect(path, settings)
        assert clean(RENDERERS["text"](found))
        json.loads(RENDERERS["json"](found))
    except AdapterError as error:
        refused(error)
    if write and len(finite) == len(adapter.updates):
        _copy(adapter, settings)
    return adapter


def _read(adapter: Adapter, module: str) -> bool:
    """Whether every number of one module, and its norm, is finite."""
    spec, fine = adapter.updates[module], True
    for step in (formats.check_finite, formats.norm, formats.read_update):
        try:
            found: Any = step(adapter, module)
        except AdapterError as error:
            refused(error)
            fine = False
        else:
            if step is formats.norm:
                assert 0 <= found < math.inf
            elif step is formats.read_update:
                (d_out, rank), (same, d_in) = found.up.shape, found.down.shape
                assert (d_out, d_in, rank) == (spec.d_out, spec.d_in, same)
                assert rank <= spec.rank
    return fine


def _copy(adapter: Adapter, settings: Settings) -> None:
    """A written copy opens again, with the same modules and shapes."""
    with scratch() as folder:
        target = folder / "copy"
        target.mkdir()
        try:
            updates = {m: formats.read_update(adapter, m) for m in adapter.updates}
            formats.write_adapter(adapter, updates, target)
        except (OutputError, AdapterError) as error:
            refused(error)
            return
        again = formats.open_adapter(target, settings)
        assert {(s.d_out, s.d_in) for s in again.updates.values()} == {
            (s.d_out, s.d_in) for s in adapter.updates.values()
        }


class scratch:
    """A folder that goes again, in memory where there is such a place."""

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


# --- targets: bytes to an assertion that holds

HONEST = clients.files(ByteDraw(b""))


def header(data: bytes) -> None:
    """The bytes as a safetensors file."""
    with scratch() as folder:
        look(clients.write(folder / "c", HONEST | {WEIGHTS: data}))


def npz(data: bytes) -> None:
    """The bytes as an .npz of plain matrices."""
    with scratch() as folder:
        (folder / "x.npz").write_bytes(data)
        look(folder / "x.npz", AS_UPDATE)


def config(data: bytes) -> None:
    """The bytes as adapter_config.json."""
    with scratch() as folder:
        look(clients.write(folder / "c", HONEST | {CONFIG: data}))


def client(data: bytes) -> None:
    """A whole folder drawn from the bytes, of any format; what can be read is written back.

    Arrays get their names from an honest adapter.
    """
    with scratch() as folder:
        made = clients.files(ByteDraw(data))
        settings = LIMITS
        if any(name.endswith(".npz") for name in made):
            settings = replace(LIMITS, reference=clients.write(folder / "reference", HONEST))
        look(clients.write(folder / "c", made), settings, write=True)


def report(data: bytes) -> None:
    """The bytes as a saved report, and what they change in an honest one: refused, or shown harmless."""
    for candidate in (data, _changed(ByteDraw(data))):
        try:
            saved = from_dict(parse_object(candidate, "report.json", UsageError))
        except UsageError as error:
            refused(error)
            continue
        for name, render in RENDERERS.items():
            shown = render(saved)
            assert clean(shown), name


def _changed(draw: ByteDraw) -> bytes:
    """An honest report with some values replaced."""
    data = copy.deepcopy(_honest_report())
    for _ in range(draw.pick((1, 2, 3))):
        holder: Any = data
        while True:
            key = draw.pick(list(holder) if isinstance(holder, dict) else range(len(holder)))
            if (
                not isinstance(holder[key], dict | list)
                or not holder[key]
                or draw.pick((0, 0, 0, 1))
            ):
                holder[key] = copy.deepcopy(draw.pick((*clients.VALUES, *clients.MODULES)))
                break
            holder = holder[key]
    return json.dumps(data).encode()


def _honest_report() -> dict[str, Any]:
    from tests.helpers.reports import COMPLETE

    found: dict[str, Any] = to_dict(COMPLETE)
    return found


TARGETS: dict[str, Callable[[bytes], None]] = {
    "header": header,
    "npz": npz,
    "config": config,
    "client": client,
    "report": report,
}


def seeds(name: str) -> list[bytes]:
    """Honest inputs of a target, to start from."""
    draws = [ByteDraw(bytes([0, i, 1])) for i in range(len(clients.FAMILIES))]
    if name == "header":
        return [clients.safetensors(d, clients.tensors(d)[1]) for d in draws]
    if name == "npz":
        return [clients.npz(d, clients.tensors(d)[1]) for d in draws]
    if name == "config":
        return [clients.config(ByteDraw(bytes([0, i])), f) for i, f in enumerate(clients.FAMILIES)]
    if name == "report":
        return [json.dumps(_honest_report()).encode()]
    places = (0, len(clients.PLACES) - 1)
    return [bytes([p, i, 1]) for p in places for i in range(len(clients.FAMILIES))]
