"""The contract of every adapter format: write, open, read is the identity; what is wrong surfaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clair_cli.cohort import Adapter, Cohort
from clair_cli.errors import ChangedWhileRead, NonFinite, OutputError, Unsupported
from clair_cli.formats import (
    FORMATS,
    check_finite,
    factored,
    open_adapter,
    open_writer,
    read_update,
    record,
    write_adapter,
)
from clair_cli.settings import Settings
from clair_cli.update import LowRankUpdate
from tests.helpers.adapters import CONFIG, PREFIX, factors, write_folder
from tests.helpers.image_adapters import write_diffusers, write_kohya
from tests.helpers.lm_adapters import write_flower, write_mlx
from tests.helpers.plain import SUFFIXES, load, save, tensors
from tests.helpers.tuners import SHAPES, write_tuner

Maker = Callable[[Path], tuple[Path, Settings]]
"""A client's folder below a folder, and the settings that read it."""


def peft(root: Path) -> tuple[Path, Settings]:
    return write_folder(root / "client"), Settings()


def peft_experts(root: Path) -> tuple[Path, Settings]:
    """Three experts of rank 2 in one pair of tensors."""
    config = CONFIG | {"target_parameters": ["experts.down_proj"]}
    return write_folder(
        root / "client", factors({"mlp.experts": (6, 5)}, rank=6), config
    ), Settings()


def peft_convolution(root: Path) -> tuple[Path, Settings]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"A": (2, 3, 2, 3), "B": (6, 2, 1, 1)}
    named = {
        f"{PREFIX}conv.lora_{x}.weight": torch.randn(s, generator=draw) for x, s in shapes.items()
    }
    return write_folder(root / "client", named), Settings()


def plain(kind: str, suffix: str, dtype: str) -> Maker:
    def make(root: Path) -> tuple[Path, Settings]:
        save(root / "client" / f"state{suffix}", tensors(dtype=dtype))
        if kind == "update":
            return root / "client", Settings(read_as="update")
        base = save(root / f"base{suffix}", tensors(seed=9, dtype=dtype))
        return root / "client", Settings(read_as="weights", base=base)

    return make


def flower(root: Path) -> tuple[Path, Settings]:
    return write_flower(root), Settings(reference=root / "reference")


def flower_named(root: Path) -> tuple[Path, Settings]:
    named = {name: t.numpy() for name, t in factors().items()}
    return save(root / "client" / "a.npz", named).parent, Settings(alpha=4.0)


def mlx(root: Path) -> tuple[Path, Settings]:
    return write_mlx(root / "client"), Settings()


def diffusers(root: Path) -> tuple[Path, Settings]:
    return write_diffusers(root / "client"), Settings()


def kohya(root: Path) -> tuple[Path, Settings]:
    return write_kohya(root / "client" / "a.safetensors").parent, Settings()


def tuner(kind: str) -> Maker:
    return lambda root: (write_tuner(root / "client", kind), Settings())


TUNERS = {kind.lower(): tuner(kind) for kind in SHAPES}
MAKERS: dict[str, Maker] = TUNERS | {"flower": flower, "flower named": flower_named, "mlx": mlx}
MAKERS |= {"diffusers": diffusers, "kohya": kohya}
MAKERS |= {"peft": peft, "peft experts": peft_experts, "peft convolution": peft_convolution} | {
    f"{kind} {suffix} {dtype}": plain(kind, suffix, dtype)
    for kind in ("update", "weights")
    for suffix in SUFFIXES
    for dtype in ("f2", "f4", "f8")
}
CONVERTED = TUNERS.keys() - {"miss"}
"""Written as plain LoRA: their own tensors hold no low-rank update."""


def own(adapter: Adapter) -> dict[str, LowRankUpdate]:
    return {m: read_update(adapter, m, "float64") for m in adapter.updates}


def made(name: str, root: Path) -> tuple[Adapter, Settings]:
    path, settings = MAKERS[name](root)
    return open_adapter(path, settings), settings


def the_file(folder: Path) -> Path:
    (found,) = (p for p in folder.iterdir() if p.suffix in SUFFIXES)
    return found


