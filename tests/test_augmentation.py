"""Each change_x: identity, a hand-worked value, an inverse pair or scipy. Each random_x: how often,
how far."""

import math

import numpy as np
import pytest
import torch
from conftest import with_probabilities
from one_page import places_to_read
from scipy.ndimage import map_coordinates

from minikits import augmentation
from minikits.augmentation import (
    augment,
    change_brightness,
    change_contrast,
    change_gamma,
    change_geometry,
    change_mirroring,
    change_noise,
    generator_for,
)
from minikits.geometry import cut, patch_to_case
from minikits.paper import PAPER

EVERYTHING = with_probabilities(PAPER, 1.0)
NOTHING = with_probabilities(PAPER, 0.0)


@pytest.fixture
def patch(generator):
    """(image, labels) of random values: floats about 0, and 0, 1 or 2."""
    image = torch.randn(12, 16, 14, generator=generator)
    labels = (torch.rand(12, 16, 14, generator=generator) * 3).to(torch.uint8)
    return image, labels


def numbered(shape):
    """An image and labels in which every voxel has a number of its own, the same in both."""
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    return numbers.float(), numbers.to(torch.int16)


# --- rotation and scaling -------------------------------------------------------------------------


def places_by_the_text(shape, angles, scale, start=(0, 0, 0)):
    """(3, Z, Y, X): where each voxel of a patch comes from: rotate about Z, Y, X, scale, about the
    centre."""
    return places_to_read(shape, angles, scale, start).transpose(3, 0, 1, 2)


def read_by_scipy(values, places, outside=0):
    """What scipy reads there, linearly between voxels."""
    values = values.double().numpy()
    return map_coordinates(values, places, order=1, mode="grid-constant", cval=outside)


def labels_by_scipy(labels, values, places):
    """(labels, where they are clear): of the values' 0/1 masks, each read by scipy, the largest;
    clear where it is the largest by more than rounding."""
    masks = [read_by_scipy(labels == value, places, outside=value == 0) for value in values]

    second, largest = np.sort(masks, axis=0)[-2:]
    return np.array(values)[np.argmax(masks, axis=0)], largest - second > 1e-4


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
    places = places_by_the_text(image.shape, angles, scale)
    wanted = read_by_scipy(image, places)
    wanted_labels, clear = labels_by_scipy(labels, [0, 1, 2], places)

    turned, turned_labels = change_geometry(image, labels, angles, scale)

    assert np.abs(turned.numpy() - wanted).max() < 1e-4
    assert np.array_equal(turned_labels.numpy()[clear], wanted_labels[clear])
    assert clear.mean() > 0.9


def test_a_patch_straight_from_the_case_equals_a_patch_of_the_turned_case(generator):
    """The box that is read is enough: the same as handing over the whole case, padded far beyond
    it."""
    case = torch.randn(30, 40, 36, generator=generator)
    labels = (torch.rand(30, 40, 36, generator=generator) * 3).to(torch.uint8)
    angles, scale, size = (0.2, -0.3, 0.4), 1.2, (10, 12, 14)

    for start in ((8, 10, 9), (-3, 0, 0), (25, 35, 30)):
        wanted = read_by_scipy(case, places_by_the_text(size, angles, scale, start))
        found, _ = change_geometry(case, labels, angles, scale, start=start, patch=size)
        assert np.abs(found.numpy() - wanted).max() < 1e-4

    for start in ((90, 0, 0), (0, -70, 0)):
        outside, background = change_geometry(case, labels, angles, scale, start=start, patch=size)
        assert not outside.any()
        assert not background.any()


def test_turning_by_nothing_and_by_quarters(patch):
    image, labels = patch
    cube, cube_labels = image[:, :12, :12], labels[:, :12, :12]
    quarter = math.pi / 2

    same, _ = change_geometry(image, labels, (0, 0, 0), 1)
    turned, turned_labels = change_geometry(cube, cube_labels, (quarter, 0, 0), 1)
    back, back_labels = change_geometry(turned, turned_labels, (-quarter, 0, 0), 1)

    assert torch.equal(same, image)
    assert torch.allclose(turned, torch.rot90(cube, 1, (1, 2)), atol=1e-4)
    assert torch.allclose(back, cube, atol=1e-4)
    assert torch.equal(back_labels, cube_labels)


