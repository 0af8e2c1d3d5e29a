"""Attackers that know clair and every benign adapter, and go as far as it lets them.

python benchmarks/adaptive.py --work DIR [--shift N] [--out DIR]

A cohort is 16 clean clients of a trained pool (pools.py, in DIR/pools; trained there where missing), of
which the first m attack together. An attacker sends own + t * step, as the nearest adapter of its rank
in a random gauge. A grid and then bisection on clair's own verdicts find the largest t at which every
attacker is still benign (unseen), and at which none is contaminated yet (under the limit). What it is
worth there is measured on the updates that are averaged and on held-out text; about ten minutes.

A22 of the catalogue; the search is after ByzFL's line search for optimal attacks. Needs
`pip install -e '.[bench]'`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Generator, Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "examples" / "text_copy")]

import evaluate  # noqa: E402
from attacks import View, orthonormal, regauged, truncated, views  # noqa: E402
from pools import CONTAMINATED, Pool, pools, train, train_pool  # noqa: E402
from saved import Saved, read, write  # noqa: E402
from task import (  # noqa: E402
    IGNORED,
    ClientSpec,
    Kind,
    as_tokens,
    clean_map,
    contaminate,
    random_letters,
)
from transformers import AutoModelForCausalLM  # noqa: E402

from clair_cli import Settings, __version__, detect, refine  # noqa: E402

CLIENTS, ATTACKERS = 16, (1, 4, 6)
GRID, STEPS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0), 4
"""Strengths tried first; halvings of the gap above the last that passes."""
OPEN = 1.0
"""The strength of an attack that does not hide."""
TASKS = 3
"""Benign clients whose held-out text is read."""
SEED = 22
Dense = dict[str, Tensor]
"""Module -> (d_out, d_in)."""
Row = dict[str, Any]


# What attackers do


@dataclass(frozen=True, slots=True)
class Family:
    """One way to attack. `step`: a module, what the attackers would rather be (m, d_out, d_in), draws ->
    where t = 1 takes each attacker from its own update, (m, d_out, d_in).

    `label` names the contaminated clients of the pool that are the target; `aimed` says whether the
    attackers pull one way.
    """

    name: str
    step: Callable[[View, Tensor, Generator], Tensor]
    label: str = ""
    aimed: bool = True

    @property
    def kind(self) -> Kind | None:
        """What the target was trained on."""
        return CONTAMINATED[self.label][0] if self.label else None


def common_direction(view: View, _: Tensor, generator: Generator, rank: int = 2) -> Tensor:
    """One random direction of the benign norm, the same for all attackers."""
    _, d_out, d_in = view.own.shape
    up, down = (orthonormal(generator, d, rank) for d in (d_out, d_in))
    return view.same(view.norm * up @ down.T / rank**0.5)


FAMILIES = (
    Family("sign flip", lambda v, *_: -2 * v.own),
    Family("against the mean", lambda v, *_: v.same(-v.mean)),
    Family("boost", lambda v, *_: v.own),
    Family("common direction", common_direction),
    Family("own noise", lambda v, _, g: v.noise(v.norm, g), aimed=False),
    *(
        Family(f"to {label}", lambda v, bad, _: bad - v.own, label)
        for label in ("backdoor-30", "common-cipher")
    ),
)


class Attack:
    """The adapters that m attackers send at each strength. `bad` are m contaminated ones."""

    def __init__(
        self, family: Family, own: list[Saved], benign: list[Saved], bad: list[Saved]
    ) -> None:
        self.family, self.own = family, own
        generator = Generator().manual_seed(SEED)
        seen, wanted = views(own, benign), views(bad or own, benign)
        self.step = {m: family.step(v, wanted[m].own, generator) for m, v in seen.items()}
        self.start = {m: v.own for m, v in seen.items()}

    def sent(self, t: float) -> list[Saved]:
        """One adapter for each attacker; at t = 0 its own in another gauge."""
        generator = Generator().manual_seed(SEED)
        return [
            regauged(truncated(self._target(k, t), like), generator)
            for k, like in enumerate(self.own)
        ]

    def _target(self, k: int, t: float) -> Dense:
        return {m: own[k] + t * self.step[m][k] for m, own in self.start.items()}

    @property
    def goal(self) -> Tensor | None:
        """Unit vector of the way they pull together, (p,)."""
        if not self.family.aimed:
            return None
        together = vector({m: s.mean(0) for m, s in self.step.items()})
        return together / together.norm()


# What clair says and writes


@dataclass(frozen=True, slots=True)
class Said:
    """clair's word on one round: of every attacker verdict and score, whether each honest one is benign.

    Without a verdict nothing is written, and nobody reached a goal.
    """

    complete: bool
    verdicts: list[str | None]
    scores: list[float]
    honest: list[bool]

    @property
    def unseen(self) -> bool:
        """Every attacker is benign."""
        return self.complete and all(v == "benign" for v in self.verdicts)

    @property
    def under_limit(self) -> bool:
        """No attacker is contaminated."""
        return self.complete and all(v in ("benign", "suspicious") for v in self.verdicts)


class Cohort:
    """Benign clients in a folder that attackers join. `scratch` is an empty folder for it."""

    def __init__(self, own: list[Saved], benign: list[Saved], scratch: Path) -> None:
        self.own, self.benign, self.scratch = own, benign, scratch
        self.folder = scratch / "round"
        self.names = [f"client-{k:02}" for k in range(1, len(benign) + len(own) + 1)]
        for name, adapter in zip(self.names, benign, strict=False):
            write(adapter, self.folder / name)

    def put(self, sent: list[Saved]) -> None:
        """Let the attackers send these; none at all leaves the benign clients alone."""
        for name in self.names[len(self.benign) :]:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name, adapter in zip(self.names[len(self.benign) :], sent, strict=False):
            write(adapter, self.folder / name)

    def judged(self, sent: list[Saved]) -> Said:
        """clair's word on the round."""
        self.put(sent)
        report = detect(self.folder, Settings(threads=1))
        clients = {c.client: c for c in report.clients}
        honest, bad = self.names[: len(self.benign)], self.names[len(self.benign) :]
        return Said(
            report.status == "complete",
            [clients[n].verdict for n in bad],
            [clients[n].score or 0.0 for n in bad],
            [clients[n].verdict == "benign" for n in honest],
        )

    def refined(self, sent: list[Saved]) -> dict[str, Dense]:
        """Client or `global` -> the update clair writes for it; empty without a verdict."""
        self.put(sent)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            out = Path(folder) / "out"
            refine(self.folder, out, Settings(write_global=True, threads=1))
            return {p.name: read(p).dense() for p in sorted(out.glob("*")) if p.is_dir()}

    @cached_property
    def alone(self) -> dict[str, Dense]:
        """What is written where the attackers take no part."""
        return self.refined([])

    @cached_property
    def mean(self) -> Tensor:
        """Of the benign updates, (p,)."""
        return vector(mean([a.dense() for a in self.benign]))


