"""The tensors that PEFT saves whole beside its factors: heads, biases, embeddings, norms, token rows."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from clair_cli.cohort import FullSpec, TensorSpec, UpdateSpec
from clair_cli.formats.containers import find_full
from clair_cli.formats.peft.keys import BIAS, FACTOR_NAME, PREFIX, UNUSED, canonical_key

SAVED = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.)")
"""What PEFT puts into the names of modules_to_save while training."""
COPIES = {"base_layer", "original_module"}
"""Parts of names of tensors that are the base model's own."""
TOKENS = "trainable_tokens_delta"


def find_trained_whole(
    tensors: Mapping[str, TensorSpec], updates: Mapping[str, UpdateSpec], config: Mapping[str, Any]
) -> dict[str, FullSpec]:
    """Name in the base model -> what was trained whole. Raises ShapeMismatch.

    Copies of base weights are not among them, but the biases that PEFT saves under such names where
    `config` trains biases are. Token rows have their indices in the name: rows of other tokens are
    not the same matrix. The bias of lora_B counts with its module's scale.
    """
    tokens = config.get("trainable_token_indices")
    which = f"{zlib.crc32(json.dumps(tokens, sort_keys=True).encode()):08x}" if tokens else None
    found = find_full(tensors, updates, partial(_name, config=config, tokens=which))
    for name, spec in found.items():
        match = BIAS.fullmatch(canonical_key(spec.tensor))
        update = updates.get(match[1].removeprefix(PREFIX)) if match else None
        if update is not None:
            found[name] = replace(spec, scale=update.scale)
    return found


def _name(key: str, config: Mapping[str, Any], tokens: str | None) -> str | None:
    """What the tensor is called in the base model; None where it is not to be judged.

    `tokens` is a digest of the indices of the tokens that were trained, if there are any.
    """
    canonical = canonical_key(key)
    if FACTOR_NAME.fullmatch(canonical) or UNUSED.fullmatch(canonical):
        return None
    name = SAVED.sub("", canonical.removeprefix(PREFIX))
    parts = name.split(".")
    if not COPIES.isdisjoint(parts):
        trained = config.get("bias") not in (None, "none") and name.endswith("bias")
        copied = "original_module" in parts or not trained
        return None if copied else ".".join(p for p in parts if p != "base_layer")
    if TOKENS in parts:
        return f"{name}[{tokens}]" if tokens else None
    return name
