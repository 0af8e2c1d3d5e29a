"""What there is: adapters as their headers describe them, and the clients that can be compared.

Nothing here holds a tensor. `align` checks once what the rest of clair relies on: every module of a
`Cohort` exists in every client with one shape.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from clair_cli.report import Reason


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies: bytes [begin, end) of `file`, row-major, `dtype` in safetensors terms."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file as it was read: `identity` tells whether it is still the same file later."""

    name: str
    path: Path
    size: int
    sha256: str
    identity: tuple[int, ...]


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
    all clients share, and differences between clients alone mean something.
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
    adapter is one of them.
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

    @property
    def only_replicates(self) -> bool:
        """No adapter was trained on all data: the mean of the replicates is the estimate."""
        return any(r.path == self.path for r in self.replicates)

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

    def having(self, name: str) -> tuple[int, ...]:
        """Positions of the clients that have `full[name]` with its shape; the others have it otherwise
        or not at all, and a finding names them."""
        shape = self.full[name]
        return tuple(k for k, a in enumerate(self.clients) if _shape(a, name) == shape)

    @property
    def dtypes(self) -> set[str]:
        """How the clients' updates are stored, in safetensors terms."""
        return {s.dtype for a in self.clients for s in a.updates.values()}

    def without(self, failed: Mapping[int, Reason]) -> Cohort:
        """The same but for the clients at these positions, which are broken."""
        gone = [_set_aside(self.clients[k], reason) for k, reason in sorted(failed.items())]
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


def align(entries: Entries, min_shared: float = 0.5, same: bool = False) -> Cohort:
    """Choose what is compared: clients of one base model, on the modules that all of them have.

    A client of another base model (CLR106), with another shape (CLR104), or sharing less than
    `min_shared` of the modules most clients have (CLR107) is set aside as broken; with `same` also one
    that has any module less or more than they do.
    """
    clients = sorted(entries.adapters, key=lambda a: natural_key(a.client))
    broken, findings = list(entries.broken), list(entries.findings)
    alike = partial(_other_modules, min_shared=min_shared, same=same)
    for check in (_other_base, _other_shape, _other_start, alike):
        bad, remarks = check(clients)
        broken += bad
        findings += remarks
        gone = {b.client for b in bad}
        clients = [a for a in clients if a.client not in gone]
    shared = set.intersection(*(set(a.updates) for a in clients)) if clients else set()
    findings += [*_partial_overlap(clients, shared), *_other_traits(clients)]
    modules = tuple(sorted(shared, key=natural_key))
    first = clients[0].updates if clients else {}
    shapes = {m: (first[m].d_out, first[m].d_in) for m in modules}
    full, remarks = _full(clients)
    findings += remarks
    return Cohort(tuple(clients), modules, shapes, tuple(broken), tuple(findings), full)


Checked = tuple[list[Broken], list[Reason]]


def _set_aside(adapter: Adapter, reason: Reason) -> Broken:
    return Broken(adapter.client, reason, tuple(adapter.files.values()))


def _base_name(base: str) -> str:
    """The last part of a model id or path: honest clients keep one model under different roots."""
    return re.split(r"[\\/]", base.rstrip("\\/"))[-1].casefold()


def _other_base(clients: list[Adapter]) -> Checked:
    named = {a.client: _base_name(a.base) for a in clients if a.base}
    count = Counter(named.values()).most_common(1)
    if not count or count[0][1] == len(named):
        return [], []
    base, votes = count[0]
    if 2 * votes <= len(named):
        text = "base_model_name_or_path differs between clients and no base is in the majority"
        return [], [Reason("CLR106", text + "; compared on shapes alone")]
    return [
        _set_aside(
            a,
            Reason(
                "CLR106",
                f"adapter_config.json: base model is {a.base!r}, but {votes} of {len(named)} clients "
                f"use {base!r}; retrain on that base or leave this client out",
            ),
        )
        for a in clients
        if a.client in named and named[a.client] != base
    ], []


def _other_shape(clients: list[Adapter]) -> Checked:
    votes: dict[str, Counter[tuple[int, int]]] = {}
    for adapter in clients:
        for module, spec in adapter.updates.items():
            votes.setdefault(module, Counter())[(spec.d_out, spec.d_in)] += 1
    usual = {m: c.most_common(1)[0][0] for m, c in votes.items()}
    broken = []
    for adapter in clients:
        for module, spec in adapter.updates.items():
            if (spec.d_out, spec.d_in) != usual[module]:
                text = (
                    f"{adapter.tensors[spec.file_key].file}: {module!r} is {spec.d_out} x {spec.d_in}, "
                    f"in the other clients {usual[module][0]} x {usual[module][1]}; "
                    "was it trained on another base model?"
                )
                broken.append(_set_aside(adapter, Reason("CLR104", text)))
                break
    return broken, []


