"""docs/one_page.py beside the package: each stage of both gives the same. What it does for other
tests, as their slow witness, stands there: windows, labels, the loss of a head, Dice."""

import ast
from dataclasses import replace

import numpy as np
import one_page
import pytest
import torch
from conftest import ROOT

from minikits import preprocessing
from minikits.augmentation import change_contrast, change_gamma, change_geometry, cut_patch
from minikits.losses import segmentation_loss
from minikits.paper import PAPER
from minikits.phantoms import make_case
from minikits.prediction import importance_map, segment_volume, window_starts
from minikits.preprocessing import prepare_image
from minikits.resampling import resample
from minikits.training import sgd, training_step
from minikits.unet import build_unet
from minikits.volumes import Volume

RECIPE = replace(
    PAPER,
    spacing_mm=one_page.SPACING_MM,
    patch=one_page.PATCH,
    plain_features=one_page.FEATURES[0],
    learning_rate=0.1,
    momentum=0.9,
)


@pytest.fixture
def linear(monkeypatch):
    """The package interpolates images linearly, too, as the page does."""
    monkeypatch.setattr(preprocessing, "IMAGE_ORDER", 1)


@pytest.fixture
def patch(generator):
    """(B, 1, Z, Y, X) image and (B, Z, Y, X) target, all three labels among them."""
    image = torch.randn(2, 1, *one_page.PATCH, generator=generator)
    return image, (torch.rand(2, *one_page.PATCH, generator=generator) * 3).to(torch.uint8)


@pytest.fixture
def networks():
    """The page's network and the package's plain one, of the same weights."""
    torch.manual_seed(4)
    ours, theirs = one_page.PlainUNet(), build_unet("plain", RECIPE)
    for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.shape == yours.shape
        mine.data.copy_(yours)
    return ours, theirs


