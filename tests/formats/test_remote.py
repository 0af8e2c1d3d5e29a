"""A cohort in a store is judged as the same cohort in a folder, and its names lead nowhere else."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the extra [remote]")

import fsspec

from clair_cli.errors import UsageError
from clair_cli.formats import remote
from clair_cli.formats.remote import arrive, at_hand, told, url_of
from clair_cli.pipeline import detect, refine
from clair_cli.renderers import RENDERERS
from clair_cli.report import Report
from clair_cli.settings import Settings
from tests.helpers.cohorts import save_cohort

URL = "memory://bucket/round-12"
WEIGHTS = "adapter_model.safetensors"
MOST = Settings().max_file_bytes


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Six clients below URL, the same in a folder, and a scratch folder of the test's own."""
    save_cohort(tmp_path / "round-12", 6, strangers=1)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "round-12"), "/bucket/round-12", recursive=True)
    yield memory
    memory.rm("/bucket", recursive=True)
    assert os.listdir(scratch) == []


def told_of(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RENDERERS["json"](report))
    del found["run"]
    return found


def test_the_report_is_that_of_a_folder_but_for_the_name(store: Any, tmp_path: Path) -> None:
    there, here = told_of(detect(URL)), told_of(detect(tmp_path / "round-12"))
    assert there["inputs"].pop("root") == URL
    here["inputs"].pop("root")
    assert there == here


def test_a_later_round_is_listed_anew(store: Any, tmp_path: Path) -> None:
    assert len(detect(URL).clients) == 6
    store.put(str(tmp_path / "round-12" / "client-1"), "/bucket/round-12/client-7", recursive=True)
    assert len(detect(URL).clients) == 7


def test_a_path_that_was_a_url_is_one_again(store: Any) -> None:
    assert url_of(Path(URL)) == URL
    assert detect(Path(URL)).inputs["root"] == URL


