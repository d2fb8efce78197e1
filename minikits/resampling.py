"""One matrix per axis: numbers by interpolation, labels by which of them weighs most.

Linear and cubic interpolation weigh voxels and add them up, one axis after the other. So each axis
has a matrix, (new voxels, old voxels), with the cubic spline's prefilter in it, and resampling is
three products. The result is that of `skimage.transform.resize(mode="edge", anti_aliasing=False)`,
which nnU-Net v1 calls."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

from minikits.paper import CLASSES

# voxels repeated beyond both ends; the echo of the spline's prefilter has died to 1e-7 there
PADDING = 12
SLAB_VOXELS = 1 << 24  # work on about this many at once, so that memory does not grow with the scan
TIE = 1e-5  # scores nearer than this are equal, to float32's rounding


@lru_cache(maxsize=64)
def axis_matrix(size: int, new_size: int, order: int) -> torch.Tensor:
    """(new_size, size) float32: how much of each old voxel of an axis is in each new one.

    order: 0 nearest (of two, the upper), 1 linear, 3 cubic B-spline. The outermost voxels are
    repeated beyond the ends.

    >>> axis_matrix(4, 2, 1)  # of four voxels two
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]])
    """
    if size < 1 or new_size < 1:
        raise ValueError(
            f"{size} voxels brought to {new_size} on an axis, wanted at least one of each"
        )

    # where the centres of the new voxels lie, counted in old ones from the first one's centre
    position = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    below = np.floor(position).astype(int)
    weights = _weights_of_neighbours(position - below, order)

    matrix = np.zeros((new_size, PADDING + size + PADDING))
    first_neighbour = PADDING + below - (len(weights) // 2 - 1)
    for step, weight in enumerate(weights):
        matrix[np.arange(new_size), first_neighbour + step] = weight
    if order == 3:
        matrix = _prefiltered(matrix)

    # what is taken of a repeated voxel is taken of the outermost
    matrix[:, PADDING] += matrix[:, :PADDING].sum(1)
    matrix[:, -PADDING - 1] += matrix[:, -PADDING:].sum(1)
    matrix = matrix[:, PADDING:-PADDING]
    return torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))


def _weights_of_neighbours(t, order):
    """What the 2 or 4 voxels around a position weigh, lowest first: each an array like `t`, the
    position's distance from the voxel below it, in voxels."""
    if order == 0:
        return [t < 0.5, t >= 0.5]
    if order == 1:
        return [1 - t, t]
    if order == 3:
        return [
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4) / 6,
            t**3 / 6,
        ]
    raise ValueError(f"interpolation of order {order}; wanted 0 (nearest), 1 (linear) or 3 (cubic)")


def _prefiltered(matrix):
    """A matrix that weighs B-splines, as one that weighs voxels.

    A spline through the voxels is a sum of B-splines, one on each voxel: at a voxel its own has the
    value 4/6 and each neighbour's 1/6 (mirrored at the ends), so that voxels = b_splines @ heights.
    What weighs heights, times the inverse of b_splines, weighs voxels."""
    size = matrix.shape[1]
    b_splines = (4 * np.eye(size) + np.eye(size, k=1) + np.eye(size, k=-1)) / 6
    b_splines[0, 1] = b_splines[-1, -2] = 2 / 6

    matrix = np.linalg.solve(b_splines.T, matrix.T).T  # matrix @ inverse of b_splines
    matrix[np.abs(matrix) < 1e-8] = 0  # the echo, in numbers so small that processors are slow
    return matrix


