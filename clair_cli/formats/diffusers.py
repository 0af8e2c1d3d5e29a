"""LoRA files of diffusers: pytorch_lora_weights.safetensors, of a pipeline or of one of its models.

Factors are `<module>.lora_A.weight` and `.lora_B.weight`, `.lora.down` and `.lora.up`,
`.lora_linear_layer.down` and `.up`, or of old `<name>_lora.down` and `.up`; a pipeline puts its
component (unet, transformer, text_encoder) in front. The scale is what `lora_adapter_metadata` in the
file's metadata says, else `.alpha` / r, else 1, as diffusers itself loads the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from clair_cli.cohort import TensorSpec, UpdateSpec
from clair_cli.errors import ConfigInvalid, LimitExceeded, ShapeMismatch, Unsupported
from clair_cli.formats.containers import MAX_CONFIG_BYTES, Contents, Described, not_judged
from clair_cli.formats.interface import FactoredFormat
from clair_cli.formats.lora_pairs import (
    Modules,
    PairsWriter,
    alpha_scale,
    full_beside,
    gather,
    shaped,
    with_alpha,
)
from clair_cli.formats.peft.config import LoraConfig, parse_config
from clair_cli.formats.peft.keys import PREFIX
from clair_cli.report import Reason
from clair_cli.settings import Settings
from clair_cli.strict_json import parse_object

FILE = "pytorch_lora_weights.safetensors"

PART = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<new>[AB])|(?:lora|lora_linear_layer)\.(?P<side>down|up))\.weight"
    r"|(?P<old>.+)_lora\.(?P<old_side>down|up)\.weight"
    r"|(?P<alpha>.+)\.alpha|(?P<bias>.+)\.lora_B\.bias",
    re.DOTALL,
)
OWN = re.compile(r".+(?:\.lora|_lora|\.lora_linear_layer)\.(?:down|up)\.weight", re.DOTALL)
COMPONENT = re.compile(
    r"(unet|text_encoder(?:_[23])?|transformer(?:_2)?(?=\.(?:single_)?transformer_blocks\.))\..+",
    re.DOTALL,
)
"""What only a pipeline of diffusers calls so: language models have a `transformer`, too."""

ROLES = {"A": "A", "B": "B", "down": "A", "up": "B"}
ENCODER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Old names of a text encoder's projections."""

METADATA = "lora_adapter_metadata"
DEFAULTS = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}
"""Of PEFT, whose LoraConfig diffusers makes of the metadata."""
MAX_COMPONENTS = 32
"""Models of one pipeline: several times what any has."""


def recognises(contents: Contents) -> bool:
    """By the metadata or the names of the tensors; a PEFT config beside plain names is PEFT's."""
    names = contents.tensors
    if any(name.startswith(PREFIX) for name in names) or contents.where.endswith(".npz"):
        return False
    if METADATA in contents.metadata or any(map(OWN.fullmatch, names)):
        return True
    named = contents.where == FILE or any(map(COMPONENT.fullmatch, names))
    return contents.config is None and named and any(".lora_A.weight" in name for name in names)


def describe(contents: Contents, settings: Settings) -> Described:
    """The updates of a file of diffusers. Raises the kinds of AdapterError."""
    modules = find_modules(contents.tensors, contents.where)
    updates = {m: shaped(roles, contents.tensors) for m, roles in modules.items()}
    if METADATA in contents.metadata:
        return _by_metadata(contents, modules, updates)
    updates, bare = _by_alphas(contents, modules, updates)
    text = f"{contents.where}: no alpha is stored for {len(bare)} of {len(modules)} modules"
    text += "; they are read at scale 1, as diffusers does: any other was lost in saving"
    notes = [Reason("CLR105", text)] if bare else []
    full = full_beside(contents.tensors, updates, modules)
    notes += not_judged(contents.tensors, updates, full)
    traits = {"peft_type": "LORA", "scaling": "alpha / r"}
    return Described(updates, {}, None, tuple(notes), traits, full)


