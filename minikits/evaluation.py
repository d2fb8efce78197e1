"""Kidney, tumor and composite Dice, as the challenge computes them. [paper 3]"""

import csv
import io
import json
from math import nan

import numpy as np

SCORES = ("kidney", "tumor", "composite")


def kits_dice(prediction, reference):
    """(kidney, tumor) Dice of two label maps 0, 1, 2 of the same shape, of any axis order.

    Kidney: labels above 0, the tumor with it; tumor: label 2. Both empty: NaN; one empty: 0.
    """
    prediction, reference = (np.asarray(labels) for labels in (prediction, reference))
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    return _dice(prediction > 0, reference > 0), _dice(prediction == 2, reference == 2)


def _dice(ours, theirs):
    total = np.count_nonzero(ours) + np.count_nonzero(theirs)
    return float(2 * np.count_nonzero(ours & theirs) / total) if total else nan  # both empty: the mean leaves it out


def score_case(case_id, prediction, reference):
    """One row of the table: {"case", "kidney", "tumor", "composite"}. The composite is their arithmetic mean."""
    kidney, tumor = kits_dice(prediction, reference)
    return {"case": case_id, "kidney": kidney, "tumor": tumor, "composite": (kidney + tumor) / 2}


def summarise(rows):
    """{score: {"mean", "cases", "without_score"}}: NaN scores are left out of the mean, and counted."""
    known = {score: [row[score] for row in rows if not np.isnan(row[score])] for score in SCORES}
    return {score: {"mean": float(np.mean(values)) if values else nan, "cases": len(values),
                    "without_score": len(rows) - len(values)} for score, values in known.items()}


def table(rows):
    """The rows and their mean as lines of text, in per cent as the paper prints them."""
    summary = summarise(rows)
    width = max(len("mean"), *(len(row["case"]) for row in rows))
    lines = [f"{'Dice in %':<{width}}" + "".join(f"{score:>11}" for score in SCORES)]
    for row in [*rows, {"case": "mean", **{score: summary[score]["mean"] for score in SCORES}}]:
        lines.append(f"{row['case']:<{width}}" + "".join(
            f"{'-':>11}" if np.isnan(row[score]) else f"{100 * row[score]:>11.2f}" for score in SCORES))
    for score, found in summary.items():
        if left_out := found["without_score"]:
            lines.append(f"{left_out} of {len(rows)} cases have no {score} score: neither mask nor reference has any")
    return "\n".join(lines)


def as_csv(rows):
    """Any rows with the same keys, as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(content):
    """Strict JSON: NaN becomes null."""
    return json.dumps(json.loads(json.dumps(content), parse_constant=lambda _: None), indent=1) + "\n"
