"""From scan to mask: windows as the method lists them, weights against scipy, toy networks whose
prediction is known, and the whole beside plain loops, to the bit."""

import dataclasses
from threading import Lock

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from one_page import probabilities_by_loops
from scipy.ndimage import gaussian_filter

import predict
from minikits.paper import DEMO, PAPER
from minikits.phantoms import make_case
from minikits.prediction import (
    importance_map,
    predict_probabilities,
    scan_bytes,
    segment_volume,
    suited_at_once,
    window_bytes,
    window_starts,
)
from minikits.preprocessing import labels_on_native_grid, prepare_image
from minikits.unet import build_unet
from minikits.volumes import Volume

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


class Ramp(torch.nn.Module):
    """Of kidney, a logit that grows along an axis of the window: it shows where a voxel lay."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self, x):
        logits = torch.zeros(len(x), 3, 8, 8, 8)
        along = logits[:, 1].movedim(1 + self.axis, -1)
        along += torch.arange(8) / 4
        return logits


class Mean(torch.nn.Module):
    """Of kidney, the mean of the window as a logit."""

    def forward(self, x):
        logits = torch.zeros(len(x), 3, *x.shape[2:])
        logits[:, 1] += x.mean(dim=(2, 3, 4))[..., None, None]
        return logits


class Fixed(torch.nn.Module):
    """The same logits everywhere."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return torch.tensor(self.logits).reshape(1, 3, 1, 1, 1).expand(len(x), 3, *x.shape[2:])


class Traveller(torch.nn.Module):
    """Notes where it is sent. Its weights are where nothing can compute; it may find no memory."""

    def __init__(self, fails):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(1, device="meta"))
        self.fails = fails
        self.sent = []

    def to(self, device):
        self.sent.append(torch.device(device).type)

    def forward(self, x):
        if self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Fixed(0.0, 0.0, 0.0)(x)


def scan_of_zeros(*shape):
    return Volume(None, np.zeros(shape, np.float32), (1.0, 1.0, 1.0), None, None)


def kidney(logit):
    """Softmax of logits 0, logit, 0."""
    return np.exp(logit) / (2 + np.exp(logit))


# --- windows and their weights --------------------------------------------------------------------


def test_windows_of_a_median_case():
    """Of 128 x 248 x 248 voxels, by patches of 80 x 160 x 160."""
    assert window_starts(128, 80) == [0, 24, 48]
    assert window_starts(248, 160) == [0, 44, 88]


def test_windows_by_hand_of_odd_sizes_and_patches():
    assert window_starts(15, 8) == [0, 4, 7]  # at 3.5, half to even
    assert window_starts(19, 8) == [0, 4, 7, 11]  # at 3.67 and 7.33
    assert window_starts(10, 5) == [0, 2, 5]  # half a patch is 2.5: two steps are enough


@given(st.integers(1, 300), st.integers(4, 100))
@settings(max_examples=200, deadline=None)
def test_windows_cover_an_axis_evenly(size, patch):
    starts = window_starts(size, patch)

    steps = np.diff(starts)
    assert starts[0] == 0
    assert starts[-1] == max(0, size - patch)
    assert (steps > 0).all()
    if len(steps) > 0:
        assert steps.max() - steps.min() <= 1
        assert steps.max() <= patch / 2 + 1


@pytest.mark.parametrize("patch", [(80, 160, 160), (16, 24, 9)])
def test_importance_map_is_a_gaussian(patch):
    """scipy's, of a single voxel in the middle."""
    point = np.zeros(patch)
    point[tuple(side // 2 for side in patch)] = 1

    found = importance_map(patch).numpy()

    wanted = gaussian_filter(point, [side / 8 for side in patch], mode="constant", truncate=8)
    assert np.abs(found - wanted / wanted.max()).max() < 1e-6
    assert found.min() > 0
    assert found.max() == 1


def test_weighted_windows_by_hand():
    """An axis of 12, windows of 8 at 0 and 4: where they overlap, the Gaussian's weights decide."""
    found = predict_probabilities([LeftHanded()], torch.zeros(8, 8, 12), SMALL, mirroring=False)

    left = np.array(4 * [kidney(3.0)] + 4 * [kidney(0.0)])
    weight = np.exp(-0.5 * (np.arange(8) - 4.0) ** 2)
    total, weights = np.zeros(12), np.zeros(12)
    for start in (0, 4):
        total[start : start + 8] += weight * left
        weights[start : start + 8] += weight
    assert np.allclose(found[1, 4, 4], total / weights, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 8, 3), (20, 9, 31), (3, 30, 8)])
