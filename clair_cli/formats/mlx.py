"""mlx-lm adapters: which tensors make which update, and the one rank and scale of the config.

Delta W (d_out, d_in) = scale * (lora_a @ lora_b)^T with lora_a (d_in, r) and lora_b (r, d_out). A layer
of E experts has lora_a (E, r, d_in) and lora_b (E, d_out, r): E updates. A layer that fuses several
matrices has lora_a.0, lora_a.1, ...: an update each.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clair_cli.cohort import Adapter, TensorSpec, UpdateSpec
from clair_cli.errors import AdapterError, ConfigInvalid, LimitExceeded, ShapeMismatch, Unsupported
from clair_cli.formats.containers import Contents, Described
from clair_cli.formats.factors import FactorsWriter, stored_dtype
from clair_cli.formats.files import read_range
from clair_cli.formats.interface import FactoredFormat
from clair_cli.formats.layout import CONFIG
from clair_cli.formats.peft.lora import read_readme
from clair_cli.formats.safetensors_file import FLOATS
from clair_cli.output.publish import write_bytes
from clair_cli.settings import Settings

FACTOR_NAME = re.compile(r"(.+)\.lora_([ab])(?:\.([0-9]{1,9}))?", re.DOTALL)
MAX_UPDATES = 100_000
"""Twice what 58 layers of 256 experts have."""
AGAIN = "save the adapter again, whole"


def recognises(contents: Contents) -> bool:
    """Whether names or config are mlx-lm's."""
    config = contents.config or {}
    own = "peft_type" not in config and not {"fine_tune_type", "lora_parameters"}.isdisjoint(config)
    return own or any(map(FACTOR_NAME.fullmatch, contents.tensors))


def describe(contents: Contents, settings: Settings) -> Described:
    """The updates of an mlx-lm adapter. Raises the kinds of AdapterError."""
    rank, scale, base = _parameters(contents.config)
    updates: dict[str, UpdateSpec] = {}
    for module, sides in _pairs(contents.tensors).items():
        for name, spec in _updates(module, sides, contents.tensors, rank, scale):
            if name in updates:
                raise ShapeMismatch(f"{contents.where}: two updates are called {name!r}; {AGAIN}")
            if len(updates) == MAX_UPDATES:
                raise LimitExceeded(f"{contents.where}: more than {MAX_UPDATES} updates of experts")
            updates[name] = spec
    if not updates:
        text = f"{contents.where}: no lora_a and lora_b tensors"
        raise Unsupported(f"{text}; read full weights with --as weights --base FILE")
    for name, tensor in contents.tensors.items():
        if max(tensor.shape) > settings.max_dim:
            text = f"{tensor.file}: tensor {name!r} has shape {list(tensor.shape)}"
            raise LimitExceeded(f"{text}, the limit is {settings.max_dim} per dimension")
    traits = {"peft_type": "LORA", "scaling": "scale"}
    return Described(updates, dict(contents.config or {}), base, traits=traits)


def _parameters(config: Mapping[str, Any] | None) -> tuple[int, float, str | None]:
    """Rank, scale and base model. Raises ConfigInvalid, and Unsupported on other than plain LoRA."""
    if config is None:
        text = f"{CONFIG}: missing, so the scale is unknown"
        raise ConfigInvalid(
            f"{text}; put mlx-lm's own beside the adapter, or give it with --adapter-config"
        )
    kind = config.get("fine_tune_type", "lora")
    if kind == "full":
        text = f"{CONFIG}: fine_tune_type 'full': whole weights, no LoRA"
        raise Unsupported(f"{text}; read them with --as weights --base FILE")
    if kind != "lora":
        text = f"{CONFIG}: fine_tune_type {str(kind)[:40]!r} is not 'lora'"
        raise Unsupported(f"{text}; train with --fine-tune-type lora")
    stated, base = config.get("lora_parameters"), config.get("model")
    if not isinstance(stated, dict):
        raise _wrong("lora_parameters", "an object with rank and scale", stated)
    if not isinstance(base, str | None):
        raise _wrong("model", "a string", base)
    rank, scale, alpha = (stated.get(name) for name in ("rank", "scale", "alpha"))
    if type(rank) is not int or rank < 1:
        raise _wrong("lora_parameters.rank", "a positive integer", rank)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise _wrong("lora_parameters.scale", "a positive number", scale)
    if alpha not in (None, rank):
        text = (
            f"{CONFIG}: lora_parameters.alpha: by old versions of mlx-lm the scale is scale * alpha"
        )
        raise ConfigInvalid(
            f"{text} / rank, by others scale; store the one of training, drop alpha"
        )
    return rank, float(scale), base or None


def _wrong(name: str, expected: str, found: object) -> ConfigInvalid:
    return ConfigInvalid(f"{CONFIG}: {name}: expected {expected}, found {str(found)[:40]!r}")


