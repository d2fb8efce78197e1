"""Tumors one by one, by hand; diameters beside all pairs of corners."""

from itertools import product
from math import isnan, sqrt

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from minikits.lesions import (
    LEAST_OVERLAP,
    LesionScores,
    find_lesions,
    largest_diameter_mm,
    score_lesions,
)


def row(signs):
    """A mask of one row: # is tumor."""
    return np.array([sign == "#" for sign in signs])[None, None]


def scores(mask, reference):
    """LesionScores of two rows, voxels of 1 mm."""
    mask, reference = row(mask), row(reference)
    ours = find_lesions(mask, reference, (1, 1, 1), 1.0)
    theirs = find_lesions(reference, mask, (1, 1, 1), 1.0)
    return score_lesions(ours, theirs)


@pytest.mark.parametrize(
    "mask, reference, found, missed, false",
    [
        ("##...##", "##...##", 2, 0, 0),
        (".......", "##...##", 0, 2, 0),
        ("##...##", ".......", 0, 0, 2),
        ("##.....", "##...##", 1, 1, 0),
        ("##.....", "...##..", 0, 1, 1),
        ("#######", "##...##", 2, 0, 0),  # one finds both
        ("##...##", "#######", 1, 0, 0),  # two pieces of one
        (".......", ".......", 0, 0, 0),
    ],
)
def test_lesions_found_missed_and_false(mask, reference, found, missed, false):
    assert scores(mask, reference) == LesionScores(found, missed, false)


def test_a_tenth_of_a_lesion_is_enough_and_less_is_not():
    assert LEAST_OVERLAP == 0.1
    tenth, less = "#" + 9 * ".", "#" + 10 * "."

    assert scores(tenth, 10 * "#") == LesionScores(found=1, missed=0, false=0)
    assert scores(less, 11 * "#") == LesionScores(found=0, missed=1, false=0)
    assert scores(10 * "#", tenth) == LesionScores(found=1, missed=0, false=0)
    assert scores(11 * "#", less) == LesionScores(found=1, missed=0, false=1)


def test_f1_by_hand():
    assert LesionScores(found=2, missed=1, false=1).f1() == 4 / 6
    assert LesionScores(found=0, missed=1, false=0).f1(both_empty=1.0) == 0
    assert LesionScores(found=0, missed=0, false=2).f1() == 0
    assert isnan(LesionScores(found=0, missed=0, false=0).f1())
    assert LesionScores(found=0, missed=0, false=0).f1(both_empty=1.0) == 1


def test_voxels_that_touch_at_a_corner_are_one_lesion_and_the_largest_stands_first():
    tumor = np.zeros((4, 5, 9), bool)
    tumor[0, 0, 0] = tumor[1, 1, 1] = True  # touch at a corner
    tumor[:, 3:, 5:8] = True  # 4 x 2 x 3
    other = np.zeros_like(tumor)
    other[:2, 3:, 5:8] = True

    large, small = find_lesions(tumor, other, spacing_mm=(5, 1, 1), voxel_mm3=5.0)

    assert large.ml == pytest.approx(24 * 5 / 1000)
    assert large.overlap == 0.5
    assert small.ml == pytest.approx(2 * 5 / 1000)
    assert small.overlap == 0
    assert not small.is_shared


def test_no_tumor_is_no_lesion():
    empty = np.zeros((2, 2, 2), bool)

    assert find_lesions(empty, ~empty, (1, 1, 1), 1.0) == []


def test_diameters_by_hand():
    one = np.ones((1, 1, 1), bool)
    line = np.ones((1, 1, 10), bool)

    assert largest_diameter_mm(one, (1, 1, 1)) == pytest.approx(sqrt(3))
    assert largest_diameter_mm(one, (5, 3, 4)) == pytest.approx(sqrt(50))
    assert largest_diameter_mm(line, (1, 1, 0.5)) == pytest.approx(sqrt(2 + 25))


def test_diameters_are_those_of_all_pairs_of_corners():
    random = np.random.default_rng(0)
    spacing_mm = np.array([3.0, 0.8, 0.7])
    for _ in range(20):
        mask = random.random((4, 5, 6)) < 0.2
        corners = {
            (z + dz, y + dy, x + dx)
            for z, y, x in np.argwhere(mask)
            for dz, dy, dx in product((0, 1), repeat=3)
        }

        theirs = pdist(np.array(sorted(corners)) * spacing_mm).max()

        assert largest_diameter_mm(mask, spacing_mm) == pytest.approx(theirs)
