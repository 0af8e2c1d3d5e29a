"""Plain matrices: every 2-D tensor of floats is an update, or minus its base weight is one.

Opened by headers; one module is read at a time, in numpy and float64, which holds the difference of
two float32 numbers exactly.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from clair_cli.cohort import Adapter, FullSpec, InputFile, TensorSpec, UpdateSpec
from clair_cli.errors import (
    AdapterError,
    LimitExceeded,
    NonFinite,
    OtherBase,
    ShapeMismatch,
    Unstorable,
    Unsupported,
    UsageError,
)
from clair_cli.formats.containers import (
    SameTensors,
    container,
    find_full,
    listed,
    non_finite,
    not_judged,
    open_file,
)
from clair_cli.formats.full import FullWriter
from clair_cli.formats.interface import AdapterFormat
from clair_cli.formats.layout import EXPECTED_FILE, SUFFIXES, Layout
from clair_cli.formats.npz_writer import SameNpz
from clair_cli.formats.safetensors_file import FLOATS, SameSafetensors
from clair_cli.report import Reason
from clair_cli.settings import DtypeName, ReadAs, Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from clair_cli.update import LowRankUpdate

ANY_FACTOR = re.compile(r"\.lora_(?:[AB]|down|up|embedding_[AB])(?:\.|$)")
ROUNDOFF = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Largest relative error of rounding to each stored dtype."""

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
WRITERS: Mapping[str, type[SameSafetensors] | type[SameNpz]] = {
    ".safetensors": SameSafetensors,
    ".npz": SameNpz,
}


@dataclass(frozen=True, slots=True)
class Base:
    """The base model's weights, from which those of a client are told apart."""

    file: InputFile
    tensors: Mapping[str, TensorSpec]


def open_matrices(layout: Layout, client: str, settings: Settings) -> Adapter:
    """A client's plain matrices, read as `settings.read_as` says. Raises what `open_weights` does."""
    opening = open_update if settings.read_as == "update" else open_weights
    return opening(layout, client, settings)


def open_update(layout: Layout, client: str, settings: Settings) -> Adapter:
    """A client whose matrices are the updates themselves. Raises the kinds of AdapterError."""
    name, path = layout.weights[0]
    file, tensors, _ = open_file(path, name, settings)
    return _adapter("update", layout, client, file, tensors, _updates(file, tensors, settings))


def open_weights(layout: Layout, client: str, settings: Settings) -> Adapter:
    """A client whose matrices are weights of the model in `settings.base`, each update a difference.

    Raises the kinds of AdapterError, and UsageError where the base cannot be used.
    """
    if settings.base is None:
        raise UsageError("--as weights: needs the base model's weights; give them with --base FILE")
    base = open_base(settings.base, settings)
    name, path = layout.weights[0]
    file, tensors, _ = open_file(path, name, settings)
    if file.path.resolve() == base.file.path:
        raise UsageError(f"{base.file.name}: lies among the clients; move it out of their folder")
    updates = _updates(file, tensors, settings)
    for spec in updates.values():
        _check_base(spec, base, file.name)
    found = sum(spec.file_key in base.tensors for spec in updates.values())
    if 2 * found < len(updates):
        text = f"the base has {found} of its {len(updates)} matrices"
        raise OtherBase(f"{file.name}: {text}; give the model it was trained from with --base")
    return _adapter("weights", layout, client, file, tensors, updates, base)


