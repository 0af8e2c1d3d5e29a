"""Files from strangers: special ones are refused, links by rule, changes noticed, JSON strict."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clair_cli.errors import ChangedWhileRead, ConfigInvalid, Unreadable, UnsafePath
from clair_cli.formats.files import follow, hash_file, opened, read_range
from clair_cli.strict_json import parse_object


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
