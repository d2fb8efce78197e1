"""Cases prepared once: a cache that is never stale and never half."""

import builtins
import dataclasses
import errno
import functools
import gzip
import json
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

import minikits.cases
import minikits.prepared
from minikits.cases import BYTES_OF_A_PROCESS, BYTES_THAT_PAY, processes_that_pay
from minikits.files import place_beside
from minikits.nifti import read_labels, read_volume, write_image
from minikits.paper import PAPER
from minikits.prepared import check_resampled_size
from minikits.preprocessing import prepare_image, prepare_labels

pytestmark = pytest.mark.usefixtures("no_scan_is_too_small")

prepare = functools.partial(minikits.cases.prepare, say=print)


SHAPE, SPACING = (6, 20, 18), (8.0, 6.0, 6.0)  # of small cases, which are not resampled


def small_case(folder, id="a", *, seed=0, suffix=".nii.gz", spacing=SPACING):
    """A case of random HU, a kidney of 40 voxels and a tumor of 10; returns image and labels."""
    random = np.random.default_rng(seed)
    image = random.integers(-150, 150, SHAPE, dtype=np.int16)
    image[:, :5] -= 800  # air
    image[:, :, :2] += 350  # bone
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels.flat[500:540] = 1
    labels.flat[600:610] = 2
    write_image(folder / id / f"imaging{suffix}", image, spacing)
    write_image(folder / id / f"segmentation{suffix}", labels, spacing)
    return image, labels


@pytest.fixture
def data(tmp_path):
    """A folder of three small cases."""
    for seed, id in enumerate("abc"):
        small_case(tmp_path / "data", id, seed=seed)
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def prepared_again(capsys, *arguments, **options):
    """The ids that a call of `prepare` prepares."""
    capsys.readouterr()
    prepare(*arguments, **options)
    return re.findall(r"^prepared (\S+)", capsys.readouterr().out, flags=re.MULTILINE)


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def folder_of(cache, id):
    (place,) = cache.glob(f"{id}-*")
    return place


def test_prepared_once_and_equal_to_the_resampled_case(phantoms, tmp_path, capsys):
    first = prepare(phantoms, tmp_path, TINY)
    assert capsys.readouterr().out.count("prepared phantom_") == 6

    again = prepare(phantoms, tmp_path, TINY)
    assert not capsys.readouterr().out

    for one, other in zip(first, again):
        assert one.id == other.id
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.labels, other.labels)
    case = first[2]
    volume = read_volume(phantoms / case.id / "imaging.nii.gz")
    labels = read_labels(phantoms / case.id / "segmentation.nii.gz")
    assert np.array_equal(case.image.numpy(), prepare_image(volume, TINY).astype(np.float16))
    assert np.array_equal(case.labels.numpy(), prepare_labels(labels, TINY))
    for value, voxels in enumerate(case.foreground, 1):
        assert np.array_equal(np.flatnonzero(case.labels.numpy() == value), voxels)


def test_a_changed_source_or_recipe_is_prepared_again(phantoms, tmp_path, capsys):
    data, cache = tmp_path / "data", tmp_path / "cache"
    shutil.copytree(phantoms, data)
    longer = dataclasses.replace(TINY, epochs=7)  # no number of the preparation
    wider = dataclasses.replace(TINY, window_hu=(-100.0, 300.0))
    prepare(data, cache, TINY)

    assert prepared_again(capsys, data, cache, longer) == []
    assert len(prepared_again(capsys, data, cache, wider)) == 6

    os.utime(data / "phantom_3" / "segmentation.nii.gz", (1, 1))
    assert prepared_again(capsys, data, cache, TINY) == ["phantom_3"]


def test_a_preparation_that_fails_leaves_no_half_case(phantoms, tmp_path, monkeypatch):
    real, saved = np.save, []

    def save(path, array):
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        saved.append(path)
        real(path, array)

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(OSError, match="No space"):
        prepare(phantoms, tmp_path, TINY)
    assert not list(tmp_path.iterdir())

    monkeypatch.undo()
    assert len(prepare(phantoms, tmp_path, TINY)) == 6
    kept = sorted(path.name for path in folder_of(tmp_path, "phantom_0").iterdir())
    assert kept == ["entry.json", "image.npy", "kidney.npy", "labels.npy", "tumor.npy"]


