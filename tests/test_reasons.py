"""The words of reason codes: every code has them, they stand alone, and what a code can do is true."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from clair_cli.errors import AdapterError
from clair_cli.reasons import FAMILIES, RULES, SEVERITIES, Rule, Severity, Standing, plain
from tests import ROOT

SOURCES = [p.read_text() for p in (ROOT / "clair_cli").rglob("*.py")]
USED = {code for source in SOURCES for code in re.findall(r"\"(CLR\d{3})\"", source)}


def test_the_table_has_every_code_that_the_source_has_and_no_other() -> None:
    assert len(USED) > 25
    assert RULES.keys() == USED
    assert list(RULES) == sorted(RULES)
    assert all(code == rule.code for code, rule in RULES.items())


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.code)
def test_each_text_is_sentences_and_a_title_is_none(rule: Rule) -> None:
    for text in filter(None, (rule.seen, rule.means, rule.sure, rule.do)):
        assert re.match(r"[A-Z]|clair ", text), text
        assert text.endswith("."), text
        assert text.count("`") % 2 == 0, text
        assert text.isprintable()
    assert rule.title
    assert not rule.title.endswith(".")
    assert len(rule.title) <= 40
    assert not rule.page or (ROOT / "docs" / "reference" / rule.page).is_file()
    assert "`" not in plain(rule.do)


def test_every_standing_has_a_severity_and_every_family_a_name() -> None:
    assert SEVERITIES.keys() == set(get_args(Standing))
    assert set(SEVERITIES.values()) == set(get_args(Severity))
    assert {rule.family for rule in RULES.values()} == set(FAMILIES.values())


def test_the_first_standing_is_the_worst() -> None:
    order = list(get_args(Severity))
    for rule in RULES.values():
        ranks = [order.index(SEVERITIES[s]) for s in rule.standings]
        assert ranks == sorted(ranks), rule.code
        assert rule.severity == order[ranks[0]]


def test_what_an_error_of_an_adapter_says_makes_its_client_broken() -> None:
    kinds = [AdapterError, *AdapterError.__subclasses__()]
    codes = {kind.code for kind in kinds} - {"CLR117"}  # a folder without an adapter is no client
    assert len(codes) > 10
    assert {c for c in codes if "broken" not in RULES[c].standings} == set()
