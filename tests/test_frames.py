"""Where a file says that its voxels lie: sform, qform, pixdim and units, as the standard reads."""

import nibabel as nib
import numpy as np
import pytest
from test_hazards import VOXELS, framed
from test_volumes import KITS_AFFINE

from minikits.frames import check_same_grid
from minikits.nifti import read_labels, read_volume, write_labels

pytestmark = pytest.mark.filterwarnings("error")

# axial CT as scanners write it: half a turn about the body's axis
LPS = np.diag([-0.8, -0.8, 3, 1])
RAS = np.diag([0.8, 0.8, 3, 1])
LAS = np.diag([-0.8, 0.8, 3, 1])  # left-handed

RIGHT, ANTERIOR = 0, 1  # rows of an affine


def turned(affine, about, radians):
    """An affine turned in space about an axis, a vector of R A S."""
    axis = np.array(about) / np.linalg.norm(about)
    half = radians / 2
    quaternion = [np.cos(half), *(np.sin(half) * axis)]

    turn = np.eye(4)
    turn[:3, :3] = nib.quaternions.quat2mat(quaternion)
    return turn @ affine


def shifted(affine, axis, mm):
    """An affine moved in space along an axis, RIGHT or ANTERIOR."""
    moved = affine.copy()
    moved[axis, 3] += mm
    return moved


def stored_the_other_way(affine, shape):
    """The affine of the same places, for voxels stored from the other end of two axes."""
    reversal = nib.orientations.inv_ornt_aff([[0, 1], [1, -1], [2, -1]], shape)
    return affine @ reversal


def header_only(path, shape, sform, qform, codes=(1, 1)):
    """A label file of zeros with both forms; voxels of so large a shape would take long."""
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), None)
    image.header.set_qform(qform, codes[1])
    image.header.set_sform(sform, codes[0])
    image.header.set_data_shape(shape)
    image.header["vox_offset"] = 352
    no_extensions = bytes(4)
    path.write_bytes(image.header.binaryblock + no_extensions + bytes(np.prod(shape)))
    return path


def pixdim_of(spacing, first=1):
    """The field pixdim: a sign for the qform, three lengths, and those of further axes."""
    return (first, *spacing, 0, 0, 0, 0)


@pytest.mark.parametrize("frame", [LPS, RAS, LAS, KITS_AFFINE], ids=["LPS", "RAS", "LAS", "IPL"])
@pytest.mark.parametrize(
    "shape, spacing_mm", [((512, 4, 60), (0.8, 0.8, 3)), ((30, 500, 3), (0.5, 0.97, 5))]
)
def test_forms_of_one_affine_agree_however_little_it_is_turned(tmp_path, frame, shape, spacing_mm):
    """The sform is taken, which is the exact one."""
    directions = frame[:3, :3] / nib.affines.voxel_sizes(frame)
    straight = nib.affines.from_matvec(directions * spacing_mm, [-200, -180, -900])
    draw = np.random.default_rng(0)

    for number in range(50):
        radians = 10 ** draw.uniform(-5, -1)
        affine = turned(straight, draw.normal(size=3), radians)
        path = header_only(tmp_path / "a.nii", shape, affine, affine)

        volume = read_volume(path)

        assert np.array_equal(volume.affine, nib.load(path).get_sform()), number


