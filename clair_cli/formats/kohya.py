"""LoRA files of kohya's sd-scripts, LyCORIS and ComfyUI: everything stands in one .safetensors file.

`<module>.lora_down.weight`, `.lora_up.weight` and, for LoCon with a Tucker core, `.lora_mid.weight`;
under `diffusion_model.` also `.lora_A.weight` and `.lora_B.weight`; `.hada_*` of LoHa and `.lokr_*` of
LoKr. The scale of a module is `.alpha` / r, and 1 where its alpha is absent or 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from clair_cli.cohort import TensorSpec, UpdateSpec
from clair_cli.errors import Unsupported
from clair_cli.formats.containers import Contents, Described, not_judged
from clair_cli.formats.factors import Group
from clair_cli.formats.interface import FactoredFormat
from clair_cli.formats.lora_pairs import (
    Modules,
    PairsWriter,
    alpha_scale,
    check_matrix,
    full_beside,
    gather,
    shaped,
    with_alpha,
)
from clair_cli.formats.peft.config import LoraConfig
from clair_cli.formats.peft.keys import PREFIX
from clair_cli.formats.peft.tuners import TUNERS, Module, check_whole, update_of
from clair_cli.formats.rules import RULES, Factors
from clair_cli.formats.safetensors_file import stored
from clair_cli.report import Reason
from clair_cli.settings import Settings

ROLES = {"lora_down": "A", "lora_A": "A", "lora_up": "B", "lora_B": "B", "lora_mid": "mid"}
PART = re.compile(
    r"(.+)\.(?:(lora_(?:down|up|mid|[AB]))\.weight|(alpha)|lora_(?:up|B)\.(bias)"
    r"|((?:hada|lokr)_[wt][12](?:_[ab])?))",
    re.DOTALL,
)
TUNED = {"hada": "LOHA", "lokr": "LOKR"}
NATIVE = re.compile(
    r"(?:lora_unet_|lora_te\d?_|lora_transformer_|lycoris_|diffusion_model\.).+"
    r"|.+\.(?:lora_(?:down|up|mid)\.weight|dora_scale)",
    re.DOTALL,
)
"""Names that nobody else uses."""

TRAIN = "train LoRA or LoCon"
FULL = "a file of nothing but differences is read with --as update"
REFUSED = {
    re.compile(rf".+\.(?:{pattern})", re.DOTALL): (what, remedy)
    for pattern, what, remedy in (
        (r"dora_scale|lora_magnitude_vector.*", "DoRA, which needs the base weights", TRAIN),
        (r"diff|diff_b|set_weight|reshape_weight", "full weights' differences", FULL),
        (r"oft_.*|rescale", "OFT, which multiplies the base weights", TRAIN),
        (r"on_input", "IA3, which multiplies the base weights", TRAIN),
        (r"(?:a1|a2|b1|b2|bm)\.weight", "GLoRA, which needs the base weights", TRAIN),
        (r"(?:lora|hada|lokr)_.*", "an adapter of a kind that is not known", TRAIN),
    )
}
"""The last part of a name -> what holds it, and what to do instead."""

HASHES = {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"}
"""Of the tensors that are replaced; programs look a file up by them."""
RANK_FIELDS = ("ss_network_dim", "ss_network_alpha")


def recognises(contents: Contents) -> bool:
    """By the names of the tensors; PEFT's have a prefix of their own."""
    names = contents.tensors
    return any(map(NATIVE.fullmatch, names)) and not any(n.startswith(PREFIX) for n in names)


def describe(contents: Contents, settings: Settings) -> Described:
    """The updates of a kohya, LyCORIS or ComfyUI file. Raises the kinds of AdapterError."""
    modules = find_modules(contents.tensors, contents.where)
    updates: dict[str, UpdateSpec] = {}
    zeros: list[str] = []
    for module, roles in modules.items():
        spec, dim = _shaped(module, roles, contents)
        if "alpha" in roles:
            scale = alpha_scale(contents, roles["alpha"], dim or 1)
            zeros += [] if scale else [roles["alpha"]]
            spec = replace(spec, scale=scale if scale and dim else 1.0)
        updates[module] = with_alpha(spec, roles, contents.tensors)
    kinds = sorted({spec.rule.upper() for spec in updates.values()})
    traits = {"peft_type": " and ".join(kinds), "scaling": "alpha / r"}
    base = contents.metadata.get("ss_base_model_version") or None
    full = full_beside(contents.tensors, updates, modules)
    notes = _notes(contents, modules, zeros, set(kinds))
    notes += not_judged(contents.tensors, updates, full)
    return Described(updates, {}, base, notes, traits, full)


def _shaped(module: str, roles: Mapping[str, str], contents: Contents) -> tuple[UpdateSpec, int]:
    """The update at scale 1, and what divides its alpha: 0 where LyCORIS ignores the alpha."""
    tensors = contents.tensors
    kinds = {role[:4] for role in roles if role not in ("alpha", "bias")} & TUNED.keys()
    if not kinds:
        spec = shaped(roles, tensors)
        return spec, spec.rank
    kind = TUNED[min(kinds)]
    names = {role.removeprefix(TUNERS[kind].prefix): key for role, key in roles.items()}
    names = {role: key for role, key in names.items() if role not in ("alpha", "bias")}
    for key in names.values():
        check_matrix(key, tensors[key])
    check_whole(names, TUNERS[kind], tensors)
    sizes = (
        tensors[names[role]].shape[axis]
        for role, axis in (("t1", 0), ("t2", 0), ("w1_a", 1), ("w2_a", 1))
        if role in names
    )
    dim = next(sizes, 0)
    found = Module(module, names, tensors, dim or 1)
    return update_of(kind, found, LoraConfig(contents.where, None, dim or 1.0)), dim


