"""Sketches: a small summary of an adapter per file, from which it is judged without the adapter.

`<module>.left` (p, r) and `<module>.right` (q, r), both F16, are the sides of the module's update, of
norm 1. `<name>.full` is a tensor trained whole, as it was. The metadata says how the sides were drawn,
and of what: shapes, ranks and norms. What a sketch means is said in `detection.summaries`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NoReturn

from clair_cli._version import __version__
from clair_cli.cohort import WHOLE, Adapter, FullSpec, Sketching, TensorSpec, UpdateSpec
from clair_cli.errors import (
    Malformed,
    ShapeMismatch,
    SketchUnusable,
    Unreadable,
    Unstorable,
    Unsupported,
)
from clair_cli.formats import factors
from clair_cli.formats.containers import Contents, Described, read_tensor
from clair_cli.formats.files import opened, pread, read_range
from clair_cli.formats.interface import FactoredFormat
from clair_cli.formats.layout import CONFIG, Layout
from clair_cli.formats.safetensors_file import FLOATS, lay_out
from clair_cli.records import decode
from clair_cli.report import Reason
from clair_cli.settings import DtypeName, Settings
from clair_cli.strict_json import parse_object

if TYPE_CHECKING:
    from clair_cli.update import LowRankUpdate

KIND = "clair-sketch"
"""What the metadata calls the format."""
VERSION = 1
SIZES = (8, 1024)
"""The least and the most coordinates a side."""
LARGEST = 1e150
"""Norm of an update, whose square is a number of float64."""
TOLERANCE = 0.01
"""What rounding to F16 may change of an energy, many times over."""
STRAY = 64.0
"""The sketched energy of an update strays from its own by 2 / sqrt(p) of it, at most. It may be off by
the factor 1 + STRAY / sqrt(p), which no draw reaches unless the update was made for it."""


@dataclass(frozen=True, slots=True)
class SketchedModule:
    """One update that was sketched: shape, largest rank and Frobenius norm of its own."""

    name: str
    d_out: int
    d_in: int
    rank: int
    norm: float


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file that the sketch was made of."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Head:
    """What the metadata of a sketch says."""

    version: int
    tool: str
    size: int
    seed: int
    client: str
    base: str | None
    format: str
    traits: Mapping[str, Any]
    files: tuple[SourceFile, ...]
    modules: tuple[SketchedModule, ...]
    left_out: tuple[str, ...] = ()

    @property
    def kind(self) -> Sketching:
        """How it was drawn."""
        return Sketching(self.size, self.seed, self.version)

    def check(self, where: str) -> None:
        """Raises Malformed where it says what no sketch is drawn by, or of."""
        if not SIZES[0] <= self.size <= SIZES[1] or not 0 <= self.seed < 2**62:
            text = f"a sketch of {self.kind}; sizes are {SIZES[0]} to {SIZES[1]}"
            raise Malformed(f"{where}: {text}")
        if not all(isinstance(v, str) for v in self.traits.values()):
            raise Malformed(f"{where}: traits of the sketch are no words; sketch it again")

    @property
    def sources(self) -> frozenset[str]:
        """The sha256 of the files of tensors that it was made of."""
        return frozenset(f.sha256 for f in self.files if f.name != CONFIG)


def is_sketch(layout: Layout) -> bool:
    """Whether the file begins as a sketch does, whatever else files may be read as."""
    if len(layout.weights) != 1:
        return False
    begin = b'{"__metadata__":{"format":"' + KIND.encode()
    try:
        with opened(layout.weights[0][1]) as fd:
            return bytes(pread(fd, 8, 8 + len(begin))) == begin
    except Unreadable:  # opening it will say so
        return False


def recognises(contents: Contents) -> bool:
    """By the metadata, which nobody else writes."""
    return contents.metadata.get("format") == KIND


def describe(contents: Contents, settings: Settings) -> Described:
    """Every module that the metadata names. Raises Malformed, Unsupported, ShapeMismatch."""
    text = contents.metadata.get("sketch", "")
    found = described(parse_head(text.encode(), contents.where), contents.tensors, contents.where)
    (file,) = (contents.files[name] for name, _ in contents.layout.weights)
    hashes = {
        name: sha256(read_range(file, spec.begin, spec.end)).hexdigest()
        for name, spec in contents.tensors.items()
    }
    return replace(found, digest=digest(hashes, found.updates))


def digest(hashes: Mapping[str, str], updates: Mapping[str, UpdateSpec]) -> str:
    """Of what a sketch holds, by the sha256 of each tensor: equal for copies, whoever sent them."""
    norms = sorted((module, spec.scale.hex()) for module, spec in updates.items())
    return sha256(json.dumps([sorted(hashes.items()), norms]).encode()).hexdigest()


def parse_head(text: bytes, where: str) -> Head:
    """The metadata of a sketch, which may be anybody's. Raises Malformed, or Unsupported where another
    version wrote it."""
    data = parse_object(text, f"{where}: metadata of the sketch", Malformed)
    if data.get("version") != VERSION:
        said = repr(data.get("version"))[:20]
        what = f"a sketch of version {said}, and this clair reads version {VERSION}"
        raise Unsupported(f"{where}: {what}; sketch it again")
    try:
        head = decode(Head, data)
    except ValueError as error:
        raise Malformed(f"{where}: metadata of the sketch: {error}; sketch it again") from None
    head.check(where)
    return head


def described(head: Head, tensors: Mapping[str, TensorSpec], where: str) -> Described:
    """What the tensors hold by this metadata. Raises Malformed, ShapeMismatch."""
    updates: dict[str, UpdateSpec] = {}
    for module in head.modules:
        if module.name in updates:
            raise Malformed(f"{where}: {module.name[:200]!r} occurs twice; sketch it again")
        updates[module.name] = _update(module, head.kind, tensors, where)
    full = {
        name.removesuffix(".full"): FullSpec(name, spec.shape, spec.dtype)
        for name, spec in tensors.items()
        if name.endswith(".full") and spec.dtype in FLOATS
    }
    used = {t for u in updates.values() for t in u.tensors.values()}
    if odd := sorted(tensors.keys() - used - {f.tensor for f in full.values()}):
        raise Malformed(f"{where}: tensor {odd[0][:200]!r} is none of a sketch; sketch it again")
    for name, spec in full.items():
        if math.prod(spec.shape) > WHOLE:
            raise Malformed(f"{where}: {name[:200]!r} is too large for a sketch; sketch it again")
    notes = tuple(Reason("CLR115", f"not in the sketch: {said[:500]}") for said in head.left_out)
    traits = {str(name): str(word) for name, word in head.traits.items()}
    return Described(updates, {"sketch": head}, head.base, notes, traits, full)


def _update(
    module: SketchedModule, kind: Sketching, tensors: Mapping[str, TensorSpec], where: str
) -> UpdateSpec:
    what = f"{where}: {module.name[:200]!r}"
    names = {side: f"{module.name}.{side}" for side in ("left", "right")}
    if not tensors.keys() >= set(names.values()):
        raise ShapeMismatch(f"{what} has no left or no right side; sketch it again")
    left, right = (tensors[name] for name in names.values())
    rows = (min(kind.size, module.d_out), min(kind.size, module.d_in))
    columns = left.shape[-1] if left.shape else 0
    fits = left.shape == (rows[0], columns) and right.shape == (rows[1], columns)
    most = min(module.rank, kind.size, module.d_out, module.d_in)
    if not fits or not 1 <= columns <= max(most, 1) or {left.dtype, right.dtype} != {"F16"}:
        text = f"sides {list(left.shape)} and {list(right.shape)} of {left.dtype}, {right.dtype}"
        of = f"{module.d_out} x {module.d_in} of rank {module.rank} at {kind}"
        raise ShapeMismatch(f"{what} has {text}, which are none of {of}; sketch it again")
    if not 0 <= module.norm <= LARGEST:
        raise Malformed(f"{what} has the norm {module.norm}; sketch it again")
    return UpdateSpec(
        d_out=module.d_out,
        d_in=module.d_in,
        rank=module.rank,
        scale=module.norm,
        dtype="F16",
        tensors=names,
        rule="sketch",
        sketch=kind,
    )


def read_update(
    adapter: Adapter, module: str, dtype: DtypeName = "auto", device: str = "cpu"
) -> LowRankUpdate:
    """The sides of a module's sketch: up (p, r), down (r, q), and the norm of the update as scale.

    Raises SketchUnusable where the sides cannot be those of an update of that norm. NaN passes through.
    """
    import torch

    from clair_cli.linalg import moved
    from clair_cli.update import LowRankUpdate

    spec = adapter.updates[module]
    kind = torch.float64 if dtype == "float64" else torch.float32
    left, right = (
        moved(read_tensor(adapter, name), device).to(kind) for name in spec.tensors.values()
    )
    found = LowRankUpdate(left, right.T, spec.scale)
    assert spec.sketch is not None
    check_energy(
        found, spec, spec.sketch, f"{adapter.tensors[spec.file_key].file}: {module[:200]!r}"
    )
    return found


def check_energy(found: LowRankUpdate, spec: UpdateSpec, kind: Sketching, what: str) -> None:
    """Raises SketchUnusable where the sides are not those of an update of norm 1, or 0 for the norm 0.

    `spec` gives the shape, and `found` the norm as its scale. Every bucket takes ceil(d / p) rows, so
    that no sketch has more than that times the energy, per side.
    """
    from clair_cli.linalg import finite
    from clair_cli.update import LowRankUpdate, energy

    if not (finite(found.up) and finite(found.down)):
        return
    share = energy(LowRankUpdate(found.up.double(), found.down.double()))
    if found.scale == 0:
        if share == 0:
            return
        raise SketchUnusable(f"{what} has the norm 0 and sides that are not; sketch it again")
    sides = [d for d in (spec.d_out, spec.d_in) if d > kind.size]
    most = math.prod(-(-d // kind.size) for d in sides)
    stray = 1 + STRAY / math.sqrt(kind.size) if sides else 1.0
    if not (1 - TOLERANCE) / stray <= share <= (1 + TOLERANCE) * min(most, stray):
        text = f"{what} has {share:.3g} of the energy that it names, which no honest sketch has"
        raise SketchUnusable(f"{text}; sketch it again, with another --seed")


def norm(adapter: Adapter, module: str) -> float:
    """||Delta W||_F of one module, as the sketch says it. Raises NonFinite, SketchUnusable."""
    factors.check_finite(adapter, module)
    read_update(adapter, module)
    return adapter.updates[module].scale


def document(head: Head, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """The file of a sketch, of tensors name -> dtype, shape, bytes. Equal sketches are equal files."""
    shapes = {name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()}
    top, begins = lay_out(shapes, {"format": KIND, "sketch": json.dumps(asdict(head))})
    ordered: Sequence[str] = sorted(begins, key=lambda name: begins[name])
    return top + b"".join(tensors[name][2] for name in ordered)


def new_head(
    adapter: Adapter,
    kind: Sketching,
    modules: Sequence[SketchedModule],
    left_out: Sequence[str],
) -> Head:
    """The metadata of a sketch of `adapter`."""
    every = {f.sha256: f for one in (adapter, *adapter.replicates) for f in one.files.values()}
    return Head(
        version=VERSION,
        tool=f"clair {__version__}",
        size=kind.size,
        seed=kind.seed,
        client=adapter.client,
        base=adapter.base,
        format=adapter.format,
        traits=dict(adapter.traits),
        files=tuple(SourceFile(f.name, f.size, f.sha256) for f in every.values()),
        modules=tuple(modules),
        left_out=tuple(left_out),
    )


def sources(adapter: Adapter) -> frozenset[str]:
    """The sha256 of the files of tensors that an adapter is, or that its sketch was made of."""
    head = adapter.config.get("sketch")
    if isinstance(head, Head):
        return head.sources
    return frozenset(f.sha256 for name, f in adapter.files.items() if name != CONFIG)


def _refuse(adapter: Adapter, *_: Any, **__: Any) -> NoReturn:
    text = "a sketch can be judged, and not refined; give the adapter, or set it aside with --exact"
    raise Unstorable(f"{adapter.client}: {text}")


FORMAT = FactoredFormat(
    name="sketch",
    recognises=recognises,
    describe=describe,
    read=read_update,
    norm=norm,
    writer=_refuse,
    summary=True,
    check_start=_refuse,
)
