"""OUT is absent, the old output, or the new one, whole: whatever fails, at whatever step."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clair_cli.errors import ClairError, OutputError, UsageError
from clair_cli.output import publish
from clair_cli.output.publish import check_apart, check_output, staged, verify, write_bytes

FILES = {"report.json": b"{}", "a/adapter.bin": b"x" * 5000, "b/adapter.bin": b""}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "in" / "client").mkdir(parents=True)
    (tmp_path / "in" / "client" / "x").write_bytes(b"input")
    return tmp_path / "in"


def publish_files(
    out: Path, inputs: Path, files: dict[str, bytes] = FILES, overwrite: bool = False
) -> None:
    with staged(out, overwrite, inputs, "1.2.3") as folder:
        for name, data in files.items():
            if not (folder / name).parent.exists():
                os.mkdir((folder / name).parent)
            write_bytes(folder / name, data)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def payload(folder: Path) -> dict[str, bytes]:
    return {k: v for k, v in tree(folder).items() if k != "manifest.json"}


def test_what_was_written_is_published_whole_with_a_manifest(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish_files(out, inputs)
    assert payload(out) == FILES
    assert verify(out) == []
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["tool"] == {"name": "clair", "version": "1.2.3"}
    assert [f["name"] for f in manifest["files"]] == sorted(FILES)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_an_output_takes_no_other_output_into_itself(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish_files(out, inputs)
    for inner in (out / "sub", out / "client" / "sub"):
        inner.parent.mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="inside an output of clair"):
            check_output(inner, inputs)
    check_output(tmp_path / "other", inputs)
    (out / "manifest.json").unlink()
    check_output(out / "sub", inputs)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(mask: int, inputs: Path, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        publish_files(tmp_path / "out", inputs)
    finally:
        os.umask(before)
    paths = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert len(paths) == 7
    for path in paths:
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~mask, path


def test_verify_names_every_difference(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish_files(out, inputs)
    (out / "a/adapter.bin").write_bytes(b"y" * 5000)
    (out / "b/adapter.bin").unlink()
    (out / "b/new").write_bytes(b"")
    assert verify(out) == [
        "a/adapter.bin: changed since it was written",
        "b/adapter.bin: missing",
        "b/new: not in the manifest",
    ]
    for data in (b"", b"[]", b'{"tool": {"name": "other"}, "files": []}', b'{"files": [1]}'):
        (out / "manifest.json").write_bytes(data)
        assert verify(out) == ["manifest.json: missing, or not of clair"]


def test_an_unusable_out_is_a_usage_error_before_anything_is_read(
    inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "alias").symlink_to(inputs)
    (tmp_path / "broken").symlink_to("nowhere")
    cases = {
        inputs: "is the input folder",
        inputs / "out": "inside the input",
        inputs / "client" / "out": "inside the input",
        tmp_path / "alias" / "out": "inside the input",
        tmp_path / "folder" / ".." / "in" / "out": "inside the input",
        tmp_path: "contains the input",
        tmp_path / "broken": "is a link",
        tmp_path / "file": "exists",
        tmp_path / "folder": "exists",
        tmp_path / "none" / "out": "parent folder does not exist",
        tmp_path / "file" / "out": "parent folder does not exist",
        tmp_path / "folder" / "..": "name of a new folder",
        tmp_path / ("n" * 300): "cannot be used",
        tmp_path / "nul\0": "cannot be used",
    }
    before = tree(tmp_path)
    for out, words in cases.items():
        with pytest.raises(UsageError, match=words) as caught:
            check_output(out, inputs)
        assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match=words), staged(out, False, inputs, "1"):
            raise AssertionError("staged")
    check_output(tmp_path / "new", inputs)
    assert tree(tmp_path) == before


def test_overwrite_takes_only_a_folder_that_clair_wrote(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish_files(out, inputs)
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_bytes(b"precious")
    cases = {"link": "is a link", "other": "no manifest.json of clair", "in": "is the input"}
    for name, words in cases.items():
        with pytest.raises(UsageError, match=words):
            publish_files(tmp_path / name, inputs, overwrite=True)
        with pytest.raises(UsageError) as caught:  # nobody is sent to an option that will not do it
            publish_files(tmp_path / name, inputs)
        assert "--overwrite" not in str(caught.value)
    with pytest.raises(UsageError, match="pass --overwrite"):
        publish_files(out, inputs)
    publish_files(out, inputs, {"new": b"1"}, overwrite=True)
    assert payload(out) == {"new": b"1"}
    assert verify(out) == []
    assert payload(tmp_path / "other") == {"x": b"precious"}
    publish_files(tmp_path / "fresh", inputs, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["fresh", "in", "link", "other", "out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, OSError])
def test_any_exception_removes_the_staging_folder(
    error: type[BaseException], inputs: Path, tmp_path: Path
) -> None:
    seen: list[str] = []

    def write_and_fail() -> None:
        with staged(tmp_path / "out", False, inputs, "1") as folder:
            write_bytes(folder / "x", b"1")
            seen.extend(os.listdir(tmp_path))
            raise error()

    with pytest.raises(OutputError if error is OSError else error):
        write_and_fail()
    assert [n.startswith(".out.clair-") for n in sorted(seen)] == [True, False]
    assert os.listdir(tmp_path) == ["in"]


@contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, nth: int, error: BaseException
) -> Iterator[list[int]]:
    """The `nth` call of os.`name` fails; the list counts the calls."""
    real: Callable[..., Any] = getattr(os, name)
    calls = [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth:
            raise error
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, call)
        yield calls


ERRORS = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=["ENOSPC", "interrupt"])
@pytest.mark.parametrize("name", ["open", "write", "fsync", "mkdir", "rename"])
def test_a_failure_of_any_call_leaves_the_old_state_or_the_new_one(
    name: str,
    error: BaseException,
    overwrite: bool,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, old = tmp_path / "out", {"old": b"old"}
    monkeypatch.setattr(publish, "_system_rename", lambda *_: errno.ENOSYS)
    failures = 0
    for nth in range(1, 100):
        if overwrite and not out.exists():
            publish_files(out, inputs, old)
        raised: BaseException | None = None
        with failing(monkeypatch, name, nth, error) as calls:
            try:
                publish_files(out, inputs, overwrite=overwrite)
            except BaseException as caught:
                raised = caught
        if calls[0] < nth:
            break
        failures += raised is not None
        assert raised is None or isinstance(raised, ClairError | KeyboardInterrupt)
        if isinstance(raised, ClairError):
            assert os.strerror(errno.ENOSPC) in str(raised)
        if out.exists():
            assert payload(out) in (FILES, old if overwrite else FILES)
            assert verify(out) == []
        if isinstance(raised, ClairError):
            assert payload(out) == old if overwrite else not out.exists()
        if raised is not None:
            assert [n for n in os.listdir(tmp_path) if ".clair-" in n] == []
        assert tree(inputs) == {"client/x": b"input"}
        for left in tmp_path.glob("*out*"):
            subprocess.run(["rm", "-rf", str(left)], check=True)
    assert 1 <= failures < 99
    assert payload(out) == FILES
    assert verify(out) == []


def test_every_file_and_folder_is_synced_before_it_is_published(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    needed: set[int] = set()
    sync, rename = os.fsync, publish.rename_new

    def record(fd: int) -> None:
        sync(fd)
        synced.add(os.fstat(fd).st_ino)

    def check(source: Path, target: Path) -> None:
        needed.update(p.stat().st_ino for p in [source, *source.rglob("*")])
        assert needed <= synced
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(publish, "rename_new", check)
    publish_files(tmp_path / "out", inputs)
    assert len(needed) == 7
    assert tmp_path.stat().st_ino in synced


def test_the_old_output_is_kept_aside_when_it_cannot_be_put_back(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    publish_files(out, inputs, {"old": b"old"})
    rename, calls = publish.rename_new, [0]

    def only_first(source: Path, target: Path) -> None:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(publish, "_system_rename", lambda *_: errno.EINVAL)
    monkeypatch.setattr(publish, "rename_new", only_first)
    with pytest.raises(OutputError, match="Input/output error"):
        publish_files(out, inputs, overwrite=True)
    (aside,) = tmp_path.glob(".out.clair-*")
    assert payload(aside) == {"old": b"old"}


def test_the_system_call_never_replaces_an_empty_folder(inputs: Path, tmp_path: Path) -> None:
    for fallback in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if fallback:
                patch.setattr(publish, "_system_rename", lambda *_: errno.EINVAL)
            (tmp_path / "source").mkdir(exist_ok=True)
            (tmp_path / "target").mkdir(exist_ok=True)
            with pytest.raises(FileExistsError):
                publish.rename_new(tmp_path / "source", tmp_path / "target")
            assert (tmp_path / "source").exists()
            publish.rename_new(tmp_path / "source", tmp_path / "moved")
            os.rmdir(tmp_path / "moved")


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_at_out_meanwhile_is_not_replaced(
    kind: str, overwrite: bool, inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def write_and_meet() -> None:
        with staged(out, overwrite, inputs, "1") as folder:
            write_bytes(folder / "x", b"1")
            if kind == "folder":
                out.mkdir()
            elif kind == "file":
                out.write_bytes(b"other")
            else:
                out.symlink_to("nowhere")

    with pytest.raises(OutputError, match=r"out.*(exists|no manifest)"):
        write_and_meet()
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    assert kind != "file" or out.read_bytes() == b"other"
    assert kind != "folder" or os.listdir(out) == []


def test_of_concurrent_publishers_exactly_one_wins(inputs: Path, tmp_path: Path) -> None:
    count = 8
    barrier = threading.Barrier(count)
    outcomes: list[int | Exception] = []

    def run(number: int) -> None:
        try:
            with staged(tmp_path / "out", False, inputs, "1") as folder:
                write_bytes(folder / "who", str(number).encode())
                barrier.wait()
            outcomes.append(number)
        except OutputError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [o for o in outcomes if isinstance(o, int)]
    assert len(outcomes) == count
    assert len(winners) == 1
    assert payload(tmp_path / "out") == {"who": str(winners[0]).encode()}
    assert verify(tmp_path / "out") == []
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from clair_cli.output.publish import staged, write_bytes
name, nth, out, inputs = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
real, calls = getattr(os, name), [0]
def call(*args, **kwargs):
    calls[0] += 1
    if calls[0] == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
setattr(os, name, call)
with staged(out, True, inputs, "1") as folder:
    write_bytes(folder / "new", b"new")
"""


