"""A PEFT LoRA folder written back: the template's names, dtypes and config, other updates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clair_cli.cohort import Adapter, UpdateSpec
from clair_cli.errors import ConfigInvalid, OutputError, Unreadable, UnsafePath
from clair_cli.formats.files import opened, pread, read_range
from clair_cli.formats.layout import CONFIG, WEIGHTS
from clair_cli.formats.peft import read_update
from clair_cli.formats.peft_keys import canonical_key
from clair_cli.formats.safetensors_write import SafetensorsWriter, stored
from clair_cli.formats.strict_json import parse_object
from clair_cli.publish import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from clair_cli.stack import LowRankUpdate

MAX_README_BYTES = 2**20


class PeftWriter:
    """`adapter` with other updates of `modules`, into the empty `folder`, module by module.

    With `rank` None every module keeps its rank, and the config its bytes. With a number, every
    updated module is zero-padded to it and the scale is in the factors: r = lora_alpha = `rank` is
    read alike by loaders that know no patterns and no rsLoRA. All other modules and tensors keep
    their bytes. Raises OutputError where an update does not fit its module, or its
    numbers the stored dtype; ChangedWhileRead where the template changed.
    """

    def __init__(
        self, adapter: Adapter, folder: Path, modules: Sequence[str], rank: int | None = None
    ) -> None:
        for module in modules:
            if module not in adapter.updates:
                raise OutputError(f"{adapter.client}: no module {module!r} to write an update to")
        self.adapter, self.folder, self.rank = adapter, folder, rank
        self.due = set(modules)
        self.shapes = self._shapes(modules)
        shapes = {canonical_key(key): shape for key, shape in self.shapes.items()}
        self.file = SafetensorsWriter(folder / WEIGHTS, shapes)
        factors = {key for m in modules for key in self._keys(m)}
        for key in adapter.tensors.keys() - factors:
            spec = adapter.tensors[key]
            self._write(key, read_range(adapter.files[spec.file], spec.begin, spec.end))
        self.config = self._config(set(modules))

    def _keys(self, module: str) -> tuple[str, str]:
        spec = self.adapter.updates[module]
        return spec.up, spec.down

    def _shapes(self, modules: Sequence[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
        shapes = {key: (t.dtype, t.shape) for key, t in self.adapter.tensors.items()}
        for module in modules:
            spec = self.adapter.updates[module]
            n = spec.rank if self.rank is None else self.rank
            shapes[spec.up] = (shapes[spec.up][0], (spec.d_out, n))
            shapes[spec.down] = (shapes[spec.down][0], (n, spec.d_in))
        return shapes

    def _config(self, modules: set[str]) -> bytes:
        if self.rank is None:
            return _kept(self.adapter)
        return _dumped(_uniform(self.adapter, modules, self.rank))

    def _write(self, key: str, data: bytes | bytearray) -> None:
        self.file.write(canonical_key(key), data)

    def put(self, module: str, update: LowRankUpdate) -> None:
        """Write one module's update, once."""
        self.due.remove(module)
        spec = self.adapter.updates[module]
        up, down = _fitted(update, spec, module, self.rank)
        self._write(spec.up, stored(up, self.shapes[spec.up][0], spec.up))
        self._write(spec.down, stored(down, self.shapes[spec.down][0], spec.down))

    def keep(self, module: str) -> None:
        """Write one module as it was, byte for byte where its rank stays."""
        if self.rank is not None:
            self.put(module, read_update(self.adapter, module, "float64"))
            return
        self.due.remove(module)
        for key in self._keys(module):
            spec = self.adapter.tensors[key]
            self._write(key, read_range(self.adapter.files[spec.file], spec.begin, spec.end))

    def close(self) -> None:
        """Everything on disk, config and model card included."""
        if self.due:
            raise OutputError(f"{self.adapter.client}: no update was written for {min(self.due)!r}")
        self.file.close()
        write_bytes(self.folder / CONFIG, self.config)
        if (readme := _readme(self.adapter)) is not None:
            write_bytes(self.folder / "README.md", readme)

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""
        self.file.abandon()


def _fitted(
    update: LowRankUpdate, spec: UpdateSpec, module: str, rank: int | None
) -> tuple[Tensor, Tensor]:
    """up (d_out, n) and down (n, d_in) of the written rank n, for the scale the config states."""
    from torch.nn.functional import pad

    n, scale = (spec.rank, spec.scale) if rank is None else (rank, 1.0)
    r = update.down.shape[0]
    if update.up.shape != (spec.d_out, r) or update.down.shape != (r, spec.d_in) or r > n:
        raise OutputError(
            f"{module}: an update {tuple(update.up.shape)} @ {tuple(update.down.shape)} does not "
            f"fit {spec.d_out} x {spec.d_in} of rank {n}"
        )
    up = update.up if update.scale == scale else update.up * (update.scale / scale)
    return pad(up, (0, n - r)), pad(update.down, (0, 0, 0, n - r))


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


def _uniform(adapter: Adapter, updated: set[str], rank: int) -> dict[str, Any]:
    """The config giving updated modules rank `rank` and scale 1, all others what they had."""
    others = {m: s for m, s in adapter.updates.items() if m not in updated}
    alphas = {m: s.scale * s.rank for m, s in others.items()}
    config = {k: v for k, v in adapter.config.items() if k != "eva_config"} | {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "init_lora_weights": True,
        "rank_pattern": {re.escape(m): s.rank for m, s in others.items() if s.rank != rank},
        "alpha_pattern": {re.escape(m): a for m, a in alphas.items() if a != rank},
    }
    return config | _targets(adapter.config, adapter.updates)


def _targets(config: Mapping[str, Any], modules: Mapping[str, UpdateSpec]) -> dict[str, Any]:
    """target_modules that cover every module: PEFT drops the tensors of others in silence."""
    named = config.get("target_modules")
    limits = ("exclude_modules", "layers_to_transform", "layers_pattern")
    if isinstance(named, list) and not any(config.get(name) for name in limits):
        ends = tuple(f".{t}" for t in named)
        if all(f".{module}".endswith(ends) for module in modules):
            return {}
    return {"target_modules": sorted(modules)} | {n: None for n in limits if n in config}


def _readme(adapter: Adapter) -> bytes | None:
    """The model card in the adapter's own folder, if it is a plain file of a plausible size."""
    try:
        with opened(adapter.path / "README.md") as fd:
            data = bytes(pread(fd, 0, MAX_README_BYTES + 1))
    except (Unreadable, UnsafePath):
        return None
    return data if len(data) <= MAX_README_BYTES else None
