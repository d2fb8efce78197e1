"""Deterministic, plausible in size, and not to be solved by a threshold."""

import math
import sys
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest
from conftest import run_script

from minikits import anatomy, phantoms
from minikits.anatomy import bent
from minikits.nifti import read_labels, read_volume, write_image
from minikits.phantoms import make_case


def best_threshold_dice(image, labels):
    """(kidney, tumor): the best Dice of any global rule "from a to b HU" or "from a HU", a and b multiples of 10."""
    edges = np.append(np.arange(-200, 500, 10), 1 << 15)
    everything = np.histogram(image, edges)[0]
    scores = []
    for truth in (labels > 0, labels == 2):
        hits = np.histogram(image[truth], edges)[0]
        hit, chosen = (np.subtract.outer(n.cumsum(), n.cumsum() - n) for n in (hits, everything))
        dice = 2 * hit / np.maximum(chosen + np.count_nonzero(truth), 1)
        scores.append(float(np.tril(dice).max()))
    return tuple(scores)


@pytest.fixture(scope="module")
def cases():
    return [make_case([0, seed]) for seed in range(8)]


def test_the_same_seed_gives_the_same_case():
    one, two, other = make_case([3, 1]), make_case([3, 1]), make_case([3, 2])
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1]) and one[2] == two[2]
    assert one[0].shape != other[0].shape or not np.array_equal(one[0], other[0])


def test_kidneys_tumors_and_hounsfield_units_are_plausible(cases):
    tumors = 0
    for image, labels, spacing in cases:
        millilitres = [
            np.count_nonzero(labels == value) * np.prod(spacing) / 1000 for value in (1, 2)
        ]
        assert 120 < millilitres[0] < 600 and millilitres[1] < 400
        tumors += millilitres[1] > 0
        assert image.dtype == np.int16 and image.min() < -900 and image.max() > 250
        assert 60 < image[labels == 1].mean() < 230
    assert tumors >= 6
    assert (
        len({spacing for _, _, spacing in cases})
        == len({image.shape for image, _, _ in cases})
        == 8
    )


def test_no_threshold_solves_them(cases):
    scores = np.array([best_threshold_dice(image, labels) for image, labels, _ in cases])
    assert (scores[:, 0] < 0.6).all() and (scores[:, 1] < 0.3).all()


def test_an_edge_is_as_wide_as_a_pixel_and_slices_do_not_mix():
    """A step from 0 to 300 HU: half a voxel's own value, half the mean of 3 x 3 around it."""
    step = np.zeros((2, 9, 8), np.int16)
    step[0, :, 4:] = 300

    image = phantoms._as_scanned(np.random.default_rng(0), step, noise_sd=0)

    assert image[0, 4].tolist() == [0, 0, 0, 50, 250, 300, 300, 300]
    assert not image[1].any()


def test_noise_has_its_sd_and_the_ramp_of_filtered_backprojection():
    flat = np.zeros((8, 64, 64), np.int16)

    noise = phantoms._as_scanned(np.random.default_rng(0), flat, noise_sd=20.0)

    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0)
    low, middle = power[0, 1:4].mean(), power[0, 12:16].mean()  # 1/64 to 3/64, and about 14/64
    assert noise.std() == pytest.approx(20, rel=0.02)
    assert low < 0.1 * middle


def test_the_body_bends_as_its_kidneys_do(monkeypatch):
    """Labels and body are given the same displacement, not two that are alike."""
    seen = []

    def noted(axes, bends, stiff=0):
        seen.append(bends)
        return bent(axes, bends, stiff)

    monkeypatch.setattr(phantoms, "bent", noted)
    monkeypatch.setattr(anatomy, "bent", noted)

    make_case(0, shape=(8, 40, 50), spacing_mm=(8.0, 8.0, 8.0))

    assert len(seen) == 2
    assert seen[0] is seen[1]


def test_the_body_fills_more_than_half_of_the_image(cases):
    air = [np.mean(image < -500) for image, _, _ in cases]

    assert max(air) < 0.5


def test_the_air_is_as_noisy_as_a_scanner_makes_it(cases):
    """In the corners above the patient, a little less than drawn: no HU is below -1024."""
    for image, _, _ in cases:
        corner = image[:, :8, :8]

        assert 7 < corner.std() < 21
        assert corner.mean() == pytest.approx(-1000, abs=5)


def test_best_threshold_is_found_where_there_is_one():
    image = np.array([[[-100, 50, 100, 105, 300, 200]]], dtype=np.int16)
    assert best_threshold_dice(image, np.array([[[0, 0, 1, 1, 2, 0]]])) == (pytest.approx(6 / 7), 1)
    assert best_threshold_dice(image, np.zeros((1, 1, 6), np.uint8)) == (0, 0)


