"""Sketch files: what a client's summary is read as, and what is no sketch."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clair_cli import detect, formats, refine
from clair_cli.cohort import WHOLE, Sketching, alignment
from clair_cli.errors import (
    AdapterError,
    Malformed,
    ShapeMismatch,
    SketchUnusable,
    Unsupported,
    UsageError,
)
from clair_cli.formats import open_adapter, read_update
from clair_cli.report import Report, to_dict
from clair_cli.settings import Settings
from tests.helpers.adapters import CONFIG, PREFIX, write_folder
from tests.helpers.cohorts import SHAPE, drawn, module, save_cohort, save_dense, truths
from tests.helpers.sketches import KIND, change, sketch, sketch_all


def said(report: Report) -> dict[str, Any]:
    """What a report says but for the files and the time."""
    found = to_dict(report)
    told = found["population"]["findings"]
    found["population"]["findings"] = [
        r for r in told if "compared by sketches" not in r["message"]
    ]
    for client in found["clients"]:
        client["reasons"] = [r for r in client["reasons"] if r["code"] != "CLR115"]
    return {k: v for k, v in found.items() if k not in ("run", "inputs")}


@pytest.mark.usefixtures("small_sketches_count")
def test_sketches_adapters_and_a_mixture_have_one_report(tmp_path: Path) -> None:
    """Whoever sends a sketch, and whoever the adapter: to the last digit, as one size draws it."""
    names = save_cohort(tmp_path / "a", 6, strangers=1)
    all_of_them = said(
        detect(sketch_all(tmp_path / "a", tmp_path / "s"), Settings(follow_symlinks=True))
    )
    assert {c["id"]: c["verdict"] for c in all_of_them["clients"]}[names[-1]] == "contaminated"
    for sketches in (names[:1], names[2:5]):
        mixed = tmp_path / f"m{len(sketches)}"
        mixed.mkdir()
        for name in names:
            if name in sketches:
                source = tmp_path / "s" / f"{name}.safetensors"
                (mixed / source.name).write_bytes(source.read_bytes())
            else:
                (mixed / name).symlink_to(tmp_path / "a" / name)
        assert said(detect(mixed, Settings(follow_symlinks=True))) == all_of_them


def test_a_side_of_no_more_than_the_size_is_exact(tmp_path: Path) -> None:
    """Then verdicts are those of whole updates, but for half precision."""
    save_cohort(tmp_path / "a", 6, strangers=1)
    exact = detect(tmp_path / "a")
    found = detect(sketch_all(tmp_path / "a", tmp_path / "s", Sketching(24, 0)))
    for one, other in zip(exact.clients, found.clients, strict=True):
        assert one.verdict == other.verdict
        assert one.score == pytest.approx(other.score, abs=0.02)
    assert max(m.sketch_error for m in found.population.modules) < 1e-3


def test_the_factors_say_nothing_that_their_product_does_not(tmp_path: Path) -> None:
    """Another gauge, a row of zeros and a row twice are one sketch."""
    up, down = (torch.from_numpy(x).float() for x in (drawn(0, 24, 3), drawn(1, 3, 40)))
    turn = torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 0.25]])

    def save(name: str, b: torch.Tensor, a: torch.Tensor) -> Path:
        named = {f"{PREFIX}m.lora_B.weight": b, f"{PREFIX}m.lora_A.weight": a}
        config = CONFIG | {"r": len(a), "lora_alpha": len(a), "target_modules": ["m"]}
        return write_folder(tmp_path / name, named, config)

    rows = torch.cat([down, torch.zeros(1, 40), down[:1]])
    columns = torch.cat([up[:, :1] / 2, up[:, 1:], torch.ones(24, 1), up[:, :1] / 2], dim=1)
    products = []
    for n, factors in enumerate(((up, down), (up @ turn.inverse(), turn @ down), (columns, rows))):
        file = sketch(save(str(n), *factors), tmp_path / f"{n}.safetensors")
        update = read_update(open_adapter(file), "m")
        products.append(update.dense())
        ranks = (update.down != 0).any(dim=1).sum()
        assert ranks == 3
    for other in products[1:]:
        torch.testing.assert_close(products[0], other, rtol=0, atol=2e-3 * float(up.norm()))


def test_a_rank_beyond_the_size_is_kept_in_the_size(tmp_path: Path) -> None:
    file = sketch(
        save_dense(tmp_path / "a", truths(1)[0]), tmp_path / "s.safetensors", Sketching(8, 0)
    )
    adapter = open_adapter(file)
    update = read_update(adapter, module(0))
    assert (update.up.shape, update.down.shape) == ((8, 8), (8, 8))
    assert update.scale == pytest.approx(np.linalg.norm(truths(1)[0][0]), rel=1e-6)
    assert formats.norm(adapter, module(0)) == update.scale
    assert adapter.updates[module(0)].rank == min(SHAPE)


def test_small_tensors_trained_whole_are_kept_and_large_ones_said(tmp_path: Path) -> None:
    folder = save_dense(tmp_path / "a", truths(1)[0])
    tensors = load_file(folder / "adapter_model.safetensors")
    head = torch.randn(3, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    tensors |= {
        "base_model.model.score.weight": head,
        "base_model.model.lm_head.weight": torch.zeros(WHOLE // 16 + 1, 16),
    }
    config = {"peft_type": "LORA", "r": 20, "lora_alpha": 20, "target_modules": ["q_proj"]}
    write_folder(tmp_path / "b", tensors, config | {"modules_to_save": ["score", "lm_head"]})
    adapter = open_adapter(sketch(tmp_path / "b", tmp_path / "s.safetensors"))
    assert list(adapter.full) == ["score.weight"]
    torch.testing.assert_close(formats.read_full_tensor(adapter, "score.weight"), head.float())
    assert any("lm_head" in note.message for note in adapter.notes)


@pytest.fixture
def small_sketches_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the sketches of small adapters are none of the whole."""
    monkeypatch.setattr(alignment, "SKETCH_SIZE", 8)


