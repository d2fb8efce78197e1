"""Each change_x: identity, a hand-worked value, an inverse pair or scipy. Each random_x: how often, how far."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from minikits import augmentation as A
from minikits.geometry import cut
from minikits.paper import PAPER

NEVER = {
    name: 0.0
    for name in (f.name for f in dataclasses.fields(PAPER))
    if name.endswith("_probability")
}


def always(name):
    return dataclasses.replace(PAPER, **{**NEVER, f"{name}_probability": 1.0})


@pytest.fixture
def patch(generator):
    image = torch.randn(12, 16, 14, generator=generator)
    labels = (torch.rand(12, 16, 14, generator=generator) * 3).to(torch.uint8)
    return image, labels


def coordinates(shape, angles, scale, start=(0, 0, 0)):
    """Where each voxel of a patch comes from, by the text: rotate about Z, Y, X, scale, about the centre."""
    (cz, cy, cx), (sz, sy, sx) = np.cos(angles), np.sin(angles)
    turn = (
        np.array([[1, 0, 0], [0, cz, -sz], [0, sz, cz]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[cx, -sx, 0], [sx, cx, 0], [0, 0, 1]])
    )
    centre = (np.array(shape) - 1) / 2
    offsets = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - centre
    return (offsets @ turn * scale + centre + start).transpose(3, 0, 1, 2)


@pytest.mark.parametrize(
    "angles, scale",
    [
        ((0.3, 0, 0), 1),
        ((0, -0.4, 0), 1),
        ((0, 0, 0.5), 1),
        ((0.1, 0.2, -0.3), 0.8),
        ((0, 0, 0), 1.3),
    ],
)
def test_geometry_equals_scipy(patch, angles, scale):
    image, labels = patch
    where = coordinates(image.shape, angles, scale)
    wanted = map_coordinates(image.double().numpy(), where, order=1, mode="grid-constant", cval=0)
    masks = [
        map_coordinates(
            (labels == k).double().numpy(), where, order=1, mode="grid-constant", cval=k == 0
        )
        for k in range(3)
    ]
    turned, turned_labels = A.change_geometry(image, labels, angles, scale)
    assert np.abs(turned.numpy() - wanted).max() < 1e-4
    clear = np.sort(masks, axis=0)[-1] - np.sort(masks, axis=0)[-2] > 1e-4
    assert (
        np.array_equal(turned_labels.numpy()[clear], np.argmax(masks, 0)[clear])
        and clear.mean() > 0.9
    )


def test_a_patch_straight_from_the_case_equals_a_patch_of_the_turned_case(generator):
    """The box that is touched is enough: the same as handing over the whole case, padded far beyond it."""
    case = torch.randn(30, 40, 36, generator=generator)
    labels = (torch.rand(30, 40, 36, generator=generator) * 3).to(torch.uint8)
    angles, scale, size = (0.2, -0.3, 0.4), 1.2, (10, 12, 14)
    for start in ((8, 10, 9), (-3, 0, 0), (25, 35, 30)):
        found, _ = A.change_geometry(case, labels, angles, scale, start=start, patch=size)
        wanted = map_coordinates(
            case.double().numpy(),
            coordinates(size, angles, scale, start),
            order=1,
            mode="grid-constant",
            cval=0,
        )
        assert np.abs(found.numpy() - wanted).max() < 1e-4
    for start in ((90, 0, 0), (0, -70, 0)):
        outside, background = A.change_geometry(
            case, labels, angles, scale, start=start, patch=size
        )
        assert not outside.any() and not background.any()


def test_turning_by_nothing_and_by_quarters(patch):
    image, labels = patch
    assert torch.equal(A.change_geometry(image, labels, (0, 0, 0), 1)[0], image)
    cube, cube_labels = image[:, :12, :12], labels[:, :12, :12]
    turned, turned_labels = A.change_geometry(cube, cube_labels, (math.pi / 2, 0, 0), 1)
    back, back_labels = A.change_geometry(turned, turned_labels, (-math.pi / 2, 0, 0), 1)
    assert torch.allclose(turned, torch.rot90(cube, 1, (1, 2)), atol=1e-4)
    assert torch.allclose(back, cube, atol=1e-4) and torch.equal(back_labels, cube_labels)


def test_scale_above_one_zooms_out():
    image = torch.zeros(21, 21, 21)
    image[5:16, 5:16, 5:16] = 1
    labels = image.to(torch.uint8)
    smaller = A.change_geometry(image, labels, (0, 0, 0), 1.4)[1].sum()
    larger = A.change_geometry(image, labels, (0, 0, 0), 0.7)[1].sum()
    assert smaller < labels.sum() < larger


def test_cut_fills_up_with_zero():
    values = torch.arange(1, 9).reshape(2, 2, 2)
    out = cut(values, (-1, 0, 1), (3, 2, 3))
    assert (
        out[1:, :, 0].tolist() == [[2, 4], [6, 8]] and not out[0].any() and not out[:, :, 1:].any()
    )
    assert not cut(values, (5, 5, 5), (2, 2, 2)).any()


def test_brightness_contrast_and_gamma_by_hand():
    image = torch.tensor([0.0, 1.0, 2.0, 5.0]).reshape(1, 2, 2)
    assert A.change_brightness(image, 1.5).flatten().tolist() == [0, 1.5, 3, 7.5]
    # about the mean 2, by one half; by two, clipped to 0..5
    assert A.change_contrast(image, 0.5).flatten().tolist() == [1, 1.5, 2, 3.5]
    assert A.change_contrast(image, 2.0).flatten().tolist() == [0, 0, 2, 5]
    bent = A.change_gamma(image, 2.0)  # (0, 1/25, 4/25, 1) * 5, then mean 2 and sd sqrt(3.5) again
    raw = np.array([0, 0.2, 0.8, 5])
    wanted = (raw - raw.mean()) / raw.std() * np.sqrt(3.5) + 2
    assert np.allclose(bent.flatten(), wanted, atol=1e-5)
    assert np.allclose(A.change_gamma(image, 2.0, inverted=True), -A.change_gamma(-image, 2.0))


@pytest.mark.parametrize("inverted", [False, True])
def test_one_is_the_identity_and_a_constant_patch_stays(patch, inverted):
    image, _ = patch
    assert torch.allclose(A.change_gamma(image, 1.0, inverted=inverted), image, atol=1e-5)
    assert torch.allclose(A.change_contrast(image, 1.0), image, atol=1e-6)
    assert torch.equal(A.change_brightness(image, 1.0), image)
    assert torch.equal(A.change_noise(image, 0.0, seed=1), image)
    constant = torch.full((3, 4, 5), -2.0)
    assert torch.equal(A.change_gamma(constant, 1.4, inverted=inverted), constant)


def test_noise_has_its_sd_and_its_seed():
    image = torch.zeros(40, 40, 40)
    noise = A.change_noise(image, 0.1, seed=3)
    assert noise.std().item() == pytest.approx(0.1, rel=0.02) and abs(noise.mean().item()) < 0.002
    assert torch.equal(noise, A.change_noise(image, 0.1, seed=3))


def test_mirroring_twice_is_nothing(patch):
    image, labels = patch
    for axes in ([], [0], [1, 2], [0, 1, 2]):
        once = A.change_mirroring(image, labels, axes)
        twice = A.change_mirroring(*once, axes)
        assert torch.equal(twice[0], image) and torch.equal(twice[1], labels)
    assert torch.equal(A.change_mirroring(image, labels, [0])[0][0], image[-1])


def test_how_often_and_how_far(patch, generator, monkeypatch):
    """20,000 draws of each transform's parameter: the frequency within 4 standard deviations, the range kept."""
    image, labels = patch[0][:2, :2, :2], patch[1][:2, :2, :2]
    drawn = {}

    def record(name):
        def change(*arguments, **named):
            drawn.setdefault(name + ("_inverted" if named.get("inverted") else ""), []).append(
                arguments[-1]
            )
            return arguments[0]

        return change

    for name in ("noise", "brightness", "contrast", "gamma"):
        monkeypatch.setattr(A, f"change_{name}", record(name))
    monkeypatch.setattr(
        A,
        "change_geometry",
        lambda image, labels, angles, scale, **_: (
            drawn.setdefault("angles", []).append(angles)
            or drawn.setdefault("scale", []).append(scale)
            or (image, labels)
        ),
    )
    monkeypatch.setattr(
        A,
        "change_mirroring",
        lambda image, labels, axes: drawn.setdefault("axes", []).append(axes) or (image, labels),
    )
    count = 20_000
    for _ in range(count):
        A.augment(image, labels, PAPER, generator)
    angles = np.array(drawn["angles"])
    turned = angles.any(axis=1)
    scales = np.array([scale for scale in drawn["scale"] if scale != 1])
    probabilities = {
        PAPER.rotation_probability: [turned.sum()],
        PAPER.scaling_probability: [len(scales)],
        PAPER.noise_probability: [len(drawn["noise"]), len(drawn["gamma_inverted"])],
        PAPER.brightness_probability: [len(drawn["brightness"]), len(drawn["contrast"])],
        PAPER.gamma_probability: [len(drawn["gamma"])],
        PAPER.mirroring_probability: [
            sum(axis in axes for axes in drawn["axes"]) for axis in range(3)
        ],
    }
    for probability, seen in probabilities.items():
        for number in seen:
            assert abs(number - count * probability) < 4 * math.sqrt(
                count * probability * (1 - probability)
            )
    assert np.abs(angles).max() == pytest.approx(math.radians(30), rel=0.01)
    for values, (low, high) in (
        (scales, (0.7, 1.4)),
        (drawn["noise"], (0, 0.1)),
        (drawn["contrast"], (0.75, 1.25)),
        (drawn["brightness"], (0.75, 1.25)),
        (drawn["gamma"], (0.7, 1.5)),
    ):
        assert low <= min(values) < low + 0.01 and high - 0.01 < max(values) <= high
    for values in (scales, np.array(drawn["gamma"]), np.array(drawn["contrast"])):
        assert abs(np.mean(values < 1) - 0.5) < 4 * 0.5 / math.sqrt(len(values))


