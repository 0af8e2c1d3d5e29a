"""Clients that fine-tune all weights of one small network on little data, some of them on wrong data.

A network is trained on a common task. Then the task shifts, for everybody in the same way and for
every client a little in its own; each client fine-tunes all weights on its own few noisy samples, the
first ones on targets that have nothing to do with their inputs. `clair` sees state dicts and the base
model's, nothing else, finds the contaminated clients and refines the others:

    python examples/small_network.py [--seed N] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

CLIENTS, CONTAMINATED = 20, 6
INPUTS, HIDDEN, OUTPUTS, SAMPLES, STEPS = 24, 64, 12, 64, 60
SHIFT, OWN, NOISE = 0.6, 0.25, 0.5
"""How far the task shifts for all and for each, relative to itself; noise of the targets."""


def network(seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def moved(model, amount, seed):
    """The network with every weight moved at random, by `amount` of its size."""
    found, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in found.parameters():
            p += amount * p.std() * torch.randn(p.shape, generator=draw)
    return found


def samples(task, count, seed, noise=0.0):
    """Inputs and what `task` makes of them, in units of its own spread."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, INPUTS, generator=draw)
    with torch.no_grad():
        y = task(x) * 5
    return x, y + noise * torch.randn(y.shape, generator=draw)


def trained(model, x, y, steps):
    """The network after `steps` of Adam on all samples."""
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        adam.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        adam.step()
    return model


def loss(state, x, y):
    model = network(0)
    model.load_state_dict(state)
    with torch.no_grad():
        return float(nn.functional.mse_loss(model(x), y))


def clair(*arguments):
    """Run the command line; 1 is its exit code for a finding."""
    command = [sys.executable, "-m", "clair_cli.entry", *map(str, arguments)]
    done = subprocess.run(command, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"clair {arguments[0]} failed with exit code {done.returncode}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep everything in this new folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(options.work or Path(folder) / "network", 1000 * options.seed)


def run(work, seed):
    if (work / "round").exists():
        raise SystemExit(f"{work}: holds the files of another run; give a new folder")
    (work / "round").mkdir(parents=True)
    common = network(seed)
    base = trained(network(seed + 1), *samples(common, 1000, seed + 2), steps=400)
    save_file(base.state_dict(), work / "base.safetensors")

    shifted = moved(common, SHIFT, seed + 3)
    tasks = [moved(shifted, OWN, seed + 10 + k) for k in range(CLIENTS)]
    names = [f"client-{k:02d}" for k in range(1, CLIENTS + 1)]
    for k, (name, task) in enumerate(zip(names, tasks, strict=True)):
        x, y = samples(task, SAMPLES, seed + 100 + k, NOISE)
        if k < CONTAMINATED:
            y = y[torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(seed + k))]
        state = trained(copy.deepcopy(base), x, y, STEPS).state_dict()
        save_file(state, work / "round" / f"{name}.safetensors")

    clair("detect", work / "round", "--base", work / "base.safetensors")
    clair(
        "refine", work / "round", "--base", work / "base.safetensors",
        "--out", work / "refined", "-q",
    )  # fmt: skip
    judged(work, names, [samples(task, 1000, seed + 200 + k) for k, task in enumerate(tasks)])


def judged(work, names, held_out):
    """What was found, and the loss on held-out data without noise."""
    report = json.loads((work / "refined" / "report.json").read_text())
    verdicts = {c["id"]: c["verdict"] for c in report["clients"]}
    wrong = [n for k, n in enumerate(names) if (verdicts[n] == "benign") == (k < CONTAMINATED)]
    print(f"\nverdicts wrong: {len(wrong)} of {CLIENTS} {wrong or ''}")

    local = [load_file(work / "round" / f"{n}.safetensors") for n in names]
    honest = [k for k in range(CONTAMINATED, CLIENTS) if verdicts[names[k]] == "benign"]
    refined = {
        k: load_file(work / "refined" / names[k] / f"{names[k]}.safetensors") for k in honest
    }
    base, everybody = load_file(work / "base.safetensors"), mean(local)
    benign = mean([local[k] for k in honest])
    rows = {
        "base": lambda k: base,
        "local": lambda k: local[k],
        "plain average of all": lambda k: everybody,
        "average of the benign": lambda k: benign,
        "refined": lambda k: refined[k],
    }
    print(f"mean squared error of {len(honest)} benign clients on held-out data")
    for name, state in rows.items():
        losses = [loss(state(k), *held_out[k]) for k in honest]
        print(f"  {name:22} {sum(losses) / len(losses):.3f}")


def mean(states):
    return {key: torch.stack([s[key] for s in states]).mean(dim=0) for key in states[0]}


if __name__ == "__main__":
    main()
