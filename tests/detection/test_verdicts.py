"""Verdicts on attacks planted among the trained benign samples, and the laws they obey.

The benign clients are the six of sample_adapters: real adapters, not drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from clair_cli.detection.solver import decompose
from clair_cli.detection.stacks import stack_module, tables
from clair_cli.detection.tables import Tables
from clair_cli.detection.verdicts import Judgement, judge
from clair_cli.formats import open_adapter, read_update
from clair_cli.settings import Settings
from clair_cli.update import LowRankUpdate
from tests import ROOT
from tests.helpers.builders import regauge

SAMPLES = ROOT / "sample_adapters"
BENIGN = [f"client-{k:02d}" for k in (1, 2, 4, 5, 7, 8)]
Client = dict[str, LowRankUpdate]
Clients = dict[str, Client]
Digests = tuple[str, ...] | None


@pytest.fixture(scope="module")
def benign() -> Clients:
    adapters = [open_adapter(SAMPLES / name) for name in BENIGN]
    return {a.client: {m: read_update(a, m) for m in sorted(a.updates)} for a in adapters}


def tabled(clients: Clients, settings: Settings | None = None, digests: Digests = None) -> Tables:
    """What the pipeline would hand to the judge."""
    names = tuple(clients)
    modules = tuple(next(iter(clients.values())))
    stacks = [stack_module(m, [clients[c][m] for c in names]) for m in modules]
    found = decompose(stacks, (settings or Settings()).detection)
    what = names, modules, *tables(stacks), found.members, digests or names
    return Tables(*what, unexplained=found.unexplained())


def judged(
    clients: Clients, settings: Settings | None = None, digests: Digests = None
) -> Judgement:
    return judge(tabled(clients, settings, digests), settings or Settings())


def verdicts(clients: Clients, **kwargs: object) -> dict[str, str | None]:
    return {v.client: v.verdict for v in judged(clients, **kwargs).verdicts}  # type: ignore[arg-type]


def codes(judgement: Judgement, client: str) -> set[str]:
    (found,) = [v for v in judgement.verdicts if v.client == client]
    return {r.code for r in found.reasons}


def scaled(client: Client, by: float, modules: slice = slice(None)) -> Client:
    chosen = set(sorted(client)[modules])
    return {
        m: LowRankUpdate(u.up, u.down, u.scale * (by if m in chosen else 1))
        for m, u in client.items()
    }


def noise(client: Client, seed: int, factor: float = 1.0) -> Client:
    """Random factors of the client's own norm: column and row spaces of nobody."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for m, u in client.items():
        up = torch.randn(u.up.shape, generator=draw)
        down = torch.randn(u.down.shape, generator=draw)
        size = float((u.up @ u.down).norm() / (up @ down).norm())
        found[m] = LowRankUpdate(up, down, u.scale * size * factor)
    return found


def mean(clients: Clients) -> Client:
    first = next(iter(clients.values()))
    count = len(clients)
    return {
        m: LowRankUpdate(
            torch.cat([c[m].up for c in clients.values()], dim=1),
            torch.cat([c[m].down * (c[m].scale / count) for c in clients.values()]),
        )
        for m in first
    }


ATTACKS: dict[str, tuple[Callable[[Clients], Client], str]] = {
    "sign flip": (lambda b: scaled(b["client-01"], -1), "CLR203"),
    "boost x3": (lambda b: scaled(b["client-01"], 3), "CLR202"),
    "boost x10": (lambda b: scaled(b["client-01"], 10), "CLR202"),
    "alpha x2": (lambda b: scaled(b["client-01"], 2), "CLR202"),
    "zero": (lambda b: scaled(b["client-01"], 0), "CLR206"),
    "noise of benign norm": (lambda b: noise(b["client-01"], 1), "CLR201"),
    "noise x 0.3": (lambda b: noise(b["client-01"], 2, 0.3), "CLR201"),
    "IPM 0.5": (lambda b: scaled(mean(b), -0.5), "CLR203"),
    "half of the modules flipped": (
        lambda b: scaled(b["client-01"], -1, slice(None, None, 2)),
        "CLR203",
    ),
}


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attacker_among_honest_clients_is_contaminated_and_alone_so(
    benign: Clients, name: str
) -> None:
    """The attacker starts from an honest client who is then left out: no twin gives it away."""
    attack, code = ATTACKS[name]
    others = {c: u for c, u in benign.items() if c != "client-01"}
    found = judged(others | {"mallory": attack(benign)})
    assert {v.client for v in found.verdicts if v.verdict == "contaminated"} == {"mallory"}
    assert code in codes(found, "mallory")
    assert all(v.score is not None and v.score < 3 for v in found.verdicts if v.client != "mallory")


