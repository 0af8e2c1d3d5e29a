"""The clients that can be compared: of one base model, on modules that all have with one shape."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from clair_cli.cohort.records import (
    SKETCH_SIZE,
    Adapter,
    Answer,
    Broken,
    Cohort,
    Entries,
    Start,
    UpdateSpec,
    natural_key,
    once,
    set_aside,
    votes,
)
from clair_cli.cohort.since import not_from_sent, not_sent
from clair_cli.cohort.whole import align_full, few
from clair_cli.errors import SketchUnusable
from clair_cli.report import Reason
from clair_cli.settings import MIN_CLIENTS

Checked = tuple[list[Broken], list[Reason]]
"""Who is set aside, and remarks on the rest."""
Check = Callable[[list[Adapter]], Checked]


def align(
    entries: Entries, min_shared: float = 0.5, same: bool = False, bases: bool = True
) -> Cohort:
    """Choose what is compared: clients of one base model, on the modules that all of them have.

    A client that cannot have been trained from what it was sent (CLR123), of another base model
    (CLR106), with another shape (CLR104), or sharing less than `min_shared` of the modules most clients
    have (CLR107) is set aside as broken; with `same` also one that has any module less or more than they
    do. Without `bases` the name of the base says nothing to other clients.
    """
    clients = sorted(entries.adapters, key=lambda a: natural_key(a.client))
    strangers = not_from_sent(clients, min_shared)
    broken, findings = [*entries.broken, *strangers], list(entries.findings)
    clients = _without(clients, strangers)
    alike = partial(_other_modules, min_shared=min_shared, same=same)
    checks: tuple[Check, ...] = (_other_sketch, _other_shape, _other_start, alike)
    for check in (_other_base, *checks) if bases else checks:
        bad, remarks = check(clients)
        broken += bad
        findings += remarks
        clients = _without(clients, bad)
    findings += _several_groups(len(entries.adapters) - len(strangers) - len(clients))
    shared = set.intersection(*(set(a.updates) for a in clients)) if clients else set()
    findings += [*_partial_overlap(clients, shared), *_other_traits(clients)]
    modules = tuple(sorted(shared, key=natural_key))
    first = clients[0].updates if clients else {}
    shapes = {m: (first[m].d_out, first[m].d_in) for m in modules}
    full, clients, remarks = align_full(clients)
    findings += [*remarks, *not_sent(clients, modules, full)]
    return Cohort(tuple(clients), modules, shapes, tuple(broken), tuple(findings), full)


def _without(clients: list[Adapter], broken: list[Broken]) -> list[Adapter]:
    gone = {b.client for b in broken}
    return [a for a in clients if a.client not in gone]


def base_name(base: str) -> str:
    """The last part of a model id or path: honest clients keep one model under different roots."""
    return re.split(r"[\\/]", base.rstrip("\\/"))[-1].casefold()


def _base(adapter: Adapter) -> str:
    return base_name(adapter.base or "")


def _other_base(clients: list[Adapter]) -> Checked:
    speaking = [a for a in clients if a.base]
    bases = votes(speaking, _base).most_common()
    if len(bases) < 2:
        return [], []
    (base, most), voters = bases[0], sum(n for _, n in bases)
    if 2 * most <= voters:
        said = few([f"{base!r} ({n} of {voters} clients)" for base, n in bases])
        text = f"no base model is that of most clients: {said}; compared on shapes alone"
        return [], [Reason("CLR106", f"{text}: judge each base by itself with --group-by base")]
    return [
        set_aside(
            a,
            Reason(
                "CLR106",
                f"its base model is {a.base!r}, but {most} of {voters} clients "
                f"use {base!r}; retrain on that base or leave this client out",
            ),
        )
        for a in speaking
        if _base(a) != base
    ], []


def without_sketches(entries: Entries) -> Entries:
    """The same, where whole updates are to be compared: sketches are set aside as broken."""
    text = "is a sketch, and --exact and --since need whole updates; give the adapter itself"
    gone = [a for a in entries.adapters if a.sketch is not None]
    broken = [set_aside(a, Reason(SketchUnusable.code, text)) for a in gone]
    kept = tuple(a for a in entries.adapters if a.sketch is None)
    return replace(entries, adapters=kept, broken=(*entries.broken, *broken))


def _other_sketch(clients: list[Adapter]) -> Checked:
    """Sketches of another kind than most: nothing can be said of two kinds together.

    Small ones are set aside, unless most clients are such: a few would have everybody compared as
    coarsely.
    """
    coarse = [a for a in clients if a.sketch is not None and a.sketch.size < SKETCH_SIZE]
    better = f"and most clients are known better; sketch it again with --size {SKETCH_SIZE}"
    broken = _unlike(coarse, better) if 2 * len(coarse) <= len(clients) else []
    sketches = [a for a in _without(clients, broken) if a.sketch is not None]
    kinds = votes(sketches, lambda a: a.sketch).most_common()
    if not kinds:
        return broken, []
    (usual, most), voters = kinds[0], sum(n for _, n in kinds)
    text = f"but {most} of {voters} sketches have {usual}; sketch it again like these"
    broken += _unlike([a for a in sketches if a.sketch != usual], text)
    if 2 * len(sketches) > len(clients):
        return broken, []
    alike = few([a.client for a in sketches if a.sketch == usual])
    said = f"all are compared by sketches of {usual}, for the sake of {alike}"
    return broken, [Reason("CLR304", f"{said}; --exact sets sketches aside")]


def _unlike(sketches: list[Adapter], why: str) -> list[Broken]:
    return [
        set_aside(a, Reason(SketchUnusable.code, f"its sketch has {a.sketch}, {why}"))
        for a in sketches
    ]


def _other_shape(clients: list[Adapter]) -> Checked:
    usual = _usual(clients, _shape)
    broken = []
    for adapter in clients:
        for module, spec in adapter.updates.items():
            if _shape(module, adapter) != usual[module]:
                text = (
                    f"{adapter.tensors[spec.file_key].file}: {module!r} is {spec.d_out} x {spec.d_in}, "
                    f"in the other clients {usual[module][0]} x {usual[module][1]}; "
                    "was it trained on another base model?"
                )
                broken.append(set_aside(adapter, Reason("CLR104", text)))
                break
    return broken, []


def _other_start(clients: list[Adapter]) -> Checked:
    """Differences mean something where the part that clients share is the same."""
    usual = _usual(clients, _began)
    broken = []
    for adapter in clients:
        for module in adapter.updates:
            own, most = _began(module, adapter), usual[module]
            if own != most and (own[0] or most[0]):
                text = (
                    f"{module!r} began otherwise than in most clients ({_start(own)}, not "
                    f"{_start(most)}): their difference is no difference of training; "
                    "leave this client out"
                )
                broken.append(set_aside(adapter, Reason("CLR104", text)))
                break
    return broken, []


def _usual(clients: list[Adapter], said: Callable[[str, Adapter], Answer]) -> dict[str, Answer]:
    """What most say of each module that anybody has."""
    having: dict[str, list[Adapter]] = {}
    for adapter in clients:
        for module in adapter.updates:
            having.setdefault(module, []).append(adapter)
    return {m: votes(who, partial(said, m)).most_common(1)[0][0] for m, who in having.items()}


def _shape(module: str, adapter: Adapter) -> tuple[int, int]:
    spec = adapter.updates[module]
    return spec.d_out, spec.d_in


def _began(module: str, adapter: Adapter) -> tuple[str, int, float]:
    spec = adapter.updates[module]
    return _init(adapter, spec), spec.rank, spec.scale


def _init(adapter: Adapter, spec: UpdateSpec) -> str:
    """What the update started from, by name; empty where that is nothing."""
    if spec.start is Start.MAGNITUDE:
        return "DoRA"
    return "" if spec.absolute else adapter.traits["init"]


def _start(found: tuple[str, int, float]) -> str:
    return f"{found[0] or 'no base-changing init'}, rank {found[1]}, scale {found[2]:g}"


def _other_modules(clients: list[Adapter], min_shared: float, same: bool) -> Checked:
    voters = once(clients)
    count = Counter(m for a in voters for m in a.updates)
    usual = {m for m, c in count.items() if 2 * c > len(voters)}
    broken = []
    for adapter in clients:
        missing = sorted(usual - set(adapter.updates), key=natural_key)
        extra = sorted(set(adapter.updates) - usual, key=natural_key)
        if same and usual and (missing or extra):
            odd = [*(f"{m!r} is missing" for m in missing), *(f"{m!r} is extra" for m in extra)]
            text = (
                f"adapts other modules than most clients ({odd[0]}, {len(odd)} in all); train it with "
                "their target_modules, or compare with --modules shared"
            )
            broken.append(set_aside(adapter, Reason("CLR107", text)))
        elif usual and len(missing) > (1 - min_shared) * len(usual):
            text = (
                f"adapts {len(usual) - len(missing)} of the {len(usual)} modules the other clients "
                f"share (missing {missing[0]!r}); too little to compare"
            )
            broken.append(set_aside(adapter, Reason("CLR107", text)))
    return broken, []


def _several_groups(aside: int) -> list[Reason]:
    """Enough clients that are unlike the others to be a cohort by themselves."""
    if aside < MIN_CLIENTS:
        return []
    text = f"{aside} clients can be read, and not be compared with the others"
    return [
        Reason("CLR304", f"{text}; are there several bases? --group-by base judges each by itself")
    ]


def _other_traits(clients: list[Adapter]) -> list[Reason]:
    """Who differs in how the updates were parametrised: compared all the same, as products."""
    findings = []
    kinds = {"format": {a.client: a.format for a in clients if a.sketch is None}}
    for trait in sorted({t for a in clients for t in a.traits}):
        kinds[trait] = {a.client: a.traits[trait] for a in clients if trait in a.traits}
    for trait, said in kinds.items():
        count = Counter(said.values())
        if len(count) > 1:
            usual, votes = count.most_common(1)[0]
            odd = [f"{c} ({value})" for c, value in said.items() if value != usual]
            most = "most" if 2 * votes > len(said) else f"{votes} of {len(said)}"
            text = f"{trait} differs between clients: {usual} in {most}, not in {few(odd)}"
            findings.append(Reason("CLR304", f"{text}; updates are compared as products"))
    return findings


def _partial_overlap(clients: list[Adapter], shared: set[str]) -> list[Reason]:
    findings = []
    union = {m for a in clients for m in a.updates}
    if union - shared:
        usual = Counter(frozenset(a.updates) for a in clients).most_common(1)[0][0]
        odd = [a.client for a in clients if set(a.updates) != usual]
        text = (
            f"clients adapt different modules: compared on the {len(shared)} of {len(union)} that all "
            "share, and the others are not judged; "
            f"unlike most: {few(odd)}"
        )
        findings.append(Reason("CLR304", text))
    ranks = {s.rank for a in clients for m, s in a.updates.items() if m in shared}
    if any(len({a.updates[m].rank for a in clients}) > 1 for m in shared):
        text = f"ranks differ between clients ({min(ranks)} to {max(ranks)}); updates are compared"
        findings.append(Reason("CLR304", text + " as products, which is exact"))
    return findings