def _pairs(tensors: Mapping[str, TensorSpec]) -> dict[str, dict[str, str]]:
    """Module -> "a", "b" -> tensor name. Raises Unsupported on any other, which mlx-lm refuses too."""
    found: dict[str, dict[str, str]] = {}
    for name, spec in tensors.items():
        if match := FACTOR_NAME.fullmatch(name):
            part = "" if match[3] is None else f"[{match[3]}]"
            found.setdefault(match[1] + part, {})[match[2]] = name
        else:
            kind = "a magnitude of DoRA" if name.endswith(".m") else "no lora_a or lora_b"
            text = f"{spec.file}: tensor {name!r} is {kind}, and mlx-lm's LoRA has nothing else"
            raise Unsupported(f"{text}; train with --fine-tune-type lora")
    return found


def _updates(
    module: str,
    sides: Mapping[str, str],
    tensors: Mapping[str, TensorSpec],
    rank: int,
    scale: float,
) -> Iterator[tuple[str, UpdateSpec]]:
    """The one update of a layer, or one per expert, named `module[e]`."""
    if len(sides) == 1:
        ((side, name),) = sides.items()
        text = f"{tensors[name].file}: tensor {name!r} has no lora_{'ab'[side == 'a']} beside it"
        raise ShapeMismatch(f"{text}; {AGAIN}")
    a, b = tensors[sides["a"]], tensors[sides["b"]]
    for name, t in ((sides["a"], a), (sides["b"], b)):
        if t.dtype not in FLOATS:
            raise Unsupported(f"{t.file}: tensor {name!r} is {t.dtype}; re-save it as float32")
    dims = len(a.shape)
    if 0 in (*a.shape, *b.shape) or dims not in (2, 3) or len(b.shape) != dims:
        raise _misfit(sides, a, b, f"of rank {rank}")
    (d_in, r), (s, d_out) = a.shape[-2:], b.shape[-2:]
    if dims == 3:
        d_in, r, s, d_out = r, d_in, d_out, s
    if (r, s) != (rank, rank) or a.shape[:-2] != b.shape[:-2]:
        raise _misfit(sides, a, b, f"of rank {rank}, as {CONFIG} says")
    dtype, names = stored_dtype((b.dtype, a.dtype)), {"b": sides["b"], "a": sides["a"]}
    if dims == 2:
        yield module, UpdateSpec(d_out, d_in, rank, scale, dtype, names, "mlx")
        return
    parts = a.shape[0]
    for e in range(parts):
        spec = UpdateSpec(d_out, d_in, rank, scale, dtype, names, "mlx_experts", e, parts)
        yield f"{module}[{e}]", spec


def _misfit(sides: Mapping[str, str], a: TensorSpec, b: TensorSpec, rank: str) -> AdapterError:
    text = f"tensors {sides['a']!r} {list(a.shape)} and {sides['b']!r} {list(b.shape)}"
    return ShapeMismatch(f"{a.file}: {text} are no factors {rank}; {AGAIN}")


# --- written back


class MlxWriter(FactorsWriter):
    """An mlx-lm folder.

    Without `ranks` the config keeps its bytes. mlx-lm has one rank and one scale for all modules:
    with `ranks` every module gets the largest, and scale 1.
    """

    def __init__(
        self,
        adapter: Adapter,
        folder: Path,
        modules: Sequence[str],
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(adapter, folder, modules, ranks)
        file = adapter.files[CONFIG]
        self.config = bytes(read_range(file, 0, file.size))
        if self.ranks:
            stated = {k: v for k, v in adapter.config["lora_parameters"].items() if k != "alpha"}
            stated |= {"rank": max(self.ranks.values()), "scale": 1.0}
            config = {**adapter.config, "lora_parameters": stated}
            self.config = json.dumps(config, indent=4).encode() + b"\n"

    def spread(self, ranks: Mapping[str, int]) -> dict[str, int]:
        """One rank for every module, the largest of those given and of those that stay."""
        if not ranks:
            return {}
        updates = self.adapter.updates
        return dict.fromkeys(updates, max(ranks.get(m, s.rank) for m, s in updates.items()))

    def file_name(self) -> str:
        """The file name that mlx-lm loads."""
        return "adapters.safetensors"

    def metadata(self) -> Mapping[str, str]:
        """The metadata that mlx itself writes."""
        return {"format": "mlx"}

    def beside(self) -> None:
        """Write the config and the model card."""
        write_bytes(self.folder / CONFIG, self.config)
        if (readme := read_readme(self.adapter)) is not None:
            write_bytes(self.folder / "README.md", readme)


FORMAT = FactoredFormat(name="mlx", recognises=recognises, describe=describe, writer=MlxWriter)
