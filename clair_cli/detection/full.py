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
from clair_cli.detection.frequencies import moving_frequencies
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
class FullTables:
    """F full matrices of K clients: `sizes` (F,) numbers of elements, `present` (F, K) who has which.

    `inner` (F, K, K) holds <W_i, W_j> of the matrices as they are stored, in float64; it is zero in
    the rows and columns of clients that lack the matrix, and of those in `failed` (position ->
    reason) everywhere. `labels` (F,) are the rows of those that may be classifiers' heads, else 0, and
    `widths` (F,) their columns; of heads `sums` (F, K, K) are the inner products of the sums of their
    rows, and `frequency` (F, K) is what moves the frequencies of labels, as in `moving_frequencies`.
    """

    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    present: NDArray[np.bool_]
    inner: NDArray[np.float64]
    failed: Mapping[int, Reason]
    labels: NDArray[np.int64]
    widths: NDArray[np.int64]
    sums: NDArray[np.float64]
    frequency: NDArray[np.float64]

    def select(self, clients: Sequence[int]) -> FullTables:
        """The same of the clients at these positions alone, none of which may have failed."""
        who = np.asarray(clients, dtype=int)
        return replace(
            self,
            present=self.present[:, who],
            inner=self.inner[:, who][:, :, who],
            sums=self.sums[:, who][:, :, who],
            frequency=self.frequency[:, who],
            failed={},
        )


def read_full(
    cohort: Cohort, settings: Settings, device: str = "cpu", on_progress: Progress = silent
) -> FullTables:
    """Every matrix of `cohort.full` of every client that has it, minus what it was sent, read once;
    products on `device`.

    At most BLOCK bytes of all clients together are in memory. A client that cannot be read, or holds
    numbers that are not finite, is in `failed`, and the others go on.
    """
    count, failed = len(cohort.clients), dict[int, Reason]()
    watch = Watch(range(count), settings.client_timeout)
    job = partial(_products, cohort, settings, device)
    items = ((name, watch.of(range(count), watch.usual())) for name in cohort.full)
    products = np.zeros((2, len(cohort.full), count, count))
    frequency = np.zeros((len(cohort.full), count))
    for f, found in enumerate(engines.choose(settings.engine).map(job, items)):
        products[:, f], frequency[f] = found.products, found.frequency
        watch.add(found.spent)
        failed |= {k: reason for k, reason in found.failed.items() if k not in failed}
        on_progress("reading full matrices", f + 1, len(cohort.full))
    gone = sorted(failed)
    products[..., gone, :] = 0
    products[..., gone] = 0
    having = [cohort.having(name) for name in cohort.full]
    shapes = cohort.full.values()
    return FullTables(
        names=tuple(cohort.full),
        sizes=np.array([math.prod(shape) for shape in shapes], dtype=np.int64),
        present=np.array([np.isin(np.arange(count), who) for who in having]).reshape(-1, count),
        inner=products[0],
        failed=failed,
        labels=np.array([_labels(shape, count) for shape in shapes], dtype=np.int64),
        widths=np.array([math.prod(shape[1:]) for shape in shapes], dtype=np.int64),
        sums=products[1],
        frequency=frequency,
    )


def _labels(shape: tuple[int, ...], clients: int) -> int:
    """The rows of a matrix that may be a classifier's head, of few outputs for what it sees; else 0."""
    head = len(shape) == 2 and 2 <= shape[0] <= min(LABELS, shape[1] - 1)
    return shape[0] if head and clients * math.prod(shape) <= HEADS else 0


@dataclass(frozen=True, slots=True, eq=False)
class _Products:
    """Inner products (2, K, K) of one matrix and of the sums of its rows, what moves the frequencies of
    labels (K,), the clients whose could not be read, and the time it took."""

    products: NDArray[np.float64]
    frequency: NDArray[np.float64]
    failed: Mapping[int, Reason]
    spent: Mapping[int, float]


def _products(
    cohort: Cohort, settings: Settings, device: str, item: tuple[str, Watch]
) -> _Products:
    name, watch = item
    kept, who = Kept.of(settings, device), cohort.having(name)
    origins = [origin(cohort.clients[k], lambda a: a.full.get(name)) for k in who]
    key = [cohort.full[name], len(cohort.clients), who, origins]
    known = None if kept is None else kept.products(key, len(cohort.clients))
    if known is not None:
        return _Products(known[0].numpy(), known[1].numpy(), {}, {})
    found = _computed(cohort, device, name, watch)
    if kept is not None and not found.failed:
        kept.keep_products(key, *map(torch.from_numpy, (found.products, found.frequency)))
    return found


def _computed(cohort: Cohort, device: str, name: str, watch: Watch) -> _Products:
    who, shape = cohort.having(name), cohort.full[name]
    labels, size = _labels(shape, len(cohort.clients)), math.prod(shape)
    step = size if labels else max(BLOCK // (8 * max(len(who), 1)), 1)
    total = torch.zeros((2, len(who), len(who)), dtype=torch.float64, device=device)
    frequency = torch.zeros(len(who), dtype=torch.float64, device=device)
    failed: dict[int, Reason] = {}
    for begin, end in spans(size, step):
        block = torch.zeros((len(who), end - begin), dtype=torch.float64, device=device)
        for row, k in enumerate(who):
            if k in failed:
                continue
            try:
                with watch.reading(k, repr(name)):
                    whole = read_full_estimate(cohort.clients[k], name, begin, end, device)
                block[row] = without_sent(whole, cohort.clients[k], name, begin, end)
            except AdapterError as error:
                failed[k] = Reason(error.code, str(error))
        total[0] += block @ block.T
        if labels:
            heads = block.reshape(len(who), labels, -1)
    for row in torch.nonzero(~torch.isfinite(total[0].diagonal())).flatten().tolist():
        failed[who[row]] = _not_finite(cohort.clients[who[row]], name)
    if labels:
        fine = [row for row, k in enumerate(who) if k not in failed]
        sums = heads.sum(dim=1)
        total[1], frequency[fine] = sums @ sums.T, moving_frequencies(heads[fine])
    products = np.zeros((2, len(cohort.clients), len(cohort.clients)))
    rows, columns = np.ix_(who, who)
    products[:, rows, columns] = total.cpu().numpy()
    every = np.zeros(len(cohort.clients))
    every[list(who)] = frequency.cpu().numpy()
    return _Products(products, every, failed, watch.added)


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
