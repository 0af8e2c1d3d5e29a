"""One spoiled client is `broken` and says why; the others are judged as if it were not there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.helpers.commands import (
    CLIENTS,
    CONFIG,
    CONTAMINATED,
    WEIGHTS,
    change_config,
    fingerprint,
    join_weights,
    quick,
    samples,
    split_weights,
    verdicts,
)

SPOILED = "client-05"
OTHERS = {c: "contaminated" if c in CONTAMINATED else "benign" for c in CLIENTS if c != SPOILED}
UP, DOWN = "v_proj.lora_B.weight", "v_proj.lora_A.weight"
Tensors = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Case:
    """What is done to the client's folder, and what must be said of it."""

    spoil: Callable[[Path], object]
    code: str
    says: tuple[str, ...]


def bytes_changed(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda c: (c / WEIGHTS).write_bytes(change((c / WEIGHTS).read_bytes()))


def entry_changed(field: str, change: Callable[[list[int]], list[int]]) -> Callable[[Path], object]:
    """One field of the header's entry for one tensor."""

    def spoil(client: Path) -> None:
        header, data = split_weights(client / WEIGHTS)
        entry = header[key(header, UP)]
        entry[field] = change(entry[field])
        join_weights(client / WEIGHTS, header, data)

    return spoil


def tensors_changed(change: Callable[[Tensors], Tensors]) -> Callable[[Path], object]:
    """An honest file of other tensors."""
    return lambda c: save_file(change(load_file(c / WEIGHTS)), c / WEIGHTS, {"format": "pt"})


def config_changed(**fields: Any) -> Callable[[Path], object]:
    return lambda c: change_config(c, **fields)


def key(names: Any, ending: str) -> str:
    """The first tensor whose name ends so."""
    return min(n for n in names if n.endswith(ending))


def with_value(ending: str, value: float) -> Callable[[Path], object]:
    def change(tensors: Tensors) -> Tensors:
        tensors[key(tensors, ending)][1, 2] = value
        return tensors

    return tensors_changed(change)


def without(keep: Callable[[int, str], bool]) -> Callable[[Path], object]:
    """Without the modules that `keep` does not keep, by number and name."""
    return tensors_changed(lambda t: {n: t[n] for i, n in enumerate(sorted(t)) if keep(i // 2, n)})


def cut(tensors: Tensors) -> Tensors:
    """One B with half of its columns."""
    name = key(tensors, UP)
    return tensors | {name: tensors[name][:, :4].copy()}


def doubled(tensors: Tensors) -> Tensors:
    """Every A twice as wide: a base model of another width."""
    return {n: np.concatenate([t, t], 1) if "lora_A" in n else t for n, t in tensors.items()}


def twice(client: Path) -> None:
    header, data = split_weights(client / WEIGHTS)
    entry = f"{json.dumps(key(header, UP))}: {json.dumps(header[key(header, UP)])}"
    join_weights(client / WEIGHTS, json.dumps(header)[:-1] + ", " + entry + "}", data)


class Canary:
    """Unpickled, it leaves a file beside the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def canary(client: Path) -> Path:
    return client.parents[1] / "canary"


def pickled(client: Path) -> None:
    (client / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary(client))))


def pickle_only(client: Path) -> None:
    pickled(client)
    (client / WEIGHTS).unlink()


def pickle_inside(client: Path) -> None:
    pickled(client)
    (client / "adapter_model.bin").rename(client / WEIGHTS)


def fifo(client: Path) -> None:
    (client / WEIGHTS).unlink()
    os.mkfifo(client / WEIGHTS)


def link_outside(client: Path) -> None:
    shutil.move(client / WEIGHTS, client.parents[1] / "elsewhere")
    (client / WEIGHTS).symlink_to(client.parents[1] / "elsewhere")


def emptied(client: Path) -> None:
    shutil.rmtree(client)
    client.mkdir()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 73128\n"
HUGE = struct.pack("<Q", 2**63)
BROKEN = {
    "truncated": Case(bytes_changed(lambda d: d[:-100]), "CLR102", (WEIGHTS, "lora_", "past")),
    "trailing bytes": Case(bytes_changed(lambda d: d + b"x"), "CLR102", (WEIGHTS,)),
    "header length": Case(bytes_changed(lambda d: HUGE + d[8:]), "CLR102", (WEIGHTS, str(2**63))),
    "offsets": Case(
        entry_changed("data_offsets", lambda o: [o[0] + 4, o[1] + 4]), "CLR102", (WEIGHTS, "lora_")
    ),
    "shape": Case(
        entry_changed("shape", lambda s: [s[0], s[1] * 2]), "CLR102", (WEIGHTS, UP, "shape")
    ),
    "duplicate key": Case(twice, "CLR102", (WEIGHTS, UP, "twice")),
    "NaN": Case(with_value(DOWN, np.nan), "CLR103", (WEIGHTS, DOWN, "1 NaN", "[1, 2]")),
    "NaN in B only": Case(with_value(UP, np.nan), "CLR103", (WEIGHTS, UP, "1 NaN", "[1, 2]")),
    "Inf": Case(with_value(DOWN, np.inf), "CLR103", (WEIGHTS, DOWN, "1 Inf", "[1, 2]")),
    "A without B": Case(without(lambda i, n: UP not in n), "CLR104", (WEIGHTS, DOWN, "lora_B")),
    "inner shape": Case(tensors_changed(cut), "CLR104", (WEIGHTS, UP, DOWN)),
    "rank and config": Case(config_changed(r=4), "CLR104", (WEIGHTS, "lora_A", CONFIG, "4")),
    "other shapes": Case(tensors_changed(doubled), "CLR104", (WEIGHTS, "proj", "128")),
    "no alpha": Case(config_changed(lora_alpha=...), "CLR105", (CONFIG, "lora_alpha")),
    "alpha is NaN": Case(config_changed(lora_alpha=float("nan")), "CLR105", (CONFIG, "NaN")),
    "no config": Case(lambda c: (c / CONFIG).unlink(), "CLR105", (CONFIG, "missing")),
    "other base": Case(
        config_changed(base_model_name_or_path="org/other"),
        "CLR106",
        ("its base model", "org/other"),
    ),
    "most modules gone": Case(without(lambda i, n: i < 3), "CLR107", ("3 of the 14", "missing")),
    "pickle only": Case(pickle_only, "CLR109", ("adapter_model.bin", "pickle")),
    "pickle inside": Case(pickle_inside, "CLR109", (WEIGHTS, "pickle")),
    "FIFO": Case(fifo, "CLR110", (WEIGHTS, "not a regular file")),
    "link outside": Case(link_outside, "CLR110", (WEIGHTS, "link")),
    "zero bytes": Case(bytes_changed(lambda d: b""), "CLR102", (WEIGHTS, "empty")),
    "LFS pointer": Case(bytes_changed(lambda d: LFS), "CLR102", (WEIGHTS, "git-LFS")),
}
JUDGED = {
    "a module gone": Case(without(lambda i, n: i != 0), "CLR304", ("13 of 14", SPOILED)),
    "pickle beside": Case(pickled, "CLR109", ("adapter_model.bin", "not opened")),
}


def detect(folder: Path, hook: str = "") -> tuple[dict[str, Any], str]:
    """The report and stderr; the exit code must be 1."""
    done = quick(folder.parent, "detect", folder, "-f", "json", hook=hook)
    assert done.returncode == 1
    return json.loads(done.stdout), done.stderr


def spoiled(case: Case, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """`clair detect` on the samples with one client spoiled; nothing may be written to them."""
    folder = samples(tmp_path / "round")
    case.spoil(folder / SPOILED)
    before = fingerprint(folder)
    found = detect(folder)
    assert fingerprint(folder) == before
    assert not canary(folder / SPOILED).exists()
    return found


def is_said(case: Case, reason: dict[str, Any]) -> bool:
    """The right code, and one line that names what it must."""
    assert reason["code"] == case.code
    assert "\n" not in reason["message"]
    return not [s for s in case.says if s not in reason["message"]]


def scores(report: dict[str, Any]) -> dict[str, float]:
    return {c["id"]: c["score"] for c in report["clients"] if c["id"] != SPOILED}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The scores of the others where the spoiled client was never there."""
    return scores(detect(samples(tmp_path_factory.mktemp("alone") / "round", tuple(OTHERS)))[0])


@pytest.mark.parametrize("name", BROKEN)
def test_a_spoiled_client_is_broken_and_the_others_are_judged(
    name: str, tmp_path: Path, alone: dict[str, float]
) -> None:
    report, said = spoiled(BROKEN[name], tmp_path)
    assert verdicts(report) == OTHERS | {SPOILED: "broken"}
    (client,) = (c for c in report["clients"] if c["id"] == SPOILED)
    assert is_said(BROKEN[name], client["reasons"][0]), client["reasons"]
    assert scores(report) == pytest.approx(alone, rel=1e-4)
    assert said == "FAIL: 2 contaminated, 1 broken\n"


def test_an_emptied_folder_is_no_client_and_is_named(
    tmp_path: Path, alone: dict[str, float]
) -> None:
    """Nobody sent anything there, so nobody is accused; that something is missing is said."""
    report, said = spoiled(Case(emptied, "CLR117", (SPOILED, WEIGHTS)), tmp_path)
    assert verdicts(report) == OTHERS
    (finding,) = report["population"]["findings"]
    assert (finding["code"], SPOILED in finding["message"]) == ("CLR117", True)
    assert scores(report) == pytest.approx(alone, rel=1e-4)
    assert said == "FAIL: 2 contaminated\n"


def test_the_canary_would_sing(tmp_path: Path) -> None:
    pickled(samples(tmp_path / "round", (SPOILED,)) / SPOILED)
    pickle.loads((tmp_path / "round" / SPOILED / "adapter_model.bin").read_bytes())
    assert canary(tmp_path / "round" / SPOILED).exists()


@pytest.mark.parametrize("name", JUDGED)
def test_a_remark_does_not_keep_a_client_from_being_judged(name: str, tmp_path: Path) -> None:
    report, _ = spoiled(JUDGED[name], tmp_path)
    assert verdicts(report) == OTHERS | {SPOILED: "benign"}
    (client,) = (c for c in report["clients"] if c["id"] == SPOILED)
    (reason,) = (*client["reasons"], *report["population"]["findings"])
    assert is_said(JUDGED[name], reason), reason


def test_the_same_base_under_another_path_is_the_same_base(tmp_path: Path) -> None:
    folder = samples(tmp_path / "round")
    base = json.loads((folder / SPOILED / CONFIG).read_text())["base_model_name_or_path"]
    change_config(folder / SPOILED, base_model_name_or_path=f"/somewhere/else/{base}/")
    report, _ = detect(folder)
    assert verdicts(report) == OTHERS | {SPOILED: "benign"}
    assert report["population"]["findings"] == []


CHANGED = """
    import os, shutil
    from clair_cli import formats
    read, done = formats.read_update, []
    def changed(adapter, *args):
        if adapter.client == {client!r} and not done:
            done.append(1)
            {change}
        return read(adapter, *args)
    formats.read_update = changed
"""


@pytest.mark.parametrize(
    "change",
    [
        "os.replace({other!r}, {file!r})",
        "os.truncate({file!r}, 100)",
        "os.unlink({file!r})",
        "open({file!r}, 'r+b').write(b'x')",
        "os.utime({file!r})",
    ],
)
def test_a_file_that_changes_after_it_was_opened_is_not_used(change: str, tmp_path: Path) -> None:
    folder = samples(tmp_path / "round")
    file, other = folder / SPOILED / WEIGHTS, shutil.copy2(folder / SPOILED / WEIGHTS, tmp_path)
    change = change.format(file=str(file), other=str(other))
    report, _ = detect(folder, CHANGED.format(client=SPOILED, change=change))
    assert verdicts(report) == OTHERS | {SPOILED: "broken"}
    (client,) = (c for c in report["clients"] if c["id"] == SPOILED)
    wanted = ("CLR101", ("No such file",)) if "unlink" in change else ("CLR112", ("changed",))
    assert is_said(Case(print, wanted[0], (WEIGHTS, *wanted[1])), client["reasons"][0])
