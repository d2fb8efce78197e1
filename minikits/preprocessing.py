"""A scan to the networks' grid, its labels too, and probabilities back to the scan's.

Where voxels are far from cubes, the axis along which they are thick is interpolated apart, by
nearest neighbour: a spline through slices 5 mm apart would make up what lies between them."""

from collections.abc import Sequence

import numpy as np
import torch

from minikits.paper import IMAGE_ORDER, LABEL_ORDER, SEPARATE_Z_ABOVE
from minikits.recipe import Recipe
from minikits.resampling import (
    check_shapes,
    fill_with_winners,
    largest,
    resample,
    resample_labels,
)
from minikits.volumes import Volume


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], recipe: Recipe
) -> tuple[int, ...]:
    """Voxels per axis at the recipe's spacing: half to even, at least 1."""
    new_shape = []
    for size, old_mm, new_mm in zip(shape, spacing_mm, recipe.spacing_mm):
        new_size = int(np.round(size * old_mm / new_mm))
        new_shape.append(max(1, new_size))
    return tuple(new_shape)


def thick_axis(spacing_mm: Sequence[float]) -> int | None:
    """The axis along which voxels are thick; None where they are nearly cubes, or where two are.

    >>> thick_axis((5.0, 0.8, 0.8))
    0
    """
    thickest = max(spacing_mm)
    axes = [axis for axis in range(3) if spacing_mm[axis] == thickest]
    if thickest / min(spacing_mm) > SEPARATE_Z_ABOVE and len(axes) == 1:
        return axes[0]
    return None


def image_orders(spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """The orders of interpolation of an image's three axes."""
    return _nearest_if_thick(IMAGE_ORDER, spacing_mm)


def label_orders(spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """The orders of interpolation of labels and probabilities along three axes."""
    return _nearest_if_thick(LABEL_ORDER, spacing_mm)


def _nearest_if_thick(order, spacing_mm):
    """This order of interpolation for each of three axes, but 0, nearest neighbour, for a thick one.

    >>> _nearest_if_thick(1, spacing_mm=(5.0, 0.8, 0.8))
    (0, 1, 1)
    """
    orders = [order] * 3
    thick = thick_axis(spacing_mm)
    if thick is not None:
        orders[thick] = 0
    return tuple(orders)


def prepare_image(volume: Volume, recipe: Recipe) -> np.ndarray:
    """A scan in HU -> float32 (Z, Y, X) as the networks take it: resampled, clipped, normalised
    [paper 2.1]. A volume of one value stays constant."""
    shape = resampled_shape(volume.voxels.shape, volume.spacing_mm, recipe)
    image = resample(volume.voxels, shape, image_orders(volume.spacing_mm))

    lowest, highest = _range_of_voxels(volume, shape)  # the spline swings over it
    image = np.clip(image, lowest, highest)

    image = np.clip(image, *recipe.window_hu)
    return (image - np.float32(recipe.mean_hu)) / np.float32(recipe.sd_hu)


def _range_of_voxels(volume, shape):
    """(lowest, highest) float32 for each voxel of `shape`, as arrays to broadcast: the scan's, or
    where an axis is thick, those of the nearest slice across it."""
    thick = thick_axis(volume.spacing_mm)
    within = tuple({0, 1, 2} - {thick})
    of_slices = [1, 1, 1]
    if thick is not None:
        of_slices[thick] = shape[thick]

    lowest = volume.voxels.min(axis=within, keepdims=True)
    highest = volume.voxels.max(axis=within, keepdims=True)
    lowest, highest = (resample(bound, of_slices, 0) for bound in (lowest, highest))
    return lowest.astype(np.float32), highest.astype(np.float32)


def prepare_labels(volume: Volume, recipe: Recipe) -> np.ndarray:
    """A label Volume -> uint8 (Z, Y, X) on the grid of `prepare_image`."""
    shape = resampled_shape(volume.voxels.shape, volume.spacing_mm, recipe)
    return resample_labels(volume.voxels, shape, label_orders(volume.spacing_mm))


def labels_on_native_grid(probabilities: torch.Tensor | np.ndarray, volume: Volume) -> np.ndarray:
    """(K, z, y, x) probabilities on the networks' grid -> (Z, Y, X) uint8 labels on the scan's.

    Interpolated linearly (nearest along a thick axis), then the class of the largest, a tie to the
    lower. ValueError for probabilities that are not finite: a NaN would win any comparison."""
    probabilities = torch.as_tensor(probabilities)
    check_shapes(probabilities.shape[1:], volume.voxels.shape)
    _check_finite(probabilities)

    def scores(box):
        return probabilities[:, *box].float()

    winners = largest(probabilities).cpu().numpy()
    labels = np.zeros_like(volume.voxels, dtype=np.uint8)  # in the order in which it is written
    fill_with_winners(labels, scores, winners, label_orders(volume.spacing_mm))
    return labels


def _check_finite(probabilities):
    strange = probabilities.numel() - int(probabilities.isfinite().sum())
    if strange:
        raise ValueError(
            f"{strange} of {probabilities.numel()} probabilities are NaN or infinite, wanted 0 to "
            "1; look for values that no CT has in the scan, and for damage in the networks' weights"
        )
