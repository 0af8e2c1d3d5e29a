"""Copies count once: nobody else's score, verdict or share changes with how many there are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clair_cli import Settings, detect
from clair_cli.detection.agreement import Array
from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.copies import Copies, alike, copies
from clair_cli.detection.solver import decompose
from clair_cli.detection.stacks import stack_module
from clair_cli.report import Report
from clair_cli.update import LowRankUpdate
from tests.detection.test_differences import moved
from tests.helpers.commands import CLIENTS, SAMPLES

WEIGHTS = "adapter_model.safetensors"
NAMES = {"before": "a-copy", "after": "z-copy"}
"""Copies sort before or behind all clients."""
SLACK = {"before": 0.01, "after": 1e-9}
"""How much of a score the first of jittered copies changes, being the one that counts."""


def copied(folder: Path, client: str, copies: int, jitter: float, name: str) -> Path:
    """The sample cohort and so many copies of one client, each with noise of its own."""
    for one in CLIENTS:
        shutil.copytree(SAMPLES / one, folder / one)
    for n in range(copies):
        copy = folder / f"{name}-{n:02d}"
        shutil.copytree(folder / client, copy)
        if jitter:
            draw = torch.Generator().manual_seed(n)
            tensors = load_file(copy / WEIGHTS)
            for tensor in tensors.values():
                noise = torch.randn(tensor.shape, generator=draw)
                tensor += (jitter * tensor.std() * noise).to(tensor)
            save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def alone() -> Report:
    return detect(SAMPLES, Settings(threads=1))


def said(report: Report, without: str) -> dict[str, tuple[str | None, float | None]]:
    """Verdict and score of all the samples but one."""
    return {
        c.client: (c.verdict, c.score)
        for c in report.clients
        if c.client in CLIENTS and c.client != without
    }


@pytest.mark.parametrize("jitter", [0.0, 0.05])
@pytest.mark.parametrize("order", NAMES)
@pytest.mark.parametrize("client", ["client-06", "client-03", "client-01"])
def test_ten_copies_change_nobody_elses_verdict_or_score(
    client: str, order: str, jitter: float, alone: Report, tmp_path: Path
) -> None:
    """Ten copies and their original are most of the eighteen clients."""
    report = detect(copied(tmp_path / "in", client, 10, jitter, NAMES[order]), Settings(threads=1))
    before, after = said(alone, client), said(report, client)
    for name, (verdict, score) in before.items():
        assert after[name][0] == verdict
        slack = SLACK[order] if jitter else 1e-5
        assert after[name][1] == pytest.approx(score, abs=slack), name
    assert report.status == "complete"
    if order == "after":  # else another client is the first, which decides a close call by rounding
        ranks = [[m.shared_rank for m in r.population.modules] for r in (alone, report)]
        assert ranks[0] == ranks[1]
    assert report.population.consensus is not None
    assert alone.population.consensus is not None
    assert report.population.consensus.clients == alone.population.consensus.clients


def test_a_contaminated_client_is_convicted_with_all_its_copies(
    alone: Report, tmp_path: Path
) -> None:
    report = detect(copied(tmp_path / "in", "client-06", 5, 0.01, "z-copy"), Settings(threads=1))
    (own,) = (c for c in alone.clients if c.client == "client-06")
    gang = [c for c in report.clients if c.client == "client-06" or c.client not in CLIENTS]
    assert {c.verdict for c in gang} == {"contaminated"}
    assert [c.score for c in gang] == pytest.approx([own.score] * 6, rel=0.05)


def test_where_only_differences_count_copies_have_no_say_in_what_is_common(tmp_path: Path) -> None:
    reports = []
    for count in (0, 10):
        plain = copied(tmp_path / f"plain-{count}", "client-06", count, 0.0, "z-copy")
        for client in sorted(plain.iterdir()):
            moved(client, tmp_path / str(count) / client.name)
        reports.append(detect(tmp_path / str(count), Settings(threads=1, differences=True)))
    before, after = (said(r, "") for r in reports)
    for name, (verdict, score) in before.items():
        assert after[name] == (verdict, pytest.approx(score, abs=1e-6))


def test_identical_files_have_one_vote_on_the_base_model(tmp_path: Path) -> None:
    folder = copied(tmp_path / "in", "client-06", 10, 0.0, "z-copy")
    for client in folder.iterdir():
        if client.name not in CLIENTS[:-3]:
            config = json.loads((client / "adapter_config.json").read_text())
            config["base_model_name_or_path"] = "another-base"
            (client / "adapter_config.json").write_text(json.dumps(config))
    found = {c.client: c.verdict for c in detect(folder, Settings(threads=1)).clients}
    assert all(found[c] != "broken" for c in CLIENTS[:-3])
    assert {found[c] for c in found if c not in CLIENTS[:-3]} == {"broken"}


def test_whoever_copies_the_others_under_another_base_does_not_speak_for_them(
    tmp_path: Path,
) -> None:
    """Six of eight are copied, and the copies sort first: their word on the base is theirs alone."""
    copied(tmp_path / "in", CLIENTS[0], 0, 0.0, "")
    for client in CLIENTS[:6]:
        copy = tmp_path / "in" / f"a-{client}"
        shutil.copytree(SAMPLES / client, copy)
        config = json.loads((copy / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "another-base"
        (copy / "adapter_config.json").write_text(json.dumps(config))
    found = {c.client: c.verdict for c in detect(tmp_path / "in", Settings(threads=1)).clients}
    assert all(found[c] != "broken" for c in CLIENTS)
    assert {found[f"a-{c}"] for c in CLIENTS[:6]} == {"broken"}


def test_where_all_sent_one_file_nobody_is_broken_and_nobody_can_be_compared(
    tmp_path: Path,
) -> None:
    for k in range(5):
        shutil.copytree(SAMPLES / CLIENTS[0], tmp_path / "in" / f"client-{k}")
    report = detect(tmp_path / "in", Settings(threads=1))
    assert {c.verdict for c in report.clients} == {None}
    assert [f.code for f in report.population.findings] == ["CLR301"]


# --- who is a copy


def distances(places: list[list[float]]) -> Array:
    found = np.array(places)
    return np.asarray(np.sqrt(((found[:, None] - found[None]) ** 2).sum(axis=2)))


def of(places: list[list[float]], digests: list[str] | None = None) -> Copies:
    return alike(distances(places), digests or [str(k) for k in range(len(places))], 0.1, 0.01)


HONEST = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]


def test_nobody_is_a_copy_among_clients_at_usual_distances() -> None:
    assert of(HONEST).originals.tolist() == [0, 1, 2, 3]
    assert not of(HONEST).twins.any()


def test_many_copies_do_not_make_their_own_distance_the_usual_one() -> None:
    crowd = [[1.0, 0.01 * n] for n in range(1, 6)]
    assert of([*HONEST, *crowd]).originals.tolist() == [0, 1, 2, 3, 1, 1, 1, 1, 1]


def test_copies_that_are_no_copies_of_each_other_count_as_what_they_copy() -> None:
    """The one in the middle is the last: of two copies on either side neither is near the other."""
    star = [[1.08, 0.0], [0.92, 0.0], [1.0, 0.08], [1.0, -0.08]]
    found = of([*star, *HONEST])
    assert found.originals.tolist() == [5, 5, 5, 5, 4, 5, 6, 7]
    assert found.first.tolist() == [False, False, False, False, True, True, True, True]


def test_a_chain_of_copies_does_not_make_its_ends_one_client() -> None:
    chain = [[0.09 * n, 0.0] for n in range(1, 11)]
    found = of([*HONEST, *chain])
    assert found.originals[0] != found.originals[1]
    for k, original in enumerate(found.originals):
        assert k == original or found.twins[k, original]


def test_the_same_bytes_are_copies_at_any_distance() -> None:
    found = of(HONEST, ["a", "b", "a", "c"])
    assert found.originals.tolist() == [0, 1, 0, 3]
    assert (found.of(0), found.of(2)) == ([2], [0])


def test_clients_of_which_there_is_one_or_none_different_are_no_error() -> None:
    assert of([[0.0, 0.0]]).originals.tolist() == [0]
    assert of([[0.0, 0.0]] * 3).originals.tolist() == [0, 0, 0]


def test_what_points_the_other_way_is_no_copy_and_zero_is_nobodys() -> None:
    rows = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0, 0, 0], [0, 0, 0], [0.0, 1.0, 0.0]])
    found = copies((rows @ rows.T)[None], list("abcde"), DETECTION)
    assert found.originals.tolist() == [0, 1, 2, 3, 4]


# --- the decomposition of the originals, said of all


def test_the_decomposition_of_all_is_that_of_the_originals() -> None:
    draw = torch.Generator().manual_seed(0)

    def one() -> LowRankUpdate:
        sides = torch.randn(12, 3, generator=draw), torch.randn(3, 9, generator=draw)
        return LowRankUpdate(*(s.double() for s in sides))

    common = one()
    clients = [
        LowRankUpdate(torch.cat([common.up, 0.3 * u.up], 1), torch.cat([common.down, u.down]))
        for u in (one() for _ in range(5))
    ]
    stack = stack_module("m", clients)
    found = decompose([stack])
    sent = [0, 1, 1, 2, 3, 4, 4]  # two copies among them
    whole = found.of_all(np.array([0, 1, 1, 3, 4, 5, 5]))
    assert whole.counted.tolist() == [True, True, False, True, True, True, False]
    assert whole.weights[whole.counted].tolist() == found.weights.tolist()
    assert whole.weights.sum() == pytest.approx(1)
    assert not whole.members[[2, 6]].any()
    assert whole.residuals[:, 2].tolist() == found.residuals[:, 1].tolist()
    assert whole.unexplained() == pytest.approx(found.unexplained()[sent])
    assert whole.explained() == pytest.approx(found.explained())
    full = stack_module("m", [clients[k] for k in sent])
    for space, narrow in zip(whole.subspaces, found.subspaces, strict=True):
        assert len(space.vectors) == full.clients * full.width
        basis = space.vectors.T @ full.left_dot(space.vectors)
        torch.testing.assert_close(basis, narrow.vectors.T @ stack.left_dot(narrow.vectors))
