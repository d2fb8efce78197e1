"""Kidney, tumor and composite Dice, as the challenge computes them [paper 3]; intervals and paired tests [ours]."""

import csv
import io
import json
from itertools import combinations, product
from math import isnan, nan

import numpy as np

from minikits.paper import TABLE_1

SCORES = ("kidney", "tumor", "composite")
NO_SCORE = {  # what a score of NaN means
    "kidney": "neither mask nor reference has any kidney or tumor",
    "tumor": "neither mask nor reference has any tumor",
    "composite": "it is the mean of both scores, and one of them is missing",
}
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
        found = _some([f"{value:g}" for value in strange])
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
        return f"{len(scores)} cases have a score, wanted {FEWEST_CASES} or more"
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
    """{"ranking", "cases", "summaries", "pairs"} of {name: rows}, on the cases that all have; the
    ranking is `ranked`'s. Pairs, better first: each score's mean difference over the cases where
    both have one, how many these are, and its p of the sign-flip test, Holm-adjusted over the
    pairs. Without such a case: NaN, and no part of Holm's family. ValueError where no case is in
    all."""
    in_all = set.intersection(*({row["case"] for row in rows} for rows in systems.values()))
    if not in_all:
        have = []
        for name, rows in systems.items():
            have.append(f"{name} has {_some([row['case'] for row in rows])}")
        raise ValueError(
            f"no case is in all of them, so there is nothing to compare: {'; '.join(have)}"
        )
    cases = sorted(in_all)

    shared = {}
    for name, rows in systems.items():
        by_case = {row["case"]: row for row in rows}
        shared[name] = [by_case[case] for case in cases]
    summaries = {name: summarise(rows) for name, rows in shared.items()}
    ranking = ranked(summaries)
    pairs = [{"better": better, "worse": worse} for better, worse in combinations(ranking, 2)]
    for score in SCORES:
        _compare_pairs(pairs, score, shared)
    return {"ranking": ranking, "cases": cases, "summaries": summaries, "pairs": pairs}


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


def table(rows):
    """The rows, their mean and its 95% interval as lines of text, in per cent as the paper prints
    them; then why scores or intervals are missing."""
    summary = summarise(rows)
    lines = _lines([*rows, *_ends(summary)])
    for score in SCORES:
        missing = [row["case"] for row in rows if np.isnan(row[score])]
        if missing:
            lines.append(
                f"{len(missing)} of {len(rows)} cases have no {score} score "
                f"({_some(missing)}): {NO_SCORE[score]}"
            )
    return "\n".join([*lines, *_without_interval(summary)])


def comparison_table(compared):
    """What `compare` found as lines of text: the paper's Table 1 with intervals, its own numbers, the tests."""
    rows = []
    for name in compared["ranking"]:
        rows += _ends(compared["summaries"][name], name)
        if name in TABLE_1:
            printed = {score: dice / 100 for score, dice in zip(SCORES, TABLE_1[name])}
            rows.append({"case": "  paper", **printed})
    lines = _lines(rows)
    for name in compared["ranking"]:
        lines += [f"{name}: {line}" for line in _without_interval(compared["summaries"][name])]
    for pair in compared["pairs"]:
        found = ", ".join(f"{score} {_difference(pair[score])}" for score in SCORES)
        lines.append(f"{pair['better']} - {pair['worse']}: {found}")
    return "\n".join(lines)


def _difference(found):
    if not found["cases"]:
        return "- (no case where both have a score)"
    p = f"p {found['p']:.3f}" if found["p"] >= 0.0005 else "p < 0.001"
    return f"{100 * found['difference']:+.2f} ({p}, {found['cases']} cases)"


def _some(names, most=5):
    """The first names of a list, for a message."""
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])]) or "none"


def _without_interval(summary):
    """Lines on the scores whose mean has no interval, those of one reason together."""
    reasons = {}
    for score, found in summary.items():
        if found["no_interval"]:
            reasons.setdefault(found["no_interval"], []).append(score)
    return [f"no 95% interval of {', '.join(scores)}: {why}" for why, scores in reasons.items()]


def _ends(summary, name="mean"):
    return [
        {"case": label, **{score: found[end] for score, found in summary.items()}}
        for label, end in ((name, "mean"), ("  95% from", "from"), ("  to", "to"))
    ]


def _lines(rows):
    width = max(len("Dice in %"), *(len(row["case"]) for row in rows))
    cells = [
        [
            row["case"],
            *("-" if np.isnan(row[score]) else f"{100 * row[score]:.2f}" for score in SCORES),
        ]
        for row in rows
    ]
    return [
        f"{name:<{width}}{k:>11}{t:>11}{c:>11}"
        for name, k, t, c in [["Dice in %", *SCORES], *cells]
    ]


def as_csv(rows):
    """One or more rows of the same keys as the text of a CSV file, a line of names first; NaN is
    `nan`."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([row[name] for name in rows[0]])
    return text.getvalue()


def as_json(content):
    """Strict JSON: NaN becomes null."""
    return (
        json.dumps(json.loads(json.dumps(content), parse_constant=lambda _: None), indent=1) + "\n"
    )
