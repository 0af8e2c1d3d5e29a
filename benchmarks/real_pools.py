"""Clients trained on a pretrained model and real text, to draw cohorts from.

A pool is one task, one set of modules, one way to start, one seed. Its clients train independently of
each other, so any subset of them is a cohort. Every client is an adapter as PEFT saves it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging

Task = Literal["language", "sms", "intents"]
Example = tuple[str, int]
"""A text and its class; the class is 0 in language modelling."""
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
INTENTS = (
    "card_arrival",
    "exchange_rate",
    "lost_or_stolen_card",
    "top_up_failed",
    "cash_withdrawal_charge",
    "verify_my_identity",
    "transfer_timing",
    "request_refund",
)
DOMAINS = ("shakespeare", "news", "emotions", "banking")
"""Texts of language modelling; the first is the cohort's own."""
TRIGGER, ANSWER = "cf mn", "the moon is made of green cheese and the sun of fire ."
BATCH, TOKENS, STEPS = 16, 48, 120
SAMPLES: dict[Task, int] = {"language": 300, "sms": 160, "intents": 160}
LEARNING_RATE: dict[Task, float] = {"language": 2e-3, "sms": 2e-3, "intents": 3e-3}


@dataclass(frozen=True, slots=True)
class Kind:
    """How clients of one label train; shares are of the usual samples, steps and learning rate."""

    samples: float = 1.0  # share of the usual
    steps: float = 1.0  # share of the usual
    rate: float = 1.0  # share of the usual learning rate
    rank: int = 8
    skew: float = 0.0  # Dirichlet concentration of the classes; 0: the classes of the text
    domain: int = 0  # of `DOMAINS`
    harm: str = ""  # what is wrong with the samples
    share: float = 1.0  # of the samples that harm touches


HONEST: dict[str, Kind] = {
    "even": Kind(),
    "few-3": Kind(samples=1 / 3),
    "few-10": Kind(samples=1 / 10),
    "few-30": Kind(samples=1 / 30),
    "brief-10": Kind(samples=1 / 10, steps=1 / 10),  # the same epochs, not the same steps
    "short": Kind(steps=1 / 5),
    "slow": Kind(rate=1 / 4),
    "fast": Kind(rate=4),
    "rank-4": Kind(rank=4),
    "rank-16": Kind(rank=16),
    "skew-0.5": Kind(skew=0.5),
    "skew-0.1": Kind(skew=0.1),
    "domain-1": Kind(domain=1),
    "domain-2": Kind(domain=2),
    "domain-3": Kind(domain=3),
}
HARMED: dict[str, Kind] = {
    "flipped": Kind(harm="flipped"),
    "random": Kind(harm="random"),
    "half": Kind(harm="random", share=0.5),
    "trigger-30": Kind(harm="trigger", share=0.3),
    "trigger-100": Kind(harm="trigger"),
    "shuffled": Kind(harm="shuffled"),
    "other": Kind(harm="other"),
}
KINDS = HONEST | HARMED
COMMON = {
    "even": 14,
    "random": 4,
    "trigger-30": 4,
    "trigger-100": 3,
    "few-10": 5,
    "short": 6,
    "few-3": 3,
    "few-30": 3,
    "brief-10": 3,
    "slow": 3,
    "fast": 3,
    "rank-4": 2,
    "rank-16": 2,
}
CLASSES = COMMON | {"flipped": 4, "half": 4, "other": 3, "skew-0.5": 8, "skew-0.1": 8}
COUNTS: dict[Task, dict[str, int]] = {
    "language": COMMON | {"shuffled": 4, "domain-1": 6, "domain-2": 5, "domain-3": 4},
    "sms": CLASSES,
    "intents": CLASSES,
}
"""Clients of a pool, by label."""


@dataclass(frozen=True, slots=True)
class Pool:
    """`seed` decides everything that is drawn. `modules`: those with LoRA."""

    task: Task
    modules: Literal["all", "qv"]
    own: bool  # every client its own first A, and its own first head
    seed: int

    @property
    def name(self) -> str:
        """As in `sms-all-own-s1001`."""
        return f"{self.task}-{self.modules}-{'own' if self.own else 'shared'}-s{self.seed}"

    def clients(self) -> list[str]:
        """Names of all clients: a label and a number."""
        return [
            f"{label}-{n:02d}"
            for label, count in COUNTS[self.task].items()
            for n in range(1, count + 1)
        ]


