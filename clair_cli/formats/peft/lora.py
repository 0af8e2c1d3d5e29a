"""PEFT LoRA checkpoints: which tensors make which update, and the scale by the config."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clair_cli.cohort import Adapter, FullSpec, Start, TensorSpec, UpdateSpec
from clair_cli.errors import (
    ChangedWhileRead,
    ConfigInvalid,
    LimitExceeded,
    ShapeMismatch,
    Unreadable,
    UnsafePath,
    Unstorable,
    Unsupported,
)
from clair_cli.formats.containers import Contents, Described, container, not_judged, read_tensor
from clair_cli.formats.factors import FactorsWriter, stored_dtype
from clair_cli.formats.files import opened, pread, read_range
from clair_cli.formats.interface import FactoredFormat
from clair_cli.formats.layout import CONFIG, WEIGHTS
from clair_cli.formats.peft.config import BASE_CHANGING_INIT, LoraConfig, parse_config
from clair_cli.formats.peft.keys import (
    BIAS,
    FACTOR_NAME,
    PREFIX,
    UNUSED,
    Parameters,
    canonical_key,
    find_factors,
    owner,
)
from clair_cli.formats.peft.patterns import ends_in, exactly
from clair_cli.formats.peft.types import check_type
from clair_cli.formats.peft.whole import find_trained_whole
from clair_cli.formats.remote import arrive
from clair_cli.formats.safetensors_file import stored
from clair_cli.output.publish import write_bytes
from clair_cli.settings import Settings
from clair_cli.strict_json import parse_object

MAX_UPDATES = 2**17
"""Three times what the largest mixtures of experts have."""

MAX_README_BYTES = 2**20
REPEATED_INIT = ("pissa", "olora")
"""PEFT computes the same again, of the same base weights and rank."""
TRAINING = {"eva_config", "velora_config", "monteclora_config"}
"""Fields that matter while training alone."""


def describe(contents: Contents, settings: Settings) -> Described:
    """The updates of a PEFT adapter. Raises the kinds of AdapterError."""
    tensors, data = contents.tensors, contents.config
    check_type(data, CONFIG)
    modules = find_factors(tensors, contents.where, settings)
    if data is None and settings.alpha is None:
        text = f"{CONFIG}: missing, so the scale is unknown; give one with --adapter-config, or --alpha"
        raise ConfigInvalid(text)
    config = LoraConfig("--alpha", None, settings.alpha or 0.0)
    if data is not None:
        config = parse_config(data, CONFIG, settings.alpha, settings.differences)
    notes = [*config.notes, *config.check_modules(modules)]
    updates: dict[str, UpdateSpec] = {}
    for module, names in modules.items():
        if not _grouped(tensors[names["B"]], tensors[names["A"]]):
            updates |= _updates(module, names, tensors, config)
            updates |= _magnitude(module, names, tensors, config)
            if len(updates) > MAX_UPDATES:
                raise LimitExceeded(f"{contents.where}: more than {MAX_UPDATES} updates of experts")
    if not updates:
        text = f"{contents.where}: only convolutions in groups, whose updates are no matrices"
        raise Unsupported(f"{text}; adapt other modules too")
    once = _counted_once(updates, contents) if config.tied else updates
    completed = _completed(data or {}, once, settings.alpha)
    used = {name: t for name, t in tensors.items() if not UNUSED.fullmatch(name)}
    full = find_trained_whole(used, once, data or {})
    notes += not_judged(used, once, full)
    return Described(once, completed, config.base, tuple(notes), _traits(config), full)


def _traits(config: LoraConfig) -> dict[str, str]:
    scaling = "alpha / sqrt(r)" if config.rslora else "alpha / r"
    variant = {"variant": "DoRA"} if config.dora else {}
    task = {"task_type": config.task} if config.task else {}
    return {"peft_type": "LORA", "init": config.init, "scaling": scaling} | variant | task


def _grouped(b: TensorSpec, a: TensorSpec) -> bool:
    """A convolution in groups: each sees a part of the rank, and PEFT itself cannot merge it."""
    return len(a.shape) > 2 and a.shape[0] != b.shape[1] and a.shape[0] % b.shape[1] == 0


def _updates(
    module: str, names: Mapping[str, str], tensors: Mapping[str, TensorSpec], config: LoraConfig
) -> dict[str, UpdateSpec]:
    """One update, or one per expert."""
    b, a = tensors[names["B"]], tensors[names["A"]]
    what = f"{a.file}: tensor {names['A']!r}"
    if b.shape[1] != a.shape[0] or len(b.shape) != len(a.shape) or set(b.shape[2:]) - {1}:
        text = f"{what} has shape {list(a.shape)} and {names['B']!r} {list(b.shape)}"
        raise ShapeMismatch(f"{text}; their ranks must agree: save the adapter again")
    parts = _experts(module, a.shape[0], config, what)
    rank = a.shape[0] // parts
    start = Start.MOVED_BASE if config.init.startswith(BASE_CHANGING_INIT) else Start.ZERO
    spec = UpdateSpec(
        d_out=b.shape[0],
        d_in=math.prod(a.shape[1:]),
        rank=rank,
        scale=config.scale_of(module, rank),
        dtype=stored_dtype((b.dtype, a.dtype)),
        tensors={"B": names["B"], "A": names["A"]},
        start=start,
    )
    if parts == 1:
        return {module: spec}
    return {
        f"{module}[{e}]": replace(spec, rule="experts", part=e, parts=parts) for e in range(parts)
    }


def _experts(module: str, rows: int, config: LoraConfig, what: str) -> int:
    """How many updates lie in tensors of so many `rows`: one but for wrapped parameters."""
    rank = config.rank_of(module)
    if rank is None and owner(module).rpartition(".")[2] == "experts":
        text = f"{config.where}: without r {what} cannot be parted into its experts"
        raise ConfigInvalid(f"{text}; put the config of this very adapter beside it")
    if rank in (None, rows):
        return 1
    if not config.is_parameter(module) or rows % rank:
        text = f"{what} has rank {rows}, {config.where} says {rank}"
        raise ShapeMismatch(f"{text}; put the config of this very adapter beside it")
    if rows // rank > MAX_UPDATES:
        raise LimitExceeded(f"{what} holds more than {MAX_UPDATES} updates of experts")
    return rows // rank


def _magnitude(
    module: str, names: Mapping[str, str], tensors: Mapping[str, TensorSpec], config: LoraConfig
) -> dict[str, UpdateSpec]:
    """DoRA's lengths of the rows of W + Delta W, one column: near those of W, which all share."""
    if not config.dora and "m" not in names:
        return {}
    spec = tensors[names.get("m", names["B"])]
    if not config.dora or "m" not in names:
        found, says = ("has", "without") if "m" in names else ("has no", "with")
        text = f"{spec.file}: {module!r} {found} lora_magnitude_vector, {config.where} is {says}"
        raise ShapeMismatch(f"{text} use_dora; put the config of this very adapter beside it")
    return {
        f"{module}.lora_magnitude_vector": UpdateSpec(
            d_out=math.prod(spec.shape),
            d_in=1,
            rank=1,
            scale=1.0,
            dtype=spec.dtype,
            tensors={"m": names["m"]},
            rule="column",
            start=Start.MAGNITUDE,
        )
    }