def open_base(path: Path, settings: Settings) -> Base:
    """The base model's weights by their header; read once for all clients. Raises UsageError."""
    name = f"--base {path.name}"
    try:
        target = path.resolve(strict=True)
        return _open_base(name, target, target.stat().st_mtime_ns, settings)
    except AdapterError as error:
        raise UsageError(f"--base {error}".replace(f"--base {name}", name)) from None
    except (OSError, RuntimeError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise UsageError(f"{name}: cannot be read: {why}") from None


@lru_cache(maxsize=1)
def _open_base(name: str, path: Path, changed: int, settings: Settings) -> Base:
    if not name.endswith(SUFFIXES):
        raise Unsupported(f"{name}: not {EXPECTED_FILE}; convert it")
    return Base(*open_file(path, name, settings)[:2])


def _updates(
    file: InputFile, tensors: Mapping[str, TensorSpec], settings: Settings
) -> dict[str, UpdateSpec]:
    """Module name -> the update that the matrix of this name is; Unsupported where there is none."""
    found = {key: t for key, t in tensors.items() if _is_matrix(t)}
    if not found:
        text = f"none of its {len(tensors)} tensors is a matrix of floats, which updates are"
        raise Unsupported(f"{file.name}: {text}; save 2-D float tensors")
    if factors := [key for key in found if ANY_FACTOR.search(key)]:
        text = f"tensor {factors[0]!r} is a factor of an update, not the update"
        raise Unsupported(f"{file.name}: {text}; LoRA adapters are read without --as")
    for key, t in found.items():
        if max(t.shape) > settings.max_dim:
            text = f"tensor {key!r} has shape {list(t.shape)}"
            raise LimitExceeded(f"{file.name}: {text}, the limit is {settings.max_dim} a side")
    bare = {key: key.removesuffix(".weight") or key for key in found}
    names = bare if len(set(bare.values())) == len(bare) else {key: key for key in found}
    return {names[key]: _update(key, t) for key, t in found.items()}


def _update(key: str, spec: TensorSpec) -> UpdateSpec:
    """Of a rank of at most that of its shape; one tensor stands for both factors."""
    d_out, d_in = spec.shape
    return UpdateSpec(d_out, d_in, min(d_out, d_in), 1.0, spec.dtype, {"matrix": key}, "matrix")


def _is_matrix(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and min(spec.shape) > 0 and spec.dtype in FLOATS


def _check_base(spec: UpdateSpec, base: Base, where: str) -> None:
    """ShapeMismatch where the base has another shape; UsageError where it has no floats."""
    own = base.tensors.get(spec.file_key)
    if own is None:
        return
    if own.shape != (spec.d_out, spec.d_in):
        text = (
            f"tensor {spec.file_key!r} is {spec.d_out} x {spec.d_in}, in the base {list(own.shape)}"
        )
        raise ShapeMismatch(f"{where}: {text}; was it trained from another base model?")
    if own.dtype not in FLOATS:
        text = f"tensor {spec.file_key!r} is {own.dtype}; give the base in floating point"
        raise UsageError(f"{base.file.name}: {text}")


def _adapter(
    kind: str,
    layout: Layout,
    client: str,
    file: InputFile,
    tensors: Mapping[str, TensorSpec],
    updates: Mapping[str, UpdateSpec],
    base: Base | None = None,
) -> Adapter:
    files = {file.name: file} | ({base.file.name: base.file} if base else {})
    content = json.dumps([kind, *(f.sha256 for f in files.values())])
    full = find_full(tensors, updates)
    return Adapter(
        client=client,
        path=layout.path,
        format=kind,
        digest=hashlib.sha256(content.encode()).hexdigest(),
        updates=updates,
        tensors=tensors,
        files=files,
        config={"base": base.tensors} if base else {},
        base=base.file.name.removeprefix("--base ") if base else None,
        notes=(*layout.notes, *not_judged(tensors, updates, full), *_new(updates, base)),
        full=full,
    )


def _new(updates: Mapping[str, UpdateSpec], base: Base | None) -> list[Reason]:
    """A note on what is measured from zero because the base does not have it."""
    used = [spec.file_key for spec in updates.values()]
    new = [key for key in used if base and key not in base.tensors]
    text = "not in the base, so that the whole tensor counts as the update"
    return [Reason("CLR115", f"{text}: {listed(new)}")] if new else []


# --- one module


def read_delta(adapter: Adapter, module: str) -> NDArray[np.float64]:
    """Delta W (d_out, d_in) of one module. Raises the kinds of AdapterError, UsageError of the base."""
    key = adapter.updates[module].file_key
    spec = adapter.tensors[key]
    file = adapter.files[spec.file]
    values = container(file.name).read_values(file, key, spec)
    base = base_values(adapter, module)
    return values if base is None else values - base


def base_values(adapter: Adapter, module: str) -> NDArray[np.float64] | None:
    """The base weight (d_out, d_in) of one module, None where there is none. Raises UsageError."""
    key = adapter.updates[module].file_key
    spec = adapter.config.get("base", {}).get(key)
    return None if spec is None else _base_values(adapter.files[spec.file], key, spec)


@lru_cache(maxsize=1)  # asked for by one client after the other
def _base_values(file: InputFile, key: str, spec: TensorSpec) -> NDArray[np.float64]:
    import numpy as np

    try:
        values = container(file.name).read_values(file, key, spec)
    except AdapterError as error:
        raise UsageError(f"{file.name}: {error}; leave it alone while clair runs") from None
    if not np.isfinite(values).all():
        raise UsageError(f"{file.name}: tensor {key!r} holds NaN or Inf; give another base")
    values.setflags(write=False)
    return values


def read_update(
    adapter: Adapter, module: str, dtype: DtypeName = "auto", device: str = "cpu"
) -> LowRankUpdate:
    """Delta W of one module as up (d_out, r) and down (r, d_in), r its numerical rank.

    "auto" is float64 where it is stored so, else float32. Raises what `read_delta` does; does not
    look for NaN (see `check_finite`).
    """
    import torch

    from clair_cli.linalg import moved, thin_factors
    from clair_cli.update import LowRankUpdate

    spec = adapter.updates[module]
    delta = moved(torch.from_numpy(read_delta(adapter, module)), device)
    wanted = ("float64" if spec.dtype == "F64" else "float32") if dtype == "auto" else dtype
    up, down = (x.to(getattr(torch, wanted)) for x in thin_factors(delta, ROUNDOFF[spec.dtype]))
    return LowRankUpdate(up, down)


def check_finite(adapter: Adapter, module: str) -> None:
    """Raises NonFinite, naming the first place, where the update of `module` is NaN or Inf."""
    norm(adapter, module)


def norm(adapter: Adapter, module: str) -> float:
    """||Delta W||_F of one module. Raises NonFinite where it, or a number in it, is NaN or Inf."""
    import numpy as np

    delta, key = read_delta(adapter, module), adapter.updates[module].file_key
    where = f"{adapter.tensors[key].file}: tensor {key!r}"
    bad = np.argwhere(~np.isfinite(delta))
    if len(bad):
        nans = int(np.isnan(delta).sum())
        raise non_finite(adapter.tensors[key].file, key, nans, len(bad), bad[0].tolist())
    with np.errstate(over="ignore"):
        found = float(np.linalg.norm(delta))
    if not math.isfinite(found):
        raise NonFinite(f"{where} is too large to be compared; retrain it")
    return found


# --- written back


class PlainWriter(FullWriter):
    """`adapter` with other updates of `modules`, into the empty `folder`, module by module.

    A matrix becomes the update, or base + update, in its stored dtype; a dense matrix has room for
    every rank, so `ranks` ask for nothing. All other tensors keep their bytes. Raises OutputError where
    an update does not fit its module, or its numbers the stored dtype; ChangedWhileRead where the
    template changed, UsageError where the base did.
    """

    def __init__(
        self,
        adapter: Adapter,
        folder: Path,
        modules: Sequence[str],
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        self.adapter, self.due, self.put_so_far = adapter, set(modules), {}
        name = next(iter(adapter.files))
        suffix = Path(name).suffix
        self.out: SameTensors = WRITERS[suffix](
            folder / file_name(adapter, name, folder), adapter.tensors
        )
        updated = {adapter.updates[m].file_key for m in modules}
        for key in adapter.tensors.keys() - updated - {s.tensor for s in adapter.full.values()}:
            self._copy(key)

    def put(self, module: str, update: LowRankUpdate) -> None:
        """Write one module's update, once."""
        self.due.remove(module)
        spec = self.adapter.updates[module]
        shape = (update.up.shape[0], update.down.shape[1])
        if shape != (spec.d_out, spec.d_in):
            text = f"an update {shape[0]} x {shape[1]} does not fit {spec.d_out} x {spec.d_in}"
            raise Unstorable(f"{module}: {text}")
        values = update.dense().cpu().double().numpy()
        base = base_values(self.adapter, module)
        tensor = self.adapter.tensors[spec.file_key]
        file = self.adapter.files[tensor.file]
        self.out.put(file, spec.file_key, tensor, values if base is None else base + values)

    def keep(self, module: str) -> None:
        """Write one module's matrix as it was, byte for byte."""
        self.due.remove(module)
        self._copy(self.adapter.updates[module].file_key)

    def _copy(self, key: str) -> None:
        spec = self.adapter.tensors[key]
        self.out.copy(self.adapter.files[spec.file], key, spec)

    def _write_full(self, spec: FullSpec, begin: int, values: Tensor) -> None:
        tensor = self.adapter.tensors[spec.tensor]
        file = self.adapter.files[tensor.file]
        self.out.put_part(file, spec.tensor, tensor, values.cpu().double().numpy(), begin)

    def _pass_full(self, spec: FullSpec) -> None:
        self._copy(spec.tensor)

    def close(self) -> None:
        """See that everything is on disk. Raises OutputError where a module is missing."""
        if self.due:
            raise Unstorable(f"{self.adapter.client}: no update was written for {min(self.due)!r}")
        self._finish_full()
        self.out.close()

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""
        self.out.abandon()


def file_name(adapter: Adapter, name: str, folder: Path) -> str:
    """That of the client's file in its folder; a flat file's is the folder's name."""
    suffix = Path(name).suffix
    if adapter.path.name == name:
        return folder.name + suffix
    return name if SAFE_NAME.fullmatch(name) else "weights" + suffix


def _format(name: ReadAs) -> AdapterFormat:
    return AdapterFormat(
        name=name,
        read=read_update,
        check_finite=check_finite,
        norm=norm,
        writer=PlainWriter,
        factored=False,
        stores="numpy",
    )


FORMATS = (_format("update"), _format("weights"))
