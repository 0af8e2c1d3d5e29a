"""The whole way on real adapters: detect and refine from folders, PEFT as the judge of the output."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clair_cli import Report, Settings, detect, open_adapter, read_update, refine, to_dict
from clair_cli.errors import UsageError
from clair_cli.output.publish import verify
from tests import ROOT
from tests.helpers.adapters import write_folder
from tests.helpers.builders import planted
from tests.helpers.commands import fingerprint

SAMPLES, BASE = ROOT / "sample_adapters", ROOT / "examples" / "text_copy" / "base"
BENIGN = [f"client-{k:02d}" for k in (1, 2, 4, 5, 7, 8)]


def verdicts(report: Report) -> dict[str, str | None]:
    return {c.client: c.verdict for c in report.clients}


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("refined") / "out"
    before = fingerprint(SAMPLES)
    report = refine(SAMPLES, out, Settings(write_global=True, strength=0.5))
    assert fingerprint(SAMPLES) == before
    return out, report


def test_the_shipped_samples_are_judged_as_their_readme_says() -> None:
    truth = json.loads((ROOT / "examples" / "text_copy" / "sample_truth.json").read_text())
    found = verdicts(detect(SAMPLES))
    assert {c for c, v in found.items() if v == "contaminated"} == set(truth["contaminated"])
    assert {c for c, v in found.items() if v == "benign"} == set(BENIGN)


@pytest.mark.slow
@pytest.mark.parametrize("different_init", [False, True])
@pytest.mark.parametrize("seed", [11, 12])
def test_sets_trained_with_other_seeds_are_judged_rightly(
    seed: int, different_init: bool, tmp_path: Path, text_copy: Any
) -> None:
    plan = text_copy.CohortPlan(
        clients=8, contaminated=("random", "cipher"), seed=seed, different_init=different_init
    )
    specs = text_copy.make_cohort(tmp_path / "round", plan, base=BASE)
    bad = {s.name for s in specs if not s.benign}
    assert len(bad) == 2
    found = verdicts(detect(tmp_path / "round"))
    assert {c for c, v in found.items() if v == "contaminated"} == bad
    assert set(found) - bad == {c for c, v in found.items() if v == "benign"}


def dense(folder: Path) -> dict[str, torch.Tensor]:
    adapter = open_adapter(folder)
    return {m: read_update(adapter, m, "float64").dense() for m in adapter.updates}


def logits_of_base_plus(delta: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(BASE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.removesuffix(".weight") in delta:
                parameter += delta[name.removesuffix(".weight")].to(parameter)
        found: torch.Tensor = model(input_ids=ids).logits
    return found


def logits_by_peft(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model: Any = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(BASE), str(folder))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found


def intended(
    strength: float, s: int, weight: dict[str, float]
) -> dict[str, dict[str, torch.Tensor]]:
    """Delta_k - t (I - U U') (Delta_k - M), dense, from the input folders, by module and client.

    M is the mean by `weight`, which need not sum to 1, and U are the leading directions by it.
    """
    clients = list(weight)
    local = {c: dense(SAMPLES / c) for c in clients}
    found: dict[str, dict[str, torch.Tensor]] = {c: {} for c in clients}
    for module in local[clients[0]]:
        mean = sum(weight[c] * local[c][module] for c in clients) / sum(weight.values())
        offs = {c: local[c][module] - mean for c in clients}
        scaled = [weight[c] ** 0.5 * off for c, off in offs.items()]
        u = torch.linalg.svd(torch.cat(scaled, dim=1))[0][:, :s]
        for c in clients:
            found[c][module] = local[c][module] - strength * (offs[c] - u @ (u.T @ offs[c]))
    return found


@pytest.mark.parametrize("rank", [None, 4, 64])
def test_peft_computes_base_plus_the_intended_update(rank: int | None, tmp_path: Path) -> None:
    """Rank 64 holds every refined update exactly, so the logits agree to rounding."""
    settings = Settings(
        strength=0.5, side="left", subspace_rank=2, rank=rank or "keep", write_global=True
    )
    report = refine(SAMPLES, tmp_path / "out", settings)
    ids = torch.randint(0, 24, (4, 20), generator=torch.Generator().manual_seed(0))
    base = logits_of_base_plus({}, ids)
    done = {c.client: c for c in report.refinement.clients} if report.refinement else {}
    assert set(done) == set(BENIGN)
    assert {c.strength for c in done.values()} == {0.5}
    wanted = intended(0.5, 2, {c: done[c].weight or 0.0 for c in BENIGN})
    for client in BENIGN[:3]:
        found = logits_by_peft(tmp_path / "out" / client, ids)
        exact = logits_of_base_plus(wanted[client], ids)
        written = logits_of_base_plus(dense(tmp_path / "out" / client), ids)
        size = float((exact - base).norm())
        assert float((found - written).norm()) <= 1e-5 * size
        if rank == 64:
            assert float((found - exact).norm()) <= 1e-4 * size
            assert done[client].truncation_error <= 1e-4
        cut = torch.cat(
            [(wanted[client][m] - d).flatten() for m, d in dense(tmp_path / "out" / client).items()]
        )
        whole = torch.cat([d.flatten() for d in dense(SAMPLES / client).values()])
        assert float(cut.norm() / whole.norm()) == pytest.approx(
            done[client].truncation_error, rel=1e-3, abs=1e-4
        )


def test_the_global_adapter_is_the_mean_of_the_products_by_the_weights_reported(
    tmp_path: Path,
) -> None:
    report = refine(
        SAMPLES, tmp_path / "out", Settings(rank=64, write_global=True, global_rank="exact")
    )
    assert report.refinement is not None
    weight = {c.client: c.weight or 0.0 for c in report.refinement.clients}
    assert weight.keys() == set(BENIGN)
    assert min(weight.values()) > 0
    local = {c: dense(SAMPLES / c) for c in BENIGN}
    for module, found in dense(tmp_path / "out" / "global").items():
        total = sum(weight[c] * local[c][module] for c in BENIGN)
        mean = torch.as_tensor(total) / sum(weight.values())
        assert float((found - mean).norm()) <= 1e-6 * float(mean.norm())


def test_output_has_the_same_keys_dtypes_and_shapes_and_is_readable_by_all(
    refined: tuple[Path, Report],
) -> None:
    out, report = refined
    umask = os.umask(0)
    os.umask(umask)
    for client in BENIGN:
        before = load_file(SAMPLES / client / "adapter_model.safetensors")
        after = load_file(out / client / "adapter_model.safetensors")
        assert {k: (t.dtype, t.shape) for k, t in before.items()} == {
            k: (t.dtype, t.shape) for k, t in after.items()
        }
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            mode = stat.S_IMODE((out / client / name).stat().st_mode)
            assert mode == 0o666 & ~umask
        config = "adapter_config.json"
        assert (out / client / config).read_bytes() == (SAMPLES / client / config).read_bytes()
    assert sorted(p.name for p in out.iterdir()) == [
        *BENIGN,
        "global",
        "manifest.json",
        "report.json",
    ]
    assert verify(out) == []
    saved = json.loads((out / "report.json").read_text())
    assert saved["refinement"] == to_dict(report)["refinement"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_is_written_as_it_was_read_and_extras_are_untouched(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    source, extra = tmp_path / "in", torch.arange(6.0).reshape(2, 3)
    for client in BENIGN[:4]:
        shutil.copytree(SAMPLES / client, source / client)
        file = source / client / "adapter_model.safetensors"
        tensors = {k: t.to(dtype) for k, t in load_file(file).items()}
        save_file(tensors | {"base_model.model.score.weight": extra}, file, {"format": "pt"})
    report = refine(source, tmp_path / "out", Settings(strength=0.5))
    assert set(verdicts(report).values()) == {"benign"}
    for client in BENIGN[:4]:
        after = load_file(tmp_path / "out" / client / "adapter_model.safetensors")
        assert torch.equal(after.pop("base_model.model.score.weight"), extra)
        assert {t.dtype for t in after.values()} == {dtype}
        moved = [float((t - load_file(source / client / "adapter_model.safetensors")[k]).abs().max())
                 for k, t in after.items()]  # fmt: skip
        assert max(moved) > 0


def test_strength_zero_writes_what_was_read_byte_for_byte(tmp_path: Path) -> None:
    report = refine(SAMPLES, tmp_path / "out", Settings(strength=0.0))
    assert report.refinement is not None
    assert [c.unchanged for c in report.refinement.clients] == [True] * 6
    for client in BENIGN:
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            own = (SAMPLES / client / file).read_bytes()
            assert (tmp_path / "out" / client / file).read_bytes() == own


def test_refined_adapters_are_better_than_local_and_than_the_plain_average(
    tmp_path: Path, text_copy: Any
) -> None:
    """With nothing chosen by hand; the figures are those of sample_adapters/README.md."""
    from examples.text_copy import train as training

    refine(SAMPLES, tmp_path / "out")
    specs = training.read_truth(ROOT / "examples" / "text_copy" / "sample_truth.json")
    table = text_copy.evaluate(SAMPLES, specs, BASE, tmp_path / "out")
    loss = {name: sum(q.loss for q in rows.values()) / len(rows) for name, rows in table.items()}
    assert len(table["refined"]) == 6
    assert loss["refined"] < 0.97 * loss["local"]
    assert loss["refined"] < 0.5 * loss["average, all"]


def test_clients_of_different_modules_are_compared_on_what_they_share(tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(SAMPLES, source)
    file = source / "client-02" / "adapter_model.safetensors"
    tensors = {k: t for k, t in load_file(file).items() if "layers.1.mlp.up_proj" not in k}
    save_file(tensors, file, {"format": "pt"})
    report = refine(source, tmp_path / "out")
    assert "CLR304" in {f.code for f in report.population.findings}
    assert len(report.population.modules) == 13
    own = load_file(source / "client-01" / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "client-01" / "adapter_model.safetensors")
    for key in own:
        same = torch.equal(own[key], after[key])
        assert same == ("layers.1.mlp.up_proj" in key)


def test_no_dense_update_is_ever_formed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Factors of 6000 x 4 would be 144 MB dense; no single tensor may come near."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            for t in result if isinstance(result, tuple | list) else (result,):
                if isinstance(t, torch.Tensor):
                    Largest.seen = max(Largest.seen, t.numel())
            return result

    draw = torch.Generator().manual_seed(0)
    common = torch.randn(6000, 4, generator=draw)
    for k in range(4):
        folder = tmp_path / "in" / f"c{k}"
        folder.mkdir(parents=True)
        up = common + 0.3 * torch.randn(6000, 4, generator=draw)
        key = "base_model.model.m.q_proj.lora_{}.weight"
        save_file({key.format("A"): torch.randn(4, 6000, generator=draw), key.format("B"): up},
                  folder / "adapter_model.safetensors")  # fmt: skip
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    with Largest():
        report = refine(tmp_path / "in", tmp_path / "out", Settings(strength=0.5))
    assert report.refinement is not None
    assert 6000 * 16 <= Largest.seen < 6000 * 64


@pytest.mark.parametrize("kind", ["random", "colluding"])
@pytest.mark.parametrize(("clients", "contaminated"), [(10, 0), (10, 4), (20, 9)])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_planted_cohorts_are_judged_exactly(
    kind: str, clients: int, contaminated: int, noise: float, tmp_path: Path
) -> None:
    """Stored as float64; at noise 0.5 half of a benign update is its own error."""
    truth = planted(
        clients, contaminated, kind, modules=4, shape=(64, 48), noise=noise, seed=clients
    )
    for k, client in enumerate(truth.updates):
        tensors = {}
        for m, update in enumerate(client):
            key = f"base_model.model.layers.{m}.q_proj.lora_"
            tensors |= {
                f"{key}{x}.weight": t.contiguous()
                for x, t in (("A", update.down), ("B", update.up))
            }
        rank = client[0].rank
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
        write_folder(tmp_path / f"client-{k}", tensors, config)
    found = verdicts(detect(tmp_path))
    assert [found[f"client-{k}"] == "contaminated" for k in range(clients)] == [
        not benign for benign in truth.members
    ]


def test_threads_do_not_change_a_verdict() -> None:
    one, two = (detect(SAMPLES, Settings(threads=t)) for t in (1, 2))
    assert verdicts(one) == verdicts(two)
    assert [c.score for c in one.clients] == pytest.approx([c.score for c in two.clients], abs=1e-4)


def test_our_own_output_can_be_judged_again_without_its_global_adapter(
    refined: tuple[Path, Report],
) -> None:
    out, _ = refined
    assert set(verdicts(detect(out))) == set(BENIGN)


def test_cuda_that_is_not_there_is_a_usage_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UsageError, match="cuda"):
        detect(SAMPLES, Settings(device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_changes_no_verdict_and_no_refined_update(tmp_path: Path) -> None:
    cpu, cuda = (refine(SAMPLES, tmp_path / d, Settings(device=d)) for d in ("cpu", "cuda"))  # type: ignore[arg-type]
    assert cuda.run["environment"]["device"].startswith("cuda")
    assert verdicts(cpu) == verdicts(cuda)
    assert [c.score for c in cpu.clients] == pytest.approx(
        [c.score for c in cuda.clients], abs=1e-3
    )
    for client in BENIGN:
        for module, own in dense(tmp_path / "cpu" / client).items():
            other = dense(tmp_path / "cuda" / client)[module]
            assert float((own - other).norm()) <= 1e-3 * float(own.norm())


def test_threads_are_as_they_were(tmp_path: Path) -> None:
    """The library decides for its own work, and leaves the process as it found it."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        seen = []
        report = detect(SAMPLES, on_progress=lambda *_: seen.append(torch.get_num_threads()))
        assert report.run["environment"]["threads"] == 1
        assert 1 in seen
        assert torch.get_num_threads() == 2
        refine(SAMPLES, tmp_path / "out", Settings(threads=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
