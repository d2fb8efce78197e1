"""minikits.segment, the call from Python: the labels of predict.py, in the axes of file or array."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from test_predict import QUICK, here, put, put_scan, put_two_frames

import minikits

__all__ = ["here"]  # the fixture
pytestmark = [
    pytest.mark.usefixtures("no_scan_is_too_small"),
    pytest.mark.filterwarnings("ignore:.*CT in HU"),  # of noise it is not
]

CPU = {"device": "cpu", "precision": "fp32", "mirroring": False}  # QUICK, as keywords


@pytest.fixture
def ours(monkeypatch):
    """The memory that `here` takes for granted."""
    monkeypatch.setattr("minikits.ready.claim_memory", lambda device, needed=0: 2.0**34)


@pytest.fixture
def model(tmp_path):
    """A run folder with the networks of folds 0 and 1."""
    for fold in (0, 1):
        put(tmp_path / "run" / f"fold{fold}" / "checkpoint.pt", fold=str(fold), seed=fold)
    return tmp_path / "run"


def stored(mask):
    """The labels of a mask as the file stores them."""
    return np.asarray(nib.load(mask).dataobj)


def put_turned(path):
    """A scan stored as X Y Z, towards left, back and head, that is no KiTS19 file."""
    voxels = np.random.default_rng(4).integers(-400, 500, (24, 20, 10)).astype(np.int16)
    affine = np.diag([-6.0, -6.0, 8.0, 1.0])
    affine[:3, 3] = (70, 60, -40)
    nib.Nifti1Image(voxels, affine).to_filename(path)
    return path


@pytest.mark.parametrize(
    "options, keywords",
    [
        (QUICK, CPU),
        (QUICK[1:], {**CPU, "mirroring": True}),
        ((*QUICK, "--folds", 1), {**CPU, "folds": [1]}),
        (
            ("--no-mirroring", "--precision", "bf16", "--device", "cpu"),
            {**CPU, "precision": "bf16"},
        ),
    ],
    ids=["quick", "mirrored", "one fold", "bfloat16"],
)
def test_the_labels_are_those_of_predict_py_to_the_bit(model, tmp_path, here, options, keywords):
    scan = put_turned(tmp_path / "scan.nii.gz")
    here("--in", scan, "--out", tmp_path / "masks", "--model", model, *options)
    image = nib.load(scan)

    of_path = minikits.segment(scan, model, **keywords)
    of_array = minikits.segment((np.asarray(image.dataobj), image.affine), model, **keywords)

    wanted = stored(tmp_path / "masks" / "scan.nii.gz")
    assert len(np.unique(wanted)) == 3
    assert of_path.dtype == of_array.dtype == np.uint8
    assert np.array_equal(of_path, wanted)
    assert np.array_equal(of_array, wanted)


def test_floats_as_nibabel_gives_them_are_taken_too(model, tmp_path, ours):
    image = nib.load(put_turned(tmp_path / "scan.nii.gz"))

    whole = minikits.segment((np.asarray(image.dataobj), image.affine), model, **CPU)
    floats = minikits.segment((image.get_fdata(), image.affine), [str(model)], **CPU)

    assert np.array_equal(whole, floats)


def test_several_models_are_averaged(model, tmp_path, here):
    put(tmp_path / "other" / "fold0" / "checkpoint.pt", "residual", seed=5)
    scan = put_scan(tmp_path / "scan.nii.gz")
    models = [model, tmp_path / "other"]
    here("--in", scan, "--out", tmp_path / "masks", *QUICK, "--model", *models)

    labels = minikits.segment(scan, models, **CPU)

    assert np.array_equal(labels, stored(tmp_path / "masks" / "scan.nii.gz"))


def test_options_of_reading_are_those_of_the_command_line(model, tmp_path, here):
    scan = put_two_frames(tmp_path / "scan.nii.gz")
    given = ("--in", scan, "--model", model, *QUICK)
    here(*given, "--out", tmp_path / "masks", "--assume-spacing", 5, 4, 3)

    labels = minikits.segment(scan, model, **CPU, assume_spacing=(5, 4, 3))

    assert np.array_equal(labels, stored(tmp_path / "masks" / "scan.nii.gz"))
    with pytest.raises(ValueError, match="--affine sform or --affine qform chooses one"):
        minikits.segment(scan, model, **CPU)
    with pytest.raises(ValueError, match="more than 99 voxels"):
        minikits.segment(scan, model, **CPU, affine="sform", max_voxels=99)
    with pytest.raises(ValueError, match="affine: given with an array; wanted for a file alone"):
        minikits.segment((np.zeros((4, 4, 4)), np.eye(4)), model, affine="sform")


@pytest.mark.parametrize(
    "voxels, affine, message",
    [
        (np.zeros((4, 4)), np.eye(4), r"array: shape \(4, 4\) of float64 found, wanted three axes"),
        (np.zeros((4, 4, 0)), np.eye(4), "wanted three axes"),
        (np.zeros((4, 4, 4), bool), np.eye(4), "of bool found"),
        (np.zeros((4, 4, 4)), np.eye(3), "wanted \\(4, 4\\)"),
        (np.zeros((40000, 1, 1)), np.eye(4), "at most 32767 voxels along an axis"),
        (np.zeros((4, 4, 4)), np.zeros((4, 4)), "array: its sform .* is not invertible"),
        (np.full((4, 4, 4), np.nan), np.eye(4), "array: 64 voxels are NaN or infinite"),
        (np.full((4, 4, 4), -3e38), np.eye(4), "array: values from .* wanted HU"),
    ],
)
def test_an_array_that_is_no_scan_is_refused_as_a_file_would_be(model, voxels, affine, message):
    with pytest.raises(ValueError, match=message):
        minikits.segment((voxels, affine), model, **CPU)


def test_what_is_too_large_is_refused_before_it_is_tried(model, monkeypatch):
    scan = np.zeros((10, 20, 24), np.int16), np.diag([8.0, 6.0, 6.0, 1.0])
    monkeypatch.setattr("minikits.ready.claim_memory", lambda device, needed=0: 1000.0)

    with pytest.raises(ValueError, match=r"array: has shape .* at the networks' spacing"):
        minikits.segment(scan, model, **CPU)


def test_what_predict_py_would_warn_of_is_a_warning(model, tmp_path, ours):
    put(tmp_path / "run" / "fold1" / "checkpoint.pt", fold="1", seed=1, epoch=1)
    scan = put_scan(tmp_path / "scan.nii.gz", shape=(4, 20, 24))

    with pytest.warns(UserWarning) as told:
        minikits.segment(scan, model, **CPU)

    lines = [str(warning.message) for warning in told]
    assert f"{scan}: covers 32 mm along Z, wanted 40 or more; is this the whole scan?" in lines
    assert any("its training was stopped after 1 of 2 epochs" in line for line in lines)
    assert {warning.filename for warning in told} == {__file__}  # it is the caller's to look


def test_the_package_is_imported_without_torch():
    code = "import sys, minikits; print(minikits.segment.__name__, 'torch' in sys.modules)"

    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert said.stdout == "segment False\n"


def test_the_example_of_the_documentation_runs(tmp_path, ours, monkeypatch):
    using = (ROOT / "docs" / "using.md").read_text()
    code = using.partition("```python\nimport minikits\n")[2].partition("```")[0]
    put(tmp_path / "runs" / "residual" / "fold0" / "checkpoint.pt", "residual")
    put_turned(tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)

    names = {"minikits": minikits}
    exec(compile(code, "using.md", "exec"), names)

    assert np.array_equal(stored(tmp_path / "mask.nii.gz"), names["labels"])
    assert np.array_equal(nib.load("mask.nii.gz").affine, nib.load("scan.nii.gz").affine)