def test_honest_clients_alone_are_not_contaminated(benign: Clients) -> None:
    found = judged(benign)
    assert found.identified
    assert {v.verdict for v in found.verdicts} == {"benign"}
    assert found.consensus.all()


@pytest.mark.parametrize("factor", [0.2, 0.5, 1.5])
def test_an_honest_norm_spread_is_not_contaminated(benign: Clients, factor: float) -> None:
    """A fifth of the norm is a short training, half as much again is more data."""
    found = verdicts({**benign, "client-04": scaled(benign["client-04"], factor)})
    assert "contaminated" not in found.values()


def test_copies_are_both_suspicious_and_counted_once(benign: Clients) -> None:
    digests = (*BENIGN, "client-05")
    found = judged({**benign, "client-09": benign["client-05"]}, digests=digests)
    assert {v.client for v in found.verdicts if v.verdict == "suspicious"} == {
        "client-05",
        "client-09",
    }
    reasons = {v.client: v.reasons[-1].message for v in found.verdicts if v.verdict == "suspicious"}
    assert "identical to client-09" in reasons["client-05"]
    assert "identical to client-05" in reasons["client-09"]
    assert found.consensus.sum() == 6


def test_a_jittered_copy_is_a_near_duplicate(benign: Clients) -> None:
    original, jitter = benign["client-05"], noise(benign["client-05"], 3, 1e-3)
    copy = {
        m: LowRankUpdate(
            torch.cat([u.up, jitter[m].up], dim=1),
            torch.cat([u.down * u.scale, jitter[m].down * jitter[m].scale]),
        )
        for m, u in original.items()
    }
    found = judged({**benign, "client-09": copy})
    assert {v.client for v in found.verdicts if v.verdict == "suspicious"} == {
        "client-05",
        "client-09",
    }
    assert "CLR205" in codes(found, "client-05")


def test_colluders_far_in_one_way_are_a_minority_with_its_names(benign: Clients) -> None:
    evil = noise(benign["client-01"], 5)
    draw = torch.Generator().manual_seed(6)
    gang = {
        f"mallory-{i}": {
            m: LowRankUpdate(u.up + 0.3 * torch.randn(u.up.shape, generator=draw), u.down, u.scale)
            for m, u in evil.items()
        }
        for i in range(3)
    }
    found = judged(benign | gang)
    assert {v.client for v in found.verdicts if v.verdict == "minority"} == set(gang)
    assert {v.verdict for v in found.verdicts if v.client not in gang} == {"benign"}
    assert found.minorities == ((6, 7, 8),)
    (remark,) = [f for f in found.findings if f.code == "CLR212"]
    assert remark.message == "a minority of 3: mallory-0, mallory-1, mallory-2"
    for v in found.verdicts[6:]:
        (message,) = [r.message for r in v.reasons if r.code == "CLR212"]
        assert all((other in message) == (other != v.client) for other in gang)


def test_a_quarter_of_the_modules_is_found_and_named(benign: Clients) -> None:
    """The four modules in which client-01 is replaced by noise; all others are honest."""
    spoiled = dict(benign["client-01"])
    bad = sorted(spoiled)[:4]
    spoiled |= {m: u for m, u in noise(benign["client-01"], 7).items() if m in bad}
    found = judged({**benign, "client-01": spoiled})
    verdict = found.verdicts[0]
    assert verdict.verdict in ("contaminated", "suspicious")
    assert "CLR204" in codes(found, "client-01")
    scores = found.module_scores[:, 0]
    assert set(np.array(sorted(spoiled))[np.argsort(-scores)[:4]]) == set(bad)


