"""Windows as listed in the method, weights against scipy, and toy networks whose prediction is known."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from minikits.prediction import importance_map, predict_probabilities, window_starts
from minikits.unet import build_unet

SMALL = dataclasses.replace(TINY, patch=(8, 8, 8))


class Pointwise(torch.nn.Module):
    """Logits that depend on each voxel alone: windows, weights and flips cannot change them."""

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x, 2 * x - 1], dim=1)


class LeftHanded(torch.nn.Module):
    """Kidney where x is in the left half of the window: not symmetric under flips."""

    def forward(self, x):
        logits = torch.zeros(len(x), 3, *x.shape[2:])
        logits[..., 1, :, :, : x.shape[-1] // 2] = 3
        return logits


def test_windows_of_a_median_case():
    assert [window_starts(n, p) for n, p in zip((128, 248, 248), (80, 160, 160))] == [
        [0, 24, 48], [0, 44, 88], [0, 44, 88]]


@given(st.integers(1, 300), st.integers(4, 100))
@settings(max_examples=200, deadline=None)
def test_windows_cover_an_axis_evenly(size, patch):
    starts = window_starts(size, patch)
    assert starts[0] == 0 and starts[-1] == max(0, size - patch)
    steps = np.diff(starts)
    assert (steps > 0).all() and (len(steps) == 0 or (steps.max() - steps.min() <= 1 and steps.max() <= patch / 2 + 1))


@pytest.mark.parametrize("patch", [(80, 160, 160), (16, 24, 9)])
def test_importance_map_is_a_gaussian(patch):
    point = np.zeros(patch)
    point[tuple(side // 2 for side in patch)] = 1
    wanted = gaussian_filter(point, [side / 8 for side in patch], mode="constant", truncate=8)
    found = importance_map(patch).numpy()
    assert np.abs(found - wanted / wanted.max()).max() < 1e-6 and found.min() > 0 and found.max() == 1


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 8, 3), (20, 9, 31), (3, 30, 8)])
@pytest.mark.parametrize("mirroring", [True, False])
def test_a_pointwise_network_gives_its_softmax_everywhere(shape, mirroring, generator):
    image = torch.randn(shape, generator=generator)
    found = predict_probabilities([Pointwise()], image.numpy(), SMALL, mirroring)
    assert found.shape == (3, *shape) and found.dtype == torch.float32
    assert torch.allclose(found, Pointwise()(image[None, None])[0].softmax(0), atol=1e-5)


def test_networks_are_averaged_after_softmax(generator):
    image = torch.randn(9, 10, 11, generator=generator)
    one, two = Pointwise(), LeftHanded()
    both = predict_probabilities([one, two], image, SMALL)
    alone = [predict_probabilities([network], image, SMALL) for network in (one, two)]
    assert torch.allclose(both, (alone[0] + alone[1]) / 2, atol=1e-6)


def test_mirroring_averages_the_eight_flips():
    image = torch.zeros(8, 8, 8)
    sided = predict_probabilities([LeftHanded()], image, SMALL, mirroring=False)
    even = predict_probabilities([LeftHanded()], image, SMALL)
    assert torch.allclose(even, (sided + sided.flip(3)) / 2, atol=1e-6) and not torch.allclose(even, sided)


def test_weighted_windows_by_hand():
    """An axis of 12 and windows of 8 at 0 and 4: where they overlap, the Gaussian's weights decide."""
    image = torch.zeros(8, 8, 12)
    found = predict_probabilities([LeftHanded()], image, SMALL, mirroring=False)[1, 4, 4]
    weight = np.exp(-0.5 * (np.arange(8) - 4.0) ** 2)
    left = LeftHanded()(torch.zeros(1, 1, 8, 8, 8)).softmax(1)[0, 1, 4, 4].numpy()
    total, weights = np.zeros(12), np.zeros(12)
    for start in (0, 4):
        total[start:start + 8] += weight * left
        weights[start:start + 8] += weight
    assert np.allclose(found, total / weights, atol=1e-5)


def test_a_real_network_in_either_mode_and_small_volumes(generator):
    torch.manual_seed(0)
    network = build_unet("residual", TINY)
    image = torch.randn(10, 40, 33, generator=generator)
    seen = []
    training = predict_probabilities([network], image, TINY, on_window=lambda *n: seen.append(n))
    evaluating = predict_probabilities([network.eval()], image, TINY)
    assert torch.allclose(training, evaluating) and torch.allclose(training.sum(0), torch.ones(image.shape), atol=1e-5)
    assert seen[-1] == (4, 4) and seen == sorted(seen)


def test_progress_on_a_terminal_begins_with_the_first_pair_of_flips(monkeypatch, capsys):
    import predict
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show = predict.progress("scan")
    predict_probabilities([Pointwise()], torch.zeros(8, 8, 12), SMALL, on_window=show)
    printed = capsys.readouterr().out
    assert "scan: 12% of 2 windows" in printed and "100% of 2 windows" in printed
