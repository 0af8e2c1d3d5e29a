"""Rounds of federated LoRA on text copying, with `clair refine` as the server's step.

python -m examples.federated_rounds [--rounds 5] [--clients 10] [--panel identical family] [--plot FILE]

In each round every client takes up what the server sent last, trains it for some steps on its own few
samples and sends its adapter; three of ten clients train on contaminated data in every round. The same
clients meet several servers (federated_servers.py). Printed is how well the benign clients copy held-out
samples, each of its own task: one for all, or a subset of three swaps of letters (family).

From the second round on an adapter is mostly what the server sent. Servers called "since" give that to
`clair refine --since`, which judges and refines what each client changed. Needs peft and transformers;
--plot needs matplotlib.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM

from examples.federated_servers import SERVERS, Round, Sent
from examples.text_copy.evaluate import Quality, average, merged, quality
from examples.text_copy.task import ClientSpec, CohortPlan, Heterogeneity, Kind, training_data
from examples.text_copy.train import (
    BASE_NAME,
    Recipe,
    client_batches,
    default_base,
    fit,
    one_thread,
    train_client,
)

KINDS: tuple[Kind, ...] = ("cipher", "common_cipher", "random")
SHARE = 0.3  # of the clients, rounded down
SAMPLES = 8  # of a client: so few that others help
PANELS: dict[str, Heterogeneity] = {"identical": "none", "family": "family"}
Server = Callable[[Round], Sent | None]
Row = dict[str, Any]
log = logging.getLogger("text_copy")


# Clients


def train_on(spec: ClientSpec, recipe: Recipe, number: int, start: Path, out: Path) -> None:
    """Train the adapter `start` on the client's samples in round `number`, and save it to `out`."""
    model = AutoModelForCausalLM.from_pretrained(default_base(recipe))
    model.name_or_path = model.config.name_or_path = BASE_NAME
    adapted = PeftModel.from_pretrained(model, start, is_trainable=True)
    order = replace(spec, seed=spec.seed + 100 * number)  # of the batches
    fit(adapted, client_batches(order, recipe, training_data(spec)), recipe.learning_rate)
    adapted.save_pretrained(str(out), save_embedding_layers=False)


def copied(adapters: dict[str, Path], benign: list[ClientSpec], base: Path) -> Quality:
    """Mean held-out loss and accuracy of the benign clients, each with its adapter."""
    model = AutoModelForCausalLM.from_pretrained(base)
    weights = {path: merged(base, path) for path in {adapters[spec.name] for spec in benign}}
    return average(quality(model, weights[adapters[s.name]], s) for s in benign)


# Rounds


def panel(
    plan: CohortPlan, recipe: Recipe, servers: list[str], rounds: int, work: Path
) -> Iterator[Row]:
    """Every round of these servers, for the same clients; the first local training is the same too."""
    specs, start = plan.specs(), work / "start"
    train_client(specs[0], replace(recipe, steps=0), default_base(recipe), start)
    for spec in specs:
        train_on(spec, recipe, 1, start, work / "first" / spec.name)
    for name in servers:
        folder = work / name.replace(",", "").replace(" ", "-")
        shutil.copytree(work / "first", folder / "round-01")
        for row in play(SERVERS[name], specs, recipe, rounds, start, folder):
            log.info("%s, seed %s: %s, round %s", work.name, plan.seed, name, row["round"])
            yield {"panel": work.name, "seed": plan.seed, "server": name, **row}


def play(
    server: Server, specs: list[ClientSpec], recipe: Recipe, rounds: int, start: Path, folder: Path
) -> Iterator[Row]:
    """The rounds of one server; what was trained and sent stays in `folder`."""
    benign = [spec for spec in specs if spec.benign]
    good, base = {spec.name for spec in benign}, default_base(recipe)
    bad = frozenset(spec.name for spec in specs) - good
    held = {spec.name: start for spec in specs}
    for number in range(1, rounds + 1):
        here = folder / f"round-{number:02d}"
        for spec in specs if number > 1 else ():
            train_on(spec, recipe, number, held[spec.name], here / spec.name)
        sent = server(Round(here, folder / f"sent-{number:02d}", held, bad))
        held = sent.adapters if sent else held
        averaged = sent.averaged if sent else []
        yield {
            "round": number,
            "local": copied({s.name: here / s.name for s in benign}, benign, base)._asdict(),
            "sent": copied(held, benign, base)._asdict(),
            "averaged": averaged,
            "contaminated_averaged": len(set(averaged) - good),
            "benign_left_out": len(good - set(averaged)) if averaged else 0,
            "no_verdict": sent is None,
        }


