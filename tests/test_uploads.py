"""One upload against a cohort: the joint verdict, from a folder or from a reference file alone."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from clair_cli import Settings, detect, pipeline
from clair_cli.cohort import Sketching
from clair_cli.errors import OutputError, UsageError
from clair_cli.formats.reference import open_reference
from clair_cli.report import Report
from clair_cli.results import Checked
from clair_cli.sketching import kind_of
from tests.helpers.adapters import write_folder
from tests.helpers.cohorts import drawn, save_cohort, save_dense, truths
from tests.helpers.commands import change_config, fingerprint
from tests.helpers.sketches import KIND, sketch

SETTINGS = Settings()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clients, the last of them a stranger."""
    folder = tmp_path_factory.mktemp("cohort") / "round"
    save_cohort(folder, 6, strangers=1)
    return folder


@pytest.fixture
def rest(cohort: Path, tmp_path: Path) -> Path:
    """The cohort without client-5 and the stranger."""
    shutil.copytree(cohort, tmp_path / "rest")
    for name in ("client-5", "client-6"):
        shutil.rmtree(tmp_path / "rest" / name)
    return tmp_path / "rest"


def fit(folder: Path, file: Path, kind: Sketching | None = KIND) -> Report:
    report, found = pipeline.fit(folder, file, SETTINGS, kind)
    assert (found is not None) == file.exists()
    return report


def check(upload: Path, against: Path, **more: Any) -> Checked:
    return pipeline.check(upload, against, Settings(), **more)[1]


def test_who_is_left_out_and_checked_gets_the_verdict_of_all_together(
    cohort: Path, tmp_path: Path
) -> None:
    joint = {c.client: c for c in fit(cohort, tmp_path / "all.clair").clients}
    for name in ("client-2", "client-6"):
        others = tmp_path / name
        shutil.copytree(cohort, others)
        shutil.rmtree(others / name)
        fit(others, tmp_path / "rest.clair")
        shutil.rmtree(others)  # the file is all that is needed
        found = check(cohort / name, tmp_path / "rest.clair")
        assert found.verdict == joint[name]
        assert found.members == 5
        assert found.exit_code == (name == "client-6")


def test_against_a_folder_it_is_as_if_the_upload_lay_in_it(
    cohort: Path, rest: Path, tmp_path: Path
) -> None:
    shutil.copytree(cohort / "client-6", tmp_path / "client-6")
    found = check(tmp_path / "client-6", rest)
    shutil.move(tmp_path / "client-6", rest)
    (expected,) = (c for c in detect(rest).clients if c.client == "client-6")
    assert found.verdict == expected
    assert found.sha256 is None


def test_an_upload_stands_for_the_member_of_its_name_and_of_its_file(
    cohort: Path, rest: Path, tmp_path: Path
) -> None:
    fit(rest, tmp_path / "r.clair")
    (tmp_path / "new").mkdir()
    shutil.copytree(cohort / "client-5", tmp_path / "new" / "client-2")
    again = check(tmp_path / "new" / "client-2", tmp_path / "r.clair")
    assert (again.in_place_of, again.members) == (("client-2",), 3)
    shutil.copytree(cohort / "client-3", tmp_path / "new" / "renamed")
    for upload in (
        tmp_path / "new" / "renamed",
        sketch(tmp_path / "new" / "renamed", tmp_path / "new" / "other.safetensors"),
    ):
        same = check(upload, tmp_path / "r.clair")
        assert (same.in_place_of, same.members) == (("client-3",), 3)
        assert same.verdict.verdict == "benign"
    assert check(cohort / "client-5", tmp_path / "r.clair").in_place_of == ()


def diverge(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load(file.read_bytes())
    name = min(tensors)
    tensors[name] = np.full_like(tensors[name], np.nan)
    file.write_bytes(save(tensors, {"format": "pt"}))


BROKEN: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: change_config(f, base_model_name_or_path="other/model"), "CLR106"),
    (lambda f: (f / "adapter_config.json").unlink(), "CLR105"),
    (lambda f: (f / "adapter_model.safetensors").write_bytes(b"torn"), "CLR102"),
    (lambda f: save_dense(f, [u[:, :10] for u in truths(1)[0]]), "CLR104"),
    (diverge, "CLR103"),
]


@pytest.mark.parametrize(("spoil", "code"), BROKEN)
def test_what_is_broken_or_not_comparable_fails_and_says_why(
    spoil: Callable[[Path], Any], code: str, cohort: Path, rest: Path, tmp_path: Path
) -> None:
    for client in rest.iterdir():
        change_config(client, base_model_name_or_path="some/base")
    fit(rest, tmp_path / "r.clair")
    upload = tmp_path / "new"
    if code != "CLR104":
        shutil.copytree(cohort / "client-5", upload)
    spoil(upload)
    before = fingerprint(tmp_path / "rest"), (tmp_path / "r.clair").read_bytes()
    found = check(upload, tmp_path / "r.clair", update=True)
    assert (found.verdict.verdict, found.exit_code) == ("broken", 1)
    assert found.verdict.reasons[0].code == code
    assert not found.updated
    assert (fingerprint(tmp_path / "rest"), (tmp_path / "r.clair").read_bytes()) == before


