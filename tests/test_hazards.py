"""What real files suffer from: each hazard is made, and refused by name with what was found and what to do about it."""

import gzip
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from test_volumes import KITS_AFFINE, save

from minikits.cases import find_cases
from minikits.volumes import check_same_grid, doubts, read_labels, read_volume, write_labels

pytestmark = pytest.mark.filterwarnings("error")  # a warning of numpy's is a line that no user asked for

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (20, 12, 13)).astype(np.int16)
SHEARED = KITS_AFFINE + np.array([[0, 0.3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
MOVED = KITS_AFFINE + np.array([[0, 0, 0, 40], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
ASSUMED = np.array([[0, 0, -0.6, 0], [0, -0.7, 0, 0], [-5, 0, 0, 0], [0, 0, 0, 1]])
FLIPS, BOMB_MEGABYTES = 400, 300
CONVERT = "convert it again from DICOM, or give predict.py --assume-spacing Z Y X"
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
    return dict(zip(("srow_x", "srow_y", "srow_z"), np.broadcast_to(value, (3, 4))))


def truncated(path, share):
    content = save(path, VOXELS).read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def written(path, content):
    path.write_bytes(content)
    return path


def longer(path):
    return written(path, save(path, VOXELS).read_bytes() + bytes(2_000_000))


def rgb(path):
    return save(path, np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def not_a_number(path):
    return save(path, np.where(VOXELS > 990, np.inf, VOXELS).astype(np.float32))


def both(*frames, **header):
    return lambda path: framed(path, *frames, **header)


def by_sform(**header):
    return both(KITS_AFFINE, None, (1, 0), **header)


def saved(*array_and_affine):
    return lambda path: save(path, *array_and_affine)


HAZARDS = {  # hazard: (how the file is made, the message after its name)
    "sform and qform differ": (both(KITS_AFFINE, MOVED),
                               r"sform \[\[.* 7\.0\].* and qform \[\[.* 47\.0\].* 40 mm apart; predict.py --affine"),
    "sform NaN, qform whole": (both(KITS_AFFINE, KITS_AFFINE, **row(np.nan)), "nan mm apart; predict.py --affine"),
    "pixdim differs": (both(KITS_AFFINE, KITS_AFFINE, (1, 0), pixdim=(1, 3, 0.8, 0.82, 0, 0, 0, 0)),
                       r"pixdim \[3.* 0\.8 .*0\.82\] and sform \[3\. .*0\.8.* 0\.8.*\] mm, wanted the same; --affine"),
    "pixdim NaN": (by_sform(pixdim=(1, np.nan, 1, 1, 0, 0, 0, 0)), "pixdim .*nan"),
    "affine zero": (by_sform(**row(0)), f"not invertible.* {CONVERT}"),
    "affine NaN": (by_sform(**row(np.nan)), f"not invertible.* {CONVERT}"),
    "affine singular": (by_sform(**row([1, 2, 3, 0])), f"not inv.* {CONVERT}"),
    "no code": (both(KITS_AFFINE, KITS_AFFINE, (0, 0)), f"neither sform nor qform is set.* {CONVERT}"),
    "code that is none": (by_sform(sform_code=7), f"neither sform nor qform is.*{CONVERT}"),
    "qform damaged": (both(None, KITS_AFFINE, (0, 1), quatern_b=7), f"header damaged.* {CONVERT}"),
    "qform NaN": (both(None, KITS_AFFINE, (0, 1), quatern_b=np.nan), f"not invertible.* {CONVERT}"),
    "qform infinite": (both(None, KITS_AFFINE, (0, 1), pixdim=(1, np.inf, 1, 1, 0, 0, 0, 0)), CONVERT),
    "beyond float32": (by_sform(kind=NIFTI_2, **row(1e300)), "not invertible"),
    "voxels of nothing": (both(KITS_AFFINE * 1e-38, None, (1, 0), NIFTI_2), "not invertible"),
    "spacing in metres": (saved(VOXELS, np.diag([8e-4, 8e-4, 3e-3, 1])), r"not in mm: voxels of \[0\.0008.* --assume"),
    "truncated": (lambda p: truncated(p, 0.5), "damaged.*download it again"),
    "truncated, plain": (lambda p: truncated(p.with_suffix(""), 0.5), r"ends after \d+ of 6240 bytes.*download it"),
    "no bytes": (lambda p: written(p, b""), r"empty \(0 bytes\).*download it again"),
    "web page": (lambda p: written(p, b"<!DOCTYPE html><html>no</html>"), "no NIfTI file.*was a web page"),
    "pointer": (lambda p: written(p, b"version https://git-lfs.github.com/spec/v1\n"), "no NIfTI file.*or a pointer"),
    "header that lies": (by_sform(dim=(3, 30000, 30000, 30000, 1, 1, 1, 1)),
                         r"shape \(30000, 30000, 30000\) found, more than 2000000000 voxels; --max-voxels N"),
    "header too small": (lambda p: longer(p.with_suffix("")), r"goes on after the 6240 bytes.*is the header damaged"),
    "axis too long": (by_sform(kind=NIFTI_2, dim=(3, 1, 1, 40000, 1, 1, 1, 1)),
                      r"shape \(1, 1, 40000\) found, wanted three axes"),
    "four axes": (saved(np.zeros((4, 5, 6, 2), np.int16)), r"shape \(4, 5, 6, 2\).*give one volume a file"),
    "two axes": (saved(np.zeros((4, 5), np.int16)), r"shape \(4, 5\) found, wanted three axes"),
    "infinity": (not_a_number, r"\d+ voxels are NaN or infinite, wanted finite values; export the scan again"),
    "complex": (saved(np.zeros((4, 5, 6), np.complex64)), "complex64 found, wanted real.*export it as int16"),
    "RGB": (rgb, "found, wanted real numbers; export it as int16"),
    "no file": (lambda p: p, "no such file"),
    "folder": (lambda p: p.mkdir() or p, "a folder or device; wanted a NIfTI file"),
    "device": (lambda p: os.mkfifo(p) or p, "a folder or device; wanted a NIfTI file"),
    "dangling link": (lambda p: p.symlink_to(p.with_name("gone")) or p, "no such file"),
    "offset": (by_sform(vox_offset=2e9), "voxels begin at byte 2000"),
}


@pytest.mark.parametrize("hazard", HAZARDS)
def test_hazards_are_refused_by_name(tmp_path, hazard):
    make, message = HAZARDS[hazard]
    path = make(tmp_path / "case_00042.nii.gz")
    for read in (read_volume, read_labels):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
            read(path)
        assert str(refusal.value).startswith(f"{path}: ") and "\n" not in str(refusal.value)


@pytest.mark.parametrize("values, message", [
    ([0, 1, 3], r"label values 3 found, wanted only 0 .*, 1 .* and 2 .*is this the segmentation file\?"),
    ([0, 1.002, 2], "label values 1.002 found"), ([0, 255], "values 255 found"), ([-1, 0], "values -1 found")])
def test_other_label_values_are_refused(tmp_path, values, message):
    values = np.resize(np.array(values, np.float32), (4, 5, 6))
    for dtype in (np.float32,) if 1.002 in values[0].round(3) else (np.float32, np.int16):
        path = save(tmp_path / "case_00042.nii.gz", values.astype(dtype))
        with pytest.raises(ValueError, match=message) as refusal:
            read_labels(path)
        assert str(refusal.value).startswith(f"{path}: ")


def test_image_and_labels_that_differ_are_refused_with_both_names(tmp_path):
    image = read_volume(save(tmp_path / "image.nii", VOXELS))
    for affine, voxels, what in ((KITS_AFFINE, VOXELS[1:], "shape"), (MOVED, VOXELS, "40 mm"), (SHEARED, VOXELS, "mm")):
        other = read_volume(save(tmp_path / "labels.nii", voxels, affine))
        with pytest.raises(ValueError, match=f"image.nii: .*{what}.*labels.nii.*wanted the same"):
            check_same_grid(image, other)


@pytest.mark.parametrize("sform, qform, codes, options, affine", [
    (KITS_AFFINE, MOVED, (1, 1), {"affine": "sform"}, KITS_AFFINE),
    (KITS_AFFINE, MOVED, (1, 1), {"affine": "qform"}, MOVED),
    (SHEARED, MOVED, (1, 1), {"affine": "sform"}, SHEARED),
    (np.diag([0, 0, 0, 1]), MOVED, (1, 1), {"affine": "qform"}, MOVED),
    (KITS_AFFINE, KITS_AFFINE, (0, 0), {"assume_spacing": (5, 0.7, 0.6)}, ASSUMED),
    (np.diag([0, 0, 0, 1]), None, (1, 0), {"assume_spacing": (5, 0.7, 0.6)}, ASSUMED),
])
def test_a_frame_that_was_chosen_is_that_of_the_mask_too(tmp_path, sform, qform, codes, options, affine):
    path = framed(tmp_path / "scan.nii", sform, qform, codes)
    with pytest.raises(ValueError, match=r"--affine chooses one|--assume-spacing"):
        read_volume(path)
    volume = read_volume(path, **options)
    assert np.allclose(volume.affine, affine) and np.array_equal(volume.voxels, VOXELS)
    write_labels(tmp_path / "mask.nii", VOXELS % 3, volume)
    mask = read_labels(tmp_path / "mask.nii")
    check_same_grid(volume, mask)
    assert np.array_equal(mask.voxels, VOXELS % 3) and mask.spacing_mm == pytest.approx(volume.spacing_mm)


def test_choices_that_cannot_be_made(tmp_path):
    one, two = framed(tmp_path / "one.nii", KITS_AFFINE, None, (1, 0)), framed(tmp_path / "two.nii", KITS_AFFINE, MOVED)
    for path, options, message in (
            (one, {"affine": "qform"}, "qform is not set"), (two, {"max_voxels": 3119}, "more than 3119 voxels"),
            *((two, {"assume_spacing": wrong}, "not invertible") for wrong in ((3, 0, 1), (-3, 1, 1), (3, np.nan, 1)))):
        with pytest.raises(ValueError, match=message) as refusal:
            read_volume(path, **options)
        assert str(refusal.value).startswith(f"{path}: ")
    assert read_volume(two, affine="sform", max_voxels=3120).voxels.size == 3120


@pytest.mark.parametrize("shift, ok", [(0, True), (1e-4, True), (0.01, False)])
def test_frames_that_differ_by_rounding_are_one(tmp_path, shift, ok):
    path = framed(tmp_path / "scan.nii", KITS_AFFINE, KITS_AFFINE)
    moved = framed(tmp_path / "moved.nii", KITS_AFFINE, np.where(KITS_AFFINE == 7, 7 + shift, KITS_AFFINE))
    assert read_volume(path).spacing_mm == pytest.approx((3, 0.8, 0.8))
    if ok:
        check_same_grid(read_volume(path), read_volume(moved))
    else:
        with pytest.raises(ValueError, match="apart"):
            read_volume(moved)


@pytest.mark.parametrize("kind, fields", [
    (nib.Nifti1Image, dict(sform_code=7, vox_offset=352.008)), (NIFTI_2, dict(sform_code=(1 << 16) + 1)),
    (NIFTI_2, dict(sform_code=-(1 << 31), **{"srow_x": np.inf}))])
def test_a_code_that_is_none_is_none_in_the_mask_too(tmp_path, kind, fields):
    path = framed(tmp_path / "scan.nii", MOVED, KITS_AFFINE, (1, 1), kind, **fields)
    volume = read_volume(path)
    write_labels(tmp_path / "mask.nii", VOXELS % 3, volume)
    check_same_grid(volume, read_labels(tmp_path / "mask.nii"))
    assert np.allclose(volume.affine, KITS_AFFINE, atol=1e-6)


def test_doubts(tmp_path):
    one = read_volume(save(tmp_path / "one.nii", VOXELS))
    assert one.voxels.min() < -200 and not doubts(one)
    thin = read_volume(save(tmp_path / "thin.nii", VOXELS[:3]))
    shifted = read_volume(save(tmp_path / "shifted.nii", VOXELS + 1024))
    assert doubts(thin) == [f"{thin.path}: covers 9 mm along Z, wanted 40 or more; is this the whole scan?"]
    (line,) = doubts(shifted)
    assert line.startswith(f"{shifted.path}: values from 2") and line.endswith("is this CT in HU?")
    assert len(doubts(read_volume(save(tmp_path / "both.nii", VOXELS[:1] * 0)))) == 2


@pytest.mark.parametrize("read, values", [(read_volume, VOXELS), (read_labels, (VOXELS % 3).astype(np.uint8))])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, read, values):
    path = save(tmp_path / "scan.nii.gz", values)
    content, wanted, draw, refused = path.read_bytes(), read(path), np.random.default_rng(1), 0
    for place in draw.permutation(8 * len(content))[:FLIPS]:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = read(path)
        except (ValueError, OSError):
            refused += 1
            continue
        assert np.array_equal(found.voxels, wanted.voxels) and np.array_equal(found.affine, wanted.affine), place
    assert refused > FLIPS - 20  # the rest is in fields of gzip's header that mean nothing here


def bomb(path, header, zeros):
    """A gzip file of a header and gigabytes of zeros, in the parts that its format allows."""
    part = gzip.compress(bytes(1 << 26), 9)
    path.write_bytes(gzip.compress(header) + part * (zeros >> 26))
    return path


@pytest.mark.parametrize("shape, offset, message", [
    ((30000, 30000, 30000), 352, "more than 2000000000 voxels"), ((20, 12, 13), 352, "goes on after"),
    ((1, 1, 1), 2e9, "voxels begin at byte"), ((1000, 1000, 1000), 352, "more than 100000000 voxels")])
def test_a_bomb_takes_no_memory(tmp_path, shape, offset, message):
    header = framed(tmp_path / "header.nii", KITS_AFFINE, None, (1, 0), dim=(3, *shape, 1, 1, 1, 1), vox_offset=offset)
    path = bomb(tmp_path / "bomb.nii.gz", header.read_bytes()[:352], 2 << 30)
    assert path.stat().st_size < 3e6
    limit = "2_000_000_000" if max(shape) != 1000 else "100_000_000"
    child = ("import sys; from minikits.volumes import read_volume\n"
             f"try: read_volume(sys.argv[1], max_voxels={limit})\n"
             "except ValueError as error: print(error)\n"
             "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])")
    done = subprocess.run([sys.executable, "-c", child, path], capture_output=True, text=True, cwd=ROOT, timeout=60)
    refusal, peak = done.stdout.splitlines()
    assert refusal.startswith(f"{path}: ") and message in refusal and int(peak) / 1024 < BOMB_MEGABYTES


def test_real_labels_with_a_qform_lie_on_the_grid_of_their_like_with_an_sform(tmp_path, kits19):
    for id in ("case_00015", "case_00023", "case_00144"):
        real = read_labels(kits19 / id / "segmentation.nii.gz")
        assert real.header.get_data_dtype() == np.uint16 and real.header["qform_code"] > 0 == real.header["sform_code"]
        stored = np.asarray(nib.load(real.path).dataobj)
        check_same_grid(real, read_labels(save(tmp_path / "same.nii.gz", stored.astype(np.uint8), real.affine)))


@pytest.mark.parametrize("name", ["with a space.nii.gz", "größe 肾.nii.gz", "-rf.nii.gz", "--in.nii", "a.b.c.nii.gz",
                                  "100%.nii", "it's [one] {x}.nii.gz", "*.nii", "quo\"te.nii.gz", "tab\tname.nii"])
def test_names_of_all_sorts(tmp_path, name, monkeypatch):
    folder = tmp_path / "-a folder [ü] *"
    folder.mkdir()
    save(tmp_path / "scan.nii.gz" if name.endswith("gz") else tmp_path / "scan.nii", VOXELS).rename(folder / name)
    monkeypatch.chdir(folder)
    linked = tmp_path / "link"
    linked.symlink_to(folder)
    for path in (folder / name, linked / name, folder / ".." / folder.name / name, name):
        volume = read_volume(path)
        assert np.array_equal(volume.voxels, VOXELS)
    write_labels(folder / "out" / name, VOXELS % 3, volume)
    assert [path.name for path in (folder / "out").iterdir()] == [name] and read_labels(folder / "out" / name)
    for source in (folder, linked, folder / ".." / folder.name, folder / name):
        (case,) = find_cases(source)
        assert case.id == name.removesuffix(".gz").removesuffix(".nii") and case.image.name == name
