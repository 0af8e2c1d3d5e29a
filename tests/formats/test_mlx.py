"""mlx-lm: every update equals what mlx-lm fuses into the base, and mlx-lm loads what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clair_cli.cohort import Adapter
from clair_cli.errors import (
    AdapterError,
    ConfigInvalid,
    LimitExceeded,
    ShapeMismatch,
    Unsupported,
)
from clair_cli.formats import norm, open_adapter, read_update, write_adapter
from clair_cli.settings import Settings
from clair_cli.update import LowRankUpdate
from tests.helpers.commands import clair, join_weights, split_weights, verdicts
from tests.helpers.lm_adapters import MLX_CONFIG, cohort, write_mlx

RANK, SCALE = 3, 2.5
LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
}


def model(kind: str) -> Any:
    """A tiny model of mlx-lm; the same kind has the same weights."""
    mx = pytest.importorskip("mlx.core")
    mx.random.seed(7)
    if kind == "llama":
        from mlx_lm.models import llama

        return llama.Model(
            llama.ModelArgs(model_type=kind, rms_norm_eps=1e-5, tie_word_embeddings=False, **SIZES)
        )
    from mlx_lm.models import mixtral

    return mixtral.Model(
        mixtral.ModelArgs(model_type=kind, num_local_experts=3, num_experts_per_tok=2, **SIZES)
    )


KEYS = {
    "llama": [*LINEAR, "model.embed_tokens", "lm_head"],
    "mixtral": ["self_attn.v_proj", "block_sparse_moe.switch_mlp.up_proj"],
}


def trained(kind: str, folder: Path, seed: int = 1) -> tuple[Any, dict[str, Any]]:
    """The model with an adapter of random values, saved in `folder` as mlx-lm's trainer does."""
    mx = pytest.importorskip("mlx.core")
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import save_config

    config: dict[str, Any] = {
        "fine_tune_type": "lora",
        "model": f"org/{kind}-tiny",
        "num_layers": 2,
        "lora_parameters": {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": KEYS[kind]},
    }
    whole = model(kind)
    whole.freeze()
    linear_to_lora_layers(whole, 2, config["lora_parameters"])
    mx.random.seed(seed)
    drawn = [(k, mx.random.normal(v.shape)) for k, v in tree_flatten(whole.trainable_parameters())]
    whole.update(tree_unflatten(drawn))
    folder.mkdir(parents=True)
    save_config(dict(config), folder / "adapter_config.json")
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(drawn))
    return whole, config


def weights(whole: Any) -> dict[str, np.ndarray[Any, Any]]:
    from mlx.utils import tree_flatten

    return {k.removesuffix(".weight"): np.array(v) for k, v in tree_flatten(whole.parameters())}


def outputs(whole: Any) -> np.ndarray[Any, Any]:
    import mlx.core as mx

    found: np.ndarray[Any, Any] = np.array(whole(mx.array([[3, 1, 4, 1, 5, 9, 2, 6]])))
    return found


def fused(whole: Any) -> Any:
    from mlx.utils import tree_unflatten

    layers = [(k, m.fuse()) for k, m in whole.named_modules() if hasattr(m, "fuse")]
    whole.update_modules(tree_unflatten(layers))
    return whole


def true_deltas(kind: str, whole: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What fusing adds to each weight, (d_out, d_in) each: an embedding's is turned."""
    before, after = weights(model(kind)), weights(fused(whole))
    found = {}
    for name, old in before.items():
        if (delta := after[name] - old).any():
            if delta.ndim == 3:
                found |= {f"{name}[{e}]": part for e, part in enumerate(delta)}
            else:
                found[name] = delta.T if "embed" in name else delta
    return found


def near(found: Any, wanted: Any, tolerance: float = 1e-4) -> bool:
    return bool(np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted))


def others(adapter: Adapter, rank: int = RANK) -> dict[str, LowRankUpdate]:
    """Other updates of every module, at most of this rank."""
    draw = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    return {
        m: LowRankUpdate(normal(s.d_out, rank), normal(rank, s.d_in), 0.3)
        for m, s in adapter.updates.items()
    }


