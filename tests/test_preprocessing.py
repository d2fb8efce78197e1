"""From a scan to the networks' grid and back: against scikit-image, a slow witness, and by symmetry."""

import dataclasses
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from skimage.transform import resize
from test_resampling import VALUES, volume_of

from minikits.paper import PAPER
from minikits.preprocessing import (
    label_orders,
    labels_on_native_grid,
    prepare_image,
    prepare_labels,
    resampled_shape,
    thick_axis,
)
from minikits.resampling import resample, resample_labels
from minikits.volumes import Volume


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
    assert (
        found.dtype == np.uint8 and np.mean(found != wanted) < 1e-3
    )  # float rounding of near ties
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
    back = labels_on_native_grid(
        torch.nn.functional.one_hot(torch.from_numpy(down).long(), 3).permute(3, 0, 1, 2), volume
    )
    assert 2 * np.sum(ball & back) / (ball.sum() + back.sum()) > 0.96
    assert down.shape == (20, 59, 59)


@pytest.mark.parametrize(
    "spacing, axis",
    [
        ((5, 1, 1), 0),
        ((3, 1, 1), None),
        ((3.01, 1, 1), 0),
        ((1, 5, 1), 1),
        ((5, 5, 1), None),
        ((1, 1, 1), None),
    ],
)
def test_thick_axis(spacing, axis):
    assert thick_axis(spacing) == axis


def test_shape_is_rounded_half_to_even_and_never_zero():
    recipe = dataclasses.replace(PAPER, spacing_mm=(2.0, 2.0, 2.0))
    assert resampled_shape((5, 7, 1), (1.0, 1.0, 0.5), recipe) == (2, 4, 1)


@pytest.mark.parametrize("spacing", [(1.0, 0.8, 0.8), (5.0, 0.8, 0.8)])
@pytest.mark.parametrize("low, high", [(-50, 200), (-1000, 1500)])
@pytest.mark.parametrize("target", [PAPER.spacing_mm, (0.7, 0.5, 0.6)])
def test_image_is_clipped_to_its_range_and_normalised(spacing, low, high, target):
    """Where z is thick, to each slice's own range: the reference implementation resizes slice by slice.
    The slices' ranges grow, so that each has its own; the spline swings over them where voxels become smaller."""
    recipe = dataclasses.replace(PAPER, spacing_mm=target)
    voxels = (
        np.random.default_rng(5).integers(low, high, (12, 40, 40))
        * np.linspace(0.2, 1, 12)[:, None, None]
    )
    voxels = voxels.astype(np.int16)
    volume = volume_of(voxels, spacing)
    shape = resampled_shape(voxels.shape, spacing, recipe)
    if spacing[0] < 3:
        wanted = resize(
            voxels.astype(float),
            shape,
            3,
            mode="edge",
            anti_aliasing=False,
            preserve_range=True,
            clip=True,
        )
    else:
        planes = np.stack(
            [
                resize(
                    plane.astype(float),
                    shape[1:],
                    3,
                    mode="edge",
                    anti_aliasing=False,
                    preserve_range=True,
                    clip=True,
                )
                for plane in voxels
            ]
        )
        wanted = planes[[int((z + 0.5) * 12 / shape[0]) for z in range(shape[0])]]
    wanted = (np.clip(wanted, -79, 304) - 101) / 76.9
    found = prepare_image(volume, recipe)
    assert found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-3


def test_a_constant_volume_stays_constant():
    for value, spacing in product((-1000, 40, 3000), [(1.0, 1.0, 1.0), (8.0, 1.0, 1.0)]):
        image = prepare_image(volume_of(np.full((3, 9, 9), value, dtype=np.int16), spacing), PAPER)
        assert np.allclose(image, (np.clip(value, -79, 304) - 101) / 76.9)


def test_an_image_is_cubic_and_label_masks_are_linear():
    """Along an edge the cubic spline swings over, a linear one does not."""
    voxels = np.zeros((4, 4, 24), dtype=np.int16)
    voxels[:, :, 12:] = 100
    voxels[0, 0, 0], voxels[0, 0, 23] = (
        -50,
        300,
    )  # so that the scan's range clips nothing of the swing
    recipe = dataclasses.replace(PAPER, spacing_mm=(1.0, 1.0, 0.45), mean_hu=0.0, sd_hu=1.0)
    row = prepare_image(volume_of(voxels, (1.0, 1.0, 1.0)), recipe)[2, 2]
    assert row.max() > 105 and row.min() < -5
    assert label_orders((1.0, 1.0, 1.0)) == (1, 1, 1)
    assert label_orders((4.0, 1.0, 1.0)) == (0, 1, 1) and label_orders((1.0, 1.0, 4.0)) == (1, 1, 0)


