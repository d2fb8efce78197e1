"""Where the voxels of a NIfTI file lie: its frame, an affine from voxel (i, j, k) to mm R A S.

A header may say it in two forms. The sform is the affine itself, in three rows. The qform is made
of a turn (three of a quaternion's four numbers), an offset, and the lengths of a voxel's sides,
`pixdim`, which stand there in any case. A code beside each form is 0 where it is not set.

Where all that is set agrees, the sform is taken, or else the qform. Where it does not, the file is
refused until --affine says which of them is right. A mask bears the frame that its scan was read
with.

Rounding is no disagreement. The fourth number of the quaternion follows from the others, as a small
difference of squares near half a turn (which the axes of a CT often are from R A S): one affine
written as sform and qform is two, turned against each other by up to a thousandth of a radian. So a
qform stands for all the turns that its rounding leaves open, and is compared by the one of them
that is nearest to the other frame: `near`."""

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from minikits.volumes import KITS19_AFFINE, Volume, mm_apart

# A qform keeps b, c and d of its quaternion, as float32. The square of a, 1 - b2 - c2 - d2, is off
# by up to this, and is taken for 0 where it is no more, as nibabel does.
QUATERNION_ROUNDING = 3 * 2.0**-23
QUATERNION_EXCESS = 1e-5  # by so much b2 + c2 + d2 may exceed 1; careless writers round like that
UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}  # of xyzt_units, in mm; all else is mm
SPACING_RANGE_MM = (0.01, 100.0)  # what --assume-spacing takes, both ends excluded
CONVERT = "convert it again from DICOM, or give --assume-spacing Z Y X (mm; axes as KiTS19's)"


def check_same_grid(one: Volume, other: Volume) -> None:
    """Refuses (ValueError) two volumes whose voxels do not lie at the same places: voxel by voxel
    they would not mean the same. In which orientation each file stores them does not matter, nor do
    codes and types."""
    ours, theirs = one.voxels.shape, other.voxels.shape
    if ours != theirs:
        raise ValueError(
            f"{one.path}: shape {ours}, but {other.path} has {theirs} (Z, Y, X), "
            "wanted the same; is one resampled or cropped?"
        )

    one_to_mm = _zyx_to_mm_near(one, other.zyx_to_mm)
    other_to_mm = _zyx_to_mm_near(other, one_to_mm)
    apart = mm_apart(one_to_mm, other_to_mm, ours)
    if apart:
        raise ValueError(
            f"{one.path}: lies up to {apart:.3g} mm from {other.path}, wanted the "
            f"same place: affine {_rows(one.affine)}, the other's "
            f"{_rows(other.affine)}; is one moved, turned or resampled?"
        )


def _zyx_to_mm_near(volume, wanted):
    """A volume's affine from voxel (z, y, x) to mm, turned as near to `wanted` as the rounding of a
    qform leaves open; an sform is taken as it is."""
    if volume.header["sform_code"] > 0:
        return volume.zyx_to_mm

    near = wanted @ np.linalg.inv(volume.zyx_to_stored)
    return _qform(volume.header, near) @ volume.zyx_to_stored


def _rows(affine):
    """An affine as a message shows it: three rows, to a micrometre."""
    return affine[:3].round(3).tolist()


def choose_frame(
    header: nib.Nifti1Header, choice: str | None, assume_spacing: Sequence[float] | None
) -> np.ndarray:
    """(4, 4), voxel (i, j, k) -> mm R A S: the affine that `read_volume`'s options choose, or else
    the one that sform, qform and pixdim agree on. ValueError where they do not.

    Changes the header to what a mask shall say: a sound value where the standard reads one into an
    odd one, and a frame that was chosen as the only one."""
    _repair(header)
    if assume_spacing is not None:
        return _assumed_frame(header, assume_spacing)

    frames, faults = _sound_forms(header)
    if not frames and not faults:  # nibabel would make one up
        raise ValueError(f"neither sform nor qform is set, its frame is unknown; {CONVERT}")
    if not frames:
        raise ValueError(f"{' and '.join(faults)}; {CONVERT}")

    preferred = "sform" if "sform" in frames else "qform"
    conflict = _conflict(header, frames, faults, preferred)
    if not conflict:
        return frames[preferred]
    if choice not in frames:
        raise ValueError(conflict)
    _write_frame(header, frames[choice], int(header[f"{choice}_code"]))
    return frames[choice]


def _repair(header):
    """Brings odd values of a header to what the standard reads into them, so that masks have sound
    ones."""
    for code in ("sform_code", "qform_code"):
        if not 0 <= header[code] <= 5:  # a code that is none
            header[code] = 0

    pixdim = header["pixdim"]
    pixdim[1:4] = np.abs(pixdim[1:4])  # lengths; their sign has no meaning
    if header["qform_code"] > 0 and np.isfinite(pixdim[0]):
        pixdim[0] = -1 if pixdim[0] < 0 else 1

    bcd = _stored_bcd(header)
    squares = bcd @ bcd
    if 2e-7 < squares - 1 <= QUATERNION_EXCESS:  # nibabel could refuse the mask for it
        for letter, value in zip("bcd", bcd / np.sqrt(squares)):
            header[f"quatern_{letter}"] = value


