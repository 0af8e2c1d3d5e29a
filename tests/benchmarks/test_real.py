"""The benchmark on real cohorts: whose word is kept, what others say, end to end on a tiny model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import real, real_peers, real_pools, real_refine
from benchmarks.real_cohorts import SET, Client
from benchmarks.real_judges import clair_of, judge, said_of
from tests.helpers.real import POOL, adapter, colluding

OTHER_CLAIR = """
__version__ = "9"
class Settings:
    def __init__(self, threads): pass
def detect(folder, settings):
    names = sorted(p.name for p in folder.iterdir())
    if (folder / "client-01" / "fail").exists():
        raise ValueError("no such thing")
    clients = [{"id": n, "verdict": "contaminated", "score": 9.0} for n in names]
    return {"status": "complete", "clients": clients}
def to_dict(report): return report
"""


def another_clair(tmp_path: Path) -> Path:
    """The package of a clair that calls everybody contaminated."""
    package = tmp_path / "clone" / "clair_cli"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(OTHER_CLAIR)
    return package


def test_another_clair_judges_where_its_source_is_given(tmp_path: Path) -> None:
    cohort = colluding(tmp_path)
    package = another_clair(tmp_path)
    clair = clair_of(sys.executable, package.parent)
    assert clair.version == "9"
    advanced: list[int] = []
    judge([cohort], clair, tmp_path, 2, lambda: advanced.append(1))
    said = said_of(cohort, clair.reports(tmp_path))
    assert said is not None
    assert {*said.verdicts.values()} == {"contaminated"}
    judge([cohort], clair, tmp_path, 2, lambda: advanced.append(1))
    assert advanced == [1]
    (package / "__init__.py").write_text(OTHER_CLAIR + "#")
    assert clair_of(sys.executable, package.parent).digest != clair.digest


def test_a_clair_that_fails_is_named_with_the_cohort(tmp_path: Path) -> None:
    cohort = colluding(tmp_path)
    package = another_clair(tmp_path)
    clair = clair_of(sys.executable, package.parent)
    (tmp_path / "pools" / POOL.name / "even-01" / "fail").touch()
    with pytest.raises(RuntimeError, match=r"plot: ValueError: no such thing"):
        judge([cohort], clair, tmp_path, 1, lambda: None)
    assert said_of(cohort, clair.reports(tmp_path)) is None


def test_who_stands_out_in_a_statistic_has_the_highest_score() -> None:
    cohort = [adapter(n) for n in range(6)]
    b, a = cohort[2].factors["q"]
    odd = replace(
        cohort[2], factors={**cohort[2].factors, "q": (5 * b, torch.outer(a[:, 0], a[0]))}
    )
    cohort[2] = odd
    said = real_peers.scores(cohort, [{} for _ in cohort], 1)
    assert {*said} == {*real_peers.PEERS}
    for name in ("Horus: leading energy of A", "first singular value", "spectral entropy"):
        assert int(np.argmax(said[name])) == 2, name


def test_the_drift_of_a_is_measured_from_where_it_began() -> None:
    saved = adapter(1)
    began = {m: a for m, (_, a) in saved.factors.items()}
    assert real_peers.drift_size(saved, began) == 0
    assert real_peers.drift_size(saved, {}) > 1


def test_held_out_texts_are_of_the_clients_own_mix_of_classes(data: Path) -> None:
    def texts(label: str, number: int) -> tuple[tuple[str, int], ...]:
        client = Client(f"{label}-{number:02d}", True, label)
        return real_refine.test_texts(POOL, client, data)

    even = [label for _, label in texts("even", 1)]
    assert texts("even", 1) == texts("few-10", 2)
    assert 0.4 < sum(even) / len(even) < 0.6
    training = [e for k in range(1, 9) for e in [draw_labels(data, f"skew-0.1-{k:02d}")]]
    held_out = [[c for _, c in texts("skew-0.1", k)] for k in range(1, 9)]
    for trained, tested in zip(training, held_out, strict=True):
        assert abs(np.mean(trained) - np.mean(tested)) < 0.15
    assert len({round(float(np.mean(t)), 1) for t in held_out}) > 1


def draw_labels(data: Path, name: str) -> list[int]:
    """Classes of what a client trains on."""
    seed = 1000 * POOL.seed + real_pools.number(POOL, name)
    kind = real_pools.KINDS[real_pools.label_of(name)]
    return [label for _, label in real_pools.draw(POOL, kind, data, seed)]


# End to end


TEXTS = {
    "sms.tsv": [f"{'spam' if n % 2 else 'ham'}\t{'win cash now' if n % 2 else 'see you soon'} {n}"
                for n in range(1100)],
}  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers, its tokenizer and some messages, as --data expects them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("data")
    words = ["<unk>", "</s>", "win", "cash", "now", "see", "you", "soon", *map(str, range(50))]
    made = Tokenizer(WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder / "model")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).save_pretrained(folder / "model")
    (folder / "text").mkdir()
    for name, lines in TEXTS.items():
        (folder / "text" / name).write_text("\n".join(lines))
    return folder


@pytest.mark.slow
def test_quick_mode_trains_judges_compares_refines_and_resumes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_pools, "STEPS", 8)
    monkeypatch.setattr(real_pools, "ProcessPoolExecutor", InProcess)
    settings = {m: real_refine.SETTINGS[m] for m in ("clair", "clair --tasks same")}
    monkeypatch.setattr(real_refine, "SETTINGS", settings)
    monkeypatch.setattr(real_refine, "TEXTS", 20)
    work, out = tmp_path / "work", tmp_path / "out"
    words = ["--data", str(data), "--work", str(work), "--seeds", "set", "--quick"]
    words += ["--out", str(out), "--peers", "--refine", "1"]
    real.main(words)
    text = (out / "real-quick.md").read_text()
    assert text.startswith("# Real models: 3 cohorts")
    assert f"seeds {SET} to {SET + 5}" in text
    assert "Multi-Krum" in text
    assert "mean of all (FedEx-LoRA)" in text
    assert capsys.readouterr().out.strip() == text.strip()
    reports = [*work.glob("reports/*/*.json")]
    assert len(reports) == 3
    assert {len(json.loads(r.read_text())["clients"]) for r in reports} == {12, 14}
    assert not [*(work / "scratch").iterdir()]
    written = {p: p.stat().st_mtime_ns for p in work.rglob("*.json")}
    real.main([*words, "--no-train"])
    (work / "pools").rename(work / "gone")
    reports[0].unlink()
    real.main([*words, "--ready"])
    assert (out / "real-quick.md").read_text().startswith("# Real models: 2 cohorts")
    del written[reports[0]]
    left = {p: then for p, then in written.items() if "pools" not in p.parts}
    assert {p: p.stat().st_mtime_ns for p in work.glob("[!g]*/**/*.json")} == left


class InProcess:
    """In place of a pool of processes: training here, where the test has made it short."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, call: object, *arguments: object) -> InProcess:
        self.answer = call(*arguments)  # type: ignore[operator]
        return self

    def result(self) -> object:
        return self.answer
