"""Held-out loss of the honest clients of a real cohort by what is made of its adapters.

Every honest client is tested on texts that nobody trained on, of its own domain or with its own mix of
classes. Classifier heads count: a method for all takes them into its mean, or takes their plain mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from benchmarks.field import multi_krum, trimmed_mean
from benchmarks.merging import mean_of_factors
from benchmarks.real_cells import written
from benchmarks.real_cohorts import Client, Cohort
from benchmarks.real_pools import (
    KINDS,
    Example,
    Kind,
    Pool,
    base_model,
    batch,
    classes_of,
    number,
    source_of,
    texts,
)
from benchmarks.saved import PREFIX, read, write
from clair_cli import Settings, refine

Weights = dict[str, Tensor]
Quality = tuple[float, float]
"""Cross entropy in nats (per token in language modelling), share of right answers."""
TEXTS, CHUNK = 200, 100
DENSITY = 0.5
"""Share of the factors that ties and dare_ties keep."""
HARMED = ("flipped", "shuffled", "random", "trigger-30", "colluder-half")
"""Kinds of contamination under which refinement is measured."""
SETTINGS: dict[str, dict[str, Any]] = {
    "clair": {"write_global": True},
    "clair --tasks same": {"tasks": "same"},
    "clair --tasks related": {"tasks": "related"},
    "clair --tasks own": {"tasks": "own"},
    "clair --rank auto": {"rank": "auto"},
    "clair --tasks same --rank auto": {"tasks": "same", "rank": "auto"},
}


# Held-out texts


def test_texts(pool: Pool, client: Client, data: Path) -> tuple[Example, ...]:
    """Of the client's own task; clients of one task get the same."""
    kind = KINDS[client.label]
    own = 1000 * pool.seed + number(pool, client.source) if kind.skew else 0
    return _test_texts(pool, kind.domain, kind.skew, own, data)


@cache
def _test_texts(pool: Pool, domain: int, skew: float, own: int, data: Path) -> tuple[Example, ...]:
    every = texts(data, source_of(pool, Kind(domain=domain)), test=True)
    rng = Random(pool.seed)
    if pool.task == "language":
        return tuple(rng.sample(every, min(TEXTS, len(every))))
    by_class = [[e for e in every if e[1] == c] for c in range(classes_of(pool.task))]
    weights = [1.0 for _ in by_class]
    if skew:  # as the client's training samples were drawn
        draw = Random(own)
        weights = [draw.gammavariate(skew, 1.0) + 1e-9 for _ in by_class]
    drawn = rng.choices(range(len(by_class)), weights, k=TEXTS)
    return tuple(rng.choice(by_class[c]) for c in drawn)


@cache
def batches(examples: tuple[Example, ...], pool: Pool, data: Path) -> list[dict[str, Tensor]]:
    """Their tokens, in parts."""
    return [batch(examples[i : i + CHUNK], pool.task, data) for i in range(0, len(examples), CHUNK)]


# A cohort


class Bench:
    """A cohort's folder, the base model, the weights that every client's adapter makes of it."""

    def __init__(self, cohort: Cohort, folder: Path, data: Path) -> None:
        self.cohort, self.folder, self.data, self.pool = cohort, folder, data, cohort.pool
        self.model = self.base()
        self.seen: dict[tuple[bytes, tuple[Example, ...]], Quality] = {}
        self.start: Weights = {k: w.clone() for k, w in self.model.state_dict().items()}
        self.honest = {n: c for n, c in cohort.clients.items() if c.honest}
        self.sent = {n: self.merged(folder / n) for n in cohort.clients}
        first = next(iter(self.sent.values()))
        self.changed = [k for k, w in first.items() if not torch.equal(w, self.start[k])]
        self.rows = np.stack([self.row(w) for w in self.sent.values()])

    def base(self) -> PreTrainedModel:
        """Without any adapter; the seed of its head does not matter."""
        return base_model(self.pool.task, self.data, 0)

    def merged(self, adapter: Path) -> Weights:
        """As PEFT loads it, heads included."""
        model = PeftModel.from_pretrained(self.base(), str(adapter))
        weights: Weights = model.merge_and_unload().state_dict()
        return {k: weights[k] for k in self.start}

    def row(self, weights: Weights) -> Any:
        """What differs from the base model, as one vector (d,)."""
        return torch.cat([(weights[k] - self.start[k]).flatten() for k in self.changed]).numpy()

    def weights(self, row: Any) -> Weights:
        """The base model and a vector (d,) of `row`."""
        sizes = [self.start[k].numel() for k in self.changed]
        parts = torch.split(torch.from_numpy(np.asarray(row, np.float32)), sizes)
        added = dict(zip(self.changed, parts, strict=True))
        return {k: w + added[k].view_as(w) if k in added else w for k, w in self.start.items()}

    @torch.no_grad()
    def quality(self, weights: Weights, examples: tuple[Example, ...]) -> Quality:
        """On these texts."""
        self.model.load_state_dict(weights)
        self.model.train(False)
        total, right, count = 0.0, 0, 0
        for part in batches(examples, self.pool, self.data):
            logits, labels = self.model(**part).logits, part["labels"]
            if self.pool.task == "language":
                logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            total += float(cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(-1) == labels).sum())
            count += int((labels >= 0).sum())
        return total / count, right / count

    def each(self, weights: dict[str, Weights]) -> dict[str, Quality]:
        """Every honest client with its own weights."""
        found = {}
        for name, client in self.honest.items():
            examples = test_texts(self.pool, client, self.data)
            key = blake2b(self.row(weights[name])).digest(), examples
            if key not in self.seen:
                self.seen[key] = self.quality(weights[name], examples)
            found[name] = self.seen[key]
        return found

    def is_whole(self, weights: Weights) -> bool:
        """All that the clients changed is changed: a head that cannot be averaged is left out."""
        return not any(torch.equal(weights[k], self.start[k]) for k in self.changed)

    def one(self, weights: Weights) -> dict[str, Quality]:
        """Every honest client with the same weights."""
        return self.each(dict.fromkeys(self.honest, weights))