# --- names


def find_modules(tensors: Mapping[str, TensorSpec], where: str) -> Modules:
    """Module -> role -> tensor name. Raises Unsupported for a tensor of another kind of adapter."""
    for key, spec in tensors.items():
        if not PART.fullmatch(key) and re.search(r"(?:^|[._])(?:lora|hada|lokr)[._]", key):
            kind = "DoRA, which needs the base weights" if "magnitude" in key else "another kind"
            text = f"{spec.file}: tensor {key!r} belongs to an adapter of {kind}"
            raise Unsupported(f"{text}; train plain LoRA, or leave this client out")
    found = gather(tensors, parsed)
    if not any({"A", "B"} & roles.keys() for roles in found.values()):
        raise Unsupported(f"{where}: no lora_A and lora_B tensors; train plain LoRA")
    return found


def parsed(key: str) -> tuple[str, str] | None:
    """The module, by its name in the model, and the role of a tensor; None of one passed through."""
    match = PART.fullmatch(key)
    if match is None:
        return None
    if match["old"]:
        return _renamed(match["old"]), ROLES[match["old_side"]]
    for role in ("alpha", "bias"):
        if match[role]:
            stem = re.sub(r"\.lora(?:_linear_layer)?$", "", match[role])
            old = stem.endswith("_lora")
            return (_renamed(stem.removesuffix("_lora")) if old else _plain(stem)), role
    return _plain(match["module"]), ROLES[match["new"] or match["side"]]


def _plain(module: str) -> str:
    """diffusers drops the name of the attention's processor."""
    return module.replace(".processor.", ".")


def _renamed(module: str) -> str:
    """attn1.processor.to_q, of to_q_lora, is attn1.to_q; self_attn.to_q of a text encoder q_proj."""
    above, _, name = _plain(module).rpartition(".")
    if module.startswith("text_encoder"):
        name = ENCODER.get(name, name)
    elif name == "to_out":
        name = "to_out.0"
    return f"{above}.{name}" if above else name


# --- scales


def _by_alphas(
    contents: Contents, modules: Modules, updates: Mapping[str, UpdateSpec]
) -> tuple[dict[str, UpdateSpec], list[str]]:
    """The updates at alpha / r, and the modules that have no alpha, whose component has none."""
    found, having = {}, set()
    for module, spec in updates.items():
        found[module] = spec
        if key := modules[module].get("alpha"):
            scale = alpha_scale(contents, key, spec.rank)
            if scale == 0:
                text = f"{contents.where}: tensor {key!r} is 0, which switches the update off"
                raise ConfigInvalid(f"{text}; store the alpha of training")
            found[module] = with_alpha(
                replace(spec, scale=scale), modules[module], contents.tensors
            )
            having.add(_component(module))
    bare = [module for module in modules if "alpha" not in modules[module]]
    for module in bare:
        if _component(module) in having:
            text = f"{contents.where}: {module!r} has no .alpha, others beside it have one"
            raise ConfigInvalid(f"{text}; save all of them, or none")
    return found, bare


def _component(module: str) -> str:
    match = COMPONENT.fullmatch(module)
    return match[1] if match else module.partition(".")[0]


def _by_metadata(
    contents: Contents, modules: Modules, updates: Mapping[str, UpdateSpec]
) -> Described:
    """The updates at the scales of the LoraConfig of each component."""
    where = f"{contents.where}: {METADATA}"
    if alphas := [roles["alpha"] for roles in modules.values() if "alpha" in roles]:
        text = f"tensor {alphas[0]!r} gives an alpha, too, which diffusers refuses"
        raise ConfigInvalid(f"{where}: {text}; keep one of them")
    data = read_metadata(contents.metadata[METADATA], where)
    found, bases, notes = dict(updates), [], list[Reason]()
    traits = {"peft_type": "LORA"}
    parted = components(data, updates)
    if len(parted) > MAX_COMPONENTS:
        text = f"modules of {len(parted)} models, the limit is {MAX_COMPONENTS}"
        raise LimitExceeded(f"{where}: {text}; keep the models of one pipeline")
    for component, names in parted.items():
        config = parse_config(fields(data, component), where, None)
        if config.dora:
            raise Unsupported(f"{where}: use_dora: DoRA needs the base weights; train plain LoRA")
        notes += [*config.notes, *config.check_modules(names.values())]
        bases += [config.base] if config.base else []
        traits |= {"init": config.init, "scaling": _scaling(config)}
        for module, name in names.items():
            found[module] = _scaled(updates[module], name, config)
    full = full_beside(contents.tensors, found, modules)
    notes += not_judged(contents.tensors, found, full)
    return Described(found, data, bases[0] if bases else None, tuple(notes), traits, full)


