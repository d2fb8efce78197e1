"""Which cases, which fold, and a cache that is never stale and never half."""

import dataclasses
import errno
import functools
import gzip
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from sklearn.model_selection import KFold

import minikits.cases
import minikits.prepared
from minikits.cases import (
    Case,
    Found,
    excluded_ids,
    find_cases,
    find_masks,
    five_folds,
    look_for_cases,
    look_for_training_cases,
    mask_name,
    training_cases,
)
from minikits.files import place_beside
from minikits.nifti import read_labels, read_volume, write_image
from minikits.paper import PAPER
from minikits.prepared import check_resampled_size
from minikits.preprocessing import prepare_image, prepare_labels

prepare = functools.partial(minikits.cases.prepare, say=print)

FOLD_0 = [
    10,
    14,
    16,
    17,
    19,
    20,
    27,
    28,
    31,
    48,
    50,
    53,
    57,
    58,
    69,
    70,
    75,
    87,
    91,
    96,
    101,
    102,
    112,
    113,
    118,
    119,
    123,
    138,
    139,
    149,
    150,
    151,
    154,
    155,
    164,
    165,
    166,
    181,
    183,
    196,
    199,
    206,
]


def kits_ids():
    return [f"case_{n:05d}" for n in range(210) if n not in PAPER.excluded_cases]


def test_folds_are_nnunets():
    assert five_folds(kits_ids())[0][1] == [f"case_{n:05d}" for n in FOLD_0]
    assert [len(validation) for _, validation in five_folds(kits_ids())] == [42, 41, 41, 41, 41]


@pytest.mark.parametrize("count", [5, 7, 23, 206])
def test_folds_equal_scikit_learns(count):
    ids = sorted(f"case_{n:05d}" for n in range(count))
    wanted = KFold(5, shuffle=True, random_state=12345).split(ids)
    for (train, validation), (train_index, validation_index) in zip(
        five_folds(reversed(ids)), wanted
    ):
        assert train == [ids[i] for i in train_index] and validation == [
            ids[i] for i in validation_index
        ]


def test_too_few_cases_for_five_folds():
    with pytest.raises(ValueError, match="4 cases found, wanted at least 5"):
        five_folds("abcd")
    with pytest.raises(ValueError, match="1 case found, wanted at least 5"):
        five_folds("a")


def test_labels_without_an_image_are_counted(tmp_path):
    touch(tmp_path, "case_00001/segmentation.nii.gz", "case_00002/segmentation.nii.gz")
    wanted = r"2 labelled cases have no image \(case_00001, case_00002\); get what is missing$"
    with pytest.raises(ValueError, match=wanted):
        training_cases(tmp_path, PAPER)


def find_scans(folder):
    return [case.id for case in find_cases(folder) if case.image]


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_the_papers_exclusions_and_unlabelled_cases_are_left_out(tmp_path):
    touch(
        tmp_path,
        *(f"case_{n:05d}/imaging.nii.gz" for n in (22, 23, 68, 210)),
        *(f"case_{n:05d}/segmentation.nii.gz" for n in (22, 23, 68)),
    )
    assert [case.id for case in find_cases(tmp_path)] == [
        "case_00022",
        "case_00023",
        "case_00068",
        "case_00210",
    ]
    assert [case.id for case in training_cases(tmp_path, PAPER)] == ["case_00022"]


def test_a_flat_pair_of_folders(tmp_path):
    touch(
        tmp_path,
        "images/a_0000.nii.gz",
        "images/b.nii",
        "labels/a.nii.gz",
        "labels/b.nii.gz",
        "images/.hidden.nii",
    )
    cases = find_cases(tmp_path)
    assert [(case.id, case.image.name, case.labels.name) for case in cases] == [
        ("a", "a_0000.nii.gz", "a.nii.gz"),
        ("b", "b.nii", "b.nii.gz"),
    ]