def test_a_sketch_is_judged_and_not_refined(tmp_path: Path) -> None:
    save_cohort(tmp_path / "a", 4)
    sketch_all(tmp_path / "a", tmp_path / "s")
    with pytest.raises(UsageError, match=r"client-1: a sketch can be judged, and not refined"):
        refine(tmp_path / "s", tmp_path / "out")
    with pytest.raises(SketchUnusable, match="is a sketch of size 16"):
        sketch(tmp_path / "s" / "client-1.safetensors", tmp_path / "again.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small_sketches_count")
def test_one_sketch_does_not_decide_for_an_operator_who_wants_whole_updates(
    tmp_path: Path,
) -> None:
    """What a stranger sends must not make all others' comparison coarse unsaid, or stop a run."""
    save_cohort(tmp_path / "a", 5)
    sketch(tmp_path / "a" / "client-5", tmp_path / "a" / "client-6.safetensors")
    report = detect(tmp_path / "a")
    (said_so,) = [r for r in report.population.findings if "compared by sketches" in r.message]
    assert "size 16, seed 0, version 1, for the sake of client-6" in said_so.message
    exact = detect(tmp_path / "a", Settings(exact=True))
    assert [c.verdict for c in exact.clients] == ["benign"] * 5 + ["broken"]
    assert exact.clients[-1].reasons[0].code == "CLR124"
    assert all(m.sketch_error == 0 for m in exact.population.modules)
    refined = refine(tmp_path / "a", tmp_path / "out", Settings(exact=True))
    assert refined.refinement is not None
    assert len(list((tmp_path / "out").glob("client-*"))) == 5


