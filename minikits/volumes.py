"""NIfTI files <-> (Z, Y, X) voxels with spacing and frame. What cannot be trusted is refused, by name.

Every volume is turned to the axes of a KiTS19 file, by its affine alone: Z towards inferior, Y towards posterior,
X towards the patient's left (orientation code I P L). Masks go back in the frame of the file they came from.
"""

import gzip
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from minikits.files import written_whole

CANONICAL = axcodes2ornt(("I", "P", "L"))
MAX_VOXELS = 2_000_000_000
CORNER_TOLERANCE_MM = 1e-3  # beside a relative 1e-4: frames that differ by less are the same
LABEL_TOLERANCE = 1e-3  # a float label this near to 0, 1 or 2 is that label
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Volume:
    """voxels (Z, Y, X): an array, perhaps a view; spacing_mm Z Y X; header and affine: the file's own."""

    path: Path
    voxels: np.ndarray
    spacing_mm: tuple
    affine: np.ndarray
    header: nib.Nifti1Header


def read_volume(path):
    """An image. Voxels keep the type they are stored in, or become float32 where the header scales them.

    Raises FileNotFoundError, or ValueError where the file is not a whole 3D NIfTI volume of finite real numbers
    with a frame. A trailing axis of length 1 is dropped. Nothing is checked of the unit: CT should be in HU.
    """
    path = Path(path)
    stored, header = _read(path)
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:  # nibabel would invent a frame
        raise ValueError(f"{path}: neither sform nor qform is set, so spacing and orientation are unknown; "
                         "convert it again from DICOM")
    try:
        affine, (slope, intercept) = header.get_best_affine(), header.get_slope_inter()
    except (HeaderDataError, ValueError) as error:
        raise ValueError(f"{path}: {error}; is the header damaged? convert it again from DICOM") from None
    sizes = nib.affines.voxel_sizes(affine)
    if not np.isfinite(affine).all() or min(sizes) <= 0 or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        raise ValueError(f"{path}: its affine {affine[:3].tolist()} is not invertible; convert it again from DICOM")
    if slope is not None and (slope, intercept) != (1, 0):
        stored = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    bad = stored.size - np.count_nonzero(np.isfinite(stored)) if stored.dtype.kind == "f" else 0
    if bad:
        raise ValueError(f"{path}: {bad} voxels are NaN or infinite, wanted finite values; export the scan again")
    turn = ornt_transform(io_orientation(affine), CANONICAL)
    spacing_mm = tuple(sizes[np.argsort(turn[:, 0])].tolist())
    return Volume(path, apply_orientation(stored, turn), spacing_mm, affine, header)


def read_labels(path):
    """A label map: as `read_volume`, with uint8 voxels 0, 1 or 2; anything else is a ValueError naming the values."""
    volume = read_volume(path)
    voxels = volume.voxels
    whole = voxels if voxels.dtype.kind in "iu" else np.rint(voxels)
    if whole.min() >= 0 and whole.max() <= 2 and (whole is voxels or np.abs(voxels - whole).max() <= LABEL_TOLERANCE):
        return replace(volume, voxels=whole.astype(np.uint8))
    strange = np.unique(voxels[(whole < 0) | (whole > 2) | (np.abs(voxels - whole) > LABEL_TOLERANCE)])
    shown = ", ".join(f"{value:g}" for value in strange[:5]) + (", ..." if len(strange) > 5 else "")
    raise ValueError(f"{path}: label values {shown} found, wanted only 0 (background), 1 (kidney) and 2 (tumor); "
                     "is this the segmentation file?")


def check_same_grid(one, other):
    """Refuses two volumes whose files differ in shape or place: voxel by voxel they would not mean the same."""
    ours, theirs = one.header.get_data_shape(), other.header.get_data_shape()
    if ours != theirs:
        raise ValueError(f"{one.path}: shape {ours}, but {other.path} has {theirs}, wanted the same; "
                         "was one of them resampled?")
    corners = np.argwhere(np.ones((2, 2, 2))) * (np.array(ours) - 1)
    mine, yours = (nib.affines.apply_affine(volume.affine, corners) for volume in (one, other))
    apart, size = np.abs(mine - yours).max(), np.ptp(mine, axis=0).max()
    if apart > CORNER_TOLERANCE_MM + 1e-4 * size:
        raise ValueError(f"{one.path}: lies up to {apart:.3g} mm from {other.path}, wanted the same affine; "
                         "was one of them registered or reoriented?")


