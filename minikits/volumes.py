"""NIfTI files <-> (Z, Y, X) voxels with spacing and frame. What cannot be trusted is refused, by name.

Every volume is turned to the axes of a KiTS19 file, by its affine alone: Z towards inferior, Y towards posterior,
X towards the patient's left (orientation code I P L). Masks go back in the frame of the file they came from."""

import gzip
import zlib
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from minikits.files import written_whole

CANONICAL = axcodes2ornt(("I", "P", "L"))
KITS19_AFFINE = np.diag([-1.0, -1.0, -1.0, 1.0])[[2, 1, 0, 3]]  # of voxels of 1 mm
MAX_VOXELS = 2_000_000_000
CORNER_TOLERANCE_MM = 1e-3  # beside a relative 1e-4: frames that differ by less are the same
LABEL_TOLERANCE = 1e-3  # a float label this near to 0, 1 or 2 is that label
READ_BYTES = 1 << 20
AIR_HU, BONE_HU, COVERAGE_MM = -200, 200, 40  # any CT of kidneys reaches beyond these


@dataclass(frozen=True)
class Volume:
    """voxels (Z, Y, X): an array, perhaps a view; spacing_mm Z Y X; header and affine: the file's own."""
    path: Path
    voxels: np.ndarray
    spacing_mm: tuple
    affine: np.ndarray
    header: nib.Nifti1Header


@np.errstate(all="ignore")  # an overflow is found among the voxels or in the affine
def read_volume(path, *, affine=None, assume_spacing=None, max_voxels=MAX_VOXELS):
    """An image. Voxels keep the type they are stored in, or become float32 where the header scales them.
    affine: "sform" or "qform", the one to take where they or pixdim differ. assume_spacing: Z Y X mm of a file whose
    axes are KiTS19's, whatever its header says. Masks of such a volume bear the frame so chosen. Raises OSError, or
    ValueError for what is not a whole 3D volume of finite real numbers with one frame (a last axis of 1 is dropped)."""
    path = Path(path)
    stored, header = _read(path, max_voxels)
    try:
        slope, intercept = header.get_slope_inter()
        frame = _frame(header, affine, assume_spacing)
    except (HeaderDataError, ValueError) as error:
        raise ValueError(f"{path}: {error}; is the header damaged? convert it again from DICOM, or give "
                         "predict.py --assume-spacing Z Y X (mm)") from None
    if slope is not None and (slope, intercept) != (1, 0):
        stored = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if bad := stored.dtype.kind == "f" and stored.size - np.count_nonzero(np.isfinite(stored)):
        raise ValueError(f"{path}: {bad} voxels are NaN or infinite, wanted finite values; export the scan again")
    turn = ornt_transform(io_orientation(frame), CANONICAL)
    spacing_mm = tuple(nib.affines.voxel_sizes(frame)[np.argsort(turn[:, 0])].tolist())
    return Volume(path, apply_orientation(stored, turn), spacing_mm, frame, header)


def read_labels(path, **options):
    """A label map: as `read_volume`, with uint8 voxels 0, 1 or 2; anything else is a ValueError naming the values."""
    voxels = (volume := read_volume(path, **options)).voxels
    whole = voxels if voxels.dtype.kind in "iu" else np.rint(voxels)
    if whole.min() >= 0 and whole.max() <= 2 and (whole is voxels or np.abs(voxels - whole).max() <= LABEL_TOLERANCE):
        return replace(volume, voxels=whole.astype(np.uint8, copy=False))
    strange = np.unique(voxels[(whole < 0) | (whole > 2) | (np.abs(voxels - whole) > LABEL_TOLERANCE)])
    shown = ", ".join(f"{value:g}" for value in strange[:5]) + (", ..." if len(strange) > 5 else "")
    raise ValueError(f"{path}: label values {shown} found, wanted only 0 (background), 1 (kidney) and 2 (tumor); "
                     "is this the segmentation file?")


