"""A reference file: the sketches of a cohort in one file, with the report on it and all hashes.

A safetensors file. `<i>.left` (n, p, r) and `<i>.right` (n, q, r) hold the i-th update of n clients, as
a sketch does; `<i>.full` (n, *shape) the i-th tensor trained whole. Two documents of JSON lie beside
them, in bytes: `clients` says whose these are, `report` what was said of the clients.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from clair_cli._version import __version__
from clair_cli.cohort import Adapter, InputFile, Sketching, TensorSpec
from clair_cli.errors import AdapterError, Malformed, UsageError
from clair_cli.formats.bounds import check_updates
from clair_cli.formats.containers import MAX_BASE, read_pieces
from clair_cli.formats.discovery import check_client_name
from clair_cli.formats.files import hash_file, read_range, shown
from clair_cli.formats.safetensors_file import BITS, SafetensorsWriter, read_contents
from clair_cli.formats.sketch import FORMAT, VERSION, Head, SketchedModule, SourceFile, digest
from clair_cli.formats.sketch import described as described_sketch
from clair_cli.records import decode
from clair_cli.report import MAX_BYTES, Report, from_dict, to_dict
from clair_cli.settings import Settings
from clair_cli.strict_json import parse_object

KIND = "clair-reference"
"""What the metadata calls the format."""
CLIENTS, REPORT = "clients", "report"
HELD = 2**24
"""Bytes read at a time."""
UPLOADED = re.compile(r"; (upload|save|re-save) it[^;]*$")
"""What whoever sends an adapter is told to do, which mends no reference."""
SUFFIX = ".clair"
"""How the name of a reference file ends."""


@dataclass(frozen=True, slots=True)
class Member:
    """What the head of one client's sketch said."""

    client: str
    base: str | None
    format: str
    traits: Mapping[str, Any]
    files: tuple[SourceFile, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldUpdate:
    """One update of the clients at these positions, each with its largest rank and its norm."""

    name: str
    d_out: int
    d_in: int
    clients: tuple[int, ...]
    ranks: tuple[int, ...]
    norms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class HeldFull:
    """One tensor trained whole of the clients at these positions."""

    name: str
    clients: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """Whose sketches a reference file holds, and where."""

    version: int
    tool: str
    size: int
    seed: int
    members: tuple[Member, ...]
    updates: tuple[HeldUpdate, ...]
    full: tuple[HeldFull, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A reference file that was read: its clients as sketches, and the report on them."""

    file: InputFile
    kind: Sketching
    adapters: tuple[Adapter, ...]
    report: Report


# --- read


def open_reference(path: Path, settings: Settings) -> Reference:
    """The clients of a reference file, by its header; their numbers are read when they are compared.

    The file may be anybody's. Raises UsageError where it is none, or cannot be read.
    """
    try:
        return _open(path.resolve(), settings)
    except AdapterError as error:
        text = UPLOADED.sub("", str(error).removeprefix(f"{path.name}: "))
        text += "" if "git lfs" in text else "; make it again with `clair fit`"
        raise UsageError(f"{shown(str(path))}: no reference that can be used: {text}") from None
    except (OSError, RuntimeError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise UsageError(f"{shown(str(path))}: cannot be read: {why}") from None


def _open(path: Path, settings: Settings) -> Reference:
    if path.suffix != SUFFIX:
        raise Malformed(f"its name does not end with {SUFFIX}")
    look = partial(read_contents, where=path.name, settings=settings)
    file, (tensors, metadata) = hash_file(path, path.name, look)
    if metadata.get("format") != KIND:
        raise Malformed(f"{path.name}: is no file that clair fit has written")
    found = _contents(_document(file, tensors, CLIENTS), path.name)
    try:
        report = from_dict(_document(file, tensors, REPORT))
    except UsageError as error:
        raise Malformed(f"{path.name}: {error}") from None
    kind = Sketching(found.size, found.seed, found.version)
    modules, slices = _shared_out(found, tensors, path.name)
    hashes, adapters = _hashed(file, slices), []
    for k, member in enumerate(found.members):
        head = _head(found, member, modules[k])
        adapters.append(_adapter(head, slices[k], hashes[k], file, settings))
    names = [a.client for a in adapters]
    if len(set(names)) < len(names):
        raise Malformed(f"{path.name}: holds two clients of one name")
    return Reference(file, kind, tuple(adapters), report)


def _document(file: InputFile, tensors: dict[str, TensorSpec], name: str) -> dict[str, Any]:
    """The object of JSON in the bytes of a tensor."""
    spec = tensors.pop(name, None)
    if spec is None or spec.dtype != "U8" or spec.end - spec.begin > MAX_BYTES:
        raise Malformed(f"{file.name}: has no bytes {name!r}, or too many")
    return parse_object(read_range(file, spec.begin, spec.end), f"{file.name}: {name}", Malformed)


def _contents(data: dict[str, Any], where: str) -> Contents:
    if data.get("version") != VERSION:
        said = repr(data.get("version"))[:20]
        raise Malformed(f"{where}: of version {said}, and this clair reads version {VERSION}")
    try:
        return decode(Contents, data)
    except ValueError as error:
        raise Malformed(f"{where}: {error}") from None


Modules = list[list[SketchedModule]]
Slices = list[dict[str, TensorSpec]]


def _shared_out(
    found: Contents, tensors: Mapping[str, TensorSpec], where: str
) -> tuple[Modules, Slices]:
    """The modules and tensors of each client."""
    count = len(found.members)
    modules: Modules = [[] for _ in range(count)]
    slices: Slices = [{} for _ in range(count)]
    used = set()
    for i, held in enumerate(found.updates):
        if not len(held.ranks) == len(held.norms) == len(held.clients):
            raise Malformed(f"{where}: {held.name[:200]!r} has not one rank and norm per client")
        for side in ("left", "right"):
            used.add(f"{i}.{side}")
            for k, spec in _parts(tensors, f"{i}.{side}", held.clients, count, where):
                slices[k][f"{held.name}.{side}"] = spec
        for k, rank, norm in zip(held.clients, held.ranks, held.norms, strict=True):
            modules[k].append(SketchedModule(held.name, held.d_out, held.d_in, rank, norm))
    for i, whole in enumerate(found.full):
        used.add(f"{i}.full")
        for k, spec in _parts(tensors, f"{i}.full", whole.clients, count, where):
            slices[k][f"{whole.name}.full"] = spec
    if odd := sorted(tensors.keys() - used):
        raise Malformed(f"{where}: tensor {odd[0][:200]!r} is nobody's")
    return modules, slices


def _parts(
    tensors: Mapping[str, TensorSpec], name: str, clients: Sequence[int], count: int, where: str
) -> Iterator[tuple[int, TensorSpec]]:
    """The slice of each client in a tensor whose first dimension runs over them."""
    spec = tensors.get(name)
    inside = all(0 <= k < count for k in clients) and len(set(clients)) == len(clients)
    if spec is None or not inside or spec.shape[:1] != (len(clients),) or not clients:
        raise Malformed(f"{where}: tensor {name!r} is missing, or not of the clients it is of")
    size = (spec.end - spec.begin) // len(clients)
    for n, k in enumerate(clients):
        begin = spec.begin + n * size
        yield k, TensorSpec(spec.file, spec.dtype, spec.shape[1:], begin, begin + size)


def _hashed(file: InputFile, slices: Slices) -> list[dict[str, str]]:
    """The sha256 of every tensor of each client, read in the order of the file, HELD bytes at a time."""
    hashes: list[dict[str, str]] = [{} for _ in slices]
    places = [(spec, name, k) for k, own in enumerate(slices) for name, spec in own.items()]
    places.sort(key=lambda place: place[0].begin)
    data, start = bytearray(), 0
    last = places[-1][0].end if places else 0
    for spec, name, k in places:
        if spec.end > start + len(data):
            start = spec.begin
            data = read_range(file, start, max(spec.end, min(start + HELD, last)))
        part = memoryview(data)[spec.begin - start : spec.end - start]
        hashes[k][name] = sha256(part).hexdigest()
    return hashes


def _head(found: Contents, member: Member, modules: Sequence[SketchedModule]) -> Head:
    return Head(
        version=found.version,
        tool=found.tool,
        size=found.size,
        seed=found.seed,
        client=member.client,
        base=member.base,
        format=member.format,
        traits=member.traits,
        files=member.files,
        modules=tuple(modules),
        left_out=member.left_out,
    )


def _adapter(
    head: Head,
    tensors: dict[str, TensorSpec],
    hashes: Mapping[str, str],
    file: InputFile,
    settings: Settings,
) -> Adapter:
    check_client_name(head.client)
    where = f"{file.name}: {head.client}"
    if head.base is not None and len(head.base) > MAX_BASE:
        raise Malformed(f"{where}: the name of its base model has {len(head.base)} characters")
    head.check(where)
    found = described_sketch(head, tensors, where)
    check_updates(found.updates, where, settings)
    return Adapter(
        client=head.client,
        path=file.path,
        format=FORMAT.name,
        digest=digest(hashes, found.updates),
        updates=found.updates,
        tensors=tensors,
        files={file.name: file},
        config=found.config,
        base=found.base,
        notes=found.notes,
        traits=found.traits,
        full=found.full,
    )


# --- written


def write_reference(path: Path, adapters: Sequence[Adapter], report: Report) -> None:
    """A new file of these sketches, all of one kind, and of the report on them. Raises OutputError."""
    kind = adapters[0].sketch
    assert kind is not None
    updates, full = _held(adapters)
    contents = Contents(
        version=kind.version,
        tool=f"clair {__version__}",
        size=kind.size,
        seed=kind.seed,
        members=tuple(_member(a) for a in adapters),
        updates=tuple(held for held, _ in updates),
        full=tuple(held for held, _ in full),
    )
    documents = {
        CLIENTS: json.dumps(asdict(contents)).encode(),
        REPORT: json.dumps(to_dict(report)).encode(),
    }
    pieces: dict[str, tuple[TensorSpec, Sequence[int], str]] = {}
    for i, (held, sides) in enumerate(updates):
        for side, spec in sides.items():
            pieces[f"{i}.{side}"] = spec, held.clients, f"{held.name}.{side}"
    for i, (whole, spec) in enumerate(full):
        pieces[f"{i}.full"] = spec, whole.clients, f"{whole.name}.full"
    shapes = {n: (s.dtype, (len(who), *s.shape)) for n, (s, who, _) in pieces.items()}
    shapes |= {name: ("U8", (len(data),)) for name, data in documents.items()}
    out = SafetensorsWriter(path, shapes, {"format": KIND})
    try:
        for name, data in documents.items():
            out.write(name, data)
        for name, (spec, who, own) in pieces.items():
            at = 0
            for k in who:
                for piece in read_pieces(adapters[k], own):
                    out.write(name, piece, at)
                    at += len(piece)
            assert at == len(who) * (spec.end - spec.begin), BITS[spec.dtype]
        out.close()
    finally:
        out.abandon()


def _member(adapter: Adapter) -> Member:
    head: Head = adapter.config["sketch"]
    return Member(
        client=adapter.client,
        base=head.base,
        format=head.format,
        traits=head.traits,
        files=head.files,
        left_out=head.left_out,
    )


Sides = dict[str, TensorSpec]


def _held(
    adapters: Sequence[Adapter],
) -> tuple[list[tuple[HeldUpdate, Sides]], list[tuple[HeldFull, TensorSpec]]]:
    """Updates and whole tensors, each with the clients that have it in one shape and dtype."""
    updates: dict[tuple[Any, ...], tuple[list[int], Sides]] = {}
    full: dict[tuple[Any, ...], tuple[list[int], TensorSpec]] = {}
    for k, adapter in enumerate(adapters):
        for name, update in adapter.updates.items():
            sides = {side: adapter.tensors[key] for side, key in update.tensors.items()}
            columns = sides["left"].shape[1]
            key = (name, update.d_out, update.d_in, columns)
            updates.setdefault(key, ([], sides))[0].append(k)
        for name, whole in adapter.full.items():
            spec = adapter.tensors[whole.tensor]
            full.setdefault((name, spec.dtype, spec.shape), ([], spec))[0].append(k)
    found = []
    for (name, d_out, d_in, _), (who, sides) in updates.items():
        ranks = tuple(adapters[k].updates[name].rank for k in who)
        norms = tuple(adapters[k].updates[name].scale for k in who)
        found.append((HeldUpdate(name, d_out, d_in, tuple(who), ranks, norms), sides))
    return found, [(HeldFull(n, tuple(who)), spec) for (n, *_), (who, spec) in full.items()]