def resample(volume: np.ndarray, shape: Sequence[int], order: int | Sequence[int]) -> np.ndarray:
    """(Z, Y, X) numbers -> an array of `shape`.

    order: 0, 1 or 3, or one of them per axis. Order 0 keeps the type, the others give float32. An
    axis that keeps its length is left as it is; nothing is clipped. ValueError for another order,
    and for a shape of other than three axes or without a voxel.

    >>> row = np.array([[[0, 10, 20, 30]]])
    >>> resample(row, (1, 1, 2), order=1).tolist()  # between the first two, and the last two
    [[[5.0, 25.0]]]
    >>> resample(row, (1, 1, 2), order=0).tolist()  # half way: of two the upper
    [[[10, 30]]]
    """
    volume = np.asarray(volume)
    orders = _order_per_axis(order)
    check_shapes(volume.shape, shape)

    for axis in _shrinking_first(volume.shape, shape):
        if shape[axis] == volume.shape[axis]:
            continue
        matrix = axis_matrix(volume.shape[axis], shape[axis], orders[axis])
        if orders[axis] == 0:
            volume = np.take(volume, _nearest(matrix), axis)
        else:
            volume = _multiplied_in_slabs(matrix, volume, axis)

    if max(orders) == 0:
        return volume
    return np.asarray(volume, dtype=np.float32)


def _order_per_axis(order):
    """One order of interpolation for each axis, from one for all or a sequence of three.

    >>> _order_per_axis(1)
    (1, 1, 1)
    """
    orders = np.broadcast_to(order, 3).tolist()
    if not set(orders) <= {0, 1, 3}:
        raise ValueError(
            f"interpolation of order {order}, wanted 0 (nearest), 1 (linear) or 3 (cubic)"
        )
    return tuple(map(int, orders))


def check_shapes(*shapes: Sequence[int]) -> None:
    """ValueError for a shape of other than three axes, or without a voxel."""
    for shape in shapes:
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(
                f"a volume of shape {tuple(shape)}, wanted (Z, Y, X), at least one voxel each"
            )


def _shrinking_first(old_shape, new_shape):
    """The three axes, the one that shrinks most first: it leaves the others the least to do."""
    return sorted(range(3), key=lambda axis: new_shape[axis] / old_shape[axis])


def _nearest(matrix):
    """The number of the one old voxel that each new one takes, of a matrix of order 0."""
    return matrix.argmax(dim=1).numpy()


