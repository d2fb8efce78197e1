"""One matrix per axis: images, labels, and probabilities on the way back.

A separable interpolation is a product of matrices (voxels out, voxels in), one per axis; the cubic spline's
prefilter is folded into its matrix. Half-pixel centres, edges replicated, no anti-aliasing: the result of
`skimage.transform.resize(mode="edge", anti_aliasing=False)`, which nnU-Net v1 calls.
"""

from functools import lru_cache

import numpy as np
import torch

from minikits.paper import CLASSES, IMAGE_ORDER, LABEL_ORDER, SEPARATE_Z_ABOVE

SPLINE_PADDING = 12  # replicated samples at both ends; the prefilter's echo has died to 1e-7 there
SLAB_VOXELS = 1 << 24  # work on about this many at once, so that memory does not grow with the scan
TIE = 1e-5  # scores nearer than this are a tie, which the nearest voxel's label decides


@lru_cache(maxsize=64)
def axis_matrix(size, new_size, order):
    """The interpolation of one axis: a float32 tensor (new_size, size). order 0 nearest, 1 linear, 3 cubic B-spline."""
    place = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    if order == 0:
        taps = [(np.floor(place + 0.5), np.ones(new_size))]
    elif order == 1:
        t = place - np.floor(place)
        taps = [(np.floor(place), 1 - t), (np.floor(place) + 1, t)]
    elif order == 3:
        t = place - np.floor(place)
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3)
        taps = [(np.floor(place) + k - 1, w / 6) for k, w in enumerate(weights)]
    else:
        raise ValueError(f"interpolation of order {order}; wanted 0 (nearest), 1 (linear) or 3 (cubic)")
    pad = SPLINE_PADDING if order == 3 else 0
    matrix = np.zeros((new_size, size + 2 * pad))
    for index, weight in taps:
        np.add.at(matrix, (np.arange(new_size), np.clip(index + pad, 0, size + 2 * pad - 1).astype(int)), weight)
    if order == 3:
        # samples = B-spline kernel * coefficients, mirrored at the ends; the taps weigh coefficients
        kernel = np.diag(np.full(size + 2 * pad, 4.0)) + np.eye(size + 2 * pad, k=1) + np.eye(size + 2 * pad, k=-1)
        kernel[0, 1] = kernel[-1, -2] = 2
        matrix = np.linalg.solve(kernel.T / 6, matrix.T).T
        matrix[:, pad] += matrix[:, :pad].sum(1)
        matrix[:, -pad - 1] += matrix[:, -pad:].sum(1)
        matrix = matrix[:, pad:-pad]
    return torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))


def resample(volume, shape, order):
    """(Z, Y, X) numbers -> an array of `shape`. order: 0, 1 or 3, or one of them per axis. No clipping.

    Order 0 keeps the type, the others give float32. An axis that keeps its length is left as it is.
    """
    orders = (order,) * 3 if isinstance(order, int) else tuple(order)
    volume = np.asarray(volume)
    # nearest neighbour first, then the axis that shrinks most: the others have less to do
    for axis in sorted(range(3), key=lambda axis: (orders[axis] > 0, shape[axis] / volume.shape[axis])):
        size, new_size = volume.shape[axis], shape[axis]
        if size == new_size:
            continue
        matrix = axis_matrix(size, new_size, orders[axis])
        if orders[axis] == 0:
            volume = np.take(volume, matrix.argmax(1).numpy(), axis=axis)
        else:
            volume = _along(volume, matrix, axis)
    return volume if max(orders) == 0 else np.asarray(volume, dtype=np.float32)


