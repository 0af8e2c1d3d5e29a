"""Tensors trained whole of all clients, read once in parts and kept as inner products."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli import engines, formats
from clair_cli.cohort import Adapter, Cohort
from clair_cli.detection.changes import without_sent
from clair_cli.detection.frequencies import few_outputs, moving_frequencies
from clair_cli.detection.guard import Watch
from clair_cli.detection.kept import Kept, origin
from clair_cli.errors import AdapterError, NonFinite, contained
from clair_cli.formats.full import spans
from clair_cli.progress import Progress, silent
from clair_cli.report import Reason
from clair_cli.settings import Settings

BLOCK = 2**26
"""Bytes of all clients' elements that are in memory together, in float64."""
LABELS = 512
"""Rows up to which a matrix may be a classifier's head, a row for each label."""
HEADS = 2**25
"""Elements of one head of all clients up to which they are looked at together."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A full matrix of `labels` rows and `width` columns that may be the head of a classifier.

    `sums` (K, K) are inner products of the sums of the clients' rows, zero of those who lack it;
    `frequency` (K,) is what moves the frequencies of labels, as in `moving_frequencies`.
    """

    labels: int
    width: int
    sums: NDArray[np.float64]
    frequency: NDArray[np.float64]

    def select(self, who: NDArray[np.intp]) -> Head:
        """The same of the clients at these positions alone."""
        return replace(self, sums=self.sums[np.ix_(who, who)], frequency=self.frequency[who])


@dataclass(frozen=True, slots=True, eq=False)
class FullTables:
    """F full matrices of K clients: `sizes` (F,) numbers of elements, `present` (F, K) who has which.

    `inner` (F, K, K) holds <W_i, W_j> of the matrices as they are stored, in float64; it is zero in
    the rows and columns of clients that lack the matrix, and of those in `failed` (position ->
    reason) everywhere. `heads` are those that may be heads, by their position in `names`.
    """

    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    present: NDArray[np.bool_]
    inner: NDArray[np.float64]
    failed: Mapping[int, Reason]
    heads: Mapping[int, Head]

    def select(self, clients: Sequence[int]) -> FullTables:
        """The same of the clients at these positions alone, none of which may have failed."""
        who = np.asarray(clients, dtype=int)
        return replace(
            self,
            present=self.present[:, who],
            inner=self.inner[:, who][:, :, who],
            heads={f: head.select(who) for f, head in self.heads.items()},
            failed={},
        )


def read_full(
    cohort: Cohort, settings: Settings, device: str = "cpu", on_progress: Progress = silent
) -> FullTables:
    """Every matrix of `cohort.full` of every client that has it, minus what it was sent, read once;
    products on `device`.

    At most BLOCK bytes of all clients together are in memory, or one head. A client that cannot be
    read, or holds numbers that are not finite, is in `failed`, and the others go on.
    """
    count, failed, heads = len(cohort.clients), dict[int, Reason](), dict[int, Head]()
    watch = Watch(range(count), settings.client_timeout)
    job = partial(_products, cohort, settings, device)
    items = ((name, watch.of(range(count), watch.usual())) for name in cohort.full)
    inner = np.zeros((len(cohort.full), count, count))
    for f, found in enumerate(engines.choose(settings.engine).map(job, items)):
        inner[f] = found.inner
        if found.head is not None:
            heads[f] = found.head
        watch.add(found.spent)
        failed |= {k: reason for k, reason in found.failed.items() if k not in failed}
        on_progress("reading full matrices", f + 1, len(inner))
    gone = sorted(failed)
    for table in (*inner, *(head.sums for head in heads.values())):
        table[gone] = 0
        table[:, gone] = 0
    having = [cohort.having(name) for name in cohort.full]
    return FullTables(
        names=tuple(cohort.full),
        sizes=np.array([math.prod(shape) for shape in cohort.full.values()], dtype=np.int64),
        present=np.array([np.isin(np.arange(count), who) for who in having]).reshape(-1, count),
        inner=inner,
        failed=failed,
        heads=heads,
    )


def is_head(shape: tuple[int, ...], clients: int) -> bool:
    """Whether a matrix may be a classifier's head, and so small that those of all clients are looked at
    together."""
    return few_outputs(shape, LABELS) and clients * math.prod(shape) <= HEADS


@dataclass(frozen=True, slots=True, eq=False)
class _Products:
    """Inner products (K, K) of one matrix, what is known of it as a head, the clients whose could not be
    read, and the time it took."""

    inner: NDArray[np.float64]
    head: Head | None
    failed: Mapping[int, Reason]
    spent: Mapping[int, float]