def test_a_sketch_of_another_size_cannot_be_compared(
    cohort: Path, rest: Path, tmp_path: Path
) -> None:
    fit(rest, tmp_path / "r.clair")
    upload = sketch(cohort / "client-5", tmp_path / "c.safetensors", Sketching(8, 0))
    found = check(upload, tmp_path / "r.clair")
    assert (found.exit_code, found.verdict.reasons[0].code) == (1, "CLR124")
    assert (
        check(
            sketch(cohort / "client-5", tmp_path / "d.safetensors"), tmp_path / "r.clair"
        ).verdict.verdict
        == "benign"
    )


def test_small_tensors_trained_whole_are_in_the_reference(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from torch import from_numpy

    heads = drawn(5, 1, 8, 24) + 0.3 * drawn(6, 6, 8, 24)
    heads[5] *= -1
    save_cohort(tmp_path / "a", 6)
    for k, head in enumerate(heads):
        folder = tmp_path / "a" / f"client-{k + 1}"
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors["base_model.model.score.weight"] = from_numpy(head).float()
        config = json.loads((folder / "adapter_config.json").read_text())
        shutil.rmtree(folder)
        write_folder(folder, tensors, config | {"modules_to_save": ["score"]})
    joint = {c.client: c for c in fit(tmp_path / "a", tmp_path / "all.clair").clients}
    shutil.move(tmp_path / "a" / "client-6", tmp_path / "client-6")
    fit(tmp_path / "a", tmp_path / "r.clair")
    found = check(tmp_path / "client-6", tmp_path / "r.clair")
    assert found.verdict == joint["client-6"]
    assert found.verdict.verdict == "contaminated"
    assert "CLR210" in {r.code for r in found.verdict.reasons}


# --- update


def members(file: Path) -> list[str]:
    return [a.client for a in open_reference(file, SETTINGS).adapters]


def test_an_update_is_the_reference_of_all(cohort: Path, rest: Path, tmp_path: Path) -> None:
    fit(rest, tmp_path / "r.clair")
    assert check(cohort / "client-5", tmp_path / "r.clair", update=True).updated
    shutil.copytree(cohort / "client-5", rest / "client-5")
    fit(rest, tmp_path / "all.clair")
    one, other = (load((tmp_path / name).read_bytes()) for name in ("r.clair", "all.clair"))
    for tensors in (one, other):
        del tensors["report"]
        head = json.loads(tensors.pop("clients").tobytes())
        assert [m["client"] for m in head["members"]] == [f"client-{k}" for k in range(1, 6)]
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor, other[name])
    same = (open_reference(tmp_path / n, SETTINGS).report for n in ("r.clair", "all.clair"))
    assert len({tuple((c.client, c.verdict, c.score) for c in r.clients) for r in same}) == 1


def test_who_fails_the_gate_is_not_put_in(cohort: Path, rest: Path, tmp_path: Path) -> None:
    fit(rest, tmp_path / "r.clair")
    before = (tmp_path / "r.clair").read_bytes()
    found = check(cohort / "client-6", tmp_path / "r.clair", update=True)
    assert (found.exit_code, found.updated) == (1, False)
    assert (tmp_path / "r.clair").read_bytes() == before
    with pytest.raises(UsageError, match="is a folder"):
        check(cohort / "client-5", rest, update=True)


