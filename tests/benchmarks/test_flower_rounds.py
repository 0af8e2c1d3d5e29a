"""The table of the benchmark of Flower's strategies, from rounds that are known."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.flower_rounds import SERVERS, losses, marked, table


def rounds(scale: float, clair: bool) -> list[dict[str, Any]]:
    plain = [{"round": n, "loss": scale / n, "accuracy": 0.25 * n} for n in (1, 2)]
    left = {"left_out": {"client-1": "contaminated", "client-3": "contaminated"}}
    return [r | left | {"contaminated": 2} for r in plain] if clair else plain


def runs() -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    bad = frozenset({"client-1", "client-2"})
    return {
        ("none", server, seed): marked(rounds(seed, server.startswith("clair")), bad)
        for server in SERVERS
        for seed in (1, 3)
    }


def test_losses_are_means_over_the_seeds() -> None:
    assert losses(runs(), "none", "FedAvg") == pytest.approx([2.0, 1.0])


def test_the_table_counts_over_all_rounds_and_seeds() -> None:
    lines = table(runs(), "none", 2).splitlines()
    assert len(lines) == 2 + len(SERVERS)
    assert lines[2] == "| FedAvg | 2.000 | 1.000 | 0.500 | - | - |"
    assert lines[-1] == "| clair, refined | 2.000 | 1.000 | 0.500 | 4 of 8 | 4 |"
