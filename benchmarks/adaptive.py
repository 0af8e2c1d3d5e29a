"""Attackers that know clair and every benign adapter, and go as far as it lets them.

python -m benchmarks.adaptive --work DIR [--shift N] [--out DIR]

A cohort is 16 clean clients of a trained pool (pools.py, in DIR/pools; trained there where missing), of
which the first m attack together. An attacker sends own + t * step, as the nearest adapter of its rank
in a random gauge. A grid and then bisection on clair's own verdicts find the largest t at which every
attacker is still benign (unseen), and at which none is contaminated yet (under the limit). What it is
worth there is measured on the updates that are averaged and on held-out text; about ten minutes. What
was measured is kept in DIR/adaptive.json.

The attackers know the weights that bound them, and search for the t that plants most, which is not
the largest (column *most*). A22 of the catalogue; the search is after ByzFL's line search for optimal
attacks. Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Generator
from transformers import AutoModelForCausalLM

from benchmarks.adaptive_search import (
    ATTACKERS,
    CLIENTS,
    FAMILIES,
    OPEN,
    SEED,
    TASKS,
    Attack,
    Cohort,
    Dense,
    Family,
    Row,
    Search,
    mean,
    vector,
)
from benchmarks.adaptive_tables import as_json, document
from benchmarks.pools import Pool, pools, train, train_pool
from benchmarks.saved import Saved, read
from clair_cli import __version__
from examples.text_copy import evaluate
from examples.text_copy.task import (
    IGNORED,
    ClientSpec,
    Kind,
    as_tokens,
    clean_map,
    contaminate,
    random_letters,
)

HERE = Path(__file__).resolve().parent


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

    `poison` is what the attackers' changes add to clair's mean, each by its weight there, `average
    poison` to the plain mean of everybody, both relative to the norm of the benign mean.
    """
    if t is None:
        return None
    cohort, sent, said = search.cohort, search.attack.sent(t), search.judge(t)
    size, goal, kind = cohort.mean.norm(), search.attack.goal, search.attack.family.kind
    count = len(sent) + len(cohort.benign)
    everybody = search.poison(sent, [1 / count] * len(sent))
    accepted = search.poison(sent, said.weights)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, required=True, help="pools are in DIR/pools, rows go to DIR"
    )
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
    facts = facts_of(given)
    (given.work / "adaptive.json").write_text(as_json(rows, facts))
    text = document(rows, facts)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "adaptive.md").write_text(text)


def facts_of(given: argparse.Namespace) -> str:
    """How the results were made."""
    shift = f" --shift {given.shift}" * bool(given.shift)
    return (
        f"`python -m benchmarks.adaptive --work DIR{shift}`; {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores; clair {__version__}, Python "
        f"{platform.python_version()}, torch {torch.__version__}."
    )


if __name__ == "__main__":
    main()
