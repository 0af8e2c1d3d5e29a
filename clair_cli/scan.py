"""One pass from a folder of adapters to a judged cohort and its report.

One module of all clients is in memory at a time; what stays is its stack of inner products.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clair_cli import __version__, formats
from clair_cli.cohort import Adapter, Broken, Cohort, InputFile, align, natural_key
from clair_cli.engines import ENGINES
from clair_cli.errors import AdapterError, NonFinite, UsageError
from clair_cli.refinement.replicates import estimate
from clair_cli.report import ModuleFinding, ModuleSummary, Reason, Report, Verdict, gated
from clair_cli.settings import MIN_CLIENTS, Settings

if TYPE_CHECKING:
    import torch

    from clair_cli.detection.agreement import Array
    from clair_cli.detection.solver import Decomposition
    from clair_cli.detection.stacks import ModuleStack
    from clair_cli.detection.verdicts import Judgement
    from clair_cli.update import LowRankUpdate

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""
OPENERS = 2
"""Adapters opened at a time."""
NO_CHANCE = 2**60
"""Width of a module whose clients' rows cannot be strangers."""
SMALL = 1024
"""Below this width one thread is faster than several: the products are too small to share."""


def silent(what: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True, slots=True, eq=False)
class _Stacked:
    """One module of all clients in common coordinates, and the clients that could not be read."""

    stack: ModuleStack
    failed: Mapping[int, Reason]