def test_a_few_small_sketches_make_nobody_be_compared_as_coarsely(tmp_path: Path) -> None:
    """They cost themselves their verdicts; where most clients are as small, all are compared so."""
    save_cohort(tmp_path / "a", 6, strangers=1)
    alone = detect(tmp_path / "a")
    sketch(tmp_path / "a" / "client-1", tmp_path / "a" / "small.safetensors", Sketching(8, 0))
    report = detect(tmp_path / "a")
    *others, small = report.clients
    assert [(c.verdict, c.score) for c in others] == [(c.verdict, c.score) for c in alone.clients]
    assert (small.verdict, small.reasons[0].code) == ("broken", "CLR124")
    assert "sketch it again with --size 64" in small.reasons[0].message
    names = [c.client for c in alone.clients]
    for name in names[:4]:
        sketch(tmp_path / "a" / name, tmp_path / "a" / f"{name}.safetensors", Sketching(8, 0))
        shutil.rmtree(tmp_path / "a" / name)
    most = detect(tmp_path / "a")
    assert {c.verdict for c in most.clients} <= {"benign", "suspicious", "contaminated"}
    assert most.population.modules[0].sketch_error > 0


def test_copies_of_a_sketch_have_one_voice(tmp_path: Path) -> None:
    """Whoever sent them, and under whatever name: what most say is not asked of copies."""
    one = save_dense(tmp_path / "one", truths(1)[0])
    shutil.copytree(one, tmp_path / "two")
    files = [
        sketch(one, tmp_path / "a.safetensors"),
        sketch(tmp_path / "two", tmp_path / "b.safetensors"),
    ]
    assert files[0].read_bytes() != files[1].read_bytes()
    digests = {open_adapter(file).digest for file in files}
    assert len(digests) == 1
    other = sketch(save_dense(tmp_path / "three", truths(2)[1]), tmp_path / "c.safetensors")
    assert open_adapter(other).digest not in digests


def test_sketches_of_another_kind_than_most_are_set_aside(tmp_path: Path) -> None:
    save_cohort(tmp_path / "a", 6)
    sketch_all(tmp_path / "a", tmp_path / "s")
    for name, kind in (("client-2", Sketching(16, 7)), ("client-5", Sketching(8, 0))):
        sketch(tmp_path / "a" / name, tmp_path / "s" / f"{name}.safetensors", kind)
    found = {c.client: c for c in detect(tmp_path / "s").clients}
    for name in ("client-2", "client-5"):
        (reason,) = found[name].reasons
        assert (found[name].verdict, reason.code) == ("broken", "CLR124")
        assert "4 of 6 sketches have size 16, seed 0" in reason.message
    assert sum(c.verdict == "benign" for c in found.values()) == 4


@pytest.mark.usefixtures("small_sketches_count")
def test_sketches_are_told_at_sight_among_plain_matrices(tmp_path: Path) -> None:
    for k, update in enumerate(truths(4)):
        torch_file = {module(m): torch.from_numpy(u).float() for m, u in enumerate(update)}

        save_file(torch_file, tmp_path / f"client-{k}.safetensors")
    for k in range(2):
        file = tmp_path / f"client-{k}.safetensors"
        sketch(file, file, read_as="update")
    report = detect(tmp_path, Settings(read_as="update"))
    assert [c.verdict for c in report.clients] == ["benign"] * 4


# --- hostile input


def heads(**fields: Any) -> Any:
    return {"head": lambda head: head.update(fields)}


def modules(**fields: Any) -> Any:
    return {"head": lambda head: [m.update(fields) for m in head["modules"]]}


def tensor(name: str, value: torch.Tensor) -> Any:
    return {"tensors": lambda found: found.update({name: value})}


