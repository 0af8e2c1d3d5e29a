"""LoRA files of diffusers: what the library that made them says an update is, and that it loads ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from clair_cli import Settings, open_adapter, read_update
from clair_cli.cohort import Adapter
from clair_cli.errors import AdapterError, ConfigInvalid, NonFinite, ShapeMismatch, Unsupported
from clair_cli.formats import norm, write_adapter
from clair_cli.update import LowRankUpdate
from tests.helpers.adapters import factors, write_folder
from tests.helpers.commands import clair
from tests.helpers.image_adapters import (
    ATTENTION,
    PLAIN,
    diffusers_factors,
    kohya_factors,
    lora_metadata,
    write_diffusers,
    write_file,
    write_kohya,
)

FILE = "pytorch_lora_weights.safetensors"
UNET = f"unet.{ATTENTION}"


def error(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.double().reshape(-1), wanted.double().reshape(-1)
    return float((found - wanted).norm() / wanted.norm())


def other_updates(adapter: Adapter) -> dict[str, LowRankUpdate]:
    draw = torch.Generator().manual_seed(9)
    return {
        m: LowRankUpdate(
            torch.randn(s.d_out, 2, generator=draw), torch.randn(2, s.d_in, generator=draw)
        )
        for m, s in adapter.updates.items()
    }


def said(folder: Path) -> dict[str, str]:
    with safe_open(folder / FILE, "pt") as opened:
        return dict(opened.metadata() or {})


# --- what is read


def test_the_metadata_decide_the_scale_by_the_rules_of_peft(tmp_path: Path) -> None:
    for name, fields, scales in (
        ("plain", {}, (1.5, 1.5)),
        ("rslora", {"use_rslora": True}, (3 / 2**0.5,) * 2),
        ("pattern", {"alpha_pattern": {"to_q": 8}}, (4.0, 1.5)),
        ("anchored", {"alpha_pattern": {"^conv_in": 8, "^to_q": 9}}, (1.5, 4.0)),
    ):
        adapter = open_adapter(write_diffusers(tmp_path / name, metadata=lora_metadata(**fields)))
        assert adapter.format == "diffusers"
        assert [s.scale for s in adapter.updates.values()] == pytest.approx(scales[::-1])
        assert set(adapter.updates) == {UNET, "unet.conv_in"}
        assert adapter.notes == ()


def test_alphas_decide_where_there_are_no_metadata_and_else_the_scale_is_one(
    tmp_path: Path,
) -> None:
    tensors = diffusers_factors()
    bare = open_adapter(write_diffusers(tmp_path / "bare", tensors, PLAIN), Settings(alpha=9.0))
    assert {s.scale for s in bare.updates.values()} == {1.0}
    assert [n.code for n in bare.notes] == ["CLR105"]
    tensors |= {f"{m}.alpha": torch.tensor(8.0) for m in bare.updates}
    scaled = open_adapter(write_diffusers(tmp_path / "alphas", tensors, PLAIN))
    assert {s.scale for s in scaled.updates.values()} == {4.0}
    assert scaled.notes == ()
    assert scaled.updates.keys() == bare.updates.keys()


NAMES = {
    f"{UNET}.lora_A.weight": (UNET, "A"),
    "unet.mid.attn1.processor.to_q_lora.down.weight": ("unet.mid.attn1.to_q", "A"),
    "unet.mid.attn1.processor.to_out_lora.up.weight": ("unet.mid.attn1.to_out.0", "B"),
    "text_encoder.layers.0.self_attn.to_q_lora.up.weight": (
        "text_encoder.layers.0.self_attn.q_proj",
        "B",
    ),
    "text_encoder.layers.0.self_attn.out_proj.lora_linear_layer.down.weight": (
        "text_encoder.layers.0.self_attn.out_proj",
        "A",
    ),
    "transformer.transformer_blocks.0.attn.to_q.alpha": (
        "transformer.transformer_blocks.0.attn.to_q",
        "alpha",
    ),
    "transformer.proj_out.lora_B.bias": ("transformer.proj_out", "bias"),
    "unet.conv_norm_out.weight": None,
}


@pytest.mark.parametrize("key", NAMES)
def test_names_of_all_ages_stand_for_the_module_of_the_model(key: str) -> None:
    from clair_cli.formats.diffusers import parsed

    assert parsed(key) == NAMES[key]


A, B = f"{UNET}.lora.down.weight", f"{UNET}.lora.up.weight"
BAD: dict[str, tuple[dict[str, Tensor], dict[str, str], type[AdapterError], str]] = {
    "not JSON": ({}, {"lora_adapter_metadata": "{"}, ConfigInvalid, "invalid JSON"),
    "twice": ({}, {"lora_adapter_metadata": '{"r": 1, "r": 2}'}, ConfigInvalid, "occurs twice"),
    "a megabyte": (
        {},
        {"lora_adapter_metadata": " " * 2**20 + "{}"},
        ConfigInvalid,
        "the limit is",
    ),
    "alpha": ({}, lora_metadata(lora_alpha=0), ConfigInvalid, "positive"),
    "alpha text": ({}, lora_metadata(lora_alpha="8"), ConfigInvalid, "positive"),
    "rank": ({}, lora_metadata(r=3), ShapeMismatch, "has rank 2, expected 3"),
    "PEFT's own rank": ({}, {"lora_adapter_metadata": "{}"}, ShapeMismatch, "expected 8"),
    "DoRA": ({}, lora_metadata(use_dora=True), Unsupported, "DoRA"),
    "PiSSA": ({}, lora_metadata(init_lora_weights="pissa"), Unsupported, "pissa"),
    "LoKr": ({}, lora_metadata(peft_type="LOKR"), Unsupported, "LOKR"),
    "runaway": ({}, lora_metadata(rank_pattern={"(.*.*)*Z": 2}), ConfigInvalid, "for ever"),
    "both": ({f"{UNET}.alpha": torch.ones(())}, lora_metadata(), ConfigInvalid, "too"),
    "one alpha": ({f"{UNET}.alpha": torch.ones(())}, PLAIN, ConfigInvalid, "has no .alpha"),
    "NaN": ({f"{UNET}.alpha": torch.tensor(float("nan"))}, PLAIN, NonFinite, "alpha"),
    "no alpha": ({f"{UNET}.alpha": torch.zeros(())}, PLAIN, ConfigInvalid, "switches"),
    "magnitude": ({f"{UNET}.lora_magnitude_vector": torch.ones(6)}, PLAIN, Unsupported, "DoRA"),
    "half": ({"unet.x.lora.down.weight": torch.ones(2, 5)}, PLAIN, ShapeMismatch, "no up factor"),
    "ranks": ({A: torch.ones(3, 5)}, PLAIN, ShapeMismatch, "contradict"),
    "two names": ({f"{UNET}.lora_A.weight": torch.ones(2, 5)}, PLAIN, ShapeMismatch, "both stand"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_refused_by_name(case: str, tmp_path: Path) -> None:
    extra, metadata, kind, words = BAD[case]
    with pytest.raises(kind, match=words) as caught:
        open_adapter(write_diffusers(tmp_path / "c", diffusers_factors() | extra, metadata))
    assert str(caught.value).startswith(f"{FILE}: ")
    assert "\n" not in str(caught.value)


def test_adapters_of_peft_stay_those_of_peft(tmp_path: Path) -> None:
    assert open_adapter(write_folder(tmp_path / "named", name=FILE)).format == "peft"
    bare = {k.removeprefix("base_model.model."): v for k, v in factors().items()}
    assert open_adapter(write_folder(tmp_path / "bare", bare)).format == "peft"
    gpt = {f"transformer.h.0.attn.{k.rpartition('attn.')[2]}": v for k, v in bare.items()}
    assert open_adapter(write_folder(tmp_path / "gpt", gpt)).format == "peft"


# --- what is written


def test_other_ranks_go_into_the_metadata_of_their_component(tmp_path: Path) -> None:
    tensors = diffusers_factors({ATTENTION: (6, 5), "proj_out": (4, 6), "x.proj_out": (4, 6)})
    text = "text_encoder.layers.0.self_attn.q_proj.lora_linear_layer"
    tensors |= {f"{text}.down.weight": torch.ones(3, 4), f"{text}.up.weight": torch.ones(5, 3)}
    data = json.loads(lora_metadata(use_rslora=True)["lora_adapter_metadata"])
    data |= {"text_encoder.r": 3, "text_encoder.lora_alpha": 6, "text_encoder.eva_config": None}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(data), "origin": "x"}
    adapter = open_adapter(write_diffusers(tmp_path / "in", tensors, metadata))
    updates = other_updates(adapter)
    for name, ranks in {
        "kept": None,
        "wider": {m: 5 for m in adapter.updates if m.startswith("unet")},
        "mixed": {"unet.proj_out": 4},
    }.items():
        (tmp_path / name).mkdir()
        write_adapter(adapter, updates, tmp_path / name, ranks)
        again = open_adapter(tmp_path / name)
        assert again.updates.keys() == adapter.updates.keys()
        for module, spec in again.updates.items():
            assert spec.rank == (ranks or {}).get(module, adapter.updates[module].rank)
            scale = 1.0 if module in (ranks or {}) else adapter.updates[module].scale
            assert spec.scale == pytest.approx(scale)
            assert error(read_update(again, module).dense(), updates[module].dense()) < 1e-6
        written = said(tmp_path / name)
        assert written.keys() == metadata.keys()
        config = json.loads(written["lora_adapter_metadata"])
        assert config["text_encoder.lora_alpha"] == 6
        assert (written == metadata) is (ranks is None)
        assert load_file(tmp_path / name / FILE).keys() == tensors.keys()


def test_alphas_follow_the_ranks(tmp_path: Path) -> None:
    tensors = diffusers_factors()
    tensors |= {k.partition(".lora")[0] + ".alpha": torch.tensor(8.0) for k in list(tensors)}
    adapter = open_adapter(write_diffusers(tmp_path / "in", tensors, PLAIN))
    updates = other_updates(adapter)
    (tmp_path / "out").mkdir()
    write_adapter(adapter, updates, tmp_path / "out", {UNET: 4})
    again = open_adapter(tmp_path / "out")
    assert {m: s.scale for m, s in again.updates.items()} == {UNET: 1.0, "unet.conv_in": 4.0}
    assert float(load_file(tmp_path / "out" / FILE)[f"{UNET}.alpha"]) == 4
    for module, update in updates.items():
        assert error(read_update(again, module).dense(), update.dense()) < 1e-6


# --- against diffusers


def unet() -> Any:
    """A UNet of width 8 and 16, the same each time."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def flux() -> Any:
    """A transformer of one double and one single block, of width 16."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )


def text_encoder() -> Any:
    """A CLIP text model of 2 layers of width 16."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    return transformers.CLIPTextModel(config)


