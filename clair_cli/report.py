"""The one record in the middle: everything a reader may see, and its way to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from clair_cli.errors import UsageError

SCHEMA_VERSION = "1.0"
VerdictName = Literal["benign", "suspicious", "contaminated", "broken"]
VERDICTS: tuple[VerdictName, ...] = get_args(VerdictName)


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


@dataclass(frozen=True, slots=True)
class ModuleSummary:
    """One module over all clients: shape, shared rank, share of benign energy explained, left out."""

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
    clients: tuple[Verdict, ...] = ()
    refinement: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a newer 1.x report: kept, so that nothing is lost on the way through."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of clients, in all and per verdict (a client without a verdict counts only in all)."""
        said = [c.verdict for c in self.clients]
        return {"clients": len(said)} | {v: said.count(v) for v in VERDICTS}


def failing(report: Report, fail_on: str) -> list[Verdict]:
    """The clients at or above `fail_on`; broken counts as above contaminated, never is above all."""
    ladder = (*VERDICTS, "never")
    least = ladder.index(fail_on)
    return [c for c in report.clients if c.verdict and ladder.index(c.verdict) >= least]


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
        major = str(data["schema_version"]).split(".")[0]
        if major != SCHEMA_VERSION.split(".")[0]:
            raise UsageError(
                f"report: schema_version {data['schema_version']!r} is not 1.x; use a newer clair"
            )
        report = _parse(data)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UsageError(f"report: not a clair report ({type(error).__name__}: {error})") from error
    if report.status not in ("complete", "no_verdict"):
        raise UsageError(f"report: unknown status {report.status!r}")
    unknown = {c.verdict for c in report.clients} - {*VERDICTS, None}
    if unknown:
        raise UsageError(f"report: unknown verdict {sorted(map(str, unknown))[0]!r}")
    return report


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
                float(m["explained"]),
                float(m["left_out"]),
            )
            for m in data["population"]["modules"]
        ),
        clients=tuple(map(_parse_client, data["clients"])),
        refinement=data["refinement"],
        extra={k: v for k, v in data.items() if k not in known},
    )


def _parse_reason(data: Mapping[str, Any]) -> Reason:
    return Reason(str(data["code"]), str(data["message"]), _number(data["value"]), _number(data["limit"]))


def _parse_client(data: Mapping[str, Any]) -> Verdict:
    return Verdict(
        client=str(data["id"]),
        verdict=data["verdict"],
        score=_number(data["score"]),
        limit=_number(data["limit"]),
        reasons=tuple(map(_parse_reason, data["reasons"])),
        modules=tuple(
            ModuleFinding(str(m["name"]), float(m["residual"]), float(m["norm"]), float(m["score"]))
            for m in data["modules"]
        ),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
