"""Who is far together is a minority with its names; who adds together is contaminated.

Truth: every client's task, deviation and rows are drawn here (tests/helpers/federations.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clair_cli import Report, from_dict, to_dict
from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.verdicts import Judgement
from clair_cli.report import Cause, Minority, Population, Reason, Verdict, failing, gated
from clair_cli.settings import Settings
from tests.helpers.cohorts import SHAPE, drawn, save_dense, truths
from tests.helpers.commands import quick
from tests.helpers.federations import (
    D_IN,
    D_OUT,
    MODULES,
    USUAL,
    Array,
    Client,
    called,
    codes,
    honest,
    judged,
    own,
    reason,
    rows,
    task,
    trained,
    verdict,
)

STARTS = pytest.mark.parametrize("shared", [True, False], ids=["shared A", "own A"])


def domain(count: int, shared: bool, seed: int = 0, number: int = 5) -> dict[str, Client]:
    """Clients d5-0, d5-1 ... of another task."""
    return {
        f"d{number}-{k}": trained(task(number), 50 + 100 * seed + 10 * number + k, shared)
        for k in range(count)
    }


def named(found: Judgement) -> list[set[str]]:
    """The names in each minority."""
    return [{found.verdicts[k].client for k in group} for group in found.minorities]


# --- far, and not alone


@STARTS
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seed", range(2))
def test_clients_of_another_domain_are_a_minority_with_its_names(
    count: int, shared: bool, seed: int
) -> None:
    few = domain(count, shared, seed)
    found = judged(honest(9, shared) | few)
    assert called(found, "minority") == few.keys()
    assert called(found, "benign") == honest(9).keys()
    assert found.consensus.tolist() == [True] * 9 + [False] * count
    assert named(found) == [set(few)]
    (remark,) = [f for f in found.findings if f.code == "CLR212"]
    assert remark.message == f"a minority of {count}: {', '.join(few)}"
    assert remark.value == count
    for client in few:
        others = ", ".join(c for c in few if c != client)
        said = reason(found, client, "CLR212")
        assert said.startswith(f"one of {count} that differ from the majority in the same way, ")
        assert f"with {others}" in said


@STARTS
def test_the_members_of_a_minority_are_as_alike_as_those_of_the_majority(shared: bool) -> None:
    """They have one task, as the others have: two of them have as much in common as two of those."""
    likeness = [judged(honest(9, shared) | domain(4, shared, seed)).likeness for seed in range(4)]
    assert [len(x) for x in likeness] == [1] * 4
    assert np.mean(likeness) == pytest.approx(1, abs=0.25)


@STARTS
def test_strangers_who_are_far_each_in_its_own_way_are_contaminated(shared: bool) -> None:
    strangers = {f"s{k}": trained(task(20 + k), 50 + k, shared) for k in range(3)}
    found = judged(honest(9, shared) | strangers)
    assert called(found, "contaminated") == strangers.keys()
    assert found.minorities == ()
    assert found.likeness == ()


@STARTS
def test_two_domains_and_a_stranger_are_told_apart(shared: bool) -> None:
    first, second = domain(3, shared), domain(2, shared, number=6)
    found = judged(honest(10, shared) | first | second | {"s": trained(task(30), 99, shared)})
    assert named(found) == [set(first), set(second)]
    assert called(found, "contaminated") == {"s"}
    assert called(found, "benign") == honest(10).keys()


@STARTS
def test_a_far_pair_of_opposed_tasks_is_no_company(shared: bool) -> None:
    """What one does the other undoes: that is not the same way."""
    pair = {"x": trained(task(5), 50, shared), "y": trained(-task(5), 51, shared)}
    found = judged(honest(9, shared) | pair)
    assert called(found, "contaminated") == {"x", "y"}
    assert found.minorities == ()


@STARTS
def test_of_two_equal_halves_nobody_is_judged_and_both_are_named(shared: bool) -> None:
    found = judged(honest(5, shared) | domain(5, shared))
    assert not found.identified
    assert {v.verdict for v in found.verdicts} == {None}
    (why,) = found.findings
    assert why.code == "CLR303"
    for half in (honest(5), domain(5, shared)):
        assert f"5 ({', '.join(half)})" in why.message


@STARTS
@pytest.mark.parametrize("factor", [2.0, 10.0])
def test_a_wrong_size_is_no_company(factor: float, shared: bool) -> None:
    """Both do what all do, only more of it: they are as near to each honest client as to each other."""
    large = {f"x{k}": trained(task(0), 50 + k, shared).times(factor) for k in range(2)}
    found = judged(honest(9, shared) | large)
    assert called(found, "contaminated") == large.keys()
    assert found.minorities == ()


# --- additions to the common content


def added(client: Client, extra: Array, share: float) -> Client:
    """The client's update and `extra`, as its A lets it through, of `share` of the update's norm."""
    seen = extra @ client.rows.transpose(0, 2, 1) @ client.rows
    factor = share * np.linalg.norm(client.update) / np.linalg.norm(seen)
    return replace(client, update=client.update + factor * seen)


def colluders(count: int, share: float, seed: int = 0) -> dict[str, Client]:
    return {
        f"x{k}": added(trained(task(0), 50 + 10 * seed + k), task(7), share) for k in range(count)
    }


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("share", [1 / 3, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_colluders_who_add_a_common_part_are_found_and_named_together(
    count: int, share: float, seed: int
) -> None:
    few = colluders(count, share, seed)
    found = judged(honest(9) | few)
    assert called(found, "contaminated") == few.keys()
    assert called(found, "benign") == honest(9).keys()
    for client in few:
        others = ", ".join(c for c in few if c != client)
        said = reason(found, client, "CLR211")
        assert said == f"adds to what all share something that only {others} add, too"
    (together,) = [f for f in found.findings if f.code == "CLR208"]
    assert together.message.endswith(f": {', '.join(few)}")


@pytest.mark.parametrize("share", [0.6, 1.0, 2.0])
def test_a_large_common_addition_is_found_where_every_start_is_its_own(share: float) -> None:
    """All add one and the same update, whatever their A."""
    evil = task(7) / np.linalg.norm(task(7))
    few = {}
    for k in range(3):
        one = trained(task(0), 50 + k, shared=False)
        few[f"x{k}"] = replace(one, update=one.update + share * np.linalg.norm(one.update) * evil)
    found = judged(honest(9, shared=False) | few)
    assert called(found, "contaminated") == few.keys()


def in_one_subspace(count: int, shared: bool, share: float, seed: int = 0) -> dict[str, Client]:
    """Clients x0, x1 ... of which a `share` is U C V': U and V are common, C is each one's own."""
    draw = np.random.default_rng(40_000 + seed)
    left = np.linalg.qr(draw.standard_normal((MODULES, D_OUT, 2)))[0]
    right = np.linalg.qr(draw.standard_normal((MODULES, D_IN, 2)))[0].transpose(0, 2, 1)
    found = {}
    for k in range(count):
        one = trained(task(0), 50 + 10 * seed + k, shared)
        part = left @ draw.standard_normal((MODULES, 2, 2)) @ right
        lengths = (np.linalg.norm(x, axis=(1, 2), keepdims=True) for x in (one.update, part))
        size = np.divide(*lengths)
        found[f"x{k}"] = replace(one, update=(1 - share) * one.update + share * size * part)
    return found


@STARTS
@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_who_adds_each_another_part_of_one_subspace_is_found_with_the_others(
    count: int, shared: bool, seed: int
) -> None:
    """Their parts share no inner product, and change the same outputs."""
    few = in_one_subspace(count, shared, 0.5, seed)
    found = judged(honest(12, shared) | few)
    assert called(found, "contaminated", "minority") == few.keys()
    assert called(found, "benign") == honest(12).keys()
    for client in few:
        others = ", ".join(c for c in few if c != client)
        assert f"only {others} add, too" in reason(found, client, "CLR211")


@STARTS
@pytest.mark.parametrize("seed", range(4))
def test_honest_clients_who_change_the_outputs_of_one_task_are_no_subspace(
    shared: bool, seed: int
) -> None:
    noisy = {f"n{k}": trained(task(seed), 70 + k, shared, 3 * USUAL) for k in range(4)}
    found = judged(honest(10, shared, seed) | noisy)
    assert not called(found, "contaminated", "minority")


@pytest.mark.parametrize(("seed", "noise", "size"), [(1, 1.4, 1.4), (2, 2.0, 1.4), (0, 1.0, 1.0)])
def test_colluders_are_never_the_consensus_of_a_majority_that_agrees_without_them(
    seed: int, noise: float, size: float
) -> None:
    """Ten with noise have a little of what six of one mind share, and more with each other: they do not
    follow the six."""
    clients = {f"h-{k}": trained(task(seed), 100 * seed + k, False, noise) for k in range(10)}
    both = task(seed) + size * task(seed + 50)
    clients |= {f"x-{k}": trained(both, 100 * seed + 50 + k, False, noise) for k in range(6)}
    found = judged(clients)
    benign = called(found, "benign")
    assert not any(name.startswith("x-") for name in benign) or len(benign) > 8
    if not found.identified:
        (why,) = (r for r in found.findings if r.code == "CLR303")
        assert "only 6 of 16 distinct clients agree with each other" in why.message


def early(seed: int) -> dict[str, Client]:
    """Six with a task, and four that have less than half of it, and more in common that is their own."""
    part = 0.4 * task(seed) + 0.44 * task(seed + 60)
    clients = {f"h-{k}": trained(task(seed), 100 * seed + k, True) for k in range(6)}
    return clients | {f"f-{k}": trained(part, 100 * seed + 30 + k, True, 2.0) for k in range(4)}


@pytest.mark.parametrize("seed", [0, 2])
def test_who_shares_more_with_fewer_than_the_members_still_follows(seed: int) -> None:
    """Clients with little data are alike in more than the content. They do not outnumber the members, so
    there is a majority, and strangers are found."""
    strangers = {f"o-{k}": trained(task(20 + k), 100 * seed + 60 + k, True) for k in range(3)}
    found = judged(early(seed) | strangers)
    assert found.identified
    assert called(found, "contaminated", "minority") == strangers.keys()


@pytest.mark.parametrize("seed", [0, 2])
def test_a_side_of_its_own_counts_all_who_have_what_it_shares(seed: int) -> None:
    """Four more share the same and have nothing of the members': no side is a majority."""
    rest = 0.8 * task(seed + 60)
    more = {f"e-{k}": trained(rest, 100 * seed + 60 + k, True, 2.0) for k in range(4)}
    assert not judged(early(seed) | more).identified


