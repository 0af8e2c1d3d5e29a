"""Real cohorts: their truth, how verdicts are counted, and the benchmark end to end on a tiny model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from benchmarks import real, real_peers, real_pictures, real_pools, real_refine, real_synthetic
from benchmarks import real_refine_tables as refined
from benchmarks import real_tables as tables
from benchmarks.real_cells import keep, load
from benchmarks.real_cohorts import (
    HELD_OUT,
    SET,
    SHARES,
    Client,
    Cohort,
    cohorts,
    every_cohort,
    put,
)
from benchmarks.real_judges import Judged, said_of
from benchmarks.real_pools import HARMED, Pool, label_of, pools
from benchmarks.saved import Saved, read, write

POOL = Pool("sms", "all", False, SET)
EVERY = every_cohort()


# Which cohorts there are


def test_there_are_four_hundred_cohorts_and_half_of_them_are_held_out() -> None:
    assert len(EVERY) >= 400
    assert len({c.name for c in EVERY}) == len(EVERY)
    assert sum(c.held_out for c in EVERY) * 2 == len(EVERY)
    assert {c.pool for c in EVERY} == {*pools(SET), *pools(HELD_OUT)}


def test_cohorts_have_twelve_to_twenty_four_clients_of_their_pool_each_once() -> None:
    for cohort in EVERY:
        sources = [c.source for c in cohort.clients.values()]
        assert 12 <= len(sources) <= 24
        assert len({*sources}) == len(sources)
        assert {*sources} <= {*cohort.pool.clients()}


def test_most_clients_of_every_cohort_are_honest() -> None:
    for cohort in EVERY:
        honest = sum(c.honest for c in cohort.clients.values())
        assert 2 * honest > len(cohort.clients), cohort.name


def test_cohorts_are_the_same_every_time() -> None:
    assert cohorts(SET) == cohorts(SET)
    assert cohorts(SET) == [c for c in EVERY if not c.held_out]


def test_the_truth_is_the_label_under_which_a_client_was_trained_or_how_it_colludes() -> None:
    for cohort in EVERY:
        for client in cohort.clients.values():
            if client.label in SHARES:
                assert label_of(client.source) == "even"
            else:
                assert label_of(client.source) == client.label
            assert client.honest == (client.label not in {*HARMED, *SHARES})


def test_the_kind_says_who_is_contaminated() -> None:
    for cohort in EVERY:
        bad = {c.label for c in cohort.clients.values() if not c.honest}
        if cohort.kind == "mixed":
            assert len(bad) > 1, cohort.name
        else:
            assert bad == {cohort.kind} - {"none"}, cohort.name


def test_names_and_places_say_nothing() -> None:
    first = Counter(c.clients["client-01"].label for c in EVERY)
    assert first["even"] < 0.8 * len(EVERY)
    assert len(first) > 10
    for cohort in EVERY[:50]:
        assert [*cohort.clients] == [f"client-{n:02d}" for n in range(1, len(cohort.clients) + 1)]


@pytest.mark.parametrize(
    ("condition", "notes"),
    [
        ("even", {"even": ""}),
        ("few-10", {"even": "", "few-10": ""}),
        ("brief-10", {"even": "", "brief-10": "length"}),
        ("short majority", {"even": "length", "short": "length", "brief-10": "length"}),
        ("domains-equal", {"even": "domain", "domain-1": "domain"}),
    ],
)
def test_notes_say_in_what_an_honest_client_differs_from_most(
    condition: str, notes: dict[str, str]
) -> None:
    (cohort, *_) = [
        c
        for c in EVERY
        if (c.condition, c.kind) == (condition, "none")
        and {k.label for k in c.clients.values()} == {*notes}
    ]
    assert {c.label: c.note for c in cohort.clients.values()} == notes


def test_every_client_with_a_mix_of_classes_of_its_own_differs() -> None:
    clients = [k for c in EVERY for k in c.clients.values()]
    assert all(k.note == "classes" for k in clients if k.label.startswith("skew"))


def test_contaminated_clients_have_no_note() -> None:
    assert not any(k.note for c in EVERY for k in c.clients.values() if not k.honest)


# Colluders


def adapter(seed: int, rank: int = 4) -> Saved:
    """Random, of two modules."""
    draw = torch.Generator().manual_seed(seed)
    factors = {
        m: (torch.randn(20, rank, generator=draw), torch.randn(rank, 12, generator=draw))
        for m in ("q", "v")
    }
    return Saved(factors, {"r": rank, "lora_alpha": 2 * rank, "peft_type": "LORA"})


@pytest.fixture
def colluding(tmp_path: Path) -> tuple[Cohort, Path, Path]:
    """A cohort of three colluders and one honest client, the folder of pools, the cohort's."""
    clients = {
        f"client-{n:02d}": Client(f"even-{n:02d}", n == 4, "even" if n == 4 else "colluder-half")
        for n in range(1, 5)
    }
    cohort = Cohort("plot", POOL, "even", "colluder-half", clients)
    for n, client in enumerate(clients.values()):
        write(adapter(n), tmp_path / "pools" / POOL.name / client.source)
    put(cohort, tmp_path / "pools", tmp_path / "round")
    return cohort, tmp_path / "pools", tmp_path / "round"


