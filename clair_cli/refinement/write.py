"""Refined adapters of the benign clients, written module by module below a staging folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from clair_cli import engines, formats
from clair_cli.cohort import Adapter
from clair_cli.output.folders import strength_folder
from clair_cli.progress import Progress, silent
from clair_cli.refined import GlobalAdapter, ModuleRefinement, RefinedClient, Refinement
from clair_cli.refinement.adapters import Candidate, Mean
from clair_cli.refinement.blame import LeftOut, noted
from clair_cli.refinement.module import ModuleRefiner, RefinedModule
from clair_cli.refinement.plan import Plan
from clair_cli.refinement.ranks import with_ranks
from clair_cli.refinement.refiner import Item, Take, on_module, stored_ahead
from clair_cli.refinement.remarks import not_averaged, warnings
from clair_cli.refinement.strength import expected
from clair_cli.refinement.whole import in_rows

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.33 takes for --max-lora-rank."""
Results = list[list[RefinedModule]]
"""One module: of every group, once per strength."""


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """What was done, and who got no adapter, and why."""

    refinement: Refinement
    without: Mapping[str, Exception]


def write_refined(plan: Plan, stage: Path, on_progress: Progress = silent) -> Written:
    """Write every refined adapter below `stage`, one module at a time.

    Raises OutputError, AdapterError where an input changed, and LeftOut of those with whom no module
    can be refined; what is below `stage` is then of no use.
    """
    plan = with_ranks(plan, on_progress)
    writing, failed = _Writing(plan, stage), dict[str, Exception]()
    items = ((module, frozenset(failed)) for module in plan.modules)
    try:
        with stored_ahead(plan, items) as jobs:
            results = engines.choose(plan.settings.engine).map(partial(refine_job, plan), jobs)
            for done, (module, refined, broke) in enumerate(results, start=1):
                failed |= broke | failed
                if not failed:  # else all begins again, without everybody who fails
                    writing.put(module, refined)
                on_progress("refining modules", done, len(plan.modules))
        if failed:
            raise LeftOut(failed)
        writing.put_full()
        return writing.finish()
    finally:
        writing.abandon()


def refine_job(
    plan: Plan, job: tuple[Item, Take | None]
) -> tuple[str, Results, dict[str, Exception]]:
    """One module of all clients, refined once for every strength of the plan, and with whom that fails.

    With the item comes what was read ahead, if anything.
    """
    (module, gone), take = job
    results, failed = [], dict[str, Exception]()
    for which in range(len(plan.groups)):
        with noted(failed):
            compute = partial(_refined, plan, module, which)
            results.append(on_module(plan, which, module, compute, gone, take))
    return module, results, failed


def _refined(plan: Plan, module: str, which: int, refiner: ModuleRefiner) -> list[RefinedModule]:
    group = plan.groups[which]
    ranks = [plan.rank(a, module) for a in group.clients]
    of_mean = max(ranks)
    template = template_of(plan) if which == 0 and plan.settings.write_global else None
    if template is not None:
        of_mean = plan.rank_of_mean(template, module)
    return [
        refiner.refined(how, ranks, of_mean, None if mix is None else torch.from_numpy(mix), keeps)
        for how, mix, keeps in zip(group.shrinkages, group.mixes, group.keeps, strict=True)
    ]


def template_of(plan: Plan) -> Adapter | None:
    """Whose config and other tensors go with the mean: of the largest rank among those that count, and
    None where all are unfit."""
    fit = [a for a in plan.groups[0].giving if a.client not in plan.unfit]
    return max(fit, key=lambda a: sum(s.rank for s in a.updates.values()), default=None)


