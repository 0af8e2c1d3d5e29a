"""Honest differences: what happens to a cohort of benign clients without anybody being contaminated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from benchmarks.attacks import configured, regauged, scaled, widened
from benchmarks.saved import Saved

Apply = Callable[[list[Saved], Generator], list[Saved]]


@dataclass(frozen=True, slots=True)
class Control:
    """`change`: most that any update changes, relative to its norm; None where it is meant to."""

    name: str
    apply: Apply
    change: float | None = None


def everyone(change: Callable[[Saved, Generator], Saved]) -> Apply:
    """All clients."""
    return lambda cohort, generator: [change(a, generator) for a in cohort]


def half(change: Callable[[Saved, Generator], Saved]) -> Apply:
    """Every second client."""
    return lambda cohort, generator: [
        change(a, generator) if k % 2 else a for k, a in enumerate(cohort)
    ]


def one(change: Callable[[Saved, Generator], Saved]) -> Apply:
    """One client, drawn."""

    def apply(cohort: list[Saved], generator: Generator) -> list[Saved]:
        chosen = int(torch.randint(len(cohort), (), generator=generator))
        return [change(a, generator) if k == chosen else a for k, a in enumerate(cohort)]

    return apply


def padded(adapter: Saved, generator: Generator) -> Saved:
    """The same update at twice the rank: (B, B) and (0.3 A; 0.7 A) in a random gauge."""
    low = {m: (b, 0.3 * a) for m, (b, a) in adapter.factors.items()}
    high = {m: (b, 0.7 * a) for m, (b, a) in adapter.factors.items()}
    return regauged(widened(replace(adapter, factors=low), high), generator)


def as_bf16(adapter: Saved, _: Generator) -> Saved:
    """Stored in bfloat16."""
    return replace(
        adapter, factors={m: (b.bfloat16(), a.bfloat16()) for m, (b, a) in adapter.factors.items()}
    )


def with_fewer_modules(adapter: Saved, generator: Generator) -> Saved:
    """Trained without a third of the kinds of modules, rounded down: of seven, two."""
    kinds = sorted({m.rpartition(".")[2] for m in adapter.factors})
    order = torch.randperm(len(kinds), generator=generator).tolist()
    kept = [kinds[k] for k in sorted(order[len(kinds) // 3 :])]
    factors = {m: pair for m, pair in adapter.factors.items() if m.rpartition(".")[2] in kept}
    return Saved(factors, adapter.config | {"target_modules": kept})


def as_rslora(adapter: Saved, _: Generator) -> Saved:
    """alpha / sqrt(r) with the alpha that gives the same scale."""
    compensated = adapter.scale * adapter.config["r"] ** 0.5
    return configured(adapter, use_rslora=True, lora_alpha=compensated)


def with_twice_the_alpha(adapter: Saved, _: Generator) -> Saved:
    """Twice the alpha, half of B."""
    return configured(scaled(adapter, 0.5), lora_alpha=2 * adapter.config["lora_alpha"])


def with_another_norm(adapter: Saved, generator: Generator) -> Saved:
    """0.3 to 1.3 times the update, uniform in the logarithm, as more and less data give."""
    draw = float(torch.rand((), generator=generator))
    return scaled(adapter, 0.3 * (1.3 / 0.3) ** draw)


def with_dp_noise(adapter: Saved, generator: Generator) -> Saved:
    """Gaussian noise on both factors, in expectation 5 % of their norms."""

    def noisy(factor: Tensor) -> Tensor:
        noise = torch.randn(factor.shape, generator=generator, dtype=factor.dtype)
        return factor + 0.05 * factor.norm() / factor.numel() ** 0.5 * noise

    return replace(
        adapter, factors={m: (noisy(b), noisy(a)) for m, (b, a) in adapter.factors.items()}
    )


def in_another_order(cohort: list[Saved], generator: Generator) -> list[Saved]:
    """The same clients under each other's names."""
    return [cohort[k] for k in torch.randperm(len(cohort), generator=generator).tolist()]


CONTROLS: tuple[Control, ...] = (
    Control("another gauge each", everyone(regauged), 1e-5),
    Control("half at twice the rank", half(padded), 1e-5),
    Control("half in bfloat16", half(as_bf16), 1e-2),
    Control("one without a third of the modules", one(with_fewer_modules), 0.0),
    Control("half with rsLoRA", half(as_rslora), 1e-5),
    Control("half with twice the alpha, half of B", half(with_twice_the_alpha), 1e-5),
    Control("one at 0.3x", one(lambda a, _: scaled(a, 0.3))),
    Control("one at 0.2x", one(lambda a, _: scaled(a, 0.2))),
    Control("norms 0.3x to 1.3x", everyone(with_another_norm)),
    Control("all times 1000", everyone(lambda a, _: scaled(a, 1000))),
    Control("5 % noise on the factors", everyone(with_dp_noise)),
    Control("another order", in_another_order),
)
