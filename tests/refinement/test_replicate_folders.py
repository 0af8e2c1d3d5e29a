"""Further adapters of a client: which folders count, and what becomes of those that do not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from clair_cli import Settings, open_adapter, refine
from clair_cli.cohort import Adapter
from clair_cli.formats import find_replicates
from clair_cli.pipeline import detect, opened
from tests.helpers.adapters import factors, write_folder
from tests.helpers.cohorts import SHAPE, drawn, save_dense, truths
from tests.helpers.commands import WEIGHTS


def scanned(folder: Path, settings: Settings | None = None) -> list[Adapter]:
    """The clients of a folder, as a scan opens them."""
    return list(opened(folder, settings or Settings()).clients)


def cohort(folder: Path, clients: int = 3) -> Path:
    """Adapters without replicates."""
    for k, update in enumerate(truths(clients)):
        save_dense(folder / f"client-{k + 1}", update)
    return folder


def near(numbers: Iterator[int] = count(1)) -> list[Tensor]:  # noqa: B008
    """An update of the first client again, a little other every time."""
    factor = 1 + 0.001 * next(numbers)
    return [factor * update for update in truths(1)[0]]


def names(adapter: Adapter) -> list[str]:
    return [r.path.name for r in adapter.replicates]


def said(adapter: Adapter) -> list[str]:
    return [n.code for n in adapter.notes]


def test_folders_named_rep_are_found_in_natural_order_and_nothing_else(tmp_path: Path) -> None:
    client = cohort(tmp_path) / "client-1"
    for name in ("rep-10", "rep-2", "rep-b", "rep-1", "replica-1", "Rep-3", "rep-", "other"):
        save_dense(client / name, near())
    (client / "rep-5").write_text("a file")
    first, second, _ = scanned(tmp_path)
    assert names(first) == ["rep-1", "rep-2", "rep-10", "rep-b"]
    assert (first.path, first.only_replicates) == (client, False)
    assert (said(first), names(second)) == ([], [])


def test_of_a_client_with_nothing_else_the_first_stands_for_it(tmp_path: Path) -> None:
    cohort(tmp_path)
    for name in ("rep-2", "rep-10"):
        save_dense(tmp_path / "client-4" / name, near())
    adapter = scanned(tmp_path)[3]
    assert (adapter.path.name, names(adapter)) == ("rep-2", ["rep-2", "rep-10"])
    assert adapter.only_replicates


def test_none_leaves_them_aside(tmp_path: Path) -> None:
    cohort(tmp_path)
    for name in ("rep-1", "checkpoint-9"):
        save_dense(tmp_path / "client-1" / name, near())
    assert [names(a) for a in scanned(tmp_path, Settings(replicates="none"))] == [[]] * 3
    assert find_replicates(tmp_path / "client-1" / WEIGHTS, Settings()) == []


@pytest.mark.parametrize("own", [True, False])
def test_checkpoints_count_from_half_of_the_last_step_on(own: bool, tmp_path: Path) -> None:
    cohort(tmp_path)
    client = tmp_path / ("client-1" if own else "client-4")
    for step in (50, 99, 100, 150, 200):
        save_dense(client / f"checkpoint-{step}", near())
    if own:
        save_dense(client / "rep-1", near())
    adapter = scanned(tmp_path, Settings(replicates="checkpoints"))[0 if own else 3]
    late = ["checkpoint-100", "checkpoint-150", "checkpoint-200"]
    assert (names(adapter), adapter.only_replicates) == (late, not own)
    if own:
        assert names(scanned(tmp_path)[0]) == ["rep-1"]


@pytest.mark.parametrize("inside", [True, False])
def test_a_link_is_refused_with_a_note(inside: bool, tmp_path: Path) -> None:
    cohort(tmp_path / "in")
    target = tmp_path / "in" / "client-2" if inside else save_dense(tmp_path / "x", near())
    (tmp_path / "in" / "client-1" / "rep-1").symlink_to(target, target_is_directory=True)
    save_dense(tmp_path / "in" / "client-1" / "rep-2", near())
    first = scanned(tmp_path / "in")[0]
    assert (names(first), said(first)) == (["rep-2"], ["CLR110"])


def test_a_broken_replicate_is_a_note_and_not_used(tmp_path: Path) -> None:
    cohort(tmp_path)
    for name in ("rep-1", "rep-2", "rep-3"):
        save_dense(tmp_path / "client-1" / name, near())
    (tmp_path / "client-1" / "rep-1" / WEIGHTS).write_bytes(b"\xff" * 64)
    (tmp_path / "client-1" / "rep-3" / WEIGHTS).unlink()
    first = scanned(tmp_path)[0]
    assert (names(first), said(first)) == (["rep-2"], ["CLR102", "CLR101"])
    for note, name in zip(first.notes, ("rep-1", "rep-3"), strict=True):
        assert note.message.startswith(f"{name}, no replicate: ")


def test_other_shapes_and_other_modules_are_a_note_and_not_used(tmp_path: Path) -> None:
    cohort(tmp_path)
    save_dense(tmp_path / "client-1" / "rep-1", near(), rank=3)
    save_dense(tmp_path / "client-1" / "rep-2", drawn(0, 2, SHAPE[0], SHAPE[1] + 1))
    save_dense(tmp_path / "client-1" / "rep-3", drawn(0, 1, *SHAPE))
    write_folder(tmp_path / "client-1" / "rep-4", factors())
    first = scanned(tmp_path)[0]
    assert (names(first), said(first)) == (["rep-1"], ["CLR107"] * 3)
    assert [n.message.partition(":")[0] for n in first.notes] == ["rep-2", "rep-3", "rep-4"]


def test_their_files_are_in_the_report_under_their_folders(tmp_path: Path) -> None:
    cohort(tmp_path)
    save_dense(tmp_path / "client-1" / "rep-1", near())
    inputs = detect(tmp_path).inputs["clients"]
    listed = [f["name"] for f in inputs[0]["files"]]
    assert f"rep-1/{WEIGHTS}" in listed
    assert len(listed) == 2 * len(inputs[1]["files"])


@pytest.mark.parametrize("own", [True, False])
def test_a_replicate_that_is_not_finite_is_a_note_and_not_used(own: bool, tmp_path: Path) -> None:
    for k, update in enumerate(truths(4)):
        client = tmp_path / "in" / f"client-{k + 1}"
        places = [client / "rep-1", client / "rep-2"] + ([client] if own else [])
        for i, place in enumerate(places):
            save_dense(place, update + 0.3 * drawn(10 * k + i, 2, *SHAPE))
    file = tmp_path / "in" / "client-2" / "rep-2" / WEIGHTS
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)
    report = refine(tmp_path / "in", tmp_path / "out")
    assert "CLR103" in {r.code for r in report.clients[1].reasons}
    assert {c.verdict for c in report.clients} == {"benign"}
    open_adapter(tmp_path / "out" / "client-2")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_for_a_replicate_does_not_block(tmp_path: Path) -> None:
    cohort(tmp_path)
    place = save_dense(tmp_path / "client-1" / "rep-1", near()) / WEIGHTS
    place.unlink()
    os.mkfifo(place)
    first = scanned(tmp_path)[0]
    assert (names(first), said(first)) == ([], ["CLR110"])


def test_a_copy_of_the_clients_own_adapter_is_no_replicate(tmp_path: Path) -> None:
    cohort(tmp_path)
    save_dense(tmp_path / "client-1" / "rep-1", truths(1)[0])
    save_dense(tmp_path / "client-1" / "rep-2", near())
    first = scanned(tmp_path)[0]
    assert (names(first), said(first)) == (["rep-2"], ["CLR205"])