def find_modules(tensors: Mapping[str, TensorSpec], where: str) -> Modules:
    """Module -> role -> tensor name. Raises Unsupported for a tensor of another kind of adapter."""
    for key, spec in tensors.items():
        if not PART.fullmatch(key):
            for pattern, (what, remedy) in REFUSED.items():
                if pattern.fullmatch(key):
                    text = f"{spec.file}: tensor {key!r} belongs to {what}"
                    raise Unsupported(f"{text}; {remedy}, or leave this client out")
    found = gather(tensors, parsed)
    if not found:
        raise Unsupported(f"{where}: no lora_down and lora_up tensors; {TRAIN}")
    return found


def parsed(key: str) -> tuple[str, str] | None:
    """The module and the role of a tensor; None of one that is passed through."""
    match = PART.fullmatch(key)
    if match is None:
        return None
    module, factor, *others = match.groups()
    return module, ROLES[factor] if factor else next(filter(None, others))


def _notes(
    contents: Contents, modules: Modules, zeros: list[str], kinds: set[str]
) -> tuple[Reason, ...]:
    """What readers of such files do not agree on, or may have been lost."""
    found = []
    if zeros:
        text = f"tensor {zeros[0]!r} is 0, {len(zeros)} in all: read at scale 1, as trainers do"
        found.append(f"{text}; ComfyUI and diffusers take 0 for no update: store the rank")
    if bare := [module for module, roles in modules.items() if "alpha" not in roles]:
        text = f"{len(bare)} of {len(modules)} modules have no .alpha and are read at scale 1"
        found.append(f"{text}, as every loader does; if they had one, it was lost in saving")
    notes = [Reason("CLR105", f"{contents.where}: {text}") for text in found]
    if others := " and ".join(sorted(kinds - {"LORA"})):
        text = f"{contents.where}: {others}: refined modules are written as plain pairs"
        notes.append(Reason("CLR115", text))
    return tuple(notes)


# --- written back


class KohyaWriter(PairsWriter):
    """One .safetensors file of the client's own name, with what it says about its training.

    Tensors that hold no update but those of their own form, as a Tucker core or those of LoHa and LoKr,
    give way to a plain pair at scale 1, in the modules that are written.
    """

    parse = staticmethod(parsed)

    def spread(self, ranks: Mapping[str, int]) -> dict[str, int]:
        """With the modules that are written in another form, at the rank of their update."""
        own = {m: self.adapter.updates[m].rank for m in self.due if self._other_form(m)}
        return own | super().spread(ranks)

    def _other_form(self, module: str) -> bool:
        return RULES[self.adapter.updates[module].rule].store is None

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """With plain pairs in place of other forms."""
        found = super().shapes()
        for module in filter(self._other_form, self.ranks):
            spec = self.adapter.updates[module]
            for role in spec.tensors.keys() - {"alpha"}:
                del found[spec.tensors[role]]
            up, down = _pair(module)
            rank, kernel = self.ranks[module], self._kernel(module)
            found[up] = spec.dtype, (spec.d_out, rank, *(1 for _ in kernel))
            found[down] = spec.dtype, (rank, spec.d_in // math.prod(kernel), *kernel)
        return found

    def _kernel(self, module: str) -> tuple[int, ...]:
        """Of a convolution, where a tensor has it; without any, the file does not tell."""
        names = self.adapter.updates[module].tensors.values()
        kernels = [self.adapter.tensors[name].shape[2:] for name in names]
        return max(kernels, key=lambda kernel: (math.prod(kernel), len(kernel)))

    def metadata(self) -> Mapping[str, str]:
        """The client's own, without what is no longer true."""
        found = {k: v for k, v in self.adapter.metadata.items() if k not in HASHES}
        if self.ranks.keys() == self.adapter.updates.keys():
            rank = str(max(self.ranks.values()))
            found |= {name: rank for name in RANK_FIELDS if name in found}
        return found

    def _write(self, group: Group, held: Mapping[str, Factors | None]) -> None:
        (module,) = group
        if module not in self.ranks or not self._other_form(module):
            super()._write(group, held)
            return
        spec = self.adapter.updates[module]
        factors = held[module] or self._own(module)
        for name, factor in zip(_pair(module), factors, strict=True):
            self.out.write(name, stored(factor, spec.dtype, name))
        if alpha := spec.tensors.get("alpha"):
            self._pass(alpha)


def _pair(module: str) -> tuple[str, str]:
    """What up and down are called."""
    return f"{module}.lora_up.weight", f"{module}.lora_down.weight"


FORMAT = FactoredFormat(name="kohya", recognises=recognises, describe=describe, writer=KohyaWriter)
