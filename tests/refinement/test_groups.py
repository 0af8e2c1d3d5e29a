"""Minorities are refined within themselves, and heads are averaged or left alone, on the disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clair_cli import Settings, open_adapter, read_update, refine
from clair_cli.pipeline import examined, opened
from clair_cli.refinement.plan import Group, plan_refinement
from clair_cli.refinement.write import write_refined
from tests.helpers.adapters import PREFIX
from tests.helpers.cohorts import Array, save_cohort
from tests.helpers.commands import WEIGHTS

HEAD = f"{PREFIX}score.weight"
COUNT = 9


def dense(folder: Path) -> Array:
    adapter = open_adapter(folder)
    return np.stack([read_update(adapter, m, "float64").dense() for m in sorted(adapter.updates)])


def with_heads(folder: Path, heads: dict[str, torch.Tensor]) -> None:
    """Adds a head to every client named."""
    for client, head in heads.items():
        file = folder / client / WEIGHTS
        save_file(load_file(file) | {HEAD: head}, file, {"format": "pt"})
        config = folder / client / "adapter_config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"modules_to_save": ["score"]})
        )


def drawn_heads(clients: list[str], common: float) -> dict[str, torch.Tensor]:
    """Heads of norm about 1 by client, of which all share a part of this norm."""
    draw = torch.Generator().manual_seed(2)
    shared = common * torch.randn(3, 32, generator=draw) / 96**0.5
    return {c: shared + torch.randn(3, 32, generator=draw) / 96**0.5 for c in clients}


@pytest.fixture
def clients() -> list[str]:
    return [f"client-{k}" for k in range(1, COUNT + 1)]


def refined(folder: Path, out: Path, **settings: Any) -> Any:
    report = refine(folder, out, Settings(write_global=True, threads=1, **settings))
    assert report.refinement is not None
    return report.refinement


# --- heads


def test_heads_that_share_something_are_refined_like_the_rest(
    tmp_path: Path, clients: list[str]
) -> None:
    save_cohort(tmp_path / "in", COUNT)
    heads = drawn_heads(clients, 1.0)
    with_heads(tmp_path / "in", heads)
    done = refined(tmp_path / "in", tmp_path / "out", tasks="related")
    assert len(done.full_matrices) == 1
    weights = {c.client: c.weight for c in done.clients}
    mean = sum(weights[c] * heads[c] for c in clients)
    for client in done.clients:
        found = load_file(tmp_path / "out" / client.client / WEIGHTS)[HEAD]
        wanted = mean + (1 - client.strength) * (heads[client.client] - mean)
        assert torch.allclose(found, wanted.float(), atol=1e-6)
    found = load_file(tmp_path / "out" / "global" / WEIGHTS)[HEAD]
    assert torch.allclose(found, mean.float(), atol=1e-6)
    assert all((found - head).norm() > 0.1 for head in heads.values())


def test_no_global_adapter_has_the_head_of_one_client(tmp_path: Path, clients: list[str]) -> None:
    """Where heads have nothing in common every client keeps its own, and there is no mean of them."""
    save_cohort(tmp_path / "in", COUNT)
    heads = drawn_heads(clients, 0.0)
    with_heads(tmp_path / "in", heads)
    done = refined(tmp_path / "in", tmp_path / "out")
    assert done.mean is None
    assert not (tmp_path / "out" / "global").exists()
    assert any("global/ is not written" in w for w in done.warnings)
    assert any("keeps its own" in w for w in done.warnings)
    for client, head in heads.items():
        assert torch.equal(load_file(tmp_path / "out" / client / WEIGHTS)[HEAD], head)


def test_strength_zero_keeps_every_head(tmp_path: Path, clients: list[str]) -> None:
    save_cohort(tmp_path / "in", COUNT)
    heads = drawn_heads(clients, 1.0)
    with_heads(tmp_path / "in", heads)
    refined(tmp_path / "in", tmp_path / "out", strength=0.0)
    for client, head in heads.items():
        assert torch.equal(load_file(tmp_path / "out" / client / WEIGHTS)[HEAD], head)


# --- labels of their own


def frequent(clients: list[str], own: list[str]) -> dict[str, torch.Tensor]:
    """Heads that share something, of which those of `own` moved along one input direction, too."""
    heads, draw = drawn_heads(clients, 1.0), torch.Generator().manual_seed(3)
    mean = torch.randn(32, generator=draw)
    for client in own:
        heads[client] = heads[client] + 2 * torch.randn(3, 1, generator=draw) * mean / mean.norm()
    return heads


def planned(folder: Path, suspicious: list[str]) -> Group:
    """The majority's plan, where these are suspicious, and give nothing."""
    settings = Settings(threads=1, refine_suspicious=True)
    found = examined(opened(folder, settings), settings)
    assert found.judgement is not None
    verdicts = tuple(
        replace(v, verdict="suspicious" if v.client in suspicious else "benign")
        for v in found.judgement.verdicts
    )
    return plan_refinement(found, verdicts, settings, {}).groups[0]


