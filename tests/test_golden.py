"""minikits against what nnU-Net v1, batchgenerators and the challenge's evaluator gave: tests/golden, `make golden`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script

from minikits import augmentation
from minikits.cases import five_folds
from minikits.checkpoints import load_checkpoint
from minikits.evaluation import kits_dice
from minikits.losses import segmentation_loss
from minikits.nifti import read_labels
from minikits.nnunet import import_nnunet
from minikits.paper import ARCHITECTURES, PAPER, recipe_from
from minikits.prediction import importance_map, window_starts
from minikits.preprocessing import labels_on_native_grid, prepare_image, prepare_labels
from minikits.volumes import Volume

GOLDEN = ROOT / "tests" / "golden"
KEPT = np.load(GOLDEN / "golden.npz")


def kept(prefix):
    return {name.removeprefix(prefix): KEPT[name] for name in KEPT.files if name.startswith(prefix)}


def test_versions_that_made_them_are_told():
    about = json.loads((GOLDEN / "about.json").read_text())
    assert about["nnunet"] == "1.7.1" and about["batchgenerators"] == "0.25.5"


@pytest.mark.parametrize("case", ["cubes", "thick"])
def test_preprocessing_and_the_way_back(case):
    theirs, recipe = kept(f"{case}_"), recipe_from({"spacing_mm": [8.0, 6.0, 6.5]})
    scan, reference = (
        Volume(None, theirs[name], tuple(theirs["spacing"].tolist()), None, None)
        for name in ("voxels", "labels")
    )
    assert np.abs(prepare_image(scan, recipe) - theirs["image"]).max() < 1e-5
    assert np.array_equal(prepare_labels(reference, recipe), theirs["small_labels"])
    native, clear = (
        labels_on_native_grid(theirs["probabilities"], scan),
        theirs["native"] < 255,
    )  # 255: a tie
    assert clear.mean() > 0.99 and np.array_equal(native[clear], theirs["native"][clear])


@pytest.mark.parametrize("number", range(3))
def test_rotation_and_scaling(number):
    given, theirs = kept("augmentation_"), kept(f"turn{number}_")
    *angles, scale = theirs["draw"].tolist()
    image, labels = (torch.from_numpy(given[name]) for name in ("image", "labels"))
    image, labels = augmentation.change_geometry(image, labels, angles, scale)
    inner = (slice(5, -5), slice(6, -6), slice(6, -6))
    assert np.abs(image.numpy() - theirs["image"])[inner].max() < 1e-5
    assert np.array_equal(labels.numpy()[inner], theirs["labels"][inner])


@pytest.mark.parametrize(
    "name, change",
    [
        ("gamma", augmentation.change_gamma),
        ("contrast", augmentation.change_contrast),
        ("brightness", augmentation.change_brightness),
        (
            "inverted_gamma",
            lambda image, gamma: augmentation.change_gamma(image, gamma, inverted=True),
        ),
    ],
)
def test_intensities(name, change):
    image, theirs = torch.from_numpy(kept("augmentation_")["image"][:8, :8, :8]), kept(f"{name}_")
    for which, factor in (("low", 0.8), ("high", 1.3)):
        assert np.abs(change(image, factor).numpy() - theirs[which]).max() < 1e-5


@pytest.mark.parametrize("name", ["mixed", "empty", "tumor"])
def test_loss_and_gradient(name):
    theirs = kept(f"loss_{name}_")
    heads = [torch.from_numpy(theirs[f"head{i}"]).requires_grad_() for i in range(2)]
    loss = segmentation_loss(heads, torch.from_numpy(theirs["target"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(theirs["value"]), abs=1e-9)
    assert np.abs(heads[0].grad.numpy() - theirs["gradient0"]).max() < 1e-12


def test_numbers():
    windows = kept("windows_")
    for number, (size, patch) in enumerate(zip(windows["sizes"], windows["patches"])):
        assert window_starts(int(size), int(patch)) == windows[f"starts{number}"].ravel().tolist()
    importance = kept("importance_")
    assert (
        np.abs(importance_map(importance["patch"].tolist()).numpy() - importance["map"]).max()
        < 1e-6
    )
    rates = kept("rates_")
    assert [PAPER.learning_rate_at(e) for e in rates["epochs"].tolist()] == pytest.approx(
        rates["values"].tolist()
    )
    ids = [f"case_{number:05d}" for number in range(210) if number not in PAPER.excluded_cases]
    assert [validation for _, validation in five_folds(ids)] == [
        found.tolist() for found in kept("folds_").values()
    ]


def test_the_challenges_evaluator():
    theirs = kept("evaluation_")
    assert len(theirs["pairs"]) == 13
    for (prediction, reference), scores in zip(theirs["pairs"], theirs["scores"]):
        assert kits_dice(prediction, reference) == pytest.approx(
            scores.tolist(), nan_ok=True, abs=1e-12
        )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_network_that_nnunet_trained_gives_its_masks(arch, tmp_path):
    """As a user would: import, predict, compare. The last architecture's network saw Z X Y."""
    axes = "ZXY" if arch == "preactivation" else "ZYX"
    out = tmp_path / "runs" / "fold0" / "checkpoint.pt"
    said = run_script(
        "-m",
        "minikits.nnunet",
        GOLDEN / f"{arch}.model",
        "--arch",
        arch,
        "--geometry",
        GOLDEN / f"{arch}.json",
        "--out",
        out,
    )
    assert str(out) in said and "taken for granted" in said
    recipe = load_checkpoint(out)["recipe"]
    assert (recipe.patch, recipe.spacing_mm, recipe.sd_hu) == ((16, 32, 24), (8.0, 6.0, 6.5), 76.9)
    (tmp_path / "scans").mkdir()
    shutil.copy(GOLDEN / f"scan_{axes}.nii.gz", tmp_path / "scans")
    run_script(
        "predict.py",
        "--in",
        tmp_path / "scans",
        "--out",
        tmp_path / "masks",
        "--model",
        tmp_path / "runs",
        "--precision",
        "fp32",
    )
    mask, theirs = (
        read_labels(tmp_path / "masks" / f"scan_{axes}.nii.gz").voxels,
        KEPT[f"{arch}_mask"],
    )
    assert np.count_nonzero(theirs) > 300
    assert np.count_nonzero(mask != theirs) <= 2 and kits_dice(mask, theirs)[0] > 0.999