@pytest.mark.parametrize("frame", [LPS, LAS, RAS, KITS_AFFINE], ids=["LPS", "LAS", "RAS", "IPL"])
@pytest.mark.parametrize("about", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_a_turn_beyond_rounding_is_refused(tmp_path, frame, about):
    path = header_only(tmp_path / "a.nii", (200, 200, 100), frame, turned(frame, about, 0.002))

    message = r"mm apart, wanted the same; --affine sform or --affine qform chooses one$"
    with pytest.raises(ValueError, match=message):
        read_volume(path)


@pytest.mark.parametrize("moved_mm, ok", [(0, True), (0.02, True), (0.06, False), (-0.06, False)])
def test_rounding_of_a_turn_excuses_no_shift(tmp_path, moved_mm, ok):
    """Frames of 400 mm are the same where they differ by no more than 0.041 mm."""
    affine = turned(LPS, (1, 2, 3), 5e-4)
    moved = shifted(affine, ANTERIOR, moved_mm)
    path = header_only(tmp_path / "a.nii", (500, 4, 4), affine, moved)

    if ok:
        assert read_volume(path).voxels.shape == (4, 4, 500)
    else:
        with pytest.raises(ValueError, match=r"0\.06 mm apart"):
            read_volume(path)


def read_by_sform(path, affine):
    """A file of 400 x 4 x 4 voxels that has an sform alone."""
    return read_volume(header_only(path, (400, 4, 4), affine, affine, (1, 0)))


def read_by_qform(path, affine):
    """The same with a qform alone."""
    return read_labels(header_only(path, (400, 4, 4), None, affine, (0, 1)))


@pytest.mark.parametrize("order", ["image has the sform", "labels have the sform"])
def test_labels_with_a_qform_alone_lie_on_the_grid_of_an_image_with_an_sform(tmp_path, order):
    def check(by_sform, by_qform):
        if order == "image has the sform":
            check_same_grid(by_sform, by_qform)
        else:
            check_same_grid(by_qform, by_sform)

    draw = np.random.default_rng(1)
    for _ in range(50):
        affine = turned(LPS, draw.normal(size=3), 1e-3)
        by_sform = read_by_sform(tmp_path / "a.nii", affine)
        by_qform = read_by_qform(tmp_path / "b.nii", stored_the_other_way(affine, (400, 4, 4)))
        elsewhere = read_by_sform(tmp_path / "a.nii", shifted(affine, RIGHT, 0.1))

        check(by_sform, by_qform)

        with pytest.raises(ValueError, match=r"lies up to 0\.1\d* mm from"):
            check(elsewhere, by_qform)


def test_a_qform_alone_that_is_turned_beyond_rounding_is_another_grid(tmp_path):
    one = read_by_sform(tmp_path / "a.nii", LPS)
    turned_one = turned(LPS, (0, 1, 0), 0.002)
    other = read_volume(header_only(tmp_path / "b.nii", (400, 4, 4), None, turned_one, (0, 1)))

    with pytest.raises(ValueError, match=r"lies up to .* mm from .*wanted the same place"):
        check_same_grid(one, other)


@pytest.mark.parametrize(
    "frame", [LPS, RAS, LAS, KITS_AFFINE, turned(LPS, (1, 2, 3), 0.3), turned(LAS, (3, 1, 1), 2)]
)
def test_a_qform_alone_is_read_as_nibabel_reads_it(tmp_path, frame):
    path = framed(tmp_path / "a.nii", None, frame, (0, 1))

    volume = read_volume(path)

    assert np.allclose(volume.affine, nib.load(path).affine, rtol=0, atol=1e-12)
    assert np.allclose(volume.affine, frame, atol=1e-6)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1)])
def test_a_left_handed_frame_is_read_the_same_each_time(tmp_path, kind, codes):
    volume = read_volume(framed(tmp_path / "a.nii", LAS, LAS, codes, kind))

    for _ in range(3):
        again = read_volume(framed(tmp_path / "b.nii", LAS, LAS, (1, 0)))
        check_same_grid(volume, again)

    assert volume.header["pixdim"][:4].tolist() == pytest.approx([-1, 0.8, 0.8, 3])


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_mirrored_qform_is_refused(tmp_path, kind):
    mirrored = pixdim_of((0.8, 0.8, 3), first=-1)
    path = framed(tmp_path / "a.nii", LPS, LPS, (1, 1), kind, pixdim=mirrored)

    with pytest.raises(ValueError, match=r"sform .* and qform .* mm apart"):
        read_volume(path)


def written_mask(volume, path):
    """A mask of background, as nibabel reads it."""
    write_labels(path, np.zeros(volume.voxels.shape), volume)
    return nib.load(path)


def assert_mask_lies_as(volume, mask):
    """The mask is read by nibabel, both its forms, and lies where the volume does."""
    assert np.allclose(mask.affine, volume.affine, atol=1e-5)
    if mask.header["qform_code"] != 0:
        assert np.allclose(mask.get_qform(), volume.affine, atol=1e-5)
    check_same_grid(volume, read_labels(mask.get_filename()))


