"""What there is: adapters as their headers describe them, and cohorts of them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from clair_cli.records import brief
from clair_cli.report import Reason

Answer = TypeVar("Answer", bound=Hashable)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies: bytes [begin, end) of `file`, row-major, `dtype` in safetensors terms."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where fetched files are from: `root` stands for `url`; objects beyond `most` bytes stay there."""

    url: str
    root: Path
    most: int


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file as it was read: `identity` tells whether it is still the same file later.

    `machine` is where it was looked at, `origin` what it was fetched from, and `later` are identities
    under which its contents have turned out to be the same.
    """

    name: str
    path: Path
    size: int
    sha256: str
    identity: tuple[int, ...]
    machine: str = field(default="", compare=False)
    origin: Origin | None = field(default=None, compare=False)
    later: set[tuple[int, ...]] = field(default_factory=set, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Sketching:
    """How updates are summarised: `size` coordinates a side, drawn by `seed`, by the rules of `version`.

    Only summaries of one kind can be compared.
    """

    size: int
    seed: int
    version: int = 1

    def __str__(self) -> str:
        return f"size {self.size}, seed {self.seed}, version {self.version}"


SKETCH_SIZE = 64
"""Of an adapter by itself, whose others are not known: about a megabyte of an 8B model."""
WHOLE = 2**18
"""Elements of a tensor trained whole up to which a sketch keeps it: 1 MB in float32."""


class Start(Enum):
    """What an update was before training, which decides what it means by itself."""

    ZERO = "zero"
    """LoRA: Delta W is what training added."""
    MOVED_BASE = "moved base"
    """PiSSA, OLoRA and others took a part of the base into the factors: known up to what all share."""
    MAGNITUDE = "magnitude"
    """DoRA's lengths of the rows of W + Delta W: near those of W, which all share."""


@dataclass(frozen=True, slots=True)
class UpdateSpec:
    """One matrix-valued update Delta W (d_out x d_in) = scale * up @ down, of rank at most `rank`.

    `rule` says how the tensors make up and down, and `tensors` which they are: role -> name in the
    adapter's files. Several updates may lie in the same tensors, as those of a layer's experts do;
    this one is the `part`-th of `parts`. Unless it is `absolute`, it is known only up to a part that
    all clients share, and differences between clients alone mean something. With a `sketch` it is known
    by its summary alone, of that kind.
    """

    d_out: int
    d_in: int
    rank: int
    scale: float
    dtype: str
    tensors: Mapping[str, str]
    rule: str = "lora"
    part: int = 0
    parts: int = 1
    start: Start = Start.ZERO
    sketch: Sketching | None = None

    @property
    def absolute(self) -> bool:
        """It means something by itself, not only beside those of other clients."""
        return self.start is Start.ZERO

    @property
    def file_key(self) -> str:
        """The name of one tensor of the update, for messages."""
        return next(iter(self.tensors.values()))


