"""Tables of theory.py's results."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.measures import table
from benchmarks.theory_records import (
    EXACT,
    Gain,
    Recovery,
    Results,
    Sets,
    Stability,
    breakdown,
    line,
)

WAYS = ("chosen", "known", "verdicts")


def as_markdown(results: Results, facts: str) -> str:
    """All tables, with what they show and what does not hold."""
    return f"""# Four claims on planted truth

{facts}

Delta_k = M + U C_k + H_k + E_k + S_k in every module, float64: ||M|| = 1, of rank 2; ||U C_k|| =
0.6; E_k is noise and H_k the client's own, both of full rank; S_k has rank 2: each its own subspace
(*random*), one foreign subspace for all (*colluding*), or one and the same S for all (*shift*). All
of it runs clair's own `decompose`, `judge`, `refit` and `refine_module`. *Decomposition*: what the
solver finds alone. *Verdicts*: M and U of the clients that the verdicts agree on, which is what
`clair detect` reports.

{recovery_section(results)}
{stability_section(results["stability"])}
{sets_section(results["sets"])}
{gain_section(results)}
## What does not hold

{LIMITS}
"""


def recovery_section(results: Results) -> str:
    """The claim on exact recovery: by contaminated share, shared rank, size of S and coverage."""
    return f"""\
## (a) Exact recovery

{_wrapped(recovery_text(results["recovery"]))}

![recovery](theory-recovery.png)

By contaminated share, means over the shared ranks that clair considers (at most 8 and at most (K -
1)/2): rank chosen by clair / no more offered than there is (`max_shared_rank`) / verdicts, shared
rank 2 only.

{recovery_table(results["recovery"])}

By shared rank s, contaminated shares below {breakdown(0.75):.0%}, rank chosen:

{ranks_table(results["recovery"])}

By ||S||, {_of(results["size"])}: decomposition / verdicts.

{size_table(results["size"])}

By the share of benign clients that vary in each direction of U, {_of(results["coverage"])}:

{coverage_table(results["coverage"])}
"""


def stability_section(records: list[Stability]) -> str:
    """The claim on stable recovery: errors by noise."""
    return f"""\
## (b) Stable recovery

{_wrapped(stability_text(records))}

![noise](theory-noise.png)

{stability_table(records)}
"""


def sets_section(records: list[Sets]) -> str:
    """The claim on the collaborative set: of the decomposition alone, and of the verdicts."""
    return f"""\
## (c) Recovery of the collaborative set

{_wrapped(sets_text(records))}

![sets](theory-sets.png)

Decomposition, exactly the benign clients, by separation:

{sets_table(records, judged=False)}

Verdicts, exactly the benign clients called benign, by size:

{sets_table(records, judged=True)}
"""


def gain_section(results: Results) -> str:
    """The claim on refinement: the error by the number of clients, and the best strength."""
    return f"""\
## (d) Refinement gain

{_wrapped(gain_text(results))}

![gain](theory-gain.png)

Root mean squared off-subspace error per entry in units of sigma, measured / predicted:

{gain_table(results["gain"])}

Strength of least error, measured / predicted 1 / (1 + (h / sigma)^2):

{strength_table(results["strength"])}
"""


LIMITS = """\
- **One common shift of more than 36 % of the clients.** M + U C_k with coefficients of two values
  is the same as M + S on some clients: which of the two it is, is a matter of definition. clair
  calls a direction shared when its participation ratio is 0.75 or more, and a shift of the share p
  has p (1 - p) / (1 - 3 p (1 - p)); the decomposition alone breaks down there. The verdicts do not,
  where S is material.
- **More directions than (K - 1)/2, or more than 8** are never offered: U is then incomplete.
- **A direction in which fewer than three quarters of the clients vary** does not count as shared; a
  lower `breadth` finds it, and lets colluders in sooner.
- **Separation from noise is not enough for the verdicts**: they ask for an S of about 0.7 to 0.8 of
  an update's norm, whatever the noise, because honest clients of real cohorts differ by less than
  that (docs/explanation/method.md, section 4). Below it S stays, and with it an error of M of at
  most the contaminated share times ||S||.
