"""LoRA of PEFT whose file says less than one update per module, or more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clair_cli.cohort import Start
from clair_cli.errors import (
    AdapterError,
    ConfigInvalid,
    LimitExceeded,
    OutputError,
    ShapeMismatch,
    Unsupported,
)
from clair_cli.formats import check_finite, open_adapter, read_update, write_adapter
from clair_cli.formats.peft.keys import Parameters
from clair_cli.settings import Settings
from tests.formats.test_peft_variants import assert_computes, fresh, own, written
from tests.helpers.adapters import CONFIG, PREFIX, factors, tiny_llama, write_folder
from tests.helpers.variants import BOTH, MOE, VARIANTS, Convolutions, Variant, seeded, volume

BOTH_NAMES = tuple(f"{MOE}.{p}" for p in ("gate_up_proj", "down_proj"))


def test_experts_are_one_update_each_by_the_names_of_their_module(tmp_path: Path) -> None:
    adapter = open_adapter(VARIANTS["experts"].saved(tmp_path / "in"))
    assert set(adapter.updates) == {
        f"{MOE}{inner}[{e}]" for inner in ("", ".base_layer") for e in range(4)
    }
    shapes = {(s.d_out, s.d_in, s.rank, s.scale) for s in adapter.updates.values()}
    assert shapes == {(24, 8, 4, 1.5), (8, 12, 4, 1.5)}


@pytest.mark.parametrize("style", ["keep", "uniform", "compact"])
@pytest.mark.parametrize("pattern", [MOE + ".down_proj", "mlp.experts.gate_up_proj", "q_proj"])
def test_patterns_meet_the_full_name_of_a_parameter(
    pattern: str, style: str, tmp_path: Path
) -> None:
    """With one parameter it is known which that is; both wrapped, one rank has to hold for both."""
    name = next((p for p in BOTH if pattern.endswith(p)), BOTH[1])
    variant = Variant(
        {
            "target_parameters": [name],
            "target_modules": ["q_proj"],
            "rank_pattern": {pattern: 2},
            "alpha_pattern": {pattern: 5},
        },
        VARIANTS["experts"].base,
        parameters={MOE: name.rpartition(".")[2]},
    )
    adapter = open_adapter(variant.saved(tmp_path / "in"))
    usual, special = (4, 1.5), (2, 2.5)
    found = {s.rank: s.scale for m, s in adapter.updates.items() if MOE in m}
    assert found == dict([usual if pattern == "q_proj" else special])
    updates = fresh(adapter)
    assert_computes(variant, written(adapter, updates, style, tmp_path / "out"), updates)


def test_patterns_that_differ_between_parameters_of_one_module_are_refused(tmp_path: Path) -> None:
    for field in ("rank_pattern", "alpha_pattern"):
        folder = VARIANTS["experts"].saved(tmp_path / field, **{field: {"down_proj": 2}})
        with pytest.raises(Unsupported, match="does not tell which of them"):
            open_adapter(folder)
    both = {"rank_pattern": {r"experts\.(gate_up|down)_proj": 2}}
    adapter = open_adapter(VARIANTS["experts"].saved(tmp_path / "both", **both))
    assert {s.rank for s in adapter.updates.values()} == {2}


@pytest.mark.parametrize(
    ("module", "parameters", "names"),
    [
        ("a.experts", ["experts.down"], ("a.experts.down",)),
        ("a.experts[3]", ["a.experts.down"], ("a.experts.down",)),
        (
            "a.experts.base_layer",
            ["experts.up", "experts.down"],
            ("a.experts.up", "a.experts.down"),
        ),
        ("a.experts", ["other.experts.down"], ("a.experts",)),
        ("a.my_experts", ["experts.down"], ("a.my_experts",)),
        ("1.experts", ["0.experts.w", "1.experts.w"], ("1.experts.w",)),
        ("a.q_proj", ["experts.down"], ("a.q_proj",)),
        ("a.attn.base_layer.out_proj", [], ("a.attn",)),
    ],
)
def test_a_module_is_called_what_peft_calls_it(
    module: str, parameters: list[str], names: tuple[str, ...]
) -> None:
    assert Parameters(parameters).names_of(module) == names


def experts(rank: int, **config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return factors({"m.experts": (6, 5)}, rank=rank), CONFIG | {
        "target_parameters": ["experts.w"],
        **config,
    }


BAD: dict[str, tuple[Any, type[AdapterError], str]] = {
    "no whole experts": (experts(5), ShapeMismatch, "has rank 5, adapter_config.json says 2"),
    "no rank": (experts(4, r=None), ConfigInvalid, "without r .* parted into its experts"),
    "too many": (experts(2**18, r=1), LimitExceeded, "more than 131072 updates"),
}


@pytest.mark.parametrize("case", BAD)
def test_experts_that_cannot_be_parted_are_refused(case: str, tmp_path: Path) -> None:
    (tensors, config), kind, words = BAD[case]
    with pytest.raises(kind, match=words):
        open_adapter(write_folder(tmp_path / "c", tensors, config))


def test_experts_without_a_config_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "c", experts(4)[0], None)
    with pytest.raises(ConfigInvalid, match="--alpha: without r"):
        open_adapter(folder, Settings(alpha=4))


def test_weights_that_are_tied_count_once_and_are_written_twice(tmp_path: Path) -> None:
    adapter = open_adapter(VARIANTS["tied weights"].saved(tmp_path / "in"))
    assert [m for m in adapter.updates if "layers" not in m] == ["model.embed_tokens"]
    for style in ("keep", "uniform", "compact"):
        folder = written(adapter, fresh(adapter), style, tmp_path / style)
        found = load_file(folder / "adapter_model.safetensors")
        head, table = f"{PREFIX}lm_head.lora_", f"{PREFIX}model.embed_tokens.lora_embedding_"
        assert torch.equal(found[f"{head}A.weight"], found[f"{table}B"].T)
        assert torch.equal(found[f"{head}B.weight"], found[f"{table}A"].T)
        assert open_adapter(folder).updates.keys() == adapter.updates.keys()


def test_a_head_that_is_no_copy_of_the_embedding_is_an_update_of_its_own(tmp_path: Path) -> None:
    folder = VARIANTS["tied weights"].saved(tmp_path / "in")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[f"{PREFIX}lm_head.lora_B.weight"][3, 1] += 1e-6
    save_file(tensors, file, {"format": "pt"})
    adapter = open_adapter(folder)
    assert {"lm_head", "model.embed_tokens"} < adapter.updates.keys()
    tensors[f"{PREFIX}lm_head.lora_B.weight"][3, 1] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(AdapterError, match="1 NaN"):
        check_finite(open_adapter(folder), "lm_head")


def test_a_convolution_in_groups_passes_through_with_a_note(tmp_path: Path) -> None:
    variant = Variant({"target_modules": ["parted", "head"]}, seeded(Convolutions), volume)
    adapter = open_adapter(variant.saved(tmp_path / "in"))
    assert list(adapter.updates) == ["head"]
    (note,) = (n for n in adapter.notes if n.code == "CLR115")
    assert "parted.lora_A.weight" in note.message
    alone = variant.saved(tmp_path / "alone", target_modules=["parted"])
    with pytest.raises(Unsupported, match="only convolutions in groups"):
        open_adapter(alone)
    with pytest.raises(OutputError, match="no module 'parted'"):
        write_adapter(adapter, {"parted": fresh(adapter)["head"]}, tmp_path)


def test_copies_of_base_weights_are_noted_and_what_was_trained_whole_is_not(tmp_path: Path) -> None:
    (note,) = open_adapter(VARIANTS["embedding and head"].saved(tmp_path / "copies")).notes
    assert note.code == "CLR115"
    assert "embed_tokens.base_layer.weight" in note.message
    for name, key in {
        "modules_to_save": "lm_head.weight",
        "token rows": "trainable_tokens_delta",
        "bias": "head.bias",
    }.items():
        adapter = open_adapter(VARIANTS[name].saved(tmp_path / name))
        assert "CLR115" not in {n.code for n in adapter.notes}
        assert any(key in full for full in adapter.full), name


def test_ranks_that_eva_has_distributed_are_read(tmp_path: Path) -> None:
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights

    torch.manual_seed(0)
    eva = EvaConfig(rho=2.0)
    config = LoraConfig(
        r=6, target_modules=["q_proj", "down_proj"], init_lora_weights="eva", eva_config=eva
    )
    model = get_peft_model(tiny_llama(), config)
    batches = [{"input_ids": torch.randint(32, (4, 8))} for _ in range(16)]
    initialize_lora_eva_weights(model, batches)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(tmp_path / "in"))
    said = json.loads((tmp_path / "in" / "adapter_config.json").read_text())
    assert said["rank_pattern"]
    adapter = open_adapter(tmp_path / "in")
    assert len({s.rank for s in adapter.updates.values()}) > 1
    assert adapter.traits["init"] == "eva"
    variant = Variant({})
    for style in ("keep", "uniform", "compact"):
        updates = own(adapter)
        assert_computes(variant, written(adapter, updates, style, tmp_path / style), updates)


def test_traits_say_what_clients_should_have_alike(tmp_path: Path) -> None:
    def traits(**config: Any) -> dict[str, str]:
        return dict(open_adapter(write_folder(tmp_path / "c", config=CONFIG | config)).traits)

    usual = {"peft_type": "LORA", "init": "default", "scaling": "alpha / r"}
    assert traits() == traits(init_lora_weights=True) == usual
    assert traits(init_lora_weights="Gaussian")["init"] == "gaussian"
    assert traits(use_rslora=True)["scaling"] == "alpha / sqrt(r)"


def test_a_magnitude_is_one_column(tmp_path: Path) -> None:
    for k, (base, given, targets) in enumerate(
        (
            (tiny_llama, None, ["q_proj", "embed_tokens"]),
            (seeded(Convolutions), volume, ["one", "two", "three", "head"]),
        )
    ):
        variant = Variant({"target_modules": targets, "use_dora": True}, base, given or volume)
        adapter = open_adapter(variant.saved(tmp_path / str(k)))
        assert adapter.traits["variant"] == "DoRA"
        columns = [m for m, s in adapter.updates.items() if s.start is Start.MAGNITUDE]
        assert 2 * len(columns) == len(adapter.updates)
        stored = load_file(tmp_path / str(k) / "adapter_model.safetensors")
        for module in columns:
            dense = read_update(adapter, module).dense()
            assert torch.equal(dense.flatten(), stored[PREFIX + module].flatten())
            assert adapter.updates[module].scale == 1
