"""The same updates in other files give the same verdicts, through the whole pipeline.

Truth: sample_adapters as shipped. What leaves every product as it is may move a score by rounding
only. float32 tables are exact to about 1e-6, and a score is a ratio of them over a floor of 0.135:
1e-5, for which 1e-4 leaves room. bfloat16 keeps 8 bits: every factor moves by up to 2^-9 of itself,
a product by 2^-8, which is 0.03 over the floor, were all of it in one direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from clair_cli import Report, Settings, detect, open_adapter, read_update
from tests.helpers.builders import orthonormal
from tests.helpers.commands import (
    CLIENTS,
    CONTAMINATED,
    SAMPLES,
    WEIGHTS,
    change_config,
    join_weights,
    samples,
    split_weights,
)

ROUNDING, BFLOAT16, DEVICE = 1e-4, 0.03, 1e-3
CPU = Settings(device="cpu", threads=1)
Tensors = dict[str, Tensor]
Said = dict[str, tuple[str | None, float, frozenset[str]]]


def said(report: Report, names: dict[str, str] | None = None) -> Said:
    """Client -> verdict, score and codes, under the name it has in the samples."""
    return {
        (names or {}).get(c.client, c.client): (
            c.verdict,
            float(c.score if c.score is not None else "nan"),
            frozenset(r.code for r in c.reasons),
        )
        for c in report.clients
    }


@pytest.fixture(scope="module")
def shipped() -> Said:
    found = said(detect(SAMPLES, CPU))
    assert {c for c, v in found.items() if v[0] == "contaminated"} == CONTAMINATED
    assert {c for c, v in found.items() if v[0] == "benign"} == set(CLIENTS) - CONTAMINATED
    return found


def assert_equal(found: Said, wanted: Said, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for client, (verdict, score, codes) in wanted.items():
        assert found[client][0] == verdict
        assert found[client][1] == pytest.approx(score, abs=tolerance)
        assert found[client][2] == codes


def rewritten(folder: Path, change: Callable[[Tensors, torch.Generator], Tensors]) -> Path:
    """The samples with every client's tensors changed, each with draws of its own."""
    samples(folder)
    for k, client in enumerate(CLIENTS):
        file = folder / client / WEIGHTS
        before, draw = load_file(file), torch.Generator().manual_seed(k)
        after = change(dict(before), draw)
        assert after.keys() == before.keys()
        save_file({n: t.contiguous() for n, t in after.items()}, file, {"format": "pt"})
    return folder


def pairs(tensors: Tensors) -> list[tuple[str, str]]:
    """The names of A and B of every module."""
    found = [(n, n.replace("lora_A", "lora_B")) for n in tensors if "lora_A" in n]
    assert len(found) == 14
    return found


# --- what leaves every product as it is


def test_the_order_of_clients_changes_nothing(shipped: Said, tmp_path: Path) -> None:
    """Renamed so that the last comes first and the two contaminated ones lead the rest."""
    order = ["client-06", *reversed(CLIENTS[6:]), "client-03", "client-05", "client-01"]
    order += [c for c in CLIENTS if c not in order]
    folder = samples(tmp_path / "round")
    names = {f"z-{k:02}": c for k, c in enumerate(order)}
    for new, old in names.items():
        (folder / old).rename(folder / new)
    report = detect(folder, CPU)
    assert [names[c.client] for c in report.clients] == order
    assert_equal(said(report, names), shipped, ROUNDING)