def test_without_a_majority_there_is_no_verdict(benign: Clients) -> None:
    """Two honest clients against four who are strangers to them and to each other."""
    honest = dict(list(benign.items())[:2])
    strangers = {f"s{i}": noise(benign["client-01"], 10 + i) for i in range(4)}
    found = judged(honest | strangers)
    assert not found.identified
    assert [f.code for f in found.findings] in (["CLR303"], ["CLR302"])
    assert {v.verdict for v in found.verdicts} == {None}


def spoiled_cohort(benign: Clients) -> Clients:
    bad = {"x-1": noise(benign["client-01"], 1), "x-2": scaled(benign["client-02"], -1)}
    return {k: v for k, v in benign.items() if k != "client-02"} | bad


def scores(found: Judgement) -> dict[str, float]:
    return {v.client: float(v.score or 0) for v in found.verdicts}


def test_verdicts_do_not_depend_on_the_order_of_clients(benign: Clients) -> None:
    clients = spoiled_cohort(benign)
    other = judged(dict(reversed(clients.items())))
    assert scores(other) == pytest.approx(scores(judged(clients)), rel=1e-4, abs=1e-5)


def test_verdicts_do_not_depend_on_the_gauge(benign: Clients) -> None:
    clients, draw = spoiled_cohort(benign), torch.Generator().manual_seed(2)
    turned = {
        c: {
            m: regauge(LowRankUpdate(u.up.double(), u.down.double(), u.scale), draw)
            for m, u in own.items()
        }
        for c, own in clients.items()
    }
    assert scores(judged(turned)) == pytest.approx(scores(judged(clients)), rel=1e-4, abs=1e-4)


def test_verdicts_do_not_depend_on_the_order_of_modules(benign: Clients) -> None:
    clients = spoiled_cohort(benign)
    other = judged({c: dict(reversed(own.items())) for c, own in clients.items()})
    assert scores(other) == pytest.approx(scores(judged(clients)), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_verdicts_do_not_depend_on_the_scale_of_the_cohort(benign: Clients, factor: float) -> None:
    clients = spoiled_cohort(benign)
    other = judged({c: scaled(own, factor) for c, own in clients.items()})
    assert scores(other) == pytest.approx(scores(judged(clients)), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_verdicts_do_not_depend_on_the_dtype(benign: Clients, dtype: torch.dtype) -> None:
    """bfloat16 has 8 bits: scores move a little, verdicts do not."""
    clients = spoiled_cohort(benign)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    other = {
        c: {
            m: LowRankUpdate(u.up.to(dtype).to(wide), u.down.to(dtype).to(wide), u.scale)
            for m, u in own.items()
        }
        for c, own in clients.items()
    }
    assert verdicts(other) == verdicts(clients)
    tolerance = 1e-3 if dtype is torch.float64 else 0.15
    assert scores(judged(other)) == pytest.approx(scores(judged(clients)), abs=tolerance)


def test_different_ranks_are_compared_as_products(benign: Clients) -> None:
    """The same update at twice the rank, in other factors."""
    doubled = {
        m: LowRankUpdate(torch.cat([u.up, u.up], 1), torch.cat([u.down, u.down]) / 2, u.scale)
        for m, u in benign["client-04"].items()
    }
    other = judged({**benign, "client-04": doubled})
    assert scores(other) == pytest.approx(scores(judged(benign)), abs=1e-3)


def test_three_clients_are_judged_and_two_distinct_ones_are_not(benign: Clients) -> None:
    three = dict(list(benign.items())[:3])
    assert judged(three).identified
    names = tuple(three)
    copies = judged(three, digests=(names[0], names[0], names[2]))
    assert not copies.identified
    assert copies.findings[0].code == "CLR301"
