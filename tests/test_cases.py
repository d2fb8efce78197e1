"""Which cases, which fold, and a cache that is never stale and never half."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from conftest import TINY
from sklearn.model_selection import KFold

from minikits.cases import find_cases, five_folds, prepare, training_cases
from minikits.paper import PAPER
from minikits.resampling import prepare_image, prepare_labels
from minikits.volumes import read_labels, read_volume

FOLD_0 = [10, 14, 16, 17, 19, 20, 27, 28, 31, 48, 50, 53, 57, 58, 69, 70, 75, 87, 91, 96, 101, 102, 112, 113, 118, 119,
          123, 138, 139, 149, 150, 151, 154, 155, 164, 165, 166, 181, 183, 196, 199, 206]


def kits_ids():
    return [f"case_{n:05d}" for n in range(210) if n not in PAPER.excluded_cases]


def test_folds_are_nnunets():
    assert five_folds(kits_ids())[0][1] == [f"case_{n:05d}" for n in FOLD_0]
    assert [len(validation) for _, validation in five_folds(kits_ids())] == [42, 41, 41, 41, 41]


@pytest.mark.parametrize("count", [5, 7, 23, 206])
def test_folds_equal_scikit_learns(count):
    ids = sorted(f"case_{n:05d}" for n in range(count))
    wanted = KFold(5, shuffle=True, random_state=12345).split(ids)
    for (train, validation), (train_index, validation_index) in zip(five_folds(reversed(ids)), wanted):
        assert train == [ids[i] for i in train_index] and validation == [ids[i] for i in validation_index]


def test_too_few_cases_for_five_folds():
    with pytest.raises(ValueError, match="4 cases found, wanted at least 5"):
        five_folds("abcd")


def find_scans(folder):
    return [case.id for case in find_cases(folder) if case.image]


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_the_papers_exclusions_and_unlabelled_cases_are_left_out(tmp_path):
    touch(tmp_path, *(f"case_{n:05d}/imaging.nii.gz" for n in (22, 23, 68, 210)),
          *(f"case_{n:05d}/segmentation.nii.gz" for n in (22, 23, 68)))
    assert [case.id for case in find_cases(tmp_path)] == ["case_00022", "case_00023", "case_00068", "case_00210"]
    assert [case.id for case in training_cases(tmp_path, PAPER)] == ["case_00022"]


def test_a_flat_pair_of_folders(tmp_path):
    touch(tmp_path, "images/a_0000.nii.gz", "images/b.nii", "labels/a.nii.gz", "labels/b.nii.gz", "images/.hidden.nii")
    cases = find_cases(tmp_path)
    assert [(case.id, case.image.name, case.labels.name) for case in cases] == [
        ("a", "a_0000.nii.gz", "a.nii.gz"), ("b", "b.nii", "b.nii.gz")]


def test_scans_of_both_layouts(tmp_path):
    touch(tmp_path, "flat/one_0000.nii.gz", "flat/two.nii", "flat/notes.txt", "kits/case_00210/imaging.nii.gz")
    assert find_scans(tmp_path / "flat") == ["one", "two"]
    assert find_scans(tmp_path / "kits") == ["case_00210"]
    touch(tmp_path, "flat/one.nii")
    with pytest.raises(ValueError, match="same name one"):
        find_scans(tmp_path / "flat")


def test_folders_without_cases_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_cases(tmp_path / "absent")
    touch(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match=r"no scans or cases found.*found notes\.txt"):
        find_cases(tmp_path)
    touch(tmp_path, "case_00001/segmentation.nii.gz")
    with pytest.raises(ValueError, match=r"1 labelled cases have no image \(case_00001"):
        training_cases(tmp_path, PAPER)


def test_prepared_once_and_equal_to_the_resampled_case(phantoms, tmp_path, capsys):
    first = prepare(phantoms, tmp_path, TINY)
    assert capsys.readouterr().out.count("prepared phantom_") == 6
    again = prepare(phantoms, tmp_path, TINY)
    assert not capsys.readouterr().out
    for one, other in zip(first, again):
        assert one.id == other.id and (one.image == other.image).all() and (one.labels == other.labels).all()
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
    prepare(data, cache, TINY)
    capsys.readouterr()
    prepare(data, cache, dataclasses.replace(TINY, epochs=7))  # no number of preparation
    assert not capsys.readouterr().out
    prepare(data, cache, dataclasses.replace(TINY, window_hu=(-100.0, 300.0)))
    assert capsys.readouterr().out.count("prepared") == 6
    os.utime(data / "phantom_3" / "segmentation.nii.gz", (1, 1))
    prepare(data, cache, TINY)
    assert capsys.readouterr().out.count("prepared") == 1


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
    assert sorted(path.name for path in next(tmp_path.glob("phantom_0-*")).iterdir()) == [
        "image.npy", "kidney.npy", "labels.npy", "tumor.npy"]


def test_every_bad_case_is_named_and_the_good_ones_are_kept(phantoms, tmp_path, capsys):
    data, cache = tmp_path / "data", tmp_path / "cache"
    shutil.copytree(phantoms, data)
    short, odd = data / "phantom_2" / "imaging.nii.gz", data / "phantom_4" / "segmentation.nii.gz"
    short.write_bytes(short.read_bytes()[:500])
    shutil.copy(data / "phantom_4" / "imaging.nii.gz", odd)
    shutil.copy(data / "phantom_5" / "segmentation.nii.gz", data / "phantom_5" / "imaging.nii.gz")
    with pytest.raises(ValueError) as refusal:
        prepare(data, cache, TINY)
    first, *lines = str(refusal.value).splitlines()
    assert first == f"{data}: 2 of 6 cases cannot be used:" and len(lines) == 2
    assert lines[0].startswith(f"  {short}: damaged") and lines[1].startswith(f"  {odd}: label values")
    printed = capsys.readouterr().out
    assert printed.count("prepared phantom_") == 4 == len(list(cache.iterdir()))
    assert printed.count("warning: ") == printed.count("phantom_5/imaging.nii.gz: values from 0 to ") == 1
    shutil.copy(phantoms / "phantom_2" / "imaging.nii.gz", short)
    shutil.copy(phantoms / "phantom_4" / "segmentation.nii.gz", odd)
    assert len(prepare(data, cache, TINY)) == 6 and capsys.readouterr().out.count("prepared phantom_") == 2


def test_image_and_labels_that_differ_are_refused_by_name(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "data")
    shutil.copy(tmp_path / "data/phantom_1/imaging.nii.gz", tmp_path / "data/phantom_0/segmentation.nii.gz")
    with pytest.raises(ValueError, match=r"phantom_0/segmentation\.nii\.gz: label values"):
        prepare(tmp_path / "data", tmp_path / "cache", TINY)


def test_a_kits19_case_by_itself_bears_its_cases_name(tmp_path):
    touch(tmp_path, "case_00210/imaging.nii.gz", "case_00210/segmentation.nii.gz")
    assert find_scans(tmp_path / "case_00210" / "imaging.nii.gz") == ["case_00210"]
    assert find_scans(tmp_path / "case_00210") == ["case_00210"]


def test_two_files_for_one_case_are_refused(tmp_path):
    touch(tmp_path, "case_00001/imaging.nii.gz", "case_00001/imaging.nii")
    with pytest.raises(ValueError, match=r"imaging\.nii has the same name case_00001"):
        find_cases(tmp_path)


def test_links_to_files_and_folders_are_taken_where_they_lie(tmp_path):
    touch(tmp_path, "store/1/x.nii.gz", "store/2/y.nii.gz", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    for name, target in (("kits/case_00001/imaging.nii.gz", "store/1/x.nii.gz"),
                         ("kits/case_00001/segmentation.nii.gz", "store/2/y.nii.gz"),
                         ("pair/images", "imagesTr"), ("pair/labels", "labelsTr")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / target)
    for folder, id in (("kits", "case_00001"), ("pair", "a")):
        (case,) = find_cases(tmp_path / folder)
        assert case.id == id and case.image and case.labels