def test_one_who_adds_alone_has_nobody_named_with_it() -> None:
    found = judged(honest(9) | colluders(1, 0.6))
    assert "CLR211" not in codes(found, "x0")
    assert called(found, "contaminated", "minority") <= {"x0"}


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_nobody_is_convicted_for_being_copied_with_noise_on_top(share: float) -> None:
    """All that the two share is what the victim has for itself: its rest is wholly in the other's."""
    cohort = honest(9)
    victim = cohort["h-03"]
    copy = added(victim, own(99), share)
    found = judged(cohort | {"x": copy})
    assert called(found, "contaminated", "minority") <= {"x"}


# --- laws of all


def mixed(shared: bool) -> dict[str, Client]:
    few = domain(3, shared) | {
        "lone": trained(task(8), 90, shared),
        "flip": trained(-task(0), 91, shared),
        "noisy": trained(task(0), 92, shared, 2.0),
        "short": trained(task(0), 93, shared).times(0.2),
        "large": trained(task(0), 94, shared).times(3),
    }
    q = rows(95, 16)
    wide = Client((task(0) + own(95)) @ q.transpose(0, 2, 1) @ q, 16, q)
    return honest(11, shared) | few | {"wide": wide}


def said(found: Judgement) -> Mapping[str, tuple[str | None, float, set[str]]]:
    return {v.client: (v.verdict, v.score or 0.0, codes(found, v.client)) for v in found.verdicts}


