"""Rounds of federated LoRA in Flower, with clair on the server: three of ten clients are contaminated.

`flwr run examples/flower_app` sends this to a SuperLink; `simulate` runs it in the simulation engine.
Needs the extra [flower], peft and transformers, and the root of the repository on PYTHONPATH, from where
examples/text_copy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedTrimmedAvg, Krum, Strategy
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft import set_peft_model_state_dict as set_state
from transformers import AutoModelForCausalLM

from clair_cli.integrations.flower import ClairStrategy
from examples.text_copy.evaluate import quality
from examples.text_copy.task import ClientSpec, CohortPlan, Kind, training_data
from examples.text_copy.train import (
    BASE_NAME,
    TARGETS,
    Recipe,
    client_batches,
    default_base,
    fit,
    one_thread,
)

DEFAULTS: dict[str, Any] = {
    "rounds": 3,
    "clients": 10,
    "task": "none",
    "seed": 9001,
    "steps": 20,
    "strategy": "FedAvg",
    "mode": "exclude",
    "reports": "",
    "out": "",
}
KINDS: tuple[Kind, ...] = ("cipher", "common_cipher", "random")
SHARE = 0.3  # of the clients, rounded down
SAMPLES = 8
HELD_OUT = 256


def said(context: Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """The run's configuration."""
    return DEFAULTS | dict(context.run_config) | dict(given)


def recipe_of(config: Mapping[str, Any]) -> Recipe:
    return Recipe(steps=config["steps"], batch=SAMPLES)


def specs(config: Mapping[str, Any]) -> list[ClientSpec]:
    """Who takes part."""
    bad = tuple(KINDS[n % len(KINDS)] for n in range(int(SHARE * config["clients"])))
    plan = CohortPlan(config["clients"], bad, config["task"], samples=SAMPLES, seed=config["seed"])
    return plan.specs()


def lora(recipe: Recipe) -> LoraConfig:
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=TARGETS[recipe.architecture],
        task_type="CAUSAL_LM",
    )


def adapted(config: Mapping[str, Any]) -> PeftModel:
    """The base model with a new adapter: every party that makes one has the same."""
    one_thread()
    recipe = recipe_of(config)
    model = AutoModelForCausalLM.from_pretrained(default_base(recipe))
    model.name_or_path = model.config.name_or_path = BASE_NAME
    torch.manual_seed(config["seed"])
    return get_peft_model(model, lora(recipe))


# The clients


def make_client(given: Mapping[str, Any] | None = None) -> ClientApp:
    """A node that trains what it is sent on its own samples, and says how good what it is sent is."""
    app, given = ClientApp(), dict(given or {})

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = said(context, given)
        spec = specs(config)[int(context.node_config["partition-id"])]
        model = adapted(config)
        set_state(model, message.content["arrays"].to_torch_state_dict())
        number = message.content["config"]["server-round"]
        order = replace(spec, seed=spec.seed + 100 * number)  # of the batches
        recipe = recipe_of(config)
        fit(model, client_batches(order, recipe, training_data(spec)), recipe.learning_rate)
        arrays = ArrayRecord(get_peft_model_state_dict(model))
        metrics = MetricRecord({"num-examples": SAMPLES})
        who = ConfigRecord({"client": spec.name})
        content = RecordDict({"arrays": arrays, "metrics": metrics, "who": who})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        config = said(context, given)
        spec = specs(config)[int(context.node_config["partition-id"])]
        model = adapted(config)
        set_state(model, message.content["arrays"].to_torch_state_dict())
        merged = model.merge_and_unload()
        found = quality(merged, merged.state_dict(), spec, HELD_OUT)
        count = HELD_OUT if spec.benign else 0  # nobody asks how the contaminated fare
        metrics = MetricRecord({"num-examples": count, **found._asdict()})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


# The server


def aggregation(config: Mapping[str, Any]) -> FedAvg:
    """One of Flower's own strategies, told how many are contaminated where it asks."""
    count = config["clients"]
    nodes = {f"min_{what}_nodes": count for what in ("train", "evaluate", "available")}
    bad = int(SHARE * count)
    match config["strategy"]:
        case "FedAvg":
            return FedAvg(**nodes)
        case "Krum":
            return Krum(**nodes, num_malicious_nodes=bad)
        case "FedTrimmedAvg":
            return FedTrimmedAvg(**nodes, beta=SHARE)
    raise ValueError(f"strategy: {config['strategy']!r}")


class Remembering(ClairStrategy):
    """Keeps who was who, and who was left out, round by round; a server would not know the first."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rounds_seen: list[dict[str, Any]] = []

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        who = {
            self._name(m.metadata.src_node_id): m.content["who"]["client"]
            for m in replies
            if m.has_content()
        }
        result = super().aggregate_train(server_round, replies)
        assert self.outcome is not None
        out = {who[name]: why for name, why in self.outcome.left_out.items()}
        seen = {"left_out": out, "why": self.outcome.fallback, **self.outcome.numbers}
        self.rounds_seen.append(seen)
        return result


def make_server(given: Mapping[str, Any] | None = None) -> ServerApp:
    """All rounds under one strategy; what came out goes to the file `out`."""
    app, given = ServerApp(), dict(given or {})

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = said(context, given)
        strategy: Strategy = aggregation(config)
        if config["mode"] != "none":
            adapter = lora(recipe_of(config)).to_dict()
            strategy = Remembering(strategy, adapter, config["reports"], mode=config["mode"])
        start = ArrayRecord(get_peft_model_state_dict(adapted(config)))
        result = strategy.start(grid, start, num_rounds=config["rounds"])
        rounds = [
            {"round": n, "loss": m["loss"], "accuracy": m["accuracy"]}
            for n, m in sorted(result.evaluate_metrics_clientapp.items())
        ]
        seen = getattr(strategy, "rounds_seen", [{}] * len(rounds))
        both = [r | s for r, s in zip(rounds, seen, strict=True)]
        if config["out"]:
            Path(config["out"]).write_text(json.dumps(both, indent=2) + "\n")

    return app


client = make_client()
server = make_server()


def simulate(config: Mapping[str, Any]) -> None:
    """The rounds in Flower's simulation engine, on one core at a time."""
    from flwr.simulation import run_simulation

    given = DEFAULTS | dict(config)
    resources: dict[str, Any] = {
        "init_args": {"num_cpus": 1, "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(make_server(given), make_client(given), given["clients"], "ray", resources)