def test_a_case_whose_own_name_ends_in_0000_keeps_it_in_labels(tmp_path):
    """nnU-Net adds its `_0000` to the names of images: those of `a` and of `a_0000` are these."""
    touch(tmp_path, "images/a_0000.nii.gz", "images/a_0000_0000.nii.gz")
    touch(tmp_path, "labels/a.nii.gz", "labels/a_0000.nii.gz")

    cases = find_cases(tmp_path)

    assert [(case.id, case.image.name, case.labels.name) for case in cases] == [
        ("a", "a_0000.nii.gz", "a.nii.gz"),
        ("a_0000", "a_0000_0000.nii.gz", "a_0000.nii.gz"),
    ]


def test_labels_that_bear_their_images_whole_name_are_of_its_case(tmp_path):
    touch(tmp_path, "images/a_0000.nii.gz", "labels/a_0000.nii.gz", "b_0000/imaging.nii.gz")
    touch(tmp_path, "Labels/b_0000.nii.gz")

    cases = find_cases(tmp_path)

    assert [(case.id, case.image.name, case.labels.name) for case in cases] == [
        ("a", "a_0000.nii.gz", "a_0000.nii.gz"),
        ("b_0000", "imaging.nii.gz", "b_0000.nii.gz"),
    ]


def test_scans_of_both_layouts(tmp_path):
    touch(
        tmp_path,
        "flat/one_0000.nii.gz",
        "flat/two.nii",
        "flat/notes.txt",
        "kits/case_00210/imaging.nii.gz",
    )
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
    with pytest.raises(ValueError, match=r"1 labelled case has no image \(case_00001"):
        training_cases(tmp_path, PAPER)


def test_prepared_once_and_equal_to_the_resampled_case(phantoms, tmp_path, capsys):
    first = prepare(phantoms, tmp_path, TINY)
    assert capsys.readouterr().out.count("prepared phantom_") == 6
    again = prepare(phantoms, tmp_path, TINY)
    assert not capsys.readouterr().out
    for one, other in zip(first, again):
        assert (
            one.id == other.id
            and (one.image == other.image).all()
            and (one.labels == other.labels).all()
        )
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
        "entry.json",
        "image.npy",
        "kidney.npy",
        "labels.npy",
        "tumor.npy",
    ]


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
    assert lines[0].startswith(f"  {short}: damaged") and lines[1].startswith(
        f"  {odd}: label values"
    )
    printed = capsys.readouterr().out
    assert printed.count("prepared phantom_") == 4 == len(list(cache.iterdir()))
    assert (
        printed.count("warning: ")
        == printed.count("phantom_5/imaging.nii.gz: values from 0 to ")
        == 1
    )
    shutil.copy(phantoms / "phantom_2" / "imaging.nii.gz", short)
    shutil.copy(phantoms / "phantom_4" / "segmentation.nii.gz", odd)
    assert (
        len(prepare(data, cache, TINY)) == 6
        and capsys.readouterr().out.count("prepared phantom_") == 2
    )


