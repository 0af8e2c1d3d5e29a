"""adapter_config.json of PEFT: what the scale of each module needs; the rest refused or ignored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clair_cli.errors import ConfigInvalid, Unsupported
from clair_cli.formats.peft.keys import Parameters, owner
from clair_cli.formats.peft.patterns import Pattern, V, check_cost, compile_patterns, lookup
from clair_cli.report import Reason

REFUSED = {
    "use_qalora": "QALoRA, which pools its inputs",
    "use_bdlora": "BD-LoRA, whose factors are block-diagonal",
    "arrow_config": "Arrow, a router over adapters",
    "kasa_config": "KaSA, which changes the base weights",
}
"""Fields that make the plain product scale * B @ A the wrong update, and why."""

DEFAULT_INIT = {"true", "false", "none"}
HARMLESS_INIT = {*DEFAULT_INIT, "gaussian", "eva", "orthogonal", "mica"}
BASE_CHANGING_INIT = ("pissa", "olora", "corda", "loftq", "lora_ga")

MAX_NAMES = 100_000
"""Of all modules together: ten times what the largest mixtures of experts have."""
KNOWN_LIBRARIES = {"transformers", "peft", "torch", "diffusers", "timm", "__main__"}


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What decides the scale; `rank` is None where the tensors decide alone."""

    where: str
    rank: int | None
    alpha: float
    rslora: bool = False
    ranks: tuple[Pattern[int], ...] = ()
    alphas: tuple[Pattern[float], ...] = ()
    base: str | None = None
    notes: tuple[Reason, ...] = ()
    parameters: Parameters = field(default_factory=Parameters)
    dora: bool = False
    tied: bool = False
    init: str = "default"
    task: str | None = None

    def rank_of(self, module: str) -> int | None:
        """The rank PEFT gives to `module`."""
        return self._looked_up(self.ranks, module, self.rank or 0) or None

    def scale_of(self, module: str, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv:2312.03732)."""
        alpha = self._looked_up(self.alphas, module, self.alpha)
        scale = alpha / (math.sqrt(rank) if self.rslora else rank)
        if scale == 0:
            raise ConfigInvalid(f"{self.where}: the scale of {module!r} underflows to 0")
        return scale

    def is_parameter(self, module: str) -> bool:
        """Whether the tensors of `module` adapt parameters of it, as those of experts are."""
        return self.parameters.names_of(module) != (owner(module),)

    def _looked_up(self, patterns: tuple[Pattern[V], ...], module: str, default: V) -> V:
        """By the first pattern that matches what PEFT calls `module`."""
        names = self.parameters.names_of(module)
        found = {name: lookup(patterns, name, default) for name in names}
        if len(set(found.values())) > 1:
            raise Unsupported(
                f"{self.where}: patterns differ for {' and '.join(map(repr, names[:2]))}, and the file "
                f"does not tell which of them {module!r} is; train them with one rank and alpha"
            )
        return found[names[0]]

    def check_modules(self, modules: Iterable[str]) -> tuple[Reason, ...]:
        """Notes on modules that two patterns match; ConfigInvalid where matching takes too long."""
        names: dict[str, int] = {}
        for module in modules:
            names |= dict.fromkeys(self.parameters.names_of(module), 0)
            if len(names) > MAX_NAMES:
                text = f"target_parameters give its modules more than {MAX_NAMES} names"
                raise ConfigInvalid(f"{self.where}: {text}; name the parameters that were trained")
        patterns: tuple[Pattern[Any], ...] = (*self.ranks, *self.alphas)
        check_cost(patterns, names, self.where)
        both = [*self._overlaps(list(names), self.ranks), *self._overlaps(list(names), self.alphas)]
        return tuple(both[:1])

    def _overlaps(self, names: list[str], patterns: tuple[Pattern[Any], ...]) -> list[Reason]:
        for module in names if len(patterns) > 1 else []:
            hits = [p.text for p in patterns if p.matches(module)]
            if len(hits) > 1:
                text = (
                    f"patterns {hits[0]!r} and {hits[1]!r} both match {module!r}; the first counts"
                )
                return [Reason("CLR105", f"{self.where}: {text}")]
        return []


def parse_config(
    data: Mapping[str, Any], where: str, alpha: float | None, differences: bool = False
) -> LoraConfig:
    """The scale rule in `data`, with `alpha` where it lacks lora_alpha.

    Raises ConfigInvalid on a field of the wrong type or a missing one, Unsupported on a kind of
    adapter whose update is not scale * B @ A, unless only `differences` between clients are asked for.
    """
    init = _check_kind(data, where, differences)
    stated = data.get("lora_alpha")
    stated = alpha if stated is None else _number(stated, "lora_alpha", where)
    if stated is None:
        raise ConfigInvalid(f"{where}: lora_alpha is missing; give it with --alpha")
    base = data.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise _wrong(where, "base_model_name_or_path", "a string", base)
    return LoraConfig(
        where=where,
        rank=_rank(data["r"], "r", where) if data.get("r") is not None else None,
        alpha=stated,
        rslora=_flag(data, "use_rslora", where),
        ranks=_patterns(data, "rank_pattern", where, _rank),
        alphas=_patterns(data, "alpha_pattern", where, _number),
        base=base or None,
        notes=_code_notes(data, where),
        parameters=Parameters(_texts(data, "target_parameters", where)),
        dora=_flag(data, "use_dora", where),
        tied=_flag(data, "ensure_weight_tying", where),
        init="default" if init in DEFAULT_INIT else init,
        task=task if isinstance(task := data.get("task_type"), str) else None,
    )


def _check_kind(data: Mapping[str, Any], where: str, differences: bool) -> str:
    """How the factors began, in lower case."""
    kind = data.get("peft_type")
    if not isinstance(kind, str):
        raise ConfigInvalid(f'{where}: peft_type is missing; expected "LORA" in a PEFT config')
    remedy = "convert it with peft.convert_to_lora, or train plain LoRA"
    if kind != "LORA":
        raise Unsupported(f"{where}: peft_type {kind[:40]!r} is not LORA; {remedy}")
    for name, what in REFUSED.items():
        if data.get(name):
            raise Unsupported(f"{where}: {name}: {what}; {remedy}")
    init = str(data.get("init_lora_weights")).lower()
    changing = init.startswith(BASE_CHANGING_INIT)
    if changing and not differences:
        raise Unsupported(
            f"{where}: init_lora_weights {init[:40]!r} changes the base weights; save it again "
            "with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...), or compare "
            "clients by --differences"
        )
    if init not in HARMLESS_INIT and not changing:
        raise Unsupported(f"{where}: init_lora_weights {init[:40]!r} is not known; {remedy}")
    return init


def _wrong(where: str, name: str, expected: str, found: object) -> ConfigInvalid:
    return ConfigInvalid(f"{where}: {name}: expected {expected}, found {str(found)[:40]!r}")


def _number(value: Any, name: str, where: str) -> float:
    fine = isinstance(value, int | float) and not isinstance(value, bool)
    if not fine or not 0 < value < math.inf:
        raise _wrong(where, name, "a positive number", value)
    return float(value)


def _rank(value: Any, name: str, where: str) -> int:
    if type(value) is not int or value < 1:
        raise _wrong(where, name, "a positive integer", value)
    return int(value)


def _flag(data: Mapping[str, Any], name: str, where: str) -> bool:
    value = data.get(name)
    if not isinstance(value, bool | None):
        raise _wrong(where, name, "true or false", value)
    return bool(value)


def _texts(data: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = data.get(name)
    if not isinstance(value, list | None) or not all(isinstance(v, str) for v in value or ()):
        raise _wrong(where, name, "a list of names", value)
    return tuple(value or ())


def _patterns(data: Mapping[str, Any], name: str, where: str, parse: Any) -> tuple[Any, ...]:
    entries = data.get(name)
    if not isinstance(entries, dict | None):
        raise _wrong(where, name, "an object", entries)
    values = {
        text: parse(value, f"{name} {text[:60]!r}", where)
        for text, value in (entries or {}).items()
    }
    return compile_patterns(values, f"{where}: {name}")


def _code_notes(data: Mapping[str, Any], where: str) -> tuple[Reason, ...]:
    """Fields by which a config asks its reader to run code; clair never does."""
    mapping = data.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    asks = {
        "auto_mapping": library is not None and str(library).split(".")[0] not in KNOWN_LIBRARIES,
        "auto_map": bool(data.get("auto_map")),
        "trust_remote_code": bool(data.get("trust_remote_code")),
    }
    text = "asks for code from elsewhere; ignored here, other tools may run it"
    return tuple(Reason("CLR113", f"{where}: {name} {text}") for name, yes in asks.items() if yes)
