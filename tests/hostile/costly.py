"""Clients made to cost more than they hold, beside a cohort of honest ones; nothing here is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuzz import clients, differential, documents
from tests.helpers.adapters import CONFIG, PREFIX, normal, write_folder
from tests.helpers.commands import SAMPLES
from tests.hostile.test_bad_input import BROKEN, JUDGED
from tests.hostile.test_limits import BOMBS

SHAPES = {f"layers.{i}.q_proj": (64, 64) for i in range(6)} | {"layers.0.tiny": (8, 8)}
RANK = 4
WIDE = next(iter(SHAPES))
HOSTILE = "hostile"
Costly = Callable[[Path], object]
"""Writes a client, or several, into the folder of a cohort."""


def honest(seed: int) -> dict[str, Tensor]:
    """What all learn and what one does, as factors."""
    found = {}
    for i, (module, (d_out, d_in)) in enumerate(SHAPES.items()):
        up = normal(d_out, RANK, seed=i) + 0.5 * normal(d_out, RANK, seed=1000 * (seed + 1) + i)
        down = normal(RANK, d_in, seed=100 + i)
        found[f"{PREFIX}{module}.lora_A.weight"] = down
        found[f"{PREFIX}{module}.lora_B.weight"] = up
    return found


def config(**more: Any) -> dict[str, Any]:
    return CONFIG | {"r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "tiny"]} | more


def save_honest(folder: Path, count: int = 6) -> list[str]:
    for k in range(count):
        write_folder(folder / f"client-{k}", honest(k), config())
    return [f"client-{k}" for k in range(count)]


def module(name: str, rank: int) -> dict[str, Tensor]:
    """Other factors of one module, of this rank."""
    d_out, d_in = SHAPES[name]
    return {
        f"{PREFIX}{name}.lora_A.weight": normal(rank, d_in),
        f"{PREFIX}{name}.lora_B.weight": normal(d_out, rank, seed=1) / rank**0.5,
    }


def scaled(factor: float, rows: slice = slice(None)) -> Callable[[Path], object]:
    """lora_A times `factor`, and lora_B divided by it: the same product."""

    def make(folder: Path) -> None:
        tensors = honest(9)
        for name in SHAPES:
            tensors[f"{PREFIX}{name}.lora_A.weight"][rows] *= factor
            tensors[f"{PREFIX}{name}.lora_B.weight"][:, rows] /= factor
        write_folder(folder / HOSTILE, tensors, config())

    return make


def ranked(name: str, rank: int, dtype: torch.dtype = torch.float32) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        tensors = {k: t.to(dtype) for k, t in (honest(9) | module(name, rank)).items()}
        patterns = {name: rank}
        write_folder(
            folder / HOSTILE, tensors, config(rank_pattern=patterns, alpha_pattern=patterns)
        )

    return make


def configured(count: int, **more: Any) -> Callable[[Path], object]:
    """A client of `count` more modules, whose config says `more`."""

    def make(folder: Path) -> None:
        tensors = honest(9)
        for i in range(count):
            tensors[f"{PREFIX}layers.{i}.mlp.experts.lora_A.weight"] = normal(RANK, 2)
            tensors[f"{PREFIX}layers.{i}.mlp.experts.lora_B.weight"] = normal(2, RANK)
        write_folder(folder / HOSTILE, tensors, config(**more))

    return make


def deflated(name: str, size: int, dtype: str) -> Callable[[Path], object]:
    """An .npz of the honest factors and of a large array of zeros, which takes a thousandth of it."""

    def make(folder: Path) -> None:
        client = folder / HOSTILE
        client.mkdir(parents=True)
        with zipfile.ZipFile(client / "weights.npz", "w", zipfile.ZIP_DEFLATED) as file:
            for key, tensor in honest(9).items():
                with file.open(member(key, tensor.numel() * 4), "w") as target:
                    np.lib.format.write_array(target, tensor.numpy())
            head = {"descr": dtype, "fortran_order": False, "shape": (size // int(dtype[-1]),)}
            with file.open(member(name, size), "w") as target:
                np.lib.format.write_array_header_1_0(target, head)
                for _ in range(size >> 20):
                    target.write(bytes(2**20))
        (client / "adapter_config.json").write_text(json.dumps(config()))

    return make


def member(name: str, size: int) -> zipfile.ZipInfo:
    """An entry whose size is known before, so that it is not marked as a stream."""
    info = zipfile.ZipInfo(f"{name}.npy")
    info.file_size, info.compress_type = size, zipfile.ZIP_DEFLATED
    return info


def tuned(kind: str, tensors: dict[str, tuple[int, ...]], **more: Any) -> Callable[[Path], object]:
    """A client of another tuner, all modules alike; names that begin with a dot are in each module."""

    def make(folder: Path) -> None:
        found = {}
        for name, shape in tensors.items():
            where = [f"layers.{i}.q_proj{name}" for i in range(6)] if name[0] == "." else [name]
            found |= {
                PREFIX * (name[0] == ".") + place: torch.zeros(shape) + 0.01 for place in where
            }
        said = {"peft_type": kind, "r": 2, "alpha": 2, "lora_alpha": 2} | more
        write_folder(folder / HOSTILE, found, said)

    return make


def components(folder: Path) -> None:
    """A pipeline of thousands of models, with a megabyte of settings for each to look through."""
    tensors, said = {}, {}
    for i in range(4000):
        tensors[f"m{i}.q.lora_A.weight"] = normal(2, 2)
        tensors[f"m{i}.q.lora_B.weight"] = normal(2, 2)
    said = {f"m{i}.a": 1 for i in range(50_000)} | {"unet.r": 2}
    from safetensors.torch import save_file

    (folder / HOSTILE).mkdir(parents=True)
    path = folder / HOSTILE / "pytorch_lora_weights.safetensors"
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(said), "format": "pt"})


def many(count: int, shape: tuple[int, int]) -> Callable[[Path], object]:
    """That many modules that no other client has."""

    def make(folder: Path) -> None:
        tensors = honest(9)
        for i in range(count):
            tensors[f"{PREFIX}more.{i}.lora_A.weight"] = normal(RANK, shape[1])
            tensors[f"{PREFIX}more.{i}.lora_B.weight"] = normal(shape[0], RANK)
        write_folder(folder / HOSTILE, tensors, config())

    return make


def experts(count: int) -> Callable[[Path], object]:
    """That many updates in two small tensors."""

    def make(folder: Path) -> None:
        tensors = honest(9) | {
            f"{PREFIX}m.experts.lora_A.weight": normal(count * RANK, 2),
            f"{PREFIX}m.experts.lora_B.weight": normal(2, count * RANK),
        }
        write_folder(folder / HOSTILE, tensors, config(target_parameters=["experts.w"]))

    return make


def replicates(count: int) -> Callable[[Path], object]:
    """A client that is nothing but replicates, whose ranks add up."""

    def make(folder: Path) -> None:
        for i in range(count):
            write_folder(folder / HOSTILE / f"rep-{i}", honest(10 + i), config())

    return make


class SeededDraw:
    """Choices of a generator, the family of tensors first."""

    def __init__(self, family: str, seed: int) -> None:
        self.family, self.draw = family, np.random.default_rng(seed)

    def pick(self, options: Any) -> Any:
        if isinstance(options, list) and self.family in options:
            return self.family
        return options[int(self.draw.integers(len(options)))]


def together(made: dict[str, Callable[[Path], object]], honest: Path | None = None) -> Costly:
    """Several clients, each written into a folder of its own, a copy of `honest` where that is given."""

    def make(folder: Path) -> None:
        for number, write in enumerate(made.values()):
            client = folder / f"{HOSTILE}-{number}"
            if honest is not None:
                shutil.copytree(honest, client)
            write(client)

    return make


def by_sixes(what: str, made: dict[str, Callable[[Path], object]], *honest: Path) -> None:
    """Add them to COSTLY: six that cost what one may are six that cost no more than that."""
    names = list(made)
    for i in range(0, len(names), 6):
        few = {n: made[n] for n in names[i : i + 6]}
        COSTLY[f"{what}: {', '.join(few)}"] = together(few, *honest)


def drawn(family: str, seed: int) -> Callable[[Path], object]:
    """A client as the fuzzers' generators make it."""
    return lambda client: clients.write(client, clients.files(SeededDraw(family, seed)))