def test_every_bad_case_is_named_and_the_good_ones_are_kept(phantoms, tmp_path, capsys):
    data, cache = tmp_path / "data", tmp_path / "cache"
    shutil.copytree(phantoms, data)
    short = data / "phantom_2" / "imaging.nii.gz"
    short.write_bytes(short.read_bytes()[:500])
    odd = data / "phantom_4" / "segmentation.nii.gz"
    shutil.copy(data / "phantom_4" / "imaging.nii.gz", odd)
    doubtful = data / "phantom_5" / "imaging.nii.gz"
    shutil.copy(data / "phantom_5" / "segmentation.nii.gz", doubtful)

    with pytest.raises(ValueError) as refusal:
        prepare(data, cache, TINY)

    first, *lines = str(refusal.value).splitlines()
    assert first == f"{data}: 2 of 6 cases cannot be used:"
    assert len(lines) == 2
    assert lines[0].startswith(f"  {short}: damaged")
    assert lines[1].startswith(f"  {odd}: label values")
    printed = capsys.readouterr().out
    assert printed.count("prepared phantom_") == 4
    assert len(list(cache.iterdir())) == 4
    assert printed.count("warning: ") == 1
    assert printed.count("phantom_5/imaging.nii.gz: values from 0 to ") == 1

    shutil.copy(phantoms / "phantom_2" / "imaging.nii.gz", short)
    shutil.copy(phantoms / "phantom_4" / "segmentation.nii.gz", odd)
    assert len(prepare(data, cache, TINY)) == 6
    assert capsys.readouterr().out.count("prepared phantom_") == 2


