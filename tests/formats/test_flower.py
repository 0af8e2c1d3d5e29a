"""Flower's arrays: read by a reference, every update equals what PEFT merges, written back in place."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clair_cli.errors import (
    AdapterError,
    ConfigInvalid,
    ShapeMismatch,
    Unreadable,
    Unsupported,
    UsageError,
)
from clair_cli.formats import norm, open_adapter, read_update, write_adapter
from clair_cli.settings import Settings
from clair_cli.update import LowRankUpdate
from tests.helpers.adapters import (
    CONFIG,
    PREFIX,
    factors,
    peft_model,
    save_peft,
    tiny_gpt2,
    tiny_llama,
    write_folder,
)
from tests.helpers.commands import clair, verdicts
from tests.helpers.lm_adapters import LAYERS, cohort, write_flower

LORA = {"r": 3, "lora_alpha": 6}


def tiny(kind: str) -> Any:
    """A tiny model of transformers, two layers or, for "deep", twelve."""
    import transformers as t

    torch.manual_seed(0)
    small = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    wide = {**small, "intermediate_size": 24}
    made = {
        "llama": tiny_llama,
        "gpt2": tiny_gpt2,
        "deep": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**{**wide, "num_hidden_layers": 12}, num_key_value_heads=2)
        ),
        "opt": lambda: t.OPTForCausalLM(
            t.OPTConfig(**small, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=16)
        ),
        "bert": lambda: t.BertModel(t.BertConfig(**wide)),
        "phi3": lambda: t.Phi3ForCausalLM(
            t.Phi3Config(**wide, num_key_value_heads=2, pad_token_id=0)
        ),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
        ),
    }[kind]()
    return made.eval()


TARGETS: dict[str, Any] = dict.fromkeys(("llama", "gpt2", "opt", "bert", "phi3", "t5", "deep"))
TARGETS |= {"deep": ["q_proj", "v_proj"]}


def adapted(kind: str, seed: int = 1, **config: Any) -> Any:
    targets = TARGETS[kind] or "all-linear"
    return peft_model(tiny(kind), seed, target_modules=targets, **LORA | config)


def ndarrays(model: Any) -> list[np.ndarray[Any, Any]]:
    """As Flower's clients make them."""
    from peft import get_peft_model_state_dict

    return [value.cpu().numpy() for value in get_peft_model_state_dict(model).values()]


def merged(model: Any) -> dict[str, Tensor]:
    """Module -> what merging adds to its weight, (d_out, d_in)."""
    from transformers.pytorch_utils import Conv1D

    modules = {n for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    whole = copy.deepcopy(model).merge_and_unload()
    base = model.unload()
    found = {}
    for name in modules:
        layer = base.get_submodule(name)
        delta = whole.get_submodule(name).weight.data - layer.weight.data
        turned = isinstance(layer, Conv1D | torch.nn.Embedding)
        found[name] = delta.T if turned else delta
    return found


def near(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - wanted).norm() <= tolerance * wanted.norm())


def sent(root: Path, kind: str, **config: Any) -> tuple[Path, Settings, Any]:
    """A client's .npz and the settings that read it: the reference is another adapter of the model."""
    save_peft(adapted(kind, seed=9, **config), root / "reference")
    model = adapted(kind, **config)
    np.savez(root / "client.npz", *ndarrays(model))
    return root / "client.npz", Settings(reference=root / "reference"), model


@pytest.mark.parametrize("kind", TARGETS)
def test_every_update_is_what_peft_merges_under_its_own_name(kind: str, tmp_path: Path) -> None:
    path, settings, model = sent(tmp_path, kind)
    adapter, deltas = open_adapter(path, settings), merged(model)
    assert adapter.format == "flower"
    assert adapter.updates.keys() == deltas.keys()
    assert len(deltas) > 7
    for module, delta in deltas.items():
        assert near(read_update(adapter, module).dense(), delta), module
        assert norm(adapter, module) == pytest.approx(float(delta.norm()), rel=1e-4)


@pytest.mark.parametrize(("kind", "certain"), [("llama", True), ("opt", False), ("deep", False)])
def test_a_note_says_where_names_go_by_convention(kind: str, certain: bool, tmp_path: Path) -> None:
    path, settings, _ = sent(tmp_path, kind)
    codes = [n.code for n in open_adapter(path, settings).notes]
    assert codes == ([] if certain else ["CLR116"])