@STARTS
def test_order_and_scale_change_nothing(shared: bool) -> None:
    cohort = mixed(shared)
    one = judged(cohort)
    assert named(one) == [set(domain(3, shared))]
    names = list(cohort)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(names))
        turned = {names[k]: cohort[names[k]].times(10.0 ** (3 * seed - 3)) for k in order}
        other = judged(turned)
        assert named(other) == named(one)
        assert other.likeness == pytest.approx(one.likeness)
        before, after = said(one), said(other)
        for client, (name, score, reasons) in before.items():
            assert after[client][0] == name
            assert after[client][1] == pytest.approx(score, abs=1e-6)
            assert after[client][2] == reasons


@STARTS
def test_who_is_contaminated_reached_its_limit_and_a_minority_has_one_who_did(shared: bool) -> None:
    found = judged(mixed(shared))
    for v in found.verdicts:
        assert v.score is not None
        assert v.limit is not None
        if v.verdict == "contaminated":
            assert v.score >= v.limit
        if v.verdict in ("benign", "suspicious") and "CLR213" not in codes(found, v.client):
            assert v.score < v.limit
    for group in found.minorities:
        scores = [found.verdicts[k].score or 0.0 for k in group]
        assert max(scores) >= DETECTION.limit
        assert min(scores) >= DETECTION.suspicious