def test_every_format_is_in_the_contract() -> None:
    """But for summaries, into which nothing can be written; test_sketch.py holds them to theirs."""
    written = {name for name, form in FORMATS.items() if not form.summary}
    assert {name.split()[0] for name in MAKERS} == written


@pytest.mark.parametrize("name", MAKERS)
def test_a_record_says_what_becomes_of_an_adapter(name: str, tmp_path: Path) -> None:
    adapter, settings = made(name, tmp_path)
    (tmp_path / "out").mkdir()
    write_adapter(adapter, own(adapter), tmp_path / "out")
    again, form = open_adapter(tmp_path / "out", settings), record(adapter)
    assert form is FORMATS[form.name]
    assert form.name == adapter.format == name.split()[0]
    assert form.converts == (again.format != adapter.format)
    assert form.served == (again.format == "peft")
    assert form.factored == (settings.read_as == "lora")
    cohort = Cohort((adapter,), (), {})
    assert factored(cohort) == form.factored
    assert not factored(replace(cohort, clients=()))


def test_records_say_what_formats_need_and_what_they_can_hold(tmp_path: Path) -> None:
    arrays, references = set(), set()
    for number, name in enumerate(MAKERS):
        adapter, settings = made(name, tmp_path / str(number))
        arrays |= {adapter.format} if the_file(adapter.path).suffix == ".npz" else set()
        if settings.reference is not None:
            references.add(adapter.format)
            with pytest.raises(Unsupported, match="--reference"):
                open_adapter(adapter.path, replace(settings, reference=None))
    assert arrays == {name for name, form in FORMATS.items() if form.stores == "numpy"}
    assert references == {name for name, form in FORMATS.items() if form.needs_reference}


@pytest.mark.parametrize("name", sorted(CONVERTED))
def test_what_is_written_as_plain_lora_is_the_same_update(name: str, tmp_path: Path) -> None:
    adapter, settings = made(name, tmp_path)
    (tmp_path / "out").mkdir()
    write_adapter(adapter, own(adapter), tmp_path / "out")
    again = open_adapter(tmp_path / "out", settings)
    assert (adapter.format, again.format) == (name, "peft")
    assert again.updates.keys() == adapter.updates.keys()
    for module, spec in adapter.updates.items():
        found = again.updates[module]
        shape = (spec.d_out, spec.d_in, spec.rank, spec.dtype)
        assert (found.d_out, found.d_in, found.rank, found.dtype) == shape
        assert found.scale == 1
        torch.testing.assert_close(
            read_update(again, module).dense(), read_update(adapter, module).dense()
        )


@pytest.mark.parametrize("name", sorted(MAKERS.keys() - CONVERTED))
def test_write_open_read_is_the_identity(name: str, tmp_path: Path) -> None:
    adapter, settings = made(name, tmp_path)
    (tmp_path / "out").mkdir()
    write_adapter(adapter, own(adapter), tmp_path / "out")
    again = open_adapter(tmp_path / "out", settings)
    assert adapter.format == again.format == name.split()[0]
    assert again.updates == adapter.updates
    assert again.tensors.keys() == adapter.tensors.keys()
    before, after = load(the_file(adapter.path)), load(the_file(tmp_path / "out"))
    for key, value in before.items():
        assert after[key].dtype == value.dtype
        if name.startswith("weights") and value.dtype == "f8":  # two float64 differ by a float64
            np.testing.assert_allclose(after[key], value, rtol=0, atol=2**-50)
        else:
            assert after[key].tobytes() == value.tobytes(), key
    for module in adapter.updates:
        torch.testing.assert_close(
            read_update(again, module).dense(), read_update(adapter, module).dense()
        )


@pytest.mark.parametrize("name", MAKERS)
def test_other_updates_are_what_is_read_back(name: str, tmp_path: Path) -> None:
    adapter, settings = made(name, tmp_path)
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    updates = {
        m: LowRankUpdate(normal(s.d_out, 2), normal(2, s.d_in), s.scale)
        for m, s in adapter.updates.items()
    }
    (tmp_path / "out").mkdir()
    write_adapter(adapter, updates, tmp_path / "out")
    again = open_adapter(tmp_path / "out", settings)
    near = {"F16": 4e-3, "F32": 1e-6, "F64": 1e-13}
    for module, update in updates.items():
        found, wanted = read_update(again, module, "float64").dense(), update.dense()
        assert (found - wanted).norm() < near[adapter.updates[module].dtype] * wanted.norm()
    if len(adapter.tensors) == 5:  # what is no matrix of floats keeps its bytes
        before, after = load(the_file(adapter.path)), load(the_file(tmp_path / "out"))
        for key in ("in.bias", "steps", "kernel"):
            assert before[key].tobytes() == after[key].tobytes()