LEFT = f"{module(0)}.left"
WRONG: list[tuple[Any, type[AdapterError], str]] = [
    (heads(version=2), Unsupported, "version 2"),
    (heads(version="1"), Unsupported, "version"),
    (heads(size=4), Malformed, "sizes are 8 to 1024"),
    (heads(size=2**40), Malformed, "sizes are"),
    (heads(seed=-1), Malformed, "seed -1"),
    (heads(traits={"init": ["x"]}), Malformed, "no words"),
    (heads(modules="all"), Malformed, "expected"),
    (heads(base="x" * 5000), AdapterError, "5000 characters"),
    (modules(norm=-1.0), Malformed, "norm"),
    (modules(norm=1e200), Malformed, "norm"),
    (modules(name=module(0)), Malformed, "twice"),
    (modules(rank=0), AdapterError, "rank 0"),
    (modules(rank=3), ShapeMismatch, "of rank 3"),
    (modules(d_out=2**21), AdapterError, "limit"),
    (modules(d_in=12), ShapeMismatch, "none of 24 x 12"),
    (tensor(LEFT, torch.zeros(16, 16)), ShapeMismatch, "F32"),
    (tensor(LEFT, torch.zeros(16, 17).half()), ShapeMismatch, r"\[16, 17\]"),
    (tensor("odd", torch.zeros(2).half()), Malformed, "'odd'"),
    (tensor("x.full", torch.zeros(WHOLE + 1)), Malformed, "too large"),
    ({"tensors": lambda found: found.pop(LEFT)}, ShapeMismatch, "no left"),
]


@pytest.mark.parametrize(("how", "error", "text"), WRONG)
def test_what_is_no_sketch_is_refused_by_its_header(
    how: Any, error: type[AdapterError], text: str, tmp_path: Path
) -> None:
    file = sketch(save_dense(tmp_path / "a", truths(1)[0]), tmp_path / "s.safetensors")
    open_adapter(file)
    with pytest.raises(error, match=text):
        open_adapter(change(file, **how))


SPOILED: list[tuple[Any, str]] = [
    (tensor(LEFT, torch.full((16, 16), 3.0).half()), "CLR124"),
    (tensor(LEFT, torch.full((16, 16), 1e-3).half()), "CLR124"),
    (tensor(LEFT, torch.zeros(16, 16).half()), "CLR124"),
    (modules(norm=0.0), "CLR124"),
    (tensor(LEFT, torch.full((16, 16), torch.nan).half()), "CLR103"),
    (tensor(LEFT, torch.full((16, 16), torch.inf).half()), "CLR103"),
]


@pytest.mark.parametrize(("how", "code"), SPOILED)
def test_numbers_that_contradict_each_other_are_one_clients_failure(
    how: Any, code: str, tmp_path: Path
) -> None:
    save_cohort(tmp_path / "a", 5)
    sketch_all(tmp_path / "a", tmp_path / "s")
    change(tmp_path / "s" / "client-3.safetensors", **how)
    found = {c.client: c for c in detect(tmp_path / "s").clients}
    assert found["client-3"].verdict == "broken"
    assert found["client-3"].reasons[0].code == code
    assert sum(c.verdict == "benign" for c in found.values()) == 4
    with pytest.raises(AdapterError):
        formats.norm(open_adapter(tmp_path / "s" / "client-3.safetensors"), module(0))


def test_an_update_that_was_made_to_hide_from_the_seed_is_refused(tmp_path: Path) -> None:
    """Who knows the seed finds updates whose sketch is zero; another seed shows them."""
    from clair_cli.detection.sketches import projected

    where = projected(torch.eye(64, dtype=torch.float64), KIND.size, KIND.seed)  # (16, 64)
    row = where[0].nonzero().flatten()
    update = torch.zeros(64, 40, dtype=torch.float64)
    update[row[0]] = where[0, row[0]]
    update[row[1]] = -where[0, row[1]]
    folder = save_dense(tmp_path / "a", [update.numpy()], rank=1)
    with pytest.raises(SketchUnusable, match=r"0 of the energy .* another --seed"):
        sketch(folder, tmp_path / "s.safetensors")
    other = replace(KIND, seed=1)
    assert open_adapter(sketch(folder, tmp_path / "s.safetensors", other)).sketch == other