def shifted(kind: str, updates: dict[str, LowRankUpdate]) -> Any:
    """The base with the updates added to its weights: what a loaded adapter must answer."""
    import mlx.core as mx
    from mlx.utils import tree_unflatten

    whole, own = model(kind), weights(model(kind))
    for module, update in updates.items():
        delta, (name, _, expert) = update.dense().numpy(), module.partition("[")
        target = own[name][int(expert[:-1])] if expert else own[name]
        target += delta.T if "embed" in name else delta
    names = {m.partition("[")[0] for m in updates}
    whole.update(tree_unflatten([(f"{n}.weight", mx.array(own[n])) for n in names]))
    return whole


def loaded(kind: str, folder: Path) -> Any:
    from mlx_lm.tuner.utils import load_adapters

    whole = load_adapters(model(kind), str(folder))
    whole.eval()
    return whole


@pytest.mark.parametrize("kind", KEYS)
def test_every_update_is_what_mlx_lm_fuses_into_the_base(kind: str, tmp_path: Path) -> None:
    whole, _ = trained(kind, tmp_path / "a")
    adapter = open_adapter(tmp_path / "a")
    deltas = true_deltas(kind, whole)
    assert adapter.format == "mlx"
    assert adapter.base == f"org/{kind}-tiny"
    assert adapter.updates.keys() == deltas.keys()
    assert len(deltas) == {"llama": 8, "mixtral": 8}[kind]
    for module, delta in deltas.items():
        spec = adapter.updates[module]
        assert (spec.d_out, spec.d_in, spec.rank, spec.scale) == (*delta.shape, RANK, SCALE)
        assert near(read_update(adapter, module).dense().numpy(), delta), module
        assert norm(adapter, module) == pytest.approx(np.linalg.norm(delta), rel=1e-4)


