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
    IGNORED,
    OTHER_WEIGHTS,
    PICKLES,
    REPLICATE,
    SHARD,
    WEIGHTS,
    is_candidate,
    is_replicate,
)
from clair_cli.formats.remote import Objects
from clair_cli.output.folders import GLOBAL
from clair_cli.output.manifest import is_own
from clair_cli.report import Reason
from clair_cli.settings import MIN_CLIENTS, Settings

LATE = 0.5
"""Checkpoints from this share of the last step on count: earlier ones have not arrived."""


@dataclass(frozen=True, slots=True)
class Source:
    """One client as the top folder shows it: `path` is its folder or its file, `root` the top, None
    where it was named by itself."""

    client: str
    path: Path
    root: Path | None
    notes: tuple[Reason, ...] = ()
    """What is to be said of the client because of what lies beside it."""
    no_client: Reason | None = None
    """Why the entry is none, where that is known without opening it."""
    objects: Objects | None = None
    """What it is to be fetched from."""


def discover(root: Path, ignore: Sequence[str] = (), sent: Path | None = None) -> list[Source]:
    """The clients below `root`, in natural order; each is opened, and may turn out broken, later.

    Entries whose names match one of the shell patterns in `ignore` are not looked at; upper and
    lower case differ on every system. The entry that is `sent`, or that it lies in, is no client.
    Raises UsageError where `root` is no folder or itself one adapter, NoVerdict where it is empty.
    """
    try:
        names = os.listdir(root)
    except (OSError, ValueError) as cause:
        why = getattr(cause, "strerror", None) or cause
        text = f"{shown(str(root))}: not a folder that can be read: {why}"
        raise UsageError(f"{text}; give the folder that holds the clients") from None
    names = [n for n in names if not any(fnmatchcase(n, pattern) for pattern in ignore)]
    if _is_one_adapter(names):
        raise UsageError(
            f"{shown(str(root))}: is itself one adapter; give the folder above it, "
            "or look at it with `clair inspect`"
        )
    every = frozenset(names)
    found = [n for n in names if is_candidate(root / n) and not _is_twin(root, n, every)]
    if not found:
        raise NoVerdict(
            f"{shown(str(root))}: no client in it; expected a folder with {CONFIG} and {WEIGHTS}, "
            "or a .safetensors file, per client"
        )
    notes = _name_clashes(root, found)
    mean = GLOBAL in found and is_own(root, GLOBAL, MEAN_BYTES)
    own = {GLOBAL: Reason("CLR118", OWN_MEAN)} if mean else {}
    if sent is not None and root.resolve() in sent.resolve().parents:
        name = sent.resolve().relative_to(root.resolve()).parts[0]
        own[name] = Reason("CLR122", f"{shown(name)}: {WAS_SENT}")
    sources = [
        Source(client, root / n, root, notes.get(n, ()), own.get(n))
        for n, client in client_ids(root, found).items()
    ]
    return sorted(sources, key=lambda s: natural_key(s.client))


MEAN_BYTES = 2**34
"""Of the mean beside clients, as of any file of theirs: it is hashed before anything else."""
OWN_MEAN = f"{GLOBAL}: the mean that clair wrote beside these adapters; it is no client"
WAS_SENT = "what --since names, from which the clients were trained; it is no client"
OF_ONE_ADAPTER = {WEIGHTS, *OTHER_WEIGHTS, "adapter_model.bin"}


def _is_one_adapter(names: Sequence[str]) -> bool:
    """Whether the names are those of one adapter's folder, and not of a folder of clients.

    A file that is called as an adapter's own does not decide it where there are clients enough
    beside it: one upload of that name would cost all others their verdicts.
    """
    cache = {"blobs", "snapshots"}
    parts = [n for n in names if n in OF_ONE_ADAPTER or SHARD.fullmatch(n)]
    if not parts and not cache <= set(names):
        return False
    others = set(names) - {*parts, *cache, "refs", CONFIG}
    inside = (CHECKPOINT, REPLICATE, IGNORED)
    return sum(not any(kind.fullmatch(n) for kind in inside) for n in others) < MIN_CLIENTS - 1


def client_ids(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Name of an entry below `root` -> the id of its client: no two have one.

    The id is the name without the ending, unless another entry has that for its name, or without its
    ending; then it is the name as it is.
    """
    stems = {name: _stem(root / name) for name in names}
    count = Counter(stems.values())
    return {
        name: name if count[stem] > 1 or (stem != name and stem in stems) else stem
        for name, stem in stems.items()
    }


def _name_clashes(root: Path, names: Sequence[str]) -> dict[str, tuple[Reason, ...]]:
    """A note for every entry that is called by its whole name because of others."""
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(_stem(root / name), []).append(name)
    every = frozenset(names)
    for stem, found in alike.items():
        if stem in every and stem not in found:
            found.append(stem)
    notes: dict[str, tuple[Reason, ...]] = {}
    for stem, found in alike.items():
        if len(found) > 1:
            text = f"{', '.join(map(shown, found))} would all be called {stem!r}"
            text += "; each is called by its whole name: leave only one, or rename the others"
            notes |= {n: (*notes.get(n, ()), Reason("CLR119", text)) for n in found}
    return notes


def _stem(path: Path) -> str:
    known = path.suffix in (".safetensors", ".npz", *PICKLES)
    return path.stem if known and not os.path.isdir(path) else path.name


def _is_twin(root: Path, name: str, names: frozenset[str]) -> bool:
    """A pickle beside the same client's own file: a note on that client."""
    stem, suffix = os.path.splitext(name)
    own = {stem + ".safetensors", stem + ".npz"} & names
    return (
        suffix in PICKLES and not any(os.path.isdir(root / n) for n in (name, *own)) and bool(own)
    )


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
    try:
        names = sorted(os.listdir(folder), key=natural_key)
    except OSError:  # it was there a moment ago: reading the adapter will say so
        return []
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
