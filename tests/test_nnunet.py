"""Networks that nnU-Net v1 trained (tests/golden, `make golden`): imported, turned, refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script

from minikits.checkpoints import load_checkpoint
from minikits.evaluation import kits_dice
from minikits.nifti import read_labels
from minikits.nnunet import import_nnunet
from minikits.paper import ARCHITECTURES

GOLDEN = ROOT / "tests" / "golden"
PLAIN = GOLDEN / "plain.model"


def plain_geometry():
    return json.loads((GOLDEN / "plain.json").read_text())


def plain_content():
    """What the file of the plain network holds: its weights are "state_dict"."""
    return torch.load(PLAIN, weights_only=False)


def run_import(model, arch, geometry, out, **options):
    """As a user does; returns what it said."""
    given = ("--arch", arch, "--geometry", geometry, "--out", out)
    return run_script("-m", "minikits.nnunet", model, *given, **options)


# --- imported -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_network_that_nnunet_trained_gives_its_masks(arch, tmp_path):
    """As a user would: import, predict, compare. The last architecture's network saw Z X Y."""
    axes = "ZXY" if arch == "preactivation" else "ZYX"
    scans, masks, run = tmp_path / "scans", tmp_path / "masks", tmp_path / "runs"
    out = run / "fold0" / "checkpoint.pt"
    scans.mkdir()
    shutil.copy(GOLDEN / f"scan_{axes}.nii.gz", scans)

    said = run_import(GOLDEN / f"{arch}.model", arch, GOLDEN / f"{arch}.json", out)
    run_script("predict.py", "--in", scans, "--out", masks, "--model", run, "--precision", "fp32")

    assert str(out) in said and "taken for granted" in said
    recipe = load_checkpoint(out)["recipe"]
    assert (recipe.patch, recipe.spacing_mm, recipe.sd_hu) == ((16, 32, 24), (8.0, 6.0, 6.5), 76.9)

    mask = read_labels(masks / f"scan_{axes}.nii.gz").voxels
    theirs = np.load(GOLDEN / "golden.npz")[f"{arch}_mask"]
    kidney, _ = kits_dice(mask, theirs)
    assert np.count_nonzero(theirs) > 300
    assert np.count_nonzero(mask != theirs) <= 2
    assert kidney > 0.999


def test_an_imported_checkpoint_says_so_and_how_long_it_was_trained(tmp_path):
    content = plain_content()
    content["epoch"] = 17
    torch.save(content, tmp_path / "theirs.model")

    import_nnunet(tmp_path / "theirs.model", "plain", plain_geometry(), tmp_path / "ours.pt")

    checkpoint = load_checkpoint(tmp_path / "ours.pt")
    assert (checkpoint["fold"], checkpoint["iteration"]) == ("imported", 17 * 250)


@pytest.mark.parametrize("axes", ["ZXY", "XZY", "YXZ"])
def test_a_network_of_turned_axes_is_turned_back(tmp_path, axes):
    order = ["ZYX".index(axis) for axis in axes]
    content = plain_content()
    for name, weight in content["state_dict"].items():
        if weight.ndim == 5:
            turned = weight.permute(0, 1, *(2 + axis for axis in order))
            content["state_dict"][name] = turned
    torch.save(content, tmp_path / "turned.model")
    geometry = plain_geometry()
    turned_geometry = {**geometry, "axes": axes}
    for name in ("spacing_mm", "patch"):
        turned_geometry[name] = [geometry[name][axis] for axis in order]

    recipe = import_nnunet(PLAIN, "plain", geometry, tmp_path / "as_it_is.pt")
    same = import_nnunet(tmp_path / "turned.model", "plain", turned_geometry, tmp_path / "back.pt")

    assert same == recipe
    one = load_checkpoint(tmp_path / "as_it_is.pt")["network"]
    other = load_checkpoint(tmp_path / "back.pt")["network"]
    for name, weight in one.items():
        assert torch.equal(weight, other[name])


# --- refused --------------------------------------------------------------------------------------


