"""Pairs of LoRA factors by the names in their own file, and the `.alpha` tensors that scale them.

Delta W (d_out, d_in) = scale * up @ down with down (r, in[, kernel]) and up (d_out, r[, 1 ...]); the
kernel of a convolution is flattened into d_in = in * kernel. With a Tucker core mid (r, r, kernel),
down is (r, in[, 1 ...]) and d_in the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from clair_cli.cohort import FullSpec, TensorSpec, UpdateSpec
from clair_cli.errors import ConfigInvalid, NonFinite, ShapeMismatch, Unsupported
from clair_cli.formats.containers import Contents, container, find_full, read_tensor
from clair_cli.formats.factors import FactorsWriter, stored_dtype
from clair_cli.formats.files import read_range
from clair_cli.formats.safetensors_file import FLOATS, stored

Parse = Callable[[str], "tuple[str, str] | None"]
"""A tensor's name -> its module and its role: "B" (up), "A" (down), "mid", "alpha" or "bias" (of up)."""
Modules = Mapping[str, Mapping[str, str]]
"""Module -> role -> name of the tensor."""
INTEGERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1}
"""Trainers that are given a whole alpha may store it as such."""

EXACT = {"BF16": 2**8, "F16": 2**11, "F32": 2**24, "F64": 2**53}
"""Up to here every whole number is one of the dtype."""


def gather(tensors: Mapping[str, TensorSpec], parse: Parse) -> dict[str, dict[str, str]]:
    """Module -> role -> tensor name, in file order. ShapeMismatch where two tensors have one role."""
    found: dict[str, dict[str, str]] = {}
    for key, spec in tensors.items():
        if (said := parse(key)) is not None:
            module, role = said
            roles = found.setdefault(module, {})
            if role in roles:
                text = f"{spec.file}: tensors {roles[role]!r} and {key!r} both stand for {module!r}"
                raise ShapeMismatch(f"{text}; keep one adapter per file")
            roles[role] = key
    return found


def shaped(roles: Mapping[str, str], tensors: Mapping[str, TensorSpec]) -> UpdateSpec:
    """The update of one module, at scale 1. Raises ShapeMismatch or Unsupported."""
    for role, what in {"B": "up", "A": "down"}.items():
        if role not in roles:
            key = next(iter(roles.values()))
            text = f"{tensors[key].file}: tensor {key!r} has no {what} factor beside it"
            raise ShapeMismatch(f"{text}; save the adapter again, whole")
    factors = {role: key for role, key in roles.items() if role in ("B", "A", "mid")}
    for key in factors.values():
        check_matrix(key, tensors[key])
    up, down = tensors[roles["B"]], tensors[roles["A"]]
    rank, kernel = down.shape[0], down.shape[2:]
    wrong = up.shape[1] != rank or max(up.shape[2:], default=1) > 1
    if "mid" in roles:
        mid = tensors[roles["mid"]]
        wrong = wrong or mid.shape[:2] != (rank, rank) or max(kernel, default=1) > 1
        kernel = mid.shape[2:]
    if wrong:
        text = ", ".join(f"{key!r} {list(tensors[key].shape)}" for key in factors.values())
        raise ShapeMismatch(f"{up.file}: shapes contradict each other: {text}; save it again")
    d_in = down.shape[1] * math.prod(kernel)
    dtype = stored_dtype([tensors[key].dtype for key in factors.values()])
    rule = "locon" if "mid" in roles else "lora"
    return UpdateSpec(up.shape[0], d_in, rank, 1.0, dtype, {"B": roles["B"], **factors}, rule)


def with_alpha(
    spec: UpdateSpec, roles: Mapping[str, str], tensors: Mapping[str, TensorSpec]
) -> UpdateSpec:
    """With its alpha among its tensors, unless that is no float, which no rule reads."""
    key = roles.get("alpha")
    if key is None or tensors[key].dtype not in FLOATS:
        return spec
    return replace(spec, tensors={**spec.tensors, "alpha": key})


