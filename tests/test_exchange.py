"""What goes to other programs and comes from other data sets, as docs/using.md has it."""

import doctest
import re

import numpy as np
import pytest
from conftest import ROOT

from minikits.cases import look_for_cases
from minikits.nifti import read_labels, write_image
from minikits.paper import CLASSES

USING = ROOT / "docs" / "using.md"


@pytest.fixture
def kits23(tmp_path, monkeypatch):
    """A case as KiTS23 lays it out: of 8 voxels two are background, kidney, tumor and cyst each."""
    monkeypatch.chdir(tmp_path)
    case = tmp_path / "kits23" / "dataset" / "case_00001"
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3], dtype=np.int16).reshape(2, 2, 2)
    write_image(case / "segmentation.nii.gz", labels, (5.0, 3.0, 3.0))
    write_image(case / "imaging.nii.gz", labels, (5.0, 3.0, 3.0))
    return case


def test_labels_of_kits23_are_refused_by_their_third_value(kits23):
    with pytest.raises(ValueError, match="label values 3 found, wanted only 0"):
        read_labels(kits23 / "segmentation.nii.gz")


def test_labels_of_kits23_become_kits19s_by_the_lines_of_the_page(kits23):
    """A cyst is kidney then, and the case lies where training finds it, in the same frame."""
    tried = doctest.testfile(str(USING), module_relative=False)

    (case,) = look_for_cases("data").cases
    labels = read_labels(case.labels)
    assert tried.attempted >= 4 and tried.failed == 0
    assert labels.voxels.ravel().tolist() == [0, 0, 1, 1, 2, 2, 1, 1]
    assert labels.spacing_mm == (5.0, 3.0, 3.0)
    assert case.image.resolve() == kits23 / "imaging.nii.gz"


def test_the_lines_of_the_page_may_be_run_again(kits23):
    for _ in range(2):
        assert doctest.testfile(str(USING), module_relative=False).failed == 0

    (case,) = look_for_cases("data").cases
    assert case.image.resolve() == kits23 / "imaging.nii.gz"


def test_the_refusal_of_a_cyst_and_of_dicom_lead_to_a_section_of_the_page():
    assert "\n## What comes and goes\n" in USING.read_text()


def rows_of(name, pattern):
    """The rows of a table of colours in docs/ that a pattern finds: tuples of text."""
    text = (ROOT / "docs" / name).read_text()
    return re.findall(pattern, text, flags=re.MULTILINE)


def test_itk_snaps_labels_are_the_masks():
    """Index, red, green, blue, opacity, visibility twice, name in quotes."""
    row = r'^ +(\d+) +(\d+) +(\d+) +(\d+) +([01]) +([01]) +([01]) +"(.+)"$'

    rows = rows_of("kidney_tumor.label", row)

    assert [int(index) for index, *_ in rows] == [0, 1, 2]
    assert [name for *_, name in rows] == ["Clear Label", *CLASSES[1:]]


def test_slicers_colours_are_itk_snaps():
    """Value, name, red, green, blue, opacity; the background is transparent."""
    slicer = rows_of("kidney_tumor.ctbl", r"^(\d+) (\w+) (\d+) (\d+) (\d+) (\d+)$")
    snap = rows_of("kidney_tumor.label", r"^ +\d+ +(\d+) +(\d+) +(\d+) ")

    assert [(value, name) for value, name, *_ in slicer] == [
        (str(value), name) for value, name in enumerate(CLASSES)
    ]
    assert [(red, green, blue) for _, _, red, green, blue, _ in slicer] == snap
    assert [opacity for *_, opacity in slicer] == ["0", "255", "255"]
