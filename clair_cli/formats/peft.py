"""PEFT LoRA checkpoints: which tensors make which update, and the scale by the config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clair_cli.cohort import TensorSpec, UpdateSpec
from clair_cli.errors import ConfigInvalid, ShapeMismatch
from clair_cli.formats.contents import Contents, Described
from clair_cli.formats.factors import stored_dtype
from clair_cli.formats.layout import CONFIG
from clair_cli.formats.peft_config import LoraConfig, parse_config
from clair_cli.formats.peft_keys import find_factors
from clair_cli.settings import Settings


def describe(contents: Contents, settings: Settings) -> Described:
    """The updates of a PEFT adapter. Raises the kinds of AdapterError."""
    tensors, data = contents.tensors, contents.config
    factors = find_factors(tensors, contents.where, settings)
    if data is None and settings.alpha is None:
        text = f"{CONFIG}: missing, so the scale is unknown; give one with --config, or --alpha"
        raise ConfigInvalid(text)
    config = LoraConfig("--alpha", None, settings.alpha or 0.0)
    if data is not None:
        config = parse_config(data, CONFIG, settings.alpha)
    notes = (*config.notes, *config.check_modules(factors))
    updates = {m: _update(m, *pair, tensors, config) for m, pair in factors.items()}
    completed = _completed(data or {}, updates, settings.alpha)
    traits = {"peft_type": "LORA", "scaling": "alpha / sqrt(r)" if config.rslora else "alpha / r"}
    return Described(updates, completed, config.base, notes, traits)


def _update(
    module: str, up: str, down: str, tensors: Mapping[str, TensorSpec], config: LoraConfig
) -> UpdateSpec:
    b, a = tensors[up], tensors[down]
    rank, what = a.shape[0], f"{a.file}: tensor {down!r}"
    if b.shape[1] != rank:
        text = f"{what} has shape {list(a.shape)} and {up!r} {list(b.shape)}"
        raise ShapeMismatch(f"{text}; their ranks must agree: save the adapter again")
    expected = config.rank_of(module)
    if expected not in (None, rank):
        text = f"{what} has rank {rank}, {config.where} says {expected}"
        raise ShapeMismatch(f"{text}; put the config of this very adapter beside it")
    dtype = stored_dtype((b.dtype, a.dtype))
    scale = config.scale_of(module, rank)
    return UpdateSpec(b.shape[0], a.shape[1], rank, scale, dtype, {"B": up, "A": down})


def _completed(
    data: Mapping[str, Any], updates: Mapping[str, UpdateSpec], alpha: float | None
) -> dict[str, Any]:
    """The config with what the command line added, so that the adapter can be written with it."""
    if data:
        return dict(data) if data.get("lora_alpha") is not None else {**data, "lora_alpha": alpha}
    ranks = [spec.rank for spec in updates.values()]
    common = max(set(ranks), key=lambda r: (ranks.count(r), r))
    odd = {re.escape(m): spec.rank for m, spec in updates.items() if spec.rank != common}
    return {
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": alpha,
        "rank_pattern": odd,
        "target_modules": sorted(updates),
    }
