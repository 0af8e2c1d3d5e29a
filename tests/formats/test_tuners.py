"""PEFT's other tuners: their updates are what PEFT merges, and plain LoRA says the same."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clair_cli import formats, refine
from clair_cli.formats import open_adapter, open_writer, read_update
from clair_cli.inspection import inspect
from clair_cli.settings import Settings
from clair_cli.update import LowRankUpdate
from tests.helpers.adapters import MODULES
from tests.helpers.commands import clair
from tests.helpers.tuners import (
    CASES,
    CONVERTED,
    FLATTENED,
    SHAPES,
    output,
    save,
    true_updates,
    tuned,
    tuner_tensors,
    write_tuner,
)

pytest.importorskip("peft")


def converted(folder: Path, target: Path, **ranks: int) -> Path:
    """The adapter as it is, written as clair writes it."""
    adapter = open_adapter(folder)
    target.mkdir()
    writer = open_writer(adapter, target, list(adapter.updates), ranks or None)
    for module in adapter.updates:
        writer.keep(module)
    writer.close()
    return target


def loaded(folder: Path, base: Any) -> Any:
    """PeftModel.from_pretrained, for which no tensor may be missing or left over."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        return PeftModel.from_pretrained(base, str(folder)).eval()


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def widened(name: str, update: Tensor, shape: torch.Size) -> Tensor:
    """A MiSS block (d_out, r) repeated over the weight's (d_out, d_in)."""
    if not name.startswith("miss"):
        return update
    whole = update[:, torch.arange(shape[1]) % update.shape[1]]
    return whole.repeat(shape[0] // len(whole), 1)


@pytest.mark.parametrize("name", CASES)
def test_the_update_is_what_peft_merges(name: str, tmp_path: Path) -> None:
    model = tuned(name)
    adapter = open_adapter(save(model, tmp_path / "a"))
    truth = true_updates(model, CASES[name][0]())
    assert adapter.format == name.split()[0]
    assert adapter.updates.keys() == truth.keys()
    for module, wanted in truth.items():
        update, spec = read_update(adapter, module), adapter.updates[module]
        assert (update.up.shape, update.down.shape) == (
            (spec.d_out, spec.rank),
            (spec.rank, spec.d_in),
        )
        found = widened(name, update.dense().double(), wanted.shape)
        assert found.shape == wanted.shape
        assert error(found, wanted) < 1e-6
        own = float(update.dense().double().norm())
        assert formats.norm(adapter, module) == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize("name", [n for n in CASES if n != FLATTENED])
def test_peft_loads_what_is_written_and_says_the_same(name: str, tmp_path: Path) -> None:
    model = tuned(name)
    written = converted(save(model, tmp_path / "a"), tmp_path / "b")
    config = json.loads((written / "adapter_config.json").read_text())
    assert config["peft_type"] == ("LORA" if name in CONVERTED else "MISS")
    base, wanted = output(CASES[name][0]()), output(model)
    found = output(loaded(written, CASES[name][0]()))
    assert error(found - base, wanted - base) < 1e-4
    assert error(base, wanted) > 1e-3  # or the base alone would pass


def test_flattened_kernels_are_read_but_peft_refuses_their_lora_aloud(tmp_path: Path) -> None:
    written = converted(save(tuned(FLATTENED), tmp_path / "a"), tmp_path / "b")
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded(written, CASES[FLATTENED][0]())


def test_the_rank_is_what_the_form_allows(tmp_path: Path) -> None:
    def ranks(name: str) -> set[int]:
        return {s.rank for s in open_adapter(save(tuned(name), tmp_path / name)).updates.values()}

    assert ranks("loha") == {9}  # r^2
    assert ranks("loha full") == {8, 16}  # r^2 = 36 is more than the matrices have
    assert ranks("lokr both") == {4}
    assert ranks("lokr") < set(range(1, 48))


# --- AdaLoRA after pruning


def pruned(folder: Path) -> Any:
    """An AdaLoRA that PEFT's own allocator has pruned; one module has lost all its ranks."""
    model = tuned("adalora", target_r=2, tinit=0, tfinal=1)
    tuner = model.base_model
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            gone = "layers.0.mlp.down_proj" in key
            parameter.grad = torch.ones_like(parameter) * (1e-6 if gone else 1)
    for step in (8, 9):
        tuner.update_and_allocate(step)
    for value in model.peft_config["default"].rank_pattern.values():
        assert len(value) == 5
    save(model, folder)
    return model


def test_a_pruned_adalora_keeps_the_scale_of_its_first_rank(tmp_path: Path) -> None:
    model = pruned(tmp_path / "a")
    adapter = open_adapter(tmp_path / "a")
    kept = {
        key.removesuffix(".lora_E"): sum(mask)
        for key, mask in adapter.config["rank_pattern"].items()
    }
    assert len(set(kept.values())) > 2
    assert 0 in kept.values()
    assert {m: s.rank for m, s in adapter.updates.items()} == {
        m: max(r, 1) for m, r in kept.items()
    }
    truth = true_updates(model, CASES["adalora"][0]())
    for module in adapter.updates:
        found = read_update(adapter, module).dense().double()
        if kept[module]:
            assert error(found, truth[module]) < 1e-6
        else:
            assert module not in truth
            assert formats.norm(adapter, module) == float(found.norm()) == 0
    found = output(loaded(converted(tmp_path / "a", tmp_path / "b"), CASES["adalora"][0]()))
    torch.testing.assert_close(found, output(model), rtol=1e-4, atol=1e-5)


# --- names and what lies beside


def test_wrappers_and_adapter_names_do_not_matter(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for kind in SHAPES:
        clean, dirty = (write_tuner(tmp_path / f"{kind}{i}", kind) for i in "12")
        renamed = {
            f"module._orig_mod.{key}.local": value for key, value in tuner_tensors(kind).items()
        }
        save_file(renamed, dirty / "adapter_model.safetensors")
        one, other = open_adapter(clean), open_adapter(dirty)
        assert one.updates.keys() == other.updates.keys() == set(MODULES)
        for module in MODULES:
            wanted = read_update(one, module).dense()
            torch.testing.assert_close(read_update(other, module).dense(), wanted, rtol=0, atol=0)
        written = [
            converted(folder, tmp_path / f"{kind}{i}w") for i, folder in enumerate((clean, dirty))
        ]
        names = [set(open_adapter(folder).tensors) for folder in written]
        assert names[0] == names[1]


def test_saved_modules_and_biases_go_with_the_lora(tmp_path: Path) -> None:
    model = tuned("delora", modules_to_save=["lm_head"])
    folder = save(model, tmp_path / "a")
    (folder / "README.md").write_text("a model card")
    written = converted(folder, tmp_path / "b")
    assert (written / "README.md").read_text() == "a model card"
    config = json.loads((written / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["lm_head"]
    found = output(loaded(written, CASES["delora"][0]()))
    torch.testing.assert_close(found, output(model), rtol=1e-4, atol=1e-5)
    biased = tuned("adalora gpt2", bias="lora_only")
    written = converted(save(biased, tmp_path / "c"), tmp_path / "d")
    found = output(loaded(written, CASES["adalora gpt2"][0]()))
    torch.testing.assert_close(found, output(biased), rtol=1e-4, atol=1e-5)


def test_names_that_end_alike_keep_their_ranks(tmp_path: Path) -> None:
    from clair_cli.formats.peft.plain_lora import lora_config

    ranks = {"lin": 2, "block.lin": 5, "block.0.lin": 3, "other": 5}
    from peft.utils.other import get_pattern_key

    config = lora_config({}, ranks)
    patterns = config["rank_pattern"]
    assert config["alpha_pattern"] == patterns
    for module, rank in ranks.items():
        key = get_pattern_key(patterns.keys(), module)
        assert patterns.get(key, config["r"]) == rank
    assert lora_config({}, {"a": 3, "b": 3})["rank_pattern"] == {}


def test_a_low_precision_adapter_is_written_in_its_dtype(tmp_path: Path) -> None:
    model = tuned("loha")
    folder = save(model, tmp_path / "a", torch.bfloat16)
    adapter, again = open_adapter(folder), open_adapter(converted(folder, tmp_path / "b"))
    for module, spec in again.updates.items():
        assert spec.dtype == adapter.updates[module].dtype == "BF16"
        wanted = read_update(adapter, module).dense()
        assert error(read_update(again, module).dense(), wanted) < 2**-7


def test_a_written_rank_pads_with_zeros_and_miss_keeps_its_blocks(tmp_path: Path) -> None:
    for kind in SHAPES:
        folder = write_tuner(tmp_path / kind, kind)
        written = converted(folder, tmp_path / f"{kind}-7", **dict.fromkeys(MODULES, 7))
        one, other = open_adapter(folder), open_adapter(written)
        assert {s.rank for s in other.updates.values()} == ({2} if kind == "MISS" else {7})
        for module in MODULES:
            wanted = read_update(one, module).dense()
            torch.testing.assert_close(read_update(other, module).dense(), wanted)


def test_a_miss_block_takes_an_update_of_any_rank(tmp_path: Path) -> None:
    adapter = open_adapter(write_tuner(tmp_path / "a", "MISS"))
    draw = torch.Generator().manual_seed(0)
    wide = LowRankUpdate(torch.randn(6, 4, generator=draw), torch.randn(4, 2, generator=draw), 0.5)
    (tmp_path / "b").mkdir()
    formats.write_adapter(adapter, {MODULES[0]: wide}, tmp_path / "b")
    found = read_update(open_adapter(tmp_path / "b"), MODULES[0]).dense()
    torch.testing.assert_close(found, wide.dense())


# --- a cohort


def tasks() -> Tensor:
    """Two changes (2, 16, 24) of a linear map, each of LoHa's form with r = 2."""
    draw = torch.Generator().manual_seed(0)
    a, c = torch.randn(2, 2, 16, 2, generator=draw).unbind()
    b, d = torch.randn(2, 2, 2, 24, generator=draw).unbind()
    return (a @ b) * (c @ d) / 4


def linear() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(24, 16))


def cohort(folder: Path, odd: int = 2) -> Path:
    """Clients that fit one change of a linear map by LoHa; the odd one's labels are another's."""
    from peft import LoHaConfig, get_peft_model

    draw = torch.Generator().manual_seed(1)
    task, other = tasks()
    for client in range(7):
        base = linear()
        whole = base[0].weight.detach() + (other if client == odd else task)
        x = torch.randn(200, 24, generator=draw)
        y = x @ whole.T + 0.1 * torch.randn(200, 16, generator=draw)
        torch.manual_seed(0)  # the server sends everyone the same start
        model = get_peft_model(base, LoHaConfig(r=2, alpha=4, target_modules=["0"]))
        steps = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
        for _ in range(200):
            steps.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            steps.step()
        model.save_pretrained(str(folder / f"client-{client}"))
    return folder


def test_a_cohort_of_loha_is_judged_and_refined_as_plain_lora(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "round")
    done = clair("detect", folder, "-f", "json", "-q")
    report = json.loads(done.stdout)
    verdicts = {c["id"]: c["verdict"] for c in report["clients"]}
    assert (done.returncode, [c for c, v in verdicts.items() if v != "benign"]) == (1, ["client-2"])
    said = [r for c in report["clients"] for r in c["reasons"] if "plain LoRA" in r["message"]]
    assert {r["code"] for r in said} == {"CLR115"}
    assert len(said) == 7
    done = clair("refine", folder, "--out", tmp_path / "out", "--global", "-q")
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (tmp_path / "out").iterdir() if p.is_dir()}
    assert names == {"global", *(c for c, v in verdicts.items() if v == "benign")}
    for name in sorted(names):
        before = linear()[0].weight.detach()
        after = loaded(tmp_path / "out" / name, linear()).merge_and_unload()[0].weight.detach()
        assert error(after - before, tasks()[0]) < 0.3


def test_an_adapter_that_nothing_was_taken_from_is_not_called_unchanged(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "round")
    report = refine(folder, tmp_path / "out", Settings(strength=0.0))
    assert report.refinement is not None
    assert [c.unchanged for c in report.refinement.clients] == [False] * 6
    for client in report.refinement.clients:
        one = open_adapter(folder / client.client)
        other = open_adapter(tmp_path / "out" / client.path)
        assert (one.format, other.format) == ("loha", "peft")
        wanted = read_update(one, "0").dense()
        torch.testing.assert_close(read_update(other, "0").dense(), wanted, rtol=1e-5, atol=1e-6)


def test_inspect_says_what_becomes_of_it(tmp_path: Path) -> None:
    for kind in SHAPES:
        found = inspect(write_tuner(tmp_path / kind, kind), Settings())
        assert found.format == kind.lower()
        (note,) = (r for r in found.notes if r.code == "CLR115")
        assert f"{kind}: " in note.message
        assert ("written as plain LoRA" in note.message) == (kind != "MISS")