@pytest.mark.parametrize("excess", [1e-7, 3e-7, 7e-7, 5e-6])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_quaternion_a_little_too_long_is_rounding(tmp_path, excess, codes, kind):
    quaternion = {"quatern_c": 1e-6, "quatern_d": np.sqrt(1 + excess)}
    path = framed(tmp_path / "a.nii", LPS, LPS, codes, kind, **quaternion)

    volume = read_volume(path)

    assert np.allclose(volume.affine, LPS, atol=1e-4)
    assert_mask_lies_as(volume, written_mask(volume, tmp_path / "mask.nii"))


@pytest.mark.parametrize("excess", [1.1e-5, 1e-3, 1])
def test_a_quaternion_far_too_long_is_damage(tmp_path, excess):
    field = {"quatern_d": np.sqrt(1 + excess)}
    alone = framed(tmp_path / "alone.nii", LPS, LPS, (0, 1), **field)
    beside_an_sform = framed(tmp_path / "beside.nii", LPS, LPS, (1, 1), **field)

    message = r"squares that sum to (1|2).*, wanted 1 or less; convert it again"
    with pytest.raises(ValueError, match=message):
        read_volume(alone)

    message = r"wanted 1 or less, but its sform is sound; --affine sform takes that$"
    with pytest.raises(ValueError, match=message):
        read_volume(beside_an_sform)
    assert np.array_equal(read_volume(beside_an_sform, affine="sform").affine, np.float32(LPS))


@pytest.mark.parametrize(
    "frame, first, ok",
    [
        (LPS, 0, True),
        (LPS, 1, True),
        (LPS, 3, True),
        (LPS, -1, False),
        (LPS, -3, False),
        (LAS, -1, True),
        (LAS, -4, True),
        (LAS, 0, False),
        (LAS, 1, False),
    ],
)
def test_of_the_first_pixdim_only_a_minus_counts(tmp_path, frame, first, ok):
    """It is -1 where the axes are left-handed, as in LAS; 0 reads as 1."""
    pixdim = pixdim_of((0.8, 0.8, 3), first)
    with_both_forms = framed(tmp_path / "both.nii", frame, frame, (1, 1), pixdim=pixdim)
    with_a_qform = framed(tmp_path / "qform.nii", frame, frame, (0, 1), pixdim=pixdim)

    if ok:
        for path in (with_both_forms, with_a_qform):
            volume = read_volume(path)
            assert np.allclose(volume.affine, frame, atol=1e-6)
            assert_mask_lies_as(volume, written_mask(volume, tmp_path / "mask.nii"))
    else:
        with pytest.raises(ValueError, match="mm apart"):
            read_volume(with_both_forms)
        assert not np.allclose(read_volume(with_a_qform).affine, frame, atol=1)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("negative", [(0.8, 0.8, -3), (-0.8, 0.8, 3), (-0.8, -0.8, -3)])
def test_a_length_of_pixdim_has_no_sign(tmp_path, codes, negative):
    path = framed(tmp_path / "a.nii", LPS, LPS, codes, pixdim=pixdim_of(negative))

    volume = read_volume(path)
    mask = written_mask(volume, tmp_path / "mask.nii")

    assert np.allclose(volume.affine, LPS, atol=1e-6)
    assert volume.spacing_mm == pytest.approx((3, 0.8, 0.8))
    assert_mask_lies_as(volume, mask)
    assert mask.header.get_zooms() == pytest.approx((0.8, 0.8, 3))


@pytest.mark.parametrize("read", [read_volume, read_labels])
def test_images_and_labels_take_the_same_choices(tmp_path, read):
    far = shifted(LPS, ANTERIOR, 40)
    path = framed(tmp_path / "a.nii", LPS, far)
    header = path.read_bytes()[: nib.Nifti1Header.template_dtype.itemsize + 4]
    path.write_bytes(header + bytes(VOXELS.nbytes))  # zeros are labels too

    assert np.allclose(read(path, affine="sform").affine, LPS, atol=1e-6)
    assert np.allclose(read(path, affine="qform").affine, far, atol=1e-6)
    assert read(path, assume_spacing=(5, 0.7, 0.6)).spacing_mm == pytest.approx((5, 0.7, 0.6))
    with pytest.raises(ValueError, match="more than 3119 voxels"):
        read(path, affine="sform", max_voxels=3119)


