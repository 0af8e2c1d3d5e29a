"""What commands other than detect and refine find: records that renderers turn into text or JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from clair_cli.accepted import Accept
from clair_cli.errors import AdapterError, NoVerdict
from clair_cli.reasons import RULES, Rule
from clair_cli.records import key
from clair_cli.report import Compared, Reason, Report, Verdict


@dataclass(frozen=True, slots=True)
class InspectedModule:
    """One update: Delta W is d_out x d_in, `norm` its Frobenius norm, scale included."""

    name: str
    d_out: int
    d_in: int
    rank: int
    scale: float
    dtype: str
    norm: float


@dataclass(frozen=True, slots=True)
class InspectedFull:
    """One tensor trained whole, such as a saved head; `norm` is its Frobenius norm."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    norm: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one adapter is, and that every number in it is finite.

    `files` holds a name, a size in bytes and a sha256 each; `passed_through` names the tensors that
    are neither part of an update nor trained whole.
    """

    client: str
    format: str
    base: str | None
    files: tuple[tuple[str, int, str], ...]
    modules: tuple[InspectedModule, ...]
    passed_through: tuple[str, ...]
    notes: tuple[Reason, ...]
    full: tuple[InspectedFull, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: it can be read, and every number in it is finite."""
        return 0


@dataclass(frozen=True, slots=True)
class InspectedClient:
    """One client of a folder: how many modules it adapts, of which ranks, and what it trained whole.

    `error` says why it is broken or not compared with the others, and then the rest may be missing.
    """

    client: str
    format: str | None = None
    base: str | None = None
    modules: int = 0
    ranks: tuple[int, ...] = ()
    full: int = 0
    notes: tuple[Reason, ...] = ()
    error: Reason | None = None


@dataclass(frozen=True, slots=True)
class SharedFull:
    """One tensor trained whole that most clients have with this shape, `clients` of them."""

    name: str
    shape: tuple[int, ...]
    clients: int


@dataclass(frozen=True, slots=True)
class InspectedFolder:
    """The clients of a folder, and what can be compared: `modules` that all of them adapt, `full`."""

    folder: str
    clients: tuple[InspectedClient, ...]
    modules: int
    full: tuple[SharedFull, ...]
    findings: tuple[Reason, ...]

    @property
    def exit_code(self) -> int:
        """1 where a client is broken or not compared, and where they have nothing to be compared on."""
        return int(not self.modules or any(client.error for client in self.clients))


