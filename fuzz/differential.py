"""One cohort stored in two ways: what is the same to the numbers must be the same to the verdicts.

A product does not change with its gauge (A times Q, Q inverse times B), with a dtype that holds it
exactly, with the layout of its shards, or with its container. So neither may a verdict, nor a score but
for rounding.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clair_cli.errors import NoVerdict
from clair_cli.pipeline import detect
from clair_cli.renderers import RENDERERS
from clair_cli.report import Report
from clair_cli.schema import report_schema, violation
from clair_cli.settings import Settings
from fuzz import clients
from fuzz.clients import CONFIG, ByteDraw, Tensors

Array = NDArray[np.float64]
Factors = dict[str, tuple[Array, Array]]
"""Module -> up (d_out, r), down (r, d_in)."""
SHAPES = ((6, 4), (12, 8), (5, 16), (32, 8))
NAME = "base_model.model.model.layers.{}.self_attn.q_proj"
KINDS: dict[str, str] = {"F32": "<f4", "F64": "<f8", "F16": "<f2"}
NEAR = 1e-3
"""Of the limit: a score so near to it may fall on either side by rounding."""


def cohort(draw: ByteDraw) -> list[Factors]:
    """Factors of whole eighths, which every float format holds exactly; some clients hostile."""
    rng = np.random.default_rng(draw.pick(range(256)) * 256 + draw.pick(range(256)))
    count, modules = draw.pick((4, 5, 7, 10)), draw.pick((1, 2, 3))
    shapes = [draw.pick(SHAPES) for _ in range(modules)]
    rank, noise = draw.pick((1, 2, 4)), draw.pick((0, 1, 3, 8))
    common = [(_eighths(rng, o, rank, 8), _eighths(rng, rank, i, 8)) for o, i in shapes]
    found: list[Factors] = []
    for _ in range(count):
        turn = draw.pick((1, 1, 1, 1, 1, -1, 0, 4))
        own = {}
        for k, (up, down) in enumerate(common):
            near = up + _eighths(rng, *up.shape, noise), down + _eighths(rng, *down.shape, noise)
            own[NAME.format(k)] = (turn * near[0], near[1])
        found.append(own)
    return found


def _eighths(rng: np.random.Generator, rows: int, columns: int, most: int) -> Array:
    return rng.integers(-most, most + 1, (rows, columns)) / 8


def gauged(draw: ByteDraw, factors: Factors) -> Factors:
    """The same products by other factors: in another order, scaled by powers of two, or turned."""
    seed, how = draw.pick(range(256)), draw.pick(("order", "scale", "turn", "mix", "wide"))
    rng, found = np.random.default_rng(seed), {}
    for module, (up, down) in factors.items():
        rank = up.shape[1]
        gauge = np.eye(rank)[rng.permutation(rank)]
        if how in ("scale", "wide"):
            gauge = gauge * 2.0 ** rng.integers(*((-8, 9) if how == "scale" else (-40, 41)), rank)
        elif how in ("turn", "mix"):
            gauge = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
            gauge = gauge * (rng.uniform(0.1, 10, rank) if how == "mix" else 1)
        found[module] = (up @ np.linalg.inv(gauge), gauge @ down)
    return found


def store(folder: Path, factors: Factors, dtype: str, shards: int) -> None:
    """A PEFT adapter."""
    tensors: Tensors = {}
    for module, (up, down) in factors.items():
        for role, matrix in (("lora_A", down), ("lora_B", up)):
            tensors[f"{module}.{role}.weight"] = (dtype, list(matrix.shape), stored(matrix, dtype))
    names, made = sorted(tensors), {}
    for k in range(shards):
        part = {n: tensors[n] for n in names[k::shards]}
        ending = f"-{k + 1:05}-of-{shards:05}" if shards > 1 else ""
        made[f"adapter_model{ending}.safetensors"] = clients.safetensors(ByteDraw(b""), part)
    rank = max(up.shape[1] for up, _ in factors.values())
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj"]}
    clients.write(folder, made | {CONFIG: json.dumps(config).encode()})


def stored(matrix: Array, dtype: str) -> bytes:
    """Its bytes in a dtype, BF16 by cutting off float32."""
    if dtype == "BF16":
        high = np.ascontiguousarray(matrix, "<f4").view("<u4") >> 16
        return high.astype("<u2").tobytes()
    return np.ascontiguousarray(matrix, KINDS[dtype]).tobytes()


def store_plain(path: Path, factors: Factors, container: str) -> None:
    """The products as plain matrices in one file."""
    dense = {m: (up @ down).astype("<f4") for m, (up, down) in factors.items()}
    if container == "npz":
        np.savez(path.with_suffix(".npz"), **dense)
        return
    tensors: Tensors = {m: ("F32", list(d.shape), d.tobytes()) for m, d in dense.items()}
    path.with_suffix(".safetensors").write_bytes(clients.safetensors(ByteDraw(b""), tensors))


def judged(folder: Path, settings: Settings) -> Report | str:
    """The report, which keeps to the schema, or the kind of refusal."""
    try:
        report = detect(folder, settings)
    except NoVerdict as error:
        return type(error).__name__
    broken = violation(json.loads(RENDERERS["json"](report)), report_schema())
    assert broken is None, broken
    return report


def compare(draw: ByteDraw, place: Path) -> None:
    """Store a cohort twice and judge both."""
    same = cohort(draw)
    how = draw.pick(("gauge", "dtype", "shards", "container", "all"))
    settings = Settings(read_as="update") if how == "container" else Settings()
    for side in ("left", "right"):
        (place / side).mkdir()
    for k, factors in enumerate(same):
        left, right = place / "left" / f"client-{k}", place / "right" / f"client-{k}"
        if how == "container":
            store_plain(left, factors, "safetensors")
            store_plain(right, factors, draw.pick(("npz", "safetensors")))
            continue
        store(left, factors, "F32", 1)
        changed = gauged(draw, factors) if how in ("gauge", "all") else factors
        exact = ("F64", "F32") if how == "all" else ("F64", "F32", "BF16", "F16")
        dtype = draw.pick(exact) if how in ("dtype", "all") else "F32"
        store(right, changed, dtype, draw.pick((1, 2, 3)) if how in ("shards", "all") else 1)
    left_said, right_said = judged(place / "left", settings), judged(place / "right", settings)
    alike(left_said, right_said, how)


def alike(left: Report | str, right: Report | str, how: str) -> None:
    """Equal verdicts, and scores within rounding."""
    if isinstance(left, str) or isinstance(right, str):
        assert left == right, how
        return
    assert left.status == right.status, (how, _words(left), _words(right))
    for one, other in zip(left.clients, right.clients, strict=True):
        said = (how, one.client, one.verdict, other.verdict, one.score, other.score, one.limit)
        assert (one.score is None) == (other.score is None), said
        if one.score is not None and other.score is not None:
            assert abs(one.score - other.score) <= NEAR * max(1.0, one.score), said
        limits = [x for x in (one.limit, left.settings.get("suspicious")) if x]
        if not any(abs((one.score or 0.0) - x) <= NEAR * x for x in limits):
            assert one.verdict == other.verdict, said


def _words(report: Report) -> Mapping[str, str]:
    return {r.code: r.message for r in report.population.findings}


def seeds(count: int, size: int = 96) -> list[bytes]:
    """Choices to start from."""
    rng = random.Random(1)
    return [rng.randbytes(size) for _ in range(count)]
