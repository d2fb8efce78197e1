"""Surface Dice and distances, by hand and beside surface-distance, MONAI and scipy.

What surface-distance 0.1 and MONAI 1.6.1 gave is kept in tests/golden/surfaces.npz, which
benchmarks/golden_surfaces.py writes."""

from math import inf, isnan, sqrt

import numpy as np
import pytest
from conftest import ROOT
from scipy import ndimage

from minikits.nifti import read_labels
from minikits.surfaces import (
    TOLERANCES_MM,
    corner_areas,
    distance_95,
    facets,
    nearest_mm,
    neighbour_codes,
    offsets_within,
    surface_dice,
)

KEPT = np.load(ROOT / "tests" / "golden" / "surfaces.npz")
SPACINGS = [tuple(spacing.tolist()) for spacing in KEPT["spacings_mm"]]
PAIRS = [(KEPT[f"prediction{number}"], KEPT[f"reference{number}"]) for number in range(6)]
CUBE = (1.0, 1.0, 1.0)


def block(start, size, shape=(6, 8, 10)):
    """A mask of one box."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, low + length) for low, length in zip(start, size))] = True
    return mask


# --- by hand --------------------------------------------------------------------------------------


def test_equal_masks_have_all_of_their_surface_in_common():
    mask = block((1, 2, 3), (3, 4, 5))

    assert surface_dice(mask, mask, (3.0, 0.8, 0.8), tolerance_mm=0) == 1
    assert distance_95(mask, mask, (3.0, 0.8, 0.8)) == 0


def test_of_two_voxels_side_by_side_half_the_corners_are_the_same():
    """Each has 8 corners of equal area, of which 4 are the other's too; the others are 2 mm off."""
    prediction, reference = block((1, 1, 1), (1, 1, 1)), block((1, 1, 2), (1, 1, 1))

    assert surface_dice(prediction, reference, (2, 2, 2), tolerance_mm=1.99) == 0.5
    assert surface_dice(prediction, reference, (2, 2, 2), tolerance_mm=2) == 1
    assert distance_95(prediction, reference, (2, 2, 2)) == 2


def test_the_tolerance_is_in_mm_along_each_axis():
    """One slice lower is 3 mm, one column further 0.5 mm."""
    mask = block((1, 2, 2), (3, 4, 4))
    lower, further = np.roll(mask, 1, axis=0), np.roll(mask, 1, axis=2)
    spacing_mm = (3.0, 0.5, 0.5)

    assert surface_dice(further, mask, spacing_mm, tolerance_mm=0.5) == 1
    assert surface_dice(lower, mask, spacing_mm, tolerance_mm=2.9) < 1
    assert surface_dice(lower, mask, spacing_mm, tolerance_mm=3) == 1
    assert distance_95(lower, mask, spacing_mm) == 3


def test_empty_masks():
    empty, mask = np.zeros((3, 3, 3), bool), block((1, 1, 1), (1, 1, 1), (3, 3, 3))

    assert isnan(surface_dice(empty, empty, CUBE, 1))
    assert surface_dice(empty, empty, CUBE, 1, both_empty=1.0) == 1
    assert surface_dice(empty, mask, CUBE, 1, both_empty=1.0) == 0
    assert surface_dice(mask, empty, CUBE, 1) == 0
    assert isnan(distance_95(empty, empty, CUBE))
    assert distance_95(empty, mask, CUBE) == inf
    assert distance_95(mask, empty, CUBE) == inf


@pytest.mark.parametrize(
    "prediction, told",
    [
        (np.ones((1, 3, 3), bool), "differ in shape"),
        (np.ones((3, 3, 3), np.uint8), "prediction: uint8 (3, 3, 3) found, wanted bool"),
        (np.ones((3, 3), bool), "prediction: bool (3, 3) found"),
    ],
)
def test_what_are_not_two_masks_of_one_shape_is_refused(prediction, told):
    with pytest.raises(ValueError) as refused:
        surface_dice(prediction, np.ones((3, 3, 3), bool), CUBE, 1)

    assert told in str(refused.value)


def test_a_mask_has_a_surface_where_the_volume_ends():
    """A volume that is all mask is a box: its surface is its border."""
    full = np.ones((2, 3, 4), bool)

    codes = neighbour_codes(full)

    assert codes.shape == (3, 4, 5)
    assert (codes == 255).sum() == 1 * 2 * 3  # the inner corners
    assert surface_dice(full, block((0, 0, 0), (2, 3, 4))[:2, :3, :4], CUBE, 0) == 1


def test_which_bit_of_a_code_is_which_voxel():
    mask = np.zeros((2, 2, 2), bool)
    mask[1, 0, 1] = True  # z 1, y 0, x 1: bit 4 + 1

    assert neighbour_codes(mask)[1, 1, 1] == 2**5


def voxels(*places):
    """2 x 2 x 2 with these (z, y, x) in the mask."""
    inside = np.zeros((2, 2, 2), bool)
    for place in places:
        inside[place] = True
    return inside


