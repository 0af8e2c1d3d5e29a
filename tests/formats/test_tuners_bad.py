"""PEFT's other tuners, broken or unknown: refused by name, and by no other exception."""

from __future__ import annotations

import importlib
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from clair_cli import formats
from clair_cli.errors import (
    AdapterError,
    ConfigInvalid,
    LimitExceeded,
    NonFinite,
    OutputError,
    ShapeMismatch,
    Unsupported,
)
from clair_cli.formats import check_finite, open_adapter
from clair_cli.formats.peft.tuners import TUNERS
from clair_cli.formats.peft.types import CONVERT, REFUSED_TYPES
from clair_cli.settings import Settings
from tests import ROOT
from tests.helpers.adapters import MODULES, PREFIX, write_folder
from tests.helpers.tuners import SHAPES, save, tuned, tuner_config, tuner_tensors, write_tuner

TENSORS = [(kind, name) for kind in SHAPES for name in SHAPES[kind]]
FREE = {"lokr_w1": [(7, 3), (3, 7)], "vera_lambda_b": [(4,)]}
"""Shapes that make a module of another size."""
FIRST = f"{PREFIX}{MODULES[0]}."


def test_every_type_of_peft_is_read_or_refused_by_name(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    kinds = {str(kind.value) for kind in peft.PeftType} - {"LORA"}
    assert kinds - REFUSED_TYPES.keys() == TUNERS.keys() == SHAPES.keys()
    for kind in [*kinds, "BONE", "TELEPATHY", "loha", "x" * 9999]:
        folder = write_folder(tmp_path / kind[:20], config={"peft_type": kind, "r": 2})
        if kind in SHAPES:
            assert open_adapter(write_tuner(folder, kind)).format == kind.lower()
            continue
        with pytest.raises(Unsupported, match=f"'{kind[:40]}' is not LORA: .+; ") as caught:
            open_adapter(folder)
        assert caught.value.code == "CLR108"
        assert len(str(caught.value)) < 250


def test_the_documentation_names_every_type() -> None:
    text = (ROOT / "docs" / "reference" / "formats.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    named = {word for row in rows for word in row.replace(",", " ").split()}
    assert REFUSED_TYPES.keys() | TUNERS.keys() <= named


def test_who_is_told_to_convert_can_convert() -> None:
    pytest.importorskip("peft")
    told = [kind for kind, (_, remedy) in REFUSED_TYPES.items() if remedy == CONVERT]
    assert len(told) > 5
    for kind in told:
        layers = importlib.import_module(f"peft.tuners.{kind.lower()}.layer")
        classes = [c for c in vars(layers).values() if isinstance(c, type)]
        assert any("supports_lora_conversion" in vars(c) for c in classes)


@pytest.mark.parametrize(("kind", "name"), TENSORS)
def test_a_missing_tensor_is_named(kind: str, name: str, tmp_path: Path) -> None:
    tensors = tuner_tensors(kind)
    del tensors[FIRST + name]
    if kind == "MISS":
        assert len(open_adapter(write_folder(tmp_path, tensors, tuner_config(kind))).updates) == 1
        return
    words = f"has no {name} beside it" if name != "lokr_w1" else "has no lokr_w1"
    with pytest.raises(ShapeMismatch, match=words):
        open_adapter(write_folder(tmp_path, tensors, tuner_config(kind)))


@pytest.mark.parametrize(("kind", "name"), TENSORS)
def test_a_tensor_of_another_shape_is_named(kind: str, name: str, tmp_path: Path) -> None:
    for i, shape in enumerate([(7, 3), (3, 7), (4,), (1, 1, 1), (2, 2, 2, 2), (), (0,), (0, 4)]):
        tensors = tuner_tensors(kind)
        if tensors[FIRST + name].shape == shape or shape in FREE.get(name, ()):
            continue
        tensors[FIRST + name] = torch.ones(shape)
        with pytest.raises((ShapeMismatch, Unsupported), match=re.escape(MODULES[0])) as caught:
            open_adapter(write_folder(tmp_path / str(i), tensors, tuner_config(kind)))
        assert caught.value.code in ("CLR104", "CLR108")


def test_a_tensor_of_another_dtype_or_another_tuner_is_refused(tmp_path: Path) -> None:
    for kind in SHAPES:
        tensors = tuner_tensors(kind)
        key = next(iter(tensors))
        whole = tensors | {key: tensors[key].to(torch.int32)}
        with pytest.raises(Unsupported, match="is I32"):
            open_adapter(write_folder(tmp_path / f"{kind}1", whole, tuner_config(kind)))
        mixed = tensors | {f"{FIRST}lora_C": torch.ones(2, 2)}
        with pytest.raises(Unsupported, match="lora_C' is none of a"):
            open_adapter(write_folder(tmp_path / f"{kind}2", mixed, tuner_config(kind)))
        again = tensors | {key + ".local": tensors[key] + 1}
        with pytest.raises(ShapeMismatch, match="stand for the same"):
            open_adapter(write_folder(tmp_path / f"{kind}3", again, tuner_config(kind)))
        with pytest.raises(Unsupported, match=f"peft_type {kind}"):
            open_adapter(
                write_folder(tmp_path / f"{kind}4", {"x": torch.ones(2)}, tuner_config(kind))
            )


def test_vera_without_its_projections_names_the_remedy(tmp_path: Path) -> None:
    for name in "AB":
        tensors = tuner_tensors("VERA")
        del tensors[f"base_model.vera_{name}"]
        with pytest.raises(Unsupported, match=f"no vera_{name}.*save_projection=True"):
            open_adapter(write_folder(tmp_path / name, tensors, tuner_config("VERA")))


def test_vera_that_peft_saved_without_projections(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    save(tuned("vera", save_projection=False), tmp_path)
    with pytest.raises(Unsupported, match="save_projection=True"):
        open_adapter(tmp_path)


def test_variants_that_need_the_base_or_are_no_product_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    bat = write_tuner(tmp_path / "bat", "MISS", init_weights="bat")
    with pytest.raises(Unsupported, match="multiplies the base weights"):
        open_adapter(bat)
    line = save(tuned("lokr conv full", target_modules=["line"]), tmp_path / "line")
    with pytest.raises(Unsupported, match="'line' is LoKr of a one-dimensional convolution"):
        open_adapter(line)


NUMBERS = [True, 0, -1, "4", [4], {}, 1e400, float("nan")]


@pytest.mark.parametrize("kind", SHAPES)
def test_a_config_is_checked_and_its_field_named(kind: str, tmp_path: Path) -> None:
    rank = "init_r" if kind == "ADALORA" else "r"
    for i, value in enumerate([*NUMBERS, 2.5, None, ...]):
        with pytest.raises(ConfigInvalid, match=f"adapter_config.json: ({rank}|invalid JSON)"):
            open_adapter(write_tuner(tmp_path / f"r{i}", kind, **{rank: value}))
    with pytest.raises(ShapeMismatch, match="for rank 3"):
        open_adapter(write_tuner(tmp_path / "other", kind, **{rank: 3}))
    alpha = TUNERS[kind].fields.get("lora_alpha")
    if alpha is None:
        return
    for i, value in enumerate(NUMBERS):
        with pytest.raises(ConfigInvalid, match=f"adapter_config.json: ({alpha}|invalid JSON)"):
            open_adapter(write_tuner(tmp_path / f"a{i}", kind, **{alpha: value}))
    absent = write_tuner(tmp_path / "absent", kind, alpha=..., lora_alpha=...)
    with pytest.raises(ConfigInvalid, match=f"{alpha} is missing"):
        open_adapter(absent)
    stated = open_adapter(write_tuner(tmp_path / "stated", kind))
    assert open_adapter(absent, Settings(alpha=5)).updates == stated.updates
    with pytest.raises(ConfigInvalid, match="underflows"):
        open_adapter(write_tuner(tmp_path / "tiny", kind, **{alpha: 5e-324}))


def test_the_mask_of_an_adalora_is_checked(tmp_path: Path) -> None:
    key = f"{MODULES[0]}.lora_E"
    for i, pattern in enumerate([[1], "x", {key: 2}, {key: [1, 0]}, {key: [True, None]}]):
        with pytest.raises(ConfigInvalid, match="rank_pattern"):
            open_adapter(write_tuner(tmp_path / str(i), "ADALORA", rank_pattern=pattern))
    with pytest.raises(ShapeMismatch, match="for rank 1"):
        open_adapter(write_tuner(tmp_path / "x", "ADALORA", rank_pattern={key: [True, False]}))
    for name in (key, f"{MODULES[0]}.lora_E.default", f"{PREFIX}{key}", "elsewhere.lora_E"):
        good = write_tuner(tmp_path / name, "ADALORA", rank_pattern={name: [True, False, True]})
        assert {s.rank for s in open_adapter(good).updates.values()} == {2}


def test_small_files_that_stand_for_huge_updates_are_refused(tmp_path: Path) -> None:
    lokr = {f"{PREFIX}m.lokr_{w}": torch.ones(700, 700) for w in ("w1", "w2")}
    folder = write_folder(tmp_path / "lokr", lokr, tuner_config("LOKR"))
    with pytest.raises(LimitExceeded, match="numbers in its factors"):
        open_adapter(folder)
    with pytest.raises(LimitExceeded, match="490000 x 490000, the limit is 400000"):
        open_adapter(folder, Settings(max_dim=400000))
    sides = {"w1_a": (40000, 400), "w1_b": (400, 40000), "w2_a": (40000, 400), "w2_b": (400, 40000)}
    loha = {f"{PREFIX}m.hada_{k}": torch.zeros(s, dtype=torch.bfloat16) for k, s in sides.items()}
    folder = write_folder(tmp_path / "loha", loha, tuner_config("LOHA") | {"r": 400})
    with pytest.raises(LimitExceeded, match="numbers in its factors"):
        open_adapter(folder)
    core = torch.zeros(2, 2, 2000, 2000, dtype=torch.bfloat16)
    tucker = {"w1_a": (2, 3), "w1_b": (2, 3), "w2_a": (2, 3), "w2_b": (2, 3)}
    loha = {f"{PREFIX}m.hada_{k}": torch.ones(s) for k, s in tucker.items()}
    loha |= {f"{PREFIX}m.hada_{k}": core.clone() for k in ("t1", "t2")}
    with pytest.raises(LimitExceeded, match="a side"):
        open_adapter(write_folder(tmp_path / "core", loha, tuner_config("LOHA")))


@pytest.mark.parametrize("kind", SHAPES)
def test_numbers_that_are_none_surface(kind: str, tmp_path: Path) -> None:
    for name in tuner_tensors(kind):
        tensors = tuner_tensors(kind)
        tensors[name].view(-1)[1 % tensors[name].numel()] = float("nan")
        adapter = open_adapter(write_folder(tmp_path / name, tensors, tuner_config(kind)))
        module = next(m for m, s in adapter.updates.items() if name in s.tensors.values())
        with pytest.raises(NonFinite, match=re.escape(name)):
            check_finite(adapter, module)
        with pytest.raises(NonFinite):
            formats.norm(adapter, module)


def junk(draw: random.Random, depth: int = 2) -> Any:
    """Any JSON value, most of them wrong."""
    plain: list[Any] = [None, True, False, 0, 1, 2, -3, 2.0, 1e308, 5e-324, 10**400]
    plain += ["", "LORA", "a.*b", "(((a+)+)+)+", "q_proj", "\x00", "all", "ü" * 300]
    if depth == 0 or draw.random() < 0.6:
        return draw.choice(plain)
    inner = [junk(draw, depth - 1) for _ in range(draw.randrange(3))]
    return inner if draw.random() < 0.5 else {str(junk(draw, 0)): value for value in inner}


@pytest.mark.parametrize("kind", SHAPES)
def test_hostile_configs_raise_nothing_but_adapter_errors(kind: str, tmp_path: Path) -> None:
    draw = random.Random(kind)
    fields = [*tuner_config(kind), "rank_pattern", "alpha_pattern", "init_weights", "bias"]
    fields += ["base_model_name_or_path", "auto_mapping", "modules_to_save", "task_type"]
    outcomes: dict[str, int] = {}
    for i in range(150):
        said = {name: junk(draw) for name in draw.sample(fields, draw.randrange(1, 4))}
        folder = write_tuner(tmp_path / str(i), kind, **said)
        try:
            adapter = open_adapter(folder)
            (folder / "out").mkdir()
            formats.write_adapter(adapter, {}, folder / "out")
            outcome = "read"
        except AdapterError as error:
            outcome = error.code
        except OutputError as error:
            outcome = "output" if "not finite" in str(error) else "other"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert "other" not in outcomes
    assert outcomes["read"] > 10
    assert outcomes["CLR105"] > 10


@pytest.mark.parametrize("kind", SHAPES)
def test_a_name_that_plain_lora_reads_otherwise_is_refused(kind: str, tmp_path: Path) -> None:
    """Found by fuzzing: written as plain LoRA its rank would be looked up under another name."""
    found = {
        name.replace(MODULES[0], "model.layers.1.mlp.experts.base_layer"): t
        for name, t in tuner_tensors(kind).items()
    }
    with pytest.raises(Unsupported, match="wrapped parameter; train plain LoRA"):
        open_adapter(write_folder(tmp_path / "c", found, tuner_config(kind)))


def test_a_dtype_that_only_numpy_stores_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    """Else the client would end the refinement of all when its copy is written."""
    import numpy as np

    found = {name: t.numpy() for name, t in tuner_tensors("LOHA").items()}
    folder = write_folder(tmp_path / "c", {}, tuner_config("LOHA"), name="none.txt")
    np.savez(folder / "adapter.npz", **found, flags=np.zeros(3, bool))
    with pytest.raises(Unsupported, match=r"'flags' is \|b1, which safetensors does not store"):
        open_adapter(folder)