def test_real_labels_are_kept_and_the_body_is_built_around_them(kits19):
    like = read_labels(kits19 / "case_00061" / "segmentation.nii.gz")
    dice = []
    for seed in (5, 6):
        image, labels, spacing = make_case(seed, labels=like.voxels, spacing_mm=like.spacing_mm)
        dice.append(best_threshold_dice(image, labels))

        assert labels is like.voxels and image.shape == labels.shape and spacing == like.spacing_mm
        assert 60 < image[labels == 1].mean() < 230

    assert max(np.mean(dice, axis=0)) < 0.6  # 29 slices: little but kidneys is in sight


def test_labels_without_foreground_give_a_body():
    image, labels, _ = make_case(
        1, labels=np.zeros((8, 60, 60), np.uint8), spacing_mm=(5.0, 6.0, 6.0)
    )
    assert not labels.any() and image.max() > 100


def test_the_command_line_writes_cases_and_complains_in_one_line(tmp_path):
    arguments = ("-m", "minikits.phantoms", "--out", tmp_path)
    assert "phantom_000: " in run_script(*arguments, "--cases", 1)
    image, labels, spacing = make_case([0, 0])
    written = read_labels(tmp_path / "phantom_000" / "segmentation.nii.gz")
    assert np.array_equal(written.voxels, labels) and written.spacing_mm == pytest.approx(spacing)
    assert np.array_equal(read_volume(tmp_path / "phantom_000" / "imaging.nii.gz").voxels, image)
    run_script(*arguments, "--out", tmp_path / "around", "--labels", tmp_path)
    around = read_labels(tmp_path / "around" / "phantom_000" / "segmentation.nii.gz")
    assert np.array_equal(around.voxels, labels)
    complaint = run_script(*arguments, "--labels", tmp_path / "none", expect=2)
    assert "none: no label volumes found" in complaint and complaint.count("\n") == 1


