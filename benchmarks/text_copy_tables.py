"""The tables and the picture of text_copy.py. Pure functions of its rows, one per cohort.

A row has `regime`, `init`, `kind`, `seed`, `bad` (contaminated clients) and `methods`: name ->
`losses` and `accuracies` of the benign clients, and where it applies `seconds`, `flagged` and `right`
(clients called contaminated, and how many of them are), `left_out` (benign clients not refined).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measures import INITS, median, shown, table
from benchmarks.pictures import COLOURS, STYLE, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
Measure = Callable[[Row, str], float]
REGIMES = {
    "family n24": "a family of 3 swaps, 24 samples",
    "none n16": "identical tasks, 16 samples",
    "personal n48": "2 swaps each, 48 samples",
    "family n8": "a family of 3 swaps, 8 samples",
    "none n8": "identical tasks, 8 samples",
    "personal n8": "2 swaps each, 8 samples",
}
METHODS = (
    *("base model", "local", "FedAvg of factors", "FedAvg of Delta W", "stacking (FLoRA)"),
    *("PEFT svd merge", "Krum", "Multi-Krum", "coordinate median", "trimmed mean"),
    *("geometric median", "NNM + trimmed mean", "FedAvg of the benign"),
    *("clair global", "clair global, replicates", "clair refined", "clair refined, replicates"),
    "clair chosen",
)
TOLD = {"Krum", "Multi-Krum", "trimmed mean", "NNM + trimmed mean"}
"""They are told how many clients are contaminated; who they are is told to FedAvg of the benign."""
TARGETS = (
    ("clair refined", "family", 0.80),
    ("clair refined", "none", 0.65),
    ("clair refined", "personal", 1.03),
    ("clair chosen", "family", 0.80),
    ("clair chosen", "none", 0.65),
    ("clair chosen", "personal", 1.03),
    ("clair refined, replicates", "none", 0.35),
    ("clair refined, replicates", "personal", 1.00),
)
"""Method, honest heterogeneity, the most that its loss relative to local may be."""


# Of one cohort and one method


def loss(row: Row, method: str) -> float:
    """Mean over the benign clients, nats per token."""
    return float(np.mean(row["methods"][method]["losses"]))


def accuracy(row: Row, method: str) -> float:
    """Mean over the benign clients, share of tokens."""
    return float(np.mean(row["methods"][method]["accuracies"]))


def worst(row: Row, method: str) -> float:
    """The loss of the benign client that has the highest."""
    return float(np.max(row["methods"][method]["losses"]))


def relative(row: Row, method: str) -> float:
    """The mean loss over that of the local adapters."""
    return loss(row, method) / loss(row, "local")


# Of many cohorts


def chosen(rows: Iterable[Row], **wanted: str) -> list[Row]:
    """The rows whose fields are as wanted."""
    return [r for r in rows if all(r[field] == value for field, value in wanted.items())]


def with_method(rows: Iterable[Row], method: str) -> list[Row]:
    """The rows that have a method: without a verdict there is no global adapter."""
    return [r for r in rows if method in r["methods"]]


def over_seeds(rows: list[Row], method: str, measure: Measure) -> tuple[float, float | None]:
    """Mean over the seeds, of the mean over a seed's cohorts, and its standard error; None of one."""
    by_seed: dict[int, list[float]] = {}
    for row in with_method(rows, method):
        by_seed.setdefault(row["seed"], []).append(measure(row, method))
    means = [np.mean(values) for values in by_seed.values()]
    error = float(np.std(means, ddof=1)) / len(means) ** 0.5 if len(means) > 1 else None
    return float(np.mean(means)), error


def detection(rows: list[Row], method: str) -> tuple[float | None, float | None]:
    """Precision and recall over all clients of the rows; None of nobody flagged, of no such method."""
    said = [(r["bad"], r["methods"][method]) for r in with_method(rows, method)]
    if any("flagged" not in s for _, s in said):
        return None, None
    bad, flagged, right = (
        sum(numbers)
        for numbers in zip(*((b, s["flagged"], s["right"]) for b, s in said), strict=True)
    )
    return right / flagged if flagged else None, right / bad


# Tables