def test_the_page_imports_nothing_of_the_package_but_phantoms():
    tree = ast.parse((ROOT / "docs" / "one_page.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert {name for name in modules if name.startswith("minikits")} == {"minikits.phantoms"}


def test_the_numbers_are_the_recipes():
    assert RECIPE.strides == one_page.STRIDES
    assert RECIPE.features("plain") == one_page.FEATURES
    assert RECIPE.window_hu == one_page.WINDOW_HU
    assert (RECIPE.mean_hu, RECIPE.sd_hu) == (one_page.MEAN_HU, one_page.SD_HU)


@pytest.mark.parametrize("orders", [(1, 1, 1), (0, 1, 1), (0, 0, 0)])
@pytest.mark.parametrize("shape", [(3, 13, 20), (14, 5, 8), (7, 9, 8)])
def test_interpolation_is_the_packages(orders, shape):
    volume = np.random.default_rng(0).normal(size=(7, 9, 8))

    assert one_page.interpolated(volume, shape, orders) == pytest.approx(
        resample(volume, shape, orders), abs=1e-5
    )


def test_a_prepared_scan_is_the_packages(linear):
    hu, _, spacing_mm = make_case(2, shape=(20, 30, 34), spacing_mm=(7.0, 9.0, 8.0))

    found = one_page.prepared(hu, spacing_mm)

    wanted = prepare_image(Volume(None, hu, spacing_mm, None, None), RECIPE)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-4


def test_a_turned_patch_is_the_packages(generator):
    image = torch.randn(20, 40, 36, generator=generator)
    labels = torch.zeros(20, 40, 36, dtype=torch.uint8)
    angles, scale, start = (0.3, -0.2, 0.4), 1.3, (-2, 5, 9)

    places = one_page.places_to_read(one_page.PATCH, angles, scale, start)
    found = one_page.trilinear(image.numpy(), places)

    wanted, _ = change_geometry(image, labels, angles, scale, start=start, patch=one_page.PATCH)
    assert np.abs(found - wanted.numpy()).max() < 1e-4


def test_contrast_and_gamma_are_the_packages(generator):
    image = torch.randn(8, 9, 10, generator=generator, dtype=torch.float64)

    for factor in (0.8, 1.2):
        found = one_page.contrast(image.numpy(), factor)
        assert found == pytest.approx(change_contrast(image, factor).numpy())
    for exponent in (0.7, 1.5):
        found = one_page.gamma(image.numpy(), exponent)
        assert found == pytest.approx(change_gamma(image, exponent).numpy(), abs=1e-6)
        inverted = -one_page.gamma(-image.numpy(), exponent)
        wanted = change_gamma(image, exponent, inverted=True).numpy()
        assert inverted == pytest.approx(wanted, abs=1e-6)


class OnlyMirroring:
    """Random numbers of which none is below another transform's probability."""

    def random(self):
        return 0.4


def test_a_patch_that_is_only_mirrored_is_the_packages_cut(generator):
    image = torch.randn(20, 40, 36, generator=generator)
    labels = (torch.rand(20, 40, 36, generator=generator) * 3).to(torch.uint8)
    start = (-1, 3, 4)

    found = one_page.augmented(image.numpy(), labels.numpy(), start, OnlyMirroring())

    wanted = cut_patch(image, labels, start, one_page.PATCH)
    for ours, theirs in zip(found, wanted):
        assert np.allclose(ours, theirs.flip(0, 1, 2).numpy(), atol=1e-6)


def test_every_other_patch_has_foreground_in_its_middle():
    labels = np.zeros((40, 70, 60), dtype=int)
    labels[30, 40, 35], labels[2, 40, 35] = 1, 2
    random = np.random.default_rng(0)

    forced = [tuple(one_page.random_start(labels, random, True)) for _ in range(40)]
    anywhere = [one_page.random_start(labels, random, False) for _ in range(400)]

    assert set(forced) == {(22, 24, 19), (0, 24, 19)}  # half a patch before; not above the case
    assert np.min(anywhere, axis=0).tolist() == [0, 0, 0]
    assert np.max(anywhere, axis=0).tolist() == [24, 38, 28]


def test_logits_and_loss_are_the_packages(networks, patch):
    ours, theirs = networks
    image, target = patch

    logits, wanted = ours(image), theirs(image)

    assert len(logits) == len(wanted) == 3
    for mine, yours in zip(logits, wanted):
        assert torch.allclose(mine, yours, atol=1e-5)
    loss = one_page.loss_of_heads(logits, target)
    assert loss.item() == pytest.approx(segmentation_loss(wanted, target).item(), abs=1e-5)


def test_three_steps_of_the_training_are_the_packages(networks, patch):
    ours, theirs = networks
    image, target = patch
    optimizer = torch.optim.SGD(
        ours.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=3e-5
    )
    their_optimizer = sgd(theirs, RECIPE)

    for _ in range(3):
        loss = one_page.train_step(ours, optimizer, image, target)
        wanted = training_step(theirs, image, target, their_optimizer, RECIPE)

    assert loss == pytest.approx(wanted.item(), abs=1e-4)
    for mine, yours in zip(ours.parameters(), theirs.parameters()):
        assert torch.allclose(mine, yours, atol=1e-3)


def test_windows_and_their_weights_are_the_packages():
    for size in (10, 32, 33, 80, 131):
        assert one_page.starts_of_windows(size, 32) == window_starts(size, 32)
    assert one_page.weight_of_window((16, 33, 20)) == pytest.approx(
        importance_map((16, 33, 20)).numpy(), abs=1e-7
    )


def test_the_mask_of_a_scan_is_the_packages(networks, linear):
    ours, theirs = networks
    hu, _, spacing_mm = make_case(2, shape=(20, 30, 34), spacing_mm=(7.0, 9.0, 8.0))
    scan = Volume(None, hu, spacing_mm, None, None)

    found = one_page.segmented(hu, spacing_mm, ours.eval())

    wanted = segment_volume(scan, [theirs.eval()], RECIPE)
    assert len(np.unique(wanted)) > 1
    assert np.mean(found != wanted) < 1e-4  # float32 rounds in two orders


def test_it_runs_from_phantoms_to_a_score(monkeypatch, capsys):
    monkeypatch.setattr(one_page, "STEPS", 20)
    monkeypatch.setattr(one_page, "SCANS", {"shape": (16, 32, 32), "spacing_mm": (10, 9, 9)})
    monkeypatch.setattr(one_page, "PATCH", (8, 16, 16))

    one_page.main()

    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step 20 of 20: loss ")
    assert last.startswith("a scan that it has not seen: Dice of kidney 0.")