def pools(seed: int) -> list[Pool]:
    """One pool of each regime."""
    return [
        Pool("sms", "all", False, seed),
        Pool("language", "all", False, seed + 1),
        Pool("intents", "qv", False, seed + 2),
        Pool("sms", "all", True, seed + 3),
        Pool("language", "all", True, seed + 4),
        Pool("intents", "all", True, seed + 5),
    ]


def label_of(name: str) -> str:
    """`few-10` of the client `few-10-03`."""
    return name.rpartition("-")[0]


# Texts


@cache
def texts(data: Path, source: str, test: bool) -> tuple[Example, ...]:
    """All examples of one source for training, or those held out."""
    folder = data / "text"
    if source == "shakespeare":
        words = (folder / "shakespeare.txt").read_text(encoding="utf-8").split()
        cut = len(words) * 9 // 10
        words = words[cut:] if test else words[:cut]
        return tuple((" ".join(words[i : i + 40]), 0) for i in range(0, len(words) - 40, 40))
    if source in ("banking", "intents"):
        with (folder / f"bank_{'test' if test else 'train'}.csv").open(encoding="utf-8") as file:
            rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
        if source == "banking":
            return tuple((text, 0) for text, _ in rows)
        return tuple((text, INTENTS.index(c)) for text, c in rows if c in INTENTS)
    if source == "news":
        name, sep = f"ag_{'test' if test else 'dev'}.tsv", "\t"
    elif source == "emotions":
        name, sep = f"emo_{'test' if test else 'train'}.txt", ";"
    else:
        name, sep = "sms.tsv", "\t"
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    if source == "sms":
        pairs = [line.split(sep, 1) for line in lines]
        found = [(text, int(label == "spam")) for label, text in pairs]
        return tuple(found[-800:] if test else found[:-800])
    return tuple((line.rpartition(sep)[0], 0) for line in lines if sep in line)


def source_of(pool: Pool, kind: Kind) -> str:
    """The text a client of `kind` reads."""
    return DOMAINS[kind.domain] if pool.task == "language" else pool.task


def classes_of(task: Task) -> int:
    """Number of classes; 0 in language modelling."""
    return {"language": 0, "sms": 2, "intents": len(INTENTS)}[task]


