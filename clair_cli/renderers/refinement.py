"""What refine did, in sentences: how far clients were moved, what was written, and who was not."""

from __future__ import annotations

from clair_cli.refined import DATA_POOR, Refinement
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import few, many, percent, share, span
from clair_cli.report import Report

OWN = {
    "own": "each client's own directions",
    "left": "the output directions that all share",
    "right": "the input directions that all share",
    "client": "the combinations of clients that stay",
}
"""Where a client keeps more of its own, by `side`."""
WAYS = {0.5: "half-way", 1.0: "all the way"}
NOTHING = 1e-5
"""A truncation error that rounding alone can make."""


def sentences(report: Report, verbose: bool) -> list[str]:
    """Lines on the refinement, none where there is none; `verbose` adds the numbers and all names."""
    done = report.refinement
    if done is None:
        return []
    names = {c.client for c in done.clients}
    path = report.settings.get("path") or []
    lines = [f"refined {many(len(names), 'client')}: {_candidates(path) if path else _moved(done)}"]
    if verbose and not path:
        lines.append(_numbers(done))
    lines.append(_written(done))
    lines += _mean(done)
    if apart := sorted({c.group for c in done.clients if c.group}):
        lines.append(f"{many(len(apart), 'minority', 'minorities')} refined within itself")
    lines += [f"note: {safe_text(w)}" for w in done.warnings]
    if same := sum(c.unchanged for c in done.clients):
        lines.append(f"{same} of {len(done.clients)} written as they were, byte for byte")
    renamed = [c for c in done.clients if c.client != c.path.rpartition("/")[2]]
    lines += [f"{safe_text(c.client)} is in {safe_text(c.path)}/" for c in renamed]
    return lines + _receiving(report, done, verbose) + _not_refined(report, names, verbose)


def _candidates(path: list[float | str]) -> str:
    listed = ", ".join(safe_text(p) if isinstance(p, str) else f"{p:.6g}" for p in path)
    return f"a folder for each of the strengths {listed}; choose with clair select"


def _moved(done: Refinement) -> str:
    """How far towards the mean, what that takes away, and what was known of the noise in it."""
    if not done.strength and not done.inside:
        return "kept as they are"
    way = WAYS.get(done.strength, f"{share(done.strength)} of the way")
    kept = OWN.get(done.side or "own", OWN["own"]) if any(done.subspace_ranks) else ""
    if done.inside and kept and share(done.inside) != share(done.strength):
        way_inside = f" ({share(done.inside)} in {kept})"
    else:
        way_inside = "" if done.inside or not kept else f" (but not in {kept})"
    parts = [f"moved {way} to the group's mean{way_inside}"]
    parts.append(f"{percent(done.averaged_away)} of the differences removed")
    if done.knowledge == "adapters alone":
        parts.append("no replicates to say how much was noise")
    elif done.knowledge is not None and done.expected and done.expected.noise is not None:
        parts.append(f"by the replicates {percent(done.expected.noise)} of them was noise")
    elif done.knowledge is not None:
        parts.append(f"known from {safe_text(done.knowledge)}")
    return "; ".join(parts)


def _numbers(done: Refinement) -> str:
    inside = "" if done.inside is None else f", {done.inside:.2g} in the kept directions"
    gain = f", mean times {1 + done.gain:.2f}" if done.gain else ""
    return (
        f"in numbers: strength {done.strength:.2g}{inside}, "
        f"{span(done.subspace_ranks)} directions kept per module{gain}"
    )


def _written(done: Refinement) -> str:
    lost = max((c.truncation_error for c in done.clients), default=0.0)
    cut = "nothing" if lost < NOTHING else f"at most {percent(lost)} of an adapter"
    served = f"; serve with --max-lora-rank {done.max_lora_rank}" if done.max_lora_rank else ""
    return f"written at the ranks asked for, which cuts off {cut}{served}"


def _mean(done: Refinement) -> list[str]:
    """The rank of the global adapter, and what the cut to it costs."""
    if done.mean is None or done.mean.rank is None:
        return []
    lost = done.mean.truncation_error or 0.0
    cut = "nothing" if lost < NOTHING else f"{percent(lost)} of it"
    where = f"the group's mean is in {safe_text(done.mean.path)}/"
    return [f"{where}, at rank {done.mean.rank}, which cuts off {cut}"]


def _receiving(report: Report, done: Refinement, verbose: bool) -> list[str]:
    """Suspicious clients that got an adapter unasked, because all that is odd is what is missing."""
    asked = {*(report.settings.get("include") or ())}
    got = {c.client for c in done.clients if not c.weight} - asked
    odd = [c for c in report.clients if c.verdict == "suspicious" and c.client in got]
    poor = [safe_text(c.client) for c in odd if c.cause is not None and c.cause.kind in DATA_POOR]
    if not poor or report.settings.get("refine_suspicious"):
        return []
    names = ", ".join(poor) if verbose else few(poor)
    gets, counts, it = ("gets", "counts", "it") if len(poor) == 1 else ("get", "count", "them")
    what = f"{gets} an adapter, and {counts} in no mean"
    return [f"suspicious, and alike with little data: {names} {what}; --exclude leaves {it} out"]


def _not_refined(report: Report, refined: set[str], verbose: bool) -> list[str]:
    """Suspicious clients that got no adapter, and the option that would have given them one."""
    excluded = report.settings.get("exclude") or ()
    left = [
        safe_text(c.client)
        for c in report.clients
        if c.verdict == "suspicious" and c.client not in {*refined, *excluded}
    ]
    if not left:
        return []
    names = ", ".join(left) if verbose else few(left)
    them = "it" if len(left) == 1 else "them"
    return [f"not refined, because suspicious: {names}; --refine-suspicious refines {them}, too"]
