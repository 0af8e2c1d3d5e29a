"""The one record in the middle: everything a reader may see, and its way to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from clair_cli.errors import UsageError

SCHEMA_VERSION = "1.1"
VerdictName = Literal["benign", "suspicious", "contaminated", "broken"]
VERDICTS: tuple[VerdictName, ...] = get_args(VerdictName)
LADDER = (*VERDICTS, "never")
"""From bad to worse: `fail_on` names the least that fails; broken is above contaminated."""
MAX_DEPTH = 64
"""Nesting of a report that is read back; clair itself writes 7."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One finding: a stable code, a sentence, and the number with its limit where there is one."""

    code: str
    message: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class ModuleFinding:
    """One client in one module: residual in [0, 1] of its norm, norm (Frobenius), score."""

    name: str
    residual: float
    norm: float
    score: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one client; contaminated when score >= limit.

    `verdict` is None only in a report whose status is "no_verdict".
    """

    client: str
    verdict: VerdictName | None
    score: float | None = None
    limit: float | None = None
    reasons: tuple[Reason, ...] = ()
    modules: tuple[ModuleFinding, ...] = ()
    stability: float | None = None
    """Share of the other clients without whom, one at a time, the verdict is the same."""
    depends_on: tuple[str, ...] = ()
    """Clients without whom it would be another one, five at most."""


@dataclass(frozen=True, slots=True)
class ModuleSummary:
    """One module over all clients; `explained` and `left_out` are shares of energy."""

    name: str
    shape: tuple[int, int]
    shared_rank: int
    explained: float
    left_out: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a reader may see; equal inputs and settings give equal reports outside `run`."""

    tool: Mapping[str, str]
    run: Mapping[str, Any]
    inputs: Mapping[str, Any]
    settings: Mapping[str, Any]
    status: Literal["complete", "no_verdict"]
    exit_code: int
    findings: tuple[Reason, ...] = ()
    modules: tuple[ModuleSummary, ...] = ()
    consensus: Mapping[str, Any] | None = None
    """What the verdicts were measured against; None without a verdict."""
    clients: tuple[Verdict, ...] = ()
    refinement: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a newer 1.x report: kept, so that nothing is lost on the way through."""

    @property
    def counts(self) -> dict[str, int]:
        """Clients in all and per verdict; one without a verdict counts only in all."""
        said = [c.verdict for c in self.clients]
        return {"clients": len(said)} | {v: said.count(v) for v in VERDICTS}


def failing(report: Report, fail_on: str) -> list[Verdict]:
    """The clients at or above `fail_on`, by LADDER."""
    least = LADDER.index(fail_on)
    return [c for c in report.clients if c.verdict and LADDER.index(c.verdict) >= least]


def gated(report: Report, fail_on: str) -> Report:
    """The same report under another `fail_on`: exit code 3 without a verdict, else 1 or 0."""
    code = 3 if report.status == "no_verdict" else int(bool(failing(report, fail_on)))
    return replace(report, exit_code=code, settings={**report.settings, "fail_on": fail_on})


def to_dict(report: Report) -> dict[str, Any]:
    """The report as JSON-ready values, in the order of the contract, floats to 9 digits."""
    known = {
        "schema_version": SCHEMA_VERSION,
        "tool": report.tool,
        "run": report.run,
        "inputs": report.inputs,
        "settings": report.settings,
        "status": report.status,
        "exit_code": report.exit_code,
        "counts": report.counts,
        "population": {
            "findings": [_reason(r) for r in report.findings],
            "modules": [
                {
                    "name": m.name,
                    "shape": list(m.shape),
                    "shared_rank": m.shared_rank,
                    "explained": m.explained,
                    "left_out": m.left_out,
                }
                for m in report.modules
            ],
            "consensus": report.consensus,
        },
        "clients": [_client(c) for c in report.clients],
        "refinement": report.refinement,
    }
    rounded: dict[str, Any] = _round(known | dict(report.extra))
    return rounded


def _reason(reason: Reason) -> dict[str, Any]:
    return {
        "code": reason.code,
        "message": reason.message,
        "value": reason.value,
        "limit": reason.limit,
    }


def _client(c: Verdict) -> dict[str, Any]:
    return {
        "id": c.client,
        "verdict": c.verdict,
        "score": c.score,
        "limit": c.limit,
        "stability": c.stability,
        "depends_on": list(c.depends_on),
        "reasons": [_reason(r) for r in c.reasons],
        "modules": [
            {"name": m.name, "residual": m.residual, "norm": m.norm, "score": m.score}
            for m in c.modules
        ],
    }


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, Mapping):
        return {k: _round(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_round(v) for v in value]
    return value


def from_dict(data: Any) -> Report:
    """Read back what `to_dict` wrote, a newer 1.x included.

    Raises UsageError where `data` is not such a report.
    """
    try:
        _check_depth(data, MAX_DEPTH)
        major = str(data["schema_version"]).split(".")[0]
        if major != SCHEMA_VERSION.split(".")[0]:
            raise UsageError(
                f"report: schema_version {data['schema_version']!r} is not 1.x; use a newer clair"
            )
        report = _parse(data)
        _check(report)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UsageError(f"report: not a clair report ({type(error).__name__}: {error})") from error
    return report


def _check_depth(value: Any, left: int) -> None:
    if not left:
        raise ValueError("nested too deeply")
    inner = value.values() if isinstance(value, Mapping) else value
    for child in inner if isinstance(value, Mapping | list) else ():
        _check_depth(child, left - 1)


def _check(report: Report) -> None:
    """What the renderers and the gate rely on, beyond the types. Raises ValueError."""
    _one_of("status", report.status, ("complete", "no_verdict"))
    _one_of("fail_on", report.settings["fail_on"], LADDER)
    for strength in report.settings.get("path") or ():
        if strength != "auto":
            _finite(strength)
    silent = (None,) if report.status == "no_verdict" else ()
    for client in report.clients:
        _one_of("verdict", client.verdict, (*VERDICTS, *silent))
    _finite(report.run["duration_s"])
    if not isinstance(report.run["environment"], Mapping):
        raise ValueError("environment is not an object")


def _one_of(what: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {str(value)[:40]!r}")


def _parse(data: Mapping[str, Any]) -> Report:
    known = {f.name for f in fields(Report)} | {"schema_version", "counts", "population"}
    return Report(
        tool=dict(data["tool"]),
        run=dict(data["run"]),
        inputs=dict(data["inputs"]),
        settings=dict(data["settings"]),
        status=data["status"],
        exit_code=int(data["exit_code"]),
        findings=tuple(map(_parse_reason, data["population"]["findings"])),
        modules=tuple(
            ModuleSummary(
                str(m["name"]),
                (int(m["shape"][0]), int(m["shape"][1])),
                int(m["shared_rank"]),
                _finite(m["explained"]),
                _finite(m["left_out"]),
            )
            for m in data["population"]["modules"]
        ),
        consensus=_parse_consensus(data["population"].get("consensus")),
        clients=tuple(map(_parse_client, data["clients"])),
        refinement=_parse_refinement(data["refinement"]),
        extra={k: v for k, v in data.items() if k not in known},
    )


def _parse_reason(data: Mapping[str, Any]) -> Reason:
    value, limit = _number(data["value"]), _number(data["limit"])
    return Reason(str(data["code"]), str(data["message"]), value, limit)


def _parse_client(data: Mapping[str, Any]) -> Verdict:
    return Verdict(
        client=str(data["id"]),
        verdict=data["verdict"],
        score=_number(data["score"]),
        limit=_number(data["limit"]),
        reasons=tuple(map(_parse_reason, data["reasons"])),
        modules=tuple(
            ModuleFinding(str(m["name"]), *(_finite(m[k]) for k in ("residual", "norm", "score")))
            for m in data["modules"]
        ),
        stability=_number(data.get("stability")),
        depends_on=tuple(map(str, data.get("depends_on", ()))),
    )


def _parse_consensus(data: Any) -> Mapping[str, Any] | None:
    """Passed on as it is, once what a renderer shows is known to be there."""
    if data is None:
        return None
    _one_of("initialisation", data["initialisation"], ("shared", "independent", "mixed", "none"))
    _number(data["margin"])
    _finite(data["explained"])
    return dict(data)


def _parse_refinement(data: Any) -> Mapping[str, Any] | None:
    """Passed on as it is, once what a renderer shows is known to be there."""
    if data is None:
        return None
    if not all(isinstance(c[name], str) for c in data["clients"] for name in ("id", "path")):
        raise ValueError("expected a name and a folder for every refined client")
    shown = [data["strength"], data["averaged_away"], *data["subspace_ranks"]]
    shown += [data[name] for name in ("inside", "gain") if data.get(name) is not None]
    shown += [c["strength"] for c in data["clients"] if "strength" in c]
    for number in [*shown, *(c["truncation_error"] for c in data["clients"])]:
        _finite(number)
    if not all(isinstance(text, str) for text in data.get("warnings", [])):
        raise ValueError("expected sentences as warnings")
    return dict(data)


def _number(value: Any) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {str(value)[:40]!r}")
    return float(value)
