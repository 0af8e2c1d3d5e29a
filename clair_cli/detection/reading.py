"""Every module of all clients read once, one module in memory at a time, and kept as a stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from clair_cli import engines, formats
from clair_cli.cohort import Adapter, Cohort
from clair_cli.detection.changes import Held, SentReader, change
from clair_cli.detection.fetching import fetched_ahead, largest
from clair_cli.detection.forms import Form, nothing
from clair_cli.detection.full import FullTables
from clair_cli.detection.guard import Watch, spared
from clair_cli.detection.kept import Beside, Kept
from clair_cli.detection.record import Machine
from clair_cli.detection.sketches import Sketch
from clair_cli.detection.stacks import ModuleStack
from clair_cli.errors import AdapterError, NonFinite, UsageError, contained
from clair_cli.linalg import leading
from clair_cli.progress import Progress, silent
from clair_cli.report import Reason
from clair_cli.settings import DtypeName, Settings
from clair_cli.update import LowRankUpdate, energy, faint, inner

_Take = Callable[[int], LowRankUpdate | Sketch]
"""What is stored of the client at a position. Raises AdapterError."""

TOGETHER = 64
"""Clients whose sketches of one module are made by one job: more than its bookkeeping costs."""
NARROW = 1024
"""Below this width one thread is faster than several: the products are too small to share."""


@contextmanager
def numerics(cohort: Cohort, settings: Settings) -> Iterator[Machine]:
    """Threads and device, decided once; the threads are as they were when the block ends.

    Raises UsageError where CUDA was asked for and there is none.
    """
    check_device(settings)
    widest = max((max(shape) for shape in cohort.shapes.values()), default=0)
    before = torch.get_num_threads()
    local = settings.engine == "local"
    use_cuda = local and settings.device != "cpu" and torch.cuda.is_available()
    if settings.threads or widest < NARROW:
        torch.set_num_threads(settings.threads or 1)
    try:
        yield Machine("cuda" if use_cuda else "cpu", torch.get_num_threads())
    finally:
        torch.set_num_threads(before)


def check_device(settings: Settings) -> None:
    """Raises UsageError where CUDA was asked for and there is none, or jobs run on other machines."""
    if settings.device == "cuda" and settings.engine != "local":
        raise UsageError(
            f"device: cuda is for --engine local; {settings.engine} computes on processors"
        )
    if settings.device == "cuda" and not torch.cuda.is_available():
        text = "device: cuda was asked for, but torch sees no CUDA device; use cpu or auto"
        raise UsageError(text)


def read_modules(
    cohort: Cohort, settings: Settings, machine: Machine, on_progress: Progress = silent
) -> tuple[Cohort, tuple[ModuleStack, ...]]:
    """The stack of every module, and the cohort of those that could be read.

    Clients that fail on the way are broken and the others go on; so are those that were sent something
    and were not trained from it. Modules that nobody changed are left out. Raises NoVerdict where what
    was sent has changed.
    """
    held, watch = Held(), Watch(range(len(cohort.clients)), settings.client_timeout)
    stacks: list[ModuleStack] = []
    failed: dict[int, Reason] = {}
    forms = [Form.of(cohort, settings, module) for module in cohort.modules]
    job = partial(read_part, cohort, settings, machine.device)
    places = [formats.place(adapter) for adapter in cohort.clients]
    with _ahead(cohort, settings, machine.device, _parts(forms, places, watch)) as jobs:
        results = engines.choose(settings.engine).map(job, jobs, lambda one: one[0].place)
        for form in forms:
            found = [next(results) for _ in _positions(form, places)]
            for part in found:
                watch.add(part.spent)
                for k, beside in part.beside.items():
                    held.add(k, beside)
            stack, broke = found[0].stacked or _stacked(cohort, form, found)
            stacks.append(stack)
            failed |= {k: reason for k, reason in broke.items() if k not in failed}
            on_progress("reading modules", len(stacks), len(cohort.modules))
    usable = [k for k in range(len(cohort.clients)) if k not in failed]
    failed |= held.strangers(usable, settings.detection.sent_kept)
    if failed:
        kept = [k for k in range(len(cohort.clients)) if k not in failed]
        cohort, stacks = cohort.without(failed), [s.select(kept) for s in stacks]
    return _without_idle(cohort, stacks)


def without_failed(
    cohort: Cohort, stacks: Sequence[ModuleStack], full: FullTables
) -> tuple[Cohort, tuple[ModuleStack, ...], FullTables]:
    """Without the clients whose full matrices could not be read: they are broken."""
    kept = [k for k in range(len(cohort.clients)) if k not in full.failed]
    left = tuple(s.select(kept) for s in stacks)
    return cohort.without(full.failed), left, full.select(kept)


def _without_idle(
    cohort: Cohort, stacks: Sequence[ModuleStack]
) -> tuple[Cohort, tuple[ModuleStack, ...]]:
    """Without the modules that no client has changed: nothing in them can be compared."""
    live = tuple(s for s in stacks if bool((s.energies > 0).any()))
    if len(live) == len(stacks):
        return cohort, live
    names = {s.module for s in live}
    idle = [m for m in cohort.modules if m not in names]
    text = f"{len(idle)} modules are zero in every client and are not compared: "
    text += ", ".join(idle[:3]) + " ..." * (len(idle) > 3)
    modules = tuple(m for m in cohort.modules if m in names)
    findings = (*cohort.findings, Reason("CLR304", text))
    return replace(cohort, modules=modules, findings=findings), live


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One job: a module, the positions of the clients to read it of, their time, and where they are."""

    form: Form
    clients: Sequence[int]
    watch: Watch
    place: str


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What a job has read, which is the same wherever it ran: by client its update or sketch, or where
    those are all, their stack; what was found `beside` them; and what it adds to what is known of
    the clients.
    """

    updates: Mapping[int, Any]
    failed: Mapping[int, Reason]
    beside: Mapping[int, Beside]
    spent: Mapping[int, float]
    stacked: tuple[ModuleStack, Mapping[int, Reason]] | None = None


def _positions(form: Form, places: Sequence[str]) -> list[tuple[list[int], str]]:
    """Whose updates are read together, and where: of all, where these are stacked as they are."""
    if form.size is None:
        return [([*range(len(places))], "")]
    at: dict[str, list[int]] = {}
    for k, place in enumerate(places):
        at.setdefault(place, []).append(k)
    starts = [
        (begin, who, place) for place, who in at.items() for begin in range(0, len(who), TOGETHER)
    ]
    starts.sort(key=lambda start: start[0])  # every machine has work at any time
    return [(who[begin : begin + TOGETHER], place) for begin, who, place in starts]


def _parts(forms: Sequence[Form], places: Sequence[str], watch: Watch) -> Iterator[Part]:
    """The jobs in the order of the modules, each made when it is asked for."""
    for form in forms:
        usual = watch.usual()
        for clients, place in _positions(form, places):
            yield Part(form, clients, watch.of(clients, usual), place)


def _ahead(
    cohort: Cohort, settings: Settings, device: str, parts: Iterator[Part]
) -> AbstractContextManager[Iterator[tuple[Part, _Take | None]]]:
    """The parts; where this process computes them on a device, with what is read ahead of them."""
    dtype = _dtype(cohort, settings)
    room = partial(largest, cohort.clients, cohort.modules, dtype)

    def clients(part: Part) -> Sequence[int]:
        return part.clients

    read = partial(_reader, cohort, dtype, device)
    return fetched_ahead(parts, clients, read, (settings.engine, device), room)


def read_part(
    cohort: Cohort, settings: Settings, device: str, job: tuple[Part, _Take | None]
) -> _Found:
    """Read one module of some clients, minus what each was sent; who fails counts as zero here. What is
    in the cache is not read. With the part comes what was read ahead, if anything.

    Nothing that it depends on depends on other jobs, but for the time that is left.
    """
    (part, take), dtype = job, _dtype(cohort, settings)
    form, kept = part.form, Kept.of(settings, device)
    take = take or _reader(cohort, dtype, device, part)
    if form.size is not None:
        return _read(cohort, dtype, device, part, take, kept)
    key = form.whole_key(cohort, dtype) if kept is not None else ()
    if kept is not None and (known := kept.stack(key, form.module, len(cohort.clients), dtype)):
        return _Found({}, {}, dict(enumerate(known[1])), {}, (known[0], {}))
    found = _read(cohort, dtype, device, part, take)
    stack, failed = _stacked(cohort, form, [found])
    if kept is not None and not failed:
        kept.keep_stack(key, stack, list(found.beside.values()))
    return replace(found, updates={}, stacked=(stack, failed))


def _reader(cohort: Cohort, dtype: DtypeName, device: str, part: Part) -> _Take:
    """Reads clients of the part, under its watch."""
    usual, what = part.watch.usual(), repr(part.form.module)

    def read(k: int) -> LowRankUpdate | Sketch:
        with part.watch.reading(k, what, usual):
            return part.form.read(cohort.clients[k], dtype, device)

    return read


def _read(
    cohort: Cohort,
    dtype: DtypeName,
    device: str,
    part: Part,
    take: _Take,
    kept: Kept | None = None,
) -> _Found:
    form, module = part.form, part.form.module
    updates: dict[int, Any] = {}  # of the form's own kind
    failed: dict[int, Reason] = {}
    found: dict[int, Beside] = {}
    sent = SentReader(module, dtype, device)
    for k in part.clients:
        adapter, update = cohort.clients[k], None
        key = form.sketch_key(adapter, dtype) if kept is not None else None
        known = None
        if kept is not None and key is not None:
            known = kept.sketch(key, cohort.shapes[module], form.size, dtype)
        if known is None:
            try:
                update = take(k)
            except AdapterError as error:
                failed[k] = Reason(error.code, str(error))
            known = _taken(form, adapter, update, sent, dtype, device)
            if kept is not None and key is not None and update is not None:
                kept.keep_sketch(key, *known)
        updates[k], found[k] = known
    return _Found(updates, failed, found, part.watch.added)


def _taken(
    form: Form,
    adapter: Adapter,
    update: LowRankUpdate | Sketch | None,
    sent: SentReader,
    dtype: DtypeName,
    device: str,
) -> tuple[Any, Beside]:
    """What is compared of a client's update minus what it was sent, of the form's own kind; zero where
    there is no update."""
    beside = Beside()
    if update is None:
        update = nothing(adapter, form.module, dtype, device)
    elif isinstance(update, LowRankUpdate) and (was := sent.read(adapter)) is not None:
        if adapter.updates[form.module].absolute:
            beside = Beside(shared=inner(update, was), sent=inner(was, was))
        update = change(update, was)
    if isinstance(update, LowRankUpdate) and faint(update):
        update = nothing(adapter, form.module, dtype, device)
    if isinstance(update, LowRankUpdate) and update.rank > form.most:
        beside = replace(beside, cut=energy(update))
        up, down = leading(update.up, update.down, form.most, form.settings.seed)
        update = LowRankUpdate(up, down, update.scale)
    return form(update, adapter), beside


def _stacked(
    cohort: Cohort, form: Form, found: Sequence[_Found]
) -> tuple[ModuleStack, dict[int, Reason]]:
    """The stack of all clients, of whom each was read in one of the jobs, and who cannot be used."""
    read = {k: update for part in found for k, update in part.updates.items()}
    updates = [read[k] for k in range(len(read))]
    failed = {k: reason for part in found for k, reason in part.failed.items()}
    stack, broke = spared(
        partial(form.stacked, updates),
        sorted(range(len(updates)), key=lambda k: -updates[k].rank),
        f"comparing {form.module!r}",
    )
    failed |= broke
    for k, beside in (pair for part in found for pair in part.beside.items()):
        if beside.cut is not None and form.absolute:
            stack.energies[k] = stack.inner[k, k] = beside.cut
    finite = torch.isfinite(stack.energies) & torch.isfinite(stack.overlap.diagonal())
    for k in torch.nonzero(~finite).flatten().tolist():
        failed[k] = _not_finite(cohort.clients[k], form.module)
    return stack, failed


def _dtype(cohort: Cohort, settings: Settings) -> DtypeName:
    """For verdicts: float32 holds what float16 and bfloat16 store, and their products, exactly; small
    changes of large updates take float64."""
    if settings.dtype != "auto":
        return settings.dtype
    if any(a.since is not None for a in cohort.clients):
        return "float64"
    return "float64" if "F64" in cohort.dtypes else "float32"


def _not_finite(adapter: Adapter, module: str) -> Reason:
    """Which stored number is NaN or Inf, or that only the product is."""
    try:
        with contained(f"{module!r} cannot be read"):
            formats.check_finite(adapter, module)
    except AdapterError as error:
        return Reason(error.code, str(error))
    spec = adapter.updates[module]
    return Reason(
        NonFinite.code,
        f"{adapter.tensors[spec.file_key].file}: the update of {module!r} overflows though its "
        "factors are finite; retrain it, or leave this client out",
    )