@pytest.mark.parametrize("mirroring", [True, False])
def test_a_pointwise_network_gives_its_softmax_everywhere(shape, mirroring, generator):
    image = torch.randn(shape, generator=generator)

    found = predict_probabilities([Pointwise()], image.numpy(), SMALL, mirroring)

    wanted = Pointwise()(image[None, None])[0].softmax(0)
    assert found.shape == (3, *shape)
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, atol=1e-5)


# --- mirror images, networks, classes -------------------------------------------------------------


def test_mirroring_averages_the_eight_flips():
    """Of a network that tells left from right, two are different."""
    image = torch.zeros(8, 8, 8)

    sided = predict_probabilities([LeftHanded()], image, SMALL, mirroring=False)
    even = predict_probabilities([LeftHanded()], image, SMALL)

    assert torch.allclose(even, (sided + sided.flip(3)) / 2, atol=1e-6)
    assert not torch.allclose(even, sided)


def test_networks_are_averaged_after_softmax(generator):
    """A network's own probabilities are those of an ensemble of itself."""
    image = torch.randn(9, 10, 11, generator=generator)

    both = predict_probabilities([Pointwise(), LeftHanded()], image, SMALL)

    one = predict_probabilities([Pointwise()], image, SMALL)
    other = predict_probabilities([LeftHanded()], image, SMALL)
    assert torch.allclose(both, (one + other) / 2, atol=1e-6)


def test_a_real_network_in_either_mode_and_small_volumes(generator):
    torch.manual_seed(0)
    network = build_unet("residual", TINY)
    image = torch.randn(10, 40, 33, generator=generator)
    seen = []

    training = predict_probabilities([network], image, TINY, on_window=lambda *n: seen.append(n))
    evaluating = predict_probabilities([network.eval()], image, TINY)

    assert torch.allclose(training, evaluating)
    assert torch.allclose(training.sum(0), torch.ones(image.shape), atol=1e-5)
    assert seen == sorted(seen)
    assert seen[-1] == (4, 4)


@pytest.mark.parametrize("axis", range(3))
def test_the_greater_part_of_an_odd_padding_lies_behind(axis):
    """Of 3 voxels that are missing 1 lies before: 5 are the second to sixth of a window of 8."""
    shape = [8, 8, 8]
    shape[axis] = 5

    found = predict_probabilities([Ramp(axis)], torch.zeros(shape), SMALL, False)

    profile = found[1].movedim(axis, 0)[:, 0, 0].numpy()
    assert found.shape == (3, *shape)
    assert np.allclose(profile, kidney(np.arange(1, 6) / 4), atol=1e-6)


def test_padding_is_the_mean_of_the_normalised_image():
    """0, whatever the image: a window half filled with 2 has the mean 1."""
    found = predict_probabilities([Mean()], torch.full((8, 4, 8), 2.0), SMALL, False)

    assert np.allclose(found[1].numpy(), kidney(1.0), atol=1e-6)


@pytest.mark.parametrize("axis", range(3))
def test_each_axis_is_mirrored_and_turned_back(axis):
    """Of a logit that grows along an axis, its growth both ways is averaged."""
    found = predict_probabilities([Ramp(axis)], torch.zeros(8, 8, 8), SMALL)

    profile = found[1].movedim(axis, 0)[:, 3, 3].numpy()
    there = kidney(np.arange(8) / 4)
    assert np.allclose(profile, (there + there[::-1]) / 2, atol=1e-6)


