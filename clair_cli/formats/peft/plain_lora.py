"""Updates of any form written as a plain PEFT LoRA folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clair_cli.cohort import Adapter, FullSpec, UpdateSpec
from clair_cli.errors import Unstorable
from clair_cli.formats.containers import read_pieces
from clair_cli.formats.factors import fitted, read_update
from clair_cli.formats.full import FullWriter
from clair_cli.formats.layout import CONFIG, WEIGHTS
from clair_cli.formats.peft.keys import PREFIX, canonical_key
from clair_cli.formats.peft.lora import read_readme
from clair_cli.formats.peft.patterns import exactly
from clair_cli.formats.safetensors_file import BITS, SafetensorsWriter, stored
from clair_cli.output.publish import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from clair_cli.update import LowRankUpdate

CARRIED = (
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "modules_to_save",
    "revision",
    "task_type",
    "trainable_token_indices",
)
"""Fields of a config that mean the same to every tuner."""


class LoraWriter(FullWriter):
    """`adapter` with other updates of `modules`, as plain LoRA, into the empty `folder`.

    Every module has scale 1, and the rank in `ranks`, else that of its update; dtypes stay those of
    its tensors, and tensors that no update is made of keep their bytes. Raises OutputError where an
    update does not fit its module, or its numbers the stored dtype; ChangedWhileRead.
    """

    def __init__(
        self,
        adapter: Adapter,
        folder: Path,
        modules: Sequence[str],
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        self.adapter, self.folder, self.due = adapter, folder, set(modules)
        self.ranks = {m: s.rank for m, s in adapter.updates.items()} | dict(ranks or {})
        used = {name for s in adapter.updates.values() for name in s.tensors.values()}
        passed = {n: t for n, t in adapter.tensors.items() if n not in used}
        shapes = {canonical_key(name): (t.dtype, t.shape) for name, t in passed.items()}
        for module, spec in adapter.updates.items():
            for side, shape in lora_shapes(adapter, spec, self.ranks[module]).items():
                shapes[_key(module, side)] = (spec.dtype, shape)
        self.out = SafetensorsWriter(folder / WEIGHTS, shapes)
        self.put_so_far = {}
        for name in passed.keys() - {spec.tensor for spec in adapter.full.values()}:
            self._pass(name)
        for module in adapter.updates.keys() - self.due:
            self._write(module, read_update(adapter, module, "float64"))

    def put(self, module: str, update: LowRankUpdate) -> None:
        """Write one module's update, once."""
        self.due.remove(module)
        self._write(module, update)

    def keep(self, module: str) -> None:
        """Write one module as it was, exactly but for rounding to the stored dtype."""
        self.put(module, read_update(self.adapter, module, "float64"))

    def _write(self, module: str, update: LowRankUpdate) -> None:
        spec = self.adapter.updates[module]
        up, down = fitted(update, spec, module, self.ranks[module])
        for side, factor in (("B", up), ("A", down)):
            key = _key(module, side)
            self.out.write(key, stored(factor, spec.dtype, key))

    def _pass(self, name: str) -> None:
        at = 0
        for piece in read_pieces(self.adapter, name):
            self.out.write(canonical_key(name), piece, at)
            at += len(piece)

    def _write_full(self, spec: FullSpec, begin: int, values: Tensor) -> None:
        data = stored(values, spec.dtype, spec.tensor)
        self.out.write(canonical_key(spec.tensor), data, begin * BITS[spec.dtype] // 8)

    def _pass_full(self, spec: FullSpec) -> None:
        self._pass(spec.tensor)

    def close(self) -> None:
        """Everything on disk, with config and model card beside it."""
        if self.due:
            raise Unstorable(f"{self.adapter.client}: no update was written for {min(self.due)!r}")
        self._finish_full()
        self.out.close()
        config = json.dumps(lora_config(self.adapter.config, self.ranks), indent=2)
        write_bytes(self.folder / CONFIG, config.encode() + b"\n")
        if (readme := read_readme(self.adapter)) is not None:
            write_bytes(self.folder / "README.md", readme)

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""
        self.out.abandon()


def _key(module: str, side: str) -> str:
    return f"{PREFIX}{module}.lora_{side}.weight"


def lora_shapes(adapter: Adapter, spec: UpdateSpec, rank: int) -> dict[str, tuple[int, ...]]:
    """Of lora_B and lora_A; of a convolution with its kernel where the tensors tell it."""
    shapes = {role: adapter.tensors[name].shape for role, name in spec.tensors.items()}
    role = max(shapes, key=lambda role: len(shapes[role]))
    kernel = shapes[role][2:]
    if kernel[1:] == (1,) and kernel[0] > 1 and role.startswith("t"):
        kernel = kernel[:1]  # PEFT stores the core of a one-dimensional convolution so
    inputs = spec.d_in
    for size in kernel:
        inputs //= size
    return {"B": (spec.d_out, rank, *(1 for _ in kernel)), "A": (rank, inputs, *kernel)}


def lora_config(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    """adapter_config.json of plain LoRA of these ranks, every scale 1, and of what `config` shares."""
    r = max(ranks.values())
    patterns = exactly(ranks, r)
    bias = config.get("bias")
    only = isinstance(bias, str) and bias.endswith("_only")
    return {name: config[name] for name in CARRIED if name in config} | {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": r,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": sorted(ranks),
        "bias": "lora_only" if only else "all" if bias == "all" else "none",
        "inference_mode": True,
    }
