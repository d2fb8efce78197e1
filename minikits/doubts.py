"""What is suspect in a scan that can be read: a warning each, and nothing is refused.

Whether values are HU is told by shares of the voxels, not by the lowest and the highest value,
which padding and a few voxels of metal decide."""

from collections.abc import Sequence

import numpy as np

from minikits.volumes import Volume, shear_degrees

# Bounds on shares: of air and tissue (fat, soft tissue) in what is no padding; of bone and of dense
# bone in the body, which is what is no air. A CT of kidneys keeps them by far, and values in other
# units break one of them at least.
AIR_HU, BONE_HU, DENSE_HU = -200, 200, 700
LOWEST_HU = -1200  # below is padding
LEAST_AIR, LEAST_TISSUE, LEAST_BONE, MOST_DENSE = 0.001, 0.01, 0.001, 0.05
SAMPLE_VOXELS = 1 << 24  # of a larger scan every second row and column is enough
# What lies beyond is a fill value: beside it the cubic spline overshoots by more than a tenth of
# the networks' unit, and at -32768 by all of their window.
FILL_HU = (-5000, 40_000)
COVERAGE_MM = 40  # along Z; a scan of kidneys has more
# Both sides of a slice. KiTS19's 210 training cases have 224 to 533 mm.
LEAST_ACROSS_MM, MOST_ACROSS_MM = 200, 600
SHEAR_DEGREES = 1.0  # over 300 mm a degree is 5 mm


def doubts(volume: Volume) -> list[str]:
    """Lines on what is suspect in an image that can be read: values that are not HU, little of the
    body, a breadth that no body has, a frame that nobody set, axes that are not at right angles."""
    lines = []

    lowest, highest = volume.voxels.min(), volume.voxels.max()
    fault = _not_hu(volume.voxels)
    if fault:
        lines.append(
            f"{volume.path}: values from {lowest:g} to {highest:g}, {fault}; wanted those of a "
            "body; is this CT in HU?"
        )
    elif lowest < FILL_HU[0] or highest > FILL_HU[1]:
        lines.append(
            f"{volume.path}: values from {lowest:g} to {highest:g}, wanted them within "
            f"{FILL_HU[0]} to {FILL_HU[1]}: resampling carries such fill values into the "
            "body; set padding to -1024"
        )

    mm = len(volume.voxels) * volume.spacing_mm[0]
    if mm < COVERAGE_MM:
        lines.append(
            f"{volume.path}: covers {mm:.3g} mm along Z, wanted {COVERAGE_MM} or more; "
            "is this the whole scan?"
        )

    _, rows, columns = volume.voxels.shape
    _, y_mm, x_mm = volume.spacing_mm
    sides_mm = (rows * y_mm, columns * x_mm)
    if no_body_is_so_wide(sides_mm):
        lines.append(
            f"{volume.path}: slices of {sides_mm[0]:.3g} x {sides_mm[1]:.3g} mm, wanted "
            f"{LEAST_ACROSS_MM} to {MOST_ACROSS_MM} on each side; is the spacing right?"
        )

    if is_nobodys_frame(volume.affine):
        lines.append(
            f"{volume.path}: voxels of 1 mm, the first at 0 0 0, as of a file whose frame nobody "
            "set; is the spacing right, and is left left?"
        )

    shear = shear_degrees(volume.affine)
    if shear > SHEAR_DEGREES:
        lines.append(
            f"{volume.path}: axes {shear:.1f} degrees off right angles (gantry tilt?), "
            "but it is resampled as if at right angles, so the networks see a sheared "
            "body; correct the tilt when converting from DICOM"
        )
    return lines


def no_body_is_so_wide(sides_mm: Sequence[float]) -> bool:
    """Whether slices with such sides, in mm, are of no CT of an abdomen, so that the spacing is
    wrong or a part was cut out."""
    return min(sides_mm) < LEAST_ACROSS_MM or max(sides_mm) > MOST_ACROSS_MM


def is_nobodys_frame(affine: np.ndarray) -> bool:
    """Whether a (4, 4) affine is the identity, which programs write that know no frame; in LPS its
    first two axes are turned around."""
    return np.array_equal(np.abs(affine), np.eye(4))


def _not_hu(voxels):
    """What says that these are not HU, or None."""
    if voxels.size > SAMPLE_VOXELS:
        voxels = voxels[:, ::2, ::2]

    padding = max(voxels.min(), LOWEST_HU)
    inside = np.count_nonzero(voxels > padding)
    air = np.count_nonzero((voxels > padding) & (voxels < AIR_HU))
    body = inside - air
    bone = np.count_nonzero(voxels > BONE_HU)
    dense = np.count_nonzero(voxels > DENSE_HU)
    tissue = body - bone

    if air < LEAST_AIR * inside or inside == 0:
        return f"air (below {AIR_HU}) in fewer than {LEAST_AIR:.1%} of what is no padding"
    if tissue < LEAST_TISSUE * inside:
        return (
            f"fat and soft tissue ({AIR_HU} to {BONE_HU}) in fewer than {LEAST_TISSUE:.0%} of "
            "what is no padding"
        )
    if bone < LEAST_BONE * body:
        return f"bone (above {BONE_HU}) in fewer than {LEAST_BONE:.1%} of the body"
    if bone > tissue:
        return f"more bone (above {BONE_HU}) than fat and soft tissue"
    if dense > MOST_DENSE * body:
        return f"dense bone (above {DENSE_HU}) in {dense / body:.0%} of the body"
    return None