def as_markdown(rows: list[Row], facts: dict[str, str], picture: str) -> str:
    """Everything."""
    seeds = len({r["seed"] for r in rows})
    return f"""# Text copying: {len(rows)} cohorts of 20 clients, {seeds} seeds

`{facts["command"]}`, on {facts["machine"]}; {facts["versions"]}.

14 benign and 6 contaminated clients fine-tune one small Transformer with LoRA of rank 8; all start from
one A (shared init) or each from its own. Benign clients learn one common map with swaps of letters on
top: a subset of a family of 3, none, or 2 of their own. 8 samples of a client do not teach its task;
16 and more do: its adapter is right nearly everywhere, and loss compares confidence.
Loss (nats per token) and token accuracy are those of all 14 benign clients, each on 256 fresh samples of
its own task, mean +- standard error over the seeds; *worst*: the client with the highest loss;
*relative*: the loss over that of the local adapters, cohort by cohort; *precision*, *recall*: clients
called contaminated against those that are, all cohorts together; *left out*: benign clients per cohort
that get no refined adapter; they keep, and are counted with, their own. Seconds: median, clair's with
the start of its process, the others' within a running one.

Methods with * are told that six clients are contaminated; FedAvg of the benign is told which, as no
server is. Robust rules see the exact Delta W. Stacking all factors with weights 1/K is the exact mean of
Delta W: relative difference at most {stacking_off(rows):.0e}. clair is told nothing: `clair refine DIR
--out OUT --global`; with *replicates* every client's folder also holds two adapters trained on the
halves of its samples; *chosen* is `--path 0,0.25,0.5,0.75,1,auto` and the best for each client on eight
validation samples of its own, as `clair select` does.

![loss relative to local]({picture})

## Targets

Loss of the refined adapters relative to local.

{targets(rows)}

{all_regimes(rows)}

## By contamination: loss relative to local

{by_kind(rows)}

## By contamination: clair's verdicts

{verdicts(rows)}

## By contamination: everything

{everything(rows)}
"""


def main_regime(rows: list[Row]) -> str:
    """The regime that meets most kinds of contamination."""
    return max(REGIMES, key=lambda r: len({row["kind"] for row in chosen(rows, regime=r)}))


def stacking_off(rows: list[Row]) -> float:
    """The largest relative difference between the stacked adapter and the mean of Delta W."""
    return max(float(r["methods"]["stacking (FLoRA)"]["off"]) for r in rows)


def targets(rows: list[Row]) -> str:
    """Each target, and whether both inits meet it."""
    lines = []
    for (method, kind, limit), regime in product(TARGETS, REGIMES):
        if regime.startswith(kind) and chosen(rows, regime=regime):
            parts = [chosen(rows, regime=regime, init=init) for init in INITS]
            cells = [
                met(over_seeds(part, method, relative), limit) if part else "-" for part in parts
            ]
            lines.append([method, REGIMES[regime], f"<= {limit:.2f}", *cells])
    return table(["method", "benign clients", "wanted", *(f"{i} init" for i in INITS)], lines)


def met(said: tuple[float, float | None], limit: float) -> str:
    """A value, and whether it keeps to the limit."""
    return f"{plus_minus(said)} {'yes' if said[0] <= limit else '**no**'}"


def all_regimes(rows: list[Row]) -> str:
    """A full table for each regime and init, all kinds of contamination together."""
    parts = []
    for regime, name in REGIMES.items():
        for init in INITS:
            these = chosen(rows, regime=regime, init=init)
            if these:
                kinds = ", ".join(dict.fromkeys(r["kind"] for r in these))
                parts += [f"## Benign clients: {name}, {init} init", f"Contamination: {kinds}."]
                parts.append(full(these))
    return "\n\n".join(parts)


def full(rows: list[Row]) -> str:
    """Every method and every column."""
    head = ["method", "loss", "token accuracy", "worst", "relative", "precision", "recall"]
    return table([*head, "left out", "seconds"], [line(rows, m) for m in present(rows)])


def present(rows: list[Row]) -> list[str]:
    """The methods that there are."""
    return [m for m in METHODS if with_method(rows, m)]


def line(rows: list[Row], method: str) -> list[str]:
    """A method's cells."""
    said = [r["methods"][method] for r in with_method(rows, method)]
    left = [s["left_out"] for s in said if "left_out" in s]
    return [
        method + " *" * (method in TOLD),
        *(plus_minus(over_seeds(rows, method, m)) for m in (loss, accuracy)),
        shown(over_seeds(rows, method, worst)[0]),
        plus_minus(over_seeds(rows, method, relative)),
        *(shown(value) for value in detection(rows, method)),
        shown(float(np.mean(left)) if left else None, 2),
        shown(median(s.get("seconds") for s in said), 2),
    ]