def test_image_and_labels_that_differ_are_refused_by_name(phantoms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    shutil.copy(data / "phantom_1/imaging.nii.gz", data / "phantom_0/segmentation.nii.gz")

    with pytest.raises(ValueError, match=r"phantom_0/segmentation\.nii\.gz: label values"):
        prepare(data, tmp_path / "cache", TINY)


def test_each_case_has_a_checksum_and_it_is_the_same_again(phantoms, tmp_path):
    first = prepare(phantoms, tmp_path / "one", TINY)
    again = prepare(phantoms, tmp_path / "two", TINY)
    kept = prepare(phantoms, tmp_path / "two", TINY)

    sums = [case.checksum for case in first]
    assert sums == [case.checksum for case in again]
    assert sums == [case.checksum for case in kept]
    assert len(set(sums)) == 6
    for checksum in sums:
        assert re.fullmatch("[0-9a-f]{16}", checksum)


def test_the_checksum_is_of_the_voxels_not_of_the_file(tmp_path):
    small_case(tmp_path / "packed")
    small_case(tmp_path / "plain", suffix=".nii")

    (packed,) = prepare(tmp_path / "packed", tmp_path / "cache", TINY)
    (plain,) = prepare(tmp_path / "plain", tmp_path / "cache", TINY)

    assert packed.checksum == plain.checksum


def test_the_checksum_is_of_the_voxels_not_of_the_processors_rounding(tmp_path, monkeypatch):
    real = minikits.prepared.prepare_image
    small_case(tmp_path / "data")
    (case,) = prepare(tmp_path / "data", tmp_path / "cache", TINY)

    monkeypatch.setattr(minikits.prepared, "prepare_image", lambda *given: real(*given) + 0.01)
    (rounded,) = prepare(tmp_path / "data", tmp_path / "another", TINY)

    assert rounded.checksum == case.checksum
    assert not torch.equal(rounded.image, case.image)


@pytest.mark.parametrize(
    "change", ["first voxel", "last voxel", "first label", "last label", "spacing"]
)
def test_the_checksum_is_another_where_image_or_labels_are(tmp_path, change):
    image, labels = small_case(tmp_path / "data")
    (before,) = prepare(tmp_path / "data", tmp_path / "cache", TINY)

    spacing = SPACING
    if change == "first voxel":
        image.flat[0] += 1
    elif change == "last voxel":
        image.flat[-1] += 1
    elif change == "first label":
        labels.flat[0] += 1
    elif change == "last label":
        labels.flat[-1] += 1
    else:
        spacing = (8.0, 6.0, 6.001)
    write_image(tmp_path / "data" / "a" / "imaging.nii.gz", image, spacing)
    write_image(tmp_path / "data" / "a" / "segmentation.nii.gz", labels, spacing)
    (after,) = prepare(tmp_path / "data", tmp_path / "cache", TINY)

    assert before.checksum != after.checksum


def test_each_case_that_is_prepared_has_a_line_with_its_shape_and_what_is_left(tmp_path, capsys):
    for id in "ab":
        small_case(tmp_path / "data", id, spacing=(16.0, 6.0, 3.0))

    prepare(tmp_path / "data", tmp_path / "cache", TINY)

    said = re.sub("[0-9]+ s left", "N s left", capsys.readouterr().out)
    assert said == "prepared a 12x20x9 (1 of 2, N s left)\nprepared b 12x20x9 (2 of 2, N s left)\n"


def test_preparing_stops_between_cases_when_told(phantoms, tmp_path, capsys):
    asked = []

    def stop():
        asked.append(True)
        return len(asked) > 6 + 2  # six are looked for, then two are prepared

    assert prepare(phantoms, tmp_path, TINY, stop=stop) is None
    assert capsys.readouterr().out.count("prepared ") == 2
    assert len(list(tmp_path.iterdir())) == 2

    assert len(prepare(phantoms, tmp_path, TINY, stop=lambda: False)) == 6
    assert prepare(phantoms, tmp_path, TINY, stop=lambda: True) is None


# In several processes.


def without_seconds(lines):
    return [re.sub(r", \d+ s left", "", line) for line in lines]


def test_in_two_processes_the_same_is_prepared_said_and_refused(data, tmp_path, monkeypatch):
    small_case(tmp_path / "data", "bad")
    (tmp_path / "data" / "bad" / "imaging.nii.gz").write_bytes(b"no scan")
    monkeypatch.setattr("minikits.cases.BYTES_THAT_PAY", 1)
    monkeypatch.setattr("minikits.cases.BYTES_OF_A_PROCESS", 1)
    monkeypatch.setattr("minikits.doubts.LEAST_ACROSS_MM", 200)  # as the other processes have it

    told, kept, refused = [], [], []
    for jobs in (1, 2):
        cache, lines = tmp_path / f"cache{jobs}", []
        with pytest.raises(ValueError) as refusal:
            minikits.cases.prepare(data, cache, TINY, jobs=jobs, say=lines.append)
        told.append(without_seconds(lines))
        refused.append(str(refusal.value))
        files = sorted(path for path in cache.rglob("*") if path.is_file())
        kept.append({str(path.relative_to(cache)): path.read_bytes() for path in files})

    assert [line.split()[1] for line in told[0] if line.startswith("prepared")] == ["a", "b", "c"]
    assert sum(line.startswith("warning") for line in told[0]) == 3
    assert "1 of 4 cases cannot be used" in refused[0]
    assert len(kept[0]) == 3 * 5  # of each case four arrays and what it is
    assert (told[1], refused[1], kept[1]) == (told[0], refused[0], kept[0])


def waiting_of(*sizes):
    """Entries of scans of so many bytes."""
    return [SimpleNamespace(files=[[size, 0, ""], [10, 0, ""]]) for size in sizes]


def test_processes_are_as_many_as_work_memory_and_cases_want():
    scan = BYTES_THAT_PAY
    much = 100 * BYTES_OF_A_PROCESS

    assert processes_that_pay(waiting_of(*[scan // 50] * 40), memory=much) == 1  # the demo's
    assert processes_that_pay(waiting_of(*[scan] * 5), memory=much) == 5
    assert processes_that_pay(waiting_of(*[scan] * 5), memory=3.5 * BYTES_OF_A_PROCESS) == 3
    assert processes_that_pay(waiting_of(*[scan] * 5), memory=0) == 1
    assert processes_that_pay(waiting_of(*[9 * scan] * 5), memory=much) == 5
    assert processes_that_pay([], memory=much) == 1
    assert processes_that_pay(waiting_of(*[scan] * 5), memory=math.inf) == 2  # a guess


class Processes:
    """In place of `map_of_processes`: notes how many were asked for; the first call ends them."""

    def __init__(self):
        self.asked = []

    @contextmanager
    def __call__(self, jobs):
        self.asked.append(jobs)
        yield self.mapped

    def mapped(self, *_):
        raise BrokenExecutor
        yield


@pytest.mark.parametrize(("jobs", "asked"), [(1, 1), (2, 2), (8, 3)])
def test_a_killed_process_ends_the_preparation_with_a_line(
    data, tmp_path, monkeypatch, jobs, asked
):
    processes = Processes()
    monkeypatch.setattr("minikits.cases.map_of_processes", processes)
    monkeypatch.setattr("minikits.cases.BYTES_THAT_PAY", 1)

    with pytest.raises(ValueError, match=r"was killed, for want of memory.*--jobs 1"):
        minikits.cases.prepare(data, tmp_path / "cache", TINY, jobs=jobs)

    assert processes.asked == [asked]


def test_a_signal_that_ends_the_processes_too_is_no_error(data, tmp_path, monkeypatch):
    monkeypatch.setattr("minikits.cases.map_of_processes", Processes())
    answers = iter([False] * (3 + 1) + [True])  # three are looked for, one is begun

    stopped = minikits.cases.prepare(data, tmp_path / "cache", TINY, stop=lambda: next(answers))

    assert stopped is None


# What a case is known by, and what it holds.


def test_a_prepared_case_holds_half_floats_bytes_and_the_places_of_each_structure(tmp_path):
    image, labels = small_case(tmp_path / "data")

    (case,) = prepare(tmp_path / "data", tmp_path / "cache", TINY)

    assert case.image.dtype == torch.float16
    assert case.image.shape == SHAPE
    expected = (np.clip(image, -79, 304) - 101) / 76.9
    assert np.abs(case.image.numpy() - expected).max() < 2e-3

    assert case.labels.dtype == torch.uint8
    assert case.labels.shape == SHAPE
    assert np.array_equal(case.labels.numpy(), labels)

    kidney, tumor = case.foreground
    assert kidney.dtype == tumor.dtype == np.int32
    assert kidney.tolist() == list(range(500, 540))
    assert tumor.tolist() == list(range(600, 610))


CHANGES = [
    ("spacing_mm", (8.0, 6.0, 6.5)),
    ("spacing_mm", (9.0, 6.0, 6.0)),
    ("window_hu", (-80.0, 304.0)),
    ("window_hu", (-79.0, 305.0)),
    ("mean_hu", 101.5),
    ("sd_hu", 77.0),
]


@pytest.mark.parametrize(("field", "value"), CHANGES)
def test_each_number_of_the_preparation_makes_another_case(data, cache, capsys, field, value):
    first = prepare(data, cache, TINY)
    other = dataclasses.replace(TINY, **{field: value})

    assert prepared_again(capsys, data, cache, other) == ["a", "b", "c"]
    again = prepare(data, cache, other)

    for one, two in zip(first, again):
        assert one.checksum != two.checksum
    assert prepared_again(capsys, data, cache, TINY) == []  # both are kept


@pytest.mark.parametrize("other", [{"assume_spacing": (8.0, 6.0, 6.5)}, {"affine": "sform"}])
def test_each_option_of_reading_makes_another_case(data, cache, capsys, other):
    prepare(data, cache, TINY)

    assert prepared_again(capsys, data, cache, TINY, **other) == ["a", "b", "c"]
    assert prepared_again(capsys, data, cache, TINY, **other) == []


def test_the_options_of_reading_reach_image_and_labels(data, cache):
    for name in ("imaging.nii.gz", "segmentation.nii.gz"):
        path = data / "a" / name
        volume = nib.load(path)
        volume.set_sform(None, 0)
        volume.set_qform(None, 0)
        nib.save(nib.Nifti1Image(np.asarray(volume.dataobj), None, volume.header), path)

    with pytest.raises(ValueError, match=r"1 of 3 cases cannot be used:\n  .*frame"):
        prepare(data, cache, TINY)

    case, _, _ = prepare(data, cache, TINY, assume_spacing=(16.0, 6.0, 3.0))
    # twice, once and half as many voxels as the file has
    assert case.image.shape == (12, 20, 9)
    assert case.labels.shape == (12, 20, 9)

    with pytest.raises(ValueError, match="qform"):
        prepare(data, cache, TINY, affine="qform")


def test_whole_numbers_are_the_same_as_floats(data, cache, capsys):
    whole = dataclasses.replace(TINY, spacing_mm=(8, 6, 6), window_hu=(-79, 304), mean_hu=101)
    prepare(data, cache, TINY)
    assert prepared_again(capsys, data, cache, whole) == []

    prepare(data, cache, TINY, assume_spacing=(8.0, 6.0, 6.0))
    assert prepared_again(capsys, data, cache, TINY, assume_spacing=[8, 6, 6]) == []


def test_data_that_were_moved_with_their_times_are_not_prepared_anew(data, cache, capsys, tmp_path):
    prepare(data, cache, TINY)

    data.rename(tmp_path / "moved")
    assert prepared_again(capsys, tmp_path / "moved", cache, TINY) == []

    shutil.copytree(tmp_path / "moved", tmp_path / "copied")  # keeps the times
    assert prepared_again(capsys, tmp_path / "copied", cache, TINY) == []


@pytest.mark.parametrize("name", ["imaging", "segmentation"])
def test_a_file_with_another_time_is_prepared_again(data, cache, capsys, name):
    prepare(data, cache, TINY)

    path = data / "b" / f"{name}.nii.gz"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1000))

    assert prepared_again(capsys, data, cache, TINY) == ["b"]


@pytest.mark.parametrize("name", ["imaging", "segmentation"])
def test_a_file_replaced_by_one_of_the_same_size_and_time_is_prepared_again(
    tmp_path, cache, capsys, name
):
    data = tmp_path / "data"
    small_case(data, suffix=".nii")
    prepare(data, cache, TINY)

    path = data / "a" / f"{name}.nii"
    before = path.stat()
    flip_last_bit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert path.stat().st_size == before.st_size
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert prepared_again(capsys, data, cache, TINY) == ["a"]


def test_a_change_anywhere_in_a_gz_of_the_same_size_and_time_is_prepared_again(data, cache, capsys):
    path = data / "a" / "imaging.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)

    def write():
        """Without compression, so that other content has the same size."""
        path.write_bytes(gzip.compress(content, compresslevel=0, mtime=0))
        os.utime(path, ns=times)

    write()
    prepare(data, cache, TINY)
    size = path.stat().st_size

    content[-2500] ^= 1  # far from both ends of what is packed
    write()

    assert path.stat().st_size == size
    assert prepared_again(capsys, data, cache, TINY) == ["a"]


def test_a_file_of_another_size_is_prepared_again(tmp_path, cache, capsys):
    data = tmp_path / "data"
    small_case(data, suffix=".nii")
    path = data / "a" / "imaging.nii"
    write_image(path, np.zeros(SHAPE, np.int16), SPACING)
    before = path.stat()
    prepare(data, cache, TINY)

    with open(path, "ab") as file:
        file.write(bytes(16))  # padding, which readers take; its end is the same
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert prepared_again(capsys, data, cache, TINY) == ["a"]


def test_two_cases_with_equal_files_are_two(tmp_path, cache):
    ids = ["a" * 50 + "1", "a" * 50 + "2"]
    small_case(tmp_path / "data", ids[0])
    shutil.copytree(tmp_path / "data" / ids[0], tmp_path / "data" / ids[1])

    cases = prepare(tmp_path / "data", cache, TINY)

    assert [case.id for case in cases] == ids
    assert len(list(cache.iterdir())) == 2


def test_another_format_of_the_cache_makes_other_cases(data, cache, capsys, monkeypatch):
    prepare(data, cache, TINY)

    monkeypatch.setattr(minikits.prepared, "CACHE_FORMAT", minikits.prepared.CACHE_FORMAT + 1)

    assert prepared_again(capsys, data, cache, TINY) == ["a", "b", "c"]


# What is kept, and trusted.


def sevens(place):
    labels = np.load(place / "labels.npy")
    np.save(place / "labels.npy", np.full_like(labels, 7))


def one_bit(name):
    def damage(place):
        flip_last_bit(place / name)

    return damage


def cut_short(place):
    content = (place / "image.npy").read_bytes()
    (place / "image.npy").write_bytes(content[:-1])


def another_cases_image(place):
    shutil.copy(folder_of(place.parent, "b") / "image.npy", place / "image.npy")


def no_labels(place):
    (place / "labels.npy").unlink()


def no_description(place):
    (place / "entry.json").unlink()


def half_a_description(place):
    text = (place / "entry.json").read_text()
    (place / "entry.json").write_text(text[: len(text) // 2])


def another_description(place):
    (place / "entry.json").write_text(json.dumps([]))


def nothing_inside(place):
    shutil.rmtree(place)
    place.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        sevens,
        one_bit("image.npy"),
        one_bit("labels.npy"),
        one_bit("kidney.npy"),
        one_bit("tumor.npy"),
        cut_short,
        another_cases_image,
        no_labels,
        no_description,
        half_a_description,
        another_description,
        nothing_inside,
    ],
)
def test_a_case_that_is_not_as_it_was_written_is_prepared_again_with_a_word(
    data, cache, capsys, damage
):
    before = prepare(data, cache, TINY)[0]
    image, labels = before.image.clone(), before.labels.clone()
    place = folder_of(cache, "a")
    capsys.readouterr()
    damage(place)

    after = prepare(data, cache, TINY)[0]

    warning, prepared = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: ") and warning.endswith("; a is prepared again")
    assert str(place) in warning
    assert prepared.startswith("prepared a ")
    assert torch.equal(after.image, image)
    assert torch.equal(after.labels, labels)
    for places_before, places_after in zip(before.foreground, after.foreground):
        assert np.array_equal(places_before, places_after)
    assert before.checksum == after.checksum


def test_the_sum_of_a_large_file_is_of_all_its_blocks(tmp_path, cache):
    random = np.random.default_rng(0)  # 1.3 MB as it is kept, its first voxels in the first block
    for name, values in (("imaging", 1000), ("segmentation", 2)):
        voxels = random.integers(0, values, (40, 128, 128), dtype=np.int16)
        write_image(tmp_path / "data" / "a" / f"{name}.nii.gz", voxels, SPACING)
    prepare(tmp_path / "data", cache, TINY)
    path = folder_of(cache, "a") / "image.npy"
    content = bytearray(path.read_bytes())
    assert len(content) > 1 << 20

    whole = bytes(content)
    content[200] ^= 1
    path.write_bytes(content)
    prepare(tmp_path / "data", cache, TINY)

    assert path.read_bytes() == whole


def test_a_damaged_case_that_cannot_be_removed_is_named(data, cache, monkeypatch):
    prepare(data, cache, TINY)
    sevens(folder_of(cache, "a"))
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)

    wanted = r"a-[0-9a-f]{16}: is damaged and cannot be removed; remove it"
    with pytest.raises(OSError, match=wanted):
        prepare(data, cache, TINY)


def test_cases_whose_files_were_replaced_are_listed_and_those_of_another_recipe_are_not(
    data, cache, capsys
):
    other = dataclasses.replace(TINY, sd_hu=70.0)
    prepare(data, cache, TINY)
    prepare(data, cache, other)
    assert "may be removed" not in capsys.readouterr().out
    old = [place.name for place in cache.glob("b-*")]
    small_case(data, "b", seed=9)

    prepare(data, cache, TINY)

    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"{cache}: 2 folders (0.0 GB) are of files that were replaced")
    assert said.endswith(f"may be removed: {', '.join(sorted(old))}")

    for name in old:
        shutil.rmtree(cache / name)
    assert prepared_again(capsys, data, cache, TINY) == []


