"""Federations that train for many rounds, and what clair says of every round's changes.

All clients of a round train at once: one model, their factors stacked. In round r every client starts
from what the server sent, trains on its own samples, and sends its adapter. clair judges what each has
changed. The server sends the mean of whom clair did not convict, cut back to the clients' rank.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Generator, Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from benchmarks.attacks import truncated
from benchmarks.saved import PREFIX, Saved, write
from clair_cli import Report, Settings, detect
from examples.text_copy.task import (
    IGNORED,
    ClientSpec,
    Heterogeneity,
    Kind,
    draw_swaps,
    training_data,
)
from examples.text_copy.train import TARGETS, Recipe, default_base

CLIENTS, ATTACKERS = 12, 3
RANK, STEPS, BATCH, RATE = 8, 16, 8, 1e-3
SAMPLES = (8, 12, 16, 24, 32, 48)
"""Of honest clients, in turn: unequal by six."""
ATTACKER_SAMPLES = 24
KINDS: dict[str, tuple[Kind, float]] = {
    "honest": ("clean", 0.0),
    "corrupt-50": ("corrupt", 0.5),
    "backdoor-30": ("backdoor", 0.3),
    "backdoor-10": ("backdoor", 0.1),
    "half-strength": ("common_cipher", 1.0),
}
"""Scenario -> how its attackers train. At half strength they send the middle between an honest adapter
of their own and the poisoned one."""
TASKS: tuple[Heterogeneity, ...] = ("none", "family")
SWAPS = 3
Factors = dict[str, Tensor]
"""lora_A or lora_B by its name -> one for each client, (clients, ...)."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Federation:
    """Who takes part, decided by `seed`. The attackers come last; `turns` is their first bad round."""

    scenario: str
    tasks: Heterogeneity
    seed: int
    turns: int = 1

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.scenario} {self.tasks} s{self.seed} t{self.turns}"

    @property
    def attackers(self) -> int:
        """How many of the clients."""
        return 0 if self.scenario == "honest" else ATTACKERS

    def specs(self) -> list[ClientSpec]:
        """The clients as they train when they are honest."""
        rng = Random(self.seed)
        swaps = draw_swaps(self.tasks, SWAPS if self.tasks == "family" else 0, CLIENTS, rng)
        sizes = [SAMPLES[k % len(SAMPLES)] for k in range(CLIENTS)]
        sizes[CLIENTS - self.attackers :] = [ATTACKER_SAMPLES] * self.attackers
        return [
            ClientSpec(f"client-{k:02d}", "clean", swaps[k], sizes[k], seed=1000 * self.seed + k)
            for k in range(CLIENTS)
        ]

    def bad(self, spec: ClientSpec) -> ClientSpec:
        """An attacker when it is one."""
        kind, fraction = KINDS[self.scenario]
        return replace(spec, kind=kind, fraction=fraction)


# Training


@cache
def model() -> tuple[torch.nn.Module, dict[str, Tensor], dict[str, Any]]:
    """The base model with an adapter in it, the names and shapes of its factors, and the config."""
    recipe = Recipe(rank=RANK, alpha=2 * RANK)
    base = AutoModelForCausalLM.from_pretrained(default_base(recipe), attn_implementation="eager")
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS["llama"], task_type="CAUSAL_LM"
    )
    found = get_peft_model(base, config)
    found.train()
    factors = {n: p.detach() for n, p in found.named_parameters() if p.requires_grad}
    said = config.to_dict() | {"target_modules": TARGETS["llama"], "inference_mode": True}
    said["base_model_name_or_path"] = "text-copy-base"
    plain = json.loads(json.dumps(said, default=str))
    return found, factors, plain


