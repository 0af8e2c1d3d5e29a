"""Tensors trained whole are written in any pieces, and all that is not put keeps its bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clair_cli.cohort import Adapter
from clair_cli.errors import ChangedWhileRead, OutputError
from clair_cli.formats import (
    full_norm,
    open_adapter,
    open_writer,
    read_full_tensor,
    read_update,
)
from clair_cli.settings import Settings
from tests.formats.test_full import FILES, SETTINGS, classifier, plain, saved
from tests.helpers.adapters import (
    factors,
    normal,
    save_peft,
    with_tensors,
)
from tests.helpers.image_adapters import SHAPES, kohya_factors, write_file


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


@pytest.mark.parametrize("ranks", [None, 3])
def test_in_a_file_of_kohya_a_bias_counts_with_its_scale_and_other_floats_as_they_are(
    ranks: int | None, tmp_path: Path
) -> None:
    values = kohya_factors(alpha=1.0)  # rank 2: scale 1/2
    bias, other = f"{next(iter(SHAPES))}.lora_up.bias", normal(6, seed=3)
    extra = {bias: normal(6), "emb.weight": normal(2, 4)}
    path = write_file(tmp_path / "in" / "c.safetensors", values | extra, {"format": "pt"})
    adapter = open_adapter(path)
    assert adapter.full.keys() == extra.keys()
    assert torch.equal(read_full_tensor(adapter, bias), extra[bias] / 2)
    assert torch.equal(read_full_tensor(adapter, "emb.weight"), extra["emb.weight"])
    wider = ranks and dict.fromkeys(adapter.updates, ranks)
    (tmp_path / "out").mkdir()
    writer = open_writer(adapter, tmp_path / "out", list(adapter.updates), wider or None)
    for module in adapter.updates:
        writer.keep(module)
    writer.put_full(bias, other)
    writer.close()
    (file,) = (tmp_path / "out").iterdir()
    again = open_adapter(file)
    assert again.full[bias].scale == (1 if ranks else 0.5)
    assert torch.equal(read_full_tensor(again, bias), other)
    assert torch.equal(read_full_tensor(again, "emb.weight"), extra["emb.weight"])


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