def test_augment_is_a_function_of_its_generator(patch):
    everything = dataclasses.replace(PAPER, **dict.fromkeys(NEVER, 1.0))
    one, two = (A.augment(*patch, everything, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert (
        one[0].shape == patch[0].shape
        and one[1].dtype == patch[1].dtype
        and one[0].isfinite().all()
    )
    nothing = dataclasses.replace(PAPER, **NEVER)
    same = A.augment(*patch, nothing, torch.Generator())
    assert torch.equal(same[0], patch[0]) and torch.equal(same[1], patch[1])


@pytest.mark.parametrize("name", ["noise", "brightness", "contrast", "gamma", "inverted_gamma"])
def test_intensity_transforms_leave_the_labels(patch, generator, name):
    image, labels = A.augment(*patch, always(name), generator)
    assert torch.equal(labels, patch[1]) and not torch.equal(image, patch[0])


def places_of(shape):
    """An image and labels in which every voxel has a value of its own, the same in both."""
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    return numbers.float(), numbers.to(torch.int16)


def test_labels_are_mirrored_with_the_image(generator):
    image, labels = places_of((4, 5, 6))
    often = dataclasses.replace(PAPER, **{**NEVER, "mirroring_probability": 0.5})
    seen = set()
    for _ in range(60):
        flipped, flipped_labels = A.augment(image, labels, often, generator)
        assert torch.equal(flipped, flipped_labels.float())
        seen.add(int(flipped_labels[0, 0, 0]))
    corners = {int(labels[z, y, x]) for z in (0, 3) for y in (0, 4) for x in (0, 5)}
    assert seen == corners


@pytest.mark.parametrize("axis, wanted", [(0, 3 * 30), (1, 4 * 6), (2, 5)])
def test_each_axis_is_mirrored_for_itself(axis, wanted):
    """The first voxel of 4 x 5 x 6 is then the one at the far end of that axis."""
    image, labels = A.change_mirroring(*places_of((4, 5, 6)), [axis])
    assert image[0, 0, 0] == labels[0, 0, 0] == wanted


def test_labels_turn_with_the_image(generator):
    """A ball off the centre: where the image is above one half is where the label is."""
    z, y, x = torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij")
    ball = ((z - 9) ** 2 + (y - 15) ** 2 + (x - 11) ** 2 < 36).float()
    recipe = dataclasses.replace(
        PAPER, **{**NEVER, "rotation_probability": 1.0, "scaling_probability": 1.0}
    )
    for _ in range(10):
        image, labels = A.augment(ball, ball.to(torch.uint8), recipe, generator)
        clear = (image - 0.5).abs() > 1e-3
        assert torch.equal(labels[clear] == 1, image[clear] > 0.5)
        assert 0.2 * ball.sum() < labels.sum() < 3 * ball.sum()


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
)
def test_labels_of_any_type_keep_their_values(dtype, generator):
    """As the 0/1 masks of each value do; the type stays."""
    values = (
        [0, 1] if dtype == torch.bool else [0, 1, 2, 3, 7, 8, 120] + [-5] * (dtype != torch.uint8)
    )
    image = torch.zeros(10, 12, 11)
    labels = torch.tensor(values)[torch.randint(len(values), (10, 12, 11), generator=generator)].to(
        dtype
    )
    labels[:6] = labels[:1, :1, :1]
    where = coordinates(image.shape, (0.2, -0.3, 0.4), 1.1)
    masks = [
        map_coordinates(
            (labels == value).double().numpy(),
            where,
            order=1,
            mode="grid-constant",
            cval=value == 0,
        )
        for value in values
    ]
    _, turned = A.change_geometry(image, labels, (0.2, -0.3, 0.4), 1.1)
    clear = np.sort(masks, axis=0)[-1] - np.sort(masks, axis=0)[-2] > 1e-4
    assert turned.dtype == dtype
    assert np.array_equal(turned.numpy()[clear], np.array(values)[np.argmax(masks, 0)[clear]])


def test_of_equally_large_masks_the_lowest_label_wins():
    """Half a voxel between 2 and 1, and between 1 and 2, and between 2 and 0."""
    labels = torch.tensor([2, 1, 2, 0, 0], dtype=torch.uint8).reshape(1, 1, 5)
    stretched = A.change_geometry(
        labels.float(), labels, (0, 0, 0), 0.5, patch=(1, 1, 9), start=(0, 0, -2)
    )
    assert stretched[1].flatten().tolist() == [2, 1, 1, 1, 2, 0, 0, 0, 0]
    assert stretched[0].flatten().tolist() == pytest.approx([2, 1.5, 1, 1.5, 2, 1, 0, 0, 0])


def test_what_a_turn_brings_in_from_outside_is_zero_and_background():
    image, labels = torch.full((8, 8, 8), 5.0), torch.full((8, 8, 8), 2, dtype=torch.uint8)
    turned, turned_labels = A.change_geometry(image, labels, (0, 0, math.pi / 4), 1)
    assert (
        not turned[0, 0].any() and not turned_labels[0, 0].any()
    )  # about X: an edge along X is outside
    assert turned[4, 4, 4] == 5 and turned_labels[4, 4, 4] == 2
    moved, moved_labels = A.change_geometry(image, labels, (0, 0, 0), 1, start=(0, 0, 6))
    assert (
        (moved[:, :, :2] == 5).all()
        and not moved[:, :, 2:].any()
        and not moved_labels[:, :, 2:].any()
    )


@pytest.mark.parametrize("angles, scale", [((0, 0, 0), 1), ((0.2, 0, 0.1), 0.9)])
def test_a_case_kept_in_half_precision_gives_float32(angles, scale, generator):
    case = torch.randn(9, 9, 9, generator=generator).half()
    labels = torch.zeros(9, 9, 9, dtype=torch.uint8)
    found, _ = A.change_geometry(case, labels, angles, scale)
    assert found.dtype == torch.float32
    assert torch.equal(found, A.change_geometry(case.float(), labels, angles, scale)[0])


def changes_of(image, labels):
    """What each change_x makes of an image."""
    return {
        "geometry": A.change_geometry(image, labels, (0.1, 0.2, 0.3), 1.2)[0],
        "cut": A.change_geometry(image, labels, (0, 0, 0), 1, start=(1, 0, -1), patch=(4, 5, 6))[0],
        "noise": A.change_noise(image, 0.5, seed=1),
        "brightness": A.change_brightness(image, 1.25),
        "contrast": A.change_contrast(image, 0.5),
        "gamma": A.change_gamma(image, 1.4),
        "inverted gamma": A.change_gamma(image, 1.4, inverted=True),
        "mirroring": A.change_mirroring(image, labels, [0, 2])[0],
    }


def test_no_change_touches_what_it_was_given(patch):
    image, labels = patch
    before = image.clone(), labels.clone()
    changes_of(image, labels)
    assert torch.equal(image, before[0]) and torch.equal(labels, before[1])


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.uint8])
def test_integers_are_taken_as_floats(dtype, generator):
    image = torch.randint(0, 200, (8, 9, 10), generator=generator)
    labels = torch.zeros(8, 9, 10, dtype=torch.uint8)
    found, wanted = changes_of(image.to(dtype), labels), changes_of(image.float(), labels)
    for name in found:
        assert torch.equal(found[name].float(), wanted[name]), name


