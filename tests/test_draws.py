"""What is drawn at random, over many draws: how often, how far, how distributed, and that nothing
is in step.

The recipe gives every number a value of its own: in the paper's, several are the same, and one
could be read for the other. Every generator is fixed, so that these tests give the same every
time."""

import dataclasses
import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from conftest import with_probabilities
from scipy.stats import chisquare, kstest

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
    random_noise,
)
from minikits.paper import PAPER

COUNT = 12_000
UNLIKELY = 1e-4  # a right draw falls below it once in ten thousand tests

RECIPE = dataclasses.replace(
    PAPER,
    rotation_probability=0.35,
    rotation_degrees=80.0,
    scaling_probability=0.45,
    scaling_range=(0.5, 1.8),
    noise_probability=0.25,
    noise_sd=(0.05, 0.3),
    brightness_probability=0.55,
    brightness_range=(0.6, 1.9),
    contrast_probability=0.65,
    contrast_range=(0.4, 1.7),
    inverted_gamma_probability=0.3,
    gamma_probability=0.75,
    gamma_range=(0.55, 2.2),
    mirroring_probability=0.4,
)
ORDER = ["geometry", "noise", "brightness", "contrast", "inverted gamma", "gamma", "mirroring"]


def recorded(monkeypatch, *, change=False):
    """A list of every call of a change_x from now on: (its name, what was drawn). They change their
    image only if told to."""
    calls = []

    def geometry(image, labels, angles, scale, **where):
        calls.append(("geometry", (angles, scale)))
        if change:
            return change_geometry(image, labels, angles, scale, **where)
        return image, labels

    def noise(image, sd, *, seed):
        calls.append(("noise", (sd, seed)))
        return change_noise(image, sd, seed=seed) if change else image

    def brightness(image, factor):
        calls.append(("brightness", factor))
        return change_brightness(image, factor) if change else image

    def contrast(image, factor):
        calls.append(("contrast", factor))
        return change_contrast(image, factor) if change else image

    def gamma(image, gamma, *, inverted):
        calls.append(("inverted gamma" if inverted else "gamma", gamma))
        return change_gamma(image, gamma, inverted=inverted) if change else image

    def mirroring(image, labels, axes):
        calls.append(("mirroring", tuple(axes)))
        return change_mirroring(image, labels, axes) if change else (image, labels)

    for stand_in in (geometry, noise, brightness, contrast, gamma, mirroring):
        monkeypatch.setattr(augmentation, f"change_{stand_in.__name__}", stand_in)
    return calls


