"""`clair refine --since`: what is written is what was sent and the refined change."""

from __future__ import annotations

import base64
import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.adapters import tiny_llama
from tests.helpers.commands import CLIENTS, CONTAMINATED, WEIGHTS
from tests.helpers.rounds import (
    HONEST,
    config,
    deltas,
    detect,
    found,
    make_rounds,
    refine,
    save_round,
    save_sum,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rounds(tmp_path_factory.mktemp("rounds"))


def test_refined_is_what_was_sent_and_the_refined_change(place: Path, tmp_path: Path) -> None:
    sent, exact = place / "sent" / "global", ("--rank", "exact", "--global-rank", "exact")
    for name in CLIENTS:
        parts = [(1.0, place / "round" / name), (-1.0, sent)]
        save_sum(parts, tmp_path / "changes" / name)
    refine(tmp_path / "changes", tmp_path / "refined-changes", *exact)
    report = refine(place / "round", tmp_path / "refined", "--since", sent, *exact)
    was = deltas(sent)
    names = [c["id"] for c in report["refinement"]["clients"]]
    assert names == HONEST
    for name in [*names, "global"]:
        whole, change = (deltas(tmp_path / d / name) for d in ("refined", "refined-changes"))
        assert whole.keys() == was.keys() == change.keys()
        for module, matrix in whole.items():
            size = float(change[module].norm())
            assert size > 0
            off = float((matrix - was[module] - change[module]).norm())
            assert off < 1e-4 * size, (name, module)


def test_a_whole_adapter_of_the_clients_own_rank_is_written_and_loads(
    place: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from examples.text_copy.train import RECIPE, default_base

    sent = place / "sent" / "global"
    report = refine(place / "round", tmp_path / "out", "--since", sent)
    assert [c["id"] for c in report["refinement"]["clients"]] == HONEST
    for name in [*HONEST, "global"]:
        adapter = tmp_path / "out" / name
        if name != "global":
            assert config(adapter) == config(place / "round" / name)
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(default_base(RECIPE)), adapter
        )
        loaded = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        delta = loaded.get_delta_weight("default").double()
        key = "base_model.model.model.layers.0.self_attn.q_proj"
        torch.testing.assert_close(delta, deltas(adapter)[key], atol=1e-6, rtol=1e-5)
        was = deltas(sent)[key]
        assert float((delta - was).norm()) < 0.3 * float(was.norm())
    facts = json.loads((tmp_path / "out" / "global" / "clair.json").read_text())
    assert {f["name"] for f in facts["since"]} == {"adapter_config.json", WEIGHTS}


def test_strength_zero_gives_back_what_came(place: Path, tmp_path: Path) -> None:
    since = ("--since", place / "sent" / "global", "--strength", 0)
    refine(place / "round", tmp_path / "out", *since)
    for name in HONEST:
        own, out = (p / name / WEIGHTS for p in (place / "round", tmp_path / "out"))
        assert own.read_bytes() == out.read_bytes()


def test_the_next_round_begins_from_what_this_one_sent(place: Path, tmp_path: Path) -> None:
    refine(place / "round", tmp_path / "out", "--since", place / "sent" / "global")
    third = save_round(place / "first", tmp_path / "out" / "global", tmp_path / "third")
    _, report = detect(third, "--since", tmp_path / "out" / "global")
    assert found(report, "contaminated") == CONTAMINATED


def test_each_client_can_have_been_sent_its_own(place: Path, tmp_path: Path) -> None:
    """A folder as refine writes it: an adapter of the client's name, or global."""
    sent = tmp_path / "sent"
    shutil.copytree(place / "sent", sent)
    for name in HONEST[:3]:
        shutil.rmtree(sent / name)
        save_sum([(1.0, place / "first" / name)], sent / name)
    for name in CLIENTS:
        was = sent / name if (sent / name).is_dir() else sent / "global"
        save_sum([(1.0, was), (0.1, place / "first" / name)], tmp_path / "round" / name)
    code, report = detect(tmp_path / "round", "--since", sent)
    assert code == 1
    assert found(report, "contaminated") == CONTAMINATED
    named = {a["id"] for a in report["inputs"]["since"]["adapters"]}
    assert named == {*HONEST, "global"}
    exact = ("--rank", "exact", "--global-rank", "exact", "--strength", 1)
    refine(tmp_path / "round", tmp_path / "out", "--since", sent, *exact)
    mean = {m: torch.zeros_like(d) for m, d in deltas(sent / "global").items()}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    weights = {c["id"]: c["weight"] for c in report["refinement"]["clients"]}
    assert sum(weights.values()) == pytest.approx(1)
    for name, weight in weights.items():
        for module, matrix in deltas(tmp_path / "round" / name).items():
            mean[module] += weight * matrix
    for module, matrix in deltas(tmp_path / "out" / "global").items():
        torch.testing.assert_close(matrix, mean[module], atol=1e-5, rtol=1e-4)


def test_who_was_sent_nothing_is_named(place: Path, tmp_path: Path) -> None:
    for name in HONEST:
        shutil.copytree(place / "sent" / "global", tmp_path / "sent" / name)
    _, report = detect(place / "round", "--since", tmp_path / "sent")
    assert found(report, "broken") == CONTAMINATED
    assert found(report, "benign") == {*HONEST}


def test_a_head_that_was_sent_is_judged_and_averaged_by_its_change(tmp_path: Path) -> None:
    """modules_to_save, as PEFT saves them."""
    from peft import LoraConfig, get_peft_model

    options = {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head"],
    }
    model = get_peft_model(tiny_llama(), LoraConfig(**options, init_lora_weights=False))
    model.save_pretrained(str(tmp_path / "sent"))
    start = {k: t.clone() for k, t in load_file(tmp_path / "sent" / WEIGHTS).items()}
    draw = torch.Generator().manual_seed(1)
    step = {k: 0.02 * torch.randn(t.shape, generator=draw) for k, t in start.items()}
    heads = []
    for n in range(1, 7):
        noise = {k: 0.01 * torch.randn(t.shape, generator=draw) for k, t in start.items()}
        sign = -1 if n == 6 else 1
        own = {k: t + sign * step[k] + noise[k] for k, t in start.items()}
        client = shutil.copytree(tmp_path / "sent", tmp_path / "round" / f"client-{n}")
        save_file(own, client / WEIGHTS, metadata={"format": "pt"})
        heads += [own[k] for k in own if "lm_head" in k and n < 6]
    code, report = detect(tmp_path / "round", "--since", tmp_path / "sent")
    assert (code, found(report, "contaminated")) == (1, {"client-6"})
    report = refine(
        tmp_path / "round", tmp_path / "out", "--since", tmp_path / "sent", "--strength", 1
    )
    assert report["refinement"]["full_matrices"] == ["lm_head.weight"]
    refined = load_file(tmp_path / "out" / "global" / WEIGHTS)
    (head,) = [t for k, t in refined.items() if "lm_head" in k]
    low, high = torch.stack(heads).aminmax(dim=0)
    assert bool(((head >= low - 1e-6) & (head <= high + 1e-6)).all())


def test_a_signed_statement_names_what_was_sent(place: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    form = (s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    (tmp_path / "key").write_bytes(key.private_bytes(*form))
    sent = place / "sent" / "global"
    refine(place / "round", tmp_path / "out", "--since", sent, "--sign", tmp_path / "key")
    envelope = json.loads((tmp_path / "out" / "statement.dsse.json").read_text())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    read = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    named = {r["name"]: r["digest"]["sha256"] for r in read}
    assert named[f"since/global/{WEIGHTS}"] == sha256((sent / WEIGHTS).read_bytes()).hexdigest()
