"""Files from strangers: special ones are refused, links by rule, changes noticed, JSON strict."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clair_cli.errors import AdapterError, ChangedWhileRead, ConfigInvalid, Unreadable, UnsafePath
from clair_cli.formats import files
from clair_cli.formats.files import follow, hash_file, opened, read_range
from clair_cli.formats.layout import CONFIG, WEIGHTS
from clair_cli.strict_json import parse_object
from tests.helpers.commands import alongside


def nothing(fd: int, size: int) -> None:
    return None


def test_a_file_is_hashed_whole_and_read_by_ranges(tmp_path: Path) -> None:
    data = os.urandom(3 * 2**20 + 17)
    path = tmp_path / "x"
    path.write_bytes(data)
    file, size = hash_file(path, "name", lambda fd, size: size)
    assert file.name == "name"
    assert file.size == size == len(data)
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert read_range(file, 5, 2**20) == data[5 : 2**20]
    assert read_range(file, 7, 7) == b""


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "device", "link"])
def test_special_files_are_refused_without_waiting(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/null")
    else:
        (tmp_path / "y").write_bytes(b"1")
        path.symlink_to(tmp_path / "y")
    began = time.perf_counter()
    with pytest.raises(UnsafePath, match="not a regular file"), opened(path):
        raise AssertionError("opened")
    assert time.perf_counter() - began < 1


def test_what_the_system_refuses_is_unreadable_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unreadable, match="No such file"), opened(tmp_path / "none"):
        raise AssertionError("opened")
    (tmp_path / "x").write_bytes(b"1234")

    def failing(fd: int, count: int) -> bytes:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "read", failing)
    with pytest.raises(Unreadable, match="x: cannot be read: Input/output error"):
        hash_file(tmp_path / "x", "x", nothing)


def test_links_are_followed_inside_the_root_and_into_the_hub_cache_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "a", root / "b", outside, root / "hub/blobs", root / "hub/snapshots/r1"):
        folder.mkdir(parents=True)
    for name in (root / "a/x", outside / "x", root / "hub/blobs/ab12"):
        name.write_bytes(b"1")
    (root / "b/in").symlink_to("../a/x")
    (root / "b/out").symlink_to(outside / "x")
    (root / "b/gone").symlink_to("nowhere")
    (root / "b/loop").symlink_to("loop")
    cached = root / "hub/snapshots/r1/adapter_model.safetensors"
    cached.symlink_to("../../blobs/ab12")
    assert follow(root / "a/x", root) == root / "a/x"
    assert follow(root / "b/in", root) == (root / "a/x").resolve()
    assert follow(cached, cached.parent) == (root / "hub/blobs/ab12").resolve()
    assert follow(root / "b/out", root, anywhere=True) == (outside / "x").resolve()
    with pytest.raises(UnsafePath, match="--follow-symlinks"):
        follow(root / "b/out", root)
    cached.unlink()
    cached.symlink_to(root / "a/x")
    with pytest.raises(UnsafePath, match="--follow-symlinks"):
        follow(cached, cached.parent)
    for link in ("gone", "loop"):
        with pytest.raises(Unreadable, match="leads nowhere"):
            follow(root / "b" / link, root)


@pytest.mark.parametrize("change", ["replace", "truncate", "write", "append", "touch"])
def test_a_file_changed_after_hashing_is_noticed(change: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 1000)
    file, _ = hash_file(path, "x", nothing)
    time.sleep(0.02)  # file times have the resolution of the kernel's tick
    if change == "replace":
        (tmp_path / "y").write_bytes(b"b" * 1000)
        os.replace(tmp_path / "y", path)
    elif change == "truncate":
        os.truncate(path, 500)
    elif change == "touch":
        os.utime(path)
    else:
        with open(path, "r+b" if change == "write" else "ab") as out:
            out.write(b"c")
    with pytest.raises(ChangedWhileRead, match="run again"):
        read_range(file, 0, 10)


def test_another_name_or_other_permissions_are_no_change(tmp_path: Path) -> None:
    """Backups link files, which changes the time of the inode and not one byte."""
    path = tmp_path / "x"
    path.write_bytes(b"a" * 1000)

    def linked(fd: int, size: int) -> None:
        if not (tmp_path / "during").exists():
            (tmp_path / "during").hardlink_to(path)

    file, _ = hash_file(path, "x", linked)
    for change in (lambda: (tmp_path / "after").hardlink_to(path), lambda: path.chmod(0o600)):
        before = path.stat().st_ctime_ns
        time.sleep(0.02)
        change()
        assert path.stat().st_ctime_ns > before
        assert read_range(file, 5, 7) == b"aa"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_that_sets_its_time_back_is_noticed(when: str, tmp_path: Path) -> None:
    """Only the time of the inode tells, and then the contents are hashed again."""
    path = tmp_path / "x"
    path.write_bytes(b"a" * 1000)
    file, _ = hash_file(path, "x", nothing)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    for _ in range(2 if when == "after" else 0):  # what was known to be the same is so no more
        os.link(path, tmp_path / str(time.monotonic_ns()))
        assert read_range(file, 0, 10) == b"a" * 10
    with open(path, "r+b") as out:
        out.write(b"c")
    os.utime(path, ns=times)
    assert path.stat().st_mtime_ns == times[1]
    for _ in range(3):
        with pytest.raises(ChangedWhileRead, match="run again"):
            read_range(file, 500, 510)


def test_a_write_right_after_hashing_has_another_time(tmp_path: Path) -> None:
    """However fast: what was hashed had been at rest for longer than a tick of the kernel."""
    path = tmp_path / "x"
    for _ in range(20):
        path.write_bytes(b"a" * 1000)
        file, _ = hash_file(path, "x", nothing)
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        with open(path, "r+b") as out:
            out.write(b"c")
        os.utime(path, ns=times)
        with pytest.raises(ChangedWhileRead):
            read_range(file, 0, 10)


def test_one_whose_inode_changes_all_the_time_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 1000)
    file, _ = hash_file(path, "x", nothing)
    real, hashed = files._sha256, []
    monkeypatch.setattr(files, "_sha256", lambda fd, size: hashed.append(1) or real(fd, size))

    def read_while_linked() -> None:
        for number in range(20):
            time.sleep(0.02)
            os.link(path, tmp_path / str(number))
            read_range(file, 0, 10)

    with pytest.raises(ChangedWhileRead):
        read_while_linked()
    assert 1 <= len(hashed) <= 5


FLIP = """
import os, sys
client, kept, link = sys.argv[1:]
print("ready", flush=True)
while True:  # the client is, in turn, its own folder and a link to another's
    os.rename(client, kept)
    os.rename(link, client)
    os.rename(client, link)
    os.rename(kept, client)
