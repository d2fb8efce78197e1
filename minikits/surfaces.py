"""Surface Dice and the 95th percentile distance of two masks, in mm, and the surfaces under both.

A surface is what Google DeepMind's surface-distance takes it for (Nikolov et al. 2018, arXiv
1809.04430), and KiTS21 and KiTS23 score with. Its points are the corners of voxels. A corner has
eight voxels around it, beyond the volume's border empty ones; where some of them are in the mask
and some are not, the surface passes. How much of it passes there, in mm2, tells `corner_areas`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from math import ceil, inf, nan

import numpy as np
import torch

from minikits.components import bounding_box, label_components

# {protocol: {structure: mm}}, so far apart as people who outline the same scan are
TOLERANCES_MM = {
    "kits23": {  # [neheller/kits23 at c108835, kits23/configuration/labels.py:33-35]
        "kidney": 1.0330772532390826,
        "tumor": 1.1498198361434828,
    },
    "kits21": {  # [neheller/kits21 at 14e9dca, kits21/configuration/labels.py:26-28]
        "kidney": 2.1780822681004897,
        "tumor": 1.536272517110166,
    },
}
CELL_MM = 8.0  # of `nearest_mm`; changes its time alone


@dataclass(frozen=True, eq=False)
class Surface:
    """A mask's surface: its points, and how much of it passes at each."""

    corners: np.ndarray  # (N, 3) integers: a corner's Z, Y, X, that of the box's first voxel 0
    areas_mm2: np.ndarray  # (N,)
    passes: np.ndarray  # (Z, Y, X) bool over all corners of the box: whether it passes there


# --- scores ---------------------------------------------------------------------------------------


def surface_dice(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    *,
    both_empty: float = nan,
) -> float:
    """The share of both surfaces that lies within the tolerance of the other. Two (Z, Y, X) bool
    masks, the spacing Z Y X -> 0 to 1.

        surface Dice = (area of ours near theirs + area of theirs near ours) / (area of both)

    A point is near where some point of the other surface lies at most `tolerance_mm` from it, from
    corner to corner. One mask empty: 0. Both: `both_empty`. The same number as surface-distance's,
    without a distance transform: each point looks at the few corners within the tolerance.

    >>> mask = np.zeros((1, 1, 4), bool)
    >>> mask[0, 0, 1] = True
    >>> surface_dice(mask, np.roll(mask, 1, axis=2), (2, 2, 2), tolerance_mm=1)  # 4 of 8 corners
    0.5
    """
    _check_masks(prediction, reference)
    if not prediction.any() or not reference.any():
        return _without_surface(prediction, reference, both_empty, one_empty=0.0)

    ours, theirs = surfaces_of(prediction, reference, spacing_mm)
    ours_near_mm2 = ours.areas_mm2[_are_near(ours, theirs, spacing_mm, tolerance_mm)].sum()
    theirs_near_mm2 = theirs.areas_mm2[_are_near(theirs, ours, spacing_mm, tolerance_mm)].sum()
    total_mm2 = ours.areas_mm2.sum() + theirs.areas_mm2.sum()
    return float((ours_near_mm2 + theirs_near_mm2) / total_mm2)


def distance_95(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]
) -> float:
    """The 95th percentile of the surfaces' distances (HD95), mm. Two (Z, Y, X) bool masks, the
    spacing Z Y X.

    The distance of a point is that to the nearest point of the other surface, from corner to
    corner. Of each surface: the distance that 95% of its area do not exceed, no interpolation.
    The result is the larger of both. It is surface-distance's `compute_robust_hausdorff(..., 95)`;
    other tools weigh points alike, take voxels for points, or pool both surfaces, and get others.

    Both masks empty: NaN. One: infinite."""
    _check_masks(prediction, reference)
    if not prediction.any() or not reference.any():
        return _without_surface(prediction, reference, both_empty=nan, one_empty=inf)

    ours, theirs = surfaces_of(prediction, reference, spacing_mm)
    ours_mm = ours.corners * np.array(spacing_mm, dtype=float)
    theirs_mm = theirs.corners * np.array(spacing_mm, dtype=float)
    from_ours = _share_not_exceeding(nearest_mm(ours_mm, theirs_mm), ours.areas_mm2, 0.95)
    from_theirs = _share_not_exceeding(nearest_mm(theirs_mm, ours_mm), theirs.areas_mm2, 0.95)
    return max(from_ours, from_theirs)


