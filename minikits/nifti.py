"""NIfTI files <-> volumes. What cannot be trusted is refused, by name.

Masks go back in the frame of the file they came from."""

import gzip
import zlib
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, ornt_transform
from nibabel.wrapstruct import WrapStructError

from minikits.files import SPACING_RANGE_MM, written_whole
from minikits.volumes import (
    CANONICAL,
    KITS19_AFFINE,
    Volume,
    mm_apart,
    orientation,
    shear_degrees,
    turn_to_canonical,
)

MAX_VOXELS = 2_000_000_000
READ_BYTES = 1 << 20

# A qform keeps three of its quaternion's four numbers, as float32. The square of the fourth,
# 1 - b2 - c2 - d2, is off by up to this, and is taken for 0 where it is no more, as nibabel does.
# Near half a turn that is a thousandth of a radian.
QUATERNION_ROUNDING = 3 * 2.0**-23
QUATERNION_EXCESS = 1e-5  # by so much b2 + c2 + d2 may exceed 1; careless writers round like that
UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}  # of xyzt_units, in mm; all else is mm
CONVERT = "convert it again from DICOM, or give --assume-spacing Z Y X (mm; axes as KiTS19's)"

LABEL_TOLERANCE = 1e-3  # a float label this near to 0, 1 or 2 is that label
# CT is stored in 16 bits. What lies far beyond them is a fill value, such as -3.4e38, and the cubic
# spline would carry it from the padding into the body.
MAX_MAGNITUDE = 100_000

# Bounds on shares: of air and tissue (fat, soft tissue) in what is no padding; of bone and of dense
# bone in the body, which is what is no air. A CT of kidneys keeps them by far, and values in other
# units break one of them at least.
AIR_HU, BONE_HU, DENSE_HU = -200, 200, 700
LOWEST_HU = -1200  # below is padding
LEAST_AIR, LEAST_TISSUE, LEAST_BONE, MOST_DENSE = 0.001, 0.01, 0.001, 0.05
SAMPLE_VOXELS = 1 << 24  # of a larger scan every second row and column is enough

# What lies beyond is a fill value: beside it the cubic spline overshoots by more than a tenth of the
# networks' unit, and at -32768 by all of their window.
FILL_HU = (-5000, 40_000)

COVERAGE_MM = 40  # along Z; a scan of kidneys has more
SHEAR_DEGREES = 1.0  # over 300 mm a degree is 5 mm


def read_volume(
    path, *, affine: str | None = None, assume_spacing=None, max_voxels: int = MAX_VOXELS
) -> Volume:
    """An image. Voxels keep the type they are stored in, or become float32 where the header scales.

    affine: "sform" or "qform", the one to take where they or pixdim differ; no matter elsewhere.
    assume_spacing: Z Y X mm of a file whose axes are KiTS19's, whatever its header says. Masks of a
    volume whose frame was chosen so bear that frame. Raises OSError, or ValueError for what is not
    a whole 3D volume of finite real numbers of the size of HU, with one frame (a last axis of 1 is
    dropped).
    """
    volume = _read_framed(Path(path), affine, assume_spacing, max_voxels)

    low, high = volume.voxels.min(), volume.voxels.max()
    if low < -MAX_MAGNITUDE or high > MAX_MAGNITUDE:
        raise ValueError(
            f"{path}: values from {low:g} to {high:g} found, wanted HU, none beyond "
            f"{MAX_MAGNITUDE}; are these fill values? set them to -1024 (air)"
        )
    return volume


def read_labels(
    path, *, affine: str | None = None, assume_spacing=None, max_voxels: int = MAX_VOXELS
) -> Volume:
    """A label map: as `read_volume`, with uint8 voxels 0, 1 or 2; anything else is a ValueError
    naming the values."""
    volume = _read_framed(Path(path), affine, assume_spacing, max_voxels)
    voxels = volume.voxels

    whole = voxels if voxels.dtype.kind in "iu" else np.rint(voxels)
    allowed = whole.min() >= 0 and whole.max() <= 2
    if allowed and (whole is voxels or np.abs(voxels - whole).max() <= LABEL_TOLERANCE):
        return replace(volume, voxels=whole.astype(np.uint8, copy=False))

    none = (whole < 0) | (whole > 2) | (np.abs(voxels - whole) > LABEL_TOLERANCE)
    strange = np.unique(voxels[none])
    shown = ", ".join(f"{value:g}" for value in strange[:5]) + (", ..." if len(strange) > 5 else "")
    raise ValueError(
        f"{path}: label values {shown} found, wanted only 0 (background), 1 (kidney) "
        "and 2 (tumor); is this the segmentation file?"
    )