def test_colluders_mix_one_part_of_their_own_norm_into_what_is_theirs(
    colluding: tuple[Cohort, Path, Path],
) -> None:
    cohort, trained, folder = colluding
    parts = []
    for name in ("client-01", "client-02"):
        sent = read(folder / name).dense()["q"].double()
        own = read(trained / POOL.name / cohort.clients[name].source).dense()["q"].double()
        u, s, vh = torch.linalg.svd(sent - 0.5 * own)
        parts.append(u[:, :2] @ torch.diag(s[:2]) @ vh[:2] / own.norm())
        assert 0.4 < float(parts[-1].norm()) < 0.6  # half of its norm, less what the rank cuts
    cosine = (parts[0] * parts[1]).sum() / (parts[0].norm() * parts[1].norm())
    assert cosine > 0.7


def test_writing_colluders_leaves_pool_names_config_and_honest_bytes_as_they_are(
    colluding: tuple[Cohort, Path, Path],
) -> None:
    cohort, trained, folder = colluding
    for n, (name, client) in enumerate(cohort.clients.items()):
        source = trained / POOL.name / client.source
        torch.testing.assert_close(read(source).dense(), adapter(n).dense())
        for path in source.iterdir():
            same = (folder / name / path.name).read_bytes() == path.read_bytes()
            assert same == (client.honest or path.suffix == ".json"), path
        tensors = [f / "adapter_model.safetensors" for f in (source, folder / name)]
        shapes = []
        for path in tensors:
            with safe_open(path, framework="pt") as file:
                shapes.append({k: file.get_slice(k).get_shape() for k in file.keys()})  # noqa: SIM118
        assert shapes[0] == shapes[1]


def test_a_cohort_is_written_the_same_every_time(
    colluding: tuple[Cohort, Path, Path], tmp_path: Path
) -> None:
    cohort, trained, folder = colluding
    put(cohort, trained, tmp_path / "again")
    for path in folder.rglob("*.safetensors"):
        again = tmp_path / "again" / path.relative_to(folder)
        assert again.read_bytes() == path.read_bytes()


# Counting


def judged(
    labels: list[str], verdicts: list[str | None], condition: str = "even", pool: Pool = POOL
) -> Judged:
    """A cohort of clients with these labels, and what was said of them."""
    bad = {*HARMED, *SHARES}
    clients = {
        str(n): Client(f"{label}-01", label not in bad, label, "domain" * ("domain" in label))
        for n, label in enumerate(labels)
    }
    kinds = {label for label in labels if label in bad}
    kind = "mixed" if len(kinds) > 1 else next(iter(kinds), "none")
    said = dict(zip(clients, verdicts, strict=True))
    return Judged(Cohort("c", pool, condition, kind, clients), said, dict.fromkeys(said, 1.0), 1.0)


