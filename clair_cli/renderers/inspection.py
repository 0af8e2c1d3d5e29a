"""What `clair inspect` shows: of one adapter a module a line, of a folder a client a line."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import aligned, few, many, span
from clair_cli.results import InspectedClient, InspectedFolder, Inspection, NotInspected

HEAD = ("module", "shape", "rank", "scale", "dtype", "norm")
FULL = ("trained whole", "shape", "dtype", "norm")
CLIENTS = ("client", "format", "base", "modules", "rank", "trained whole")
SHARED = ("trained whole", "shape", "clients that have it")


def as_json(found: Inspection | InspectedFolder | NotInspected) -> str:
    """One JSON document with a final newline; norms and scales to their last digit."""
    return json.dumps(asdict(found), indent=1, allow_nan=False) + "\n"


def as_jsonl(found: Inspection | InspectedFolder | NotInspected) -> str:
    """The same document on one line."""
    return json.dumps(asdict(found), allow_nan=False) + "\n"


def error_as_text(found: NotInspected) -> str:
    """One line: what is broken, and why."""
    return safe_text(f"{found.path}: broken: {found.error.code} {found.error.message}") + "\n"


def as_text(found: Inspection) -> str:
    """A line on the whole, a line per file, and a table of the modules."""
    total = math.hypot(*(m.norm for m in found.modules))
    size = f"{len(found.modules)} modules, norm {total:.4g}"
    lines = [
        f"{found.client}: {found.format}, base {found.base or 'unknown'}, {size}",
        *(f"  {name}  {size} bytes  sha256 {digest}" for name, size, digest in found.files),
        "",
    ]
    rows = [
        (m.name, f"{m.d_out}x{m.d_in}", str(m.rank), f"{m.scale:g}", m.dtype, f"{m.norm:.4g}")
        for m in found.modules
    ]
    lines += aligned([HEAD, *rows])
    if found.full:
        whole = [(f.name, _shape(f.shape), f.dtype, f"{f.norm:.4g}") for f in found.full]
        lines += ["", *aligned([FULL, *whole])]
    if kept := found.passed_through:
        lines.append(f"passed through untouched: {len(kept)} tensors: {few(kept)}")
    lines += [f"note: {r.code} {r.message}" for r in found.notes]
    return "".join(f"{safe_text(line)}\n" for line in lines)


def folder_as_text(found: InspectedFolder) -> str:
    """A line on the whole, a table of the clients, one of what they trained whole, and the notes."""
    head = f"{found.folder}: {many(len(found.clients), 'client')}"
    whole = many(len(found.full), "full matrix", "full matrices")
    lines = [f"{head}, compared on {many(found.modules, 'module')} and {whole}", ""]
    lines += aligned([CLIENTS, *map(_client, found.clients)])
    if found.full:
        usable = sum(c.error is None for c in found.clients)
        rows = [(f.name, _shape(f.shape), f"{f.clients} of {usable}") for f in found.full]
        lines += ["", *aligned([SHARED, *rows])]
    said = [
        (c.client, r) for c in found.clients for r in (*([c.error] if c.error else []), *c.notes)
    ]
    lines += [f"{client}: {r.code} {r.message}" for client, r in said]
    lines += [f"note: {r.code} {r.message}" for r in found.findings]
    return "".join(f"{safe_text(line)}\n" for line in lines)


def _client(one: InspectedClient) -> tuple[str, ...]:
    if one.format is None:
        return (one.client, "broken", "", "", "", "")
    ranks = span(one.ranks)
    return (one.client, one.format, one.base or "unknown", str(one.modules), ranks, str(one.full))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"