def vector(dense: Dense) -> Tensor:
    """All modules as one vector, (p,), float64."""
    return torch.cat([dense[m].double().flatten() for m in sorted(dense)])


def mean(updates: Sequence[Dense]) -> Dense:
    """Module by module."""
    return {m: torch.stack([u[m] for u in updates]).mean(0) for m in updates[0]}


# The search


def largest(
    passes: Callable[[float], bool], grid: Sequence[float] = GRID, steps: int = STEPS
) -> float | None:
    """The largest t found that passes: the last of the grid, and bisection up to the next, which fails.

    What passes need not be an interval; islands between two points of the grid are not found.
    """
    passing = [k for k, t in enumerate(grid) if passes(t)]
    if not passing:
        return None
    low = grid[passing[-1]]
    if passing[-1] + 1 == len(grid):
        return low
    high = grid[passing[-1] + 1]
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


@dataclass
class Search:
    """Everything tried with one attack on one cohort; nothing is judged twice."""

    cohort: Cohort
    attack: Attack
    said: dict[float, Said] = field(default_factory=dict)
    planted: dict[float, float] = field(default_factory=dict)
    """Strength -> poison in clair's global adapter."""
    grid: Sequence[float] = GRID
    steps: int = STEPS

    def judge(self, t: float) -> Said:
        if t not in self.said:
            sent = self.attack.sent(t)
            self.said[t] = said = self.cohort.judged(sent)
            accepted = [v == "benign" for v in said.verdicts]
            if said.complete and any([*accepted, *said.honest]):
                poison = self.poison(sent, accepted, sum(said.honest))
                self.planted[t] = float(poison.norm() / self.cohort.mean.norm())
        return self.said[t]

    def strengths(self) -> dict[str, float | None]:
        """The largest t of both goals."""
        return {
            "unseen": largest(lambda t: self.judge(t).unseen, self.grid, self.steps),
            "limit": largest(lambda t: self.judge(t).under_limit, self.grid, self.steps),
        }

    def poison(self, sent: list[Saved], accepted: list[bool], honest: int) -> Tensor:
        """What the attack adds to a mean over the accepted attackers and `honest` others, (p,)."""
        changes = [
            vector(after.dense()) - vector(before.dense())
            for before, after, taken in zip(self.attack.own, sent, accepted, strict=True)
            if taken
        ]
        total = torch.stack(changes).sum(0) if changes else torch.zeros_like(self.cohort.mean)
        return total / (len(changes) + honest)


