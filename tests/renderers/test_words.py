"""Numbers and names in sentences."""

from __future__ import annotations

from itertools import pairwise

import pytest

from clair_cli.renderers.words import NEAR, SHARES, aligned, few, many, percent, share, span


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0 %"), (0.004, "0.4 %"), (0.01, "1 %"), (0.444, "44 %"), (1.0, "100 %")],
)
def test_percent_is_whole_from_one_percent_on(value: float, said: str) -> None:
    assert percent(value) == said


@pytest.mark.parametrize("known", SHARES)
def test_a_word_stands_for_what_is_near_it_and_for_nothing_else(known: float) -> None:
    for off in (-NEAR, 0.0, NEAR):
        assert share(known + 0.99 * off) == SHARES[known]
    assert share(known - 1.5 * NEAR).endswith(" %")


def test_no_value_has_two_words() -> None:
    values = sorted(SHARES)
    assert min(b - a for a, b in pairwise(values)) > 2 * NEAR


def test_counts_spans_and_lists() -> None:
    assert [many(n, "client") for n in (0, 1, 2)] == ["0 clients", "1 client", "2 clients"]
    assert many(2, "entry", "entries") == "2 entries"
    assert [span([3]), span([3, 3]), span([8, 2, 3]), span([])] == ["3", "3", "2-8", "0"]
    names = [f"c{k}" for k in range(7)]
    assert (few(names[:5]), few(names)) == ("c0, c1, c2, c3, c4", "c0, c1, c2, c3, c4 and 2 more")


def test_cells_are_padded_and_harmless() -> None:
    assert aligned([("a", "b"), ("\x1b[31m", "10")], right=(1,)) == [
        "  a          b",
        "  \\x1b[31m  10",
    ]