def _counted_once(
    updates: Mapping[str, UpdateSpec], contents: Contents
) -> Mapping[str, UpdateSpec]:
    """Without the head's update where it is the embedding's, turned: it is written back with that."""
    import numpy as np

    def values(name: str) -> Any:
        spec = contents.tensors[name]
        return container(spec.file).read_values(contents.files[spec.file], name, spec)

    embeddings = [m for m, s in updates.items() if ".lora_embedding_B" in s.tensors["B"]]
    if len(embeddings) != 1:
        return updates
    own = updates[embeddings[0]]
    turned = (own.d_in, own.d_out, own.rank, own.scale)
    heads = [m for m, s in updates.items() if (s.d_out, s.d_in, s.rank, s.scale) == turned]
    if len(heads) != 1 or heads == embeddings:
        return updates
    head = updates[heads[0]].tensors
    for mine, theirs in (("A", "B"), ("B", "A")):
        if not np.array_equal(values(own.tensors[mine]), values(head[theirs]).T, equal_nan=True):
            return updates
    again = {f"head.{role}": name for role, name in head.items()}
    both = replace(own, rule="tied", tensors={**own.tensors, **again})
    return {m: both if m == embeddings[0] else s for m, s in updates.items() if m != heads[0]}


def _completed(
    data: Mapping[str, Any], updates: Mapping[str, UpdateSpec], alpha: float | None
) -> dict[str, Any]:
    """The config with what the command line added, so that the adapter can be written with it."""
    if data:
        return dict(data) if data.get("lora_alpha") is not None else {**data, "lora_alpha": alpha}
    ranks = [spec.rank for spec in updates.values()]
    common = max(set(ranks), key=lambda r: (ranks.count(r), r))
    odd = {re.escape(owner(m)): spec.rank for m, spec in updates.items() if spec.rank != common}
    return {
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": alpha,
        "rank_pattern": odd,
        "target_modules": sorted({owner(m) for m in updates}),
    }


