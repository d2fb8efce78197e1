"""What is drawn at random, over many draws: how often, how far, how distributed, and that nothing is in step.

The recipe gives every number a value of its own: in the paper's, several are the same, and one could be read for the
other. Every generator is fixed, so that these tests give the same every time."""

import dataclasses
import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from minikits import augmentation as A
from minikits.augmentation import generator_for
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
    """Every call of a change_x from now on: (its name, what was drawn). They change their image only if told to."""
    calls = []

    def watch(function, told):
        original = getattr(A, function)

        def watched(image, *arguments, **named):
            calls.append(told(*arguments, **named))
            if change:
                return original(image, *arguments, **named)
            return (
                (image, arguments[0])
                if function in ("change_geometry", "change_mirroring")
                else image
            )

        monkeypatch.setattr(A, function, watched)

    watch("change_geometry", lambda labels, angles, scale, **_: ("geometry", (angles, scale)))
    watch("change_noise", lambda sd, *, seed: ("noise", (sd, seed)))
    watch("change_brightness", lambda factor: ("brightness", factor))
    watch("change_contrast", lambda factor: ("contrast", factor))
    watch(
        "change_gamma",
        lambda gamma, *, inverted: ("inverted gamma" if inverted else "gamma", gamma),
    )
    watch("change_mirroring", lambda labels, axes: ("mirroring", tuple(axes)))
    return calls


@pytest.fixture(scope="module")
def draws():
    """What each of many patches was augmented by: lists of (name, what was drawn), in the order they came."""
    image, labels = torch.zeros(2, 2, 2), torch.zeros(2, 2, 2, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(11)
    patches = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = recorded(monkeypatch)
        for _ in range(COUNT):
            A.augment(image, labels, RECIPE, generator)
            patches.append(calls.copy())
            calls.clear()
    return patches


@pytest.fixture(scope="module")
def coins(draws):
    """{what may happen to a patch: of each patch, whether it did}."""
    happened = {name: np.array([name in dict(patch) for patch in draws]) for name in ORDER[1:-1]}
    happened["rotation"] = np.array([any(dict(patch)["geometry"][0]) for patch in draws])
    happened["scaling"] = np.array([dict(patch)["geometry"][1] != 1 for patch in draws])
    for axis in range(3):
        happened[f"mirroring {axis}"] = np.array(
            [axis in dict(patch)["mirroring"] for patch in draws]
        )
    return happened


def values(draws, name):
    """What was drawn for `name`, of the patches to which it happened."""
    return np.array([dict(patch)[name] for patch in draws if name in dict(patch)])


def assert_uniform(found, low, high):
    assert low <= min(found) and max(found) <= high
    assert kstest(found, "uniform", (low, high - low)).pvalue > UNLIKELY


def assert_half_on_each_side_of_one(found, low, high):
    below, above = found[found < 1], found[found > 1]
    assert len(below) + len(above) == len(found) > 1000
    assert abs(len(below) - len(above)) < 4 * math.sqrt(len(found))
    assert_uniform(below, low, 1)
    assert_uniform(above, 1, high)


def test_the_transforms_come_in_their_order(draws):
    for patch in draws:
        names = [name for name, _ in patch]
        assert names == [name for name in ORDER if name in names]
        assert names[0] == "geometry" and names[-1] == "mirroring"


def test_each_transform_happens_as_often_as_its_own_probability_says(coins):
    wanted = {
        "rotation": 0.35,
        "scaling": 0.45,
        "noise": 0.25,
        "brightness": 0.55,
        "contrast": 0.65,
        "inverted gamma": 0.3,
        "gamma": 0.75,
        **{f"mirroring {axis}": 0.4 for axis in range(3)},
    }
    assert wanted.keys() == coins.keys()
    for name, probability in wanted.items():
        spread = math.sqrt(COUNT * probability * (1 - probability))
        assert abs(coins[name].sum() - COUNT * probability) < 4 * spread, name


def test_no_transform_depends_on_another_or_on_the_patch_before(coins):
    """Correlations of independent coins have a standard deviation of 1 / sqrt(COUNT)."""
    for one, other in combinations(coins, 2):
        assert abs(np.corrcoef(coins[one], coins[other])[0, 1]) < 4.5 / math.sqrt(COUNT), (
            one,
            other,
        )
    for one, other in product(coins, coins):
        assert abs(np.corrcoef(coins[one][1:], coins[other][:-1])[0, 1]) < 4.5 / math.sqrt(COUNT), (
            one,
            other,
        )


def test_each_axis_is_mirrored_by_a_draw_of_its_own(draws):
    axes = [dict(patch)["mirroring"] for patch in draws]
    combined = [
        tuple(axis for axis in range(3) if chosen[axis]) for chosen in product((0, 1), repeat=3)
    ]
    found = [axes.count(combination) for combination in combined]
    wanted = [
        COUNT * 0.4 ** len(combination) * 0.6 ** (3 - len(combination)) for combination in combined
    ]
    assert sum(found) == COUNT and chisquare(found, wanted).pvalue > UNLIKELY


def test_three_angles_are_uniform_and_of_their_own(draws):
    """Uniform in the angle, not in its cosine or sine: up to 80 degrees these are far apart."""
    angles = np.array([dict(patch)["geometry"][0] for patch in draws])
    angles = angles[angles.any(axis=1)]
    assert angles.shape[1] == 3 and angles.all()
    for axis in range(3):
        assert_uniform(np.degrees(angles[:, axis]), -80, 80)
    for one, other in combinations(range(3), 2):
        assert abs(np.corrcoef(angles[:, one], angles[:, other])[0, 1]) < 4.5 / math.sqrt(
            len(angles)
        )
        assert abs(np.corrcoef(*np.abs(angles[:, [one, other]]).T)[0, 1]) < 4.5 / math.sqrt(
            len(angles)
        )


def test_one_scale_serves_all_axes_half_below_and_half_above_one(draws):
    scales = [dict(patch)["geometry"][1] for patch in draws]
    assert all(isinstance(scale, float) for scale in scales)
    scales = np.array(scales)
    assert_half_on_each_side_of_one(scales[scales != 1], 0.5, 1.8)


def test_noise_is_uniform_in_its_sd_and_every_patch_has_a_seed_of_its_own(draws):
    sd, seeds = zip(*[dict(patch)["noise"] for patch in draws if "noise" in dict(patch)])
    assert_uniform(np.array(sd), 0.05, 0.3)  # uniform in the variance would have its mean at 0.205
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) > 2**61  # far more than a collision needs


