"""Held-out loss and token accuracy of the benign clients: local, averaged and refined adapters.

python -m examples.text_copy.evaluate --adapters DIR --truth DIR.truth.json [--refined OUT]
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from examples.text_copy.task import IGNORED, ClientSpec, held_out_data
from examples.text_copy.train import RECIPE, default_base, one_thread, read_truth

Weights = dict[str, Tensor]


class Quality(NamedTuple):
    """On the tokens of y."""

    loss: float  # cross entropy per token, nats
    accuracy: float  # share of tokens guessed right


Table = dict[str, dict[str, Quality]]  # method -> client -> quality


def evaluate(
    adapters: Path, specs: list[ClientSpec], base: Path, refined: Path | None = None
) -> Table:
    """Every method on the held-out data of every benign client it has an adapter for."""
    benign = [spec for spec in specs if spec.benign]
    local = {spec.name: merged(base, adapters / spec.name) for spec in specs}
    candidates: dict[str, dict[str, Weights]] = {
        "base": dict.fromkeys(local, AutoModelForCausalLM.from_pretrained(base).state_dict()),
        "local": local,
        "average, all": dict.fromkeys(local, mean(local.values())),
        "average, benign": dict.fromkeys(local, mean(local[spec.name] for spec in benign)),
    }
    if refined:
        written = [spec.name for spec in benign if (refined / spec.name).is_dir()]
        candidates["refined"] = {name: merged(base, refined / name) for name in written}
    model = AutoModelForCausalLM.from_pretrained(base)
    return {
        method: {s.name: quality(model, weights[s.name], s) for s in benign if s.name in weights}
        for method, weights in candidates.items()
    }


def merged(base: Path, adapter: Path) -> Weights:
    """The base model's weights with one adapter's Delta W added."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    weights: Weights = model.merge_and_unload().state_dict()
    return weights


def mean(models: Iterable[Weights]) -> Weights:
    """Averages merged weights: the base plus the exact mean of the Delta W, not of the factors."""
    models = list(models)
    return {key: torch.stack([m[key] for m in models]).mean(0) for key in models[0]}


@torch.no_grad()
def quality(
    model: PreTrainedModel, weights: Weights, spec: ClientSpec, samples: int = 256
) -> Quality:
    """Loss and accuracy of these weights on the client's clean held-out data."""
    model.load_state_dict(weights)
    ids, labels = held_out_data(spec, samples)
    output = model(input_ids=ids, labels=labels)
    scored = labels[:, 1:] != IGNORED
    hits = output.logits[:, :-1].argmax(-1) == labels[:, 1:]
    return Quality(output.loss.item(), hits[scored].float().mean().item())


def average(qualities: Iterable[Quality]) -> Quality:
    """The mean loss and the mean accuracy of several clients."""
    losses, accuracies = zip(*qualities, strict=True)
    return Quality(sum(losses) / len(losses), sum(accuracies) / len(accuracies))


def as_text(table: Table) -> str:
    """One line per client, and the mean over the clients that every method has."""
    clients = list(table["local"])
    complete = [c for c in clients if all(c in column for column in table.values())]
    lines = ["client      " + "".join(f"{method:>18}" for method in table)]
    for client in clients:
        cells = [cell(column.get(client)) for column in table.values()]
        lines.append(f"{client:<12}" + "".join(cells))
    if complete:
        means = [cell(average(column[c] for c in complete)) for column in table.values()]
        lines.append(f"{f'mean of {len(complete)}':<12}" + "".join(means))
    return "\n".join(lines)


def cell(quality: Quality | None) -> str:
    return f"{quality.loss:10.3f} /{quality.accuracy:6.3f}" if quality else f"{'-':>18}"


def as_json(table: Table) -> str:
    rows = {
        method: {client: quality._asdict() for client, quality in column.items()}
        for method, column in table.items()
    }
    return json.dumps(rows, indent=2) + "\n"


def main() -> None:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--adapters", type=Path, required=True, help="one folder per client")
    parser.add_argument("--truth", type=Path, required=True, help="DIR.truth.json of train.py")
    parser.add_argument("--refined", type=Path, help="one folder per refined client")
    parser.add_argument("--base", type=Path, default=default_base(RECIPE))
    parser.add_argument("--json", type=Path, help="write the same numbers here")
    given = parser.parse_args()
    one_thread()
    table = evaluate(given.adapters, read_truth(given.truth), given.base, given.refined)
    print("Held-out loss / token accuracy of the benign clients\n" + as_text(table))
    if given.json:
        given.json.write_text(as_json(table))


if __name__ == "__main__":
    main()