@pytest.mark.parametrize(
    "inside, area",
    [
        (voxels((0, 0, 0)), sqrt(3) / 8),  # sides of sqrt(1/2)
        (voxels((0, 0, 0), (0, 0, 1)), sqrt(1 / 2)),  # sqrt(1/2) times 1
        (voxels((0, 0, 0), (1, 1, 1)), 2 * sqrt(3) / 8),  # two that touch at a point
        (voxels((0, 0, 0), (0, 0, 1), (0, 1, 0)), 1 / 2 + 3 / 8 * sqrt(3)),
        (voxels((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)), 1),  # a flat surface
        (voxels((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)), 3 / 4 * sqrt(3)),  # regular hexagon
    ],
)
def test_areas_that_geometry_tells(inside, area):
    """Of a cube of 1 mm; what is in the mask and what is not may be exchanged."""
    for mask in (inside, ~inside):
        pieces = facets(mask)
        assert sum(np.linalg.norm(piece) for piece in pieces) == pytest.approx(area)


def test_a_flat_surface_has_the_area_of_its_voxels_faces():
    """A plane of 5 x 6 voxels of 3 x 0.8 mm, far from its rim."""
    mask = np.zeros((4, 7, 8), bool)
    mask[:, :, :4] = True

    codes = neighbour_codes(mask)[1:-1, 1:-1, 4]

    assert np.allclose(corner_areas((3.0, 0.8, 0.5))[codes], 3.0 * 0.8)


def test_offsets_reach_as_far_as_the_tolerance_and_no_farther():
    offsets = offsets_within(1.0, (1.0, 0.5, 2.0)).tolist()

    wanted = [[-1, 0, 0], [0, -2, 0], [0, -1, 0], [0, 0, 0], [0, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert offsets == wanted


# --- beside others --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(SPACINGS)))
def test_the_areas_of_all_256_codes_are_surface_distances(number):
    theirs = KEPT["areas_mm2"][number]

    ours = corner_areas(SPACINGS[number])

    for code in range(256):
        inside = np.unpackbits(np.uint8(code), bitorder="little").reshape(2, 2, 2)
        their_code = int((inside * KEPT["area_kernel"]).sum())
        assert ours[code] == pytest.approx(theirs[their_code], abs=1e-12)


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_surface_dice_and_distance_are_surface_distances_and_monais(number):
    prediction, reference = PAIRS[number]
    for place, spacing_mm in enumerate(SPACINGS):
        row = number * len(SPACINGS) + place
        found = [
            surface_dice(prediction, reference, spacing_mm, tolerance_mm)
            for tolerance_mm in KEPT["tolerances_mm"].tolist()
        ]

        assert found == pytest.approx(KEPT["surface_dice"][row].tolist(), abs=1e-12)
        assert found == pytest.approx(KEPT["monai_surface_dice"][row].tolist(), abs=1e-5)
        distance = distance_95(prediction, reference, spacing_mm)
        assert distance == pytest.approx(KEPT["distance_95"][row], abs=1e-9)


def test_distances_are_those_of_scipys_transform():
    spacing_mm = np.array([3.0, 0.8, 0.7])
    random = np.random.default_rng(0)
    places = random.random((20, 30, 40)) < 0.002
    points = np.argwhere(random.random(places.shape) < 0.02)

    theirs = ndimage.distance_transform_edt(~places, sampling=spacing_mm)

    ours = nearest_mm(points * spacing_mm, np.argwhere(places) * spacing_mm)
    assert ours == pytest.approx(theirs[tuple(points.T)], abs=1e-9)


def test_a_real_tumor_moved_by_less_than_the_tolerance(kits19):
    """One voxel to the side is within KiTS23's tolerance, four are not."""
    labels = read_labels(kits19 / "case_00075" / "segmentation.nii.gz")
    tumor = labels.voxels == 2
    tolerance_mm = TOLERANCES_MM["kits23"]["tumor"]
    assert labels.spacing_mm[2] < tolerance_mm

    by_one = surface_dice(np.roll(tumor, 1, axis=2), tumor, labels.spacing_mm, tolerance_mm)
    by_four = surface_dice(np.roll(tumor, 4, axis=2), tumor, labels.spacing_mm, tolerance_mm)

    assert by_one == 1
    assert 0 < by_four < 1


# --- what holds for any masks ---------------------------------------------------------------------


def test_mask_and_reference_may_be_exchanged():
    prediction, reference = PAIRS[4]

    one_way = surface_dice(prediction, reference, SPACINGS[1], 1.1)

    assert surface_dice(reference, prediction, SPACINGS[1], 1.1) == pytest.approx(one_way)
    assert distance_95(reference, prediction, SPACINGS[1]) == pytest.approx(
        distance_95(prediction, reference, SPACINGS[1])
    )


def test_axes_may_be_exchanged_and_turned_around_with_the_spacing():
    prediction, reference = PAIRS[3]
    turned = [mask.transpose(2, 0, 1)[::-1, :, ::-1] for mask in (prediction, reference)]

    straight = surface_dice(prediction, reference, (3.0, 0.8, 0.7), 1.5)

    assert surface_dice(*turned, (0.7, 3.0, 0.8), 1.5) == pytest.approx(straight)
    assert distance_95(*turned, (0.7, 3.0, 0.8)) == pytest.approx(
        distance_95(prediction, reference, (3.0, 0.8, 0.7))
    )


def test_the_wider_the_tolerance_the_higher_the_score():
    prediction, reference = PAIRS[4]

    scores = [surface_dice(prediction, reference, (2.0, 1.0, 1.0), mm) for mm in (0, 1, 2, 4, 8)]

    assert scores == sorted(scores)
    assert scores[0] < scores[-1]