def _other_start(clients: list[Adapter]) -> Checked:
    """Differences mean something where the part that clients share is the same."""
    starts: dict[str, dict[str, tuple[str, int, float]]] = {}
    for adapter in clients:
        for module, s in adapter.updates.items():
            starts.setdefault(module, {})[adapter.client] = _init(adapter, s), s.rank, s.scale
    usual = {m: Counter(found.values()).most_common(1)[0][0] for m, found in starts.items()}
    broken = []
    for adapter in clients:
        for module in adapter.updates:
            own, most = starts[module][adapter.client], usual[module]
            if own != most and (own[0] or most[0]):
                text = (
                    f"{module!r} began otherwise than in most clients ({_start(own)}, not "
                    f"{_start(most)}): their difference is no difference of training; "
                    "leave this client out"
                )
                broken.append(_set_aside(adapter, Reason("CLR104", text)))
                break
    return broken, []


def _init(adapter: Adapter, spec: UpdateSpec) -> str:
    """What the update started from, by name; empty where that is nothing."""
    if spec.start is Start.MAGNITUDE:
        return "DoRA"
    return "" if spec.absolute else adapter.traits["init"]


def _start(found: tuple[str, int, float]) -> str:
    return f"{found[0] or 'no base-changing init'}, rank {found[1]}, scale {found[2]:g}"


def _other_modules(clients: list[Adapter], min_shared: float, same: bool) -> Checked:
    count = Counter(m for a in clients for m in a.updates)
    usual = {m for m, c in count.items() if 2 * c > len(clients)}
    broken = []
    for adapter in clients:
        missing = sorted(usual - set(adapter.updates), key=natural_key)
        extra = sorted(set(adapter.updates) - usual, key=natural_key)
        if same and usual and (missing or extra):
            odd = [*(f"{m!r} is missing" for m in missing), *(f"{m!r} is extra" for m in extra)]
            text = (
                f"adapts other modules than most clients ({odd[0]}, {len(odd)} in all); train it with "
                "their target_modules, or compare with --modules shared"
            )
            broken.append(_set_aside(adapter, Reason("CLR107", text)))
        elif usual and len(missing) > (1 - min_shared) * len(usual):
            text = (
                f"adapts {len(usual) - len(missing)} of the {len(usual)} modules the other clients "
                f"share (missing {missing[0]!r}); too little to compare"
            )
            broken.append(_set_aside(adapter, Reason("CLR107", text)))
    return broken, []


def _other_traits(clients: list[Adapter]) -> list[Reason]:
    """Who differs in how the updates were parametrised: compared all the same, as products."""
    findings = []
    kinds = {"format": {a.client: a.format for a in clients}}
    for trait in sorted({t for a in clients for t in a.traits}):
        kinds[trait] = {a.client: a.traits[trait] for a in clients if trait in a.traits}
    for trait, said in kinds.items():
        count = Counter(said.values())
        if len(count) > 1:
            usual = count.most_common(1)[0][0]
            odd = [f"{c} ({value})" for c, value in said.items() if value != usual]
            text = f"{trait} differs between clients: {usual} in most, not in {_few(odd)}"
            findings.append(Reason("CLR304", f"{text}; updates are compared as products"))
    return findings


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + " ..." * (len(names) > 5)


def _partial_overlap(clients: list[Adapter], shared: set[str]) -> list[Reason]:
    findings = []
    union = {m for a in clients for m in a.updates}
    if union - shared:
        usual = Counter(frozenset(a.updates) for a in clients).most_common(1)[0][0]
        odd = [a.client for a in clients if set(a.updates) != usual]
        text = (
            f"clients adapt different modules: compared on the {len(shared)} of {len(union)} that all "
            "share, and the others are not judged; "
            f"unlike most: {_few(odd)}"
        )
        findings.append(Reason("CLR304", text))
    ranks = {s.rank for a in clients for m, s in a.updates.items() if m in shared}
    if any(len({a.updates[m].rank for a in clients}) > 1 for m in shared):
        text = f"ranks differ between clients ({min(ranks)} to {max(ranks)}); updates are compared"
        findings.append(Reason("CLR304", text + " as products, which is exact"))
    return findings


# --- tensors trained whole


def _shape(adapter: Adapter, name: str) -> tuple[int, ...] | None:
    spec = adapter.full.get(name)
    return None if spec is None else spec.shape


def _full(clients: list[Adapter]) -> tuple[dict[str, tuple[int, ...]], list[Reason]]:
    """The full matrices that most clients have with one shape, and who has them otherwise."""
    names = sorted({n for a in clients for n in a.full}, key=natural_key)
    found: dict[str, tuple[int, ...]] = {}
    odd: dict[str, list[str]] = {}
    for name in names:
        shapes = {a.client: _shape(a, name) for a in clients}
        count = Counter(s for s in shapes.values() if s is not None)
        usual, votes = count.most_common(1)[0]
        if 2 * votes > len(clients):
            found[name] = usual
        others = [_has(c, s) for c, s in shapes.items() if s != usual]
        if name not in found:
            own = [_has(c, s) for c, s in shapes.items() if s is not None]
            odd.setdefault(f"no shape is that of most clients, not judged: {_few(own)}", []).append(
                name
            )
        elif others:
            odd.setdefault(f"compared without {_few(others)}", []).append(name)
    return found, [Reason("CLR304", f"{_few(names)}: {text}") for text, names in odd.items()]


def _has(client: str, shape: tuple[int, ...] | None) -> str:
    """A client with what it has in place of a full matrix."""
    return (
        f"{client} ({'has none' if shape is None else ' x '.join(map(str, shape)) or 'a number'})"
    )
