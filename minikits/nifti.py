"""NIfTI files <-> volumes. What cannot be trusted is refused, by name.

A file is a header, which says how its voxels are stored, scaled and placed, and the voxels, the
first axis fastest. Masks go back in the frame of the file they came from."""

import gzip
import zlib
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, ornt_transform
from nibabel.wrapstruct import WrapStructError

from minikits.files import written_whole
from minikits.frames import choose_frame
from minikits.volumes import (
    CANONICAL,
    KITS19_AFFINE,
    Volume,
    canonical_axes_and_flips,
    orientation,
)

ARRAY = Path("array")  # what stands for the path of an image that lies in no file
MAX_VOXELS = 2_000_000_000
LONGEST_AXIS = (1 << 15) - 1  # more does not fit into a mask's header
LAST_OFFSET = 1 << 28  # of the first voxel's byte
READ_BYTES = 1 << 20
GZIP = b"\x1f\x8b"  # what a gzip file begins with

CYST = "3 is a cyst in KiTS21 and KiTS23"
LABEL_TOLERANCE = 1e-3  # a float label this near to 0, 1 or 2 is that label
# CT is stored in 16 bits. What lies far beyond them is a fill value, such as -3.4e38, and the cubic
# spline would carry it from the padding into the body.
MAX_MAGNITUDE = 100_000


