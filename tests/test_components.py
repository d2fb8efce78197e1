"""Which voxels hang together, by hand and beside scipy and scikit-image."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure

from minikits.components import bounding_box, label_components

each_connectivity = pytest.mark.parametrize("corners", [True, False], ids=["corners", "faces"])


def drawn(*slices):
    """A mask of slices, each drawn in rows of # and ."""
    return np.array([[[sign == "#" for sign in row] for row in rows.split()] for rows in slices])


def by_scipy(mask, corners):
    neighbours = ndimage.generate_binary_structure(3, 3 if corners else 1)
    return ndimage.label(mask, neighbours)


@pytest.mark.parametrize(
    "mask, with_corners, with_faces",
    [
        (drawn("## #".replace(" ", ".")), 2, 2),  # a gap
        (drawn("#. .#"), 1, 2),  # two voxels of a slice share an edge
        (drawn(".# #."), 1, 2),
        (drawn("#. #."), 1, 1),  # a face
        (drawn("#", "#"), 1, 1),  # a face, in z
        (drawn("#.", ".#"), 1, 2),  # an edge, in z and x
        (drawn("# .", ". #"), 1, 2),  # an edge, in z and y
        (drawn(". #", "# ."), 1, 2),
        (drawn("#. ..", ".. .#"), 1, 2),  # a corner
        (drawn(".. .#", "#. .."), 1, 2),
        (drawn(".# ..", ".. #."), 1, 2),
        (drawn("#.. ... ...", "... ... #.."), 2, 2),  # a row between them
        (drawn("#", ".", "#"), 2, 2),  # a slice between them
        (drawn("... ..#", "#.. ..."), 2, 2),  # no line goes on where the one before it ends
    ],
)
def test_neighbours_share_a_face_an_edge_or_a_corner(mask, with_corners, with_faces):
    _, count = label_components(mask)
    _, count_of_faces = label_components(mask, corners=False)

    assert (count, count_of_faces) == (with_corners, with_faces)


def test_components_are_numbered_by_their_first_voxels():
    mask = drawn("#...# ..... .#.#.", "#.... ..... .....")

    labels, count = label_components(mask, corners=False)

    assert count == 4
    assert labels.dtype == np.int32
    assert labels.tolist() == [
        [[1, 0, 0, 0, 2], [0, 0, 0, 0, 0], [0, 3, 0, 4, 0]],
        [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    ]


def test_a_comb_is_joined_at_its_end():
    """Its teeth are components of their own until the last row."""
    mask = drawn("#.#.#.# #.#.#.# #######")

    labels, count = label_components(mask)

    assert count == 1
    assert (labels == mask).all()


@each_connectivity
@pytest.mark.parametrize("shape", [(0, 0, 0), (3, 0, 2), (1, 1, 1), (4, 5, 6)])
def test_an_empty_mask_has_none(shape, corners):
    labels, count = label_components(np.zeros(shape, bool), corners=corners)

    assert count == 0
    assert labels.shape == shape
    assert not labels.any()


@each_connectivity
def test_a_full_mask_is_one(corners):
    labels, count = label_components(np.ones((3, 4, 5), bool), corners=corners)

    assert count == 1
    assert (labels == 1).all()


@each_connectivity
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6])
def test_as_scipy_and_scikit_image_have_it(share, corners):
    generator = np.random.default_rng(0)
    for shape in [(7, 9, 11), (1, 12, 30), (30, 1, 12), (12, 30, 1), (20, 20, 20)]:
        mask = generator.random(shape) < share

        labels, count = label_components(mask, corners=corners)

        expected, expected_count = by_scipy(mask, corners)
        by_skimage = measure.label(mask, connectivity=3 if corners else 1)
        assert count == expected_count
        assert np.array_equal(labels, expected)
        assert np.array_equal(labels, by_skimage)


@each_connectivity
def test_winding_regions_as_scipy_has_them(corners):
    """Noise that was smoothed: long regions that meet far from where they begin."""
    noise = np.random.default_rng(1).normal(size=(40, 60, 50))
    mask = ndimage.gaussian_filter(noise, 1.5) > 0

    labels, count = label_components(mask, corners=corners)

    expected, expected_count = by_scipy(mask, corners)
    assert count == expected_count > 1
    assert np.array_equal(labels, expected)


def test_a_mask_may_be_a_view_and_stays_as_it_is():
    mask = np.random.default_rng(2).random((8, 9, 10)) < 0.3
    turned = mask.transpose(2, 0, 1)[::-1]
    before = turned.copy()

    labels, count = label_components(turned)

    expected, expected_count = by_scipy(before, True)
    assert count == expected_count
    assert np.array_equal(labels, expected)
    assert np.array_equal(turned, before)


def test_voxels_of_0_and_1_are_a_mask_too():
    mask = np.array([[[0, 1, 1, 0, 1]]], np.uint8)

    labels, count = label_components(mask)

    assert (labels.tolist(), count) == ([[[0, 1, 1, 0, 2]]], 2)


def test_the_bounding_box_holds_the_mask_and_no_more():
    mask = np.zeros((5, 6, 7), bool)
    mask[1, 2, 3] = mask[3, 2, 5] = True

    assert bounding_box(mask) == (slice(1, 4), slice(2, 3), slice(3, 6))
    assert bounding_box(np.zeros((5, 6, 7), bool)) is None
