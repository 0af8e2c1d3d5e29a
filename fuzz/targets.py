"""What is fuzzed, each with its oracle: only the errors clair means to raise, nothing hostile shown."""

from __future__ import annotations

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
from clair_cli.output import publish
from clair_cli.output.manifest import MANIFEST, differences, parse_manifest
from clair_cli.refinement.members import read_counts
from clair_cli.renderers import BINARY, ENDS, RENDERERS, REPORTS, render, text
from clair_cli.renderers.safe import safe_text
from clair_cli.report import from_dict, to_dict
from clair_cli.results import Difference, Verification
from clair_cli.schema import report_schema, violation
from clair_cli.scores import Scores
from clair_cli.selection import read_candidates
from clair_cli.settings import Settings
from clair_cli.strict_json import parse_object
from fuzz import clients, differential, documents, kept
from fuzz.clients import CONFIG, WEIGHTS, ByteDraw

LIMITS = Settings(max_file_bytes=2**24)
AS_UPDATE = Settings(max_file_bytes=2**24, read_as="update")
MEMORY = Path("/dev/shm")


def clean(text: str) -> bool:
    """Nothing in `text` but its line ends steers a terminal."""
    return all(c == "\n" or unicodedata.category(c)[0] not in "CZ" or c == " " for c in text)


def refused(error: ClairError) -> None:
    """What every message must be: one line that says where, and harmless once shown."""
    said = str(error)
    assert said.splitlines() == [said], repr(said)
    assert clean(safe_text(said)), repr(said)


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


def configs(data: bytes) -> None:
    """A config drawn field by field, beside tensors of its family."""
    draw = ByteDraw(data)
    family, found = clients.tensors(draw)
    made = {WEIGHTS: clients.safetensors(draw, found), CONFIG: clients.config(draw, family)}
    with scratch() as folder:
        look(clients.write(folder / "c", made), write=True)


def zips(data: bytes) -> None:
    """An .npz drawn array by array."""
    draw = ByteDraw(data)
    with scratch() as folder:
        made = clients.damaged(draw, clients.npz(draw, clients.tensors(draw)[1]))
        (folder / "x.npz").write_bytes(made)
        look(folder / "x.npz", AS_UPDATE)


def report(data: bytes) -> None:
    """The bytes as a saved report, and what they change in an honest one: refused, or shown harmless."""
    for candidate in (data, documents.changed(ByteDraw(data), _honest_report())):
        try:
            saved = from_dict(parse_object(candidate, "report.json", UsageError))
        except UsageError as error:
            refused(error)
            continue
        for name in sorted(REPORTS.keys() - BINARY):
            shown = render(saved, name)
            assert isinstance(shown, str)
            assert clean(shown.replace("\r\n", "\n") if name in ENDS else shown), name
        assert clean(str(render(saved, "html", (from_dict(_honest_report()), saved))))
        again = json.loads(RENDERERS["json"](saved))
        assert violation(again, report_schema()) is None
        assert clean(text.render(saved, verbose=2))


def manifest(data: bytes) -> None:
    """A manifest of clair's with some fields changed: none, or one whose every field is in bounds."""
    for candidate in (data, documents.changed(ByteDraw(data), documents.MANIFEST)):
        found = parse_manifest(candidate)
        with scratch() as folder:
            (folder / MANIFEST).write_bytes(candidate)
            (folder / "a").write_bytes(b"x")
            differing = differences(folder)
            shown = Verification(str(folder), 0, tuple(Difference(n, w) for n, w in differing))
            assert differing
            assert all(clean(render(shown)) for render in RENDERERS.values())
        for file in found.files if found else ():
            assert 0 <= file.size < 2**63
            assert 0 < len(file.name) <= 4096


def candidates(data: bytes) -> None:
    """The report beside candidates, and a file of scores, with some fields changed."""
    draw = ByteDraw(data)
    with scratch() as folder:
        out = folder / "out"
        for place in ("strength-0/client-1", "strength-0/client-2", "strength-1/client-1"):
            clients.write(out / place, {CONFIG: b"{}"})
        done = _candidates_report()
        (out / "report.json").write_bytes(documents.changed(draw, done))
        publish.write_manifest(out, "0")
        (folder / "scores").write_bytes(documents.changed(draw, documents.SCORES))
        for read in (lambda: _inside(out), lambda: Scores(folder / "scores")):
            try:
                read()
            except UsageError as error:
                refused(error)


def _inside(out: Path) -> None:
    """Every candidate is a folder of the output, and its client a name."""
    for one in read_candidates(out):
        assert (out / one.path).resolve().is_relative_to(out.resolve())
        assert (out / one.path).is_dir()
        assert clean(one.client)


def counts(data: bytes) -> None:
    """Sample counts as JSON and as lines."""
    draw = ByteDraw(data)
    for candidate in (data, documents.changed(draw, documents.COUNTS)):
        with scratch() as folder:
            (folder / "counts").write_bytes(candidate)
            try:
                found = read_counts(folder / "counts")
            except UsageError as error:
                refused(error)
                continue
            assert all(0 < n <= 1e15 for n in found.values())


def same(data: bytes) -> None:
    """One cohort stored in two ways: equal verdicts."""
    with scratch() as folder:
        differential.compare(ByteDraw(data), folder)


def kept_by_clair(name: str) -> Callable[[bytes], None]:
    """A target of fuzz/kept.py: refused as every input is, or what it says holds."""

    def target(data: bytes) -> None:
        with scratch() as folder:
            try:
                kept.SPOILED[name](data, folder)
            except ClairError as error:
                refused(error)

    return target


def _candidates_report() -> dict[str, Any]:
    found = _honest_report()
    one = found["refinement"]["clients"][0]
    places = ("strength-0/client-1", "strength-0/client-2", "strength-1/client-1")
    found["refinement"]["clients"] = [one | {"id": p[-8:], "path": p} for p in places]
    found["settings"]["path"] = [0, 1]
    return found


def _honest_report() -> dict[str, Any]:
    from tests.helpers.reports import COMPLETE

    found: dict[str, Any] = to_dict(COMPLETE)
    return found


TARGETS: dict[str, Callable[[bytes], None]] = {
    "header": header,
    "npz": npz,
    "config": config,
    "client": client,
    "configs": configs,
    "zips": zips,
    "report": report,
    "manifest": manifest,
    "candidates": candidates,
    "counts": counts,
    "same": same,
    **{name: kept_by_clair(name) for name in kept.SPOILED},
}
DRAWN = ("configs", "zips", "manifest", "candidates", "counts", "same", *kept.SPOILED)
"""Targets whose bytes are choices and nothing else."""


def seeds(name: str) -> list[bytes]:
    """Honest inputs of a target, to start from."""
    if name in DRAWN:
        return differential.seeds(64)
    draws = [ByteDraw(bytes([0, i, 1])) for i in range(len(clients.FAMILIES))]
    if name == "header":
        return [clients.safetensors(d, clients.tensors(d)[1]) for d in draws]
    if name == "npz":
        return [clients.npz(d, clients.tensors(d)[1]) for d in draws]
    if name == "config":
        return [clients.config(ByteDraw(bytes([0, i])), f) for i, f in enumerate(clients.FAMILIES)]
    if name == "report":
        return [json.dumps(_honest_report()).encode(), *differential.seeds(64)]
    places = (0, len(clients.PLACES) - 1)
    return [bytes([p, i, 1]) for p in places for i in range(len(clients.FAMILIES))]
