"""One matrix per axis.

A separable interpolation is a product of matrices (voxels out, voxels in), one per axis, a spline's prefilter in it. It
gives what does `skimage.transform.resize(mode="edge", anti_aliasing=False)`, which nnU-Net v1 calls."""

from functools import lru_cache

import numpy as np
import torch

from minikits.paper import CLASSES

# replicated samples at both ends; the echo of the spline's prefilter has died to 1e-7 there
PADDING = 12
ROWS_AT_ONCE = 64  # of a matrix: the more, the more zeros are multiplied
SLAB_VOXELS = 1 << 24  # work on about this many at once, so that memory does not grow with the scan
TIE = 1e-5  # scores nearer than this are a tie, which the nearest voxel's label decides


@lru_cache(maxsize=64)
def axis_matrix(size, new_size, order):
    """The interpolation of one axis: a float32 tensor (new_size, size). order 0 nearest, 1 linear, 3 cubic B-spline."""
    if size < 1 or new_size < 1:
        raise ValueError(
            f"{size} voxels brought to {new_size} on an axis, wanted at least one of each"
        )
    place = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    below = np.floor(place).astype(int)
    t = place - below
    taps = {
        0: (t < 0.5, t >= 0.5),
        1: (1 - t, t),
        3: ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3),
    }
    if order not in taps:
        raise ValueError(
            f"interpolation of order {order}; wanted 0 (nearest), 1 (linear) or 3 (cubic)"
        )
    padded = size + 2 * PADDING
    matrix = np.zeros((new_size, padded))
    for k, weight in enumerate(taps[order], PADDING - order // 2):
        matrix[np.arange(new_size), below + k] = weight
    if order == 3:
        # samples = B-spline kernel * coefficients, mirrored at the ends; the taps weigh coefficients
        kernel = np.diag(np.full(padded, 4.0)) + np.eye(padded, k=1) + np.eye(padded, k=-1)
        kernel[0, 1] = kernel[-1, -2] = 2
        matrix = np.linalg.solve(kernel.T, matrix.T).T
        matrix[np.abs(matrix) < 1e-8] = 0  # the echo, so that a row needs few columns
    matrix[:, PADDING] += matrix[:, :PADDING].sum(1)
    matrix[:, -PADDING - 1] += matrix[:, -PADDING:].sum(1)
    return torch.from_numpy(np.ascontiguousarray(matrix[:, PADDING:-PADDING], dtype=np.float32))


def resample(volume, shape, order):
    """(Z, Y, X) numbers -> an array of `shape`. order: 0, 1 or 3, or one of them per axis. No clipping.
    Order 0 keeps the type, the others give float32. An axis that keeps its length is left as it is.
    ValueError for another order, and for a shape of other than three axes or of none but 0 voxels."""
    volume = np.asarray(volume)
    orders = _orders(order)
    check_shapes(volume.shape, shape)
    # what shrinks comes before what grows, nearest neighbour first and last of all: the others have less to do
    growth = [new / old for new, old in zip(shape, volume.shape)]
    for axis in sorted(
        range(3), key=lambda a: (growth[a] > 1, (orders[a] > 0) != (growth[a] > 1), growth[a])
    ):
        if volume.shape[axis] != shape[axis]:
            matrix = axis_matrix(volume.shape[axis], shape[axis], orders[axis])
            volume = (
                _along(volume, matrix, axis)
                if orders[axis]
                else np.take(volume, matrix.argmax(1).numpy(), axis)
            )
    return volume if max(orders) == 0 else np.asarray(volume, dtype=np.float32)


def _orders(order):
    """One order of interpolation for each axis, from one for all or a sequence of three."""
    orders = np.broadcast_to(order, 3).tolist()
    if not set(orders) <= {0, 1, 3}:
        raise ValueError(
            f"interpolation of order {order}, wanted 0 (nearest), 1 (linear) or 3 (cubic)"
        )
    return tuple(map(int, orders))


def check_shapes(*shapes):
    """ValueError for a shape of other than three axes, or without a voxel."""
    for shape in shapes:
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(
                f"a volume of shape {tuple(shape)}, wanted (Z, Y, X), at least one voxel each"
            )


def _along(volume, matrix, axis):
    """`matrix` applied to one axis of an array, slab by slab of another axis, in float32."""
    out = np.empty((*volume.shape[:axis], len(matrix), *volume.shape[axis + 1 :]), dtype=np.float32)
    across = 1 if axis == 0 else 0
    slabs = min(volume.shape[across], 1 + volume.size // SLAB_VOXELS)
    for part, result in zip(
        np.array_split(volume, slabs, across), np.array_split(out, slabs, across)
    ):
        part = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))
        result[...] = _apply(matrix, part, axis).numpy()
    return out


