"""Against scikit-image, against a slow witness that interpolates everywhere, and by symmetry."""

import dataclasses
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize

from minikits.paper import PAPER
from minikits.resampling import (
    axis_matrix,
    labels_on_native_grid,
    prepare_image,
    prepare_labels,
    resample,
    resample_labels,
    resampled_shape,
    thick_axis,
)
from minikits.volumes import Volume

SHAPES = [((20, 31, 17), (33, 20, 40)), ((9, 12, 5), (4, 30, 5)), ((1, 4, 50), (3, 2, 17)), ((40, 8, 9), (7, 8, 9))]


def volume_of(voxels, spacing_mm):
    return Volume(Path("case"), voxels, spacing_mm, np.eye(4), None)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape, new_shape", SHAPES)
def test_equals_scikit_image(shape, new_shape, order):
    values = np.random.default_rng(0).uniform(-1000, 1000, shape).astype(np.float32)
    wanted = resize(values.astype(np.float64), new_shape, order, mode="edge", anti_aliasing=False, preserve_range=True,
                    clip=False)
    assert np.abs(resample(values, new_shape, order) - wanted).max() <= 1e-4 * np.ptp(values)


def test_orders_per_axis():
    """Separate z: each slice by scikit-image, then the nearest slice."""
    values = np.random.default_rng(1).normal(0, 100, (6, 20, 22)).astype(np.float32)
    planes = np.stack([resize(plane, (13, 30), 3, mode="edge", anti_aliasing=False, preserve_range=True, clip=False)
                       for plane in values.astype(np.float64)])
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


def labels_everywhere(labels, shape, order):
    """The witness: masks resampled over the whole volume, the largest wins, a tie to the nearest voxel's label."""
    masks = np.stack([resample((labels == value).astype(np.float32), shape, order) for value in range(3)])
    nearest = resample(labels, shape, 0)
    tied = np.take_along_axis(masks, nearest[None].astype(int), 0)[0] >= masks.max(0) - 1e-5
    return np.where(tied, nearest, masks.argmax(0))


@pytest.mark.parametrize("shape, new_shape", [*SHAPES, ((10, 10, 10), (20, 5, 15))])
@pytest.mark.parametrize("order", [1, (0, 1, 1)])
def test_labels_equal_the_witness(shape, new_shape, order):
    labels = np.random.default_rng(3).choice(3, p=[0.8, 0.15, 0.05], size=shape).astype(np.uint8)
    labels[: shape[0] // 3] = 0
    assert np.array_equal(resample_labels(labels, new_shape, order), labels_everywhere(labels, new_shape, order))


def test_where_three_labels_meet_no_voxel_falls_to_none_of_them():
    """2 x 2 in plane, labels 1 1 / 2 2: between them a tie, which goes to the nearest; 0 is nowhere."""
    labels = np.array([[[1, 1], [2, 2]]], dtype=np.uint8)
    out = resample_labels(labels, (1, 3, 2), 1)
    assert set(np.unique(out)) == {1, 2} and out[0, 1, 0] == 2  # the nearest of a middle rounds up
    assert not resample_labels(np.zeros((4, 4, 4), np.uint8), (8, 8, 8), 1).any()


@pytest.mark.parametrize("spacing, orders", [((3.0, 1.5, 1.5), 1), ((5.0, 1.0, 1.0), (0, 1, 1))])
def test_probabilities_back_equal_the_witness(spacing, orders):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 9, 14, 11, generator=generator)
    logits[0] += 1.5
    probabilities = logits.softmax(0)
    probabilities[:, :3] = torch.tensor([0.9, 0.05, 0.05]).reshape(3, 1, 1, 1)
    shape = (23, 30, 19)
    wanted = np.stack([resample(p.numpy(), shape, orders) for p in probabilities]).argmax(0)
    found = labels_on_native_grid(probabilities, volume_of(np.zeros(shape), spacing))
    assert found.dtype == np.uint8 and np.mean(found != wanted) < 1e-3  # float rounding of near ties
    assert (wanted > 0).any() and (wanted == 0).any()


def test_probabilities_that_are_background_everywhere():
    probabilities = torch.tensor([0.8, 0.1, 0.1]).reshape(3, 1, 1, 1).expand(3, 4, 5, 6)
    assert not labels_on_native_grid(probabilities, volume_of(np.zeros((9, 9, 9)), (1, 1, 1))).any()


def test_labels_go_down_and_come_back():
    """A ball at 1 mm, to the paper's grid and back: only its surface changes."""
    z, y, x = np.ogrid[:64, :96, :96]
    ball = ((z - 31.5) ** 2 + (y - 47) ** 2 + (x - 50) ** 2 < 24**2).astype(np.uint8)
    volume = volume_of(ball, (1.0, 1.0, 1.0))
    down = prepare_labels(volume, PAPER)
    back = labels_on_native_grid(torch.nn.functional.one_hot(torch.from_numpy(down).long(), 3).permute(3, 0, 1, 2),
                                 volume)
    assert 2 * np.sum(ball & back) / (ball.sum() + back.sum()) > 0.96
    assert down.shape == (20, 59, 59)


@pytest.mark.parametrize("spacing, axis", [
    ((5, 1, 1), 0), ((3, 1, 1), None), ((3.01, 1, 1), 0), ((1, 5, 1), 1), ((5, 5, 1), None), ((1, 1, 1), None)])
def test_thick_axis(spacing, axis):
    assert thick_axis(spacing) == axis


def test_shape_is_rounded_half_to_even_and_never_zero():
    recipe = dataclasses.replace(PAPER, spacing_mm=(2.0, 2.0, 2.0))
    assert resampled_shape((5, 7, 1), (1.0, 1.0, 0.5), recipe) == (2, 4, 1)


@pytest.mark.parametrize("spacing", [(1.0, 0.8, 0.8), (5.0, 0.8, 0.8)])
def test_image_is_clipped_to_its_range_and_normalised(spacing):
    """Where z is thick, to each slice's own range: the reference implementation resizes slice by slice."""
    voxels = np.random.default_rng(5).integers(-50, 200, (12, 40, 40)).astype(np.int16)
    volume = volume_of(voxels, spacing)
    shape = resampled_shape(voxels.shape, spacing, PAPER)
    if spacing[0] < 3:
        wanted = resize(voxels.astype(float), shape, 3, mode="edge", anti_aliasing=False, preserve_range=True,
                        clip=True)
    else:
        planes = np.stack([resize(plane.astype(float), shape[1:], 3, mode="edge", anti_aliasing=False,
                                  preserve_range=True, clip=True) for plane in voxels])
        wanted = planes[[int((z + 0.5) * 12 / shape[0]) for z in range(shape[0])]]
    wanted = (np.clip(wanted, -79, 304) - 101) / 76.9
    found = prepare_image(volume, PAPER)
    assert found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-3


def test_a_constant_volume_stays_constant():
    for value, spacing in product((-1000, 40, 3000), [(1.0, 1.0, 1.0), (8.0, 1.0, 1.0)]):
        image = prepare_image(volume_of(np.full((3, 9, 9), value, dtype=np.int16), spacing), PAPER)
        assert np.allclose(image, (np.clip(value, -79, 304) - 101) / 76.9)
