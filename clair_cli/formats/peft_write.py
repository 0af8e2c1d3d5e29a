"""A PEFT LoRA folder written back: the template's names, dtypes and config, other updates."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from clair_cli.cohort import Adapter, Start
from clair_cli.errors import ConfigInvalid, OutputError, Unreadable, UnsafePath
from clair_cli.formats.containers import read_tensor
from clair_cli.formats.factors_write import FactorsWriter
from clair_cli.formats.files import opened, pread, read_range
from clair_cli.formats.layout import CONFIG, WEIGHTS
from clair_cli.formats.patterns import exactly
from clair_cli.formats.peft_keys import (
    BIAS,
    FACTOR,
    PREFIX,
    UNUSED,
    canonical_key,
    names_of,
    owner,
)
from clair_cli.formats.safetensors_write import stored
from clair_cli.formats.strict_json import parse_object
from clair_cli.output.publish import write_bytes

MAX_README_BYTES = 2**20
REPEATED_INIT = ("pissa", "olora")
"""PEFT computes the same again, of the same base weights and rank."""
TRAINING = {"eva_config", "velora_config", "monteclora_config"}
"""Fields that matter while training alone."""


class PeftWriter(FactorsWriter):
    """A PEFT LoRA folder.

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
        """PEFT's own."""
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

    def passed(self, name: str) -> bytes | bytearray:
        """A bias of lora_B takes the scale along where that goes into the factors."""
        data, bias = super().passed(name), BIAS.fullmatch(canonical_key(name))
        module = bias[1].removeprefix(PREFIX) if bias else ""
        scale = self.adapter.updates[module].scale if module in self.ranks else 1.0
        if scale == 1:
            return data
        return stored(
            read_tensor(self.adapter, name) * scale, self.adapter.tensors[name].dtype, name
        )

    def key(self, name: str) -> str:
        """Without what wrappers put in front, which PEFT would drop in silence."""
        return canonical_key(name)

    def beside(self) -> None:
        """Config and model card."""
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
        raise OutputError(
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
    parameters = adapter.config.get("target_parameters") or ()
    found, alphas = {}, {}
    for module, spec in adapter.updates.items():
        if spec.rule == "column":  # a magnitude has no rank
            continue
        head = _module(spec.tensors["head.A"]) if spec.rule == "tied" else module
        for name in (*names_of(module, parameters), *names_of(head, parameters)):
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
    modules = {owner(_module(n)) for n in adapter.tensors if FACTOR.fullmatch(canonical_key(n))}
    return _dumped(
        config | _targets(adapter.config, {m for m in modules if names_of(m, parameters) == (m,)})
    )


def _module(key: str) -> str:
    """Of a tensor that is a factor."""
    match = FACTOR.fullmatch(canonical_key(key))
    assert match is not None
    return match[1].removeprefix(PREFIX)


def _targets(config: Mapping[str, Any], modules: Collection[str]) -> dict[str, Any]:
    """target_modules that cover every module: PEFT drops the tensors of others in silence."""
    named = config.get("target_modules")
    limits = ("exclude_modules", "layers_to_transform", "layers_pattern")
    if not modules:
        return {}
    if isinstance(named, list) and not any(config.get(name) for name in limits):
        ends = tuple(f".{t}" for t in named)
        if all(f".{module}".endswith(ends) for module in modules):
            return {}
    return {"target_modules": sorted(modules)} | {n: None for n in limits if n in config}


def read_readme(adapter: Adapter) -> bytes | None:
    """The model card in the adapter's own folder, if it is a plain file of a plausible size."""
    try:
        with opened(adapter.path / "README.md") as fd:
            data = bytes(pread(fd, 0, MAX_README_BYTES + 1))
    except (Unreadable, UnsafePath):
        return None
    return data if len(data) <= MAX_README_BYTES else None