@pytest.mark.parametrize("name", ["fsync", "write"])
def test_after_a_kill_out_is_absent_or_whole_and_a_rerun_succeeds(
    name: str, inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    publish_files(out, inputs, {"old": b"old"})
    killed = 0
    for nth in range(1, 20):
        command = [sys.executable, "-c", KILLED, name, str(nth), str(out), str(inputs)]
        done = subprocess.run(command, capture_output=True, check=False)
        if out.exists():
            assert verify(out) == []
            assert payload(out) in ({"old": b"old"}, {"new": b"new"})
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        killed += 1
    assert 0 < killed < 19
    assert payload(out) == {"new": b"new"}


def test_a_full_disk_is_an_output_error_in_the_words_of_the_system(
    inputs: Path, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            publish_files(tmp_path / "out", inputs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["in"]


def test_write_bytes_never_overwrites_and_says_why(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"1")
    with pytest.raises(OutputError, match="File exists"):
        write_bytes(tmp_path / "x", b"2")
    (tmp_path / "link").symlink_to("y")
    with pytest.raises(OutputError, match="File exists"):
        write_bytes(tmp_path / "link", b"2")
    with pytest.raises(OutputError, match="No such file"):
        write_bytes(tmp_path / "none" / "x", b"2")
    assert (tmp_path / "x").read_bytes() == b"1"


def test_a_report_is_replaced_whole_or_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.json"
    publish.replace_bytes(target, b"first")
    for name in ("open", "write", "fsync"):
        with (
            failing(monkeypatch, name, 1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
            pytest.raises(OutputError, match="No space left"),
        ):
            publish.replace_bytes(target, b"second")
        assert tree(tmp_path) == {"report.json": b"first"}
    (tmp_path / "link").symlink_to(target)
    publish.replace_bytes(tmp_path / "link", b"second")
    assert target.read_bytes() == b"second"
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(OutputError, match="No space left"):
        publish.replace_bytes(Path("/dev/full"), b"x")


def test_overwriting_spares_what_clair_did_not_write(tmp_path: Path) -> None:
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    with staged(out, False, inputs, "0") as stage:
        write_bytes(stage / "a", b"a")
    check_output(out, inputs, overwrite=True)
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes/mine\.txt"):
        check_output(out, inputs, overwrite=True)
    assert (out / "notes" / "mine.txt").read_text() == "mine"


def test_nothing_is_written_where_the_input_links_to(tmp_path: Path) -> None:
    inputs, store = tmp_path / "in", tmp_path / "store" / "client"
    inputs.mkdir()
    store.mkdir(parents=True)
    (inputs / "c1").symlink_to(store)
    for out in (store / "out", inputs / "c1" / "out"):
        with pytest.raises(UsageError, match="inside"):
            check_apart(out, inputs)
    with pytest.raises(UsageError, match="inside the input"):
        check_output(inputs / "c1" / "out", inputs)
    for check in (check_output, check_apart):
        check(tmp_path / "store" / "out", inputs)