def test_what_cannot_be_imported_is_refused_in_a_line(tmp_path, phantoms):
    geometry = json.loads((GOLDEN / "plain.json").read_text())
    content = torch.load(GOLDEN / "plain.model", weights_only=False)
    weights = content["state_dict"]
    first = next(iter(weights))
    made = {
        "less": {**content, "state_dict": {k: v for k, v in weights.items() if k != first}},
        "more": {
            **content,
            "state_dict": weights | {"seg_outputs.9.weight": torch.zeros(3, 2, 1, 1, 1)},
        },
        "kernel": {**content, "state_dict": weights | {first: weights[first][..., 1:2]}},
        "flat": {
            **content,
            "state_dict": {k: v[..., 0] if v.ndim == 5 else v for k, v in weights.items()},
        },
        "other": {"model": weights},
        "numbers": {"state_dict": {"a": 1}},
        "payload": {"state_dict": weights, "run": Run()},
    }
    for name, model in made.items():
        torch.save(model, tmp_path / f"{name}.model")
    (tmp_path / "text.model").write_text("<html>")

    def refused(model, complaint, arch="plain", **changes):
        given = {name: value for name, value in (geometry | changes).items() if value != "no"}
        with pytest.raises((ValueError, OSError)) as caught:
            import_nnunet(model, arch, given, tmp_path / "out" / "checkpoint.pt")
        assert complaint in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    plain = GOLDEN / "plain.model"
    refused(plain, "is it of another architecture?", arch="residual")
    refused(GOLDEN / "residual.model", "norm_nonlins", arch="preactivation")
    refused(GOLDEN / "preactivation.model", "norm_nonlins", arch="residual")
    refused(tmp_path / "less.model", "wanted 62")
    refused(tmp_path / "more.model", "holds 63 weights")
    refused(tmp_path / "kernel.model", "of its recipe")
    refused(tmp_path / "flat.model", "stage_strides")
    refused(tmp_path / "other.model", "state_dict")
    refused(tmp_path / "numbers.model", "state_dict")
    refused(tmp_path / "payload.model", "which is not loaded")
    said = run_script(
        "-m",
        "minikits.nnunet",
        tmp_path / "payload.model",
        "--arch",
        "plain",
        "--geometry",
        GOLDEN / "plain.json",
        "--out",
        tmp_path / "out" / "checkpoint.pt",
        expect=2,
    )
    assert said.startswith("nnunet: ") and said.count("\n") == 1 and not (tmp_path / "out").exists()
    assert not Path("ran").exists() and not (ROOT / "ran").exists()
    refused(tmp_path / "text.model", "damaged")
    refused(tmp_path / "none.model", "no such file")
    refused(plain, "no sd_hu", sd_hu="no")
    refused(plain, "found 'XYZZ'", axes="XYZZ")
    refused(plain, "found 5", axes=5)
    refused(plain, "expected the form", patch=[16, 32])
    refused(plain, "no field of a recipe", spacing=[1, 1, 1])
    refused(plain, "divide the patch", patch=[10, 32, 24])
    refused(
        plain, "wanted (6, 3, 1, 1, 1)", stage_strides=[[1, 1, 1], [1, 1, 1], [2, 2, 2], [2, 2, 2]]
    )


