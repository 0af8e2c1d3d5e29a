"""Tensors trained whole: what they are called, read in any pieces, and written back in any."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clair_cli.cohort import Adapter, Cohort, Entries, align
from clair_cli.errors import ChangedWhileRead, Malformed, NonFinite, OutputError, ShapeMismatch
from clair_cli.formats import (
    check_full,
    full_norm,
    open_adapter,
    open_writer,
    read_full_elements,
    read_full_rows,
    read_full_tensor,
    read_update,
)
from clair_cli.settings import Settings
from tests.helpers.adapters import (
    CONFIG,
    PREFIX,
    factors,
    peft_model,
    save_peft,
    tiny_llama,
    write_folder,
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


def with_tensors(folder: Path, extra: dict[str, Tensor], **config: Any) -> Path:
    """A PEFT folder of plain factors and of `extra` tensors, under PEFT's prefix."""
    named = {PREFIX + name: tensor for name, tensor in extra.items()}
    return write_folder(folder, factors() | named, CONFIG | config)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rewritten(
    adapter: Adapter, folder: Path, put: Callable[[Any], None], ranks: Any = None
) -> Adapter:
    """The adapter with its own updates, and what `put` does to the writer."""
    folder.mkdir()
    writer = open_writer(adapter, folder, list(adapter.updates), ranks)
    try:
        for module in adapter.updates:
            writer.put(module, read_update(adapter, module, "float64"))
        put(writer)
        writer.close()
    finally:
        writer.abandon()
    return open_adapter(folder)


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