@np.errstate(all="ignore")  # an overflow is found among the voxels or in the affine
def _read_framed(path, affine, assume_spacing, max_voxels):
    """A Volume of finite real numbers, scaled as the header says, turned to the canonical axes."""
    stored, header = _read(path, max_voxels)
    try:
        slope, intercept = _slope_and_intercept(header)
        frame = _frame(header, affine, assume_spacing)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    if (slope, intercept) != (1, 0):
        stored = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if stored.dtype.kind == "f":
        not_finite = stored.size - np.count_nonzero(np.isfinite(stored))
        if not_finite:
            are = "voxel is" if not_finite == 1 else "voxels are"
            raise ValueError(
                f"{path}: {not_finite} {are} NaN or infinite, "
                "wanted finite values; export the scan again"
            )

    turn = turn_to_canonical(frame)
    spacing_mm = tuple(nib.affines.voxel_sizes(frame)[np.argsort(turn[:, 0])].tolist())
    return Volume(path, apply_orientation(stored, turn), spacing_mm, frame, header)


def _slope_and_intercept(header):
    """What stored numbers are multiplied by, and what is then added. A slope of 0 means neither;
    so does NaN, as nibabel has it."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1, 0
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise ValueError(
            f"scl_slope {slope:g} and scl_inter {intercept:g} found, wanted finite "
            "numbers; is the header damaged? convert it again from DICOM"
        )
    return slope, intercept


def doubts(volume: Volume) -> list[str]:
    """Lines on what is suspect in an image that can be read: values that are not HU, little of the
    body, axes that are not at right angles."""
    lines = []

    fault = _not_hu(volume.voxels)
    if fault:
        low, high = volume.voxels.min(), volume.voxels.max()
        lines.append(
            f"{volume.path}: values from {low:g} to {high:g}, {fault}; wanted those of a "
            "body; is this CT in HU?"
        )

    lowest, highest = volume.voxels.min(), volume.voxels.max()
    if not fault and (lowest < FILL_HU[0] or highest > FILL_HU[1]):
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

    shear = shear_degrees(volume.affine)
    if shear > SHEAR_DEGREES:
        lines.append(
            f"{volume.path}: axes {shear:.1f} degrees off right angles (gantry tilt?), "
            "but it is resampled as if at right angles, so the networks see a sheared "
            "body; correct the tilt when converting from DICOM"
        )
    return lines


def _not_hu(voxels):
    """What says that these are not HU, or None. Shares are judged, not the lowest and the highest
    value, which padding and a few voxels of metal decide."""
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

    one_grid = _grid_near(one, other.grid)
    other_grid = _grid_near(other, one_grid)
    apart = mm_apart(one_grid, other_grid, ours)
    if apart:
        raise ValueError(
            f"{one.path}: lies up to {apart:.3g} mm from {other.path}, wanted the "
            f"same place: affine {_rows(one.affine)}, the other's "
            f"{_rows(other.affine)}; is one moved, turned or resampled?"
        )


def _grid_near(volume, wanted):
    """A volume's grid, turned as near to `wanted` as the rounding of a qform leaves open; an sform
    is taken as it is."""
    if volume.header["sform_code"] > 0:
        return volume.grid
    near = wanted @ np.linalg.inv(volume.stored_voxel)
    return _qform(volume.header, near) @ volume.stored_voxel


def _rows(affine):
    """An affine as a message shows it: three rows, to a micrometre."""
    return affine[:3].round(3).tolist()


def _frame(header, choice, assume_spacing):
    """The affine (mm) that `read_volume`'s options choose, or else the one that sform, qform and
    pixdim agree on. Changes the header to what a mask shall say: a sound value where the standard
    reads one into an odd one, and a frame that was chosen as the only one."""
    _settle(header)
    if assume_spacing is not None:
        return _assumed_frame(header, assume_spacing)

    frames, faults = _frames_and_faults(header)
    if not frames and not faults:  # nibabel would invent a frame
        raise ValueError(f"neither sform nor qform is set, its frame is unknown; {CONVERT}")
    if not frames:
        raise ValueError(f"{' and '.join(faults)}; {CONVERT}")

    preferred = "sform" if "sform" in frames else "qform"
    conflict = _conflict(header, frames, faults, preferred)
    if not conflict:
        return frames[preferred]
    if choice not in frames:
        raise ValueError(conflict)
    _bear(header, frames[choice], int(header[f"{choice}_code"]))
    return frames[choice]


def _settle(header):
    """Brings odd values of a header to what the standard reads into them, so that masks have sound
    ones."""
    for code in ("sform_code", "qform_code"):
        if not 0 <= header[code] <= 5:  # a code that is none
            header[code] = 0

    pixdim = header["pixdim"]
    pixdim[1:4] = np.abs(pixdim[1:4])  # lengths; their sign has no meaning
    if header["qform_code"] > 0 and np.isfinite(pixdim[0]):
        pixdim[0] = -1 if pixdim[0] < 0 else 1

    quaternion = _stored_quaternion(header)
    squares = quaternion @ quaternion
    if 2e-7 < squares - 1 <= QUATERNION_EXCESS:  # nibabel could refuse the mask for it
        for letter, value in zip("bcd", quaternion / np.sqrt(squares)):
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
    _bear(header, frame, "aligned")
    return frame


def _bear(header, frame, code):
    """Writes a chosen frame (mm) into a header, as its only one."""
    header["xyzt_units"] = int(header["xyzt_units"]) & ~7 | 2  # mm
    header.set_sform(frame, code)
    header.set_qform(frame, "unknown")  # it can be no shear; with code 0 it only sets pixdim


def _frames_and_faults(header):
    """({"sform" or "qform": affine in mm} of the sound ones that are set, [what is wrong with
    another])."""
    frames, faults = {}, []
    for form, read in (("sform", _sform), ("qform", _qform)):
        if header[f"{form}_code"] > 0:
            try:
                frames[form] = _invertible(read(header), header, form)
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


def _invertible(frame, header, form):
    """The affine (mm) of a header's form as it is; ValueError where it is none of voxels from some
    hundredths to tens of mm, within a kilometre."""
    sizes = nib.affines.voxel_sizes(frame)
    sane = abs(frame).max() < 1e6 and abs(np.log10(sizes)).max() < 2
    if not sane or abs(np.linalg.det(frame[:3, :3] / sizes)) < 1e-3:
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
    stored = _stored_quaternion(header)
    squares = stored @ stored
    if squares - 1 > QUATERNION_EXCESS:
        raise ValueError(
            f"its qform's quaternion {stored} has squares that sum to {squares:g}, wanted 1 or less"
        )

    square = max(0, 1 - squares)
    first = 0 if square < QUATERNION_ROUNDING else np.sqrt(square)
    if near is not None:
        least = np.sqrt(max(0, square - QUATERNION_ROUNDING))
        most = np.sqrt(square + QUATERNION_ROUNDING)
        first = np.clip(_first_of_quaternion(near), least, most)

    turn = nib.quaternions.quat2mat([first, *stored])
    lengths = np.array(header["pixdim"][1:4], dtype=np.float64)
    lengths[2] *= header["pixdim"][0]  # -1 where the axes are left-handed
    offset = [header["qoffset_x"], header["qoffset_y"], header["qoffset_z"]]
    affine = nib.affines.from_matvec(turn * lengths, np.array(offset, dtype=np.float64))
    _, mm = _unit(header)
    affine[:3] *= mm
    return affine


def _stored_quaternion(header):
    """b, c and d of a header's qform, in float64."""
    return np.array([header[f"quatern_{letter}"] for letter in "bcd"], dtype=np.float64)


