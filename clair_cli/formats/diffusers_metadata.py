"""`lora_adapter_metadata` of diffusers: JSON of one LoraConfig, or one per component of a pipeline.

A model's own file has the fields as they are, a pipeline's has them with the component in front:
"unet.r", "unet.lora_alpha", ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from clair_cli.cohort import UpdateSpec
from clair_cli.errors import ConfigInvalid
from clair_cli.formats.contents import MAX_CONFIG_BYTES
from clair_cli.formats.strict_json import parse_object

METADATA = "lora_adapter_metadata"
DEFAULTS = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}
"""Of PEFT, whose LoraConfig diffusers makes of the metadata."""


def read_metadata(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises ConfigInvalid."""
    data = text.encode()
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigInvalid(f"{where}: {len(data)} bytes, the limit is {MAX_CONFIG_BYTES}")
    return parse_object(data, where, ConfigInvalid)


def components(data: Mapping[str, Any], modules: Iterable[str]) -> dict[str, dict[str, str]]:
    """Component -> module -> its name there; "" is the component of a model's own file."""
    whole = any("." not in key for key in data)
    found: dict[str, dict[str, str]] = {}
    for module in modules:
        component, _, name = ("", "", module) if whole else module.partition(".")
        found.setdefault(component, {})[module] = name
    return found


def fields(data: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The LoraConfig of one component, completed as PEFT does."""
    prefix = f"{component}." if component else ""
    found = {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
    return DEFAULTS | found


def with_ranks(
    data: Mapping[str, Any], updates: Mapping[str, UpdateSpec], ranks: Mapping[str, int]
) -> dict[str, Any]:
    """The metadata giving modules in `ranks` that rank and scale 1, all others what they had."""
    found = dict(data)
    for component, names in components(data, updates).items():
        if not ranks.keys() & names.keys():
            continue
        r = max(ranks.get(m, updates[m].rank) for m in names)
        # "^" as diffusers writes it: without, proj_out is also the end of blocks.0.proj_out.
        ns = {f"^{re.escape(n)}": ranks.get(m, updates[m].rank) for m, n in names.items()}
        alphas = {
            f"^{re.escape(n)}": ranks.get(m, updates[m].scale * updates[m].rank)
            for m, n in names.items()
        }
        said = {
            "r": r,
            "lora_alpha": r,
            "use_rslora": False,
            "init_lora_weights": True,
            "eva_config": None,
            "rank_pattern": {k: n for k, n in ns.items() if n != r},
            "alpha_pattern": {k: a for k, a in alphas.items() if a != r},
        }
        prefix = f"{component}." if component else ""
        found |= {prefix + name: value for name, value in said.items()}
    return found
