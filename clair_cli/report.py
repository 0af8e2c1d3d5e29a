"""The one record in the middle: everything a reader may see, and its way to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from clair_cli.accepted import Acceptance, Accepted
from clair_cli.errors import UsageError
from clair_cli.reasons import RULES
from clair_cli.records import brief, decode, encode, key
from clair_cli.refined import Refinement
from clair_cli.rows import Tabular
from clair_cli.schema import report_schema, violation
from clair_cli.settings import canonical_gate, failing_verdicts

SCHEMA_VERSION = "1.6"
VerdictName = Literal["benign", "suspicious", "minority", "contaminated", "broken"]
VERDICTS: tuple[VerdictName, ...] = get_args(VerdictName)
"""From good to bad."""
MAX_BYTES = 256 * 2**20
"""Of a report that is read back: ten times one of 1 000 clients and 224 modules."""
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


CauseName = Literal["lacks", "opposes", "adds", "head", "noisy", "size", "copy"]
"""What is odd: content missing, turned round, or added; the full matrices; error; size; a copy."""


@dataclass(frozen=True, slots=True)
class Cause:
    """What tells why a client is far: `content` is the share of what the others have in common that is
    in it, `error` all else in usual errors, `size` its norm in usual norms.

    `head` is the content of its full matrices, `company` the largest cosine of its rest with another
    client's, `nearest` that client. `kind` is None where nothing is odd.
    """

    kind: CauseName | None
    content: float
    error: float
    size: float
    company: float
    nearest: str
    head: float | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """Of `of` honest clients of the benchmark, `as_high` had at least this score."""

    as_high: int
    of: int


@dataclass(frozen=True, slots=True)
class Rarity:
    """How many honest clients of the benchmark scored as high, in all and by what they differed in.

    `at_most` is the rate that 95 % are sure of where none did, by the rule of three (Hanley and
    Lippman-Hand 1983); else None.
    """

    as_high: int
    of: int
    at_most: float | None
    even: Rate
    uneven: Rate


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one client; contaminated when score >= limit.

    `verdict` is None only in a report whose status is "no_verdict". `stability` is the share of the
    other clients without whom, one at a time, the verdict is the same; `depends_on` are clients without
    whom it would be another one, five at most. `cause` is None where the clients have nothing in common
    by which it could be told, `rarity` where there is no score or the benchmark has other constants.
    """

    client: str = field(metadata=key("id"))
    verdict: VerdictName | None
    score: float | None = None
    limit: float | None = None
    stability: float | None = None
    depends_on: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    modules: tuple[ModuleFinding, ...] = ()
    cause: Cause | None = None
    rarity: Rarity | None = None
    rank: int | None = None
    """The largest rank of its updates as they were read."""
    accepted: Accepted | None = None
    """The decision by which it does not fail the gate."""
    __repr__ = brief


@dataclass(frozen=True, slots=True)
class Minority:
    """Clients that are far from the majority in the same way: another domain, or a plot.

    `likeness` is that of two of them, in units of two typical members of the majority.
    """

    members: tuple[str, ...]
    likeness: float


@dataclass(frozen=True, slots=True)
class ModuleSummary:
    """One module over all clients; `explained` is a share of energy.

    `sketch_error` is the relative error of the inner products that the clients are compared by, 0 where
    they are exact. `left_out` belongs to a method of earlier versions, and is 0. `spectrum` are the
    leading shares of what differs from the mean, of which the first `shared_rank` count as shared.
    """

    name: str
    shape: tuple[int, int]
    shared_rank: int
    explained: float
    left_out: float
    spectrum: tuple[float, ...] = ()
    sketch_error: float = 0.0


InitialisationName = Literal["shared", "independent", "mixed", "none"]
"""How the clients' first A relate; none: plain matrices, which have no A."""