def trained(start: Factors, specs: list[ClientSpec], number: int) -> Factors:
    """Every client's factors after its steps of round `number`, from `start` (clients, ...).

    AdamW without decay, as examples.text_copy.train has it, with a new state in every round.
    """
    ids, labels = _batches(specs, number)
    step = vmap(grad(_loss))
    now = {n: f.clone() for n, f in start.items()}
    first = {n: torch.zeros_like(f) for n, f in now.items()}
    second = {n: torch.zeros_like(f) for n, f in now.items()}
    for t in range(STEPS):
        for n, g in step(now, ids[:, t], labels[:, t]).items():
            first[n].lerp_(g, 0.1)
            second[n].lerp_(g.square(), 0.001)
            up = first[n] / (1 - 0.9 ** (t + 1))
            down = (second[n] / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8
            now[n] = now[n] - RATE * up / down
    return now


def _loss(factors: Factors, ids: Tensor, labels: Tensor) -> Tensor:
    found, names, _ = model()
    rest = {n: p.detach() for n, p in found.named_parameters() if n not in names}
    words = {"input_ids": ids, "use_cache": False}
    said = functional_call(found, {**rest, **factors}, kwargs=words).logits
    return cross_entropy(said[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def _batches(specs: list[ClientSpec], number: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels of all steps, (clients, STEPS, BATCH, tokens)."""
    found = []
    for spec in specs:
        ids, labels = training_data(spec)
        generator = Generator().manual_seed(spec.seed + 7919 * number)
        rows = torch.randint(len(ids), (STEPS, BATCH), generator=generator)
        found.append((ids[rows], labels[rows]))
    ids, labels = (torch.stack(parts) for parts in zip(*found, strict=True))
    return ids, labels


# A round


def saved(factors: Factors, k: int) -> Saved:
    """The adapter of client `k` as PEFT names it."""
    pairs = {}
    for name in factors:
        if "lora_A" in name:
            module = name.removeprefix(PREFIX).removesuffix(".lora_A.default.weight")
            pairs[module] = (factors[name.replace("lora_A", "lora_B")][k], factors[name][k])
    return Saved(pairs, model()[2])


def stacked(adapter: Saved, count: int) -> Factors:
    """The same adapter for so many clients."""
    found = {}
    for module, (b, a) in adapter.factors.items():
        for name, factor in (("lora_A", a), ("lora_B", b)):
            found[f"{PREFIX}{module}.{name}.default.weight"] = factor.expand(count, *factor.shape)
    return found


def change(adapter: Saved, start: Saved) -> Saved:
    """`adapter` minus `start`, exactly: twice the rank and twice the alpha."""
    factors = {
        m: (torch.cat([b, -start.factors[m][0]], 1), torch.cat([a, start.factors[m][1]]))
        for m, (b, a) in adapter.factors.items()
    }
    config = adapter.config
    return Saved(factors, config | {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]})


def middle(one: Saved, other: Saved) -> Saved:
    """The nearest adapter of the rank to the mean of the two updates."""
    a, b = one.dense(), other.dense()
    return truncated({m: (a[m] + b[m]) / 2 for m in a}, one)


def kept(federation: Federation, work: Path) -> list[Row]:
    """The rounds of a federation that are kept in `work`."""
    path = work / f"{federation.name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def played(federation: Federation, rounds: int, work: Path) -> Iterator[Row]:
    """The rounds of a federation: those that are kept in `work`, and then new ones, kept as they end."""
    path = work / f"{federation.name}.jsonl"
    start_path = work / f"{federation.name}.pt"
    work.mkdir(parents=True, exist_ok=True)
    before = kept(federation, work)
    yield from before[:rounds]
    specs = federation.specs()
    start = torch.load(start_path, weights_only=True) if before else _first(federation)
    for number in range(len(before) + 1, rounds + 1):
        row, start = _round(federation, specs, start, number, work)
        fresh = start_path.with_suffix(f".{os.getpid()}")
        torch.save(start, fresh)
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
        os.replace(fresh, start_path)
        yield row


def _first(federation: Federation) -> Factors:
    """What PEFT begins with: A by chance, B zero; one client's."""
    torch.manual_seed(federation.seed)
    base = {n: f.clone() for n, f in model()[1].items()}
    for name, factor in base.items():
        if "lora_A" in name:
            torch.nn.init.kaiming_uniform_(factor, a=5**0.5)
        else:
            factor.zero_()
    return {n: f[None] for n, f in base.items()}


def _round(
    federation: Federation, specs: list[ClientSpec], start: Factors, number: int, work: Path
) -> tuple[Row, Factors]:
    """Train, judge the changes, average: the row of the round, and what the server sends (1, ...)."""
    sent = saved(start, 0)
    begin = {n: f.expand(CLIENTS, *f.shape[1:]) for n, f in start.items()}
    m = federation.attackers if number >= federation.turns else 0
    half = federation.scenario == "half-strength"
    acting = [*specs[: CLIENTS - m], *map(federation.bad, specs[CLIENTS - m :])]
    after = trained(begin, acting, number)
    adapters = [saved(after, k) for k in range(CLIENTS)]
    if m and half:
        honest = trained({n: f[-m:] for n, f in begin.items()}, specs[-m:], number)
        own = [saved(honest, k) for k in range(m)]
        adapters[-m:] = [middle(o, b) for o, b in zip(own, adapters[-m:], strict=True)]
    folder = work / f".{federation.name}.{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    for spec, adapter in zip(specs, adapters, strict=True):
        write(change(adapter, sent), folder / spec.name)
    report = detect(folder, Settings(threads=1))
    shutil.rmtree(folder)
    kept = [a for a, c in zip(adapters, report.clients, strict=True) if c.verdict != "contaminated"]
    dense = [a.dense() for a in kept]
    mean = {module: torch.stack([d[module] for d in dense]).mean(0) for module in dense[0]}
    return _row(number, report), stacked(truncated(mean, sent), 1)


def _row(number: int, report: Report) -> Row:
    """What is kept of a round."""
    return {
        "round": number,
        "status": report.status,
        "clients": {c.client: [c.verdict, c.score] for c in report.clients},
    }