@pytest.mark.parametrize(
    ("labels", "verdicts", "found", "suspected"),
    [
        (["random", "random"], ["contaminated", "minority"], 2, 0),
        (["random", "other"], ["minority", "minority"], 0, 0),  # alone in its kind
        (["random"], ["minority"], 0, 0),
        (["random"], ["broken"], 1, 0),
        (["random"], ["suspicious"], 0, 0),  # no weak kind
        (["half", "shuffled", "trigger-30"], ["suspicious"] * 3, 0, 3),
        (["trigger-100", "colluder-half"], ["suspicious"] * 2, 0, 0),
        (["random", "half"], [None, None], 0, 0),
    ],
)
def test_who_counts_as_found(
    labels: list[str], verdicts: list[str | None], found: int, suspected: int
) -> None:
    said = tables.contaminated([judged(labels, verdicts)])
    assert sum(s.found for s in said) == found
    assert sum(s.suspected for s in said) == suspected
    assert tables.caught(said) == tables.Counted(found + suspected, len(labels), suspected)


def test_without_a_verdict_nobody_is_convicted() -> None:
    silent = judged(["even", "few-10"], [None, None])
    assert silent.silent
    assert tables.convicted()([silent]) == tables.Counted(0, 2)


def test_an_honest_minority_is_wrong_only_where_it_differs_in_nothing() -> None:
    cohort = judged(["even", "domain-1", "even"], ["minority", "minority", "benign"])
    assert tables.wronged([cohort]) == tables.Counted(1, 2)
    assert not tables.exact(cohort)
    assert tables.exact(judged(["even", "domain-1"], ["benign", "minority"]))


def test_a_set_is_exact_where_all_are_found_and_no_honest_client_is_convicted() -> None:
    assert tables.exact(judged(["even", "random"], ["suspicious", "contaminated"]))
    assert not tables.exact(judged(["even", "random"], ["benign", "suspicious"]))
    assert not tables.exact(judged(["even", "random"], ["contaminated", "contaminated"]))


def test_targets_count_the_cohorts_they_name() -> None:
    own = replace(POOL, own=True)
    said = [
        judged(["even", "half"], ["benign", "suspicious"]),
        judged(["even", "half"], ["benign", "benign"], pool=own),
        judged(["few-10", "even"], ["contaminated", "benign"], condition="few-10"),
    ]
    figures = {t.name: t.cell(said) for t in tables.TARGETS}
    assert figures["half-corrupted, shared A"] == "1.000 (1 of 1, 1 suspicious) yes"
    assert figures["half-corrupted, own A"] == "0.000 (0 of 1) **no**"
    assert figures["- in cohorts unequal by ten"] == "0.500 (1 of 2) **no**"
    assert figures["honest clients contaminated"] == "0.250 (1 of 4) **no**"
    assert figures["thin majorities"] == "-"


def test_tables_keep_the_seeds_apart() -> None:
    held = judged(["even"], ["contaminated"], pool=replace(POOL, seed=HELD_OUT))
    text = tables.targets([judged(["even"], ["benign"]), held])
    assert "| 0.000 (0 of 1) yes | 1.000 (1 of 1) **no** |" in text
    assert "| even | 1 | 0 | 1 | 1 |" in tables.by_condition([held])


def test_a_result_is_used_again_for_the_same_clients_only(tmp_path: Path) -> None:
    cohort = judged(["even", "random"], [None, None]).cohort
    keep(cohort, tmp_path, {"seconds": 1})
    assert load(cohort, tmp_path) is not None
    changed = {**cohort.clients, "0": Client("even-02", True, "even")}
    assert load(replace(cohort, clients=changed), tmp_path) is None


def cell(group: str, clients: list[tuple[str, int, str | None]], **facts: str) -> dict[str, object]:
    """As detection.py writes one: kind, bad and verdict of every client."""
    status = "no_verdict" if clients[0][2] is None else "complete"
    names = {"pool": "p", "what": "w", "init": "own", "kind": "none", "status": status} | facts
    rows = [[kind, bad, verdict, 1.0, ""] for kind, bad, verdict in clients]
    return {**names, "group": group, "clients": rows, "clair": [0.5]}


