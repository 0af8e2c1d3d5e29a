"""Every number that can change a verdict: its unit, its range, what it does, and where it is from.

A source names a page of docs/ or benchmarks/results/, or a paper. What each number changes, at half and
at double its value, stands in benchmarks/results/calibration.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from clair_cli.constants import Constants, constant

ROBUST = "robust standard deviations"
FLOOR = "of the usual value"
TRAINED = "benchmarks/results/detection-full-2000.md"
SWEEP = "benchmarks/results/calibration.md"
LIKEWISE = "benchmarks/results/calibration-differences.md"
READING = "chosen for reading; no verdict depends on it"
METHOD = "docs/explanation/method.md"
REAL = "benchmarks/results/real.md"
ROUNDS = "benchmarks/results/federated_rounds.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionCalibration(Constants):
    """The numbers that the verdicts of `clair detect` rest on."""

    # --- the decomposition
    max_shared_rank: int = constant(
        8, "directions", (0, 1024), "directions a module offers to the shared subspace", METHOD
    )
    breadth: float = constant(
        0.75,
        "share of the clients",
        (0.01, 1),
        "participation ratio from which on a direction counts as shared by the majority",
        "benchmarks/results/theory.md",
    )
    max_columns: int = constant(
        512,
        "columns",
        (8, 2**20),
        "columns of stacked factors kept exactly; beyond, clients are compared by sketches",
        "benchmarks/results/speed.md",
    )
    max_iterations: int = constant(
        60, "iterations", (1, 10**6), "steps of the solver; trained cohorts need 5 to 35", METHOD
    )
    tolerance: float = constant(
        1e-6,
        "relative change of the objective",
        (0, 1),
        "change at which the solver stops; verdicts settle near 1e-3",
        METHOD,
    )
    norm_cap: float = constant(
        3.0, "median norms", (1, 1e6), "size to which a larger client is scaled down", SWEEP
    )
    trial_steps: int = constant(
        4, "iterations", (1, 1000), "steps after which the best start goes on alone", METHOD
    )
    solver_oversampling: int = constant(
        4, "directions", (0, 64), "spare directions of the iteration", "Halko et al. 2011, 4.2"
    )
    first_sweeps: int = constant(
        3, "sweeps", (1, 100), "sweeps of the first step, which has no warm start", SWEEP
    )
    refit_sweeps: int = constant(
        6, "sweeps", (1, 100), "sweeps of the fit to settled members", SWEEP
    )
    member_distance: float = constant(
        3.0,
        "median distances of the nearer half",
        (1, 100),
        "distance up to which the solver counts a client without contamination",
        SWEEP,
    )
    member_rounding: float = constant(
        2.0, "rounding floors", (0, 100), "distance that is rounding, whatever others have", SWEEP
    )
    settling_rounds: int = constant(
        3, "fits", (1, 100), "fits in which the solver's members may change", SWEEP
    )

    # --- how the clients began
    same_rows: float = constant(
        0.5,
        "mean squared cosine",
        (0, 1),
        "overlap of two row spaces from which on the clients' A began as one: 0.8 to 0.99 where "
        "they did, r / d_in where not",
        METHOD,
    )
    mostly_same: float = constant(
        0.9, "share of pairs", (0, 1), "pairs alike from which on the start is shared", SWEEP
    )
    rarely_same: float = constant(
        0.1, "share of pairs", (0, 1), "pairs alike below which every start is its own", SWEEP
    )

    # --- scores and verdicts
    limit: float = constant(
        3.0, ROBUST, (0.1, 100), "score from which on a client is contaminated", TRAINED
    )
    suspicious: float = constant(
        2.0, ROBUST, (0.01, 100), "score from which on a client is suspicious", TRAINED
    )
    agreement_floor: float = constant(
        0.135,
        FLOOR,
        (1e-6, 10),
        "least unit of agreement: honest clients came down to 0.68 in cohorts of 8 and more",
        TRAINED,
    )
    direction_floor: float = constant(
        0.135,
        FLOOR,
        (1e-6, 10),
        "least unit of the cosine: honest clients came down to 0.66",
        TRAINED,
    )
    content_floor: float = constant(
        0.22,
        "of the common content",
        (1e-6, 10),
        "least unit of what is lacking: clients with a tenth of the data keep 0.48 and more, random "
        "labels 0.13 and less",
        REAL,
    )
    nothing: float = constant(
        0.1,
        "of the common content",
        (0, 1),
        "content below which a score is not bounded by what is lacking",
        REAL,
    )
    kept_whole: float = constant(
        0.8,
        "of the common content",
        (0, 1),
        "content from which on a distant client is noisy and not suspicious",
        REAL,
    )
    kept_most: float = constant(
        0.97,
        "of the common content",
        (0, 1),
        "content from which on a distant client is not suspicious whose error is not much larger",
        REAL,
    )
    fine: float = constant(
        3.5,
        "spreads of the members",
        (1, 100),
        "lack of content that is suspicious however small it is",
        REAL,
    )
    finest: float = constant(
        0.02, "of the common content", (1e-6, 1), "least spread of the members' content", REAL
    )
    noisy: float = constant(
        1.5,
        "usual errors",
        (1, 1000),
        "error from which on a client is called noisy, and single modules are not judged by agreement",
        REAL,
    )
    hardly_trained: float = constant(
        0.5,
        "of the usual size",
        (0, 1),
        "size below which an update is called hardly trained",
        REAL,
    )
    pure: float = constant(
        0.8,
        FLOOR,
        (0.01, 1),
        "alignment from which on all of a large update counts as size, and not its noise",
        REAL,
    )
    noise_norm_floor: float = constant(
        0.46,
        "log norm",
        (1e-6, 10),
        "least unit of size that is noise: ln(4) / 3; a learning rate 4 times as large made 3.1",
        REAL,
    )
    addition_floor: float = constant(
        0.02, "cosine", (1e-6, 1), "least spread of honest rests' cosines", REAL
    )
    addition: float = constant(
        4.0,
        "spreads of the others' pairs",
        (1, 100),
        "likeness of many clients' rests that is an addition they share; of a pair twice as much",
        REAL,
    )
    addition_cosine: float = constant(
        0.1, "cosine", (0, 1), "least likeness of rests that is an addition", REAL
    )
    addition_apart: float = constant(
        0.5,
        "of the likeness inside",
        (0, 1),
        "likeness to an addition's members from which on an outsider speaks against it",
        REAL,
    )
    subspace: float = constant(
        6.0,
        "spreads of the others' pairs",
        (1, 100),
        "likeness of the outputs that the rests of three and more change that is an addition; honest "
        "clients reach 7.2 at a cosine of 0.15",
        REAL,
    )
    subspace_cosine: float = constant(
        0.3, "cosine", (0, 1), "least likeness of such outputs; honest clients reach 0.27", REAL
    )
    hasty: float = constant(
        2.5,
        "usual errors",
        (1, 1000),
        "error, for the square of the content, from which on more content is a larger learning rate",
        REAL,
    )
    addition_error: float = constant(
        4.0,
        "usual errors",
        (1, 1000),
        "error, for the square of the content, from which on a client in few directions adds something",
        REAL,
    )
    narrow: float = constant(
        0.15,
        "log effective rank",
        (1e-6, 10),
        "how much narrower an update is that adds something: honest ones with as much error were at "
        "most 0.09 narrower, random tokens 0.22 and more",
        REAL,
    )
    distorted: float = constant(
        100.0,
        "usual errors",
        (1, 1e9),
        "error that no lack of data makes: a thirtieth of the data made 50",
        REAL,
    )
    material: float = constant(
        0.01,
        "of the usual energy",
        (0, 1),
        "error that a distortion has at least, per `distorted`",
        REAL,
    )
    enormous: float = constant(
        30.0, "usual errors", (1, 1e9), "error that is suspicious however small it is", REAL
    )
    rounding: float = constant(
        1e-6, "of the usual energy", (0, 1), "error that may be rounding", METHOD
    )
    copied: float = constant(
        0.93,
        "of the rest's energy",
        (0, 1),
        "share of a client's rest in another's from which on that copied it; colluders have 0.87",
        REAL,
    )
    same: float = constant(
        0.5,
        "cosine",
        (0, 1),
        "likeness of three and more clients' rests that is an addition however uneven the others are",
        REAL,
    )
    same_two: float = constant(
        0.8, "cosine", (0, 1), "the same for two; honest pairs reach 0.58 in families", REAL
    )
    grown: float = constant(
        1.15,
        "of the usual content",
        (1, 100),
        "content above which like rests are a longer or faster training",
        REAL,
    )
    alone: float = constant(
        0.2,
        "cosine",
        (0, 1),
        "likeness of rests below which a client far from the members is alone: clients with a tenth of "
        "the data have 0.12 and less, domains 0.5 and more",
        REAL,
    )
    even: float = constant(
        0.2,
        "share of the clients",
        (0, 1),
        "clients with the content only in part from which on a cohort is uneven, and who shares an "
        "addition is a minority",
        REAL,
    )
    minority: float = constant(
        0.5,
        "of the members' likeness",
        (0, 10),
        "likeness of two distant clients that makes them company",
        REAL,
    )
    many: float = constant(
        1 / 3,
        "share of the clients",
        (0, 1),
        "far and alike clients above which they are a minority although the others are as like to them",
        REAL,
    )
    side_likeness: float = constant(
        0.7,
        "of the nearest likeness",
        (0, 1),
        "likeness at which two groups count as one where there is no majority",
        REAL,
    )
    sent_kept: float = constant(
        0.25,
        "of what was sent",
        (0, 1),
        "share of what a client was sent below which it was not trained from it",
        ROUNDS,
    )
    round_likeness: float = constant(
        0.85,
        "cosine",
        (0, 1),
        "likeness of the clients, median of the median to the others, that is a later round's",
        ROUNDS,
    )
    head_floor: float = constant(
        0.233,
        "of the common content",
        (1e-6, 10),
        "least unit of what a full matrix lacks: flipped labels keep 0.3 and less, honest 0.35",
        REAL,
    )
    head_excuse: float = constant(
        0.25,
        "of the common content",
        (0, 1),
        "by how much a head must know more than the other modules to speak for them",
        REAL,
    )
    head_apart: float = constant(
        0.3,
        "of the common content",
        (0, 2),
        "by how much a head knows less than the other modules where labels are flipped",
        REAL,
    )
    head_same: float = constant(
        0.98,
        "cosine",
        (0, 1),
        "usual cosine from which on full matrices are hardly trained, and not judged",
        REAL,
    )
    head_frequency: float = constant(
        0.25,
        "of a head's deviation",
        (0, 1),
        "in the direction that moves its labels' frequencies, from which on a client has labels of its "
        "own: 0.27 and more with skewed labels, 0.22 and less with random ones",
        REAL,
    )
    head_start_alike: float = constant(
        0.62,
        "of the energy of a head's mean row",
        (0, 1),
        "that two heads share, from which on they began alike: 0.7 and more where they did, 0.55 and "
        "less where not",
        REAL,
    )
    head_start_most: float = constant(
        0.5,
        "of what heads have in common",
        (0, 1),
        "start from which on none is taken off: of heads that hardly moved, or whose rows do not depend "
        "on each other",
        REAL,
    )
    norm_floor: float = constant(
        0.17,
        "log norm",
        (1e-6, 10),
        "least unit above the usual norm: ln(1.67) / 3 puts a doubled alpha beyond the limit",
        TRAINED,
    )
    small_norm_floor: float = constant(
        0.7,
        "log norm",
        (1e-6, 10),
        "least unit below the usual norm: ln(8) / 3, since short training is honest",
        TRAINED,
    )
    rank_floor: float = constant(
        0.4,
        "log effective rank",
        (1e-6, 10),
        "least unit of the effective rank: ln(3.3) / 3, since ranks 4 to 16 mixed are honest",
        TRAINED,
    )
    local_floor: float = constant(
        0.25,
        FLOOR,
        (1e-6, 10),
        "least unit in a part of the modules: honest clients fell 0.55 short there",
        TRAINED,
    )
    accord_floor: float = constant(
        0.2,
        "cosine",
        (1e-6, 10),
        "least unit of alike deviations: up to 0.47 of two honest ones, 0.3 to 0.6 of a backdoor",
        TRAINED,
    )
    few_members: float = constant(
        2.0,
        "members",
        (0, 100),
        "a floor is widened by 1 + (few_members / n)^2 for n members: by a quarter for 4",
        SWEEP,
    )
    clear_of_chance: float = constant(
        3.0,
        "standard deviations of chance",
        (0, 100),
        "what cosines and agreement must reach to be evidence at all",
        METHOD,
    )
    worst_modules: float = constant(
        0.25, "share of the modules", (0.01, 1), "part of the modules judged as a part", SWEEP
    )
    fewest_modules: int = constant(
        4,
        "modules",
        (1, 10**6),
        "modules below which no part of them is judged, and nobody by the outputs that a few change",
        SWEEP,
    )
    live_agreement: float = constant(
        0.5, FLOOR, (0, 1), "agreement from which on a module is comparable", SWEEP
    )
    duplicate: float = constant(
        0.1,
        "usual nearest distances",
        (0, 1),
        "distance below which two clients are copies",
        METHOD,
    )
    copy_distance: float = constant(
        0.05,
        "of the norm",
        (0, 1),
        "distance that is a copy's whatever is usual; honest clients stay beyond 0.15",
        METHOD,
    )
    score_cap: float = constant(
        100.0, ROBUST, (1, 1e9), "largest score: beyond it more says nothing", METHOD
    )
    growing_rounds: int = constant(
        5, "rounds", (1, 1000), "rounds in which the consensus may take clients in", METHOD
    )
    stable: float = constant(
        0.5, "share of the others", (0, 1), "others without whom a verdict must stand", METHOD
    )
    unstable: float = constant(
        1.5,
        "limits",
        (1, 100),
        "limit of a verdict that most single clients could overturn",
        METHOD,
    )
    ally_agreement: float = constant(
        0.5, FLOOR, (0, 10), "agreement that two allies have at least", SWEEP
    )

    # --- what is put into words: no verdict depends on it
    spoken_score: float = constant(
        0.5, ROBUST, (0, 100), "score from which a part of joint evidence is said", READING
    )
    spoken_accord: float = constant(
        1.0, ROBUST, (0, 100), "score from which alike deviations are said", READING
    )
    kept_half: float = constant(
        0.4, "of the common content", (0, 1), "content below which it is called lacking", READING
    )
    opposing: float = constant(
        0.1, "of the common content", (0, 1), "content below minus this is called opposing", READING
    )
    odd_module: float = constant(
        0.5, FLOOR, (0, 1), "support below which a module is called odd", READING
    )

    # --- remarks on the cohort
    close_call: float = constant(
        0.4,
        "share of the clients",
        (0, 1),
        "clients outside the consensus from which on the report says how close that is to half",
        METHOD,
    )
    wide_spread: float = constant(
        1.5, "agreement floors", (0, 100), "honest spread that is called wide", METHOD
    )
    kinds_spread: float = constant(
        0.2,
        "spread of cosines",
        (0, 10),
        "spread of the members' deviations from which on they come in kinds: 0.02 to 0.09 for "
        "equal tasks, 0.12 to 0.24 for families",
        METHOD,
    )
    whole_weights: float = constant(
        0.95,
        "cosine",
        (0, 1),
        "usual cosine of matrices that are whole weights; updates had 0.06 to 0.83",
        METHOD,
    )

    # --- updates known up to a common part
    lift: float = constant(
        0.7,
        "of the usual deviation's energy",
        (0, 100),
        "common energy given to clients of which differences alone are known",
        LIKEWISE,
    )
    median_steps: int = constant(
        50, "iterations", (1, 10**4), "steps of the geometric median (Weiszfeld)", LIKEWISE
    )
    common_sweeps: int = constant(
        4,
        "sweeps",
        (1, 100),
        "sweeps for the part that all share, which need not be exact",
        LIKEWISE,
    )

    def __post_init__(self) -> None:
        Constants.__post_init__(self)
        self.check_order("suspicious", "limit")
        self.check_order("rarely_same", "mostly_same")

    @property
    def inside(self) -> float:
        """Members of the consensus are below this score: half-way from suspicious to contaminated."""
        return (self.suspicious + self.limit) / 2


DETECTION = DetectionCalibration()
"""The numbers as they are delivered."""
