"""Who stands in the table of benchmarks.beside: how each is started, and whom its answer names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from benchmarks.field import sentry_actions
from benchmarks.speed import START_UP, WEIGHTS


@dataclass(frozen=True, slots=True)
class Place:
    """Where the adapters lie, where an answer goes, and what a run is told."""

    root: Path
    out: Path
    threads: int
    bad: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that takes the folder: what it answers, and how it is started.

    `starts` is what it must import; `dense` is whether it forms updates of full size. `named` says whom
    it names, None where it names nobody.
    """

    name: str
    library: str
    dense: bool
    answer: str
    starts: str
    command: Callable[[Place], list[str]]
    named: Callable[[Place], set[str] | None]


def work(name: str, place: Place) -> list[str]:
    """Of a peer that benchmarks.beside_peers knows."""
    paths = [str(place.root), str(place.out), str(place.bad)]
    return ["-m", "benchmarks.beside_peers", name, *paths]


def answered(place: Place) -> set[str] | None:
    """Whom OUT/answer.json names."""
    found = json.loads((place.out / "answer.json").read_text())
    return None if found is None else set(found)


def sentry(place: Place) -> list[str]:
    """AdapterSentry's batch, nothing of an earlier run in its cache."""
    where = ["--input-dir", str(place.root), "--output-dir", str(place.out)]
    return ["-m", "adaptersentry", "batch", "--workers", str(place.threads), "--no-cache", *where]


def blocked(place: Place) -> set[str]:
    """The clients whose file it would review or block."""
    said = sentry_actions(place.out)
    hashes = {
        path.parent.name: "sha256:" + sha256(path.read_bytes()).hexdigest()
        for path in place.root.glob(f"*/{WEIGHTS}")
    }
    return {client for client, digest in hashes.items() if said.get(digest) != "allow"}


def mergekit(place: Place) -> list[str]:
    """Its merge of raw files, with equal weights; writes the configuration."""
    models = [
        {"model": str(path), "parameters": {"weight": 1.0}}
        for path in sorted(place.root.glob(f"*/{WEIGHTS}"))
    ]
    config = place.out / "merge.yaml"  # JSON is YAML
    config.write_text(json.dumps({"merge_method": "linear", "dtype": "float32", "models": models}))
    call = "from mergekit.scripts.merge_raw_pytorch import main; main()"
    return ["-c", call, str(config), str(place.out / "merged")]


def clair(command: str, place: Place) -> list[str]:
    """A command of clair, with its report as JSON in OUT."""
    report = ["--output", f"json={place.out / 'said.json'}", "--quiet"]
    options = ["--threads", str(place.threads), "--device", "cpu", "--fail-on", "never", *report]
    options += ["--out", str(place.out / "refined")] if command == "refine" else []
    return ["-m", "clair_cli.entry", command, str(place.root), *options]


def verdicts(place: Place) -> set[str]:
    """Whom clair calls contaminated."""
    report = json.loads((place.out / "said.json").read_text())
    return {c["id"] for c in report["clients"] if c["verdict"] == "contaminated"}


def nobody(_: Place) -> None:
    return None


def own(name: str, say: str, library: str, dense: bool, answer: str, starts: str) -> Peer:
    """A peer of benchmarks.beside_peers."""
    return Peer(say, library, dense, answer, starts, partial(work, name), answered)


BYZFL = "import benchmarks.beside_peers, benchmarks.byzfl_alone as b; assert b.aggregators()"
CHORUS = "import benchmarks.beside_peers, chorus.server.aggregation"
PEFT = "import benchmarks.beside_peers, peft"
ONE, VECTOR = "one adapter for all", "one vector for all"
CLAIR = {
    "detect": Peer(
        "clair detect",
        "clair-cli",
        False,
        "a verdict per client, by all",
        START_UP,
        partial(clair, "detect"),
        verdicts,
    ),
    "refine": Peer(
        "clair refine",
        "clair-cli",
        False,
        "the verdicts, an adapter per benign client, and one for all",
        START_UP,
        partial(clair, "refine"),
        verdicts,
    ),
}
PEERS = {
    "peft-svd": own("peft-svd", "PEFT svd", "peft", True, ONE, PEFT),
    "peft-ties-svd": own("peft-ties-svd", "PEFT ties_svd", "peft", True, ONE, PEFT),
    "peft-dare-svd": own("peft-dare-svd", "PEFT dare_linear_svd", "peft", True, ONE, PEFT),
    "peft-dare": own("peft-dare", "PEFT dare_linear", "peft", False, ONE, PEFT),
    "chorus-fedex": own(
        "chorus-fedex", "FedEx-LoRA (chorus-fl)", "chorus-fl", True, f"{ONE}, outliers", CHORUS
    ),
    "chorus-fedavg": own(
        "chorus-fedavg", "FedAvg (chorus-fl)", "chorus-fl", False, f"{ONE}, outliers", CHORUS
    ),
    "mergekit": Peer(
        "mergekit linear",
        "mergekit",
        False,
        ONE,
        "import mergekit.scripts.merge_raw_pytorch",
        mergekit,
        nobody,
    ),
    "krum-dense": own("krum-dense", "byzfl Multi-Krum, dense", "byzfl", True, VECTOR, BYZFL),
    "median-dense": own(
        "median-dense", "byzfl geometric median, dense", "byzfl", True, VECTOR, BYZFL
    ),
    "krum-flat": own("krum-flat", "byzfl Multi-Krum, flat", "byzfl", False, VECTOR, BYZFL),
    "median-flat": own(
        "median-flat", "byzfl geometric median, flat", "byzfl", False, VECTOR, BYZFL
    ),
    "sentry": Peer(
        "AdapterSentry batch",
        "adaptersentry",
        False,
        "a verdict per file, by itself",
        "import adaptersentry.detectors, adaptersentry.parsers, sklearn",
        sentry,
        blocked,
    ),
    "pursuit": own(
        "pursuit",
        "outlier pursuit per module",
        "torch",
        True,
        "the share of each client that is an outlier",
        "import benchmarks.outlier_pursuit",
    ),
    "pcp": own(
        "pcp",
        "PCP per module (skpcp)",
        "skpcp",
        True,
        "the share of each client that is sparse",
        "import benchmarks.beside_peers, skpcp",
    ),
}
