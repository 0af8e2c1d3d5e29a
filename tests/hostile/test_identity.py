"""Names as uploads choose them: nobody vanishes, is taken for another, or decides about OUT."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from clair_cli.formats import discover
from clair_cli.formats.discovery import client_ids
from tests.helpers.adapters import write_folder
from tests.helpers.cohorts import save_cohort, save_dense, truths
from tests.helpers.commands import CONFIG, WEIGHTS, fingerprint, quick

CLIENTS = [f"client-{k}" for k in range(1, 5)]


@pytest.fixture
def round_(tmp_path: Path) -> Path:
    save_cohort(tmp_path / "in", len(CLIENTS))
    return tmp_path / "in"


def refined(round_: Path, *options: object, code: int = 0) -> dict[str, Any]:
    """The report of `clair refine`, after which every entry is accounted for."""
    before, out = fingerprint(round_), round_.parent / "out"
    done = quick(round_.parent, "refine", round_, "--out", out, *options)
    assert done.returncode == code, done.stderr
    assert fingerprint(round_) == before
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    ids = [c["id"] for c in report["clients"]]
    assert len(set(ids)) == len(ids) == report["counts"]["clients"]
    assert sorted(c["id"] for c in report["inputs"]["clients"]) == sorted(ids)
    paths = [c["path"] for c in report["refinement"]["clients"]]
    assert sorted({p.name for p in out.iterdir() if p.is_dir()} - {"global"}) == sorted(paths)
    assert quick(round_.parent, "verify", out).returncode == 0
    return report


def add(round_: Path, *names: str) -> None:
    """Honest clients under these names."""
    updates = truths(len(CLIENTS) + len(names))[len(CLIENTS) :]
    for name, update in zip(names, updates, strict=True):
        save_dense(round_ / name, update)


def flat(round_: Path, name: str, number: int) -> None:
    """An honest client in one file, in the container that its name says."""
    folder = save_dense(round_.parent / "made", truths(len(CLIENTS) + number)[-1])
    if name.endswith(".npz"):
        import numpy as np

        tensors = {k: t.numpy() for k, t in load_file(folder / WEIGHTS).items()}
        np.savez(round_ / name, **tensors)
    else:
        (folder / WEIGHTS).rename(round_ / name)
    (folder / CONFIG).replace(round_ / CONFIG)


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    return {c["id"]: c["verdict"] for c in report["clients"]}


# --- one id, one folder


def of_one_short_hash() -> tuple[str, str]:
    """Two names whose sha256 begin with the same 8 hex digits."""
    seen: dict[str, str] = {}
    for number in count():
        name = f"ü{number}"
        start = hashlib.sha256(name.encode()).hexdigest()[:8]
        if start in seen:
            return seen[start], name
        seen[start] = name
    raise AssertionError


def test_a_name_that_looks_like_anothers_folder_costs_nobody_anything(round_: Path) -> None:
    digest = hashlib.sha256("Müller".encode()).hexdigest()
    names = ["Müller", f"client-{digest[:8]}", f"client-{digest}", f"Client-{digest.upper()}"]
    names += [*of_one_short_hash(), "selection.json", "Report.json", "STATEMENT.dsse.json", "nul.x"]
    add(round_, *names)
    report = refined(round_)
    assert verdicts(report).keys() == {*CLIENTS, *names}
    assert set(verdicts(report).values()) == {"benign"}
    by_id = {c["id"]: c["path"] for c in report["refinement"]["clients"]}
    assert [by_id[c] for c in CLIENTS] == CLIENTS
    assert by_id[f"client-{digest[:8]}"] == f"client-{digest[:8]}"
    assert by_id["Müller"] == f"client-{digest}"


def test_a_client_called_as_a_file_of_select_is_chosen_for_like_any_other(round_: Path) -> None:
    add(round_, "selection.json", "manifest.json")
    done = quick(
        round_.parent, "refine", round_, "--out", round_.parent / "out", "--path", "0,1", "-q"
    )
    assert done.returncode == 0, done.stderr
    chosen = round_.parent / "chosen"
    score = ("--eval", "echo {adapter} 1", "--out", chosen)
    assert quick(round_.parent, "select", round_.parent / "out", *score).returncode == 0
    assert len([p for p in chosen.iterdir() if p.is_dir()]) == len(CLIENTS) + 2
    assert (chosen / "selection.json").is_file()


def test_a_folder_does_not_depend_on_who_is_refined(round_: Path) -> None:
    """Else a contaminated `X` would decide whether `x` is found where it was before."""
    add(round_, "x", "X")
    report = refined(round_, "--exclude", "X")
    by_id = {c["id"]: c["path"] for c in report["refinement"]["clients"]}
    assert "X" not in by_id
    assert by_id["x"] == f"client-{hashlib.sha256(b'x').hexdigest()}"


ALIKE = ("client-9.npz", "client-9.safetensors", "client-9.safetensors.safetensors")


def test_entries_of_one_name_are_told_apart_and_each_says_which_others_clash(round_: Path) -> None:
    for number, name in enumerate(ALIKE, start=1):
        flat(round_, name, number)
    report = refined(round_)
    assert verdicts(report).keys() == {*CLIENTS, *ALIKE}
    assert len(report["inputs"]["clients"]) == len(CLIENTS) + 3
    said = {c["id"]: [r["message"] for r in c["reasons"] if r["code"] == "CLR119"]
            for c in report["clients"]}  # fmt: skip
    assert {c for c, messages in said.items() if messages} == {*ALIKE}
    for name in ALIKE:
        others = " ".join(said[name])
        assert name in others
        assert sum(other in others for other in ALIKE) >= 2


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a.safetensors", "a.npz"),
        ("a.safetensors", "a.safetensors.npz", "a.npz", "a.safetensors.safetensors.npz"),
        ("a.npz", "a.npz.npz", "a.npz.npz.npz", "a"),
        ("a.bin", "a.pt", "a.pt.bin"),
        ("\u00e9.npz", "e\u0301.npz", "\u00e9"),
    ],
)
def test_every_entry_has_an_id_of_its_own(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    found = [s.client for s in discover(tmp_path)]
    assert len(set(found)) == len(found) == len(names)


ENDINGS = st.lists(st.sampled_from([".npz", ".safetensors", ".bin", ".pt", ".x"]), max_size=3)
ENTRIES = st.builds(lambda stem, more: stem + "".join(more), st.sampled_from("aAb"), ENDINGS)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(ENTRIES, unique=True, max_size=8))
def test_no_two_of_any_entries_have_one_id(names: list[str]) -> None:
    found = client_ids(Path("nowhere"), names)
    assert [*found] == names
    assert len(set(found.values())) == len(names)
    assert all(name.startswith(client) for name, client in found.items())


def test_a_folder_called_as_a_pickle_does_not_vanish_beside_a_file(round_: Path) -> None:
    add(round_, "alice.pt", "bob.safetensors")
    flat(round_, "alice.safetensors", 3)
    (round_ / "bob.bin").write_bytes(b"x")
    report = refined(round_)
    found = verdicts(report)
    assert found.keys() == {*CLIENTS, "alice.pt", "alice", "bob.safetensors", "bob"}
    assert {c for c, v in found.items() if v != "benign"} == {"bob"}


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_model-00001-of-00002.safetensors", "blobs"])
def test_one_entry_called_as_an_adapters_own_file_does_not_end_the_round(
    name: str, round_: Path
) -> None:
    if name == "blobs":
        add(round_, "blobs", "snapshots")
    else:
        flat(round_, name, 1)
    report = refined(round_)
    assert {c for c, v in verdicts(report).items() if v == "benign"} >= {*CLIENTS}
    assert len(report["clients"]) == len(CLIENTS) + (2 if name == "blobs" else 1)


# --- links and special files


def linked(target: str) -> Any:
    def make(place: Path) -> None:
        place.symlink_to(target)

    return make


def listening(place: Path) -> None:
    here = os.getcwd()
    os.chdir(place.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(place.name)
    finally:
        os.chdir(here)


ODD = {
    "a link to nowhere": linked("nowhere"),
    "a link to nothing in /": linked("/no-such-thing"),
    "a link to /": linked("/"),
    "a link to ..": linked(".."),
    "a link to .": linked("."),
    "a loop": linked("odd"),
    "a device": linked("/dev/zero"),
    "a link beside OUT": linked("../beside"),
    "a pipe": os.mkfifo,
    "a socket": listening,
}


@pytest.mark.parametrize("what", ODD)
def test_a_link_or_a_special_file_is_one_broken_client_and_decides_nothing(
    what: str, round_: Path
) -> None:
    (round_.parent / "beside").write_bytes(b"x")
    ODD[what](round_ / "odd")
    report_file = round_.parent / "report.txt"
    report = refined(round_, "-o", f"text={report_file}")
    assert verdicts(report) == dict.fromkeys(CLIENTS, "benign") | {"odd": "broken"}
    (reason,) = next(c["reasons"] for c in report["clients"] if c["id"] == "odd")
    assert reason["code"] in ("CLR101", "CLR110")
    assert report_file.exists()


@pytest.mark.parametrize("what", ["a link to nowhere", "a link to /", "a link to .."])
def test_where_links_are_followed_those_that_are_no_client_decide_nothing(
    what: str, round_: Path
) -> None:
    ODD[what](round_ / "odd")
    report = refined(round_, "--follow-symlinks", "-o", f"text={round_.parent / 'report.txt'}")
    assert verdicts(report).keys() >= {*CLIENTS}


def test_out_is_not_written_into_a_client_that_a_followed_link_leads_to(round_: Path) -> None:
    (round_ / "client-4").rename(round_.parent / "elsewhere")
    (round_ / "client-4").symlink_to("../elsewhere")
    out = round_.parent / "elsewhere" / "out"
    done = quick(round_.parent, "refine", round_, "--out", out, "--follow-symlinks")
    assert (done.returncode, "'client-4'" in done.stderr) == (2, True)
    assert not out.exists()


# --- what clair itself would write


def test_a_planted_manifest_makes_no_client_vanish(round_: Path) -> None:
    add(round_, "global")
    for data in (b'{"tool": {"name": "clair"}, "files": []}', manifest(round_, "global")):
        (round_ / "manifest.json").write_bytes(data)
        report = refined(round_, "--overwrite", "--global")
        assert verdicts(report) == dict.fromkeys([*CLIENTS, "global"], "benign")


def test_a_planted_manifest_of_files_without_end_costs_nothing(round_: Path) -> None:
    """Eight tebibytes that a manifest vouches for are not hashed before anybody is judged."""
    add(round_, "global")
    with open(round_ / "global" / "endless", "wb") as file:
        file.truncate(2**43)
    files = [p for p in round_.rglob("*") if p.is_file()]
    for chosen in (files, [round_ / "global" / "endless"]):
        listed = [
            {"name": p.relative_to(round_).as_posix(), "size": p.stat().st_size, "sha256": "0" * 64}
            for p in chosen
        ]
        data = {"schema_version": "1.0", "tool": {"name": "clair", "version": "1"}, "files": listed}
        (round_ / "manifest.json").write_text(json.dumps(data))
        done = quick(round_.parent, "detect", round_, "-f", "json")
        assert verdicts(json.loads(done.stdout)) == dict.fromkeys([*CLIENTS, "global"], "benign")


def manifest(folder: Path, *clients: str) -> bytes:
    """One that is right about these clients, and says nothing of the others."""
    files = [
        {
            "name": p.relative_to(folder).as_posix(),
            "size": p.stat().st_size,
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
        }
        for client in clients
        for p in (folder / client).iterdir()
    ]
    return json.dumps({"tool": {"name": "clair", "version": "1"}, "files": files}).encode()


def test_the_mean_of_a_whole_output_is_no_client_and_is_named(round_: Path) -> None:
    refined(round_, "--global", "--strength", 0)
    again = round_.parent / "again"
    shutil.move(round_.parent / "out", again / "in")
    report = refined(again / "in", "--strength", 0)
    assert verdicts(report) == dict.fromkeys(CLIENTS, "benign")
    (said,) = [f["message"] for f in report["population"]["findings"] if f["code"] == "CLR118"]
    assert said.startswith("global: ")
    shutil.rmtree(again / "out")
    (again / "in" / "client-2" / CONFIG).write_bytes(
        (again / "in" / "client-2" / CONFIG).read_bytes() + b" "
    )
    assert verdicts(refined(again / "in", "--strength", 0)).keys() == {*CLIENTS, "global"}


def test_a_whole_adapter_is_still_refused_with_the_way_to_do_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one")
    for below in ("checkpoint-1", "checkpoint-2", "checkpoint-3", "rep-1", "runs"):
        write_folder(folder / below)
    done = quick(tmp_path, "detect", folder)
    assert (done.returncode, "itself one adapter" in done.stderr) == (2, True)