@pytest.fixture(scope="module")
def draws():
    """What each of many patches was augmented by: lists of (name, what was drawn), in the order in
    which they came."""
    image, labels = torch.zeros(2, 2, 2), torch.zeros(2, 2, 2, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(11)

    patches = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = recorded(monkeypatch)
        for _ in range(COUNT):
            augment(image, labels, RECIPE, generator)
            patches.append(calls.copy())
            calls.clear()
    return patches


def drawn(draws, name):
    """What was drawn for `name`, of the patches to which it happened."""
    return [dict(patch)[name] for patch in draws if name in dict(patch)]


@pytest.fixture(scope="module")
def coins(draws):
    """{what may happen to a patch: for each patch, whether it did}."""
    happened = {}
    for name in ("noise", "brightness", "contrast", "inverted gamma", "gamma"):
        happened[name] = np.array([name in dict(patch) for patch in draws])

    geometry = drawn(draws, "geometry")
    happened["rotation"] = np.array([any(angles) for angles, _ in geometry])
    happened["scaling"] = np.array([scale != 1 for _, scale in geometry])

    mirroring = drawn(draws, "mirroring")
    for axis in range(3):
        happened[f"mirroring {axis}"] = np.array([axis in axes for axes in mirroring])
    return happened


def assert_uncorrelated(one, other):
    """Correlations of independent draws have a standard deviation of 1 / sqrt(their number)."""
    correlation = np.corrcoef(one, other)[0, 1]
    assert abs(correlation) < 4.5 / math.sqrt(len(one))


def assert_uniform(found, low, high):
    assert low <= min(found)
    assert max(found) <= high
    assert kstest(found, "uniform", (low, high - low)).pvalue > UNLIKELY


def assert_half_on_each_side_of_one(found, low, high):
    found = np.array(found)
    below, above = found[found < 1], found[found > 1]

    assert len(below) + len(above) == len(found) > 1000
    assert abs(len(below) - len(above)) < 4 * math.sqrt(len(found))
    assert_uniform(below, low, 1)
    assert_uniform(above, 1, high)


# --- what happens, and how often ------------------------------------------------------------------


def test_the_transforms_come_in_their_order(draws):
    for patch in draws:
        names = [name for name, _ in patch]
        assert names == [name for name in ORDER if name in names]
        assert names[0] == "geometry"
        assert names[-1] == "mirroring"


@pytest.mark.parametrize(
    "name, probability",
    [
        ("rotation", 0.35),
        ("scaling", 0.45),
        ("noise", 0.25),
        ("brightness", 0.55),
        ("contrast", 0.65),
        ("inverted gamma", 0.3),
        ("gamma", 0.75),
        ("mirroring 0", 0.4),
        ("mirroring 1", 0.4),
        ("mirroring 2", 0.4),
    ],
)
def test_each_transform_happens_as_often_as_its_own_probability_says(coins, name, probability):
    """To 4 standard deviations of 12,000 coins of this probability."""
    assert len(coins) == 10

    spread = math.sqrt(COUNT * probability * (1 - probability))
    assert abs(coins[name].sum() - COUNT * probability) < 4 * spread


def test_no_transform_depends_on_another_or_on_the_patch_before(coins):
    for one, other in combinations(coins, 2):
        assert_uncorrelated(coins[one], coins[other])

    for one, other in product(coins, coins):
        assert_uncorrelated(coins[one][1:], coins[other][:-1])


def test_each_axis_is_mirrored_by_a_draw_of_its_own(draws):
    """So that k of three axes are mirrored together with probability 0.4^k 0.6^(3 - k)."""
    combined = [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    wanted = [COUNT * 0.4 ** len(axes) * 0.6 ** (3 - len(axes)) for axes in combined]

    mirrored = drawn(draws, "mirroring")

    found = [mirrored.count(axes) for axes in combined]
    assert sum(found) == COUNT
    assert chisquare(found, wanted).pvalue > UNLIKELY


# --- how far --------------------------------------------------------------------------------------


def test_three_angles_are_uniform_and_of_their_own(draws):
    """Uniform in the angle, not in its cosine or sine: up to 80 degrees these are far apart."""
    angles = np.array([angles for angles, _ in drawn(draws, "geometry")])
    angles = angles[angles.any(axis=1)]

    assert angles.shape[1] == 3
    assert angles.all()
    for axis in range(3):
        assert_uniform(np.degrees(angles[:, axis]), -80, 80)
    for one, other in combinations(angles.T, 2):
        assert_uncorrelated(one, other)
        assert_uncorrelated(np.abs(one), np.abs(other))


def test_one_scale_serves_all_axes_half_below_and_half_above_one(draws):
    scales = [scale for _, scale in drawn(draws, "geometry")]

    assert all(isinstance(scale, float) for scale in scales)
    assert_half_on_each_side_of_one([scale for scale in scales if scale != 1], 0.5, 1.8)


def test_noise_is_uniform_in_its_sd_and_every_patch_has_a_seed_of_its_own(draws):
    """Uniform in the variance it would have its mean at 0.205, and not at 0.175."""
    noise = drawn(draws, "noise")
    sds = [sd for sd, _ in noise]
    seeds = [seed for _, seed in noise]

    assert_uniform(sds, 0.05, 0.3)
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) > 2**61  # far more than a collision needs


def test_brightness_is_uniform_in_its_range(draws):
    assert_uniform(drawn(draws, "brightness"), 0.6, 1.9)


@pytest.mark.parametrize(
    "name, low, high", [("contrast", 0.4, 1.7), ("inverted gamma", 0.55, 2.2), ("gamma", 0.55, 2.2)]
)
def test_contrast_and_gammas_are_half_below_and_half_above_one(draws, name, low, high):
    assert_half_on_each_side_of_one(drawn(draws, name), low, high)


@pytest.mark.parametrize(
    "one, other",
    list(combinations(["brightness", "noise", "contrast", "gamma", "inverted gamma"], 2)),
)
def test_no_two_values_of_a_patch_are_the_same_draw(draws, one, other):
    """Of noise, its sd."""
    values, other_values = [], []
    for patch in map(dict, draws):
        if one in patch and other in patch:
            values.append(np.ravel(patch[one])[0])
            other_values.append(np.ravel(patch[other])[0])

    assert_uncorrelated(values, other_values)


@pytest.mark.parametrize("name", ["brightness", "contrast", "inverted gamma", "gamma"])
def test_no_value_comes_twice(draws, name):
    found = drawn(draws, name)

    assert len(set(found)) == len(found)


# --- what is drawn is done ------------------------------------------------------------------------


def changed_by(drawn, image, labels, **where):
    """What the eight transforms make of a patch, one after the other, by the values drawn."""
    angles, scale = drawn["geometry"]
    image, labels = change_geometry(image, labels, angles, scale, **where)
    if "noise" in drawn:
        sd, seed = drawn["noise"]
        image = change_noise(image, sd, seed=seed)
    if "brightness" in drawn:
        image = change_brightness(image, drawn["brightness"])
    if "contrast" in drawn:
        image = change_contrast(image, drawn["contrast"])
    if "inverted gamma" in drawn:
        image = change_gamma(image, drawn["inverted gamma"], inverted=True)
    if "gamma" in drawn:
        image = change_gamma(image, drawn["gamma"], inverted=False)
    return change_mirroring(image, labels, drawn["mirroring"])


def test_what_is_drawn_is_what_is_done(monkeypatch, generator):
    image = torch.randn(9, 10, 11, generator=generator)
    labels = torch.randint(0, 3, (9, 10, 11), generator=generator, dtype=torch.uint8)
    often = with_probabilities(RECIPE, 0.8)
    where = {"start": (1, -2, 3), "patch": (6, 8, 7)}
    calls = recorded(monkeypatch, change=True)

    for _ in range(30):
        calls.clear()
        found, found_labels = augment(image, labels, often, generator, **where)
        wanted, wanted_labels = changed_by(dict(calls), image, labels, **where)

        assert torch.equal(found, wanted)
        assert torch.equal(found_labels, wanted_labels)


def test_noise_varies_from_patch_to_patch_and_from_voxel_to_voxel(generator):
    recipe = dataclasses.replace(RECIPE, noise_probability=1.0, noise_sd=(0.2, 0.2))
    image = torch.ones(20, 20, 20)

    one = random_noise(image, recipe, generator) - 1
    other = random_noise(image, recipe, generator) - 1

    assert_uncorrelated(one.flatten(), other.flatten())
    for noise in (one, other):
        assert kstest(noise.flatten().numpy(), "norm", (0, 0.2)).pvalue > UNLIKELY
        for axis in range(3):
            voxels, their_neighbours = noise.narrow(axis, 0, 19), noise.narrow(axis, 1, 19)
            assert_uncorrelated(voxels.flatten(), their_neighbours.flatten())


# --- streams of random numbers --------------------------------------------------------------------


def first_numbers(*key, count=40):
    return torch.rand(count, generator=generator_for(*key), dtype=torch.float64)


def test_no_two_streams_are_in_step():
    """Not even shifted: a number that came twice would be the same draw of two patches."""
    keys = list(product((0, 1, 2), (0, 1, 2, 250), (0, 1, 2), (False, True)))

    numbers = torch.cat([first_numbers(*key) for key in keys])

    assert len(numbers.unique()) == len(keys) * 40
    assert kstest(numbers.numpy(), "uniform").pvalue > UNLIKELY


@pytest.mark.parametrize(
    "changed", [(1, 0, 0, False), (0, 1, 0, False), (0, 0, 1, False), (0, 0, 0, True)]
)
def test_every_part_of_a_key_changes_every_number(changed):
    same = first_numbers(0, 0, 0, False, count=2000)
    other = first_numbers(*changed, count=2000)

    assert not (same == other).any()
    assert_uncorrelated(same, other)


def test_a_key_is_more_than_its_last_32_bits():
    """What torch's own seed would keep of it; and no key is read as another of more or fewer
    numbers."""
    keys = [
        (),
        (0,),
        (0, 0),
        (5,),
        (5, 0),
        (5, 1),
        (0, 5),
        (5 + 2**32,),
        (5 + 2**63,),
        (1, 5),
        (2**64 - 1,),
        (2**32 - 1, 2**32 - 1),
    ]

    firsts = [first_numbers(*key, count=1).item() for key in keys]

    assert len(set(firsts)) == len(keys)


def test_numbers_of_a_key_may_be_of_any_type():
    assert torch.equal(first_numbers(5, True), first_numbers(np.int64(5), 1))


def test_a_stream_is_numpys_twister_seeded_by_the_whole_key():
    """numpy's first number is the last of its seeded words, torch begins with the next: the same
    from there on. A float32 is made of 24 bits."""
    how_many, seven, two_to_32, one, zero = [4, 0], [7, 0], [0, 1], [1, 0], [0, 0]
    halves = [*how_many, *seven, *two_to_32, *one, *zero]  # the lower 32 bits of each number first
    twister = np.random.MT19937(np.random.SeedSequence(halves))
    twister.random_raw()
    wanted = twister.random_raw(3000) % 2**24

    found = torch.rand(3000, generator=generator_for(7, 2**32, 1, 0)) * 2**24

    assert np.array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("key", [(-1,), (0, -3), (2**64,)])
def test_keys_that_are_no_whole_numbers_are_refused(key):
    with pytest.raises(ValueError, match="whole numbers"):
        generator_for(*key)


def test_a_half_is_no_key():
    with pytest.raises(TypeError):
        generator_for(0.5)


def test_drawing_leaves_torchs_and_numpys_own_generators_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    from_torch, from_numpy = torch.rand(3), np.random.rand(3)

    torch.manual_seed(3)
    np.random.seed(3)
    first_numbers(1)
    change_noise(torch.zeros(3, 3, 3), 1.0, seed=4)

    assert torch.equal(torch.rand(3), from_torch)
    assert np.array_equal(np.random.rand(3), from_numpy)
