"""PEFT adapters that others saved: by hand from wrapped models, and torchtune's export for PEFT."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clair_cli.errors import PickleFound, ShapeMismatch
from clair_cli.formats import open_adapter, read_update, write_adapter
from clair_cli.formats.peft.keys import canonical_key
from clair_cli.settings import Settings
from tests.helpers.adapters import PREFIX, peft_model, tiny_llama
from tests.helpers.commands import clair

State = dict[str, Tensor]
TARGETS = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A process group of one."""
    import torch.distributed as dist

    if not dist.is_available() or dist.is_initialized():
        pytest.skip("no process group of its own")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def adapted(seed: int = 1) -> Any:
    return peft_model(tiny_llama(), seed, r=3, lora_alpha=6, target_modules=TARGETS)


def ddp(model: Any) -> Any:
    return torch.nn.parallel.DistributedDataParallel(model)


def compiled_layers(model: Any) -> State:
    layers = model.base_model.model.model.layers
    for i, layer in enumerate(layers):
        layers[i] = torch.compile(layer)
    state: State = model.state_dict()
    return state


def checkpointed(model: Any) -> State:
    """Activation checkpointing takes its prefix out of a state dict, and not out of parameters."""
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrapper

    kind = type(model.base_model.model.model.layers[0])
    wrapper.apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, kind))
    return dict(model.named_parameters())


def sharded(model: Any) -> State:
    """As FSDP names its parameters; of one process, so whole."""
    from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp
    from torch.distributed.fsdp import ShardingStrategy

    whole = Fsdp(
        model,
        use_orig_params=True,
        device_id=torch.device("cpu"),
        sharding_strategy=ShardingStrategy.NO_SHARD,
    )
    return dict(whole.named_parameters())


def without_prefix(model: Any) -> State:
    return {k.removeprefix(PREFIX): v for k, v in model.state_dict().items()}


SAVED: dict[str, tuple[Callable[[Any], State], str]] = {
    "state_dict": (lambda m: m.state_dict(), "base_model.model.model.layers.0.self_attn"),
    "no prefix": (without_prefix, "model.layers.0.self_attn"),
    "compile": (lambda m: torch.compile(m).state_dict(), "_orig_mod.base_model.model"),
    "compiled layers": (compiled_layers, "base_model.model.model.layers.0._orig_mod."),
    "DDP": (lambda m: ddp(m).state_dict(), "module.base_model.model"),
    "compile(DDP)": (lambda m: torch.compile(ddp(m)).state_dict(), "_orig_mod.module.base_model"),
    "DDP(compile)": (lambda m: ddp(torch.compile(m)).state_dict(), "module._orig_mod.base_model"),
    "DDP(checkpoint)": (
        lambda m: {f"module.{k}": v for k, v in checkpointed(m).items()},
        "module.base_model.model.model.layers.0._checkpoint_wrapped_module.",
    ),
    "checkpoint": (checkpointed, "base_model.model.model.layers.0._checkpoint_wrapped_module."),
    "FSDP": (sharded, "_fsdp_wrapped_module.base_model.model"),
}


def answers(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.tensor([[3, 1, 4, 1, 5]])).logits
    return found


def near(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - wanted).norm() <= tolerance * wanted.norm())