def test_an_order_that_only_a_file_has_is_found_by_its_shapes(tmp_path: Path) -> None:
    """Saved from a safetensors file, where names are sorted: down_proj before up_proj before q_proj."""
    _, settings, model = sent(tmp_path, "llama")
    own = save_peft(model, tmp_path / "own")
    from safetensors.torch import load_file

    state = load_file(own / "adapter_model.safetensors")
    np.savez(tmp_path / "client.npz", *(state[k].numpy() for k in sorted(state)))
    adapter = open_adapter(tmp_path / "client.npz", settings)
    for module, delta in merged(model).items():
        assert near(read_update(adapter, module).dense(), delta), module


def test_scales_that_depend_on_an_uncertain_order_are_refused(tmp_path: Path) -> None:
    for number, (kind, patterns, fine) in enumerate(
        (
            ("opt", {"q_proj": 60}, False),
            ("opt", {"layers.1.fc1": 60}, True),
            ("deep", {"layers.2.self_attn.q_proj": 60}, False),
            ("llama", {"o_proj": 60}, True),
        )
    ):
        path, settings, model = sent(tmp_path / str(number), kind, alpha_pattern=patterns)
        if fine:
            adapter = open_adapter(path, settings)
            for module, delta in merged(model).items():
                assert near(read_update(adapter, module).dense(), delta), module
        else:
            with pytest.raises(ConfigInvalid, match=r"order is not certain.*save them with names"):
                open_adapter(path, settings)


def test_ranks_by_patterns_are_those_of_the_arrays(tmp_path: Path) -> None:
    path, settings, model = sent(tmp_path, "llama", rank_pattern={"v_proj": 5, "layers.1.mlp.*": 1})
    adapter = open_adapter(path, settings)
    assert {s.rank for s in adapter.updates.values()} == {1, 3, 5}
    for module, delta in merged(model).items():
        assert near(read_update(adapter, module).dense(), delta), module


@pytest.mark.parametrize("config", [{"modules_to_save": ["lm_head"]}, {"use_rslora": True}])
def test_what_follows_the_factors_passes_through(config: dict[str, Any], tmp_path: Path) -> None:
    path, settings, model = sent(tmp_path, "deep", **config)
    own = ndarrays(model)
    adapter = open_adapter(path, settings)
    assert len(adapter.updates) == 24
    (tmp_path / "out").mkdir()
    write_adapter(adapter, {m: read_update(adapter, m) for m in adapter.updates}, tmp_path / "out")
    with np.load(tmp_path / "out" / "out.npz") as file:
        assert file.files == [f"arr_{i}" for i in range(len(own))]
        for i, array in enumerate(own):
            np.testing.assert_allclose(file[f"arr_{i}"], array, rtol=1e-6, atol=1e-7)
    if "modules_to_save" in config:
        assert len(own) == 49
        np.savez(path, *own[:48])  # a client may keep the head for itself
        assert open_adapter(path, settings).updates == adapter.updates


def answers(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.tensor([[3, 1, 4, 1, 5]])).logits
    return found


