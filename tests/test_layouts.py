"""Which files belong to a case, and what else looks like one: all of it is used or named."""

import errno
import json
import os
from pathlib import Path

import pytest
from conftest import link_to_nothing, touch

from minikits.cases import find_cases, look_for_cases, training_cases
from minikits.layouts import image_beside
from minikits.paper import PAPER
from minikits.scans import find_scans as find_scans_and_masks


def find_scans(folder):
    """The ids of the cases that have an image."""
    return [case.id for case in find_cases(folder) if case.image]


def lines(folder):
    """What `look_for_cases` leaves out."""
    return look_for_cases(folder).left_out


def names(cases):
    """The ids of cases and the names of their files."""
    return [(case.id, case.image.name, case.labels.name) for case in cases]


# Files that are used.


def test_the_image_beside_the_labels_of_a_kits19_case(tmp_path):
    touch(tmp_path, "a/segmentation.nii.gz", "a/imaging.nii", "a/other.nii.gz")
    touch(tmp_path, "b/segmentation.nii.gz")

    assert image_beside(tmp_path / "a" / "segmentation.nii.gz") == tmp_path / "a" / "imaging.nii"
    assert image_beside(tmp_path / "a" / "other.nii.gz") is None
    assert image_beside(tmp_path / "b" / "segmentation.nii.gz") is None
    assert image_beside(tmp_path / "a") is None


def test_a_flat_pair_of_folders(tmp_path):
    touch(tmp_path, "images/a_0000.nii.gz", "images/b.nii", "images/.hidden.nii")
    touch(tmp_path, "labels/a.nii.gz", "labels/b.nii.gz")

    cases = find_cases(tmp_path)

    assert names(cases) == [("a", "a_0000.nii.gz", "a.nii.gz"), ("b", "b.nii", "b.nii.gz")]


def test_a_case_whose_own_name_ends_in_0000_keeps_it_in_labels(tmp_path):
    """nnU-Net adds its `_0000` to the names of images: those of `a` and of `a_0000` are these."""
    touch(tmp_path, "images/a_0000.nii.gz", "images/a_0000_0000.nii.gz")
    touch(tmp_path, "labels/a.nii.gz", "labels/a_0000.nii.gz")

    cases = find_cases(tmp_path)

    assert names(cases) == [
        ("a", "a_0000.nii.gz", "a.nii.gz"),
        ("a_0000", "a_0000_0000.nii.gz", "a_0000.nii.gz"),
    ]


def test_labels_that_bear_their_images_whole_name_are_of_its_case(tmp_path):
    touch(tmp_path, "images/a_0000.nii.gz", "labels/a_0000.nii.gz")
    touch(tmp_path, "b_0000/imaging.nii.gz", "Labels/b_0000.nii.gz")

    cases = find_cases(tmp_path)

    assert names(cases) == [
        ("a", "a_0000.nii.gz", "a_0000.nii.gz"),
        ("b_0000", "imaging.nii.gz", "b_0000.nii.gz"),
    ]


def test_kits19s_images_with_labels_in_a_folder_of_their_own_are_the_same_cases(tmp_path):
    touch(tmp_path, "case_00000/imaging.nii.gz", "case_00001/imaging.nii.gz")
    touch(tmp_path, "labels/case_00000.nii.gz", "labels/case_00001.nii.gz")

    found = look_for_cases(tmp_path)

    assert names(found.cases) == [
        ("case_00000", "imaging.nii.gz", "case_00000.nii.gz"),
        ("case_00001", "imaging.nii.gz", "case_00001.nii.gz"),
    ]
    assert found.left_out == []


def test_scans_of_both_layouts(tmp_path):
    touch(tmp_path, "flat/one_0000.nii.gz", "flat/two.nii", "flat/notes.txt")
    touch(tmp_path, "kits/case_00210/imaging.nii.gz")

    assert find_scans(tmp_path / "flat") == ["one", "two"]
    assert find_scans(tmp_path / "kits") == ["case_00210"]


def test_two_scans_whose_names_differ_in_0000_alone_are_refused(tmp_path):
    touch(tmp_path, "one_0000.nii.gz", "one.nii")

    with pytest.raises(ValueError, match="same name one"):
        find_scans(tmp_path)


def test_a_kits19_case_by_itself_bears_its_cases_name(tmp_path):
    touch(tmp_path, "case_00210/imaging.nii.gz", "case_00210/segmentation.nii.gz")

    assert find_scans(tmp_path / "case_00210" / "imaging.nii.gz") == ["case_00210"]
    assert find_scans(tmp_path / "case_00210") == ["case_00210"]


def test_links_to_files_are_taken_where_they_lie(tmp_path):
    touch(tmp_path, "store/1/x.nii.gz", "store/2/y.nii.gz")
    case_folder = tmp_path / "kits" / "case_00001"
    case_folder.mkdir(parents=True)
    (case_folder / "imaging.nii.gz").symlink_to(tmp_path / "store/1/x.nii.gz")
    (case_folder / "segmentation.nii.gz").symlink_to(tmp_path / "store/2/y.nii.gz")

    (case,) = find_cases(tmp_path / "kits")

    assert case.id == "case_00001" and case.image and case.labels


def test_links_to_folders_are_taken_where_they_lie(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "images").symlink_to(tmp_path / "imagesTr")
    (tmp_path / "pair" / "labels").symlink_to(tmp_path / "labelsTr")

    (case,) = find_cases(tmp_path / "pair")

    assert case.id == "a" and case.image and case.labels