def test_the_ensemble_is_the_mean_of_probabilities_and_not_of_logits():
    """By hand: softmax of (0, 4, 0) and of (0, 0, 0), two to one."""
    networks = [Fixed(0.0, 4.0, 0.0), Fixed(0.0, 0.0, 0.0), Fixed(0.0, 4.0, 0.0)]

    found = predict_probabilities(networks, torch.zeros(8, 8, 12), SMALL)

    sure = np.exp([0, 4, 0]) / np.exp([0, 4, 0]).sum()
    unsure = np.full(3, 1 / 3)
    assert np.allclose(found[:, 2, 3, 4], (2 * sure + unsure) / 3, atol=1e-6)
    assert np.allclose(found, found[:, :1, :1, :1])


def test_classes_come_in_the_order_of_the_labels():
    found = predict_probabilities([Fixed(0.0, 1.0, 3.0)], torch.zeros(8, 8, 8), SMALL)

    wanted = np.exp([0, 1, 3]) / np.exp([0, 1, 3]).sum()
    assert np.allclose(found[:, 0, 0, 0], wanted, atol=1e-6)


# --- what is refused, where networks go, what windows are told ------------------------------------


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_probabilities_that_are_no_numbers_are_refused(strange):
    recipe = dataclasses.replace(SMALL, spacing_mm=(1.0, 1.0, 1.0))

    with pytest.raises(ValueError, match="probabilities are NaN or infinite, wanted 0 to 1"):
        segment_volume(scan_of_zeros(8, 8, 8), [Fixed(0.0, strange, 0.0)], recipe, mirroring=False)


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_a_single_voxel_that_is_no_number_is_counted(strange):
    image = torch.zeros(8, 8, 30)
    image[0, 0, 29] = strange

    probabilities = predict_probabilities([Pointwise()], image, SMALL, False)

    with pytest.raises(ValueError, match="of 5760 probabilities are NaN"):
        labels_on_native_grid(probabilities, scan_of_zeros(8, 8, 30))


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_goes_home_also_when_its_turn_fails(fails):
    network = Traveller(fails)

    try:
        predict_probabilities([network], torch.zeros(8, 8, 8), SMALL, device=torch.device("cpu"))
    except torch.OutOfMemoryError:
        assert fails

    assert network.sent == ["cpu", "meta"]


def test_what_a_window_is_told_may_end_the_prediction():
    def stop(done, of):
        raise KeyError(done, of)

    with pytest.raises(KeyError):
        predict_probabilities([Pointwise()], torch.zeros(8, 8, 8), SMALL, on_window=stop)


def test_the_convolutions_are_computed_in_the_precision_that_is_asked_for(generator):
    torch.manual_seed(0)
    network = build_unet("plain", TINY).eval()
    image = torch.randn(16, 32, 32, generator=generator)
    seen = []
    network.heads[-1].register_forward_hook(lambda module, given, out: seen.append(out.dtype))

    exact = predict_probabilities([network], image, TINY, False)
    short = predict_probabilities([network], image, TINY, False, precision=torch.bfloat16)

    assert seen == [torch.float32, torch.bfloat16]
    assert exact.dtype == short.dtype == torch.float32
    assert 0 < (exact - short).abs().max() < 0.1


def test_memory_of_a_scan_by_hand():
    """float32: image, padded image, weights, 3 classes twice: 9 a voxel, at least of the patch."""
    assert scan_bytes((80, 160, 160), PAPER) == 4 * 9 * 80 * 160 * 160
    assert scan_bytes((1, 200, 1), PAPER) == 4 * 9 * 80 * 200 * 160


def test_memory_of_a_window_is_about_what_was_measured():
    """Peaks of the paper's plain network on a CPU: 1.7 GiB in bfloat16, 2.7 in float32."""
    short = window_bytes("plain", PAPER, torch.bfloat16) / 2**30
    exact = window_bytes("plain", PAPER, torch.float32) / 2**30

    assert exact == 2 * short
    assert 1.3 < short < 2.1
    assert 2.3 < exact < 3.5


@pytest.mark.parametrize(
    "memory, at_once", [(11 * 2**30, 4), (8 * 2**30, 2), (4 * 2**30, 1), (0, 1)]
)
def test_a_gpu_with_plenty_of_memory_sees_four_windows_at_once(memory, at_once):
    """Three times what they take: 10.3 GiB for four of the paper's plain network in bfloat16, less
    for those of the residual one."""
    archs = {"plain", "residual"}
    gpu = torch.device("cuda:0")
    assert suited_at_once(archs, PAPER, torch.bfloat16, device=gpu, memory=memory) == at_once


