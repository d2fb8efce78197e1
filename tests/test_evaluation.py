"""Hand-worked cases, the official formula on real labels, and what has no score."""

import json
import math

import numpy as np
import pytest

from minikits.evaluation import as_json, kits_dice, score_case, summarise, table
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
    assert summary["kidney"] == {"mean": pytest.approx(8 / 9), "cases": 3, "without_score": 0}
    assert summary["tumor"] == {"mean": 0.5, "cases": 2, "without_score": 1}
    assert summary["composite"]["mean"] == 0.75
    text = table(rows)
    assert "mean" in text and "88.89" in text and "1 of 3 cases have no tumor score" in text
    assert json.loads(as_json(rows))[1]["tumor"] is None
    assert math.isnan(summarise([])["kidney"]["mean"])