def test_files_named_in_capitals_are_cases_too(tmp_path):
    touch(tmp_path, "flat/SCAN.NII.GZ", "flat/other.Nii")
    touch(tmp_path, "kits/case_00000/Imaging.NII.gz")
    touch(tmp_path, "pair/Images/a_0000.NII", "pair/Labels/A.NII", "pair/Labels/a.NII")

    pair = [(case.id, bool(case.image)) for case in find_cases(tmp_path / "pair")]

    assert find_scans(tmp_path / "flat") == ["SCAN", "other"]
    assert find_scans(tmp_path / "kits") == ["case_00000"]
    assert pair == [("A", False), ("a", True)]


def test_two_scans_whose_names_differ_in_the_capitals_of_their_ends_are_refused(tmp_path):
    touch(tmp_path, "SCAN.NII.GZ", "SCAN.nii.gz")

    with pytest.raises(ValueError, match="same name SCAN"):
        find_cases(tmp_path)


def test_a_name_with_a_line_break_is_a_name(tmp_path):
    touch(tmp_path, "a\nb.nii.gz")

    assert find_scans(tmp_path) == ["a\nb"]


def test_hidden_files_and_folders_are_no_cases_and_not_named(tmp_path):
    touch(tmp_path, "case_00000/imaging.nii.gz", "case_00000/._imaging.nii.gz")
    touch(tmp_path, ".case_00000.old/imaging.nii.gz", "._case_00000.nii.gz", ".Trash/a.nii.gz")

    found = look_for_cases(tmp_path)

    assert [case.id for case in found.cases] == ["case_00000"]
    assert found.left_out == []


# What is left out, and named.

NO_CASE_INSIDE = "neither imaging.nii.gz nor segmentation.nii.gz in it"
STRANGE_NAME = "neither imaging nor segmentation, nor in images/ or labels/"


def link_to_itself(path):
    path.symlink_to(path)


def folder_with(*names):
    def make(path):
        path.mkdir(parents=True)
        touch(path, *names)

    return make


def empty_file(path):
    touch(path.parent, path.name)


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

    assert len(found.cases) == 1
    assert found.left_out == [line]


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
    touch(tmp_path, "kits/case_00000/imaging.nii.gz", "kits/case_00001/notes.txt", "kits/notes.txt")
    touch(tmp_path, "flat/a.nii.gz", "flat/b/notes.txt")

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


# nnU-Net's raw folder: imagesTr/, labelsTr/, dataset.json


def raw_folder(folder, **description):
    """One of two cases, and a test scan beside them."""
    touch(folder, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "imagesTs/c_0000.nii.gz")
    touch(folder, "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


V2 = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "kidney": 1, "tumor": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
V1 = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "Kidney", "2": "Tumor"}}


def test_nnunets_raw_folder_is_a_pair_too(tmp_path):
    found = look_for_cases(raw_folder(tmp_path, **V2))

    assert names(found.cases) == [
        ("a", "a_0000.nii.gz", "a.nii.gz"),
        ("b", "b_0000.nii.gz", "b.nii.gz"),
    ]
    assert found.left_out == [f"imagesTs/c_0000.nii.gz ({STRANGE_NAME})"]
    assert find_scans(tmp_path / "imagesTs") == ["c"]


@pytest.mark.parametrize(
    "description",
    [
        V2,
        V1,
        {"labels": {"background": 0, "kidney": 1, "kidney tumour": 2}},
        {"labels": {"background": 0, "whole kidney": [1, 2], "kidney_tumor": [2]}},
        {"labels": {"background": 0, "organ": 1, "lesion": 2}},
        {"name": "of another program"},
    ],
)
def test_a_dataset_json_with_the_labels_of_here_is_believed(tmp_path, description):
    raw_folder(tmp_path, **description)

    assert [case.id for case in training_cases(tmp_path, PAPER)] == ["a", "b"]


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ({"background": 0, "tumor": 1, "kidney": 2}, "tumor has label 1, wanted 0"),
        ({"0": "background", "1": "Tumor", "2": "Kidney"}, "Tumor has label 1, wanted 0"),
        ({"kidney": 1, "tumor": 2, "cyst": 3}, "cyst has label 3, wanted 0"),
        (
            {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2},
            "kidney has label 1, 2, 3, wanted 0",
        ),
    ],
)
def test_labels_that_dataset_json_says_are_others_are_refused(tmp_path, labels, complaint):
    raw_folder(tmp_path, labels=labels)

    with pytest.raises(ValueError, match=rf"dataset\.json: {complaint}") as refused:
        training_cases(tmp_path, PAPER)

    assert "0 (background), 1 (kidney), 2 (tumor) and no others" in str(refused.value)


def test_several_images_of_a_case_are_refused(tmp_path):
    raw_folder(tmp_path, channel_names={"0": "CT", "1": "PET"})

    with pytest.raises(ValueError, match=r"dataset\.json: 2 images of a case, wanted one"):
        training_cases(tmp_path, PAPER)


def test_labels_of_no_known_form_are_refused(tmp_path):
    raw_folder(tmp_path, labels={"kidney": "one"})

    with pytest.raises(ValueError, match=r"labels .*one.*, wanted \{name: value\}"):
        training_cases(tmp_path, PAPER)


def test_a_dataset_json_that_is_no_object_is_of_another_program(tmp_path):
    raw_folder(tmp_path)
    (tmp_path / "dataset.json").write_text("[1, 2]")

    assert len(training_cases(tmp_path, PAPER)) == 2


@pytest.mark.parametrize("source", [".", "imagesTr"])
def test_nnunets_labels_are_no_place_for_masks(tmp_path, source):
    raw_folder(tmp_path, **V2)

    with pytest.raises(ValueError, match="scans or labels lie there"):
        find_scans_and_masks(tmp_path / source, tmp_path / "labelsTr", [], PAPER)
