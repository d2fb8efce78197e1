"""What is said to be wrong in masks of a few voxels."""

from math import nan

import numpy as np
import pytest
from conftest import ROOT

from minikits.evaluation import CaseScores, kits_dice
from minikits.mistakes import (
    BELOW,
    KINDS,
    Mistake,
    find_mistakes,
    is_below,
    without_traces,
    worst_first,
)

ML = 1000.0  # mm3: a voxel of one ml


def body():
    """Two kidneys of 3 x 2 x 4 voxels, the second with a tumor of 2 x 2 x 2 in it."""
    labels = np.zeros((6, 8, 20), np.uint8)
    labels[1:4, 2:4, 2:6] = 1
    labels[1:4, 2:4, 12:16] = 1
    labels[2:4, 2:4, 12:14] = 2
    return labels


def said(mask, reference, bound=BELOW):
    return [str(mistake) for mistake in find_mistakes(mask, reference, ML, bound)]


def test_nothing_is_wrong_in_the_reference_itself():
    assert said(body(), body(), bound=1.0) == []
    assert said(np.zeros_like(body()), np.zeros_like(body()), bound=1.0) == []


def test_a_kidney_that_is_not_there_is_missed():
    mask = body()
    mask[:, :, :8] = 0

    assert said(mask, body()) == ["kidney missed (24.0 ml, slice 1)"]


@pytest.mark.parametrize("columns, missed", [(1, True), (2, False)])
def test_a_kidney_of_which_less_than_half_is_there_is_missed(columns, missed):
    """Of four columns, 6 voxels each; of two the Dice is 2 * 36 / (36 + 48) = 0.857."""
    mask = body()
    mask[:, :, 2 + columns : 8] = 0

    wrong = said(mask, body(), bound=0.9)

    assert wrong == [
        "kidney missed (24.0 ml, slice 1)"
        if missed
        else "kidney border (12.0 ml missed, 0.0 ml too much, slice 1)"
    ]


def test_a_speck_of_the_reference_is_no_kidney():
    """Its two voxels are less than a tenth of the largest piece's 24."""
    reference = body()
    reference[5, 7, 18:] = 1

    assert said(body(), reference, bound=0.5) == []
    assert said(body(), reference, bound=0.99) == [
        "kidney border (2.0 ml missed, 0.0 ml too much, slice 5)"
    ]

    reference[5, 7, 17:] = 1

    assert said(body(), reference, bound=0.99) == ["kidney missed (3.0 ml, slice 5)"]


def test_a_tumor_that_is_called_kidney_is_missed():
    mask = body()
    mask[mask == 2] = 1

    assert said(mask, body()) == ["tumor missed (8.0 ml, slice 2)"]


@pytest.mark.parametrize(
    "size, wrong",
    [
        (10, "tumor border (9.0 ml missed, 0.0 ml too much, slice 1)"),
        (11, "tumor missed (11.0 ml, slice 1)"),
    ],
)
def test_a_tumor_of_which_a_tenth_is_found_is_not_missed(size, wrong):
    reference = np.ones((3, 4, 20), np.uint8)
    reference[1, 1, :size] = 2
    mask = np.ones_like(reference)
    mask[1, 1, 0] = 2

    assert said(mask, reference) == [wrong]


def test_one_of_two_tumors_is_missed():
    reference = body()
    reference[1, 2:4, 2:4] = 2
    mask = body()

    assert said(mask, reference) == ["tumor missed (4.0 ml, slice 1)"]


def test_kidney_where_none_is_is_false():
    """Two pieces, of 8 and 12 voxels; the Dice is 2 * 48 / (48 + 68) = 0.83."""
    mask = body()
    mask[5, 5:7, 2:6] = 1
    mask[5, 5:8, 12:16] = 1

    assert said(mask, body(), bound=0.85) == ["false kidney (2 pieces, 20.0 ml, slice 5)"]


def test_tumor_where_none_is_is_false_inside_and_outside_a_kidney():
    mask = body()
    mask[1, 2:4, 2:6] = 2
    mask[5, 5:7, 2:6] = 2  # in air, without kidney: no false kidney

    assert said(mask, body()) == ["false tumor (2 pieces, 16.0 ml, slice 1)"]


def test_a_false_tumor_of_a_patient_without_any():
    reference = np.where(body() == 2, 1, body()).astype(np.uint8)

    assert said(body(), reference) == ["false tumor (8.0 ml, slice 2)"]


def test_voxels_that_share_a_corner_alone_are_of_one_piece():
    mask = body()
    mask[5, 5, 5] = mask[4, 6, 6] = 2

    assert said(mask, body(), bound=0.9) == ["false tumor (2.0 ml, slice 4)"]