# --- written back


class PeftWriter(FactorsWriter):
    """Writes a PEFT LoRA folder.

    Without `ranks` the config keeps its bytes; with them r = lora_alpha = the largest, and patterns
    name the modules that have another rank or scale: read alike by loaders that know no rsLoRA.
    """

    def __init__(
        self,
        adapter: Adapter,
        folder: Path,
        modules: Sequence[str],
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        check_start(adapter, bool(ranks))
        super().__init__(adapter, folder, modules, ranks)
        self.config = _with_ranks(adapter, self.ranks) if self.ranks else _kept(adapter)

    def file_name(self) -> str:
        """The file name that PEFT loads."""
        return WEIGHTS

    def spread(self, ranks: Mapping[str, int]) -> dict[str, int]:
        """All that PEFT wraps in one module gets one rank: the file does not tell which is which."""
        found: dict[str, int] = {}
        for module, rank in ranks.items():
            found[owner(module)] = max(found.get(owner(module), 0), rank)
        updates = self.adapter.updates.items()
        return {m: found[owner(m)] for m, s in updates if owner(m) in found and s.rule != "column"}

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Without what was of use in training alone, where its shape would follow the rank."""
        found = super().shapes()
        return {n: s for n, s in found.items() if not (self.ranks and UNUSED.fullmatch(n))}

    def _written_scale(self, spec: FullSpec) -> float:
        """1 where the scale goes into the factors, and the bias with them."""
        return 1.0 if self._module_of_bias(spec.tensor) in self.ranks else spec.scale

    def _module_of_bias(self, name: str) -> str:
        """Of a tensor that is the bias of lora_B; of others the empty name."""
        bias = BIAS.fullmatch(canonical_key(name))
        return bias[1].removeprefix(PREFIX) if bias else ""

    def passed(self, name: str) -> Iterable[bytes | bytearray]:
        """A bias of lora_B takes the scale along where that goes into the factors."""
        data, module = super().passed(name), self._module_of_bias(name)
        scale = self.adapter.updates[module].scale if module in self.ranks else 1.0
        if scale == 1:
            return data
        values = read_tensor(self.adapter, name) * scale
        return [stored(values, self.adapter.tensors[name].dtype, name)]

    def key(self, name: str) -> str:
        """Without what wrappers put in front, which PEFT would drop in silence."""
        return canonical_key(name)

    def beside(self) -> None:
        """Write the config and the model card."""
        write_bytes(self.folder / CONFIG, self.config)
        if (readme := read_readme(self.adapter)) is not None:
            write_bytes(self.folder / "README.md", readme)


def check_start(adapter: Adapter, ranks: bool) -> None:
    """Raises OutputError where PEFT would not start from the same weights when it loads the adapter."""
    moved = any(s.start is Start.MOVED_BASE for s in adapter.updates.values())
    init = adapter.traits["init"] if moved else ""
    if moved and (ranks or init not in REPEATED_INIT):
        why = (
            "is made anew for every rank: keep ranks"
            if init in REPEATED_INIT
            else "is not repeated"
        )
        text = f"{adapter.client}: the start by {init} {why} when PEFT loads the adapter"
        raise Unstorable(
            f"{text}; convert the input with PEFT's path_initial_model_for_weight_conversion"
        )


def _kept(adapter: Adapter) -> bytes:
    """The config's own bytes, unless the command line had to complete what they say."""
    file = adapter.files.get(CONFIG)
    if file is not None:
        data = bytes(read_range(file, 0, file.size))
        if parse_object(data, CONFIG, ConfigInvalid) == adapter.config:
            return data
    return _dumped(adapter.config)


def _dumped(config: Mapping[str, Any]) -> bytes:
    return json.dumps(config, indent=2).encode() + b"\n"


def _with_ranks(adapter: Adapter, ranks: Mapping[str, int]) -> bytes:
    """The config giving modules in `ranks` that rank and scale 1, all others what they had."""
    r = max(ranks.values())
    parameters = Parameters(adapter.config.get("target_parameters") or ())
    found, alphas = {}, {}
    for module, spec in adapter.updates.items():
        if spec.rule == "column":  # a magnitude has no rank
            continue
        head = _module(spec.tensors["head.A"]) if spec.rule == "tied" else module
        for name in (*parameters.names_of(module), *parameters.names_of(head)):
            found[name] = ranks.get(module, spec.rank)
            alphas[name] = ranks.get(module, spec.scale * spec.rank)
    config = {k: v for k, v in adapter.config.items() if k not in TRAINING} | {
        "r": r,
        "lora_alpha": r,
        "use_rslora": False,
        "init_lora_weights": True,
        "rank_pattern": exactly(found, r),
        "alpha_pattern": exactly(alphas, r),
    }
    modules = {
        owner(_module(n)) for n in adapter.tensors if FACTOR_NAME.fullmatch(canonical_key(n))
    }
    return _dumped(
        config | _targets(adapter.config, {m for m in modules if parameters.names_of(m) == (m,)})
    )


def _module(key: str) -> str:
    """Of a tensor that is a factor."""
    match = FACTOR_NAME.fullmatch(canonical_key(key))
    assert match is not None
    return match[1].removeprefix(PREFIX)


def _targets(config: Mapping[str, Any], modules: Collection[str]) -> dict[str, Any]:
    """target_modules that cover every module: PEFT drops the tensors of others in silence."""
    named = config.get("target_modules")
    limits = ("exclude_modules", "layers_to_transform", "layers_pattern")
    if not modules:
        return {}
    if isinstance(named, list) and not any(config.get(name) for name in limits):
        names = {t for t in named if isinstance(t, str)}
        if all(ends_in(module, names) for module in modules):
            return {}
    return {"target_modules": sorted(modules)} | {n: None for n in limits if n in config}


def read_readme(adapter: Adapter) -> bytes | None:
    """The model card in the adapter's own folder, if it is a plain file of a plausible size."""
    if adapter.card is None:
        return None
    try:
        arrive(adapter.card, next(iter(adapter.files.values())).origin)
        with opened(adapter.card, by_descriptor=True) as fd:
            data = bytes(pread(fd, 0, MAX_README_BYTES + 1))
    except (ChangedWhileRead, Unreadable, UnsafePath):
        return None
    return data if len(data) <= MAX_README_BYTES else None


def recognises(contents: Contents) -> bool:
    """Whatever no other format knows: PEFT's own errors say what is wrong with it."""
    return True


FORMAT = FactoredFormat(
    name="peft",
    recognises=recognises,
    describe=describe,
    writer=PeftWriter,
    served=True,
    check_start=check_start,
)