def test_brightness_is_uniform_in_its_range(draws):
    assert_uniform(values(draws, "brightness"), 0.6, 1.9)


@pytest.mark.parametrize(
    "name, low, high", [("contrast", 0.4, 1.7), ("inverted gamma", 0.55, 2.2), ("gamma", 0.55, 2.2)]
)
def test_contrast_and_gammas_are_half_below_and_half_above_one(draws, name, low, high):
    assert_half_on_each_side_of_one(values(draws, name), low, high)


def test_no_two_values_of_a_patch_are_the_same_draw(draws):
    """Each as a share of its range: the shares of two transforms are not correlated, and no draw comes twice."""
    shares = {
        "brightness": lambda factor: (factor - 0.6) / 1.3,
        "noise": lambda drawn: (drawn[0] - 0.05) / 0.25,
        "contrast": lambda factor: factor,
        "gamma": lambda gamma: gamma,
        "inverted gamma": lambda gamma: gamma,
    }
    for one, other in combinations(shares, 2):
        both = [
            (shares[one](dict(patch)[one]), shares[other](dict(patch)[other]))
            for patch in draws
            if one in dict(patch) and other in dict(patch)
        ]
        assert abs(np.corrcoef(*np.array(both).T)[0, 1]) < 4.5 / math.sqrt(len(both)), (one, other)
    for name in ("brightness", "contrast", "inverted gamma", "gamma"):
        found = values(draws, name)
        assert len(np.unique(found)) == len(found)


