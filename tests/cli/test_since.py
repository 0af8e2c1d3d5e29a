"""`--since`: a later round judged by what each client changed, as a user runs it."""

from __future__ import annotations

import shutil
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.adapters import PREFIX, write_folder
from tests.helpers.commands import (
    CLIENTS,
    CONTAMINATED,
    WEIGHTS,
    change_config,
    fingerprint,
    verdicts,
)
from tests.helpers.lm_adapters import LAYERS, MLX_CONFIG, write_mlx
from tests.helpers.lm_adapters import cohort as mlx_cohort
from tests.helpers.rounds import HONEST, clair, codes, detect, found, make_rounds, save_sum


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rounds(tmp_path_factory.mktemp("rounds"))


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
    assert done.stdout.startswith(f"8 clients, since {sent}, 14 modules")
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


def test_what_was_sent_may_be_of_another_format(tmp_path: Path) -> None:
    """PEFT's at scale 2 for clients of mlx-lm at scale 20, of another rank."""
    draw = torch.Generator().manual_seed(3)
    sent = {m: (normal(draw, o, 3), normal(draw, 3, i)) for m, (o, i) in LAYERS.items()}
    tensors = {f"{PREFIX}{m}.lora_B.weight": up for m, (up, _) in sent.items()}
    tensors |= {f"{PREFIX}{m}.lora_A.weight": down for m, (_, down) in sent.items()}
    said = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": "all-linear"}
    write_folder(tmp_path / "sent", tensors, said)
    options = MLX_CONFIG["lora_parameters"] | {"rank": 5}
    for k, own in enumerate(mlx_cohort(6), start=1):
        tensors = {}
        for module, (up, down) in own.items():
            was_up, was_down = sent[module]
            tensors[f"{module}.lora_b"] = torch.cat([was_up / 10, up / 200], 1).T.contiguous()
            tensors[f"{module}.lora_a"] = torch.cat([was_down, down]).T.contiguous()
        place = tmp_path / "round" / f"client-{k}"
        write_mlx(place, tensors, MLX_CONFIG | {"lora_parameters": options, "num_layers": 3})
    _, without = detect(tmp_path / "round")
    assert found(without, "contaminated") == set()
    _, report = detect(tmp_path / "round", "--since", tmp_path / "sent")
    assert found(report, "contaminated") == {"client-6"}
    assert len(found(report, "benign")) == 5


def normal(draw: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=draw)
