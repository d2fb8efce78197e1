"""Kidney, tumor and composite Dice, as the challenge computes them [paper 3]; intervals and paired
tests [ours]."""

from itertools import combinations, product
from math import isnan, nan

import numpy as np

SCORES = ("kidney", "tumor", "composite")
RESAMPLES = 9999  # sign patterns of the permutation test, where there are more than so many
WEIGHTS_DRAWN = (100, 1000)  # for an interval: so many blocks of so many, in memory one at a time
FEWEST_CASES = 3  # of an interval [ours: from two it would span 84 points or more]


def kits_dice(prediction, reference):
    """(kidney, tumor) Dice of two label maps 0, 1, 2 of one shape, of any axis order. Both empty:
    NaN; one empty: 0. ValueError where the shapes differ, or for other values."""
    prediction, reference = (np.asarray(labels) for labels in (prediction, reference))
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction {prediction.shape} and reference {reference.shape} differ in shape"
        )
    _check_labels(prediction, "prediction")
    _check_labels(reference, "reference")
    slowest = np.abs(prediction.strides).argmax()  # slabs along it lie together in memory
    counts = np.zeros(
        (2, 2), dtype=int
    )  # kidney (the tumor with it), tumor: voxels of both, voxels of either
    for slab in zip(*(np.moveaxis(labels, slowest, 0) for labels in (prediction, reference))):
        for count, (ours, theirs) in zip(
            counts, ([part > 0 for part in slab], [part == 2 for part in slab])
        ):
            count += (
                np.count_nonzero(ours & theirs),
                np.count_nonzero(ours) + np.count_nonzero(theirs),
            )
    return tuple(
        2 * int(both) / int(total) if total else nan for both, total in counts
    )  # nan: the mean leaves it out


def _check_labels(labels, name):
    whole = labels.dtype.kind in "biu" or np.array_equal(labels, np.rint(labels))
    if not whole or (labels.size and not 0 <= labels.min() <= labels.max() <= 2):
        strange = np.setdiff1d(labels, (0, 1, 2))
        found = some([f"{value:g}" for value in strange])
        raise ValueError(f"{name}: label values {found} found, wanted only 0, 1 and 2")


def score_case(case_id, prediction, reference):
    """One row of the table: {"case", "kidney", "tumor", "composite"}. The composite is their arithmetic mean."""
    kidney, tumor = kits_dice(prediction, reference)
    return {"case": case_id, "kidney": kidney, "tumor": tumor, "composite": (kidney + tumor) / 2}


def summarise(rows):
    """{score: {"mean", "from", "to", "no_interval", "cases", "without_score"}}: NaN is left out of
    the mean, and counted. from, to: its 95% interval; NaN where there is none, and no_interval says
    why. No case with a score: the mean is NaN too."""
    summary = {}
    for score in SCORES:
        known = [row[score] for row in rows if not np.isnan(row[score])]
        lowest, highest = mean_interval(known)
        summary[score] = {
            "mean": float(np.mean(known)) if known else nan,
            "from": lowest,
            "to": highest,
            "no_interval": no_interval(known),
            "cases": len(known),
            "without_score": len(rows) - len(known),
        }
    return summary


