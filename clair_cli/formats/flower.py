"""Arrays in an .npz, as Flower's clients send and its servers save them: without names, in the order
of PEFT's get_peft_model_state_dict; or under PEFT's names.

Arrays without names get those of a reference, a PEFT adapter of the same modules, whose config gives
the scale. Nothing in a file tells the order of the modules of one layer where their shapes agree. It
is the same in all clients of one model, so updates are compared with what they belong to all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from clair_cli.cohort import Adapter, TensorSpec, UpdateSpec, natural_key
from clair_cli.errors import AdapterError, ConfigInvalid, ShapeMismatch, Unsupported, UsageError
from clair_cli.formats.containers import (
    Contents,
    Described,
    as_adapter,
    find_full,
    not_judged,
    read_contents,
)
from clair_cli.formats.factors import FactorsWriter, Shapes
from clair_cli.formats.interface import FactoredFormat
from clair_cli.formats.layout import CONFIG, Layout, locate
from clair_cli.formats.npz_writer import NpzWriter
from clair_cli.formats.peft import lora
from clair_cli.formats.peft.keys import FACTOR_NAME, canonical_key
from clair_cli.formats.peft.lora import PeftWriter
from clair_cli.formats.plain import file_name
from clair_cli.output.publish import write_bytes
from clair_cli.report import Reason
from clair_cli.settings import Settings

UNNAMED = re.compile(r"arr_(0|[1-9]\d{0,8})")
RANK_AXIS = {"A": 0, "B": 1}
NAMES_IN_ORDER = (
    "embed_tokens wte wpe word_embeddings embeddings shared * encoder decoder "
    "self_attn attention attn self_attention SelfAttention self encoder_attn crossattention "
    "EncDecAttention qkv Wqkv query_key_value c_attn in_proj "
    "{qkv} q_lin k_lin v_lin query key value o_proj o qkv_proj out_proj out_lin dense c_proj "
    "intermediate mlp ffn DenseReluDense block_sparse_moe feed_forward gate gate_proj up_proj "
    "gate_up_proj wi wi_0 wi_1 w1 w2 w3 fc1 fc_in c_fc lin1 dense_h_to_4h "
    "down_proj wo fc2 fc_out lin2 dense_4h_to_h output experts pooler classifier score lm_head"
)
"""Parts of names in the order in which the models of transformers define them; * are all others."""
ORDERS = tuple(
    {part: position for position, part in enumerate(NAMES_IN_ORDER.format(qkv=qkv).split())}
    for qkv in ("q k v q_proj k_proj v_proj", "k_proj v_proj q_proj")
)
"""Llama's and BERT's; BART's and OPT's."""


def recognises(contents: Contents) -> bool:
    """Any .npz that no other format knows."""
    return contents.where.endswith(".npz")


def describe(contents: Contents, settings: Settings) -> Described:
    """The updates of an .npz. Raises the kinds of AdapterError, UsageError of the reference."""
    reference = None if settings.reference is None else open_reference(settings)
    if contents.config is None and reference is not None:
        contents = replace(contents, config=reference.config)
    if not all(map(UNNAMED.fullmatch, contents.tensors)):
        return lora.describe(contents, settings)
    if reference is None:
        text = f"{contents.where}: arrays without names"
        remedy = "give a PEFT adapter of the same modules with --reference FOLDER"
        raise Unsupported(f"{text}; {remedy}, or read them with --as update")
    return _named(contents, reference, settings)


# --- the reference


def open_reference(settings: Settings) -> Adapter:
    """The adapter at `settings.reference`; read once for all clients. Raises UsageError."""
    assert settings.reference is not None
    own = replace(settings, config=None, alpha=None)
    try:
        layout = locate(settings.reference, None, own)
        paths = [path for _, path in layout.weights] + [p for p in (layout.config,) if p]
        return _open_reference(layout, tuple(p.stat().st_mtime_ns for p in paths), own)
    except (AdapterError, OSError) as cause:
        raise UsageError(f"--reference: {cause}") from None


@lru_cache(maxsize=1)
def _open_reference(layout: Layout, changed: tuple[int, ...], settings: Settings) -> Adapter:
    contents = read_contents(layout, settings)
    return as_adapter(contents, "reference", "peft", lora.describe(contents, settings))


# --- names


def _named(contents: Contents, reference: Adapter, settings: Settings) -> Described:
    """The updates of arrays without names, under the reference's."""
    arrays = sorted(contents.tensors, key=natural_key)
    if arrays != [f"arr_{i}" for i in range(len(arrays))]:
        text = f"{contents.where}: {len(arrays)} arrays, but not arr_0 to arr_{len(arrays) - 1}"
        raise ShapeMismatch(f"{text}; save them with numpy.savez(file, *arrays)")
    found: dict[tuple[str, ...], Described] = {}
    errors: list[AdapterError] = []
    for keys in dict.fromkeys(_orders(reference)):
        try:
            _check_shapes(contents, arrays, keys, reference)
            found[keys] = _described(contents, arrays, keys, settings)
        except ShapeMismatch as error:
            errors.append(error)
    if not found:
        raise errors[0]
    if len({_scales(one.updates) for one in found.values()}) > 1:
        text = f"{contents.where}: its arrays' order is not certain, and scales depend on it"
        raise ConfigInvalid(f"{text}; save them with names: numpy.savez(file, **state_dict)")
    first = next(iter(found.values()))
    return first if len(found) == 1 else replace(first, notes=(*first.notes, _by_convention()))


