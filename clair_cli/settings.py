"""Every knob, frozen and validated once, with the reason of its default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from clair_cli.errors import UsageError

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "float64"]
MIN_CLIENTS = 3
"""Of two clients that disagree nobody can tell which is the odd one."""
Modules = Literal["shared", "same"]
ReadAs = Literal["lora", "update", "weights"]
FailOn = Literal["suspicious", "contaminated", "broken", "never"]
Side = Literal["auto", "own", "left", "right", "client"]
Replicates = Literal["auto", "checkpoints", "none"]
Strength = float | Literal["auto"]
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
    """Threads of the linear algebra; 0 leaves the choice to torch."""
    seed: int = 0
    """For the randomised range finder; drawn on the CPU, so that every device sees the same."""

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
    min_shared_modules: float = 0.5
    """A client adapting less than this share of the others' modules is not compared."""
    modules: Modules = "shared"
    """shared: compare on the modules that all clients adapt, and warn. same: a client whose modules are
    not those of most clients is broken, as for a round in which everybody had one config."""

    # --- decomposition (docs/method.md)
    max_shared_rank: int = 8
    """Directions per module offered to the shared subspace; breadth decides how many are used."""
    breadth: float = 0.75
    """Participation ratio from which on a direction counts as shared by the majority."""
    max_columns: int = 512
    """Columns of stacked factors kept exactly; beyond, a randomised range finder takes over."""
    max_iterations: int = 60
    """Trained cohorts need 5 to 35."""
    tolerance: float = 1e-6
    """Relative change of the objective at which the solver stops; verdicts settle near 1e-3."""

    # --- verdict (docs/method.md)
    limit: float = 3.0
    """Score from which on a client is contaminated; three robust standard deviations at least."""
    suspicious: float = 2.0
    """Score from which on a client is suspicious."""
    agreement_floor: float = 0.135
    """Honest clients came down to 0.68 of the usual agreement in cohorts of 8 and more."""
    direction_floor: float = 0.135
    """Honest clients came down to 0.66 of the usual cosine; half of the modules flipped is below 0."""
    norm_floor: float = 0.17
    """ln(1.67) / 3: a doubled alpha is beyond the limit, though two fifths of the clients have it."""
    small_norm_floor: float = 0.7
    """ln(8) / 3: a short training leaves a fifth of the norm and is honest."""
    rank_floor: float = 0.4
    """ln(3.3) / 3: ranks 4 to 16 mixed in one cohort are honest."""
    local_floor: float = 0.25
    """One module says little: over the worst quarter honest clients fell 0.55 short of the usual."""
    accord_floor: float = 0.2
    """Deviations of two honest clients have cosines up to 0.47, those of one backdoor 0.3 to 0.6."""
    duplicate: float = 0.1
    """Distance to the nearest client, relative to the usual one, below which it is a copy."""

    fail_on: FailOn = "contaminated"
    """The least verdict that makes the exit code 1; broken counts as above contaminated."""

    # --- refinement (docs/method.md)
    subspace_rank: int | Literal["auto"] = "auto"
    strength: Strength = "auto"
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
    rank: int | Literal["keep", "exact"] = "keep"
    write: Write = "keep"
    """keep: the client's own config and scales. uniform: one rank for all modules and scale 1,
    which every loader reads alike. compact: scale 1, each module its rank, by patterns."""
    allow_dora: bool = False
    """Refine B A of DoRA, whose update also depends on a magnitude that stays the client's own."""
    write_global: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        _require(self.device in get_args(DeviceName), "device", "auto, cpu or cuda", self.device)
        _require(self.dtype in get_args(DtypeName), "dtype", "auto, float32 or float64", self.dtype)
        if self.config is not None and not self.config.is_file():
            raise UsageError(f"--config: {str(self.config)!r} is not a file")
        _require(self.read_as in get_args(ReadAs), "as", "lora, update or weights", self.read_as)
        if self.base is None and self.read_as == "weights":
            raise UsageError("--as weights: give the base model's weights with --base FILE")
        if self.base is not None and self.read_as != "weights":
            raise UsageError(f"--base: is for --as weights, not for --as {self.read_as}")
        if self.base is not None and not self.base.is_file():
            text = "is not a file; give the file of weights, such as model.safetensors"
            raise UsageError(f"--base: {str(self.base)!r} {text}")
        if self.reference is not None and self.read_as != "lora":
            raise UsageError(f"--reference: names LoRA factors, not what --as {self.read_as} reads")
        if self.reference is not None and not self.reference.is_dir():
            raise UsageError(f"--reference: {str(self.reference)!r} is not a folder")
        _require(self.threads >= 0, "threads", "0 or more", self.threads)
        _require(self.alpha is None or 0 < self.alpha < 1e6, "alpha", "positive", self.alpha)
        if self.alpha is not None and self.read_as != "lora":
            raise UsageError(
                "--alpha: plain matrices have no scale; leave it out, or leave out --as"
            )
        _require(self.modules in get_args(Modules), "modules", "shared or same", self.modules)
        share = self.min_shared_modules
        _require(0 < share <= 1, "min_shared_modules", "in (0, 1]", share)
        _require(0 < self.breadth <= 1, "breadth", "in (0, 1]", self.breadth)
        _require(0 < self.suspicious < self.limit, "suspicious", "in (0, limit)", self.suspicious)
        _require(
            self.subspace_rank == "auto" or self.subspace_rank >= 0,
            "subspace-rank",
            "auto or 0 and more",
            self.subspace_rank,
        )
        for name in ("include", "exclude", "path"):
            _require(isinstance(getattr(self, name), tuple), name, "a tuple", getattr(self, name))
        for strength in (self.strength, *self.path):
            fine = strength == "auto" or 0 <= strength <= 1
            _require(fine, "strength", "auto or a number from 0 to 1", strength)
        folders = {s if s == "auto" else f"{s:.6g}" for s in self.path}
        _require(len(folders) == len(self.path), "path", "no strength twice", self.path)
        if self.path and self.strength != "auto":
            raise UsageError("--path: gives the strengths; leave --strength out")
        _require(self.side in get_args(Side), "side", " or ".join(get_args(Side)), self.side)
        kinds = get_args(Replicates)
        _require(self.replicates in kinds, "replicates", " or ".join(kinds), self.replicates)
        if both := set(self.include) & set(self.exclude):
            raise UsageError(f"--include and --exclude: {min(both)!r} is in both")
        _require(self.fail_on in get_args(FailOn), "fail-on", "a verdict or never", self.fail_on)
        fine = self.rank in ("keep", "exact") or (isinstance(self.rank, int) and self.rank >= 1)
        _require(fine, "rank", "keep, exact, or 1 and more", self.rank)
        _require(self.write in get_args(Write), "write", " or ".join(get_args(Write)), self.write)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values; what depends on the machine is left out."""
        left_out = {"device", "threads", "config", "base", "reference", "weights", "overwrite"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        option = name.replace("_", "-")
        raise UsageError(f"--{option}: expected {expected}, got {value!r}")
