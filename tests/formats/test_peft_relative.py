"""Adapters that mean something only beside the base weights: PiSSA and its like, and DoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clair_cli.cohort import Adapter, Start
from clair_cli.errors import OutputError
from clair_cli.formats import open_adapter, read_update, write_adapter
from clair_cli.settings import Settings
from clair_cli.update import LowRankUpdate
from tests.formats.test_peft_variants import fresh, own, written
from tests.helpers.adapters import CONFIG, PREFIX, save_peft, tiny_llama, write_folder
from tests.helpers.variants import Variant

DIFFERENCES = Settings(differences=True)
TARGETS = {"target_modules": ["q_proj", "down_proj"]}


def started(init: str, folder: Path) -> tuple[Variant, Adapter, dict[str, LowRankUpdate]]:
    """The variant, an adapter trained a little from it, and what it began with."""
    from peft import LoraConfig, get_peft_model

    variant = Variant({**TARGETS, "init_lora_weights": init})
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=6, **variant.config)
    model = get_peft_model(variant.base(), config)
    begun = own(open_adapter(save_peft(model, folder / "begun"), DIFFERENCES))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return variant, open_adapter(save_peft(model, folder / "in"), DIFFERENCES), begun


def change(update: LowRankUpdate, begun: LowRankUpdate) -> LowRankUpdate:
    """One minus the other."""
    down = torch.cat([update.down * update.scale, -begun.down * begun.scale])
    return LowRankUpdate(torch.cat([update.up, begun.up], dim=1), down)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_moved_the_base_is_written_as_peft_starts_it_again(
    init: str, tmp_path: Path
) -> None:
    variant, adapter, begun = started(init, tmp_path)
    assert {s.start for s in adapter.updates.values()} == {Start.MOVED_BASE}
    assert adapter.traits["init"] == init
    plain = variant.output(variant.base())
    for k, updates in enumerate((own(adapter), fresh(adapter))):
        folder = written(adapter, updates, "keep", tmp_path / str(k))
        meant = variant.added({m: change(u, begun[m]) for m, u in updates.items()})
        expected, found = variant.output(meant), variant.output(variant.loaded(folder))
        assert (expected - plain).norm() > 0.01 * plain.norm()
        assert (found - expected).norm() < 1e-4 * (expected - plain).norm()


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_16", "corda", "loftq", "lora_ga"])
def test_what_peft_would_not_start_again_is_not_written(init: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", config=CONFIG | {"init_lora_weights": init})
    adapter = open_adapter(folder, DIFFERENCES)
    (tmp_path / "out").mkdir()
    same = init in ("pissa", "olora")
    with pytest.raises(OutputError, match="path_initial_model_for_weight_conversion"):
        write_adapter(adapter, own(adapter), tmp_path / "out", dict.fromkeys(adapter.updates, 3))
    if not same:
        with pytest.raises(OutputError, match="is not repeated"):
            write_adapter(adapter, own(adapter), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def effective(adapter: Adapter, updates: dict[str, LowRankUpdate], model: Any) -> Any:
    """`model` with m (W + Delta W) / |W + Delta W| by rows in place of W (arXiv:2402.09353)."""
    for module, spec in adapter.updates.items():
        if not spec.absolute:
            continue
        weight = model.get_submodule(module).weight.data
        moved = weight + updates[module].dense()
        magnitude = updates[f"{module}.lora_magnitude_vector"].dense()
        weight.copy_(magnitude * moved / moved.norm(dim=1, keepdim=True))
    return model


def dora(folder: Path) -> tuple[Variant, Adapter]:
    variant = Variant({**TARGETS, "use_dora": True})
    model = variant.adapted()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
    return variant, open_adapter(save_peft(model, folder))


@pytest.mark.parametrize("style", ["keep", "uniform", "compact"])
def test_both_parts_of_dora_are_written_as_they_were_meant(style: str, tmp_path: Path) -> None:
    variant, adapter = dora(tmp_path / "in")
    drawn = fresh(adapter)
    other = {
        m: replace(u, up=1 + 0.1 * u.up, down=torch.ones(1, 1), scale=1.0)
        if not adapter.updates[m].absolute
        else u
        for m, u in drawn.items()
    }
    plain = variant.output(variant.base())
    for k, updates in enumerate((own(adapter), other)):
        folder = written(adapter, updates, style, tmp_path / str(k))
        expected = variant.output(effective(adapter, updates, variant.base()))
        found = variant.output(variant.loaded(folder))
        assert (expected - plain).norm() > 0.01 * plain.norm()
        assert (found - expected).norm() < 1e-5 * (expected - plain).norm()


def test_a_magnitude_that_is_kept_keeps_its_bytes(tmp_path: Path) -> None:
    _, adapter = dora(tmp_path / "in")
    factors = {m: u for m, u in fresh(adapter).items() if adapter.updates[m].absolute}
    folder = written(adapter, factors, "uniform", tmp_path / "out")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "in", folder))
    kept: dict[str, Tensor] = {k: v for k, v in before.items() if "magnitude" in k}
    assert len(kept) == 4
    assert all(torch.equal(after[k], v) for k, v in kept.items())
    module = next(m for m in factors if "q_proj" in m)
    assert after[f"{PREFIX}{module}.lora_A.weight"].shape == (9, 16)
    assert read_update(open_adapter(folder), module).scale == 1
    assert tiny_llama().get_submodule(module).weight.shape == (16, 16)