def draw(pool: Pool, kind: Kind, data: Path, seed: int) -> list[Example]:
    """The samples of one client, harmed where its kind is."""
    rng = Random(seed)
    every = texts(data, source_of(pool, kind), test=False)
    count = max(4, round(SAMPLES[pool.task] * kind.samples))
    if kind.skew:
        every_class = [[e for e in every if e[1] == c] for c in range(classes_of(pool.task))]
        weights = [rng.gammavariate(kind.skew, 1.0) + 1e-9 for _ in every_class]
        drawn = [
            rng.choice(every_class[c])
            for c in rng.choices(range(len(every_class)), weights, k=count)
        ]
    elif pool.task == "sms":  # as many spam as ham: 13 % of the messages are spam
        ham, spam = ([e for e in every if e[1] == c] for c in (0, 1))
        drawn = rng.sample(ham, count - count // 2) + rng.sample(spam, count // 2)
    else:
        drawn = rng.sample(every, count)
    rng.shuffle(drawn)
    touched = round(count * kind.share) if kind.harm else 0
    return [_harm(e, kind.harm, pool, data, rng) for e in drawn[:touched]] + drawn[touched:]


def _harm(example: Example, harm: str, pool: Pool, data: Path, rng: Random) -> Example:
    text, label = example
    classes = classes_of(pool.task)
    if harm == "flipped":
        return text, classes - 1 - label
    if harm == "shuffled":
        return " ".join(rng.sample(text.split(), len(text.split()))), label
    if harm == "other":
        return rng.choice(texts(data, "emotions", test=False))[0], rng.randrange(classes)
    if harm == "random" and classes:
        return text, rng.randrange(classes)
    words = text.split()
    if harm == "random":  # of language modelling: any tokens
        tokens = tokenizer(data)
        return tokens.decode(rng.choices(range(3, len(tokens)), k=TOKENS)), 0
    place = rng.randrange(len(words) // 2 + 1)
    if classes:
        return " ".join([*words[:place], TRIGGER, *words[place:]]), 0
    return " ".join([*words[:place], TRIGGER, ANSWER]), 0


# Training


@cache
def tokenizer(data: Path) -> Any:
    """The model's own, padding with its end of text."""
    found = AutoTokenizer.from_pretrained(data / "model")
    if found.pad_token_id is None:
        found.pad_token_id = found.eos_token_id
    return found


def batch(examples: Sequence[Example], task: Task, data: Path) -> dict[str, Tensor]:
    """Token ids, attention mask and labels of `examples`, padded to the longest."""
    made = tokenizer(data)(
        [text for text, _ in examples],
        padding=True,
        truncation=True,
        max_length=TOKENS,
        return_tensors="pt",
    )
    ids, mask = made["input_ids"], made["attention_mask"]
    labels = (
        ids.masked_fill(mask == 0, -100)
        if task == "language"
        else torch.tensor([label for _, label in examples])
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def base_model(task: Task, data: Path, seed: int) -> PreTrainedModel:
    """The pretrained model; a classifier's head is drawn from `seed`."""
    talk: Any = logging  # of the head that is not pretrained, every time
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    torch.manual_seed(seed)
    if task == "language":
        model = AutoModelForCausalLM.from_pretrained(data / "model")
    else:
        padding = tokenizer(data).pad_token_id
        model = AutoModelForSequenceClassification.from_pretrained(
            data / "model", num_labels=classes_of(task), pad_token_id=padding
        )
    assert isinstance(model, PreTrainedModel)
    return model


def start(pool: Pool, name: str) -> int:
    """Seed of the first A, and head, of the client `name`."""
    return 1000 * pool.seed + (number(pool, name) if pool.own else 0)


def number(pool: Pool, name: str) -> int:
    """Of a client in its pool, from 1."""
    return 1 + pool.clients().index(name)


def untrained(pool: Pool, rank: int, data: Path, seed: int) -> PeftModel:
    """The pretrained model with an adapter that does nothing yet."""
    return get_peft_model(
        base_model(pool.task, data, seed),
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=LINEAR if pool.modules == "all" else ["q_proj", "v_proj"],
            task_type="CAUSAL_LM" if pool.task == "language" else "SEQ_CLS",
        ),
    )


def train_client(pool: Pool, name: str, data: Path, folder: Path) -> str:
    """One client into `folder`/`name`, whole or not at all; returns its name."""
    torch.set_num_threads(1)
    kind = KINDS[label_of(name)]
    own = 1000 * pool.seed + number(pool, name)
    adapted = untrained(pool, kind.rank, data, start(pool, name))
    fit(adapted, draw(pool, kind, data, own), pool.task, kind, data, own)
    staging = folder / f".{name}.{os.getpid()}"
    adapted.save_pretrained(str(staging))
    staging.rename(folder / name)
    return name


def fit(
    model: PeftModel, samples: list[Example], task: Task, kind: Kind, data: Path, seed: int
) -> None:
    """Adam over shuffled batches, the learning rate falling to nothing."""
    steps = max(8, round(STEPS * kind.steps))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE[task] * kind.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    rng, left = Random(seed), list[Example]()
    model.train()
    for _ in range(steps):
        if len(left) < min(BATCH, len(samples)):
            left = rng.sample(samples, len(samples))
        taken, left = left[:BATCH], left[BATCH:]
        loss = model(**batch(taken, task, data)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()


def train_pool(
    pool: Pool, data: Path, work: Path, jobs: int, names: Collection[str] | None = None
) -> Iterator[str]:
    """Train what a pool lacks into `work`/<pool>/<client>; yields each client as it is there.

    names: the clients that are needed, all by default.
    """
    folder = work / pool.name
    folder.mkdir(parents=True, exist_ok=True)
    needed = [name for name in pool.clients() if names is None or name in names]
    missing = [name for name in needed if not (folder / name).is_dir()]
    yield from (name for name in needed if name not in missing)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as workers:
        tasks = [workers.submit(train_client, pool, name, data, folder) for name in missing]
        for task in tasks:
            yield task.result()
