"""Inner products of tensors trained whole: of the numbers themselves, whoever lacks or spoils them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clair_cli.cohort import Adapter, Cohort, Entries, align
from clair_cli.detection import full as module
from clair_cli.detection.frequencies import moving_frequencies
from clair_cli.detection.full import FullTables, read_full
from clair_cli.formats import open_adapter
from clair_cli.opening import open_entries
from clair_cli.settings import Settings
from tests.helpers.adapters import PREFIX, factors, write_folder


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def client(folder: Path, extra: dict[str, Tensor]) -> Adapter:
    named = {PREFIX + name: tensor for name, tensor in extra.items()}
    return open_adapter(write_folder(folder, factors() | named))


def cohort(root: Path, *extras: dict[str, Tensor]) -> Cohort:
    found = (client(root / f"c-{k}", extra) for k, extra in enumerate(extras))
    return align(Entries(tuple(found)))


def heads(count: int = 4) -> list[dict[str, Tensor]]:
    return [
        {
            "score.weight": normal(3, 7, seed=k),
            "score.bias": normal(3, seed=10 + k).bfloat16(),
            "number": normal(1, seed=20 + k).reshape(()).double(),
        }
        for k in range(count)
    ]


def gram(tensors: list[Tensor]) -> np.ndarray:
    flat = torch.stack([t.double().flatten() for t in tensors])
    return (flat @ flat.T).numpy()


def found(cohort: Cohort) -> FullTables:
    return read_full(cohort, Settings())


def test_they_are_the_inner_products_of_the_stored_numbers(tmp_path: Path) -> None:
    clients = heads()
    tables = found(cohort(tmp_path, *clients))
    assert tables.names == ("number", "score.bias", "score.weight")
    assert tables.sizes.tolist() == [1, 3, 21]
    assert tables.present.shape == (3, 4)
    assert tables.present.all()
    assert tables.failed == {}
    for f, name in enumerate(tables.names):
        wanted = gram([c[name] for c in clients])
        np.testing.assert_allclose(tables.inner[f], wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("size", [1, 8 * 4 * 2, 8 * 4 * 5, 8 * 4 * 21])
def test_pieces_give_what_one_piece_gives(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = cohort(tmp_path, *heads())
    whole = found(every)
    monkeypatch.setattr(module, "BLOCK", size)
    parts = found(every)
    np.testing.assert_allclose(parts.inner, whole.inner, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(parts.heads[2].sums, whole.heads[2].sums, rtol=1e-14, atol=1e-14)


def test_who_lacks_a_matrix_or_has_another_shape_has_zeros_and_is_not_present(
    tmp_path: Path,
) -> None:
    clients = heads(5)
    del clients[1]["score.weight"]
    clients[3]["score.weight"] = normal(4, 7)
    tables = found(cohort(tmp_path, *clients))
    f = tables.names.index("score.weight")
    assert tables.present[f].tolist() == [True, False, True, False, True]
    assert np.delete(tables.present, f, axis=0).all()
    assert not tables.inner[f, [1, 3]].any()
    assert not tables.inner[f][:, [1, 3]].any()
    wanted = gram([clients[k]["score.weight"] for k in (0, 2, 4)])
    np.testing.assert_allclose(tables.inner[f][np.ix_([0, 2, 4], [0, 2, 4])], wanted, rtol=1e-14)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_client_with_a_number_that_is_none_fails_and_the_others_keep_theirs(
    value: float, tmp_path: Path
) -> None:
    clients = heads(5)
    clients[2]["score.weight"][1, 3] = value
    tables = found(cohort(tmp_path, *clients))
    assert tables.failed.keys() == {2}
    assert tables.failed[2].code == "CLR103"
    assert "score.weight" in tables.failed[2].message
    assert "[1, 3]" in tables.failed[2].message
    assert not tables.inner[:, 2].any()
    assert not tables.inner[:, :, 2].any()
    kept = tables.select([0, 1, 3, 4])
    assert (kept.failed, kept.present.shape) == ({}, (3, 4))
    for f, name in enumerate(kept.names):
        wanted = gram([clients[k][name] for k in (0, 1, 3, 4)])
        np.testing.assert_allclose(kept.inner[f], wanted, rtol=1e-14, atol=1e-14)


def test_numbers_too_large_to_be_squared_fail_their_client_alone(tmp_path: Path) -> None:
    clients = heads()
    clients[0]["number"] = torch.tensor(1e200, dtype=torch.float64)
    tables = found(cohort(tmp_path, *clients))
    assert tables.failed.keys() == {0}
    assert "too large" in tables.failed[0].message
    assert np.isfinite(tables.inner).all()


def test_a_file_that_changes_fails_its_client_alone(tmp_path: Path) -> None:
    every = cohort(tmp_path, *heads())
    file = tmp_path / "c-1" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes())
    tables = found(every)
    assert {k: r.code for k, r in tables.failed.items()} == {1: "CLR112"}
    assert tables.inner[:, 0, 2].all()


def test_replicates_alone_count_as_their_mean(tmp_path: Path) -> None:
    clients = heads(3)
    for k, extra in enumerate(clients):
        client(tmp_path / f"c-{k}", extra)
    parts = [normal(3, 7, seed=s) for s in (31, 32)]
    for n, part in enumerate(parts):
        client(tmp_path / "c-3" / f"rep-{n}", clients[0] | {"score.weight": part})
    every = align(open_entries(tmp_path, Settings()))
    assert every.clients[3].only_replicates
    tables = found(every)
    f = tables.names.index("score.weight")
    wanted = gram([*(c["score.weight"] for c in clients), (parts[0] + parts[1]) / 2])
    np.testing.assert_allclose(tables.inner[f], wanted, rtol=1e-6, atol=1e-6)


def test_a_replicate_whose_head_is_not_finite_is_none(tmp_path: Path) -> None:
    for k, extra in enumerate(heads(3)):
        client(tmp_path / f"c-{k}", extra)
    spoiled = heads(1)[0]
    spoiled["score.weight"][0, 0] = float("nan")
    client(tmp_path / "c-0" / "rep-1", spoiled)
    (note,) = open_entries(tmp_path, Settings()).adapters[0].notes
    assert "rep-1, no replicate" in note.message
    assert "score.weight" in note.message


def test_without_full_matrices_there_is_nothing(tmp_path: Path) -> None:
    tables = found(cohort(tmp_path, {}, {}, {}))
    assert (tables.names, tables.inner.shape, tables.present.shape) == ((), (0, 3, 3), (0, 3))


def test_of_heads_the_sums_of_rows_are_known_and_of_nothing_else(tmp_path: Path) -> None:
    clients = heads()
    (place, head), *others = found(cohort(tmp_path, *clients)).heads.items()
    assert (place, others, head.labels, head.width) == (2, [], 3, 7)
    wanted = gram([c["score.weight"].double().sum(dim=0) for c in clients])
    np.testing.assert_allclose(head.sums, wanted, rtol=1e-14, atol=1e-14)
    stacked = torch.stack([c["score.weight"].double() for c in clients])
    np.testing.assert_allclose(head.frequency, moving_frequencies(stacked), rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 9), (9, 9), (600, 700)])
def test_a_regression_a_square_and_many_rows_are_no_heads(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    tables = found(cohort(tmp_path, *({"w": normal(*shape, seed=k)} for k in range(3))))
    assert tables.heads == {}


def test_heads_too_large_together_are_read_in_pieces_and_are_no_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = cohort(tmp_path, *heads())
    whole = found(every)
    monkeypatch.setattr(module, "HEADS", 4 * 21 - 1)
    tables = found(every)
    assert tables.heads == {}
    np.testing.assert_allclose(tables.inner, whole.inner, rtol=1e-14, atol=1e-14)


def test_a_client_that_fails_moves_no_frequency_of_the_others(tmp_path: Path) -> None:
    clients = heads(5)
    alone = found(cohort(tmp_path / "a", *clients[:2], *clients[3:])).heads[2].frequency
    clients[2]["score.weight"][1, 3] = float("nan")
    with_it = found(cohort(tmp_path / "b", *clients)).heads[2]
    assert with_it.frequency[2] == 0
    assert not with_it.sums[2].any()
    np.testing.assert_allclose(np.delete(with_it.frequency, 2), alone, rtol=1e-12)


def test_where_nobody_can_read_its_head_all_are_named_and_nothing_else_happens(
    tmp_path: Path,
) -> None:
    clients = heads(3)
    for extra in clients:
        extra["score.weight"][0, 0] = float("nan")
    tables = found(cohort(tmp_path, *clients))
    assert tables.failed.keys() == {0, 1, 2}
    assert not tables.heads[2].frequency.any()


def test_a_head_whose_sums_are_too_large_fails_its_client_alone(tmp_path: Path) -> None:
    clients = heads()
    clients[1]["score.weight"] = torch.full((3, 7), 2.2e153, dtype=torch.float64)
    tables = found(cohort(tmp_path, *clients))
    assert tables.failed.keys() == {1}
    assert np.isfinite(tables.heads[2].sums).all()