def _first_of_quaternion(affine):
    """The number that a qform does not keep of an affine's quaternion; never negative. The mirroring
    that pixdim[0] = -1 stands for is left out."""
    turn = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    if np.linalg.det(turn) < 0:
        turn[:, 2] *= -1
    return nib.quaternions.mat2quat(turn)[0]


def write_labels(path, labels, like, *, slope=1.0):
    """Writes (Z, Y, X) labels as uint8 in the frame, shape, affine and codes of the file that
    `like` was read from. slope: what one step of the bytes stands for, where they are no labels;
    the header says it. ValueError for labels of another shape than `like.voxels`."""
    labels = np.asarray(labels, dtype=np.uint8)
    if labels.shape != like.voxels.shape:
        raise ValueError(
            f"{path}: labels of shape {labels.shape}, wanted {like.voxels.shape}, "
            f"that of {like.path}"
        )
    back = ornt_transform(CANONICAL, orientation(like.affine))
    _write(path, apply_orientation(labels, back), like.header, slope)


def write_image(path, voxels, spacing_mm):
    """Writes (Z, Y, X) voxels as a KiTS19 file is: I P L, sform code 2. For data that has no file yet."""
    _write(path, voxels, nib.Nifti1Image(voxels, KITS19_AFFINE * [*spacing_mm, 1]).header)


