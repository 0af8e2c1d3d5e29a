"""Approximations accuse nobody: a drawn cohort in which they once did, and how differences are told."""

from __future__ import annotations

from benchmarks.same_answers import Asked, compared, differences, table


def test_clients_that_share_nothing_but_outputs_have_no_company_by_sketches() -> None:
    """Each began from an A of its own: cosines are chance there, and that of sketches is larger."""
    row = compared(Asked(70, 8, True, 4049), refined=False)
    assert row["exact_status"] == row["sketched_status"] == "complete"
    assert differences(row, 2.0) == []
    out = [c for c, (verdict, _) in row["sketched"].items() if verdict != "benign"]
    assert out == [f"client-{k:02d}" for k in range(1, 8)]  # those that are five times as large


def test_a_verdict_that_differs_is_far_from_a_limit_or_near() -> None:
    row = {
        "clients": 70,
        "exact": {"a": ["benign", 1.95], "b": ["benign", 0.1], "c": ["suspicious", 2.0]},
        "sketched": {
            "a": ["suspicious", 2.0],
            "b": ["contaminated", 6.6],
            "c": ["suspicious", 2.1],
        },
        "limits": {"a": 3.0, "b": 3.0, "c": 3.0},
    }
    assert differences(row, 2.0) == [("a", 1.95, 2.0, True), ("b", 0.1, 6.6, False)]
    assert "| 70 | 1 | 3 | 2 | 1 |" in table([row])