def test_a_shifted_mask_is_wrong_at_its_borders():
    """By one of four columns, and of the tumor's two: 2 * 3 / 8 = 0.75 and 2 * 1 / 4 = 0.5."""
    mask = np.roll(body(), 1, axis=2)

    wrong = said(mask, body())

    assert wrong == [
        "kidney border (12.0 ml missed, 12.0 ml too much, slice 1)",
        "tumor border (4.0 ml missed, 4.0 ml too much, slice 2)",
    ]


def test_too_much_is_told_from_too_little():
    """The tumor's mask lacks one of two columns, 4 voxels, and has one of these elsewhere."""
    mask = body()
    mask[2:4, 2:4, 13] = 1
    mask[1, 2, 12] = 2

    (wrong,) = said(mask, body())

    assert wrong == "tumor border (4.0 ml missed, 1.0 ml too much, slice 2)"


def test_what_rounds_to_0_ml_is_left_out_beside_a_larger_mistake_of_its_structure():
    large, small = Mistake("kidney border", 1, 30.0, 5, 1.0), Mistake("false kidney", 4, 0.04, 9)
    tumor, large_tumor = Mistake("tumor missed", 1, 0.04, 7), Mistake("false tumor", 1, 0.05, 8)

    assert without_traces([large, small, tumor]) == [large, tumor]
    assert without_traces([large_tumor, small, tumor]) == [large_tumor]
    assert without_traces([small, tumor]) == [small, tumor]


def test_pieces_and_borders_are_told_together():
    """Without the left kidney; the right one's mask has half of it besides: with the left kidney
    2 * 36 / (36 + 48) = 0.857."""
    mask = body()
    mask[:, :, :8] = 0
    mask[:, :, 14:] = 0

    assert said(mask, body(), bound=0.9) == [
        "kidney missed (24.0 ml, slice 1)",
        "kidney border (12.0 ml missed, 0.0 ml too much, slice 1)",
    ]
    assert said(mask, body(), bound=0.85) == ["kidney missed (24.0 ml, slice 1)"]


def test_the_slice_is_that_of_the_whole_volume():
    mask = body()
    mask[:, :, :8] = 0
    padding = ((10, 0), (0, 0), (0, 0))

    wrong = said(np.pad(mask, padding), np.pad(body(), padding))

    assert wrong == ["kidney missed (24.0 ml, slice 11)"]


def test_ml_are_of_the_voxels_size():
    mask = body()
    mask[:, :, :8] = 0

    (mistake,) = find_mistakes(mask, body(), voxel_mm3=500.0)

    assert mistake.ml == 12


def test_each_low_score_has_a_reason_and_all_reasons_are_explained():
    generator = np.random.default_rng(1)
    for _ in range(50):
        mask, reference = generator.choice(3, size=(2, 4, 5, 6), p=[0.8, 0.15, 0.05])
        mistakes = find_mistakes(mask, reference, ML, 0.9)
        kinds = [mistake.kind for mistake in mistakes]
        kidney, tumor = kits_dice(mask, reference)

        assert set(kinds) <= set(KINDS)
        sizes_ml = [mistake.ml for mistake in mistakes]
        assert sizes_ml == sorted(sizes_ml, reverse=True)
        if kidney < 0.9:
            assert {"kidney missed", "false kidney", "false tumor", "kidney border"} & set(kinds)
        if tumor < 0.9:
            assert {"tumor missed", "false tumor", "kidney missed", "tumor border"} & set(kinds)


def test_the_documentation_says_of_each_word_what_the_page_says():
    using = (ROOT / "docs" / "using.md").read_text()

    rows = [f"| {kind} | {meaning} |" for kind, meaning in KINDS.items()]

    assert "\n".join(rows) in using
    assert f"below {BELOW}" in using


def test_what_is_given_stays_as_it_is():
    mask, reference = np.roll(body(), 1, axis=2), body()
    find_mistakes(mask, reference, ML)

    assert np.array_equal(mask, np.roll(body(), 1, axis=2))
    assert np.array_equal(reference, body())


@pytest.mark.parametrize(
    "kidney, tumor, below",
    [(0.79, 0.9, True), (0.9, 0.79, True), (0.8, 0.8, False), (nan, 0.9, False), (0.7, nan, True)],
)
def test_a_case_is_below_the_bound_by_kidney_or_tumor(kidney, tumor, below):
    assert is_below(CaseScores("a", kidney, tumor, (kidney + tumor) / 2), 0.8) == below


def test_the_worst_case_comes_first_and_what_has_no_score_last():
    scores = {"a": (0.9, 0.8), "b": (nan, nan), "c": (0.6, nan), "d": (0.9, 0.2), "e": (0.8, 0.9)}
    cases = [CaseScores(case, *pair, sum(pair) / 2) for case, pair in scores.items()]

    assert [one.case for one in worst_first(cases)] == ["d", "c", "a", "e", "b"]
