"""Every number that can change a refined weight: its unit, its range, what it does, where it is from."""

from __future__ import annotations

from dataclasses import dataclass

from clair_cli.constants import Constants, constant

TAKEN = "share taken away"
ENERGY = "share of energy"
TRAINED = "benchmarks/results/text_copy.md"
REAL = "benchmarks/results/refinement-real.md"
SPEED = "benchmarks/results/speed.md"
METHOD = "docs/explanation/method.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementCalibration(Constants):
    """The numbers that the weights of `clair refine` rest on."""

    # --- from adapters alone
    weak_shared: float = constant(
        0.5, TAKEN, (0, 1), "of weak directions where the clients' A began as one", TRAINED
    )
    weak_independent: float = constant(
        0.3, TAKEN, (0, 1), "of weak directions where every client's A began by itself", TRAINED
    )
    weak_mixed: float = constant(
        0.3, TAKEN, (0, 1), "of weak directions where some began alike", TRAINED
    )
    weak_plain: float = constant(
        0.5, TAKEN, (0, 1), "of weak directions of plain matrices, which began nowhere", METHOD
    )
    one_task: float = constant(
        0.395,
        ENERGY,
        (0, 1),
        "common share above which clients that began alike look like one task; others reach 0.40",
        REAL,
    )
    one_task_slope: float = constant(
        12.0, "share taken per common share", (0, 1000), "how fast kept directions follow", REAL
    )
    own_one_task: float = constant(
        0.05,
        ENERGY,
        (-1, 1),
        "the same where every A began by itself, of what is common beyond the overlap of row spaces",
        REAL,
    )
    own_one_task_slope: float = constant(
        12.0, "share taken per common share", (0, 1000), "how fast kept directions follow", REAL
    )
    told_same: float = constant(
        0.07,
        ENERGY,
        (0, 1),
        "less that is needed where the operator says that tasks are the same",
        REAL,
    )
    most_inside: float = constant(
        0.5,
        TAKEN,
        (0, 1),
        "of a client's own strong directions at most, with related tasks",
        METHOD,
    )
    task_kinds: float = constant(
        0.09,
        "cosine",
        (0, 10),
        "coherence of residuals below which clients look like one task: 0.02 to 0.09 there",
        REAL,
    )
    kinds_apart: float = constant(
        0.13,
        "cosine",
        (0, 10),
        "coherence of residuals from which on tasks look like own ones",
        REAL,
    )
    label_prior: float = constant(
        0.2,
        ENERGY,
        (0, 1),
        "of a head's deviation in the direction that moves its labels' frequencies, from which on a "
        "client has labels of its own; others have 0.14 at most",
        REAL,
    )
    company_spared: float = constant(
        0.25,
        "cosine",
        (0, 1),
        "of what a client has for itself with another's, from which on it is not taken for noisy",
        REAL,
    )
    label_spared: float = constant(
        0.15, ENERGY, (0, 1), "the same, from which on a client is not taken for noisy", REAL
    )
    labels_differ: float = constant(
        0.1, "share of clients", (0, 1), "with labels of their own, that make tasks look own", REAL
    )
    labels_rule: float = constant(
        0.5,
        "share of clients",
        (0, 1),
        "with labels of their own, that spare all others, too",
        REAL,
    )
    label_rows: int = constant(
        512, "rows", (1, 2**20), "of a full matrix that can be a classifier's head", METHOD
    )
    full_common: float = constant(
        0.1,
        ENERGY,
        (0, 1),
        "common share of the clients' full matrices below which their mean means nothing",
        REAL,
    )

    # --- each client by itself
    usual_quantile: float = constant(
        0.25, "quantile", (0, 1), "of the clients' errors that is honest variation", REAL
    )
    usual_error: float = constant(
        1.5, "usual errors", (1, 100), "up to which a client is as well trained as any", REAL
    )
    unsure_error: float = constant(
        3.0,
        "usual errors",
        (1, 100),
        "the same where neither heads nor what is common say that tasks are alike: tasks of their own "
        "reach 3.1",
        REAL,
    )
    error_power: float = constant(
        3.0, "power", (0, 10), "how fast a client's own is left with its error beyond that", REAL
    )
    trained_size: float = constant(
        0.55,
        "median norms",
        (0, 10),
        "size below which a client was trained too little: 0.1 to 0.41, all others 0.69 and more",
        REAL,
    )
    most_error: float = constant(
        100.0, "usual errors", (1, 1e9), "beyond which errors are alike", METHOD
    )
    least_content: float = constant(
        0.05, "of the usual", (1e-6, 1), "content that a client is credited with at least", METHOD
    )
    largest_size: float = constant(
        1.25, "median norms", (1, 100), "size with which a client counts in the mean at most", REAL
    )
    most_left_out: float = constant(
        0.4, "share of clients", (0, 0.5), "that the mean can do without: weights reach 1/0.6", REAL
    )
    direction_cost: float = constant(
        0.5,
        "per variance",
        (0, 1000),
        "cost of the mean's variance in its worst direction against that of its noise",
        REAL,
    )
    weight_steps: int = constant(
        200, "steps", (1, 10_000), "of the search for weights, which ends where it is best", METHOD
    )
    weight_rate: float = constant(
        0.5, "log of a weight", (1e-3, 10), "that the first step changes at most", METHOD
    )
    boost: float = constant(
        0.5, "gain per amplitude removed", (0, 10), "how much the mean is enlarged", METHOD
    )
    most_gain: float = constant(0.25, "of the mean", (0, 10), "enlargement at most", METHOD)
    differing: float = constant(
        0.5,
        ENERGY,
        (1e-6, 1),
        "difference between clients below which the gain falls with it; trained cohorts differ in "
        "0.43 to 0.9",
        METHOD,
    )
    difference_cost: float = constant(
        8.0, "energies of noise", (0, 1000), "cost of a lost difference against noise kept", METHOD
    )
    gap_floor: float = constant(
        1e-9, ENERGY, (0, 1), "modes of the clients' variation below it are rounding", METHOD
    )

    # --- from replicates
    replicates_lack: float = constant(
        0.34, ENERGY, (0, 1), "in common below which the data do not teach the task", METHOD
    )
    replicates_enough: float = constant(
        0.38, ENERGY, (0, 1), "in common above which the data are enough", METHOD
    )
    whole_noise: float = constant(
        0.85,
        "of a replicate's noise",
        (0, 1),
        "noise of an adapter of all data over that of its replicates on parts",
        METHOD,
    )

    # --- one module
    whole_columns: int = constant(
        2048,
        "columns",
        (8, 2**20),
        "columns of stacked factors that are kept whole where the mean's compression is too far off",
        SPEED,
    )
    mean_rank: int = constant(
        32, "directions", (1, 2**20), "that the mean of many is compressed to first", SPEED
    )
    mean_error: float = constant(
        1e-3,
        "of a client's norm",
        (0, 1),
        "that the compressed mean may be off for it; otherwise it gets twice the directions",
        SPEED,
    )
    max_kept: int = constant(
        3, "directions", (0, 1024), "directions of a shared side that are kept at most", METHOD
    )
    svd_oversampling: int = constant(
        8, "directions", (0, 64), "spare directions of a truncation", "Halko et al. 2011, 4.2"
    )
    svd_sweeps: int = constant(
        4, "sweeps", (1, 100), "sweeps of a truncation; its error is measured", METHOD
    )
    rank_cost: float = constant(
        0.1, "of the norm", (0, 1), "what the cut to the rank `auto` may lose", REAL
    )
    exact_svd: float = constant(
        4.0, "widths", (1, 1000), "core size up to which a truncation is exact", METHOD
    )

    def __post_init__(self) -> None:
        Constants.__post_init__(self)
        self.check_order("replicates_lack", "replicates_enough")
        self.check_order("label_spared", "label_prior")
        self.check_order("usual_error", "unsure_error")

    def weak(self, initialisation: str) -> float:
        """Share taken of the weak directions, by how the clients' A began."""
        return {
            "shared": self.weak_shared,
            "independent": self.weak_independent,
            "mixed": self.weak_mixed,
            "none": self.weak_plain,
        }[initialisation]


REFINEMENT = RefinementCalibration()
"""The numbers as they are delivered."""
