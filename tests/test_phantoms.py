"""Deterministic, plausible in size, and not to be solved by a threshold."""

import numpy as np
import pytest
from conftest import run_script

from minikits.phantoms import make_case
from minikits.volumes import read_labels, read_volume


def best_threshold_dice(image, labels):
    """(kidney, tumor): the best Dice of any global rule "from a to b HU" or "from a HU", a and b multiples of 10."""
    edges = np.append(np.arange(-200, 500, 10), 1 << 15)
    everything = np.histogram(image, edges)[0]
    scores = []
    for truth in (labels > 0, labels == 2):
        hits = np.histogram(image[truth], edges)[0]
        hit, chosen = (np.subtract.outer(n.cumsum(), n.cumsum() - n) for n in (hits, everything))
        dice = 2 * hit / np.maximum(chosen + np.count_nonzero(truth), 1)
        scores.append(float(np.tril(dice).max()))
    return tuple(scores)


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


def test_the_command_line_writes_cases_and_complains_in_one_line(tmp_path):
    arguments = ("-m", "minikits.phantoms", "--out", tmp_path)
    assert "phantom_000: " in run_script(*arguments, "--cases", 1)
    image, labels, spacing = make_case([0, 0])
    written = read_labels(tmp_path / "phantom_000" / "segmentation.nii.gz")
    assert np.array_equal(written.voxels, labels) and written.spacing_mm == pytest.approx(spacing)
    assert np.array_equal(read_volume(tmp_path / "phantom_000" / "imaging.nii.gz").voxels, image)
    run_script(*arguments, "--out", tmp_path / "around", "--labels", tmp_path)
    around = read_labels(tmp_path / "around" / "phantom_000" / "segmentation.nii.gz")
    assert np.array_equal(around.voxels, labels)
    complaint = run_script(*arguments, "--labels", tmp_path / "none", expect=2)
    assert "none: no label volumes found" in complaint and complaint.count("\n") == 1