def test_synthetic_cells_are_counted_as_cohorts_of_here(tmp_path: Path) -> None:
    rows = [
        cell("strong", [("clean", 0, "benign"), ("cipher", 1, "contaminated")]),
        cell("medium", [("clean", 0, "benign"), ("corrupt-50", 1, "suspicious")]),
        cell("thin", [("clean", 0, None), ("cipher", 1, None), ("random", 1, None)]),
        cell("controls", [("clean", 0, "contaminated"), ("short", 0, "minority")]),
        cell("majority", [("clean", 0, "contaminated")]),
    ]
    path = tmp_path / "detection.json"
    path.write_text(json.dumps({"rows": rows}))
    figures = {t.name: t.cell(real_synthetic.cohorts(path)) for t in tables.TARGETS}
    assert figures["honest clients contaminated"] == "0.200 (1 of 5) **no**"
    assert figures["honest clients a minority that they are not"] == "0.000 (0 of 4) yes"
    assert figures["strong kinds, exact sets"] == "1.000 (1 of 1) yes"
    assert figures["half-corrupted, own A"] == "1.000 (1 of 1, 1 suspicious) yes"
    assert figures["thin majorities"] == "0.000 (0 of 2) **no**"


@pytest.mark.parametrize(("status", "verdict"), [("complete", "benign"), ("no_verdict", None)])
def test_a_kept_report_without_a_verdict_has_none_for_anybody(
    tmp_path: Path, status: str, verdict: str | None
) -> None:
    cohort = judged(["even"], [None]).cohort
    clients = [{"id": "0", "verdict": "benign", "score": 0.5}]
    keep(cohort, tmp_path, {"report": {"status": status, "clients": clients}, "seconds": 1})
    said = said_of(cohort, tmp_path)
    assert said is not None
    assert (said.verdicts, said.scores) == ({"0": verdict}, {"0": 0.5})


# What others say, and the curves


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


def test_a_curve_is_the_share_of_each_at_or_above_a_score() -> None:
    honest, bad = real_pictures.curve([3.0, 1.0, 2.0, 0.0], [True, True, False, False])
    assert honest == [0.0, 0.0, 0.5, 0.5, 1.0]
    assert bad == [0.0, 0.5, 0.5, 1.0, 1.0]


# Refinement


def row(condition: str, qualities: dict[str, list[float]], labels: list[str]) -> refined.Row:
    """A row of honest clients with these labels: method -> loss of each."""
    cohort = judged(labels, ["benign"] * len(labels), condition).cohort
    quality = {
        m: {n: (loss, 0.5) for n, loss in zip(cohort.clients, losses, strict=True)}
        for m, losses in qualities.items()
    }
    return refined.Row(cohort, quality)


def test_refinement_is_compared_with_the_better_of_local_and_the_mean_of_the_honest() -> None:
    losses = {"local": [2.0, 2.0], refined.HONEST_MEAN: [1.0, 1.0], "clair": [1.1, 1.3]}
    one = row("few-10", losses, ["even", "few-10"])
    assert refined.to_better(one, "clair") == pytest.approx(1.2)
    assert refined.to_local(one, "clair") == pytest.approx(0.6)
    assert refined.poor_to_rich(one, "clair") == pytest.approx(1.3 / 1.1)


def test_never_above_local_holds_every_cohort_to_it() -> None:
    (never,) = [t for t in refined.TARGETS if t.worst]
    good = row("skew-0.1", {"local": [2.0], "clair": [1.0]}, ["skew-0.1"])
    bad = row("skew-0.1", {"local": [2.0], "clair": [2.1]}, ["skew-0.1"])
    assert never.cell([good]).endswith("yes")
    assert never.cell([good, bad]) == "0.775, worst 1.050, 1 of 2 above **no**"


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
    assert not [*(work / "scratch").glob("*/*")]
    written = {p: p.stat().st_mtime_ns for p in work.rglob("*.json")}
    real.main([*words, "--no-train"])
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*.json")} == written


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