@dataclass(frozen=True, slots=True)
class NotInspected:
    """What is neither an adapter nor a folder of them, and why."""

    path: str
    error: Reason

    @property
    def exit_code(self) -> int:
        """1: it is broken."""
        return AdapterError.exit_code


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One group of a folder, and the report on it: a cohort by itself."""

    name: str
    report: Report


@dataclass(frozen=True, slots=True)
class Apart:
    """A client that can be read, and compared with too few others; `reason` where more is known."""

    client: str
    base: str | None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """A folder of strangers: the groups that could be judged, and everybody else.

    `by` is what they were grouped by. `broken` are the clients that cannot be read, with the reason.
    `exit_code` is 1 where `fail_on` fails anywhere, 3 where no group has a verdict, else 0.
    """

    folder: str
    by: str
    fail_on: str
    groups: tuple[Surveyed, ...]
    apart: tuple[Apart, ...]
    broken: tuple[tuple[str, Reason], ...]
    findings: tuple[Reason, ...]
    exit_code: int

    @property
    def counts(self) -> dict[str, int]:
        """Clients in all and per verdict, those that are comparable with too few others as such."""
        found = Counter({"clients": len(self.apart) + len(self.broken)})
        for group in self.groups:
            found.update(group.report.counts)
        found["broken"] += len(self.broken)
        return {**found, "not comparable": len(self.apart)}


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate of a client: its folder below OUT, and the score or why there is none."""

    path: str
    strength: float
    score: float | None
    error: str | None = None

    @property
    def label(self) -> str:
        """The folder that all candidates of this strength share: strength-0.5."""
        return self.path.split("/")[0]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was tried for one client, in the order of strengths; `best` is None where all failed."""

    client: str
    tried: tuple[Tried, ...]
    best: Tried | None


@dataclass(frozen=True, slots=True)
class Selection:
    """One choice per client, in natural order."""

    command: str
    higher_is_better: bool
    choices: tuple[Choice, ...]

    @property
    def exit_code(self) -> int:
        """0 where every client has a choice, 1 where some client has none, 3 where no client has one."""
        found = [c.best is not None for c in self.choices]
        return 0 if all(found) else 1 if any(found) else NoVerdict.exit_code


@dataclass(frozen=True, slots=True)
class Difference:
    """One file that is not what the manifest says; `what` says how it differs."""

    name: str
    what: str = field(metadata=key("difference"))


@dataclass(frozen=True, slots=True)
class Verification:
    """A folder compared with its manifest, which lists `files` files.

    Of `compared` files, those in `differences` are not as they should be. `signed` says whether the
    folder comes with a signed statement, and `checked` that all was compared with that, by a key.
    """

    folder: str
    files: int
    differences: tuple[Difference, ...]
    compared: int = 0
    signed: bool = False
    checked: bool = False


@dataclass(frozen=True, slots=True)
class SketchWritten:
    """A sketch that was written to `path`: of a client with so many modules, at this size and seed.

    `left_out` says what of the adapter is not in it.
    """

    path: str
    bytes: int
    sha256: str
    client: str
    modules: int
    size: int
    seed: int
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fitted:
    """A reference file that was written to `path`, and how well it tells clients apart.

    `counts` are clients in all and per verdict. `margin` is that of the report's consensus,
    `sketch_error` the largest of its modules. `unsure` says what the cohort cannot tell apart.
    """

    path: str
    bytes: int
    sha256: str
    size: int
    seed: int
    modules: int
    counts: Mapping[str, int]
    limit: float | None
    margin: float | None
    sketch_error: float
    unsure: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """One upload judged jointly with a cohort of `members` clients.

    `against` is the folder or reference file, `sha256` that of the file. `in_place_of` are members that
    the upload stands for: of its name, or made of its file. `findings` are remarks on all of them, of
    which the last says why there is no verdict. `updated`: the upload is in the reference file now.
    """

    status: Literal["complete", "no_verdict"]
    exit_code: int
    fail_on: str
    verdict: Verdict
    against: str
    sha256: str | None
    members: int
    in_place_of: tuple[str, ...] = ()
    findings: tuple[Reason, ...] = ()
    updated: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a command: its value without a command line, and where that is from.

    `place` is the variable, or the key in the file; None for a default.
    """

    command: str
    name: str = field(metadata=key("option"))
    value: bool | int | float | str | tuple[str, ...] | None
    source: Literal["environment", "file", "default"]
    place: str | None


@dataclass(frozen=True, slots=True)
class Configured:
    """The options that count, and the decisions; `file` is the one that is obeyed.

    `passed_over` says which files are not, and `unknown` which variables stand for no option.
    """

    file: str | None
    options: tuple[Option, ...]
    accept: tuple[Accept, ...]
    passed_over: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """The words of reason codes."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is said of one client, the rules of its codes, and what the baseline says, where it does."""

    verdict: Verdict
    rules: tuple[Rule, ...]
    compared: Compared | None


@dataclass(frozen=True, slots=True)
class Explained:
    """Clients of one report, in its order."""

    clients: tuple[Explanation, ...]


def explained(report: Report, names: Sequence[str] | None = None) -> Explained:
    """The clients called `names`, by default all that are not benign.

    A code that this version does not know, as one of a newer report, has no rule.
    """
    compared = {c.client: c for c in report.baseline.clients} if report.baseline else {}
    chosen = [c for c in report.clients if (c.client in names if names else c.verdict != "benign")]
    return Explained(
        tuple(
            Explanation(
                c,
                tuple(
                    RULES[code]
                    for code in dict.fromkeys(r.code for r in c.reasons)
                    if code in RULES
                ),
                compared.get(c.client),
            )
            for c in chosen
        )
    )