def _write(path, array, header, slope=1.0):
    """`array` in the file's own axes; compressed where the name says so; equal input gives equal bytes."""
    header = nib.Nifti1Header.from_header(header, check=False)
    header["sizeof_hdr"], header["magic"] = 348, b"n+1"  # whatever the scan's header was
    # a display range in HU would hide the labels
    header["cal_min"] = header["cal_max"] = header["vox_offset"] = 0
    header.set_intent("none")  # whatever the scan's numbers mean
    with (
        written_whole(path) as file,
        gzip.GzipFile("", "wb", 3, file, mtime=0)
        if str(path).endswith(".gz")
        else nullcontext(file) as stream,
    ):
        image = nib.Nifti1Image(array, None, header, dtype=array.dtype)
        image.header.set_slope_inter(slope, 0)
        image.to_stream(stream)


def _read(path, max_voxels):
    """The file's array, in its own axes, and header. The stream is read to its end, so that gzip checks its sum."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, or a folder or device; wanted a NIfTI file")
    with open(path, "rb") as file:
        if not (start := file.peek()[:2]):
            raise ValueError(
                f"{path}: the file is empty (0 bytes), wanted a NIfTI volume; download it again"
            )
        try:
            with gzip.GzipFile(fileobj=file) if start == b"\x1f\x8b" else file as stream:
                header = _header(stream.read(nib.Nifti2Header.sizeof_hdr), path, max_voxels)
                voxels = np.empty(header.get_data_shape(), header.get_data_dtype(), order="F")
                buffer, filled = memoryview(voxels.reshape(-1, order="F").view(np.uint8)), 0
                stream.seek(int(header["vox_offset"]))
                while count := stream.readinto(buffer[filled : filled + READ_BYTES]):
                    filled += count
                more = len(stream.read(READ_BYTES))  # a little padding may follow
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path}: damaged, or cannot be read ({error}); download it again"
            ) from None
        except MemoryError:
            raise ValueError(
                f"{path}: {header.get_data_shape()} voxels do not fit into memory; "
                "close other programs, or take a larger computer"
            ) from None
    if filled < len(buffer):
        raise ValueError(
            f"{path}: ends after {filled} of {len(buffer)} bytes of voxels; download it again"
        )
    if more == READ_BYTES:
        raise ValueError(
            f"{path}: goes on after the {filled} bytes of voxels of its header; is the header damaged?"
        )
    return voxels, header


def _header(start, path, max_voxels):
    """The NIfTI-1 or NIfTI-2 header that the file starts with; refuses by it what is not a 3D volume of numbers."""
    header = _parsed_header(start)
    magic = b"" if header is None else bytes(header["magic"])[:3]
    if magic in (b"ni1", b"ni2"):
        raise ValueError(
            f"{path}: one half of a .hdr/.img pair found, wanted both in one file; "
            "convert them to .nii.gz"
        )
    if magic not in (b"n+1", b"n+2"):
        raise ValueError(
            f"{path}: starts with {start[:12]!r}, no NIfTI file; was a web page or a pointer saved?"
        )

    shape = _shape(header)
    if (
        len(shape) != 3 or min(shape) < 1 or max(shape) >= 1 << 15
    ):  # more does not fit into a mask's header
        raise ValueError(f"{path}: shape {shape} found, wanted three axes; give one volume a file")
    if np.prod(shape, dtype=object) > max_voxels:
        raise ValueError(
            f"{path}: shape {shape} found, more than {max_voxels} voxels; is the "
            "header damaged? predict.py and evaluate.py take more with --max-voxels N"
        )

    code = int(header["datatype"])
    known = code in nib.nifti1.data_type_codes.dtype
    if not known or header.get_data_dtype().kind not in "iuf":
        name = nib.nifti1.data_type_codes.label[code] if known else "unknown"
        raise ValueError(
            f"{path}: voxels of type {name} (code {code}) found, wanted real numbers; "
            "export it as int16"
        )

    if not header.sizeof_hdr <= float(header["vox_offset"]) <= 1 << 28:
        raise ValueError(
            f"{path}: voxels begin at byte {header['vox_offset']}, wanted 352 or so; download it again"
        )
    header.set_data_shape(shape)
    return header


def _parsed_header(start):
    """The bytes as the NIfTI-1 or NIfTI-2 header whose size they name; None where it is neither."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        with suppress(WrapStructError):
            header = kind(start[: kind.sizeof_hdr], check=False)
            if header["sizeof_hdr"] == kind.sizeof_hdr:
                return header
    return None


def _shape(header):
    """The lengths of a header's axes, less those of 1 behind the third; () where it has no such."""
    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        return ()
    shape = tuple(int(length) for length in header["dim"][1 : axes + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