def test_a_cpu_sees_two_windows_at_once_whatever_its_memory():
    cpu = torch.device("cpu")
    for memory in (0, 2.0**50):
        assert suited_at_once({"plain"}, PAPER, torch.float32, device=cpu, memory=memory) == 2


def test_memory_of_windows_grows_with_their_number():
    one, four = [window_bytes("plain", PAPER, torch.float32, at_once=n) for n in (1, 4)]
    assert four == pytest.approx(4 * one)
    assert window_bytes("plain", PAPER, torch.float32) == pytest.approx(2 * one)


@pytest.mark.parametrize("at_once", [1, 3, 4, 100])
def test_how_many_windows_are_seen_at_once_changes_rounding_alone(at_once, generator):
    """Eight windows, each in eight mirror images."""
    network = build_unet("residual", TINY).eval()
    image = torch.randn(24, 48, 48, generator=generator)
    wanted = predict_probabilities([network], image, TINY)
    seen = []
    network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))

    found = predict_probabilities([network], image, TINY, at_once=at_once)

    assert max(seen) == min(at_once, 64) and sum(seen) == 64
    assert (found - wanted).abs().max() < 1e-5


def test_progress_on_a_terminal_begins_with_the_first_pair_of_flips(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show = predict.watch("scan", [])

    predict_probabilities([Pointwise()], torch.zeros(8, 8, 12), SMALL, on_window=show)

    printed = capsys.readouterr().out
    assert "scan: 12% of 2 windows" in printed
    assert "100% of 2 windows" in printed


class Halves(torch.nn.Module):
    """Logits in bfloat16, as convolutions under autocast give them."""

    def forward(self, x):
        return torch.cat([0.3 * x, 1.7 * x, -0.9 * x], dim=1).bfloat16()


def test_logits_of_half_precision_become_probabilities_in_float32(generator):
    image = torch.randn(TINY.patch, generator=generator)

    found = predict_probabilities([Halves()], image, TINY, mirroring=False)

    wanted = Halves()(image[None, None]).float().softmax(1)[0]
    assert (found - wanted).abs().max() < 1e-6


# --- to the bit, beside plain loops ---------------------------------------------------------------


def test_mask_and_probabilities_are_to_the_bit_what_plain_loops_give():
    """A phantom of four windows, a slice less than the patch, by two of the demo's networks."""
    torch.manual_seed(3)
    recipe = dataclasses.replace(DEMO, patch=(16, 32, 32))
    networks = [build_unet(arch, recipe).eval() for arch in ("plain", "residual")]
    for network in networks:
        network.heads[-1].weight.data *= 10  # so that each class wins somewhere
    voxels, _, spacing_mm = make_case(5, shape=(15, 44, 40), spacing_mm=recipe.spacing_mm)
    volume = Volume(None, voxels, spacing_mm, None, None)
    image = prepare_image(volume, recipe)

    found = predict_probabilities(networks, image, recipe)

    wanted = probabilities_by_loops(networks, image, recipe.patch)
    assert found.shape == (3, 15, 44, 40)
    assert np.array_equal(found.numpy(), wanted)
    mask = labels_on_native_grid(found, volume)
    assert np.array_equal(mask, labels_on_native_grid(wanted, volume))
    assert len(np.unique(mask)) == 3


# --- from scan to mask ----------------------------------------------------------------------------


@pytest.fixture
def scan():
    """A phantom of TINY's spacing, of two windows."""
    voxels, _, spacing_mm = make_case(5, shape=(16, 32, 40), spacing_mm=TINY.spacing_mm)
    return Volume(None, voxels, spacing_mm, None, None)


@pytest.fixture
def networks():
    torch.manual_seed(1)
    return [build_unet(arch, TINY).eval() for arch in ("plain", "residual")]


@pytest.mark.parametrize("mirroring", [True, False])
def test_a_scan_is_segmented_by_its_three_stages(scan, networks, mirroring):
    seen = []

    labels = segment_volume(scan, networks, TINY, mirroring=mirroring, on_probabilities=seen.append)

    image = prepare_image(scan, TINY)
    probabilities = predict_probabilities(networks, image, TINY, mirroring)
    assert labels.shape == (16, 32, 40)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, labels_on_native_grid(probabilities, scan))
    assert torch.equal(seen[0], probabilities)


