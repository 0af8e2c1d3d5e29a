"""--write keep|uniform|compact: what PEFT computes is the same, and what servers ask for holds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.adapters import peft_model, save_peft, tiny_llama
from tests.helpers.commands import CONFIG, WEIGHTS, clair, fingerprint

STYLES = ("keep", "uniform", "compact")
PATTERNS = {"model.layers.0.self_attn.q_proj": 6, "model.layers.1.mlp.down_proj": 3}
SERVED = {1, 8, 16, 32, 64, 128, 256, 320, 512}
"""What vLLM 0.33 takes for --max-lora-rank."""
LORA_KEYS = (".lora_A.weight", ".lora_B.weight")


def cohort(folder: Path) -> Path:
    """Five clients near each other, of mixed ranks, alphas and rsLoRA, saved by PEFT."""
    for k in range(5):
        model = peft_model(
            tiny_llama(),
            r=4,
            lora_alpha=8 + k,
            use_rslora=k % 2 == 0,
            rank_pattern=PATTERNS,
            alpha_pattern={"down_proj": 5},
            target_modules=["q_proj", "v_proj", "down_proj"],
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    draw = torch.Generator().manual_seed(100 * k + len(name))
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
        save_peft(model, folder / f"client-{k}")
    return folder


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("styles")
    folder, found = cohort(root / "in"), {}
    before = fingerprint(folder)
    for style in STYLES:
        found[style] = root / style
        done = clair(
            "refine", folder, "--out", found[style], "--write", style, "--global", "--strength", 0.5
        )
        assert done.returncode == 0, done.stderr
    assert fingerprint(folder) == before
    return found | {"in": folder}


def logits(folder: Path) -> Tensor:
    from peft import PeftModel

    model = PeftModel.from_pretrained(tiny_llama(), str(folder))
    with torch.no_grad():
        return model(torch.arange(12)[None] % 32).logits


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return found


@pytest.mark.parametrize("name", ["client-0", "client-3", "global"])
def test_peft_computes_the_same_from_every_style(outs: dict[str, Path], name: str) -> None:
    said = {style: logits(outs[style] / name) for style in STYLES}
    base = tiny_llama()(torch.arange(12)[None] % 32).logits
    moved = (said["keep"] - base).norm()
    for style in STYLES[1:]:
        assert (said[style] - said["keep"]).norm() < 1e-5 * moved, style
    if name != "global":
        own = logits(outs["in"] / name)
        assert 0 < (said["keep"] - own).norm() < moved  # it was refined, and it is still its own


def test_keep_keeps_the_config_byte_for_byte(outs: dict[str, Path]) -> None:
    for client in outs["in"].iterdir():
        written = (outs["keep"] / client.name / CONFIG).read_bytes()
        assert written == (client / CONFIG).read_bytes()


def test_uniform_means_one_rank_scale_one_and_no_patterns(outs: dict[str, Path]) -> None:
    for client in outs["in"].iterdir():
        config = config_of(outs["uniform"] / client.name)
        assert config["r"] == config["lora_alpha"] == 6
        assert config["rank_pattern"] == config["alpha_pattern"] == {}
        assert not config["use_rslora"]
        assert config["init_lora_weights"] is True
        tensors = load_file(outs["uniform"] / client.name / WEIGHTS)
        assert {t.shape[0] for n, t in tensors.items() if "lora_A" in n} == {6}


def test_compact_gives_each_module_its_rank_and_scale_one(outs: dict[str, Path]) -> None:
    for client in outs["in"].iterdir():
        config, tensors = (
            config_of(outs["compact"] / client.name),
            load_file(outs["compact"] / client.name / WEIGHTS),
        )
        own = load_file(client / WEIGHTS)
        assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in own.items()}
        assert config["rank_pattern"] == config["alpha_pattern"]
        assert config["r"] == config["lora_alpha"] == 6


@pytest.mark.parametrize("style", STYLES)
def test_servers_find_what_they_ask_for(outs: dict[str, Path], style: str) -> None:
    """vLLM's documented conditions: fields, key names, features it refuses, and the rank list."""
    report = json.loads((outs[style] / "report.json").read_text())
    served = report["refinement"]["max_lora_rank"]
    assert served in SERVED
    for folder in (*outs["in"].iterdir(), Path("global")):
        config = config_of(outs[style] / folder.name)
        assert {"r", "lora_alpha", "target_modules", "peft_type"} <= config.keys()
        largest = max(config["r"], *(config.get("rank_pattern") or {"": 0}).values())
        assert largest <= served == min(r for r in SERVED if r >= 6)
        refused = ("modules_to_save", "use_dora", "lora_bias", "alora_invocation_tokens")
        assert not any(config.get(field) for field in (*refused, "layer_replication"))
        assert config["bias"] == "none"
        tensors = load_file(outs[style] / folder.name / WEIGHTS)
        assert all(n.startswith("base_model.model.") and n.endswith(LORA_KEYS) for n in tensors)


def test_a_loader_that_knows_only_alpha_over_r_reads_uniform_alike(outs: dict[str, Path]) -> None:
    """llama.cpp, old vLLM, torchtune: scale = lora_alpha / r for all modules, whatever patterns say."""
    for name in ("client-0", "client-1"):
        config = config_of(outs["uniform"] / name)
        update = {}
        for style in ("uniform", "compact"):
            t = load_file(outs[style] / name / WEIGHTS)
            update[style] = {
                n: t[n.replace("lora_A", "lora_B")].double() @ a.double()
                for n, a in t.items()
                if "lora_A" in n
            }
        scale = config["lora_alpha"] / config["r"]
        for n, wanted in update["compact"].items():  # scale 1 there, by its patterns
            assert (scale * update["uniform"][n] - wanted).norm() < 1e-5 * wanted.norm()


def test_provenance_lies_beside_and_never_in_the_config(outs: dict[str, Path]) -> None:
    for style in STYLES:
        said = json.loads((outs[style] / "client-0" / "clair.json").read_text())
        own = json.loads((outs[style] / "report.json").read_text())
        files = {c["id"]: c["files"] for c in own["inputs"]["clients"]}
        assert said["files"] == files["client-0"]
        assert (said["client"], said["format"], said["tool"]["name"]) == (
            "client-0",
            "peft",
            "clair",
        )
        assert math.isclose(said["refinement"]["strength"], 0.5)
        mean = json.loads((outs[style] / "global" / "clair.json").read_text())
        weights = {c["id"]: c["weight"] for c in own["refinement"]["clients"]}
        assert mean["mean_of"] == pytest.approx(weights)
        assert sum(weights.values()) == pytest.approx(1)
        assert mean["files"] == files[mean["template"]]
        known = config_of(outs["in"] / "client-0").keys()
        assert config_of(outs[style] / "client-0").keys() <= known


def test_the_screen_says_what_to_serve_it_with(tmp_path: Path, outs: dict[str, Path]) -> None:
    done = clair(
        "refine", outs["in"], "--out", tmp_path / "out", "--write", "uniform", "--rank", 17
    )
    assert done.returncode == 0
    assert "serve with --max-lora-rank 32" in done.stdout
    assert clair("refine", outs["in"], "--out", tmp_path / "o", "--write", "flat").returncode == 2
