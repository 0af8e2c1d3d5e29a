"""The report for a person: words that fit the terminal, and a bottom line that counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clair_cli.refined import RefinedClient, Refinement
from clair_cli.renderers import text
from clair_cli.renderers.words import folded
from clair_cli.report import Reason, Report, gated
from tests.helpers.reports import CLIENTS, COMPLETE, MODULES, NO_VERDICT, client

assert COMPLETE.refinement is not None
DONE: Refinement = COMPLETE.refinement


def bottom(report: Report) -> str:
    return text.render(report).splitlines()[-1]


def refined(**changes: Any) -> list[str]:
    """Lines of COMPLETE with another refinement, without a terminal."""
    return text.render(replace(COMPLETE, refinement=replace(DONE, **changes))).splitlines()


def moved(**changes: Any) -> str:
    """What the screen says of the refinement itself."""
    (line,) = (s for s in refined(**changes) if s.startswith("refined "))
    return line.partition(": ")[2]


# --- the table of clients


def test_verbose_gives_every_client_a_line() -> None:
    shown = text.render(COMPLETE, verbose=True).splitlines()
    named = [line.split()[1] for line in shown if line.startswith("  ") and line.strip()]
    assert sorted(named[1:]) == sorted(c.client for c in CLIENTS)


def test_verbose_gives_every_reason_its_code() -> None:
    plain, shown = (text.render(COMPLETE, verbose=n) for n in (0, 1))
    reasons = [r for c in CLIENTS for r in c.reasons]
    assert reasons
    for reason in reasons:
        assert f"{reason.code} {reason.message}" in shown
        assert f"{reason.code} {reason.message}" not in plain


@pytest.mark.parametrize(
    ("stability", "said"),
    [
        (0.0, True),
        (0.25, True),
        (0.49, True),
        (0.5, False),
        (0.9, False),
        (1.0, False),
        (None, False),
    ],
)
@pytest.mark.parametrize("verdict", ["suspicious", "contaminated"])
def test_a_verdict_hangs_on_clients_only_where_most_could_overturn_it(
    verdict: Any, stability: float | None, said: bool
) -> None:
    client = replace(
        CLIENTS[3], verdict=verdict, stability=stability, depends_on=("client-2", "client-10")
    )
    report = replace(COMPLETE, clients=(CLIENTS[0], client))
    for verbose in (False, True):
        shown = text.render(report, verbose=verbose)
        words = f"client-2, client-10 (stability {100 * (stability or 0):.0f} %); none of 4508 "
        assert (f"; would not hold without any one of {words}" in shown) == said
        assert ("would not hold" in shown) == said
    alone = replace(report, clients=(CLIENTS[0], replace(client, depends_on=())))
    assert "would not hold" not in text.render(alone)


def test_one_note_on_many_benign_clients_is_one_line() -> None:
    same = Reason("CLR115", "written as plain LoRA")
    clients = [client(f"c-{n}", "benign", 0.1, same) for n in range(4)]
    clients.append(client("c-9", "benign", 0.1, Reason("CLR114", "a checkpoint")))
    said = text.render(replace(COMPLETE, clients=tuple(clients))).splitlines()
    (line,) = (s for s in said if "written as plain LoRA" in s)
    assert line.split()[:3] == ["4", "of", "them"]
    (line,) = (s for s in said if "a checkpoint" in s)
    assert line.split()[0] == "c-9"


def test_many_broken_clients_of_one_reason_take_one_line_and_with_v_each_its_own() -> None:
    why, other = Reason("CLR108", "IA3: refused"), Reason("CLR101", "missing")
    clients = [client(f"c-{n}", "broken", None, why) for n in range(5)]
    clients += [client("d", "broken", None, other), client("e", "benign", 0.1)]
    report = replace(COMPLETE, clients=tuple(clients))
    said = [s.split() for s in text.render(report).splitlines() if "refused" in s]
    assert [s[1:5] for s in said] == [["c-0", "and", "4", "more"]]
    every = [s for s in text.render(report, verbose=True).splitlines() if "refused" in s]
    assert len(every) == 5
    few = replace(COMPLETE, clients=tuple(clients[:3]))
    assert len([s for s in text.render(few).splitlines() if "refused" in s]) == 3


@pytest.mark.parametrize("width", [60, 80, 120])
def test_on_a_terminal_reasons_stand_below_their_client_one_a_line(width: int) -> None:
    lines = text.render(COMPLETE, width=width).splitlines()
    assert max(map(len, lines)) <= width
    (at,) = (i for i, line in enumerate(lines) if line.split()[:2] == ["contaminated", "client-4"])
    below = [line for line in lines[at + 1 :] if line.startswith(" " * 6)]
    assert below[0].strip().startswith("direction opposite to the")
    assert ";" not in "".join(lines[at : at + 3])


@pytest.mark.parametrize("width", [None, 1, 59, 1000])
def test_a_pipe_and_a_terminal_of_room_enough_get_one_line_per_client(width: int | None) -> None:
    shown = text.render(COMPLETE, width=width)
    assert shown == text.render(COMPLETE)
    assert "direction opposite to the consensus; agrees with client-5" in shown


def test_every_word_of_the_table_is_on_the_terminal_too() -> None:
    words = text.render(COMPLETE).replace(";", "").split()
    narrow = text.render(COMPLETE, width=60).replace(";", "").replace("client-6:", "client-6")
    assert sorted([*narrow.split(), "why"]) == sorted(words)


def test_vv_adds_modules_and_v_does_not() -> None:
    plain, v, vv = (text.render(COMPLETE, verbose=n) for n in range(3))
    assert not any(m in plain + v for m in MODULES)
    assert v != plain
    assert set(v.splitlines()) < set(vv.splitlines())
    more = [line.split() for line in vv.splitlines() if MODULES[1] in line]
    assert ["client-4", MODULES[1], "0.10", "0.3333", "9.8"] in more
    assert [MODULES[1], "64x48", "2", "67", "%"] in more
    assert len(more) == sum(c.score is not None for c in CLIENTS) + 1
    assert text.render(NO_VERDICT, verbose=2) == text.render(NO_VERDICT, verbose=1)


def test_only_the_worst_modules_of_a_client_are_listed() -> None:
    (one,) = COMPLETE.clients[3].modules[:1]
    many = tuple(replace(one, name=f"m-{k}", score=float(k)) for k in range(9))
    report = replace(COMPLETE, clients=(*CLIENTS[:3], replace(CLIENTS[3], modules=many)))
    shown = text.render(report, verbose=2)
    assert [w for w in shown.split() if w.startswith("m-")] == ["m-8", "m-7", "m-6"]


# --- the headline


def test_where_nothing_could_be_read_the_headline_says_so() -> None:
    broken = [replace(CLIENTS[-1], client=f"client-{k}") for k in range(3)]
    assert text.render(replace(NO_VERDICT, clients=tuple(broken))).startswith(
        "3 entries, none readable\n"
    )
    one = text.render(replace(NO_VERDICT, clients=tuple(broken[:1])))
    assert one.startswith("1 entry, none readable\n")
    assert text.render(NO_VERDICT).startswith("3 clients, 2 usable, cpu, 3.1 s\n")


# --- what was done


def test_the_way_to_the_mean_is_said_in_words() -> None:
    assert moved() == (
        "moved half-way to the group's mean (a fifth in each client's own directions); "
        "24 % of the differences removed; no replicates to say how much was noise"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strength": 1.0}, "moved all the way to the group's mean"),
        ({"strength": 0.33}, "moved a third of the way to the group's mean"),
        ({"strength": 0.42}, "moved 42 % of the way to the group's mean"),
        ({"strength": 0.42, "inside": 0.3}, "(30 % in each client's own directions)"),
        ({"inside": 0.5}, "moved half-way to the group's mean; "),
        ({"inside": 0.0}, "(but not in each client's own directions)"),
        ({"inside": 0.0, "subspace_ranks": (0, 0)}, "moved half-way to the group's mean; "),
        ({"side": "left"}, "(a fifth in the output directions that all share)"),
        ({"strength": 0.0, "inside": 0.0}, "kept as they are"),
    ],
)
def test_a_share_is_a_word_where_that_is_exact_enough(changes: dict[str, Any], said: str) -> None:
    assert said in moved(**changes)


def test_replicates_say_how_much_was_noise() -> None:
    assert DONE.expected is not None
    known = replace(DONE.expected, noise=0.31, gain=0.1)
    said = moved(knowledge="replicates", expected=known)
    assert said.endswith("; by the replicates 31 % of them was noise")


def test_the_numbers_are_there_with_v() -> None:
    numbers = (
        "in numbers: strength 0.5, 0.21 in the kept directions, 2-8 directions kept per module"
    )
    assert numbers not in text.render(COMPLETE)
    assert f"{numbers}, mean times 1.11\n" in text.render(COMPLETE, verbose=1)


@pytest.mark.parametrize(
    ("lost", "said"),
    [(0.0, "cuts off nothing"), (1e-7, "cuts off nothing"), (0.076, "cuts off at most 8 % of an")],
)
def test_what_the_rank_cuts_off_is_said(lost: float, said: str) -> None:
    one = RefinedClient("client-1", "client-1", 8, lost, 0.3)
    assert any(said in line for line in refined(clients=(one,)))


def test_suspicious_clients_without_an_adapter_are_named_with_the_option() -> None:
    odd = [replace(CLIENTS[2], client=f"odd-{k}") for k in range(8)]
    report = replace(COMPLETE, clients=(*CLIENTS[:2], *odd))
    (line,) = (s for s in text.render(report).splitlines() if s.startswith("not refined"))
    assert line == (
        "not refined, because suspicious: odd-0, odd-1, odd-2, odd-3, odd-4 and 3 more; "
        "--refine-suspicious refines them, too"
    )
    assert "odd-6, odd-7; --refine-suspicious" in text.render(report, verbose=1)
    without = replace(report, settings={**report.settings, "exclude": [c.client for c in odd]})
    assert "not refined" not in text.render(without)


# --- the bottom line


@pytest.mark.parametrize(
    ("fail_on", "said"),
    [
        ("suspicious", "FAIL: 1 suspicious, 2 contaminated, 1 broken"),
        ("contaminated", "FAIL: 2 contaminated, 1 broken"),
        ("broken", "FAIL: 1 broken"),
        ("never", "done: 2 contaminated and 1 broken clients left out; no gate set"),
    ],
)
def test_the_bottom_line_counts_per_verdict(fail_on: str, said: str) -> None:
    assert bottom(gated(COMPLETE, fail_on)) == said


def test_without_a_gate_the_bottom_line_says_what_was_done() -> None:
    one = replace(COMPLETE, clients=CLIENTS[:4])
    assert bottom(gated(one, "never")) == "done: 1 contaminated client left out; no gate set"
    detected = replace(one, refinement=None)
    assert bottom(gated(detected, "never")) == "done: 1 contaminated client; no gate set"
    clean = replace(COMPLETE, clients=CLIENTS[:3])
    assert bottom(gated(clean, "never")) == "done: no contaminated client; no gate set"


def test_a_gate_that_passes_says_whom_it_let_through() -> None:
    clean = gated(replace(COMPLETE, clients=CLIENTS[:3]), "contaminated")
    assert bottom(clean) == "PASS: no client at or above --fail-on contaminated"
    settings = {**COMPLETE.settings, "include": ["client-4"]}
    one = gated(replace(COMPLETE, clients=CLIENTS[:4], settings=settings), "contaminated")
    assert bottom(one) == f"{bottom(clean)} but 1 that --include counts as benign"


def without_adapter(report: Report, count: int) -> Report:
    """The report of a folder that also has entries without an adapter."""
    empty = [Reason("CLR117", f"logs-{k}: no adapter in it") for k in range(count)]
    findings = (*empty, *report.population.findings)
    return replace(report, population=replace(report.population, findings=findings))


@pytest.mark.parametrize(("count", "said"), [(1, "1 entry"), (2, "2 entries"), (9, "9 entries")])
def test_entries_without_an_adapter_are_accounted_for(count: int, said: str) -> None:
    report = without_adapter(COMPLETE, count)
    lines = text.render(report).splitlines()
    assert lines[-2].endswith(f"2 contaminated, 1 broken. {said} without an adapter.")
    assert "without an adapter" not in text.render(COMPLETE)
    assert sum("no adapter in it" in line for line in lines) == (count if count <= 3 else 1)
    assert ("note: CLR117 8 more like that, which -v names" in lines) == (count == 9)
    assert text.render(report, verbose=1).count("no adapter in it") == count


def test_a_folder_of_nothing_but_such_entries_is_said_to_have_none_readable() -> None:
    report = without_adapter(replace(NO_VERDICT, clients=()), 2)
    assert text.render(report).startswith("2 entries, none readable\n\nnote: CLR117 logs-0")


@pytest.mark.parametrize("width", range(16, 40))
def test_a_number_and_its_percent_sign_stay_together(width: int) -> None:
    lines = folded("moved half-way; 44 % of the differences removed, 100 % read", width)
    assert " ".join(line.strip() for line in lines).count(" %") == 2
    assert not any(line.strip().startswith("%") for line in lines)
    assert max(map(len, lines)) <= width