def as_flower_sets_them(model: Any, path: Path) -> Any:
    """The model with the arrays of a file, taken by their places as Flower's clients do."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    with np.load(path) as file:
        values = [torch.tensor(file[name]) for name in file.files]
    keys = get_peft_model_state_dict(model).keys()
    set_peft_model_state_dict(model, dict(zip(keys, values, strict=True)))
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "deep"])
@pytest.mark.parametrize("rank", [None, 4])
def test_a_client_that_sets_the_arrays_answers_as_intended(
    kind: str, rank: int | None, tmp_path: Path
) -> None:
    path, settings, _ = sent(tmp_path, kind)
    adapter, draw = open_adapter(path, settings), torch.Generator().manual_seed(2)
    updates = {
        m: LowRankUpdate(
            torch.randn(s.d_out, 2, generator=draw), torch.randn(2, s.d_in, generator=draw), 0.5
        )
        for m, s in adapter.updates.items()
    }
    (tmp_path / "out").mkdir()
    ranks = None if rank is None else dict.fromkeys(updates, rank)
    write_adapter(adapter, updates, tmp_path / "out", ranks)
    config = tmp_path / "out" / "adapter_config.json"
    assert config.exists() == (rank is not None)
    said = {"r": 3, "lora_alpha": 6}
    if rank is not None:
        said = {k: json.loads(config.read_text())[k] for k in said}
        assert said == {"r": 4, "lora_alpha": 4}
    fresh = as_flower_sets_them(adapted(kind, seed=3, **said), tmp_path / "out" / "out.npz")
    whole, turned = tiny(kind), kind == "gpt2"
    for name, update in updates.items():
        delta = update.dense()
        whole.get_submodule(name).weight.data += delta.T if turned else delta
    assert near(answers(fresh), answers(whole))
    again = open_adapter(tmp_path / "out", settings)  # the config beside it comes first
    for name, update in updates.items():
        assert near(read_update(again, name).dense(), update.dense(), 1e-6)


def test_named_arrays_are_peft_keys_and_stay_what_they_are(tmp_path: Path) -> None:
    named = {k.replace(".weight", ".default.weight"): t for k, t in factors().items()}
    halves = {k: t.half().numpy() for k, t in named.items()}
    np.savez(tmp_path / "a.npz", **halves)
    reference = write_folder(tmp_path / "reference")
    shared = tmp_path / "adapter_config.json"
    for settings in (
        Settings(alpha=4.0),
        Settings(config=reference / shared.name),
        Settings(reference=reference),
    ):
        adapter = open_adapter(tmp_path / "a.npz", settings)
        assert {s.scale for s in adapter.updates.values()} == {2.0}
        assert {s.dtype for s in adapter.updates.values()} == {"F16"}
    with pytest.raises(ConfigInvalid, match=r"scale is unknown.*--adapter-config"):
        open_adapter(tmp_path / "a.npz")
    (tmp_path / "out").mkdir()
    write_adapter(adapter, {}, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["out.npz"]
    with np.load(tmp_path / "out" / "out.npz") as file:
        assert file.files == list(halves)
        for name, array in halves.items():
            assert (file[name].dtype, file[name].tobytes()) == (array.dtype, array.tobytes())


def test_arrays_of_any_layout_are_written_in_numpys_own(tmp_path: Path) -> None:
    folder = write_flower(tmp_path)
    own = [t.numpy() for t in factors(seed=5).values()]
    odd = [np.asfortranarray(own[0]), own[1].astype(">f4"), own[2].astype("f8"), own[3]]
    np.savez_compressed(folder / "round.npz", *odd)
    settings = Settings(reference=tmp_path / "reference")
    adapter = open_adapter(folder, settings)
    for target, ranks in (("kept", None), ("new", dict.fromkeys(adapter.updates, 4))):
        (tmp_path / target).mkdir()
        write_adapter(adapter, {}, tmp_path / target, ranks)
        with np.load(tmp_path / target / "round.npz") as file:
            found = [file[name] for name in file.files]
        assert [a.dtype.str for a in found] == ["<f4", "<f4", "<f8", "<f4"]
        again = open_adapter(tmp_path / target, settings)
        for module in adapter.updates:
            wanted = read_update(adapter, module).dense()
            assert near(read_update(again, module).dense(), wanted, 1e-6)
        if ranks is None:
            assert all((a == b).all() for a, b in zip(found, own, strict=True))


def wrong(name: str) -> list[Any]:
    """Arrays that do not fit `write_flower`'s reference."""
    own = [t.numpy() for t in factors(seed=5).values()]
    return {
        "fewer": own[:3],
        "more": [*own, own[0]],
        "turned": [own[0].T, *own[1:]],
        "rank": [t.numpy() for t in factors(rank=3).values()],
        "halves": [own[0], own[1][:, :1], *own[2:]],
        "vector": [own[0][0], *own[1:]],
        "integers": [a.astype("i4") for a in own],
        "nothing": [],
    }[name]


