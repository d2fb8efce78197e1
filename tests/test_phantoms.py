"""Deterministic, plausible in size, and not to be solved by a threshold."""

import numpy as np
import pytest

from minikits.phantoms import best_threshold_dice, make_case
from minikits.volumes import read_labels


@pytest.fixture(scope="module")
def cases():
    return [make_case([0, seed]) for seed in range(8)]


def test_the_same_seed_gives_the_same_case():
    one, two, other = make_case([3, 1]), make_case([3, 1]), make_case([3, 2])
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1]) and one[2] == two[2]
    assert one[0].shape != other[0].shape or not np.array_equal(one[0], other[0])


def test_kidneys_tumors_and_hounsfield_units_are_plausible(cases):
    tumors = 0
    for image, labels, spacing in cases:
        millilitres = [np.count_nonzero(labels == value) * np.prod(spacing) / 1000 for value in (1, 2)]
        assert 120 < millilitres[0] < 600 and millilitres[1] < 400
        tumors += millilitres[1] > 0
        assert image.dtype == np.int16 and image.min() < -900 and image.max() > 250
        assert 60 < image[labels == 1].mean() < 230
    assert tumors >= 6
    assert len({spacing for _, _, spacing in cases}) == len({image.shape for image, _, _ in cases}) == 8


def test_no_threshold_solves_them(cases):
    scores = np.array([best_threshold_dice(image, labels) for image, labels, _ in cases])
    assert (scores[:, 0] < 0.6).all() and (scores[:, 1] < 0.3).all()


def test_best_threshold_is_found_where_there_is_one():
    image = np.array([[[-100, 50, 100, 105, 300, 200]]], dtype=np.int16)
    assert best_threshold_dice(image, np.array([[[0, 0, 1, 1, 2, 0]]])) == (pytest.approx(6 / 7), 1)
    assert best_threshold_dice(image, np.zeros((1, 1, 6), np.uint8)) == (0, 0)


def test_real_labels_are_kept_and_the_body_is_built_around_them(kits19):
    like = read_labels(kits19 / "case_00061" / "segmentation.nii.gz")
    image, labels, spacing = make_case(5, labels=like.voxels, spacing_mm=like.spacing_mm)
    assert labels is like.voxels and image.shape == labels.shape and spacing == like.spacing_mm
    inside = image[labels == 1]
    assert 60 < inside.mean() < 230 and max(best_threshold_dice(image, labels)) < 0.6


def test_labels_without_foreground_give_a_body():
    image, labels, _ = make_case(1, labels=np.zeros((8, 60, 60), np.uint8), spacing_mm=(5.0, 6.0, 6.0))
    assert not labels.any() and image.max() > 100
