"""kohya, LyCORIS and ComfyUI files: what their own trainers and loaders say an update is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from clair_cli import Settings, open_adapter, read_update
from clair_cli.cohort import Adapter
from clair_cli.errors import (
    AdapterError,
    ConfigInvalid,
    LimitExceeded,
    NonFinite,
    ShapeMismatch,
    Unsupported,
)
from clair_cli.formats import check_finite, norm, open_writer, write_adapter
from clair_cli.update import LowRankUpdate
from tests.helpers.adapters import factors, write_folder
from tests.helpers.commands import clair, verdicts
from tests.helpers.image_adapters import (
    SHAPES,
    TRAINING,
    dense,
    kohya_cohort,
    kohya_factors,
    write_file,
    write_kohya,
)

FLUX = {"diffusion_model.double_blocks.0.img_attn.qkv": ((9, 5), ())}


def error(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.double().reshape(-1), wanted.double().reshape(-1)
    return float((found - wanted).norm() / wanted.norm())


def whole(adapter: Adapter) -> dict[str, Tensor]:
    return {m: read_update(adapter, m).dense() for m in adapter.updates}


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata() or {})


def other_updates(adapter: Adapter, rank: int = 2) -> dict[str, LowRankUpdate]:
    draw = torch.Generator().manual_seed(9)
    return {
        m: LowRankUpdate(
            torch.randn(s.d_out, rank, generator=draw, dtype=torch.float64),
            torch.randn(rank, s.d_in, generator=draw, dtype=torch.float64),
        )
        for m, s in adapter.updates.items()
    }


# --- what is read


@pytest.mark.parametrize("alpha", [1.0, 3.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_scale_of_a_module_is_its_alpha_by_its_rank(
    alpha: float | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = kohya_factors(alpha=alpha, dtype=dtype)
    adapter = open_adapter(write_kohya(tmp_path / "a.safetensors", tensors))
    assert adapter.format == "kohya"
    assert adapter.updates.keys() == SHAPES.keys()
    assert adapter.base == "sd_v1"
    for module, spec in adapter.updates.items():
        (d_out, d_in), kernel = SHAPES[module]
        assert (spec.d_out, spec.d_in) == (d_out, d_in * (9 if kernel else 1))
        assert spec.scale == (1 if alpha is None else alpha / 2)
        assert error(read_update(adapter, module).dense(), dense(tensors, module)) < 1e-6
        assert norm(adapter, module) == pytest.approx(float(dense(tensors, module).norm()))
    assert [n.code for n in adapter.notes] == ([] if alpha else ["CLR105"])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_an_alpha_may_be_whole_and_have_a_dimension(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensors = kohya_factors()
    tensors |= {f"{m}.alpha": torch.full(shape, 16, dtype=dtype) for m in SHAPES}
    adapter = open_adapter(write_kohya(tmp_path / "a.safetensors", tensors))
    assert {s.scale for s in adapter.updates.values()} == {8.0}
    for ranks in (None, dict.fromkeys(SHAPES, 3)):
        out = tmp_path / f"{ranks is None}"
        out.mkdir()
        write_adapter(adapter, other_updates(adapter), out, ranks)
        again = open_adapter(out)
        assert {s.scale for s in again.updates.values()} == {1.0 if ranks else 8.0}
        assert all(
            error(u, other_updates(adapter)[m].dense()) < 1e-6 for m, u in whole(again).items()
        )


def test_an_alpha_of_zero_is_read_as_trainers_do_and_told(tmp_path: Path) -> None:
    adapter = open_adapter(write_kohya(tmp_path / "a.safetensors", kohya_factors(alpha=0.0)))
    assert {s.scale for s in adapter.updates.values()} == {1.0}
    assert [n.code for n in adapter.notes] == ["CLR105"]
    assert "3 in all" in adapter.notes[0].message


@pytest.mark.parametrize("names", [("lora_B", "lora_A"), ("lora_up", "lora_down")])
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_comfyui_names_are_read_too(
    names: tuple[str, str], alpha: float | None, tmp_path: Path
) -> None:
    tensors = kohya_factors(FLUX, alpha=alpha, names=names)
    tensors[f"{next(iter(FLUX))}.{names[0]}.bias"] = torch.ones(9)
    adapter = open_adapter(write_kohya(tmp_path / "a.safetensors", tensors))
    (module,) = adapter.updates
    assert (adapter.format, module) == ("kohya", next(iter(FLUX)))
    wanted = dense(tensors, module, *(n.removeprefix("lora_") for n in names))
    assert error(read_update(adapter, module).dense(), wanted) < 1e-6
    (tmp_path / "out").mkdir()
    write_adapter(adapter, {}, tmp_path / "out", {module: 3})
    again = load_file(tmp_path / "out" / "a.safetensors")
    scale = 1.0 if alpha is None else 0.5
    assert torch.equal(again[f"{module}.{names[0]}.bias"], torch.full((9,), scale))
    assert again.keys() == tensors.keys()


def with_key(name: str, value: Tensor) -> dict[str, Tensor]:
    return kohya_factors() | {name: value}


Q = next(iter(SHAPES))
BAD: dict[str, tuple[Mapping[str, Tensor], type[AdapterError], str]] = {
    "no up": ({f"{Q}.lora_down.weight": torch.ones(2, 5)}, ShapeMismatch, "no up factor"),
    "alpha alone": (with_key("lora_unet_x.alpha", torch.tensor(1.0)), ShapeMismatch, "no up"),
    "ranks": (with_key(f"{Q}.lora_up.weight", torch.ones(6, 3)), ShapeMismatch, "contradict"),
    "kernel of up": (
        with_key(f"{Q}.lora_up.weight", torch.ones(6, 2, 3, 3)),
        ShapeMismatch,
        "contradict",
    ),
    "vector": (with_key(f"{Q}.lora_up.weight", torch.ones(6)), ShapeMismatch, "expected a matrix"),
    "empty": (
        with_key(f"{Q}.lora_up.weight", torch.ones(6, 0)),
        ShapeMismatch,
        "expected a matrix",
    ),
    "int8": (with_key(f"{Q}.lora_up.weight", torch.ones(6, 2).to(torch.int8)), Unsupported, "I8"),
    "alpha NaN": (with_key(f"{Q}.alpha", torch.tensor(float("nan"))), NonFinite, "alpha"),
    "alpha inf": (with_key(f"{Q}.alpha", torch.tensor(float("inf"))), NonFinite, "alpha"),
    "alpha negative": (with_key(f"{Q}.alpha", torch.tensor(-1.0)), ConfigInvalid, "positive"),
    "alpha of two": (with_key(f"{Q}.alpha", torch.ones(2)), ShapeMismatch, "expected one number"),
    "alpha bool": (with_key(f"{Q}.alpha", torch.tensor(True)), Unsupported, "BOOL"),
    "alpha tiny": (
        with_key(f"{Q}.alpha", torch.tensor(5e-324, dtype=torch.float64)),
        ConfigInvalid,
        "underflows",
    ),
    "DoRA": (with_key(f"{Q}.dora_scale", torch.ones(6, 1)), Unsupported, "DoRA"),
    "full": (with_key(f"{Q}.diff", torch.ones(6, 5)), Unsupported, "--as update"),
    "bias": (with_key(f"{Q}.diff_b", torch.ones(6)), Unsupported, "--as update"),
    "OFT": (with_key("lora_unet_x.oft_blocks", torch.ones(2, 3, 3)), Unsupported, "OFT"),
    "IA3": (with_key("lora_unet_x.on_input", torch.tensor(True)), Unsupported, "IA3"),
    "GLoRA": (with_key("lora_unet_x.a1.weight", torch.ones(2, 3)), Unsupported, "GLoRA"),
    "unknown": (with_key("lora_unet_x.lora_rail.weight", torch.ones(2)), Unsupported, "not known"),
    "both styles": (with_key(f"{Q}.lora_B.weight", torch.ones(6, 2)), ShapeMismatch, "both stand"),
    "core": (
        with_key(f"{Q}.lora_mid.weight", torch.ones(3, 2, 3, 3)),
        ShapeMismatch,
        "contradict",
    ),
    "half a LoHa": (with_key("lora_unet_x.hada_w1_a", torch.ones(6, 2)), ShapeMismatch, "hada_"),
    "LoHa in LoRA": (with_key(f"{Q}.hada_w1_a", torch.ones(6, 2)), ShapeMismatch, "not belong"),
    "no LoRA": ({"lora_unet_x.weight": torch.ones(2)}, Unsupported, "no lora_down"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_plain_update_is_refused_by_name(case: str, tmp_path: Path) -> None:
    tensors, kind, words = BAD[case]
    with pytest.raises(kind, match=words) as caught:
        open_adapter(write_kohya(tmp_path / "a.safetensors", tensors))
    assert str(caught.value).startswith("a.safetensors: ")
    assert "\n" not in str(caught.value)


def test_a_kernel_counts_towards_the_limit_of_a_dimension(tmp_path: Path) -> None:
    file = write_kohya(tmp_path / "a.safetensors")
    assert open_adapter(file, Settings(max_dim=27)).updates
    with pytest.raises(LimitExceeded, match="the limit is 26"):
        open_adapter(file, Settings(max_dim=26))


def test_small_factors_of_a_huge_kronecker_product_are_refused(tmp_path: Path) -> None:
    side = torch.ones(4096, 4096, dtype=torch.bfloat16)
    tensors = {"lora_unet_x.lokr_w1": side[:512], "lora_unet_x.lokr_w2": side[:512].clone()}
    with pytest.raises(LimitExceeded):
        open_adapter(write_kohya(tmp_path / "a.safetensors", tensors))


def test_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    tensors = kohya_factors()
    tensors[f"{Q}.lora_up.weight"][1, 0] = float("nan")
    adapter = open_adapter(write_kohya(tmp_path / "a.safetensors", tensors))
    with pytest.raises(NonFinite, match=r"lora_up.*\[1, 0\]"):
        check_finite(adapter, Q)


# --- what is written


def test_other_ranks_get_their_alpha_and_training_facts_stay(tmp_path: Path) -> None:
    said = TRAINING | {"sshs_model_hash": "abc", "ss_tag_frequency": "{}"}
    adapter = open_adapter(write_file(tmp_path / "a.safetensors", kohya_factors(), said))
    updates = other_updates(adapter)
    for name, ranks in {"kept": None, "wider": dict.fromkeys(SHAPES, 5), "one": {Q: 7}}.items():
        (tmp_path / name).mkdir()
        write_adapter(adapter, updates, tmp_path / name, ranks)
        file = tmp_path / name / "a.safetensors"
        again, written = open_adapter(tmp_path / name), load_file(file)
        for module, spec in again.updates.items():
            rank = (ranks or {}).get(module, 2)
            assert spec.rank == rank
            assert float(written[f"{module}.alpha"]) == (rank if module in (ranks or {}) else 1)
            assert error(read_update(again, module).dense(), updates[module].dense()) < 1e-6
        rank = {"wider": "5"}.get(name, "2")
        alpha = {"wider": "5"}.get(name, "1.0")
        wanted = {k: v for k, v in said.items() if k != "sshs_model_hash"}
        assert metadata(file) == wanted | {"ss_network_dim": rank, "ss_network_alpha": alpha}


def test_an_alpha_that_its_dtype_cannot_hold_is_written_in_a_wider_one(tmp_path: Path) -> None:
    shapes = {"lora_unet_x": ((300, 280), ())}
    tensors = kohya_factors(shapes, rank=2, dtype=torch.bfloat16)
    adapter = open_adapter(write_kohya(tmp_path / "a.safetensors", tensors))
    (tmp_path / "out").mkdir()
    write_adapter(adapter, other_updates(adapter), tmp_path / "out", {"lora_unet_x": 257})
    again = open_adapter(tmp_path / "out")
    assert again.updates["lora_unet_x"].scale == 1.0
    assert again.tensors["lora_unet_x.alpha"].dtype == "F32"
    assert again.tensors["lora_unet_x.lora_up.weight"].dtype == "BF16"


def test_a_file_that_no_update_touches_keeps_its_bytes(tmp_path: Path) -> None:
    extra = {"bundle_emb.word.string_to_param.*": torch.ones(2, 3)}
    adapter = open_adapter(write_kohya(tmp_path / "a.safetensors", kohya_factors() | extra))
    (tmp_path / "out").mkdir()
    writer = open_writer(adapter, tmp_path / "out", list(adapter.updates))
    for module in adapter.updates:
        writer.keep(module)
    writer.close()
    before, after = (load_file(p / "a.safetensors") for p in (tmp_path, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


# --- against LyCORIS


class Net(nn.Module):
    """A linear layer, a convolution and one that is a matrix."""

    def __init__(self, convolutions: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q = nn.Linear(12, 16, bias=False)
        if convolutions:
            self.c = nn.Conv2d(6, 8, 3, padding=1, bias=False)
            self.p = nn.Conv2d(6, 8, 1, bias=False)


def trained(folder: Path, convolutions: bool = True, **how: Any) -> tuple[Path, dict[str, Tensor]]:
    """What LyCORIS saves, and the updates by what its network computes."""
    lycoris = pytest.importorskip("lycoris")
    how = {"linear_dim": 4, "linear_alpha": 2.5, "conv_alpha": 2.5} | how
    net = lycoris.create_lycoris(Net(convolutions), 1.0, **how)
    net.apply_to()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    net.save_weights(str(folder / "a.safetensors"), None, {"ss_network_dim": "4"})
    updates = {m.lora_name: applied(m) for m in net.loras}
    return folder / "a.safetensors", updates


def applied(module: Any) -> Tensor:
    """The update as `forward` applies it; merging scales that of LoHa and LoKr twice (4.1.3)."""
    layer = module.org_module[0]
    weight = layer.weight.detach()
    module.org_forward = lambda x: x.new_zeros(())
    seen: list[Tensor] = []
    module.op = lambda x, delta, *rest, **kw: seen.append(delta) or x.new_zeros(())
    module.forward(torch.zeros(1, *weight.shape[1:2]))
    return seen[0].detach().reshape(weight.shape)


def reloaded(file: Path, convolutions: bool = True) -> dict[str, Tensor]:
    lycoris = pytest.importorskip("lycoris")
    net, _ = lycoris.create_lycoris_from_weights(1.0, str(file), Net(convolutions))
    return {m.lora_name: m.get_diff_weight()[0].detach() for m in net.loras}


LOCON: dict[str, dict[str, Any]] = {
    "lora": {"algo": "lora"},
    "locon of other ranks": {"algo": "locon", "conv_dim": 3, "conv_alpha": 1.0},
    "Tucker": {"algo": "locon", "conv_dim": 3, "use_tucker": True},
    "lokr full": {"algo": "lokr", "full_matrix": True},
}
FACTORED: dict[str, dict[str, Any]] = {
    "loha": {"algo": "loha"},
    "loha Tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "linear_dim": 1, "conv_dim": 1, "factor": 2},
    "lokr both": {"algo": "lokr", "linear_dim": 1, "conv_dim": 1, "decompose_both": True},
    "lokr Tucker": {"algo": "lokr", "linear_dim": 1, "conv_dim": 1, "use_tucker": True},
}


@pytest.mark.parametrize("case", [*LOCON, *FACTORED])
def test_an_update_is_what_lycoris_computes_with(case: str, tmp_path: Path) -> None:
    file, wanted = trained(tmp_path, **(LOCON | FACTORED)[case])
    adapter = open_adapter(file)
    assert adapter.format == "kohya"
    assert adapter.updates.keys() == wanted.keys()
    assert len(wanted) == 3
    for module, update in wanted.items():  # which LyCORIS has as a difference of weights in float32
        assert error(read_update(adapter, module).dense(), update) < 1e-5
        assert norm(adapter, module) == pytest.approx(float(update.norm()), rel=1e-5)


def test_the_alpha_of_a_rank_stabilised_module_has_the_correction_in_it(tmp_path: Path) -> None:
    pytest.importorskip("lycoris")
    from lycoris.modules.locon import LoConModule

    module = LoConModule("lycoris_q", nn.Linear(6, 5), lora_dim=4, alpha=3.0, rs_lora=True)
    nn.init.normal_(module.lora_up.weight)
    state = {f"lycoris_q.{k}": v.detach() for k, v in module.state_dict().items()}
    adapter = open_adapter(write_kohya(tmp_path / "a.safetensors", state))
    assert adapter.updates["lycoris_q"].scale == 1.5
    wanted = module.get_diff_weight()[0].detach()
    assert error(read_update(adapter, "lycoris_q").dense(), wanted) < 1e-6


@pytest.mark.parametrize("wider", [False, True])
@pytest.mark.parametrize("case", LOCON)
def test_lycoris_loads_what_was_written(case: str, wider: bool, tmp_path: Path) -> None:
    file, _ = trained(tmp_path, **LOCON[case])
    adapter = open_adapter(file)
    updates = other_updates(adapter)
    ranks = {m: s.rank + 2 for m, s in adapter.updates.items()} if wider else None
    (tmp_path / "out").mkdir()
    write_adapter(adapter, updates, tmp_path / "out", ranks)
    found = reloaded(tmp_path / "out" / "a.safetensors")
    assert found.keys() == updates.keys()
    for module, update in updates.items():
        assert error(found[module], update.dense()) < 1e-6


@pytest.mark.parametrize("case", FACTORED)
def test_factors_of_other_forms_are_written_as_plain_pairs(case: str, tmp_path: Path) -> None:
    file, wanted = trained(tmp_path, convolutions=False, **FACTORED[case])
    adapter = open_adapter(file)
    updates = other_updates(adapter, rank=1)
    for name, given in {"same": {}, "other": updates}.items():
        (tmp_path / name).mkdir()
        writer = open_writer(adapter, tmp_path / name, list(adapter.updates))
        for module in adapter.updates:
            if given:
                writer.put(module, given[module])
            else:
                writer.keep(module)
        writer.close()
        found = reloaded(tmp_path / name / "a.safetensors", convolutions=False)
        for module, update in wanted.items():
            assert error(found[module], given[module].dense() if given else update) < 1e-5
        assert not any("hada" in k or "lokr" in k for k in open_adapter(tmp_path / name).tensors)


# --- the command line


def test_a_flat_cohort_is_detected_and_refined_as_it_came(tmp_path: Path) -> None:
    names = kohya_cohort(tmp_path / "in")
    found = clair("detect", tmp_path / "in", "-f", "json", "--fail-on", "never")
    assert found.returncode == 0, found.stderr
    assert verdicts(json.loads(found.stdout)) == dict.fromkeys(names, "benign") | {
        names[-1]: "contaminated"
    }
    for style in ("keep", "uniform", "compact"):
        out = tmp_path / style
        done = clair("refine", tmp_path / "in", "--out", out, "--write", style, "--global", "-q")
        assert done.returncode == 0, done.stderr
        for name in names[:-1]:
            before = load_file(tmp_path / "in" / f"{name}.safetensors")
            after = load_file(out / name / f"{name}.safetensors")
            assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
            assert any(not torch.equal(before[k], after[k]) for k in before)
            assert metadata(out / name / f"{name}.safetensors")["ss_base_model_version"] == "sd_v1"
        assert not (out / names[-1]).exists()
        again = open_adapter(out / "global")
        assert again.format == "kohya"
        assert len(again.updates) == 2


def test_inspect_names_the_format_and_counts_an_alpha_among_the_factors(tmp_path: Path) -> None:
    file = write_kohya(tmp_path / "a.safetensors")
    done = clair("inspect", file)
    assert done.returncode == 0, done.stderr
    assert "a: kohya, base sd_v1, 3 modules" in done.stdout
    assert "passed through" not in done.stdout


def test_cohorts_of_mixed_formats_are_told_apart(tmp_path: Path) -> None:
    kohya_cohort(tmp_path / "in")
    write_folder(tmp_path / "in" / "peft")
    done = clair("detect", tmp_path / "in")
    assert done.returncode == 1, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if " peft " in line)
    assert "broken" in line
    assert "adapts 0 of the 2 modules" in line
    kohya_cohort(tmp_path / "half", clients=3)
    for k in range(3):
        write_folder(tmp_path / "half" / f"peft-{k}", factors(seed=k))
    done = clair("detect", tmp_path / "half")
    assert done.returncode == 3
    assert "format differs between clients: kohya in 3 of 6, not in peft-0 (peft)" in done.stdout
    assert "nothing is comparable" in done.stdout