def _apply(matrix, values, axis):
    """`matrix` applied to axis 0, 1 or 2, counted from the last three of a tensor; a few rows need few columns each."""
    out = values.new_empty(
        *values.shape[: axis - 3], len(matrix), *values.shape[values.ndim + axis - 2 :]
    )
    for rows, result in zip(matrix.split(ROWS_AT_ONCE), out.split(ROWS_AT_ONCE, axis - 3)):
        columns = _span(rows.any(0))
        rows, part = (
            rows[:, columns],
            values.narrow(axis - 3, columns.start, columns.stop - columns.start),
        )
        if axis == 0:
            result[...] = (rows @ part.flatten(-2)).unflatten(-1, part.shape[-2:])
        else:
            result[...] = rows @ part if axis == 1 else part @ rows.T
    return out


def resample_labels(labels, shape, order):
    """(Z, Y, X) labels 0, 1, 2 -> uint8 of `shape`: each label's 0/1 mask is resampled, the largest wins.
    A tie goes to the nearest voxel's [batchgenerators >= 0.25.5; before, each label where its mask was >= 1/2].
    ValueError for other labels; whole numbers of any type are taken."""
    labels = np.asarray(labels)
    orders = _orders(order)
    check_shapes(labels.shape, shape)
    lowest, highest = labels.min(), labels.max()
    whole = labels.dtype.kind in "biu" or np.array_equal(labels, np.floor(labels))
    if not (whole and lowest >= 0 and highest < len(CLASSES)):
        raise ValueError(f"labels from {lowest} to {highest}, wanted whole numbers from 0 to 2")
    labels = labels.astype(np.uint8, copy=False)
    values = torch.arange(int(labels.max()) + 1, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return winners(
        lambda z, y, x: (torch.from_numpy(np.ascontiguousarray(labels[z, y, x])) == values).float(),
        labels,
        np.zeros(shape, dtype=np.uint8),
        orders,
        nearest_wins=True,
    )


def winners(scores, coarse, out, orders, *, nearest_wins):
    """The winners of scores interpolated to the shape of `out`, put there slab by slab; a tie to the nearest, or lower.
    scores(z, y, x): (K, z, y, x) floats at these input indices; coarse: the winner at every input voxel. Linear
    interpolation is a convex combination: where all the corners of a cell agree on the winner it cannot change.
    So only what takes part of a voxel that is not background is computed, and the result is exact."""
    matrices = [axis_matrix(*sizes) for sizes in zip(coarse.shape, out.shape, orders)]
    nearest = [axis_matrix(*sizes, 0).argmax(1).numpy() for sizes in zip(coarse.shape, out.shape)]
    occupied = [torch.from_numpy(coarse.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = [_span(matrix[:, flags].any(1)) for matrix, flags in zip(matrices, occupied)]
    used = [_span(matrix[rows].any(0)) for matrix, rows in zip(matrices, box)]
    growth = sorted(range(3), key=lambda axis: out.shape[axis] / coarse.shape[axis])
    thickness = max(1, SLAB_VOXELS // max(1, len(CLASSES) * out[0, box[1], box[2]].size))
    for start in range(box[0].start, box[0].stop, thickness):
        rows = (slice(start, min(start + thickness, box[0].stop)), *box[1:])
        columns = (matrices[0][rows[0]].any(0).nonzero()[:, 0].numpy(), *used[1:])
        part = scores(*columns)
        for axis in growth:
            part = _apply(matrices[axis][rows[axis]][:, columns[axis]].to(part.device), part, axis)
        if nearest_wins:
            closest = torch.from_numpy(
                coarse[np.ix_(*[places[r] for places, r in zip(nearest, rows)])]
            )
            for value in range(len(part)):
                part[value] += TIE * (closest == value)
        out[rows] = largest(part).cpu().numpy()
    return out


def _span(flags):
    """The slice from the first True to the last, empty where there is none."""
    places = flags.nonzero()
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def largest(scores):
    """(K, ...) -> uint8 (...): the index of the largest, a tie to the lower."""
    best, winner = scores[0], torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
    for value in range(1, len(scores)):
        winner[scores[value] > best] = value
        best = torch.maximum(best, scores[value])
    return winner
