"""Which clients a folder holds, and which further adapters a client; `layout` says where each lies."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path

from clair_cli.cohort import Adapter, natural_key
from clair_cli.errors import NoVerdict, UnsafePath, UsageError
from clair_cli.formats.files import shown
from clair_cli.formats.layout import (
    CHECKPOINT,
    CONFIG,
    OTHER_WEIGHTS,
    PICKLES,
    SHARD,
    WEIGHTS,
    is_candidate,
    is_replicate,
)
from clair_cli.output.folders import GLOBAL
from clair_cli.output.manifest import read_manifest
from clair_cli.report import Reason
from clair_cli.settings import Settings

LATE = 0.5
"""Checkpoints from this share of the last step on count: earlier ones have not arrived."""


@dataclass(frozen=True, slots=True)
class Source:
    """One client as the top folder shows it: `path` is its folder or its file, `root` the top."""

    client: str
    path: Path
    root: Path


def discover(root: Path, ignore: Sequence[str] = ()) -> list[Source]:
    """The clients below `root`, in natural order; each is opened, and may turn out broken, later.

    Entries whose names match one of the shell patterns in `ignore` are not looked at; upper and
    lower case differ on every system. Raises UsageError where `root` is no folder or itself one
    adapter, NoVerdict where it is empty.
    """
    try:
        names = os.listdir(root)
    except (OSError, ValueError) as cause:
        why = getattr(cause, "strerror", None) or cause
        text = f"{shown(str(root))}: not a folder that can be read: {why}"
        raise UsageError(f"{text}; give the folder that holds the clients") from None
    names = [n for n in names if not any(fnmatchcase(n, pattern) for pattern in ignore)]
    own_files = {WEIGHTS, *OTHER_WEIGHTS, "adapter_model.bin"}
    whole = not own_files.isdisjoint(names) or {"blobs", "snapshots"} <= set(names)
    if whole or any(map(SHARD.fullmatch, names)):
        raise UsageError(
            f"{shown(str(root))}: is itself one adapter; give the folder above it, "
            "or look at it with `clair inspect`"
        )
    own = (
        {GLOBAL} if read_manifest(root) is not None else set()
    )  # the mean clair wrote is no client
    found = [n for n in names if is_candidate(root / n) and not _is_twin(n, names) and n not in own]
    stems = Counter(_stem(root / name) for name in found)
    sources = [
        Source(_stem(root / n) if stems[_stem(root / n)] == 1 else n, root / n, root) for n in found
    ]
    if not sources:
        raise NoVerdict(
            f"{shown(str(root))}: no client in it; expected a folder with {CONFIG} and {WEIGHTS}, "
            "or a .safetensors file, per client"
        )
    return sorted(sources, key=lambda s: natural_key(s.client))


def _stem(path: Path) -> str:
    known = path.suffix in (".safetensors", ".npz", *PICKLES)
    return path.stem if known and not os.path.isdir(path) else path.name


def _is_twin(name: str, names: list[str]) -> bool:
    """A pickle beside the same client's own file: a note on that client."""
    stem, suffix = os.path.splitext(name)
    return suffix in PICKLES and not {stem + ".safetensors", stem + ".npz"}.isdisjoint(names)


def client_name(path: Path) -> str:
    """The id of the client at `path`: its folder's name, or its file's without the ending."""
    return _stem(Path(os.path.abspath(path)))


def check_client_name(client: str) -> None:
    """Raises UnsafePath unless `client` is one path segment of visible characters."""
    odd = any(unicodedata.category(c).startswith("C") for c in client)
    if odd or client in ("", ".", "..") or "/" in client or "\\" in client:
        raise UnsafePath(f"client name {client!r} cannot be used as a folder name; rename it")


# --- replicates


def find_replicates(folder: Path, settings: Settings) -> list[Path]:
    """The folders of further adapters in a client's `folder`, in natural order; none in a file."""
    if settings.replicates == "none" or not os.path.isdir(folder):
        return []
    names = sorted(os.listdir(folder), key=natural_key)
    if settings.replicates == "auto":
        return [folder / n for n in names if is_replicate(folder / n)]
    steps = {n: int(m[1]) for n in names if (m := CHECKPOINT.fullmatch(n))}
    last = max(steps.values(), default=0)
    return [folder / n for n in steps if steps[n] >= LATE * last]


def with_replicates(adapter: Adapter, found: list[Adapter], notes: list[Reason]) -> Adapter:
    """The adapter with those of `found` that adapt the same modules with the same shapes.

    Where it is itself a replicate, the first usable one stands for the client, and all of them make the
    digest: their mean is what is judged.
    """
    alone = is_replicate(adapter.path)
    if alone and found and all(other.path != adapter.path for other in found):
        adapter = replace(found[0], notes=adapter.notes)
    fitting: list[Adapter] = []
    for other in found:
        if other.digest == adapter.digest and other.path != adapter.path:
            text = f"{other.path.name}: a copy of the client's adapter; not used as a replicate"
            notes.append(Reason("CLR205", text))
        elif _shapes(other) == _shapes(adapter):
            fitting.append(other)
        else:
            text = f"{other.path.name}: adapts other modules or shapes; not used as a replicate"
            notes.append(Reason("CLR107", text))
    digest = adapter.digest
    if alone:
        digest = sha256(" ".join(other.digest for other in fitting).encode()).hexdigest()
    notes = [*adapter.notes, *notes]
    return replace(adapter, replicates=tuple(fitting), notes=tuple(notes), digest=digest)


def _shapes(adapter: Adapter) -> dict[str, tuple[int, int]]:
    return {m: (s.d_out, s.d_in) for m, s in adapter.updates.items()}
