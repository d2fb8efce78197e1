"""predict.py and evaluate.py: ensembles, cross-validation, probabilities, and scans shared by processes."""

import json
import subprocess
import sys
import time
from dataclasses import asdict

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, TORCHRUN, predict_volume, run_script

from minikits.cases import five_folds
from minikits.checkpoints import save_checkpoint
from minikits.evaluation import kits_dice
from minikits.prediction import predict_probabilities
from minikits.resampling import label_orders, prepare_image, resample
from minikits.unet import build_unet
from minikits.volumes import read_labels, read_volume


def put(path, arch, fold, cases, seed):
    """A checkpoint of an untrained network whose last layer is loud enough for all three classes to win somewhere."""
    torch.manual_seed(seed)
    network = build_unet(arch, TINY)
    with torch.no_grad():
        network.heads[-1].weight.mul_(3)
    save_checkpoint(path, arch=arch, recipe=asdict(TINY), fold=fold, seed=seed, epoch=2, log=[], optimizer={},
                    cases=dict(zip(("train", "validation"), cases)), network=network.state_dict())
    return network.eval()


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory):
    """(folder with plain/ and residual/ of folds 0 to 4, {(arch, fold): network}, the folds)."""
    out, networks = tmp_path_factory.mktemp("runs"), {}
    folds = five_folds([path.name for path in phantoms.iterdir()])
    for arch in ("plain", "residual"):
        for fold, cases in enumerate(folds):
            path = out / arch / f"fold{fold}" / "checkpoint.pt"
            networks[arch, fold] = put(path, arch, str(fold), cases, seed=10 * len(arch) + fold)
    return out, networks, folds


def test_cross_validation_takes_the_networks_that_did_not_see_the_case(runs, phantoms, tmp_path):
    out, networks, folds = runs
    arguments = ("predict.py", "--in", phantoms, "--cross-validation", "--no-mirroring", "--precision", "fp32",
                 "--model")
    run_script(*arguments, out / "plain", "--out", tmp_path / "plain")
    run_script(*arguments, out / "plain", out / "residual", "--out", tmp_path / "ensemble")
    for fold, (_, validation) in enumerate(folds):
        for id in validation:
            volume = read_volume(phantoms / id / "imaging.nii.gz")
            for name, archs in (("plain", ["plain"]), ("ensemble", ["plain", "residual"])):
                wanted = predict_volume([networks[arch, fold] for arch in archs], volume, TINY, mirroring=False)
                found = read_labels(tmp_path / name / f"{id}.nii.gz").voxels
                assert np.array_equal(found, wanted) and len(np.unique(wanted)) == 3
    printed = run_script("evaluate.py", "--pred", tmp_path / "plain", tmp_path / "ensemble", "--ref", phantoms, "--out",
                         tmp_path / "report")
    assert "its networks were trained" not in printed and "97.34" in printed and "97.43" in printed and "(p " in printed
    compared = json.loads((tmp_path / "report" / "comparison.json").read_text())
    reference, mask = (read_labels(path).voxels for path in (
        phantoms / "phantom_3" / "segmentation.nii.gz", tmp_path / "plain" / "phantom_3.nii.gz"))
    assert f"{100 * kits_dice(mask, reference)[0]:.2f}" in printed
    assert sorted(compared["ranking"]) == ["ensemble", "plain"]
    assert (tmp_path / "report" / "plain" / "cases.csv").exists()


def test_a_case_that_every_network_saw_is_refused(runs, phantoms, tmp_path):
    out, _, folds = runs
    arguments = ("predict.py", "--cross-validation", "--no-mirroring", "--model", out / "plain", "--folds", 0)
    printed = run_script(*arguments, "--in", phantoms, "--out", tmp_path / "masks")
    assert f"{len(folds[0][0])} cases may have been seen by every network" in printed and "left out" in printed
    assert {path.name for path in (tmp_path / "masks").glob("*.nii.gz")} == {f"{id}.nii.gz" for id in folds[0][1]}
    one = phantoms / folds[0][0][0]
    said = run_script(*arguments, "--in", one, "--out", tmp_path / "none", expect=2)
    assert "1 cases may have been seen by every network" in said and "nothing is left to cross-validate" in said
    assert not (tmp_path / "none").exists()


