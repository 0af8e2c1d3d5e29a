"""Updates of real PEFT folders equal what PEFT merges; all other kinds are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clair_cli.errors import (
    AdapterError,
    ConfigInvalid,
    LimitExceeded,
    NonFinite,
    ShapeMismatch,
    Unsupported,
)
from clair_cli.formats import FORMATS, check_finite, open_adapter, read_update
from clair_cli.settings import Settings
from tests.helpers.adapters import (
    CONFIG,
    MODULES,
    PREFIX,
    clone,
    factors,
    peft_model,
    save_peft,
    tiny_gpt2,
    tiny_llama,
    write_folder,
)

PATTERNS = {
    "rank_pattern": {"layers.1.self_attn.q_proj": 3, "v_proj": 1},
    "alpha_pattern": {"model.layers.0.self_attn.q_proj": 5, "mlp.down_proj": 0.5, "1.*v_proj": 7},
}
LLAMA: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    | PATTERNS,
    "patterns+rslora": {"r": 4, "target_modules": "all-linear", "use_rslora": True} | PATTERNS,
    "embedding+head": {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["embed_tokens", "lm_head", "q_proj"],
    },
    "dtype bf16": {"r": 4, "target_modules": ["q_proj"], "dtype": torch.bfloat16},
    "dtype f16": {"r": 4, "target_modules": ["q_proj"], "dtype": torch.float16},
    "dtype f64": {"r": 4, "target_modules": ["q_proj"], "dtype": torch.float64},
}


def merged_minus_base(model: Any, modules: Mapping[str, Any]) -> dict[str, Tensor]:
    """What PEFT adds to each weight, as (d_out, d_in); (dim, vocab) for an embedding."""
    from transformers.pytorch_utils import Conv1D

    model = model.float() if next(model.parameters()).dtype != torch.float64 else model
    bare = dict(model.get_base_model().named_modules())
    before = {m: bare[m].get_base_layer().weight.detach().clone() for m in modules}
    merged = dict(model.merge_and_unload().named_modules())
    found = {}
    for name, weight in before.items():
        added = merged[name].weight.detach() - weight
        turned = isinstance(merged[name], torch.nn.Embedding | Conv1D)
        found[name] = added.T if turned else added
    return found


def assert_read_as_merged(folder: Path, model: Any) -> None:
    adapter = open_adapter(folder)
    truth = merged_minus_base(model, adapter.updates)
    assert truth
    for module, expected in truth.items():
        update, spec = read_update(adapter, module), adapter.updates[module]
        assert update.up.shape == (spec.d_out, spec.rank)
        assert update.down.shape == (spec.rank, spec.d_in)
        assert expected.shape == (spec.d_out, spec.d_in)
        error = (update.dense() - expected).norm() / expected.norm()
        assert error < 1e-5, (module, float(error))


@pytest.mark.parametrize("case", LLAMA)
def test_updates_equal_what_peft_merges(case: str, tmp_path: Path) -> None:
    config = dict(LLAMA[case])
    dtype = config.pop("dtype", None)
    base = tiny_llama().to(dtype) if dtype else tiny_llama()
    model = peft_model(base, dtype=dtype, **config)
    folder = save_peft(model, tmp_path / "c")
    if dtype:
        stored = {"bf16": "BF16", "f16": "F16", "f64": "F64"}[case.split()[1]]
        adapter = open_adapter(folder)
        assert {s.dtype for s in adapter.updates.values()} == {stored}
        read = read_update(adapter, next(iter(adapter.updates))).up.dtype
        assert read == (torch.float64 if stored == "F64" else torch.float32)
    assert_read_as_merged(folder, model)


def test_conv1d_updates_equal_what_peft_merges(tmp_path: Path) -> None:
    model = peft_model(
        tiny_gpt2(),
        r=4,
        lora_alpha=8,
        target_modules=["c_attn", "c_fc", "wte"],
        fan_in_fan_out=True,
    )
    assert_read_as_merged(save_peft(model, tmp_path / "c"), model)


def test_a_named_adapter_is_found_one_folder_down(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"])
    model = get_peft_model(tiny_llama(), config, adapter_name="tuned")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    folder = save_peft(model, tmp_path / "c")
    assert open_adapter(folder).path.name == "tuned"
    assert_read_as_merged(folder, model)


def test_extras_are_kept_as_tensors_and_are_no_updates(tmp_path: Path) -> None:
    model = peft_model(
        tiny_llama(),
        r=2,
        target_modules=["q_proj", "embed_tokens"],
        modules_to_save=["lm_head"],
        trainable_token_indices=None,
        lora_bias=False,
    )
    adapter = open_adapter(save_peft(model, tmp_path / "c"))
    factor_names = {n for s in adapter.updates.values() for n in s.tensors.values()}
    assert set(adapter.tensors) - factor_names == {
        f"{PREFIX}lm_head.weight",
        f"{PREFIX}model.embed_tokens.base_layer.weight",
    }
    assert len(adapter.updates) == 3


ALIASES = {
    "as saved": lambda k: k,
    "no prefix": lambda k: k.removeprefix(PREFIX),
    "adapter name": lambda k: k.replace(".weight", ".default.weight"),
    "ddp": lambda k: "module." + k,
    "compile": lambda k: "_orig_mod." + k,
    "fsdp": lambda k: k.replace(
        "layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."
    ),
    "all": lambda k: "module._orig_mod." + k.replace(".weight", ".local.weight"),
}


@pytest.mark.parametrize("case", ALIASES)
def test_wrappers_prefixes_and_adapter_names_do_not_change_what_is_read(
    case: str, tmp_path: Path
) -> None:
    tensors = {ALIASES[case](k): v for k, v in factors().items()}
    adapter = open_adapter(write_folder(tmp_path / "c", tensors))
    plain = open_adapter(write_folder(tmp_path / "plain"))
    assert tuple(adapter.updates) == MODULES
    for module in MODULES:
        assert torch.equal(read_update(adapter, module).up, read_update(plain, module).up)
        assert torch.equal(read_update(adapter, module).down, read_update(plain, module).down)


def test_a_base_module_called_module_keeps_its_name(tmp_path: Path) -> None:
    tensors = factors({"enc.module.q_proj": (4, 4)})
    assert list(open_adapter(write_folder(tmp_path / "c", tensors)).updates) == [
        "enc.module.q_proj"
    ]


def renamed(old: str, new: str) -> dict[str, Tensor]:
    return {k.replace(old, new): v for k, v in factors().items()}


def reshaped(part: str, tensor: Tensor) -> dict[str, Tensor]:
    return {k: tensor.clone() if part in k else v for k, v in factors().items()}


def dropped(part: str) -> dict[str, Tensor]:
    return {k: v for k, v in factors().items() if part not in k}


EXTRA = factors({"model.x": (6, 5)})
BAD_TENSORS: dict[str, tuple[dict[str, Tensor], type[AdapterError], str]] = {
    "A without B": (dropped("q_proj.lora_B"), ShapeMismatch, "q_proj.lora_A.weight' has no lora_B"),
    "B without A": (dropped("q_proj.lora_A"), ShapeMismatch, "q_proj.lora_B.weight' has no lora_A"),
    "ranks differ": (
        reshaped("q_proj.lora_A", torch.ones(3, 5)),
        ShapeMismatch,
        "ranks must agree",
    ),
    "rank against config": (
        factors(rank=3),
        ShapeMismatch,
        "has rank 3, adapter_config.json says 2",
    ),
    "ZeRO-3 flat": (reshaped("q_proj.lora_A", torch.ones(10)), ShapeMismatch, "ZeRO-3"),
    "ZeRO-3 empty": (reshaped("lora_A", torch.ones(0)), ShapeMismatch, "ZeRO-3"),
    "zero rank": (reshaped("q_proj.lora_A", torch.ones(0, 5)), ShapeMismatch, "ZeRO-3"),
    "half a convolution": (
        reshaped("q_proj.lora_A", torch.ones(2, 5, 3, 3)),
        ShapeMismatch,
        "ranks must agree",
    ),
    "kernels on both sides": (
        reshaped("q_proj.lora_A", torch.ones(2, 5, 3)) | reshaped("q_proj", torch.ones(2, 2, 3)),
        ShapeMismatch,
        "ranks must agree",
    ),
    "int8": (reshaped("lora_A", torch.ones(2, 5).to(torch.int8)), Unsupported, "I8.*float32"),
    "float8": (
        reshaped("lora_A", torch.ones(2, 5).to(torch.float8_e4m3fn)),
        Unsupported,
        "F8_E4M3",
    ),
    "DoRA without use_dora": (
        EXTRA | {"model.x.lora_magnitude_vector": torch.ones(6)},
        ShapeMismatch,
        "lora_magnitude_vector.*without use_dora",
    ),
    "a magnitude alone": (
        {"model.x.lora_magnitude_vector": torch.ones(6)},
        ShapeMismatch,
        "has no lora_[AB] beside it",
    ),
    "KaSA": (EXTRA | {"model.x.lora_diag": torch.ones(2)}, Unsupported, "KaSA"),
    "AdaLoRA": (EXTRA | {"model.x.lora_E": torch.ones(2, 1)}, Unsupported, "AdaLoRA"),
    "experts without target_parameters": (
        factors({"m.experts": (6, 5)}, rank=6),
        ShapeMismatch,
        "has rank 6, adapter_config.json says 2",
    ),
    "LoHa": ({"m.q.hada_w1_a": torch.ones(6, 2)}, Unsupported, "not plain LoRA"),
    "no LoRA": ({"model.norm.weight": torch.ones(5)}, Unsupported, "no lora_A and lora_B"),
    "no tensors": ({}, Unsupported, "no lora_A and lora_B"),
    "two adapters": (
        factors() | renamed(".weight", ".other.weight"),
        ShapeMismatch,
        "both stand for",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_tensors_that_are_no_plain_lora_are_refused_by_name(case: str, tmp_path: Path) -> None:
    tensors, kind, words = BAD_TENSORS[case]
    with pytest.raises(kind, match=words) as caught:
        open_adapter(write_folder(tmp_path / "c", tensors))
    assert str(caught.value).startswith("adapter_model.safetensors: ")
    assert "\n" not in str(caught.value)


def test_dimensions_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "c")
    assert open_adapter(folder, Settings(max_dim=6)).updates
    with pytest.raises(LimitExceeded, match="limit is 5 per dimension"):
        open_adapter(folder, Settings(max_dim=5))


BAD_CONFIGS: dict[str, tuple[Any, type[AdapterError], str]] = {
    "not JSON": (b"{", ConfigInvalid, "invalid JSON"),
    "duplicate key": (b'{"r": 2, "r": 3}', ConfigInvalid, "'r' occurs twice"),
    "a megabyte": (b" " * 2**20 + b"{}", ConfigInvalid, "the limit is 1048576"),
    "no peft_type": ({"r": 2, "lora_alpha": 4}, ConfigInvalid, "peft_type is missing"),
    "no alpha": ({"peft_type": "LORA", "r": 2}, ConfigInvalid, "--alpha"),
    "null alpha": (CONFIG | {"lora_alpha": None}, ConfigInvalid, "--alpha"),
    "bool alpha": (CONFIG | {"lora_alpha": True}, ConfigInvalid, "lora_alpha: expected a positive"),
    "zero alpha": (CONFIG | {"lora_alpha": 0}, ConfigInvalid, "lora_alpha: expected a positive"),
    "negative alpha": (
        CONFIG | {"lora_alpha": -1},
        ConfigInvalid,
        "lora_alpha: expected a positive",
    ),
    "text alpha": (CONFIG | {"lora_alpha": "16"}, ConfigInvalid, "lora_alpha: expected a positive"),
    "vanishing alpha": (CONFIG | {"lora_alpha": 5e-324}, ConfigInvalid, "underflows"),
    "bool r": (CONFIG | {"r": True}, ConfigInvalid, "r: expected a positive integer"),
    "float r": (CONFIG | {"r": 2.0}, ConfigInvalid, "r: expected a positive integer"),
    "huge r": (CONFIG | {"r": 10**9}, ShapeMismatch, "has rank 2, .* says 1000000000"),
    "text rslora": (CONFIG | {"use_rslora": "no"}, ConfigInvalid, "use_rslora: expected true"),
    "list rank_pattern": (
        CONFIG | {"rank_pattern": []},
        ConfigInvalid,
        "rank_pattern: expected an",
    ),
    "masks as ranks": (CONFIG | {"rank_pattern": {"q": [True]}}, ConfigInvalid, "rank_pattern 'q'"),
    "text alpha_pattern": (
        CONFIG | {"alpha_pattern": {"q": "1"}},
        ConfigInvalid,
        "alpha_pattern 'q'",
    ),
    "runaway pattern": (CONFIG | {"alpha_pattern": {"(.*.*)*Z": 1}}, ConfigInvalid, "for ever"),
    "pattern against rank": (CONFIG | {"rank_pattern": {"v_proj": 8}}, ShapeMismatch, "says 8"),
    "base not text": (CONFIG | {"base_model_name_or_path": 3}, ConfigInvalid, "base_model_name"),
    "DoRA without magnitudes": (CONFIG | {"use_dora": True}, ShapeMismatch, "no lora_magnitude"),
    "text parameters": (
        CONFIG | {"target_parameters": "x"},
        ConfigInvalid,
        "target_parameters: expected a list",
    ),
    "QALoRA": (CONFIG | {"use_qalora": True}, Unsupported, "QALoRA"),
    "BD-LoRA": (CONFIG | {"use_bdlora": {"nblocks": 2}}, Unsupported, "BD-LoRA"),
    "Arrow": (CONFIG | {"arrow_config": {"top_k": 2}}, Unsupported, "Arrow"),
    "KaSA": (CONFIG | {"kasa_config": {"beta": 1}}, Unsupported, "KaSA"),
    "unknown init": (CONFIG | {"init_lora_weights": "new"}, Unsupported, "'new' is not known"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_leaves_the_update_unknown_is_refused_by_name(
    case: str, tmp_path: Path
) -> None:
    config, kind, words = BAD_CONFIGS[case]
    with pytest.raises(kind, match=words) as caught:
        open_adapter(write_folder(tmp_path / "c", config=config))
    assert "adapter_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_an_init_that_changes_the_base_is_refused_with_its_remedy(
    init: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "c", config=CONFIG | {"init_lora_weights": init})
    with pytest.raises(Unsupported, match="path_initial_model_for_weight_conversion"):
        open_adapter(folder)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_an_init_that_leaves_the_base_alone_is_read(init: Any, tmp_path: Path) -> None:
    assert open_adapter(
        write_folder(tmp_path / "c", config=CONFIG | {"init_lora_weights": init})
    ).updates


def test_every_peft_type_without_a_reader_is_refused_by_name(tmp_path: Path) -> None:
    from peft import PeftType

    kinds = [str(kind.value) for kind in PeftType if kind.value.lower() not in {*FORMATS, "lora"}]
    assert len(kinds) > 10
    for kind in kinds:
        folder = write_folder(tmp_path / kind, config=CONFIG | {"peft_type": kind})
        with pytest.raises(Unsupported, match=f"'{kind}' is not LORA"):
            open_adapter(folder)


def test_the_first_pattern_on_disk_counts_and_an_overlap_is_noted(tmp_path: Path) -> None:
    specific, general = "self_attn.q_proj", "q_proj"
    for first, second in ((specific, general), (general, specific)):
        config = CONFIG | {"alpha_pattern": {first: 6, second: 10}}
        adapter = open_adapter(write_folder(tmp_path / first, config=config))
        assert adapter.updates[MODULES[0]].scale == 3.0
        assert adapter.updates[MODULES[1]].scale == 2.0
        assert [(n.code, "both match" in n.message) for n in adapter.notes] == [("CLR105", True)]


def test_a_config_that_asks_for_code_is_noted_and_not_obeyed(tmp_path: Path) -> None:
    mapping = {"base_model_class": "X", "parent_library": "evil.module"}
    config = CONFIG | {"auto_mapping": mapping, "trust_remote_code": True, "auto_map": {"A": "b.C"}}
    adapter = open_adapter(write_folder(tmp_path / "c", config=config))
    assert [n.code for n in adapter.notes] == ["CLR113"] * 3
    usual = {"base_model_class": "LlamaModel", "parent_library": "transformers.models.llama"}
    config = CONFIG | {"auto_mapping": usual, "trust_remote_code": False}
    assert open_adapter(write_folder(tmp_path / "d", config=config)).notes == ()


def test_the_base_model_is_what_the_config_names(tmp_path: Path) -> None:
    for i, (name, expected) in enumerate((("org/base", "org/base"), ("", None), (None, None))):
        config = CONFIG | {"base_model_name_or_path": name}
        assert open_adapter(write_folder(tmp_path / str(i), config=config)).base == expected


def test_the_digest_follows_tensors_and_scale_and_nothing_else(tmp_path: Path) -> None:
    def digest(name: str, tensors: Any = None, **config: Any) -> str:
        return open_adapter(write_folder(tmp_path / name, tensors, CONFIG | config)).digest

    first = digest("a")
    assert clone(tmp_path / "a", tmp_path / "b")
    assert open_adapter(tmp_path / "b").digest == first
    assert digest("c", lora_dropout=0.1, base_model_name_or_path="x") == first
    assert digest("d", lora_alpha=2, alpha_pattern={"q_proj": 4, "v_proj": 4}) == first
    others = {
        digest("e", factors(seed=1)),
        digest("f", lora_alpha=5),
        digest("g", use_rslora=True),
    }
    assert first not in others
    assert len(others) == 3


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_inf_are_named_with_count_and_first_place(
    side: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = factors(dtype=dtype)
    tensor = tensors[f"{PREFIX}{MODULES[1]}.{side}.weight"]
    tensor[1, 0], tensor[1, 1] = float("nan"), float("-inf")
    adapter = open_adapter(write_folder(tmp_path / "c", tensors))
    check_finite(adapter, MODULES[0])
    with pytest.raises(NonFinite, match=rf"{side}.*1 NaN and 1 Inf, the first at \[1, 0\]"):
        check_finite(adapter, MODULES[1])


def test_the_dtype_asked_for_is_the_dtype_returned(tmp_path: Path) -> None:
    adapter = open_adapter(write_folder(tmp_path / "c", factors(dtype=torch.bfloat16)))
    stored = factors(dtype=torch.bfloat16)[f"{PREFIX}{MODULES[0]}.lora_A.weight"]
    for name, kind in (
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("float64", torch.float64),
    ):
        update = read_update(adapter, MODULES[0], name)  # type: ignore[arg-type]
        assert update.up.dtype == update.down.dtype == kind
        assert torch.equal(update.down, stored.to(kind))


@pytest.mark.parametrize("wide", ["lora_A", "lora_B"])
def test_one_factor_in_float64_makes_the_update_float64(wide: str, tmp_path: Path) -> None:
    tensors = {k: v.double() if wide in k else v for k, v in factors().items()}
    update = read_update(open_adapter(write_folder(tmp_path / "c", tensors)), MODULES[0])
    assert update.up.dtype == update.down.dtype == torch.float64
