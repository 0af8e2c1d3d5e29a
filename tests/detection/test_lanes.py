"""With updates read ahead on a lane of their own everything is as without, and nothing is used early."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clair_cli import Report, Settings, detect, refine
from clair_cli.detection import forms, lanes
from clair_cli.detection.fetching import fetched_ahead
from clair_cli.errors import ChangedWhileRead
from clair_cli.linalg import moved
from clair_cli.refinement import refiner
from clair_cli.update import LowRankUpdate
from tests.helpers.cohorts import save_cohort
from tests.helpers.commands import SAMPLES, fingerprint

BAD = "client-3"
CPU = Settings(device="cpu", threads=1)


class Held:
    """A lane whose tensors hold NaN until they are received; it writes down what happens."""

    def __init__(self) -> None:
        self.here, self.threads = threading.current_thread(), set[str]()
        self.open, self.events = False, list[tuple[str, int]]()

    @contextmanager
    def within(self) -> Iterator[None]:
        self.open = True
        yield
        self.open = False

    def sent(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        assert self.open
        self.threads.add(threading.current_thread().name)
        values = [t.clone() for t in tensors]
        for tensor in tensors:
            tensor.fill_(torch.nan)
        self.events.append(("sent", id(values)))
        return values

    def received(self, ticket: list[Tensor], tensors: Sequence[Tensor]) -> None:
        assert threading.current_thread() is self.here
        for tensor, values in zip(tensors, ticket, strict=True):
            tensor.copy_(values)
        self.events.append(("received", id(ticket)))


class Early(Held):
    """A lane that nobody waits for."""

    def received(self, ticket: list[Tensor], tensors: Sequence[Tensor]) -> None:
        pass


@contextmanager
def lane(monkeypatch: pytest.MonkeyPatch, kind: type[Held] = Held) -> Iterator[list[Held]]:
    """All lanes that are made in the block, for what is computed on the CPU."""
    made: list[Held] = []

    def make() -> Held:
        made.append(kind())
        return made[-1]

    with monkeypatch.context() as patched:
        patched.setitem(lanes.LANES, "cpu", make)
        yield made
    assert made
    assert "reading ahead" not in {t.name for t in threading.enumerate()}


def said(report: Report) -> dict[str, Any]:
    """All but what depends on the clock, and where the output lies."""
    found = json.loads(json.dumps(dataclasses.asdict(report), default=str))
    return {k: v for k, v in found.items() if k not in ("run", "settings")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_cohort(tmp_path / "round", 7)
    return tmp_path / "round"


def test_a_report_is_the_same_and_every_update_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    direct = detect(SAMPLES, CPU)
    with lane(monkeypatch) as made:
        assert said(detect(SAMPLES, CPU)) == said(direct)
    (one,) = made
    assert one.threads == {"reading ahead"}
    tickets = [[i for what, i in one.events if what == kind] for kind in ("sent", "received")]
    assert len(tickets[0]) == 8 * 14
    assert tickets[0] == tickets[1]
    kinds = [what for what, _ in one.events]
    assert ("sent", "sent") in pairwise(kinds)  # ahead it was


def test_what_is_used_before_it_has_arrived_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of this file can fail."""
    with lane(monkeypatch, Early):
        assert {c.verdict for c in detect(SAMPLES, CPU).clients} == {"broken"}


def test_refined_adapters_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    direct = refine(SAMPLES, tmp_path / "direct", CPU)
    with lane(monkeypatch) as made:
        ahead = refine(SAMPLES, tmp_path / "ahead", CPU)
    assert len(made) == 2  # one to detect, one to refine
    assert said(direct)["clients"] == said(ahead)["clients"]
    for file in sorted((tmp_path / "direct").rglob("*.safetensors")):
        other = tmp_path / "ahead" / file.relative_to(tmp_path / "direct")
        assert other.read_bytes() == file.read_bytes()


def test_sketches_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Many clients are read in several jobs per module, by 64."""
    save_cohort(tmp_path / "round", 150)
    small = dataclasses.replace(CPU.detection, max_columns=16)
    settings = dataclasses.replace(CPU, detection=small)
    direct = detect(tmp_path / "round", settings)
    with lane(monkeypatch):
        assert said(detect(tmp_path / "round", settings)) == said(direct)


def failing(real: Callable[..., Any], how: Callable[[], None]) -> Callable[..., Any]:
    def reads(adapter: Any, *rest: Any, **named: Any) -> Any:
        if adapter.client == BAD:
            how()
        return real(adapter, *rest, **named)

    return reads


def raises(error: Exception) -> Callable[[], None]:
    def how() -> None:
        raise error

    return how


ERRORS = [RuntimeError("CUDA error"), MemoryError(), ChangedWhileRead("a.safetensors: changed")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_client_that_cannot_be_read_fails_alone_and_for_the_same_reason(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "read_estimate", failing(forms.read_estimate, raises(error)))
    direct = detect(folder, CPU)
    with lane(monkeypatch):
        ahead = detect(folder, CPU)
    assert said(ahead) == said(direct)
    assert [c.client for c in ahead.clients if c.verdict == "broken"] == [BAD]


def test_a_client_that_takes_too_long_is_broken_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time of waiting for others is nobody's: who reads is who is timed."""
    slow = failing(forms.read_estimate, lambda: time.sleep(0.6))
    monkeypatch.setattr(forms, "read_estimate", slow)
    settings = dataclasses.replace(CPU, client_timeout=0.5)
    with lane(monkeypatch):
        ahead = detect(folder, settings)
    broken = {c.client: c.reasons[0] for c in ahead.clients if c.verdict == "broken"}
    assert {k: r.code for k, r in broken.items()} == {BAD: "CLR111"}
    assert "--client-timeout" in broken[BAD].message


