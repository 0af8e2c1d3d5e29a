"""rank_pattern and alpha_pattern: PEFT's rule, for the patterns that cannot run away.

PEFT matches `(.*\\.)?(PATTERN)$` with Python's backtracking engine, on text that comes with the
file.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from clair_cli.errors import ConfigInvalid

MAX_PATTERNS = 1000
MAX_LENGTH = 256
MAX_STEPS = 5 * 10**7
"""Of the matching engine, in the worst case, over all patterns and modules: about a second."""

LITERAL = re.compile(r"(?:\\[^\w\s]|[\w.-])+")
CLASS = re.compile(r"\[\^?(?:\w-\w|[\w.])+\]")

V = TypeVar("V", int, float)


@dataclass(frozen=True, slots=True)
class Pattern(Generic[V]):
    """One entry: `width` is the length of what it matches, if all matches have one."""

    text: str
    value: V
    regex: re.Pattern[str]
    width: int | None
    cost: int

    def matches(self, module: str) -> bool:
        """Whether PEFT applies the entry to `module`: a match of its end, from a dot on."""
        if self.width is None:
            starts = [0, *(i + 1 for i, c in enumerate(module) if c == ".")]
            return any(self.regex.fullmatch(module, start) for start in starts)
        start = len(module) - self.width
        on_boundary = start == 0 or (start > 0 and module[start - 1] == ".")
        return on_boundary and self.regex.fullmatch(module, start) is not None


def compile_patterns(entries: Mapping[str, V], where: str) -> tuple[Pattern[V], ...]:
    """The entries in their order. Raises ConfigInvalid, naming `where`, on one that is not safe."""
    if len(entries) > MAX_PATTERNS:
        raise ConfigInvalid(f"{where}: {len(entries)} patterns, the limit is {MAX_PATTERNS}")
    return tuple(_compile(text, value, where) for text, value in entries.items())


def _compile(text: str, value: V, where: str) -> Pattern[V]:
    literal = LITERAL.fullmatch(text.removeprefix("^")) is not None
    plain = re.sub(r"\\.", "x", text, flags=re.DOTALL)
    width = len(plain.removeprefix("^")) if literal else None
    plain = CLASS.sub("x", plain).replace("(?:", "(")
    rest = re.sub(r"\.[*+]", "x", plain, count=1)
    backreference = re.search(r"\\\d", text)
    if len(text) > MAX_LENGTH or backreference or re.search(r"[*+?{\[\]]", rest):
        raise ConfigInvalid(
            f"{where}: pattern {text[:60]!r} could take for ever to match; use module names with "
            f"at most one '.*', in at most {MAX_LENGTH} characters"
        )
    try:
        regex = re.compile(text)
    except (re.error, RecursionError, OverflowError) as cause:
        raise ConfigInvalid(f"{where}: pattern {text[:60]!r} is no regex: {cause}") from None
    ways = (1 + plain.count("|")) ** max(1, plain.count("("))
    return Pattern(text, value, regex, width, ways * (1 if rest == plain else len(plain)))


def check_cost(patterns: Iterable[Pattern[Any]], modules: Iterable[str], where: str) -> None:
    """Raises ConfigInvalid where matching every pattern with every module could take too long."""
    names = list(modules)
    # Tried at every dot, a pattern runs over the name, once for each way through its alternatives.
    size = sum((1 + name.count(".")) * len(name) for name in names)
    steps = sum(20 * len(names) if p.width is not None else p.cost * size for p in patterns)
    if steps > MAX_STEPS:
        raise ConfigInvalid(
            f"{where}: the patterns could take too long to match with {len(names)} modules; "
            "use plain module names"
        )


def lookup(patterns: Iterable[Pattern[V]], module: str, default: V) -> V:
    """The value of the first entry, in the order of the file, that matches; else `default`."""
    return next((p.value for p in patterns if p.matches(module)), default)


def exactly(values: Mapping[str, V], default: V) -> dict[str, V]:
    """Patterns that give every module its own of `values`, though names may end in others."""
    others = {module for module, value in values.items() if value != default}
    named = [module for module in values if ends_in(module, others)]
    return {re.escape(m): values[m] for m in sorted(named, key=len, reverse=True)}


def ends_in(module: str, names: Container[str]) -> bool:
    """Whether `module` is one of `names`, or ends in a dot and one of them."""
    starts = (i + 1 for i, c in enumerate(module) if c == ".")
    return module in names or any(module[start:] in names for start in starts)