def _by_convention() -> Reason:
    text = "arrays without names: which is which within a layer goes by the usual order of modules"
    return Reason("CLR116", f"{text}; verdicts do not depend on it")


def _described(
    contents: Contents, arrays: Sequence[str], keys: Sequence[str], settings: Settings
) -> Described:
    """As if the arrays were saved under `keys`."""
    names = dict(zip(keys, arrays, strict=False))
    tensors = {key: contents.tensors[name] for key, name in names.items()}
    found = lora.describe(replace(contents, tensors=tensors), settings)
    rest = {name: contents.tensors[name] for name in arrays[len(keys) :]}
    full = find_full(rest, {})
    updates = {
        module: replace(spec, tensors={role: names[key] for role, key in spec.tensors.items()})
        for module, spec in found.updates.items()
    }
    notes = (*found.notes, *not_judged(rest, {}, full))
    return replace(found, updates=updates, notes=notes, full=full)


def _scales(updates: Mapping[str, UpdateSpec]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((spec.file_key, spec.scale) for spec in updates.values()))


def _check_shapes(
    contents: Contents, arrays: Sequence[str], keys: Sequence[str], reference: Adapter
) -> None:
    """ShapeMismatch unless array after array has its tensor's shape, the rank left open.

    What follows the factors are the reference's other tensors, in any order, or none.
    """
    tensors, where = contents.tensors, f"{contents.where}: "
    for name, key in zip(arrays, keys, strict=False):
        own, theirs = tensors[name].shape, reference.tensors[key].shape
        if _without_rank(own, key) != _without_rank(theirs, key):
            text = f"{where}{name!r} has shape {list(own)}, the reference's {key!r} {list(theirs)}"
            raise ShapeMismatch(f"{text}; give an adapter of the same model with --reference")
    rest = [reference.tensors[key] for key in reference.tensors.keys() - set(keys)]
    extra = [tensors[name] for name in arrays[len(keys) :]]
    if len(arrays) < len(keys) or (extra and _shapes(extra) != _shapes(rest)):
        text = f"{where}{len(arrays)} arrays, the reference has {len(keys)} factors"
        raise ShapeMismatch(f"{text} and {len(rest)} other tensors; they must be the same ones")


def _shapes(specs: Sequence[TensorSpec]) -> list[tuple[int, ...]]:
    return sorted(spec.shape for spec in specs)


def _without_rank(shape: tuple[int, ...], key: str) -> tuple[int, ...]:
    match = FACTOR_NAME.fullmatch(canonical_key(key))
    axis = RANK_AXIS.get((match[2] or match[3]) if match else "", len(shape))
    return shape[:axis] + shape[axis + 1 :] if axis < len(shape) else shape


def _orders(reference: Adapter) -> Iterator[tuple[str, ...]]:
    """Orders in which the reference's factors may have been saved, the likeliest first."""
    modules: dict[str, list[str]] = {}
    for key in sorted(reference.tensors):
        if match := FACTOR_NAME.fullmatch(canonical_key(key)):
            modules.setdefault(match[1], []).append(key)
    swapped = any(module.endswith(".out_proj") for module in modules)
    for positions in reversed(ORDERS) if swapped else ORDERS:
        yield _in_order(modules, sorted(modules, key=lambda m: _position(m, positions)))
    yield _in_order(modules, sorted(modules, key=natural_key))
    yield _in_order(modules, list(modules))  # as a safetensors file has them


def _in_order(modules: Mapping[str, Sequence[str]], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(key for module in names for key in modules[module])


def _position(module: str, positions: Mapping[str, int]) -> tuple[tuple[int, int, str], ...]:
    """Sort key: layers by number, names by `positions`; what lies in a module comes before it."""
    parts = [
        (0, int(p), "")
        if p.isdecimal() and len(p) < 19
        else (1, positions.get(p, positions["*"]), p)
        for p in module.split(".")
    ]
    return (*parts, (2, 0, ""))


# --- written back


class FlowerWriter(PeftWriter):
    """An .npz; with a config where one came with it, or where ranks and scales are others."""

    def open(self, shapes: Shapes) -> NpzWriter:
        """The new file of these arrays."""
        return NpzWriter(self.folder / self.file_name(), shapes)

    def file_name(self) -> str:
        """That of the client's file in its folder; a flat file's is the folder's name."""
        return file_name(self.adapter, FactorsWriter.file_name(self), self.folder)

    def key(self, name: str) -> str:
        """An array keeps its name in the new file."""
        return name

    def beside(self) -> None:
        """The config, where the scale is not what the reference says."""
        if self.ranks or CONFIG in self.adapter.files:
            write_bytes(self.folder / CONFIG, self.config)


FORMAT = FactoredFormat(
    name="flower",
    recognises=recognises,
    describe=describe,
    writer=FlowerWriter,
    needs_reference=True,
    stores="numpy",
)
