"""Kidney, tumor and composite Dice, as the challenge computes them [paper 3]; intervals and paired
tests [ours]. Scores are shares, 0 to 1; one that does not exist is NaN."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import inf, isnan, nan

import numpy as np
from numpy.typing import ArrayLike

SCORES = ("kidney", "tumor", "composite")
RESAMPLES = 9999  # sign patterns of the permutation test, where there are more than so many
WEIGHTS_DRAWN = (100, 1000)  # for an interval: so many blocks of so many, in memory one at a time
BEYOND_AN_END = 0.025  # of a 95% interval's two ends
FEWEST_CASES = 3  # of an interval [ours: from two it would span 84 points or more]
NAMED_AT_MOST = 5  # of a list, in a message
BOTH_EMPTY = {"kits19": nan, "kits23": 1.0}  # by protocol: the score of a structure in neither


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case. NaN: it has no such score."""

    case: str
    kidney: float
    tumor: float
    composite: float


@dataclass(frozen=True)
class MeanScore:
    """The mean of one score over the cases that have it, and its 95% interval, low to high. NaN:
    there is none, and no_interval says why."""

    mean: float
    low: float
    high: float
    no_interval: str
    cases: int
    without_score: int


@dataclass(frozen=True)
class Difference:
    """The mean difference of one score between two systems, its adjusted p, over how many cases it
    is (those where both have the score), and its own 95% interval, low to high. NaN: there is no
    such case; of the interval, too few."""

    difference: float
    p: float
    cases: int
    low: float
    high: float


@dataclass(frozen=True)
class ComparedPair:
    """Two systems by name, and how far the better one's scores are above the other's."""

    better: str
    worse: str
    kidney: Difference
    tumor: Difference
    composite: Difference


@dataclass(frozen=True)
class Comparison:
    """Systems, by name, on the cases that all have. ranking: the best first. not_ranked: those
    without any composite, which are neither better nor worse than others."""

    ranking: list[str]
    not_ranked: list[str]
    cases: list[str]
    summaries: dict[str, dict[str, MeanScore]]
    pairs: list[ComparedPair]


# --- one case -------------------------------------------------------------------------------------


def kits_dice(
    prediction: ArrayLike, reference: ArrayLike, *, both_empty: float = nan
) -> tuple[float, float]:
    """(kidney, tumor) Dice of two label maps 0, 1, 2 of one shape, of any axis order.

        Dice = 2 * |both| / (|prediction| + |reference|)

    for the voxels of a structure. The kidney counts with the tumor in it. A structure in neither:
    `both_empty`, no score unless told otherwise; in one alone: 0.

    >>> kits_dice([1, 1, 2, 0], [1, 2, 2, 0])  # kidney 2 * 3 / (3 + 3), tumor 2 * 1 / (1 + 2)
    (1.0, 0.6666666666666666)

    ValueError where the shapes differ, or for other values."""
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction {prediction.shape} and reference {reference.shape} differ in shape"
        )
    _check_labels(prediction, "prediction")
    _check_labels(reference, "reference")

    kidney = np.zeros(2, dtype=int)
    tumor = np.zeros(2, dtype=int)
    # slab by slab, each of which lies together in memory: twice as fast as all voxels at once
    axis = int(np.abs(prediction.strides).argmax())
    for ours, theirs in zip(np.moveaxis(prediction, axis, 0), np.moveaxis(reference, axis, 0)):
        kidney += _overlap(ours > 0, theirs > 0)
        tumor += _overlap(ours == 2, theirs == 2)
    return _dice(*kidney, both_empty=both_empty), _dice(*tumor, both_empty=both_empty)


def _overlap(ours, theirs):
    """Voxels that both masks have, and those of each, added up."""
    return np.count_nonzero(ours & theirs), np.count_nonzero(ours) + np.count_nonzero(theirs)


def _dice(both, of_each, both_empty):
    if of_each == 0:
        return both_empty  # NaN: no score, the mean leaves it out
    return 2 * int(both) / int(of_each)


def _check_labels(labels, name):
    whole = labels.dtype.kind in "biu" or np.array_equal(labels, np.rint(labels))
    if not whole or (labels.size and not 0 <= labels.min() <= labels.max() <= 2):
        strange = np.setdiff1d(labels, (0, 1, 2))
        found = some([f"{value:g}" for value in strange])
        raise ValueError(f"{name}: label values {found} found, wanted only 0, 1 and 2")


