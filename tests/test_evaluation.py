"""Hand-worked cases, the official formula on real labels, and what has no score."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from minikits.evaluation import (
    SCORES,
    as_json,
    bootstrap_interval,
    compare,
    comparison_table,
    holm,
    kits_dice,
    score_case,
    sign_flip_test,
    summarise,
    table,
)
from minikits.volumes import read_labels


def test_four_voxels_by_hand():
    """Kidney counts the tumor with it."""
    assert kits_dice(np.array([1, 2, 0, 1]), np.array([1, 1, 2, 0])) == pytest.approx((4 / 6, 0))
    assert kits_dice(np.array([0, 2, 2, 1]), np.array([0, 2, 1, 1])) == pytest.approx((1, 2 / 3))


def test_degenerate_cases():
    nothing, kidney, tumor = np.zeros(5), np.array([0, 1, 1, 0, 0]), np.array([0, 2, 2, 0, 0])
    assert all(map(math.isnan, kits_dice(nothing, nothing)))
    score = kits_dice(kidney, kidney)
    assert score[0] == 1 and math.isnan(score[1])
    assert kits_dice(kidney, tumor) == (1, 0) and kits_dice(nothing, tumor) == (0, 0)
    with pytest.raises(ValueError, match="differ in shape"):
        kits_dice(np.zeros(4), np.zeros(5))


def test_real_labels_against_themselves_and_shifted(kits19):
    """The official formula: Dice of the masks > 0, and of the masks == 2."""
    for id in ("case_00008", "case_00040", "case_00061"):
        labels = read_labels(kits19 / id / "segmentation.nii.gz").voxels
        assert kits_dice(labels, labels) == (1, 1)
        shifted = np.roll(labels, (1, 3, -4), axis=(0, 1, 2))
        wanted = []
        for ours, theirs in ((shifted > 0, labels > 0), (shifted == 2, labels == 2)):
            wanted.append(2 * np.logical_and(ours, theirs).sum() / (ours.sum() + theirs.sum()))
        assert kits_dice(shifted, labels) == pytest.approx(tuple(wanted)) and 0.3 < min(wanted) <= max(wanted) < 0.99


def test_composite_is_the_arithmetic_mean_and_nan_is_left_out_and_counted():
    rows = [score_case("a", np.array([1, 2]), np.array([1, 2])), score_case("b", np.array([1, 0]), np.array([1, 1])),
            score_case("c", np.array([2, 1]), np.array([1, 1]))]
    assert [row["composite"] for row in rows[::2]] == [1, 0.5] and math.isnan(rows[1]["composite"])
    summary = summarise(rows)
    assert summary["kidney"]["mean"] == pytest.approx(8 / 9) and summary["tumor"]["mean"] == 0.5
    assert [(s["cases"], s["without_score"]) for s in summary.values()] == [(3, 0), (2, 1), (2, 1)]
    assert summary["composite"]["mean"] == 0.75
    text = table(rows)
    assert "mean" in text and "88.89" in text and "1 of 3 cases have no tumor score" in text
    assert json.loads(as_json(rows))[1]["tumor"] is None
    assert math.isnan(summarise([])["kidney"]["mean"])


@pytest.mark.parametrize("n", [2, 9, 40])
def test_the_bootstrap_interval_is_scipys(n):
    values = np.random.default_rng(n).beta(8, 2, n)
    found = bootstrap_interval(values)
    wanted = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval
    assert found == pytest.approx(tuple(wanted), abs=0.06 * np.ptp(values) / np.sqrt(n))
    assert bootstrap_interval(values) == found and found[0] < values.mean() < found[1]


def test_intervals_of_little():
    assert all(map(math.isnan, bootstrap_interval([]))) and bootstrap_interval([0.5]) == (0.5, 0.5)


@pytest.mark.parametrize("n, shift", [(6, 0.3), (10, 1.0), (12, 0.0), (30, 0.2), (40, 0.6)])
def test_the_sign_flip_test_is_scipys(n, shift):
    """Up to 13 differences exactly; beyond, both draw 9,999 patterns."""
    differences = np.random.default_rng(n).normal(shift, 1, n)
    wanted = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=1).pvalue
    assert sign_flip_test(differences) == pytest.approx(wanted, abs=1e-9 if n <= 12 else 0.02)


def test_the_sign_flip_test_by_hand():
    assert sign_flip_test([1, 1, 1]) == 2 / 8  # only all plus and all minus are as far
    assert sign_flip_test([0.1, 0.1, 0.1, -0.3]) == 1
    assert sign_flip_test([1, -1]) == 1 and sign_flip_test([0, 0, 0]) == 1 and sign_flip_test([]) == 1


def test_holm_by_hand():
    """Holm's own example: 0.01 * 4, 0.02 * 3, then never below what came before."""
    assert holm([0.02, 0.01, 0.03, 0.04]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


def rows_of(kidneys, tumors):
    return [{"case": f"case_{n}", "kidney": k, "tumor": t, "composite": (k + t) / 2}
            for n, (k, t) in enumerate(zip(kidneys, tumors))]


def test_systems_are_ranked_and_compared_on_the_cases_that_all_have():
    systems = {"plain": rows_of([0.9, 0.8, 0.7, 0.1], [0.5, 0.6, math.nan, 0.9]),
               "residual": rows_of([0.9, 0.9, 0.9], [0.6, 0.8, math.nan]),
               "mine": rows_of([1.0, 0.7, 0.9], [0.5, 1.0, math.nan])}
    compared = compare(systems)
    assert compared["cases"] == ["case_0", "case_1", "case_2"]
    assert compared["ranking"] == ["mine", "residual", "plain"]  # two are equal, the tumor decides
    assert compared["summaries"]["mine"]["composite"]["mean"] == compared["summaries"]["residual"]["composite"]["mean"]
    pair = compared["pairs"][-1]
    assert (pair["better"], pair["worse"]) == ("residual", "plain")
    assert pair["kidney"]["difference"] == pytest.approx(0.1) and pair["tumor"]["difference"] == pytest.approx(0.15)
    raw = [sign_flip_test(d) for d in ([0.1, -0.2, 0.0], [0.1, -0.1, 0.2], [0.0, 0.1, 0.2])]
    assert [found["kidney"]["p"] for found in compared["pairs"]] == holm(raw)
    text = comparison_table(compared)
    assert "97.34" in text and "97.36" in text and text.index("mine") < text.index("residual")
    assert json.loads(as_json(compared))["pairs"][0].keys() == {"better", "worse", *SCORES}