def _assumed_frame(header, spacing):
    """The frame of a KiTS19 file with voxels of `spacing` (Z, Y, X) mm."""
    lengths = np.array(spacing, dtype=np.float64)
    smallest, largest = SPACING_RANGE_MM
    if lengths.shape != (3,) or not ((lengths > smallest) & (lengths < largest)).all():
        shown = " ".join(f"{length:g}" for length in lengths.ravel())
        raise ValueError(
            f"--assume-spacing {shown}: wanted three lengths Z Y X in mm, "
            f"more than {smallest:g} and less than {largest:g}"
        )
    frame = KITS19_AFFINE * [*lengths, 1]
    _write_frame(header, frame, "aligned")
    return frame


def _write_frame(header, frame, code):
    """Writes a chosen frame (mm) into a header, as its only one."""
    header["xyzt_units"] = int(header["xyzt_units"]) & ~7 | 2  # mm
    header.set_sform(frame, code)
    header.set_qform(frame, "unknown")  # it can be no shear; with code 0 it only sets pixdim


def _sound_forms(header):
    """({"sform" or "qform": affine in mm} of the sound ones that are set, [what is wrong with
    another])."""
    frames, faults = {}, []
    for form, read in (("sform", _sform), ("qform", _qform)):
        if header[f"{form}_code"] == 0:
            continue
        try:
            frames[form] = _checked(read(header), header, form)
        except ValueError as error:
            faults.append(str(error))
    return frames, faults


def _conflict(header, frames, faults, preferred):
    """What does not fit together among a header's forms and pixdim, and the option that decides;
    None where all does."""
    if faults:
        return f"{faults[0]}, but its {preferred} is sound; --affine {preferred} takes that"

    if len(frames) == 2:
        sform = frames["sform"]
        apart = mm_apart(sform, _qform(header, sform), header.get_data_shape())
        if apart:
            qform = frames["qform"]
            return (
                f"sform {_rows(sform)} and qform {_rows(qform)}, {apart:.3g} mm apart, "
                "wanted the same; --affine sform or --affine qform chooses one"
            )

    _, mm = _unit(header)
    pixdim = header["pixdim"][1:4] * mm
    sizes = nib.affines.voxel_sizes(frames[preferred])
    if not (np.abs(pixdim - sizes) <= 0.01 * sizes).all():
        return (
            f"pixdim {pixdim} and {preferred} {sizes} mm, wanted the same; "
            f"--affine {preferred} takes these"
        )
    return None


def _checked(frame, header, form):
    """The affine (mm) of a header's form as it is; ValueError where it is none of voxels from some
    hundredths to tens of mm, within a kilometre."""
    sizes = nib.affines.voxel_sizes(frame)
    directions = frame[:3, :3] / sizes
    sane = abs(frame).max() < 1e6 and abs(np.log10(sizes)).max() < 2
    if not sane or abs(np.linalg.det(directions)) < 1e-3:  # of right angles it is 1 or -1
        unit, _ = _unit(header)
        raise ValueError(
            f"its {form} {frame[:3].tolist()} is not invertible, or not in {unit}: "
            f"voxels of {sizes} mm"
        )
    return frame


def _unit(header):
    """(name, mm) of the unit that a header's lengths are in."""
    return UNITS.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))


def _sform(header):
    """The affine (mm) of a header's sform."""
    _, mm = _unit(header)
    affine = header.get_sform()
    affine[:3] *= mm
    return affine


def _qform(header, near=None):
    """The affine (mm) of a header's quaternion, offset and pixdim. ValueError for no quaternion.
    near: an affine; the turn nearest to its own of those that rounding leaves open is taken."""
    bcd = _stored_bcd(header)
    rotation = nib.quaternions.quat2mat([_left_out_a(bcd, near), *bcd])
    lengths = np.array(header["pixdim"][1:4], dtype=np.float64)
    lengths[2] *= header["pixdim"][0]  # -1 where the axes are left-handed
    offset = [header["qoffset_x"], header["qoffset_y"], header["qoffset_z"]]

    affine = nib.affines.from_matvec(rotation * lengths, np.array(offset, dtype=np.float64))
    _, mm = _unit(header)
    affine[:3] *= mm
    return affine


def _left_out_a(bcd, near):
    """The first number of the quaternion whose others a qform keeps; their squares sum to 1. near:
    None, or an affine; the number nearest to its own of those that rounding leaves open."""
    squares = bcd @ bcd
    if squares - 1 > QUATERNION_EXCESS:
        raise ValueError(
            f"its qform's quaternion {bcd} has squares that sum to {squares:g}, wanted 1 or less"
        )

    square = max(0, 1 - squares)
    if near is not None:
        least = np.sqrt(max(0, square - QUATERNION_ROUNDING))
        most = np.sqrt(square + QUATERNION_ROUNDING)
        return np.clip(_a_of_quaternion(near), least, most)
    if square < QUATERNION_ROUNDING:
        return 0
    return np.sqrt(square)


def _stored_bcd(header):
    """b, c and d of a header's quaternion, in float64."""
    return np.array([header[f"quatern_{letter}"] for letter in "bcd"], dtype=np.float64)


def _a_of_quaternion(affine):
    """The first number, which a qform does not keep, of an affine's quaternion; never negative. The
    mirroring that pixdim[0] = -1 stands for is left out."""
    rotation = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    if np.linalg.det(rotation) < 0:
        rotation[:, 2] *= -1
    return nib.quaternions.mat2quat(rotation)[0]
