"""Every matrix-valued LoRA of PEFT: read as PEFT merges it, written as PEFT computes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clair_cli.cohort import Adapter
from clair_cli.formats import open_adapter, read_update, write_adapter
from clair_cli.update import LowRankUpdate
from tests.helpers.variants import (
    VARIANTS,
    Attention,
    Convolutions,
    Variant,
    seeded,
    sequence,
    volume,
)

NEAR = 1e-5
"""Of what the updates change: float32 leaves 1e-7 to 7e-6 of it."""


def own(adapter: Adapter) -> dict[str, LowRankUpdate]:
    return {m: read_update(adapter, m) for m in adapter.updates}


def fresh(adapter: Adapter) -> dict[str, LowRankUpdate]:
    """Other updates, each with a scale of its own."""
    draw = torch.Generator().manual_seed(7)
    return {
        module: LowRankUpdate(
            torch.randn(spec.d_out, spec.rank, generator=draw),
            torch.randn(spec.rank, spec.d_in, generator=draw),
            0.1 * (1 + i % 3),
        )
        for i, (module, spec) in enumerate(adapter.updates.items())
    }


def written(
    adapter: Adapter, updates: Mapping[str, LowRankUpdate], style: str, folder: Path
) -> Path:
    """With all ranks 9, or each its own and at most one more, or as they are."""
    ranks = {
        "keep": None,
        "uniform": dict.fromkeys(updates, 9),
        "compact": {m: s.rank + i % 2 for i, (m, s) in enumerate(adapter.updates.items())},
    }[style]
    folder.mkdir()
    write_adapter(adapter, updates, folder, ranks)
    return folder


def assert_computes(variant: Variant, folder: Path, updates: Mapping[str, LowRankUpdate]) -> None:
    """PEFT makes of the folder what the updates make of the base."""
    plain = variant.output((variant.bare or variant.base)())
    expected = variant.output(variant.added(updates))
    found = variant.output(variant.loaded(folder))
    assert (expected - plain).norm() > 1e-3 * plain.norm()
    assert (found - expected).norm() < NEAR * (expected - plain).norm()


@pytest.mark.parametrize("name", VARIANTS)
def test_updates_equal_what_peft_merges(name: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    model = variant.adapted()
    adapter = open_adapter(variant.saved(tmp_path / "in"))
    base = (variant.bare or variant.base)()
    before = {m: variant.weight(base, m).clone() for m in adapter.updates}
    if name == "layer_replication":  # PEFT merges into weights that replicas share
        assert len(before) == 3
    elif name == "tied weights":  # and twice into a weight that is tied
        assert len(before) == 2
    else:
        merged = model.merge_and_unload()
        for module, spec in adapter.updates.items():
            truth = variant.weight(merged, module) - before[module]
            assert truth.shape == (spec.d_out, spec.d_in)
            assert (read_update(adapter, module).dense() - truth).norm() < NEAR * truth.norm()
    assert_computes(variant, tmp_path / "in", own(adapter))


@pytest.mark.parametrize("style", ["keep", "uniform", "compact"])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_written_computes_what_was_meant(name: str, style: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    adapter = open_adapter(variant.saved(tmp_path / "in"))
    for k, updates in enumerate((own(adapter), fresh(adapter))):
        assert_computes(variant, written(adapter, updates, style, tmp_path / str(k)), updates)


@pytest.mark.parametrize("name", VARIANTS)
def test_own_updates_written_back_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    adapter = open_adapter(VARIANTS[name].saved(tmp_path / "in"))
    out = written(adapter, own(adapter), "keep", tmp_path / "out")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (out / file).read_bytes() == (tmp_path / "in" / file).read_bytes()


@pytest.mark.parametrize("style", ["keep", "uniform", "compact"])
def test_a_bias_of_lora_keeps_its_meaning(style: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"target_modules": ["head", "two"], "lora_bias": True}
    variant = Variant(config, seeded(Convolutions), volume)
    model = variant.adapted()
    adapter = open_adapter(variant.saved(tmp_path / "in"))
    updates = fresh(adapter)
    folder = written(adapter, updates, style, tmp_path / "out")
    intended = variant.added(updates)
    for name in ("head", "two"):
        bias = model.get_submodule(f"base_model.model.{name}.lora_B.default").bias
        intended.get_submodule(name).bias.data += adapter.updates[name].scale * bias.data
    expected = variant.output(intended)
    change = (expected - variant.output(variant.base())).norm()
    assert (variant.output(variant.loaded(folder)) - expected).norm() < NEAR * change


@pytest.mark.parametrize("style", ["keep", "uniform", "compact"])
def test_torch_attention_is_written_as_peft_applies_it_out_proj_twice(
    style: str, tmp_path: Path
) -> None:
    variant = Variant({"target_modules": ["attn", "head"]}, seeded(Attention), sequence)
    adapter = open_adapter(variant.saved(tmp_path / "in"))
    merged, base = variant.adapted().merge_and_unload(), variant.base()
    twice = {"attn": 1, "attn.base_layer.out_proj": 2, "head": 1}
    assert adapter.updates.keys() == twice.keys()
    for module, times in twice.items():
        truth: Tensor = variant.weight(merged, module) - variant.weight(base, module)
        found = times * read_update(adapter, module).dense()
        assert (found - truth).norm() < NEAR * truth.norm(), module
    for k, updates in enumerate((own(adapter), fresh(adapter))):
        folder = written(adapter, updates, style, tmp_path / str(k))
        meant = {m: LowRankUpdate(u.up, u.down, u.scale * twice[m]) for m, u in updates.items()}
        assert_computes(variant, folder, meant)


@pytest.mark.parametrize("name", ["VeLoRA", "MonteCLoRA"])
def test_extras_of_training_alone_stay_as_they_are_or_go_with_other_ranks(
    name: str, tmp_path: Path
) -> None:
    import peft

    kinds = {"VeLoRA": ("velora", "VeloraConfig"), "MonteCLoRA": ("monteclora", "MontecloraConfig")}
    short, kind = kinds[name]
    config = getattr(peft, kind, None) or getattr(peft, kind.replace("cl", "CL"))
    variant = Variant({"target_modules": ["q_proj"], f"{short}_config": config()})
    adapter = open_adapter(variant.saved(tmp_path / "in"))
    used = {n for s in adapter.updates.values() for n in s.tensors.values()}
    assert len(adapter.updates) == 2
    assert all(f"lora_{short}" in n for n in adapter.tensors.keys() - used)
    assert adapter.tensors.keys() - used
    assert adapter.notes == ()
    for style in ("keep", "uniform", "compact"):
        updates = fresh(adapter)
        folder = written(adapter, updates, style, tmp_path / style)
        assert_computes(variant, folder, updates)
        kept = open_adapter(folder).tensors.keys() == adapter.tensors.keys()
        assert kept == (style == "keep")


@pytest.mark.parametrize("style", ["keep", "uniform", "compact"])
def test_what_an_activated_adapter_waits_for_is_kept(style: str, tmp_path: Path) -> None:
    variant = Variant({"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"})
    folder = variant.saved(tmp_path / "in", alora_invocation_tokens=[5, 6])
    adapter = open_adapter(folder)
    out = written(adapter, own(adapter), style, tmp_path / "out")

    def logits(place: Path) -> Tensor:
        with torch.no_grad():
            found: Tensor = variant.loaded(place)(input_ids=torch.arange(12)[None]).logits
        return found

    before, plain = logits(folder), variant.output(variant.base())
    change = (before - plain).norm()
    assert torch.allclose(before[:, :5], plain[:, :5], atol=1e-6)
    assert change > 1e-3 * plain.norm()
    assert (logits(out) - before).norm() < NEAR * change
