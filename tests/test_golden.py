"""minikits against what nnU-Net v1, batchgenerators and the challenge's evaluator gave: tests/golden,
`make golden`. The networks that nnU-Net trained are in test_nnunet.py."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT

from minikits import augmentation
from minikits.cases import five_folds
from minikits.evaluation import kits_dice
from minikits.losses import segmentation_loss
from minikits.paper import PAPER, recipe_from
from minikits.prediction import importance_map, window_starts
from minikits.preprocessing import labels_on_native_grid, prepare_image, prepare_labels
from minikits.volumes import Volume

GOLDEN = ROOT / "tests" / "golden"
KEPT = np.load(GOLDEN / "golden.npz")


def kept(prefix):
    """{rest of the name: array} of those whose name begins so."""
    return {name.removeprefix(prefix): KEPT[name] for name in KEPT.files if name.startswith(prefix)}


def largest_difference(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max()


def test_versions_that_made_them_are_told():
    about = json.loads((GOLDEN / "about.json").read_text())

    assert about["nnunet"] == "1.7.1"
    assert about["batchgenerators"] == "0.25.5"


@pytest.mark.parametrize("case", ["cubes", "thick"])
def test_preprocessing_and_the_way_back(case):
    theirs = kept(f"{case}_")
    recipe = recipe_from({"spacing_mm": [8.0, 6.0, 6.5]})
    spacing = tuple(theirs["spacing"].tolist())
    scan = Volume(None, theirs["voxels"], spacing, None, None)
    reference = Volume(None, theirs["labels"], spacing, None, None)

    native = labels_on_native_grid(theirs["probabilities"], scan)

    assert largest_difference(prepare_image(scan, recipe), theirs["image"]) < 1e-5
    assert np.array_equal(prepare_labels(reference, recipe), theirs["small_labels"])
    clear = theirs["native"] < 255  # 255: a tie
    assert clear.mean() > 0.99
    assert np.array_equal(native[clear], theirs["native"][clear])


@pytest.mark.parametrize("number", range(3))
def test_rotation_and_scaling(number):
    given, theirs = kept("augmentation_"), kept(f"turn{number}_")
    *angles, scale = theirs["draw"].tolist()
    image, labels = torch.from_numpy(given["image"]), torch.from_numpy(given["labels"])

    image, labels = augmentation.change_geometry(image, labels, angles, scale)

    inner = (slice(5, -5), slice(6, -6), slice(6, -6))
    assert largest_difference(image[inner], theirs["image"][inner]) < 1e-5
    assert np.array_equal(labels[inner], theirs["labels"][inner])


def change_inverted_gamma(image, gamma):
    return augmentation.change_gamma(image, gamma, inverted=True)


@pytest.mark.parametrize(
    "name, change",
    [
        ("gamma", augmentation.change_gamma),
        ("contrast", augmentation.change_contrast),
        ("brightness", augmentation.change_brightness),
        ("inverted_gamma", change_inverted_gamma),
    ],
)
def test_intensities(name, change):
    image = torch.from_numpy(kept("augmentation_")["image"][:8, :8, :8])
    theirs = kept(f"{name}_")

    assert largest_difference(change(image, 0.8), theirs["low"]) < 1e-5
    assert largest_difference(change(image, 1.3), theirs["high"]) < 1e-5


@pytest.mark.parametrize("name", ["mixed", "empty", "tumor"])
def test_loss_and_gradient(name):
    theirs = kept(f"loss_{name}_")
    heads = [torch.from_numpy(theirs[f"head{i}"]).requires_grad_() for i in range(2)]

    loss = segmentation_loss(heads, torch.from_numpy(theirs["target"]))
    loss.backward()

    assert loss.item() == pytest.approx(float(theirs["value"]), abs=1e-9)
    assert largest_difference(heads[0].grad, theirs["gradient0"]) < 1e-12


def test_windows():
    windows = kept("windows_")

    for number, (size, patch) in enumerate(zip(windows["sizes"], windows["patches"])):
        starts = window_starts(int(size), int(patch))
        assert starts == windows[f"starts{number}"].ravel().tolist()


def test_importance_map():
    importance = kept("importance_")

    ours = importance_map(importance["patch"].tolist())

    assert largest_difference(ours, importance["map"]) < 1e-6


def test_learning_rates():
    rates = kept("rates_")

    ours = [PAPER.learning_rate_at(epoch) for epoch in rates["epochs"].tolist()]

    assert ours == pytest.approx(rates["values"].tolist())


def test_folds():
    ids = [f"case_{number:05d}" for number in range(210) if number not in PAPER.excluded_cases]

    held_out = [validation for _, validation in five_folds(ids)]

    assert held_out == [ids_of_fold.tolist() for ids_of_fold in kept("folds_").values()]


def test_the_challenges_evaluator():
    theirs = kept("evaluation_")

    assert len(theirs["pairs"]) == 13
    for (prediction, reference), scores in zip(theirs["pairs"], theirs["scores"]):
        ours = kits_dice(prediction, reference)
        assert ours == pytest.approx(scores.tolist(), nan_ok=True, abs=1e-12)
