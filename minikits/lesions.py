"""Tumors one by one: which lesions of the reference are found, which are missed, and which of the
mask are false; how large each is.

A lesion is a connected component of a mask's tumor, voxels that touch at a corner being connected
(26 neighbours). The reference says no more: two tumors that touch are one lesion."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import torch

from minikits.components import bounding_box, label_components

LEAST_OVERLAP = 0.1  # [ours: a voxel that touches is not enough, a border that is off is no miss]
POINTS_AT_ONCE = 1000  # of `largest_diameter_mm`: so many times all points are in memory


@dataclass(frozen=True)
class Lesion:
    """One lesion of a mask, and the share of its voxels that are tumor in the other mask too."""

    ml: float
    diameter_mm: float
    overlap: float

    @property
    def is_shared(self) -> bool:
        """Whether the other mask has it: at least LEAST_OVERLAP of its voxels."""
        return self.overlap >= LEAST_OVERLAP


@dataclass(frozen=True)
class LesionScores:
    """How many lesions of the reference are found and missed, and how many of the mask are
    false."""

    found: int
    missed: int
    false: int

    def f1(self, *, both_empty: float = nan) -> float:
        """2 found / (2 found + missed + false); `both_empty` where there is no lesion at all.

        >>> LesionScores(found=3, missed=1, false=1).f1()
        0.75
        """
        lesions = 2 * self.found + self.missed + self.false
        return 2 * self.found / lesions if lesions else both_empty


def score_lesions(ours: Sequence[Lesion], theirs: Sequence[Lesion]) -> LesionScores:
    """Of the mask's lesions and the reference's, as `find_lesions` finds them.

    A lesion of the reference is found where a tenth of it or more is tumor in the mask, in however
    many pieces; one of the mask is false where less than a tenth of it is tumor in the reference.
    So one large lesion may find two, and two pieces that lie in one are not false."""
    found = sum(lesion.is_shared for lesion in theirs)
    false = sum(not lesion.is_shared for lesion in ours)
    return LesionScores(found, len(theirs) - found, false)


def find_lesions(
    tumor: np.ndarray, other: np.ndarray, spacing_mm: Sequence[float], voxel_mm3: float
) -> list[Lesion]:
    """The lesions of one (Z, Y, X) bool mask, the largest first; other: the mask it is compared
    with. An empty mask has none."""
    box = bounding_box(tumor)
    if box is None:
        return []
    labels, count = label_components(tumor[box])
    other = other[box]

    lesions = []
    for number in range(1, count + 1):
        lesion = labels == number
        voxels = np.count_nonzero(lesion)
        shared = np.count_nonzero(lesion & other)
        diameter_mm = largest_diameter_mm(lesion, spacing_mm)
        lesions.append(Lesion(voxels * voxel_mm3 / 1000, diameter_mm, shared / voxels))
    return sorted(lesions, key=lambda lesion: lesion.ml, reverse=True)


def largest_diameter_mm(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """The largest distance, in any direction, between two corners of a mask's voxels, (Z, Y, X)
    bool, not empty. A single voxel has its own diagonal.

    Its ends are corners of the mask's convex hull, so that along each axis only the outermost
    points of a line come into question."""
    box = bounding_box(mask)
    assert box is not None  # it is not empty
    corners = _corners(mask[box])
    outermost = _ends(corners, 0) & _ends(corners, 1) & _ends(corners, 2)
    points_mm = torch.from_numpy(np.argwhere(outermost) * np.array(spacing_mm, dtype=float))

    largest = 0.0
    for some in points_mm.split(POINTS_AT_ONCE):
        largest = max(largest, torch.cdist(some, points_mm).max().item())
    return largest


def _corners(mask):
    """Which corners belong to a voxel of the mask. (Z, Y, X) -> (Z + 1, Y + 1, X + 1)."""
    padded = np.pad(mask, 1)
    twos = padded[:, :, :-1] | padded[:, :, 1:]
    fours = twos[:, :-1] | twos[:, 1:]
    return fours[:-1] | fours[1:]


def _ends(points, axis):
    """The first and the last point of each line along an axis."""
    count = points.cumsum(axis=axis)
    count_of_line = points.sum(axis=axis, keepdims=True)
    return points & ((count == 1) | (count == count_of_line))
