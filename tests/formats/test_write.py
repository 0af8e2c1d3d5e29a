"""Folders written back: the identity where nothing changed; PEFT computes the intended logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from clair_cli.cohort import Adapter
from clair_cli.errors import ChangedWhileRead, OutputError
from clair_cli.formats import open_adapter, open_writer, read_update, write_adapter
from clair_cli.formats.safetensors_file import to_bytes
from clair_cli.settings import Settings
from clair_cli.update import LowRankUpdate
from tests.helpers.adapters import (
    CONFIG,
    MODULES,
    PREFIX,
    factors,
    peft_model,
    save_peft,
    tiny_gpt2,
    tiny_llama,
    write_folder,
)

PATTERNS = {
    "rank_pattern": {"layers.1.self_attn.q_proj": 3, "v_proj": 1},
    "alpha_pattern": {"layers.0.self_attn.q_proj": 5, "v_proj": 7},
}


def tensors_in(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load((folder / "adapter_model.safetensors").read_bytes())
    return found


def written(
    adapter: Adapter, updates: Mapping[str, LowRankUpdate], folder: Path, rank: int | None = None
) -> Path:
    folder.mkdir(parents=True)
    write_adapter(adapter, updates, folder, rank and dict.fromkeys(updates, rank))
    return folder


def own(adapter: Adapter) -> dict[str, LowRankUpdate]:
    return {m: read_update(adapter, m) for m in adapter.updates}


def fresh(adapter: Adapter, seed: int = 7) -> dict[str, LowRankUpdate]:
    """Other updates of at most each module's rank, with scales of their own."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for i, (module, spec) in enumerate(adapter.updates.items()):
        rank = max(1, spec.rank - i % 2)
        up = torch.randn(spec.d_out, rank, generator=draw)
        down = torch.randn(rank, spec.d_in, generator=draw)
        found[module] = LowRankUpdate(up, down, 0.1 * (1 + i % 3))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("config", [CONFIG, CONFIG | {"use_rslora": True}, CONFIG | PATTERNS])