def _check_masks(prediction, reference):
    """ValueError unless both are bool, (Z, Y, X), and of one shape."""
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != bool or mask.ndim != 3:
            raise ValueError(f"{name}: {mask.dtype} {mask.shape} found, wanted bool (Z, Y, X)")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction {prediction.shape} and reference {reference.shape} differ in shape"
        )


def _without_surface(prediction, reference, both_empty, one_empty):
    """The score where at least one mask is empty."""
    if prediction.any() or reference.any():
        return one_empty
    return both_empty


# --- surfaces -------------------------------------------------------------------------------------


def surfaces_of(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[Surface, Surface]:
    """The surfaces of two (Z, Y, X) bool masks, in the box around both; one of them
    may be empty."""
    box = bounding_box(prediction | reference)
    assert box is not None  # one of them has voxels
    areas_mm2 = corner_areas(spacing_mm)
    return _surface(prediction[box], areas_mm2), _surface(reference[box], areas_mm2)


def _surface(mask, area_of_code):
    codes = neighbour_codes(mask)
    passes = (codes != 0) & (codes != 255)
    corners = np.argwhere(passes)
    return Surface(corners, area_of_code[codes[passes]], passes)


def neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """For each corner of voxels, which of the eight around it are in the mask: bit 4 z + 2 y + x
    that of voxel (z, y, x) of 2 x 2 x 2. (Z, Y, X) bool -> (Z + 1, Y + 1, X + 1) uint8."""
    padded = np.pad(mask, 1).astype(np.uint8)
    twos = padded[:, :, :-1] | padded[:, :, 1:] << 1
    fours = twos[:, :-1] | twos[:, 1:] << 2
    return fours[:-1] | fours[1:] << 4


# --- how much of a surface passes at a corner -----------------------------------------------------


def corner_areas(spacing_mm: Sequence[float]) -> np.ndarray:
    """The area of surface, mm2, for each of the 256 codes of `neighbour_codes`; 0 of 0 and 255.

    The centres of the eight voxels make a box of the spacing's size. The surface halves each of
    its edges between a voxel in the mask and one outside (marching cubes, Lorensen and Cline
    1987)."""
    z_mm, y_mm, x_mm = spacing_mm
    faces_mm2 = np.array([y_mm * x_mm, z_mm * x_mm, z_mm * y_mm])
    areas_mm2 = np.zeros(256)
    for code, pieces in facets_of_codes().items():
        for piece in pieces:
            areas_mm2[code] += np.linalg.norm(piece * faces_mm2)
    return areas_mm2


@cache
def facets_of_codes() -> dict[int, list[np.ndarray]]:
    """The `facets` of each code that has any."""
    found = {}
    for code in range(1, 255):
        bits = np.unpackbits(np.uint8(code), bitorder="little")
        found[code] = facets(bits.reshape(2, 2, 2).astype(bool))
    return found


def facets(inside: np.ndarray) -> list[np.ndarray]:
    """The flat pieces of a surface between eight voxels, (2, 2, 2) bool, some in the mask and some
    not. A piece is (3,): its areas as seen along Z, Y and X, those of the box's faces being 1.

    The surface cuts off the voxels of the smaller part, group by group: those that are joined by
    the box's edges. A group of up to four has one of six shapes."""
    if inside.sum() > 4:
        inside = ~inside
    labels, count = label_components(inside, corners=False)

    pieces = []
    for group in range(1, count + 1):
        pieces += _facets_of_group(np.argwhere(labels == group))
    return pieces


def _facets_of_group(voxels):
    """The pieces of surface that cut one to four voxels, (N, 3) of 0 and 1, off the others."""
    pairs, edges = [], []  # of neighbours; (3,), 1 along the edge's axis
    neighbours = np.zeros(len(voxels), dtype=int)
    for first, second in combinations(range(len(voxels)), 2):
        step = np.abs(voxels[first] - voxels[second])
        if step.sum() == 1:
            pairs.append((first, second))
            edges.append(step)
            neighbours[[first, second]] += 1

    seen_from_all = np.ones(3)
    across = 1 - np.any(edges, axis=0)  # 1 for the axes along which there is no edge
    if len(voxels) == 1:
        return [seen_from_all / 8]  # a triangle
    if len(voxels) == 2:
        return [across / 2]  # a rectangle beside the edge
    if len(voxels) == 3:
        return [across / 2, 3 / 8 * seen_from_all]  # a triangle over the L, a trapezoid beside it
    if len(edges) == 4:
        return [across]  # a rectangle over the face
    if neighbours.max() == 3:
        return [3 / 4 * seen_from_all]  # a hexagon around one voxel and its three neighbours

    # a path along all three axes: a rectangle along it, a triangle at each of its ends
    pieces = [seen_from_all / 2]
    for step, (first, second) in zip(edges, pairs):
        if neighbours[first] == 1 or neighbours[second] == 1:
            pieces.append((1 - step) / 4)
    return pieces


# --- how far apart surfaces are -------------------------------------------------------------------


def _are_near(surface, other, spacing_mm, tolerance_mm):
    """Which points of a surface have one of the other within the tolerance -> (N,) bool."""
    offsets = offsets_within(tolerance_mm, spacing_mm)
    reach = offsets.max(axis=0)
    padded = np.pad(other.passes, [(n, n) for n in reach])
    places = np.ravel_multi_index((surface.corners + reach).T, padded.shape)
    _, rows, columns = padded.shape
    steps = offsets @ (rows * columns, columns, 1)  # from a corner to another in memory

    near = np.zeros(len(places), dtype=bool)
    for step in steps:
        near |= padded.ravel()[places + step]
    return near


def offsets_within(radius_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """The steps of a grid that are at most so long -> (N, 3) integers, 0 among them.

    >>> offsets_within(1, (5, 1, 0.8)).tolist()
    [[0, -1, 0], [0, 0, -1], [0, 0, 0], [0, 0, 1], [0, 1, 0]]
    """
    ranges = []
    for side_mm in spacing_mm:
        most = ceil(radius_mm / side_mm)
        ranges.append(range(-most, most + 1))
    offsets = np.array(list(product(*ranges)))
    lengths_mm = np.linalg.norm(offsets * np.asarray(spacing_mm), axis=1)
    return offsets[lengths_mm <= radius_mm]


def nearest_mm(points_mm: np.ndarray, others_mm: np.ndarray) -> np.ndarray:
    """For each point the distance to the nearest of the others. (N, 3), (M, 3), mm -> (N,).

    Exact, without comparing all with all: points are taken cell by cell. Of a cell's points none is
    farther than r from their centre, and the centre's nearest is at a distance d. So each of them
    has another one within d + r, and its nearest is within d + 2 r of the centre: only such are
    compared with it."""
    others_by_axis = np.ascontiguousarray(others_mm.T)
    nearest = np.empty(len(points_mm))
    for members in _cells(points_mm):
        ours = points_mm[members]
        centre = ours.mean(axis=0)
        radius = _distances(ours.T, centre).max()
        apart = _distances(others_by_axis, centre)
        candidates = others_mm[apart <= apart.min() + 2 * radius]
        pairs = torch.cdist(
            torch.from_numpy(ours),
            torch.from_numpy(candidates),
            compute_mode="donot_use_mm_for_euclid_dist",  # by products of matrices 0 is not 0
        )
        nearest[members] = pairs.amin(dim=1)
    return nearest


def _cells(points_mm):
    """The numbers of the points in each cube of CELL_MM that holds any."""
    cells = np.floor(points_mm / CELL_MM).astype(int)
    cells -= cells.min(axis=0)
    cell_of_point = np.ravel_multi_index(cells.T, cells.max(axis=0) + 1)
    order = np.argsort(cell_of_point, kind="stable")
    starts = np.flatnonzero(np.diff(cell_of_point[order])) + 1
    return np.split(order, starts)


def _distances(points_by_axis, place):
    """(3, N), (3,) -> (N,)."""
    z, y, x = points_by_axis
    return np.sqrt((z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2)


def _share_not_exceeding(distances_mm, areas_mm2, share):
    """The distance that this share of the area does not exceed."""
    order = np.argsort(distances_mm)
    covered = np.cumsum(areas_mm2[order]) / areas_mm2.sum()
    return float(distances_mm[order][np.searchsorted(covered, share)])
