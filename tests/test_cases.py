"""Which cases there are, which are trained on, and what their masks are named."""

import os

import pytest
from conftest import link_to_nothing, touch

from minikits.cases import (
    Case,
    Found,
    find_cases,
    find_masks,
    look_for_training_cases,
    mask_name,
    training_cases,
)
from minikits.paper import PAPER


def test_labels_without_an_image_are_counted(tmp_path):
    touch(tmp_path, "case_00001/segmentation.nii.gz", "case_00002/segmentation.nii.gz")

    wanted = r"2 labelled cases have no image \(case_00001, case_00002\); get what is missing$"
    with pytest.raises(ValueError, match=wanted):
        training_cases(tmp_path, PAPER)


def test_the_papers_exclusions_and_unlabelled_cases_are_left_out(tmp_path):
    for id in ("case_00022", "case_00023", "case_00068"):
        touch(tmp_path, f"{id}/imaging.nii.gz", f"{id}/segmentation.nii.gz")
    touch(tmp_path, "case_00210/imaging.nii.gz")

    found = [case.id for case in find_cases(tmp_path)]
    trained_on = [case.id for case in training_cases(tmp_path, PAPER)]

    assert found == ["case_00022", "case_00023", "case_00068", "case_00210"]
    assert trained_on == ["case_00022"]


def test_folders_without_cases_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_cases(tmp_path / "absent")

    touch(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match=r"no scans or cases found.*found notes\.txt"):
        find_cases(tmp_path)

    touch(tmp_path, "case_00001/segmentation.nii.gz")
    with pytest.raises(ValueError, match=r"1 labelled case has no image \(case_00001"):
        training_cases(tmp_path, PAPER)


def test_a_folder_of_dicom_files_is_refused_with_what_converts_them(tmp_path):
    touch(tmp_path, "series/IM0001.DCM", "series/IM0002.DCM", "other/notes.txt")

    with pytest.raises(
        ValueError, match=r"found IM0001\.DCM, .*; DICOM is converted .* dcm2niix: "
    ):
        find_cases(tmp_path / "series")
    with pytest.raises(ValueError, match=r"found notes\.txt$"):
        find_cases(tmp_path / "other")


def test_dicom_is_known_by_what_stands_in_it_and_in_folders_of_folders(tmp_path):
    """As a scanner's disc has it: PATIENT/SERIES/IM0001, no ending."""
    series = tmp_path / "disc" / "PATIENT" / "SERIES"
    series.mkdir(parents=True)
    (series / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(100))
    touch(tmp_path, "words/DICM")  # the name is not the word
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "words" / "pipe")  # which nobody writes into

    for source in (tmp_path / "disc", series, series / "IM0001"):
        with pytest.raises(ValueError, match=r"; DICOM is converted first, with dcm2niix"):
            find_cases(source)
    with pytest.raises(ValueError, match=r"found DICM(, pipe)?$"):
        find_cases(tmp_path / "words")


def test_two_files_for_one_case_are_refused(tmp_path):
    touch(tmp_path, "case_00001/imaging.nii.gz", "case_00001/imaging.nii")

    with pytest.raises(ValueError, match=r"imaging\.nii has the same name case_00001"):
        find_cases(tmp_path)


def test_what_is_found_and_left_out_is_said_in_one_line():
    cases = [Case("a"), Case("b")]
    left_out = ["c (a link to nothing)", "d (no labels)"]

    assert Found(cases, []).summary() == "2 cases found"
    assert Found(cases[:1], left_out).summary() == (
        "1 case found, 2 left out: c (a link to nothing), d (no labels)"
    )


def test_of_many_that_are_left_out_the_first_twenty_are_named():
    left_out = [f"n{number} (no labels)" for number in range(22)]

    many = Found([], left_out).summary()

    assert many.startswith("0 cases found, 22 left out: n0 (no labels), n1 (no labels)")
    assert many.endswith("n19 (no labels) and 2 more")


def test_cases_that_the_recipe_or_missing_labels_leave_out_are_named(tmp_path):
    for id in ("case_00022", "case_00023"):
        touch(tmp_path, f"{id}/imaging.nii.gz", f"{id}/segmentation.nii.gz")
    touch(tmp_path, "case_00210/imaging.nii.gz")

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
    touch(tmp_path, "prediction_00001.nii.gz", "case_00002.nii.gz", "prediction_a.nii.gz")
    touch(tmp_path, "a_prediction_00003.nii.gz", "prediction_000004.nii.gz")
    touch(tmp_path, "prediction.json", ".x.nii.gz")
    touch(tmp_path, "probabilities/prediction_00001_kidney.nii.gz")

    masks = find_masks(tmp_path)

    assert masks == {
        "case_00001": tmp_path / "prediction_00001.nii.gz",
        "case_00002": tmp_path / "case_00002.nii.gz",
        "prediction_a": tmp_path / "prediction_a.nii.gz",
        "a_prediction_00003": tmp_path / "a_prediction_00003.nii.gz",
        "prediction_000004": tmp_path / "prediction_000004.nii.gz",
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

    said = str(refusal.value)
    folder = cases[0].split("/")[0]
    assert f"{tmp_path}: {stray} beside folders of cases (" in said
    assert folder in said and "move" in said


def test_cases_are_sorted_by_their_ids_whatever_folder_they_come_from(tmp_path):
    touch(tmp_path, "b/imaging.nii.gz", "images/a.nii.gz", "images/c_0000.nii.gz")
    touch(tmp_path, "labels/A.nii.gz")

    assert [case.id for case in find_cases(tmp_path)] == ["A", "a", "b", "c"]


def test_labels_in_both_layouts_for_one_case_are_refused(tmp_path):
    touch(tmp_path, "case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz")
    touch(tmp_path, "labels/case_00000.nii.gz")

    with pytest.raises(ValueError, match="has the same name case_00000; rename or remove one"):
        find_cases(tmp_path)


def test_where_nothing_is_left_the_refusal_names_what_was_left_out(tmp_path):
    link_to_nothing(tmp_path / "a.nii.gz")

    wanted = r"no scans or cases found.*a\.nii\.gz \(a link to nothing\)"
    with pytest.raises(ValueError, match=wanted):
        find_cases(tmp_path)


def test_where_labels_have_no_image_the_refusal_names_what_was_left_out(tmp_path):
    link_to_nothing(tmp_path / "a.nii.gz")
    touch(tmp_path, "case_00001/segmentation.nii.gz")
    link_to_nothing(tmp_path / "case_00001" / "imaging.nii.gz")

    wanted = (
        r"1 labelled case has no image \(case_00001\); get what is missing; "
        r"left out: .*case_00001/imaging\.nii\.gz \(a link to nothing"
    )
    with pytest.raises(ValueError, match=wanted):
        training_cases(tmp_path, PAPER)


def test_where_nothing_is_labelled_the_refusal_names_what_was_left_out(tmp_path):
    touch(tmp_path, "case_00210/imaging.nii.gz")

    with pytest.raises(ValueError, match=r"no labelled cases found.*case_00210 \(no labels\)"):
        training_cases(tmp_path, PAPER)


def test_a_link_to_nothing_among_training_cases_is_named(tmp_path):
    touch(tmp_path, "case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz")
    link_to_nothing(tmp_path / "case_00001")

    found = look_for_training_cases(tmp_path, PAPER)

    assert found.summary() == "1 case found, 1 left out: case_00001 (a link to nothing)"