def plus_minus(said: tuple[float, float | None]) -> str:
    """Mean and standard error."""
    mean, error = said
    return f"{mean:.3f}" + (f" +- {error:.3f}" if error is not None else "")


def by_kind(rows: list[Row]) -> str:
    """Of the regime that has all kinds: method by kind."""
    parts = []
    for init in INITS:
        these = chosen(rows, regime=main_regime(rows), init=init)
        kinds = list(dict.fromkeys(r["kind"] for r in these))
        lines = [
            [m, *(shown(over_seeds(chosen(these, kind=k), m, relative)[0], 2) for k in kinds)]
            for m in present(these)
        ]
        parts.append(
            f"Benign clients: {REGIMES[main_regime(rows)]}, {init} init:\n\n"
            + table(["method", *kinds], lines)
        )
    return "\n\n".join(parts)


def verdicts(rows: list[Row]) -> str:
    """Precision and recall of clair and of Multi-Krum, by regime, init and kind."""
    lines = []
    for regime in REGIMES:
        for init in INITS:
            part = chosen(rows, regime=regime, init=init)
            for kind in dict.fromkeys(r["kind"] for r in part):
                these = chosen(part, kind=kind)
                own, krum = (detection(these, m) for m in ("clair refined", "Multi-Krum"))
                left = np.mean([r["methods"]["clair refined"]["left_out"] for r in these])
                cells = [*map(shown, own), f"{left:.2f}", *map(shown, krum)]
                lines.append([REGIMES[regime], init, kind, *cells])
    head = ["precision", "recall", "benign left out", "Multi-Krum * precision", "recall"]
    return table(["benign clients", "init", "contamination", *head], lines)


def everything(rows: list[Row]) -> str:
    """A full table for each init and kind of the regime that has several."""
    parts = []
    for init in INITS:
        these = chosen(rows, regime=main_regime(rows), init=init)
        for kind in dict.fromkeys(r["kind"] for r in these):
            parts.append(f"### {kind}: {REGIMES[main_regime(rows)]}, {init} init")
            parts.append(full(chosen(these, kind=kind)))
    return "\n\n".join(parts)


# Picture


def draw(rows: list[Row], path: Path) -> None:
    """Loss relative to local by method: a panel for each regime, a bar for each init."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    regimes = [r for r in REGIMES if chosen(rows, regime=r)]
    methods = [m for m in present(rows) if m not in ("base model", "local", "stacking (FLoRA)")]
    columns = min(3, len(regimes))
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            -(-len(regimes) // columns),
            columns,
            figsize=(3 + 3 * columns, 0.6 + 4.4 * -(-len(regimes) // columns)),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, regime in zip(axes.flat, regimes, strict=False):
            bars(axis, chosen(rows, regime=regime), methods)
            axis.set_title(REGIMES[regime])
        for axis in axes[-1]:
            axis.set_xlabel("loss over that of the local adapters")
        for axis in axes.flat[len(regimes) :]:
            axis.set_visible(False)
        axes[0][0].set_yticks(range(len(methods)), [m + " *" * (m in TOLD) for m in methods])
        axes[0][0].invert_yaxis()
        axes[0][-1].legend(frameon=False, loc="lower right")
        save(figure, path)


def bars(axis: Axes, rows: list[Row], methods: list[str]) -> None:
    """Two bars for each method with standard errors, and the line of the local adapters."""
    for number, init in enumerate(INITS):
        these = chosen(rows, init=init)
        if not these:
            continue
        said = [over_seeds(these, m, relative) for m in methods]
        heights = np.arange(len(methods)) + 0.4 * (number - 0.5)
        means, errors = [mean for mean, _ in said], [error or 0 for _, error in said]
        style = {"height": 0.38, "color": COLOURS[init], "error_kw": {"lw": 0.8}}
        axis.barh(
            heights, [m - 1 for m in means], left=1, xerr=errors, label=f"{init} init", **style
        )
        for height, mean, error in zip(heights, means, errors, strict=True):
            axis.text(max(mean + error, 1) * 1.1, height, f"{mean:.2f}", va="center", size=6)
    axis.set_xscale("log")
    axis.axvline(1, color="black", lw=0.8)
