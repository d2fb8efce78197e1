"""Any orientation in, the same frame out; which grids are the same."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from minikits.frames import check_same_grid
from minikits.nifti import read_volume, write_labels

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
    assert volume.zyx_to_mm @ [2, 0, 3, 1] == pytest.approx(wanted, abs=1e-4)


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
