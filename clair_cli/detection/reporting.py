"""What a detection found, as the report says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clair_cli import formats
from clair_cli.cohort import Adapter, Cohort, InputFile, natural_key
from clair_cli.detection.agreement import Array, common_share, initialisation
from clair_cli.detection.portrait import portrait
from clair_cli.detection.record import Detection, too_few
from clair_cli.report import (
    Consensus,
    Minority,
    ModuleFinding,
    ModuleSummary,
    Population,
    SolverRun,
    Verdict,
)
from clair_cli.settings import Settings

if TYPE_CHECKING:
    from clair_cli.detection.solver import SharedSubspace

LEADING = 8
"""Leading shares of a module's differences that are reported."""


def population(found: Detection, settings: Settings) -> Population:
    """What holds of the clients together; the last finding says why there is no verdict."""
    why = too_few(found.cohort)
    judged = found.judgement.findings if found.judgement else ()
    remarks = [r for r in found.cohort.findings if r is not why]
    findings = (*remarks, *([why] if why else []), *judged)
    agrees, spectra = portrait(found)
    return Population(
        findings,
        _modules(found),
        _consensus(found, settings),
        _solver(found),
        _minorities(found),
        agrees,
        spectra,
    )


def _minorities(found: Detection) -> tuple[Minority, ...]:
    judged = found.judgement
    if judged is None:
        return ()
    names = [a.client for a in found.cohort.clients]
    pairs = zip(judged.minorities, judged.likeness, strict=True)
    return tuple(Minority(tuple(names[k] for k in group), like) for group, like in pairs)


def verdicts(found: Detection) -> tuple[Verdict, ...]:
    """One of every client, broken ones included, in natural order of their ids."""
    cohort = found.cohort
    said = [Verdict(b.client, "broken", reasons=(b.reason,)) for b in cohort.broken]
    if found.judgement is None:
        said += [Verdict(a.client, None, reasons=a.notes, rank=_rank(a)) for a in cohort.clients]
    else:
        residuals = found.decomposition.relative_residuals() if found.decomposition else None
        for k, (adapter, verdict) in enumerate(
            zip(cohort.clients, found.judgement.verdicts, strict=True)
        ):
            modules = () if residuals is None else _of_client(found, k, residuals)
            reasons = (*verdict.reasons, *adapter.notes)
            said.append(replace(verdict, modules=modules, reasons=reasons, rank=_rank(adapter)))
    return tuple(sorted(said, key=lambda v: natural_key(v.client)))


def _rank(adapter: Adapter) -> int | None:
    return max((spec.rank for spec in adapter.updates.values()), default=None)


def _of_client(found: Detection, k: int, residuals: Array) -> tuple[ModuleFinding, ...]:
    assert found.judgement is not None
    scores = found.judgement.module_scores
    return tuple(
        ModuleFinding(
            stack.module,
            float(residuals[m, k]),
            float(stack.energies[k].clamp_min(0).sqrt()),
            float(scores[m, k]),
        )
        for m, stack in enumerate(found.stacks)
    )


def _modules(found: Detection) -> tuple[ModuleSummary, ...]:
    if found.decomposition is None:
        return ()
    explained = found.decomposition.explained()
    return tuple(
        ModuleSummary(
            stack.module,
            found.cohort.shapes[stack.module],
            found.decomposition.subspaces[m].rank,
            float(explained[m]),
            0.0,
            _spectrum(found.decomposition.subspaces[m]),
            stack.error,
        )
        for m, stack in enumerate(found.stacks)
    )


def _spectrum(found: SharedSubspace) -> tuple[float, ...]:
    if found.total <= 0:
        return ()
    return tuple((found.spectrum[:LEADING].clamp_min(0) / found.total).tolist())


def _consensus(found: Detection, settings: Settings) -> Consensus | None:
    judged, parts = found.judgement, found.decomposition
    if judged is None or parts is None:
        return None
    members, stacks = judged.consensus, found.absolute
    inner = np.stack([s.inner.numpy() for s in stacks])
    rows = np.stack([s.rows.numpy() for s in stacks])
    began, overlap = initialisation(rows, members, settings.detection)
    return Consensus(
        clients=int(members.sum()),
        initialisation=began if formats.factored(found.cohort) else "none",
        row_overlap=overlap,
        agreement=judged.agreement,
        spread=judged.spread,
        common=common_share(inner[:, members][:, :, members]),
        explained=float(parts.explained().mean()),
        margin=judged.margin,
    )


def _solver(found: Detection) -> SolverRun | None:
    run = found.solved
    if run is None:
        return None
    refitted = found.decomposition is not None and found.decomposition is not run
    gap = run.gap if np.isfinite(run.gap) else None
    return SolverRun(run.status, run.iterations, gap, run.start, refitted)


def inputs(cohort: Cohort, root: str, since: Path | None = None) -> dict[str, Any]:
    """Every file that was read, by client, with its size and sha256; and those that were sent."""
    files = {a.client: [*a.files.values(), *_replicate_files(a)] for a in cohort.clients}
    files |= {b.client: list(b.files) for b in cohort.broken}
    clients = [
        {"id": client, "files": _listed(files[client])} for client in sorted(files, key=natural_key)
    ]
    if since is None:
        return {"root": root, "clients": clients}
    sent = {a.since.client: a.since for a in cohort.clients if a.since is not None}
    adapters = [{"id": s, "files": _listed([*sent[s].files.values()])} for s in sorted(sent)]
    return {"root": root, "clients": clients, "since": {"root": str(since), "adapters": adapters}}


def _listed(files: Sequence[InputFile]) -> list[dict[str, Any]]:
    return [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in files]


def _replicate_files(adapter: Adapter) -> list[InputFile]:
    """Files of further adapters, each named with its folder."""
    return [
        replace(file, name=f"{other.path.name}/{file.name}")
        for other in adapter.replicates
        if other.path != adapter.path
        for file in other.files.values()
    ]