def test_a_suspicious_client_with_labels_of_its_own_keeps_what_is_its_own(
    tmp_path: Path, clients: list[str]
) -> None:
    own = clients[6:]
    for name, heads in (("own", frequent(clients, own)), ("none", frequent(clients, []))):
        save_cohort(tmp_path / name, COUNT)
        for k, client in enumerate(own):  # much error: what would be taken for little data
            file = tmp_path / name / client / WEIGHTS
            noise = torch.Generator().manual_seed(k)
            tensors = {
                key: x
                + (2 * x.std() * torch.randn(x.shape, generator=noise) if "lora_B" in key else 0)
                for key, x in load_file(file).items()
            }
            save_file(tensors, file, {"format": "pt"})
        with_heads(tmp_path / name, heads)
    keeps = {
        name: dict(zip((a.client for a in g.clients), g.keeps[0], strict=True))
        for name in ("own", "none")
        for g in [planned(tmp_path / name, own)]
    }
    assert all(keeps["own"][client] == 1 for client in own)
    assert all(keeps["none"][client] < 1 for client in own)


def test_copies_of_a_client_with_labels_of_its_own_count_as_one(
    tmp_path: Path, clients: list[str]
) -> None:
    save_cohort(tmp_path / "in", COUNT)
    with_heads(tmp_path / "in", frequent(clients, clients[8:]))
    before = planned(tmp_path / "in", clients[8:]).known.own_labels
    for n in range(5):
        shutil.copytree(tmp_path / "in" / clients[8], tmp_path / "in" / f"copy-{n}")
    after = planned(tmp_path / "in", [*clients[8:], *(f"copy-{n}" for n in range(5))])
    assert after.known.own_labels == before


# --- minorities


def test_a_minority_is_refined_within_itself(tmp_path: Path, clients: list[str]) -> None:
    """Its members get their own mean, and count for nothing in the majority's."""
    save_cohort(tmp_path / "in", COUNT)
    settings = Settings(
        tasks="same", strength=1.0, subspace_rank=0, rank="exact", write_global=True
    )
    found = examined(opened(tmp_path / "in", settings), settings)
    apart = (0, 3, 4)
    judgement = found.judgement
    assert judgement is not None
    names = [clients[k] for k in apart]
    verdicts = tuple(
        replace(v, verdict="minority" if v.client in names else "benign")
        for v in judgement.verdicts
    )
    found = replace(found, judgement=replace(judgement, minorities=(apart,)))
    (tmp_path / "out").mkdir()
    plan = plan_refinement(found, verdicts, settings, {})
    assert [len(g.clients) for g in plan.groups] == [COUNT - 3, 3]
    done = write_refined(plan, tmp_path / "out").refinement
    assert {c.client: c.group for c in done.clients} == {c: int(c in names) for c in clients}
    means = []
    for number in (0, 1):
        group = [c for c in done.clients if c.group == number]
        assert sum(c.weight for c in group) == pytest.approx(1)
        mean = sum(c.weight * dense(tmp_path / "in" / c.client) for c in group)
        means.append(mean)
        for client in group:
            written = dense(tmp_path / "out" / client.client)
            assert np.linalg.norm(written - mean) <= 1e-5 * np.linalg.norm(mean)
    assert np.linalg.norm(means[0] - means[1]) > 0.1 * np.linalg.norm(means[0])
    exact = dense(tmp_path / "out" / "global")
    assert np.linalg.norm(exact - means[0]) <= 0.11 * np.linalg.norm(means[0])


def test_who_is_included_leaves_its_minority(tmp_path: Path, clients: list[str]) -> None:
    save_cohort(tmp_path / "in", COUNT)
    settings = Settings(include=(clients[0],), exclude=(clients[3],))
    found = examined(opened(tmp_path / "in", settings), settings)
    assert found.judgement is not None
    verdicts = tuple(
        replace(v, verdict="minority" if k in (0, 3, 4) else "benign")
        for k, v in enumerate(found.judgement.verdicts)
    )
    found = replace(found, judgement=replace(found.judgement, minorities=((0, 3, 4),)))
    plan = plan_refinement(found, verdicts, settings, {})
    groups = [[a.client for a in g.clients] for g in plan.groups]
    assert groups[1] == [clients[4]]
    assert clients[0] in groups[0]
    assert clients[3] not in groups[0]


# --- ranks


def test_the_rank_auto_costs_what_is_reported_and_little(tmp_path: Path) -> None:
    save_cohort(tmp_path / "in", COUNT)
    done = refined(tmp_path / "in", tmp_path / "out", rank="auto")
    exact = refined(tmp_path / "in", tmp_path / "exact", rank="exact", global_rank="exact")
    limit = 0.1
    for client in done.clients:
        assert client.truncation_error <= limit
        whole = dense(tmp_path / "exact" / client.client)
        lost = np.linalg.norm(dense(tmp_path / "out" / client.client) - whole)
        assert lost <= 1.001 * limit * np.linalg.norm(whole)
    assert done.mean is not None
    assert exact.mean is not None
    assert 0 < done.mean.truncation_error <= limit
    assert exact.mean.truncation_error < 1e-6
    assert done.mean.rank < exact.mean.rank
    own = open_adapter(tmp_path / "out" / "global")
    assert {s.rank for s in own.updates.values()} == {done.mean.rank}