def mean_interval(scores, seed: int = 0) -> tuple[float, float]:
    """The 95% interval (from, to) of the mean score over all cases like these; scores in 0 to 1.

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
    with_worst, with_best = np.empty(WEIGHTS_DRAWN), np.empty(WEIGHTS_DRAWN)
    for number in range(blocks):
        weights = generator.dirichlet(np.ones(len(scores) + 1), size=block)
        with_worst[number] = weights @ np.append(scores, 0)
        with_best[number] = weights @ np.append(scores, 1)
    return float(np.percentile(with_worst, 2.5)), float(np.percentile(with_best, 97.5))


def no_interval(scores) -> str:
    """Why the mean of these scores has no interval; empty where it has one."""
    if len(scores) < FEWEST_CASES:
        have = "case has" if len(scores) == 1 else "cases have"
        return f"{len(scores)} {have} a score, wanted {FEWEST_CASES} or more"
    if np.ptp(scores) == 0:
        return f"all {len(scores)} scores are equal, which says nothing of how scores spread"
    return ""


def sign_flip_test(differences, seed=0):
    """Two-sided p that paired differences have mean 0: how often their mean, signs flipped, is as
    far from 0. All sign patterns where there are fewer than RESAMPLES, else so many random ones.
    No differences: 1. ValueError for NaN or infinite ones."""
    values, n = np.asarray(differences, dtype=float), len(differences)
    if not np.isfinite(values).all():
        raise ValueError(f"differences {values} found, wanted finite ones")
    exact = 2**n <= RESAMPLES
    signs = (
        np.array(list(product((-1, 1), repeat=n)))
        if exact
        else np.random.default_rng(seed).choice((-1, 1), size=(RESAMPLES, n))
    )
    as_far = np.count_nonzero(
        np.abs(signs @ values) >= np.abs(values.sum()) - 1e-9 * np.abs(values).sum()
    )
    return as_far / len(signs) if exact else (as_far + 1) / (RESAMPLES + 1)


def holm(p_values):
    """The p-values of a family of tests, adjusted by Holm's method, in their order."""
    order, adjusted = np.argsort(p_values), np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(np.sort(p_values) * np.arange(len(order), 0, -1)).clip(
        max=1
    )
    return adjusted.tolist()


def compare(systems):
    """{"ranking", "not_ranked", "cases", "summaries", "pairs"} of {name: rows}, on the cases that
    all have; the ranking is `ranked`'s, less the systems that have no composite: these are neither
    better nor worse than others. Pairs in that order, better first, then those not ranked: each
    score's mean difference over the cases where both have one, how many these are, and its p of the
    sign-flip test, Holm-adjusted over the pairs. Without such a case: NaN, and no part of Holm's
    family. ValueError where no case is in all."""
    in_all = set.intersection(*({row["case"] for row in rows} for rows in systems.values()))
    if not in_all:
        have = []
        for name, rows in systems.items():
            have.append(f"{name} has {some([row['case'] for row in rows])}")
        raise ValueError(
            f"no case is in all of them, so there is nothing to compare: {'; '.join(have)}"
        )
    cases = sorted(in_all)

    shared = {}
    for name, rows in systems.items():
        by_case = {row["case"]: row for row in rows}
        shared[name] = [by_case[case] for case in cases]
    summaries = {name: summarise(rows) for name, rows in shared.items()}
    order = ranked(summaries)
    not_ranked = [name for name in order if isnan(summaries[name]["composite"]["mean"])]
    pairs = [{"better": better, "worse": worse} for better, worse in combinations(order, 2)]
    for score in SCORES:
        _compare_pairs(pairs, score, shared)
    return {
        "ranking": [name for name in order if name not in not_ranked],
        "not_ranked": not_ranked,
        "cases": cases,
        "summaries": summaries,
        "pairs": pairs,
    }


def ranked(summaries) -> list[str]:
    """The names of {name: summary}, best first: by the mean composite, where these are equal by the
    mean tumor Dice [paper 3], then by name. A mean of NaN comes after every number. Equal: to 12
    digits."""

    def place(name):
        key = []
        for score in ("composite", "tumor"):
            mean = summaries[name][score]["mean"]
            key += [1, 0] if isnan(mean) else [0, -round(mean, 12)]
        return [*key, name]

    return sorted(summaries, key=place)


def _compare_pairs(pairs, score, shared):
    """Puts one score's {"difference", "p", "cases"} into each pair; shared: {name: rows}, all of
    the same cases."""
    scores = {name: np.array([row[score] for row in rows]) for name, rows in shared.items()}
    tested, p_values = [], []
    for pair in pairs:
        differences = scores[pair["better"]] - scores[pair["worse"]]
        known = differences[~np.isnan(differences)]
        pair[score] = {"difference": nan, "p": nan, "cases": len(known)}
        if len(known):
            pair[score]["difference"] = float(known.mean())
            tested.append(pair[score])
            p_values.append(sign_flip_test(known))
    for found, p in zip(tested, holm(p_values)):
        found["p"] = p


def some(names, most=5):
    """The first names of a list, for a message."""
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])]) or "none"