def test_cases_of_other_data_with_the_same_names_are_not_listed(data, cache, capsys, tmp_path):
    prepare(data, cache, TINY)
    for id in "abc":
        small_case(tmp_path / "other", id, seed=7)

    prepare(tmp_path / "other", cache, TINY)

    assert "may be removed" not in capsys.readouterr().out
    assert len(list(cache.iterdir())) == 6


def test_cases_of_another_version_are_listed(data, cache, capsys, tmp_path):
    prepare(data, cache, TINY)
    older = cache / "a-0123456789abcdef"  # the first had no description
    shutil.copytree(folder_of(cache, "a"), older)
    (older / "entry.json").unlink()
    newer = cache / "b-0123456789abcdef"
    shutil.copytree(folder_of(cache, "b"), newer)
    about = json.loads((newer / "entry.json").read_text())
    (newer / "entry.json").write_text(json.dumps({**about, "sources": ["x", "y"], "format": 99}))
    (cache / "notes").mkdir()
    capsys.readouterr()

    prepare(data, cache, TINY)
    assert capsys.readouterr().out.endswith(f"may be removed: {older.name}, {newer.name}\n")

    shutil.rmtree(newer)
    prepare(data, cache, TINY)
    assert "1 folder (0.0 GB) is of files that were replaced, " in capsys.readouterr().out