@dataclass(frozen=True, slots=True)
class Consensus:
    """What the verdicts were measured against.

    `clients` count in it. `row_overlap` is the median mean squared cosine of two members' row spaces;
    `agreement` and `spread` are the members' usual agreement and its robust deviation relative to
    that; `common` is the share of their energy that their mean carries, `explained` what the shared
    part explains; `margin` is the gap between the least score that convicts and the largest that does
    not, None where nobody is convicted.
    """

    clients: int
    initialisation: InitialisationName
    row_overlap: float
    agreement: float
    spread: float
    common: float
    explained: float
    margin: float | None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SolverRun:
    """How the solver of the decomposition ended.

    `gap` is the last relative change of the objective and `start` the group it grew from. `refitted`:
    the verdicts' own members differ from the solver's, and M and U were fitted to them directly.
    """

    status: Literal["converged", "iteration limit", "fitted"]
    iterations: int
    gap: float | None
    start: str
    refitted: bool


@dataclass(frozen=True, slots=True)
class Agreement:
    """Who agrees with whom: `direction` is the cosine of two whole adapters, `outputs` how much they
    change the same outputs.

    `percent` are the hundredths for each client and those before it, from the second of `clients` on;
    it is empty where `left_out` says why. `order` are the clients' positions, those that are alike
    together. `places` is a map of two axes by classical scaling, `kept` the share of the differences
    that is on it, and `stress` Kruskal's first.
    """

    measure: Literal["direction", "outputs"]
    clients: tuple[str, ...]
    order: tuple[int, ...]
    percent: tuple[tuple[int, ...], ...]
    left_out: str | None
    places: tuple[tuple[float, float], ...]
    stress: float
    kept: float


@dataclass(frozen=True, slots=True)
class Spectra:
    """Leading shares of the consensus' energy per client mode: of `updates`, and of `differences` from
    their mean."""

    updates: tuple[float, ...]
    differences: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Population:
    """What holds of the clients together; `consensus` and `solver` are None without a verdict."""

    findings: tuple[Reason, ...] = ()
    modules: tuple[ModuleSummary, ...] = ()
    consensus: Consensus | None = None
    solver: SolverRun | None = None
    minorities: tuple[Minority, ...] = ()
    agreement: Agreement | None = None
    spectra: Spectra | None = None
    __repr__ = brief


@dataclass(frozen=True, slots=True)
class Compared:
    """One client's finding beside that of the baseline. A verdict is None where it is not there.

    new: not in the baseline, or not as bad there. known: there, too. gone: only there. `unchanged`
    says that every file has the same size and sha256.
    """

    client: str = field(metadata=key("id"))
    state: Literal["new", "known", "gone"]
    verdict: VerdictName | None
    was: VerdictName | None
    unchanged: bool


