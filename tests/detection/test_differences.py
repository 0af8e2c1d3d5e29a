"""Clients that share an unknown part, judged and refined by what they differ in alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from clair_cli import Settings, detect, refine
from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.differences import centred
from clair_cli.detection.stacks import stack_module
from clair_cli.errors import UsageError
from clair_cli.update import LowRankUpdate
from tests.helpers.adapters import CONFIG, MODULES, PREFIX, write_folder
from tests.helpers.commands import CLIENTS, CONTAMINATED, SAMPLES, clair

RANK = 4


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def updates(shared: float, clients: int = 7) -> list[LowRankUpdate]:
    """Equal but for their differences, whatever `shared` is."""
    common = random(12, 2, seed=0) * shared, random(2, 9, seed=1)
    found = []
    for k in range(clients):
        up, down = random(12, 3, seed=10 + k), random(3, 9, seed=30 + k)
        found.append(
            LowRankUpdate(torch.cat([common[0], up], 1), torch.cat([common[1], down]), 2.0)
        )
    return found


def test_only_differences_matter() -> None:
    """One common part or another: the same differences, energies and usual cosine."""
    tables = []
    for shared in (0.0, 1.0, 30.0):
        dense = [u.dense() for u in centred(updates(shared))]
        stack = stack_module("m", centred(updates(shared)))
        tables.append(torch.stack([(a - b).norm() for a in dense for b in dense]))
        cosine = stack.inner / (stack.energies[:, None] * stack.energies).sqrt()
        usual = cosine[~torch.eye(7, dtype=torch.bool)].median()
        assert abs(usual - DETECTION.lift / (1 + DETECTION.lift)) < 0.15
    plain = [u.dense() for u in updates(0.0)]
    truth = torch.stack([(a - b).norm() for a in plain for b in plain])
    for table in tables:
        torch.testing.assert_close(table, truth, rtol=1e-9, atol=1e-6)


def test_float32_keeps_small_differences_of_large_vectors() -> None:
    whole = 100 + random(50, 1, seed=0)
    found = [whole + 1e-4 * random(50, 1, seed=k) for k in range(1, 6)]
    one = torch.ones(1, 1)
    stored = [LowRankUpdate(v.float(), one) for v in found]
    dense = [u.dense().double() for u in centred(stored)]
    for i in range(5):
        for j in range(i):
            truth = (stored[i].up.double() - stored[j].up.double()).norm()
            assert abs((dense[i] - dense[j]).norm() - truth) < 1e-6 * truth


def test_a_client_that_is_not_finite_leaves_the_others_alone() -> None:
    fine = updates(1.0)
    spoiled = LowRankUpdate(fine[0].up * float("nan"), fine[0].down)
    energies = stack_module("m", centred([*fine, spoiled])).energies
    assert not torch.isfinite(energies[-1])
    torch.testing.assert_close(energies[:-1], stack_module("m", centred(fine)).energies)


def moved(client: Path, folder: Path, size: float = 3.0, **config: Any) -> Path:
    """A client's adapter with one more part, the same for all, as PiSSA leaves it."""
    tensors = load_file(client / "adapter_model.safetensors")
    said = json.loads((client / "adapter_config.json").read_text())
    made = {}
    for k, (key, tensor) in enumerate(sorted(tensors.items())):
        draw = torch.Generator().manual_seed(k)
        if ".lora_A." in key:
            extra = torch.randn(RANK, tensor.shape[1], generator=draw) / tensor.shape[1] ** 0.5
            made[key] = torch.cat([tensor, extra.to(tensor)])
        else:
            extra = torch.randn(tensor.shape[0], RANK, generator=draw) / tensor.shape[0] ** 0.5
            usual = 0.1 * size * tensor.shape[0] ** 0.5
            made[key] = torch.cat([tensor, usual * extra.to(tensor)], 1)
    rank = said["r"] + RANK
    said |= {"r": rank, "lora_alpha": said["lora_alpha"] * rank / said["r"]}
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(
        json.dumps(said | {"init_lora_weights": "pissa"} | config)
    )
    (folder / "adapter_model.safetensors").write_bytes(save(made, {"format": "pt"}))
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample adapters as if they had been trained from PiSSA."""
    folder = tmp_path_factory.mktemp("pissa") / "clients"
    for client in CLIENTS:
        moved(SAMPLES / client, folder / client)
    return folder


def test_the_contaminated_are_found_by_differences_and_refused_without(cohort: Path) -> None:
    done = clair("detect", cohort, "--differences", "-f", "json")
    assert done.returncode == 1, done.stderr
    verdicts = {c["id"]: c["verdict"] for c in json.loads(done.stdout)["clients"]}
    assert {c for c, v in verdicts.items() if v == "contaminated"} == CONTAMINATED
    assert {v for c, v in verdicts.items() if c not in CONTAMINATED} == {"benign"}
    without = clair("detect", cohort, "-f", "json")
    assert without.returncode == 3
    reasons = [c["reasons"][0] for c in json.loads(without.stdout)["clients"]]
    assert {r["code"] for r in reasons} == {"CLR108"}
    assert all("--differences" in r["message"] for r in reasons)


def test_what_is_shared_does_not_matter(cohort: Path, tmp_path: Path) -> None:
    for client in CLIENTS:
        moved(SAMPLES / client, tmp_path / client, size=9.0)
    scores = [
        [c.score for c in detect(folder, Settings(differences=True)).clients]
        for folder in (cohort, tmp_path)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("odd", ["plain", "olora", "scale"])
def test_a_client_that_began_otherwise_is_set_aside(odd: str, tmp_path: Path) -> None:
    config = {
        "plain": {"init_lora_weights": True},
        "olora": {"init_lora_weights": "olora"},
        "scale": {"lora_alpha": 1},
    }[odd]
    for client in CLIENTS:
        moved(SAMPLES / client, tmp_path / client, **(config if client == CLIENTS[0] else {}))
    report = detect(tmp_path, Settings(differences=True))
    first, *others = report.clients
    assert (first.verdict, first.reasons[0].code) == ("broken", "CLR104")
    assert "began otherwise" in first.reasons[0].message
    assert {c.client for c in others if c.verdict == "contaminated"} == CONTAMINATED


WIDTH = 40


def simple(folder: Path, **config: Any) -> Path:
    """Six clients of one A, so that averages have the rank of each."""
    rows = {m: random(2, 5, seed=i).float() for i, m in enumerate(MODULES)}
    for k in range(6):
        tensors = {}
        for i, module in enumerate(MODULES):
            both = 3 * random(WIDTH, 2, seed=50 + i) + random(WIDTH, 2, seed=60 + 9 * k + i)
            tensors[f"{PREFIX}{module}.lora_A.weight"] = rows[module]
            tensors[f"{PREFIX}{module}.lora_B.weight"] = both.float()
            if config.get("use_dora"):
                near = 1 + 0.01 * random(WIDTH, seed=70 + 9 * k + i)
                tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = near.float()
        write_folder(folder / f"client-{k}", tensors, CONFIG | config)
    return folder


def products(folder: Path) -> dict[str, Tensor]:
    found = load_file(folder / "adapter_model.safetensors")
    names = {k.partition(".lora_")[0] for k in found}
    return {n: found[f"{n}.lora_B.weight"] @ found[f"{n}.lora_A.weight"] for n in names}


def test_refining_moves_differences_and_nothing_that_is_shared(tmp_path: Path) -> None:
    folder = simple(tmp_path / "in", init_lora_weights="pissa")
    everybody = tuple(f"client-{k}" for k in range(6))
    settings = Settings(differences=True, path=(0.5,), include=everybody)
    assert refine(folder, tmp_path / "out", settings).refinement is not None
    own = [products(folder / f"client-{k}") for k in range(6)]
    for k in range(6):
        written = products(tmp_path / "out" / "strength-0.5" / f"client-{k}")
        for name, value in written.items():
            mean = torch.stack([o[name] for o in own]).mean(0)
            expected = mean + 0.5 * (own[k][name] - mean)
            assert (value - expected).norm() < 1e-5 * expected.norm()


def test_one_client_that_cannot_be_written_back_costs_itself_its_adapter(tmp_path: Path) -> None:
    simple(tmp_path / "in")
    simple(tmp_path / "dora", use_dora=True)
    shutil.rmtree(tmp_path / "in" / "client-2")
    expected = refine(tmp_path / "in", tmp_path / "without")
    shutil.copytree(tmp_path / "dora" / "client-2", tmp_path / "in" / "client-2")
    everybody = tuple(f"client-{k}" for k in range(6))
    report = refine(tmp_path / "in", tmp_path / "out", Settings(include=everybody))
    assert expected.refinement is not None
    assert report.refinement is not None
    assert [c.client for c in report.refinement.clients] == [c for c in everybody if c[-1] != "2"]
    (client,) = [c for c in report.clients if c.client == "client-2"]
    (said,) = [r for r in client.reasons if r.code == "CLR121"]
    assert "client-2 is DoRA" in said.message
    assert not (tmp_path / "out" / "client-2").exists()


def test_dora_is_refined_only_where_that_is_allowed(tmp_path: Path) -> None:
    folder = simple(tmp_path / "in", use_dora=True)
    refused = clair("refine", folder, "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert "client-0 is DoRA" in refused.stderr
    assert "--allow-dora" in refused.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="--allow-dora"):
        refine(folder, tmp_path / "out")
    options = [x for k in range(6) for x in ("--include", f"client-{k}")]
    done = clair("refine", folder, "--out", tmp_path / "out", "--allow-dora", "--global", *options)
    assert done.returncode == 0, done.stderr
    assert "every client keeps its own magnitudes" in done.stdout
    before = [load_file(folder / f"client-{k}" / "adapter_model.safetensors") for k in range(6)]
    for k in range(6):
        after = load_file(tmp_path / "out" / f"client-{k}" / "adapter_model.safetensors")
        same = {key for key, value in before[k].items() if torch.equal(after[key], value)}
        assert same == {key for key in after if "magnitude" in key}
    common = load_file(tmp_path / "out" / "global" / "adapter_model.safetensors")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    weights = torch.tensor([c["weight"] for c in report["refinement"]["clients"]])
    assert (weights > 0).all()
    for key in (key for key in common if "magnitude" in key):
        every = torch.stack([b[key] for b in before])
        mean = (weights[:, None] * every).sum(0) / weights.sum()
        torch.testing.assert_close(common[key], mean)


def test_magnitudes_are_judged_beside_the_factors(tmp_path: Path) -> None:
    folder = simple(tmp_path / "in", use_dora=True)
    file = folder / "client-2" / "adapter_model.safetensors"
    tensors = load_file(file)
    for key in tensors:
        if "magnitude" in key:
            tensors[key] = tensors[key] + 0.5 * random(WIDTH, seed=99).float()
    file.write_bytes(save(tensors, {"format": "pt"}))
    report = detect(folder)
    judged = {m.name for m in report.population.modules}
    assert judged == {*MODULES, *(f"{m}.lora_magnitude_vector" for m in MODULES)}
    worst = max(report.clients, key=lambda c: c.score or 0)
    assert worst.client == "client-2"
    scores = {m.name: m.score for m in worst.modules}
    assert min(s for n, s in scores.items() if "magnitude" in n) > 3
    assert max(s for n, s in scores.items() if "magnitude" not in n) < 2