@pytest.mark.parametrize("order", [(1, 0, 2), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("spacing", [(6.0, 1.0, 1.3), (1.0, 0.8, 0.9)])
def test_axes_are_treated_alike(order, spacing):
    """A scan whose axes are in another order gives the same in that order, where one axis is thick too."""
    random = np.random.default_rng(6)
    voxels = random.integers(-50, 200, (7, 20, 18)).astype(np.int16)
    labels = random.choice(3, p=[0.7, 0.2, 0.1], size=(7, 20, 18)).astype(np.uint8)
    recipe = dataclasses.replace(PAPER, spacing_mm=(3.2, 1.7, 1.5))
    turned = dataclasses.replace(
        recipe, spacing_mm=tuple(recipe.spacing_mm[axis] for axis in order)
    )
    turned_spacing = tuple(spacing[axis] for axis in order)

    image = prepare_image(volume_of(voxels, spacing), recipe)
    other = prepare_image(volume_of(voxels.transpose(order), turned_spacing), turned)
    assert np.allclose(other, image.transpose(order), atol=1e-4)

    small = prepare_labels(volume_of(labels, spacing), recipe)
    other = prepare_labels(volume_of(labels.transpose(order), turned_spacing), turned)
    assert np.array_equal(other, small.transpose(order))

    probabilities = np.eye(3, dtype=np.float32)[small].transpose(3, 0, 1, 2)
    probabilities += 0.01 * random.random(probabilities.shape, dtype=np.float32)
    back = labels_on_native_grid(probabilities, volume_of(voxels, spacing))
    other = labels_on_native_grid(
        probabilities.transpose(0, *(1 + axis for axis in order)),
        volume_of(voxels.transpose(order), turned_spacing),
    )
    assert np.mean(other != back.transpose(order)) < 1e-3  # rounding of near ties


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_of_thick_slices_are_each_those_of_one_slice(axis):
    """Nearest along the thick axis: as if each slice were resampled in its plane by itself, and then repeated."""
    labels = np.random.default_rng(11).choice(3, size=(4, 8, 9)).astype(np.uint8)
    spacing, target = [1.0] * 3, [0.7] * 3
    spacing[axis], target[axis] = 6.0, 1.5
    small = prepare_labels(
        volume_of(np.moveaxis(labels, 0, axis), tuple(spacing)),
        dataclasses.replace(PAPER, spacing_mm=tuple(target)),
    )
    each = np.concatenate([resample_labels(labels[z : z + 1], (1, 11, 13), 1) for z in range(4)])
    assert np.array_equal(np.moveaxis(small, axis, 0), each.repeat(4, axis=0))


def test_a_mask_lies_in_memory_as_the_scan_does():
    """In the order of the file, in which it is written."""
    for voxels in (np.zeros((4, 5, 6)), np.zeros((6, 5, 4)).T):
        native = labels_on_native_grid(np.ones((3, 2, 3, 3)), volume_of(voxels, (1.0, 1.0, 1.0)))
        assert native.flags.c_contiguous == voxels.flags.c_contiguous and native.shape == (4, 5, 6)


def test_each_axis_has_its_own_length():
    assert resampled_shape(
        (10, 20, 30), (3.0, 2.0, 1.0), dataclasses.replace(PAPER, spacing_mm=(1.5, 1.0, 2.0))
    ) == (20, 40, 15)
    assert resampled_shape((1, 1, 1), (0.1, 0.1, 9.0), PAPER) == (1, 1, 6)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_probabilities_that_are_not_finite_are_refused(broken):
    """Any comparison with NaN is lost: the voxel would be background, in silence."""
    probabilities = np.zeros((3, 4, 5, 6), dtype=np.float32)
    probabilities[1, 2, 2, 2] = broken
    with pytest.raises(ValueError, match="1 of 360 probabilities are NaN or infinite"):
        labels_on_native_grid(probabilities, volume_of(VALUES, (1, 1, 1)))


def test_images_are_clipped_to_the_recipes_window():
    voxels = np.linspace(-300, 400, 60, dtype=np.float32).reshape(3, 4, 5)
    volume = Volume(Path("scan.nii"), voxels, (8.0, 6.0, 6.0), np.eye(4), None)
    image = prepare_image(volume, replace(TINY, window_hu=(-50.0, 350.0)))
    assert (image.min(), image.max()) == pytest.approx(((-50 - 101) / 76.9, (350 - 101) / 76.9))