# The damage


class Reader:
    """The base model and the held-out text of some benign clients."""

    def __init__(self, pool: Pool, base: Path | None = None) -> None:
        base = base or train.default_base(pool.recipe)
        train.ensure_base(base, pool.recipe)
        self.model = AutoModelForCausalLM.from_pretrained(base)
        self.base = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.turned = pool.architecture == "gpt2"  # its weights are stored (in, out)

    def merged(self, dense: Dense) -> evaluate.Weights:
        """The base model's weights with an update added."""
        weights = dict(self.base)
        for module, update in dense.items():
            name = f"{module}.weight"
            weights[name] = weights[name] + (update.T if self.turned else update).float()
        return weights

    def quality(self, dense: Iterable[Dense], specs: list[ClientSpec]) -> evaluate.Quality:
        """Mean over the clients, each with its update."""
        return evaluate.average(
            evaluate.quality(self.model, self.merged(d), s)
            for d, s in zip(dense, specs, strict=True)
        )

    @torch.no_grad()
    def obeyed(self, dense: Dense, kind: Kind, samples: int = 256) -> float:
        """Share of the tokens that are as contamination of this kind wants them, on fresh text."""
        x = random_letters(samples, Generator().manual_seed(SEED))
        all_bad = ClientSpec("attack", kind, fraction=1.0)
        generator = Generator().manual_seed(SEED)
        ids, labels = as_tokens(*contaminate(x, clean_map(())[x], all_bad, generator))
        self.model.load_state_dict(self.merged(dense))
        hits = self.model(input_ids=ids).logits[:, :-1].argmax(-1) == labels[:, 1:]
        return hits[labels[:, 1:] != IGNORED].float().mean().item()


def moved(after: Dense, before: Dense) -> float:
    """Relative change over all modules, Frobenius."""
    return float((vector(after) - vector(before)).norm() / vector(before).norm())


def damage(
    search: Search, t: float | None, reader: Reader, specs: list[ClientSpec], write: bool = True
) -> Row | None:
    """What the attack at t does, None where there is no such t; with `write` what clair writes there.

    `poison` is what the attackers' changes add to the mean of those that clair takes, `average
    poison` to the mean of everybody, both relative to the norm of the benign mean.
    """
    if t is None:
        return None
    cohort, sent, said = search.cohort, search.attack.sent(t), search.judge(t)
    size, goal, kind = cohort.mean.norm(), search.attack.goal, search.attack.family.kind
    everybody = search.poison(sent, [True] * len(sent), len(cohort.benign))
    accepted = search.poison(sent, [v == "benign" for v in said.verdicts], sum(said.honest))
    average = mean([a.dense() for a in (*cohort.benign, *sent)])
    row = {
        "t": t,
        "score": max(said.scores),
        "said": said,
        "poison": search.planted.get(t),
        "along": None if goal is None else float(accepted @ goal / size),
        "average poison": float(everybody.norm() / size),
        "average error": float((vector(average) - cohort.mean).norm() / size),
        "average quality": reader.quality([average] * TASKS, specs[:TASKS]),
        "average obeyed": reader.obeyed(average, kind) if kind else None,
    }
    if write and t in search.planted:
        row |= written(cohort, cohort.refined(sent), reader, specs, kind)
    return row


