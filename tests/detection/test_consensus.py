"""What a report says of those that agree: how many, how much in common, and where they started."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clair_cli import Report, Settings, detect, from_dict, to_dict
from clair_cli.renderers import RENDERERS, text
from clair_cli.report import Consensus
from tests.helpers.builders import orthonormal
from tests.helpers.commands import CLIENTS, CONTAMINATED, SAMPLES, WEIGHTS, samples
from tests.test_report_schema import VALIDATOR

SETTINGS = Settings(device="cpu", threads=1)


@pytest.fixture(scope="module")
def shared() -> Report:
    return detect(SAMPLES, SETTINGS)


def rotated(folder: Path, seed: int) -> Path:
    """Every client's A in an input space of its own: A Q, an own rotation Q for each."""
    samples(folder)
    for k, client in enumerate(CLIENTS):
        draw, file = torch.Generator().manual_seed(seed + k), folder / client / WEIGHTS
        tensors = load_file(file)
        for name in sorted(n for n in tensors if "lora_A" in n):
            q = orthonormal(tensors[name].shape[1], tensors[name].shape[1], draw)
            tensors[name] = (tensors[name].double() @ q).float().contiguous()
        save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return detect(rotated(tmp_path_factory.mktemp("turned") / "round", 110), SETTINGS)


def test_the_consensus_of_the_samples(shared: Report) -> None:
    found = shared.population.consensus
    assert found is not None
    assert found.clients == len(CLIENTS) - len(CONTAMINATED) == 6
    assert found.initialisation == "shared"
    assert found.row_overlap > 0.5
    assert 0 < found.common < found.explained < 1
    assert found.agreement > 0
    assert found.margin > 0
    assert "6 clients" not in text.render(shared).splitlines()[0]
    assert "shared initialisation" in text.render(shared).splitlines()[0]


def test_the_margin_is_that_of_the_verdicts(shared: Report) -> None:
    assert shared.population.consensus is not None
    bad = [c.score or 0 for c in shared.clients if c.verdict == "contaminated"]
    good = [c.score or 0 for c in shared.clients if c.verdict != "contaminated"]
    assert (len(bad), len(good)) == (2, 6)
    assert shared.population.consensus.margin == pytest.approx(min(bad) - max(good))


def test_row_spaces_of_their_own_are_independent_initialisations(
    shared: Report, turned: Report
) -> None:
    """A rotation of the input leaves the outputs' agreement and takes the common part away."""
    before, after = shared.population.consensus, turned.population.consensus
    assert before is not None
    assert after is not None
    assert after.initialisation == "independent"
    assert after.row_overlap == pytest.approx(8 / 64, abs=0.03)  # r / d_in
    assert after.agreement == pytest.approx(before.agreement, abs=1e-4)
    assert after.spread == pytest.approx(before.spread, abs=1e-4)
    assert after.common < 0.05 < before.common
    assert "independent initialisation" in text.render(turned).splitlines()[0]


@pytest.mark.parametrize("seed", [0, 20, 60, 110, 130, 190])
def test_verdicts_do_not_need_one_initialisation(shared: Report, seed: int, tmp_path: Path) -> None:
    """The output-side agreement is what it was, and it alone tells the two from the six."""
    report = detect(rotated(tmp_path / "round", seed), SETTINGS)
    found = {c.client: c.verdict == "contaminated" for c in report.clients}
    assert report.status == "complete"
    assert found == {c.client: c.verdict == "contaminated" for c in shared.clients}


def test_a_cohort_of_honest_clients_has_a_consensus_and_no_margin(tmp_path: Path) -> None:
    honest = tuple(c for c in CLIENTS if c not in CONTAMINATED)
    report = detect(samples(tmp_path / "round", honest), SETTINGS)
    assert report.population.consensus is not None
    assert report.population.consensus.clients == 6
    assert report.population.consensus.margin is None
    VALIDATOR.validate(to_dict(report))


def test_without_a_verdict_there_is_no_consensus(tmp_path: Path) -> None:
    report = detect(samples(tmp_path / "round", CLIENTS[:2]), SETTINGS)
    assert report.status == "no_verdict"
    assert report.population.consensus is None
    assert "initialisation" not in text.render(report)


@pytest.mark.parametrize("name", ["shared", "turned"])
def test_the_block_is_in_the_schema_and_comes_back(
    name: str, request: pytest.FixtureRequest
) -> None:
    report: Report = request.getfixturevalue(name)
    data = json.loads(RENDERERS["json"](report))
    VALIDATOR.validate(data)
    assert data["population"]["consensus"]["clients"] == 6
    back = from_dict(data)
    assert back.population.consensus is not None
    assert report.population.consensus is not None
    for field in fields(Consensus):
        there, value = (getattr(r.population.consensus, field.name) for r in (back, report))
        assert there == (pytest.approx(value, rel=1e-8) if isinstance(value, float) else value)
    assert to_dict(back) == data


def test_stability_and_what_it_hangs_on_come_back(shared: Report) -> None:
    assert {c.stability for c in shared.clients} == {1.0}
    hung = replace(shared.clients[2], stability=0.4, depends_on=("client-01", "client-08"))
    report = replace(shared, clients=(*shared.clients[:2], hung, *shared.clients[3:]))
    data = json.loads(RENDERERS["json"](report))
    VALIDATOR.validate(data)
    back = from_dict(data)
    assert [(c.client, c.stability, c.depends_on) for c in back.clients] == [
        (c.client, c.stability, c.depends_on) for c in report.clients
    ]
    assert back.clients[2].depends_on == ("client-01", "client-08")
    assert "would not hold without any one of client-01, client-08" in text.render(back)
    assert "would not hold" not in text.render(shared)
