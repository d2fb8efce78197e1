"""Files to volumes and back: what is stored, how it is scaled, and refusals that name the file."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from test_volumes import KITS_AFFINE, save

from minikits.frames import check_same_grid
from minikits.nifti import read_labels, read_volume, write_image, write_labels


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)


@pytest.mark.parametrize("sform, qform", [(2, 0), (0, 1), (1, 1)])
def test_a_mask_keeps_the_scans_codes_and_is_plain_uint8(tmp_path, voxels, sform, qform):
    image = nib.Nifti1Image(voxels, None)
    image.header.set_sform(KITS_AFFINE, sform)
    image.header.set_qform(KITS_AFFINE, qform)
    image.header.set_slope_inter(2.0, -10.0)
    image.header["cal_max"] = 300
    nib.save(image, tmp_path / "scan.nii.gz")
    write_labels(
        tmp_path / "mask.nii.gz",
        np.ones(voxels.shape, np.uint8),
        read_volume(tmp_path / "scan.nii.gz"),
    )
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert (mask.header["sform_code"], mask.header["qform_code"]) == (sform, qform)
    assert np.allclose(mask.affine, KITS_AFFINE, atol=1e-5) and mask.get_data_dtype() == np.uint8
    assert (np.asarray(mask.dataobj) == 1).all() and mask.header["cal_max"] == 0


def test_slope_and_intercept_are_honoured(tmp_path, voxels):
    image = nib.Nifti1Image(voxels, KITS_AFFINE)
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / "scaled.nii")
    stored = nib.load(tmp_path / "scaled.nii")
    assert np.allclose(read_volume(tmp_path / "scaled.nii").voxels, stored.get_fdata(), atol=1e-3)


@pytest.mark.parametrize(
    "slope, intercept, scaled",
    [
        (2, -1024, True),
        (1, -1024, True),
        (-1, 0, True),
        (2, 0, True),
        (1, 0, False),
        (0, -1024, False),
        (np.nan, -1024, False),
        (np.nan, np.nan, False),
        (0, np.inf, False),
    ],
)
def test_a_slope_of_0_or_nan_is_no_scaling(tmp_path, voxels, slope, intercept, scaled):
    path = patched(save(tmp_path / "a.nii", voxels), 112, np.array([slope, intercept], "<f4"))

    found = read_volume(path).voxels

    assert np.array_equal(found, voxels * slope + intercept if scaled else voxels)
    assert found.dtype == (np.float32 if scaled else np.int16)


@pytest.mark.parametrize(
    "dtype",
    [
        np.uint8,
        np.int16,
        np.uint16,
        np.int32,
        np.float32,
        np.float64,
        ">i2",
        ">f4",
        np.int8,
        np.uint32,
        np.int64,
        np.uint64,
        ">f8",
        ">u8",
        ">i8",
    ],
)
def test_types_and_byte_orders(tmp_path, dtype):
    values = np.arange(120).reshape(4, 5, 6).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if str(dtype).startswith(">") else "<")
    nib.save(
        nib.Nifti1Image(values, KITS_AFFINE, header, dtype=values.dtype), tmp_path / "a.nii.gz"
    )
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").voxels, values)


def test_nifti_2_extensions_and_a_trailing_axis(tmp_path, voxels):
    image = nib.Nifti2Image(voxels[..., None], KITS_AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"by hand."))
    nib.save(image, tmp_path / "two.nii.gz")
    volume = read_volume(tmp_path / "two.nii.gz")
    assert np.array_equal(volume.voxels, voxels)
    write_labels(tmp_path / "mask.nii.gz", np.zeros(voxels.shape), volume)
    assert nib.load(tmp_path / "mask.nii.gz").shape == voxels.shape
    assert not read_labels(tmp_path / "mask.nii.gz").voxels.any()


@pytest.mark.parametrize("bytes_after, ok", [(100, True), (1 << 20, False)])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_little_padding_may_follow_the_voxels(tmp_path, voxels, bytes_after, ok, compress):
    path = save(tmp_path / "a.nii", voxels)
    path.write_bytes(compress(path.read_bytes() + bytes(bytes_after)))
    if ok:
        assert np.array_equal(read_volume(path).voxels, voxels)
    else:
        with pytest.raises(ValueError, match="goes on after the 240 bytes of voxels of its header"):
            read_volume(path)


@pytest.mark.parametrize("place", range(-8, 0))
def test_the_sum_and_the_length_at_the_end_of_a_gzip_file_are_checked(tmp_path, voxels, place):
    path = damage(save(tmp_path / "a.nii.gz", voxels), place, 0)
    with pytest.raises(
        ValueError, match=r"a\.nii\.gz: damaged, or cannot be read .*download it again"
    ):
        read_volume(path)


def test_what_does_not_fit_into_memory_is_named(tmp_path, voxels, monkeypatch):
    path = save(tmp_path / "a.nii", voxels)

    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr("minikits.nifti.np.empty", no_memory)

    with pytest.raises(ValueError, match=r"a\.nii: \(4, 5, 6\) voxels do not fit into memory"):
        read_volume(path)


@pytest.mark.parametrize("shape", [(1, 1, 32767), (1, 40, 40), (40, 1, 40), (40, 40, 1), (1, 1, 1)])
def test_thin_volumes_are_read_and_written(tmp_path, shape):
    labels = np.resize(np.array([0, 1, 2], np.uint8), shape)
    volume = read_volume(save(tmp_path / "scan.nii.gz", labels.astype(np.int16)))
    write_labels(tmp_path / "mask.nii.gz", labels, volume)
    mask = read_labels(tmp_path / "mask.nii.gz")
    check_same_grid(volume, mask)
    assert np.array_equal(mask.voxels, labels)


def test_equal_masks_are_equal_files_and_nothing_else_is_left(tmp_path, voxels):
    volume = read_volume(save(tmp_path / "scan.nii.gz", voxels))
    for name in ("one", "two"):
        write_labels(tmp_path / "out" / f"{name}.nii.gz", voxels % 3, volume)
    one, two = sorted((tmp_path / "out").iterdir())
    assert one.read_bytes() == two.read_bytes() and one.name == "one.nii.gz"
    assert one.read_bytes()[:3] == b"\x1f\x8b\x08"  # gzip
    flags_and_time = one.read_bytes()[3:8]
    assert flags_and_time == bytes(5)  # neither a name nor the hour


def test_a_write_that_fails_leaves_the_old_file(tmp_path, voxels, monkeypatch):
    volume = read_volume(save(tmp_path / "scan.nii.gz", voxels))
    write_labels(tmp_path / "mask.nii.gz", voxels % 3, volume)
    before = (tmp_path / "mask.nii.gz").read_bytes()
    monkeypatch.setattr(
        "os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        write_labels(tmp_path / "mask.nii.gz", voxels * 0, volume)
    assert (tmp_path / "mask.nii.gz").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.nii.gz", "scan.nii.gz"]


def test_an_image_written_from_nothing_is_a_kits19_file(tmp_path, voxels, kits19):
    write_image(tmp_path / "a.nii.gz", voxels, (3.0, 0.7, 0.8))
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.voxels, voxels) and volume.spacing_mm == pytest.approx(
        (3.0, 0.7, 0.8)
    )
    real = nib.load(kits19 / "case_00000" / "segmentation.nii.gz")
    ours = nib.load(tmp_path / "a.nii.gz")
    assert nib.aff2axcodes(ours.affine) == nib.aff2axcodes(real.affine) == ("I", "P", "L")
    assert ours.header["sform_code"] == real.header["sform_code"]


def test_an_image_from_nothing_has_its_spacing_in_order(tmp_path, voxels):
    write_image(tmp_path / "a.nii", voxels, (3.0, 0.7, 0.8))
    assert read_volume(tmp_path / "a.nii").spacing_mm == pytest.approx((3.0, 0.7, 0.8))


def test_real_labels_of_both_kinds_are_read(kits19):
    for id, shape in (
        ("case_00160", (252, 512, 796)),
        ("case_00015", (75, 512, 512)),
        ("case_00061", (29, 512, 512)),
    ):
        path = kits19 / id / "segmentation.nii.gz"
        labels = read_labels(path)
        assert labels.voxels.shape == shape and labels.voxels.dtype == np.uint8
        assert np.array_equal(labels.voxels, np.asarray(nib.load(path).dataobj))


def damage(path, position=-1000, bit=4):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)
    return path


def patched(path, position, values):
    content = bytearray(path.read_bytes())
    content[position : position + values.nbytes] = values.tobytes()
    path.write_bytes(content)
    return path


def test_one_voxel_that_is_no_number_is_one(tmp_path):
    voxels = np.zeros((3, 3, 3), np.float32)
    voxels[1, 1, 1] = np.nan
    path = save(tmp_path / "nan.nii", voxels)

    with pytest.raises(ValueError, match=r"nan\.nii: 1 voxel is NaN or infinite"):
        read_volume(path)


def test_refusals_name_the_file_and_the_fault(tmp_path):
    voxels = np.random.default_rng(1).integers(-1000, 1000, (20, 30, 30)).astype(np.int16)
    nan = voxels.astype(np.float32)
    nan[3, 4, :2] = np.nan
    whole = save(tmp_path / "whole.nii.gz", voxels).read_bytes()
    page, empty, short, plain = (
        tmp_path / f"{name}.nii.gz" for name in ("page", "empty", "short", "plain")
    )
    page.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    empty.write_bytes(b"")
    short.write_bytes(whole[: len(whole) // 2])
    plain.write_bytes(gzip.decompress(whole)[:-100])
    cases = [
        (tmp_path / "absent.nii.gz", "no such file"),
        (tmp_path, "a folder"),
        (page, "no NIfTI file"),
        (empty, "empty"),
        (short, "damaged"),
        (plain, "ends after"),
        (damage(save(tmp_path / "rotten.nii.gz", voxels)), "damaged"),
        (
            patched(save(tmp_path / "slope.nii", voxels), 112, np.array([1, np.nan], "<f4")),
            "header damaged",
        ),
        (
            patched(save(tmp_path / "offset.nii", voxels), 108, np.array([np.inf], "<f4")),
            "begin at byte inf",
        ),
        (
            patched(save(tmp_path / "zero.nii", voxels), 108, np.array([0], "<f4")),
            "begin at byte 0",
        ),
        (save(tmp_path / "four.nii", np.zeros((3, 3, 3, 2), np.int16)), r"shape \(3, 3, 3, 2\)"),
        (save(tmp_path / "two.nii", np.zeros((3, 3), np.int16)), r"shape \(3, 3\)"),
        (save(tmp_path / "nan.nii", nan), "2 voxels are NaN"),
        (save(tmp_path / "complex.nii", np.zeros((3, 3, 3), np.complex64)), "complex64"),
        (
            save(tmp_path / "unset.nii", voxels, None, sform_code=0, qform_code=0),
            "neither sform nor qform",
        ),
        (
            save(
                tmp_path / "flat.nii",
                voxels,
                None,
                sform_code=1,
                srow_x=[1, 0, 0, 0],
                srow_y=[0, 1, 0, 0],
            ),
            "not invertible",
        ),
    ]
    for path, complaint in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=complaint) as refusal:
            read_volume(path)
        assert path.name in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_header_that_lies_takes_no_memory(tmp_path):
    path = save(tmp_path / "huge.nii", np.zeros((3, 3, 3), np.int16))
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="more than 2000000000 voxels"):
        read_volume(path)


@pytest.mark.parametrize(
    "values, complaint",
    [
        ([0, 1, 3], "values 3 found"),
        ([0, -1, 2], "values -1 found"),
        ([0, 1.5, 2], "values 1.5 found"),
        (range(10, 30), "10, 11, 12, 13, 14, ... found"),
    ],
)
def test_other_label_values_are_named(tmp_path, values, complaint):
    values = np.resize(np.array(values), (4, 5, 6))
    values = values.astype(np.int16 if values.dtype.kind == "i" else np.float32)
    with pytest.raises(ValueError, match=complaint):
        read_labels(save(tmp_path / "labels.nii.gz", values))


def test_labels_stored_as_floats_are_accepted(tmp_path):
    values = np.resize(np.array([0, 1.0004, 1.9996], dtype=np.float32), (4, 5, 6))
    assert np.array_equal(
        read_labels(save(tmp_path / "labels.nii.gz", values)).voxels, np.rint(values)
    )


@pytest.mark.parametrize(
    "dtype", [np.int8, np.int64, np.uint64, np.uint16, np.float64, ">i4", ">f4"]
)
def test_labels_of_any_type_are_uint8(tmp_path, dtype):
    values = np.resize(np.array([0, 1, 2], dtype=dtype), (4, 5, 6))
    nib.save(nib.Nifti1Image(values, KITS_AFFINE, dtype=values.dtype), tmp_path / "labels.nii.gz")
    labels = read_labels(tmp_path / "labels.nii.gz")
    assert labels.voxels.dtype == np.uint8 and np.array_equal(labels.voxels, values)


@pytest.mark.parametrize(
    "values, ok",
    [
        ([-0.0, 1, 2], True),
        ([-0.0009, 1.0009, 1.9991], True),
        ([0.0009, 0.9991, 2.0009], True),
        ([-0.0011, 1, 2], False),
        ([0, 1.0011, 2], False),
        ([0, 1, 2.0011], False),
        ([0, 0.9989, 2], False),
    ],
)
def test_labels_may_be_a_thousandth_off(tmp_path, values, ok):
    path = save(
        tmp_path / "labels.nii.gz", np.resize(np.array(values, dtype=np.float64), (4, 5, 6))
    )
    if ok:
        assert np.array_equal(read_labels(path).voxels, np.resize([0, 1, 2], (4, 5, 6)))
    else:
        (wrong,) = set(values) - {0, 1, 2}
        with pytest.raises(ValueError, match=f"label values {wrong:g} found"):
            read_labels(path)


@pytest.mark.parametrize(
    "stored, slope, intercept, found",
    [
        ([0, 1, 2], 0, 5, None),
        ([0, 1, 2], np.nan, np.nan, None),
        ([0, 100, 200], 0.01, 0, None),
        ([1, 2, 3], 1, -1, None),
        ([2, 1, 0], -1, 2, None),
        ([0, 1, 2], 2, 0, "values 4 found"),
        ([0, 128, 255], 1 / 255, 0, "values 0.501961 found"),
        ([0, 1, 2], 1, 1, "values 3 found"),
        ([0, 1, 3], 0, 0, "values 3 found"),
    ],
)
def test_labels_are_what_slope_and_intercept_make_of_them(
    tmp_path, stored, slope, intercept, found
):
    array = np.resize(np.array(stored, np.uint8), (4, 5, 6))
    path = patched(save(tmp_path / "labels.nii", array), 112, np.array([slope, intercept], "<f4"))
    if found:
        with pytest.raises(ValueError, match=f"label {found}"):
            read_labels(path)
    else:
        assert np.array_equal(read_labels(path).voxels, np.resize([0, 1, 2], (4, 5, 6)))