def check_reads_and_loads(folder: Path, tmp_path: Path) -> None:
    """Updates equal to what PEFT merges; PEFT answers alike from each way of writing."""
    from peft import PeftModel

    adapter = open_adapter(folder)
    base = tiny_llama()
    merged = dict(adapted().merge_and_unload().named_modules())
    assert adapter.format == "peft"
    assert len(adapter.updates) == 4
    for module in adapter.updates:
        delta = merged[module].weight.data - base.get_submodule(module).weight.data
        assert near(read_update(adapter, module).dense(), delta), module
    wanted = answers(adapted())
    assert not near(wanted, answers(tiny_llama()), 0.01)
    updates = {m: read_update(adapter, m) for m in adapter.updates}
    for rank in (None, 4):
        out = tmp_path / f"out-{rank}"
        out.mkdir()
        write_adapter(adapter, updates, out, rank and dict.fromkeys(updates, rank))
        names = load_file(out / "adapter_model.safetensors").keys()
        assert all(
            re.fullmatch(r"base_model\.model\.model\..*\.lora_[AB]\.weight", n) for n in names
        )
        loaded = PeftModel.from_pretrained(tiny_llama(), str(out))
        assert near(answers(loaded.eval()), wanted), rank


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", SAVED)
def test_a_state_dict_saved_by_hand_is_read_and_written_under_pefts_names(
    name: str, tmp_path: Path
) -> None:
    state_of, prefix = SAVED[name]
    model = adapted()
    model.peft_config["default"].save_pretrained(str(tmp_path / "client"))
    state = {k: v.detach().contiguous() for k, v in state_of(model).items() if "lora_" in k}
    assert len(state) == 8
    assert all(k.startswith(prefix.partition(".0.")[0]) for k in state)
    assert any(k.startswith(prefix) for k in state)
    save_file(state, tmp_path / "client" / "adapter_model.safetensors")
    check_reads_and_loads(tmp_path / "client", tmp_path)


def test_wrappers_come_off_in_any_nesting_and_names_that_look_like_them_stay() -> None:
    wanted = f"{PREFIX}model.layers.0.q.lora_A.weight"
    for outer in ("", "module.", "_orig_mod.", "module._orig_mod.module.", "_fsdp_wrapped_module."):
        for inner in ("", "_orig_mod.", "_checkpoint_wrapped_module._orig_mod."):
            for own in (PREFIX, ""):
                key = f"{outer}{own}model.layers.0.{inner}q.lora_A.default.weight"
                assert canonical_key(key) == wanted, key
    inside = f"{PREFIX}model.module.q.lora_A.weight"
    assert canonical_key(inside) == inside


def test_two_names_for_one_tensor_are_refused(tmp_path: Path) -> None:
    model = adapted()
    model.peft_config["default"].save_pretrained(str(tmp_path))
    state = {k: v for k, v in model.state_dict().items() if "lora_" in k}
    state |= {f"module.{k}": v.clone() for k, v in state.items()}
    save_file(state, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ShapeMismatch, match="both stand for"):
        open_adapter(tmp_path)


def test_a_state_dict_without_a_config_takes_alpha_from_the_command_line(tmp_path: Path) -> None:
    state = {f"module.{k}": v for k, v in adapted().state_dict().items() if "lora_" in k}
    save_file(state, tmp_path / "client.safetensors")
    adapter = open_adapter(tmp_path / "client.safetensors", Settings(alpha=6.0))
    assert {s.scale for s in adapter.updates.values()} == {2.0}


# --- torchtune


def torchtune(folder: Path) -> Path:
    """Its export for PEFT: PEFT's names, and a config of four fields."""
    state = {
        k.replace(".default", ""): v.contiguous()
        for k, v in adapted().state_dict().items()
        if "lora_" in k
    }
    folder.mkdir(parents=True)
    save_file(state, folder / "adapter_model.safetensors")
    config = {"r": 3, "lora_alpha": 6, "target_modules": TARGETS, "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_torchtunes_export_is_read_and_loads_in_peft(tmp_path: Path) -> None:
    folder = torchtune(tmp_path / "client")
    check_reads_and_loads(folder, tmp_path)
    kept, own = (f / "adapter_config.json" for f in (tmp_path / "out-None", folder))
    assert kept.read_bytes() == own.read_bytes()


def test_of_torchtunes_epochs_the_last_is_read_and_its_own_pt_is_never_opened(
    tmp_path: Path,
) -> None:
    for epoch in (0, 9, 10):
        folder = torchtune(tmp_path / "client" / f"epoch_{epoch}")
        (folder / "adapter_model.pt").write_bytes(b"\x80\x04would run code")
    adapter = open_adapter(tmp_path / "client")
    assert adapter.path.name == "epoch_10"
    assert [n.code for n in adapter.notes] == ["CLR114", "CLR109"]
    (adapter.path / "adapter_model.safetensors").unlink()
    with pytest.raises(PickleFound, match="re-save it as safetensors"):
        open_adapter(adapter.path)
    done = clair("inspect", tmp_path / "client" / "epoch_9")
    assert (done.returncode, done.stdout.partition(",")[0]) == (0, "epoch_9: peft")