def test_the_bias_of_a_factor_counts_with_the_scale_of_its_module(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.lora_B.bias"
    bias = normal(6)
    adapter = open_adapter(with_tensors(tmp_path / "c", {name: bias}, lora_bias=True))
    assert torch.equal(read_full_tensor(adapter, name), 2 * bias)  # alpha 4, rank 2
    assert full_norm(adapter, name) == pytest.approx(2 * float(bias.norm()))
    other = normal(6, seed=1)
    kept = rewritten(adapter, tmp_path / "kept", lambda w: w.put_full(name, other))
    grown = rewritten(
        adapter,
        tmp_path / "grown",
        lambda w: w.put_full(name, other),
        dict.fromkeys(adapter.updates, 3),
    )
    assert (kept.full[name].scale, grown.full[name].scale) == (2, 1)
    for again in (kept, grown):
        torch.testing.assert_close(read_full_tensor(again, name), other)


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


# --- written


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_put_is_what_is_read_and_what_is_not_put_keeps_its_bytes(
    name: str, tmp_path: Path
) -> None:
    adapter = open_adapter(saved(name, tmp_path / "c"))
    first = next(iter(adapter.full))
    other = normal(*adapter.full[first].shape, seed=5)
    again = rewritten(adapter, tmp_path / "out", lambda w: w.put_full(first, other))
    assert again.full == adapter.full
    assert torch.equal(read_full_tensor(again, first), other)
    before = load_file(tmp_path / "c" / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    key = adapter.full[first].tensor
    assert all(torch.equal(before[k], after[k]) for k in before.keys() - {key})


@pytest.mark.parametrize("ranks", [None, 3])
def test_peft_computes_with_the_head_that_was_put(ranks: int | None, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = open_adapter(saved("head", tmp_path / "c"))
    head = normal(3, 16, seed=8)
    wider = ranks and dict.fromkeys(adapter.updates, ranks)
    rewritten(adapter, tmp_path / "out", lambda w: w.put_full("score.weight", head), wider)
    wanted: Any = PeftModel.from_pretrained(classifier(), str(tmp_path / "c"))
    with torch.no_grad():
        wanted.base_model.model.score.modules_to_save["default"].weight.copy_(head)
    found = PeftModel.from_pretrained(classifier(), str(tmp_path / "out"))
    text = torch.arange(1, 9)[None]
    torch.testing.assert_close(found(text).logits, wanted(text).logits)


@pytest.mark.parametrize("kind", FILES)
def test_rows_put_one_by_one_make_the_same_file_as_the_whole(kind: str, tmp_path: Path) -> None:
    adapter = plain(kind, tmp_path / "in")
    other = normal(2, 2, 3, seed=5)

    def write(name: str, put: Callable[[Any], None]) -> bytes:
        (tmp_path / name).mkdir()
        writer = open_writer(adapter, tmp_path / name, list(adapter.updates))
        for module in adapter.updates:
            writer.keep(module)
        put(writer)
        writer.close()
        (file,) = (tmp_path / name).iterdir()
        again = open_adapter(file, Settings(read_as="update"))
        assert torch.equal(read_full_tensor(again, "kernel"), other)
        assert torch.equal(read_full_tensor(again, "in.bias"), read_full_tensor(adapter, "in.bias"))
        return file.read_bytes()

    def rows(writer: Any) -> None:
        writer.put_full_rows("kernel", 0, other[:1])
        writer.put_full_rows("kernel", 1, other[1:])

    assert write("a", lambda w: w.put_full("kernel", other)) == write("a2", rows)


def test_a_converted_adapter_takes_full_matrices_too(tmp_path: Path) -> None:
    from peft import LoHaConfig, get_peft_model

    torch.manual_seed(0)
    config = LoHaConfig(r=2, target_modules=["q_proj"], modules_to_save=["score"])
    model = get_peft_model(classifier(), config)
    adapter = open_adapter(save_peft(model, tmp_path / "c"))
    assert list(adapter.full) == ["score.weight"]
    other = normal(3, 16, seed=5)
    again = rewritten(adapter, tmp_path / "out", lambda w: w.put_full("score.weight", other))
    assert (adapter.format, again.format) == ("loha", "peft")
    assert torch.equal(read_full_tensor(again, "score.weight"), other)


def test_arrays_without_names_have_full_matrices_by_their_places(tmp_path: Path) -> None:
    head = normal(3, 4)
    reference = with_tensors(tmp_path / "reference", {"score.weight": head})
    arrays = [*factors(seed=4).values(), head + 1]
    (tmp_path / "client").mkdir()
    np.savez(tmp_path / "client" / "a.npz", *(t.numpy() for t in arrays))
    settings = Settings(reference=reference)
    adapter = open_adapter(tmp_path / "client", settings)
    assert {n: s.shape for n, s in adapter.full.items()} == {"arr_4": (3, 4)}
    (tmp_path / "out").mkdir()
    writer = open_writer(adapter, tmp_path / "out", list(adapter.updates))
    for module in adapter.updates:
        writer.keep(module)
    for row in range(3):
        writer.put_full_rows("arr_4", row, head[row : row + 1])
    writer.close()
    again = open_adapter(tmp_path / "out", settings)
    assert torch.equal(read_full_tensor(again, "arr_4"), head)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    head = normal(3, 4).half()
    adapter = open_adapter(with_tensors(tmp_path / "c", {"score.weight": head}))
    (tmp_path / "out").mkdir()
    writer = open_writer(adapter, tmp_path / "out", [])
    refused: list[tuple[Callable[[], None], str]] = [
        (lambda: writer.put_full("score.weight", normal(4, 3)), "does not fit"),
        (lambda: writer.put_full_rows("score.weight", 0, normal(2, 3)), "does not fit"),
        (lambda: writer.put_full_rows("score.weight", 1, normal(1, 4)), "in order"),
        (lambda: writer.put_full_rows("score.weight", 0, normal(4, 4)), "in order"),
        (lambda: writer.put_full("other", normal(3, 4)), "no full matrix 'other'"),
        (lambda: writer.put_full("score.weight", torch.full((3, 4), 1e6)), "not finite"),
    ]
    for put, words in refused:
        with pytest.raises(OutputError, match=words):
            put()
    writer.put_full_rows("score.weight", 0, normal(2, 4))
    with pytest.raises(OutputError, match="in order"):
        writer.put_full("score.weight", normal(3, 4))
    with pytest.raises(OutputError, match="8 of 12 elements"):
        writer.close()
    writer.abandon()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_changes_is_not_read_on(tmp_path: Path) -> None:
    folder = with_tensors(tmp_path / "c", {"score.weight": normal(3, 4)})
    adapter = open_adapter(folder)
    (tmp_path / "out").mkdir()
    writer = open_writer(adapter, tmp_path / "out", [])
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), tmp_path / "other")
    (tmp_path / "other").replace(file)
    actions: list[Callable[[], Any]] = [
        lambda: read_full_tensor(adapter, "score.weight"),
        writer.close,
    ]
    for action in actions:
        with pytest.raises(ChangedWhileRead, match="run again"):
            action()
    writer.abandon()


# --- in a cohort


def cohort(root: Path, *extras: dict[str, Tensor]) -> Cohort:
    """Clients c-1, c-2, ... with these tensors beside equal modules."""
    found = [with_tensors(root / f"c-{k}", extra) for k, extra in enumerate(extras, start=1)]
    return align(Entries(tuple(map(open_adapter, found))))


def test_a_client_that_has_it_otherwise_is_named_and_the_others_are_compared(
    tmp_path: Path,
) -> None:
    head = {"score.weight": normal(2, 4), "norm.weight": normal(4)}
    found = cohort(tmp_path, head, head, head, head | {"score.weight": normal(3, 4)}, {})
    assert found.full == {"norm.weight": (4,), "score.weight": (2, 4)}
    assert found.having("score.weight") == (0, 1, 2)
    assert found.having("norm.weight") == (0, 1, 2, 3)
    notes = {a.client: [n.message for n in a.notes] for a in found.clients}
    own = "trained whole, but not compared here: "
    assert notes == {
        "c-1": [],
        "c-2": [],
        "c-3": [],
        "c-4": [f"{own}score.weight (3 x 4)"],
        "c-5": [f"{own}norm.weight (has none), score.weight (has none)"],
    }
    assert [a.client for a in found.clients] == [f"c-{k}" for k in range(1, 6)]
    said = {r.message for r in found.findings}
    assert {r.code for r in found.findings} == {"CLR304"}
    assert said == {
        "score.weight: compared without c-4 (3 x 4), c-5 (has none)",
        "norm.weight: compared without c-5 (has none)",
    }


def test_what_no_majority_has_in_one_shape_is_said_to_be_unjudged(tmp_path: Path) -> None:
    sizes = (2, 2, 3, 3)
    found = cohort(tmp_path, *({"score.weight": normal(n, 4)} for n in sizes))
    assert found.full == {}
    (finding,) = found.findings
    assert finding.message.startswith(
        "score.weight: not judged, being no majority's in one shape: of c-1"
    )
    assert all("not compared here" in a.notes[-1].message for a in found.clients)


def test_one_remark_names_all_matrices_of_the_same_clients(tmp_path: Path) -> None:
    head = {"score.weight": normal(2, 4), "score.bias": normal(2)}
    found = cohort(
        tmp_path, head, head, head, {"score.weight": normal(3, 4), "score.bias": normal(3)}
    )
    (finding,) = found.findings
    assert finding.message == "score.bias, score.weight: compared without c-4"
    (note,) = found.clients[3].notes
    assert note.message.endswith("score.bias (3), score.weight (3 x 4)")


def test_what_all_have_needs_no_words(tmp_path: Path) -> None:
    head = {"score.weight": normal(2, 4), "number": torch.tensor(1.5)}
    found = cohort(tmp_path, head, head, head)
    assert (found.full, found.findings) == ({"number": (), "score.weight": (2, 4)}, ())
    assert json.loads(json.dumps(found.having("number"))) == [0, 1, 2]