BAD: dict[str, tuple[type[AdapterError], str]] = {
    "fewer": (ShapeMismatch, "3 arrays, the reference has 4 factors and 0 other"),
    "more": (ShapeMismatch, "5 arrays, the reference has 4 factors"),
    "turned": (
        ShapeMismatch,
        r"'arr_0' has shape \[5, 2\], the reference's '.*lora_A.weight' \[2, 5\]",
    ),
    "rank": (ShapeMismatch, "has rank 3, adapter_config.json says 2"),
    "halves": (ShapeMismatch, "ranks must agree"),
    "vector": (ShapeMismatch, r"'arr_0' has shape \[5\]"),
    "integers": (Unsupported, "i4; re-save it as float32"),
    "nothing": (ShapeMismatch, "0 arrays, the reference has 4 factors"),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_do_not_fit_the_reference_are_refused(name: str, tmp_path: Path) -> None:
    folder = write_flower(tmp_path)
    np.savez(folder / "round.npz", *wrong(name))
    error, words = BAD[name]
    with pytest.raises(error, match=words):
        open_adapter(folder, Settings(reference=tmp_path / "reference"))


def test_arrays_without_a_reference_are_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = write_flower(tmp_path)
    for settings in (Settings(), Settings(alpha=4.0)):
        with pytest.raises(Unsupported, match=r"arrays without names.*--reference.*--as update"):
            open_adapter(folder, settings)
    np.savez(folder / "round.npz", arr_0=np.eye(2), arr_2=np.eye(2))
    with pytest.raises(ShapeMismatch, match="not arr_0 to arr_1"):
        open_adapter(folder, Settings(reference=tmp_path / "reference"))
    np.savez(folder / "other.npz", np.eye(2))
    with pytest.raises(Unreadable, match=r"2 \.npz files, expected one adapter"):
        open_adapter(folder, Settings(reference=tmp_path / "reference"))


def test_a_reference_that_cannot_be_used_is_the_users_error(tmp_path: Path) -> None:
    folder = write_flower(tmp_path)
    with pytest.raises(UsageError, match=r"--reference: nowhere: cannot be read: No such file"):
        open_adapter(folder, Settings(reference=tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"^reference: names LoRA factors"):
        Settings(reference=tmp_path, read_as="update")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"--reference: .*no adapter in it"):
        open_adapter(folder, Settings(reference=tmp_path / "empty"))
    bare = write_folder(tmp_path / "bare", config=None)
    with pytest.raises(UsageError, match=r"--reference: adapter_config\.json: missing"):
        open_adapter(folder, Settings(reference=bare))
    done = clair("inspect", folder, "--reference", bare)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_reference_that_changes_is_read_again(tmp_path: Path) -> None:
    folder, settings = write_flower(tmp_path), Settings(reference=tmp_path / "reference")
    assert {s.scale for s in open_adapter(folder, settings).updates.values()} == {2.0}
    write_folder(tmp_path / "reference", config=CONFIG | {"lora_alpha": 6})
    assert {s.scale for s in open_adapter(folder, settings).updates.values()} == {3.0}


@pytest.mark.parametrize("flat", [True, False])
def test_detect_and_refine_of_five_clients(flat: bool, tmp_path: Path) -> None:
    reference = None
    for k, client in enumerate(cohort(), start=1):
        state = {}
        for module in LAYERS:
            up, down = client[module]
            state[f"{PREFIX}{module}.lora_A.weight"] = down
            state[f"{PREFIX}{module}.lora_B.weight"] = up
        config = CONFIG | {"target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}
        reference = reference or write_folder(tmp_path / "reference", state, config)
        file = tmp_path / "round" / (f"c-{k}.npz" if flat else f"c-{k}/weights.npz")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, *(t.numpy() for t in state.values()))
    options = ("--reference", reference)
    done = clair("detect", tmp_path / "round", "-f", "json", *options)
    assert done.returncode == 1, done.stderr
    benign = {f"c-{k}": "benign" for k in range(1, 5)}
    assert verdicts(json.loads(done.stdout)) == benign | {"c-5": "contaminated"}
    out = tmp_path / "out"
    done = clair(
        "refine", tmp_path / "round", "--out", out, "--strength", "1", "--global", *options
    )
    assert done.returncode == 0, done.stderr
    names = ["global", *benign]
    for client in names:
        (file,) = (p for p in (out / client).iterdir() if p.suffix == ".npz")
        assert file.name == (f"{client}.npz" if flat else "weights.npz")
        again = open_adapter(out / client, Settings(reference=reference))
        assert again.updates.keys() == LAYERS.keys()
        # the server multiplies by the scale of its own model, which is the reference's
        assert {(s.rank, s.scale) for s in again.updates.values()} == {(2, 2.0)}
    done = clair("inspect", out / "c-1", *options)
    assert done.stdout.startswith("c-1: flower, base unknown, 12 modules")