def test_image_and_labels_that_differ_are_refused_by_name(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "data")
    shutil.copy(
        tmp_path / "data/phantom_1/imaging.nii.gz", tmp_path / "data/phantom_0/segmentation.nii.gz"
    )
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
    touch(
        tmp_path,
        "store/1/x.nii.gz",
        "store/2/y.nii.gz",
        "imagesTr/a_0000.nii.gz",
        "labelsTr/a.nii.gz",
    )
    for name, target in (
        ("kits/case_00001/imaging.nii.gz", "store/1/x.nii.gz"),
        ("kits/case_00001/segmentation.nii.gz", "store/2/y.nii.gz"),
        ("pair/images", "imagesTr"),
        ("pair/labels", "labelsTr"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / target)
    for folder, id in (("kits", "case_00001"), ("pair", "a")):
        (case,) = find_cases(tmp_path / folder)
        assert case.id == id and case.image and case.labels


def test_what_is_found_and_left_out_is_said_in_one_line():
    cases = [Case("a"), Case("b")]
    assert Found(cases, []).summary() == "2 cases found"
    assert Found(cases[:1], ["c (a link to nothing)", "d (no labels)"]).summary() == (
        "1 case found, 2 left out: c (a link to nothing), d (no labels)"
    )
    many = Found([], [f"n{number} (no labels)" for number in range(22)]).summary()
    assert many.startswith("0 cases found, 22 left out: n0 (no labels), n1 (no labels)")
    assert many.endswith("n19 (no labels) and 2 more")


def test_hidden_files_and_folders_are_no_cases_and_not_named(tmp_path):
    touch(
        tmp_path,
        "case_00000/imaging.nii.gz",
        "case_00000/._imaging.nii.gz",
        ".case_00000.old/imaging.nii.gz",
        "._case_00000.nii.gz",
        ".Trash/a.nii.gz",
    )
    found = look_for_cases(tmp_path)
    assert [case.id for case in found.cases] == ["case_00000"] and found.left_out == []


def test_cases_that_the_recipe_or_missing_labels_leave_out_are_named(tmp_path):
    touch(
        tmp_path,
        *(f"case_{n:05d}/imaging.nii.gz" for n in (22, 23, 210)),
        *(f"case_{n:05d}/segmentation.nii.gz" for n in (22, 23)),
    )
    found = look_for_training_cases(tmp_path, PAPER)
    assert [case.id for case in found.cases] == ["case_00022"]
    assert found.left_out == [
        "case_00023 (one of the recipe's excluded_cases)",
        "case_00210 (no labels)",
    ]


@pytest.mark.parametrize(
    ("id", "file", "name"),
    [
        ("case_00210", "imaging.nii.gz", "prediction_00210"),  # a folder of KiTS19's
        ("case_00210", "case_00210.nii.gz", "case_00210"),  # a file of a flat folder
        ("case_210", "imaging.nii.gz", "case_210"),
        ("case_002100", "imaging.nii.gz", "case_002100"),
        ("my_case_00210", "imaging.nii.gz", "my_case_00210"),
        ("prediction_a", "prediction_a.nii.gz", "prediction_a"),
    ],
)
def test_masks_are_named_after_their_case(tmp_path, id, file, name):
    assert mask_name(Case(id, image=tmp_path / file)) == name


def test_a_case_known_by_its_labels_alone_has_the_same_name_of_its_mask(tmp_path):
    case = Case("case_00210", labels=tmp_path / "segmentation.nii.gz")
    assert mask_name(case) == "prediction_00210"


def test_masks_of_a_flat_folder_are_found_by_their_cases_id(tmp_path):
    names = (
        "prediction_00001",
        "case_00002",
        "prediction_a",
        "a_prediction_00003",
        "prediction_000004",
    )
    touch(
        tmp_path,
        *(f"{name}.nii.gz" for name in names),
        "prediction.json",
        ".x.nii.gz",
        "probabilities/prediction_00001_kidney.nii.gz",
    )
    assert find_masks(tmp_path) == {
        "case_00001": tmp_path / "prediction_00001.nii.gz",
        **{name: tmp_path / f"{name}.nii.gz" for name in names[1:]},
    }


def test_a_mask_named_as_its_reference_is_keeps_its_name(tmp_path):
    touch(tmp_path, "prediction_00001.nii.gz")
    assert list(find_masks(tmp_path, ids={"prediction_00001"})) == ["prediction_00001"]
    assert list(find_masks(tmp_path, ids={"case_00001"})) == ["case_00001"]


def test_a_mask_keeps_a_name_that_ends_in_0000_where_a_reference_has_it(tmp_path):
    touch(tmp_path, "a.nii.gz", "a_0000.nii.gz")

    masks = find_masks(tmp_path, ids={"a", "a_0000"})

    assert {id: path.name for id, path in masks.items()} == {
        "a": "a.nii.gz",
        "a_0000": "a_0000.nii.gz",
    }
    with pytest.raises(ValueError, match=r"a_0000\.nii\.gz: a\.nii\.gz is a mask of a too"):
        find_masks(tmp_path, ids={"a"})


def test_two_masks_of_one_case_are_refused_by_name(tmp_path):
    touch(tmp_path, "case_00001.nii.gz", "prediction_00001.nii.gz")
    wanted = r"prediction_00001\.nii\.gz: case_00001\.nii\.gz is a mask of case_00001 too"
    with pytest.raises(ValueError, match=wanted):
        find_masks(tmp_path)


def test_a_folder_without_masks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no masks found"):
        find_masks(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent: no such file or folder"):
        find_masks(tmp_path / "absent")


def test_two_cases_whose_masks_would_have_one_name_are_refused(tmp_path):
    touch(tmp_path, "case_00001/imaging.nii.gz", "images/prediction_00001.nii.gz")
    with pytest.raises(ValueError, match="masks of case_00001 and prediction_00001 would both be"):
        find_cases(tmp_path)


def test_each_case_has_a_checksum_and_it_is_the_same_again(phantoms, tmp_path):
    first = prepare(phantoms, tmp_path / "one", TINY)
    again = prepare(phantoms, tmp_path / "two", TINY)
    kept = prepare(phantoms, tmp_path / "two", TINY)
    sums = [case.checksum for case in first]
    assert sums == [case.checksum for case in again] == [case.checksum for case in kept]
    assert len({*sums}) == 6 and all(re.fullmatch("[0-9a-f]{16}", checksum) for checksum in sums)


def test_the_checksum_is_of_the_voxels_not_of_the_file_or_the_processors_rounding(
    tmp_path, monkeypatch
):
    small_case(tmp_path / "packed")
    small_case(tmp_path / "plain", suffix=".nii")
    (packed,) = prepare(tmp_path / "packed", tmp_path / "cache", TINY)
    (plain,) = prepare(tmp_path / "plain", tmp_path / "cache", TINY)
    assert packed.checksum == plain.checksum

    real = minikits.prepared.prepare_image
    monkeypatch.setattr(minikits.prepared, "prepare_image", lambda *given: real(*given) + 0.01)
    (rounded,) = prepare(tmp_path / "packed", tmp_path / "another", TINY)
    assert rounded.checksum == packed.checksum and not torch.equal(rounded.image, packed.image)


@pytest.mark.parametrize(
    "change", ["first voxel", "last voxel", "first label", "last label", "spacing"]
)
def test_the_checksum_is_another_where_image_or_labels_are(tmp_path, change):
    image, labels = small_case(tmp_path / "data")
    (before,) = prepare(tmp_path / "data", tmp_path / "cache", TINY)
    which, _, what = change.partition(" ")
    if what:
        voxels = image if what == "voxel" else labels
        voxels.flat[0 if which == "first" else -1] += 1
    spacing = (8.0, 6.0, 6.001) if change == "spacing" else SPACING
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
    assert capsys.readouterr().out.count("prepared ") == 2 == len(list(tmp_path.iterdir()))
    assert len(prepare(phantoms, tmp_path, TINY, stop=lambda: False)) == 6
    assert prepare(phantoms, tmp_path, TINY, stop=lambda: True) is None


# Everything that looks like a case is used or named.


def lines(folder):
    """What `look_for_cases` leaves out."""
    return look_for_cases(folder).left_out


@pytest.mark.parametrize(
    "cases",
    [
        ("case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz"),
        ("case_00000/segmentation.nii.gz",),
        ("images/a_0000.nii.gz", "labels/a.nii.gz"),
        ("labels/a.nii.gz",),
    ],
    ids=["kits19", "labels alone", "pair", "labels of a pair"],
)
@pytest.mark.parametrize("stray", ["template.nii.gz", "atlas.nii", "imaging.nii.gz", "T.NII.GZ"])
def test_a_stray_file_beside_folders_of_cases_is_refused_by_its_name(tmp_path, cases, stray):
    touch(tmp_path, *cases)
    assert len(find_cases(tmp_path)) == 1
    touch(tmp_path, stray)
    with pytest.raises(ValueError) as refusal:
        find_cases(tmp_path)
    folder = cases[0].split("/")[0]
    assert f"{tmp_path}: {stray} beside folders of cases (" in str(refusal.value)
    assert folder in str(refusal.value) and "move" in str(refusal.value)


def test_kits19s_images_with_labels_in_a_folder_of_their_own_are_the_same_cases(tmp_path):
    touch(
        tmp_path,
        "case_00000/imaging.nii.gz",
        "case_00001/imaging.nii.gz",
        "labels/case_00000.nii.gz",
        "labels/case_00001.nii.gz",
    )
    found = look_for_cases(tmp_path)
    assert [(case.id, case.image.name, case.labels.name) for case in found.cases] == [
        ("case_00000", "imaging.nii.gz", "case_00000.nii.gz"),
        ("case_00001", "imaging.nii.gz", "case_00001.nii.gz"),
    ]
    assert found.left_out == []


def test_cases_are_sorted_by_their_ids_whatever_folder_they_come_from(tmp_path):
    touch(
        tmp_path, "b/imaging.nii.gz", "images/a.nii.gz", "images/c_0000.nii.gz", "labels/A.nii.gz"
    )
    assert [case.id for case in find_cases(tmp_path)] == ["A", "a", "b", "c"]


def test_labels_in_both_layouts_for_one_case_are_refused(tmp_path):
    touch(
        tmp_path,
        "case_00000/imaging.nii.gz",
        "case_00000/segmentation.nii.gz",
        "labels/case_00000.nii.gz",
    )
    with pytest.raises(ValueError, match="has the same name case_00000; rename or remove one"):
        find_cases(tmp_path)


def test_files_named_in_capitals_are_cases_too(tmp_path):
    touch(
        tmp_path,
        "flat/SCAN.NII.GZ",
        "flat/other.Nii",
        "kits/case_00000/Imaging.NII.gz",
        "pair/Images/a_0000.NII",
        "pair/Labels/A.NII",
        "pair/Labels/a.NII",
    )
    assert find_scans(tmp_path / "flat") == ["SCAN", "other"]
    assert find_scans(tmp_path / "kits") == ["case_00000"]
    assert [(case.id, bool(case.image)) for case in find_cases(tmp_path / "pair")] == [
        ("A", False),
        ("a", True),
    ]
    touch(tmp_path, "flat/SCAN.nii.gz")
    with pytest.raises(ValueError, match="same name SCAN"):
        find_cases(tmp_path / "flat")


def test_a_name_with_a_line_break_is_a_name(tmp_path):
    touch(tmp_path, "a\nb.nii.gz")
    assert find_scans(tmp_path) == ["a\nb"]


def link_to_nothing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.parent / "store" / "absent")


def link_to_itself(path):
    path.symlink_to(path)


def folder_with(*names):
    def make(path):
        path.mkdir(parents=True)
        touch(path, *names)

    return make


def empty_file(path):
    touch(path.parent, path.name)


NO_CASE_INSIDE = "neither imaging.nii.gz nor segmentation.nii.gz in it"
STRANGE_NAME = "neither imaging nor segmentation, nor in images/ or labels/"


@pytest.mark.parametrize(
    ("name", "make", "line"),
    [
        ("s9.nii.gz", link_to_nothing, "s9.nii.gz (a link to nothing)"),
        ("s9", link_to_nothing, "s9 (a link to nothing)"),
        ("s9.nii", link_to_itself, f"s9.nii (cannot be read: {os.strerror(errno.ELOOP)})"),
        ("s9.nii", os.mkfifo, "s9.nii (neither a file nor a folder)"),
        ("s9.nii.gz", folder_with("s9.nii"), "s9.nii.gz (a folder, wanted a file)"),
        ("s9.nii.gz", folder_with(), "s9.nii.gz (a folder, wanted a file)"),
        ("s9.nii.gz.part", empty_file, "s9.nii.gz.part (not *.nii or *.nii.gz)"),
        ("s9.nii (1).gz", empty_file, "s9.nii (1).gz (not *.nii or *.nii.gz)"),
        ("s9.nrrd", empty_file, "s9.nrrd (not *.nii or *.nii.gz)"),
        ("s9.IMG", empty_file, "s9.IMG (not *.nii or *.nii.gz)"),
        ("old", folder_with("a.nii.gz"), f"old/a.nii.gz ({STRANGE_NAME})"),
        (
            "old",
            folder_with("a.nii.gz", "b.nii", "c.nii"),
            f"old/a.nii.gz ({STRANGE_NAME}) and 2 more in old",
        ),
        (
            "batch",
            folder_with("case_1/imaging.nii.gz"),
            "batch/case_1 (too deep, with imaging.nii.gz in it)",
        ),
        ("batch", folder_with("x/y/z.nii"), "batch/x (too deep, with y/z.nii in it)"),
        ("batch", folder_with("x/y/w/z.nii"), "batch/x (too deep, with y/w/z.nii in it)"),
    ],
)
@pytest.mark.parametrize("beside", ["flat", "kits19"])
def test_what_looks_like_a_case_and_is_none_is_named(tmp_path, beside, name, make, line):
    touch(tmp_path, "a.nii.gz" if beside == "flat" else "case_00000/imaging.nii.gz")
    make(tmp_path / name)
    found = look_for_cases(tmp_path)
    assert len(found.cases) == 1 and found.left_out == [line]


@pytest.mark.parametrize(
    ("name", "make", "line"),
    [
        ("b.nii.gz", link_to_nothing, "b.nii.gz (a link to nothing)"),
        ("b.nii.gz", folder_with("b.nii"), "b.nii.gz (a folder, wanted a file)"),
        ("b.nii.part", empty_file, "b.nii.part (not *.nii or *.nii.gz)"),
        ("more", folder_with("c.nii"), "more (too deep, with c.nii in it)"),
    ],
)
@pytest.mark.parametrize("folder", ["images", "labels"])
def test_what_looks_like_a_case_within_a_pair_is_named_one_by_one(
    tmp_path, folder, name, make, line
):
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    make(tmp_path / folder / name)
    link_to_nothing(tmp_path / folder / "z.nii")
    assert sorted(lines(tmp_path)) == [f"{folder}/{line}", f"{folder}/z.nii (a link to nothing)"]


@pytest.mark.parametrize(
    ("name", "make", "line"),
    [
        ("imaging.nii.gz", link_to_nothing, "imaging.nii.gz (a link to nothing)"),
        ("imaging.nii.gz", folder_with("imaging.nii"), "imaging.nii.gz (a folder, wanted a file)"),
        ("template.nii.gz", empty_file, f"template.nii.gz ({STRANGE_NAME})"),
        ("imaging.nii.gz.tmp", empty_file, "imaging.nii.gz.tmp (not *.nii or *.nii.gz)"),
    ],
)
def test_what_looks_like_a_file_of_a_case_is_named(tmp_path, name, make, line):
    touch(tmp_path, "case_00000/segmentation.nii.gz", "case_00000/instances/kidney_1.nii.gz")
    assert lines(tmp_path) == []  # what lies deeper in a case belongs to it
    make(tmp_path / "case_00000" / name)
    assert lines(tmp_path) == [f"case_00000/{line}"]


def test_a_folder_without_a_case_is_named_beside_cases_and_not_beside_scans(tmp_path):
    touch(
        tmp_path,
        "kits/case_00000/imaging.nii.gz",
        "kits/case_00001/notes.txt",
        "kits/notes.txt",
        "flat/a.nii.gz",
        "flat/b/notes.txt",
    )
    assert lines(tmp_path / "kits") == [f"case_00001 ({NO_CASE_INSIDE})"]
    assert lines(tmp_path / "flat") == []


@pytest.mark.parametrize("name", ["case_00001", "images"])
def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch, name):
    touch(tmp_path, "case_00000/imaging.nii.gz", f"{name}/imaging.nii.gz")
    real = Path.iterdir

    def iterdir(path):
        if path.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert lines(tmp_path) == [f"{name} (cannot be listed: {os.strerror(errno.EACCES)})"]


