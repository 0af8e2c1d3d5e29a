"""Reports made by hand, with one of everything in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clair_cli.baseline import Earlier, against
from clair_cli.records import decode
from clair_cli.refined import Refinement
from clair_cli.report import (
    Consensus,
    ModuleFinding,
    ModuleSummary,
    Population,
    Rarity,
    Rate,
    Reason,
    Report,
    SolverRun,
    Verdict,
    gated,
)

MODULES = ("layers.0.q_proj", "layers.1.q_proj")
SHA = "0123456789abcdef" * 4
HOSTILE = "\x1b[31mred\x1b[0m [/bold] \u202eevil\r\n\x7f\x9b2J\udcff"
"""Escapes, markup, bidi, line ends, DEL, C1, a lone surrogate: nothing for a terminal to see."""


def client(name: str, verdict: Any, score: float | None, *reasons: Reason) -> Verdict:
    """A verdict with a line per module where there is a score."""
    modules = [ModuleFinding(m, 0.1 * i, 1 / 3, score or 0.0) for i, m in enumerate(MODULES)]
    return Verdict(
        name,
        verdict,
        score,
        score and 3.0,
        reasons=reasons,
        modules=tuple(modules if score else ()),
        stability=score and 0.25,
        depends_on=("client-2", "client-10") if verdict == "contaminated" else (),
        rarity=rarity(score) if score else None,
    )


def rarity(score: float) -> Rarity:
    """None of 4508 from 3 on, else as many as a made-up benchmark has."""
    even, uneven = (0, 0) if score >= 3 else (2, 3) if score >= 2 else (400, 600)
    most = None if even else 3 / 4508
    return Rarity(even + uneven, 4508, most, Rate(even, 2000), Rate(uneven, 2508))


CLIENTS = (
    client("client-1", "benign", 0.4),
    client("client-2", "benign", 1.23456789012),
    client("client-3", "suspicious", 2.0, Reason("CLR205", "identical to client-2; counted once")),
    client(
        "client-4",
        "contaminated",
        9.8,
        Reason("CLR203", "direction opposite to the consensus", -1 / 3, 0.55),
        Reason("CLR208", "agrees with client-5 rather than with the majority"),
    ),
    client("client-5", "contaminated", 100.0, Reason("CLR206", "update is exactly zero", 0.0)),
    client("client-6", "benign", 0.9, Reason("CLR109", "a.bin: a pickle file beside, not opened")),
    client("client-10", "broken", None, Reason("CLR102", "a.safetensors: tensor 'x' is cut off")),
)
REFINEMENT = {
    "strength": 0.5,
    "inside": 0.21,
    "side": "own",
    "gain": 1 / 9,
    "knowledge": "adapters alone",
    "averaged_away": 0.24,
    "subspace_ranks": [2, 8],
    "initialisation": "shared",
    "common_share": 0.4,
    "spread": 0.09,
    "spectrum": [0.7, 0.3],
    "gap": 7 / 3,
    "gap_after": 1,
    "expected": {
        "gain_if_noise": 0.37,
        "loss_if_difference": 0.53,
        "break_even": 0.59,
        "noise": None,
        "gain": None,
    },
    "modules": [
        {"name": m, "subspace_rank": 2 + 17 / 3 * i, "spectrum": [0.75, 2 / 9]}
        for i, m in enumerate(MODULES)
    ],
    "clients": [
        {"id": f"client-{i}", "path": f"client-{i}", "rank": 8}
        | {"truncation_error": 1e-7 / 3, "change": 0.3 * (i != 6), "strength": 0.5}
        | {"weight": 1 / 3, "deviation": 0.7, "averaged_away": 0.4 * (i != 6)}
        | {"unchanged": i == 6}
        for i in (1, 2, 6)
    ],
    "global": {"path": "global", "template": "client-1", "truncation_error": 0.1},
    "warnings": ["the rank written cuts off much of the change"],
}
CONSENSUS = Consensus(
    clients=4,
    initialisation="independent",
    row_overlap=1 / 6,
    agreement=0.31,
    spread=0.2,
    common=0.4,
    explained=2 / 3,
    margin=7.8,
)
ENVIRONMENT = {
    "python": "3.12.1",
    "system": "Linux x86_64",
    "torch": "2.9.0",
    "threads": 1,
    "device": "cpu",
}
COMPLETE = gated(
    Report(
        tool={"name": "clair", "version": "0.0.0"},
        run={
            "started_at": "2025-01-02T03:04:05+00:00",
            "duration_s": 3.14159265358979,
            "command": "clair refine round-12 --out 'a b'",
            "environment": ENVIRONMENT,
        },
        inputs={
            "root": "round-12",
            "clients": [
                {"id": c.client, "files": [{"name": "a.safetensors", "size": 8, "sha256": SHA}]}
                for c in CLIENTS
            ],
        },
        settings={"fail_on": "contaminated", "limit": 3.0, "suspicious": 2.0, "seed": 0},
        status="complete",
        exit_code=0,
        population=Population(
            (Reason("CLR305", "benign clients differ widely from each other", 0.2, 0.12),),
            tuple(ModuleSummary(m, (64, 48), 3 - i, 2 / 3, 0.0) for i, m in enumerate(MODULES)),
            CONSENSUS,
            SolverRun("converged", 12, 1e-7 / 3, "agreement", False),
        ),
        clients=CLIENTS,
        refinement=decode(Refinement, REFINEMENT),
    ),
    "contaminated",
)
BEFORE = replace(
    COMPLETE,
    run={**COMPLETE.run, "started_at": "2024-12-31T03:04:05+00:00"},
    inputs={
        **COMPLETE.inputs,
        "clients": [
            c if c["id"] == "client-5" else {**c, "files": []} for c in COMPLETE.inputs["clients"]
        ],
    },
    clients=(
        client("client-1", "contaminated", 4.0, Reason("CLR206", "update is exactly zero", 0.0)),
        CLIENTS[1],
        CLIENTS[2],
        client("client-4", "suspicious", 2.5, Reason("CLR203", "points elsewhere")),
        CLIENTS[4],
        client("client-11", "broken", None, Reason("CLR102", "a.safetensors: is cut off")),
    ),
)
"""An earlier round: client-4 got worse since, client-10 came and is broken, client-11 has left."""
COMPARED = gated(against(COMPLETE, Earlier(BEFORE, SHA)), "contaminated")
NO_VERDICT = gated(
    replace(
        COMPLETE,
        status="no_verdict",
        refinement=None,
        population=Population((Reason("CLR301", "2 usable clients, at least 3 are needed"),)),
        clients=(client("client-1", None, None), client("client-2", None, None), CLIENTS[-1]),
    ),
    "contaminated",
)


def hostile() -> Report:
    """COMPLETE with every name and sentence replaced by one that attacks the terminal."""
    clients = [
        replace(
            c,
            client=f"{HOSTILE}{c.client}",
            reasons=tuple(replace(r, message=HOSTILE + r.message) for r in c.reasons),
            modules=tuple(replace(m, name=HOSTILE + m.name) for m in c.modules),
            depends_on=tuple(HOSTILE + name for name in c.depends_on),
        )
        for c in CLIENTS
    ]
    return replace(
        COMPLETE,
        clients=tuple(clients),
        refinement=replace(COMPLETE.refinement, warnings=(HOSTILE,))
        if COMPLETE.refinement
        else None,
        run={**COMPLETE.run, "command": HOSTILE, "environment": ENVIRONMENT | {"device": HOSTILE}},
        inputs={"root": HOSTILE, "clients": []},
        population=replace(COMPLETE.population, findings=(Reason("CLR305", HOSTILE),)),
    )