def doubts(volume):
    """Lines on what is suspect in an image that can be read: values that are not HU, little of the body."""
    low, high, mm = volume.voxels.min(), volume.voxels.max(), len(volume.voxels) * volume.spacing_mm[0]
    unit = f"{volume.path}: values from {low:g} to {high:g}, wanted air and bone too; is this CT in HU?"
    part = f"{volume.path}: covers {mm:.3g} mm along Z, wanted {COVERAGE_MM} or more; is this the whole scan?"
    return [unit] * bool(low > AIR_HU or high < BONE_HU) + [part] * bool(mm < COVERAGE_MM)


def check_same_grid(one, other):
    """Refuses two volumes whose files differ in shape or place: voxel by voxel they would not mean the same."""
    ours, theirs = one.header.get_data_shape(), other.header.get_data_shape()
    if ours != theirs:
        raise ValueError(f"{one.path}: shape {ours}, but {other.path} has {theirs}, wanted the same; is one resampled?")
    if apart := _mm_apart(one.affine, other.affine, ours):
        raise ValueError(f"{one.path}: lies up to {apart:.3g} mm from {other.path}, wanted the same; is one moved?")


def _mm_apart(affine, other, shape):
    """How far a grid's corners lie apart under two affines, at most; 0 where it is no more than rounding."""
    corners = np.argwhere(np.ones((2, 2, 2))) * (np.array(shape) - 1)
    ours, theirs = (nib.affines.apply_affine(one, corners) for one in (affine, other))
    apart, size = np.abs(ours - theirs).max(), np.ptp(ours, axis=0).max()
    return 0 if apart <= CORNER_TOLERANCE_MM + 1e-4 * size else apart


def _frame(header, choice, spacing):
    """The affine that `read_volume`'s options choose, or else the one that sform, qform and pixdim agree on."""
    for code in ("sform_code", "qform_code"):
        header[code] = header[code] * (0 <= header[code] <= 5)  # others nibabel would change in the mask
    forms = [form for form in ("sform", "qform") if header[f"{form}_code"] > 0 and choice in (None, form)]
    if not forms and not spacing:  # nibabel would invent a frame
        raise ValueError(f"{f'{choice} is not' if choice else 'neither sform nor qform is'} set, its frame is unknown")
    frames = ([KITS19_AFFINE * [*spacing, 1]] if spacing else
              [getattr(header, f"get_{form}")() for form in forms])
    if apart := len(frames) == 2 and _mm_apart(*frames, header.get_data_shape()):
        sform, qform = (frame[:3].round(3).tolist() for frame in frames)
        raise ValueError(f"sform {sform} and qform {qform}, {apart:.3g} mm apart; predict.py --affine chooses one")
    frame, pixdim, sizes = frames[0], header["pixdim"][1:4], np.array(spacing or nib.affines.voxel_sizes(frames[0]))
    sane = abs(frame).max() < 1e6 and abs(np.log10(sizes)).max() < 2  # mm
    if not sane or abs(np.linalg.det(frame[:3, :3] / sizes)) < 1e-3:
        raise ValueError(f"its affine {frame[:3].tolist()} is not invertible, or not in mm: voxels of {sizes}")
    if choice or spacing:
        header.set_sform(frame, "aligned")
        header.set_qform(frame, "unknown")  # it can be no shear; with code 0 it only sets pixdim
    elif not (abs(pixdim - sizes) <= 0.01 * sizes).all():
        raise ValueError(f"pixdim {pixdim} and {forms[0]} {sizes} mm, wanted the same; --affine {forms[0]} takes these")
    return frame


def write_labels(path, labels, like, *, slope=1.0):
    """Writes (Z, Y, X) labels as uint8 in the frame, shape, affine and codes of the file that `like` was read from.
    slope: what one step of the bytes stands for, where they are no labels; the header says it."""
    back = ornt_transform(CANONICAL, io_orientation(like.affine))
    _write(path, apply_orientation(np.asarray(labels, dtype=np.uint8), back), like.header, slope)


