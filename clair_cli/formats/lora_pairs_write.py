"""Pairs of LoRA factors written back, with the `.alpha` tensors beside them."""

from __future__ import annotations

from clair_cli.formats.containers import read_tensor
from clair_cli.formats.factors_write import FactorsWriter
from clair_cli.formats.lora_pairs import Parse, gather
from clair_cli.formats.safetensors_write import stored

EXACT = {"BF16": 2**8, "F16": 2**11, "F32": 2**24, "F64": 2**53}
"""Up to here every whole number is one of the dtype."""


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

    def passed(self, name: str) -> bytes | bytearray:
        """Its own bytes, or another alpha, or another bias."""
        import torch

        if name in self.alphas:
            rank, dtype = self.alphas[name]
            return stored(torch.tensor(rank), dtype, name)
        if self.biases.get(name, 1.0) != 1:
            bias = read_tensor(self.adapter, name) * self.biases[name]
            return stored(bias, self.adapter.tensors[name].dtype, name)
        return super().passed(name)