def test_a_turn_is_one_of_voxels_so_that_lengths_in_mm_change():
    """On the paper's grid 30 degrees about X make what lay along Y 1.32 times as long, and what lay
    along Z 0.90 times: cos 30 of it stays on its axis, sin 30 goes to one of another spacing."""
    z_mm, y_mm, _ = PAPER.spacing_mm
    case_to_patch = np.linalg.inv(patch_to_case((0.0, 0.0, math.radians(30)), 1.0))

    along_y = case_to_patch @ [0, 1, 0] * PAPER.spacing_mm
    along_z = case_to_patch @ [1, 0, 0] * PAPER.spacing_mm

    assert np.allclose(np.abs(along_y), [0.5 * z_mm, math.cos(math.pi / 6) * y_mm, 0])
    assert round(np.linalg.norm(along_y) / y_mm, 2) == 1.32
    assert round(np.linalg.norm(along_z) / z_mm, 2) == 0.90


def test_scale_above_one_zooms_out():
    image = torch.zeros(21, 21, 21)
    image[5:16, 5:16, 5:16] = 1
    labels = image.to(torch.uint8)

    _, smaller = change_geometry(image, labels, (0, 0, 0), 1.4)
    _, larger = change_geometry(image, labels, (0, 0, 0), 0.7)

    assert smaller.sum() < labels.sum() < larger.sum()


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
)
def test_labels_of_any_type_keep_their_values(dtype, generator):
    """As the 0/1 masks of each value do; the type stays. Half of the volume has one value, the
    other half any."""
    values = [0, 1, 2, 3, 7, 8, 120, -5]
    if dtype == torch.uint8:
        values = [0, 1, 2, 3, 7, 8, 120]
    if dtype == torch.bool:
        values = [0, 1]
    image = torch.zeros(10, 12, 11)
    which = torch.randint(len(values), image.shape, generator=generator)
    labels = torch.tensor(values)[which].to(dtype)
    labels[:6] = labels[0, 0, 0]
    angles, scale = (0.2, -0.3, 0.4), 1.1
    places = places_by_the_text(image.shape, angles, scale)
    wanted, clear = labels_by_scipy(labels, values, places)

    _, turned = change_geometry(image, labels, angles, scale)

    assert turned.dtype == dtype
    assert np.array_equal(turned.numpy()[clear], wanted[clear])


def test_of_equally_large_masks_the_lowest_label_wins():
    """Half a voxel between 2 and 1, and between 1 and 2, and between 2 and 0."""
    labels = torch.tensor([2, 1, 2, 0, 0], dtype=torch.uint8).reshape(1, 1, 5)

    image, stretched = change_geometry(
        labels.float(), labels, (0, 0, 0), 0.5, patch=(1, 1, 9), start=(0, 0, -2)
    )

    assert image.flatten().tolist() == pytest.approx([2, 1.5, 1, 1.5, 2, 1, 0, 0, 0])
    assert stretched.flatten().tolist() == [2, 1, 1, 1, 2, 0, 0, 0, 0]


def test_what_a_turn_brings_in_from_outside_is_zero_and_background():
    """Turned about X by an eighth of a circle, a cube's edges along X come from outside."""
    image = torch.full((8, 8, 8), 5.0)
    labels = torch.full((8, 8, 8), 2, dtype=torch.uint8)

    turned, turned_labels = change_geometry(image, labels, (0, 0, math.pi / 4), 1)

    assert not turned[0, 0].any()
    assert not turned_labels[0, 0].any()
    assert turned[4, 4, 4] == 5
    assert turned_labels[4, 4, 4] == 2


def test_what_a_cut_brings_in_from_outside_is_zero_and_background():
    """From voxel 6 of 8 on, two voxels are inside."""
    image = torch.full((8, 8, 8), 5.0)
    labels = torch.full((8, 8, 8), 2, dtype=torch.uint8)

    moved, moved_labels = change_geometry(image, labels, (0, 0, 0), 1, start=(0, 0, 6))

    assert (moved[:, :, :2] == 5).all()
    assert not moved[:, :, 2:].any()
    assert not moved_labels[:, :, 2:].any()