"""


@contextmanager
def flipping(client: Path, outside: Path) -> Iterator[None]:
    """A process that exchanges the client's folder and a link to `outside` all the time."""
    link = client.parent / ".link"
    link.symlink_to(outside)
    with alongside(FLIP, client, client.parent / ".kept", link):
        yield


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, "README.md"])
def test_a_folder_that_becomes_a_link_while_it_is_opened_leads_nowhere(
    name: str, tmp_path: Path
) -> None:
    client, outside = tmp_path / "in" / "client", tmp_path / "outside"
    for folder, text in ((client, b"own"), (outside, b"secret")):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(text)
    seen: list[str | int] = []
    with flipping(client, outside):
        until = time.monotonic() + 3
        while time.monotonic() < until and seen.count("own") < 300:
            try:
                with opened(follow(client / name, tmp_path / "in"), by_descriptor=True) as fd:
                    seen.append(os.read(fd, 10).decode())
            except AdapterError as error:
                seen.append(error.code)
    assert set(seen) <= {"own", "CLR101", "CLR110", "CLR112"}
    assert seen.count("own") > 20
    assert len(set(seen)) > 1


def test_a_file_changed_while_it_is_hashed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 1000)

    def shrink(fd: int, size: int) -> None:
        os.truncate(path, 10)

    def overwrite(fd: int, size: int) -> None:
        time.sleep(0.02)  # file times have the resolution of the kernel's tick
        path.write_bytes(b"b" * size)

    for change in (overwrite, shrink):
        with pytest.raises(ChangedWhileRead):
            hash_file(path, "x", change)


def test_truncation_under_a_reader_never_kills_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    stop = threading.Event()

    def flap() -> None:
        while not stop.is_set():
            path.write_bytes(b"a" * 2**22)
            os.truncate(path, 0)

    path.write_bytes(b"")
    thread = threading.Thread(target=flap)
    thread.start()
    changed, deadline = 0, time.monotonic() + 20
    try:
        while changed < 5 and time.monotonic() < deadline:
            try:
                file, _ = hash_file(path, "x", nothing)
                read_range(file, 0, file.size)
            except ChangedWhileRead:
                changed += 1
    finally:
        stop.set()
        thread.join()
    assert changed == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": 1, "a": 1}', "'a' occurs twice"),
        (b'{"b": {"a": 1, "a": 1}}', "'a' occurs twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "float64"),
        (b'{"a": ' + b"1" * 41 + b"}", "41 digits"),
        (b'{"a": ' + b"[" * 10**6, "nested"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"", "Expecting value"),
        (b'{"a": 1} x', "Extra data"),
        (b"[]", "found list"),
        (b"1", "found int"),
    ],
)
def test_json_of_two_meanings_or_none_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(ConfigInvalid, match=words) as caught:
        parse_object(text, "adapter_config.json", ConfigInvalid)
    assert "\n" not in str(caught.value)


def test_json_keeps_the_order_of_the_document() -> None:
    assert list(parse_object(b'{"z": 1, "a": 2.5}', "x", ConfigInvalid)) == ["z", "a"]


def test_formats_and_publish_load_no_numerical_library() -> None:
    code = (
        "import sys, clair_cli.formats, clair_cli.output.publish;"
        "print({'torch', 'numpy', 'safetensors', 'peft', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
