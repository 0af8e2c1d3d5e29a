"""Real cohorts that no training made: adapters, a folder of colluders, what was said of whom."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.real_cohorts import SET, SHARES, Client, Cohort, put
from benchmarks.real_judges import Judged
from benchmarks.real_pools import HARMED, Pool
from benchmarks.saved import Saved, write

POOL = Pool("sms", "all", False, SET)


def adapter(seed: int, rank: int = 4) -> Saved:
    """Random, of two modules."""
    draw = torch.Generator().manual_seed(seed)
    factors = {
        m: (torch.randn(20, rank, generator=draw), torch.randn(rank, 12, generator=draw))
        for m in ("q", "v")
    }
    return Saved(factors, {"r": rank, "lora_alpha": 2 * rank, "peft_type": "LORA"})


def colluding(work: Path) -> Cohort:
    """Three colluders and an honest client, written to `work`/round from `work`/pools."""
    clients = {
        f"client-{n:02d}": Client(f"even-{n:02d}", n == 4, "even" if n == 4 else "colluder-half")
        for n in range(1, 5)
    }
    cohort = Cohort("plot", POOL, "even", "colluder-half", clients)
    for n, client in enumerate(clients.values()):
        write(adapter(n), work / "pools" / POOL.name / client.source)
    put(cohort, work / "pools", work / "round")
    return cohort


def judged(
    labels: list[str], verdicts: list[str | None], condition: str = "even", pool: Pool = POOL
) -> Judged:
    """A cohort of clients with these labels, and what was said of them."""
    bad = {*HARMED, *SHARES}
    clients = {
        str(n): Client(f"{label}-01", label not in bad, label, "domain" * ("domain" in label))
        for n, label in enumerate(labels)
    }
    kinds = {label for label in labels if label in bad}
    kind = "mixed" if len(kinds) > 1 else next(iter(kinds), "none")
    said = dict(zip(clients, verdicts, strict=True))
    return Judged(Cohort("c", pool, condition, kind, clients), said, dict.fromkeys(said, 1.0), 1.0)