def trained(model: Any, **config: Any) -> Any:
    """With a LoRA whose factors are all drawn at random."""
    from peft import LoraConfig

    model.add_adapter(LoraConfig(**config))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def applied(model: Any) -> dict[str, Tensor]:
    """Module -> the update that merging would add."""
    from peft.tuners.lora import LoraLayer

    return {
        name: layer.get_delta_weight(next(iter(layer.scaling))).detach()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def same(found: dict[str, Tensor], wanted: dict[str, Any], prefix: str = "") -> None:
    """Every update of a model is that of the same module in a file."""
    assert found
    assert {prefix + m for m in found} == wanted.keys()
    for module, update in found.items():
        other = wanted[prefix + module]
        other = other.dense() if isinstance(other, LowRankUpdate) else other
        assert error(update, other) < 1e-5, module


ALL = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["to_q", "to_out.0", "conv1", "proj_in", "ff.net.2"],
    "rank_pattern": {"to_q": 2},
    "alpha_pattern": {"conv1": 6, "ff.net.2": 3},
}
ATTENTIONS = ALL | {
    "target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
    "alpha_pattern": {"to_k": 3},
}


@pytest.mark.parametrize("wider", [False, True])
def test_a_models_own_file_goes_there_and_back(wider: bool, tmp_path: Path) -> None:
    model = trained(unet(), **ALL)
    model.save_lora_adapter(tmp_path / "in")
    adapter = open_adapter(tmp_path / "in")
    assert adapter.format == "diffusers"
    same(applied(model), {m: read_update(adapter, m) for m in adapter.updates})
    for module, update in applied(model).items():
        assert norm(adapter, module) == pytest.approx(float(update.norm()), rel=1e-5)
    updates = other_updates(adapter)
    ranks = {m: 5 if "to_q" in m else 7 for m in updates} if wider else None
    (tmp_path / "out").mkdir()
    write_adapter(adapter, updates, tmp_path / "out", ranks)
    again = unet()
    again.load_lora_adapter(tmp_path / "out", prefix=None, use_safetensors=True)
    same(applied(again), updates)