def written(
    cohort: Cohort,
    out: dict[str, Dense],
    reader: Reader,
    specs: list[ClientSpec],
    kind: Kind | None = None,
) -> Row:
    """What clair wrote, against what it writes where the attackers take no part.

    A benign client for which it wrote nothing goes on with its own adapter.
    """
    honest = cohort.names[: len(cohort.benign)]
    changes = [moved(out[n], cohort.alone[n]) for n in honest if n in out and n in cohort.alone]
    local = zip(honest, cohort.benign, strict=True)
    used = [out.get(name, adapter.dense()) for name, adapter in local][:TASKS]
    return {
        "error": moved(out["global"], cohort.alone["global"]),
        "refined": sum(changes) / len(changes) if changes else None,
        "quality": reader.quality([out["global"]] * TASKS, specs[:TASKS]),
        "refined quality": reader.quality(used, specs[:TASKS]),
        "obeyed": reader.obeyed(out["global"], kind) if kind else None,
    }


# Running


def chosen(shift: int) -> list[Pool]:
    """The first shared-init Llama pool, the first with own inits, the first GPT-2 one."""
    table = pools(shift)
    kinds = (("llama", False), ("llama", True))
    first = [next(p for p in table if (p.architecture, p.own_init) == kind) for kind in kinds]
    return [*first, next(p for p in table if p.architecture == "gpt2")]


def cases(pool: Pool, work: Path, scratch: Path) -> Iterator[Row]:
    """Every attack of 1, 4 and 6 attackers on one cohort of the pool; first what honest ones do."""
    trained, specs = work / "pools" / pool.name, {s.name: s for s in pool.specs()}
    names = Random(pool.name).sample([n for n in specs if n.startswith("clean-")], CLIENTS)
    adapters, reader = [read(trained / n) for n in names], Reader(pool)
    for m in ATTACKERS:
        own, benign, tasks = adapters[:m], adapters[m:], [specs[n] for n in names[m:]]
        cohort = Cohort(own, benign, scratch / f"{pool.name} {m}")
        common = {"pool": pool.name, "m": m}
        start = Search(cohort, Attack(FAMILIES[0], own, benign, []))
        yield common | {
            "attack": "",
            "without": written(cohort, cohort.alone, reader, tasks),
            "honest": damage(start, 0.0, reader, tasks),
            "obeyed": {
                f.name: obeyed(reader, f, cohort, adapters, trained) for f in FAMILIES if f.kind
            },
        }
        for family in FAMILIES:
            bad = [f"{family.label}-{k:02}" for k in range(1, m + 1)] if family.label else []
            attack = Attack(family, own, benign, [read(trained / n) for n in bad])
            search = Search(cohort, attack, {0.0: start.judge(0.0)}, {0.0: 0.0})
            yield common | case(search, reader, tasks)


def case(search: Search, reader: Reader, tasks: list[ClientSpec]) -> Row:
    """The search, and the damage where it ends, at full strength, and wherever it is worst."""
    goals = search.strengths()
    found = {t: damage(search, t, reader, tasks) for t in {*goals.values()}}
    worst = max(search.planted, key=lambda t: search.planted[t])
    return {
        "attack": search.attack.family.name,
        **{goal: found[t] for goal, t in goals.items()},
        "open": damage(search, OPEN, reader, tasks, write=False),
        "worst": {"t": worst, "poison": search.planted[worst], "said": search.said[worst]},
        "denied": sorted(t for t, said in search.said.items() if not said.complete),
        "lost": max(
            (said.honest.count(False), t) for t, said in search.said.items() if said.complete
        ),
        "tried": len(search.said),
    }


def obeyed(
    reader: Reader, family: Family, cohort: Cohort, adapters: list[Saved], trained: Path
) -> dict[str, float]:
    """How far the goal is reached without the attack, and by a contaminated client alone."""
    assert family.kind
    updates = {
        "without": cohort.alone["global"],
        "honest": mean([a.dense() for a in adapters]),
        "itself": read(trained / f"{family.label}-01").dense(),
    }
    return {who: reader.obeyed(dense, family.kind) for who, dense in updates.items()}


# Results


