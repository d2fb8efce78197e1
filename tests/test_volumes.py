"""Any orientation in, the same frame out; what cannot be trusted is refused by name."""

import gzip
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from minikits.frames import check_same_grid
from minikits.nifti import read_labels, read_volume, write_image, write_labels

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


def test_a_volume_is_equal_to_itself_alone(tmp_path, voxels):
    """Voxel by voxel the answer would be an array, and no truth."""
    path = save(tmp_path / "a.nii.gz", voxels)

    volume, again = read_volume(path), read_volume(path)

    assert volume == volume
    assert volume != again


def test_all_48_orientations_are_read_alike_and_written_back_in_their_own_frame(tmp_path, voxels):
    reference = nib.Nifti1Image(voxels, KITS_AFFINE)
    labels = (voxels % 3).astype(np.uint8)
    for axes, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        turned = reference.as_reoriented(np.column_stack([axes, flips]))
        path = tmp_path / "turned.nii.gz"
        nib.save(turned, path)
        volume = read_volume(path)
        assert np.array_equal(volume.voxels, voxels) and volume.spacing_mm == pytest.approx(
            (3.0, 0.8, 0.8)
        )
        write_labels(tmp_path / "mask.nii.gz", labels, volume)
        mask = nib.load(tmp_path / "mask.nii.gz")
        assert mask.shape == turned.shape and np.allclose(mask.affine, turned.affine)
        assert np.array_equal(np.asarray(mask.dataobj), np.asarray(turned.dataobj) % 3)


def test_an_oblique_scan_goes_to_the_nearest_axes(tmp_path, voxels):
    c, s = np.cos(0.3), np.sin(0.3)
    tilt = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])
    volume = read_volume(save(tmp_path / "oblique.nii", voxels, tilt @ KITS_AFFINE))
    assert np.array_equal(volume.voxels, voxels) and volume.spacing_mm == pytest.approx(
        (3.0, 0.8, 0.8)
    )


def turned_affine(about, radians):
    """KITS_AFFINE turned in space about axis 0, 1 or 2 of R A S."""
    one, other = [axis for axis in range(3) if axis != about]
    turn = np.eye(4)
    turn[one, one] = turn[other, other] = np.cos(radians)
    turn[one, other], turn[other, one] = -np.sin(radians), np.sin(radians)
    return turn @ KITS_AFFINE


def stored_in_every_orientation(voxels, affine):
    """48 nibabel images of one grid."""
    image = nib.Nifti1Image(voxels, affine)
    for axes, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        yield image.as_reoriented(np.column_stack([axes, flips]))


@pytest.mark.parametrize(
    "affine",
    [
        KITS_AFFINE,
        turned_affine(0, 0.3),
        turned_affine(1, -0.6),
        *(
            turned_affine(about, quarter * np.pi / 4)
            for about in range(3)
            for quarter in (1, 3, -1)
        ),
    ],
)
def test_one_grid_is_the_same_grid_however_it_is_stored(tmp_path, voxels, affine):
    images = list(stored_in_every_orientation(voxels, affine))
    nib.save(images[0], tmp_path / "one.nii")
    one = read_volume(tmp_path / "one.nii")

    for image in images:
        nib.save(image, tmp_path / "other.nii")
        other = read_volume(tmp_path / "other.nii")

        check_same_grid(one, other)
        assert np.array_equal(other.voxels, one.voxels)
        assert other.spacing_mm == pytest.approx(one.spacing_mm)


def test_the_grid_says_where_each_voxel_lies(tmp_path):
    numbered = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    stored = nib.Nifti1Image(numbered, turned_affine(2, 0.2))
    image = stored.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")

    i, j, k = np.argwhere(np.asarray(image.dataobj) == volume.voxels[2, 0, 3])[0]
    wanted = image.affine @ [i, j, k, 1]
    assert volume.grid @ [2, 0, 3, 1] == pytest.approx(wanted, abs=1e-4)


def test_grids_that_only_look_alike_are_refused_with_both_frames(tmp_path):
    cube = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
    one = read_volume(save(tmp_path / "one.nii", cube, np.diag([2, 2, 2, 1])))
    shifted = np.diag([2.0, 2, 2, 1])
    shifted[0, 3] = 2  # by one voxel

    for name, affine in (
        ("shifted", shifted),
        ("mirrored", np.diag([-2, 2, 2, 1])),
        ("larger", np.diag([2, 2, 2.01, 1])),
    ):
        other = read_volume(save(tmp_path / f"{name}.nii", cube, affine))
        with pytest.raises(
            ValueError, match=rf"one\.nii: lies up to .* mm from .*{name}\.nii.*2\.0.*2\.0"
        ) as refusal:
            check_same_grid(one, other)
        assert str(affine.astype(float).tolist()[2])[:-1] in str(refusal.value)


def test_grids_of_other_shapes_are_refused(tmp_path):
    one = read_volume(save(tmp_path / "one.nii", np.zeros((4, 5, 6), np.int16)))
    for shape in ((4, 5, 7), (4, 6, 5), (3, 5, 7)):
        other = read_volume(save(tmp_path / "other.nii", np.zeros(shape, np.int16)))
        with pytest.raises(
            ValueError, match=r"one\.nii: shape \(4, 5, 6\), but .*other\.nii has \("
        ):
            check_same_grid(one, other)