def read_volume(
    path: str | Path,
    *,
    affine: str | None = None,
    assume_spacing: Sequence[float] | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Volume:
    """An image. Voxels keep the type they are stored in, or become float32 where the header scales.

    affine: "sform" or "qform", the one to take where they or pixdim differ; no matter elsewhere.
    assume_spacing: Z Y X mm of a file whose axes are KiTS19's, whatever its header says. Masks of a
    volume whose frame was chosen so bear that frame. Raises OSError, or ValueError for what is not
    a whole 3D volume of finite real numbers of the size of HU, with one frame (a last axis of 1 is
    dropped).
    """
    volume = _read_framed(Path(path), affine, assume_spacing, max_voxels)
    _check_magnitude(volume)
    return volume


def volume_of_array(voxels: np.ndarray, affine: np.ndarray) -> Volume:
    """An image that lies in no file: an array of three axes in whatever order, and the affine from
    its voxel (i, j, k) to mm R A S, as nibabel gives them. It is read and refused as a file of
    these is; its path, for messages, is "array"."""
    voxels, affine = np.asarray(voxels), np.asarray(affine, dtype=np.float64)
    if voxels.ndim != 3 or voxels.dtype.kind not in "iuf" or voxels.size == 0:
        raise ValueError(
            f"{ARRAY}: shape {voxels.shape} of {voxels.dtype} found, wanted three axes of real numbers"
        )
    if affine.shape != (4, 4) or max(voxels.shape) > LONGEST_AXIS:
        raise ValueError(
            f"{ARRAY}: shape {voxels.shape} with an affine of shape {affine.shape} found, wanted "
            f"(4, 4) and at most {LONGEST_AXIS} voxels along an axis"
        )

    header = nib.Nifti1Header()
    header.set_data_shape(voxels.shape)
    header.set_sform(affine, "aligned")
    header["pixdim"][1:4] = nib.affines.voxel_sizes(affine)
    volume = _framed(ARRAY, voxels, header, None, None)
    _check_magnitude(volume)
    return volume


def _check_magnitude(volume):
    """Refuses an image with values that no CT has."""
    low, high = volume.voxels.min(), volume.voxels.max()
    if low < -MAX_MAGNITUDE or high > MAX_MAGNITUDE:
        raise ValueError(
            f"{volume.path}: values from {low:g} to {high:g} found, wanted HU, none beyond "
            f"{MAX_MAGNITUDE}; are these fill values? set them to -1024 (air)"
        )


def read_labels(
    path: str | Path,
    *,
    affine: str | None = None,
    assume_spacing: Sequence[float] | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Volume:
    """A label map: as `read_volume`, with uint8 voxels 0, 1 or 2; anything else is a ValueError
    naming the values."""
    volume = _read_framed(Path(path), affine, assume_spacing, max_voxels)

    whole, off = volume.voxels, 0
    if volume.voxels.dtype.kind == "f":
        whole = np.rint(volume.voxels)
        off = np.abs(volume.voxels - whole).max()
    if whole.min() < 0 or whole.max() > 2 or off > LABEL_TOLERANCE:
        values = _no_labels(volume.voxels)
        advice = "is this the segmentation file?"
        if values == "3":
            advice = (
                f"{CYST}, and docs/using.md#what-comes-and-goes tells what to do; in other data, "
                "is this the segmentation file?"
            )
        raise ValueError(
            f"{path}: label values {values} found, wanted only 0 (background), "
            f"1 (kidney) and 2 (tumor); {advice}"
        )
    return replace(volume, voxels=whole.astype(np.uint8, copy=False))


@np.errstate(all="ignore")
def read_spacing(
    path: str | Path, *, affine: str | None = None, assume_spacing: Sequence[float] | None = None
) -> tuple[float, float, float]:
    """The sides of an image's voxels, Z Y X mm, by its header alone: those of `read_volume`."""
    path = Path(path)
    with _opened(path) as stream:
        header = _header(stream.read(nib.Nifti2Header.sizeof_hdr), path, MAX_VOXELS)
    try:
        return _spacing_mm(choose_frame(header, affine, assume_spacing))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _no_labels(voxels):
    """The first five of the values that are none of 0, 1 and 2, as a message shows them."""
    whole = np.rint(voxels)
    wrong = (whole < 0) | (whole > 2) | (np.abs(voxels - whole) > LABEL_TOLERANCE)
    values = np.unique(voxels[wrong])
    shown = [f"{value:g}" for value in values[:5]]
    if len(values) > 5:
        shown.append("...")
    return ", ".join(shown)


def _read_framed(path, affine, assume_spacing, max_voxels):
    """A Volume of finite real numbers, scaled as the header says, turned to the canonical axes."""
    stored, header = _read(path, max_voxels)
    return _framed(path, stored, header, affine, assume_spacing)


@np.errstate(all="ignore")  # an overflow is found among the voxels or in the affine
def _framed(path, stored, header, affine, assume_spacing):
    """The Volume of stored voxels and their header, which may be changed."""
    try:
        slope, intercept = _slope_and_intercept(header)
        frame = choose_frame(header, affine, assume_spacing)
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

    axes_and_flips = canonical_axes_and_flips(frame)
    voxels = apply_orientation(stored, axes_and_flips)

    return Volume(path, voxels, _spacing_mm(frame), frame, header)


def _spacing_mm(frame):
    """The sides of a voxel, in the order Z Y X, of an affine of the stored axes."""
    stored_axes = np.argsort(canonical_axes_and_flips(frame)[:, 0])
    return tuple(nib.affines.voxel_sizes(frame)[stored_axes].tolist())


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


def write_labels(path: str | Path, labels: np.ndarray, like: Volume, *, slope: float = 1.0) -> None:
    """Writes (Z, Y, X) labels as uint8 in the frame, shape, affine and codes of the file that
    `like` was read from. slope: what one step of the bytes stands for, where they are no labels;
    the header says it. ValueError for labels of another shape than `like.voxels`."""
    labels = np.asarray(labels, dtype=np.uint8)
    if labels.shape != like.voxels.shape:
        raise ValueError(
            f"{path}: labels of shape {labels.shape}, wanted {like.voxels.shape}, "
            f"that of {like.path}"
        )
    _write(path, in_stored_axes(labels, like), like.header, slope)


def in_stored_axes(labels: np.ndarray, like: Volume) -> np.ndarray:
    """(Z, Y, X) labels -> the same in the axes, (i, j, k), of the file or array that `like` is of."""
    back = ornt_transform(CANONICAL, orientation(like.affine))
    return apply_orientation(labels, back)


def write_image(path: str | Path, voxels: np.ndarray, spacing_mm: Sequence[float]) -> None:
    """Writes (Z, Y, X) voxels as a KiTS19 file is: I P L, sform code 2. For data that has no file
    yet."""
    image = nib.Nifti1Image(voxels, KITS19_AFFINE * [*spacing_mm, 1])
    _write(path, voxels, image.header)


def _write(path, array, header, slope=1.0):
    """`array` in the file's own axes; compressed where the name says so; equal input gives equal
    bytes."""
    header = nib.Nifti1Header.from_header(header, check=False)
    header["sizeof_hdr"], header["magic"] = 348, b"n+1"  # whatever the scan's header was
    # a display range in HU would hide the labels
    header["cal_min"] = header["cal_max"] = header["vox_offset"] = 0
    header.set_intent("none")  # whatever the scan's numbers mean
    image = nib.Nifti1Image(array, None, header, dtype=array.dtype)
    image.header.set_slope_inter(slope, 0)

    with written_whole(path) as file:
        if str(path).endswith(".gz"):
            with gzip.GzipFile("", "wb", 3, file, mtime=0) as stream:  # no name, no hour
                image.to_stream(stream)
        else:
            image.to_stream(file)


def _read(path, max_voxels):
    """(array in the file's own axes, header)."""
    with _opened(path) as stream:
        return _read_stream(stream, path, max_voxels)


@contextmanager
def _opened(path):
    """A stream of a file's bytes, unpacked where it is compressed."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, or a folder or device; wanted a NIfTI file")

    with open(path, "rb") as file:
        start = file.peek()[:2]
        if not start:
            raise ValueError(
                f"{path}: the file is empty (0 bytes), wanted a NIfTI volume; download it again"
            )
        try:
            if start != GZIP:
                yield file
                return
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path}: damaged, or cannot be read ({error}); download it again"
            ) from None


def _read_stream(stream, path, max_voxels):
    """(array in the file's own axes, header). The stream is read to its end, so that gzip checks
    its sum."""
    header = _header(stream.read(nib.Nifti2Header.sizeof_hdr), path, max_voxels)
    shape = header.get_data_shape()
    try:
        voxels = np.empty(shape, header.get_data_dtype(), order="F")
    except MemoryError:
        raise ValueError(
            f"{path}: {shape} voxels do not fit into memory; "
            "close other programs, or take a larger computer"
        ) from None

    stream.seek(int(header["vox_offset"]))
    filled = _fill(voxels, stream)
    if filled < voxels.nbytes:
        raise ValueError(
            f"{path}: ends after {filled} of {voxels.nbytes} bytes of voxels; download it again"
        )

    padding = stream.read(READ_BYTES)  # a little may follow
    if len(padding) == READ_BYTES:
        raise ValueError(
            f"{path}: goes on after the {filled} bytes of voxels of its header; "
            "is the header damaged?"
        )
    return voxels, header


def _fill(voxels, stream):
    """Reads into an array, the first axis fastest, until it is full or the stream ends. Returns how
    many bytes were read."""
    buffer = memoryview(voxels.reshape(-1, order="F").view(np.uint8))
    filled = 0
    while filled < len(buffer):
        count = stream.readinto(buffer[filled : filled + READ_BYTES])
        if count == 0:
            break
        filled += count
    return filled


def _header(start, path, max_voxels):
    """The NIfTI-1 or NIfTI-2 header that the file starts with; refuses by it what is not a 3D
    volume of numbers."""
    header = _parsed_header(start)
    magic = b""
    if header is not None:
        magic = bytes(header["magic"])[:3]
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
    if len(shape) != 3 or min(shape) < 1 or max(shape) > LONGEST_AXIS:
        raise ValueError(f"{path}: shape {shape} found, wanted three axes; give one volume a file")
    if np.prod(shape, dtype=object) > max_voxels:
        raise ValueError(
            f"{path}: shape {shape} found, more than {max_voxels} voxels; is the "
            "header damaged? predict.py and evaluate.py take more with --max-voxels N"
        )
    _check_type(header, path)
    if not header.sizeof_hdr <= float(header["vox_offset"]) <= LAST_OFFSET:
        raise ValueError(
            f"{path}: voxels begin at byte {header['vox_offset']}, wanted 352 or so; "
            "download it again"
        )
    header.set_data_shape(shape)
    return header


def _check_type(header, path):
    """Refuses voxels that are no real numbers: complex ones, colours, and codes that are none."""
    code = int(header["datatype"])
    known = code in nib.nifti1.data_type_codes.dtype
    if known and header.get_data_dtype().kind in "iuf":
        return
    name = "unknown"
    if known:
        name = nib.nifti1.data_type_codes.label[code]
    raise ValueError(
        f"{path}: voxels of type {name} (code {code}) found, wanted real numbers; "
        "export it as int16"
    )


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