def test_where_nothing_is_left_the_refusal_names_what_was_left_out(tmp_path):
    link_to_nothing(tmp_path / "a.nii.gz")
    wanted = r"no scans or cases found.*a\.nii\.gz \(a link to nothing\)"
    with pytest.raises(ValueError, match=wanted):
        find_cases(tmp_path)
    touch(tmp_path, "case_00001/segmentation.nii.gz")
    link_to_nothing(tmp_path / "case_00001" / "imaging.nii.gz")
    wanted = (
        r"1 labelled case has no image \(case_00001\); get what is missing; "
        r"left out: .*case_00001/imaging\.nii\.gz \(a link to nothing"
    )
    with pytest.raises(ValueError, match=wanted):
        training_cases(tmp_path, PAPER)
    touch(tmp_path / "unlabelled", "case_00210/imaging.nii.gz")
    with pytest.raises(ValueError, match=r"no labelled cases found.*case_00210 \(no labels\)"):
        training_cases(tmp_path / "unlabelled", PAPER)


def test_a_link_to_nothing_among_training_cases_is_named(tmp_path):
    touch(tmp_path, "case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz")
    link_to_nothing(tmp_path / "case_00001")
    found = look_for_training_cases(tmp_path, PAPER)
    assert found.summary() == "1 case found, 1 left out: case_00001 (a link to nothing)"