@STARTS
def test_every_cause_is_told_and_names_another_client(shared: bool) -> None:
    found = judged(mixed(shared))
    for v in found.verdicts:
        assert v.cause is not None
        assert v.cause.nearest in said(found)
        assert v.cause.nearest != v.client
        assert -1 <= v.cause.company <= 1
    few = domain(3, shared)
    assert all(verdict(found, c).cause.nearest in few for c in few)  # type: ignore[union-attr]


# --- the gate, and the way to JSON and back


def report(*names: str) -> Report:
    """A report of clients with these verdicts, and a minority of those called so."""
    cause = Cause(
        kind="lacks", content=0.1, error=2.5, size=1.25, company=-0.5, nearest="c-0", head=0.75
    )
    why = (Reason("CLR201", "changes other outputs"),)
    clients = tuple(
        Verdict(  # type: ignore[arg-type]
            f"c-{k}", name, 1.0, 3.0, 1.0, reasons=why, cause=cause if k % 2 else None
        )
        for k, name in enumerate(names)
    )
    few = tuple(c.client for c in clients if c.verdict == "minority")
    return Report(
        tool={"name": "clair", "version": "0"},
        run={
            "started_at": "2026-01-01T00:00:00+00:00",
            "duration_s": 0.5,
            "command": None,
            "environment": {
                "python": "3",
                "system": "any",
                "torch": None,
                "threads": 1,
                "device": "cpu",
            },
        },
        inputs={"root": "round", "clients": []},
        settings=Settings().as_dict(),
        status="complete",
        exit_code=0,
        population=Population(minorities=(Minority(few, 0.875),) if few else ()),
        clients=clients,
    )


LADDER = ("benign", "suspicious", "minority", "contaminated", "broken")


@pytest.mark.parametrize("fail_on", LADDER[1:])
def test_a_minority_fails_the_gate_below_contaminated_and_above_suspicious(fail_on: str) -> None:
    found = report(*LADDER)
    least = LADDER.index(fail_on)
    assert [c.verdict for c in failing(found, fail_on)] == list(LADDER[least:])
    assert gated(report("benign", "minority", "minority"), fail_on).exit_code == (least <= 2)


def test_a_minority_passes_the_gate_unless_asked_and_an_included_one_always() -> None:
    found = report("benign", "minority", "minority")
    assert gated(found, "never").exit_code == 0
    assert found.counts["minority"] == 2
    assert found.counts["contaminated"] == 0
    included = replace(found, settings={"include": ["c-1", "c-2"]})
    assert gated(included, "minority").exit_code == 0


def test_minorities_and_causes_come_back_from_json() -> None:
    found = report(*LADDER[:-1], "benign", "minority")
    data = json.loads(json.dumps(to_dict(found)))
    back = from_dict(data)
    assert back.population.minorities == (Minority(("c-2", "c-5"), 0.875),)
    assert [c.cause for c in back.clients] == [c.cause for c in found.clients]
    assert to_dict(back) == data
    assert data["population"]["minorities"] == [{"members": ["c-2", "c-5"], "likeness": 0.875}]
    assert data["clients"][1]["cause"]["nearest"] == "c-0"


def test_the_command_line_gates_a_minority_only_where_asked_to(tmp_path: Path) -> None:
    """Seven clients of one task, three of another."""
    updates = np.concatenate([truths(7), drawn(9, 1, 2, *SHAPE) + 0.6 * drawn(8, 3, 2, *SHAPE)])
    names = [f"client-{k}" for k in range(10)]
    for name, update in zip(names, updates, strict=True):
        save_dense(tmp_path / "round" / name, update)
    saved = tmp_path / "report.json"
    done = quick(tmp_path, "detect", tmp_path / "round", "-o", f"json={saved}")
    assert done.returncode == 0, done.stdout
    found = json.loads(saved.read_text())
    assert found["counts"] == dict.fromkeys(LADDER, 0) | {"clients": 10, "benign": 7, "minority": 3}
    assert [m["members"] for m in found["population"]["minorities"]] == [names[7:]]
    for fail_on, code in (
        ("suspicious", 1),
        ("minority", 1),
        ("contaminated", 0),
        ("broken", 0),
        ("never", 0),
    ):
        again = quick(tmp_path, "report", saved, "--fail-on", fail_on)
        assert again.returncode == code, fail_on
    done = quick(tmp_path, "detect", tmp_path / "round", "--fail-on", "minority")
    assert done.returncode == 1
    assert "minority" in done.stdout