def test_grids_turned_about_their_diagonal_are_others(tmp_path):
    """First and last corner stay where they are, all others move."""
    cube = np.zeros((9, 9, 9), np.int16)
    diagonal = np.ones(3) / np.sqrt(3)
    turn = nib.quaternions.quat2mat([np.cos(0.1), *np.sin(0.1) * diagonal])
    middle = np.full(3, 4.0)
    turned = nib.affines.from_matvec(turn, middle - turn @ middle)
    one = read_volume(save(tmp_path / "one.nii", cube, np.eye(4)))
    other = read_volume(save(tmp_path / "other.nii", cube, turned))
    with pytest.raises(ValueError, match="lies up to"):
        check_same_grid(one, other)


def test_a_voxels_place_is_the_sforms(tmp_path):
    """Where both forms are set, whatever the qform rounds to."""
    grids = []
    for radians in (0, 1e-3):
        image = nib.Nifti1Image(np.zeros((200, 200, 2), np.int16), None)
        affine = np.diag([-1.0, -1, 1, 1])
        affine[0, 1], affine[1, 0] = radians, -radians
        image.header.set_sform(affine, 1)
        image.header.set_qform(affine, 1)
        nib.save(image, tmp_path / "a.nii")
        grids.append(read_volume(tmp_path / "a.nii"))
    with pytest.raises(ValueError, match=r"lies up to 0\.2 mm"):
        check_same_grid(*grids)


def test_one_slice_has_a_thickness(tmp_path):
    thin, thick = (
        read_volume(
            save(tmp_path / f"{mm}.nii", np.zeros((1, 4, 4), np.int16), np.diag([mm, 2, 2, 1]))
        )
        for mm in (1, 5)
    )
    with pytest.raises(ValueError, match="lies up to 2 mm from"):
        check_same_grid(thin, thick)


@pytest.mark.parametrize(
    "affine, mm3",
    [
        (KITS_AFFINE, 3 * 0.8 * 0.8),
        (turned_affine(1, 0.3), 3 * 0.8 * 0.8),
        (np.diag([-1, 2, 3, 1]), 1 * 2 * 3),  # left-handed
        (
            [[1, 0, 0, 0], [0, 2, 0, 0], [0, 4, 3, 0], [0, 0, 0, 1]],
            1 * 2 * 3,
        ),  # sheared: a column is longer than its part
    ],
)
def test_a_voxels_volume_is_the_determinant(tmp_path, voxels, affine, mm3):
    volume = read_volume(save(tmp_path / "a.nii", voxels, np.array(affine, dtype=float)))
    assert volume.voxel_mm3 == pytest.approx(mm3, rel=1e-6)


def test_a_voxels_volume_under_an_assumed_spacing_is_its_product(tmp_path, voxels):
    volume = read_volume(save(tmp_path / "a.nii", voxels), assume_spacing=(5, 0.5, 0.7))
    assert volume.voxel_mm3 == pytest.approx(5 * 0.5 * 0.7)


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


@pytest.mark.parametrize(
    "voxels_long, moved_mm, ok",
    [
        (1, 0.001, True),
        (1, 0.0013, False),
        (1000, 0.1, True),
        (1000, 0.103, False),
        (1000, -0.103, False),
    ],
)
def test_places_may_differ_by_a_micrometre_and_a_ten_thousandth_of_the_size(
    tmp_path, voxels_long, moved_mm, ok
):
    array = np.zeros((voxels_long, 1, 1), np.int16)
    moved = np.eye(4)
    moved[1, 3] = moved_mm
    one, other = (
        read_volume(save(tmp_path / f"{name}.nii", array, affine))
        for name, affine in (("one", np.eye(4)), ("other", moved))
    )
    if ok:
        check_same_grid(one, other)
    else:
        with pytest.raises(ValueError, match=r"one\.nii: lies up to 0\.[01]\d* mm from"):
            check_same_grid(one, other)


def test_same_grid_compares_shape_and_place_but_not_codes(tmp_path, voxels):
    one = read_volume(save(tmp_path / "one.nii", voxels))
    nudged = KITS_AFFINE + 1e-5
    check_same_grid(
        one,
        read_volume(save(tmp_path / "same.nii", voxels.astype(np.float32), nudged, sform_code=1)),
    )
    with pytest.raises(
        ValueError, match=r"one.nii: shape \(4, 5, 6\), but .*other.nii has \(4, 5, 5\)"
    ):
        check_same_grid(one, read_volume(save(tmp_path / "other.nii", voxels[..., :5])))
    moved = KITS_AFFINE.copy()
    moved[0, 3] += 0.5
    with pytest.raises(ValueError, match=r"one\.nii: lies up to 0\.5 mm from .*moved\.nii"):
        check_same_grid(one, read_volume(save(tmp_path / "moved.nii", voxels, moved)))