def test_the_cases_that_the_recipe_leaves_out_are_known_by_their_ids():
    assert excluded_ids(PAPER) == {"case_00023", "case_00068", "case_00125", "case_00133"}
    assert excluded_ids(dataclasses.replace(PAPER, excluded_cases=())) == set()


# The cache.

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


def folder_of(cache, id):
    (place,) = cache.glob(f"{id}-*")
    return place


def test_a_prepared_case_holds_half_floats_bytes_and_the_places_of_each_structure(tmp_path):
    image, labels = small_case(tmp_path / "data")
    (case,) = prepare(tmp_path / "data", tmp_path / "cache", TINY)
    assert case.image.dtype == torch.float16 and case.labels.dtype == torch.uint8
    assert case.image.shape == case.labels.shape == SHAPE
    expected = (np.clip(image, -79, 304) - 101) / 76.9
    assert np.abs(case.image.numpy() - expected).max() < 2e-3
    assert np.array_equal(case.labels.numpy(), labels)
    kidney, tumor = case.foreground
    assert kidney.dtype == tumor.dtype == np.int32
    assert kidney.tolist() == list(range(500, 540)) and tumor.tolist() == list(range(600, 610))


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
    assert all(one.checksum != two.checksum for one, two in zip(first, again))
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
    cases = prepare(data, cache, TINY, assume_spacing=(16.0, 6.0, 3.0))
    # twice, once and half as many voxels as the file has
    assert cases[0].image.shape == cases[0].labels.shape == (12, 20, 9)
    with pytest.raises(ValueError, match="qform"):
        prepare(data, cache, TINY, affine="qform")


