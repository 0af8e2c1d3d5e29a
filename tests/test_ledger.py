"""The file of rounds: what was appended is read back, and whatever was done to it since is refused."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clair_cli import ledger
from clair_cli.errors import OutputError, UsageError
from clair_cli.ledger import Entry, Line
from tests import ROOT
from tests.helpers.commands import ENVIRONMENT
from tests.helpers.reports import HOSTILE, SHA

NAMES = ("client-1", HOSTILE, "a" * 5000, "../up", '"}', "\u2028", "=1+1")


def line(score: float = 1.5, *names: str) -> Line:
    entries = tuple(Entry(n, SHA, "benign", score, 2.0) for n in names or NAMES)
    return Line(
        "", ledger.KIND, ledger.VERSION, "2026-11-27T00:00:00+00:00", "0.1.0", "c" * 12, entries
    )


def filled(path: Path, count: int = 3) -> Path:
    for number in range(count):
        with ledger.opened(path) as book:
            book.append(line(0.5 * number, "client-1", f"client-{number + 2}"))
    return path


def test_what_is_appended_is_read_back_whatever_the_names(tmp_path: Path) -> None:
    path = tmp_path / "history"
    for _ in range(2):
        with ledger.opened(path) as book:
            book.append(line())
    found = ledger.read(path)
    assert [[e.client for e in x.clients] for x in found.lines] == [[*NAMES]] * 2
    assert found.lines[1].previous != found.lines[0].previous == ledger.NONE_BEFORE
    assert path.read_bytes().isascii()
    assert path.read_bytes().count(b"\n") == 2


def test_every_line_can_be_checked_by_hand(tmp_path: Path) -> None:
    previous = ledger.NONE_BEFORE
    for text in filled(tmp_path / "history").read_text().splitlines():
        said = json.loads(text)
        assert said["previous"] == previous
        body, _, _ = text.rpartition(', "sha256": ')
        command = subprocess.run(
            ["sha256sum"], input=body.encode(), capture_output=True, check=True
        )
        assert command.stdout.decode().split()[0] == said["sha256"]
        previous = said["sha256"]


def test_no_byte_of_a_line_can_be_changed(tmp_path: Path) -> None:
    path = filled(tmp_path / "history")
    data = path.read_bytes()
    for place in range(0, len(data) - 1, 7):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(UsageError, match="history"):
            ledger.read(path)


@pytest.mark.parametrize("order", [(1, 2), (0, 2), (1, 0, 2), (0, 0, 1, 2), (0, 1, 1), (2, 1, 0)])
def test_no_line_can_be_taken_out_put_in_or_moved(tmp_path: Path, order: tuple[int, ...]) -> None:
    path = filled(tmp_path / "history")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[k] for k in order))
    with pytest.raises(UsageError, match=r"line \d: does not follow the line before"):
        ledger.read(path)


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    path = filled(tmp_path / "history")
    data = path.read_bytes()
    begin = data[:-1].rindex(b"\n") + 1
    for end in range(begin + 1, len(data), 13):
        path.write_bytes(data[:end])
        found = ledger.read(path)
        assert (len(found.lines), found.torn) == (2, end - begin)
        assert path.read_bytes() == data[:end], "reading changes nothing"
        with ledger.opened(path) as book:
            book.append(line(1.0, "client-1"))
        assert path.read_bytes()[:begin] == data[:begin]
        assert len(ledger.read(path).lines) == 3


@pytest.mark.parametrize(
    "data",
    [
        b"notes that somebody has kept",
        b'{"previous": "1',
        b"\0" * 100,
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"x" * 200,
    ],
)
def test_another_file_is_refused_and_stays_as_it_is(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="line of a history"), ledger.opened(path) as book:
        book.append(line())
    assert path.read_bytes() == data


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (
        tmp_path / "pipe",
        tmp_path,
        Path("/dev/zero"),
        Path("a\0b"),
        tmp_path / "no" / "file",
    ):
        with pytest.raises(UsageError, match="--history"), ledger.opened(path):
            pass
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(UsageError, match="--history"):
            ledger.read(path)


def test_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "history")
    size = path.stat().st_size
    monkeypatch.setattr(ledger, "MAX_BYTES", size)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="begin a new file"), ledger.opened(path) as book:
        book.append(line())
    assert path.read_bytes() == before
    monkeypatch.setattr(ledger, "MAX_BYTES", size - 1)
    with pytest.raises(UsageError, match="more than"):
        ledger.read(path)


@pytest.mark.parametrize(
    "spoil",
    [
        {"factor": 0.0},
        {"factor": 1e9},
        {"factor": "2"},
        {"score": -1.0},
        {"verdict": "guilty"},
        {"files": "no hash"},
        {"id": 7},
    ],
)
def test_a_line_that_clair_would_not_write_is_refused_though_its_chain_holds(
    tmp_path: Path, spoil: dict[str, object]
) -> None:
    data = json.loads(ledger._written(line(1.0, "client-1"))[0])
    del data["sha256"]
    data["previous"] = ledger.NONE_BEFORE
    data["clients"][0] |= spoil
    body = json.dumps(data)[:-1].encode()
    own = ledger.sha256(body).hexdigest()
    path = tmp_path / "history"
    path.write_bytes(body + f', "sha256": "{own}"}}\n'.encode())
    with pytest.raises(UsageError, match="line 1"):
        ledger.read(path)


def test_a_full_disk_leaves_the_lines_that_there_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "history")
    before, write = path.read_bytes(), os.write

    def full(fd: int, data: bytes) -> int:
        write(fd, bytes(data[:50]))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="No space left"), ledger.opened(path) as book:
        book.append(line())
    assert path.read_bytes() == before


WRITER = """
import os, signal, sys
from pathlib import Path
from clair_cli import ledger
from tests.test_ledger import line
path, mode, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
write, sync = os.write, os.fsync
def torn(fd, data):
    write(fd, bytes(data[:count]))
    os.kill(os.getpid(), signal.SIGKILL)
