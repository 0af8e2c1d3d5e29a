"""What servers make of a round of LoRA adapters; `clair refine` is one of them, run as a command.

A server gets the round's folder, one adapter in it per client, all of one rank and one alpha.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NO_VERDICT = 3  # clair's exit code
Update = dict[str, Tensor]
"""Module, as PEFT names it -> Delta W (d_out, d_in)."""


@dataclass(frozen=True, slots=True)
class Round:
    """What the server has to work with."""

    folder: Path  # one adapter per client
    out: Path  # where it may write, not there yet
    held: dict[str, Path]  # the adapter that each client started from
    bad: frozenset[str]  # the contaminated clients, for servers that must be told

    @property
    def clients(self) -> list[str]:
        """Sorted."""
        return sorted(self.held)


class Sent(NamedTuple):
    """What the server sends."""

    adapters: dict[str, Path]  # of each client
    averaged: list[str]  # clients that went into it


def nothing(given: Round) -> Sent:
    """No server: every client goes on from its own adapter."""
    return Sent({name: given.folder / name for name in given.clients}, [])


def mean_of_factors(given: Round) -> Sent:
    """FedAvg of A and of B, all clients: the mean of Delta W only where all have one A."""
    like = given.folder / given.clients[0]
    sent = [load_file(given.folder / name / WEIGHTS) for name in given.clients]
    tensors = {key: torch.stack([s[key] for s in sent]).mean(0) for key in sent[0]}
    path = write(tensors, like, given.out / "global")
    return Sent(dict.fromkeys(given.clients, path), given.clients)


def mean_of_updates(given: Round) -> Sent:
    """FedAvg of Delta W, all clients."""
    return broadcast(given, given.clients)


def mean_without_attackers(given: Round) -> Sent:
    """FedAvg of Delta W of the benign clients, as if somebody knew who they are."""
    return broadcast(given, [name for name in given.clients if name not in given.bad])


def multi_krum(given: Round) -> Sent:
    """Mean Delta W of the K - f clients nearest to their K - f - 2 neighbours.

    Blanchard et al., NeurIPS 2017; f is told.
    """
    updates = [update(given.folder / name) for name in given.clients]
    flat = torch.stack([torch.cat([m.flatten() for m in u.values()]) for u in updates]).double()
    exact = "donot_use_mm_for_euclid_dist"
    near = torch.cdist(flat, flat, compute_mode=exact).square().sort(dim=1).values
    keep = len(updates) - len(given.bad)
    order = near[:, 1 : keep - 1].sum(dim=1).argsort(stable=True)  # 0 is the client itself
    return broadcast(given, [given.clients[k] for k in sorted(order[:keep].tolist())])


def clair_global(given: Round) -> Sent | None:
    """clair's mean of the benign to everybody; None without a verdict."""
    return to_all(given, refine(given))


def clair_personal(given: Round) -> Sent | None:
    """To a client its refined adapter, else clair's mean of the benign; None without a verdict."""
    return to_each(given, refine(given))


def clair_global_since(given: Round) -> Sent | None:
    """As `clair_global`, by what each client changed in this round."""
    return to_all(given, refine(given, "--since", since(given)))


def clair_personal_since(given: Round) -> Sent | None:
    """As `clair_personal`, by what each client changed in this round; to whom is not benign, the mean.

    Else a contaminated minority would get adapters of its own, and go on from them.
    """
    report, sent = given.out.with_suffix(".json"), ("--since", since(given))
    if not clair("detect", given.folder, *sent, "-o", f"json={report}", "--fail-on", "never"):
        return None
    odd = [name for name, verdict in read_verdicts(report).items() if verdict != "benign"]
    benign = refine(given, *sent, *(option for name in odd for option in ("--exclude", name)))
    return to_each(given, [n for n in benign if n not in odd] if benign else None)


