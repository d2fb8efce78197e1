"""Kidney, tumor and composite Dice, as the challenge computes them [paper 3]; intervals and paired tests [ours]."""

import csv
import io
import json
from itertools import combinations, product
from math import nan

import numpy as np

from minikits.paper import TABLE_1

SCORES = ("kidney", "tumor", "composite")
RESAMPLES = 9999  # of the bootstrap, and sign patterns of the permutation test


def kits_dice(prediction, reference):
    """(kidney, tumor) Dice of two label maps 0, 1, 2 of one shape, of any axis order. Both empty: NaN; one empty: 0."""
    prediction, reference = (np.asarray(labels) for labels in (prediction, reference))
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    slowest = np.abs(prediction.strides).argmax()  # slabs along it lie together in memory
    counts = np.zeros((2, 2), dtype=int)  # kidney (the tumor with it), tumor: voxels of both, voxels of either
    for slab in zip(*(np.moveaxis(labels, slowest, 0) for labels in (prediction, reference))):
        for count, (ours, theirs) in zip(counts, ([part > 0 for part in slab], [part == 2 for part in slab])):
            count += np.count_nonzero(ours & theirs), np.count_nonzero(ours) + np.count_nonzero(theirs)
    return tuple(2 * int(both) / int(total) if total else nan for both, total in counts)  # nan: the mean leaves it out


def score_case(case_id, prediction, reference):
    """One row of the table: {"case", "kidney", "tumor", "composite"}. The composite is their arithmetic mean."""
    kidney, tumor = kits_dice(prediction, reference)
    return {"case": case_id, "kidney": kidney, "tumor": tumor, "composite": (kidney + tumor) / 2}


def summarise(rows):
    """{score: {"mean", "from", "to", "cases", "without_score"}}: NaN is left out and counted; from, to: 95% interval"""
    summary = {}
    for score in SCORES:
        known = [row[score] for row in rows if not np.isnan(row[score])]
        summary[score] = {"mean": float(np.mean(known)) if known else nan, "cases": len(known), **dict(
            zip(("from", "to"), bootstrap_interval(known))), "without_score": len(rows) - len(known)}
    return summary


def bootstrap_interval(values, seed=0):
    """95% interval of the mean over cases: percentiles of the means of resamples. No values: NaN."""
    if not len(values):
        return nan, nan
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    return tuple(np.percentile(np.asarray(values)[drawn].mean(axis=1), (2.5, 97.5)).tolist())


def sign_flip_test(differences, seed=0):
    """Two-sided p that paired differences have mean 0: how often their mean, signs flipped, is as far from 0.
    All sign patterns where there are fewer than RESAMPLES, else so many random ones. No differences: 1."""
    values, n = np.asarray(differences, dtype=float), len(differences)
    exact = 2**n <= RESAMPLES
    signs = (np.array(list(product((-1, 1), repeat=n))) if exact else
             np.random.default_rng(seed).choice((-1, 1), size=(RESAMPLES, n)))
    as_far = np.count_nonzero(np.abs(signs @ values) >= np.abs(values.sum()) - 1e-9 * np.abs(values).sum())
    return as_far / len(signs) if exact else (as_far + 1) / (RESAMPLES + 1)


def holm(p_values):
    """The p-values of a family of tests, adjusted by Holm's method, in their order."""
    order, adjusted = np.argsort(p_values), np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(np.sort(p_values) * np.arange(len(order), 0, -1)).clip(max=1)
    return adjusted.tolist()


def compare(systems):
    """{"ranking", "cases", "summaries", "pairs"} of {name: rows sorted by case}, on the cases that all have. Ranked by
    the composite, then the tumor [paper 3]. Pairs: each score's mean difference, and its p, Holm-adjusted over them."""
    cases = sorted(set.intersection(*({row["case"] for row in rows} for rows in systems.values())))
    rows = {name: [row for row in rows if row["case"] in cases] for name, rows in systems.items()}
    summaries = {name: summarise(shared) for name, shared in rows.items()}
    ranking = sorted(systems, key=lambda name: [-summaries[name][score]["mean"] for score in ("composite", "tumor")])
    pairs = [{"better": better, "worse": worse} for better, worse in combinations(ranking, 2)]
    for score in SCORES:
        ours = {name: np.array([row[score] for row in shared]) for name, shared in rows.items()}
        apart = [ours[pair["better"]] - ours[pair["worse"]] for pair in pairs]
        known = [differences[~np.isnan(differences)] for differences in apart]
        for pair, each, p in zip(pairs, known, holm([sign_flip_test(differences) for differences in known])):
            pair[score] = {"difference": float(each.mean()) if len(each) else nan, "p": p, "cases": len(each)}
    return {"ranking": ranking, "cases": cases, "summaries": summaries, "pairs": pairs}


def table(rows):
    """The rows, their mean and its 95% interval as lines of text, in per cent as the paper prints them."""
    summary = summarise(rows)
    return "\n".join([*_lines([*rows, *_ends(summary)]), *(
        f"{found['without_score']} of {len(rows)} cases have no {score} score: neither mask nor reference has any"
        for score, found in summary.items() if found["without_score"])])


def comparison_table(compared):
    """What `compare` found as lines of text: the paper's Table 1 with intervals, its own numbers, the tests."""
    rows = []
    for name in compared["ranking"]:
        rows += _ends(compared["summaries"][name], name)
        rows += [{"case": "  paper", **{s: x / 100 for s, x in zip(SCORES, TABLE_1[name])}}] if name in TABLE_1 else []
    return "\n".join([*_lines(rows), *(f"{pair['better']} - {pair['worse']}: " + ", ".join(
        "{} {:+.2f} (p {p:.3f}, {cases} cases)".format(score, 100 * pair[score]["difference"], **pair[score])
        for score in SCORES) for pair in compared["pairs"])])


def _ends(summary, name="mean"):
    return [{"case": label, **{score: found[end] for score, found in summary.items()}}
            for label, end in ((name, "mean"), ("  95% from", "from"), ("  to", "to"))]


def _lines(rows):
    width = max(len("Dice in %"), *(len(row["case"]) for row in rows))
    cells = [[row["case"], *("-" if np.isnan(row[score]) else f"{100 * row[score]:.2f}" for score in SCORES)]
             for row in rows]
    return [f"{name:<{width}}{k:>11}{t:>11}{c:>11}" for name, k, t, c in [["Dice in %", *SCORES], *cells]]


def as_csv(rows):
    """Any rows with the same keys, as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text).writerows([rows[0], *([row[key] for key in rows[0]] for row in rows)])
    return text.getvalue()


def as_json(content):
    """Strict JSON: NaN becomes null."""
    return json.dumps(json.loads(json.dumps(content), parse_constant=lambda _: None), indent=1) + "\n"