def _products(
    cohort: Cohort, settings: Settings, device: str, item: tuple[str, Watch]
) -> _Products:
    name, watch = item
    kept, who, shape = Kept.of(settings, device), cohort.having(name), cohort.full[name]
    count = len(cohort.clients)
    origins = [origin(cohort.clients[k], lambda a: a.full.get(name)) for k in who]
    key = [shape, count, who, origins]
    known = None if kept is None else kept.products(key, count, is_head(shape, count))
    if known is not None:
        return _Products(known["inner"], _head(shape, known), {}, {})
    found, failed = _computed(cohort, device, name, watch)
    if kept is not None and not failed:
        kept.keep_products(key, found)
    return _Products(found["inner"], _head(shape, found), failed, watch.added)


def _head(shape: tuple[int, ...], found: Mapping[str, NDArray[np.float64]]) -> Head | None:
    if "sums" not in found:
        return None
    return Head(shape[0], shape[1], found["sums"], found["frequency"])


def _computed(
    cohort: Cohort, device: str, name: str, watch: Watch
) -> tuple[dict[str, NDArray[np.float64]], dict[int, Reason]]:
    """`inner`, of heads `sums` and `frequency`, and who could not be read."""
    who, shape, count = list(cohort.having(name)), cohort.full[name], len(cohort.clients)
    failed: dict[int, Reason] = {}
    read = partial(_block, cohort, device, name, who, watch, failed)
    size, table = math.prod(shape), (len(who), len(who))
    heads = read((0, size)).reshape(len(who), *shape) if is_head(shape, count) else None
    step = max(BLOCK // (8 * max(len(who), 1)), 1)
    blocks = map(read, spans(size, step)) if heads is None else [heads.flatten(1)]
    total = torch.zeros(table, dtype=torch.float64, device=device)
    for block in blocks:
        total += block @ block.T
    sizes = total.diagonal()
    tables = {"inner": total}
    if heads is not None:
        rows = heads.sum(dim=1)
        tables["sums"] = rows @ rows.T
        sizes = sizes + tables["sums"].diagonal()
    for row in torch.nonzero(~torch.isfinite(sizes)).flatten().tolist():
        failed[who[row]] = _not_finite(cohort.clients[who[row]], name)
    found: dict[str, NDArray[np.float64]] = {key: np.zeros((count, count)) for key in tables}
    for key, one in tables.items():
        found[key][np.ix_(who, who)] = one.cpu().numpy()
    if heads is not None:
        fine = [row for row, k in enumerate(who) if k not in failed]
        found["frequency"] = frequency = np.zeros(count)
        frequency[np.array(who, int)[fine]] = moving_frequencies(heads[fine]).cpu().numpy()
    return found, failed


def _block(
    cohort: Cohort,
    device: str,
    name: str,
    who: Sequence[int],
    watch: Watch,
    failed: dict[int, Reason],
    span: tuple[int, int],
) -> Tensor:
    """Elements of one matrix of the clients `who`, (len(who), end - begin); who cannot be read is put
    into `failed`, and has zeros from there on."""
    block = torch.zeros((len(who), span[1] - span[0]), dtype=torch.float64, device=device)
    for row, k in enumerate(who):
        if k in failed:
            continue
        try:
            with watch.reading(k, repr(name)):
                whole = read_full_estimate(cohort.clients[k], name, *span, device)
            block[row] = without_sent(whole, cohort.clients[k], name, *span)
        except AdapterError as error:
            failed[k] = Reason(error.code, str(error))
    return block


def read_full_estimate(
    adapter: Adapter, name: str, begin: int, end: int, device: str = "cpu"
) -> Tensor:
    """Elements [begin, end) of the client's full matrix, row by row, in float64: of its adapter, or
    the mean over its replicates where it has nothing else. Raises AdapterError.
    """
    found = [
        formats.read_full_elements(one, name, begin, end, "float64", device)
        for one in _estimates(adapter, name)
    ]
    return found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)


def _estimates(adapter: Adapter, name: str) -> list[Adapter]:
    """Whose mean the client's matrix is: replicates may lack it, or have it in another shape."""
    if not adapter.only_replicates:
        return [adapter]
    shape = adapter.full[name].shape
    return [r for r in adapter.replicates if name in r.full and r.full[name].shape == shape]


def _not_finite(adapter: Adapter, name: str) -> Reason:
    """Which stored number is NaN or Inf, or that only the sum of squares is."""
    try:
        with contained(f"{name!r} cannot be read"):
            for one in _estimates(adapter, name):
                formats.check_full(one, name)
    except AdapterError as error:
        return Reason(error.code, str(error))
    spec = adapter.full[name]
    text = (
        f"{adapter.tensors[spec.tensor].file}: tensor {spec.tensor!r} is too large to be compared"
    )
    return Reason(NonFinite.code, f"{text}; retrain it, or leave this client out")