@dataclass(frozen=True, slots=True)
class FullSpec:
    """One tensor that was trained whole, as a saved head, a bias or an embedding: W = scale * stored.

    `tensor` is its name in the adapter's files; `dtype` is in safetensors terms. The scale is other
    than 1 for the bias of a LoRA factor alone.
    """

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 1.0

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One client's checkpoint, known from its headers and its config.

    `updates` maps module names to their specs, `full` the names of tensors trained whole; `tensors`
    holds every tensor of the files, those that are passed through untouched included; `config` and
    `metadata` are what else decides the scales; `traits` are words for what clients of one cohort
    should have alike: "peft_type", "init", "scaling".
    `digest` is a sha256 over what the tensors and config hold.
    `replicates` are further adapters of the same client; where the client has nothing else, this
    adapter is one of them. `card` is where its README.md would be. `since` is what the client was sent
    to start from, where that is known: what it changed is its updates minus those.
    """

    client: str
    path: Path
    format: str
    digest: str
    updates: Mapping[str, UpdateSpec]
    tensors: Mapping[str, TensorSpec]
    files: Mapping[str, InputFile]
    config: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None
    notes: tuple[Reason, ...] = ()
    traits: Mapping[str, str] = field(default_factory=dict)
    replicates: tuple[Adapter, ...] = ()
    full: Mapping[str, FullSpec] = field(default_factory=dict)
    card: Path | None = None
    since: Adapter | None = field(default=None, compare=False)
    __repr__ = brief

    @property
    def sketch(self) -> Sketching | None:
        """The kind of its sketches, None for an adapter itself."""
        return next((spec.sketch for spec in self.updates.values()), None)

    @property
    def only_replicates(self) -> bool:
        """No adapter was trained on all data: the mean of the replicates is the estimate."""
        return any(r.path == self.path for r in self.replicates)

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """Of the full matrix `name`, where it has one."""
        return self.full[name].shape if name in self.full else None

    @property
    def size(self) -> int:
        """How many bytes all its tensors take."""
        return sum(t.end - t.begin for t in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Broken:
    """A client that cannot be judged, and why."""

    client: str
    reason: Reason
    files: tuple[InputFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Cohort:
    """Clients that can be compared: every module is in every client with the shape given here.

    `clients` are in natural order of their ids, `modules` in natural order of their names;
    `shapes` are (d_out, d_in). `broken` are the clients that cannot be compared, `findings` remarks
    on the cohort as a whole. `full` are the tensors trained whole that most clients have with one
    shape, in natural order of their names, with that shape; `having` says who these clients are.
    """

    clients: tuple[Adapter, ...]
    modules: tuple[str, ...]
    shapes: Mapping[str, tuple[int, int]]
    broken: tuple[Broken, ...] = ()
    findings: tuple[Reason, ...] = ()
    full: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    __repr__ = brief

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all clients, broken ones included."""
        return (*(a.client for a in self.clients), *(b.client for b in self.broken))

    def having(self, name: str) -> tuple[int, ...]:
        """Positions of the clients that have `full[name]` with its shape; the others have it otherwise
        or not at all, and a finding names them."""
        shape = self.full[name]
        return tuple(k for k, a in enumerate(self.clients) if a.shape_of(name) == shape)

    @property
    def sketch(self) -> Sketching | None:
        """The kind of sketches by which all are compared, where some client is one."""
        return next((a.sketch for a in self.clients if a.sketch is not None), None)

    @property
    def dtypes(self) -> set[str]:
        """How the clients' updates are stored, in safetensors terms."""
        return {s.dtype for a in self.clients for s in a.updates.values()}

    def without(self, failed: Mapping[int, Reason]) -> Cohort:
        """The same but for the clients at these positions, which are broken."""
        gone = [set_aside(self.clients[k], reason) for k, reason in sorted(failed.items())]
        kept = tuple(a for k, a in enumerate(self.clients) if k not in failed)
        return replace(self, clients=kept, broken=(*self.broken, *gone))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which client-2 comes before client-10."""
    parts = re.split(r"(\d{1,18})", name)
    return tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts)


@dataclass(frozen=True, slots=True)
class Entries:
    """What a folder holds: adapters, clients whose adapter cannot be used, and remarks on the rest."""

    adapters: tuple[Adapter, ...]
    broken: tuple[Broken, ...] = ()
    findings: tuple[Reason, ...] = ()


def once(clients: Sequence[Adapter]) -> list[Adapter]:
    """The first of all that hold the same, byte by byte: what most clients hold is asked of those."""
    return list({a.digest: a for a in reversed(clients)}.values())[::-1]


def votes(clients: Iterable[Adapter], said: Callable[[Adapter], Answer]) -> Counter[Answer]:
    """How many different uploads go with each answer. Copies of one have one vote for each answer that
    they give: so many of them outvote nobody, and one that says otherwise does not silence its original.
    """
    return Counter(answer for _, answer in dict.fromkeys((a.digest, said(a)) for a in clients))


def set_aside(adapter: Adapter, reason: Reason) -> Broken:
    """A client that cannot be judged, of one that could be opened."""
    return Broken(adapter.client, reason, tuple(adapter.files.values()))
