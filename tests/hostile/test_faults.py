"""`clair refine` killed or failing at every step of writing: OUT is old, new or absent, and whole."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clair_cli.output.leftovers import STALE, passing
from clair_cli.output.manifest import verify
from fuzz import kills
from tests.helpers.cohorts import save_cohort
from tests.helpers.commands import ENVIRONMENT, SCRIPT, fingerprint, forked, quick
from tests.helpers.faults import WRITING, Runs, weights


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "round"
    save_cohort(folder, 3)
    return folder


@pytest.fixture(scope="module")
def wanted(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What refining writes at the strengths of the old output and of the new one."""
    folder = tmp_path_factory.mktemp("wanted")
    for name, strength in (("old", 0), ("new", 1)):
        done = quick(folder, "refine", cohort, "--out", folder / name, "--strength", strength)
        assert done.returncode == 0, done.stderr
    return {name: weights(folder / name) for name in ("old", "new")}


@pytest.fixture
def runs(cohort: Path, wanted: dict[str, dict[str, bytes]], tmp_path: Path) -> Runs:
    return Runs(cohort, tmp_path, wanted)


def age(folder: Path, seconds: float) -> None:
    """As if nothing in the folder had changed for so long."""
    then = time.time() - seconds
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then), follow_symlinks=False)


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "overwrite"])
def test_killed_before_any_step_out_is_absent_or_whole_and_a_rerun_succeeds(
    old: bool, runs: Runs
) -> None:
    seen, nth = [], 0
    while True:
        nth += 1
        runs.reset(old)
        code = runs.faulty(nth, "kill")
        seen.append(runs.state())
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert seen[-1] != "absent" or not old
    assert nth > 30
    assert set(seen) == ({"old", "new"} if old else {"absent", "new"})
    assert seen.index("new") > 0.5 * nth  # after the last byte was written and synced
    left = runs.left()
    assert len(left) > 0.5 * nth  # a killed process cannot tidy up
    for path in left:
        age(path, STALE + 60)
    assert runs.refine(0) == 0
    assert (runs.state(), runs.left()) == ("old", [])


def test_killed_where_folders_cannot_be_exchanged_the_old_output_is_still_there(runs: Runs) -> None:
    seen = []
    for nth in (1, 2, 3, 4):
        runs.reset(True)
        for path in runs.left():
            shutil.rmtree(path)
        code = runs.faulty(nth, "kill", ("rename", "replace"), atomic=False)
        seen.append(runs.state())
        if seen[-1] == "absent":
            (aside,) = [p for p in runs.left() if p.name.endswith(".old")]
            age(aside, STALE + 60)
            assert (verify(aside), weights(aside)) == ([], runs.wanted["old"])
            assert runs.refine(1) == 0
            assert aside.exists() is False or verify(aside) == []
            assert runs.state() == "new"
    assert seen == ["old", "absent", "new", "new"]
    assert code == 0


def test_any_step_that_fails_leaves_the_old_or_the_new_output_and_nothing_else(runs: Runs) -> None:
    codes, nth = [], 0
    while True:
        nth += 1
        runs.reset(True)
        codes.append(runs.faulty(nth, ("ENOSPC", "EIO")[nth % 2], WRITING))
        said = (runs.folder / "2").read_text()
        state = runs.state()
        assert runs.left() == []
        if codes[-1] == 0:
            assert state == "new"
            if len(runs.log.read_text().splitlines()) < nth:
                break
        else:
            assert codes[-1] == 4, said
            assert said.count("\n") == 1
            assert os.strerror((errno.ENOSPC, errno.EIO)[nth % 2]) in said
            assert state == "old"
    assert codes.count(4) > 25


def test_killed_at_any_moment_out_is_whole_also_for_a_reader_beside() -> None:
    """A few of the kills whose number is in benchmarks/results/faults.md."""
    found = kills.campaign(12, 1, seed=int(time.time()))
    least = zip(found.values(), (6, 6, 1), strict=True)
    assert all(tally.kills >= count for tally, count in least)
    for name, tally in found.items():
        assert (tally.torn, tally.torn_looks) == (0, 0), name
        assert tally.looks > 10


def test_the_campaign_sees_an_output_that_is_torn(tmp_path: Path) -> None:
    place = kills.Place(tmp_path)
    assert place.state() in ("old", "new")
    changed = place.out / "client-1" / "adapter_config.json"
    changed.write_bytes(changed.read_bytes() + b" ")
    assert place.state() == "torn"


def test_the_order_is_that_of_a_power_loss(runs: Runs) -> None:
    """Every file on disk before the manifest, all of them before the rename, that before the end."""
    assert runs.faulty(0, "kill") == 0
    steps = [line.split(" ") for line in runs.log.read_text().splitlines()]
    stage = next(s[1] for s in steps if s[0] == "mkdir")
    (moved,) = [i for i, s in enumerate(steps) if s[0] == "move"]
    assert steps[moved][1:3] == [stage, str(runs.out)]
    synced = {s[1]: i for i, s in enumerate(steps) if s[0] == "fsync" and i < moved}
    written = {s[1]: i for i, s in enumerate(steps) if s[0] == "write"}
    assert len(written) >= 8
    assert all(path.startswith(f"{stage}/") and i < synced[path] for path, i in written.items())
    opened = next(i for i, s in enumerate(steps) if s[:2] == ["open", f"{stage}/manifest.json"])
    first = {s[1]: i for i, s in reversed(list(enumerate(steps))) if s[0] == "fsync"}
    assert all(first[path] < opened for path in written if not path.endswith("/manifest.json"))
    assert {s[1] for s in steps if s[0] == "mkdir"} <= synced.keys()
    assert [s[:2] for s in steps[moved + 1 :]] == [["fsync", str(runs.out.parent)]]