def drawn_config(family: str, seed: int) -> Callable[[Path], object]:
    """Its config drawn field by field."""

    def make(client: Path) -> None:
        draw = SeededDraw(family, seed)
        files = {clients.WEIGHTS: clients.safetensors(draw, clients.tensors(draw)[1])}
        clients.write(client, files | {clients.CONFIG: clients.config(draw, family)})

    return make


def drawn_zip(family: str, seed: int) -> Callable[[Path], object]:
    """Its arrays drawn one by one, beside an honest config."""

    def make(client: Path) -> None:
        draw = SeededDraw(family, seed)
        data = clients.damaged(draw, clients.npz(draw, clients.tensors(draw)[1]))
        said = json.dumps(config()).encode()
        clients.write(client, {"weights.npz": data, clients.CONFIG: said})

    return make


def bombed(bomb: Callable[[Path], object]) -> Callable[[Path], object]:
    def make(client: Path) -> None:
        write_folder(client)
        bomb(client)

    return make


def named(folder: Path) -> None:
    """Names that look like another client's folder or a file of clair's, one id three times, links."""
    shown = hashlib.sha256("Müller".encode()).hexdigest()
    for name in ("Müller", f"client-{shown[:8]}", "selection.json", "global", "-n", "$(touch x)"):
        write_folder(folder / name, honest(9), config())
    write_folder(folder / HOSTILE, honest(10), config())
    data = (folder / HOSTILE / "adapter_model.safetensors").read_bytes()
    for ending in ("npz", "safetensors", "safetensors.safetensors"):
        (folder / f"{HOSTILE}-1.{ending}").write_bytes(data)
    for name, target in {"lost": "nowhere", "top": "/", "above": "..", "zero": "/dev/zero"}.items():
        (folder / f"{HOSTILE}-{name}").symlink_to(target)
    os.mkfifo(folder / f"{HOSTILE}-pipe")


