"""Against scikit-image, against a slow witness that interpolates everywhere, and by symmetry."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_page import interpolated_labels
from scipy.ndimage import zoom
from skimage.transform import resize

from minikits import resampling
from minikits.preprocessing import (
    labels_on_native_grid,
)
from minikits.resampling import axis_matrix, resample, resample_labels
from minikits.volumes import Volume

SHAPES = [
    ((20, 31, 17), (33, 20, 40)),
    ((9, 12, 5), (4, 30, 5)),
    ((1, 4, 50), (3, 2, 17)),
    ((40, 8, 9), (7, 8, 9)),
]


def volume_of(voxels, spacing_mm):
    return Volume(Path("case"), voxels, spacing_mm, np.eye(4), None)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape, new_shape", SHAPES)
def test_equals_scikit_image(shape, new_shape, order):
    values = np.random.default_rng(0).uniform(-1000, 1000, shape).astype(np.float32)
    wanted = resize(
        values.astype(np.float64),
        new_shape,
        order,
        mode="edge",
        anti_aliasing=False,
        preserve_range=True,
        clip=False,
    )
    assert np.abs(resample(values, new_shape, order) - wanted).max() <= 1e-4 * np.ptp(values)


def test_orders_per_axis():
    """Separate z: each slice by scikit-image, then the nearest slice."""
    values = np.random.default_rng(1).normal(0, 100, (6, 20, 22)).astype(np.float32)
    planes = np.stack(
        [
            resize(
                plane,
                (13, 30),
                3,
                mode="edge",
                anti_aliasing=False,
                preserve_range=True,
                clip=False,
            )
            for plane in values.astype(np.float64)
        ]
    )
    nearest = [int((z + 0.5) * 6 / 10) for z in range(10)]
    assert np.abs(resample(values, (10, 13, 30), (0, 3, 3)) - planes[nearest]).max() < 0.01


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([0, 1, 3]))
@settings(max_examples=60, deadline=None)
def test_a_matrix_keeps_constants_and_mirrors(size, new_size, order):
    matrix = axis_matrix(size, new_size, order)
    assert matrix.shape == (new_size, size)
    assert torch.allclose(matrix.sum(1), torch.ones(new_size), atol=1e-5)
    if order:  # nearest rounds ties upwards, whichever way one looks
        assert torch.allclose(matrix, matrix.flip(0, 1), atol=1e-5)
    if size == new_size:
        assert torch.allclose(matrix, torch.eye(size), atol=1e-5)


def test_an_integer_view_with_negative_strides_is_resampled_like_its_copy():
    values = np.random.default_rng(2).integers(-1000, 1000, (12, 10, 14)).astype(np.int16)
    view = values[::-1, :, ::-1].transpose(2, 0, 1)
    assert np.array_equal(resample(view, (7, 9, 20), 3), resample(view.copy(), (7, 9, 20), 3))


def test_unknown_order_is_refused():
    with pytest.raises(ValueError, match="order 2"):
        resample(np.zeros((3, 3, 3)), (4, 4, 4), 2)


@pytest.mark.parametrize("shape, new_shape", [*SHAPES, ((10, 10, 10), (20, 5, 15))])
@pytest.mark.parametrize("order", [1, (0, 1, 1)])
def test_labels_equal_the_witness(shape, new_shape, order):
    labels = np.random.default_rng(3).choice(3, p=[0.8, 0.15, 0.05], size=shape).astype(np.uint8)
    labels[: shape[0] // 3] = 0
    assert np.array_equal(
        resample_labels(labels, new_shape, order),
        interpolated_labels(labels, new_shape, np.broadcast_to(order, 3)),
    )


def test_where_three_labels_meet_no_voxel_falls_to_none_of_them():
    """2 x 2 in plane, labels 1 1 / 2 2: between them a tie, which goes to the nearest; 0 is nowhere."""
    labels = np.array([[[1, 1], [2, 2]]], dtype=np.uint8)
    out = resample_labels(labels, (1, 3, 2), 1)
    assert set(np.unique(out)) == {1, 2} and out[0, 1, 0] == 2  # the nearest of a middle rounds up
    assert not resample_labels(np.zeros((4, 4, 4), np.uint8), (8, 8, 8), 1).any()


def test_centres_of_voxels_by_hand():
    """Half-pixel centres: two voxels of four lie at 0.5 and 2.5, four of two at -0.25, 0.25, 0.75 and 1.25."""
    assert axis_matrix(4, 2, 1).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert axis_matrix(2, 4, 1).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert axis_matrix(4, 2, 0).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]  # half way: the upper
    assert axis_matrix(3, 5, 0).argmax(1).tolist() == [0, 0, 1, 2, 2]
    assert axis_matrix(5, 3, 0).argmax(1).tolist() == [0, 2, 4]


@pytest.mark.parametrize("size, new_size", [(40, 61), (40, 13), (5, 9), (2, 3), (100, 37)])
def test_a_cubic_row_is_scipys_spline(size, new_size):
    """Column by column, to the rounding of float32: the samples replicated at the ends are enough."""
    columns = [
        zoom(column, new_size / size, order=3, mode="nearest", grid_mode=True)
        for column in np.eye(size)
    ]
    assert np.abs(axis_matrix(size, new_size, 3).numpy() - np.stack(columns, axis=1)).max() < 4e-7


def test_an_axis_that_keeps_its_length_is_left_as_it_is():
    values = np.random.default_rng(10).normal(0, 1000, (6, 7, 8)).astype(np.float32)
    assert np.array_equal(resample(values, (6, 7, 8), 3), values)
    assert np.array_equal(resample(values, (6, 7, 16), (3, 3, 0)), values.repeat(2, axis=2))


def test_a_tie_of_labels_goes_to_the_nearest_voxel_and_one_of_probabilities_to_the_lower_class():
    """Three voxels made two: half a voxel of the middle one in each. Two made three: the middle is a tie."""
    labels = np.array([2, 1], dtype=np.uint8).reshape(1, 1, 2)
    assert resample_labels(labels, (1, 1, 3), 1).flatten().tolist() == [
        2,
        1,
        1,
    ]  # 1 is the nearest: the upper
    assert resample_labels(labels[..., ::-1], (1, 1, 3), 1).flatten().tolist() == [1, 2, 2]
    for pair, wanted in (
        ((0, 1), [0, 0, 1]),
        ((2, 1), [2, 1, 1]),
        ((1, 2), [1, 1, 2]),
        ((2, 0), [2, 0, 0]),
    ):
        probabilities = np.eye(3)[list(pair)].T.reshape(3, 1, 1, 2)
        native = labels_on_native_grid(probabilities, volume_of(np.zeros((1, 1, 3)), (1, 1, 1)))
        assert native.flatten().tolist() == wanted


@pytest.mark.parametrize("slab", [1, 64, 500, 2000])
def test_work_in_slabs_gives_the_same(monkeypatch, slab):
    """What is done at once is for memory alone."""
    random = np.random.default_rng(7)
    values = random.normal(0, 100, (11, 13, 17))
    labels = random.choice(3, p=[0.8, 0.15, 0.05], size=(11, 13, 17)).astype(np.uint8)
    probabilities = random.random((3, 11, 13, 17), dtype=np.float32)
    native = volume_of(np.zeros((20, 9, 25)), (1.0, 1.0, 1.0))

    def everything():
        return [
            resample(values, (20, 9, 25), 3),
            resample(values, (5, 30, 17), (0, 1, 3)),
            resample_labels(labels, (20, 9, 25), 1),
            labels_on_native_grid(probabilities, native),
        ]

    wanted = everything()
    monkeypatch.setattr(resampling, "SLAB_VOXELS", slab)
    for found, whole in zip(everything(), wanted):
        assert found.dtype == whole.dtype
        assert (
            np.allclose(found, whole, atol=1e-3)
            if found.dtype == np.float32
            else np.array_equal(found, whole)
        )


@pytest.mark.parametrize(
    "order",
    [
        np.int64(1),
        np.int32(1),
        np.array(1),
        1.0,
        (np.int64(1), 1, np.uint8(1)),
        [1, 1, 1],
        np.array([1, 1, 1]),
    ],
)
def test_orders_may_be_numpys(order):
    values = np.random.default_rng(8).normal(0, 100, (4, 5, 6))
    labels = (values > 50).astype(np.uint8)
    assert np.array_equal(resample(values, (6, 5, 3), order), resample(values, (6, 5, 3), 1))
    assert np.array_equal(
        resample_labels(labels, (6, 5, 3), order), resample_labels(labels, (6, 5, 3), 1)
    )


@pytest.mark.parametrize(
    "dtype",
    [
        np.int8,
        np.uint8,
        np.int16,
        np.uint16,
        np.int64,
        np.float16,
        np.float32,
        np.float64,
        bool,
        ">i2",
        ">f4",
    ],
)
def test_values_of_any_type(dtype):
    values = np.random.default_rng(9).integers(0, 2, (4, 5, 6)).astype(dtype)
    nearest = resample(values, (6, 3, 6), 0)
    assert nearest.dtype == values.dtype and np.array_equal(
        nearest, resample(values.astype(float), (6, 3, 6), 0)
    )
    for order in (1, 3, (0, 1, 1)):
        found = resample(values, (6, 3, 6), order)
        assert found.dtype == np.float32 and np.array_equal(
            found, resample(values.astype(float), (6, 3, 6), order)
        )
    assert resample(values, (4, 5, 6), 3).dtype == np.float32
    assert np.array_equal(
        resample_labels(values, (6, 3, 6), 1),
        resample_labels(values.astype(np.uint8), (6, 3, 6), 1),
    )


VALUES = np.zeros((3, 4, 5), dtype=np.float32)


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda: resample(VALUES, (3, 4, 5), 2), "order 2"),
        (lambda: resample(VALUES, (3, 4, 6), (0, 1, 2)), "order"),
        (lambda: resample(VALUES, (3, 4, 6), (1, 1)), "shape|broadcast"),
        (lambda: resample(VALUES, (3, 4, 6), -1), "order -1"),
        (lambda: resample(VALUES, (3, 4, 6), None), "order None"),
        (lambda: resample(VALUES, (3, 4), 1), "at least one voxel"),
        (lambda: resample(VALUES, (3, 4, 0), 1), "at least one voxel"),
        (lambda: resample(VALUES, (3, 4, -5), 0), "at least one voxel"),
        (lambda: resample(VALUES[0], (3, 4, 5), 1), "at least one voxel"),
        (lambda: resample(VALUES[:0], (3, 4, 5), 1), "at least one voxel"),
        (lambda: axis_matrix(0, 3, 1), "at least one"),
        (lambda: axis_matrix(3, 0, 1), "at least one"),
        (lambda: resample_labels(VALUES + 3, (3, 4, 6), 1), "labels from 3"),
        (lambda: resample_labels(VALUES.astype(np.int16) - 1, (3, 4, 6), 1), "labels from -1"),
        (lambda: resample_labels(VALUES.astype(np.int16) + 256, (3, 4, 6), 1), "labels from 256"),
        (lambda: resample_labels(VALUES + 0.5, (3, 4, 6), 1), "whole numbers"),
        (lambda: resample_labels(VALUES + np.nan, (3, 4, 6), 1), "whole numbers"),
        (lambda: resample_labels(VALUES[:0], (3, 4, 6), 1), "at least one voxel"),
        (lambda: resample_labels(VALUES, (3, 4, 6), 2), "order 2"),
        (lambda: resample_labels(VALUES, (3, 4), 1), "at least one voxel"),
        (
            lambda: labels_on_native_grid(np.zeros((3, 4, 5)), volume_of(VALUES, (1, 1, 1))),
            "at least one voxel",
        ),
        (
            lambda: labels_on_native_grid(np.zeros((3, 4, 5, 0)), volume_of(VALUES, (1, 1, 1))),
            "at least one voxel",
        ),
    ],
)
def test_what_cannot_be_resampled_is_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()
