"""Clients of other modules: compared on what all share with a warning, or broken where asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from clair_cli import Report, Settings, UsageError, Verdict, detect
from tests.helpers.commands import CONTAMINATED, WEIGHTS, clair, samples

HONEST = tuple(f"client-{k:02d}" for k in (1, 2, 4, 5, 7, 8))
ODD = "client-02"
MISSING, EXTRA = "model.layers.1.mlp.up_proj", "model.layers.2.mlp.up_proj"
Tensors = dict[str, Tensor]


def less(tensors: Tensors) -> Tensors:
    return {k: t for k, t in tensors.items() if MISSING not in k}


def more(tensors: Tensors) -> Tensors:
    extra = {k.replace(MISSING, EXTRA): t.clone() for k, t in tensors.items() if MISSING in k}
    assert len(extra) == 2
    return tensors | extra


def few(tensors: Tensors) -> Tensors:
    """6 of 14 modules."""
    return dict(sorted(tensors.items())[:12])


def other(tensors: Tensors) -> Tensors:
    """As many as the others, one of them in another place."""
    return less(more(tensors))


def cohort(folder: Path, *changes: Callable[[Tensors], Tensors]) -> Path:
    """The six honest samples, of which the second and those after it are changed."""
    samples(folder, HONEST)
    for client, change in zip(HONEST[1:], changes, strict=False):
        file = folder / client / WEIGHTS
        save_file(change(load_file(file)), file, {"format": "pt"})
    return folder


def broken(report: Report) -> dict[str, Verdict]:
    return {c.client: c for c in report.clients if c.verdict == "broken"}


SAME = Settings(modules="same", device="cpu", threads=1)
SHARED = Settings(device="cpu", threads=1)


@pytest.mark.parametrize(
    ("change", "named"), [(less, (MISSING,)), (more, (EXTRA,)), (other, (MISSING,))]
)
def test_same_makes_a_client_of_other_modules_broken_and_names_one(
    change: Callable[[Tensors], Tensors], named: tuple[str, ...], tmp_path: Path
) -> None:
    report = detect(cohort(tmp_path / "round", change), SAME)
    assert set(broken(report)) == {ODD}
    (reason,) = broken(report)[ODD].reasons
    assert reason.code == "CLR107"
    assert all(f"{name!r}" in reason.message for name in named)
    assert f"{2 if change is other else 1} in all" in reason.message
    assert {c.verdict for c in report.clients if c.client != ODD} == {"benign"}
    assert len(report.population.modules) == 14  # the others are compared on all that they share
    assert "CLR304" not in {f.code for f in report.population.findings}
    assert report.exit_code == 1


@pytest.mark.parametrize(("change", "shared", "union"), [(less, 13, 14), (more, 14, 15)])
def test_by_default_the_shared_modules_are_compared_and_the_rest_is_said_not_to_be(
    change: Callable[[Tensors], Tensors], shared: int, union: int, tmp_path: Path
) -> None:
    report = detect(cohort(tmp_path / "round", change), SHARED)
    assert SHARED.modules == Settings().modules == "shared"
    assert {c.verdict for c in report.clients} == {"benign"}
    assert len(report.population.modules) == shared
    assert not {MISSING, EXTRA}.issubset({m.name for m in report.population.modules})
    (finding,) = [f for f in report.population.findings if f.code == "CLR304"]
    assert f"compared on the {shared} of {union} that all share" in finding.message
    assert "the others are not judged" in finding.message
    assert report.exit_code == 0


@pytest.mark.parametrize("settings", [SHARED, SAME], ids=["shared", "same"])
def test_a_client_that_shares_less_than_half_is_broken_in_both(
    settings: Settings, tmp_path: Path
) -> None:
    report = detect(cohort(tmp_path / "round", few), settings)
    assert set(broken(report)) == {ODD}
    assert [r.code for r in broken(report)[ODD].reasons] == ["CLR107"]
    assert len(report.population.modules) == 14


@pytest.mark.parametrize("settings", [SHARED, SAME], ids=["shared", "same"])
def test_clients_of_equal_modules_are_judged_the_same_in_both(
    settings: Settings, tmp_path: Path
) -> None:
    report = detect(cohort(tmp_path / "round"), settings)
    assert {c.verdict for c in report.clients} == {"benign"}
    assert report.population.findings == ()


def test_same_goes_by_most_clients(tmp_path: Path) -> None:
    """Five of six train one module less: the sixth is the odd one."""
    report = detect(cohort(tmp_path / "round", *[less] * 5), SAME)
    assert set(broken(report)) == {"client-01"}
    assert f"{MISSING!r} is extra" in broken(report)["client-01"].reasons[0].message
    assert len(report.population.modules) == 13


def test_the_option_reaches_the_gate_and_the_report(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "round", less)
    done = clair("detect", folder, "--modules", "same", "-f", "json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["settings"]["modules"] == "same"
    (client,) = [c for c in report["clients"] if c["verdict"] == "broken"]
    assert client["id"] == ODD
    assert MISSING in client["reasons"][0]["message"]
    assert clair("detect", folder, "-q").returncode == 0


def test_no_other_policy_is_accepted() -> None:
    with pytest.raises(UsageError, match="modules"):
        Settings(modules="any")  # type: ignore[arg-type]


def test_a_module_that_nobody_changed_is_named_left_out_and_written_as_it_was(
    tmp_path: Path,
) -> None:
    folder = samples(tmp_path / "in")
    frozen = "model.layers.0.self_attn.q_proj"
    for client in folder.iterdir():
        found = load_file(client / WEIGHTS)
        name = next(n for n in found if frozen in n and "lora_B" in n)
        found[name].zero_()
        save_file(found, client / WEIGHTS, {"format": "pt"})
    done = clair("refine", folder, "--out", tmp_path / "out", "-f", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (text,) = (f["message"] for f in report["population"]["findings"] if f["code"] == "CLR304")
    assert frozen in text
    assert frozen not in {m["name"] for m in report["population"]["modules"]}
    assert {c["id"] for c in report["clients"] if c["verdict"] == "contaminated"} == CONTAMINATED
    refined = load_file(tmp_path / "out" / "client-01" / WEIGHTS)
    own = load_file(folder / "client-01" / WEIGHTS)
    assert all((refined[n] == own[n]).all() for n in own if frozen in n)


def test_adapters_that_change_nothing_have_no_verdict(tmp_path: Path) -> None:
    folder = samples(tmp_path / "in")
    for client in folder.iterdir():
        found = {n: t * ("lora_A" in n) for n, t in load_file(client / WEIGHTS).items()}
        save_file(found, client / WEIGHTS, {"format": "pt"})
    done = clair("detect", folder)
    assert done.returncode == 3
    assert "zero in every client" in done.stdout
