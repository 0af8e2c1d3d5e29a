"""PEFT LoRA checkpoints: which tensors make which update, and the scale by the config."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from clair_cli.cohort import Start, TensorSpec, UpdateSpec
from clair_cli.errors import ConfigInvalid, LimitExceeded, ShapeMismatch, Unsupported
from clair_cli.formats.containers import container
from clair_cli.formats.contents import Contents, Described
from clair_cli.formats.factors import stored_dtype
from clair_cli.formats.layout import CONFIG
from clair_cli.formats.peft_config import BASE_CHANGING_INIT, LoraConfig, parse_config
from clair_cli.formats.peft_keys import UNUSED, find_factors, owner
from clair_cli.formats.peft_types import check_type
from clair_cli.report import Reason
from clair_cli.settings import Settings

MAX_UPDATES = 2**17
"""Three times what the largest mixtures of experts have."""


def describe(contents: Contents, settings: Settings) -> Described:
    """The updates of a PEFT adapter. Raises the kinds of AdapterError."""
    tensors, data = contents.tensors, contents.config
    check_type(data, CONFIG)
    modules = find_factors(tensors, contents.where, settings)
    if data is None and settings.alpha is None:
        text = f"{CONFIG}: missing, so the scale is unknown; give one with --config, or --alpha"
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
    notes += _not_judged(tensors, once)
    return Described(once, completed, config.base, tuple(notes), _traits(config))


def _traits(config: LoraConfig) -> dict[str, str]:
    scaling = "alpha / sqrt(r)" if config.rslora else "alpha / r"
    variant = {"variant": "DoRA"} if config.dora else {}
    return {"peft_type": "LORA", "init": config.init, "scaling": scaling} | variant


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


def _not_judged(
    tensors: Mapping[str, TensorSpec], updates: Mapping[str, UpdateSpec]
) -> list[Reason]:
    """A note on the matrices beside the updates; vectors go without saying."""
    used = {name for spec in updates.values() for name in spec.tensors.values()}
    passed = [
        k
        for k, t in tensors.items()
        if k not in used and len(t.shape) > 1 and not UNUSED.fullmatch(k)
    ]
    if not passed:
        return []
    return [Reason("CLR115", f"not judged and passed through: {_listed(passed)}")]


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(map(repr, keys[:3])) + more


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
