"""A PEFT LoRA folder written back: the template's names, dtypes and config, other updates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clair_cli.cohort import Adapter, UpdateSpec
from clair_cli.errors import ConfigInvalid, Unreadable, UnsafePath
from clair_cli.formats.factors_write import FactorsWriter
from clair_cli.formats.files import opened, pread, read_range
from clair_cli.formats.layout import CONFIG, WEIGHTS
from clair_cli.formats.peft_keys import canonical_key
from clair_cli.formats.strict_json import parse_object
from clair_cli.publish import write_bytes

MAX_README_BYTES = 2**20


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
        super().__init__(adapter, folder, modules, ranks)
        self.config = _with_ranks(adapter, self.ranks) if self.ranks else _kept(adapter)

    def file_name(self) -> str:
        """PEFT's own."""
        return WEIGHTS

    def key(self, name: str) -> str:
        """Without what wrappers put in front, which PEFT would drop in silence."""
        return canonical_key(name)

    def beside(self) -> None:
        """Config and model card."""
        write_bytes(self.folder / CONFIG, self.config)
        if (readme := read_readme(self.adapter)) is not None:
            write_bytes(self.folder / "README.md", readme)


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
    specs = adapter.updates.items()
    found = {m: ranks.get(m, s.rank) for m, s in specs}
    alphas = {m: ranks.get(m, s.scale * s.rank) for m, s in specs}
    config = {k: v for k, v in adapter.config.items() if k != "eva_config"} | {
        "r": r,
        "lora_alpha": r,
        "use_rslora": False,
        "init_lora_weights": True,
        "rank_pattern": {re.escape(m): n for m, n in found.items() if n != r},
        "alpha_pattern": {re.escape(m): a for m, a in alphas.items() if a != r},
    }
    return _dumped(config | _targets(adapter.config, adapter.updates))


def _targets(config: Mapping[str, Any], modules: Mapping[str, UpdateSpec]) -> dict[str, Any]:
    """target_modules that cover every module: PEFT drops the tensors of others in silence."""
    named = config.get("target_modules")
    limits = ("exclude_modules", "layers_to_transform", "layers_pattern")
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
