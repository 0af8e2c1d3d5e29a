"""The sweep over the constants judges as clair does, and says what each of them changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks import calibration, paper
from benchmarks.calibration import NAMES, Cohort
from benchmarks.calibration_tables import Run, as_json, document
from clair_cli import Settings, detect
from clair_cli.detection.calibration import DETECTION
from tests.helpers.commands import CONTAMINATED, SAMPLES

SMALLER = ("client-01", "client-02", "client-03", "client-04", "client-05", "client-07")


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[Cohort]:
    """All samples, and six of them with one contaminated client, as a file lists them."""
    work = tmp_path_factory.mktemp("cohorts")
    listed = []
    for name, bad in (("all", CONTAMINATED), ("six", ("client-03",))):
        clients = [
            p for p in SAMPLES.iterdir() if p.is_dir() and (name == "all" or p.name in SMALLER)
        ]
        for client in clients:
            shutil.copytree(client, work / name / client.name)
        listed.append({"dir": name, "contaminated": list(bad), "kind": "cipher", "init": "shared"})
    (work / "cohorts.json").write_text(json.dumps(listed))
    return calibration.load(work / "cohorts.json")


def test_a_cohort_in_memory_is_judged_as_its_folder(cohorts: list[Cohort]):
    report = detect(SAMPLES, Settings(threads=1))
    usual = cohorts[0].usual
    assert usual.verdicts == {c.client: c.verdict for c in report.clients}
    assert usual.ranks == tuple(m.shared_rank for m in report.population.modules)
    first = calibration.row("limit", DETECTION.limit, cohorts)
    assert (first.changed, first.honest, first.found, first.exact) == (0, 0, 3, 2)
    assert first.inits == 2


def test_remarks_are_those_of_the_folder_whether_it_is_read_again_or_not(tmp_path: Path):
    shutil.copytree(SAMPLES, tmp_path / "round")
    (tmp_path / "round" / "nothing").mkdir()
    cohort = Cohort(tmp_path / "round", CONTAMINATED, "cipher", "shared")
    report = detect(tmp_path / "round", Settings(threads=1))
    assert report.population.findings
    assert cohort.usual.findings == tuple(sorted({f.code for f in report.population.findings}))
    for name in ("max_columns", "limit"):
        assert cohort.outcome(name, DETECTION) == cohort.usual


def test_every_constant_has_its_values_on_both_sides_within_its_bounds():
    for field in fields(DETECTION):
        usual, (low, high) = getattr(DETECTION, field.name), field.metadata["range"]
        values = calibration.around(field.name)
        assert len(values) == 2 or usual <= 1, field.name
        assert min(values) < usual or len(values) == 1, field.name
        assert max(values) > usual, field.name
        assert all(low <= v <= high for v in values), field.name
        assert {type(v) for v in values} == {type(usual)}, field.name
    assert calibration.around("norm_cap") == [1.5, 6.0]
    assert calibration.around("mostly_same") == [0.45, pytest.approx(0.95)]
    assert calibration.around("suspicious") == [1.0, 2.5]  # less than the limit


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("limit", 100.0, "found"),
        ("suspicious", 0.02, "changed"),
        ("same_rows", 1.0, "inits"),
        ("max_shared_rank", 0, "ranks"),
    ],
)
def test_a_constant_that_must_change_something_does(
    cohorts: list[Cohort], name: str, value: float, what: str
):
    usual = calibration.row(name, getattr(DETECTION, name), cohorts)
    assert getattr(calibration.row(name, value, cohorts), what) != getattr(usual, what)


def test_a_constant_that_is_not_asked_for_is_not_judged_again(
    cohorts: list[Cohort], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calibration, "judged", lambda *_: pytest.fail("judged again"))
    found = calibration.row("lift", 2 * DETECTION.lift, cohorts)  # these are whole updates
    assert (found.asked, found.changed, found.ranks) == (0, 0, 0)
    with pytest.raises(pytest.fail.Exception, match="judged again"):
        calibration.row("limit", 2 * DETECTION.limit, cohorts)


def test_the_table_has_every_constant_and_no_path(cohorts: list[Cohort], tmp_path: Path):
    six = cohorts[1:]
    found = [*calibration.rows(six)]
    assert {r.name for r in found} == {*NAMES}
    told = [*map(calibration.told, six)]
    run = Run(told, found, DETECTION.as_dict(), calibration.facts_of("--cohorts FILE"))
    text = document(run)
    (tmp_path / "calibration.json").write_text(as_json(run))
    assert paper.calibration(tmp_path / "calibration.json", tmp_path) is None
    assert (tmp_path / "calibration.md").read_text() == text
    for name in NAMES:
        assert text.count(f"| {name} |") == len(calibration.around(name)), name
        assert f"{name}" in text.split("| constant |")[0], name
    assert "It convicts 0 of the 5 honest ones.\nIn 1 of 1 cohorts" in text
    assert str(Path(calibration.__file__).parents[1]) not in text