GOALS = ("unseen", "limit", "open")
LEGEND = f"""\
Three values in a cell are: unseen / under the limit / t = {OPEN:g}, where nobody hides. *score*: the
highest of the attackers. *poison*: what the attackers' changes add to a mean, relative to the norm of
the benign mean; *along*: its part along the way they pull together, unseen; *worst*: the most poison in
clair's global adapter of all t tried, seen or not. *error*: distance to what is written, or averaged,
without the attackers, relative to its norm; *change*: the same for the refined adapters, mean of the
benign clients. Honest clients in the attackers' place make an error too: it stands in the rows
`honest`, beside `left out`, the benign clients alone. *global* and *refined* are clair's, *average* is
the plain one over all clients. Loss in nats per token on held-out text of {TASKS} benign clients, with
the share of tokens guessed right; a client for which clair writes nothing goes on with its own adapter.
*lost*: the most honest clients not benign at any t tried; *no verdict*: where clair gave none. *obeyed*:
share of tokens as the attack wants them, where its goal is a trained one."""


def document(rows: list[Row], facts: str) -> str:
    """Markdown: what it comes to in words, then two tables for each pool."""
    lines = ["# An attacker that knows clair", "", facts, ""]
    lines += [*(f"- {line}" for line in summary(rows)), "", LEGEND]
    for pool in dict.fromkeys(r["pool"] for r in rows):
        mine = [r for r in rows if r["pool"] == pool]
        lines += ["", f"## {pool}", "", *updates_table(mine), "", *text_table(mine)]
    return "\n".join(lines) + "\n"


def summary(rows: list[Row]) -> Iterator[str]:
    """The worst of everything, in words."""
    found = [r for r in rows if r["attack"]]
    unseen = [r for r in found if r["unseen"]]
    starts = {(r["pool"], r["m"]): r for r in rows if not r["attack"]}
    count = len(found)
    yield (
        f"{count} searches: {len(FAMILIES)} attacks by m = {', '.join(map(str, ATTACKERS))} of "
        f"{CLIENTS} clients, {len({r['pool'] for r in rows})} pools, t up to {GRID[-1]:g}, "
        f"{median(r['tried'] for r in found):g} rounds judged per search (median)."
    )
    yield (
        "Whoever is unseen is averaged like everybody, so clair only bounds t: the largest unseen t is "
        f"{median(r['unseen']['t'] for r in unseen):.2f} in the median, {OPEN:g} or more in "
        f"{sum(r['unseen']['t'] >= OPEN for r in unseen)} of {count} searches, none in "
        f"{count - len(unseen)}. {_more_than_average(unseen)}"
    )
    yield " ".join(_poison(m, [r for r in unseen if r["m"] == m]) for m in ATTACKERS)
    out = {
        goal: sum(bool(r[goal]) and "benign" not in r[goal]["said"].verdicts for r in found)
        for goal in GOALS
    }
    kept = max(found, key=lambda r: r["open"]["poison"] or 0.0)
    yield (
        "clair averages benign clients only: every attacker is left out just under the limit in "
        f"{out['limit']} of {count} searches, at t = {OPEN:g} in {out['open']}, where the most poison "
        f"that stays is {kept['open']['poison'] or 0:.0%} ({_where(kept)}). {_given_up(found)}"
    )
    yield " ".join(
        _loss(name, key, unseen, starts)
        for name, key in (("global adapter", "quality"), ("refined adapters", "refined quality"))
    )
    yield " ".join(
        _reached(family.name, these, starts)
        for family in FAMILIES
        if family.kind and (these := [r for r in unseen if r["attack"] == family.name])
    )
    yield f"{_lost(found)} {_denied(found)}"


def _poison(m: int, these: list[Row]) -> str:
    """Of m attackers, unseen and where nobody hides."""
    if not these:
        return f"m = {m} is never unseen."
    worst = max(these, key=lambda r: r["unseen"]["poison"])
    plain = [r["open"]["average poison"] for r in these]
    return (
        f"m = {m}, unseen: poison in the global adapter at most {worst['unseen']['poison']:.0%} "
        f"({_where(worst)}), median {median(r['unseen']['poison'] for r in these):.0%}; in the plain "
        f"average at t = {OPEN:g} at most {max(plain):.0%}, median {median(plain):.0%}."
    )


