"""Whoever makes refining fail costs itself its adapter; the others get what they would get without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clair_cli import Settings, formats, refine
from clair_cli.errors import ChangedWhileRead, Malformed, NoVerdict, OutputError, Unstorable
from clair_cli.formats.peft.lora import PeftWriter
from clair_cli.output.manifest import verify
from clair_cli.refinement import labels, module, plan, refiner, replicates, sparing, whole
from clair_cli.refinement.blame import how
from clair_cli.report import Report
from tests.helpers.commands import SAMPLES, clair
from tests.hostile import costly
from tests.hostile.test_isolation import FAILURES as ALL
from tests.hostile.test_isolation import ids

BAD = "client-02"
FAILURES = ALL[2:6]
GLOBAL = Settings(write_global=True, rank="auto")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(SAMPLES, tmp_path / "round")
    return tmp_path / "round"


def written(out: Path) -> dict[str, bytes]:
    """The adapters, without what says who they were made from."""
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name not in ("report.json", "manifest.json", "clair.json")
    }


def excluded(folder: Path, settings: Settings) -> dict[str, bytes]:
    """What the others get without the bad client."""
    out = folder.parent / "excluded"
    refine(folder, out, replace(settings, exclude=(BAD,)))
    return written(out)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same of the samples, by default."""
    return excluded(
        shutil.copytree(SAMPLES, tmp_path_factory.mktemp("samples") / "round"), Settings()
    )


def assert_spared(report: Report, out: Path, wanted: dict[str, bytes], said: str) -> None:
    """The bad client has no adapter and a reason of one line, and all others have what they should."""
    assert wanted
    assert written(out) == wanted
    assert not list(out.rglob(BAD))
    assert verify(out) == []
    found = {c.client: c for c in report.clients}
    (reason,) = [r for r in found[BAD].reasons if r.code == "CLR121"]
    assert found[BAD].verdict == "benign"
    assert reason.message.startswith("gets no refined adapter: ")
    assert said in reason.message
    assert reason.message == " ".join(reason.message.split())
    assert not [
        r for c in report.clients if c.client != BAD for r in c.reasons if r.code == "CLR121"
    ]
    assert report.refinement is not None
    assert f"{BAD} {reason.message}" in report.refinement.warnings


def failing(real: Callable[..., Any], error: Exception, after: int = 0) -> Callable[..., Any]:
    """`real`, but for the bad client from some call on."""
    seen = []

    def fails(adapter: Any, *rest: Any, **named: Any) -> Any:
        if adapter.client == BAD:
            seen.append(adapter)
            if len(seen) > after:
                raise error
        return real(adapter, *rest, **named)

    return fails


@pytest.mark.parametrize("error", FAILURES, ids=ids)
def test_a_failure_in_reading_a_module_is_one_clients(
    error: Exception,
    others: dict[str, bytes],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refiner, "read_estimate", failing(refiner.read_estimate, error, after=3))
    report = refine(folder, tmp_path / "out")
    assert_spared(report, tmp_path / "out", others, type(error).__name__)


