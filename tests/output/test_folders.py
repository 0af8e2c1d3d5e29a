"""Which folder of an output is whose: no two clients share one, on any file system, nor with clair."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clair_cli.errors import UsageError
from clair_cli.output.folders import DEVICES, RESERVED, folder_names, hashed_name

WORDS = [
    "x",
    "X",
    "é",
    "e\u0301",
    "ß",
    "ss",
    "\ufb01",
    "fi",
    "K",
    "\u212a",
    "k",
    "\u0131",
    "i",
    "İ",
    "I",
]
WORDS += ["client-1", "Müller", "mu\u0308ller", "con", "NUL.txt", "com1.tar.gz", "a.", "a ", ".a"]
WORDS += ["-n", "$(x)", "\udcff", "", "strength-0.5", *RESERVED, *map(str.upper, RESERVED)]
NAMES = st.one_of(st.sampled_from(WORDS), st.text(max_size=8), st.text("aAbB.-", max_size=4))
NAMES = st.one_of(NAMES, NAMES.map(hashed_name), NAMES.map(hashed_name).map(str.upper))
COHORTS = st.lists(NAMES, unique=True, max_size=12)


def one_file_system_says(name: str) -> set[str]:
    """What a name is on systems that fold case, and that keep names in one Unicode form."""
    forms = ("NFC", "NFD", "NFKC", "NFKD")
    return {unicodedata.normalize(form, name).casefold() for form in forms} | {name.upper()}


def check(clients: Sequence[str]) -> None:
    found = folder_names(clients)
    assert [*found] == [*clients]
    seen: dict[str, str] = {}
    for client, name in found.items():
        assert all(seen.setdefault(key, client) == client for key in one_file_system_says(name))
        assert name.isascii()
        assert name.lower() not in RESERVED
        assert name.lower().partition(".")[0] not in DEVICES
        assert name in (client, hashed_name(client))
        assert 0 < len(name) <= 128
        assert name[0].isalnum()
        assert name[-1] not in ". "
    assert folder_names([*reversed(clients)]) == found


@settings(max_examples=400, deadline=None, derandomize=True)
@given(COHORTS)
def test_no_two_clients_ever_share_a_folder_nor_take_one_of_clair(clients: list[str]) -> None:
    check(clients)


def test_every_hard_name_at_once() -> None:
    check([*WORDS, *map(hashed_name, WORDS)])


def test_a_folder_is_the_id_where_that_is_plain_whoever_else_is_there() -> None:
    names = ["client-1", "client-10", "a_b.c-d", "strength-0.5", "client-abcdef01", "console"]
    assert folder_names([*names, "Müller", "con"]) == {n: n for n in names} | {
        n: hashed_name(n) for n in ("Müller", "con")
    }


def test_two_clients_of_one_id_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'b' first"):
        folder_names(["c", "b", "a", "b", "c"])