def stored_otherwise(folder: Path) -> None:
    """The honest factors as the differential target stores them: other gauges, dtypes, shards."""
    for number, dtype in enumerate(("F32", "F64", "F16", "BF16")):
        draw = clients.ByteDraw(bytes([number, number + 1]))
        own = {
            PREFIX + m: tuple(
                honest(9)[f"{PREFIX}{m}.lora_{side}.weight"].double().numpy() for side in "BA"
            )
            for m in SHAPES
        }
        factors = differential.gauged(draw, own)
        differential.store(folder / f"{HOSTILE}-{number}", factors, dtype, number + 1)


def documented(folder: Path) -> None:
    """Manifests planted in every place, changed field by field."""
    write_folder(folder / "global", honest(9), config())
    for number, place in enumerate((folder, folder / "global", folder / f"{HOSTILE}-0")):
        write_folder(place, honest(10), config()) if place.name != folder.name else None
        draw = clients.ByteDraw(bytes((i * 37 + number) % 256 for i in range(64)))
        (place / "manifest.json").write_bytes(documents.changed(draw, documents.MANIFEST))


NAMES = 60_000
COSTLY: dict[str, Costly] = {
    "lora_A small, lora_B large": scaled(1e-19),
    "lora_A large, lora_B small": scaled(1e19),
    "one column out of proportion": scaled(1e19, slice(0, 1)),
    "rank 5 000 of 64": ranked(WIDE, 5000),
    "rank 5 000 of 64, in float64": ranked(WIDE, 5000, torch.float64),
    "rank 20 000 of 8": ranked("layers.0.tiny", 20_000),
    "60 000 parameters in their modules": configured(
        2000, target_parameters=[f"experts.{i:x}" for i in range(NAMES)]
    ),
    "60 000 parameters anywhere": configured(
        2000, target_parameters=[f"a{i}" for i in range(NAMES)]
    ),
    "a thousand patterns": configured(
        2000, rank_pattern={f"layers.{i:03}.mlp.experts": RANK for i in range(1000)}
    ),
    "60 000 target modules": configured(2000, target_modules=[f"a{i}" for i in range(NAMES)]),
    "100 000 tokens": configured(2000, trainable_token_indices=list(range(100_000))),
    "thousands of components": components,
    "9 000 modules": many(9000, (2, 2)),
    "100 000 experts": experts(100_000),
    "500 replicates": replicates(500),
    "1.5 GiB passed through": deflated("extra", 3 << 29, "<i8"),
    "1.5 GiB of floats beside": deflated("base_model.model.head.weight", 3 << 29, "<f4"),
    "a Hadamard product": tuned(
        "LOHA",
        {f".hada_w{i}_{s}": (64, 500)[:: 1 if s == "a" else -1] for i in "12" for s in "ab"},
        r=500,
    ),
    "a Kronecker product": tuned("LOKR", {".lokr_w1": (256, 256), ".lokr_w2": (256, 256)}),
    "shared projections": tuned(
        "VERA",
        {
            ".vera_lambda_b": (64,),
            ".vera_lambda_d": (20_000,),
            "base_model.vera_A": (20_000, 64),
            "base_model.vera_B": (64, 20_000),
        },
        r=20_000,
    ),
}
"""Name -> what writes the client, or several, into the folder of a cohort."""
SAME = set(list(COSTLY)[:3])
"""Those that hold what an honest client holds, in other factors."""
FAMILIES = {family: 100 * i for i, family in enumerate(clients.FAMILIES)}
by_sixes("drawn", {f: drawn(f, seed) for f, seed in FAMILIES.items()})
by_sixes("configs", {f: drawn_config(f, seed) for f, seed in FAMILIES.items()})
by_sixes("zips", {f: drawn_zip(f, seed) for f, seed in list(FAMILIES.items())[::6]})
by_sixes("bombs", {name: bombed(bomb) for name, (bomb, _) in BOMBS.items()})
by_sixes("bad", {n: case.spoil for n, case in (BROKEN | JUDGED).items()}, SAMPLES / "client-05")
COSTLY["planted manifests"] = documented
COSTLY["names and links"] = named
COSTLY["stored otherwise"] = stored_otherwise
