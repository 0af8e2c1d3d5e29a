"""`clair verify OUT` as a user runs it: every difference from the manifest, and nothing beyond OUT."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from clair_cli.output.manifest import facts
from tests.helpers.cohorts import save_cohort
from tests.helpers.commands import WEIGHTS, clair, fingerprint, quick

FIRST = f"client-1/{WEIGHTS}"


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refined")
    save_cohort(folder / "in", 3)
    done = quick(folder, "refine", folder / "in", "--out", folder / "out", "-q")
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture
def out(refined: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(refined, tmp_path / "out"))


def verify(out: Path, *options: object) -> CompletedProcess[str]:
    """Run on OUT, which stays as it is."""
    before = fingerprint(out)
    done = quick(out.parent, "verify", out, *options)
    assert fingerprint(out) == before
    return done


def test_what_was_written_is_fine_from_anywhere(out: Path) -> None:
    files = json.loads((out / "manifest.json").read_text())["files"]
    assert len(files) >= 7
    done = clair("verify", ".", cwd=out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"PASS: {len(files)} files as they were written\n"
    said = json.loads(clair("verify", out, "-f", "json").stdout)
    assert said == {
        "schema_version": "1.0",
        "tool": json.loads((out / "manifest.json").read_text())["tool"],
        "folder": str(out),
        "files": len(files),
        "differences": [],
        "compared": len(files),
        "signed": False,
        "checked": False,
    }


def rewritten(out: Path) -> None:
    """As many other bytes."""
    data = bytearray((out / FIRST).read_bytes())
    data[-1] ^= 1
    (out / FIRST).write_bytes(data)


def linked(out: Path) -> None:
    """The same bytes, but elsewhere."""
    (out / FIRST).rename(out.parent / "elsewhere")
    (out / FIRST).symlink_to(out.parent / "elsewhere")


def linked_folder(out: Path) -> None:
    (out / "client-1").rename(out.parent / "elsewhere")
    (out / "client-1").symlink_to(out.parent / "elsewhere")


def piped(out: Path) -> None:
    (out / FIRST).unlink()
    os.mkfifo(out / FIRST)


def added(name: str) -> Callable[[Path], object]:
    return lambda out: (out / name).write_bytes(b"x")


def manifest(change: Callable[[str], str]) -> Callable[[Path], object]:
    def spoil(out: Path) -> None:
        file = out / "manifest.json"
        file.write_text(change(file.read_text()))

    return spoil


def listed_twice(text: str) -> str:
    data = json.loads(text)
    return json.dumps(data | {"files": [*data["files"], data["files"][0]]})


def linked_manifest(out: Path) -> None:
    (out / "manifest.json").rename(out.parent / "manifest")
    (out / "manifest.json").symlink_to(out.parent / "manifest")


TORN = {"manifest.json": "missing, or not of clair"}
SPOILED: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "changed": (rewritten, {FIRST: "changed since it was written"}),
    "cut off": (lambda out: os.truncate(out / FIRST, 100), {FIRST: "changed since it was written"}),
    "missing": (lambda out: (out / FIRST).unlink(), {FIRST: "missing"}),
    "foreign": (added("client-1/x.bin"), {"client-1/x.bin": "not in the manifest"}),
    "hostile name": (added("\x1b[31m\u202e\n"), {"\x1b[31m\u202e\n": "not in the manifest"}),
    "a link in place of a file": (linked, {FIRST: "cannot be read: Too many levels of symbolic links"}),
    "a pipe in place of a file": (piped, {FIRST: "cannot be read: not a regular file"}),
    "a link to a folder": (
        lambda out: (out / "more").symlink_to("/"),
        {"more": "not in the manifest"},
    ),
    "a link that leads nowhere": (
        lambda out: (out / "more").symlink_to("nowhere"),
        {"more": "not in the manifest"},
    ),
    "torn manifest": (manifest(lambda text: text[: len(text) // 2]), TORN),
    "empty manifest": (manifest(lambda text: ""), TORN),
    "another's manifest": (manifest(lambda text: text.replace('"clair"', '"other"')), TORN),
    "of a newer clair": (manifest(lambda text: text.replace('"1.0"', '"2.0"')), TORN),
    "names that are none": (manifest(lambda text: text.replace(f'"{FIRST}"', "[1]")), TORN),
    "one name twice": (manifest(listed_twice), TORN),
    "nested without end": (manifest(lambda text: "[" * 100_000), TORN),
    "linked manifest": (linked_manifest, TORN),
    "a name outside": (
        manifest(lambda text: text.replace(f'"{FIRST}"', '"../../../etc/passwd"')),
        {"../../../etc/passwd": "missing", FIRST: "not in the manifest"},
    ),
}  # fmt: skip


def there_or_listed(out: Path) -> set[Path]:
    """Every file that is compared: what is in the folder, and what its manifest names."""
    there = {p for p in out.rglob("*") if p.is_symlink() or not p.is_dir()}
    listed = json.loads((out / "manifest.json").read_text())["files"]
    return (there | {out / f["name"] for f in listed}) - {out / "manifest.json"}


def test_folders_without_end_are_differences_and_nobody_looks_into_them(out: Path) -> None:
    place = os.getcwd()
    try:
        os.chdir(out)
        for _ in range(1500):  # longer than any path, and deeper than Python recurses
            os.mkdir("x")
            os.chdir("x")
    finally:
        os.chdir(place)
    try:
        done = quick(out.parent, "verify", out)
        assert (done.returncode, done.stderr) == (1, "")
        first, last = done.stdout.splitlines()
        assert first.endswith("x: not in the manifest")
        assert last.startswith("FAIL: 1 of ")
    finally:
        shutil.move(out / "x", out.parent / "deep")
        subprocess.run(["rm", "-rf", str(out.parent / "deep")], check=True)


@pytest.mark.parametrize("name", SPOILED)
def test_every_difference_is_named_and_exits_1(name: str, out: Path) -> None:
    spoil, wanted = SPOILED[name]
    spoil(out)
    done = verify(out, "-f", "json")
    assert (done.returncode, done.stderr) == (1, "")
    said = json.loads(done.stdout)["differences"]
    assert {d["name"]: d["difference"] for d in said} == wanted
    plain = verify(out)
    assert plain.returncode == 1
    assert plain.stdout.count("\n") == len(wanted) + 1
    count = 1 if wanted == TORN else len(there_or_listed(out))
    assert plain.stdout.endswith(f"FAIL: {len(wanted)} of {count} files differ\n")
    assert not set("\x1b\u202e") & set(plain.stdout)
    silent = verify(out, "-q")
    assert silent.stdout == ""
    assert silent.stderr == plain.stdout.splitlines()[-1] + "\n"


def test_a_file_of_another_size_is_not_read(out: Path) -> None:
    with open(out / "client-1" / WEIGHTS, "r+b") as file:
        file.truncate(2**43)
    done = quick(out.parent, "verify", out)
    assert (done.returncode, "client-1/adapter_model" in done.stdout) == (1, True)


def test_a_folder_behind_a_link_is_not_looked_into(out: Path) -> None:
    linked_folder(out)
    names = [line.partition(":")[0] for line in verify(out).stdout.splitlines()[:-1]]
    assert names == ["client-1", *(f"client-1/{n}" for n in sorted(os.listdir(out / "client-1")))]


@pytest.mark.parametrize("what", ["none", "file", "no manifest"])
def test_what_clair_has_not_written_exits_2(what: str, out: Path) -> None:
    place = {"none": out / "none", "file": out / "manifest.json", "no manifest": out / "client-1"}
    done = quick(out.parent, "verify", place[what])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert str(place[what]) in done.stderr


def test_a_full_disk_behind_stdout_exits_4(out: Path) -> None:
    with open("/dev/full", "wb") as full:
        assert clair("verify", out, stdout=full).returncode == 4


def test_the_help_knows_it_and_its_codes() -> None:
    assert "verify" in clair("--help").stdout
    said = clair("verify", "--help").stdout.partition("Exit codes:")[2]
    assert [line.split()[0] for line in said.splitlines() if line.strip()] == [
        "0",
        "1",
        "2",
        "4",
        "70",
    ]


def test_of_a_file_that_grows_no_more_is_read_than_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had its size a moment ago, and then gets 8 TiB more."""
    file, read, sizes = tmp_path / "file", os.read, []
    file.write_bytes(b"x" * 100)

    def grows(fd: int, most: int) -> bytes:
        if not sizes:
            os.truncate(file, 2**43)
        sizes.append(most)
        return read(fd, most)

    monkeypatch.setattr(os, "read", grows)
    found = facts(file, 100)
    assert found["size"] > 100
    assert len(sizes) == 1