def score_case(
    case: str, prediction: ArrayLike, reference: ArrayLike, *, both_empty: float = nan
) -> CaseScores:
    """The Dice of two label maps, and the composite, their arithmetic mean; NaN where one is."""
    kidney, tumor = kits_dice(prediction, reference, both_empty=both_empty)
    composite = (kidney + tumor) / 2
    return CaseScores(case, kidney, tumor, composite)


# --- the mean over cases --------------------------------------------------------------------------


def summarise(cases: Sequence[CaseScores]) -> dict[str, MeanScore]:
    """{score: its MeanScore} over cases. A score of NaN is left out of the mean, and counted."""
    summary = {}
    for score in SCORES:
        values = values_of(cases, score)
        known = values[~np.isnan(values)]
        mean = float(np.mean(known)) if len(known) else nan
        low, high = mean_interval(known)
        without = len(values) - len(known)
        summary[score] = MeanScore(mean, low, high, no_interval(known), len(known), without)
    return summary


def values_of(cases: Sequence[CaseScores], score: str) -> np.ndarray:
    """One score of each case -> (N,)."""
    return np.array([getattr(case, score) for case in cases], dtype=float)


def mean_interval(scores: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """The 95% interval (low, high) of the mean score over all cases like these; scores in 0 to 1.

    An end is a percentile of weighted means, the weights drawn uniformly among all that sum to 1,
    of the scores and one more: the worst there can be (0) for the lower end, the best (1) for the
    upper one [ours: Gaffke 2005, Mathematical Methods of Statistics 14; Learned-Miller and Thomas
    2019, arXiv 1905.06208]. So it allows for failures too rare to be among few cases. For scores
    of 0 and 1 alone it is Clopper and Pearson's. Percentiles of resamples, BCa, studentised ones
    and Student's t cover far less than 95% of few cases: benchmarks/results/interval_coverage.md.

    (NaN, NaN) for fewer than FEWEST_CASES scores, and where all are equal. ValueError for a score
    outside 0 to 1."""
    scores = np.sort(np.asarray(scores, dtype=float))  # the order of the cases changes nothing
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"scores {scores} found, wanted them within 0 to 1")
    if no_interval(scores):
        return nan, nan

    generator = np.random.default_rng(seed)
    blocks, block = WEIGHTS_DRAWN
    with_worst = np.empty(WEIGHTS_DRAWN)
    with_best = np.empty(WEIGHTS_DRAWN)
    for number in range(blocks):
        weights = generator.dirichlet(np.ones(len(scores) + 1), size=block)
        with_worst[number] = weights @ np.append(scores, 0)
        with_best[number] = weights @ np.append(scores, 1)
    return float(np.percentile(with_worst, 2.5)), float(np.percentile(with_best, 97.5))


def no_interval(scores: Sequence[float] | np.ndarray) -> str:
    """Why the mean of these scores has no interval; empty where it has one."""
    if len(scores) < FEWEST_CASES:
        have = "case has" if len(scores) == 1 else "cases have"
        return f"{len(scores)} {have} a score, wanted {FEWEST_CASES} or more"
    if np.ptp(scores) == 0:
        return f"all {len(scores)} scores are equal, which says nothing of how scores spread"
    return ""


# --- several systems ------------------------------------------------------------------------------


def compare(systems: Mapping[str, Sequence[CaseScores]]) -> Comparison:
    """Ranks {name: scores} on the cases that all have, and compares each pair. Pairs stand in the
    order of `ranked`, better first. ValueError where no case is in all."""
    cases = _cases_of_all(systems)
    shared = {}
    for name, scored in systems.items():
        by_case = {scores.case: scores for scores in scored}
        shared[name] = [by_case[case] for case in cases]

    summaries = {name: summarise(scored) for name, scored in shared.items()}
    order = ranked(summaries)
    not_ranked = [name for name in order if isnan(summaries[name]["composite"].mean)]
    ranking = [name for name in order if name not in not_ranked]

    duels = list(combinations(order, 2))
    kidney = _differences(duels, "kidney", shared)
    tumor = _differences(duels, "tumor", shared)
    composite = _differences(duels, "composite", shared)
    pairs = []
    for number, (better, worse) in enumerate(duels):
        pair = ComparedPair(better, worse, kidney[number], tumor[number], composite[number])
        pairs.append(pair)
    return Comparison(ranking, not_ranked, cases, summaries, pairs)


def _cases_of_all(systems):
    """The cases, sorted, that each system has scores of."""
    cases_by_system = {}
    for name, scored in systems.items():
        cases_by_system[name] = [scores.case for scores in scored]

    in_all = set.intersection(*map(set, cases_by_system.values()))
    if not in_all:
        have = [f"{name} has {some(cases)}" for name, cases in cases_by_system.items()]
        raise ValueError(
            f"no case is in all of them, so there is nothing to compare: {'; '.join(have)}"
        )
    return sorted(in_all)