def _scaled(spec: UpdateSpec, name: str, config: LoraConfig) -> UpdateSpec:
    if (expected := config.rank_of(name)) not in (None, spec.rank):
        text = f"{config.where}: tensor {spec.file_key!r} has rank {spec.rank}, expected {expected}"
        raise ShapeMismatch(f"{text}; save the adapter again, with its own metadata")
    return replace(spec, scale=config.scale_of(name, spec.rank))


def _scaling(config: LoraConfig) -> str:
    return "alpha / sqrt(r)" if config.rslora else "alpha / r"


# --- the metadata


def read_metadata(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises ConfigInvalid."""
    data = text.encode()
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigInvalid(f"{where}: {len(data)} bytes, the limit is {MAX_CONFIG_BYTES}")
    return parse_object(data, where, ConfigInvalid)


def components(data: Mapping[str, Any], modules: Iterable[str]) -> dict[str, dict[str, str]]:
    """Component -> module -> its name there; "" is the component of a model's own file."""
    whole = any("." not in key for key in data)
    found: dict[str, dict[str, str]] = {}
    for module in modules:
        component, _, name = ("", "", module) if whole else module.partition(".")
        found.setdefault(component, {})[module] = name
    return found


def fields(data: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The LoraConfig of one component, completed as PEFT does."""
    prefix = f"{component}." if component else ""
    found = {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
    return DEFAULTS | found


def with_ranks(
    data: Mapping[str, Any], updates: Mapping[str, UpdateSpec], ranks: Mapping[str, int]
) -> dict[str, Any]:
    """The metadata giving modules in `ranks` that rank and scale 1, all others what they had."""
    found = dict(data)
    for component, names in components(data, updates).items():
        if not ranks.keys() & names.keys():
            continue
        r = max(ranks.get(m, updates[m].rank) for m in names)
        # "^" as diffusers writes it: without, proj_out is also the end of blocks.0.proj_out.
        ns = {f"^{re.escape(n)}": ranks.get(m, updates[m].rank) for m, n in names.items()}
        alphas = {
            f"^{re.escape(n)}": ranks.get(m, updates[m].scale * updates[m].rank)
            for m, n in names.items()
        }
        said = {
            "r": r,
            "lora_alpha": r,
            "use_rslora": False,
            "init_lora_weights": True,
            "eva_config": None,
            "rank_pattern": {k: n for k, n in ns.items() if n != r},
            "alpha_pattern": {k: a for k, a in alphas.items() if a != r},
        }
        prefix = f"{component}." if component else ""
        found |= {prefix + name: value for name, value in said.items()}
    return found


# --- written back


class DiffusersWriter(PairsWriter):
    """One .safetensors file of the client's own name; with `ranks` its metadata says them."""

    parse = staticmethod(parsed)

    def metadata(self) -> Mapping[str, str]:
        """The client's own, but for other ranks."""
        found = dict(self.adapter.metadata)
        if METADATA in found and self.ranks:
            data = with_ranks(self.adapter.config, self.adapter.updates, self.ranks)
            found[METADATA] = json.dumps(data, indent=2, sort_keys=True)
        return found


FORMAT = FactoredFormat(
    name="diffusers", recognises=recognises, describe=describe, writer=DiffusersWriter
)
