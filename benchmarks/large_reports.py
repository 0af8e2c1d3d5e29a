"""Reports of drawn numbers, as large as a real cohort's."""

from __future__ import annotations

import numpy as np

from clair_cli.detection.portrait import agreement_of
from clair_cli.report import (
    Agreement,
    Cause,
    Consensus,
    ModuleFinding,
    ModuleSummary,
    Population,
    Rarity,
    Rate,
    Reason,
    Report,
    Verdict,
)
from clair_cli.settings import Settings

EVERY = 20
"""One client in so many is contaminated."""


def large(clients: int, modules: int) -> Report:
    """A report of `clients` with scores in `modules` each, files, agreement and reasons."""
    draw = np.random.default_rng(7)
    names = [f"model.layers.{n // 7}.self_attn.kind_{n % 7}_proj" for n in range(modules)]
    who = [f"client-{k:04d}" for k in range(clients)]
    files = [{"name": "adapter_model.safetensors", "size": 10**7, "sha256": draw.bytes(32).hex()}]
    consensus = Consensus(clients, "shared", 0.9, 0.3, 0.1, 0.4, 0.6, 2.0)
    shapes = tuple(ModuleSummary(m, (4096, 4096), 3, 0.6, 0.0, (0.4, 0.2, 0.1)) for m in names)
    verdicts = tuple(_verdict(draw, name, k % EVERY == 0, names) for k, name in enumerate(who))
    agreement = _agreement(draw, who)
    return Report(
        tool={"name": "clair", "version": "0"},
        run={"started_at": "2026-01-01T00:00:00Z", "duration_s": 1.0, "command": None},
        inputs={"root": "large", "clients": [{"id": name, "files": files} for name in who]},
        settings=Settings().as_dict(),
        status="complete",
        exit_code=1,
        population=Population((), shapes, consensus, agreement=agreement),
        clients=verdicts,
    )


def _verdict(draw: np.random.Generator, name: str, bad: bool, modules: list[str]) -> Verdict:
    scores = draw.gamma(2.0, 0.3, len(modules)) + 4 * bad
    found = tuple(
        ModuleFinding(m, 0.1, 1.0, float(s)) for m, s in zip(modules, scores, strict=True)
    )
    reasons = (Reason("CLR209", "lacks what the others share: 3 % of it is there", 0.03, 0.5),)
    said = "contaminated" if bad else "benign"
    return Verdict(
        name,
        said,  # type: ignore[arg-type]
        float(scores.mean()),
        3.0,
        1.0,
        reasons=reasons * bad,
        modules=found,
        cause=Cause("lacks" if bad else None, *draw.gamma(9.0, 0.1, 4).tolist(), "client-0001"),
        rarity=Rarity(21, 9791, None, Rate(0, 5052), Rate(21, 4739)),
        rank=16,
    )


def _agreement(draw: np.random.Generator, names: list[str]) -> Agreement:
    rows = draw.standard_normal((len(names), 64)) + 1
    rows[::EVERY] -= 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return agreement_of(tuple(names), rows @ rows.T, "direction")