class Scan:
    """One pass from a folder to a judged cohort."""

    def __init__(
        self, path: Path, settings: Settings, on_progress: Progress, command: str | None = None
    ) -> None:
        self.path, self.settings, self.on_progress = path, settings, on_progress
        self.command = command
        self.began, self.started_at = time.monotonic(), datetime.now(timezone.utc)
        self.device = "none"
        if settings.device == "cuda":
            _check_cuda()
        adapters, self.broken = _open_all(path, settings, on_progress)
        self.cohort, apart = align(
            adapters, settings.min_shared_modules, settings.modules == "same"
        )
        self.broken += apart
        self.judgement: Judgement | None = None
        self.decomposition: Decomposition | None = None
        self.stacks: list[ModuleStack] = []

    def report(self) -> Report:
        """The report of `detect`; `judgement` and `cohort` are set for what follows."""
        why = self._too_few()
        if why is None:
            self._stack()
            why = self._too_few()
        if why is None:
            self._judge()
        return self._filled(why)

    def run(self) -> dict[str, Any]:
        """All that may differ between equal runs."""
        return {
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "duration_s": time.monotonic() - self.began,
            "command": self.command,
            "environment": _environment(self.device),
        }

    def absolute(self) -> list[ModuleStack]:
        """The modules whose updates mean something by themselves, if there are any; else all."""
        first = self.cohort.clients[0].updates
        return [s for s in self.stacks if first[s.module].absolute] or self.stacks

    # --- steps

    def _too_few(self) -> Reason | None:
        count = len(self.cohort.clients)
        if count < MIN_CLIENTS:
            text = f"{count} usable {'client' if count == 1 else 'clients'}, at least 3 are needed"
            return Reason("CLR301", f"{text} to tell who is the odd one out")
        if not self.cohort.modules:
            text = "no module is adapted by all clients, or none is other than zero"
            return Reason("CLR304", f"{text}; nothing is comparable")
        return None

    def _stack(self) -> None:
        """Read every module once; clients that fail on the way are broken, the others go on."""
        device = _prepare(self.settings, self.cohort)
        self.device = str(device)
        job = partial(_stack_job, self.cohort, self.settings, str(device))
        failed: dict[int, Reason] = {}
        total = len(self.cohort.modules)
        for done, result in enumerate(ENGINES["local"].map(job, self.cohort.modules), start=1):
            self.stacks.append(result.stack)
            failed = {**result.failed, **failed}
            self.on_progress("reading modules", done, total)
        if failed:
            self._drop(failed)
        self._drop_idle()

    def _drop_idle(self) -> None:
        """Leave out modules that no client has changed: nothing in them can be compared."""
        idle = [s.module for s in self.stacks if not bool((s.energies > 0).any())]
        if idle:
            text = f"{len(idle)} modules are zero in every client and are not compared: "
            text += ", ".join(idle[:3]) + " ..." * (len(idle) > 3)
            self.stacks = [s for s in self.stacks if s.module not in idle]
            self.cohort = replace(
                self.cohort,
                modules=tuple(m for m in self.cohort.modules if m not in idle),
                findings=(*self.cohort.findings, Reason("CLR304", text)),
            )

    def _drop(self, failed: Mapping[int, Reason]) -> None:
        clients = self.cohort.clients
        self.broken += [
            Broken(clients[k].client, reason, tuple(clients[k].files.values()))
            for k, reason in sorted(failed.items())
        ]
        kept = [k for k in range(len(clients)) if k not in failed]
        self.cohort = replace(self.cohort, clients=tuple(clients[k] for k in kept))
        self.stacks = [s.select(kept) for s in self.stacks]

    def _judge(self) -> None:
        from clair_cli.detection.distances import Tables
        from clair_cli.detection.solver import decompose, refit, tables
        from clair_cli.detection.verdicts import judge

        steps = 0

        def on_step() -> None:
            nonlocal steps
            steps += 1
            self.on_progress("decomposing", steps, 0)

        found = decompose(self.stacks, self.settings, on_step)
        inner, overlap, d_out, d_in = tables(self.stacks)
        self.judgement = judge(
            Tables(
                clients=tuple(a.client for a in self.cohort.clients),
                modules=self.cohort.modules,
                inner=inner,
                overlap=overlap,
                d_out=d_out,
                d_in=d_in,
                members=found.members,
                digests=tuple(a.digest for a in self.cohort.clients),
            ),
            self.settings,
        )
        if self.judgement.identified:
            settled = (self.judgement.consensus == found.members).all()
            self.decomposition = (
                found if settled else refit(self.stacks, self.judgement.consensus, self.settings)
            )

    # --- the record

    def _filled(self, why: Reason | None) -> Report:
        findings = [*self.cohort.findings, *([why] if why else [])]
        verdicts = [Verdict(b.client, "broken", reasons=(b.reason,)) for b in self.broken]
        if self.judgement is None:
            verdicts += [Verdict(a.client, None, reasons=a.notes) for a in self.cohort.clients]
        else:
            findings += self.judgement.findings
            verdicts += self._with_modules(self.judgement)
        identified = self.judgement is not None and self.judgement.identified
        report = Report(
            tool={"name": "clair", "version": __version__},
            run=self.run(),
            inputs=_inputs(self.path, self.cohort, self.broken),
            settings=self.settings.as_dict(),
            status="complete" if identified else "no_verdict",
            exit_code=0,
            findings=tuple(findings),
            modules=tuple(self._summaries()),
            consensus=self._consensus(),
            clients=tuple(sorted(verdicts, key=lambda v: natural_key(v.client))),
        )
        return gated(report, self.settings.fail_on)

    def _with_modules(self, judgement: Judgement) -> list[Verdict]:
        residuals = self.decomposition.relative_residuals() if self.decomposition else None
        found = []
        for k, (adapter, verdict) in enumerate(
            zip(self.cohort.clients, judgement.verdicts, strict=True)
        ):
            modules = [] if residuals is None else self._module_findings(k, residuals, judgement)
            reasons = (*verdict.reasons, *adapter.notes)
            found.append(replace(verdict, modules=tuple(modules), reasons=reasons))
        return found

    def _module_findings(
        self, k: int, residuals: Array, judgement: Judgement
    ) -> list[ModuleFinding]:
        return [
            ModuleFinding(
                name,
                float(residuals[m, k]),
                float(self.stacks[m].energies[k].clamp_min(0).sqrt()),
                float(judgement.module_scores[m, k]),
            )
            for m, name in enumerate(self.cohort.modules)
        ]

    def _consensus(self) -> dict[str, Any] | None:
        """What the verdicts were measured against."""
        import numpy as np

        from clair_cli.detection.agreement import common_share, initialisation

        judged, found = self.judgement, self.decomposition
        if judged is None or found is None:
            return None
        members, stacks = judged.consensus, self.absolute()
        inner = np.stack([s.inner.numpy() for s in stacks])
        began, overlap = initialisation(np.stack([s.rows.numpy() for s in stacks]), members)
        return {
            "clients": int(members.sum()),
            "initialisation": began if self.cohort.factored else "none",
            "row_overlap": overlap,
            "agreement": judged.agreement,
            "spread": judged.spread,
            "common": common_share(inner[:, members][:, :, members]),
            "explained": float(found.explained().mean()),
            "margin": judged.margin,
        }

    def _summaries(self) -> list[ModuleSummary]:
        if self.decomposition is None:
            return []
        explained = self.decomposition.explained()
        return [
            ModuleSummary(
                name,
                self.cohort.shapes[name],
                self.decomposition.subspaces[m].rank,
                float(explained[m]),
                self.stacks[m].left_out,
            )
            for m, name in enumerate(self.cohort.modules)
        ]


def _open(source: formats.Source, settings: Settings) -> Adapter | Broken:
    try:
        adapter = formats.open_adapter(source.path, settings, source.client, source.root)
    except AdapterError as error:
        return Broken(source.client, Reason(error.code, str(error)))
    found, notes = [], []
    for path in formats.find_replicates(source.path, settings):
        try:
            other = formats.open_adapter(path, settings, source.client, source.root)
            for module in other.updates:
                formats.check_finite(other, module)
            found.append(other)
        except AdapterError as error:
            notes.append(Reason(error.code, f"{path.name}, no replicate: {error}"))
    return formats.with_replicates(adapter, found, notes) if found or notes else adapter


