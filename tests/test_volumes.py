"""Any orientation in, the same frame out; what cannot be trusted is refused by name."""

import gzip
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from minikits.volumes import check_same_grid, read_labels, read_volume, write_image, write_labels

KITS_AFFINE = np.array([[0, 0, -0.8, 7], [0, -0.8, 0, 5], [-3.0, 0, 0, 2], [0, 0, 0, 1]])


def save(path, array, affine=KITS_AFFINE, **header):
    image = nib.Nifti1Image(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)


def test_a_kits19_file_is_read_as_stored(tmp_path, voxels):
    volume = read_volume(save(tmp_path / "a.nii.gz", voxels))
    assert np.array_equal(volume.voxels, voxels) and volume.voxels.dtype == np.int16
    assert volume.spacing_mm == pytest.approx((3.0, 0.8, 0.8))


def test_all_48_orientations_are_read_alike_and_written_back_in_their_own_frame(tmp_path, voxels):
    reference = nib.Nifti1Image(voxels, KITS_AFFINE)
    labels = (voxels % 3).astype(np.uint8)
    for axes, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        turned = reference.as_reoriented(np.column_stack([axes, flips]))
        path = tmp_path / "turned.nii.gz"
        nib.save(turned, path)
        volume = read_volume(path)
        assert np.array_equal(volume.voxels, voxels) and volume.spacing_mm == pytest.approx((3.0, 0.8, 0.8))
        write_labels(tmp_path / "mask.nii.gz", labels, volume)
        mask = nib.load(tmp_path / "mask.nii.gz")
        assert mask.shape == turned.shape and np.allclose(mask.affine, turned.affine)
        assert np.array_equal(np.asarray(mask.dataobj), np.asarray(turned.dataobj) % 3)


def test_an_oblique_scan_goes_to_the_nearest_axes(tmp_path, voxels):
    c, s = np.cos(0.3), np.sin(0.3)
    tilt = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])
    volume = read_volume(save(tmp_path / "oblique.nii", voxels, tilt @ KITS_AFFINE))
    assert np.array_equal(volume.voxels, voxels) and volume.spacing_mm == pytest.approx((3.0, 0.8, 0.8))


@pytest.mark.parametrize("sform, qform", [(2, 0), (0, 1), (1, 1)])
def test_a_mask_keeps_the_scans_codes_and_is_plain_uint8(tmp_path, voxels, sform, qform):
    image = nib.Nifti1Image(voxels, None)
    image.header.set_sform(KITS_AFFINE, sform)
    image.header.set_qform(KITS_AFFINE, qform)
    image.header.set_slope_inter(2.0, -10.0)
    image.header["cal_max"] = 300
    nib.save(image, tmp_path / "scan.nii.gz")
    write_labels(tmp_path / "mask.nii.gz", np.ones(voxels.shape, np.uint8), read_volume(tmp_path / "scan.nii.gz"))
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


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"])
def test_types_and_byte_orders(tmp_path, dtype):
    values = np.arange(120).reshape(4, 5, 6).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if str(dtype).startswith(">") else "<")
    nib.save(nib.Nifti1Image(values, KITS_AFFINE, header, dtype=values.dtype), tmp_path / "a.nii.gz")
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


def test_equal_masks_are_equal_files_and_nothing_else_is_left(tmp_path, voxels):
    volume = read_volume(save(tmp_path / "scan.nii.gz", voxels))
    for name in ("one", "two"):
        write_labels(tmp_path / "out" / f"{name}.nii.gz", voxels % 3, volume)
    one, two = sorted((tmp_path / "out").iterdir())
    assert one.read_bytes() == two.read_bytes() and one.name == "one.nii.gz"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, voxels, monkeypatch):
    volume = read_volume(save(tmp_path / "scan.nii.gz", voxels))
    write_labels(tmp_path / "mask.nii.gz", voxels % 3, volume)
    before = (tmp_path / "mask.nii.gz").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_labels(tmp_path / "mask.nii.gz", voxels * 0, volume)
    assert (tmp_path / "mask.nii.gz").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.nii.gz", "scan.nii.gz"]


def test_an_image_written_from_nothing_is_a_kits19_file(tmp_path, voxels, kits19):
    write_image(tmp_path / "a.nii.gz", voxels, (3.0, 0.7, 0.8))
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.voxels, voxels) and volume.spacing_mm == pytest.approx((3.0, 0.7, 0.8))
    real = nib.load(kits19 / "case_00000" / "segmentation.nii.gz")
    ours = nib.load(tmp_path / "a.nii.gz")
    assert nib.aff2axcodes(ours.affine) == nib.aff2axcodes(real.affine) == ("I", "P", "L")
    assert ours.header["sform_code"] == real.header["sform_code"]


