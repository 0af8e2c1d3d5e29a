"""How stored tensors make the factors of an update, and where possible the way back.

Array arithmetic that numpy and torch share, so that an adapter can be looked at without torch. A rule
gives up (d_out, r) and down (r, d_in) without the scale. Every closed form is checked against the
library that trains such adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clair_cli.cohort import UpdateSpec

if TYPE_CHECKING:
    from torch import Tensor

Array = Any
"""numpy.ndarray or torch.Tensor."""
Parts = Mapping[str, Array]
Factors = tuple[Array, Array]


@dataclass(frozen=True, slots=True)
class Rule:
    """One closed form.

    `factors` makes up and down of one update. `store` is its inverse, for all updates that lie in
    the same tensors together; it keeps the row-major order, not the dimensions, which stay those of
    the file. `axes` says along which dimension of each tensor the rank runs. Without `store` the
    tensors cannot hold any low-rank update, and the adapter is written as plain LoRA.
    """

    factors: Callable[[Parts, UpdateSpec], Factors]
    store: Callable[[Sequence[Factors]], dict[str, Tensor]] | None = None
    axes: Mapping[str, int] = field(default_factory=dict)


def _lora(parts: Parts, spec: UpdateSpec) -> Factors:
    """B (d_out, r) A (r, d_in); of a convolution with its kernel flattened into d_in."""
    return parts["B"].reshape(spec.d_out, spec.rank), parts["A"].reshape(spec.rank, spec.d_in)


def _store_lora(factors: Sequence[Factors]) -> dict[str, Tensor]:
    ((up, down),) = factors
    return {"B": up, "A": down}


RULES: dict[str, Rule] = {
    "lora": Rule(_lora, _store_lora, {"B": 1, "A": 0}),
}
"""Name in UpdateSpec.rule -> the rule. "matrix", the plain matrix of `plain`, needs none."""