def _multiplied_in_slabs(matrix, volume, axis):
    """An array of numbers of any type, one axis multiplied by a matrix, in float32. Only a slab of
    it at a time is brought to float32."""
    shape = list(volume.shape)
    shape[axis] = len(matrix)
    out = np.empty(shape, dtype=np.float32)

    across = 1 if axis == 0 else 0
    count = min(volume.shape[across], 1 + volume.size // SLAB_VOXELS)
    slabs = np.array_split(volume, count, across)
    results = np.array_split(out, count, across)
    for slab, result in zip(slabs, results):
        numbers = torch.from_numpy(np.ascontiguousarray(slab, dtype=np.float32))
        result[...] = _multiplied(matrix, numbers, axis).numpy()
    return out


def _multiplied(matrix, numbers, axis):
    """(..., Z, Y, X) numbers, axis 0, 1 or 2 of the last three multiplied by a matrix."""
    if axis == 0:
        columns = numbers.flatten(-2)  # (..., Z, Y * X)
        return (matrix @ columns).unflatten(-1, numbers.shape[-2:])
    if axis == 1:
        return matrix @ numbers
    return numbers @ matrix.T


def resample_labels(
    labels: np.ndarray, shape: Sequence[int], order: int | Sequence[int]
) -> np.ndarray:
    """(Z, Y, X) labels 0, 1, 2 -> uint8 of `shape`: each label's 0/1 mask is resampled, the largest
    wins.

    A tie goes to the nearest voxel's label [batchgenerators >= 0.25.5; before, each label where its
    mask was >= 1/2]. order: 0 or 1, or one of them per axis. ValueError for other labels; whole
    numbers of any type are taken.

    Between background and tumor lies no kidney, though 1 lies between 0 and 2:

    >>> resample_labels(np.array([[[0, 0, 2, 2]]]), (1, 1, 6), order=1).tolist()
    [[[0, 0, 0, 2, 2, 2]]]
    """
    labels = np.asarray(labels)
    orders = _order_per_axis(order)
    check_shapes(labels.shape, shape)

    lowest, highest = labels.min(), labels.max()
    whole = labels.dtype.kind in "biu" or np.array_equal(labels, np.floor(labels))
    if not (whole and lowest >= 0 and highest < len(CLASSES)):
        raise ValueError(f"labels from {lowest} to {highest}, wanted whole numbers from 0 to 2")
    labels = labels.astype(np.uint8, copy=False)

    values = torch.arange(int(highest) + 1, dtype=torch.uint8).reshape(-1, 1, 1, 1)

    def masks(box):
        part = torch.from_numpy(np.ascontiguousarray(labels[box]))
        return (part == values).float()

    out = np.zeros(shape, dtype=np.uint8)
    fill_with_winners(out, masks, labels, orders, ties_to_nearest=True)
    return out


def fill_with_winners(
    out: np.ndarray,
    scores: Callable[[tuple[slice, ...]], torch.Tensor],
    winners: np.ndarray,
    orders: Sequence[int],
    *,
    ties_to_nearest: bool = False,
) -> None:
    """Fills (Z, Y, X) zeros with the class whose interpolated score is the largest. Plainly:

        np.stack([resample(score, out.shape, orders) for score in all_scores]).argmax(0)

    scores: a function of three slices, a box, to the (K, z, y, x) scores there; winners: the
    (z, y, x) classes of the largest of the scores that are given. orders: of interpolation, 0 or 1
    for each axis. A tie goes to the lower class; with `ties_to_nearest`, what differs by less than
    TIE goes to the winner at the nearest of the old voxels.

    Interpolation of these orders is a weighted mean: between voxels with one winner it has the same
    winner. So only what takes part of a voxel that is not background is computed, slab by slab,
    and the result is that of all of it."""
    sizes = zip(winners.shape, out.shape, orders)
    matrices = [axis_matrix(size, new_size, order) for size, new_size, order in sizes]
    z, y, x = _reached_by_foreground(winners, matrices)

    plane = len(CLASSES) * (y.stop - y.start) * (x.stop - x.start)
    thickness = max(1, SLAB_VOXELS // max(1, plane))
    for start in range(z.start, z.stop, thickness):
        slab = (slice(start, min(start + thickness, z.stop)), y, x)
        interpolated = _interpolated(scores, matrices, slab)
        if ties_to_nearest:
            nearest = _nearest_in_box(winners, out.shape, slab)
            for value, score in enumerate(interpolated):
                score += TIE * (nearest == value)
        out[slab] = largest(interpolated).cpu().numpy()


def _reached_by_foreground(winners, matrices):
    """Three slices, the box of the new voxels that take part of an old one that is not 0."""
    box = []
    for axis, matrix in enumerate(matrices):
        others = tuple({0, 1, 2} - {axis})
        foreground = torch.from_numpy(winners.any(axis=others))
        box.append(_span(matrix[:, foreground].any(1)))
    return box


def _interpolated(scores, matrices, box):
    """(K, z, y, x) floats: the scores interpolated at a box of new voxels."""
    needed = [_span(matrix[rows].any(0)) for matrix, rows in zip(matrices, box)]
    part = scores(tuple(needed))
    for axis in _shrinking_first(part.shape[1:], [rows.stop - rows.start for rows in box]):
        matrix = matrices[axis][box[axis], needed[axis]]
        part = _multiplied(matrix.to(part.device), part, axis)
    return part


def _nearest_in_box(labels, new_shape, box):
    """(z, y, x): the labels of the old voxels nearest to those of a box of new ones."""
    places = []
    for size, new_size, rows in zip(labels.shape, new_shape, box):
        nearest = _nearest(axis_matrix(size, new_size, order=0))
        places.append(nearest[rows])
    return torch.from_numpy(labels[np.ix_(*places)])


def _span(flags):
    """The slice from the first True to the last, empty where there is none."""
    places = flags.nonzero()
    if len(places) == 0:
        return slice(0, 0)
    return slice(int(places[0]), int(places[-1]) + 1)


def largest(scores: torch.Tensor) -> torch.Tensor:
    """(K, ...) -> uint8 (...): the class with the largest score, of equal ones the lowest.

    >>> largest(torch.tensor([[0.6, 0.4], [0.2, 0.4], [0.2, 0.2]])).tolist()  # of two voxels
    [0, 0]
    """
    return scores.max(dim=0).indices.to(torch.uint8)