def write_labels(path, labels, like, *, slope=1.0):
    """Writes (Z, Y, X) labels as uint8 in the frame, shape, affine and codes of the file that `like` was read from.

    slope: what one step of the bytes stands for, where they are no labels; the header says it.
    """
    back = ornt_transform(CANONICAL, io_orientation(like.affine))
    _write(path, apply_orientation(np.asarray(labels, dtype=np.uint8), back), like.header, slope)


def write_image(path, voxels, spacing_mm):
    """Writes (Z, Y, X) voxels as a KiTS19 file is: I P L, sform code 2. For data that has no file yet."""
    affine = -np.diag([*spacing_mm, -1.0])[[2, 1, 0, 3]]
    _write(path, voxels, nib.Nifti1Image(voxels, affine).header)


def _write(path, array, header, slope=1.0):
    """`array` in the file's own axes; compressed where the name says so; equal input gives equal bytes."""
    header = nib.Nifti1Header.from_header(header, check=False)
    header["sizeof_hdr"], header["magic"] = 348, b"n+1"  # whatever the scan's header was
    header["cal_min"] = header["cal_max"] = 0  # a display range in HU would hide the labels
    with (written_whole(path) as file,
          gzip.GzipFile("", "wb", 3, file, mtime=0) if str(path).endswith(".gz") else nullcontext(file) as stream):
        image = nib.Nifti1Image(array, None, header, dtype=array.dtype)
        image.header.set_slope_inter(slope, 0)
        image.to_stream(stream)


def _read(path):
    """The file's array, in its own axes, and header. The stream is read to its end, so that gzip checks its sum."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: a folder or device, wanted a NIfTI file")
    with open(path, "rb") as file:
        start = file.peek()[:2]
        if not start:
            raise ValueError(f"{path}: the file is empty (0 bytes), wanted a NIfTI volume; download it again")
        try:
            with gzip.GzipFile(fileobj=file) if start == b"\x1f\x8b" else file as stream:
                header = _header(stream.read(nib.Nifti2Header.sizeof_hdr), path)
                return _array(stream, header, path), header
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: the compressed data is damaged ({error}); download it again") from None


def _header(start, path):
    """The NIfTI-1 or NIfTI-2 header that the file starts with; refuses by it what is not a 3D volume of numbers."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        try:
            header = kind(start[: kind.sizeof_hdr], check=False)
            shape, dtype = header.get_data_shape(), header.get_data_dtype()
        except (WrapStructError, HeaderDataError, ValueError, KeyError):
            continue
        if bytes(header["magic"])[:3] in (b"n+1", b"n+2") and header["sizeof_hdr"] == kind.sizeof_hdr:
            break
    else:
        raise ValueError(f"{path}: starts with {start[:12]!r}, which is no NIfTI file (.nii or .nii.gz); "
                         "was a web page or a pointer saved in its place?")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{path}: shape {shape} found, wanted three axes; give one volume a file")
    if np.prod(shape, dtype=object) > MAX_VOXELS:
        raise ValueError(f"{path}: shape {shape} found, more than {MAX_VOXELS} voxels; is the header damaged?")
    if dtype.kind not in "iuf":
        raise ValueError(f"{path}: voxels of type {dtype} found, wanted real numbers; export it as int16")
    if not kind.sizeof_hdr <= float(header["vox_offset"]) < 1 << 31:
        raise ValueError(f"{path}: voxels begin at byte {header['vox_offset']}, wanted {kind.sizeof_hdr} or more; "
                         "is the header damaged?")
    header.set_data_shape(shape)
    return header


def _array(stream, header, path):
    """The voxels that follow the header in `stream`, in the file's own axes."""
    voxels = np.empty(header.get_data_shape(), header.get_data_dtype(), order="F")
    buffer, filled = memoryview(voxels.reshape(-1, order="F").view(np.uint8)), 0
    stream.seek(int(header["vox_offset"]))
    while count := stream.readinto(buffer[filled : filled + READ_BYTES]):
        filled += count
    if filled < len(buffer):
        raise ValueError(f"{path}: ends after {filled} of {len(buffer)} bytes of voxels; download it again")
    while stream.read(READ_BYTES):
        pass
    return voxels
