"""Connected components: which voxels of a mask hang together.

A run is a stretch of the mask along X without a gap. There are some hundred times fewer runs than
voxels, so that joining runs that touch is quick in plain numpy."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of a mask in the order of their voxels: of each its line, a number that grows with z
    and y, its first x, and the x after its last. (N,) ints each."""

    line: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def label_components(mask: np.ndarray, *, corners: bool = True) -> tuple[np.ndarray, int]:
    """(Z, Y, X) bools -> (Z, Y, X) int32 and how many components there are.

    0 outside the mask, 1 in the component whose first voxel (z, then y, then x) comes first, 2 in
    the next. corners: voxels that share a face, an edge or a corner hang together (26 neighbours);
    without, those that share a face (6). An empty mask has 0 components."""
    labels = np.zeros(mask.shape, np.int32)
    box = bounding_box(mask)
    if box is None:
        return labels, 0

    inside = mask[box].astype(bool, copy=False)
    runs = _runs_of(inside)
    first, second = _touching(runs, inside.shape, corners)
    smallest = _smallest_connected(len(runs.line), first, second)

    # runs are in the order of their voxels, so the smallest run of a component holds its first voxel
    found, numbers = np.unique(smallest, return_inverse=True)
    labels[box][inside] = np.repeat(numbers + 1, runs.stop - runs.start)
    return labels, len(found)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds a mask (Z, Y, X); None where the mask is empty.

    >>> bounding_box(np.array([[[False, True, True, False]]]))
    (slice(0, 1, None), slice(0, 1, None), slice(1, 3, None))
    """
    plane = np.logical_or.reduce(mask, axis=0)  # (Y, X)
    held_by_axis = (mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))

    box = []
    for held in held_by_axis:
        places = np.flatnonzero(held)
        if len(places) == 0:
            return None
        box.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(box)


def _runs_of(mask: np.ndarray) -> Runs:
    """The Runs of a mask. A line is (Y + 2) z + y: two empty lines stand between slices, so that no
    line has neighbours of another slice beside it."""
    depth, rows, columns = mask.shape
    padded = np.zeros((depth, rows, columns + 2), np.int8)
    padded[:, :, 1:-1] = mask
    steps = np.diff(padded, axis=2)  # 1 where a run starts, -1 behind its end

    z, y, start = np.nonzero(steps == 1)
    _, _, stop = np.nonzero(steps == -1)
    return Runs((rows + 2) * z + y, start, stop)


def _touching(runs: Runs, shape: tuple[int, ...], corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of runs that touch: (P,) numbers of the one, (P,) of the other."""
    _, rows, columns = shape
    line_above = rows + 2
    further = [1, line_above]  # the next row, the same row of the next slice
    reach = 0
    if corners:
        further += [line_above - 1, line_above + 1]
        reach = 1

    # one number a place, so that a search among all runs finds those of a line
    width = columns + 4
    starts = width * runs.line + runs.start
    stops = width * runs.line + runs.stop

    pairs = []
    for lines in further:
        there = width * (runs.line + lines)
        # of the other line's runs, those that stop after this one's start and start before its stop
        low = np.searchsorted(stops, there + runs.start - reach, side="right")
        high = np.searchsorted(starts, there + runs.stop + reach, side="left")
        pairs.append(_listed(low, high))
    firsts, seconds = zip(*pairs)
    return np.concatenate(firsts), np.concatenate(seconds)


def _listed(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (i, j) of every i and every j from low[i] up to, not with, high[i]."""
    counts = high - low
    first = np.repeat(np.arange(len(counts)), counts)
    begin_of_i = np.cumsum(counts) - counts
    within = np.arange(counts.sum()) - np.repeat(begin_of_i, counts)
    return first, np.repeat(low, counts) + within


def _smallest_connected(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each of `count` things the smallest one that it hangs together with. (P,), (P,) -> (N,)

    Each thing points to a smaller one, or to itself: such are the ends. In a round, of the two ends
    that a pair leads to, the larger one is pointed at the smaller, then all pointers are followed
    to the end. Rounds are few, since each joins ends all over the mask at once."""
    pointer = np.arange(count)
    while True:
        end_of_first, end_of_second = pointer[first], pointer[second]
        apart = end_of_first != end_of_second
        if not apart.any():
            return pointer

        smaller = np.minimum(end_of_first, end_of_second)[apart]
        larger = np.maximum(end_of_first, end_of_second)[apart]
        np.minimum.at(pointer, larger, smaller)
        while (pointer[pointer] != pointer).any():
            pointer = pointer[pointer]