# The field


def peers(bench: Bench) -> dict[str, dict[str, Quality]]:
    """Everything but clair; trimmed mean and Multi-Krum are told how many are contaminated."""
    rows, f = bench.rows, len(bench.sent) - len(bench.honest)
    honest = [name in bench.honest for name in bench.sent]
    found = {
        "local": bench.each(bench.sent),
        "mean of all (FedEx-LoRA)": bench.one(bench.weights(rows.mean(axis=0))),
        "mean of the honest": bench.one(bench.weights(rows[honest].mean(axis=0))),
        "trimmed mean": bench.one(bench.weights(trimmed_mean(rows, f))),
        "Multi-Krum": bench.one(bench.weights(rows[~multi_krum(rows, f)[1]].mean(axis=0))),
        "PEFT svd": bench.one(merge(bench, "svd")),
    }
    ranks = {read(bench.folder / n).config["r"] for n in bench.sent}
    if len(ranks) == 1:  # the others need factors of one shape
        found["mean of the factors (FedAvg)"] = bench.one(averaged(bench))
        found["PEFT ties"] = bench.one(merge(bench, "ties"))
        found["PEFT dare_ties"] = bench.one(merge(bench, "dare_ties"))
    return found


def averaged(bench: Bench) -> Weights:
    """The mean of A times the mean of B, and the mean head."""
    mean = mean_of_factors([read(bench.folder / n) for n in bench.sent]).dense()
    return plus(bench, {f"{module}.weight": update for module, update in mean.items()})


def merge(bench: Bench, how: Literal["svd", "ties", "dare_ties"]) -> Weights:
    """PEFT's add_weighted_adapter over all clients, and the mean head.

    svd takes the weighted sum, ties and dare_ties a mean of their own.
    """
    torch.manual_seed(0)  # dare drops at random
    names = list(bench.sent)
    folders = [without_head(bench.folder / n, bench.folder.parent / "factors" / n) for n in names]
    model = PeftModel.from_pretrained(bench.base(), str(folders[0]), names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(str(folder), name)
    weights = [1 / len(names) if how == "svd" else 1.0] * len(names)
    density = None if how == "svd" else DENSITY
    model.add_weighted_adapter(names, weights, "merged", how, density=density)
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    updates = {
        f"{name.removeprefix(PREFIX)}.weight": layer.get_delta_weight("merged").detach()
        for name, layer in layers.items()
    }
    return plus(bench, updates)


def without_head(source: Path, target: Path) -> Path:
    """The same adapter without full matrices, with which PEFT merges nothing."""
    if not target.exists():
        saved = read(source)
        config = saved.config | {"modules_to_save": None, "task_type": None}
        write(replace(saved, config=config), target)
    return target


def plus(bench: Bench, updates: Weights) -> Weights:
    """The base model, these updates, and the plain mean of all else that the clients changed."""
    mean = bench.weights(bench.rows.mean(axis=0))
    return {
        k: bench.start[k] + updates[k].to(w) if k in updates else mean[k]
        for k, w in bench.start.items()
    }


# clair


def clair(bench: Bench, settings: dict[str, Any], out: Path) -> dict[str, dict[str, Quality]]:
    """Every honest client's refined adapter, or its own where it gets none; and the global one."""
    report = refine(bench.folder, out, Settings(threads=1, **settings))
    if report.status == "no_verdict":
        return {"refined": bench.each(bench.sent)}
    refined = {
        n: bench.merged(out / n) if (out / n).is_dir() else bench.sent[n] for n in bench.honest
    }
    found = {"refined": bench.each(refined)}
    if (out / "global").is_dir() and bench.is_whole(mean := bench.merged(out / "global")):
        found["global"] = bench.one(mean)
    return found


def field(data: Path, work: Path, cohort: Cohort) -> dict[str, Any]:
    """`quality`: everything but clair -> honest client -> loss, accuracy."""
    with written(cohort, work) as folder:
        return {"quality": peers(Bench(cohort, folder, data))}


def ours(data: Path, work: Path, cohort: Cohort) -> dict[str, Any]:
    """`quality`: clair by its settings -> honest client -> loss, accuracy."""
    found = {}
    with written(cohort, work) as folder:
        bench = Bench(cohort, folder, data)
        for name, settings in SETTINGS.items():
            said = clair(bench, settings, folder.parent / name.replace(" ", ""))
            found[name] = said["refined"]
            if "global" in said:
                found[f"{name} global"] = said["global"]
    return {"quality": found}


def chosen(cohorts: Iterable[Cohort], each: int, conditions: Collection[str] = ()) -> list[Cohort]:
    """The first `each` of every pool and condition without contamination, and as many of some kinds
    of it among even clients; of these `conditions` where any is named."""
    counts: dict[tuple[str, str, str], int] = {}
    found: list[Cohort] = []
    for cohort in cohorts:
        key = cohort.pool.name, cohort.condition, cohort.kind
        counts[key] = counts.get(key, 0) + 1
        harmed = cohort.condition == "even" and cohort.kind in HARMED
        asked = not conditions or cohort.condition in conditions
        if asked and counts[key] <= each and (cohort.kind == "none" or harmed):
            found.append(cohort)
    return found