def test_labels_turn_with_the_image(generator):
    """A ball off the centre: where the image is above one half is where the label is."""
    z, y, x = torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij")
    ball = ((z - 9) ** 2 + (y - 15) ** 2 + (x - 11) ** 2 < 36).float()
    recipe = with_probabilities(PAPER, 0.0, rotation=1.0, scaling=1.0)

    for _ in range(10):
        image, labels = augment(ball, ball.to(torch.uint8), recipe, generator)

        clear = (image - 0.5).abs() > 1e-3
        assert torch.equal(labels[clear] == 1, image[clear] > 0.5)
        assert 0.2 * ball.sum() < labels.sum() < 3 * ball.sum()


def test_cut_fills_up_with_zero():
    """Of 1 2 / 3 4 and 5 6 / 7 8: one slice too early, and a column too far right by one."""
    values = torch.arange(1, 9).reshape(2, 2, 2)

    found = cut(values, (-1, 0, 1), (3, 2, 3))
    outside = cut(values, (5, 5, 5), (2, 2, 2))

    assert found[1:, :, 0].tolist() == [[2, 4], [6, 8]]
    assert not found[0].any()
    assert not found[:, :, 1:].any()
    assert not outside.any()


@pytest.mark.parametrize("angles, scale", [((0, 0, 0), 1), ((0.2, 0, 0.1), 0.9)])
def test_a_case_kept_in_half_precision_gives_float32(angles, scale, generator):
    case = torch.randn(9, 9, 9, generator=generator).half()
    labels = torch.zeros(9, 9, 9, dtype=torch.uint8)

    found, _ = change_geometry(case, labels, angles, scale)
    wanted, _ = change_geometry(case.float(), labels, angles, scale)

    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_starts_and_patches_may_be_numpys():
    image, labels = numbered((5, 5, 5))
    where = {"start": (1, 2, -1), "patch": (2, 2, 3)}
    numpys = {"start": np.array([1, 2, -1]), "patch": np.array([2, 2, 3])}

    found, _ = change_geometry(image, labels, np.zeros(3), np.float64(1), **numpys)
    turned, _ = change_geometry(image, labels, np.array([0.1, 0, 0]), 1, **numpys)
    wanted, _ = change_geometry(image, labels, (0.1, 0, 0), 1, **where)

    assert torch.equal(found, cut(image, (1, 2, -1), (2, 2, 3)))
    assert torch.equal(turned, wanted)


# --- mirroring ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [[], [0], [1, 2], [0, 1, 2]])
def test_mirroring_twice_is_nothing(patch, axes):
    image, labels = patch

    once, once_labels = change_mirroring(image, labels, axes)
    twice, twice_labels = change_mirroring(once, once_labels, axes)

    assert torch.equal(twice, image)
    assert torch.equal(twice_labels, labels)


def test_mirrored_along_z_the_last_slice_is_the_first(patch):
    image, labels = patch

    mirrored, _ = change_mirroring(image, labels, [0])

    assert torch.equal(mirrored[0], image[-1])


@pytest.mark.parametrize("axis, wanted", [(0, 3 * 30), (1, 4 * 6), (2, 5)])
def test_each_axis_is_mirrored_for_itself(axis, wanted):
    """The first voxel of 4 x 5 x 6 is then the one at the far end of that axis."""
    image, labels = change_mirroring(*numbered((4, 5, 6)), [axis])

    assert image[0, 0, 0] == labels[0, 0, 0] == wanted


def test_labels_are_mirrored_with_the_image(generator):
    """Of 60 patches each of the eight corners comes first at least once."""
    image, labels = numbered((4, 5, 6))
    often = with_probabilities(PAPER, 0.0, mirroring=0.5)
    corners = {int(labels[z, y, x]) for z in (0, 3) for y in (0, 4) for x in (0, 5)}

    seen = set()
    for _ in range(60):
        flipped, flipped_labels = augment(image, labels, often, generator)
        assert torch.equal(flipped, flipped_labels.float())
        seen.add(int(flipped_labels[0, 0, 0]))

    assert seen == corners


# --- intensities ----------------------------------------------------------------------------------


