"""Systems on the same cases: those that differ most, the figure, the pictures."""

from math import nan

import numpy as np
import pytest
from test_evaluation import cases_of

from minikits.comparisons import (
    APART_AT_MOST,
    draw_apart,
    draw_comparison,
    most_apart,
    slice_apart,
)
from minikits.evaluation import compare
from minikits.nifti import read_volume, write_image
from minikits.pictures import BLACK_AND_WHITE_HU

SPACING = (3.0, 1.5, 1.0)


@pytest.fixture
def drawn(monkeypatch):
    """[figure] of what is saved."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


# --- which cases ----------------------------------------------------------------------------------


def test_the_cases_that_differ_most_come_first_by_their_structure():
    one = cases_of([0.9, 0.9, 0.9], [0.5, 0.2, 0.7])
    other = cases_of([0.8, 0.9, 0.6], [0.5, 0.7, 0.7])

    apart = most_apart({"one": one, "other": other}, ["case_0", "case_1", "case_2"])

    assert [(found.case, found.structure) for found in apart] == [
        ("case_1", "tumor"),
        ("case_2", "kidney"),
        ("case_0", "kidney"),
    ]
    assert [found.difference for found in apart] == pytest.approx([0.5, 0.3, 0.1])
    assert list(apart[0].scores.items()) == [("other", 0.7), ("one", 0.2)]
    assert list(apart[1].scores.items()) == [("one", 0.9), ("other", 0.6)]


def test_of_several_systems_the_best_and_the_worst_count():
    systems = {
        "a": cases_of([0.7, 0.5], [0.9, 0.9]),
        "b": cases_of([0.5, 0.9], [0.9, 0.9]),
        "c": cases_of([0.9, 0.6], [0.9, 0.9]),
    }

    first, second = most_apart(systems, ["case_0", "case_1"])

    assert (first.case, second.case) == ("case_0", "case_1")  # both 0.4, so by name
    assert list(first.scores) == ["c", "a", "b"]


def test_a_structure_that_is_rightly_not_found_counts_as_right():
    """NaN: in neither mask nor reference; the other system found one all the same."""
    apart = most_apart(
        {"careful": cases_of([0.9], [nan]), "eager": cases_of([0.9], [0.0])}, ["case_0"]
    )

    (found,) = apart
    assert found.structure == "tumor"
    assert found.difference == 1
    assert list(found.scores) == ["careful", "eager"]
    assert np.isnan(found.scores["careful"])


def test_cases_in_which_all_are_equal_are_none():
    same = cases_of([0.9, 0.8], [0.7, nan])

    assert most_apart({"a": same, "b": same}, ["case_0", "case_1"]) == []


def test_a_few_cases_are_enough():
    count = APART_AT_MOST + 3
    one = cases_of([0.9] * count, [0.9] * count)
    other = cases_of([0.1 * number for number in range(count)], [0.9] * count)

    apart = most_apart({"one": one, "other": other}, [scores.case for scores in one])

    assert [found.case for found in apart] == [f"case_{number}" for number in range(APART_AT_MOST)]


def test_only_the_cases_that_all_have_are_looked_at():
    one, other = cases_of([0.9, 0.9], [0.9, 0.9]), cases_of([0.1, 0.5], [0.9, 0.9])

    (found,) = most_apart({"one": one, "other": other}, ["case_1"])

    assert found.case == "case_1"


# --- the figure -----------------------------------------------------------------------------------


def test_the_figure_shows_each_score_by_system_and_each_difference_by_pair(tmp_path, drawn):
    systems = {
        "b": cases_of([0.8, 0.7, 0.6, 0.5, 0.9, 0.8], [0.2, 0.3, 0.4, 0.5, 0.6, nan]),
        "a": cases_of([0.9, 0.9, 0.6, 0.8, 0.9, 0.9], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
    }
    comparison = compare(systems)
    (pair,) = comparison.pairs

    draw_comparison(tmp_path / "comparison.png", systems, comparison)

    (figure,) = drawn
    above, below = figure.axes[:3], figure.axes[3:]
    assert [axes.get_title() for axes in above] == ["kidney", "tumor", "composite"]
    for axes in above:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["b", "a"]
    lines = np.array([line.get_ydata() for line in above[0].lines[:6]])
    assert lines.tolist() == [
        [0.8, 0.9],
        [0.7, 0.9],
        [0.6, 0.6],
        [0.5, 0.8],
        [0.9, 0.9],
        [0.8, 0.9],
    ]
    medians = [line.get_ydata()[0] for line in above[1].lines if len(set(line.get_ydata())) == 1]
    assert 0.4 in medians  # of the five that have a score

    for axes, found in zip(below, (pair.kidney, pair.tumor, pair.composite)):
        assert [tick.get_text() for tick in axes.get_xticklabels()] == [
            f"{pair.better}\n- {pair.worse}"
        ]
        _, mean, interval, _ = axes.lines
        assert mean.get_ydata().tolist() == [found.difference]
        assert list(interval.get_ydata()) == pytest.approx([found.low, found.high], nan_ok=True)
    differences = [0.1, 0.2, 0.0, 0.3, 0.0, 0.1]
    assert (pair.better, pair.worse) == ("a", "b")
    assert below[0].lines[0].get_ydata() == pytest.approx(differences)
    assert (pair.kidney.low, pair.kidney.high) == pytest.approx((0.0, 0.3))


def test_cases_are_paired_by_name_in_the_figure(tmp_path, drawn):
    one = cases_of([0.9, 0.1], [0.9, 0.1])
    systems = {"one": one, "other": one[::-1]}

    draw_comparison(tmp_path / "comparison.png", systems, compare(systems))

    below = drawn[0].axes[3]
    assert below.lines[0].get_ydata().tolist() == [0, 0]


def test_a_figure_of_many_systems_is_wider(tmp_path, drawn):
    two = {name: cases_of([0.9], [0.9]) for name in "ab"}
    many = {name: cases_of([0.9], [0.9]) for name in "abcdef"}

    for systems in (two, many):
        draw_comparison(tmp_path / "comparison.png", systems, compare(systems))

    assert drawn[0].get_size_inches()[0] < drawn[1].get_size_inches()[0]


def test_the_figure_is_a_png_of_any_names(tmp_path):
    systems = {"p$1_^$x": cases_of([0.9], [0.9]), "\udcfc": cases_of([0.8], [nan])}

    draw_comparison(tmp_path / "comparison.png", systems, compare(systems))

    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


# --- the pictures ---------------------------------------------------------------------------------


def test_the_slice_is_the_one_in_which_the_masks_differ_most():
    one, other, third = np.zeros((3, 4, 2, 2), np.uint8)
    one[1, 0, 0] = 1
    other[2, :, 0] = 1
    third[3] = 2

    assert slice_apart([one, other]) == 2
    assert slice_apart([one, other, third]) == 3
    assert slice_apart([one, one]) == 0

    first = np.zeros_like(one)
    first[0] = 2
    assert slice_apart([first, one, other]) == 0


def test_masks_stand_beside_their_reference(tmp_path, drawn):
    generator = np.random.default_rng(0)
    voxels = generator.integers(-200, 300, (4, 6, 7)).astype(np.int16)
    write_image(tmp_path / "image.nii.gz", voxels, SPACING)
    image = read_volume(tmp_path / "image.nii.gz")
    reference = np.zeros((4, 6, 7), np.uint8)
    reference[2, 1:5, 1:5] = 1
    half = reference.copy()
    half[2, 3:] = 0

    draw_apart(tmp_path / "a.png", image, reference, {"good": reference, "half": half})

    (figure,) = drawn
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["reference, slice 2", "good, slice 2", "half, slice 2"]
    outlines = []
    for axes in figure.axes:
        assert np.array_equal(axes.images[0].get_array(), voxels[2])
        assert axes.images[0].get_clim() == BLACK_AND_WHITE_HU
        (contour,) = axes.collections
        outlines.append(contour.get_paths()[0].get_extents().height)
    assert outlines[0] == outlines[1] > outlines[2]