def write_image(path, voxels, spacing_mm):
    """Writes (Z, Y, X) voxels as a KiTS19 file is: I P L, sform code 2. For data that has no file yet."""
    _write(path, voxels, nib.Nifti1Image(voxels, KITS19_AFFINE * [*spacing_mm, 1]).header)


def _write(path, array, header, slope=1.0):
    """`array` in the file's own axes; compressed where the name says so; equal input gives equal bytes."""
    header = nib.Nifti1Header.from_header(header, check=False)
    header["sizeof_hdr"], header["magic"] = 348, b"n+1"  # whatever the scan's header was
    header["cal_min"] = header["cal_max"] = header["vox_offset"] = 0  # a display range in HU would hide the labels
    with (written_whole(path) as file,
          gzip.GzipFile("", "wb", 3, file, mtime=0) if str(path).endswith(".gz") else nullcontext(file) as stream):
        image = nib.Nifti1Image(array, None, header, dtype=array.dtype)
        image.header.set_slope_inter(slope, 0)
        image.to_stream(stream)


def _read(path, max_voxels):
    """The file's array, in its own axes, and header. The stream is read to its end, so that gzip checks its sum."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, or a folder or device; wanted a NIfTI file")
    with open(path, "rb") as file:
        if not (start := file.peek()[:2]):
            raise ValueError(f"{path}: the file is empty (0 bytes), wanted a NIfTI volume; download it again")
        try:
            with gzip.GzipFile(fileobj=file) if start == b"\x1f\x8b" else file as stream:
                header = _header(stream.read(nib.Nifti2Header.sizeof_hdr), path, max_voxels)
                voxels = np.empty(header.get_data_shape(), header.get_data_dtype(), order="F")
                buffer, filled = memoryview(voxels.reshape(-1, order="F").view(np.uint8)), 0
                stream.seek(int(header["vox_offset"]))
                while count := stream.readinto(buffer[filled : filled + READ_BYTES]):
                    filled += count
                more = len(stream.read(READ_BYTES))  # a little padding may follow
        except (EOFError, OSError, zlib.error, MemoryError) as error:
            raise ValueError(f"{path}: damaged, or cannot be read ({error}); download it again") from None
    if filled < len(buffer):
        raise ValueError(f"{path}: ends after {filled} of {len(buffer)} bytes of voxels; download it again")
    if more == READ_BYTES:
        raise ValueError(f"{path}: goes on after the {filled} bytes of voxels of its header; is the header damaged?")
    return voxels, header


def _header(start, path, max_voxels):
    """The NIfTI-1 or NIfTI-2 header that the file starts with; refuses by it what is not a 3D volume of numbers."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        with suppress(WrapStructError, HeaderDataError, ValueError, KeyError):
            header = kind(start[: kind.sizeof_hdr], check=False)
            shape, dtype = header.get_data_shape(), header.get_data_dtype()
            if bytes(header["magic"])[:3] in (b"n+1", b"n+2") and header["sizeof_hdr"] == kind.sizeof_hdr:
                break
    else:
        raise ValueError(f"{path}: starts with {start[:12]!r}, no NIfTI file; was a web page or a pointer saved?")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1 or max(shape) >= 1 << 15:  # more does not fit into a mask's header
        raise ValueError(f"{path}: shape {shape} found, wanted three axes; give one volume a file")
    if np.prod(shape, dtype=object) > max_voxels:
        raise ValueError(f"{path}: shape {shape} found, more than {max_voxels} voxels; --max-voxels N allows more")
    if dtype.kind not in "iuf":
        raise ValueError(f"{path}: voxels of type {dtype} found, wanted real numbers; export it as int16")
    if not kind.sizeof_hdr <= float(header["vox_offset"]) <= 1 << 28:
        raise ValueError(f"{path}: voxels begin at byte {header['vox_offset']}, wanted 352 or so; download it again")
    header.set_data_shape(shape)
    return header
