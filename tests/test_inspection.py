"""inspect says of one adapter what its numbers are, without torch, and refuses what is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clair_cli.errors import NonFinite
from clair_cli.inspection import inspect, inspect_folder
from clair_cli.opening import open_entries
from clair_cli.renderers import RENDERERS
from clair_cli.settings import Settings
from tests.helpers.adapters import CONFIG, MODULES, PREFIX, factors, write_folder
from tests.helpers.commands import SAMPLES, clair

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_are_those_of_the_dense_update(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = factors(dtype=dtype)
    found = inspect(write_folder(tmp_path / "c", tensors), Settings())
    down, up = (t.double() for t in list(tensors.values())[:2])
    first = found.modules[0]
    assert [m.name for m in found.modules] == list(MODULES)
    assert (first.d_out, first.d_in, first.rank, first.scale) == (6, 5, 2, 2.0)
    assert first.norm == pytest.approx(float((2.0 * up @ down).norm()), rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_number_that_is_none_is_found(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = factors(dtype=dtype)
    name = list(tensors)[-1]
    tensors[name][0, 1] = value
    with pytest.raises(NonFinite, match=f"{name}.*(1 NaN and 0|0 NaN and 1) Inf"):
        inspect(write_folder(tmp_path / "c", tensors), Settings())


def test_an_overflowing_product_is_found(tmp_path: Path) -> None:
    tensors = {name: t * 1e200 for name, t in factors(dtype=torch.float64).items()}
    with pytest.raises(NonFinite, match="update"):
        inspect(write_folder(tmp_path / "c", tensors), Settings())


def test_json_and_text_say_the_same(tmp_path: Path) -> None:
    found = inspect(write_folder(tmp_path / "c", config={**CONFIG, "use_rslora": True}), Settings())
    data, text = json.loads(RENDERERS["json"](found)), RENDERERS["text"](found)
    lines = text.splitlines()
    assert data["modules"][0]["scale"] == pytest.approx(4 / 2**0.5)
    assert [m["name"] for m in data["modules"]] == [line.split()[0] for line in lines[-2:]]
    assert data["files"][0][2] in text


def with_head(folder: Path, rows: int, seed: int = 0) -> Path:
    """An adapter with a saved head of ones of so many rows, and a counter."""
    extra = {"score.weight": torch.ones(rows, 4), "steps": torch.tensor([3, 4])}
    return write_folder(
        folder, factors(seed=seed) | {PREFIX + name: t for name, t in extra.items()}
    )


def test_full_matrices_are_shown_with_their_norms_and_only_the_rest_is_passed_through(
    tmp_path: Path,
) -> None:
    found = inspect(with_head(tmp_path / "c", 9), Settings())
    (full,) = found.full
    assert (full.name, full.shape, full.dtype, full.norm) == ("score.weight", (9, 4), "F32", 6.0)
    assert found.passed_through == (f"{PREFIX}steps",)
    lines = RENDERERS["text"](found).splitlines()
    assert [line.split() for line in lines if "score" in line] == [
        ["score.weight", "9x4", "F32", "6"]
    ]
    assert json.loads(RENDERERS["json"](found))["full"][0]["shape"] == [9, 4]


@pytest.mark.parametrize("value", [float("nan"), 1e200])
def test_a_full_matrix_that_is_not_finite_or_too_large_is_found(
    value: float, tmp_path: Path
) -> None:
    head = torch.full((2, 3), value, dtype=torch.float64)
    folder = write_folder(tmp_path / "c", factors() | {f"{PREFIX}score.weight": head})
    with pytest.raises(NonFinite, match="score"):
        inspect(folder, Settings())


def test_a_folder_of_clients_says_who_has_which_full_matrix(tmp_path: Path) -> None:
    for seed, (client, rows) in enumerate({"c-1": 2, "c-2": 2, "c-3": 2, "c-10": 3}.items()):
        with_head(tmp_path / client, rows, seed)
    found = inspect_folder(tmp_path, open_entries(tmp_path, Settings()), Settings())
    assert [c.client for c in found.clients] == ["c-1", "c-2", "c-3", "c-10"]
    assert {(c.modules, c.ranks, c.full) for c in found.clients} == {(2, (2,), 1)}
    (shared,) = found.full
    assert (found.modules, shared.name, shared.shape, shared.clients) == (
        2,
        "score.weight",
        (2, 4),
        3,
    )
    text = RENDERERS["text"](found)
    assert "4 clients, compared on 2 modules and 1 full matrix" in text
    assert ["score.weight", "2x4", "3", "of", "4"] in [line.split() for line in text.splitlines()]
    assert "c-10: CLR304 trained whole, but not compared here: score.weight (3 x 4)" in text
    assert json.loads(RENDERERS["json"](found))["full"][0]["clients"] == 3


def test_inspecting_a_folder_exits_1_where_a_client_is_broken_or_another_model_is(
    tmp_path: Path,
) -> None:
    for k in (1, 2, 3):
        with_head(tmp_path / "round" / f"c-{k}", 2, seed=k)
    assert clair("inspect", tmp_path / "round").returncode == 0
    config = CONFIG | {"base_model_name_or_path": "a"}
    for k in (4, 5):
        write_folder(tmp_path / "round" / f"c-{k}", factors(seed=k), config)
    other = config | {"base_model_name_or_path": "b"}
    write_folder(tmp_path / "round" / "c-6", factors(seed=6), other)
    done = clair("inspect", tmp_path / "round")
    assert (done.returncode, done.stderr) == (1, "")
    assert "c-6: CLR106" in done.stdout
    (tmp_path / "round" / "c-6" / "adapter_model.safetensors").write_bytes(b"nothing")
    done = clair("inspect", tmp_path / "round")
    assert done.returncode == 1
    assert ["c-6", "broken"] in [line.split() for line in done.stdout.splitlines()]
    assert "CLR102" in done.stdout


def test_many_paths_are_a_line_each_and_a_broken_one_stops_none(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    paths = [SAMPLES / "client-01", tmp_path / "torn.safetensors", SAMPLES, SAMPLES / "client-02"]
    done = clair("inspect", *paths, "-f", "jsonl")
    assert done.returncode == 1
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f.get("client") for f in found] == ["client-01", None, None, "client-02"]
    assert found[1]["error"]["code"] == "CLR102"
    assert len(found[2]["clients"]) == 8
    text = clair("inspect", *paths).stdout
    assert "torn.safetensors: broken: CLR102" in text
    assert text.count("client-01: peft") == text.count("client-02: peft") == 1


def test_several_documents_are_not_one_json(tmp_path: Path) -> None:
    done = clair("inspect", SAMPLES / "client-01", SAMPLES / "client-02", "-f", "json")
    assert done.returncode == 2
    assert "jsonl" in done.stderr


def test_a_folder_whose_clients_have_no_module_in_common_exits_1(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", factors({"x.q": (6, 5)}))
    write_folder(tmp_path / "b", factors({"x.v": (6, 5)}))
    done = clair("inspect", tmp_path)
    assert "compared on 0 modules" in done.stdout
    assert done.returncode == 1
    write_folder(tmp_path / "b", factors({"x.q": (6, 5)}))
    assert clair("inspect", tmp_path).returncode == 0