@pytest.mark.parametrize("name", MAKERS)
def test_a_writer_takes_modules_in_any_order_and_one_file_is_never_replaced(
    name: str, tmp_path: Path
) -> None:
    adapter, _ = made(name, tmp_path)
    modules, updates = list(adapter.updates), own(adapter)
    for target, order in (("a", modules), ("b", modules[::-1])):
        (tmp_path / target).mkdir()
        writer = open_writer(adapter, tmp_path / target, order)
        for module in order:
            writer.put(module, updates[module])
        writer.close()
        writer.abandon()
    assert the_file(tmp_path / "a").read_bytes() == the_file(tmp_path / "b").read_bytes()
    with pytest.raises(OutputError, match="File exists"):
        write_adapter(adapter, updates, tmp_path / "a")


@pytest.mark.parametrize("name", MAKERS)
def test_a_writer_refuses_what_does_not_fit_and_leaves_nothing_unfinished(
    name: str, tmp_path: Path
) -> None:
    adapter, _ = made(name, tmp_path)
    module = next(iter(adapter.updates))
    d_out, d_in = adapter.updates[module].d_out, adapter.updates[module].d_in
    wide = LowRankUpdate(torch.ones(d_out, 1), torch.ones(1, d_in + 1))
    huge = LowRankUpdate(
        torch.full((d_out, 1), 1e200, dtype=torch.float64),
        torch.full((1, d_in), 1e200, dtype=torch.float64),
    )
    for k, (update, words) in enumerate(((wide, "does not fit"), (huge, "not finite"))):
        (tmp_path / str(k)).mkdir()
        with pytest.raises(OutputError, match=words):
            write_adapter(adapter, {module: update}, tmp_path / str(k))
        assert list((tmp_path / str(k)).iterdir()) == []
    with pytest.raises(OutputError, match="no module 'other'"):
        open_writer(adapter, tmp_path / "0", ["other"])
    writer = open_writer(adapter, tmp_path / "0", [module])
    with pytest.raises(OutputError, match="no update was written"):
        writer.close()
    writer.abandon()
    assert list((tmp_path / "0").iterdir()) == []


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_that_changes_is_neither_read_nor_written_on(name: str, tmp_path: Path) -> None:
    adapter, _ = made(name, tmp_path)
    updates = own(adapter)
    file = the_file(adapter.path)
    (tmp_path / "other").write_bytes(file.read_bytes())
    (tmp_path / "other").replace(file)
    (tmp_path / "out").mkdir()
    for action in (
        lambda: read_update(adapter, next(iter(updates))),
        lambda: write_adapter(adapter, {}, tmp_path / "out"),
    ):
        with pytest.raises(ChangedWhileRead, match="run again"):
            action()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["peft", "update", "weights"])
def test_numbers_that_are_none_are_named(
    kind: str, suffix: str, value: float, tmp_path: Path
) -> None:
    settings = Settings()
    if kind == "peft":
        spoiled = factors()
        key = next(iter(spoiled))
        spoiled[key][1, 2] = value
        path = write_folder(tmp_path / "client", spoiled)
    else:
        _, settings = plain(kind, suffix, "f4")(tmp_path)
        key, state = "in.weight", tensors()
        state[key][1, 2] = value
        path = save(tmp_path / f"client{suffix}", state)
    adapter = open_adapter(path, settings)
    module = next(iter(adapter.updates))
    assert not torch.isfinite(read_update(adapter, module).dense()).all()
    with pytest.raises(
        NonFinite, match=rf"{key}.*1 {'NaN' if value != value else 'Inf'}.*\[1, 2\]"
    ):
        check_finite(adapter, module)
