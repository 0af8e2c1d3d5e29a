"""Strangers by base and shapes: everybody is in one group or apart, and a group can be compared."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from clair_cli.cohort import Adapter, Entries, UpdateSpec, align, grouped

Modules = dict[str, tuple[int, int]]


def stranger(client: str, modules: Modules, base: str | None = "gpt2") -> Adapter:
    updates = {m: UpdateSpec(*shape, 2, 1.0, "F32", {"up": m}) for m, shape in modules.items()}
    traits = {"init": ""}
    return Adapter(client, Path(client), "peft", "", updates, {}, {}, {}, base=base, traits=traits)


def entries(*adapters: Adapter) -> Entries:
    return Entries(tuple(adapters))


SMALL: Modules = {"q": (4, 4), "v": (2, 4)}
LARGE: Modules = {"q": (8, 8), "v": (4, 8)}


def names(found: object) -> list[list[str]]:
    return [[a.client for a in g.entries.adapters] for g in found.groups]  # type: ignore[attr-defined]


def test_bases_are_told_apart_whatever_folder_they_lie_in() -> None:
    bases = ["gpt2", "/models/gpt2", "bert", "org/BERT", "bert/", "C:\\m\\gpt2"]
    found = grouped(entries(*(stranger(f"c{i}", SMALL, b) for i, b in enumerate(bases))))
    assert names(found) == [["c0", "c1", "c5"], ["c2", "c3", "c4"]]
    assert [g.name for g in found.groups] == ["gpt2", "bert"]
    assert found.apart == ()


def test_shapes_alone_bring_together_what_names_divide() -> None:
    clients = [stranger(f"c{i}", SMALL, f"base-{i}") for i in range(4)]
    assert names(grouped(entries(*clients))) == []
    (group,) = grouped(entries(*clients), "shapes").groups
    assert len(group.entries.adapters) == 4
    assert align(group.entries, bases=False).broken == ()


def test_two_sizes_under_one_name_are_two_groups() -> None:
    clients = [stranger(f"s{i}", SMALL) for i in range(3)] + [
        stranger(f"l{i}", LARGE) for i in range(4)
    ]
    found = grouped(entries(*clients))
    assert [g.name for g in found.groups] == ["gpt2", "gpt2 (2)"]
    assert names(found) == [["l0", "l1", "l2", "l3"], ["s0", "s1", "s2"]]


def test_halves_of_the_modules_join_only_while_enough_is_left_to_all() -> None:
    both, left, right = SMALL, {"q": SMALL["q"]}, {"v": SMALL["v"]}
    found = grouped(
        entries(
            *(stranger(f"b{i}", both) for i in range(3)), stranger("l", left), stranger("r", right)
        )
    )
    (group,) = found.groups
    assert len(group.entries.adapters) == 4
    assert len(align(group.entries).modules) == 1
    assert len(found.apart) == 1


def test_no_base_is_a_base_of_its_own() -> None:
    found = grouped(entries(*(stranger(f"c{i}", SMALL, None) for i in range(3))))
    assert [g.name for g in found.groups] == ["unknown base"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("by", ["base", "shapes"])
def test_everybody_is_somewhere_once_and_every_group_can_be_compared(seed: int, by: str) -> None:
    draw = random.Random(seed)
    clients = []
    for i in range(60):
        modules = {
            f"m{m}": draw.choice([(4, 4), (4, 4), (4, 4), (8, 8)])
            for m in draw.sample(range(6), draw.randint(1, 6))
        }
        clients.append(stranger(f"c{i}", modules, draw.choice(["a", "b", None])))
    found = grouped(entries(*clients), by)  # type: ignore[arg-type]
    placed = [a.client for g in found.groups for a in g.entries.adapters]
    placed += [a.client for a in found.apart]
    assert sorted(placed) == sorted(a.client for a in clients)
    assert len({g.name for g in found.groups}) == len(found.groups)
    for group in found.groups:
        shapes: dict[str, tuple[int, int]] = {}
        for adapter in group.entries.adapters:
            for name, spec in adapter.updates.items():
                assert shapes.setdefault(name, (spec.d_out, spec.d_in)) == (spec.d_out, spec.d_in)
        cohort = align(group.entries, bases=by == "base")
        assert cohort.modules, "nothing that all of them have"
        assert len(group.entries.adapters) >= 3


def test_thousands_that_share_nothing_take_no_time() -> None:
    """One pass per module and client: 4 000 uploads whose modules nobody else has."""
    clients = [
        stranger(f"c{i}", {f"m{i}.{m}": (4, 4) for m in range(40)}, "gpt2") for i in range(4_000)
    ]
    began = time.process_time()
    found = grouped(entries(*clients))
    assert len(found.apart) == 4_000
    assert time.process_time() - began < 10