def turned(
    tensors: Tensors,
    draw: torch.Generator,
    condition: float = 4,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    """(B G, G^-1 A) with G of this condition: that many digits are lost as they are stored."""
    for a, b in pairs(tensors):
        r = len(tensors[a])
        stretch = torch.logspace(0, math.log10(condition), r, dtype=torch.float64)
        g = orthonormal(r, r, draw) * stretch @ orthonormal(r, r, draw)
        tensors[b] = (tensors[b].double() @ g).to(dtype)
        tensors[a] = torch.linalg.solve(g, tensors[a].double()).to(dtype)
    return tensors


def test_the_gauge_changes_nothing(shipped: Said, tmp_path: Path) -> None:
    folder = rewritten(tmp_path / "round", turned)
    own, other = (open_adapter(path / "client-01") for path in (SAMPLES, folder))
    for module in own.updates:
        before, after = read_update(own, module), read_update(other, module)
        assert float((before.down - after.down).norm() / before.down.norm()) > 0.1
        torch.testing.assert_close(after.dense(), before.dense(), atol=1e-5, rtol=1e-4)
    assert_equal(said(detect(folder, CPU)), shipped, ROUNDING)


def test_a_gauge_that_float32_could_not_hold_changes_nothing_in_float64(
    shipped: Said, tmp_path: Path
) -> None:
    """Gram matrices square the condition: 1e4 is beyond float32, and float64 files are not cut."""
    folder = rewritten(tmp_path / "round", lambda t, draw: turned(t, draw, 1e4, torch.float64))
    assert_equal(said(detect(folder, CPU)), shipped, ROUNDING)
    narrow = said(detect(folder, replace(CPU, dtype="float32")))
    assert not all(narrow[c][1] == pytest.approx(v[1], abs=ROUNDING) for c, v in shipped.items())


def backwards(file: Path) -> None:
    """The same tensors, in the file and in its header from last to first."""
    header, data = split_weights(file)
    metadata = header.pop("__metadata__", None)
    found, content, at = {}, b"", 0
    for name in sorted(header, key=lambda n: -header[n]["data_offsets"][0]):
        begin, end = header[name]["data_offsets"]
        found[name] = header[name] | {"data_offsets": [at, at + end - begin]}
        content, at = content + data[begin:end], at + end - begin
    join_weights(file, ({"__metadata__": metadata} if metadata else {}) | found, content)


def test_the_order_of_tensors_in_the_file_changes_nothing(shipped: Said, tmp_path: Path) -> None:
    folder = samples(tmp_path / "round")
    for client in CLIENTS[::2]:  # every second client, so that orders are mixed
        file = folder / client / WEIGHTS
        bytes_before = file.read_bytes()
        backwards(file)
        assert file.read_bytes() != bytes_before
        before, after = load(bytes_before), load_file(file)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[n], t) for n, t in after.items())
    assert_equal(said(detect(folder, CPU)), shipped, 0)


@pytest.mark.parametrize("factor", [1000.0, 1e-3])
def test_the_scale_of_the_whole_cohort_changes_nothing(
    shipped: Said, factor: float, tmp_path: Path
) -> None:
    def scaled(tensors: Tensors, _: torch.Generator) -> Tensors:
        return {n: t * factor if "lora_B" in n else t for n, t in tensors.items()}

    assert_equal(said(detect(rewritten(tmp_path / "round", scaled), CPU)), shipped, ROUNDING)


@pytest.mark.parametrize("every", [1, 2])
def test_a_rank_padded_with_zeros_changes_nothing(
    shipped: Said, every: int, tmp_path: Path
) -> None:
    """Rank 8 becomes 12, alpha 16 becomes 24; all clients, or every second."""
    folder = samples(tmp_path / "round")
    for client in CLIENTS[::every]:
        file = folder / client / WEIGHTS
        padded = {
            n: torch.nn.functional.pad(t, (0, 0, 0, 4) if "lora_A" in n else (0, 4))
            for n, t in load_file(file).items()
        }
        save_file(padded, file, {"format": "pt"})
        change_config(folder / client, r=12, lora_alpha=24)
        assert {u.rank for u in open_adapter(folder / client).updates.values()} == {12}
    report = detect(folder, CPU)
    assert ("CLR304" in {f.code for f in report.population.findings}) == (
        every == 2
    )  # ranks differ
    assert_equal(said(report), shipped, ROUNDING)


# --- how it is stored and computed


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, ROUNDING), (torch.float16, BFLOAT16 / 8), (torch.bfloat16, BFLOAT16)],
)
def test_the_stored_dtype_changes_no_verdict(
    shipped: Said, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    folder = rewritten(tmp_path / "round", lambda t, _: {n: x.to(dtype) for n, x in t.items()})
    assert_equal(said(detect(folder, CPU)), shipped, tolerance)


def test_the_number_of_threads_changes_nothing(shipped: Said) -> None:
    """The samples were judged with one."""
    assert_equal(said(detect(SAMPLES, Settings(device="cpu", threads=2))), shipped, ROUNDING)


def test_the_precision_of_the_computation_changes_nothing(shipped: Said) -> None:
    wide = Settings(device="cpu", threads=1, dtype="float64")
    assert_equal(said(detect(SAMPLES, wide)), shipped, ROUNDING)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_changes_no_verdict(shipped: Said) -> None:
    report = detect(SAMPLES, Settings(device="cuda"))
    assert report.run["environment"]["device"].startswith("cuda")
    assert_equal(said(report), shipped, DEVICE)


# --- and what does change an update changes its score


def test_another_alpha_is_another_update(shipped: Said, tmp_path: Path) -> None:
    """The comparisons above can fail: one client's scale alone, and it is no longer benign."""
    folder = samples(tmp_path / "round")
    change_config(folder / "client-05", lora_alpha=64)
    found = said(detect(folder, CPU))
    assert found["client-05"][0] == "contaminated"
    with pytest.raises(AssertionError):
        assert_equal(found, shipped, BFLOAT16)
