"""What real files suffer from: each hazard is made, and refused by name with what was found and
what to do about it."""

import gzip
import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from test_volumes import KITS_AFFINE, save

from minikits.cases import find_cases
from minikits.doubts import doubts, no_body_is_so_wide
from minikits.frames import check_same_grid
from minikits.nifti import read_labels, read_volume, write_labels
from minikits.phantoms import make_case

# a warning of numpy's is a line that no user asked for
pytestmark = pytest.mark.filterwarnings("error")

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (20, 12, 13)).astype(np.int16)
SHEARED = np.array([[0, 0.3, -0.8, 7], [0, -0.8, 0, 5], [-3.0, 0, 0, 2], [0, 0, 0, 1]])
MOVED = np.array([[0, 0, -0.8, 47], [0, -0.8, 0, 5], [-3.0, 0, 0, 2], [0, 0, 0, 1]])  # by 40 mm
ASSUMED = np.array([[0, 0, -0.6, 0], [0, -0.7, 0, 0], [-5, 0, 0, 0], [0, 0, 0, 1]])
FLIPS = 400
BOMB_MEGABYTES = 300
CONVERT = "convert it again from DICOM, or give --assume-spacing Z Y X"
NIFTI_2 = nib.Nifti2Image


def framed(path, sform, qform, codes=(1, 1), kind=nib.Nifti1Image, **header):
    """A file with both frames; header fields are set last."""
    image = kind(VOXELS, None)
    image.header.set_qform(qform, codes[1])
    image.header.set_sform(sform, codes[0])
    content = bytearray(image.to_bytes())
    layout = image.header.structarr.dtype
    fields = np.frombuffer(content, layout, 1)[0]
    for name, value in header.items():
        fields[name] = value
    del fields
    path.write_bytes(content)
    return path


def row(value):
    """The three rows of an sform, each of this value or these four."""
    return {"srow_x": value, "srow_y": value, "srow_z": value}


# What makes a hazard at a path, and gives the path of what it made.


def both(*frames, **header):
    return lambda path: framed(path, *frames, **header)


def by_sform(**header):
    return both(KITS_AFFINE, None, (1, 0), **header)


def saved(*array_and_affine):
    return lambda path: save(path, *array_and_affine)


def of_bytes(content):
    def make(path):
        path.write_bytes(content)
        return path

    return make


def cut_in_half(path):
    content = save(path, VOXELS).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def plain_and_cut_in_half(path):
    return cut_in_half(path.with_suffix(""))  # .nii


def plain_and_longer(path):
    path = save(path.with_suffix(""), VOXELS)
    path.write_bytes(path.read_bytes() + bytes(2_000_000))
    return path