def test_who_fails_while_refining_gets_nothing_and_the_others_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broke = failing(refiner.read_estimate, raises(RuntimeError("no")))
    monkeypatch.setattr(refiner, "read_estimate", broke)
    direct = refine(folder, tmp_path / "direct", CPU)
    with lane(monkeypatch):
        ahead = refine(folder, tmp_path / "ahead", CPU)
    assert said(ahead)["clients"] == said(direct)["clients"]
    names = [sorted(p.name for p in (tmp_path / d).iterdir()) for d in ("direct", "ahead")]
    assert names[0] == names[1]
    assert BAD not in names[0]


def test_an_interruption_ends_the_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = fingerprint(folder)
    with lane(monkeypatch), pytest.raises(KeyboardInterrupt):
        detect(folder, CPU, on_progress=lambda what, *_: what[:7] == "reading" and interrupted())
    assert fingerprint(folder) == before


def test_who_is_not_asked_for_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a client has failed meanwhile, or is known already; so is a part that nobody reads."""

    def clients(part: str) -> range:
        return range(5)

    def reader(part: str) -> Callable[[int], LowRankUpdate]:
        number = float(part)
        return lambda k: LowRankUpdate(torch.full((2, 1), number), torch.full((1, 2), float(k)))

    with (
        lane(monkeypatch),
        fetched_ahead("123", clients, reader, ("local", "cpu"), lambda: 100) as parts,
    ):
        found = []
        for part, take in parts:
            assert take is not None
            asked = {"1": (1, 3), "2": (), "3": (0, 4)}[part]
            found += [(take(k), part, k) for k in asked]
    assert [(float(u.up[0, 0]), float(u.down[0, 0])) for u, _, _ in found] == [
        (float(part), float(k)) for _, part, k in found
    ]
    assert len(found) == 4


def test_another_engine_reads_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lanes.LANES, "cpu", Held)
    elsewhere: Any = "elsewhere"
    with fetched_ahead(
        "12", lambda _: (), lambda _: print, (elsewhere, "cpu"), lambda: 100
    ) as parts:
        assert list(parts) == [("1", None), ("2", None)]


# --- what only a device has


def test_tensors_travel_as_stored_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []

    def pin(self: Tensor) -> Tensor:
        pinned.append(self)
        return self

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    stored = torch.ones(3, 2, dtype=torch.bfloat16)
    there = moved(stored, "meta")  # a device of no numbers
    assert (there.device.type, there.dtype) == ("meta", torch.bfloat16)
    assert pinned == [stored] or pinned[0] is stored
    assert moved(stored, "cpu") is stored
    assert len(pinned) == 1


def test_where_no_memory_can_be_pinned_tensors_travel_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pin(self: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    assert moved(torch.ones(2), "meta").device.type == "meta"


def test_the_stream_that_computes_waits_for_the_event_of_the_one_that_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls of the real lane, in order, on a CUDA that only writes down."""
    calls: list[object] = []

    class Event:
        def record(self, stream: str) -> None:
            calls.append(("record", stream))

    class Stream:
        def wait_event(self, event: Event) -> None:
            calls.append(("wait", type(event).__name__))

    now = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "side")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: now)
    monkeypatch.setattr(Tensor, "record_stream", lambda _, s: calls.append(("kept", s is now)))
    one = lanes.CudaLane()
    ticket = one.sent([torch.ones(1)])
    one.received(ticket, [torch.ones(1), torch.ones(2)])
    assert calls == [("record", "side"), ("wait", "Event"), ("kept", True), ("kept", True)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_reads_ahead_and_says_the_same(folder: Path, tmp_path: Path) -> None:
    """With the lane, without it, and on the CPU."""
    cuda = Settings(device="cuda")
    ahead = refine(folder, tmp_path / "ahead", cuda)
    with pytest.MonkeyPatch.context() as patched:
        patched.delitem(lanes.LANES, "cuda")
        direct = refine(folder, tmp_path / "direct", cuda)
    assert said(ahead)["clients"] == said(direct)["clients"]
    cpu = refine(folder, tmp_path / "cpu", CPU)
    assert [c.verdict for c in ahead.clients] == [c.verdict for c in cpu.clients]
    scores = [[c.score for c in report.clients] for report in (ahead, cpu)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