# --- what is left of a killed run


def gone() -> int:
    """The id of a process that was."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def named(place: Path, pid: int) -> Path:
    """A staging folder beside `place` such as process `pid` of this host makes."""
    host, _, token = passing(place).name.rsplit("-", 2)
    return place.parent / f"{host}-{pid}-{token}"


def test_only_old_leftovers_of_dead_processes_of_this_host_are_removed(runs: Runs) -> None:
    dead, out, day = gone(), runs.out, STALE + 60
    stale = named(out, dead)
    other = stale.name.replace("clair-", "clair-0")[:-1]
    kept = {
        "young": (named(out, dead), STALE - 600),
        "alive": (named(out, os.getpid()), day),
        "another host's": (out.parent / other, day),
        "another output's": (named(out.with_name("out2"), dead), day),
        "without a process": (out.parent / ".out.clair-0123456789ab", day),
        "of one's own": (out.parent / ".out.clair-mine", day),
        "changed inside": (named(out, dead), day),
    }
    for folder in [stale, *(path for path, _ in kept.values())]:
        (folder / "client-1").mkdir(parents=True)
        (folder / "client-1" / "x").write_bytes(b"x")
    (out.parent / "precious").mkdir()
    (out.parent / "precious" / "x").write_bytes(b"x")
    link = named(out, dead)
    link.symlink_to(out.parent / "precious")
    (stale / "link").symlink_to(out.parent / "precious")
    age(stale, day)
    for folder, seconds in kept.values():
        age(folder, seconds)
    os.utime(link, (0, 0), follow_symlinks=False)
    (kept["changed inside"][0] / "client-1" / "x").write_bytes(b"y")
    os.utime(kept["changed inside"][0] / "client-1", (0, 0))
    assert runs.refine(1) == 0
    assert not stale.exists()
    assert {name for name, (path, _) in kept.items() if path.is_dir()} == kept.keys()
    assert link.is_symlink()
    assert (out.parent / "precious" / "x").read_bytes() == b"x"


# --- full and read-only disks

TMPFS = """
    set -e
    mount -t tmpfs -o size={size} tmpfs {place}
    {before}
    set +e
    {clair} refine {cohort} --out {place}/out -q
    echo "code $?"
    ls -A {place}
    [ -d {place}/out ] && {clair} verify {place}/out
    exit 0
"""


def on_a_small_disk(runs: Runs, size: str, before: str = ":") -> subprocess.CompletedProcess[str]:
    """`clair refine` onto a file system of its own, in a mount namespace of its own."""
    if subprocess.run(["unshare", "-Umr", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    script = TMPFS.format(
        size=size, place=runs.out.parent, before=before, clair=SCRIPT, cohort=runs.cohort
    )
    command = ["unshare", "-Umr", "bash", "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def test_a_full_disk_leaves_nothing_on_it(runs: Runs) -> None:
    for size in ("8k", "40k"):  # full at the first file, and in the middle
        done = on_a_small_disk(runs, size)
        assert done.stdout.splitlines() == ["code 4"]
        assert "No space left on device" in done.stderr
        assert done.stderr.count("\n") == 1
    fits = on_a_small_disk(runs, "4m").stdout.splitlines()
    assert fits[:2] == ["code 0", "out"]
    assert fits[2].startswith("PASS")
    assert fingerprint(runs.cohort) == runs.before


def test_a_read_only_target_is_refused_before_anything_is_read(runs: Runs) -> None:
    done = on_a_small_disk(runs, "4m", f"mount -o remount,ro {runs.out.parent}")
    assert done.stdout.splitlines() == ["code 2"]
    assert "not writable" in done.stderr


# --- several at once


def eight(runs: Runs, *options: object) -> list[tuple[int, str]]:
    """Code and stderr of eight processes that refine into one OUT at the same time."""

    def one(number: int) -> tuple[int, str]:
        said = runs.folder / f"stderr-{number}"
        strength = ("--strength", number % 2, *options)
        arguments = ("refine", runs.cohort, "--out", runs.out, "-q", *strength)
        return forked(
            *arguments, stdout=runs.folder / "1", stderr=said, timeout=120
        ), said.read_text()

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(8)))


def test_of_eight_processes_one_wins_and_the_others_say_so(runs: Runs) -> None:
    done = eight(runs)
    codes = [code for code, _ in done]
    assert codes.count(0) == 1
    assert set(codes) <= {0, 2, 4}  # 2: OUT was there already when it began
    assert [("exists" in said.lower()) for _, said in done] == [code != 0 for code in codes]
    assert runs.state() in ("old", "new")
    assert runs.left() == []


def test_eight_processes_that_overwrite_leave_one_whole_output_at_every_moment(runs: Runs) -> None:
    runs.reset(True)
    context = multiprocessing.get_context("fork")
    seen, stop = context.Value("i", 0), context.Event()
    watcher = context.Process(target=_watch, args=(runs.out, seen, stop))
    watcher.start()
    codes = [code for code, _ in eight(runs, "--overwrite")]
    stop.set()
    watcher.join()
    assert (watcher.exitcode, seen.value > 100) == (0, True)
    assert codes.count(0) >= 1
    assert set(codes) <= {0, 4}
    assert runs.state() in ("old", "new")
    assert runs.left() == []


def _watch(out: Path, seen: object, stop: object) -> None:
    """Look, all the time, whether OUT and its manifest are there."""
    while not stop.is_set():  # type: ignore[attr-defined]
        seen.value += 1  # type: ignore[attr-defined]
        if not (out / "manifest.json").exists():
            os._exit(1)
