"""The adaptive attacker goes as far as clair lets it, and the damage is measured as it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import adaptive, paper
from benchmarks.adaptive_search import (
    FAMILIES,
    GRID,
    STEPS,
    TASKS,
    Attack,
    Cohort,
    Dense,
    Family,
    Search,
    largest,
    vector,
)
from benchmarks.adaptive_tables import as_json, document
from benchmarks.pools import Pool
from benchmarks.saved import Saved, read
from tests.helpers.commands import SAMPLES

BENIGN = [read(SAMPLES / f"client-{k:02}") for k in (1, 2, 4, 5, 7)]
OWN = [read(SAMPLES / "client-08")]
BAD = [read(SAMPLES / "client-06")]
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)


def attack(family: Family) -> Attack:
    return Attack(family, OWN, BENIGN, BAD if family.label else [])


def update(adapter: Saved) -> torch.Tensor:
    return vector(adapter.dense())


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(OWN, BENIGN, tmp_path)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """An attacker on its way to a cipher."""
    cohort = Cohort(OWN, BENIGN, tmp_path_factory.mktemp("cohort"))
    return Search(cohort, attack(FAMILIES[-1]), grid=(0.0, 0.25, 0.5, 1.0), steps=2)


@pytest.mark.parametrize("bound", [0.0, 0.1, 0.3, 0.99, 1.7, 3.2])
def test_the_largest_that_passes(bound: float):
    found = largest(lambda t: t <= bound)
    assert found is not None
    above = next(t for t in GRID if t > bound)
    below = max(t for t in GRID if t <= bound)
    assert bound - (above - below) / 2**STEPS <= found <= bound


def test_an_island_beyond_a_gap_is_found():
    asked = []

    def passes(t: float) -> bool:
        asked.append(t)
        return t <= 0.3 or 0.9 <= t <= 1.4

    assert largest(passes) == 1.375
    assert len(asked) == len(set(asked)) == len(GRID) + STEPS
    assert largest(lambda t: not passes(t)) == GRID[-1]


def test_all_and_nothing():
    assert largest(lambda t: True) == GRID[-1]
    assert largest(lambda t: False) is None


@families
def test_at_zero_an_attacker_sends_its_own(family: Family):
    (sent,) = attack(family).sent(0.0)
    assert (update(sent) - update(OWN[0])).norm() < 1e-5 * update(OWN[0]).norm()
    assert any((sent.factors[m][0] != OWN[0].factors[m][0]).any() for m in sent.factors)


@families
def test_the_goal_is_where_a_step_leads(family: Family):
    """Where the rank allows it exactly, and at least that way where it does not."""
    made = attack(family)
    if made.goal is None:
        assert family.name in ("own noise", "directions in pairs")
        return
    change = update(made.sent(0.5)[0]) - update(OWN[0])
    assert torch.cosine_similarity(change, made.goal, dim=0) > 0.8


def test_trained_targets_are_reached_at_one():
    (sent,) = attack(FAMILIES[-1]).sent(1.0)
    assert (update(sent) - update(BAD[0])).norm() < 1e-5 * update(BAD[0]).norm()


def test_a_flip_goes_through_zero():
    sent = [attack(FAMILIES[0]).sent(t)[0] for t in (0.5, 1.0)]
    assert update(sent[0]).norm() < 1e-5 * update(OWN[0]).norm()
    assert (update(sent[1]) + update(OWN[0])).norm() < 1e-5 * update(OWN[0]).norm()


def test_it_is_found_out_above_the_strength_found(searched: Search):
    goals = searched.strengths()
    unseen, limit = goals["unseen"], goals["limit"]
    assert unseen is not None
    assert limit is not None
    assert 0.25 <= unseen <= limit < 1
    assert searched.judge(unseen).verdicts == ["benign"]
    assert searched.judge(limit).under_limit
    assert searched.judge(1.0).verdicts == ["contaminated"]
    change = update(searched.attack.sent(unseen)[0]) - update(OWN[0])
    size = searched.cohort.mean.norm()
    (weight,) = searched.judge(unseen).weights
    assert searched.planted[unseen] == pytest.approx(float(change.norm() / size) * weight, rel=1e-6)
    assert searched.planted[1.0] == 0


def test_the_attacker_takes_what_plants_most_unseen(searched: Search):
    most = searched.strengths()["most"]
    assert most is not None
    assert searched.judge(most).unseen
    unseen = [t for t, said in searched.said.items() if said.unseen]
    assert searched.planted[most] == max(searched.planted[t] for t in unseen)


def test_no_damage_at_zero(cohort: Cohort):
    search = Search(cohort, attack(FAMILIES[0]))
    assert search.judge(0.0).unseen
    assert search.planted[0.0] < 1e-6
    own, sent = cohort.refined(OWN), cohort.refined(search.attack.sent(0.0))
    assert own.keys() == sent.keys() == {*cohort.names, "global"}
    assert max(adaptive.moved(sent[n], own[n]) for n in own) < 1e-4


def test_the_cohort_alone_is_the_benign_ones(cohort: Cohort):
    assert cohort.alone.keys() == {*cohort.names[:5], "global"}
    shift = vector(cohort.alone["global"]) - cohort.mean
    assert shift.norm() < 0.35 * cohort.mean.norm()  # the mean has a larger rank


@pytest.mark.parametrize("gpt2", [False, True])
def test_weights_are_the_ones_that_peft_merges(gpt2: bool, tmp_path: Path):
    pool = Pool("gpt2" if gpt2 else "llama", 64, False, "none", 8, rank=2)
    base = tmp_path / "base"
    torch.manual_seed(0)
    model = adaptive.AutoModelForCausalLM.from_config(adaptive.train.base_config(pool.recipe))
    model.save_pretrained(base)
    folder = SAMPLES / "client-01"
    if gpt2:
        folder = tmp_path / "client"
        spec = pool.specs()[0]
        recipe = replace(pool.recipe, steps=2)
        adaptive.train.train_client(spec, recipe, base, folder)
    expected = adaptive.evaluate.merged(base, folder)
    reader = adaptive.Reader(pool, base)
    found = reader.merged(read(folder).dense())
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, dict(expected), rtol=1e-5, atol=1e-6)


class Silent:
    """Reads nothing, and notes for whom it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[Dense]] = []

    def quality(self, dense: list[Dense], specs: list[object]) -> adaptive.evaluate.Quality:
        assert len(dense) == len(specs) == TASKS
        self.asked.append(dense)
        return adaptive.evaluate.Quality(0.25, 0.5)

    def obeyed(self, dense: Dense, kind: str) -> float:
        return 0.125


