"""What a client changed: exact in factors, whatever the ranks, scales and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clair_cli import formats
from clair_cli.cohort import Adapter, Entries, align
from clair_cli.detection.changes import Held, change
from clair_cli.detection.kept import Beside
from clair_cli.detection.reading import numerics, read_modules
from clair_cli.opening import open_entries
from clair_cli.settings import Settings
from clair_cli.update import LowRankUpdate, inner
from tests.helpers.adapters import factors, write_folder


def update(rank: int, scale: float, seed: int, shape: tuple[int, int] = (9, 7)) -> LowRankUpdate:
    draw = torch.Generator().manual_seed(seed)
    up = torch.randn(shape[0], rank, generator=draw, dtype=torch.float64)
    down = torch.randn(rank, shape[1], generator=draw, dtype=torch.float64)
    return LowRankUpdate(up, down, scale)


@pytest.mark.parametrize(("own", "sent"), [(1, 1), (2, 3), (3, 1), (5, 6)])
def test_a_change_is_the_difference_of_the_products(own: int, sent: int) -> None:
    new, old = update(own, 0.5, 1), update(sent, 4.0, 2)
    found = change(new, old)
    assert found.rank == min(own + sent, 7)
    torch.testing.assert_close(found.dense(), new.dense() - old.dense())


def test_what_comes_back_as_it_was_sent_is_no_change() -> None:
    sent = update(3, 2.0, 1)
    turned = LowRankUpdate(sent.up * 0.5, sent.down * 2.0, sent.scale)
    assert not bool(change(turned, sent).dense().any())
    nudged = LowRankUpdate(sent.up * (1 + 1e-6), sent.down, sent.scale)
    expected = 1e-6 * sent.dense()
    torch.testing.assert_close(change(nudged, sent).dense(), expected, rtol=1e-6, atol=1e-12)


def test_nothing_sent_is_nothing_subtracted() -> None:
    new = update(2, 0.5, 1)
    assert change(new, None) is new


def test_the_inner_product_is_that_of_the_products() -> None:
    one, other = update(2, 0.5, 1), update(3, -2.0, 2)
    assert inner(one, other) == pytest.approx(float((one.dense() * other.dense()).sum()))


def test_how_much_of_what_was_sent_is_there() -> None:
    sent = update(2, 1.0, 1)
    held = Held()
    for k, share in enumerate((1.0, 0.5, 0.0)):
        back = LowRankUpdate(sent.up, sent.down, share)
        for part in (0.25, 0.75):  # two modules
            held.add(k, Beside(shared=part * inner(back, sent), sent=part * inner(sent, sent)))
    held.add(3, Beside())
    assert [held.share(k) for k in range(4)] == pytest.approx([1.0, 0.5, 0.0, 1.0])
    said = held.strangers(range(4), 0.25)
    assert {*said} == {2}
    assert said[2].code == "CLR123"
    assert (said[2].value, said[2].limit) == (pytest.approx(0.0), 0.25)


def test_small_changes_of_what_was_sent_are_compared_exactly(tmp_path: Path) -> None:
    """Gram matrices of float32 would have a relative error of 6 at a change of 1e-4."""
    start = factors(seed=1)
    write_folder(tmp_path / "sent", start)
    steps = []
    for k in range(3):
        step = {n: 1e-4 * t for n, t in factors(seed=10 + k).items()}
        steps.append(step)
        write_folder(tmp_path / "round" / f"c-{k}", {n: t + step[n] for n, t in start.items()})
    settings = Settings(since=tmp_path / "sent")
    cohort = align(open_entries(tmp_path / "round", settings))
    with numerics(cohort, settings) as machine:
        cohort, stacks = read_modules(cohort, settings, machine)
    assert len(cohort.clients) == 3
    for stack in stacks:
        wholes = [formats.read_update(a, stack.module, "float64").dense() for a in cohort.clients]
        since = cohort.clients[0].since
        assert since is not None
        was = formats.read_update(since, stack.module, "float64").dense()
        flat = torch.stack([(w - was).flatten() for w in wholes])
        torch.testing.assert_close(stack.inner, flat @ flat.T, rtol=1e-6, atol=0)


def opened(path: Path, since: Adapter) -> Adapter:
    from dataclasses import replace

    return replace(formats.open_adapter(path), since=since)


def test_modules_that_were_not_sent_are_compared_whole_and_named(tmp_path: Path) -> None:
    sent = formats.open_adapter(write_folder(tmp_path / "sent", factors({"a.q_proj": (6, 5)})))
    both = {"a.q_proj": (6, 5), "a.v_proj": (6, 5)}
    for k in range(3):
        write_folder(tmp_path / f"c-{k}", factors(both, seed=k))
    found = align(Entries(tuple(opened(tmp_path / f"c-{k}", sent) for k in range(3))))
    assert found.modules == ("a.q_proj", "a.v_proj")
    (finding,) = found.findings
    assert (finding.code, finding.message.partition(":")[0]) == ("CLR304", "a.v_proj")


def test_other_shapes_than_were_sent_are_not_from_it(tmp_path: Path) -> None:
    sent = formats.open_adapter(write_folder(tmp_path / "sent", factors({"a.q_proj": (6, 4)})))
    for k in range(3):
        write_folder(tmp_path / f"c-{k}", factors({"a.q_proj": (6, 5)}, seed=k))
    found = align(Entries(tuple(opened(tmp_path / f"c-{k}", sent) for k in range(3))))
    assert found.clients == ()
    assert {b.reason.code for b in found.broken} == {"CLR123"}
    assert all("6 x 5, and was sent as 6 x 4" in b.reason.message for b in found.broken)