def test_a_scan_is_segmented_in_the_precision_that_is_asked_for(scan, networks):
    seen = []
    networks[0].heads[-1].register_forward_hook(lambda *given: seen.append(given[-1].dtype))

    segment_volume(
        scan,
        networks[:1],
        TINY,
        mirroring=False,
        device=torch.device("cpu"),
        precision=torch.bfloat16,
    )

    assert seen == [torch.bfloat16]  # two windows at once


def test_a_scan_is_segmented_with_as_many_windows_at_once_as_asked_for(scan, networks):
    seen = []
    networks[0].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))

    segment_volume(scan, networks[:1], TINY, at_once=7)

    assert seen[0] == 7


def test_windows_are_told_while_a_scan_is_segmented(scan, networks):
    seen = []

    segment_volume(scan, networks, TINY, on_window=lambda done, of: seen.append((done, of)))

    assert seen[0] == (0.25, 4)
    assert seen[-1] == (4, 4)  # two of eight mirror images; two by two


def test_the_device_is_held_until_probabilities_are_labels(scan, networks):
    lock, held = Lock(), []

    segment_volume(
        scan,
        networks,
        TINY,
        on_window=lambda *done: held.append(lock.locked()),
        on_probabilities=lambda given: held.append(lock.locked()),
        device_turn=lock,
    )

    assert held
    assert all(held)
    assert not lock.locked()


# --- nothing waits for the device -----------------------------------------------------------------

WAITS = ("item", "cpu", "numpy", "tolist", "nonzero", "to", "__bool__", "__int__", "__float__")


@pytest.fixture
def waits(monkeypatch):
    """Takes the name of each call of a tensor's method that would wait for a GPU."""
    calls = []

    def counted(name):
        method = getattr(torch.Tensor, name)

        def call(tensor, *given, **named):
            calls.append(name)
            return method(tensor, *given, **named)

        return call

    for name in WAITS:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    return calls


def test_no_window_waits_for_the_device(waits, networks):
    """Eight windows wait as often as one does, and none to be looked at."""
    calls = []
    for shape in ((16, 32, 32), (24, 48, 48)):
        waits.clear()
        predict_probabilities(networks, torch.zeros(shape), TINY)
        calls.append(sorted(waits))

    one, eight = calls
    assert one == eight
    assert one.count("__int__") == 0  # whether they are numbers is asked of all, for the mask


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_no_window_waits_for_a_gpu(networks):
    """torch itself refuses what would wait."""
    windows = []

    def on_window(done, of):
        windows.append(done)
        if done == of:
            torch.cuda.set_sync_debug_mode("default")
        elif len(windows) == 1:
            torch.cuda.set_sync_debug_mode("error")

    try:
        predict_probabilities(
            [networks[0].cuda()], torch.zeros(24, 48, 48), TINY, on_window=on_window
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert windows[-1] == 8


@pytest.mark.parametrize("shape", [(20, 40, 33), (9, 17, 32)], ids=["windows", "padded"])
def test_each_networks_own_mask_is_told_and_the_result_stays_to_the_bit(shape):
    """As of each network alone, but where rounding decides; padding is left out. (Of residual
    networks that are not trained many voxels are ties.)"""
    torch.manual_seed(0)
    networks = [build_unet("plain", TINY).eval() for _ in range(3)]
    image = torch.randn(shape)
    masks = []

    without = predict_probabilities(networks, image, TINY, False)
    told = predict_probabilities(networks, image, TINY, False, on_mask=masks.append)

    assert torch.equal(told, without)
    assert len(masks) == 3
    for network, mask in zip(networks, masks):
        alone = predict_probabilities([network], image, TINY, False).argmax(dim=0).numpy()
        assert mask.dtype == np.uint8 and mask.shape == shape
        assert (mask != alone).mean() < 1e-4
    assert (masks[0] != masks[1]).mean() > 0.1