- **Half and more**: by nature. The error is then of the size of S.
- **Refinement at full strength harms** wherever the clients' own part is larger than their noise (h
  > sigma), with any number of clients; the best strength is 1 / (1 + (h / sigma)^2), and adapters
  alone do not tell h from sigma."""


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _of(records: list[Recovery]) -> str:
    plan = records[0].plan
    return f"{plan.contaminated} of {plan.clients} clients, shared rank {plan.rank}"


def offered(record: Recovery) -> bool:
    """Whether clair would consider so many shared directions."""
    return record.plan.rank <= min(8, (record.plan.clients - 1) // 2)


def recovery_text(records: list[Recovery]) -> str:
    """The largest error that is exact, the least that is not, and the rates by contaminated share."""
    seen = [r for r in records if offered(r)]
    below = [r for r in seen if _share(r) < breakdown(0.75)]
    minority = [r for r in seen if _share(r) < 0.5 and r.plan.kind != "shift"]
    half = [r for r in seen if _share(r) >= 0.5]
    exact = max(r.largest for r in records if r.largest is not None)
    failed = min(r.least for r in records if r.least is not None)
    return (
        f"Exact is an error of U and of M of at most {EXACT:g}; the largest that is exact is "
        f"{exact:.0e}, the least that is not {failed:.0e}. Exact among trials with less than "
        f"{breakdown(0.75):.1%} contaminated: {_rate(below)} with the rank chosen by the "
        "default rules, which choose the planted one in "
        f"{np.mean([r.ranks for r in below]):.1%}, and {_rate(below, 'known')} where no more is "
        f"offered. Random and colluding minorities of any size: {_rate(minority)} and "
        f"{_rate(minority, 'known')}, by verdicts {_rate(minority, 'verdicts')}. Half and more: "
        f"{_rate(half)}, by verdicts {_rate(half, 'verdicts')}."
    )


def _share(record: Recovery) -> float:
    return record.plan.contaminated / record.plan.clients


def _rate(records: Iterable[Recovery], way: str = "chosen") -> str:
    return f"{np.mean([r.rates[way] for r in records if way in r.rates]):.1%}"


def recovery_table(records: list[Recovery]) -> str:
    """A row for each K and kind, a column for each contaminated share."""
    shares = sorted({_share(r) for r in records})
    lines = []
    for clients, kind in dict.fromkeys((r.plan.clients, r.plan.kind) for r in records):
        cells = []
        for share in shares:
            these = [
                r
                for r in records
                if (r.plan.clients, r.plan.kind) == (clients, kind)
                and _share(r) == share
                and offered(r)
            ]
            rates = ([r.rates[w] for r in these if w in r.rates] for w in WAYS)
            cells.append(
                " / ".join(f"{np.mean(x):.2f}" if x else "-" for x in rates) if these else ""
            )
        lines.append([str(clients), kind, *cells])
    return table(["K", "S", *(f"{s:.0%}" for s in shares)], lines)


def ranks_table(records: list[Recovery]) -> str:
    """A row for each K, a column for each rank."""
    ranks = sorted({r.plan.rank for r in records})
    few = [r for r in records if _share(r) < breakdown(0.75)]
    lines = [
        [str(k), *(_rate(r for r in few if (r.plan.clients, r.plan.rank) == (k, s)) for s in ranks)]
        for k in sorted({r.plan.clients for r in few})
    ]
    return table(["K", *(f"s = {s}" for s in ranks)], lines)


def size_table(records: list[Recovery]) -> str:
    """A row for each kind, a column for each size."""
    sizes = list(dict.fromkeys(r.plan.size[0] for r in records))
    lines = [
        [kind]
        + [
            f"{r.rates['chosen']:.2f} / {r.rates['verdicts']:.2f}"
            for r in records
            if r.plan.kind == kind
        ]
        for kind in dict.fromkeys(r.plan.kind for r in records)
    ]
    return table(["S", *(f"{s:g}" for s in sizes)], lines)


def coverage_table(records: list[Recovery]) -> str:
    """A row for each setting of `breadth`."""
    lines = [[way, *(f"{r.rates[way]:.2f}" for r in records)] for way in records[0].rates]
    return table(["breadth", *(f"{r.plan.coverage:.0%}" for r in records)], lines)


def stability_text(records: list[Stability]) -> str:
    """Slopes over noise and over the number of clients, and how the decomposition alone does."""
    slopes = [s.slopes[0, 0] for s in records]
    random = [s for s in records if s.plan.kind == "random"]
    counts = np.array([float(s.plan.members.sum()) for s in random])
    slope, error = line(counts, np.array([s.settled[_law(s)][-1, 0] for s in random]))
    shift, others = (
        np.mean([s.members[_law(s)] for s in records if (s.plan.kind == "shift") == is_shift])
        for is_shift in (True, False)
    )
    law, noises = records[0].law, records[0].noises
    return (
        f"The error of U is proportional to the noise: slopes {min(slopes):.3f} to "
        f"{max(slopes):.3f} over ||E|| from {noises[0]:g} to {law:g}, and at {law:g} {slope:.2f} +- "
        f"{error:.2f} over the number of benign clients (predicted -1/2 for many). Three tenths of "
        "the clients are contaminated, ||S|| = 2, shared rank 2, one module. *Over predicted*: "
        "measured over sigma (sqrt(d_out - s) + sqrt(s)) / (c sqrt(n)), where c^2 is a client's "
        "energy in one direction. Slopes and errors are those of the verdicts' consensus. The "
        f"decomposition alone has exactly the benign in {others:.0%} of the trials up to noise "
        f"{law:g}, but with one common shift in {shift:.0%}; *members* gives the share at each noise "
        f"({', '.join(f'{n:g}' for n in noises)})."
    )


def _law(record: Stability) -> Any:
    return np.array(record.noises) <= record.law


def stability_table(records: list[Stability]) -> str:
    """A row for each K and kind."""
    lines = []
    for s in records:
        slopes = [f"{slope:.3f} +- {error:.3f}" for slope, error in s.slopes]
        errors = [f"{s.settled[-k, 0]:.2g}" for k in (3, 2, 1)]
        members = " ".join(f"{m:g}" for m in s.members)
        lines.append([str(s.plan.clients), s.plan.kind, *slopes, f"{s.edge:.2f}", *errors, members])
    last = [f"error of U at {n:g}" for n in records[0].noises[-3:]]
    return table(["K", "S", "slope U", "slope M", "over predicted", *last, "members"], lines)


def sets_table(records: list[Sets], judged: bool) -> str:
    """A row for each kind, noise and K, a column for each separation or size."""
    used = [r for r in records if (r.verdicts is not None) == judged]
    at: Callable[[Sets], float] = lambda r: round(r.over_update if judged else r.over_noise, 6)  # noqa: E731
    steps = sorted({at(r) for r in used})
    lines = []
    for kind, noise, clients in dict.fromkeys(map(_cohort, used)):
        these = {at(r): r for r in used if _cohort(r) == (kind, noise, clients)}
        cells = [f"{these[x].verdicts if judged else these[x].members:.2f}" for x in steps]
        lines.append([kind, f"{noise:g}", str(clients), *cells])
    return table(["S", "noise", "K", *(f"{x:g}" for x in steps)], lines)


def _cohort(record: Sets) -> tuple[str, float, int]:
    return record.plan.kind, record.plan.noise, record.plan.clients


def sets_text(records: list[Sets]) -> str:
    """From which separation, and from which size on, every trial is exact."""
    alone = [r for r in records if r.verdicts is None]
    judged = [r for r in records if r.verdicts is not None]
    apart = _always({(_cohort(r), r.over_noise): r.members for r in alone})
    large = _always({(_cohort(r), r.over_update): r.verdicts or 0.0 for r in judged})
    return (
        "A fifth of the clients is contaminated (1 of 5), 4 modules. *Separation* is ||S|| / "
        "||E||, *size* ||S|| over the norm of a benign update. The decomposition counts "
        "clients as members up to three times the usual residual, so sqrt(8) = 2.8 is the "
        f"separation it needs with many clients; it is exact in all trials from {apart} on. The "
        f"verdicts are from a size of {large} on, with any noise."
    )


def _always(rates: dict[tuple[tuple[str, float, int], float], float]) -> str:
    """The least step from which on every rate is 1, the range over cohorts."""
    found = []
    for cohort in {c for c, _ in rates}:
        steps = sorted((x, rate) for (c, x), rate in rates.items() if c == cohort)
        short = [n for n, (_, rate) in enumerate(steps) if rate < 1]
        first = max(short, default=-1) + 1
        found.append(steps[first][0] if first < len(steps) else float("inf"))
    low, high = min(found), max(found)
    most = f"{high:.1f}" if np.isfinite(high) else f"more than {max(x for _, x in rates):.1f}"
    return f"{low:.1f} to {most}"


def gain_text(results: Results) -> str:
    """The slope, the agreement with the prediction, and the crossover."""
    gains: list[Gain] = results["gain"]
    alone = [g for g in gains if g.ratio == 0]
    counts = np.array([g.clients for g in alone], float)
    slope, error = line(counts, np.sqrt([g.refined for g in alone]))
    off = [abs(g.refined / g.predicted - 1) for g in gains]
    crossed = ", ".join(f"{at:.4f} +- {se:.4f} (n = {n})" for n, at, se in results["crossover"])
    return (
        "With h = 0 the refined error falls with the number n of benign clients, log-log slope "
        f"{slope:.3f} +- {error:.3f} (predicted -1/2); with h > 0 it levels off at h. Squared "
        f"errors are as predicted within {max(off):.1%}, {np.median(off):.1%} in the median. "
        f"Refined and local errors are equal at h / sigma = {crossed}; predicted: 1, whatever n."
    )


def gain_table(gains: list[Gain]) -> str:
    """A row for each n, a column for each h / sigma."""
    ratios = list(dict.fromkeys(g.ratio for g in gains))
    lines = [
        [str(n)]
        + [f"{g.refined**0.5:.3f} / {g.predicted**0.5:.3f}" for g in gains if g.clients == n]
        for n in dict.fromkeys(g.clients for g in gains)
    ]
    return table(["n", *(f"h = {r:g} sigma" for r in ratios)], lines)


def strength_table(found: Sequence[tuple[int, float, float]]) -> str:
    """A row for each n, a column for each h / sigma."""
    ratios = list(dict.fromkeys(ratio for _, ratio, _ in found))
    lines = [
        [str(n), *(f"{t:.3f} / {1 / (1 + r * r):.3f}" for count, r, t in found if count == n)]
        for n in dict.fromkeys(n for n, _, _ in found)
    ]
    return table(["n", *(f"h = {r:g} sigma" for r in ratios)], lines)