def test_whole_numbers_are_the_same_as_floats(data, cache, capsys):
    prepare(data, cache, TINY)
    whole = dataclasses.replace(TINY, spacing_mm=(8, 6, 6), window_hu=(-79, 304), mean_hu=101)
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
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert prepared_again(capsys, data, cache, TINY) == ["a"]


def test_a_change_anywhere_in_a_gz_of_the_same_size_and_time_is_prepared_again(data, cache, capsys):
    path = data / "a" / "imaging.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    sizes = set()
    for number in range(2):
        content[-2500] ^= number  # far from both ends of what is packed
        path.write_bytes(gzip.compress(content, compresslevel=0, mtime=0))
        os.utime(path, ns=times)
        sizes.add(path.stat().st_size)
        again = prepared_again(capsys, data, cache, TINY)
    assert again == ["a"] and len(sizes) == 1


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
    assert [case.id for case in prepare(tmp_path / "data", cache, TINY)] == ids
    assert len(list(cache.iterdir())) == 2


def test_another_format_of_the_cache_makes_other_cases(data, cache, capsys, monkeypatch):
    prepare(data, cache, TINY)
    monkeypatch.setattr(minikits.prepared, "CACHE_FORMAT", minikits.prepared.CACHE_FORMAT + 1)
    assert prepared_again(capsys, data, cache, TINY) == ["a", "b", "c"]