def test_brightness_contrast_and_gamma_by_hand():
    """Of 0, 1, 2, 5 the mean is 2, the variance (4 + 1 + 0 + 9) / 4 = 3.5."""
    image = torch.tensor([0.0, 1.0, 2.0, 5.0]).reshape(1, 2, 2)
    # to the power 2: (0, 1/25, 4/25, 1) times 5; then mean 2 and sd sqrt(3.5) again
    raised = np.array([0, 0.2, 0.8, 5])
    wanted = (raised - raised.mean()) / raised.std() * np.sqrt(3.5) + 2

    brighter = change_brightness(image, 1.5)
    half_the_contrast = change_contrast(image, 0.5)
    twice_the_contrast = change_contrast(image, 2.0)
    gamma = change_gamma(image, 2.0)
    inverted = change_gamma(image, 2.0, inverted=True)

    assert brighter.flatten().tolist() == [0, 1.5, 3, 7.5]
    assert half_the_contrast.flatten().tolist() == [1, 1.5, 2, 3.5]  # half as far from the mean
    assert twice_the_contrast.flatten().tolist() == [0, 0, 2, 5]  # -2 and 8 are clipped to 0 and 5
    assert np.allclose(gamma.flatten(), wanted, atol=1e-5)
    assert np.allclose(inverted, -change_gamma(-image, 2.0))


@pytest.mark.parametrize("inverted", [False, True])
def test_one_is_the_identity_and_a_constant_patch_stays(patch, inverted):
    image, _ = patch
    constant = torch.full((3, 4, 5), -2.0)

    assert torch.allclose(change_gamma(image, 1.0, inverted=inverted), image, atol=1e-5)
    assert torch.allclose(change_contrast(image, 1.0), image, atol=1e-6)
    assert torch.equal(change_brightness(image, 1.0), image)
    assert torch.equal(change_noise(image, 0.0, seed=1), image)
    assert torch.equal(change_gamma(constant, 1.4, inverted=inverted), constant)


def test_noise_has_its_sd_and_its_seed():
    image = torch.zeros(40, 40, 40)

    noise = change_noise(image, 0.1, seed=3)
    again = change_noise(image, 0.1, seed=3)

    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(noise.mean().item()) < 0.002
    assert torch.equal(noise, again)


def test_noise_is_drawn_where_no_device_matters():
    """torch's "meta" device computes nothing and draws nothing: a generator asked of it would be
    refused."""
    image = torch.zeros(3, 4, 5, device="meta")

    noisy = change_noise(image, 0.1, seed=2)

    assert noisy.device.type == "meta"


@pytest.mark.parametrize("name", ["noise", "brightness", "contrast", "gamma", "inverted_gamma"])
def test_intensity_transforms_leave_the_labels(patch, generator, name):
    image, labels = patch
    always = with_probabilities(PAPER, 0.0, **{name: 1.0})

    changed, same_labels = augment(image, labels, always, generator)

    assert torch.equal(same_labels, labels)
    assert not torch.equal(changed, image)


# --- all of them ----------------------------------------------------------------------------------


def changes_of(image, labels):
    """What each change_x makes of an image."""
    still, turned = ((0, 0, 0), 1), ((0.1, 0.2, 0.3), 1.2)
    return {
        "geometry": change_geometry(image, labels, *turned)[0],
        "cut": change_geometry(image, labels, *still, start=(1, 0, -1), patch=(4, 5, 6))[0],
        "noise": change_noise(image, 0.5, seed=1),
        "brightness": change_brightness(image, 1.25),
        "contrast": change_contrast(image, 0.5),
        "gamma": change_gamma(image, 1.4),
        "inverted gamma": change_gamma(image, 1.4, inverted=True),
        "mirroring": change_mirroring(image, labels, [0, 2])[0],
    }


def test_no_change_touches_what_it_was_given(patch):
    image, labels = patch
    image_before, labels_before = image.clone(), labels.clone()

    changes_of(image, labels)

    assert torch.equal(image, image_before)
    assert torch.equal(labels, labels_before)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.uint8])
