"""`--since`: a later round judged and refined by what each client changed, as a user runs it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.adapters import tiny_llama
from tests.helpers.commands import (
    CLIENTS,
    CONTAMINATED,
    WEIGHTS,
    change_config,
    fingerprint,
    forked,
    samples,
    verdicts,
)
from tests.helpers.rounds import config, deltas, save_round, save_sum

HONEST = sorted({*CLIENTS} - CONTAMINATED)


def clair(*args: object) -> CompletedProcess[str]:
    """The command, forked from a process that has torch loaded."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = forked(*args, stdout=out, stderr=err, timeout=120)
        return CompletedProcess(args, code, out.read_text(), err.read_text())


def detect(*args: object) -> tuple[int, dict[str, Any]]:
    done = clair("detect", *args, "-f", "json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def found(report: dict[str, Any], verdict: str) -> set[str]:
    return {c for c, v in verdicts(report).items() if v == verdict}


def codes(report: dict[str, Any]) -> set[str]:
    return {r["code"] for r in report["population"]["findings"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """first/, whose mean of the benign is sent/global/, and round/: that and a tenth of each client's
    own, two of which are contaminated."""
    folder = tmp_path_factory.mktemp("rounds")
    first = samples(folder / "first")
    done = clair("refine", first, "--out", folder / "sent", "--global", "-q")
    assert done.returncode == 0, done.stderr
    save_round(first, folder / "sent" / "global", folder / "round")
    return folder


@pytest.fixture
def own(place: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(place, tmp_path / "own"))


# --- judged


def test_contamination_that_hides_behind_what_was_sent_is_convicted(place: Path) -> None:
    before = fingerprint(place / "sent")
    code, report = detect(place / "round")
    assert code == 0
    assert found(report, "benign") == {*CLIENTS}
    assert "CLR307" in codes(report)
    code, report = detect(place / "round", "--since", place / "sent" / "global")
    assert code == 1
    assert found(report, "contaminated") == CONTAMINATED
    assert found(report, "benign") == {*HONEST}
    assert "CLR307" not in codes(report)
    assert fingerprint(place / "sent") == before


def test_the_scores_are_those_of_the_changes(place: Path) -> None:
    """What is a tenth of the first round is judged as the first round is."""
    _, first = detect(place / "first")
    _, later = detect(place / "round", "--since", place / "sent" / "global")
    scores = {c["id"]: c["score"] for c in first["clients"]}
    assert scores.keys() == {*CLIENTS}
    for client in later["clients"]:
        assert client["score"] == pytest.approx(scores[client["id"]], abs=0.1)


def test_a_clean_later_round_accuses_nobody(place: Path, own: Path) -> None:
    for name in CONTAMINATED:
        shutil.rmtree(own / "round" / name)
    code, report = detect(own / "round", "--since", own / "sent" / "global")
    assert code == 0
    assert found(report, "benign") == {*HONEST}
    assert codes(report).isdisjoint({"CLR307", "CLR308"})


def test_what_was_sent_before_the_first_round_is_nothing(place: Path, own: Path) -> None:
    """PEFT begins with B = 0: a loop can give it from the first round on."""
    start = save_sum([(0.0, own / "first" / "client-01")], own / "start")
    _, without = detect(own / "first")
    _, since = detect(own / "first", "--since", start)
    assert verdicts(since) == verdicts(without)


def test_a_later_round_can_be_made_an_error(place: Path, tmp_path: Path) -> None:
    code, report = detect(place / "round", "--later-round", "refuse")
    assert code == 3
    assert report["status"] == "no_verdict"
    assert report["population"]["findings"][-1]["code"] == "CLR307"
    assert {*verdicts(report).values()} == {None}
    out = tmp_path / "out"
    done = clair("refine", place / "round", "--out", out, "--later-round", "refuse")
    assert (done.returncode, out.exists()) == (3, False)
    assert "give it with --since" in done.stdout
    code, report = detect(place / "first", "--later-round", "refuse")
    assert code == 1
    assert "CLR307" not in codes(report)


def test_the_report_says_since_what(place: Path) -> None:
    sent = place / "sent" / "global"
    done = clair("detect", place / "round", "--since", sent)
    assert done.stdout.startswith(f"8 clients, changes since {sent}, 14 modules")
    _, report = detect(place / "round", "--since", sent)
    assert report["inputs"]["since"]["root"] == str(sent)
    (one,) = report["inputs"]["since"]["adapters"]
    assert one["id"] == "global"
    assert {f["name"] for f in one["files"]} == {"adapter_config.json", WEIGHTS}


# --- who was not trained from what was sent


def stranger(own: Path, name: str = "client-02") -> Path:
    """An adapter of the same shapes that was trained from nothing."""
    path = own / "round" / name
    draw = torch.Generator().manual_seed(5)
    tensors = load_file(path / WEIGHTS)
    fresh = {k: torch.randn(t.shape, generator=draw) * t.std() for k, t in tensors.items()}
    save_file(fresh, path / WEIGHTS, metadata={"format": "pt"})
    return path


def only_broken(report: dict[str, Any], name: str) -> str:
    """What is said of the only broken client; the verdicts on the others stand."""
    assert found(report, "broken") == {name}
    assert found(report, "contaminated") == CONTAMINATED
    (client,) = [c for c in report["clients"] if c["id"] == name]
    assert [r["code"] for r in client["reasons"]] == ["CLR123"]
    return str(client["reasons"][0]["message"])


def test_who_did_not_start_from_what_was_sent_is_named(own: Path) -> None:
    stranger(own)
    _, report = detect(own / "round", "--since", own / "sent" / "global")
    assert "% of what it was sent" in only_broken(report, "client-02")


def test_who_gives_back_what_it_was_sent_has_changed_nothing(own: Path) -> None:
    shutil.rmtree(own / "round" / "client-02")
    shutil.copytree(own / "sent" / "global", own / "round" / "client-02")
    _, report = detect(own / "round", "--since", own / "sent" / "global")
    assert verdicts(report)["client-02"] in ("suspicious", "contaminated")
    (client,) = [c for c in report["clients"] if c["id"] == "client-02"]
    assert {m["norm"] for m in client["modules"]} == {0.0}
    assert found(report, "contaminated") >= CONTAMINATED


def test_another_base_and_other_modules_are_named(own: Path) -> None:
    sent, client = own / "sent" / "global", own / "round" / "client-04"
    change_config(client, base_model_name_or_path="org/other")
    _, report = detect(own / "round", "--since", sent)
    assert "base model is 'org/other'" in only_broken(report, "client-04")
    shutil.rmtree(client)
    save_sum([(1.0, sent), (0.1, own / "first" / "client-04")], client)
    tensors = load_file(client / WEIGHTS)
    left = {k: t for k, t in tensors.items() if "q_proj" in k}
    save_file(left, client / WEIGHTS, metadata={"format": "pt"})
    change_config(client, target_modules=["q_proj"])
    _, report = detect(own / "round", "--since", sent)
    assert "adapts 2 of the 14 modules that it was sent" in only_broken(report, "client-04")


def test_the_adapter_of_another_federation_gives_no_verdict(own: Path) -> None:
    sent = own / "sent" / "global"
    change_config(sent, base_model_name_or_path="org/other")
    code, report = detect(own / "round", "--since", sent)
    assert code == 3
    assert found(report, "broken") == {*CLIENTS}
    assert report["population"]["findings"][-1]["code"] == "CLR308"


def test_an_adapter_that_the_clients_do_not_hold_gives_no_verdict(own: Path) -> None:
    other = shutil.copytree(own / "round" / "client-01", own / "round" / "x")
    stranger(own, "x")
    shutil.move(other, own / "other")
    code, report = detect(own / "round", "--since", own / "other")
    assert code == 3
    assert report["population"]["findings"][-1]["code"] == "CLR308"


# --- hostile, or a slip


def refused(done: CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("clair: --since: ") or "--since" in done.stderr
    return done.stderr


def test_what_cannot_have_been_sent_is_refused(own: Path) -> None:
    sent = own / "sent" / "global"
    assert "no such adapter" in refused(clair("detect", own / "round", "--since", own / "no"))
    assert "is the folder" in refused(clair("detect", own / "round", "--since", own / "round"))
    (own / "here").symlink_to(own / "round")
    assert "is the folder" in refused(clair("detect", own / "round", "--since", own / "here"))
    (own / "empty").mkdir()
    assert "no" in refused(clair("detect", own / "round", "--since", own / "empty"))
    (own / "loop").symlink_to(own / "loop")
    assert "no such adapter" in refused(clair("detect", own / "round", "--since", own / "loop"))
    tensors = load_file(sent / WEIGHTS)
    tensors[next(iter(tensors))][0, 0] = float("nan")
    save_file(tensors, sent / WEIGHTS)
    assert "holds 1 NaN" in refused(clair("detect", own / "round", "--since", sent))
    (sent / WEIGHTS).unlink()
    (sent / WEIGHTS).symlink_to(own / "first" / "client-01" / WEIGHTS)
    assert "a link that leaves" in refused(clair("detect", own / "round", "--since", sent))
    (sent / WEIGHTS).unlink()
    (sent / "adapter_model.bin").write_bytes(b"\x80\x04.")
    assert "pickle" in refused(clair("detect", own / "round", "--since", sent))


def test_a_link_that_the_operator_gives_is_followed(own: Path) -> None:
    (own / "latest").symlink_to(own / "sent" / "global")
    _, report = detect(own / "round", "--since", own / "latest")
    assert found(report, "contaminated") == CONTAMINATED


def test_what_was_sent_is_no_client_where_it_lies_among_them(own: Path) -> None:
    shutil.copytree(own / "sent" / "global", own / "round" / "server")
    _, report = detect(own / "round", "--since", own / "round" / "server")
    assert {*verdicts(report)} == {*CLIENTS}
    assert found(report, "contaminated") == CONTAMINATED
    assert "CLR122" in codes(report)


def test_nothing_is_written_into_what_was_sent(own: Path) -> None:
    sent, since = own / "sent" / "global", ("--since", own / "sent" / "global")
    before = fingerprint(own)
    for out in (sent, sent / "out"):
        assert clair("refine", own / "round", "--out", out, "--overwrite", *since).returncode == 2
    done = clair("refine", own / "round", "--out", own / "sent", "--overwrite", *since)
    assert (done.returncode, "contains what --since names" in done.stderr) == (2, True)
    assert clair("detect", own / "round", "-o", f"json={sent}/r.json", *since).returncode == 2
    assert fingerprint(own) == before


# --- refined


def refine(place: Path, out: Path, *options: object) -> dict[str, Any]:
    done = clair("refine", place, "--out", out, "--global", *options, "-q")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


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
