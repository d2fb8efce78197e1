"""What a recipe holds, takes and refuses; and what follows from it, pinned to the paper's values."""

import json
import re
from dataclasses import asdict, fields, replace
from math import inf, nan

import numpy as np
import pytest
from conftest import ROOT, TINY

from minikits.paper import ARCHITECTURES, DEMO, PAPER, recipe_from
from minikits.recipe import Recipe

# --- what follows from a recipe -------------------------------------------------------------------


@pytest.mark.parametrize("name, recipe", [("PAPER", PAPER), ("DEMO", DEMO)])
def test_every_value_of_the_recipes_and_what_follows_from_it_stays(name, recipe):
    """In their order too: what JSON makes of a recipe tells whether a prepared case is its own."""
    kept = json.loads((ROOT / "tests" / "golden" / "recipes.json").read_text())[name]

    found = asdict(recipe)
    found["strides"] = recipe.strides
    found["features"] = {arch: recipe.features(arch) for arch in ARCHITECTURES}
    found["foreground_samples"] = recipe.foreground_samples

    assert json.dumps(found) == json.dumps(kept)


def test_strides_and_features_are_the_papers():
    z, y, x = zip(*PAPER.strides)

    assert PAPER.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert PAPER.features("plain") == (30, 60, 120, 240, 320, 320)
    assert PAPER.features("residual") == (24, 48, 96, 192, 320, 320)
    assert PAPER.features("preactivation") == PAPER.features("residual")

    bottleneck = [side // np.prod(steps) for side, steps in zip(PAPER.patch, (z, y, x))]
    assert bottleneck == [5, 5, 5]


@pytest.mark.parametrize(
    "patch, stages", [((8, 8, 8), 2), ((7, 8, 5), 2), ((20, 48, 24), 4), ((1, 16, 16), 3)]
)
def test_any_patch_with_an_axis_to_halve_has_strides(patch, stages):
    strides = replace(PAPER, patch=patch).strides

    assert len(strides) == stages
    assert strides[0] == (1, 1, 1)
    for side, steps in zip(patch, zip(*strides)):
        assert side % np.prod(steps) == 0


def test_learning_rate_decays_to_zero():
    assert PAPER.learning_rate_at(0) == 0.01
    assert PAPER.learning_rate_at(500) == pytest.approx(0.01 * 0.5**0.9)
    assert PAPER.learning_rate_at(1000) == 0


def test_the_learning_rate_decays_by_the_recipes_power():
    recipe = replace(TINY, epochs=4, learning_rate=0.8, learning_rate_power=2.0)

    rates = [recipe.learning_rate_at(epoch) for epoch in range(4)]

    assert rates == pytest.approx([0.8, 0.45, 0.2, 0.05])  # 0.8 times (4/4, 3/4, 2/4, 1/4) squared


def test_half_of_a_batch_of_two_is_forced_to_foreground():
    assert PAPER.foreground_samples == 1
    assert replace(PAPER, batch_size=3).foreground_samples == 1
    assert replace(PAPER, batch_size=6).foreground_samples == 2


# --- what a recipe takes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"epoch": 5}, "no field"),
        ({"epochs": 2.5}, "expected the form"),
        ({"epochs": "many"}, "expected the form"),
        ({"epochs": True}, "expected the form"),
        ({"patch": [80, 160]}, r"expected the form of \[int, int, int\]"),
        ([1], "expected an object"),
        ({"patch": [5, 5, 5]}, "1 stages of patch"),
        ({"patch": [80.0, 160, 160]}, "expected the form"),
        ({"stage_strides": [[1, 1], [2, 2]]}, "expected the form"),
        ({"stage_strides": [[1, 1, 1], [2, 2, 3]]}, "divide the patch"),
        ({"stage_strides": [[2, 2, 2]]}, "1, 1, 1. first"),
        ({"residual_blocks": [1, 2]}, "6 stages of patch"),
        ({"residual_blocks": 3}, "expected the form"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        recipe_from(values)


# What every field may be, both included; of a tuple it holds for each of its numbers.
RANGES = {
    "excluded_cases": (0, 99_999),
    "spacing_mm": (0.01, 1000),
    "window_hu": (-100_000, 100_000),
    "mean_hu": (-100_000, 100_000),
    "sd_hu": (0.01, 100_000),
    "patch": (1, 10_000),
    "plain_features": (1, 100_000),
    "residual_features": (1, 100_000),
    "max_features": (1, 100_000),
    "residual_blocks": (1, 99),
    "stage_strides": (1, 10_000),
    "epochs": (1, 10_000_000),
    "batches_per_epoch": (1, 10_000_000),
    "batch_size": (1, 100_000),
    "validation_batches": (0, 10_000_000),
    "foreground_share": (0, 1),
    "learning_rate": (1e-12, 1000),
    "learning_rate_power": (0, 100),
    "momentum": (1e-6, 0.999999),
    "weight_decay": (0, 1),
    "max_gradient_norm": (1e-12, 1e12),
    "rotation_probability": (0, 1),
    "rotation_degrees": (0, 180),
    "scaling_probability": (0, 1),
    "scaling_range": (0.01, 100),
    "noise_probability": (0, 1),
    "noise_sd": (0, 1000),
    "brightness_probability": (0, 1),
    "brightness_range": (0.01, 1000),
    "contrast_probability": (0, 1),
    "contrast_range": (0.01, 1000),
    "inverted_gamma_probability": (0, 1),
    "gamma_probability": (0, 1),
    "gamma_range": (0.01, 100),
    "mirroring_probability": (0, 1),
}
FIELDS = {field.name: getattr(PAPER, field.name) for field in fields(Recipe)}
ANY_LENGTH = {"excluded_cases", "residual_blocks", "stage_strides"}

each_field = pytest.mark.parametrize("name", FIELDS)


def with_first(name, number):
    """The paper's value of a field, its first number replaced."""
    value = PAPER.strides if name == "stage_strides" else FIELDS[name]
    if not isinstance(value, tuple):
        return number

    first, *others = value
    if isinstance(first, tuple):
        return [[number, *first[1:]], *others]
    return [number, *others]


def is_of_floats(name):
    value = FIELDS[name]
    if isinstance(value, tuple) and value:
        value = value[0]
    return isinstance(value, float)


def just_outside(name):
    """Two numbers, one below the range and one above it."""
    low, high = RANGES[name]
    if not is_of_floats(name):
        return [low - 1, high + 1]

    step = {1e-12: 1e-13, 1e-6: 1e-7}.get(low, 1e-3)
    return [low - step, high * 1.001 + 1e-3]


def test_every_field_has_a_range():
    assert RANGES.keys() == FIELDS.keys()


@each_field
def test_a_number_outside_its_range_is_refused_with_its_field(name):
    low, high = RANGES[name]
    far_outside = [n for n in (-(10**9), 10**15, 10**400) if not low <= n <= high]

    for number in [*just_outside(name), *far_outside]:
        with pytest.raises(ValueError, match=rf"settings: {name} is .*(wanted|expected)"):
            recipe_from({name: with_first(name, number)}, source="settings")

    ends = re.escape(f"{low:g} to {high:g}")
    for number in just_outside(name):
        with pytest.raises(ValueError, match=rf"^{name} is .*, wanted (each )?{ends}$"):
            replace(PAPER, **{name: with_first(name, number)})


@each_field
@pytest.mark.parametrize("value", [nan, inf, -inf, "1", None, True, {}, [], "all of it", [[]]])
def test_what_is_no_number_is_refused_with_its_field(name, value):
    if name in ANY_LENGTH and value == []:
        return  # how many of them there have to be is another matter

    for given in (value, with_first(name, value)):
        with pytest.raises(ValueError, match=f"{name} is .*; expected the form of"):
            recipe_from({name: given})


# what other fields have to be so that one of them may be at either end of its range
TOGETHER = {
    "patch": {"patch": (8, 8, 10_000)},
    "stage_strides": {"stage_strides": ((1, 1, 1), (1, 1, 1))},
    "window_hu": {"window_hu": (-100_000, 100_000), "sd_hu": 1000},
    "mean_hu": {"sd_hu": 1000},
    "sd_hu": {"mean_hu": 0, "window_hu": (-1, 1)},
}


def value_at_the_end(name, end):
    if name in ("scaling_range", "contrast_range", "gamma_range"):
        return tuple(sorted((end, 1)))  # 1 lies inside
    if name in ("brightness_range", "noise_sd", "spacing_mm"):
        return (end,) * len(FIELDS[name])
    if name == "residual_blocks":
        return (end,) * 6
    if name == "excluded_cases":
        return (end,)
    return end


@each_field
def test_the_ends_of_a_range_are_in_it(name):
    for end in RANGES[name]:
        values = {name: value_at_the_end(name, end), **TOGETHER.get(name, {})}

        assert getattr(recipe_from(values), name) is not None


@pytest.mark.parametrize(
    "name",
    ["window_hu", "noise_sd", "brightness_range", "scaling_range", "contrast_range", "gamma_range"],
)
def test_a_range_has_its_lower_end_first(name):
    low, high = FIELDS[name]

    with pytest.raises(ValueError, match=f"{name} is .*, wanted the lower number first"):
        recipe_from({name: (high, low)})


@pytest.mark.parametrize("name", ["scaling_range", "contrast_range", "gamma_range"])
@pytest.mark.parametrize("ends", [(0.5, 0.9), (1.1, 1.4)])
def test_what_is_drawn_on_either_side_of_one_has_one_inside(name, ends):
    with pytest.raises(ValueError, match=f"{name} is .*, wanted at most 1, then at least 1"):
        recipe_from({name: ends})


@pytest.mark.parametrize(
    "values",
    [{"window_hu": (5, 5)}, {"sd_hu": 0.05}, {"mean_hu": 100_000}, {"window_hu": (-79, 90_000)}],
)
def test_a_window_that_float16_cannot_keep_is_refused(values):
    complaint = r"window_hu is \(.*\), wanted two ends that differ and lie"

    with pytest.raises(ValueError, match=complaint):
        recipe_from(values)


# whole numbers in the range of a field of floats; 1 where not named
WHOLE = {
    "max_gradient_norm": 12,
    "spacing_mm": [3, 2, 2],
    "window_hu": [-79, 304],
    "mean_hu": 101,
    "sd_hu": 77,
    "rotation_degrees": 30,
    "scaling_range": [1, 1],
    "noise_sd": [0, 1],
    "brightness_range": [1, 1],
    "contrast_range": [1, 1],
    "gamma_range": [1, 1],
}


@pytest.mark.parametrize("name", [name for name in FIELDS if is_of_floats(name)])
def test_a_whole_number_is_the_same_recipe_as_its_float(name):
    """In every way: as a value, as JSON, as what a prepared case is kept under."""
    if name == "momentum":
        return  # no whole number is in its range
    whole = WHOLE.get(name, 1)
    as_float = [float(n) for n in whole] if isinstance(whole, list) else float(whole)

    wanted = recipe_from({name: as_float})
    found = [recipe_from({name: whole}), replace(PAPER, **{name: whole})]

    for recipe in found:
        assert json.dumps(asdict(recipe)) == json.dumps(asdict(wanted))
        assert repr(recipe) == repr(wanted)


@pytest.mark.parametrize("name", [name for name in FIELDS if isinstance(FIELDS[name], int)])
def test_a_float_is_no_whole_number(name):
    with pytest.raises(ValueError, match=f"{name} is .*expected the form of"):
        recipe_from({name: float(FIELDS[name])})