@pytest.mark.parametrize("between, ok", [(2e-3, True), (5e-4, False), (0, False)])
def test_axes_that_nearly_coincide_span_no_volume(tmp_path, between, ok):
    """between: the angle of the first two, in radians."""
    flat = np.eye(4)
    flat[:2, 1] = np.cos(between), np.sin(between)
    path = framed(tmp_path / "a.nii", flat, None, (1, 0), pixdim=pixdim_of((1, 1, 1)))

    if ok:
        assert read_volume(path).voxel_mm3 == pytest.approx(between, rel=1e-3)
    else:
        with pytest.raises(ValueError, match="is not invertible"):
            read_volume(path)


@pytest.mark.parametrize(
    "share, ok", [(1, True), (1.009, True), (0.991, True), (1.011, False), (0.989, False)]
)
@pytest.mark.parametrize("axis", range(3))
def test_pixdim_may_differ_by_a_hundredth(tmp_path, share, ok, axis):
    spacing = [0.8, 0.8, 3]
    spacing[axis] *= share
    path = framed(tmp_path / "a.nii", LPS, None, (1, 0), pixdim=pixdim_of(spacing))

    if ok:
        assert read_volume(path).spacing_mm == pytest.approx((3, 0.8, 0.8))
    else:
        message = r"pixdim .* and sform .* mm, wanted the same; --affine sform takes"
        with pytest.raises(ValueError, match=message):
            read_volume(path)
        assert read_volume(path, affine="sform").spacing_mm == pytest.approx((3, 0.8, 0.8))


def test_a_qform_that_means_nothing_is_not_looked_at(tmp_path):
    nonsense = {"quatern_b": np.nan, "qoffset_x": np.inf, "quatern_c": 9}
    path = framed(tmp_path / "a.nii", LPS, LPS, (1, 0), **nonsense)

    volume = read_volume(path)
    mask = written_mask(volume, tmp_path / "mask.nii")

    assert np.array_equal(volume.affine, np.float32(LPS))
    assert np.array_equal(mask.affine, volume.affine)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize(
    "units, per_mm", [(1, 1e-3), (2, 1), (3, 1000), (0, 1), (10, 1), (9, 1e-3), (5, 1)]
)
def test_metres_and_micrometres_are_brought_to_mm(tmp_path, codes, units, per_mm):
    """Three bits of xyzt_units are length: 1 metre, 2 mm, 3 micrometre, 0 unknown; others are time."""
    stored = turned(LPS, (1, 0, 0), 0.2)
    stored[:3, 3] = 10, 20, 30
    stored[:3] *= per_mm
    path = framed(tmp_path / "a.nii", stored, stored, codes, xyzt_units=units)

    volume = read_volume(path)
    mask = written_mask(volume, tmp_path / "mask.nii")

    assert volume.spacing_mm == pytest.approx((3, 0.8, 0.8))
    assert volume.voxel_mm3 == pytest.approx(3 * 0.8 * 0.8)
    assert volume.affine[:3, 3] == pytest.approx([10, 20, 30])
    assert mask.header["xyzt_units"] == units
    assert np.array_equal(mask.affine, nib.load(path).affine)
    check_same_grid(volume, read_labels(tmp_path / "mask.nii"))


@pytest.mark.parametrize(
    "options", [{"affine": "sform"}, {"affine": "qform"}, {"assume_spacing": (3, 0.8, 0.8)}]
)
def test_a_frame_that_was_chosen_is_in_mm_in_the_mask(tmp_path, options):
    in_metres = LPS * [[1e-3], [1e-3], [1e-3], [1]]
    moved = shifted(in_metres, RIGHT, 0.5)
    path = framed(tmp_path / "a.nii", in_metres, moved, xyzt_units=9)  # metres and ms

    volume = read_volume(path, **options)
    mask = written_mask(volume, tmp_path / "mask.nii")

    assert volume.spacing_mm == pytest.approx((3, 0.8, 0.8))
    assert mask.header.get_xyzt_units() == ("mm", "sec")
    assert np.allclose(mask.affine, volume.affine, atol=1e-4)
    check_same_grid(volume, read_labels(tmp_path / "mask.nii"))


