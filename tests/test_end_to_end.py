"""The scripts, run as a user runs them."""

import csv
import json
import re
import shutil
from dataclasses import asdict
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, predict_volume, run_script

from minikits.cases import five_folds
from minikits.checkpoints import load_checkpoint
from minikits.evaluation import kits_dice
from minikits.nifti import read_labels, read_volume, write_image, write_labels
from minikits.paper import DEMO, departures
from minikits.unet import build_unet


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.json"
    path.write_text(json.dumps(asdict(TINY)))
    return path


@pytest.fixture(scope="module")
def trained(phantoms, recipe, tmp_path_factory):
    """(out folder, what was printed) of one short training."""
    out = tmp_path_factory.mktemp("runs")
    return out, run_script("train.py", "--data", phantoms, "--out", out, "--recipe", recipe)


def test_training_leaves_a_run_that_can_be_audited(trained, phantoms):
    out, printed = trained
    run = out / "residual" / "fold0"
    ids = sorted(path.name for path in phantoms.iterdir())
    train_ids, validation_ids = five_folds(ids)[0]
    assert {path.name for path in run.iterdir()} == {
        "checkpoint.pt",
        "learning_curve.png",
        "log.csv",
        "model_card.md",
    }
    rows = list(csv.DictReader((run / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"] and float(rows[1]["loss"]) < 2
    assert float(rows[1]["learning_rate"]) == pytest.approx(0.01 * 0.5**0.9)
    checkpoint = load_checkpoint(run / "checkpoint.pt")
    assert (
        checkpoint["cases"] == {"train": train_ids, "validation": validation_ids}
        and checkpoint["recipe"] == TINY
    )
    for line in (
        "patch: (16, 32, 32) (paper: (80, 160, 160))",
        "epoch 2 of 2",
        "patch Dice kidney",
        "0:00:00 left",
        "predict.py --cross-validation",
    ):
        assert line in printed


def test_a_run_is_not_overwritten_and_not_resumed_as_another(trained, phantoms, recipe):
    out, _ = trained
    again = ("train.py", "--data", phantoms, "--out", out, "--recipe", recipe)
    assert "this run exists; go on with --resume" in run_script(*again, expect=2)
    assert "another seed" in run_script(*again, "--resume", "--seed", 1, expect=2)
    assert "epoch 1 of 2" not in run_script(*again, "--resume")


def test_resumed_equals_uninterrupted(trained, phantoms, recipe, tmp_path):
    """The run is cut after its first epoch; the second gives the same weights to the bit."""
    longer = json.loads(recipe.read_text())
    code = (
        "import sys, train, torch\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "train.report = stop\n"
        "sys.argv[0] = 'train.py'\n"
        "train.main()\n"
    )
    arguments = ("--data", phantoms, "--out", tmp_path, "--recipe", recipe)
    assert longer["epochs"] == 2
    run_script("-c", code, *arguments, expect=130)
    assert load_checkpoint(tmp_path / "residual" / "fold0" / "checkpoint.pt")["iteration"] == 3
    assert "resumed after epoch 1" in run_script("train.py", *arguments, "--resume")
    one, two = (
        load_checkpoint(out / "residual" / "fold0" / "checkpoint.pt")
        for out in (trained[0], tmp_path)
    )
    assert all(torch.equal(value, two["network"][name]) for name, value in one["network"].items())
    assert [row["loss"] for row in one["log"]] == [row["loss"] for row in two["log"]]


def test_predict_and_evaluate(trained, phantoms, tmp_path):
    out, _ = trained
    masks, model = tmp_path / "masks", out / "residual"
    arguments = (
        "predict.py",
        "--in",
        phantoms,
        "--out",
        masks,
        "--model",
        model,
        "--precision",
        "fp32",
    )
    printed = run_script(*arguments)
    assert len(re.findall(r"kidney \d+ ml, tumor \d+ ml", printed)) == 6 and "6 of 6" in printed
    mask, scan = (
        nib.load(masks / "phantom_0.nii.gz"),
        nib.load(phantoms / "phantom_0" / "imaging.nii.gz"),
    )
    assert (
        mask.shape == scan.shape
        and np.allclose(mask.affine, scan.affine)
        and mask.get_data_dtype() == np.uint8
    )
    checkpoint = load_checkpoint(model / "fold0" / "checkpoint.pt")
    network = build_unet("residual", TINY)
    network.load_state_dict(checkpoint["network"])
    volume = read_volume(phantoms / "phantom_0" / "imaging.nii.gz")
    assert np.array_equal(
        read_labels(masks / "phantom_0.nii.gz").voxels, predict_volume([network], volume, TINY)
    )

    before = (masks / "phantom_1.nii.gz").stat().st_mtime_ns
    (masks / "phantom_0.nii.gz").unlink()
    assert "the masks here are of other networks or options" in run_script(
        *arguments, "--no-mirroring", expect=2
    )
    assert "5 of 6 scans have a mask already" in run_script(*arguments)
    assert (masks / "phantom_1.nii.gz").stat().st_mtime_ns == before and (
        masks / "phantom_0.nii.gz"
    ).exists()

    report = tmp_path / "report"
    printed = run_script("evaluate.py", "--pred", masks, "--ref", phantoms, "--out", report)
    rows = {row["case"]: row for row in csv.DictReader((report / "cases.csv").open())}
    reference = read_labels(phantoms / "phantom_2" / "segmentation.nii.gz").voxels
    wanted = kits_dice(read_labels(masks / "phantom_2.nii.gz").voxels, reference)
    assert float(rows["phantom_2"]["kidney"]) == pytest.approx(wanted[0])
    assert set(json.loads((report / "summary.json").read_text())) == {
        "kidney",
        "tumor",
        "composite",
    }
    assert len(list((report / "overlays").glob("*.png"))) == 6 and "mean" in printed
    assert "its networks were trained on 4 of these cases" in printed


def test_bad_scans_do_not_stop_the_good_ones(trained, phantoms, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(phantoms / "phantom_0" / "imaging.nii.gz", scans / "good_0000.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"<html>")
    arguments = ("predict.py", "--in", scans, "--model", trained[0] / "residual", "--no-mirroring")
    printed = run_script(*arguments, "--out", tmp_path / "masks", expect=2)
    assert "bad.nii.gz: starts with b'<html>'" in printed
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {
        "good.nii.gz",
        "prediction.json",
        "prediction.csv",
    }
    (scans / "bad.nii.gz").unlink()
    (scans / "good_0000.nii.gz").rename(scans / "good.nii.gz")
    before = (scans / "good.nii.gz").read_bytes()
    assert "scans or labels lie there" in run_script(
        *arguments, "--out", scans, "--overwrite", expect=2
    )
    assert (scans / "good.nii.gz").read_bytes() == before


def test_kits19_names(trained, phantoms, tmp_path):
    shutil.copytree(phantoms / "phantom_0", tmp_path / "kits" / "case_00210")
    arguments = (
        "predict.py",
        "--in",
        tmp_path / "kits",
        "--model",
        trained[0] / "residual",
        "--no-mirroring",
    )
    run_script(*arguments, "--out", tmp_path / "masks")
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {
        "prediction_00210.nii.gz",
        "prediction.json",
        "prediction.csv",
    }
    assert "case_00210" in run_script(
        "evaluate.py", "--pred", tmp_path / "masks", "--ref", tmp_path / "kits"
    )


def test_complaints_are_one_line_and_exit_with_2(trained, phantoms, recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    model = ("--model", trained[0] / "residual")
    for arguments, complaint in [
        (("train.py", "--data", tmp_path / "absent"), "absent: no such file or folder"),
        (("train.py", "--data", tmp_path / "empty"), "empty: no scans or cases found"),
        (
            ("train.py", "--data", phantoms, "--recipe", tmp_path / "broken.json"),
            "broken.json: no JSON file",
        ),
        (("train.py", "--data", phantoms, "--recipe", "other"), "other: no JSON file"),
        (("predict.py", "--in", tmp_path / "empty", "--out", tmp_path, *model), "empty: no"),
        (
            ("predict.py", "--in", phantoms, "--out", tmp_path / "m", *model, "--folds", 3),
            "fold3/checkpoint.pt: no",
        ),
        (
            ("predict.py", "--in", recipe, "--out", tmp_path / "m", *model),
            "no scans or cases found",
        ),
        (("evaluate.py", "--pred", tmp_path / "empty", "--ref", phantoms), "empty: no"),
    ]:
        printed = run_script(*arguments, expect=2)
        assert complaint in printed, printed
        assert len([line for line in printed.splitlines() if ", epoch " not in line]) == 1, printed


def test_missing_masks_are_listed(phantoms, tmp_path):
    volume = read_labels(phantoms / "phantom_0" / "segmentation.nii.gz")
    write_labels(tmp_path / "phantom_0.nii.gz", volume.voxels, volume)
    arguments = ("evaluate.py", "--pred", tmp_path, "--ref", phantoms)
    assert "5 cases have no mask (phantom_1, phantom_2" in run_script(*arguments, expect=2)
    assert "100.00" in run_script(*arguments, "--allow-missing")
    small = read_volume(phantoms / "phantom_0" / "imaging.nii.gz")
    for name, voxels in (("imaging", small.voxels[2:]), ("segmentation", volume.voxels)):
        write_image(tmp_path / "ref" / "phantom_0" / f"{name}.nii.gz", voxels, volume.spacing_mm)
    said = run_script(
        "evaluate.py", "--pred", tmp_path, "--ref", tmp_path / "ref", "--out", tmp_path / "r"
    )
    assert (
        "100.00" in said
        and "pictures left out: phantom_0 (" in said
        and "shape (28, 64, 70), but" in said
    )
    write_labels(tmp_path / "stranger.nii.gz", volume.voxels, volume)
    assert "1 case has no reference (stranger)" in run_script(*arguments, expect=2)


def test_real_labels_against_themselves(kits19, tmp_path):
    """evaluate.py on the label files of three cases, flat, against their KiTS19 folder."""
    for id in ("case_00010", "case_00015", "case_00061"):
        shutil.copy(kits19 / id / "segmentation.nii.gz", tmp_path / f"prediction_{id[-5:]}.nii.gz")
    printed = run_script("evaluate.py", "--pred", tmp_path, "--ref", kits19, "--allow-missing")
    assert printed.count("100.00     100.00     100.00") == 3 + len(("mean",))


def test_all_48_orientations_of_a_real_ct_give_the_same_mask(real_ct, trained, tmp_path):
    scan = nib.load(real_ct)
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    scans.mkdir()
    orientations = [
        np.column_stack([axes, flips])
        for axes, flips in product(permutations(range(3)), product((1, -1), repeat=3))
    ]
    for number, orientation in enumerate(orientations):
        nib.save(scan.as_reoriented(orientation), scans / f"turned_{number:02d}.nii.gz")
    run_script(
        "predict.py",
        "--in",
        scans,
        "--out",
        masks,
        "--model",
        trained[0] / "residual",
        "--no-mirroring",
    )
    reference = np.asarray(nib.load(masks / "turned_00.nii.gz").dataobj)
    assert reference.shape == scan.shape and reference.any(axis=(0, 1)).sum() > 0
    for number in range(len(orientations)):
        mask = nib.load(masks / f"turned_{number:02d}.nii.gz")
        back = mask.as_reoriented(
            nib.orientations.ornt_transform(
                nib.io_orientation(mask.affine), nib.io_orientation(scan.affine)
            )
        )
        assert np.array_equal(np.asarray(back.dataobj), reference) and np.allclose(
            back.affine, scan.affine, atol=1e-3
        )


def test_the_demo_recipe_differs_in_size_alone():
    changed = {line.split(":")[0] for line in departures(DEMO)}
    assert changed == {
        "spacing_mm",
        "patch",
        "plain_features",
        "residual_features",
        "max_features",
        "epochs",
        "batches_per_epoch",
        "validation_batches",
        "learning_rate",
        "momentum",
    }


def test_the_makefile_and_its_plain_lines_agree():
    """For those without make: what `make demo` runs is in docs/using.md, the rest in results.md."""
    makefile = (ROOT / "Makefile").read_text()
    using, results = (ROOT / "docs" / page for page in ("using.md", "results.md"))
    pages = using.read_text() + results.read_text()
    lines = [line.strip() for line in makefile.splitlines() if line.startswith("\t$(RUN)")]
    assert len(lines) >= 6
    for line in lines:
        plain = line.replace("$(RUN)", "python").replace("$(DEMO)", "demo")
        assert plain in pages, plain
