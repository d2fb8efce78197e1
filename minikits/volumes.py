"""Volume: (Z, Y, X) voxels with spacing and frame.

Every volume is turned to the axes of a KiTS19 file, by its affine alone: Z towards inferior, Y
towards posterior, X towards the patient's left (orientation code I P L)."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

CANONICAL = axcodes2ornt(("I", "P", "L"))
KITS19_AFFINE = np.diag([-1.0, -1.0, -1.0, 1.0])[[2, 1, 0, 3]]  # of voxels of 1 mm

CORNER_TOLERANCE_MM = 1e-3  # beside a relative 1e-4: frames that differ by less are the same
# An axis at exactly 45 degrees is as near to one canonical axis as to the other, and rounding would
# decide. Turned by about a thousandth of a radian it is not, so that one grid is read alike in
# whatever orientation it is stored.
AWAY_FROM_TIES = np.array(
    [[1, -3e-4, 2e-4, 0], [3e-4, 1, -1e-3, 0], [-2e-4, 1e-3, 1, 0], [0, 0, 0, 1]]
)


@dataclass(frozen=True)
class Volume:
    """voxels (Z, Y, X): an array, perhaps a view; spacing_mm Z Y X; header: the file's own;
    affine: voxel of the array as the file stores it -> mm R A S."""

    path: Path
    voxels: np.ndarray
    spacing_mm: tuple
    affine: np.ndarray
    header: nib.Nifti1Header

    @property
    def voxel_mm3(self) -> float:
        """What one voxel takes up, mm^3: the affine's determinant, which holds for a shear too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def grid(self) -> np.ndarray:
        """(4, 4): voxel (z, y, x) of `voxels` -> mm R A S. One grid, stored in two orientations,
        has one."""
        return self.affine @ self.stored_voxel

    @property
    def stored_voxel(self) -> np.ndarray:
        """(4, 4): voxel (z, y, x) of `voxels` -> voxel (i, j, k) of the array in the file."""
        turn = turn_to_canonical(self.affine)
        stored_shape = np.array(self.voxels.shape)[turn[:, 0].astype(int)]
        return inv_ornt_aff(turn, stored_shape)


def orientation(affine):
    """nibabel's orientation of an affine's axes: the nearest axes of the body, and directions."""
    return io_orientation(AWAY_FROM_TIES @ affine)


def turn_to_canonical(affine):
    """nibabel's orientation that turns stored axes to the canonical ones nearest to them."""
    return ornt_transform(orientation(affine), CANONICAL)


def mm_apart(affine, other, shape):
    """How far a grid's corners lie apart under two affines, at most; 0 where it is no more than
    rounding. The corners are those of the outermost voxels: one slice has a thickness."""
    corners = np.argwhere(np.ones((2, 2, 2))) * np.array(shape) - 0.5
    ours, theirs = (nib.affines.apply_affine(one, corners) for one in (affine, other))
    apart, size = np.abs(ours - theirs).max(), np.ptp(ours, axis=0).max()
    return 0 if apart <= CORNER_TOLERANCE_MM + 1e-4 * size else apart


def shear_degrees(affine):
    """By how much the angle between two axes differs from 90 degrees, at most."""
    directions = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    cosines = np.abs(directions.T @ directions - np.eye(3))
    return float(np.degrees(np.arcsin(min(1, cosines.max()))))