def test_fields_without_a_meaning_stay_as_they_are(tmp_path):
    """pixdim[0] belongs to the qform, and none is set."""
    pixdim = pixdim_of((0.8, 0.8, 3), first=0)
    path = framed(tmp_path / "a.nii", LPS, LPS, (1, 0), pixdim=pixdim)

    assert read_volume(path).header["pixdim"][0] == 0


@pytest.mark.parametrize("offset_mm, ok", [(999_000, True), (-999_000, True), (1_001_000, False)])
def test_a_scan_lies_within_a_kilometre(tmp_path, offset_mm, ok):
    far = shifted(LPS, ANTERIOR, offset_mm)
    path = framed(tmp_path / "a.nii", far, far, (1, 0))

    if ok:
        assert read_volume(path).affine[1, 3] == offset_mm
    else:
        with pytest.raises(ValueError, match=r"its sform .* is not invertible, or not in mm"):
            read_volume(path)


# the fields of a header that say where voxels lie
SPATIAL = [
    *("dim", "pixdim", "xyzt_units", "dim_info", "descrip"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
]


def scan_of_a_patient(order, frame, codes):
    """A scan whose header says more than where its voxels lie. order: of the bytes."""
    scan = nib.Nifti1Image(VOXELS, None, nib.Nifti1Header(endianness=order))
    header = scan.header
    header.set_sform(frame, codes[0])
    header.set_qform(frame, codes[1])
    header.set_xyzt_units("mm", "msec")
    header.set_intent("z score", (), "z")
    header.set_slope_inter(2, -1024)
    header["cal_min"] = -100
    header["cal_max"] = 300
    header["descrip"] = b"by hand"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"NAME^OF A PATIENT"))
    return scan


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (4, 5)])
@pytest.mark.parametrize(
    "frame", [LPS, KITS_AFFINE, turned(LAS, (1, 2, 3), 1e-3), turned(RAS, (3, 1, 1), 2)]
)
def test_a_mask_has_the_scans_frame_to_the_bit_and_nothing_of_its_values(
    tmp_path, order, codes, frame
):
    nib.save(scan_of_a_patient(order, frame, codes), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    labels = np.random.default_rng(0).integers(0, 3, volume.voxels.shape)

    write_labels(tmp_path / "mask.nii", labels, volume)

    scan, mask = nib.load(tmp_path / "scan.nii"), nib.load(tmp_path / "mask.nii")
    for field in SPATIAL:
        assert scan.header[field].tobytes() == mask.header[field].tobytes(), field
    assert np.array_equal(mask.affine, scan.affine)

    assert mask.header.get_intent() == ("none", (), "")
    assert (mask.header["cal_min"], mask.header["cal_max"]) == (0, 0)
    assert mask.get_data_dtype() == np.uint8
    assert not mask.header.extensions
    raw = np.frombuffer((tmp_path / "mask.nii").read_bytes()[:348], mask.header.structarr.dtype)[0]
    assert (raw["scl_slope"], raw["scl_inter"], raw["vox_offset"]) == (1, 0, 352)

    stored = np.asarray(mask.dataobj)
    for place in np.argwhere(labels == 2)[:20]:
        i, j, k = np.rint(volume.zyx_to_stored @ [*place, 1]).astype(int)[:3]
        assert stored[i, j, k] == 2
    assert np.array_equal(read_labels(tmp_path / "mask.nii").voxels, labels)


def test_probabilities_say_what_a_step_of_their_bytes_is(tmp_path):
    volume = read_volume(framed(tmp_path / "scan.nii", LPS, LPS))
    steps = np.full(volume.voxels.shape, 51)  # a fifth of 255

    write_labels(tmp_path / "p.nii.gz", steps, volume, slope=1 / 255)

    assert np.allclose(nib.load(tmp_path / "p.nii.gz").get_fdata(), 0.2)


def test_labels_of_another_shape_are_not_written(tmp_path):
    volume = read_volume(framed(tmp_path / "scan.nii", LPS, LPS))

    message = r"mask.nii: labels of shape \(13, 12, 19\), wanted \(13, 12, 20\), that of .*scan.nii"
    with pytest.raises(ValueError, match=message):
        write_labels(tmp_path / "mask.nii", np.zeros((13, 12, 19)), volume)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]