def test_views_are_changed_like_their_copies(patch):
    image, labels = (values.permute(2, 0, 1)[:, ::2] for values in patch)
    assert not image.is_contiguous()
    found, wanted = changes_of(image, labels), changes_of(image.contiguous(), labels.contiguous())
    for name in found:
        assert torch.allclose(found[name], wanted[name], atol=1e-6), name


def test_noise_is_drawn_where_no_device_matters():
    """torch's "meta" device computes nothing and draws nothing: a generator asked of it would be refused."""
    assert A.change_noise(torch.zeros(3, 4, 5, device="meta"), 0.1, seed=2).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_patch_is_the_same_where_the_case_lies_in_a_gpu(patch):
    everything = dataclasses.replace(PAPER, **dict.fromkeys(NEVER, 1.0))
    image, labels = A.augment(*patch, everything, A.generator_for(3))
    there, labels_there = A.augment(
        patch[0].cuda(), patch[1].cuda(), everything, A.generator_for(3)
    )
    assert torch.allclose(there.cpu(), image, atol=1e-4)
    assert (labels_there.cpu() != labels).float().mean() < 1e-3  # ties, by rounding


LABELS = torch.zeros(4, 4, 4, dtype=torch.uint8)
IMAGE = torch.zeros(4, 4, 4)
STILL = ((0, 0, 0), 1)


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda: A.change_geometry(IMAGE, LABELS[:3], *STILL), "same shape"),
        (lambda: A.change_geometry(IMAGE, LABELS[:, :, :3], (0.1, 0, 0), 1), "same shape"),
        (lambda: A.change_geometry(IMAGE[None], LABELS[None], *STILL), "same shape"),
        (lambda: A.change_geometry(IMAGE[:0], LABELS[:0], *STILL), "not empty"),
        (lambda: A.change_mirroring(IMAGE, LABELS[:3], [0]), "same shape"),
        (lambda: A.change_geometry(IMAGE, LABELS, (0, 0), 1), "three"),
        (lambda: A.change_geometry(IMAGE, LABELS, (math.nan, 0, 0), 1), "finite"),
        (lambda: A.change_geometry(IMAGE, LABELS, (0, math.inf, 0), 1), "finite"),
        (lambda: A.change_geometry(IMAGE, LABELS, (0, 0, 0), 0), "scale 0"),
        (lambda: A.change_geometry(IMAGE, LABELS, (0, 0, 0), -1.2), "scale -1.2"),
        (lambda: A.change_geometry(IMAGE, LABELS, (0, 0, 0), math.nan), "scale nan"),
        (lambda: A.change_geometry(IMAGE, LABELS, (0, 0, 0), math.inf), "scale inf"),
        (lambda: A.change_geometry(IMAGE, LABELS, *STILL, patch=()), "each of its axes"),
        (lambda: A.change_geometry(IMAGE, LABELS, *STILL, patch=(0, 4, 4)), "at least one voxel"),
        (
            lambda: A.change_geometry(IMAGE, LABELS, (0.1, 0, 0), 1, patch=(4, -4, 4)),
            "at least one voxel",
        ),
        (
            lambda: A.change_geometry(IMAGE, LABELS, (0.1, 0, 0), 1, start=(0, 0)),
            "each of its axes",
        ),
        (lambda: cut(IMAGE, (0, 0), (2, 2)), "each of its axes"),
        (lambda: cut(IMAGE, (0, 0, 0), (2, 2, 0)), "at least one voxel"),
        (lambda: A.change_noise(IMAGE, -0.1, seed=0), "sd -0.1"),
        (lambda: A.change_noise(IMAGE, math.nan, seed=0), "sd nan"),
        (lambda: A.change_noise(IMAGE, 0.1, seed=-1), "whole numbers"),
        (lambda: A.change_brightness(IMAGE, math.nan), "brightness nan"),
        (lambda: A.change_contrast(IMAGE, -1.0), "contrast -1"),
        (lambda: A.change_gamma(IMAGE, 0.0), "gamma 0"),
        (lambda: A.change_gamma(IMAGE, -2.0), "gamma -2"),
    ],
)
def test_what_cannot_be_done_is_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()


def test_starts_and_patches_may_be_numpys():
    image, labels = places_of((5, 5, 5))
    start, size = np.array([1, 2, -1]), np.array([2, 2, 3])
    found, _ = A.change_geometry(image, labels, np.zeros(3), np.float64(1), start=start, patch=size)
    assert torch.equal(found, cut(image, (1, 2, -1), (2, 2, 3)))
    turned, _ = A.change_geometry(image, labels, np.array([0.1, 0, 0]), 1, start=start, patch=size)
    assert torch.equal(
        turned,
        A.change_geometry(image, labels, (0.1, 0, 0), 1, start=(1, 2, -1), patch=(2, 2, 3))[0],
    )