@dataclass(frozen=True, slots=True)
class Baseline:
    """The earlier report that the gate rests on, by its sha256, and what differs from it."""

    sha256: str
    started_at: str
    status: Literal["complete", "no_verdict"]
    clients: tuple[Compared, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """One client over all rounds that count. `factor` is this one's, None where it added nothing."""

    client: str = field(metadata=key("id"))
    rounds: int
    factor: float | None
    evidence: float
    convicted: bool


@dataclass(frozen=True, slots=True)
class History:
    """What the ledger says of the clients. `head` is the sha256 of its last line, of `lines`.

    `added` says whether this run wrote a line; `torn` are the bytes of an unfinished line that it cut
    off. `limit` is the evidence that convicts, by `constants`.
    """

    head: str
    lines: int
    added: bool
    torn: int
    limit: float
    constants: Mapping[str, float]
    clients: tuple[Standing, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class Report(Tabular):
    """Everything a reader may see; equal inputs and settings give equal reports outside `run`."""

    tool: Mapping[str, Any]
    run: Mapping[str, Any]
    inputs: Mapping[str, Any]
    settings: Mapping[str, Any]
    status: Literal["complete", "no_verdict"]
    exit_code: int
    population: Population = Population()
    clients: tuple[Verdict, ...] = ()
    refinement: Refinement | None = None
    baseline: Baseline | None = None
    history: History | None = None
    acceptance: tuple[Acceptance, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a newer 1.x report: kept, so that nothing is lost on the way through."""

    @property
    def counts(self) -> dict[str, int]:
        """Clients in all and per verdict; one without a verdict counts only in all."""
        said = [c.verdict for c in self.clients]
        return {"clients": len(said)} | {v: said.count(v) for v in VERDICTS}


def is_note(client: Verdict, reason: Reason) -> bool:
    """A note on this client: on one that is not found odd, or by a code that has not made it so."""
    if client.verdict in (None, "benign"):
        return True
    rule = RULES.get(reason.code)
    standings = rule.standings if rule else ()
    if rule is None or client.verdict in standings:
        return False
    return reason.code.startswith("CLR1") or set(standings) <= {"note", "remark"}


def failing(report: Report, fail_on: str) -> list[Verdict]:
    """The clients that `fail_on` is about, but for those that are known, included or accepted.

    What the baseline knows, whom `settings["include"]` names, and whom an entry accepts, somebody has
    decided about.
    """
    seen = report.baseline.clients if report.baseline else ()
    known = {c.client for c in seen if c.state == "known"}
    decided = known | set(report.settings.get("include") or ())
    decided |= {c.client for c in report.clients if c.accepted is not None}
    return [c for c in gate(report, fail_on) if c.client not in decided]


def gate(report: Report, fail_on: str) -> list[Verdict]:
    """The clients whose verdict `fail_on` is about, whatever was decided about them."""
    bad = failing_verdicts(fail_on)
    return [c for c in over_rounds(report) if c.verdict in bad]


def over_rounds(report: Report) -> tuple[Verdict, ...]:
    """The clients, contaminated whom the rounds together convict; broken is worse, and stays."""
    standings = report.history.clients if report.history else ()
    odd = {s.client for s in standings if s.convicted}
    return tuple(
        replace(c, verdict="contaminated") if c.client in odd and c.verdict != "broken" else c
        for c in report.clients
    )


def gated(report: Report, fail_on: str) -> Report:
    """The same report under another `fail_on`: exit code 3 without a verdict, else 1 or 0."""
    code = 3 if report.status == "no_verdict" else int(bool(failing(report, fail_on)))
    settings = {**report.settings, "fail_on": canonical_gate(fail_on)}
    return replace(report, exit_code=code, settings=settings)


def to_dict(report: Report) -> dict[str, Any]:
    """The report as JSON-ready values, in the order of the contract, floats to 9 digits."""
    found: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    for name, value in encode(report).items():
        found[name] = value
        if name == "exit_code":
            found["counts"] = report.counts
    return found


def from_dict(data: Any) -> Report:
    """Read back what `to_dict` wrote, a newer 1.x included.

    Raises UsageError where `data` is not such a report.
    """
    try:
        _check_depth(data, MAX_DEPTH)
        if not isinstance(data, Mapping) or "schema_version" not in data:
            raise ValueError("schema_version is missing")
        major = str(data["schema_version"]).split(".")[0]
        if major != SCHEMA_VERSION.split(".")[0]:
            raise UsageError(
                f"report: schema_version {data['schema_version']!r} is not 1.x; use a newer clair"
            )
        if found := violation(data, report_schema()):
            raise ValueError(found)
        known = {k: v for k, v in data.items() if k not in ("schema_version", "counts")}
        report = decode(Report, known)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UsageError(f"report: not a clair report ({error})") from error
    return report


def _check_depth(value: Any, left: int) -> None:
    if not left:
        raise ValueError("nested too deeply")
    inner = value.values() if isinstance(value, Mapping) else value
    for child in inner if isinstance(value, Mapping | list) else ():
        _check_depth(child, left - 1)