def test_a_layer_that_fuses_several_matrices_has_an_update_each(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    from mlx_lm.models.afm7 import FusedLinear

    layer = FusedLinear(16, [8, 4, 4])
    lora = layer.to_lora(r=2, scale=20.0)
    lora.lora_b = [mx.random.normal(b.shape) for b in lora.lora_b]
    pairs = {f"qkv.lora_{s}.{i}": x for s in "ab" for i, x in enumerate(lora[f"lora_{s}"])}
    folder = write_mlx(tmp_path / "a")
    mx.save_safetensors(str(folder / "adapters.safetensors"), pairs)
    adapter = open_adapter(folder)
    found = [read_update(adapter, f"qkv[{i}]").dense().numpy() for i in range(3)]
    delta = np.array(lora.fuse().weight - layer.weight)
    assert [len(f) for f in found] == [8, 4, 4]
    assert near(np.concatenate(found), delta)


@pytest.mark.parametrize("kind", KEYS)
def test_mlx_lm_loads_what_is_written_and_answers_as_intended(kind: str, tmp_path: Path) -> None:
    """Kept; at a larger rank; at a smaller one."""
    trained(kind, tmp_path / "a")
    adapter = open_adapter(tmp_path / "a")
    for rank, ranks in ((RANK, None), (5, 5), (2, 2)):
        updates, out = others(adapter, rank), tmp_path / str(rank)
        out.mkdir()
        write_adapter(adapter, updates, out, ranks and dict.fromkeys(adapter.updates, ranks))
        assert near(outputs(loaded(kind, out)), outputs(shifted(kind, updates))), rank
        config = json.loads((out / "adapter_config.json").read_text())
        stated = config["lora_parameters"]
        assert (stated["rank"], stated["scale"]) == (rank, SCALE if ranks is None else 1.0)
        assert {k: v for k, v in config.items() if k != "lora_parameters"} == {
            k: v for k, v in adapter.config.items() if k != "lora_parameters"
        }


def test_keeping_keeps_every_byte_of_config_and_numbers(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "a", config=json.dumps(MLX_CONFIG, indent=7).encode())
    (folder / "README.md").write_text("who I am")
    adapter = open_adapter(folder)
    (tmp_path / "out").mkdir()
    write_adapter(adapter, {}, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in folder.iterdir()
    )
    for name in ("adapter_config.json", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    own, new = (load_file(f / "adapters.safetensors") for f in (folder, tmp_path / "out"))
    assert own.keys() == new.keys()
    assert all(torch.equal(own[k], new[k]) for k in own)


def test_modules_that_are_not_written_keep_their_update_at_the_one_rank(tmp_path: Path) -> None:
    adapter = open_adapter(write_mlx(tmp_path / "a"))
    module = "model.layers.0.self_attn.q_proj"
    update = others(adapter, 1)[module]
    for rank, written in ((1, 2), (4, 4)):
        out = tmp_path / str(rank)
        out.mkdir()
        write_adapter(adapter, {module: update}, out, {module: rank})
        again = open_adapter(out)
        assert {(s.rank, s.scale) for s in again.updates.values()} == {(written, 1.0)}
        for name in adapter.updates:
            wanted = update if name == module else read_update(adapter, name)
            assert near(read_update(again, name).dense(), wanted.dense(), 1e-6), name


def test_checkpoints_beside_the_adapter_do_not_count(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "round" / "client")
    for step in (100, 200):
        (folder / f"{step:07}_adapters.safetensors").write_bytes(b"not looked at")
    assert list(open_adapter(folder).files) == ["adapters.safetensors", "adapter_config.json"]


def test_the_metadata_null_that_mlx_writes_is_none(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "a")
    own = open_adapter(folder)
    header, data = split_weights(folder / "adapters.safetensors")
    join_weights(folder / "adapters.safetensors", header | {"__metadata__": None}, data)
    adapter = open_adapter(folder)
    assert (adapter.updates, adapter.metadata) == (own.updates, {})


def test_a_config_may_come_from_elsewhere(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "a", config=None)
    config = write_mlx(tmp_path / "b") / "adapter_config.json"
    with pytest.raises(ConfigInvalid, match=r"scale is unknown.*--adapter-config"):
        open_adapter(folder)
    adapter = open_adapter(folder, Settings(config=config))
    assert {s.scale for s in adapter.updates.values()} == {20.0}


def changed(**fields: Any) -> dict[str, Any]:
    """The config with other lora_parameters; Ellipsis removes one."""
    stated = {k: v for k, v in (MLX_CONFIG["lora_parameters"] | fields).items() if v is not ...}
    return MLX_CONFIG | {"lora_parameters": stated}


BAD_CONFIGS: dict[str, tuple[Any, type[AdapterError], str]] = {
    "dora": (MLX_CONFIG | {"fine_tune_type": "dora"}, Unsupported, "fine_tune_type 'dora'"),
    "full": (MLX_CONFIG | {"fine_tune_type": "full"}, Unsupported, "--as weights --base"),
    "type": (MLX_CONFIG | {"fine_tune_type": 3}, Unsupported, "'3' is not 'lora'"),
    "no parameters": (MLX_CONFIG | {"lora_parameters": None}, ConfigInvalid, "an object"),
    "model": (MLX_CONFIG | {"model": 1}, ConfigInvalid, "model: expected a string"),
    "no scale": (changed(scale=...), ConfigInvalid, r"lora_parameters\.scale"),
    "scale true": (changed(scale=True), ConfigInvalid, "a positive number, found 'True'"),
    "scale text": (changed(scale="20"), ConfigInvalid, "a positive number"),
    "scale 0": (changed(scale=0), ConfigInvalid, "a positive number"),
    "scale negative": (changed(scale=-1.0), ConfigInvalid, "a positive number"),
    "rank true": (changed(rank=True), ConfigInvalid, "a positive integer"),
    "rank 2.0": (changed(rank=2.0), ConfigInvalid, "a positive integer"),
    "rank 3": (changed(rank=3), ShapeMismatch, "no factors of rank 3, as adapter_config.json"),
    "alpha": (changed(alpha=16), ConfigInvalid, r"scale \* alpha"),
    "NaN": (b'{"fine_tune_type": "lora", "lora_parameters": {"scale": NaN}}', ConfigInvalid, "NaN"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_that_leaves_the_update_open_is_refused(name: str, tmp_path: Path) -> None:
    config, error, words = BAD_CONFIGS[name]
    with pytest.raises(error, match=words):
        open_adapter(write_mlx(tmp_path / "a", config=config))


def test_an_alpha_that_changes_nothing_is_none_to_refuse(tmp_path: Path) -> None:
    adapter = open_adapter(write_mlx(tmp_path / "a", config=changed(alpha=2)))
    assert {s.scale for s in adapter.updates.values()} == {20.0}


A, B = "m.lora_a", "m.lora_b"
GOOD = {A: torch.ones(5, 2), B: torch.ones(2, 6)}
EXPERTS = {A: torch.ones(3, 2, 5), B: torch.ones(3, 7, 2)}
BAD_TENSORS: dict[str, tuple[dict[str, Tensor], type[AdapterError], str]] = {
    "magnitude": (GOOD | {"m.m": torch.ones(6)}, Unsupported, "'m.m' is a magnitude of DoRA"),
    "bias": (GOOD | {"m.bias": torch.ones(6)}, Unsupported, "'m.bias' is no lora_a"),
    "none": ({"m.weight": torch.ones(6, 5)}, Unsupported, "'m.weight'"),
    "no b": ({A: GOOD[A]}, ShapeMismatch, "'m.lora_a' has no lora_b"),
    "no a": ({B: GOOD[B]}, ShapeMismatch, "'m.lora_b' has no lora_a"),
    "turned": ({A: GOOD[A].T.contiguous(), B: GOOD[B]}, ShapeMismatch, "no factors of rank 2"),
    "mixed": ({A: EXPERTS[A], B: GOOD[B]}, ShapeMismatch, "no factors of rank 2"),
    "experts": ({A: EXPERTS[A], B: torch.ones(4, 7, 2)}, ShapeMismatch, "no factors of rank 2"),
    "vector": ({A: torch.ones(2), B: GOOD[B]}, ShapeMismatch, "no factors"),
    "scalar": ({A: torch.ones(()), B: torch.ones(())}, ShapeMismatch, "no factors"),
    "empty": ({A: torch.ones(0, 2), B: GOOD[B]}, ShapeMismatch, "no factors"),
    "integers": ({A: GOOD[A].int(), B: GOOD[B]}, Unsupported, "I32; re-save it as float32"),
    "large": ({A: torch.ones(2**20 + 1, 2), B: GOOD[B]}, LimitExceeded, "per dimension"),
    "twice": (
        EXPERTS | {f"{A}.0": GOOD[A], f"{B}.0": GOOD[B]},
        ShapeMismatch,
        r"two updates are called 'm\[0\]'",
    ),
    "many": (
        {A: torch.ones(100_001, 2, 1), B: torch.ones(100_001, 1, 2)},
        LimitExceeded,
        "more than 100000 updates",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_mlx_lm_would_not_load_are_refused(name: str, tmp_path: Path) -> None:
    tensors, error, words = BAD_TENSORS[name]
    with pytest.raises(error, match=words):
        open_adapter(write_mlx(tmp_path / "a", tensors))


def test_an_adapter_of_another_kind_is_no_mlx_adapter(tmp_path: Path) -> None:
    tune = {"layers.0.attn.q_proj.lora_a.weight": torch.ones(2, 5)}
    with pytest.raises(Unsupported, match="torchtune"):
        open_adapter(write_mlx(tmp_path / "a", tune, {"peft_type": "LORA", "r": 2}))


def test_detect_and_refine_of_five_clients(tmp_path: Path) -> None:
    pairs = cohort()
    for k, client in enumerate(pairs, start=1):
        tensors = {f"{m}.lora_b": up.T.contiguous() for m, (up, _) in client.items()}
        tensors |= {f"{m}.lora_a": down.T.contiguous() for m, (_, down) in client.items()}
        write_mlx(tmp_path / "round" / f"c-{k}", tensors)
    done = clair("detect", tmp_path / "round", "-f", "json")
    assert done.returncode == 1, done.stderr
    benign = {f"c-{k}": "benign" for k in range(1, 5)}
    assert verdicts(json.loads(done.stdout)) == benign | {"c-5": "contaminated"}
    done = clair("refine", tmp_path / "round", "--out", tmp_path / "out", "--strength", "1")
    assert done.returncode == 0, done.stderr
    for client in benign:
        own, new = (open_adapter(tmp_path / f / client) for f in ("round", "out"))
        assert own.updates == new.updates
        configs = [(a.path / "adapter_config.json").read_bytes() for a in (own, new)]
        assert configs[0] == configs[1]
        assert own.files["adapters.safetensors"].sha256 != new.files["adapters.safetensors"].sha256
    assert not (tmp_path / "out" / "c-5").exists()
    done = clair("inspect", tmp_path / "out" / "c-1")
    assert done.stdout.startswith("c-1: mlx, base org/tiny, 12 modules")