def test_what_is_drawn_is_what_is_done(monkeypatch, generator):
    """The patch is what the eight transforms make of it, one after the other, by the values that were drawn."""
    image = torch.randn(9, 10, 11, generator=generator)
    labels = torch.randint(0, 3, (9, 10, 11), generator=generator, dtype=torch.uint8)
    often = dataclasses.replace(
        RECIPE,
        **{
            field.name: 0.8
            for field in dataclasses.fields(RECIPE)
            if field.name.endswith("_probability")
        },
    )
    change = {
        name: getattr(A, f"change_{name}")
        for name in ("geometry", "noise", "brightness", "contrast", "gamma", "mirroring")
    }
    calls = recorded(monkeypatch, change=True)
    for _ in range(30):
        calls.clear()
        found = A.augment(image, labels, often, generator, start=(1, -2, 3), patch=(6, 8, 7))
        drawn = dict(calls)

        angles, scale = drawn["geometry"]
        x, wanted_labels = change["geometry"](
            image, labels, angles, scale, start=(1, -2, 3), patch=(6, 8, 7)
        )
        if "noise" in drawn:
            sd, seed = drawn["noise"]
            x = change["noise"](x, sd, seed=seed)
        if "brightness" in drawn:
            x = change["brightness"](x, drawn["brightness"])
        if "contrast" in drawn:
            x = change["contrast"](x, drawn["contrast"])
        if "inverted gamma" in drawn:
            x = change["gamma"](x, drawn["inverted gamma"], inverted=True)
        if "gamma" in drawn:
            x = change["gamma"](x, drawn["gamma"], inverted=False)
        wanted, wanted_labels = change["mirroring"](x, wanted_labels, drawn["mirroring"])

        assert torch.equal(found[0], wanted) and torch.equal(found[1], wanted_labels)


def test_noise_varies_from_patch_to_patch_and_from_voxel_to_voxel(generator):
    recipe = dataclasses.replace(RECIPE, noise_probability=1.0, noise_sd=(0.2, 0.2))
    image = torch.ones(20, 20, 20)
    one, other = (A.random_noise(image, recipe, generator) - 1 for _ in range(2))
    for noise in (one, other):
        assert kstest(noise.flatten().numpy(), "norm", (0, 0.2)).pvalue > UNLIKELY
        for axis in range(3):
            beside = torch.stack(
                [noise.narrow(axis, 0, 19).flatten(), noise.narrow(axis, 1, 19).flatten()]
            )
            assert abs(torch.corrcoef(beside)[0, 1]) < 4.5 / math.sqrt(beside.shape[1])
    assert abs(
        torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
    ) < 4.5 / math.sqrt(8000)


# streams of random numbers


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
    assert abs(torch.corrcoef(torch.stack([same, other]))[0, 1]) < 4.5 / math.sqrt(2000)


def test_a_key_is_more_than_its_last_32_bits():
    """What torch's own seed would keep of it; and no key is read as another of more or fewer numbers."""
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
    assert len({first_numbers(*key, count=1).item() for key in keys}) == len(keys)
    assert torch.equal(first_numbers(5, True), first_numbers(np.int64(5), 1))


def test_a_stream_is_numpys_twister_seeded_by_the_whole_key():
    """numpy's first number is the last of its seeded words, torch begins with the next: the same from there on."""
    halves = [
        4,
        0,
        7,
        0,
        0,
        1,
        1,
        0,
        0,
        0,
    ]  # how many numbers; 7, 2**32, 1 and 0, the lower 32 bits of each first
    twister = np.random.MT19937(np.random.SeedSequence(halves))
    twister.random_raw()
    wanted = twister.random_raw(3000) % 2**24
    found = (
        torch.rand(3000, generator=generator_for(7, 2**32, 1, 0)) * 2**24
    )  # 24 bits make a float32
    assert np.array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("key", [(-1,), (0, -3), (2**64,)])
def test_keys_that_are_no_whole_numbers_are_refused(key):
    with pytest.raises(ValueError, match="whole numbers"):
        generator_for(*key)
    with pytest.raises(TypeError):
        generator_for(0.5)


def test_drawing_leaves_torchs_and_numpys_own_generators_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    wanted = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3)
    np.random.seed(3)
    first_numbers(1)
    A.change_noise(torch.zeros(3, 3, 3), 1.0, seed=4)
    assert torch.equal(torch.rand(3), wanted[0]) and np.array_equal(np.random.rand(3), wanted[1])