class Run:
    """What a hostile file would run."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def test_an_existing_checkpoint_is_not_replaced(tmp_path):
    (tmp_path / "checkpoint.pt").write_text("mine")
    said = run_script(
        "-m",
        "minikits.nnunet",
        GOLDEN / "plain.model",
        "--arch",
        "plain",
        "--geometry",
        GOLDEN / "plain.json",
        "--out",
        tmp_path / "checkpoint.pt",
        expect=2,
    )
    assert "exists already" in said and (tmp_path / "checkpoint.pt").read_text() == "mine"


def test_an_imported_checkpoint_says_so_and_how_long_it_was_trained(tmp_path):
    geometry = json.loads((GOLDEN / "plain.json").read_text())
    content = torch.load(GOLDEN / "plain.model", weights_only=False)
    content["epoch"] = 17
    torch.save(content, tmp_path / "theirs.model")

    import_nnunet(tmp_path / "theirs.model", "plain", geometry, tmp_path / "ours.pt")

    checkpoint = load_checkpoint(tmp_path / "ours.pt")
    assert (checkpoint["fold"], checkpoint["iteration"]) == ("imported", 17 * 250)


@pytest.mark.parametrize("axes", ["ZXY", "XZY", "YXZ"])
def test_a_network_of_turned_axes_is_turned_back(tmp_path, axes):
    geometry = json.loads((GOLDEN / "plain.json").read_text())
    content = torch.load(GOLDEN / "plain.model", weights_only=False)
    order = ["ZYX".index(axis) for axis in axes]
    content["state_dict"] = {
        name: value.permute(0, 1, *(2 + axis for axis in order)) if value.ndim == 5 else value
        for name, value in content["state_dict"].items()
    }
    torch.save(content, tmp_path / "turned.model")
    turned = {name: [geometry[name][axis] for axis in order] for name in ("spacing_mm", "patch")}

    recipe = import_nnunet(GOLDEN / "plain.model", "plain", geometry, tmp_path / "as_it_is.pt")
    assert (
        import_nnunet(
            tmp_path / "turned.model",
            "plain",
            geometry | turned | {"axes": axes},
            tmp_path / "turned.pt",
        )
        == recipe
    )

    one, other = (
        load_checkpoint(tmp_path / name)["network"] for name in ("as_it_is.pt", "turned.pt")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())
