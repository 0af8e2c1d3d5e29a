"""Clients exchanged by another process while clair runs: what was hashed is what was computed on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.cohorts import save_dense, truths
from tests.helpers.commands import CONFIG, WEIGHTS, alongside, quick

CLIENTS = [f"client-{k}" for k in range(1, 5)]
MODULES = 40

ONCE = """
import os, sys
place, out, client, other, kept = sys.argv[1:]
print("ready", flush=True)
while not any(name.startswith("." + out + ".clair-") for name in os.listdir(place)):
    pass  # the verdicts are there, and writing begins
os.rename(client, kept)
os.rename(other, client)
"""
ALWAYS = """
import os, random, sys, time
place, out, client, other, kept = sys.argv[1:]
print("ready", flush=True)
while True:
    time.sleep(random.uniform(0, 0.5))
    os.rename(client, kept)
    os.rename(other, client)
    time.sleep(random.uniform(0, 0.5))
    os.rename(client, other)
    os.rename(kept, client)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round, and other adapters of client-2."""
    folder = tmp_path_factory.mktemp("made")
    updates = truths(len(CLIENTS) + 1, modules=MODULES)
    for name, update in zip([*CLIENTS, "other"], updates, strict=True):
        save_dense(folder / "in" / name, update, rank=4)
    (folder / "in" / "other").rename(folder / "other")
    for name in (WEIGHTS, CONFIG):  # nothing but the contents tells them apart
        info = (folder / "in" / "client-2" / name).stat()
        os.utime(folder / "other" / name, ns=(info.st_atime_ns, info.st_mtime_ns))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "x", copy_function=shutil.copy2)
    return tmp_path / "x"


@contextmanager
def racing(code: str, place: Path, other: Path) -> Iterator[None]:
    """A process that exchanges client-2 and `other` while the block runs."""
    names = [place, "out", place / "in" / "client-2", other, place / "kept"]
    with alongside(code, *names):
        yield


def link_to_another(place: Path) -> Path:
    (place / "link").symlink_to(place / "other")
    return place / "link"


def without_weights(place: Path) -> Path:
    (place / "other" / WEIGHTS).unlink()
    return place / "other"


OTHERS = {
    "another adapter": lambda place: place / "other",
    "a link to another adapter": link_to_another,
    "an adapter without weights": without_weights,
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_folder_exchanged_between_detecting_and_writing_is_no_verdict(
    what: str, place: Path
) -> None:
    with racing(ONCE, place, OTHERS[what](place)):
        done = quick(place, "refine", place / "in", "--out", place / "out", "-q")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert "nothing was written, run again" in done.stderr
    assert {"out", "kept"} - set(os.listdir(place)) == {"out"}
    assert not [n for n in os.listdir(place) if n.startswith(".")]


def test_whatever_is_exchanged_all_the_time_the_result_is_of_what_was_hashed(place: Path) -> None:
    """At strength 0 the adapter that is written is the one whose hash is in the report."""
    truth = {sha256(f / WEIGHTS): f for f in (place / "in" / "client-2", place / "other")}
    kept = {digest: (folder / WEIGHTS).read_bytes() for digest, folder in truth.items()}
    assert len(kept) == 2
    ends = []
    for _ in range(12):
        with racing(ALWAYS, place, place / "other"):
            options = ("--strength", 0, "--overwrite", "--tasks", "own")
            done = quick(place, "refine", place / "in", "--out", place / "out", *options)
        restore(place)
        assert done.returncode in (0, 3), done.stderr
        if done.returncode == 3:
            ends.append("refused")
        else:
            report = json.loads((place / "out" / "report.json").read_text())
            (said,) = [c for c in report["inputs"]["clients"] if c["id"] == "client-2"]
            written = place / "out" / "client-2" / WEIGHTS
            ends.append("written" if written.exists() else "broken")
            if written.exists():
                (digest,) = [f["sha256"] for f in said["files"] if f["name"] == WEIGHTS]
                assert written.read_bytes() == kept[digest]
    assert len(set(ends)) > 1


def restore(place: Path) -> None:
    """The folders under their own names, whenever the racer was stopped."""
    if (place / "kept").exists():
        if (place / "in" / "client-2").exists():
            (place / "in" / "client-2").rename(place / "other")
        (place / "kept").rename(place / "in" / "client-2")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