def called(monkeypatch, capsys, *arguments):
    """(exit status, what was printed) of the command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["phantoms", *map(str, arguments)])
    try:
        phantoms.main()
    except SystemExit as ended:
        printed = capsys.readouterr()
        return ended.code, printed.out + printed.err
    return 0, capsys.readouterr().out


@pytest.fixture
def seeds(monkeypatch):
    """Small bodies instead of whole ones; a list of the seeds that they are made of."""
    asked = []

    def small_body(seed, *, labels=None, spacing_mm=(6.0, 5.0, 5.0)):
        asked.append(seed)
        labels = np.ones((4, 5, 6), np.uint8) if labels is None else labels
        return np.zeros(labels.shape, np.int16), labels, spacing_mm

    monkeypatch.setattr(phantoms, "make_case", small_body)
    monkeypatch.setattr(phantoms, "processes_that_pay", lambda cases: 1)  # others make whole ones
    return asked


def label_volume(folder, name="segmentation.nii.gz", value=1):
    write_image(folder / name, np.full((4, 5, 6), value, np.uint8), (6.0, 5.0, 5.0))


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [("--cases", 0, "1 or more"), ("--cases", -1, "1 or more"), ("--seed", -1, "0 or more")],
)
def test_numbers_that_mean_nothing_are_refused_by_their_option(
    tmp_path, monkeypatch, capsys, seeds, option, value, wanted
):
    label_volume(tmp_path / "labels" / "case_00000")
    for more in ([], ["--labels", tmp_path / "labels"]):
        status, said = called(monkeypatch, capsys, "--out", tmp_path / "out", option, value, *more)
        assert status == 2 and said == f"phantoms: {option} {value}: wanted {wanted}\n"
    assert not seeds and not (tmp_path / "out").exists()


def test_as_many_cases_as_asked_each_of_its_own_seed(tmp_path, monkeypatch, capsys, seeds):
    status, said = called(monkeypatch, capsys, "--out", tmp_path, "--cases", 2, "--seed", 3)
    assert status == 0 and said.count("voxels, 0 of tumor") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phantom_3000", "phantom_3001"]
    assert seeds == [[3, 0], [3, 1]]
    called(monkeypatch, capsys, "--out", tmp_path / "ten")
    assert len(list((tmp_path / "ten").iterdir())) == 10
    assert seeds[2:] == [[0, number] for number in range(10)]


def test_cases_of_one_seed_never_have_the_names_of_the_next_ones(
    tmp_path, monkeypatch, capsys, seeds
):
    monkeypatch.setattr(phantoms, "write_case", lambda folder, case: folder.mkdir(parents=True))
    assert called(monkeypatch, capsys, "--out", tmp_path, "--cases", 1000)[0] == 0
    assert len(list(tmp_path.iterdir())) == 1000
    assert called(monkeypatch, capsys, "--out", tmp_path, "--seed", 1, "--cases", 1)[0] == 0
    assert len(list(tmp_path.iterdir())) == 1001
    status, said = called(monkeypatch, capsys, "--out", tmp_path, "--cases", 1001)
    assert status == 2 and said.startswith("phantoms: --cases 1001: wanted 1000 at most")


def test_bodies_are_built_around_visible_label_volumes_alone(tmp_path, monkeypatch, capsys, seeds):
    labels, out = tmp_path / "labels", tmp_path / "out"
    for name in ("case_00000", "case_00001", ".case_00002.old"):
        label_volume(labels / name, value=2)
    label_volume(labels / "case_00003", name="segmentation.nii.gz.part.nii.gz")
    status, said = called(monkeypatch, capsys, "--out", out, "--labels", labels, "--cases", 5)
    assert status == 0
    assert sorted(path.name for path in out.iterdir()) == ["case_00000", "case_00001"]
    assert f"{labels}: 2 label volumes found, of the 5 wanted" in said
    assert "2 cases found, 1 left out: case_00003/" in said
    assert "case_00000: (4, 5, 6) voxels, 120 of tumor" in said

    called(monkeypatch, capsys, "--out", tmp_path / "one", "--labels", labels, "--cases", 1)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["case_00000"]


def test_label_volumes_that_cannot_be_read_are_named_and_the_others_go_on(
    tmp_path, monkeypatch, capsys, seeds
):
    labels, out = tmp_path / "labels", tmp_path / "out"
    for name in ("a", "c"):
        label_volume(labels / name)
    label_volume(labels / "b", value=7)
    (labels / "d").mkdir()
    (labels / "d" / "segmentation.nii.gz").write_bytes(b"")

    status, said = called(monkeypatch, capsys, "--out", out, "--labels", labels)

    assert status == 2
    assert sorted(path.name for path in out.iterdir()) == ["a", "c"]
    assert seeds == [[0, 0], [0, 2]]  # each the same as if all could be read
    first, second = said.splitlines()[-2:]
    assert first.startswith(f"phantoms: {labels / 'b' / 'segmentation.nii.gz'}: label values 7 ")
    assert second.startswith(f"phantoms: {labels / 'd' / 'segmentation.nii.gz'}: the file is empty")


def test_the_options_that_a_refusal_advises_are_there(tmp_path, monkeypatch, capsys, seeds):
    """`a` has no frame, and `b` two: an sform with sides of 6 x 5 x 5 mm, and a qform of others."""
    ones = np.ones((4, 5, 6), np.uint8)
    unframed = nib.Nifti1Image(ones, None)
    unframed.header["sform_code"] = unframed.header["qform_code"] = 0
    two_frames = nib.Nifti1Image(ones, np.diag([5.0, 5.0, 6.0, 1.0]))
    two_frames.set_qform(np.diag([7.0, 7.0, 8.0, 1.0]), 1)
    for name, image in (("a", unframed), ("b", two_frames)):
        (tmp_path / name / "case").mkdir(parents=True)
        nib.save(image, tmp_path / name / "case" / "segmentation.nii.gz")
    given = {name: ("--out", tmp_path / "out", "--labels", tmp_path / name) for name in "ab"}
    written = tmp_path / "out" / "case" / "segmentation.nii.gz"

    status, said = called(monkeypatch, capsys, *given["a"])
    assert status == 2 and "--assume-spacing" in said and not written.exists()
    assert called(monkeypatch, capsys, *given["a"], "--assume-spacing", 5, 4, 3)[0] == 0
    assert read_labels(written).spacing_mm == pytest.approx((5, 4, 3))

    status, said = called(monkeypatch, capsys, *given["b"])
    assert status == 2 and "--affine" in said
    assert called(monkeypatch, capsys, *given["b"], "--affine", "sform")[0] == 0
    assert read_labels(written).spacing_mm == pytest.approx((6, 5, 5))


def test_one_label_volume_of_those_wanted_is_one(tmp_path, monkeypatch, capsys, seeds):
    label_volume(tmp_path / "labels" / "case_00000")
    given = ("--out", tmp_path / "out", "--labels", tmp_path / "labels", "--cases", 2)

    status, said = called(monkeypatch, capsys, *given)

    assert status == 0 and "1 label volume found, of the 2 wanted" in said


def test_label_volumes_are_never_written_over(tmp_path, monkeypatch, capsys, seeds):
    labels, link = tmp_path / "labels", tmp_path / "link"
    for name in ("case_00000", "case_00001"):
        label_volume(labels / name)
    before = (labels / "case_00000" / "segmentation.nii.gz").read_bytes()
    link.mkdir()
    (link / "case_00001").symlink_to(labels / "case_00001")
    for out, given, name in (
        (labels, labels, "case_00000"),
        (link, labels, "case_00001"),
        (labels, link, "case_00001"),
    ):
        status, said = called(monkeypatch, capsys, "--out", out, "--labels", given)
        assert status == 2
        assert said == (
            f"phantoms: {out}: holds {name} of --labels, which would be written over; "
            "choose another --out\n"
        )
    assert not seeds and not (link / "case_00000").exists()
    assert (labels / "case_00000" / "segmentation.nii.gz").read_bytes() == before
    assert [path.name for path in (labels / "case_00000").iterdir()] == ["segmentation.nii.gz"]


def test_folders_without_label_volumes_are_refused(tmp_path, monkeypatch, capsys, seeds):
    label_volume(tmp_path / "images" / "case_1", name="imaging.nii.gz")
    for folder in (tmp_path / "images", tmp_path / "absent"):
        status, said = called(monkeypatch, capsys, "--out", tmp_path / "out", "--labels", folder)
        assert status == 2 and said == (
            f"phantoms: {folder}: no label volumes found, wanted NAME/segmentation.nii.gz\n"
        )


def test_the_home_folder_is_meant_where_it_is_typed(tmp_path, monkeypatch, capsys, seeds):
    monkeypatch.setenv("HOME", str(tmp_path))
    label_volume(tmp_path / "labels" / "case_00000")
    assert called(monkeypatch, capsys, "--out=~/out", "--labels=~/labels")[0] == 0
    assert (tmp_path / "out" / "case_00000" / "imaging.nii.gz").exists()


def test_cases_are_written_where_nobody_takes_the_lines_about_them(tmp_path, monkeypatch, seeds):
    class Closed:
        def fails(self, *given):
            raise BrokenPipeError

        write = flush = fileno = fails

    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(sys, "argv", ["phantoms", "--out", str(tmp_path), "--cases", "2"])
    phantoms.main()
    assert len(list(tmp_path.glob("*/segmentation.nii.gz"))) == 2


def test_ctrl_c_ends_it_in_a_line(tmp_path, monkeypatch, capsys):
    def interrupted(seed):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantoms, "make_case", interrupted)
    monkeypatch.setattr(phantoms, "processes_that_pay", lambda cases: 1)
    assert called(monkeypatch, capsys, "--out", tmp_path) == (130, "phantoms: stopped\n")


def test_cases_made_in_processes_are_the_same(tmp_path, monkeypatch, capsys):
    said = {}
    for processes in (1, 2):
        monkeypatch.setattr(phantoms, "processes_that_pay", lambda cases, n=processes: n)
        out = tmp_path / str(processes)
        said[processes] = called(monkeypatch, capsys, "--out", out, "--cases", 3)

    assert said[1] == said[2]
    assert said[1][1].count("phantom_00") == 3
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.nii.gz"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


def test_processes_begin_where_there_are_cores_cases_and_room_for_them(monkeypatch):
    monkeypatch.setattr(phantoms, "cores", lambda: 4)
    monkeypatch.setattr(phantoms, "free_memory", lambda: math.inf)
    processes = [phantoms.processes_that_pay(cases) for cases in (1, 5, 6, 11, 12, 40)]
    assert processes == [1, 1, 2, 3, 4, 4]

    monkeypatch.setattr(phantoms, "free_memory", lambda: 2.5 * 2**30)
    assert phantoms.processes_that_pay(40) == 2
    monkeypatch.setattr(phantoms, "free_memory", lambda: 0)
    assert phantoms.processes_that_pay(40) == 1


def test_a_process_that_is_killed_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    @contextmanager
    def killed(processes):
        def mapped(function, numbers):
            raise BrokenExecutor

        yield mapped

    monkeypatch.setattr(phantoms, "map_of_processes", killed)
    status, said = called(monkeypatch, capsys, "--out", tmp_path, "--cases", 40)
    assert status == 2
    assert said == (
        "phantoms: a process that made cases was killed, for want of memory? 5 cases and fewer "
        "are made one after the other\n"
    )
