"""A scan to the network's grid, its labels too, and probabilities back to the scan's."""

import numpy as np
import torch

from minikits.paper import IMAGE_ORDER, LABEL_ORDER, SEPARATE_Z_ABOVE
from minikits.resampling import check_shapes, largest, resample, resample_labels, winners


def resampled_shape(shape, spacing_mm, recipe):
    """Voxels per axis at the recipe's spacing: half to even, at least 1."""
    return tuple(
        max(1, int(np.round(n * old / new)))
        for n, old, new in zip(shape, spacing_mm, recipe.spacing_mm)
    )


def thick_axis(spacing_mm):
    """The axis that is interpolated apart, by nearest neighbour: the one thickest, where voxels are far from cubes."""
    thickest = [axis for axis in range(3) if spacing_mm[axis] == max(spacing_mm)]
    return (
        thickest[0]
        if max(spacing_mm) / min(spacing_mm) > SEPARATE_Z_ABOVE and len(thickest) == 1
        else None
    )


def label_orders(spacing_mm):
    return tuple(0 if axis == thick_axis(spacing_mm) else LABEL_ORDER for axis in range(3))


def prepare_image(volume, recipe):
    """A Volume in HU -> float32 (Z, Y, X) as the networks take it: resampled, clipped, normalised [paper 2.1].
    The spline's overshoot is clipped to the range of the scan, or of each slice where the axis is interpolated
    apart. A volume of one value stays constant."""
    shape = resampled_shape(volume.voxels.shape, volume.spacing_mm, recipe)
    thick = thick_axis(volume.spacing_mm)
    each, plane = (
        [shape[axis] if axis == thick else 1 for axis in range(3)],
        tuple({0, 1, 2} - {thick}),
    )
    low, high = (
        resample(f(axis=plane, keepdims=True), each, 0)
        for f in (volume.voxels.min, volume.voxels.max)
    )
    orders = [0 if axis == thick else IMAGE_ORDER for axis in range(3)]
    image = np.clip(
        resample(volume.voxels, shape, orders), low.astype(np.float32), high.astype(np.float32)
    )
    return (np.clip(image, *recipe.window_hu) - np.float32(recipe.mean_hu)) / np.float32(
        recipe.sd_hu
    )


def prepare_labels(volume, recipe):
    """A label Volume -> uint8 (Z, Y, X) on the grid of `prepare_image`."""
    shape = resampled_shape(volume.voxels.shape, volume.spacing_mm, recipe)
    return resample_labels(volume.voxels, shape, label_orders(volume.spacing_mm))


def labels_on_native_grid(probabilities, volume):
    """(K, Z, Y, X) probabilities on the resampled grid -> (Z, Y, X) uint8 labels on the grid of `volume`.
    Linear (nearest along a thick axis), then the class of the largest probability, a tie to the lower class.
    ValueError for probabilities that are not finite: any comparison with NaN is lost, and background would win."""
    probabilities = torch.as_tensor(probabilities)
    check_shapes(probabilities.shape[1:], volume.voxels.shape)
    broken = probabilities.numel() - int(probabilities.isfinite().sum())
    if broken:
        raise ValueError(
            f"{broken} of {probabilities.numel()} probabilities are NaN or infinite, "
            "wanted finite ones; is the scan or the network damaged?"
        )
    out = np.zeros_like(
        volume.voxels, dtype=np.uint8
    )  # in the order of the file, in which it will be written
    return winners(
        lambda z, y, x: probabilities[:, z, y, x].float(),
        largest(probabilities).cpu().numpy(),
        out,
        label_orders(volume.spacing_mm),
        nearest_wins=False,
    )
