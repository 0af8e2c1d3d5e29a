"""Rounds on disk: what was sent and came back, who is left out, and what is sent next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clair_cli import from_dict
from clair_cli.errors import UsageError
from clair_cli.integrations.rounds import Outcome, Rounds
from clair_cli.settings import Settings
from tests.helpers.commands import clair
from tests.helpers.messages import (
    BAD,
    CONFIG,
    as_arrays,
    as_files,
    clients,
    dense,
    npy,
    start,
    trained_on,
)

KEY = next(k for k in start() if "lora_B" in k)


def opened(tmp_path: Path, mode: Any = "exclude", **options: Any) -> Rounds:
    """Rounds of the samples, whose first message is out."""
    rounds = Rounds(tmp_path / "rounds", CONFIG, mode, **options)
    sent = as_files(start())
    rounds.send(1, dict.fromkeys(clients(), sent))
    return rounds


def replies() -> dict[str, Any]:
    return {name: as_files(tensors) for name, tensors in clients().items()}


def first_round(tmp_path: Path, mode: Any = "exclude", **options: Any) -> tuple[Rounds, Outcome]:
    rounds = opened(tmp_path, mode, **options)
    return rounds, rounds.judge(1, replies())


def test_the_contaminated_are_left_out_and_the_counts_say_so(tmp_path: Path) -> None:
    _, outcome = first_round(tmp_path)
    assert outcome.left_out.keys() == BAD
    assert all(why.startswith("contaminated") for why in outcome.left_out.values())
    assert outcome.numbers == {
        "benign": 6,
        "suspicious": 0,
        "minority": 0,
        "contaminated": 2,
        "broken": 0,
        "left-out": 2,
        "fallback": 0,
    }


def test_the_command_line_says_the_same_of_what_is_on_disk(tmp_path: Path) -> None:
    first_round(tmp_path)
    here = tmp_path / "rounds" / "round-1"
    written = from_dict(json.loads((here / "report.json").read_text()))
    done = clair("detect", here / "clients", "--since", here / "sent", "-f", "json")
    again = from_dict(json.loads(done.stdout))
    assert done.returncode == 1
    assert again.clients == written.clients
    assert clair("verify", here / "clients").returncode == 0


def test_what_came_is_on_disk_byte_by_byte(tmp_path: Path) -> None:
    first_round(tmp_path)
    folder = tmp_path / "rounds" / "round-1" / "clients"
    for name, tensors in clients().items():
        with np.load(folder / name / "adapter_model.npz") as saved:
            assert {k: saved[k].tobytes() for k in saved} == {
                k: v.tobytes() for k, v in tensors.items()
            }
        assert (folder / name / "adapter_config.json").read_bytes() == CONFIG.read_bytes()


def test_the_record_of_a_round_names_everybody(tmp_path: Path) -> None:
    first_round(tmp_path)
    record = json.loads((tmp_path / "rounds" / "round-1" / "round.json").read_text())
    assert record["mode"] == "exclude"
    assert {c["id"] for c in record["clients"]} == clients().keys()
    assert {c["id"] for c in record["clients"] if c["left_out"]} == BAD


def test_the_gate_of_the_settings_decides_who_is_left_out(tmp_path: Path) -> None:
    _, outcome = first_round(tmp_path, settings=Settings(fail_on="never"))
    assert outcome.left_out == {}
    assert outcome.numbers["contaminated"] == len(BAD)


def test_whoever_was_decided_about_is_not_left_out(tmp_path: Path) -> None:
    included, excluded = sorted(BAD)[0], min(clients().keys() - BAD)
    settings = Settings(include=(included,), exclude=(excluded,))
    _, outcome = first_round(tmp_path, settings=settings)
    assert outcome.left_out.keys() == BAD - {included} | {excluded}


def test_the_ledger_gets_every_round(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    rounds, outcome = first_round(tmp_path, "mean", settings=Settings(history=ledger))
    assert outcome.mean is not None
    rounds.send(2, dict.fromkeys(clients(), outcome.mean))
    later = trained_on(as_arrays(dict(outcome.mean)), list(clients()), BAD)
    second = rounds.judge(2, {n: as_files(t) for n, t in later.items()})
    assert second.report is not None
    assert second.report.history is not None
    evidence = {s.client: s for s in second.report.history.clients}
    assert {name for name, standing in evidence.items() if standing.convicted} == BAD
    done = clair("trend", *sorted((tmp_path / "rounds").glob("round-*/report.json")))
    assert done.returncode == 1
    assert all(name in done.stdout for name in BAD)


def test_the_mean_fits_and_is_that_of_the_benign(tmp_path: Path) -> None:
    rounds, outcome = first_round(tmp_path, "mean")
    assert outcome.mean is not None
    mean = as_arrays(dict(outcome.mean))
    assert {k: v.shape for k, v in mean.items()} == {k: v.shape for k, v in start().items()}
    good = np.mean([dense(t) for n, t in clients().items() if n not in BAD], axis=0)
    lost = np.linalg.norm(dense(mean) - good) / np.linalg.norm(good)
    assert lost == pytest.approx(outcome.numbers["truncation-error"], abs=0.02)
    assert outcome.own == {}
    rounds.send(2, dict.fromkeys(clients(), outcome.mean))
    later = trained_on(mean, list(clients()), BAD)
    second = rounds.judge(2, {n: as_files(t) for n, t in later.items()})
    assert second.left_out.keys() == BAD


def test_without_what_was_sent_a_later_round_hides_them(tmp_path: Path) -> None:
    rounds, outcome = first_round(tmp_path, "mean")
    assert outcome.mean is not None
    rounds.send(2, dict.fromkeys(clients(), outcome.mean))
    later = trained_on(as_arrays(dict(outcome.mean)), list(clients()), BAD)
    rounds.judge(2, {n: as_files(t) for n, t in later.items()})
    done = clair("detect", tmp_path / "rounds" / "round-2" / "clients", "-f", "json")
    verdicts = {c["id"]: c["verdict"] for c in json.loads(done.stdout)["clients"]}
    assert "contaminated" not in verdicts.values()


def test_each_benign_client_goes_on_from_its_own(tmp_path: Path) -> None:
    rounds, outcome = first_round(tmp_path, "refined")
    assert outcome.mean is not None
    assert outcome.own.keys() == clients().keys() - BAD
    next_start = {name: outcome.own.get(name, outcome.mean) for name in clients()}
    rounds.send(2, next_start)
    sent = tmp_path / "rounds" / "round-2" / "sent"
    folders = {p.name for p in sent.iterdir() if p.is_dir()}
    assert folders == {"global", *outcome.own}
    later = {n: trained_on(as_arrays(dict(s)), [n], BAD, seed=7)[n] for n, s in next_start.items()}
    second = rounds.judge(2, {n: as_files(t) for n, t in later.items()})
    assert second.report is not None
    assert not {c.client for c in second.report.clients if c.verdict == "broken"}


HOSTILE = {
    "a path as a name": lambda own: {**own, "../../escaped": npy(np.zeros(3))},
    "no arrays": lambda own: {},
    "another shape": lambda own: {**own, KEY: npy(np.zeros((3, 3), np.float32))},
    "one row for all": lambda own: {**own, KEY: npy(np.zeros((1, 8), np.float32))},
    "Python objects": lambda own: {**own, KEY: npy(np.array([{}]), pickled=True)},
    "text": lambda own: {**own, KEY: npy(np.array(["x"]))},
    "complex": lambda own: {**own, KEY: npy(np.zeros(start()[KEY].shape, np.complex64))},
    "cut short": lambda own: {**own, KEY: own[KEY][:-5]},
    "more than it says": lambda own: {**own, KEY: own[KEY] + b"PK\3\4"},
    "terabytes": lambda own: {
        **own,
        KEY: own[KEY].replace(b"(64, 8), }          ", b"(64, 99999999999), }", 1),
    },
    "no .npy": lambda own: {**own, KEY: b"\x80\x04K\x01."},
    "empty": lambda own: {**own, KEY: b""},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_reply_that_does_not_fit_is_its_senders_affair(tmp_path: Path, what: str) -> None:
    rounds, given = opened(tmp_path), replies()
    hostile = next(n for n in given if n not in BAD)
    given[hostile] = HOSTILE[what](given[hostile])
    outcome = rounds.judge(1, given)
    assert outcome.left_out.keys() == {hostile, *BAD}
    here = tmp_path / "rounds" / "round-1"
    assert not (here / "clients" / hostile).exists()
    assert [p.name for p in tmp_path.iterdir()] == ["rounds"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_broken(tmp_path: Path, value: float) -> None:
    rounds, given = opened(tmp_path), replies()
    hostile = next(n for n in given if n not in BAD)
    own = clients()[hostile]
    given[hostile] = as_files({**own, KEY: own[KEY] * np.float32(value)})
    outcome = rounds.judge(1, given)
    assert outcome.left_out[hostile].startswith("broken")
    assert outcome.numbers["broken"] == 1


def test_two_replies_are_not_judged_and_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    rounds, given = opened(tmp_path), replies()
    own = clients()["client-02"]
    bad = as_files({**own, KEY: own[KEY] * np.float32("nan")})
    outcome = rounds.judge(1, {"client-01": given["client-01"], "client-02": bad})
    assert outcome.report is None
    assert outcome.fallback is not None
    assert outcome.left_out.keys() == {"client-02"}


def test_without_a_majority_nothing_is_decided(tmp_path: Path) -> None:
    rounds = opened(tmp_path, "mean")
    names = list(clients())
    strangers = trained_on(start(), names, frozenset(names))
    outcome = rounds.judge(1, {n: as_files(t) for n, t in strangers.items()})
    assert outcome.report is not None
    assert (outcome.report.status, outcome.fallback) == ("no_verdict", "no verdict")
    assert outcome.mean is None
    assert outcome.left_out == {}


def test_names_that_no_folder_can_have_get_one_of_their_own(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path / "rounds", CONFIG)
    odd = dict(zip(clients(), ["../up", "CON", "a/b", "global", "x", "X", "é", "-rf"], strict=True))
    sent = as_files(start())
    rounds.send(1, {odd[name]: sent for name in clients()})
    outcome = rounds.judge(1, {odd[n]: as_files(t) for n, t in clients().items()})
    assert outcome.left_out.keys() == {odd[name] for name in BAD}
    folders = [p for p in (tmp_path / "rounds" / "round-1" / "clients").iterdir() if p.is_dir()]
    assert len(folders) == len(odd)


def test_only_reports_stay_where_adapters_are_not_kept(tmp_path: Path) -> None:
    first_round(tmp_path, "mean", keep=False)
    left = {p.name for p in (tmp_path / "rounds" / "round-1").iterdir()}
    assert left == {"report.json", "round.json"}


def test_a_folder_of_another_run_is_not_written_to(tmp_path: Path) -> None:
    first_round(tmp_path)
    with pytest.raises(UsageError, match="not empty"):
        Rounds(tmp_path / "rounds", CONFIG)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mode": "median"}, "mode"),
        ({"settings": Settings(since=Path("x"))}, "since"),
        ({"config": Path("nowhere")}, "cannot be read"),
        ({"config": {"r": object}}, "JSON"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_round(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        Rounds(tmp_path / "rounds", **{"config": CONFIG, **options})


def test_what_is_no_adapter_is_refused_before_anybody_trains(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path / "rounds", CONFIG)
    with pytest.raises(UsageError, match="no adapter"):
        rounds.send(1, {"client-01": {"weight": npy(np.zeros((3, 3), np.float32))}})


def test_a_mean_at_one_rank_needs_one_rank(tmp_path: Path) -> None:
    sent = start()
    for key in (KEY, KEY.replace("lora_B", "lora_A")):
        sent[key] = sent[key][:, :4] if "lora_B" in key else sent[key][:4]
    pattern = {KEY.removeprefix("base_model.model.").removesuffix(".lora_B.weight"): 4}
    config = json.loads(CONFIG.read_text()) | {"rank_pattern": pattern}
    files = dict.fromkeys(clients(), as_files(sent))
    Rounds(tmp_path / "one", config).send(1, files)
    with pytest.raises(UsageError, match="2 different ranks"):
        Rounds(tmp_path / "two", config, "mean").send(1, files)