def test_real_labels_of_both_kinds_are_read(kits19):
    for id, shape in (("case_00160", (252, 512, 796)), ("case_00015", (75, 512, 512)), ("case_00061", (29, 512, 512))):
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
    content[position:position + values.nbytes] = values.tobytes()
    path.write_bytes(content)
    return path


def test_refusals_name_the_file_and_the_fault(tmp_path):
    voxels = np.random.default_rng(1).integers(-1000, 1000, (20, 30, 30)).astype(np.int16)
    nan = voxels.astype(np.float32)
    nan[3, 4, :2] = np.nan
    whole = save(tmp_path / "whole.nii.gz", voxels).read_bytes()
    page, empty, short, plain = (tmp_path / f"{name}.nii.gz" for name in ("page", "empty", "short", "plain"))
    page.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    empty.write_bytes(b"")
    short.write_bytes(whole[: len(whole) // 2])
    plain.write_bytes(gzip.decompress(whole)[:-100])
    cases = [
        (tmp_path / "absent.nii.gz", "no such file"),
        (tmp_path, "a folder"),
        (page, "no NIfTI file"), (empty, "empty"), (short, "damaged"), (plain, "ends after"),
        (damage(save(tmp_path / "rotten.nii.gz", voxels)), "damaged"),
        (patched(save(tmp_path / "slope.nii", voxels), 112, np.array([1, np.nan], "<f4")), "header damaged"),
        (patched(save(tmp_path / "offset.nii", voxels), 108, np.array([np.inf], "<f4")), "begin at byte inf"),
        (patched(save(tmp_path / "zero.nii", voxels), 108, np.array([0], "<f4")), "begin at byte 0"),
        (save(tmp_path / "four.nii", np.zeros((3, 3, 3, 2), np.int16)), r"shape \(3, 3, 3, 2\)"),
        (save(tmp_path / "two.nii", np.zeros((3, 3), np.int16)), r"shape \(3, 3\)"),
        (save(tmp_path / "nan.nii", nan), "2 voxels are NaN"),
        (save(tmp_path / "complex.nii", np.zeros((3, 3, 3), np.complex64)), "complex64"),
        (save(tmp_path / "unset.nii", voxels, None, sform_code=0, qform_code=0), "neither sform nor qform"),
        (save(tmp_path / "flat.nii", voxels, None, sform_code=1, srow_x=[1, 0, 0, 0], srow_y=[0, 1, 0, 0]),
         "not invertible"),
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


@pytest.mark.parametrize("values, complaint", [
    ([0, 1, 3], "values 3 found"), ([0, -1, 2], "values -1 found"), ([0, 1.5, 2], "values 1.5 found"),
    (range(10, 30), "10, 11, 12, 13, 14, ... found")])
def test_other_label_values_are_named(tmp_path, values, complaint):
    values = np.resize(np.array(values), (4, 5, 6))
    values = values.astype(np.int16 if values.dtype.kind == "i" else np.float32)
    with pytest.raises(ValueError, match=complaint):
        read_labels(save(tmp_path / "labels.nii.gz", values))


def test_labels_stored_as_floats_are_accepted(tmp_path):
    values = np.resize(np.array([0, 1.0004, 1.9996], dtype=np.float32), (4, 5, 6))
    assert np.array_equal(read_labels(save(tmp_path / "labels.nii.gz", values)).voxels, np.rint(values))


def test_same_grid_compares_shape_and_place_but_not_codes(tmp_path, voxels):
    one = read_volume(save(tmp_path / "one.nii", voxels))
    nudged = KITS_AFFINE + 1e-5
    check_same_grid(one, read_volume(save(tmp_path / "same.nii", voxels.astype(np.float32), nudged, sform_code=1)))
    with pytest.raises(ValueError, match=r"one.nii: shape \(4, 5, 6\), but .*other.nii has \(4, 5, 5\)"):
        check_same_grid(one, read_volume(save(tmp_path / "other.nii", voxels[..., :5])))
    moved = KITS_AFFINE.copy()
    moved[0, 3] += 0.5
    with pytest.raises(ValueError, match=r"one\.nii: lies up to 0\.5 mm from .*moved\.nii"):
        check_same_grid(one, read_volume(save(tmp_path / "moved.nii", voxels, moved)))