def test_clients_without_a_refined_adapter_go_on_with_their_own(cohort: Cohort):
    reader, first = Silent(), cohort.names[0]
    out = {n: cohort.alone[n] for n in (first, "global")}
    row = adaptive.written(cohort, out, reader, [None] * 5)
    assert row["error"] == row["refined"] == 0
    together, used = reader.asked
    assert all(d is out["global"] for d in together)
    assert used[0] is out[first]
    for dense, adapter in zip(used[1:], BENIGN[1:], strict=False):
        assert (vector(dense) - update(adapter)).norm() == 0
    assert (
        adaptive.written(cohort, {"global": out["global"]}, reader, [None] * 5)["refined"] is None
    )


def test_the_document_names_the_worst(searched: Search, tmp_path: Path):
    reader, common = Silent(), {"pool": "samples", "m": 1}
    search, cohort = searched, searched.cohort
    found = adaptive.case(search, reader, [None] * 5)
    honest = adaptive.damage(search, 0.0, reader, [None] * 5)
    start = {
        "attack": "",
        "without": adaptive.written(cohort, cohort.alone, reader, [None] * 5),
        "honest": honest,
        "obeyed": {FAMILIES[-1].name: dict.fromkeys(("without", "honest", "itself"), 0.0)},
    }
    assert 0 < found["unseen"]["t"] <= found["limit"]["t"] < 1
    assert found["open"]["average poison"] > found["unseen"]["average poison"] > 0
    assert found["open"]["poison"] == 0
    rows = [common | start, common | found]
    text = document(rows, "made by hand")
    (tmp_path / "adaptive.json").write_text(as_json(rows, "made by hand"))
    assert paper.adaptive(tmp_path, tmp_path) is None
    assert (tmp_path / "adaptive.md").read_text() == text
    assert f"poison in the global adapter at most {found['most']['poison']:.0%}" in text
    assert f"| {FAMILIES[-1].name} | 1 | {found['unseen']['t']:.2f} / " in text
    rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3 + 5
    assert len(set(rows[:3])) == len(set(rows[3:])) == 1
    nowhere = common | found | {"unseen": None}
    assert "none in 1." in document([common | start, common | found, nowhere], "")
