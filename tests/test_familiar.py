"""What a network was trained on, in ranges, and in what a scan is unlike it."""

import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TINY

from minikits.cases import prepare
from minikits.familiar import (
    QUANTITIES,
    quantities_of_case,
    quantities_of_scan,
    ranges_in,
    ranges_of,
    ranges_together,
    what_is_unlike,
)
from minikits.nifti import read_labels, read_spacing, read_volume, write_image
from minikits.sampling import PreparedCase

RECIPE = replace(TINY, spacing_mm=(10.0, 5.0, 5.0), mean_hu=100.0, sd_hu=50.0)  # 0.25 ml a voxel


def case_of(values, kidney, tumor=()):
    """A prepared case of 2 x 2 x 2 voxels with these values, and the places of its structures."""
    image = torch.tensor(values, dtype=torch.float16).reshape(2, 2, 2)
    foreground = (np.array(kidney, np.int32), np.array(tumor, np.int32))
    return PreparedCase("a", image, torch.zeros(2, 2, 2, dtype=torch.uint8), foreground)


def test_a_training_cases_quantities_by_hand():
    """Kidney at 2 and 4 sd, 200 and 300 HU; with the tumor three voxels of 0.25 ml."""
    case = case_of([0, 2, 4, -1, 0, 0, 0, 0], kidney=[1, 2], tumor=[3])

    assert quantities_of_case(case, (3.0, 0.8, 0.7), RECIPE) == {
        "spacing_z_mm": 3.0,
        "spacing_y_mm": 0.8,
        "spacing_x_mm": 0.7,
        "size_z_mm": 20.0,
        "size_y_mm": 10.0,
        "size_x_mm": 10.0,
        "kidney_hu": 250.0,
        "kidneys_ml": 0.75,
    }


def test_a_case_without_kidney_has_no_mean_of_it():
    found = quantities_of_case(case_of([0] * 8, kidney=[], tumor=[0]), (3.0, 0.8, 0.7), RECIPE)

    assert "kidney_hu" not in found
    assert found["kidneys_ml"] == 0.25


def test_ranges_are_the_least_and_the_most_of_the_cases_that_have_it():
    cases = [{"kidney_hu": 150.0, "kidneys_ml": 300.0}, {"kidneys_ml": 250.0}]

    assert ranges_of(cases) == {"kidney_hu": [150.0, 150.0], "kidneys_ml": [250.0, 300.0]}
    assert ranges_of([]) == {}


def test_a_scan_and_the_case_made_of_it_have_the_same_quantities(tmp_path):
    """On the networks' own grid nothing is resampled. Values beyond the window count as its ends;
    spacing and size are Z Y X, whatever the file's axes."""
    shape = (6, 7, 8)
    voxels = np.random.default_rng(0).integers(-400, 500, shape).astype(np.int16)
    labels = np.random.default_rng(1).integers(0, 3, shape).astype(np.uint8)
    folder = tmp_path / "data" / "a"
    write_image(folder / "imaging.nii.gz", voxels, TINY.spacing_mm)
    write_image(folder / "segmentation.nii.gz", labels, TINY.spacing_mm)
    (case,) = prepare(tmp_path / "data", tmp_path / "cache", TINY)
    volume = read_volume(folder / "imaging.nii.gz")

    of_case = quantities_of_case(case, read_spacing(folder / "imaging.nii.gz"), TINY)
    of_scan = quantities_of_scan(volume, read_labels(folder / "segmentation.nii.gz").voxels, TINY)

    assert list(of_case) == list(of_scan) == list(QUANTITIES)
    assert of_scan == pytest.approx(of_case, rel=1e-3)
    assert of_scan["kidney_hu"] == np.clip(voxels[labels == 1], -79, 304).mean()
    assert of_scan["size_z_mm"] == 48


def test_the_spacing_is_read_from_the_header_as_with_the_voxels(tmp_path):
    """X Y Z in the file, of 0.7, 0.8 and 3 mm; and one whose spacing is said by the user."""
    path = tmp_path / "a.nii.gz"
    nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([0.7, 0.8, 3.0, 1])).to_filename(path)

    assert read_spacing(path) == pytest.approx((3.0, 0.8, 0.7))
    assert read_spacing(path) == read_volume(path).spacing_mm
    assert read_spacing(path, assume_spacing=(5, 2, 1)) == (5, 2, 1)


def test_the_spacing_of_what_is_no_scan_is_refused_by_name(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"<html>")

    with pytest.raises(ValueError, match=r"a\.nii\.gz: starts with"):
        read_spacing(path)


@pytest.mark.parametrize(
    "name, value, unlike",
    [
        ("spacing_z_mm", 5.4, False),  # a tenth beyond the most is within
        ("spacing_z_mm", 5.6, True),
        ("spacing_z_mm", 0.46, False),
        ("spacing_z_mm", 0.45, True),
        ("kidney_hu", 90.0, False),  # 10 HU are
        ("kidney_hu", 89.0, True),
        ("kidney_hu", 210.0, False),
        ("kidney_hu", 211.0, True),
        ("kidneys_ml", 0.0, True),  # of an empty mask
        ("size_z_mm", 9000.0, False),  # of which nothing is known
    ],
)
def test_what_is_beyond_the_training_cases_is_told(name, value, unlike):
    ranges = {"spacing_z_mm": [0.5, 5.0], "kidney_hu": [100.0, 200.0], "kidneys_ml": [150.0, 900.0]}

    told = what_is_unlike({name: value}, ranges)

    assert len(told) == unlike
    if unlike:
        assert told[0].startswith(f"{QUANTITIES[name]}: {value:.3g}, but ")


def test_what_any_of_several_networks_saw_is_familiar():
    plain = {"spacing_z_mm": [0.5, 5.0], "kidney_hu": [100.0, 200.0]}
    residual = {"spacing_z_mm": [1.0, 6.0]}

    together = ranges_together([plain, residual, {}])

    assert together == {"spacing_z_mm": [0.5, 6.0], "kidney_hu": [100.0, 200.0]}


@pytest.mark.parametrize(
    "kept",
    [None, [], "x", {"spacing_z_mm": [1.0]}, {"spacing_z_mm": [2.0, 1.0]}, {"other": [1.0, 2.0]}]
    + [{"spacing_z_mm": value} for value in (None, [0, 1], [math.nan, 1.0], ["a", "b"])],
)
def test_a_checkpoint_without_ranges_or_with_strange_ones_has_none(kept):
    assert ranges_in({"training_ranges": kept}) == {}
    assert ranges_in({}) == {}
    assert ranges_in({"training_ranges": {"spacing_z_mm": [1.0, 2.0]}}) != {}