def _along(volume, matrix, axis):
    """`matrix` applied to one axis of an array, slab by slab of another axis, in float32."""
    shape = list(volume.shape)
    shape[axis] = matrix.shape[0]
    out = np.empty(shape, dtype=np.float32)
    across = 1 if axis == 0 else 0
    thickness = max(1, SLAB_VOXELS * volume.shape[across] // volume.size)
    for start in range(0, volume.shape[across], thickness):
        slab = (slice(None),) * across + (slice(start, start + thickness),)
        part = torch.from_numpy(np.ascontiguousarray(volume[slab], dtype=np.float32))
        out[slab] = _apply(matrix, part, axis).numpy()
    return out


def _apply(matrix, values, axis):
    """`matrix` applied to axis 0, 1 or 2, counted from the last three of a tensor."""
    if axis == 2:
        return values @ matrix.T
    if axis == 1:
        return matrix @ values
    return (matrix @ values.flatten(-2)).unflatten(-1, values.shape[-2:])


def resample_labels(labels, shape, order):
    """(Z, Y, X) labels 0, 1, 2 -> uint8 of `shape`: each label's 0/1 mask is resampled, the largest wins.

    A tie goes to the label of the nearest voxel (batchgenerators >= 0.25.5; before, a label was set where its
    mask was at least 1/2, so that a voxel where three labels meet could fall to none of them).
    """
    orders = (order,) * 3 if isinstance(order, int) else tuple(order)
    labels = np.asarray(labels)
    if max(orders) == 0 or labels.shape == tuple(shape):
        return resample(labels, shape, 0).astype(np.uint8)
    values = range(int(labels.max()) + 1)

    def masks(z, y, x):
        part = torch.from_numpy(np.ascontiguousarray(labels[z, y, x]))
        return torch.stack([part == value for value in values]).float()

    return _winners(masks, labels, shape, orders, tie_breaker=labels)


def labels_on_native_grid(probabilities, volume):
    """(K, Z, Y, X) probabilities on the resampled grid -> (Z, Y, X) uint8 labels on the grid of `volume`.

    Linear (nearest along a thick axis), then the class of the largest probability, a tie to the lower class.
    """
    probabilities = torch.as_tensor(probabilities)
    coarse = _largest(probabilities).cpu().numpy()
    orders = label_orders(volume.spacing_mm)
    return _winners(lambda z, y, x: probabilities[:, z, y, x].float(), coarse, volume.voxels.shape, orders)


def _winners(scores, coarse, shape, orders, tie_breaker=None):
    """Scores interpolated to `shape`, and their winner: uint8, slab by slab.

    scores(z, y, x): (K, z, y, x) floats at these input indices; coarse: the winner at every input voxel. Linear
    interpolation is a convex combination: where all the corners of a cell agree on the winner it cannot change.
    So only what takes part of a voxel that is not background is computed, and the result is exact.
    """
    out = np.zeros(shape, dtype=np.uint8)
    matrices = [axis_matrix(size, new, order) for size, new, order in zip(coarse.shape, shape, orders)]
    rows, columns = [], []
    for axis, matrix in enumerate(matrices):
        occupied = torch.from_numpy(coarse.any(axis=tuple({0, 1, 2} - {axis})))
        touched = (matrix[:, occupied] != 0).any(1).nonzero()
        if not len(touched):
            return out
        rows.append(slice(int(touched[0]), int(touched[-1]) + 1))
        used = (matrix[rows[axis]] != 0).any(0).nonzero()
        columns.append(slice(int(used[0]), int(used[-1]) + 1))
    nearest = [axis_matrix(size, new, 0).argmax(1)[r] for size, new, r in zip(coarse.shape, shape, rows)]
    growth = sorted(range(3), key=lambda axis: shape[axis] / coarse.shape[axis])
    thickness = max(1, SLAB_VOXELS // (len(CLASSES) * (rows[1].stop - rows[1].start) * (rows[2].stop - rows[2].start)))
    for start in range(rows[0].start, rows[0].stop, thickness):
        slab = slice(start, min(start + thickness, rows[0].stop))
        slices = (matrices[0][slab] != 0).any(0).nonzero()[:, 0]
        part = scores(slices.numpy(), columns[1], columns[2])
        cut = (matrices[0][slab][:, slices], matrices[1][rows[1], columns[1]], matrices[2][rows[2], columns[2]])
        for axis in growth:
            part = _apply(cut[axis].to(part.device), part, axis)
        if tie_breaker is not None:
            index = (nearest[0][slab.start - rows[0].start:slab.stop - rows[0].start], nearest[1], nearest[2])
            closest = torch.from_numpy(tie_breaker[np.ix_(*[i.numpy() for i in index])])
            for value in range(len(part)):
                part[value] += TIE * (closest == value)
        out[slab, rows[1], rows[2]] = _largest(part).cpu().numpy()
    return out


def _largest(scores):
    """(K, ...) -> uint8 (...): the index of the largest, a tie to the lower."""
    best, winner = scores[0], torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
    for value in range(1, len(scores)):
        winner[scores[value] > best] = value
        best = torch.maximum(best, scores[value])
    return winner


def thick_axis(spacing_mm):
    """The axis that is interpolated apart, by nearest neighbour: the one thickest, where voxels are far from cubes."""
    thickest = [axis for axis in range(3) if spacing_mm[axis] == max(spacing_mm)]
    return thickest[0] if max(spacing_mm) / min(spacing_mm) > SEPARATE_Z_ABOVE and len(thickest) == 1 else None


def label_orders(spacing_mm):
    return tuple(0 if axis == thick_axis(spacing_mm) else LABEL_ORDER for axis in range(3))


def resampled_shape(shape, spacing_mm, recipe):
    """Voxels per axis at the recipe's spacing: half to even, at least 1."""
    return tuple(max(1, int(np.round(n * old / new))) for n, old, new in zip(shape, spacing_mm, recipe.spacing_mm))


def prepare_image(volume, recipe):
    """A Volume in HU -> float32 (Z, Y, X) as the networks take it: resampled, clipped, normalised [paper 2.1].

    The spline's overshoot is clipped to the range of the scan, or of each slice where the axis is interpolated
    apart. A volume of one value stays constant.
    """
    shape = resampled_shape(volume.voxels.shape, volume.spacing_mm, recipe)
    thick, voxels = thick_axis(volume.spacing_mm), volume.voxels
    if thick is not None:
        picked = [shape[axis] if axis == thick else n for axis, n in enumerate(voxels.shape)]
        voxels = resample(voxels, picked, 0)
    plane = tuple(axis for axis in range(3) if axis != thick)
    low, high = (f(axis=plane, keepdims=True).astype(np.float32) for f in (voxels.min, voxels.max))
    image = resample(voxels, shape, IMAGE_ORDER)
    image = np.clip(np.clip(image, low, high), *recipe.window_hu)
    return (image - np.float32(recipe.mean_hu)) / np.float32(recipe.sd_hu)


def prepare_labels(volume, recipe):
    """A label Volume -> uint8 (Z, Y, X) on the grid of `prepare_image`."""
    shape = resampled_shape(volume.voxels.shape, volume.spacing_mm, recipe)
    return resample_labels(volume.voxels, shape, label_orders(volume.spacing_mm))