# What came out


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def by_round(rows: list[Row], server: str, when: str, what: str) -> list[float]:
    """Mean "loss" or "accuracy" over the seeds."""
    mine = [r for r in rows if r["server"] == server]
    numbers = sorted({r["round"] for r in mine})
    return [mean(r[when][what] for r in mine if r["round"] == n) for n in numbers]


def table(rows: list[Row], when: str) -> str:
    """Accuracy by server and round, the last round's loss, and whom the server averaged."""
    rounds = max(r["round"] for r in rows)
    heads = [f"round {n}" for n in range(1, rounds + 1)] + ["loss"]
    heads += ["contaminated averaged", "benign left out", "no verdict"]
    lines = [["server", *heads], ["---"] * (len(heads) + 1)]
    for server in dict.fromkeys(r["server"] for r in rows):
        mine = [r for r in rows if r["server"] == server]
        cells = [f"{a:.3f}" for a in by_round(rows, server, when, "accuracy")]
        cells.append(f"{by_round(rows, server, when, 'loss')[-1]:.3f}")
        counted = ("contaminated_averaged", "benign_left_out", "no_verdict")
        cells += [str(sum(r[key] for r in mine)) for key in counted]
        lines.append([server, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(rows: list[Row]) -> dict[tuple[str, str], str]:
    """Two tables of each panel: of what the server sent, and after local training."""
    return {
        (name, when): table([r for r in rows if r["panel"] == name], when)
        for name in dict.fromkeys(r["panel"] for r in rows)
        for when in ("sent", "local")
    }


def as_text(rows: list[Row]) -> str:
    """All tables with their titles."""
    titles = {"sent": "what the server sent", "local": "after local training, before the server"}
    return "\n\n".join(
        f"{name}, {titles[when]}: held-out token accuracy of the benign clients\n\n{text}"
        for (name, when), text in tables(rows).items()
    )


def draw(rows: list[Row], path: Path) -> None:
    """Loss by round: a row of axes for what was sent and one for local, a column per panel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys(r["panel"] for r in rows))
    size = {"figsize": (4.5 * len(panels), 6), "sharex": True, "sharey": True, "squeeze": False}
    figure, axes = pyplot.subplots(2, len(panels), **size)
    for column, name in enumerate(panels):
        mine = [r for r in rows if r["panel"] == name]
        for axis, when in zip(axes[:, column], ("sent", "local"), strict=True):
            for server in dict.fromkeys(r["server"] for r in mine):
                ys = by_round(mine, server, when, "loss")
                axis.plot(range(1, len(ys) + 1), ys, marker="o", markersize=3, label=server)
            axis.set_title(f"{name}: {'sent' if when == 'sent' else 'after local training'}")
            axis.set(ylabel="held-out loss, nats", yscale="log", xticks=range(1, len(ys) + 1))
        axis.set_xlabel("round")
    axes[1, 0].legend(fontsize=7, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parse_arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=5)
    add("--clients", type=int, default=10)
    add("--steps", type=int, default=20, help="of local training in a round")
    add("--seed", type=int, nargs="+", default=[9001], help="several: their mean")
    add("--panel", choices=PANELS, nargs="+", default=["identical"])
    add("--server", choices=SERVERS, nargs="+", default=[*SERVERS])
    add("--work", type=Path, help="keep all adapters in this new folder")
    add("--plot", type=Path, help="draw the losses here")
    add("--json", type=Path, help="write every round here")
    return parser.parse_args()


def main() -> None:
    given = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes of clair
    one_thread()
    recipe = Recipe(steps=given.steps, batch=SAMPLES)
    kinds = tuple(KINDS[n % len(KINDS)] for n in range(int(SHARE * given.clients)))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seed:
            for name in given.panel:
                plan = CohortPlan(given.clients, kinds, PANELS[name], samples=SAMPLES, seed=seed)
                folder = (given.work or Path(scratch)) / f"seed-{seed}" / name
                rows += panel(plan, recipe, given.server, given.rounds, folder)
    print(as_text(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")
    if given.plot:
        draw(rows, given.plot)


if __name__ == "__main__":
    main()