def sevens(place):
    labels = np.load(place / "labels.npy")
    np.save(place / "labels.npy", np.full_like(labels, 7))


def one_bit(name):
    def damage(place):
        content = bytearray((place / name).read_bytes())
        content[-1] ^= 1
        (place / name).write_bytes(content)

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
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("warning: ") and said[0].endswith("; a is prepared again")
    assert str(place) in said[0] and said[1].startswith("prepared a ") and len(said) == 2
    assert torch.equal(after.image, image) and torch.equal(after.labels, labels)
    assert all(map(np.array_equal, before.foreground, after.foreground))
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
    content[200] ^= 1
    path.write_bytes(content)
    prepare(tmp_path / "data", cache, TINY)
    content[200] ^= 1
    assert path.read_bytes() == content


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
    assert "may be removed" not in capsys.readouterr().out and len(list(cache.iterdir())) == 6


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
    assert len(first) == len(again) == 140 and torch.equal(first[139].image, again[139].image)


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
    assert again.id == case.id == id and torch.equal(case.image, again.image)


def test_names_that_are_alike_in_ascii_are_kept_apart(tmp_path, cache):
    small_case(tmp_path / "data", "é", seed=1)
    small_case(tmp_path / "data", "ü", seed=2)
    one, two = prepare(tmp_path / "data", cache, TINY)
    assert one.checksum != two.checksum and len(list(cache.iterdir())) == 2