@pytest.mark.parametrize("kept", ["metadata", "nothing"])
def test_a_pipelines_file_goes_there_and_back(kept: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from diffusers import StableDiffusionPipeline as Pipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    models = {
        "unet": trained(unet(), **ATTENTIONS),
        "text_encoder": trained(
            text_encoder(), r=3, lora_alpha=6, target_modules=["q_proj", "out_proj"]
        ),
    }
    parts: dict[str, Any] = {}
    for name, model in models.items():
        tensors = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        parts[f"{name}_lora_layers"] = tensors
        if kept == "metadata":
            parts[f"{name}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    Pipeline.save_lora_weights(tmp_path / "in", **parts)
    adapter = open_adapter(tmp_path / "in")
    own = {m: read_update(adapter, m) for m in adapter.updates}
    assert adapter.format == "diffusers"
    assert bool(adapter.notes) is (kept == "nothing")
    for name, model in models.items():
        here = {m: u for m, u in own.items() if m.startswith(f"{name}.")}
        if kept == "metadata":
            same(applied(model), here, f"{name}.")
    updates = other_updates(adapter)
    for style, ranks in {"kept": None, "wider": dict.fromkeys(updates, 6)}.items():
        out = tmp_path / style
        out.mkdir()
        write_adapter(adapter, updates, out, ranks)
        state, alphas, metadata = Pipeline.lora_state_dict(out, return_lora_metadata=True)
        again, encoder = unet(), text_encoder()
        Pipeline.load_lora_into_unet(state, alphas, again, metadata=metadata)
        Pipeline.load_lora_into_text_encoder(state, alphas, encoder, metadata=metadata)
        for name, model in {"unet": again, "text_encoder": encoder}.items():
            here = {m: u for m, u in updates.items() if m.startswith(f"{name}.")}
            same(applied(model), here, f"{name}.")


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_a_transformers_file_with_alphas_goes_there_and_back(
    alpha: float | None, tmp_path: Path
) -> None:
    pytest.importorskip("diffusers")
    from diffusers.loaders import FluxLoraLoaderMixin as Flux
    from peft.utils import get_peft_model_state_dict

    model = trained(flux(), r=4, lora_alpha=alpha or 4, target_modules=["to_q", "proj_out"])
    tensors = {f"transformer.{k}": v for k, v in get_peft_model_state_dict(model).items()}
    if alpha:
        tensors |= {k.partition(".lora")[0] + ".alpha": torch.tensor(alpha) for k in list(tensors)}
    adapter = open_adapter(write_diffusers(tmp_path / "in", tensors, PLAIN))
    same(applied(model), {m: read_update(adapter, m) for m in adapter.updates}, "transformer.")
    updates = other_updates(adapter)
    for style, ranks in {
        "kept": None,
        "wider": dict.fromkeys(updates, 6),
        "mixed": {m: 5 if "to_q" in m else 7 for m in updates},
    }.items():
        (tmp_path / style).mkdir()
        write_adapter(adapter, updates, tmp_path / style, ranks)
        state, alphas = Flux.lora_state_dict(tmp_path / style, return_alphas=True)
        again = flux()
        Flux.load_lora_into_transformer(state, alphas, again)
        same(applied(again), updates, "transformer.")


def test_files_of_kohya_mean_what_diffusers_loads_them_as(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Pipeline

    q, fc = ATTENTION, "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    shapes = {"lora_unet_" + q.replace(".", "_"): ((16, 16), ())}
    shapes |= {"lora_unet_" + fc.replace(".", "_"): ((16, 64), ())}
    tensors = kohya_factors(shapes, rank=4, alpha=2.0)
    adapter = open_adapter(write_kohya(tmp_path / "in" / "a.safetensors", tensors))
    updates = {m: read_update(adapter, m) for m in adapter.updates}
    for style, ranks in {"kept": None, "wider": dict.fromkeys(updates, 6)}.items():
        (tmp_path / style).mkdir()
        write_adapter(adapter, updates, tmp_path / style, ranks)
        state, alphas = Pipeline.lora_state_dict(load_file(tmp_path / style / "a.safetensors"))
        model = unet()
        Pipeline.load_lora_into_unet(state, alphas, model)
        found = {"lora_unet_" + m.replace(".", "_"): u for m, u in applied(model).items()}
        same(found, updates)


# --- the command line


def test_inspect_names_the_format_and_its_notes(tmp_path: Path) -> None:
    done = clair("inspect", write_diffusers(tmp_path / "c", metadata=PLAIN))
    assert done.returncode == 0, done.stderr
    assert "c: diffusers, base unknown, 2 modules" in done.stdout
    assert "CLR105" in done.stdout


def test_a_cohort_of_folders_is_refined_as_it_came(tmp_path: Path) -> None:
    for k in range(4):
        tensors = diffusers_factors(seed=0)
        noise = diffusers_factors(seed=k + 1)
        write_diffusers(
            tmp_path / "in" / f"c{k}", {n: t + 0.1 * noise[n] for n, t in tensors.items()}
        )
    write_file(tmp_path / "in" / "flat.safetensors", diffusers_factors(), lora_metadata())
    for style in ("keep", "uniform"):
        done = clair("refine", tmp_path / "in", "--out", tmp_path / style, "--write", style, "-q")
        assert done.returncode == 0, done.stderr
        for k in range(4):
            again = open_adapter(tmp_path / style / f"c{k}")
            assert (again.format, len(again.updates)) == ("diffusers", 2)
            assert {s.scale for s in again.updates.values()} == {1.5 if style == "keep" else 1.0}
            assert said(tmp_path / style / f"c{k}")["format"] == "pt"
        assert (tmp_path / style / "flat" / "flat.safetensors").exists()