def test_integers_are_taken_as_floats(dtype, generator):
    image = torch.randint(0, 200, (8, 9, 10), generator=generator)
    labels = torch.zeros(8, 9, 10, dtype=torch.uint8)

    found = changes_of(image.to(dtype), labels)
    wanted = changes_of(image.float(), labels)

    for name in found:
        assert torch.equal(found[name].float(), wanted[name]), name


def test_views_are_changed_like_their_copies(patch):
    image, labels = [values.permute(2, 0, 1)[:, ::2] for values in patch]
    assert not image.is_contiguous()

    found = changes_of(image, labels)
    wanted = changes_of(image.contiguous(), labels.contiguous())

    for name in found:
        assert torch.allclose(found[name], wanted[name], atol=1e-6), name


def test_augment_is_a_function_of_its_generator(patch):
    image, labels = patch

    one, one_labels = augment(image, labels, EVERYTHING, torch.Generator().manual_seed(5))
    two, two_labels = augment(image, labels, EVERYTHING, torch.Generator().manual_seed(5))

    assert torch.equal(one, two)
    assert torch.equal(one_labels, two_labels)
    assert one.shape == image.shape
    assert one_labels.dtype == labels.dtype
    assert one.isfinite().all()


def test_where_nothing_happens_a_patch_stays_as_it_is(patch):
    image, labels = patch

    same, same_labels = augment(image, labels, NOTHING, torch.Generator())

    assert torch.equal(same, image)
    assert torch.equal(same_labels, labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_patch_is_the_same_where_the_case_lies_in_a_gpu(patch):
    image, labels = patch

    here, labels_here = augment(image, labels, EVERYTHING, generator_for(3))
    there, labels_there = augment(image.cuda(), labels.cuda(), EVERYTHING, generator_for(3))

    assert torch.allclose(there.cpu(), here, atol=1e-4)
    assert (labels_there.cpu() != labels_here).float().mean() < 1e-3  # ties, by rounding


# --- how often and how far ------------------------------------------------------------------------


COUNT = 20_000
DRAWN = ("angles", "scale", "noise", "brightness", "contrast", "inverted gamma", "gamma", "axes")


@pytest.fixture(scope="module")
def drawn():
    """What 20,000 patches were changed by: {name: the values, in the order in which they came}.
    Nothing else happens to the patches."""
    image, labels = torch.zeros(2, 2, 2), torch.zeros(2, 2, 2, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(7)
    values = {name: [] for name in DRAWN}

    def geometry(image, labels, angles, scale, **_):
        values["angles"].append(angles)
        values["scale"].append(scale)
        return image, labels

    def noise(image, sd, *, seed):
        values["noise"].append(sd)
        return image

    def brightness(image, factor):
        values["brightness"].append(factor)
        return image

    def contrast(image, factor):
        values["contrast"].append(factor)
        return image

    def gamma(image, gamma, *, inverted):
        values["inverted gamma" if inverted else "gamma"].append(gamma)
        return image

    def mirroring(image, labels, axes):
        values["axes"].append(axes)
        return image, labels

    with pytest.MonkeyPatch.context() as monkeypatch:
        for change in (geometry, noise, brightness, contrast, gamma, mirroring):
            monkeypatch.setattr(augmentation, f"change_{change.__name__}", change)
        for _ in range(COUNT):
            augment(image, labels, PAPER, generator)
    return values


def happened(drawn, name):
    """The values of the patches to which it happened: angles that are not 0, scales that are not
    1."""
    values = np.array(drawn[name])
    if name == "angles":
        return values[values.any(axis=1)]
    if name == "scale":
        return values[values != 1]
    return values


def assert_as_often(number, probability):
    """To 4 standard deviations of so many coins of this probability."""
    spread = math.sqrt(COUNT * probability * (1 - probability))
    assert abs(number - COUNT * probability) < 4 * spread


@pytest.mark.parametrize(
    "name, probability",
    [
        ("angles", PAPER.rotation_probability),
        ("scale", PAPER.scaling_probability),
        ("noise", PAPER.noise_probability),
        ("inverted gamma", PAPER.noise_probability),
        ("brightness", PAPER.brightness_probability),
        ("contrast", PAPER.brightness_probability),
        ("gamma", PAPER.gamma_probability),
    ],
)
def test_how_often(drawn, name, probability):
    """The paper's: contrast as often as brightness, gamma of the inverted image as often as
    noise."""
    assert_as_often(len(happened(drawn, name)), probability)


@pytest.mark.parametrize("axis", range(3))
def test_how_often_each_axis_is_mirrored(drawn, axis):
    mirrored = sum(axis in axes for axes in drawn["axes"])

    assert_as_often(mirrored, PAPER.mirroring_probability)


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("scale", 0.7, 1.4),
        ("noise", 0, 0.1),
        ("contrast", 0.75, 1.25),
        ("brightness", 0.75, 1.25),
        ("gamma", 0.7, 1.5),
    ],
)
def test_how_far(drawn, name, low, high):
    """Never beyond its range, and up to its ends."""
    values = happened(drawn, name)

    assert low <= min(values) < low + 0.01
    assert high - 0.01 < max(values) <= high