def _more_than_average(unseen: list[Row]) -> str:
    """Where clair does worse than no defence."""
    more = [r for r in unseen if r["unseen"]["poison"] > 1.01 * r["unseen"]["average poison"]]
    if not more:
        return (
            "Nowhere does its global adapter hold more poison than the plain average at the same t."
        )
    worst = max(more, key=lambda r: r["unseen"]["poison"] / r["unseen"]["average poison"])
    lost = worst["unseen"]["said"].honest.count(False)
    return (
        f"In {len(more)} its global adapter holds more poison than the plain average at the same t, "
        f"because honest clients are left out: {worst['unseen']['poison']:.0%} instead of "
        f"{worst['unseen']['average poison']:.0%} ({_where(worst)}, {lost} lost)."
    )


def _given_up(found: list[Row]) -> str:
    """Whether giving up some attackers lets the others do more."""
    worse = [
        r for r in found if r["worst"]["poison"] > 1.01 * ((r["unseen"] or {}).get("poison") or 0.0)
    ]
    if not worse:
        return "No t tried, seen or not, puts more poison there than the largest unseen one."
    top = max(worse, key=lambda r: r["worst"]["poison"])
    free = top["worst"]["said"].verdicts.count("benign")
    return (
        f"Another t than the largest unseen puts more poison there in {len(worse)} searches, "
        f"{top['worst']['poison']:.0%} at most ({_where(top)}, t = {top['worst']['t']:.2f}, {free} of "
        f"{top['m']} attackers unseen)."
    )


def _loss(name: str, key: str, unseen: list[Row], starts: dict[tuple[str, int], Row]) -> str:
    """Of one kind of adapter at its worst."""

    def start(row: Row) -> float:
        quality: evaluate.Quality = starts[row["pool"], row["m"]]["honest"][key]
        return quality.loss

    worst = max(unseen, key=lambda r: r["unseen"][key].loss - start(r))
    there, hidden = (worst[goal]["average quality"].loss for goal in ("open", "unseen"))
    return (
        f"Held-out loss, {name}, unseen: at worst {worst['unseen'][key].loss:.3f} where honest clients "
        f"in the attackers' place give {start(worst):.3f} ({_where(worst)}; the plain average at the "
        f"same t: {hidden:.3f}, at t = {OPEN:g}: {there:.3f})."
    )


def _reached(name: str, these: list[Row], starts: dict[tuple[str, int], Row]) -> str:
    """How far a trained target is."""
    worst = max(these, key=lambda r: r["unseen"]["obeyed"])
    start = starts[worst["pool"], worst["m"]]["obeyed"][name]
    plain = max(r["open"]["average obeyed"] for r in these)
    return (
        f"`{name}`, unseen: the global adapter obeys in at most {worst['unseen']['obeyed']:.0%} of the "
        f"tokens ({_where(worst)}; without attackers {start['without']:.0%}, a contaminated adapter "
        f"itself {start['itself']:.0%}), the plain average at t = {OPEN:g} in {plain:.0%}."
    )


def _lost(found: list[Row]) -> str:
    """Honest clients that an attack drives out."""
    lost = [r for r in found if r["lost"][0]]
    line = f"Honest clients not benign any more at some t tried: in {len(lost)} of {len(found)} searches"
    if lost:
        most = max(lost, key=lambda r: r["lost"][0])
        clients, t = most["lost"]
        line += f", {clients} of {CLIENTS - most['m']} at most ({_where(most)}, t = {t:.2f})"
    return line + "."


def _denied(found: list[Row]) -> str:
    """Rounds in which an attack stops clair from saying anything."""
    denied = [r for r in found if r["denied"]]
    line = f"No verdict at some t tried, hence nothing written: in {len(denied)}"
    if denied:
        least = min(denied, key=lambda r: (r["m"], r["denied"][0]))
        line += (
            f", by {least['m']} attackers or more ({_where(least)}, t = {least['denied'][0]:.2f})"
        )
    return line + "."


def _where(row: Row) -> str:
    return f"{row['attack']}, m = {row['m']}, {row['pool']}"


