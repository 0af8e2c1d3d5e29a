"""Where modules lie: whole layers and whole kinds by name, everything else by number and worst."""

from __future__ import annotations

import pytest

from clair_cli.detection.module_names import describe

KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def module(layer: int, kind: str) -> str:
    return f"model.layers.{layer}.{kind}"


def network(layers: int) -> list[str]:
    return [module(n, kind) for n in range(layers) for kind in KINDS]


def layers(*numbers: int) -> list[str]:
    return [module(n, kind) for n in numbers for kind in KINDS]


def test_all_modules_are_all_modules() -> None:
    assert describe(network(2), network(2)) == "all 6 modules"
    assert describe(list(reversed(network(2))), network(2)) == "all 6 modules"


def test_one_module_is_the_only_one() -> None:
    assert describe(["q_proj"], ["q_proj"]) == "the only module"
    assert describe([module(3, KINDS[0])], [module(3, KINDS[0])]) == "the only module"


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0,), "only layer 0"),
        ((11,), "only layer 11"),
        ((3, 4, 5), "only layers 3-5"),
        ((5, 3, 4), "only layers 3-5"),
        ((1, 3, 4), "only layers 1, 3-4"),
        ((2, 10), "only layers 2, 10"),
        ((10, 2), "only layers 2, 10"),
        ((9, 10, 11), "only layers 9-11"),
        ((0, 1, 3, 5, 6, 7), "only layers 0-1, 3, 5-7"),
    ],
)
def test_whole_layers_are_named_as_numbers_whatever_is_worst(
    numbers: tuple[int, ...], words: str
) -> None:
    assert describe(layers(*numbers), network(12)) == words


@pytest.mark.parametrize("layer", range(12))
def test_a_layer_but_for_one_module_is_no_whole_layer(layer: int) -> None:
    bad = layers(layer)[1:]
    assert describe(bad, network(12)) == f"2 of 36 modules, worst in {bad[0]}"


def test_whole_kinds_are_named() -> None:
    assert describe([module(n, KINDS[0]) for n in range(4)], network(4)) == "only q_proj"
    both = [module(n, kind) for n in (3, 1, 0, 2) for kind in (KINDS[1], KINDS[2])]
    assert describe(both, network(4)) == "only down_proj, v_proj"


def test_a_kind_but_for_one_layer_is_no_whole_kind() -> None:
    bad = [module(n, KINDS[0]) for n in (2, 0, 1)]
    assert describe(bad, network(4)) == "3 of 12 modules, worst in model.layers.2.self_attn.q_proj"


def test_else_the_number_and_the_first_named_are_said() -> None:
    bad = [module(2, KINDS[1]), module(0, KINDS[0]), module(1, KINDS[2])]
    assert describe(bad, network(4)) == "3 of 12 modules, worst in model.layers.2.self_attn.v_proj"
    assert (
        describe(bad[::-1], network(4)) == "3 of 12 modules, worst in model.layers.1.mlp.down_proj"
    )


def test_a_module_outside_of_the_layers_is_not_hidden_behind_them() -> None:
    """lm_head lies in no layer: with it layer 0 is not all that is bad."""
    modules = [*network(2), "lm_head"]
    assert describe(layers(0), modules) == "only layer 0"
    assert describe(["lm_head", *layers(0)], modules) == "4 of 7 modules, worst in lm_head"
    assert describe(["lm_head"], modules) == "only lm_head"


def test_names_without_numbers_are_told_by_their_kind() -> None:
    modules = [f"{side}.{kind}" for side in ("encoder", "decoder") for kind in ("query", "value")]
    assert describe(["decoder.query", "encoder.query"], modules) == "only query"
    assert describe(["decoder.query"], modules) == "1 of 4 modules, worst in decoder.query"
    assert describe(modules[:2], modules) == "2 of 4 modules, worst in encoder.query"


def test_a_number_inside_a_word_is_no_layer() -> None:
    modules = ["block1.fc", "block2.fc", "block2.out"]
    assert describe(["block2.fc"], modules) == "1 of 3 modules, worst in block2.fc"


def test_layers_are_numbered_however_the_network_calls_them() -> None:
    modules = [f"transformer.h.{n}.{kind}" for n in range(3) for kind in ("c_attn", "c_fc")]
    assert describe(modules[2:4], modules) == "only layer 1"
    assert describe(["1.fc", "1.out"], ["0.fc", "0.out", "1.fc", "1.out"]) == "only layer 1"
