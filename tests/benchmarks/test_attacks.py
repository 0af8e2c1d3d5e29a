"""The planted attacks are the ones of their papers, and the honest controls are honest.

Truth: four trained benign samples that the attackers know, two whose adapters they replace.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import attacks
from benchmarks.attacks import ATTACKS, Attack
from benchmarks.controls import CONTROLS, Control
from benchmarks.saved import Saved, read, write
from clair_cli import Settings, detect, open_adapter
from tests.helpers.commands import SAMPLES

BENIGN = [read(SAMPLES / f"client-{k:02}") for k in (1, 2, 4, 5)]
OWN = [read(SAMPLES / f"client-{k:02}") for k in (7, 8)]
MODULES = list(OWN[0].factors)
VIEWS = attacks.views(OWN, BENIGN)
UNUSABLE = {"A16 config says rank 2r", "A18 one NaN", "A18 one Inf", "A18 one 3e38"}
named = pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@cache
def sent(name: str) -> list[Saved]:
    (attack,) = [a for a in ATTACKS if a.name == name]
    return attack.make(OWN, BENIGN, draws())


def stacks(adapters: list[Saved]) -> list[Tensor]:
    """Per module all updates, (clients, d_out, d_in)."""
    dense = [a.dense() for a in adapters]
    return [torch.stack([d[m] for d in dense]).double() for m in MODULES]


def norms(updates: Tensor) -> Tensor:
    return updates.flatten(-2).norm(dim=-1)


def cosines(x: Tensor, y: Tensor) -> Tensor:
    return torch.cosine_similarity(x.flatten(-2), y.flatten(-2), dim=-1)


def vectors(updates: list[Tensor]) -> Tensor:
    return torch.cat([u.flatten(-2) for u in updates], -1)


def change(before: Tensor, after: Tensor) -> float:
    return float((norms(after - before) / norms(before)).max())


def together(adapters: list[Saved], folder: Path) -> dict[str, str | None]:
    """Client -> verdict."""
    for k, adapter in enumerate(adapters, start=1):
        write(adapter, folder / f"client-{k:02}")
    report = detect(folder, Settings(threads=1))
    return {c.client: c.verdict for c in report.clients}


def test_truncation_is_the_nearest_of_its_rank():
    dense = {m: VIEWS[m].benign.mean(0) for m in MODULES}
    cut = attacks.truncated(dense, OWN[0])
    for m in MODULES:
        rank = OWN[0].factors[m][0].shape[1]
        tail = torch.linalg.svdvals(dense[m])[rank:].norm()
        assert tail > 0.01 * dense[m].norm()
        torch.testing.assert_close((cut.dense()[m] - dense[m]).norm(), tail, rtol=1e-4, atol=0)
    assert cut.config == OWN[0].config


def test_truncation_keeps_what_has_the_rank():
    for before, after in zip(
        stacks(OWN[:1]), stacks([attacks.truncated(OWN[0].dense(), OWN[1])]), strict=True
    ):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)


def test_another_gauge_is_the_same_update_from_other_factors():
    other = attacks.regauged(OWN[0], draws())
    for m in MODULES:
        for old, new in zip(OWN[0].factors[m], other.factors[m], strict=True):
            assert (new - old).norm() > 0.3 * old.norm()
            assert 0.5 < new.norm() / old.norm() < 2
        assert (other.dense()[m] - OWN[0].dense()[m]).norm() < 1e-5 * OWN[0].dense()[m].norm()


@named
def test_every_attack_replaces_each_attacker(attack: Attack, tmp_path: Path):
    adapters = sent(attack.name)
    assert len(adapters) == len(OWN)
    for k, adapter in enumerate(adapters):
        write(adapter, tmp_path / str(k))
        if attack.name not in UNUSABLE:
            opened = open_adapter(tmp_path / str(k)).updates
            assert {m: u.scale for m, u in opened.items()} == dict.fromkeys(MODULES, adapter.scale)
            assert all(d.isfinite().all() for d in adapter.dense().values())


@named
def test_the_draws_decide_and_the_honest_stay_as_they_were(attack: Attack):
    before = [a.dense() for a in (*OWN, *BENIGN)]
    again = attack.make(OWN, BENIGN, draws())
    for one, two in zip(sent(attack.name), again, strict=True):
        torch.testing.assert_close(one.factors, two.factors, rtol=0, atol=0, equal_nan=True)
    for old, adapter in zip(before, (*OWN, *BENIGN), strict=True):
        torch.testing.assert_close(adapter.dense(), old, rtol=0, atol=0)


def test_names_are_told_apart():
    assert len({a.name for a in ATTACKS}) == len(ATTACKS)
    assert {a.id for a in ATTACKS} >= {
        f"A{k}" for k in (1, 2, 3, 5, 6, 7, 8, 10, 11, *range(13, 22))
    }


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("A2 sign flip", -1),
        ("A3 boost x3", 3),
        ("A3 boost x10", 10),
        ("A13 zero update", 0),
        ("A20 alpha x2", 2),
        ("A20 alpha x4", 4),
        ("A20 alpha x0.25", 0.25),
    ],
)
def test_own_update_times_a_number(name: str, factor: float):
    for own, bad in zip(stacks(OWN), stacks(sent(name)), strict=True):
        assert change(own, bad - (factor - 1) * own) < 1e-5 * max(abs(factor), 1)
        if factor:
            torch.testing.assert_close(
                norms(bad) / norms(own), torch.full((2,), abs(factor)).double()
            )
            assert cosines(own, bad).sign().eq(1 if factor > 0 else -1).all()


@pytest.mark.parametrize("factor", [0.3, 1, 3])
def test_noise_has_the_benign_norm_and_no_direction(factor: float):
    bad = stacks(sent(f"A1 noise {factor:g}x"))
    for benign, noise in zip(stacks(BENIGN), bad, strict=True):
        expected = (factor * norms(benign).median()).expand(2)
        torch.testing.assert_close(norms(noise), expected, rtol=1e-4, atol=0)
    assert cosines(vectors(bad)[:, None], vectors(stacks(BENIGN))[:1, None]).abs().max() < 0.05
    assert cosines(*vectors(bad)[:, None]).abs() < 0.05


@pytest.mark.parametrize("eps", [0.1, 0.5, 2])
def test_inner_product_manipulation(eps: float):
    bad = sent(f"A6 IPM eps={eps:g}")
    mean = {m: VIEWS[m].benign.mean(0) for m in MODULES}
    nearest = attacks.truncated({m: -eps * d for m, d in mean.items()}, OWN[0]).dense()
    for adapter in bad:
        for m, update in adapter.dense().items():
            assert cosines(update, nearest[m]) > 1 - 1e-5
            assert update.norm() == pytest.approx(eps * float(mean[m].norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("attackers", "clients", "z"),
    [(2, 10, 0), (4, 10, 0.43), (4, 20, 0.16), (8, 20, 0.67), (12, 50, 0.34), (24, 50, 1.43)],
)
def test_z_max(attackers: int, clients: int, z: float):
    assert attacks.z_max(attackers, clients - attackers) == pytest.approx(z, abs=0.005)


@pytest.mark.parametrize(("z", "factor"), [(1.5, 1.5), (-1.5, -1.5), (None, -0.67449)])
def test_alie(z: float | None, factor: float):
    """Of three attackers and four benign clients z_max is the 75 % quantile."""
    wanted = attacks.alie(z)(attacks.views([*OWN, OWN[0]], BENIGN), draws())
    for m, benign in zip(MODULES, stacks(BENIGN), strict=True):
        x = benign.numpy()
        expected = torch.from_numpy(x.mean(0) + factor * x.std(0)).expand(3, -1, -1)
        torch.testing.assert_close(wanted[m], expected, rtol=1e-4, atol=1e-6)


DIRECTIONS = [attacks.against_std, attacks.against_mean, attacks.against_sign]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("total", [False, True], ids=["Min-Max", "Min-Sum"])
def test_the_largest_gamma_hides_among_the_benign(direction, total: bool):
    benign = vectors(stacks(BENIGN))
    wanted = attacks.spread(direction, total)(VIEWS, draws())
    target = vectors([wanted[m][0] for m in MODULES])
    towards = direction(VIEWS)
    step = target - benign.mean(0)
    assert torch.cosine_similarity(step, vectors([towards[m] for m in MODULES]), dim=0) > 1 - 1e-6
    between = (benign[:, None] - benign[None]).norm(dim=-1)
    bound = between.square().sum(1).max() if total else between.max()

    def reach(update: Tensor) -> Tensor:
        far = (benign - update).norm(dim=1)
        return far.square().sum() if total else far.max()

    assert reach(target) <= bound * (1 + 1e-6)
    assert reach(target + 1e-3 * step) > bound


def test_fang_goes_past_the_extreme_against_the_mean():
    for view in VIEWS.values():
        low, high = view.benign.amin(0), view.benign.amax(0)
        for wanted in attacks.fang(view, draws()):
            for k in range(0, wanted.numel(), 97):
                x, least, most = (float(t.flatten()[k]) for t in (wanted, low, high))
                if float(view.benign.mean(0).flatten()[k]) > 0:
                    assert (least / 2 if least > 0 else 2 * least) <= x <= least
                else:
                    assert most <= x <= (2 * most if most > 0 else most / 2)


def test_a_mimic_is_nearly_one_benign_client():
    bad, benign = (vectors(stacks(c)) for c in (sent("A10 mimic"), BENIGN))
    distance = (bad[:, None] - benign[None]).norm(dim=-1) / benign.norm(dim=-1)
    (victim,) = set(distance.argmin(1).tolist())
    assert (distance[:, victim] > 1e-4).all()
    assert (distance[:, victim] < 2e-3).all()
    off = benign - benign.mean(0)
    widest = torch.linalg.svd(off, full_matrices=False)[2][0]
    assert victim == int((off @ widest).abs().argmax())


@pytest.mark.parametrize("rho", [0.3, 0.5, 1])
def test_colluders_share_a_subspace_of_rank_two(rho: float):
    wanted = attacks.collusion(rho)(VIEWS, draws())
    for view, updates in zip(VIEWS.values(), wanted.values(), strict=True):
        planted = updates - (1 - rho) * view.own
        torch.testing.assert_close(norms(planted), (rho * norms(view.benign).median()).expand(2))
        for side in (torch.cat(list(planted), 1), torch.cat(list(planted), 0)):
            assert torch.linalg.matrix_rank(side, rtol=1e-9) == 2
        assert abs(cosines(planted[0], planted[1])) < 0.999


def test_a_disguised_free_rider_is_the_mean_at_the_benign_norm():
    for view in VIEWS.values():
        noise = attacks.disguised(view, draws()) - view.mean
        rest = norms(view.benign).median() ** 2 - norms(view.mean) ** 2
        torch.testing.assert_close(norms(noise) ** 2, rest.expand(2))
        assert torch.linalg.matrix_rank(noise, rtol=1e-9).tolist() == [view.rank] * 2


def test_the_orthogonal_subspace_is_orthogonal():
    for view in VIEWS.values():
        updates = attacks.orthogonal(view, draws())
        left = torch.linalg.svd(torch.cat(list(view.benign), 1))[0][:, : 2 * view.rank]
        right = torch.linalg.svd(torch.cat(list(view.benign), 0))[2][: 2 * view.rank]
        for own, update in zip(view.own, updates, strict=True):
            assert (left.T @ update).norm() < 1e-9 * update.norm()
            assert (update @ right.T).norm() < 1e-9 * update.norm()
            spectra = [torch.linalg.svdvals(d)[: view.rank] / d.norm() for d in (own, update)]
            torch.testing.assert_close(*spectra, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(norms(updates), norms(view.benign).median().expand(2))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("A15 noise in a quarter", 4),
        ("A15 sign flip in a quarter", 4),
        ("A15 noise in the first layer", 7),
        ("A15 noise in one module", 1),
    ],
)
def test_the_other_modules_stay_honest(name: str, count: int):
    poisoned = []
    for k, bad in enumerate(sent(name)):
        off = {m: float((d - OWN[k].dense()[m]).norm()) for m, d in bad.dense().items()}
        size = {m: float(d.norm()) for m, d in OWN[k].dense().items()}
        poisoned.append({m for m in MODULES if off[m] > 1e-4 * size[m]})
        assert all(off[m] > 0.5 * size[m] for m in poisoned[-1])
    assert [len(p) for p in poisoned] == [count] * 2
    if "layer" in name:
        assert all("layers.0." in m for p in poisoned for m in p)
    else:
        assert poisoned[0] != poisoned[1]


@pytest.mark.parametrize(("name", "factor"), [("tiny noise", 0.01), ("noise 1x", 1)])
def test_extra_directions(name: str, factor: float):
    bad = sent(f"A16 rank 2r, {name}")
    rank = OWN[0].config["r"]
    assert {a.shape[0] for adapter in bad for _, a in adapter.factors.values()} == {2 * rank}
    assert [(a.config["r"], a.scale) for a in bad] == [(2 * rank, OWN[0].scale)] * 2
    for own, updates, benign in zip(stacks(OWN), stacks(bad), stacks(BENIGN), strict=True):
        expected = (factor * norms(benign).median()).expand(2)
        torch.testing.assert_close(norms(updates - own), expected, rtol=1e-3, atol=0)


def test_poison_in_the_benign_subspace():
    for view in VIEWS.values():
        off = attacks.in_subspace(view, draws()) - view.mean
        deviations = torch.cat(list(view.benign - view.mean), 1)
        u = torch.linalg.svd(deviations, full_matrices=False)[0][:, :3]
        assert change(off, u @ (u.T @ off)) < 1e-9
        assert cosines(u.T @ off, u.T @ view.own).max() < -1 + 1e-9
        limit = torch.quantile(norms(view.benign), 0.9).expand(2)
        torch.testing.assert_close(norms(off + view.mean), limit)


def test_layers_move_and_q_and_k_swap():
    for own, moved, swapped in zip(
        OWN, sent("A19 layers moved by one"), sent("A19 q and k swapped"), strict=True
    ):
        honest, moved, swapped = own.dense(), moved.dense(), swapped.dense()
        for m in MODULES:
            other = m.replace(".0.", ".x.").replace(".1.", ".0.").replace(".x.", ".1.")
            assert (moved[m] - honest[other]).norm() < 1e-5 * honest[other].norm()
            twin = m.replace("q_proj", "x").replace("k_proj", "q_proj").replace("x", "k_proj")
            assert (swapped[m] - honest[twin]).norm() < 1e-5 * honest[twin].norm()


def test_q_and_k_swap_in_one_matrix():
    b, a = torch.arange(12.0).reshape(6, 2), torch.ones(2, 3)
    fused = Saved({"h.0.attn.c_attn": (b, a)}, OWN[0].config)
    (swapped, _) = attacks.swapped_q_and_k(fused).factors["h.0.attn.c_attn"]
    assert swapped.equal(b[[2, 3, 0, 1, 4, 5]])


def test_copies_are_copies():
    for own, same, near in zip(
        stacks(OWN),
        stacks(sent("A21 copies of one")),
        stacks(sent("A21 jittered copies of one")),
        strict=True,
    ):
        assert same.equal(own[:1].expand_as(own))
        assert 1e-4 < change(own[:1].expand_as(own), near) < 2e-3
        assert not near[0].equal(near[1])


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name)
def test_honest_controls(control: Control, tmp_path: Path):
    cohort = [*BENIGN, *OWN]
    after = control.apply(cohort, draws())
    assert len(after) == len(cohort)
    differs = False
    for old, new in zip(cohort, after, strict=True):
        honest, updates = old.dense(), new.dense()
        assert 2 * len(honest) / 3 < len(updates) <= len(honest)
        differs |= old is not new and (old.config != new.config or len(updates) < len(honest))
        for m, update in updates.items():
            differs |= not new.factors[m][0].equal(old.factors[m][0])
            if control.change is not None:
                off = (update.float() - honest[m]).norm()
                assert off <= control.change * honest[m].norm()
    assert differs
    assert "contaminated" not in together(after, tmp_path).values()


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("A2 sign flip", "minority"),
        ("A3 boost x10", "contaminated"),
        ("A18 one NaN", "broken"),
    ],
)
def test_the_command_finds_them(name: str, verdict: str, tmp_path: Path):
    said = together([*BENIGN, *sent(name)], tmp_path)
    assert said == dict.fromkeys(["client-01", "client-02", "client-03", "client-04"], "benign") | {
        "client-05": verdict,
        "client-06": verdict,
    }
