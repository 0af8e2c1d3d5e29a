"""Every knob, frozen and validated once, with the reason of its default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from clair_cli.accepted import Accept
from clair_cli.detection.calibration import DETECTION, DetectionCalibration
from clair_cli.errors import SettingError
from clair_cli.records import brief
from clair_cli.refinement.calibration import REFINEMENT, RefinementCalibration

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "float64"]
MIN_CLIENTS = 3
"""Of two clients that disagree nobody can tell which is the odd one."""
EngineName = Literal["local", "ray"]
LaterRound = Literal["note", "refuse"]
Modules = Literal["shared", "same"]
ReadAs = Literal["lora", "update", "weights"]
FailOn = Literal["suspicious", "minority", "contaminated", "broken", "never"]
Side = Literal["auto", "own", "left", "right", "client"]
Replicates = Literal["auto", "checkpoints", "none"]
Strength = float | Literal["auto"]
Tasks = Literal["auto", "same", "related", "own"]
Write = Literal["keep", "uniform", "compact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run may vary. Everything but the device, the threads and the paths is in the report."""

    # --- where and how to compute
    device: DeviceName = "auto"
    """cuda where there is one, else cpu."""
    dtype: DtypeName = "auto"
    """float32, or float64 where an adapter stores float64: products of bf16 are exact in float32."""
    threads: int = 0
    """Threads of the linear algebra; 0: one where modules are narrow, else as many as torch takes."""
    engine: EngineName = "local"
    """local: one module after the other, here. ray: adapters and modules as tasks of a cluster."""
    seed: int = 0
    """For all that is drawn, on the CPU, so that every device sees the same."""
    exact: bool = False
    """Compare clients by their whole updates however many they are: at work that grows with the square
    of the clients. Otherwise by sketches from `max_columns` columns on. Refine them by their whole mean,
    which is otherwise compressed."""

    cache: Path | None = None
    """A folder that keeps hashes, sketches and tables, so that what was read once is not read again. It
    may be removed at any moment, and changes no report."""
    cache_size: int = 10 * 2**30
    """Bytes that the cache may take: 1 000 adapters of 560 modules at rank 16 have 12 KB of sketches for
    each module, 7 GB in all. What was used longest ago goes first."""

    # --- what to read
    read_as: ReadAs = "lora"
    """lora: PEFT adapters. update: matrices that are the updates. weights: minus `base` they are."""
    base: Path | None = None
    """The base model's weights, a .safetensors or .npz file."""
    config: Path | None = None
    """An adapter_config.json for files that come without one."""
    alpha: float | None = None
    """lora_alpha for files that come without a config."""
    reference: Path | None = None
    """A PEFT adapter's folder that gives arrays without names (Flower) their names, config and scale."""
    since: Path | None = None
    """What the server sent before these adapters were trained: an adapter, or a folder of them, one a
    client. What each client changed since is judged and refined."""
    later_round: LaterRound = "note"
    """What adapters get that look like a later round's, without `since`: a note, or no verdict."""
    differences: bool = False
    """Read adapters whose init moved the base weights, too, by what clients differ in."""
    follow_symlinks: bool = False
    """Follow links that leave the folder; off, because the folder comes from strangers."""
    max_header_bytes: int = 8 * 2**20
    """A 70B adapter's header takes 0.2 MB; safetensors allows 100 MB, which costs 1.5 GB to parse."""
    max_file_bytes: int = 16 * 2**30
    """Ten times the adapter of a 70B model at rank 64; a sparse file can claim any size."""
    max_tensors: int = 20_000
    """Four times what a rank-adapted 400-layer model has."""
    max_dim: int = 2**20
    """Above the largest vocabulary in use."""
    max_elements: int = 2**29
    """Numbers in the factors of one update, 2 GiB in float32: twice the head of a vocabulary of 256 000
    at width 16 384 and rank 1024."""
    max_memory: int = 16 * 2**30
    """Bytes that reading one update of a client may take: 0.3 GB of a 70B adapter of rank 256."""
    client_timeout: float = 600.0
    """Seconds that opening a client may take, and that reading it may take beyond twice what half of all
    clients take. An adapter of a 70B model at rank 64 is 1.7 GB, which takes 170 s at 10 MB/s."""
    min_shared_modules: float = 0.5
    """A client adapting less than this share of the others' modules is not compared."""
    modules: Modules = "shared"
    """shared: compare on the modules that all clients adapt, and warn. same: a client whose modules are
    not those of most clients is broken, as for a round in which everybody had one config."""

    ignore: tuple[str, ...] = ()
    """Names in the folder that are no clients, as shell patterns: logs, *.bak."""

    detection: DetectionCalibration = DETECTION
    """The numbers that verdicts rest on."""
    fail_on: str = "contaminated"
    """What makes the exit code 1: one verdict for itself and all that is worse (suspicious, minority,
    contaminated, broken), several with commas for exactly these, or never."""
    baseline: Path | None = None
    """An earlier report: only findings that are not in it count for the exit code."""
    accept: tuple[Accept, ...] = ()
    """Decisions on clients whose findings do not count for the exit code."""

    history: Path | None = None
    """A ledger that keeps every client's evidence over the rounds, to which this one is added. Whom it
    convicts is contaminated for `fail_on` and for the refinement."""

    # --- refinement
    refinement: RefinementCalibration = REFINEMENT
    """The numbers that refined weights rest on."""
    subspace_rank: int | Literal["auto"] = "auto"
    """Directions per module in which a client keeps its own; auto: as many as carry its deviation."""
    strength: Strength = "auto"
    """0 keeps the local adapter, 1 moves all but the kept directions to the mean."""
    tasks: Tasks = "auto"
    """same: all clients do one task, and get its mean. related: in between. own: every client keeps its
    own, and only the error of the badly trained is averaged away. auto: guessed from the adapters."""
    path: tuple[Strength, ...] = ()
    """Several strengths, each into a folder of its own, to choose from on a client's own data."""
    side: Side = "auto"
    """Which directions a client keeps: its own strongest, by default; left or right ones that all share;
    or combinations of clients."""
    replicates: Replicates = "auto"
    """auto: sub-folders rep-* of a client are further adapters of it. checkpoints: its late ones."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    """Clients that count as benign, or do not, whatever the verdict."""
    refine_suspicious: bool = False
    """Suspicious clients get a refined adapter, too; they do not count in any mean."""
    weights: Path | None = None
    """Sample counts per client, for the means of the refinement. A claimed count buys no vote on who
    is contaminated."""
    rank: int | Literal["keep", "auto", "exact"] = "keep"
    """Rank of the adapters written: the client's, the least whose cut costs little, one for all, or
    whatever cuts nothing off."""
    global_rank: int | Literal["auto", "exact"] = "auto"
    """Rank of the mean: the least whose cut costs little, one that cuts nothing off, or a number."""
    write: Write = "keep"
    """keep: the client's own config and scales. uniform: one rank for all modules and scale 1,
    which every loader reads alike. compact: scale 1, each module its rank, by patterns."""
    allow_dora: bool = False
    """Refine B A of DoRA, whose update also depends on a magnitude that stays the client's own."""
    write_global: bool = False
    """Also write the mean of the benign clients."""
    overwrite: bool = False
    """Replace an output that clair wrote."""
    sign: Path | None = None
    """An Ed25519 private key that signs what was written, and what it was made from."""

    __repr__ = brief

    def __post_init__(self) -> None:
        for name, words in WORDS.items():
            _require(getattr(self, name) in words, name, " or ".join(words), getattr(self, name))
        for name in ("include", "exclude", "path", "ignore", "accept"):
            _require(isinstance(getattr(self, name), tuple), name, "a tuple", getattr(self, name))
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            fine = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
            _require(fine, name, f"a whole number from {least} to {most}", value)
        failing_verdicts(self.fail_on)
        self._check_reading()
        self._check_strength()
        for name, words in (
            ("rank", ("keep", "auto", "exact")),
            ("global_rank", ("auto", "exact")),
        ):
            rank = getattr(self, name)
            fine = rank in words or (isinstance(rank, int) and rank >= 1)
            _require(fine, name, f"{', '.join(words)}, or 1 and more", rank)
        if both := set(self.include) & set(self.exclude):
            raise SettingError(f"include: {min(both)!r} is in both, include and exclude")

    def _check_reading(self) -> None:
        """What to read: each kind of input knows only some of the choices."""
        seconds = self.client_timeout
        _require(0 < seconds < 1e9, "client_timeout", "a positive number of seconds", seconds)
        share = self.min_shared_modules
        _require(0 < share <= 1, "min_shared_modules", "in (0, 1]", share)
        _require(self.alpha is None or 0 < self.alpha < 1e6, "alpha", "positive", self.alpha)
        if self.base is None and self.read_as == "weights":
            raise SettingError("base: whole weights are read as what they add to the base model's")
        if self.base is not None and self.read_as != "weights":
            raise SettingError(f"base: is for reading weights, not for {self.read_as}")
        if self.reference is not None and self.read_as != "lora":
            raise SettingError(f"reference: names LoRA factors, which {self.read_as} has not")
        if self.alpha is not None and self.read_as != "lora":
            raise SettingError("alpha: plain matrices have no scale; leave it out")

    def _check_strength(self) -> None:
        """How much to average, and in which directions."""
        rank = self.subspace_rank
        fine = rank == "auto" or (isinstance(rank, int) and rank >= 0)
        _require(fine, "subspace_rank", "auto or 0 and more", rank)
        for name, given in (("strength", (self.strength,)), ("path", self.path)):
            for value in given:
                fine = value == "auto" or (isinstance(value, int | float) and 0 <= value <= 1)
                _require(fine, name, "auto or a number from 0 to 1", value)
        folders = {s if s == "auto" else f"{s:.6g}" for s in self.path}
        _require(len(folders) == len(self.path), "path", "no strength twice", self.path)
        if self.path and self.strength != "auto":
            raise SettingError("path: gives the strengths itself; leave strength out")

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values; what depends on the machine is left out."""
        apart = {"detection", "refinement", "accept"}  # the report has decisions apart
        names = [f.name for f in fields(self) if f.name not in MACHINE | apart]
        own = {name: getattr(self, name) for name in names}
        return own | self.detection.as_dict() | self.refinement.as_dict()


WORDS = {
    "device": get_args(DeviceName),
    "dtype": get_args(DtypeName),
    "engine": get_args(EngineName),
    "read_as": get_args(ReadAs),
    "modules": get_args(Modules),
    "later_round": get_args(LaterRound),
    "side": get_args(Side),
    "replicates": get_args(Replicates),
    "tasks": get_args(Tasks),
    "write": get_args(Write),
}
"""Settings that are one of some words."""
RANGES = {
    "threads": (0, 4096),
    "seed": (0, 2**63 - 1),
    "max_header_bytes": (8, 2**40),
    "max_file_bytes": (8, 2**60),
    "max_tensors": (1, 2**40),
    "max_dim": (1, 2**40),
    "max_elements": (1, 2**60),
    "max_memory": (1, 2**60),
    "cache_size": (0, 2**60),
}
"""Settings that are whole numbers, and from where to where."""
MACHINE = {
    "baseline",
    "history",
    "cache",
    "cache_size",
    "device",
    "threads",
    "engine",
    "config",
    "base",
    "reference",
    "since",
    "weights",
    "overwrite",
    "sign",
}
"""Settings that say where something is or where it is computed: not in the report."""


def failing_verdicts(fail_on: str) -> tuple[str, ...]:
    """The verdicts that a `fail_on` stands for, from bad to worse.

    One word is itself and all that is worse. With a comma it is exactly the words named. Raises
    SettingError for anything else.
    """
    words: tuple[str, ...] = get_args(FailOn)[:-1]
    if fail_on == "never":
        return ()
    if fail_on in words:
        return words[words.index(fail_on) :]
    several = isinstance(fail_on, str) and "," in fail_on
    named = [w.strip() for w in fail_on.removesuffix(",").split(",")] if several else []
    expected = f"{', '.join(words)} or never, or several of the first four with commas"
    _require(bool(named) and set(named) <= set(words), "fail_on", expected, fail_on)
    return tuple(w for w in words if w in named)


def canonical_gate(fail_on: str) -> str:
    """`fail_on` as every report writes it: one word, or the words of a set in their order.

    A set of one keeps its comma. Raises SettingError as `failing_verdicts` does.
    """
    named = failing_verdicts(fail_on)
    if "," not in fail_on:
        return fail_on
    return ",".join(named) + "," * (len(named) == 1)


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise SettingError(f"{name}: expected {expected}, got {value!r}")