SERVERS: dict[str, Callable[[Round], Sent | None]] = {
    "no server": nothing,
    "FedAvg of factors": mean_of_factors,
    "FedAvg of Delta W": mean_of_updates,
    "FedAvg without attackers, told": mean_without_attackers,
    "Multi-Krum, told f": multi_krum,
    "clair, global": clair_global,
    "clair, personal": clair_personal,
    "clair, global, since": clair_global_since,
    "clair, personal, since": clair_personal_since,
}
"""None: no verdict."""


def refine(given: Round, *options: object) -> list[str] | None:
    """`clair refine --global` into `out`: the benign clients, None without a verdict."""
    rank = config(given.folder / given.clients[0])["r"]  # which stays what it is
    options = ("--global", "--global-rank", rank, *options)
    if not clair("refine", given.folder, "--out", given.out, *options):
        return None
    verdicts = read_verdicts(given.out / "report.json")
    return [name for name, verdict in verdicts.items() if verdict == "benign"]


def since(given: Round) -> Path:
    """What was sent before this round: one adapter, or the folder that holds each client's own."""
    sent = {*given.held.values()}
    return sent.pop() if len(sent) == 1 else next(iter(sent)).parent


def clair(*arguments: object) -> bool:
    """Run the command line; False is no verdict."""
    command = [sys.executable, "-m", "clair_cli.entry", *map(str, arguments), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, NO_VERDICT):
        sys.exit(f"clair {arguments[0]} ended with {done.returncode}: {done.stderr}")
    return done.returncode == 0


def read_verdicts(report: Path) -> dict[str, str]:
    """Client -> verdict."""
    return {c["id"]: c["verdict"] for c in json.loads(report.read_text())["clients"]}


def to_all(given: Round, benign: list[str] | None) -> Sent | None:
    """The global adapter that `refine` wrote."""
    adapters = dict.fromkeys(given.clients, given.out / "global")
    return None if benign is None else Sent(adapters, benign)


def to_each(given: Round, benign: list[str] | None) -> Sent | None:
    """The refined adapters that `refine` wrote, else the global one."""
    own = {name: given.out / name for name in given.clients}
    adapters = {n: path if path.is_dir() else given.out / "global" for n, path in own.items()}
    return None if benign is None else Sent(adapters, benign)


# Adapters as files


def config(adapter: Path) -> dict[str, Any]:
    """adapter_config.json."""
    read: dict[str, Any] = json.loads((adapter / CONFIG).read_text())
    return read


def update(adapter: Path) -> Update:
    """Delta W of all modules."""
    saved, said = load_file(adapter / WEIGHTS), config(adapter)
    scale = said["lora_alpha"] / said["r"]
    modules = sorted(k.removesuffix(".lora_A.weight") for k in saved if "lora_A" in k)
    return {m: scale * saved[f"{m}.lora_B.weight"] @ saved[f"{m}.lora_A.weight"] for m in modules}


def factors(delta: Update, like: Path) -> dict[str, Tensor]:
    """PEFT's tensors nearest to `delta` at the rank and alpha of `like`, A and B of one size."""
    said, tensors = config(like), {}
    for module, matrix in delta.items():
        u, s, vt = torch.linalg.svd(matrix * said["r"] / said["lora_alpha"], full_matrices=False)
        root = s[: said["r"]].sqrt()
        tensors[f"{module}.lora_B.weight"] = (u[:, : said["r"]] * root).contiguous()
        tensors[f"{module}.lora_A.weight"] = (root[:, None] * vt[: said["r"]]).contiguous()
    return tensors


def write(tensors: dict[str, Tensor], like: Path, out: Path) -> Path:
    """Save an adapter with the configuration of `like` to the new folder `out`."""
    out.mkdir(parents=True)
    shutil.copyfile(like / CONFIG, out / CONFIG)
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    return out


def broadcast(given: Round, averaged: list[str]) -> Sent:
    """The mean Delta W of some clients to everybody."""
    like = given.folder / given.clients[0]
    updates = [update(given.folder / name) for name in averaged]
    mean = {module: torch.stack([u[module] for u in updates]).mean(0) for module in updates[0]}
    path = write(factors(mean, like), like, given.out / "global")
    return Sent(dict.fromkeys(given.clients, path), averaged)
