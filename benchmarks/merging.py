"""One adapter for all: what servers and merging tools make of a round. Means are over the clients given.

Delta: module -> update (d_out, d_in). All clients adapt the same modules with one rank and one alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.field import Aggregate, Array, delta_view
from benchmarks.saved import Saved

Delta = dict[str, Tensor]


def mean_of_factors(adapters: Sequence[Saved]) -> Saved:
    """The mean of the A and the mean of the B: their product is not the mean of the products."""
    sides = {m: zip(*(a.factors[m] for a in adapters), strict=True) for m in adapters[0].factors}
    up_down = {m: [torch.stack(side).mean(0) for side in both] for m, both in sides.items()}
    return Saved({m: (up, down) for m, (up, down) in up_down.items()}, adapters[0].config)


def stacked(adapters: Sequence[Saved]) -> Saved:
    """FLoRA (Wang et al., NeurIPS 2024): all B side by side, all A below each other, weights 1/K.

    Rank K r and the same alpha make the scale a K-th, so the update is the exact mean of Delta W.
    """
    sides = {m: zip(*(a.factors[m] for a in adapters), strict=True) for m in adapters[0].factors}
    both = {m: (torch.cat(up, dim=1), torch.cat(down)) for m, (up, down) in sides.items()}
    config = adapters[0].config
    return Saved(both, config | {"r": config["r"] * len(adapters)})


def mean_of_updates(adapters: Sequence[Saved]) -> Delta:
    """The exact mean of Delta W."""
    return by_module(delta_view(list(adapters)).mean(axis=0), adapters[0])


def robust(rule: Aggregate, adapters: Sequence[Saved], f: int) -> Delta:
    """A rule of field.py on the exact Delta W, told that f clients are contaminated."""
    return by_module(rule(delta_view(list(adapters)), f), adapters[0])


def by_module(row: Array, like: Saved) -> Delta:
    """A row (d,) of `delta_view` as updates again."""
    shapes = {m: (up.shape[0], down.shape[1]) for m, (up, down) in like.factors.items()}
    parts = torch.from_numpy(row).float().split([out * into for out, into in shapes.values()])
    return {m: part.view(shapes[m]) for m, part in zip(shapes, parts, strict=True)}


def svd_merge(base: Path, folders: Sequence[Path], rank: int) -> dict[str, Tensor]:
    """The weights of `base` with PEFT's add_weighted_adapter, combination "svd", weights 1/K."""
    names = [f"client-{n}" for n in range(len(folders))]
    plain = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(plain, folders[0], adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    weights = [1 / len(names)] * len(names)
    model.add_weighted_adapter(names, weights, "mean", combination_type="svd", svd_rank=rank)
    merged: dict[str, Tensor] = model.merge_and_unload(adapter_names=["mean"]).state_dict()
    return merged