def _open_all(
    path: Path, settings: Settings, on_progress: Progress
) -> tuple[list[Adapter], list[Broken]]:
    """Every client's adapter by its headers, and the clients whose adapter cannot be used."""
    sources = formats.discover(path)
    adapters: list[Adapter] = []
    broken: list[Broken] = []
    with ThreadPoolExecutor(OPENERS) as pool:  # hashing the files lets go of the interpreter
        jobs = [pool.submit(_open, source, settings) for source in sources]
        try:
            for done, job in enumerate(jobs, start=1):
                found = job.result()
                adapters += [found] if isinstance(found, Adapter) else []
                broken += [found] if isinstance(found, Broken) else []
                on_progress("opening adapters", done, len(sources))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return adapters, broken


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            "device: cuda was asked for, but torch sees no CUDA device; use cpu or auto"
        )


def _prepare(settings: Settings, cohort: Cohort) -> torch.device:
    """Threads and device, decided once."""
    import torch

    widest = max((max(shape) for shape in cohort.shapes.values()), default=0)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    elif widest < SMALL:
        torch.set_num_threads(1)
    use_cuda = settings.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def _stack_job(cohort: Cohort, settings: Settings, device: str, module: str) -> _Stacked:
    """Read one module of every client and stack it; a client that fails counts as zero here."""
    import torch

    from clair_cli.detection.differences import centred
    from clair_cli.detection.stacks import stack_module
    from clair_cli.update import LowRankUpdate

    dtype = _dtype(cohort, settings)
    updates: list[LowRankUpdate] = []
    failed: dict[int, Reason] = {}
    for k, adapter in enumerate(cohort.clients):
        try:
            updates.append(estimate(adapter, module, dtype, device))
        except AdapterError as error:
            failed[k] = Reason(error.code, str(error))
            spec, kind = adapter.updates[module], getattr(torch, dtype)
            updates.append(
                LowRankUpdate(
                    torch.zeros(spec.d_out, 1, dtype=kind, device=device),
                    torch.zeros(1, spec.d_in, dtype=kind, device=device),
                )
            )
    relative = not all(a.updates[module].absolute for a in cohort.clients)
    if relative:
        updates = centred(updates, settings.seed)
    stack = stack_module(module, updates, settings.max_columns, settings.seed)
    if relative:  # there is no chance in what a common entry makes alike
        stack = replace(stack, shape=(stack.shape[0], NO_CHANCE))
    finite = torch.isfinite(stack.energies) & torch.isfinite(stack.overlap.diagonal())
    for k in torch.nonzero(~finite).flatten().tolist():
        failed[k] = _not_finite(cohort.clients[k], module)
    return _Stacked(stack, failed)


def _dtype(cohort: Cohort, settings: Settings) -> Literal["float32", "float64"]:
    """For verdicts: float32 holds what float16 and bfloat16 store, and their products, exactly."""
    if settings.dtype != "auto":
        return settings.dtype
    return "float64" if "F64" in stored_dtypes(cohort) else "float32"


def stored_dtypes(cohort: Cohort) -> set[str]:
    return {s.dtype for a in cohort.clients for s in a.updates.values()}


def _not_finite(adapter: Adapter, module: str) -> Reason:
    """Which stored number is NaN or Inf, or that only the product is."""
    try:
        formats.check_finite(adapter, module)
    except AdapterError as error:
        return Reason(error.code, str(error))
    spec = adapter.updates[module]
    return Reason(
        NonFinite.code,
        f"{adapter.tensors[spec.file_key].file}: the update of {module!r} overflows though its "
        "factors are finite; retrain it, or leave this client out",
    )


def _inputs(path: Path, cohort: Cohort, broken: Sequence[Broken]) -> dict[str, Any]:
    files = {a.client: [*a.files.values(), *_replicate_files(a)] for a in cohort.clients}
    files |= {b.client: list(b.files) for b in broken}
    return {
        "root": str(path),
        "clients": [
            {
                "id": client,
                "files": [
                    {"name": f.name, "size": f.size, "sha256": f.sha256} for f in files[client]
                ],
            }
            for client in sorted(files, key=natural_key)
        ],
    }


def _replicate_files(adapter: Adapter) -> list[InputFile]:
    """Files of further adapters, each named with its folder."""
    return [
        replace(file, name=f"{other.path.name}/{file.name}")
        for other in adapter.replicates
        if other.path != adapter.path
        for file in other.files.values()
    ]


def _environment(device: str) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": getattr(torch, "__version__", None),
        "threads": torch.get_num_threads() if torch else None,
        "device": device,
    }
