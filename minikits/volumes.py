"""Volume: (Z, Y, X) voxels with spacing and frame.

Every volume is turned to the axes of a KiTS19 file, by its affine alone: Z towards inferior, Y
towards posterior, X towards the patient's left (orientation code I P L)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

CANONICAL = axcodes2ornt(("I", "P", "L"))
KITS19_AFFINE = np.diag([-1.0, -1.0, -1.0, 1.0])[[2, 1, 0, 3]]  # of voxels of 1 mm

# frames are the same if their corners differ by no more than the sum of these two
CORNER_TOLERANCE_MM = 1e-3
CORNER_TOLERANCE = 1e-4  # of the grid's size

# An axis at exactly 45 degrees is as near to one canonical axis as to the other, and rounding would
# decide. Turned by about a thousandth of a radian it is not, so that one grid is read alike in
# whatever orientation it is stored.
AWAY_FROM_TIES = np.array(
    [[1, -3e-4, 2e-4, 0], [3e-4, 1, -1e-3, 0], [-2e-4, 1e-3, 1, 0], [0, 0, 0, 1]]
)


@dataclass(frozen=True, eq=False)
class Volume:
    """An image or a label map. Two volumes are never equal; `check_same_grid` compares frames."""

    path: Path  # the file it was read from
    voxels: np.ndarray  # (Z, Y, X), perhaps a view
    spacing_mm: tuple[float, float, float]  # Z, Y, X
    affine: np.ndarray  # (4, 4): voxel of the array as the file stores it -> mm R A S
    header: nib.Nifti1Header  # the file's own

    @property
    def voxel_mm3(self) -> float:
        """What one voxel takes up, mm^3: the affine's determinant, which holds for a shear too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def zyx_to_mm(self) -> np.ndarray:
        """(4, 4): voxel (z, y, x) of `voxels` -> mm R A S. However the file stores its axes, for
        the same voxels at the same places it is the same."""
        return self.affine @ self.zyx_to_stored

    @property
    def zyx_to_stored(self) -> np.ndarray:
        """(4, 4): voxel (z, y, x) of `voxels` -> voxel (i, j, k) of the array in the file."""
        axes_and_flips = canonical_axes_and_flips(self.affine)
        canonical_axes = axes_and_flips[:, 0].astype(int)  # of the stored ones
        stored_shape = np.array(self.voxels.shape)[canonical_axes]
        return inv_ornt_aff(axes_and_flips, stored_shape)


def orientation(affine: np.ndarray) -> np.ndarray:
    """(3, 2), nibabel's orientation: for each axis of an affine the nearest of R A S, and 1 or -1,
    its direction."""
    return io_orientation(AWAY_FROM_TIES @ affine)


def canonical_axes_and_flips(affine: np.ndarray) -> np.ndarray:
    """(3, 2), what nibabel's `apply_orientation` takes: for each stored axis the nearest of the
    canonical ones, 0 to 2, and -1 where it is to be flipped, else 1.

    A KiTS19 file is stored as we take it: slices from head to feet, rows from front to back,
    columns from the patient's right to the left. So each axis is our own, the same way round:

    >>> canonical_axes_and_flips(KITS19_AFFINE).tolist()
    [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]

    In a file stored to the right, the front and the head, the first axis is our X, the last our Z,
    and all three are flipped (docs/figures/orientation.png shows it):

    >>> canonical_axes_and_flips(np.eye(4)).tolist()
    [[2.0, -1.0], [1.0, -1.0], [0.0, -1.0]]
    """
    return ornt_transform(orientation(affine), CANONICAL)


def mm_apart(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """The largest difference, in mm along an axis, between a grid's corners under two affines; 0
    where it is no more than rounding. The corners are those of the outermost voxels: one slice has
    a thickness."""
    corners_vox = np.array(list(product((0, 1), repeat=3))) * shape - 0.5
    ours_mm = nib.affines.apply_affine(affine, corners_vox)
    theirs_mm = nib.affines.apply_affine(other, corners_vox)

    apart = np.abs(ours_mm - theirs_mm).max()
    size = np.ptp(ours_mm, axis=0).max()
    if apart <= CORNER_TOLERANCE_MM + CORNER_TOLERANCE * size:
        return 0
    return apart


def shear_degrees(affine: np.ndarray) -> float:
    """By how much the angle between two axes differs from 90 degrees, at most."""
    directions = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    cosines = np.abs(directions.T @ directions - np.eye(3))
    return float(np.degrees(np.arcsin(min(1, cosines.max()))))