def test_how_far_patches_are_turned(drawn):
    angles = happened(drawn, "angles")

    assert np.abs(angles).max() == pytest.approx(math.radians(30), rel=0.01)


@pytest.mark.parametrize("name", ["scale", "gamma", "contrast"])
def test_half_of_the_draws_are_below_one(drawn, name):
    values = happened(drawn, name)

    spread = 0.5 / math.sqrt(len(values))
    assert abs(np.mean(values < 1) - 0.5) < 4 * spread


# --- what is refused ------------------------------------------------------------------------------

LABELS = torch.zeros(4, 4, 4, dtype=torch.uint8)
IMAGE = torch.zeros(4, 4, 4)
STILL = ((0, 0, 0), 1)
TURNED = ((0.1, 0, 0), 1)


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda: change_geometry(IMAGE, LABELS[:3], *STILL), "same shape"),
        (lambda: change_geometry(IMAGE, LABELS[:, :, :3], *TURNED), "same shape"),
        (lambda: change_geometry(IMAGE[None], LABELS[None], *STILL), "same shape"),
        (lambda: change_geometry(IMAGE[:0], LABELS[:0], *STILL), "not empty"),
        (lambda: change_mirroring(IMAGE, LABELS[:3], [0]), "same shape"),
        (lambda: change_geometry(IMAGE, LABELS, (0, 0), 1), "three"),
        (lambda: change_geometry(IMAGE, LABELS, (math.nan, 0, 0), 1), "finite"),
        (lambda: change_geometry(IMAGE, LABELS, (0, math.inf, 0), 1), "finite"),
        (lambda: change_geometry(IMAGE, LABELS, (0, 0, 0), 0), "scale 0"),
        (lambda: change_geometry(IMAGE, LABELS, (0, 0, 0), -1.2), "scale -1.2"),
        (lambda: change_geometry(IMAGE, LABELS, (0, 0, 0), math.nan), "scale nan"),
        (lambda: change_geometry(IMAGE, LABELS, (0, 0, 0), math.inf), "scale inf"),
        (lambda: change_geometry(IMAGE, LABELS, *STILL, patch=()), "each of its axes"),
        (lambda: change_geometry(IMAGE, LABELS, *STILL, patch=(0, 4, 4)), "at least one voxel"),
        (lambda: change_geometry(IMAGE, LABELS, *TURNED, patch=(4, -4, 4)), "at least one voxel"),
        (lambda: change_geometry(IMAGE, LABELS, *TURNED, start=(0, 0)), "each of its axes"),
        (lambda: cut(IMAGE, (0, 0), (2, 2)), "each of its axes"),
        (lambda: cut(IMAGE, (0, 0, 0), (2, 2, 0)), "at least one voxel"),
        (lambda: change_noise(IMAGE, -0.1, seed=0), "sd -0.1"),
        (lambda: change_noise(IMAGE, math.nan, seed=0), "sd nan"),
        (lambda: change_noise(IMAGE, 0.1, seed=-1), "whole numbers"),
        (lambda: change_brightness(IMAGE, math.nan), "brightness nan"),
        (lambda: change_contrast(IMAGE, -1.0), "contrast -1"),
        (lambda: change_gamma(IMAGE, 0.0), "gamma 0"),
        (lambda: change_gamma(IMAGE, -2.0), "gamma -2"),
    ],
)
def test_what_cannot_be_done_is_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()