def test_refined_adapters_are_the_same_bytes(store: Any, tmp_path: Path) -> None:
    (tmp_path / "round-12" / "client-1" / "README.md").write_text("of client 1")
    store.pipe("/bucket/round-12/client-1/README.md", b"of client 1")
    for name, inputs in (("there", URL), ("here", tmp_path / "round-12")):
        refine(inputs, tmp_path / name, Settings(write_global=True))
    files = [p.relative_to(tmp_path / "here") for p in (tmp_path / "here").rglob("*")]
    files = [p for p in files if p.suffix in (".safetensors", ".md") or "config" in p.name]
    assert len(files) == (5 + 1) * 2 + 2
    for file in files:
        assert (tmp_path / "there" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def test_the_mean_that_clair_wrote_beside_its_adapters_is_no_client(
    store: Any, tmp_path: Path
) -> None:
    refine(tmp_path / "round-12", tmp_path / "out", Settings(write_global=True))
    store.put(str(tmp_path / "out"), "/bucket/out", recursive=True)
    report = detect("memory://bucket/out")
    assert [f.code for f in report.population.findings if f.code == "CLR118"] == ["CLR118"]
    assert "global" not in {c.client for c in report.clients}


def test_every_object_is_read_once_and_others_never(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pipe("/bucket/round-12/client-1/optimizer.pt", b"x" * 100)
    store.pipe("/bucket/round-12/client-1/pytorch_model.bin", b"x" * 100)
    read: list[str] = []
    real = type(store)._open

    def opening(self: Any, path: str, *rest: Any, **more: Any) -> Any:
        read.append(path)
        return real(self, path, *rest, **more)

    monkeypatch.setattr(type(store), "_open", opening)
    detect(URL)
    names = ("adapter_config.json", WEIGHTS)
    assert sorted(read) == [f"/bucket/round-12/client-{k}/{n}" for k in range(1, 7) for n in names]


@pytest.mark.parametrize(
    "name",
    ["../evil", "client-1/../../evil", "/evil", "client-1//evil", "./evil", "a\0b", "x" * 256],
)
def test_a_name_that_is_no_path_below_is_told_of_and_not_read(
    name: str, store: Any, tmp_path: Path
) -> None:
    store.store["/bucket/round-12/" + name] = store.store[f"/bucket/round-12/client-1/{WEIGHTS}"]
    before = set(tmp_path.rglob("*"))
    report = detect(URL)
    (finding,) = [f for f in report.population.findings if f.code == "CLR110"]
    assert repr(name[:200]) in finding.message
    assert len(report.clients) == 6
    assert set(tmp_path.rglob("*")) == before


def test_many_such_names_are_counted(store: Any) -> None:
    for k in range(9):
        store.store[f"/bucket/round-12/../{k}"] = store.store[
            f"/bucket/round-12/client-1/{WEIGHTS}"
        ]
    found = [f.message for f in detect(URL).population.findings if f.code == "CLR110"]
    assert len(found) == 6
    assert found[-1].startswith("4 more objects")


def test_an_object_that_is_too_large_is_not_fetched(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    real = remote._fetch
    monkeypatch.setattr(
        remote, "_fetch", lambda o, path, size: (fetched.append(path.name), real(o, path, size))[1]
    )
    store.pipe(f"/bucket/round-12/client-3/{WEIGHTS}", b"x" * 20_000)
    report = detect(URL, Settings(max_file_bytes=10_000))
    (broken,) = [c for c in report.clients if c.verdict == "broken"]
    assert (broken.client, broken.reasons[0].code) == ("client-3", "CLR111")
    assert fetched.count(WEIGHTS) == 5


def test_an_object_that_changed_after_the_list_costs_its_client_alone(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = remote._fetch

    def changes(origin: Any, path: Path, size: int) -> None:
        if path.parent.name == "client-2" and path.name == WEIGHTS:
            store.pipe(f"/bucket/round-12/client-2/{WEIGHTS}", b"another")
        real(origin, path, size)

    monkeypatch.setattr(remote, "_fetch", changes)
    report = detect(URL)
    (broken,) = [c for c in report.clients if c.verdict == "broken"]
    assert (broken.client, broken.reasons[0].code) == ("client-2", "CLR112")


def test_an_object_that_cannot_be_read_costs_its_client_alone(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(store)._open

    def refuses(self: Any, path: str, *rest: Any, **more: Any) -> Any:
        if "client-4" in path:
            raise PermissionError("GET https://user:secret@host/x?X-Amz-Signature=secret: 403")
        return real(self, path, *rest, **more)

    monkeypatch.setattr(type(store), "_open", refuses)
    report = detect(URL)
    (broken,) = [c for c in report.clients if c.verdict == "broken"]
    assert (broken.client, broken.reasons[0].code) == ("client-4", "CLR101")
    assert "https://host/x?... 403" in broken.reasons[0].message
    assert "secret" not in RENDERERS["json"](report)


def test_what_is_fetched_again_must_be_what_was_hashed(store: Any) -> None:
    from clair_cli.errors import ChangedWhileRead
    from clair_cli.formats.files import read_range
    from clair_cli.opening import open_entries

    with at_hand(Path(URL), MOST) as place:
        adapter = open_entries(place, Settings()).adapters[0]
        file = adapter.files[WEIGHTS]
        first = read_range(file, 0, file.size)
        file.path.unlink()
        assert read_range(file, 0, file.size) == first
        file.path.unlink()
        store.pipe(f"/bucket/round-12/client-1/{WEIGHTS}", bytes(file.size))
        with pytest.raises(ChangedWhileRead):
            read_range(file, 0, 8)


def test_the_scratch_folder_is_the_users_alone(store: Any) -> None:
    with at_hand(Path(URL), MOST) as place:
        file = place.folder / "client-1" / WEIGHTS
        arrive(file)
        assert stat.S_IMODE(os.lstat(place.folder).st_mode) == 0o700
        assert stat.S_IMODE(os.lstat(file).st_mode) == 0o600
        place.folder.chmod(0o777)
        with pytest.raises(Exception, match="somebody else's folder"):
            arrive(place.folder / "client-2" / WEIGHTS)
        place.folder.chmod(0o700)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nobody/here", "no object below it"),
        (f"{URL}/client-1/{WEIGHTS}", "is one object"),
        ("nostore://bucket/x", "cannot be opened"),
        ("zip://x::memory://bucket/a.zip", "several stores"),
    ],
)
def test_what_cannot_be_listed_is_a_usage_error(url: str, said: str, store: Any) -> None:
    with pytest.raises(UsageError, match=said):
        detect(url)


@pytest.mark.parametrize("url", ["s3://KEY:SECRET@bucket/x", "https://host/x?token=SECRET"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="belong into the environment") as caught:
        detect(url)
    assert "SECRET" not in str(caught.value)
    assert "KEY" not in str(caught.value)


def test_errors_are_told_without_signatures() -> None:
    said = told(OSError("https://me:pass@host/a?X-Amz-Signature=abc failed"))
    assert said == "OSError: https://host/a?... failed"


def test_messages_name_the_url_and_not_the_scratch_folder(store: Any) -> None:
    with pytest.raises(UsageError, match="is itself one adapter") as caught:
        detect(f"{URL}/client-1")
    assert f"{URL}/client-1" in str(caught.value)
    assert remote.PREFIX not in str(caught.value)
    store.pipe("/bucket/empty/notes.txt", b"x")
    why = detect("memory://bucket/empty").population.findings[-1]
    assert why.code == "CLR301"
    assert why.message.startswith("memory://bucket/empty: no client")


def test_a_folder_that_is_called_like_a_url_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_cohort(tmp_path / "memory:" / "bucket", 4)
    assert detect("memory:/bucket").inputs["root"] == "memory:/bucket"
