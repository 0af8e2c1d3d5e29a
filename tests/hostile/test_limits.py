"""Files made to exhaust memory or time: refused, or read, within a gigabyte and in seconds."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from clair_cli import open_adapter
from clair_cli.errors import ConfigInvalid
from clair_cli.pipeline import detect
from tests.helpers.adapters import CONFIG as HONEST
from tests.helpers.adapters import factors, write_folder
from tests.helpers.cohorts import save_cohort
from tests.helpers.commands import CONFIG, WEIGHTS, clair

SECONDS, MEMORY = 30, 2**30
PREFIX = "base_model.model.m"


def limited() -> None:
    """An address space of one GiB, and seconds of the processor rather than minutes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def spread(client: Path, header: bytes, size: int | None = None, length: int | None = None) -> None:
    """A sparse weights file of `size` bytes that begins with this header."""
    with open(client / WEIGHTS, "wb") as file:
        file.write((len(header) if length is None else length).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) if size is None else size)


def tensors(client: Path, dtype: str, shapes: dict[str, list[int]]) -> None:
    """Honest entries of these shapes over a sparse file of zeros."""
    at, entries = 0, {}
    for name, shape in shapes.items():
        size = {"F32": 4, "F16": 2}[dtype]
        for n in shape:
            size *= n
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    spread(client, header, 8 + len(header) + at)


def configured(client: Path, **fields: Any) -> None:
    (client / CONFIG).write_text(json.dumps(HONEST | fields))


def pair(rank: int, d_in: int, d_out: int = 4) -> dict[str, list[int]]:
    names = (f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight")
    return dict(zip(names, ([rank, d_in], [d_out, rank]), strict=True))


def large_rank(client: Path) -> None:
    tensors(client, "F16", pair(1024, 2**19, 2**10))
    configured(client, r=1024)


def kronecker(client: Path) -> None:
    """8 MB that stand for 2^40 numbers."""
    tensors(client, "F32", {f"{PREFIX}.lokr_w1": [1024, 1024], f"{PREFIX}.lokr_w2": [1024, 1024]})
    configured(client, peft_type="LOKR", alpha=4)


def hadamard(client: Path) -> None:
    """Rank 256 that becomes 65 536."""
    sides = {f"{PREFIX}.hada_w{i}_a": [2**16, 256] for i in (1, 2)}
    sides |= {f"{PREFIX}.hada_w{i}_b": [256, 2**16] for i in (1, 2)}
    tensors(client, "F16", sides)
    configured(client, peft_type="LOHA", r=256, alpha=4)


def experts(client: Path) -> None:
    """A million updates in two small tensors."""
    layers = {
        f"{PREFIX}.experts.lora_A.weight": [2**20, 1],
        f"{PREFIX}.experts.lora_B.weight": [1, 2**20],
    }
    tensors(client, "F16", layers)
    configured(client, r=1, target_parameters=["m.experts.down_proj"])


def many(client: Path, count: int) -> None:
    """That many tensors of nothing."""
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    spread(client, ("{" + ",".join(f'"t{i}":{entry}' for i in range(count)) + "}").encode())


def shards(client: Path, count: int, each: int) -> None:
    """An adapter in that many files, each of `each` tensors of one number, or empty."""
    (client / WEIGHTS).unlink()
    for number in range(1, count + 1):
        path = client / f"adapter_model-{number:05}-of-{count:05}.safetensors"
        if not each:
            path.touch()
            continue
        entry = '"m{}.{}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}'
        entries = ",".join(entry.format(number, i, 4 * i, 4 * i + 4) for i in range(each))
        header = f"{{{entries}}}".encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4 * each))


def metadata(client: Path, text: str) -> None:
    header = {"__metadata__": {"lora_adapter_metadata": text}}
    at = 0
    for name, shape in (("unet.q.lora_A.weight", [2, 4]), ("unet.q.lora_B.weight", [4, 2])):
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 32]}  # type: ignore[dict-item]
        at += 32
    data = json.dumps(header).encode()
    spread(client, data, 8 + len(data) + at)


def text(client: Path, data: bytes) -> None:
    (client / CONFIG).write_bytes(data)