def rgb(path):
    return save(path, np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def not_a_number(path):
    return save(path, np.where(VOXELS > 990, np.inf, VOXELS).astype(np.float32))


def nothing(path):
    return path


def folder(path):
    path.mkdir()
    return path


def device(path):
    os.mkfifo(path)
    return path


def dangling_link(path):
    path.symlink_to(path.with_name("gone"))
    return path


HAZARDS = {  # hazard: (how the file is made, the message after its name)
    "sform and qform differ": (
        both(KITS_AFFINE, MOVED),
        r"sform \[\[.* 7\.0\].* and qform \[\[.* 47\.0\].* 40 mm apart, wanted the same; "
        "--affine sform or --affine qform chooses one$",
    ),
    "sform NaN, qform whole": (
        both(KITS_AFFINE, KITS_AFFINE, **row(np.nan)),
        "its sform .*nan.* but its qform is sound; --affine qform takes that$",
    ),
    "qform NaN, sform whole": (
        both(KITS_AFFINE, KITS_AFFINE, qoffset_y=np.nan),
        "its qform .*nan.* but its sform is sound; --affine sform takes that$",
    ),
    "qform damaged, sform whole": (
        both(KITS_AFFINE, KITS_AFFINE, quatern_c=-3),
        r"its qform's quaternion .* sum to 10, wanted 1 .*; --affine sform takes that$",
    ),
    "both forms damaged": (
        both(KITS_AFFINE, KITS_AFFINE, quatern_c=-3, **row(0)),
        f"its sform .* and its qform's quaternion .*; {CONVERT}",
    ),
    "pixdim[0] NaN": (
        both(KITS_AFFINE, KITS_AFFINE, pixdim=(np.nan, 3, 0.8, 0.8, 0, 0, 0, 0)),
        "its qform .*nan.* --affine sform takes that$",
    ),
    "pixdim zero": (
        by_sform(pixdim=(1, 0, 0, 0, 0, 0, 0, 0)),
        r"pixdim \[0\. .*; --affine sform takes these$",
    ),
    "pixdim differs": (
        both(KITS_AFFINE, KITS_AFFINE, (1, 0), pixdim=(1, 3, 0.8, 0.82, 0, 0, 0, 0)),
        r"pixdim \[3.* 0\.8 .*0\.82\] and sform \[3\. .*0\.8.* 0\.8.*\] mm, wanted the same; --affine",
    ),
    "pixdim NaN": (by_sform(pixdim=(1, np.nan, 1, 1, 0, 0, 0, 0)), "pixdim .*nan"),
    "affine zero": (by_sform(**row(0)), f"not invertible.* {CONVERT}"),
    "affine NaN": (by_sform(**row(np.nan)), f"not invertible.* {CONVERT}"),
    "affine singular": (by_sform(**row([1, 2, 3, 0])), f"not inv.* {CONVERT}"),
    "no code": (
        both(KITS_AFFINE, KITS_AFFINE, (0, 0)),
        f"neither sform nor qform is set.* {CONVERT}",
    ),
    "code that is none": (by_sform(sform_code=7), f"neither sform nor qform is.*{CONVERT}"),
    "qform damaged": (
        both(None, KITS_AFFINE, (0, 1), quatern_b=7),
        f"quaternion .* sum to 49.5, wanted 1 .*; {CONVERT}",
    ),
    "qform NaN": (both(None, KITS_AFFINE, (0, 1), quatern_b=np.nan), f"not invertible.* {CONVERT}"),
    "qform infinite": (
        both(None, KITS_AFFINE, (0, 1), pixdim=(1, np.inf, 1, 1, 0, 0, 0, 0)),
        CONVERT,
    ),
    "beyond float32": (by_sform(kind=NIFTI_2, **row(1e300)), "not invertible"),
    "voxels of nothing": (both(KITS_AFFINE * 1e-38, None, (1, 0), NIFTI_2), "not invertible"),
    "spacing in metres": (
        saved(VOXELS, np.diag([8e-4, 8e-4, 3e-3, 1])),
        r"not in mm: voxels of \[0\.0008.* --assume",
    ),
    "spacing in micrometres": (
        both(KITS_AFFINE, None, (1, 0), xyzt_units=3),
        r"its sform .* not in micrometres: voxels of \[0\.003 .* mm; convert",
    ),
    "slope infinite": (
        by_sform(scl_slope=np.inf),
        "scl_slope inf and scl_inter 0 .*header damaged.* again from DICOM$",
    ),
    "intercept NaN": (
        by_sform(scl_slope=1, scl_inter=np.nan),
        "scl_slope 1 and scl_inter nan found, wanted finite",
    ),
    "half of a pair": (
        by_sform(magic=b"ni1"),
        r"one half of a \.hdr/\.img pair found.* convert them to .nii.gz",
    ),
    "ANALYZE": (by_sform(magic=b""), "no NIfTI file"),
    "bits": (
        by_sform(datatype=1),
        r"type binary \(code 1\) found, wanted real numbers; export it as int16",
    ),
    "float128": (by_sform(datatype=1536), r"type float128 \(code 1536\) found, wanted real"),
    "a type that is none": (
        by_sform(datatype=3),
        r"type unknown \(code 3\) found, wanted real numbers",
    ),
    "no axes": (by_sform(dim=(0, 20, 12, 13, 1, 1, 1, 1)), r"shape \(\) found, wanted three axes"),
    "axes beyond seven": (by_sform(dim=(9, 20, 12, 13, 1, 1, 1, 1)), r"shape \(\) found|no NIfTI"),
    "an axis of none": (
        by_sform(dim=(3, 20, 0, 13, 1, 1, 1, 1)),
        r"shape \(20, 0, 13\) found, wanted three axes",
    ),
    "truncated": (cut_in_half, "damaged.*download it again"),
    "truncated, plain": (
        plain_and_cut_in_half,
        r"ends after \d+ of 6240 bytes.*download it",
    ),
    "no bytes": (of_bytes(b""), r"empty \(0 bytes\).*download it again"),
    "web page": (
        of_bytes(b"<!DOCTYPE html><html>no</html>"),
        "no NIfTI file.*was a web page",
    ),
    "pointer": (
        of_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "no NIfTI file.*or a pointer",
    ),
    "header that lies": (
        by_sform(dim=(3, 30000, 30000, 30000, 1, 1, 1, 1)),
        r"shape \(30000, 30000, 30000\) found, more than 2000000000 voxels; is the header damaged",
    ),
    "header too small": (
        plain_and_longer,
        r"goes on after the 6240 bytes.*is the header damaged",
    ),
    "axis too long": (
        by_sform(kind=NIFTI_2, dim=(3, 1, 1, 40000, 1, 1, 1, 1)),
        r"shape \(1, 1, 40000\) found, wanted three axes",
    ),
    "four axes": (
        saved(np.zeros((4, 5, 6, 2), np.int16)),
        r"shape \(4, 5, 6, 2\).*give one volume a file",
    ),
    "two axes": (saved(np.zeros((4, 5), np.int16)), r"shape \(4, 5\) found, wanted three axes"),
    "infinity": (
        not_a_number,
        r"\d+ voxels are NaN or infinite, wanted finite values; export the scan again",
    ),
    "complex": (
        saved(np.zeros((4, 5, 6), np.complex64)),
        "complex64 .* found, wanted real.*export it as int16",
    ),
    "RGB": (rgb, "found, wanted real numbers; export it as int16"),
    "no file": (nothing, "no such file"),
    "folder": (folder, "a folder or device; wanted a NIfTI file"),
    "device": (device, "a folder or device; wanted a NIfTI file"),
    "dangling link": (dangling_link, "no such file"),
    "offset": (by_sform(vox_offset=2e9), "voxels begin at byte 2000"),
}


@pytest.mark.parametrize("hazard", HAZARDS)
def test_hazards_are_refused_by_name(tmp_path, hazard):
    make, message = HAZARDS[hazard]
    path = make(tmp_path / "case_00042.nii.gz")

    for read in (read_volume, read_labels):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
            read(path)

        line = str(refusal.value)
        assert line.startswith(f"{path}: ")
        assert "\n" not in line
        other_scripts = line.replace("predict.py and evaluate.py take more", "")
        assert "predict.py" not in other_scripts  # train.py reads files too


@pytest.mark.parametrize(
    "values, message",
    [
        (
            [0, 1, 3],
            r"label values 3 found, wanted only 0 .*, 1 .* and 2 .*; 3 is a cyst in KiTS21 and KiTS23",
        ),
        (
            [0, 3, 4],
            r"label values 3, 4 found, wanted only 0 .* 2 .*; is this the segmentation file\?",
        ),
        ([0, 1.002, 2], "label values 1.002 found"),
        ([0, 255], "values 255 found"),
        ([-1, 0], "values -1 found"),
    ],
)
def test_other_label_values_are_refused(tmp_path, values, message):
    labels = np.resize(np.array(values, np.float32), (4, 5, 6))
    dtypes = [np.float32]
    if 1.002 not in values:
        dtypes.append(np.int16)

    for dtype in dtypes:
        path = save(tmp_path / "case_00042.nii.gz", labels.astype(dtype))

        with pytest.raises(ValueError, match=message) as refusal:
            read_labels(path)

        assert str(refusal.value).startswith(f"{path}: ")


def test_image_and_labels_that_differ_are_refused_with_both_names(tmp_path):
    image = read_volume(save(tmp_path / "image.nii", VOXELS))
    others = [
        (KITS_AFFINE, VOXELS[1:], "shape"),
        (MOVED, VOXELS, "40 mm"),
        (SHEARED, VOXELS, "mm"),
    ]

    for affine, voxels, what in others:
        other = read_volume(save(tmp_path / "labels.nii", voxels, affine))
        with pytest.raises(ValueError, match=f"image.nii: .*{what}.*labels.nii.*wanted the same"):
            check_same_grid(image, other)


@pytest.mark.parametrize(
    "sform, qform, codes, options, affine",
    [
        (KITS_AFFINE, MOVED, (1, 1), {"affine": "sform"}, KITS_AFFINE),
        (KITS_AFFINE, MOVED, (1, 1), {"affine": "qform"}, MOVED),
        (SHEARED, MOVED, (1, 1), {"affine": "sform"}, SHEARED),
        (np.diag([0, 0, 0, 1]), MOVED, (1, 1), {"affine": "qform"}, MOVED),
        (KITS_AFFINE, KITS_AFFINE, (0, 0), {"assume_spacing": (5, 0.7, 0.6)}, ASSUMED),
        (np.diag([0, 0, 0, 1]), None, (1, 0), {"assume_spacing": (5, 0.7, 0.6)}, ASSUMED),
    ],
)
def test_a_frame_that_was_chosen_is_that_of_the_mask_too(
    tmp_path, sform, qform, codes, options, affine
):
    path = framed(tmp_path / "scan.nii", sform, qform, codes)
    message = r"--affine .form( chooses one| takes that)$|--assume-spacing"
    with pytest.raises(ValueError, match=message):
        read_volume(path)

    volume = read_volume(path, **options)
    write_labels(tmp_path / "mask.nii", VOXELS % 3, volume)
    mask = read_labels(tmp_path / "mask.nii")

    assert np.allclose(volume.affine, affine)
    assert np.array_equal(volume.voxels, VOXELS)
    check_same_grid(volume, mask)
    assert np.array_equal(mask.voxels, VOXELS % 3)
    assert mask.spacing_mm == pytest.approx(volume.spacing_mm)


def test_choices_that_cannot_be_made(tmp_path):
    one = framed(tmp_path / "one.nii", KITS_AFFINE, None, (1, 0))  # pixdim says 1 mm
    two = framed(tmp_path / "two.nii", KITS_AFFINE, MOVED)
    wrong = "wanted three lengths Z Y X in mm, more than 0.01 and less than 100$"
    choices = [
        (one, {"affine": "qform"}, "--affine sform takes these$"),
        (two, {"max_voxels": 3119}, r"more than 3119 voxels; .* take more with --max-voxels N$"),
        (two, {"assume_spacing": (3, 0, 1)}, f"--assume-spacing 3 0 1: {wrong}"),
        (two, {"assume_spacing": (-3, 1, 1)}, f"--assume-spacing -3 1 1: {wrong}"),
        (two, {"assume_spacing": (3, np.nan, 1)}, f"--assume-spacing 3 nan 1: {wrong}"),
        (two, {"assume_spacing": (3, 1, 100)}, f"--assume-spacing 3 1 100: {wrong}"),
        (two, {"assume_spacing": (3, 1)}, f"--assume-spacing 3 1: {wrong}"),
    ]

    for path, options, message in choices:
        with pytest.raises(ValueError, match=message) as refusal:
            read_volume(path, **options)

        assert str(refusal.value).startswith(f"{path}: ")

    assert read_volume(two, affine="sform", max_voxels=3120).voxels.size == 3120


@pytest.mark.parametrize("choice", ["sform", "qform"])
@pytest.mark.parametrize("codes", [(2, 0), (0, 1), (1, 3)])
def test_a_choice_changes_nothing_where_there_is_nothing_to_choose(tmp_path, choice, codes):
    path = framed(tmp_path / "scan.nii", KITS_AFFINE, KITS_AFFINE, codes)

    volume = read_volume(path, affine=choice)

    assert volume.header == read_volume(path).header
    assert (volume.header["sform_code"], volume.header["qform_code"]) == codes
    assert np.allclose(volume.affine, KITS_AFFINE, atol=1e-6)


@pytest.mark.parametrize(
    "choice, codes, wanted", [("sform", (1, 3), (1, 0)), ("qform", (1, 3), (3, 0))]
)
def test_the_frame_that_was_chosen_is_the_masks_only_one_with_its_code(
    tmp_path, choice, codes, wanted
):
    path = framed(tmp_path / "scan.nii", KITS_AFFINE, MOVED, codes)

    volume = read_volume(path, affine=choice)
    write_labels(tmp_path / "mask.nii", VOXELS % 3, volume)

    mask = nib.load(tmp_path / "mask.nii").header
    assert (mask["sform_code"], mask["qform_code"]) == wanted


@pytest.mark.parametrize("shift, ok", [(0, True), (1e-4, True), (0.01, False)])
def test_frames_that_differ_by_rounding_are_one(tmp_path, shift, ok):
    qform = KITS_AFFINE.copy()
    qform[0, 3] += shift
    path = framed(tmp_path / "scan.nii", KITS_AFFINE, KITS_AFFINE)
    moved = framed(tmp_path / "moved.nii", KITS_AFFINE, qform)

    assert read_volume(path).spacing_mm == pytest.approx((3, 0.8, 0.8))
    if ok:
        check_same_grid(read_volume(path), read_volume(moved))
    else:
        with pytest.raises(ValueError, match="apart"):
            read_volume(moved)


@pytest.mark.parametrize(
    "kind, fields",
    [
        (nib.Nifti1Image, dict(sform_code=7, vox_offset=352.008)),
        (NIFTI_2, dict(sform_code=(1 << 16) + 1)),
        (NIFTI_2, dict(sform_code=-(1 << 31), srow_x=np.inf)),
    ],
)
def test_a_code_that_is_none_is_none_in_the_mask_too(tmp_path, kind, fields):
    path = framed(tmp_path / "scan.nii", MOVED, KITS_AFFINE, (1, 1), kind, **fields)

    volume = read_volume(path)
    write_labels(tmp_path / "mask.nii", VOXELS % 3, volume)

    check_same_grid(volume, read_labels(tmp_path / "mask.nii"))
    assert np.allclose(volume.affine, KITS_AFFINE, atol=1e-6)


@pytest.fixture(scope="module")
def scan():
    """(Z, Y, X) HU as int32: air around a body with fat, organs, bowel and bones."""
    image, _, _ = make_case(0, shape=(30, 64, 70), spacing_mm=(6.0, 5.5, 5.5))
    return image.astype(np.int32)


def slices_of(z_mm, voxels, across_mm=(400, 400)):
    """The affine of a scan as KiTS19's, of such slices, (Z, Y, X) voxels, and sides in mm."""
    _, rows, columns = voxels.shape
    spacing_mm = (z_mm, across_mm[0] / rows, across_mm[1] / columns)
    return np.diag([*np.negative(spacing_mm), 1])[[2, 1, 0, 3]]


def doubts_on(folder, voxels, affine=None):
    """Lines on voxels in slices of 3 mm, 400 mm across, if nothing else is said."""
    if affine is None:
        affine = slices_of(3, voxels)
    volume = read_volume(save(folder / "scan.nii", voxels, affine))
    return doubts(volume)


def padded(voxels, value):
    """A corner of a quarter by a quarter of each slice is padding."""
    _, rows, columns = voxels.shape
    voxels = voxels.copy()
    voxels[:, : rows // 4, : columns // 4] = value
    return voxels


def with_margin(voxels, width, value):
    """Each slice has so many voxels of a value on all four sides."""
    return np.pad(voxels, ((0, 0), (width, width), (width, width)), constant_values=value)


def padded_twice(voxels):
    """-1024 in the corner, -2000 in the last rows."""
    voxels = padded(voxels, -1024)
    voxels[:, 61:] = -2000
    return voxels


def normalised(voxels):
    return (voxels - voxels.mean()) / voxels.std()


def stretched(voxels, low, high):
    """What a viewer makes of a window of HU: 0 to 255."""
    return np.clip(np.rint((voxels - low) / (high - low) * 255), 0, 255).astype(np.int32)


CT = {  # in HU
    "as scanned": lambda hu: hu,
    "as float": lambda hu: hu.astype(np.float32),
    "padded with -2000": lambda hu: padded(hu, -2000),
    "padded with -3024": lambda hu: padded(hu, -3024),
    "padded with 0": lambda hu: padded(hu, 0),
    "air all of one value": lambda hu: np.where(hu < -950, -1000, hu),
    "cut at -1024 and 1000": lambda hu: hu.clip(-1000, 1000),
    "little but the body": lambda hu: hu[:, 20:50, 15:55],
    "much air": lambda hu: with_margin(hu, 60, -1000),
}
NO_CT = {  # in other units
    "HU + 1024": lambda hu: hu + 1024,
    "HU + 1024, padded with -2000": lambda hu: padded(hu + 1024, -2000),
    "HU + 1024, padded with -1024": lambda hu: padded(hu + 1024, -1024),
    "HU + 1024, two paddings": lambda hu: padded_twice(hu + 1024),
    "HU + 1024, much air": lambda hu: with_margin(padded(hu + 1024, -2000), 30, 0),
    "HU - 1024": lambda hu: hu - 1024,
    "HU + 32768": lambda hu: hu + 32768,
    "HU wrapped to 16 bits": lambda hu: hu.astype(np.uint16),
    "HU * 10, a slope left out": lambda hu: hu * 10,
    "HU / 1000": lambda hu: (hu / 1000).astype(np.float32),
    "-HU": lambda hu: -hu,
    "0 to 255 of soft tissue": lambda hu: stretched(hu, -160, 240),
    "0 to 255 of soft tissue, padded": lambda hu: padded(stretched(hu, -160, 240), -1024),
    "0 to 255 of all": lambda hu: stretched(hu, -1024, 1000),
    "0 to 1": lambda hu: (stretched(hu, -160, 240) / 255).astype(np.float32),
    "normalised": lambda hu: normalised(hu).astype(np.float32),
    "normalised, padded": lambda hu: padded(normalised(hu), -1000),
    "cut at -79 and 304": lambda hu: hu.clip(-79, 304),
    "labels": lambda hu: (hu > 100).astype(np.int32),
    "all the same": lambda hu: hu * 0,
}


@pytest.mark.parametrize("kind", CT)
def test_a_ct_in_hu_raises_no_doubt_whatever_its_padding(tmp_path, scan, kind):
    assert doubts_on(tmp_path, CT[kind](scan)) == []


@pytest.mark.parametrize("kind", NO_CT)
def test_values_that_are_not_hu_are_doubted_whatever_the_padding(tmp_path, scan, kind):
    voxels = NO_CT[kind](scan)

    (line,) = doubts_on(tmp_path, voxels)

    values = f"values from {voxels.min():g} to {voxels.max():g}, "
    assert line.startswith(f"{tmp_path / 'scan.nii'}: {values}")
    assert line.endswith("; wanted those of a body; is this CT in HU?")


@pytest.mark.parametrize("value", [-32768, -5001, 40_001])
def test_fill_values_that_would_reach_the_body_are_doubted(tmp_path, scan, value):
    voxels = scan.copy()
    voxels[0, 0, :9] = value  # few are enough

    (line,) = doubts_on(tmp_path, voxels)

    assert line.endswith("such fill values into the body; set padding to -1024")


def test_a_real_ct_is_not_doubted_and_in_other_units_it_is(tmp_path, real_ct):
    volume = read_volume(real_ct)
    hu = volume.voxels.astype(np.int32)

    assert doubts(volume) == []
    for kind in NO_CT:
        (line,) = doubts_on(tmp_path, NO_CT[kind](hu))
        assert line.endswith("is this CT in HU?"), kind


def shares_of_hu(counts):
    """A volume of 10 x 10 x 10 with so many voxels of each value, and one of padding."""
    values = np.repeat(list(counts), list(counts.values()))
    assert len(values) == 999
    return np.array([-5000, *values], dtype=np.int32).reshape(10, 10, 10)


NO_AIR = "air (below -200) in fewer than 0.1% of what is no padding"
NO_TISSUE = "fat and soft tissue (-200 to 200) in fewer than 1% of what is no padding"
NO_BONE = "bone (above 200) in fewer than 0.1% of the body"
ALL_BONE = "more bone (above 200) than fat and soft tissue"


@pytest.mark.parametrize(
    "counts, doubt",
    [
        ({-1000: 1, 40: 991, 300: 7}, None),
        ({40: 992, 300: 7}, NO_AIR),
        ({-201: 2, 40: 990, 300: 7}, None),
        ({-200: 2, 40: 990, 300: 7}, NO_AIR),
        ({-1199: 2, 40: 990, 300: 7}, None),
        ({-1200: 2, 40: 990, 300: 7}, NO_AIR),
        ({-1000: 988, 40: 9, 300: 2}, NO_TISSUE),
        ({-1000: 979, -200: 10, 201: 10}, None),
        ({-1000: 99, -200: 450, 200: 450}, NO_BONE),
        ({-1000: 99, -200: 450, 200: 449, 201: 1}, None),
        ({-1000: 399, 40: 290, 300: 310}, ALL_BONE),
        ({-1000: 399, 40: 300, 300: 300}, None),
        ({-1000: 399, 40: 569, 701: 31}, "dense bone (above 700) in 5% of the body"),
        ({-1000: 399, 40: 569, 700: 31}, None),
        ({-1000: 399, 40: 570, 701: 30}, None),
    ],
)
def test_each_share_has_its_bound(tmp_path, counts, doubt):
    lines = doubts_on(tmp_path, shares_of_hu(counts), np.diag([40, 40, 5, 1]))

    wanted = []
    if doubt:
        wanted.append(
            f"{tmp_path / 'scan.nii'}: values from -5000 to {max(counts)}, {doubt}; "
            "wanted those of a body; is this CT in HU?"
        )
    assert lines == wanted


def test_a_large_scan_is_judged_by_a_part_of_it(tmp_path, scan, monkeypatch):
    monkeypatch.setattr("minikits.doubts.SAMPLE_VOXELS", 1000)

    assert doubts_on(tmp_path, scan) == []
    assert len(doubts_on(tmp_path, scan + 1024)) == 1


def test_little_of_the_body_is_doubted(tmp_path, scan):
    assert doubts_on(tmp_path, scan[:14]) == []  # 42 mm
    assert doubts_on(tmp_path, scan[:10], slices_of(4, scan)) == []  # 40 mm
    assert doubts_on(tmp_path, scan[:13]) == [
        f"{tmp_path / 'scan.nii'}: covers 39 mm along Z, wanted 40 or more; is this the whole scan?"
    ]
    assert len(doubts_on(tmp_path, scan[:1] * 0)) == 2


@pytest.mark.parametrize(
    "across_mm, doubted",
    [
        ((200, 600), False),
        ((600, 200), False),
        ((199, 400), True),
        ((400, 199), True),
        ((601, 400), True),
        ((400, 601), True),
    ],
)
def test_slices_that_are_too_small_or_too_wide_for_a_body_are_doubted(
    tmp_path, scan, across_mm, doubted
):
    lines = doubts_on(tmp_path, scan, slices_of(3, scan, across_mm))

    wanted = []
    if doubted:
        wanted.append(
            f"{tmp_path / 'scan.nii'}: slices of {across_mm[0]} x {across_mm[1]} mm, wanted 200 to "
            "600 on each side; is the spacing right?"
        )
    assert lines == wanted


def test_no_case_of_kits19_is_doubted_by_its_breadth(kits19):
    geometry = json.loads((kits19 / "geometry.json").read_text())

    assert len(geometry) == 210
    for name, (shape, spacing_mm) in geometry.items():
        sides_mm = np.multiply(shape, spacing_mm)[1:]
        assert not no_body_is_so_wide(sides_mm), name


@pytest.mark.parametrize(
    "diagonal, first_mm, doubted",
    [
        ((1, 1, 1), (0, 0, 0), True),
        ((-1, -1, 1), (0, 0, 0), True),  # the identity in LPS
        ((1, 1, 2), (0, 0, 0), False),
        ((1, 1, 1), (0, 0, 5), False),
    ],
)
def test_a_frame_that_nobody_set_is_doubted(tmp_path, scan, diagonal, first_mm, doubted):
    voxels = scan.repeat(5, axis=1).repeat(5, axis=2).repeat(2, axis=0)  # 60, 320, 350
    affine = nib.affines.from_matvec(np.diag(diagonal), first_mm)

    lines = doubts_on(tmp_path, voxels.transpose(2, 1, 0), affine)

    assert len(lines) == doubted
    if doubted:
        told = "voxels of 1 mm, the first at 0 0 0, as of a file whose frame nobody set"
        assert lines[0].startswith(f"{tmp_path / 'scan.nii'}: {told}; is the spacing right")


@pytest.mark.parametrize(
    "degrees, doubted", [(0, False), (0.9, False), (1.1, True), (23, True), (-23, True)]
)
def test_axes_that_are_not_at_right_angles_are_doubted_with_their_angle(
    tmp_path, scan, degrees, doubted
):
    tilt = np.radians(degrees)
    gantry = slices_of(3, scan)
    gantry[:3, 0] = 3 * np.array([0, np.sin(tilt), -np.cos(tilt)])  # slices are shifted along Y

    lines = doubts_on(tmp_path, scan, gantry)

    assert len(lines) == doubted
    if doubted:
        angle = f"axes {abs(degrees):.1f} degrees off right angles"
        assert lines[0].startswith(f"{tmp_path / 'scan.nii'}: {angle}")


def test_an_oblique_scan_has_its_axes_at_right_angles(tmp_path, scan):
    turn = nib.quaternions.quat2mat([0.9, 0.3, -0.2, 0.1])
    oblique = nib.affines.from_matvec(turn @ slices_of(3, scan)[:3, :3])

    assert doubts_on(tmp_path, scan, oblique) == []


@pytest.mark.parametrize(
    "value, dtype, found",
    [
        (np.finfo(np.float32).min, np.float32, r"from -3\.40282e\+38 to 0"),
        (1e300, np.float64, r"from 0 to 1e\+300"),
        (100_001, np.int32, "from 0 to 100001"),
        (-100_001, np.int32, "from -100001 to 0"),
        (np.iinfo(np.int64).min, np.int64, r"from -9\.22337e\+18 to 0"),
        (np.iinfo(np.uint64).max, np.uint64, r"from 0 to 1\.84467e\+19"),
    ],
)
def test_magnitudes_that_no_ct_has_are_refused(tmp_path, value, dtype, found):
    voxels = np.zeros((20, 12, 13), dtype)
    voxels[0, 0, 0] = value
    nib.save(nib.Nifti1Image(voxels, KITS_AFFINE, dtype=dtype), tmp_path / "scan.nii.gz")

    message = (
        f"scan.nii.gz: values {found} found, wanted HU, none beyond 100000; .*set them to -1024"
    )
    with pytest.raises(ValueError, match=message):
        read_volume(tmp_path / "scan.nii.gz")


def test_a_magnitude_is_that_of_the_scaled_value(tmp_path):
    large = framed(tmp_path / "large.nii", KITS_AFFINE, KITS_AFFINE, scl_slope=1000, scl_inter=0)
    endless = framed(
        tmp_path / "endless.nii", KITS_AFFINE, KITS_AFFINE, scl_slope=1e38, scl_inter=0
    )

    with pytest.raises(ValueError, match=r"to 999000 found, wanted HU"):
        read_volume(large)
    with pytest.raises(ValueError, match="voxels are NaN or infinite"):
        read_volume(endless)


def test_values_of_sixteen_bits_are_read(tmp_path):
    ranges = [(-32768, 32767, np.int16), (0, 65535, np.uint16), (-100_000, 100_000, np.float32)]

    for low, high, dtype in ranges:
        voxels = np.full((20, 12, 13), low, dtype)
        voxels[0, 0, 0] = high

        volume = read_volume(save(tmp_path / "scan.nii", voxels))

        assert np.array_equal(volume.voxels, voxels)


@pytest.mark.parametrize(
    "value, shown", [(1e300, r"1e\+300"), (-3.4e38, r"-3\.4e\+38"), (1e6, r"1e\+06")]
)
def test_such_magnitudes_are_named_as_the_labels_they_are_in_a_segmentation(tmp_path, value, shown):
    labels = np.zeros((20, 12, 13))
    labels[0, 0, 0] = value
    path = save(tmp_path / "labels.nii", labels)

    with pytest.raises(ValueError, match=f"label values {shown} found, wanted only 0"):
        read_labels(path)


def with_flipped_bit(content, place):
    byte, bit = divmod(place, 8)
    damaged = bytearray(content)
    damaged[byte] ^= 1 << bit
    return damaged


@pytest.mark.parametrize(
    "read, values", [(read_volume, VOXELS), (read_labels, (VOXELS % 3).astype(np.uint8))]
)
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, read, values):
    path = save(tmp_path / "scan.nii.gz", values)
    content, wanted = path.read_bytes(), read(path)
    places = np.random.default_rng(1).permutation(8 * len(content))[:FLIPS]

    refused = 0
    for place in places:
        path.write_bytes(with_flipped_bit(content, place))
        try:
            found = read(path)
        except (ValueError, OSError):
            refused += 1
            continue
        assert np.array_equal(found.voxels, wanted.voxels), place
        assert np.array_equal(found.affine, wanted.affine), place

    assert refused > FLIPS - 20  # the rest is in fields of gzip's header that mean nothing here


def bomb(path, header, parts=32):
    """A gzip file of a header and two gigabytes of zeros, in the parts that its format allows."""
    zeros = gzip.compress(bytes(1 << 26), 9)
    path.write_bytes(gzip.compress(header) + parts * zeros)
    return path


READS_A_FILE = """
import sys
from minikits.nifti import read_volume

try:
    read_volume(sys.argv[1], max_voxels=int(sys.argv[2]))
except ValueError as error:
    print(error)
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):  # the most memory that it ever had, in kB
        print(line.split()[1])
"""


@pytest.mark.parametrize(
    "shape, offset, message",
    [
        ((30000, 30000, 30000), 352, "more than 2000000000 voxels"),
        ((20, 12, 13), 352, "goes on after"),
        ((1, 1, 1), 2e9, "voxels begin at byte"),
        ((1000, 1000, 1000), 352, "more than 100000000 voxels"),
    ],
)
def test_a_bomb_takes_no_memory(tmp_path, shape, offset, message):
    max_voxels = "2000000000"
    if shape == (1000, 1000, 1000):
        max_voxels = "100000000"
    dim = (3, *shape, 1, 1, 1, 1)
    file = tmp_path / "header.nii"
    framed(file, KITS_AFFINE, None, (1, 0), dim=dim, vox_offset=offset)
    path = bomb(tmp_path / "bomb.nii.gz", header=file.read_bytes()[:352])
    assert path.stat().st_size < 3e6

    child = [sys.executable, "-c", READS_A_FILE, path, max_voxels]
    done = subprocess.run(child, capture_output=True, text=True, cwd=ROOT, timeout=60)

    refusal, peak_kb = done.stdout.splitlines()
    assert refusal.startswith(f"{path}: ")
    assert message in refusal
    assert int(peak_kb) / 1024 < BOMB_MEGABYTES


def test_real_labels_with_a_qform_lie_on_the_grid_of_their_like_with_an_sform(tmp_path, kits19):
    for id in ("case_00015", "case_00023", "case_00144"):
        real = read_labels(kits19 / id / "segmentation.nii.gz")
        assert real.header.get_data_dtype() == np.uint16
        assert real.header["qform_code"] > 0
        assert real.header["sform_code"] == 0
        stored = np.asarray(nib.load(real.path).dataobj)
        path = save(tmp_path / "same.nii.gz", stored.astype(np.uint8), real.affine)

        like = read_labels(path)

        check_same_grid(real, like)


@pytest.mark.parametrize(
    "name",
    [
        "with a space.nii.gz",
        "größe 肾.nii.gz",
        "-rf.nii.gz",
        "--in.nii",
        "a.b.c.nii.gz",
        "100%.nii",
        "it's [one] {x}.nii.gz",
        "*.nii",
        'quo"te.nii.gz',
        "tab\tname.nii",
    ],
)
def test_names_of_all_sorts(tmp_path, name, monkeypatch):
    folder = tmp_path / "-a folder [ü] *"
    folder.mkdir()
    linked = tmp_path / "link"
    linked.symlink_to(folder)
    round_about = folder / ".." / folder.name
    plainly_named = "scan.nii.gz" if name.endswith("gz") else "scan.nii"
    save(tmp_path / plainly_named, VOXELS).rename(folder / name)
    monkeypatch.chdir(folder)

    for path in (folder / name, linked / name, round_about / name, name):
        volume = read_volume(path)
        assert np.array_equal(volume.voxels, VOXELS)

    write_labels(folder / "out" / name, VOXELS % 3, volume)
    assert [path.name for path in (folder / "out").iterdir()] == [name]
    assert np.array_equal(read_labels(folder / "out" / name).voxels, VOXELS % 3)

    for source in (folder, linked, round_about, folder / name):
        (case,) = find_cases(source)
        assert case.id == name.removesuffix(".gz").removesuffix(".nii")
        assert case.image.name == name


def test_a_large_scan_is_judged_by_all_of_its_breadth(tmp_path, monkeypatch):
    """The body lies in the far half of each axis of a slice."""
    voxels = np.full((20, 24, 24), -1000, np.int16)
    voxels[:, 0] = -1024  # else all air would pass for padding
    voxels[:, 12:, 12:] = 40
    voxels[:, 12:14, 12:14] = 400
    monkeypatch.setattr("minikits.doubts.SAMPLE_VOXELS", 1000)

    assert doubts_on(tmp_path, voxels) == []
