"""Tensors trained whole: what they are called, read in any pieces, and written back in any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clair_cli.cohort import Adapter
from clair_cli.errors import Malformed, NonFinite, ShapeMismatch
from clair_cli.formats import (
    check_full,
    full_norm,
    open_adapter,
    read_full_elements,
    read_full_rows,
    read_full_tensor,
)
from clair_cli.settings import Settings
from tests.helpers.adapters import (
    normal,
    peft_model,
    save_peft,
    tiny_llama,
    with_tensors,
)
from tests.helpers.plain import save, tensors

SETTINGS: dict[str, dict[str, Any]] = {
    "head": {"modules_to_save": ["score"], "task_type": "SEQ_CLS"},
    "bias": {"bias": "all"},
    "bias of the adapted": {"bias": "lora_only"},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "norms": {"modules_to_save": ["input_layernorm", "model.norm"]},
}
"""What PEFT is asked to train beside the factors of q_proj."""
WANTED = {
    "head": {"score.weight": (3, 16)},
    "bias": {
        f"model.layers.{i}.self_attn.{m}.bias": (d,)
        for i in (0, 1)
        for m, d in (("q_proj", 16), ("k_proj", 8), ("v_proj", 8), ("o_proj", 16))
    },
    "bias of the adapted": {f"model.layers.{i}.self_attn.q_proj.bias": (16,) for i in (0, 1)},
    "embedding": {"model.embed_tokens.weight": (32, 16)},
    "norms": {
        f"model.{n}.weight": (16,)
        for n in ("layers.0.input_layernorm", "layers.1.input_layernorm", "norm")
    },
}


def classifier(labels: int = 3, bias: bool = False) -> Any:
    """A Llama that sorts texts into `labels`, with biases in its attention."""
    from transformers import LlamaForSequenceClassification

    config = tiny_llama().config
    config.num_labels, config.attention_bias, config.pad_token_id = labels, bias, 0
    torch.manual_seed(3)
    make: Any = LlamaForSequenceClassification
    model = make(config)
    return model.eval()


def saved(name: str, folder: Path, seed: int = 1) -> Path:
    """A client trained by these settings: every tensor that PEFT saves moved at random."""
    model = peft_model(
        classifier(bias="bias" in name), r=2, target_modules=["q_proj"], **SETTINGS[name]
    )
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=draw)
    return save_peft(model, folder)


# --- what they are


@pytest.mark.parametrize("name", SETTINGS)
def test_what_peft_saves_whole_is_found_under_the_name_in_the_base_model(
    name: str, tmp_path: Path
) -> None:
    adapter = open_adapter(saved(name, tmp_path / "c"))
    shapes = {full: spec.shape for full, spec in adapter.full.items()}
    assert shapes == WANTED[name]
    assert "CLR115" not in {n.code for n in adapter.notes}
    stored = load_file(tmp_path / "c" / "adapter_model.safetensors")
    for full, spec in adapter.full.items():
        assert torch.equal(read_full_tensor(adapter, full), stored[spec.tensor].float())


def test_names_while_training_are_those_that_peft_saves(tmp_path: Path) -> None:
    head = normal(3, 4)
    raw = {"score.modules_to_save.default.weight": head, "score.original_module.weight": head + 1}
    adapter = open_adapter(with_tensors(tmp_path / "raw", raw))
    assert list(adapter.full) == ["score.weight"]
    assert torch.equal(read_full_tensor(adapter, "score.weight"), head)
    (note,) = adapter.notes
    assert (note.code, "original_module" in note.message) == ("CLR115", True)
    both = raw | {"score.weight": head + 2}
    with pytest.raises(ShapeMismatch, match=r"both stand for 'score\.weight'"):
        open_adapter(with_tensors(tmp_path / "both", both))


def test_integers_empty_tensors_and_copies_of_base_weights_are_not_judged(tmp_path: Path) -> None:
    other = {
        "position_ids": torch.arange(4),
        "empty": torch.zeros(0, 3),
        "model.embed_tokens.base_layer.weight": normal(4, 3),
        "model.layers.0.self_attn.q_proj.base_layer.bias": normal(6),
        "steps": torch.tensor(3),
    }
    adapter = open_adapter(with_tensors(tmp_path / "c", other))
    assert dict(adapter.full) == {}
    (note,) = adapter.notes
    assert note.code == "CLR115"
    for name in ("position_ids", "base_layer.weight", "and 1 more"):
        assert name in note.message
    trained = open_adapter(with_tensors(tmp_path / "d", other, bias="lora_only"))
    assert list(trained.full) == ["model.layers.0.self_attn.q_proj.bias"]


def test_rows_of_other_tokens_are_another_matrix(tmp_path: Path) -> None:
    rows = {"model.embed_tokens.token_adapter.trainable_tokens_delta": normal(2, 5)}
    names = []
    for n, tokens in enumerate(([3, 7], [3, 7], [3, 8], None)):
        extra = {} if tokens is None else {"trainable_token_indices": tokens}
        adapter = open_adapter(with_tensors(tmp_path / str(n), rows, **extra))
        names.append(next(iter(adapter.full), None))
    assert names[0] == names[1] != names[2]
    assert names[0] is not None
    assert names[0].startswith("model.embed_tokens.token_adapter.trainable_tokens_delta[")
    assert names[3] is None


# --- read


FILES = ("npz", "npz deflated", "npz turned", "npz big-endian", "safetensors")


def plain(kind: str, root: Path, dtype: str = "f4") -> Adapter:
    state = tensors(dtype=dtype)
    if kind == "npz turned":
        state["kernel"] = np.asfortranarray(state["kernel"])
    if kind == "npz big-endian":
        state = {k: v.astype(v.dtype.newbyteorder(">")) for k, v in state.items()}
    path = root / f"c.{kind.split()[0]}"
    if kind == "npz deflated":
        root.mkdir(exist_ok=True)
        np.savez_compressed(path, **dict[str, Any](state))
    else:
        save(path, state)
    return open_adapter(path, Settings(read_as="update"))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("kind", FILES)
def test_parts_are_those_of_the_whole(kind: str, dtype: str, tmp_path: Path) -> None:
    adapter = plain(kind, tmp_path / "in", dtype)
    wanted = torch.from_numpy(tensors(dtype=dtype)["kernel"].astype("f8"))
    assert torch.equal(read_full_tensor(adapter, "kernel", "float64"), wanted)
    for start in range(3):
        for stop in range(start, 3):
            rows = read_full_rows(adapter, "kernel", start, stop, "float64")
            assert torch.equal(rows, wanted[start:stop])
    for begin in range(13):
        for end in range(begin, 13):
            part = read_full_elements(adapter, "kernel", begin, end, "float64")
            assert torch.equal(part, wanted.flatten()[begin:end])
    exact = torch.float64 if dtype == "f8" else torch.float32
    assert read_full_tensor(adapter, "kernel").dtype == exact
    assert full_norm(adapter, "kernel") == pytest.approx(float(wanted.norm()))


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    head = normal(3, 4).bfloat16()
    adapter = open_adapter(with_tensors(tmp_path / "c", {"score.weight": head}))
    assert torch.equal(read_full_tensor(adapter, "score.weight"), head.float())
    assert torch.equal(read_full_rows(adapter, "score.weight", 1, 3), head.float()[1:])


def test_damage_in_an_array_is_seen_before_its_first_part_is_used(tmp_path: Path) -> None:
    adapter = plain("npz", tmp_path / "in")
    spec = adapter.tensors["kernel"]
    data = bytearray((tmp_path / "in" / "c.npz").read_bytes())
    data[spec.end - 1] ^= 1
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "c.npz").write_bytes(data)
    other = open_adapter(tmp_path / "out" / "c.npz", Settings(read_as="update"))
    with pytest.raises(Malformed, match="checksum"):
        read_full_elements(other, "kernel", 0, 1)


def test_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    head = normal(3, 4)
    head[1, 2] = float("nan")
    adapter = open_adapter(with_tensors(tmp_path / "c", {"score.weight": head, "ok": normal(2)}))
    check_full(adapter, "ok")
    with pytest.raises(NonFinite, match=r"score\.weight.*1 NaN and 0 Inf.*\[1, 2\]"):
        check_full(adapter, "score.weight")