def test_prepared_cases_hold_no_file_open(tmp_path, cache):
    for number in range(140):
        small_case(tmp_path / "data", f"case_{number}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        first = prepare(tmp_path / "data", cache, TINY)
        again = prepare(tmp_path / "data", cache, TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert len(first) == len(again) == 140
    assert torch.equal(first[139].image, again[139].image)


def test_prepared_cases_can_be_written_to_without_changing_the_cache(data, cache):
    case = prepare(data, cache, TINY)[0]
    files = [folder_of(cache, "a") / f"{name}.npy" for name in ("image", "labels")]
    before = [path.read_bytes() for path in files]

    case.image[:] = 0
    case.labels[:] = 2

    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize(
    "id", ["a" * 250, "é ü" * 50, os.fsdecode(b"caf\xe9"), "a/b".replace("/", "\n"), "%s {x} [0]"]
)
def test_any_name_that_a_folder_may_have_can_be_kept(tmp_path, cache, id):
    try:
        small_case(tmp_path / "data", id)
    except OSError:
        pytest.skip("this file system has no such names")

    (case,) = prepare(tmp_path / "data", cache, TINY)
    (again,) = prepare(tmp_path / "data", cache, TINY)

    assert again.id == case.id == id
    assert torch.equal(case.image, again.image)


def test_names_that_are_alike_in_ascii_are_kept_apart(tmp_path, cache):
    small_case(tmp_path / "data", "é", seed=1)
    small_case(tmp_path / "data", "ü", seed=2)

    one, two = prepare(tmp_path / "data", cache, TINY)

    assert one.checksum != two.checksum
    assert len(list(cache.iterdir())) == 2


# Cases that cannot be used.


def test_labels_on_another_grid_than_the_image_are_refused_by_name(data, cache):
    _, labels = small_case(data, "b")
    write_image(data / "b" / "segmentation.nii.gz", labels[:, :, 1:], SPACING)
    write_image(data / "c" / "segmentation.nii.gz", labels, (8.0, 6.0, 6.5))

    with pytest.raises(ValueError) as refusal:
        prepare(data, cache, TINY)

    first, *lines = str(refusal.value).splitlines()
    assert first == f"{data}: 2 of 3 cases cannot be used:"
    assert len(lines) == 2
    assert str(data / "b" / "segmentation.nii.gz") in lines[0]
    assert str(data / "c" / "segmentation.nii.gz") in lines[1]


def test_a_case_too_large_once_resampled_is_named_among_the_others_before_memory_is_taken(
    data, cache, capsys, monkeypatch
):
    for id in ("a", "c"):
        for name in ("imaging.nii.gz", "segmentation.nii.gz"):
            write_image(data / id / name, np.zeros((40, 64, 64), np.int16), (99.0, 99.0, 99.0))
    real = minikits.prepared.prepare_image

    def prepare_image(volume, recipe):
        assert volume.spacing_mm == SPACING  # the large one is not begun
        return real(volume, recipe)

    monkeypatch.setattr(minikits.prepared, "prepare_image", prepare_image)
    with pytest.raises(ValueError) as refusal:
        prepare(data, cache, TINY)

    first, of_a, of_c = str(refusal.value).splitlines()
    assert first == f"{data}: 2 of 3 cases cannot be used:"
    assert of_a.strip().startswith(f"{data / 'a' / 'imaging.nii.gz'}: ")
    assert of_c.strip().startswith(f"{data / 'c' / 'imaging.nii.gz'}: ")
    assert "shape (40, 64, 64) of 99 x 99 x 99 mm would have shape (495, 1056, 1056)" in of_a
    assert "--assume-spacing" in of_a
    assert capsys.readouterr().out.count("prepared b ") == 1


def test_the_size_once_resampled_may_be_the_limit_and_no_more(tmp_path):
    small_case(tmp_path)
    volume = read_volume(tmp_path / "a" / "imaging.nii.gz")

    check_resampled_size(volume, TINY, most=6 * 20 * 18)
    with pytest.raises(ValueError, match="more than 2,159 voxels"):
        check_resampled_size(volume, TINY, most=6 * 20 * 18 - 1)


def test_a_whole_body_is_not_too_large_and_voxels_of_nine_centimetres_are(tmp_path):
    small_case(tmp_path)
    volume = read_volume(tmp_path / "a" / "imaging.nii.gz")
    voxels = np.broadcast_to(np.int16(0), (2000, 512, 512))

    body = dataclasses.replace(volume, voxels=voxels, spacing_mm=(1.0, 0.97, 0.97))
    check_resampled_size(body, PAPER)

    small = dataclasses.replace(volume, voxels=np.zeros((60, 60, 60)), spacing_mm=(90.0,) * 3)
    with pytest.raises(ValueError, match="imaging"):
        check_resampled_size(small, TINY)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_memory_that_runs_out_for_one_case_names_it(data, cache, monkeypatch, error):
    def prepare_image(volume, recipe):
        raise error

    monkeypatch.setattr(minikits.prepared, "prepare_image", prepare_image)

    with pytest.raises(ValueError, match=r"3 of 3 cases.*\n.*a/imaging\.nii\.gz: memory ran out"):
        prepare(data, cache, TINY)


def test_an_error_of_our_own_is_not_taken_for_a_bad_case(data, cache, monkeypatch):
    def prepare_image(volume, recipe):
        raise RuntimeError("expected m1 and m2 to have the same dtype")

    monkeypatch.setattr(minikits.prepared, "prepare_image", prepare_image)

    with pytest.raises(RuntimeError, match="same dtype"):
        prepare(data, cache, TINY)


def test_a_file_that_may_not_be_read_is_named_among_the_others(data, cache, monkeypatch, capsys):
    real = builtins.open

    def opened(path, *arguments, **options):
        if str(path).endswith("b/segmentation.nii.gz"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", opened)

    wanted = r"1 of 3 cases cannot be used:\n.*b/segmentation\.nii\.gz"
    with pytest.raises(ValueError, match=wanted):
        prepare(data, cache, TINY)
    assert capsys.readouterr().out.count("prepared ") == 2


# Stopped, killed, and beside each other.


def test_a_case_is_seen_once_it_is_whole(data, cache, monkeypatch):
    seen = []
    real = np.save

    def save(path, array):
        seen.extend(place for place in cache.iterdir() if not place.name.startswith("."))
        real(path, array)

    (data / "b").rename(data / ".b")  # one case is left
    (data / "c").rename(data / ".c")
    monkeypatch.setattr(np, "save", save)
    prepare(data, cache, TINY)

    assert seen == []
    assert len(list(cache.iterdir())) == 1


def test_ctrl_c_while_a_case_is_written_leaves_nothing_half(data, cache, monkeypatch):
    def save(path, array):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, cache, TINY)

    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_in_the_cache_is_removed_and_a_living_ones_is_not(data, cache):
    kills = (
        "import os, signal, sys\nimport numpy\nfrom pathlib import Path\n"
        "from minikits.files import place_beside\n"
        "half = place_beside(Path(sys.argv[1]))\nhalf.mkdir(parents=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", kills, cache / "a-00"], cwd=ROOT, check=False)
    assert len(list(cache.iterdir())) == 1
    living = place_beside(cache / "b-00")
    living.mkdir()

    prepare(data, cache, TINY)

    assert [path.name for path in cache.iterdir() if path.name.startswith(".")] == [living.name]
    assert f"{os.getpid()}@{platform.node()}" in living.name


def test_another_process_may_have_prepared_the_same_case_first(data, cache, monkeypatch):
    real = os.rename

    def rename(source, target):
        shutil.copytree(source, target)
        real(source, target)  # there is something already

    monkeypatch.setattr(os, "rename", rename)
    cases = prepare(data, cache, TINY)

    assert [case.id for case in cases] == ["a", "b", "c"]
    assert len(list(cache.iterdir())) == 3


def test_a_folder_that_cannot_take_its_name_is_an_error(data, cache, monkeypatch):
    def rename(source, target):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match=r"a-[0-9a-f]{16}: cannot be written \(.*Permission denied"):
        prepare(data, cache, TINY)

    assert list(cache.iterdir()) == []


def test_others_may_read_a_case_as_the_mask_of_modes_says(data, cache):
    before = os.umask(0o027)
    try:
        prepare(data, cache, TINY)
    finally:
        os.umask(before)

    assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {0o750}