def full_beside(
    tensors: Mapping[str, TensorSpec], updates: Mapping[str, UpdateSpec], modules: Modules
) -> dict[str, FullSpec]:
    """What was trained whole; the bias of an up factor counts with its module's scale."""
    found = find_full(tensors, updates)
    for module, roles in modules.items():
        if (bias := roles.get("bias")) in found:
            found[bias] = replace(found[bias], scale=updates[module].scale)
    return found


def check_matrix(key: str, spec: TensorSpec) -> None:
    """Raises ShapeMismatch or Unsupported unless the tensor holds floats in two or more dimensions."""
    what = f"{spec.file}: tensor {key!r}"
    if len(spec.shape) < 2 or 0 in spec.shape:
        text = (
            f"{what} has shape {list(spec.shape)}, expected a matrix or the kernel of a convolution"
        )
        raise ShapeMismatch(f"{text}; save the adapter again, whole")
    if spec.dtype not in FLOATS:
        raise Unsupported(f"{what} is {spec.dtype}; re-save it as float32")


def read_alpha(contents: Contents, key: str) -> float:
    """The one number of an `.alpha` tensor, not negative. Raises the kinds of AdapterError."""
    spec = contents.tensors[key]
    what = f"{spec.file}: tensor {key!r}"
    if math.prod(spec.shape) != 1:
        raise ShapeMismatch(f"{what} has shape {list(spec.shape)}, expected one number")
    file = contents.files[spec.file]
    if spec.dtype in INTEGERS:
        raw = read_range(file, spec.begin, spec.begin + INTEGERS[spec.dtype])
        alpha = float(int.from_bytes(raw, "little", signed=True))
    else:
        alpha = float(container(spec.file).read_values(file, key, spec).reshape(()))
    if not math.isfinite(alpha):
        raise NonFinite(f"{what} is {alpha}, so the scale is unknown; store the alpha of training")
    if alpha < 0:
        raise ConfigInvalid(f"{what} is {alpha:g}, expected a positive number; save it again")
    return alpha


def alpha_scale(contents: Contents, key: str, rank: int) -> float:
    """alpha / rank, which is 0 for an alpha of 0 alone. Raises what `read_alpha` does."""
    alpha = read_alpha(contents, key)
    if alpha and not alpha / rank:
        raise ConfigInvalid(f"{contents.where}: tensor {key!r} makes a scale that underflows to 0")
    return alpha / rank


# --- written back


class PairsWriter(FactorsWriter):
    """Modules in `ranks` get alpha = rank, which is scale 1, where they have an alpha at all; a bias
    takes the scale along.
    """

    parse: Parse

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Other ranks, and alphas of a dtype that holds them."""
        found = super().shapes()
        roles = gather(self.adapter.tensors, type(self).parse)
        self.alphas: dict[str, tuple[int, str]] = {}
        self.biases: dict[str, float] = {}
        for module, rank in self.ranks.items():
            if bias := roles[module].get("bias"):
                self.biases[bias] = self.adapter.updates[module].scale
            if alpha := roles[module].get("alpha"):
                dtype, shape = found[alpha]
                dtype = dtype if rank <= EXACT.get(dtype, 0) else "F32"
                found[alpha], self.alphas[alpha] = (dtype, shape), (rank, dtype)
        return found

    def _written_scale(self, spec: FullSpec) -> float:
        """1 where the scale goes into the factors, and the bias with them."""
        return 1.0 if spec.tensor in self.biases else spec.scale

    def passed(self, name: str) -> Iterable[bytes | bytearray]:
        """Its own bytes, or another alpha, or another bias."""
        import torch

        if name in self.alphas:
            rank, dtype = self.alphas[name]
            return [stored(torch.tensor(rank), dtype, name)]
        if self.biases.get(name, 1.0) != 1:
            bias = read_tensor(self.adapter, name) * self.biases[name]
            return [stored(bias, self.adapter.tensors[name].dtype, name)]
        return super().passed(name)