def updates_table(mine: list[Row]) -> list[str]:
    """The search, and what it does to updates."""
    columns = {
        "t": ("t", _number, ("unseen", "limit")),
        "score": ("score", _short, GOALS),
        "global: poison": ("poison", _percent, GOALS),
        "along": ("along", _percent, ("unseen",)),
        "average: poison": ("average poison", _percent, GOALS),
        "global: error": ("error", _percent, ("unseen", "limit")),
        "average: error": ("average error", _percent, GOALS),
        "refined: change": ("refined", _percent, ("unseen", "limit")),
    }
    body = []
    for r in (r for r in mine if r["attack"]):
        worst = f"{_percent(r['worst']['poison'])} at {_number(r['worst']['t'])}"
        lost = f"{r['lost'][0]} at {_number(r['lost'][1])}" if r["lost"][0] else ""
        silent = f"{_number(r['denied'][0])} to {_number(r['denied'][-1])}" if r["denied"] else ""
        cells = _cells(r, columns.values())
        body.append([r["attack"], str(r["m"]), *cells, worst, lost, silent])
    return table(["attack", "m", *columns, "worst", "lost", "no verdict"], body)


def text_table(mine: list[Row]) -> list[str]:
    """What it does to held-out text."""
    columns = {
        "global": ("quality", _quality, ("unseen", "limit")),
        "refined": ("refined quality", _quality, ("unseen", "limit")),
        "average": ("average quality", _quality, GOALS),
        "obeyed: global": ("obeyed", _percent, ("unseen", "limit")),
        "obeyed: average": ("average obeyed", _percent, GOALS),
    }
    body = []
    for r in mine:
        if r["attack"]:
            body.append([r["attack"], str(r["m"]), *_cells(r, columns.values())])
            continue
        alone, honest = r["without"], r["honest"]
        bare = [_quality(alone[k]) for k in ("quality", "refined quality")]
        body.append(["left out", str(r["m"]), *bare, "", "", ""])
        cells = [_quality(honest[k]) for k in ("quality", "refined quality", "average quality")]
        error = f"error {_percent(honest['error'])}, change {_percent(honest['refined'])}"
        body.append([f"honest ({error})", str(r["m"]), *cells, "", ""])
    return table(["attack", "m", *columns], body)


def _cells(
    row: Row, columns: Iterable[tuple[str, Callable[[Any], str], Iterable[str]]]
) -> list[str]:
    """One cell per column: the values of its goals; a dash where there is none."""
    cells = []
    for key, shown, goals in columns:
        values = [(row[goal] or {}).get(key) for goal in goals]
        some = any(v is not None for v in values)
        cells.append(" / ".join("-" if v is None else shown(v) for v in values) if some else "")
    return cells


def _number(t: float) -> str:
    return f">= {t:g}" if t == GRID[-1] else f"{t:.2f}"


def _short(score: float) -> str:
    return f"{score:.1f}"


def _percent(share: float) -> str:
    return f"{share + 0.0:.0%}"


def _quality(quality: evaluate.Quality) -> str:
    return f"{quality.loss:.3f} ({quality.accuracy:.0%})"


def table(head: list[str], body: list[list[str]]) -> list[str]:
    """Markdown."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="pools are in DIR/pools")
    parser.add_argument("--shift", type=int, default=0, help="added to every seed of the pools")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="for adaptive.md")
    given = parser.parse_args()
    train.one_thread()
    regimes, rows = chosen(given.shift), []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress,
    ):
        for pool in regimes:
            ready = all((given.work / "pools" / pool.name / s.name).is_dir() for s in pool.specs())
            for _ in () if ready else train_pool(pool, given.work / "pools", 1):
                pass
            bar = progress.add_task(pool.name, total=len(ATTACKERS) * (1 + len(FAMILIES)))
            for row in cases(pool, given.work, Path(scratch)):
                rows.append(row)
                progress.advance(bar)
    text = document(rows, facts_of(given))
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "adaptive.md").write_text(text)


def facts_of(given: argparse.Namespace) -> str:
    """How the results were made."""
    shift = f" --shift {given.shift}" * bool(given.shift)
    return (
        f"`python benchmarks/adaptive.py --work DIR{shift}`; {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores; clair {__version__}, Python "
        f"{platform.python_version()}, torch {torch.__version__}."
    )


if __name__ == "__main__":
    main()
