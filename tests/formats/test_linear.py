"""Names in a config are matched with modules in time that grows with the config, not with both."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clair_cli import open_adapter
from clair_cli.errors import AdapterError, ConfigInvalid
from clair_cli.formats.peft.keys import Parameters
from clair_cli.formats.peft.patterns import ends_in, exactly
from tests.helpers.adapters import CONFIG, factors, write_folder

SECONDS = 5
MODULES = {f"model.layers.{i}.mlp.experts": (2, 2) for i in range(2000)}
NAMES = 60_000


def opened(folder: Path, **config: Any) -> float:
    """Seconds that it takes to open two thousand modules with a megabyte of config."""
    client = write_folder(folder, factors(MODULES), CONFIG | config)
    began = time.monotonic()
    with suppress(AdapterError):
        open_adapter(client)
    return time.monotonic() - began


@pytest.mark.parametrize(
    "config",
    [
        {"target_parameters": [f"mlp.a{i}" for i in range(NAMES)]},
        {"target_parameters": [f"experts.a{i}" for i in range(NAMES)]},
        {"target_parameters": [f"a{i}" for i in range(NAMES)]},
        {"target_parameters": [f"{i}.mlp.experts.w" for i in range(NAMES)]},
        {"target_modules": [f"a{i}" for i in range(NAMES)]},
        {"exclude_modules": [f"a{i}" for i in range(NAMES)]},
        {"layers_pattern": [f"a{i}" for i in range(NAMES)]},
        {"rank_pattern": {f"a{i}": 2 for i in range(NAMES)}},
        {"rank_pattern": {f"q_pro{i:03}.ex": 2 for i in range(1000)}},
        {"alpha_pattern": {f"layers.{i:03}.mlp.experts": 2 for i in range(1000)}},
        {"trainable_token_indices": list(range(100_000))},
        {"modules_to_save": [f"a{i}" for i in range(NAMES)]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_a_megabyte_of_names_is_read_or_refused_in_seconds(
    config: dict[str, Any], tmp_path: Path
) -> None:
    assert opened(tmp_path / "client", **config) < SECONDS


def test_names_of_nearly_everything_are_refused_by_name(tmp_path: Path) -> None:
    config = CONFIG | {"target_parameters": [f"a{i}" for i in range(NAMES)]}
    client = write_folder(tmp_path / "client", factors(MODULES), config)
    with pytest.raises(ConfigInvalid, match="target_parameters give its modules more than"):
        open_adapter(client)


def quadratic(module: str, parameters: list[str]) -> tuple[str, ...]:
    """The rule as it is stated, every name against the module."""
    named = [(f"{module}.{p.rpartition('.')[2]}", p) for p in parameters]
    return tuple({n: 0 for n, p in named if f".{n}".endswith(f".{p}")}) or (module,)


PARTS = ("", "a", "b", "a.b", "b.a", ".", "a.", ".b", "x.a.b", "a.b.w", "w", "b.w", "b.v", "..")


@pytest.mark.parametrize("module", [p for p in PARTS if p])
def test_the_lookup_is_the_rule(module: str) -> None:
    assert Parameters(PARTS).names_of(module) == quadratic(module, list(PARTS))
    for parameter in PARTS:
        assert Parameters([parameter]).names_of(module) == quadratic(module, [parameter])


def test_an_ending_is_one_from_a_dot_on() -> None:
    for module in PARTS:
        for name in PARTS:
            assert ends_in(module, {name}) == f".{module}".endswith(f".{name}"), (module, name)


def test_ten_thousand_modules_get_patterns_of_their_own_in_seconds() -> None:
    values = {f"model.layers.{i}.q_proj": 1 + i % 2 for i in range(10_000)}
    began = time.monotonic()
    assert len(exactly(values, 1)) == 5000
    assert time.monotonic() - began < SECONDS