# Cases that cannot be used.


def test_labels_on_another_grid_than_the_image_are_refused_by_name(data, cache):
    _, labels = small_case(data, "b")
    write_image(data / "b" / "segmentation.nii.gz", labels[:, :, 1:], SPACING)
    write_image(data / "c" / "segmentation.nii.gz", labels, (8.0, 6.0, 6.5))
    with pytest.raises(ValueError) as refusal:
        prepare(data, cache, TINY)
    first, *lines = str(refusal.value).splitlines()
    assert first == f"{data}: 2 of 3 cases cannot be used:" and len(lines) == 2
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
    first, *lines = str(refusal.value).splitlines()
    assert first == f"{data}: 2 of 3 cases cannot be used:"
    assert [line.split(": ")[0].strip() for line in lines] == [
        str(data / id / "imaging.nii.gz") for id in ("a", "c")
    ]
    assert "shape (40, 64, 64) of 99 x 99 x 99 mm would have shape (495, 1056, 1056)" in lines[0]
    assert "--assume-spacing" in lines[0]
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
    body = dataclasses.replace(
        volume, voxels=np.broadcast_to(np.int16(0), (2000, 512, 512)), spacing_mm=(1.0, 0.97, 0.97)
    )
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
    import builtins

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

    (data / "b").rename(data / ".b")
    (data / "c").rename(data / ".c")
    monkeypatch.setattr(np, "save", save)
    prepare(data, cache, TINY)
    assert seen == [] and len(list(cache.iterdir())) == 1


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
    assert [case.id for case in prepare(data, cache, TINY)] == ["a", "b", "c"]
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