def ranked(summaries: dict[str, dict[str, MeanScore]]) -> list[str]:
    """The names of {name: summary}, best first: by the mean composite, where these are equal by the
    mean tumor Dice [paper 3], then by name. A mean of NaN comes after every number."""

    def place(name):
        composite, tumor = summaries[name]["composite"], summaries[name]["tumor"]
        return _place(composite.mean), _place(tumor.mean), name

    return sorted(summaries, key=place)


def _place(mean):
    """Sorts means, the highest first. Those that are equal to 12 digits are equal."""
    return inf if isnan(mean) else -round(mean, 12)


def _differences(duels, score, shared):
    """A Difference for each (better, worse). shared: {name: [CaseScores]}, all of the same cases in
    the same order. The p-values are of one family."""
    values = {name: values_of(scored, score) for name, scored in shared.items()}
    paired = []
    for better, worse in duels:
        differences = values[better] - values[worse]
        paired.append(differences[~np.isnan(differences)])
    p_values = [sign_flip_test(known) if len(known) else nan for known in paired]

    found = []
    for known, p in zip(paired, holm(p_values)):
        mean = float(known.mean()) if len(known) else nan
        low, high = difference_interval(known)
        found.append(Difference(mean, p, len(known), low, high))
    return found


def sign_flip_test(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided p that paired differences have mean 0: how often their mean, signs flipped, is as
    far from 0. All sign patterns where there are at most RESAMPLES, else so many random ones.
    No differences: 1. ValueError for NaN or infinite ones."""
    values = np.asarray(differences, dtype=float)
    if not np.isfinite(values).all():
        raise ValueError(f"differences {values} found, wanted finite ones")

    signs = _sign_patterns(len(values), seed)
    if len(signs) == 2 ** len(values):
        return _as_far(signs, values) / len(signs)
    return (_as_far(signs, values) + 1) / (RESAMPLES + 1)  # 1: the differences as they are


def _sign_patterns(count, seed):
    """(patterns, count) of -1 and 1: all of them, or RESAMPLES random ones where there are more."""
    if 2**count <= RESAMPLES:
        return np.array(list(product((-1, 1), repeat=count)))
    return np.random.default_rng(seed).choice((-1, 1), size=(RESAMPLES, count))


def _as_far(signs, values):
    """How many rows of signs bring the sum at least as far from 0 as it is, but for rounding."""
    flipped = np.abs(signs @ values)
    rounding = 1e-9 * np.abs(values).sum()
    return np.count_nonzero(flipped >= np.abs(values.sum()) - rounding)


def difference_interval(differences: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """The 95% interval (low, high) of the mean of paired differences: the shifts that, taken from
    each difference, leave a `sign_flip_test` with p above 0.05.

    Flipped signs of some differences leave the sum as high as it is if the mean of these is at most
    the shift. So each end is a mean of a subset, and beyond it lie 2.5% of all such means [ours:
    Hartigan 1969, Journal of the American Statistical Association 64, "typical values"].

    (NaN, NaN) for fewer than six differences, whose p is never so small."""
    values = np.asarray(differences, dtype=float)
    is_flipped = _sign_patterns(len(values), seed) == -1
    is_flipped = is_flipped[is_flipped.any(axis=1)]

    means = np.sort(is_flipped @ values / is_flipped.sum(axis=1))
    beyond = int(BEYOND_AN_END * (len(means) + 1))
    if beyond == 0:
        return nan, nan
    return float(means[beyond - 1]), float(means[-beyond])


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, adjusted by Holm's method, in their order: the smallest
    times the number of tests, the next one times one less, and so on; none below the one before it.
    NaN is no test: it stays, and does not count.

    >>> holm([0.01, 0.5, 0.25])  # 0.01 * 3, 0.25 * 2, and 0.5 * 1
    [0.03, 0.5, 0.5]
    """
    tests = [number for number, p in enumerate(p_values) if not isnan(p)]
    smallest_first = sorted(tests, key=lambda number: p_values[number])

    adjusted = [nan] * len(p_values)
    highest = 0.0
    for rank, number in enumerate(smallest_first):
        remaining = len(tests) - rank
        highest = max(highest, p_values[number] * remaining)
        adjusted[number] = min(highest, 1.0)
    return adjusted


def some(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    shown = ", ".join(names[:NAMED_AT_MOST])
    if len(names) > NAMED_AT_MOST:
        return f"{shown}, ..."
    return shown or "none"