def test_probabilities_open_with_other_tools_and_are_those_of_the_networks(runs, phantoms, tmp_path):
    out, networks, _ = runs
    scan = phantoms / "phantom_2" / "imaging.nii.gz"
    run_script("predict.py", "--in", scan, "--out", tmp_path, "--no-mirroring", "--probabilities", "--model",
               out / "plain", "--folds", 1, 2, "--precision", "fp32")
    volume = read_volume(scan)
    both = [networks["plain", fold] for fold in (1, 2)]
    wanted = predict_probabilities(both, prepare_image(volume, TINY), TINY, False)
    masks = np.asarray(nib.load(next(tmp_path.glob("*.nii.gz"))).dataobj)
    for value, name in ((1, "kidney"), (2, "tumor")):
        image = nib.load(next((tmp_path / "probabilities").glob(f"*_{name}.nii.gz")))
        native = resample(wanted[value], volume.voxels.shape, label_orders(volume.spacing_mm))
        found = read_volume(image.get_filename())
        assert np.abs(found.voxels - native).max() < 0.5 / 255 + 1e-5 and found.voxels.max() <= 1
        assert np.allclose(image.affine, volume.affine) and image.get_data_dtype() == np.uint8
        assert np.abs(image.get_fdata().max() - native.max()) < 0.003
        assert (image.get_fdata()[masks == value] > 1 / 3 - 0.003).all()


def test_processes_share_the_scans_and_a_failure_stops_no_other(runs, phantoms, tmp_path):
    out, _, _ = runs
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in phantoms.iterdir():
        (scans / f"{path.name}.nii.gz").write_bytes((path / "imaging.nii.gz").read_bytes())
    (scans / "bad.nii.gz").write_bytes(b"<html>" * 100_000)  # the largest, so that it fails first
    arguments = ("predict.py", "--in", scans, "--no-mirroring", "--model", out / "plain", "--folds", 0)
    printed = run_script(*TORCHRUN, 2, *arguments,
                         "--out", tmp_path / "two", expect=1)
    assert "bad.nii.gz: starts with" in printed and printed.count(" ml, tumor ") == 6
    run_script(*arguments, "--out", tmp_path / "one", expect=2)
    for path in phantoms.iterdir():
        one, two = ((tmp_path / name / f"{path.name}.nii.gz").read_bytes() for name in ("one", "two"))
        assert one == two


def test_killed_and_started_again(runs, phantoms, tmp_path):
    """Whatever moment the process is killed at: every mask is whole, and the next run makes those that lack."""
    out, _, _ = runs
    command = [sys.executable, "predict.py", "--in", phantoms, "--out", tmp_path / "killed", "--model", out / "plain",
               "--folds", 0]
    for masks in (2,):
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL)
        while len(list((tmp_path / "killed").glob("*.nii.gz"))) < masks and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert len(list((tmp_path / "killed").glob("*.nii.gz"))) >= masks
    assert "scans have a mask already" in run_script(*command[1:])
    run_script(*command[1:5], tmp_path / "whole", *command[6:])
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.nii.gz"))
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_masks_of_other_networks_are_not_mixed_in(runs, phantoms, tmp_path):
    out, _, _ = runs
    one = phantoms / "phantom_0" / "imaging.nii.gz"
    arguments = ("predict.py", "--out", tmp_path / "masks", "--no-mirroring", "--model", out / "plain", "--folds")
    run_script(*arguments, 0, "--in", one)
    for given in ((1, "--in", phantoms), (1, "--in", phantoms / "phantom_1", "--overwrite")):
        said = run_script(*arguments, *given, expect=2)
        assert "the masks here are of other networks or options" in said
    run_script(*arguments, 1, "--in", one, "--overwrite")
    assert "1 of 1 scans have a mask already" in run_script(*arguments, 1, "--in", one)


def test_networks_that_wait_beside_the_device_give_the_same(generator):
    """Here on the CPU both: what is moved comes back, and nothing changes."""
    torch.manual_seed(0)
    networks, image = [build_unet(arch, TINY).eval() for arch in ("plain", "residual")], torch.randn(20, 40, 33)
    here = predict_probabilities(networks, image, TINY, False)
    moved = predict_probabilities(networks, image, TINY, False, device=torch.device("cpu"))
    single = sum(predict_probabilities([network], image, TINY, False) for network in networks) / 2
    assert torch.equal(here, moved) and torch.allclose(here, single, atol=1e-6)
    low = predict_probabilities(networks, image, TINY, False, precision=torch.bfloat16)
    assert low.dtype == torch.float32 and 0 < (low - here).abs().max() < 0.1