MIB = 2**20
BOMBS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "header of 2^63 bytes": (lambda c: spread(c, b"{}", length=2**63), ("CLR102",)),
    "header of 100 GiB": (lambda c: spread(c, b"{}", 200 * 2**30, 100 * 2**30), ("CLR111",)),
    "header of 100 MB": (lambda c: spread(c, b'{"a":' + b"[" * 10**8), ("CLR111",)),
    "header of 8 MiB, nested": (lambda c: spread(c, b'{"a":' + b"[" * (8 * MIB - 9)), ("CLR102",)),
    "header of one number": (lambda c: spread(c, b'{"a":' + b"9" * (8 * MIB - 9)), ("CLR102",)),
    "header of one name": (lambda c: spread(c, b'{"' + b"n" * (8 * MIB - 9) + b'":1}'), ("CLR111",)),
    "100 000 tensors": (lambda c: many(c, 100_000), ("CLR111",)),
    "20 000 tensors of nothing": (lambda c: many(c, 20_000), ("CLR108", "CLR104")),
    "30 shards of 15 000 tensors": (lambda c: shards(c, 30, 15_000), ("CLR111",)),
    "40 000 empty shards": (lambda c: shards(c, 40_000, 0), ("CLR102",)),
    "200 GiB of zeros": (lambda c: tensors(c, "F32", pair(2**15, 2**20, 2**15)), ("CLR111",)),
    "a rank of 2^20": (lambda c: tensors(c, "F16", pair(2**20, 64)), ("CLR111", "CLR104")),
    "1 GiB of one update": (large_rank, ("CLR111",)),
    "a Kronecker product": (kronecker, ("CLR111",)),
    "a Hadamard product": (hadamard, ("CLR111",)),
    "a million experts": (experts, ("CLR111", "CLR104", "CLR105", "CLR108")),
    "metadata, nested": (lambda c: metadata(c, "[" * MIB), ("CLR102", "CLR105")),
    "metadata of one number": (lambda c: metadata(c, '{"r": ' + "9" * MIB + "}"), ("CLR102", "CLR105")),
    "config of 2 MiB": (lambda c: text(c, b'{"a": "' + b"x" * 2 * MIB + b'"}'), ("CLR105",)),
    "config, nested": (lambda c: text(c, b'{"a":' + b"[" * (MIB - 9)), ("CLR105",)),
    "config of one number": (lambda c: text(c, b'{"r": ' + b"9" * (MIB - 9) + b"}"), ("CLR105",)),
    "a base model of 900 000 letters": (
        lambda c: configured(c, base_model_name_or_path="x" * 900_000), ("CLR105",)
    ),
    "config of 1e999": (lambda c: text(c, b'{"peft_type": "LORA", "lora_alpha": 1e999}'), ("CLR105",)),
}  # fmt: skip
PATTERNS = ("(a+)+$", "(.*.*)*Z", "(a|aa)+b", "(.*)*x", r"(\w+\.)+Z", "a" * 100_000, "(" * 5000)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_a_gigabyte_and_in_seconds(name: str, tmp_path: Path) -> None:
    bomb, codes = BOMBS[name]
    client = write_folder(tmp_path / "client")
    bomb(client)
    began = time.monotonic()
    done = clair("inspect", client, preexec_fn=limited)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith(tuple(f"clair: broken: {code} " for code in codes)), done.stderr
    assert len(done.stderr) < 700
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize(
    "field", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"]
)
def test_no_pattern_of_a_config_runs_away(field: str, tmp_path: Path) -> None:
    modules = {f"layers.{i}.{'a' * 60}": (4, 4) for i in range(50)}
    patterned, began = field.endswith("_pattern"), time.monotonic()
    for number, pattern in enumerate(PATTERNS):
        config = HONEST | {field: {pattern: 2} if patterned else pattern}
        client = write_folder(tmp_path / f"{number}", factors(modules), config)
        with pytest.raises(ConfigInvalid) if patterned else nullcontext():
            open_adapter(client)
    assert time.monotonic() - began < SECONDS


def test_twenty_thousand_honest_tensors_are_read(tmp_path: Path) -> None:
    modules = {f"layers.{i}.q": (2, 2) for i in range(10_000)}
    client = write_folder(tmp_path / "client", factors(modules), HONEST)
    done = clair("inspect", client, preexec_fn=limited)
    assert done.returncode == 0, done.stderr
    assert "10000 modules" in done.stdout


def test_the_limits_are_what_refuses(tmp_path: Path) -> None:
    """With a larger --max-header the same file is read: the limit is a choice."""
    client = write_folder(tmp_path / "client")
    data = (client / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    padded = data[8 : 8 + length].ljust(9 * MIB)
    (client / WEIGHTS).write_bytes(len(padded).to_bytes(8, "little") + padded + data[8 + length :])
    assert "CLR111" in clair("inspect", client, preexec_fn=limited).stderr
    assert clair("inspect", client, "--max-header", 10 * MIB, preexec_fn=limited).returncode == 0


def test_a_round_of_bombs_is_scanned_and_the_honest_are_judged(tmp_path: Path) -> None:
    folder = tmp_path / "round"
    honest = save_cohort(folder, 4)
    bombs = [bomb for name, (bomb, _) in BOMBS.items() if name != "1 GiB of one update"]
    for number, bomb in enumerate(bombs):
        bomb(write_folder(folder / f"bomb-{number}"))
    os.mkfifo(folder / "pipe.safetensors")
    report = detect(folder)
    found = {c.client: c.verdict for c in report.clients}
    assert {c for c, v in found.items() if v == "broken"} == found.keys() - set(honest)
    assert len(found) == 4 + len(bombs) + 1
    assert {found[c] for c in honest} == {"benign"}
