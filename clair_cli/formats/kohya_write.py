"""A kohya, LyCORIS or ComfyUI file written back: the template's names and dtypes, other updates."""

from __future__ import annotations

import math
from collections.abc import Mapping

from clair_cli.formats.factors_write import Group
from clair_cli.formats.kohya import parsed
from clair_cli.formats.lora_pairs_write import PairsWriter
from clair_cli.formats.rules import RULES, Factors
from clair_cli.formats.safetensors_write import stored

HASHES = {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"}
"""Of the tensors that are replaced; programs look a file up by them."""
RANK_FIELDS = ("ss_network_dim", "ss_network_alpha")


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
            self.out.write(alpha, self.passed(alpha))


def _pair(module: str) -> tuple[str, str]:
    """What up and down are called."""
    return f"{module}.lora_up.weight", f"{module}.lora_down.weight"
