"""The tuners of PEFT that clair does not read: each by name, why not, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clair_cli.errors import Unsupported

CONVERT = "convert it with peft.convert_to_lora, or train plain LoRA"
MERGE = "merge it into the model and compare the merged weights with --base, or train plain LoRA"
TRAIN = "train plain LoRA"

MULTIPLIES = "it multiplies the base weights, which are not in the file"
BASES = "its bases are random or those of the base weights, and need not be in the file"

_BY_REASON = {
    ("it trains inputs of the model and no weight", TRAIN): "PROMPT_TUNING "
    "MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADAPTION_PROMPT CPT CARTRIDGE",
    (MULTIPLIES, MERGE): "IA3 BOFT OFT HRA ROAD HIRA GLORA DEFT PEANUT",
    (BASES, MERGE): "PVERA FROD ADAMSS OSF",
    (BASES, CONVERT): "RANDLORA TINYLORA PSOFT",
    ("its factors are mixed from a bank for all layers", CONVERT): "VBLORA UNILORA",
    (
        "its update is a transform of few coefficients, of full rank",
        CONVERT,
    ): "FOURIERFT WAVEFT C3A",
    ("its update is of low rank by blocks only", CONVERT): "GRALORA",
    ("its update is sparse, not of low rank", MERGE): "SHIRA SUPERTUNING",
    ("it holds new rows of an embedding", MERGE): "TRAINABLE_TOKENS",
    ("it holds new vectors and no matrix", TRAIN): "LN_TUNING BEFT",
    ("it mixes several adapters anew for every input or task", TRAIN): "XLORA POLY LILY",
    ("it runs a second network beside the model", TRAIN): "SHADOW",
    ("PEFT itself no longer reads it", "convert it with PEFT's convert-bone-to-miss.py"): "BONE",
}
REFUSED_TYPES = {kind: pair for pair, kinds in _BY_REASON.items() for kind in kinds.split()}
"""peft_type -> why its file alone makes no low-rank update, and the remedy."""


def check_type(config: Mapping[str, Any] | None, where: str) -> None:
    """Raises Unsupported where `config` names a tuner other than LoRA; those read came before."""
    kind = (config or {}).get("peft_type")
    if isinstance(kind, str) and kind != "LORA":
        why, remedy = REFUSED_TYPES.get(kind, ("clair does not read it here", CONVERT))
        raise Unsupported(f"{where}: peft_type {kind[:40]!r} is not LORA: {why}; {remedy}")
