"""Where in a network some modules lie, in a few words."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence


def describe(bad: Sequence[str], modules: Collection[str], noun: str = "modules") -> str:
    """`only layers 3-5`, `only q_proj`, `62 of 64 modules`: of names, worst first; never empty."""
    chosen = set(bad)
    if len(chosen) == len(modules):
        return f"all {len(modules)} {noun}" if len(modules) > 1 else "the only module"
    for part, word in ((layer, _layers), (kind, ", ".join)):
        where = {part(m) for m in chosen} - {""}
        if where and {m for m in modules if part(m) in where} == chosen:
            return f"only {word(sorted(where, key=_number))}"
    return f"{len(chosen)} of {len(modules)} {noun}, worst in {bad[0]}"


def layer(module: str) -> str:
    """`3` of `model.layers.3.self_attn.q_proj`; empty where no part is a number."""
    found = re.search(r"(?:^|\.)(\d{1,9})(?:\.|$)", module, re.ASCII)
    return found[1] if found else ""


def kind(module: str) -> str:
    """What a module is in its layer: `q_proj` of `model.layers.3.self_attn.q_proj`."""
    return module.rpartition(".")[2]


def _number(text: str) -> tuple[int, str]:
    return (int(text) if text.isdecimal() else 0, text)


def _layers(numbers: Sequence[str]) -> str:
    """Layer numbers in words, neighbours as a span: `layer 3`, `layers 3-5, 9`."""
    runs: list[list[int]] = []
    for n in map(int, numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    spans = [f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs]
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(spans)}"