class Payload:
    """What a hostile file would run."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def damaged_models(folder):
    """Files beside each other, each with one thing that is not as it should be."""
    content = plain_content()
    weights = content["state_dict"]
    first = next(iter(weights))
    others = {name: weight for name, weight in weights.items() if name != first}
    one_more = {"seg_outputs.9.weight": torch.zeros(3, 2, 1, 1, 1)}
    flat = {name: w[..., 0] if w.ndim == 5 else w for name, w in weights.items()}

    made = {
        "less": {**content, "state_dict": others},
        "more": {**content, "state_dict": {**weights, **one_more}},
        "kernel": {**content, "state_dict": {**weights, first: weights[first][..., 1:2]}},
        "flat": {**content, "state_dict": flat},
        "other": {"model": weights},
        "numbers": {"state_dict": {"a": 1}},
        "payload": {"state_dict": weights, "run": Payload()},
    }
    for name, model in made.items():
        torch.save(model, folder / f"{name}.model")
    (folder / "text.model").write_text("<html>")


def refused(model, arch, geometry, out):
    """The line with which an import is refused; nothing is written."""
    with pytest.raises((ValueError, OSError)) as caught:
        import_nnunet(model, arch, geometry, out)

    said = str(caught.value)
    assert "\n" not in said
    assert not out.parent.exists()
    return said


@pytest.mark.parametrize(
    "model, complaint",
    [
        ("less", "wanted 62"),
        ("more", "holds 63 weights"),
        ("kernel", "of its recipe"),
        ("flat", "stage_strides"),
        ("other", "state_dict"),
        ("numbers", "state_dict"),
        ("payload", "which is not loaded"),
        ("text", "damaged"),
        ("none", "no such file"),
    ],
)
def test_a_file_that_is_no_network_of_nnunets_is_refused(tmp_path, model, complaint):
    damaged_models(tmp_path)

    said = refused(
        tmp_path / f"{model}.model", "plain", plain_geometry(), tmp_path / "out" / "checkpoint.pt"
    )

    assert complaint in said
    assert not Path("ran").exists() and not (ROOT / "ran").exists()


@pytest.mark.parametrize(
    "model, arch, complaint",
    [
        ("plain", "residual", "is it of another architecture?"),
        ("residual", "preactivation", "norm_nonlins"),
        ("preactivation", "residual", "norm_nonlins"),
    ],
)
def test_a_network_of_another_architecture_is_refused(tmp_path, model, arch, complaint):
    out = tmp_path / "out" / "checkpoint.pt"

    assert complaint in refused(GOLDEN / f"{model}.model", arch, plain_geometry(), out)


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"sd_hu": None}, "no sd_hu"),
        ({"axes": "XYZZ"}, "found 'XYZZ'"),
        ({"axes": 5}, "found 5"),
        ({"patch": [16, 32]}, "expected the form"),
        ({"spacing": [1, 1, 1]}, "no field of a recipe"),
        ({"patch": [10, 32, 24]}, "divide the patch"),
        (
            {"stage_strides": [[1, 1, 1], [1, 1, 1], [2, 2, 2], [2, 2, 2]]},
            "wanted (6, 3, 1, 1, 1)",
        ),
    ],
)
def test_a_geometry_that_does_not_fit_is_refused(tmp_path, changes, complaint):
    """None stands for what is left out."""
    changed = {**plain_geometry(), **changes}
    given = {name: value for name, value in changed.items() if value is not None}
    out = tmp_path / "out" / "checkpoint.pt"

    assert complaint in refused(PLAIN, "plain", given, out)


def test_the_command_refuses_in_a_line_and_runs_nothing(tmp_path):
    damaged_models(tmp_path)
    out = tmp_path / "out" / "checkpoint.pt"

    said = run_import(tmp_path / "payload.model", "plain", GOLDEN / "plain.json", out, expect=2)

    assert said.startswith("nnunet: ") and said.count("\n") == 1
    assert not out.parent.exists()
    assert not Path("ran").exists() and not (ROOT / "ran").exists()


def test_an_existing_checkpoint_is_not_replaced(tmp_path):
    out = tmp_path / "checkpoint.pt"
    out.write_text("mine")

    said = run_import(PLAIN, "plain", GOLDEN / "plain.json", out, expect=2)

    assert "exists already" in said
    assert out.read_text() == "mine"
