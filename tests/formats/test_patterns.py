"""rank_pattern and alpha_pattern: PEFT's answer on sane patterns, and none that runs for ever."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clair_cli.errors import ConfigInvalid
from clair_cli.formats.peft.config import parse_config
from clair_cli.formats.peft.patterns import check_cost, compile_patterns, exactly, lookup

NAMES = [
    f"model.layers.{i}.{part}"
    for i in (0, 1, 2, 10, 11, 21)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "mlp.xq_proj")
]
NAMES += ["lm_head", "q_proj", "model.embed_tokens", "model.layersX1.mlp.q_proj", "a.b-c.q_proj"]

SANE = [
    "q_proj",
    "self_attn.q_proj",
    "layers.1.self_attn.q_proj",
    "model.layers.1.mlp.down_proj",
    r"model\.layers\.1\.mlp\.down_proj",
    r"b\-c\.q_proj",
    "^model.layers.1.self_attn.q_proj",
    "^layers.1.self_attn.q_proj",
    "q_proj$",
    "q|v_proj",
    "(q|v)_proj",
    "(?:q|v)_proj",
    ".*q_proj",
    ".+q_proj",
    r"layers\.1\..*",
    r"layers\.(0|1|2)\..*_proj",
    r"layers\.\d\.mlp\.down_proj",
    r"layers\.[0-2]\.mlp.down_proj",
    r"layers\.[^1]\.mlp.down_proj",
    "lm_head|q_proj",
    "proj",
    "head",
    "model",
    "",
]


@pytest.mark.parametrize("text", SANE)
def test_a_sane_pattern_matches_what_peft_matches(text: str) -> None:
    from peft.utils.other import get_pattern_key

    patterns = compile_patterns({text: 7}, "rank_pattern")
    for name in NAMES:
        expected = 7 if get_pattern_key([text], name) == text else 3
        assert lookup(patterns, name, 3) == expected, name


def test_the_first_match_in_the_order_of_the_file_wins_as_in_peft() -> None:
    from peft.utils.other import get_pattern_key

    for entries in ({"v_proj": 1, "self_attn.v_proj": 2}, {"self_attn.v_proj": 2, "v_proj": 1}):
        patterns = compile_patterns(entries, "rank_pattern")
        for name in NAMES:
            expected = entries.get(get_pattern_key(list(entries), name), 3)
            assert lookup(patterns, name, 3) == expected


HOSTILE = [
    "(a+)+b",
    "(.*.*)*Z",
    "(a|a)*b",
    "a{1,1000}",
    "(?=a)b",
    "(?i)a",
    ".*.*",
    ".*?a",
    r"(a)\1",
    "a?" * 30 + "a" * 30,
    "[[a]]",
    "a**",
    "*",
    "(",
    "a)|(b",
    "\\",
    "a" * 257,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_pattern_that_could_run_away_is_refused_at_once(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ConfigInvalid, match="rank_pattern: pattern") as caught:
        compile_patterns({text: 1}, "adapter_config.json: rank_pattern")
    assert time.perf_counter() - began < 1
    assert "\n" not in str(caught.value)


WORST = [
    {"(a|aa)" * 42: 1},
    {f"(a|aa)(a|aa){i}.*b": 1 for i in range(1000)},
    {"a.*" + "a" * 250: 1},
    {f"x{i}": 1 for i in range(1000)},
    {".*" + "a" * 200 + str(i): 1 for i in range(1000)},
]


@pytest.mark.parametrize("entries", WORST)
def test_patterns_are_refused_or_answered_in_seconds_on_hostile_names(
    entries: dict[str, int],
) -> None:
    names = ["a" * 500 + str(i) for i in range(2000)] + ["a." * 250 + str(i) for i in range(2000)]
    data = {"peft_type": "LORA", "lora_alpha": 1, "rank_pattern": entries}
    config = parse_config(data, "adapter_config.json", None)
    began, refused = time.perf_counter(), ""
    try:
        config.check_modules(names)
        for name in names:
            config.rank_of(name)
    except ConfigInvalid as error:
        refused = str(error)
    assert time.perf_counter() - began < 5
    assert refused == "" or "too long" in refused


def test_patterns_of_every_module_of_a_large_model_are_within_the_budget() -> None:
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = [f"model.layers.{i}.self_attn.{p}" for i in range(126) for p in parts]
    patterns = compile_patterns({n: i + 1 for i, n in enumerate(names)}, "rank_pattern")
    check_cost(patterns, names, "rank_pattern")
    assert [lookup(patterns, n, 0) for n in names] == list(range(1, len(names) + 1))


def test_too_many_patterns_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="1001 patterns"):
        compile_patterns({str(i): 1 for i in range(1001)}, "rank_pattern")


VALUES = {"proj": 2, "a.proj": 4, "b.a.proj": 3, "x.b.a.proj": 4, "a.other": 5, "other": 4}


@given(st.dictionaries(st.from_regex(r"[ab](\.[ab]){0,3}", fullmatch=True), st.integers(1, 3)))
def test_written_patterns_give_every_module_its_own(values: dict[str, int]) -> None:
    for case in (values, VALUES):
        patterns = compile_patterns(exactly(case, 3), "x")
        assert {m: lookup(patterns, m, 3) for m in case} == case
        if len(set(case.values()) | {3}) == 1:
            assert patterns == ()