def unsynced(fd):
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "write":
    os.write = torn
if mode == "sync":
    os.fsync = unsynced
for k in range(count if mode == "many" else 1):
    with ledger.opened(path) as book:
        book.append(line(1.0, f"writer-{os.getpid()}"))
"""


def writer(path: Path, mode: str, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(path), mode, str(count)]
    return subprocess.Popen(command, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, cwd=ROOT)


@pytest.mark.parametrize(
    ("mode", "count", "lines"),
    [
        ("write", 0, 2),
        ("write", 1, 2),
        ("write", 100, 2),
        ("write", 300, 2),
        ("write", 9999, 3),
        ("sync", 0, 3),
    ],
)
def test_a_writer_that_is_killed_leaves_a_file_that_goes_on(
    tmp_path: Path, mode: str, count: int, lines: int
) -> None:
    path = filled(tmp_path / "history", 2)
    assert writer(path, mode, count).wait(60) == -signal.SIGKILL
    assert len(ledger.read(path).lines) == lines
    with ledger.opened(path) as book:  # and the lock is gone with the process
        book.append(line(2.0, "client-9"))
    found = ledger.read(path)
    assert (len(found.lines), found.torn) == (lines + 1, 0)


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "history"
    racers = [writer(path, "many", 20) for _ in range(3)]
    assert [racer.wait(120) for racer in racers] == [0, 0, 0]
    found = ledger.read(path)
    assert len(found.lines) == 60
    assert len({entry.client for x in found.lines for entry in x.clients}) == 3


def test_who_holds_the_lock_for_too_long_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "history")
    monkeypatch.setattr(ledger, "WAIT", 0.2)
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run"), ledger.opened(path):
            pass


def test_a_file_that_was_moved_away_while_its_lock_was_waited_for_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "history")
    before, flock = path.read_bytes(), fcntl.flock

    def late(fd: int, how: int) -> None:
        flock(fd, how)
        if not (tmp_path / "old").exists():
            path.rename(tmp_path / "old")

    monkeypatch.setattr(fcntl, "flock", late)
    with ledger.opened(path) as book:
        book.append(line())
    assert (tmp_path / "old").read_bytes() == before
    assert len(ledger.read(path).lines) == 1
