"""The tables of real cohorts: how verdicts are counted, curves drawn, refined losses compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import real_pictures, real_synthetic
from benchmarks import real_refine_tables as refined
from benchmarks import real_tables as tables
from benchmarks.real_cells import keep, load
from benchmarks.real_cohorts import HELD_OUT, Client
from benchmarks.real_judges import said_of
from tests.helpers.real import POOL, judged

# Counting


@pytest.mark.parametrize(
    ("labels", "verdicts", "found", "suspected"),
    [
        (["random", "random"], ["contaminated", "minority"], 2, 0),
        (["random", "other"], ["minority", "minority"], 0, 0),  # alone in its kind
        (["random"], ["minority"], 0, 0),
        (["random"], ["broken"], 1, 0),
        (["random"], ["suspicious"], 0, 0),  # no weak kind
        (["half", "shuffled", "trigger-30"], ["suspicious"] * 3, 0, 3),
        (["trigger-100", "colluder-half"], ["suspicious"] * 2, 0, 0),
        (["random", "half"], [None, None], 0, 0),
    ],
)
def test_who_counts_as_found(
    labels: list[str], verdicts: list[str | None], found: int, suspected: int
) -> None:
    said = tables.contaminated([judged(labels, verdicts)])
    assert sum(s.found for s in said) == found
    assert sum(s.suspected for s in said) == suspected
    assert tables.caught(said) == tables.Counted(found + suspected, len(labels), suspected)


def test_without_a_verdict_nobody_is_convicted() -> None:
    silent = judged(["even", "few-10"], [None, None])
    assert silent.silent
    assert tables.convicted()([silent]) == tables.Counted(0, 2)


def test_an_honest_minority_is_wrong_only_where_it_differs_in_nothing() -> None:
    cohort = judged(["even", "domain-1", "even"], ["minority", "minority", "benign"])
    assert tables.wronged([cohort]) == tables.Counted(1, 2)
    assert not tables.exact(cohort)
    assert tables.exact(judged(["even", "domain-1"], ["benign", "minority"]))


def test_a_set_is_exact_where_all_are_found_and_no_honest_client_is_convicted() -> None:
    assert tables.exact(judged(["even", "random"], ["suspicious", "contaminated"]))
    assert not tables.exact(judged(["even", "random"], ["benign", "suspicious"]))
    assert not tables.exact(judged(["even", "random"], ["contaminated", "contaminated"]))


def test_targets_count_the_cohorts_they_name() -> None:
    own = replace(POOL, own=True)
    said = [
        judged(["even", "half"], ["benign", "suspicious"]),
        judged(["even", "half"], ["benign", "benign"], pool=own),
        judged(["few-10", "even"], ["contaminated", "benign"], condition="few-10"),
    ]
    figures = {t.name: t.cell(said) for t in tables.TARGETS}
    assert figures["half-corrupted, shared A"] == "1.000 (1 of 1, 1 suspicious) yes"
    assert figures["half-corrupted, own A"] == "0.000 (0 of 1) **no**"
    assert figures["- in cohorts unequal by ten"] == "0.500 (1 of 2) **no**"
    assert figures["honest clients contaminated"] == "0.250 (1 of 4) **no**"
    assert figures["thin majorities"] == "-"


def test_tables_keep_the_seeds_apart() -> None:
    held = judged(["even"], ["contaminated"], pool=replace(POOL, seed=HELD_OUT))
    text = tables.targets([judged(["even"], ["benign"]), held])
    assert "| 0.000 (0 of 1) yes | 1.000 (1 of 1) **no** |" in text
    assert "| even | 1 | 0 | 1 | 1 |" in tables.by_condition([held])


def test_a_result_is_used_again_for_the_same_clients_only(tmp_path: Path) -> None:
    cohort = judged(["even", "random"], [None, None]).cohort
    keep(cohort, tmp_path, {"seconds": 1})
    assert load(cohort, tmp_path) is not None
    changed = {**cohort.clients, "0": Client("even-02", True, "even")}
    assert load(replace(cohort, clients=changed), tmp_path) is None


def cell(group: str, clients: list[tuple[str, int, str | None]], **facts: str) -> dict[str, object]:
    """As detection.py writes one: kind, bad and verdict of every client."""
    status = "no_verdict" if clients[0][2] is None else "complete"
    names = {"pool": "p", "what": "w", "init": "own", "kind": "none", "status": status} | facts
    rows = [[kind, bad, verdict, 1.0, ""] for kind, bad, verdict in clients]
    return {**names, "group": group, "clients": rows, "clair": [0.5]}


def test_synthetic_cells_are_counted_as_cohorts_of_here(tmp_path: Path) -> None:
    rows = [
        cell("strong", [("clean", 0, "benign"), ("cipher", 1, "contaminated")]),
        cell("medium", [("clean", 0, "benign"), ("corrupt-50", 1, "suspicious")]),
        cell("thin", [("clean", 0, None), ("cipher", 1, None), ("random", 1, None)]),
        cell("controls", [("clean", 0, "contaminated"), ("short", 0, "minority")]),
        cell("majority", [("clean", 0, "contaminated")]),
    ]
    path = tmp_path / "detection.json"
    path.write_text(json.dumps({"rows": rows}))
    figures = {t.name: t.cell(real_synthetic.cohorts(path)) for t in tables.TARGETS}
    assert figures["honest clients contaminated"] == "0.200 (1 of 5) **no**"
    assert figures["honest clients a minority that they are not"] == "0.000 (0 of 4) yes"
    assert figures["strong kinds, exact sets"] == "1.000 (1 of 1) yes"
    assert figures["half-corrupted, own A"] == "1.000 (1 of 1, 1 suspicious) yes"
    assert figures["thin majorities"] == "0.000 (0 of 2) **no**"


@pytest.mark.parametrize(("status", "verdict"), [("complete", "benign"), ("no_verdict", None)])
def test_a_kept_report_without_a_verdict_has_none_for_anybody(
    tmp_path: Path, status: str, verdict: str | None
) -> None:
    cohort = judged(["even"], [None]).cohort
    clients = [{"id": "0", "verdict": "benign", "score": 0.5}]
    keep(cohort, tmp_path, {"report": {"status": status, "clients": clients}, "seconds": 1})
    said = said_of(cohort, tmp_path)
    assert said is not None
    assert (said.verdicts, said.scores) == ({"0": verdict}, {"0": 0.5})


def test_a_curve_is_the_share_of_each_at_or_above_a_score() -> None:
    honest, bad = real_pictures.curve([3.0, 1.0, 2.0, 0.0], [True, True, False, False])
    assert honest == [0.0, 0.0, 0.5, 0.5, 1.0]
    assert bad == [0.0, 0.5, 0.5, 1.0, 1.0]


# Refinement


def row(condition: str, qualities: dict[str, list[float]], labels: list[str]) -> refined.Row:
    """A row of honest clients with these labels: method -> loss of each."""
    cohort = judged(labels, ["benign"] * len(labels), condition).cohort
    quality = {
        m: {n: (loss, 0.5) for n, loss in zip(cohort.clients, losses, strict=True)}
        for m, losses in qualities.items()
    }
    return refined.Row(cohort, quality)


def test_refinement_is_compared_with_the_better_of_local_and_the_mean_of_the_honest() -> None:
    losses = {"local": [2.0, 2.0], refined.HONEST_MEAN: [1.0, 1.0], "clair": [1.1, 1.3]}
    one = row("few-10", losses, ["even", "few-10"])
    assert refined.to_better(one, "clair") == pytest.approx(1.2)
    assert refined.to_local(one, "clair") == pytest.approx(0.6)
    assert refined.poor_to_rich(one, "clair") == pytest.approx(1.3 / 1.1)


def test_never_above_local_holds_every_cohort_to_it() -> None:
    (never,) = [t for t in refined.TARGETS if t.worst]
    good = row("skew-0.1", {"local": [2.0], "clair": [1.0]}, ["skew-0.1"])
    bad = row("skew-0.1", {"local": [2.0], "clair": [2.1]}, ["skew-0.1"])
    assert never.cell([good]).endswith("yes")
    assert never.cell([good, bad]) == "0.775, worst 1.050, 1 of 2 above **no**"