@pytest.mark.parametrize("settings", [GLOBAL, Settings(path=(0.5, 1.0))], ids=["global", "path"])
@pytest.mark.parametrize("after", [0, 7])
def test_so_it_is_while_ranks_are_measured_and_with_several_strengths(
    settings: Settings, after: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = excluded(folder, settings)
    read = failing(refiner.read_estimate, MemoryError(), after)
    monkeypatch.setattr(refiner, "read_estimate", read)
    report = refine(folder, tmp_path / "out", settings)
    assert_spared(report, tmp_path / "out", wanted, "MemoryError")


@pytest.mark.parametrize("error", FAILURES, ids=ids)
def test_a_failure_in_a_module_of_all_is_of_the_client_without_whom_there_is_none(
    error: Exception,
    others: dict[str, bytes],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = module.ModuleRefiner.refined
    adapter = formats.open_adapter(folder / BAD)
    name = sorted(adapter.updates)[1]
    marked = formats.norm(adapter, name) ** 2

    def fails(self: module.ModuleRefiner, *rest: Any) -> Any:
        energies = torch.tensor(self.squared)
        if bool(((energies - marked).abs() < 1e-5 * marked).any()):
            raise error
        return real(self, *rest)

    monkeypatch.setattr(module.ModuleRefiner, "refined", fails)
    report = refine(folder, tmp_path / "out")
    assert_spared(report, tmp_path / "out", others, type(error).__name__)


def test_a_mean_that_is_not_finite_is_of_the_client_without_whom_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, real = excluded(folder, Settings()), refiner.read_estimate

    def spoiled(adapter: Any, *rest: Any) -> Any:
        found = real(adapter, *rest)
        if adapter.client == BAD:
            found.up[0, 0] = float("nan")
        return found

    monkeypatch.setattr(refiner, "read_estimate", spoiled)
    report = refine(folder, tmp_path / "out")
    assert_spared(report, tmp_path / "out", wanted, "is not finite")


@pytest.mark.parametrize("error", FAILURES, ids=ids)
@pytest.mark.parametrize("step", ["full_matrices", "noise_of"])
def test_a_failure_in_planning_is_of_the_client_without_whom_there_is_none(
    step: str,
    error: Exception,
    others: dict[str, bytes],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = getattr(plan, step)

    def fails(who: Any, *rest: Any) -> Any:
        if BAD in {a.client for a in getattr(who, "clients", who)}:
            raise error
        return real(who, *rest)

    monkeypatch.setattr(plan, step, fails)
    report = refine(folder, tmp_path / "out")
    assert_spared(report, tmp_path / "out", others, type(error).__name__)


def test_a_failure_in_reading_replicates_and_heads_is_one_clients(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    for k, client in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
        draw = torch.Generator().manual_seed(k)
        path = client / "adapter_model.safetensors"
        head = torch.ones(3, 8) + 0.1 * torch.randn(3, 8, generator=draw)
        save_file(load_file(path) | {"base_model.model.score.weight": head}, path)
        for rep in (1, 2):
            own = client / f"rep-{rep}"
            shutil.copytree(client, own, ignore=shutil.ignore_patterns("rep-*"))
            noisy = {
                n: t * (1 + 0.1 * torch.randn(t.shape, generator=draw))
                for n, t in load_file(path).items()
            }
            save_file(noisy, own / path.name)
    wanted, places = excluded(folder, Settings()), []
    for place, name in (
        (replicates, "_compared"),
        (labels, "_head"),
        (whole, "read_full_estimate"),
    ):
        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(place, name, failing(getattr(place, name), MemoryError()))
            report = refine(folder, out)
        assert_spared(report, out, wanted, "MemoryError")
        places.append(out)
    assert len(places) == 3


@pytest.mark.parametrize(
    "error", [*FAILURES[:2], Unstorable("not finite in F16"), Malformed("checksum")], ids=ids
)
@pytest.mark.parametrize("step", ["__init__", "put", "close"])
def test_a_failure_in_writing_is_one_clients_who_still_counts(
    step: str, error: Exception, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refine(folder, tmp_path / "whole")
    wanted = {n: d for n, d in written(tmp_path / "whole").items() if not n.startswith(f"{BAD}/")}
    real = getattr(PeftWriter, step)

    def fails(self: PeftWriter, *given: Any) -> Any:
        if BAD in (getattr(given[0], "client", "") if step == "__init__" else self.folder.name):
            raise error
        return real(self, *given)

    monkeypatch.setattr(PeftWriter, step, fails)
    report = refine(folder, tmp_path / "out")
    assert_spared(report, tmp_path / "out", wanted, how(error))


@pytest.mark.parametrize("step", ["__init__", "put", "close"])
def test_who_cannot_hold_the_mean_lends_it_no_form_and_loses_nothing(
    step: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(write_global=True)
    before = refine(folder, tmp_path / "whole", settings).refinement
    assert before is not None
    assert before.mean is not None
    real, template = getattr(PeftWriter, step), before.mean.template

    def fails(self: PeftWriter, *given: Any) -> Any:
        adapter, place = given[:2] if step == "__init__" else (self.adapter, self.folder)
        if place.name == "global" and adapter.client == template:
            raise MemoryError
        return real(self, *given)

    monkeypatch.setattr(PeftWriter, step, fails)
    done = refine(folder, tmp_path / "out", settings).refinement
    assert done is not None
    assert done.mean is not None
    assert done.mean.template != template
    assert [c.client for c in done.clients] == [c.client for c in before.clients]

    def none(self: PeftWriter, *given: Any) -> Any:
        if (given[1] if step == "__init__" else self.folder).name == "global":
            raise MemoryError
        return real(self, *given)

    monkeypatch.setattr(PeftWriter, step, none)
    done = refine(folder, tmp_path / "none", settings).refinement
    assert done is not None
    assert done.mean is None
    assert not (tmp_path / "none" / "global").exists()
    assert [w for w in done.warnings if w.startswith("global/ is not written")]
    assert [c.client for c in done.clients] == [c.client for c in before.clients]


@pytest.mark.parametrize(
    ("place", "name"),
    [(refiner, "read_estimate"), (plan, "full_matrices"), (module.ModuleRefiner, "refined")],
    ids=["reading", "planning", "computing"],
)
def test_what_fails_with_everybody_is_clairs_own_failure(
    place: Any, name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise IndexError("of clair's own")

    monkeypatch.setattr(place, name, fails)
    with pytest.raises(IndexError, match="of clair's own"):
        refine(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ChangedWhileRead("changed"), NoVerdict), (OutputError("full disk"), OutputError)],
)
@pytest.mark.parametrize("step", ["put", "close"])
def test_an_input_that_changed_and_a_disk_that_is_full_are_nobodys(
    step: str,
    error: Exception,
    raised: type[Exception],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(self: PeftWriter, *_: Any) -> Any:
        raise error

    monkeypatch.setattr(PeftWriter, step, fails)
    with pytest.raises(raised):
        refine(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_who_fail_in_different_modules_cost_one_more_pass(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a pass for each of them."""
    bad = {"client-01": 1, "client-02": 4, "client-03": 7}
    seen, passes, real = [], [], refiner.read_estimate

    def fails(adapter: Any, name: str, *rest: Any) -> Any:
        seen.append((adapter.client, name))
        if [n for c, n in seen if c == adapter.client].index(name) == bad.get(adapter.client):
            raise MemoryError
        return real(adapter, name, *rest)

    def counted(*given: Any) -> Any:
        passes.append(given)
        return write(*given)

    write = sparing.write_refined
    monkeypatch.setattr(refiner, "read_estimate", fails)
    monkeypatch.setattr(sparing, "write_refined", counted)
    done = refine(folder, tmp_path / "out").refinement
    assert done is not None
    assert done.clients
    assert not bad.keys() & {c.client for c in done.clients}
    assert len(passes) == 2


def test_a_damaged_array_that_is_only_passed_through_costs_its_client_alone(tmp_path: Path) -> None:
    names = costly.save_honest(tmp_path / "round")
    client = tmp_path / "round" / BAD
    client.mkdir()
    extra = np.full(100, 0x5A5A, "<i4")
    np.savez(
        client / "weights.npz", extra=extra, **{k: t.numpy() for k, t in costly.honest(9).items()}
    )
    data = (client / "weights.npz").read_bytes()
    at = data.index(extra.tobytes())
    (client / "weights.npz").write_bytes(data[:at] + b"\0" + data[at + 1 :])
    (client / "adapter_config.json").write_text(json.dumps(costly.config()))
    done = clair("refine", tmp_path / "round", "--out", tmp_path / "out", "-f", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [c["id"] for c in report["refinement"]["clients"]] == names
    (bad,) = [c for c in report["clients"] if c["id"] == BAD]
    assert bad["verdict"] == "benign"
    (said,) = [r["message"] for r in bad["reasons"] if r["code"] == "CLR121"]
    assert "checksum" in said
    assert not (tmp_path / "out" / BAD).exists()
    assert clair("verify", tmp_path / "out").returncode == 0