def test_of_two_writers_none_is_lost(rest: Path, tmp_path: Path) -> None:
    fit(rest, tmp_path / "r.clair")
    updates = truths(9)
    for k in (7, 8):
        save_dense(tmp_path / f"new-{k}", updates[k])
    failed: list[BaseException] = []

    def one(k: int) -> None:
        try:
            assert check(tmp_path / f"new-{k}", tmp_path / "r.clair", update=True).updated
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(k,)) for k in (7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {"new-7", "new-8"} < set(members(tmp_path / "r.clair"))
    assert {p.name for p in tmp_path.iterdir()} == {"rest", "r.clair", "new-7", "new-8"}


def test_a_disk_that_fills_up_leaves_the_reference_as_it_was(
    cohort: Path, rest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clair_cli.output import publish

    fit(rest, tmp_path / "r.clair")
    before = (tmp_path / "r.clair").read_bytes()
    real = publish.NewFile.write

    def full(self: publish.NewFile, begin: int, data: bytes) -> None:
        if begin > 5000:
            raise OutputError("no space left")
        real(self, begin, data)

    monkeypatch.setattr(publish.NewFile, "write", full)
    with pytest.raises(OutputError, match="no space"):
        check(cohort / "client-5", tmp_path / "r.clair", update=True)
    assert (tmp_path / "r.clair").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"rest", "r.clair"}


def test_without_a_verdict_nothing_is_written(rest: Path, tmp_path: Path) -> None:
    for name in ("client-1", "client-2"):
        shutil.rmtree(rest / name)
    report, found = pipeline.fit(rest, tmp_path / "r.clair", SETTINGS, KIND)
    assert (report.status, found) == ("no_verdict", None)
    assert {p.name for p in tmp_path.iterdir()} == {"rest"}


# --- a reference file may be anybody's


def contents(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def changed(tensors: dict[str, Any]) -> None:
        head = json.loads(tensors["clients"].tobytes())
        change(head)
        tensors["clients"] = np.frombuffer(json.dumps(head).encode(), np.uint8)

    return changed


HOSTILE: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (contents(lambda h: h.update(version=9)), "version 9"),
    (contents(lambda h: h.update(size=10**9)), "sizes are"),
    (contents(lambda h: h["members"][0].update(client="../evil")), "folder name"),
    (contents(lambda h: h["members"][1].update(client="client-1")), "two clients"),
    (contents(lambda h: h["members"][0].update(traits={"a": {}})), "no words"),
    (contents(lambda h: h["members"].pop()), "not of the clients"),
    (contents(lambda h: h["updates"][0].update(clients=[0, 0, 1, 2])), "not of the clients"),
    (contents(lambda h: h["updates"][0].update(clients=[0, 1, 2, 99])), "not of the clients"),
    (contents(lambda h: h["updates"][0].update(norms=[1.0])), "one rank and norm"),
    (contents(lambda h: h["updates"][0].update(norms=[-1.0] * 4)), "the norm -1.0"),
    (contents(lambda h: h["updates"][0].update(d_out=2**40)), "limit|none of"),
    (contents(lambda h: h["updates"].pop()), "nobody's"),
    (contents(lambda h: h.update(updates="x")), "expected"),
    (lambda t: t.update(report=np.frombuffer(b"[1]", np.uint8)), "report"),
    (lambda t: t.update(report=np.frombuffer(b'{"schema_version": "9"}', np.uint8)), "report"),
    (lambda t: t.pop("report"), "no bytes 'report'"),
    (lambda t: t.pop("0.left"), "'0.left' is missing"),
    (lambda t: t.update({"0.left": t["0.left"].astype(np.float32)}), "F32"),
]


@pytest.fixture(scope="module")
def fitted(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("fitted")
    shutil.copytree(cohort, folder / "round")
    for name in ("client-5", "client-6"):
        shutil.rmtree(folder / "round" / name)
    fit(folder / "round", folder / "r.clair")
    return (folder / "r.clair").read_bytes()


@pytest.mark.parametrize(("spoil", "text"), HOSTILE)
def test_what_is_no_reference_is_refused(
    spoil: Callable[[dict[str, Any]], None], text: str, fitted: bytes, tmp_path: Path
) -> None:
    tensors = load(fitted)
    spoil(tensors)
    (tmp_path / "r.clair").write_bytes(save(tensors, {"format": "clair-reference"}))
    with pytest.raises(UsageError, match=text) as error:
        open_reference(tmp_path / "r.clair", SETTINGS)
    assert "\n" not in str(error.value)


def test_other_files_are_refused_and_spoiled_members_are_left_out(
    fitted: bytes, cohort: Path, tmp_path: Path
) -> None:
    for name, data in (("r.txt", fitted), ("a.clair", b""), ("b.clair", fitted[:-3])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match="no reference that can be used"):
            open_reference(tmp_path / name, SETTINGS)
    tensors = load(fitted)
    tensors["0.left"] = tensors["0.left"].copy()
    tensors["0.left"][1] = np.nan
    (tmp_path / "c.clair").write_bytes(save(tensors, {"format": "clair-reference"}))
    found = check(cohort / "client-6", tmp_path / "c.clair")
    assert (found.members, found.verdict.verdict) == (3, "contaminated")
    assert found.findings[0].code == "CLR103"
    assert "client-2 is left out" in found.findings[0].message


@pytest.mark.parametrize(
    ("modules", "size"), [(4, 256), (64, 256), (65, 128), (128, 128), (224, 64)]
)
def test_a_cohort_of_few_modules_has_larger_sketches(modules: int, size: int) -> None:
    @dataclass
    class Clients:
        updates: dict[str, None]
        sketch: Sketching | None = None

    many: Any = [Clients(dict.fromkeys(map(str, range(modules))))]
    assert kind_of(many) == Sketching(size, 0)
    assert kind_of(many, Sketching(32, 5)) == Sketching(32, 5)
    sketched: Any = [*many, Clients({}, Sketching(16, 1))]
    assert kind_of(sketched) == Sketching(16, 1)