@dataclass(slots=True)
class _Writing:
    """Every candidate and the mean, written module by module."""

    plan: Plan
    stage: Path
    candidates: list[list[Candidate]] = field(init=False)
    """Per strength and group."""
    mean: Mean | None = field(init=False)
    refused: str | None = field(init=False, default=None)
    modules: list[ModuleRefinement] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        path, self.candidates, self.mean = self.plan.settings.path, [], None
        for which in range(len(self.plan.groups[0].shrinkages)):
            folder = self.stage / strength_folder(path[which]) if path else self.stage
            self.candidates.append(
                [
                    Candidate(self.plan, g, which, folder, self.plan.folders)
                    for g in range(len(self.plan.groups))
                ]
            )
        if self.plan.settings.write_global:
            template = template_of(self.plan)
            self.refused = not_averaged(template, self.plan.groups[0].full)
            if template is not None and self.refused is None:
                self.mean = Mean(self.plan, template, self.stage)

    @property
    def _flat(self) -> list[Candidate]:
        return [one for groups in self.candidates for one in groups]

    def put(self, module: str, results: Results) -> None:
        """Write one module of every client and let go of it."""
        for which, groups in enumerate(self.candidates):
            for candidate, of_group in zip(groups, results, strict=True):
                candidate.put(module, of_group[which])
        first = results[0][0]
        if self.mean is not None:
            self.mean.put(module, first)
        spectrum = tuple(float(x) for x in first.spectrum)
        error = max(one.mean_error for of_group in results for one in of_group)
        self.modules.append(ModuleRefinement(module, first.subspace_rank, spectrum, error))

    def put_full(self) -> None:
        """Write the full matrices of every client, and of the mean."""
        for number, group in enumerate(self.plan.groups):
            full, device = group.full, self.plan.device
            for name in full.names:
                shape = full.shapes[name]
                for rows in in_rows(name, shape, group.clients, group.weights, device):
                    for groups in self.candidates:
                        groups[number].put_rows(name, rows)
                    if number == 0 and self.mean is not None:
                        self.mean.put_rows(name, rows)

    def abandon(self) -> None:
        """Let go of every file that was not finished."""
        for candidate in self._flat:
            for writer in candidate.writers.values():
                writer.abandon()
        if self.mean is not None:
            self.mean.writer.abandon()

    def finish(self) -> Written:
        """Close all files; what was done, as the report says it. Raises what nobody was spared."""
        for candidate in self._flat:
            candidate.close()
        without = {c: error for one in self._flat for c, error in one.without.items()}
        if not any(candidate.writers for candidate in self._flat):
            raise next(iter(without.values()))
        first, plan = self.candidates[0][0], self.plan
        known = plan.groups[0].known
        clients = tuple(c for one in self._flat for c in one.clients(self.stage))
        mean = self.mean.close() if self.mean is not None else None
        done = Refinement(
            strength=first.how.outside,
            inside=first.how.inside,
            side=first.how.side,
            gain=first.gain,
            knowledge="adapters alone" if known.noise is None else "replicates",
            replicates_agree=known.agreed,
            averaged_away=first.averaged_away(),
            subspace_ranks=tuple(round(m.subspace_rank) for m in self.modules),
            initialisation=known.initialisation,
            common_share=known.common_share,
            spread=known.spread,
            coherence=known.coherence,
            tasks=first.how.tasks if first.how.per_client else None,
            guessed=first.how.per_client and plan.settings.tasks == "auto",
            full_matrices=plan.groups[0].full.names,
            spectrum=tuple(float(x) for x in known.spectrum),
            gap=known.gap,
            gap_after=known.gap_after,
            expected=expected(first.kept, known),
            max_lora_rank=self._served(clients, mean),
            modules=tuple(self.modules),
            clients=clients,
            mean=mean,
        )
        said = warnings(done, plan.settings, plan.relative, plan.groups[0].full.alone, self.refused)
        return Written(replace(done, warnings=(*plan.remarks, *said)), without)

    def _served(self, clients: tuple[RefinedClient, ...], mean: GlobalAdapter | None) -> int | None:
        """The least value a server takes that admits all, and the mean; None where it serves no such
        files."""
        ranks = [c.rank for c in clients[: len(self.plan.clients)]]
        rank = max([*ranks, (mean.rank if mean else None) or 0])
        served = all(formats.record(a).served for a in self.plan.clients)
        return next((r for r in SERVED_RANKS if r >= rank), rank) if served else None
