"""PEFT LoRA checkpoints: opened by their headers and config, read one module at a time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from clair_cli.cohort import Adapter, InputFile, TensorSpec, UpdateSpec
from clair_cli.errors import ConfigInvalid, Malformed, NonFinite, ShapeMismatch
from clair_cli.formats.files import hash_file, pread
from clair_cli.formats.layout import CONFIG, Layout
from clair_cli.formats.peft_config import MAX_CONFIG_BYTES, LoraConfig, parse_config
from clair_cli.formats.peft_keys import find_factors
from clair_cli.formats.safetensors_file import read_header, read_tensor
from clair_cli.formats.strict_json import parse_object
from clair_cli.settings import DtypeName, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from clair_cli.stack import LowRankUpdate


def open_peft(layout: Layout, client: str, settings: Settings) -> Adapter:
    """One adapter from its headers and its config. Raises the kinds of AdapterError."""
    files, tensors = _read_headers(layout, settings)
    factors = find_factors(tensors, layout.weights[0][0], settings)
    data: dict[str, Any] = {}
    config = LoraConfig("--alpha", None, settings.alpha or 0.0)
    if layout.config is not None:
        files[CONFIG], data = hash_file(layout.config, CONFIG, _read_config)
        config = parse_config(data, CONFIG, settings.alpha)
    elif settings.alpha is None:
        text = f"{CONFIG}: missing, so the scale is unknown; give one with --config, or --alpha"
        raise ConfigInvalid(text)
    notes = (*layout.notes, *config.notes, *config.check_modules(factors))
    updates = {m: _update(m, *pair, tensors, config) for m, pair in factors.items()}
    return Adapter(
        client=client,
        path=layout.path,
        format="peft",
        digest=_digest(files, updates),
        updates=updates,
        tensors=tensors,
        files=files,
        config=_completed(data, updates, settings.alpha),
        base=config.base,
        notes=notes,
    )


def _read_config(fd: int, size: int) -> dict[str, Any]:
    if size > MAX_CONFIG_BYTES:
        raise ConfigInvalid(f"{CONFIG}: {size} bytes, the limit is {MAX_CONFIG_BYTES}")
    return parse_object(pread(fd, 0, size), CONFIG, ConfigInvalid)


def _read_headers(
    layout: Layout, settings: Settings
) -> tuple[dict[str, InputFile], dict[str, TensorSpec]]:
    files: dict[str, InputFile] = {}
    tensors: dict[str, TensorSpec] = {}
    for name, path in layout.weights:
        look = partial(read_header, where=name, settings=settings)
        files[name], found = hash_file(path, name, look)
        for key in tensors.keys() & found.keys():
            text = f"{name}: tensor {key!r} is also in {tensors[key].file}"
            raise Malformed(f"{text}; keep the shards of one saving")
        tensors |= found
    return files, tensors


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
    dtype = "F64" if "F64" in (a.dtype, b.dtype) else b.dtype
    scale = config.scale_of(module, rank)
    return UpdateSpec(b.shape[0], a.shape[1], rank, scale, dtype, up, down)


def _digest(files: Mapping[str, InputFile], updates: Mapping[str, UpdateSpec]) -> str:
    """Equal for equal tensors and scales, wherever they lie and whatever else the config says."""
    weights = sorted(f.sha256 for name, f in files.items() if name != CONFIG)
    scales = sorted((module, spec.scale.hex()) for module, spec in updates.items())
    return hashlib.sha256(json.dumps([weights, scales]).encode()).hexdigest()


def _completed(
    data: dict[str, Any], updates: Mapping[str, UpdateSpec], alpha: float | None
) -> dict[str, Any]:
    """The config with what the command line added, so that the adapter can be written with it."""
    if data:
        return data if data.get("lora_alpha") is not None else data | {"lora_alpha": alpha}
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


def read_update(
    adapter: Adapter, module: str, dtype: DtypeName = "auto", device: str = "cpu"
) -> LowRankUpdate:
    """Delta W of one module as up (d_out, r), down (r, d_in) and scale.

    "auto" is float64 where a factor is stored as float64, else float32, which holds float16 and
    bfloat16 exactly. Raises ChangedWhileRead; does not look for NaN (see `check_finite`).
    """
    import torch

    from clair_cli.stack import LowRankUpdate

    spec = adapter.updates[module]
    wanted = ("float64" if spec.dtype == "F64" else "float32") if dtype == "auto" else dtype
    up, down = (
        _read(adapter, name).to(device=device, dtype=getattr(torch, wanted))
        for name in (spec.up, spec.down)
    )
    return LowRankUpdate(up, down, spec.scale)


def _read(adapter: Adapter, name: str) -> Tensor:
    spec = adapter.tensors[name]
    return read_tensor(adapter.files[spec.file], name, spec)


def check_finite(adapter: Adapter, module: str) -> None:
    """Raises NonFinite, naming the first place, where a stored factor of `module` is NaN or Inf."""
    import torch

    spec = adapter.updates[module]
    for name in (spec.down, spec.up):
        tensor = _read(adapter, name)
        bad = ~torch.isfinite(tensor)
        if count := int(bad.sum()):
            nans, first = int(torch.isnan(tensor).sum()), torch.nonzero(bad)[0].tolist()
            text = f"tensor {name!r} holds {nans} NaN and {count - nans} Inf, the first at {first}"
            text += "; retrain it, or leave this client out"
            raise NonFinite(f"{adapter.tensors[name].file}: {text}")
