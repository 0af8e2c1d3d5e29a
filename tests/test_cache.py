"""The folder of a cache: entries are whole or not there, the oldest go first, the rest is left alone."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import pytest

from clair_cli import cache
from clair_cli.cache import BLOCK, PARTS, Cache, begin, cache_of
from clair_cli.errors import SettingError
from clair_cli.settings import Settings

LARGE = 2**30
DATA = bytes(range(256))


def entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "CACHEDIR.TAG")


def taken(folder: Path) -> int:
    """The bytes of all entries in whole blocks, counted without the cache."""
    return sum(-(-p.stat().st_size // BLOCK) * BLOCK for p in entries(folder))


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Cache, Path]:
    """A cache of one entry, and its file."""
    made = Cache(tmp_path / "cache", LARGE)
    made.put("key", DATA)
    (path,) = entries(made.folder)
    return made, path


def test_what_was_kept_is_found_by_its_key_alone_also_by_another_process(tmp_path: Path) -> None:
    Cache(tmp_path / "cache", LARGE).put(["a", 1], b"one ", b"two")
    again = Cache(tmp_path / "cache", LARGE)
    assert again.get(["a", 1]) == b"one two"
    assert again.get(["a", "1"]) is None
    assert again.get(["a", 2]) is None
    again.put(["a", 1], b"three")
    assert again.get(["a", 1]) == b"three"


def test_an_entry_torn_anywhere_is_discarded(kept: tuple[Cache, Path]) -> None:
    made, path = kept
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert made.get("key") is None
        assert not path.exists()
    path.write_bytes(whole)
    assert made.get("key") == DATA


def test_an_entry_with_one_bit_flipped_is_discarded(kept: tuple[Cache, Path]) -> None:
    made, path = kept
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        spoiled = bytearray(whole)
        spoiled[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoiled)
        assert made.get("key") is None, bit
    path.write_bytes(whole + b"\0")
    assert made.get("key") is None


def test_a_whole_entry_under_the_name_of_another_is_discarded(kept: tuple[Cache, Path]) -> None:
    made, path = kept
    made.put("other", b"other")
    (other,) = set(entries(made.folder)) - {path}
    shutil.copy(path, other)
    assert made.get("other") is None
    assert made.get("key") == DATA


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_what_is_no_file_is_no_entry_and_nobody_waits_for_it(
    kept: tuple[Cache, Path], tmp_path: Path, kind: str
) -> None:
    made, path = kept
    aside = tmp_path / "aside"
    path.rename(aside)
    if kind == "link":
        path.symlink_to(aside)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert made.get("key") is None
    assert aside.exists()


def test_the_size_is_bounded_and_those_used_longest_ago_go_first(tmp_path: Path) -> None:
    limit = 64 * BLOCK
    made = Cache(tmp_path / "cache", limit)
    for number in range(150):
        made.put(number, bytes(1000))
        assert taken(made.folder) <= limit
        for path in entries(made.folder):  # as if an hour ago, but for number 0
            os.utime(path, (time.time() - 3600 + number,) * 2)
        assert made.get(0) == bytes(1000)
    assert made.get(149) is not None
    assert made.get(1) is None
    assert taken(made.folder) >= limit - 2 * limit // PARTS


def test_another_limit_makes_room_before_the_next_entry(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    large = Cache(folder, LARGE)
    for number in range(100):
        large.put(number, bytes(BLOCK))
    small = Cache(folder, 32 * BLOCK)
    small.put("new", b"new")
    assert taken(folder) <= 32 * BLOCK
    assert small.get("new") == b"new"


def test_what_is_too_large_for_the_limit_is_not_kept(tmp_path: Path) -> None:
    made = Cache(tmp_path / "cache", 32 * BLOCK)
    made.put("key", bytes(3 * BLOCK))
    assert entries(made.folder) == []


def test_files_that_are_not_clairs_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    Cache(folder, LARGE).put("key", DATA)
    mine = [folder / "notes.txt", folder / "ab" / "notes", folder / "zz" / ("0" * 62)]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(2**20))
        os.utime(path, (0, 0))
    made = Cache(folder, 32 * BLOCK)
    for number in range(100):
        made.put(number, DATA)
    assert all(path.exists() for path in mine)


def test_what_nobody_goes_on_writing_is_removed_in_time(kept: tuple[Cache, Path]) -> None:
    made, path = kept
    old, new = (path.with_name(f".{path.name}.{pid}-0") for pid in (1, 2))
    for fresh in (old, new):
        fresh.write_bytes(DATA)
    os.utime(old, (time.time() - 2 * cache.ABANDONED,) * 2)
    Cache(made.folder, LARGE).put("other", DATA)
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_is_removed_is_a_remark_and_stays_removed(
    kept: tuple[Cache, Path], caplog: pytest.LogCaptureFixture
) -> None:
    made, _ = kept
    shutil.rmtree(made.folder)
    assert made.get("key") is None
    for number in range(3):
        made.put(number, DATA)
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert not made.folder.exists()


def test_entries_that_are_removed_are_made_again(kept: tuple[Cache, Path]) -> None:
    made, path = kept
    shutil.rmtree(path.parent)
    assert made.get("key") is None
    made.put("key", DATA)
    assert made.get("key") == DATA


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_write_to_is_not_believed(
    kept: tuple[Cache, Path], caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    made, path = kept
    made.folder.chmod(mode)
    again = Cache(made.folder, LARGE)
    assert again.get("key") is None
    again.put("other", DATA)
    assert entries(made.folder) == [path]
    assert "others can write to it" in caplog.text
    made.folder.chmod(0o700)
    path.chmod(0o666)
    assert Cache(made.folder, LARGE).get("key") is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
def test_what_another_user_has_made_is_not_believed(kept: tuple[Cache, Path]) -> None:
    made, path = kept
    os.chown(path, 12345, -1)
    assert made.get("key") is None
    made.put("key", DATA)
    os.chown(made.folder, 12345, -1)
    assert Cache(made.folder, LARGE).get("key") is None


@pytest.mark.parametrize("call", ["open", "replace", "mkdir"])
def test_a_system_that_refuses_is_one_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    made = Cache(tmp_path / "cache", LARGE)
    real = getattr(os, call)

    def refused(*args: object, **more: object) -> object:
        if call != "open" or args[1] != cache.READ:
            raise OSError(28, "No space left on device")
        return real(*args, **more)

    monkeypatch.setattr(os, call, refused)
    for number in range(3):
        made.put(number, DATA)
    monkeypatch.undo()
    assert entries(made.folder) == []
    assert caplog.text.count("No space left on device; the run goes on without") == 1


def test_a_place_that_cannot_be_made_is_a_remark(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    made = Cache(tmp_path / "file" / "cache", LARGE)
    made.put("key", DATA)
    assert made.get("key") is None
    assert "cannot be used" in caplog.text


def test_folders_that_are_read_or_written_hold_no_cache_nor_lie_in_one(tmp_path: Path) -> None:
    clients, out = tmp_path / "clients", tmp_path / "place" / "out"
    clients.mkdir()
    (tmp_path / "alias").symlink_to(clients)
    wrong = ["clients", "clients/c", "alias/c", "place/out", "place/out/c", "place", ".", "alias"]
    for name in wrong:
        with pytest.raises(SettingError, match=r"^cache: "):
            begin(Settings(cache=tmp_path / name), clients, out)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="is no folder"):
        begin(Settings(cache=tmp_path / "file"), clients, out)
    begin(Settings(cache=tmp_path / "cache"), clients, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alias", "clients", "file"]


def test_a_run_begins_anew_with_a_folder_that_failed_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(cache=tmp_path / "cache")
    settings.cache.write_text("") if settings.cache else None
    first = cache_of(settings)
    assert first is not None
    first.put("key", DATA)
    assert "cannot be used" in caplog.text
    (tmp_path / "cache").unlink()
    begin(settings)
    second = cache_of(settings)
    assert second is not None
    second.put("key", DATA)
    assert second.get("key") == DATA
    assert cache_of(Settings()) is None