def test_write_open_read_is_the_identity(config: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    config = {k: v for k, v in config.items() if k != "rank_pattern"}
    folder = write_folder(tmp_path / "in", factors(dtype=dtype), config)
    (folder / "README.md").write_text("a model card")
    adapter = open_adapter(folder)
    out = written(adapter, own(adapter), tmp_path / "out")
    again = open_adapter(out)
    assert again.updates == adapter.updates
    assert again.digest == adapter.digest
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (out / name).read_bytes() == (folder / name).read_bytes(), name


def test_writing_twice_gives_equal_bytes(tmp_path: Path) -> None:
    adapter = open_adapter(write_folder(tmp_path / "in"))
    outs = [written(adapter, fresh(adapter), tmp_path / name, rank=4) for name in "ab"]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


CASES: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "regex targets": {"r": 4, "target_modules": r".*layers\.1.*_proj"},
    "some layers": {"r": 4, "target_modules": ["v_proj"], "layers_to_transform": [1]},
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | PATTERNS,
    "embedding": {"r": 2, "lora_alpha": 3, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "extras": {"r": 2, "target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    "gpt2": {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    "bf16": {"r": 4, "target_modules": ["q_proj", "v_proj"], "dtype": torch.bfloat16},
    "f16": {"r": 4, "target_modules": ["q_proj", "v_proj"], "dtype": torch.float16},
}


def base_of(case: str) -> Any:
    return tiny_gpt2() if case == "gpt2" else tiny_llama()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.arange(12)[None]).logits.float()
    return found


def added(model: Any, updates: Mapping[str, LowRankUpdate]) -> Any:
    """The base model with each update added to its weight, which Conv1D and Embedding turn."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, update in updates.items():
            weight, dense = modules[name].weight, update.dense()
            turned = type(modules[name]).__name__ in ("Embedding", "Conv1D")
            weight += (dense.T if turned else dense).to(weight)
    return model


@pytest.mark.parametrize("rank", [None, 6])
@pytest.mark.parametrize("case", CASES)
def test_peft_loads_the_folder_and_computes_the_intended_logits(
    case: str, rank: int | None, tmp_path: Path
) -> None:
    from peft import PeftModel

    config = dict(CASES[case])
    dtype = config.pop("dtype", None)
    base = base_of(case).to(dtype) if dtype else base_of(case)
    adapter = open_adapter(save_peft(peft_model(base, dtype=dtype, **config), tmp_path / "in"))
    updates = fresh(adapter)
    folder = written(adapter, updates, tmp_path / "out", rank)
    loaded = PeftModel.from_pretrained(base_of(case), str(folder)).eval()
    found, expected = logits(loaded), logits(added(base_of(case), updates))
    plain = logits(base_of(case))
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-5)
    assert (expected - plain).norm() > 0.05 * plain.norm()
    assert (found - expected).norm() < tolerance * (expected - plain).norm()
    stored = {t.dtype for t in tensors_in(folder).values()}
    assert stored == {dtype or torch.float32}


def test_what_is_not_updated_keeps_its_bytes_and_its_meaning(tmp_path: Path) -> None:
    from peft import PeftModel

    config: dict[str, Any] = {
        "r": 4,
        "target_modules": "all-linear",
        "modules_to_save": ["lm_head"],
    } | PATTERNS
    adapter = open_adapter(save_peft(peft_model(tiny_llama(), **config), tmp_path / "in"))
    module = "model.layers.0.self_attn.q_proj"
    updates = {module: fresh(adapter)[module]}
    before = tensors_in(tmp_path / "in")
    everything = own(adapter) | updates
    for rank in (None, 5):
        folder = written(adapter, updates, tmp_path / f"out{rank}", rank)
        after = tensors_in(folder)
        assert after.keys() == before.keys()
        changed = {
            k for k in before if after[k].shape != before[k].shape or not after[k].equal(before[k])
        }
        assert changed == {f"{PREFIX}{module}.lora_{side}.weight" for side in "AB"}
        assert len(before) > 20
        loaded = PeftModel.from_pretrained(tiny_llama(), str(folder)).eval()
        expected = logits(added(tiny_llama(), everything))
        assert (logits(loaded) - expected).norm() < 1e-5 * expected.norm()


def test_a_uniform_rank_is_portable_to_loaders_without_patterns(tmp_path: Path) -> None:
    config = CONFIG | {"r": 4, "use_rslora": True, "alpha_pattern": {"q_proj": 3}, "eva_config": {}}
    config |= {"init_lora_weights": "eva", "target_modules": ["q_proj", "v_proj"]}
    adapter = open_adapter(write_folder(tmp_path / "in", factors(rank=4), config))
    folder = written(adapter, fresh(adapter), tmp_path / "out", rank=8)
    said = json.loads((folder / "adapter_config.json").read_bytes())
    expected = {"r": 8, "lora_alpha": 8, "use_rslora": False, "init_lora_weights": True}
    assert {k: said[k] for k in expected} == expected
    assert said["rank_pattern"] == said["alpha_pattern"] == {}
    assert "eva_config" not in said
    assert said["target_modules"] == ["q_proj", "v_proj"]
    assert all(8 in t.shape for t in tensors_in(folder).values())
    assert {s.scale for s in open_adapter(folder).updates.values()} == {1.0}


@pytest.mark.parametrize("targets", [["q_proj"], "all-linear", None, ["proj"]])
def test_target_modules_cover_every_module_written(targets: Any, tmp_path: Path) -> None:
    config = CONFIG | {"target_modules": targets}
    adapter = open_adapter(write_folder(tmp_path / "in", config=config))
    folder = written(adapter, fresh(adapter), tmp_path / "out", rank=2)
    said = json.loads((folder / "adapter_config.json").read_bytes())["target_modules"]
    assert said == sorted(MODULES)


def test_keys_are_written_as_peft_loads_them(tmp_path: Path) -> None:
    tensors = {
        "module." + k.removeprefix(PREFIX).replace(".weight", ".default.weight"): v
        for k, v in factors().items()
    }
    tensors["score.weight"] = torch.ones(2, 3)
    adapter = open_adapter(write_folder(tmp_path / "in", tensors))
    found = tensors_in(written(adapter, own(adapter), tmp_path / "out"))
    assert found.keys() == factors().keys() | {f"{PREFIX}score.weight"}
    for key, tensor in factors().items():
        assert torch.equal(found[key], tensor)


@pytest.mark.parametrize("rank", [None, 4])
def test_an_adapter_without_config_gets_one_that_peft_loads(
    rank: int | None, tmp_path: Path
) -> None:
    from peft import PeftModel

    config: dict[str, Any] = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    config["rank_pattern"] = {"v_proj": 3}
    source = save_peft(peft_model(tiny_llama(), **config), tmp_path / "in")
    flat = tmp_path / "flat" / "a.safetensors"
    flat.parent.mkdir()
    (source / "adapter_model.safetensors").rename(flat)
    (flat.parent / "README.md").write_text("of the whole folder")
    adapter = open_adapter(flat, Settings(alpha=6))
    folder = written(adapter, own(adapter), tmp_path / "out", rank)
    loaded = PeftModel.from_pretrained(tiny_llama(), str(folder)).eval()
    expected = logits(added(tiny_llama(), own(adapter)))
    assert (logits(loaded) - expected).norm() < 1e-5 * expected.norm()
    assert not (folder / "README.md").exists()


def test_an_alpha_given_by_option_is_written(tmp_path: Path) -> None:
    config = {k: v for k, v in CONFIG.items() if k != "lora_alpha"}
    adapter = open_adapter(write_folder(tmp_path / "in", config=config), Settings(alpha=6))
    folder = written(adapter, own(adapter), tmp_path / "out")
    assert open_adapter(folder).updates == adapter.updates


def test_another_adapter_serves_as_template(tmp_path: Path) -> None:
    template = open_adapter(write_folder(tmp_path / "a", factors(seed=1)))
    other = open_adapter(write_folder(tmp_path / "b", factors(seed=2), CONFIG | {"lora_alpha": 3}))
    mean = {
        m: LowRankUpdate(other_update.up, other_update.down, other_update.scale)
        for m, other_update in own(other).items()
    }
    folder = written(template, mean, tmp_path / "global")
    found = open_adapter(folder)
    for module, update in mean.items():
        assert torch.allclose(read_update(found, module).dense(), update.dense(), atol=1e-6)


def test_a_raw_dtype_that_clair_does_not_read_is_passed_on(tmp_path: Path) -> None:
    odd = {
        "m.base_layer.weight": torch.arange(8, dtype=torch.uint8)
        .view(torch.float8_e4m3fn)
        .reshape(2, 4),
        "m.steps": torch.tensor(3, dtype=torch.int64),
        "m.mask": torch.tensor([True, False]),
    }
    tensors = factors() | {PREFIX + k: v for k, v in odd.items()}
    adapter = open_adapter(write_folder(tmp_path / "in", tensors))
    found = tensors_in(written(adapter, own(adapter), tmp_path / "out"))
    for key, tensor in odd.items():
        assert found[PREFIX + key].dtype == tensor.dtype
        assert to_bytes(found[PREFIX + key]) == to_bytes(tensor)


def test_an_update_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    adapter = open_adapter(write_folder(tmp_path / "in"))
    module = MODULES[0]
    fits = LowRankUpdate(torch.ones(6, 2), torch.ones(2, 5))
    bad = {
        "rank": LowRankUpdate(torch.ones(6, 3), torch.ones(3, 5)),
        "rows": LowRankUpdate(torch.ones(5, 2), torch.ones(2, 5)),
        "columns": LowRankUpdate(torch.ones(6, 2), torch.ones(2, 6)),
        "inner": LowRankUpdate(torch.ones(6, 1), torch.ones(2, 5)),
    }
    for name, update in bad.items():
        with pytest.raises(OutputError, match="does not fit 6 x 5 of rank 2"):
            written(adapter, {module: update}, tmp_path / name)
        assert not list((tmp_path / name).iterdir())
    with pytest.raises(OutputError, match="no module 'other'"):
        written(adapter, {"other": fits}, tmp_path / "other")
    with pytest.raises(OutputError, match="of rank 1"):
        written(adapter, {module: fits}, tmp_path / "one", rank=1)


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 1e5), (torch.float32, float("nan"))])
def test_values_beyond_the_stored_dtype_are_refused(
    dtype: torch.dtype, value: float, tmp_path: Path
) -> None:
    adapter = open_adapter(write_folder(tmp_path / "in", factors(dtype=dtype)))
    update = LowRankUpdate(torch.full((6, 2), value), torch.ones(2, 5), 2.0)
    with pytest.raises(OutputError, match="not finite in the stored dtype"):
        written(adapter, {MODULES[0]: update}, tmp_path / "out")


def test_a_template_changed_since_it_was_opened_is_not_written(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    adapter = open_adapter(folder)
    updates = {MODULES[0]: read_update(adapter, MODULES[0])}
    write_folder(tmp_path / "other", factors(seed=3))
    (tmp_path / "other" / "adapter_model.safetensors").replace(folder / "adapter_model.safetensors")
    with pytest.raises(ChangedWhileRead):
        written(adapter, updates, tmp_path / "out")


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    adapter = open_adapter(folder)
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="File exists"):
        write_adapter(adapter, fresh(adapter), folder)
    assert (folder / "adapter_model.safetensors").read_bytes() == before


def test_a_writer_takes_modules_in_any_order_and_gives_the_same_bytes(tmp_path: Path) -> None:
    adapter = open_adapter(write_folder(tmp_path / "in"))
    updates = fresh(adapter)
    at_once = written(adapter, updates, tmp_path / "at once", rank=3)
    (tmp_path / "one by one").mkdir()
    writer = open_writer(adapter, tmp_path / "one by one", MODULES, dict.fromkeys(MODULES, 3))
    for module in reversed(MODULES):
        writer.put(module, updates[module])
    writer.close()
    writer.abandon()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one by one" / name).read_bytes() == (at_once / name).read_bytes()


def test_an_unfinished_writer_leaves_nothing_and_says_what_is_missing(tmp_path: Path) -> None:
    adapter = open_adapter(write_folder(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    writer = open_writer(adapter, tmp_path / "out", MODULES)
    writer.put(MODULES[0], fresh(adapter)[MODULES[0]])
    with pytest.raises(OutputError, match=rf"no update was written for '{MODULES[1]}'"):
        writer.close()
    writer.abandon()
    writer.abandon()
    assert list((tmp_path / "out").iterdir()) == []
