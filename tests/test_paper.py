"""The numbers: derived ones pinned to the paper's and nnU-Net's values, and every one marked with its source."""

import dataclasses
import json
import re
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY

from minikits import paper, recipe
from minikits.losses import head_weights
from minikits.paper import (
    ARCHITECTURES,
    DEMO,
    PAPER,
    code_departures,
    departures,
    recipe_from,
    run_departures,
)
from minikits.preprocessing import resampled_shape, thick_axis
from minikits.recipe import Recipe

SOURCE = Path(paper.__file__).read_text() + Path(recipe.__file__).read_text()
MARK = re.compile(r"\[(paper [\d.]+|paper fig\. 1|author #\d+|nnU-Net v1[^\]]*|ours: [^\]]+)\]")


@pytest.mark.parametrize("name, recipe", [("PAPER", PAPER), ("DEMO", DEMO)])
def test_every_value_of_the_recipes_and_what_follows_from_it_stays(name, recipe):
    """In their order too: what JSON makes of a recipe tells whether a prepared case is its own."""
    kept = json.loads((ROOT / "tests" / "golden" / "recipes.json").read_text())[name]

    found = dataclasses.asdict(recipe)
    found["strides"] = recipe.strides
    found["features"] = {arch: recipe.features(arch) for arch in ARCHITECTURES}
    found["foreground_samples"] = recipe.foreground_samples

    assert json.dumps(found) == json.dumps(kept)


def test_strides_and_features_are_the_papers():
    assert PAPER.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert PAPER.features("plain") == (30, 60, 120, 240, 320, 320)
    assert (
        PAPER.features("residual") == PAPER.features("preactivation") == (24, 48, 96, 192, 320, 320)
    )
    bottleneck = [
        side // int(np.prod(strides)) for side, strides in zip(PAPER.patch, zip(*PAPER.strides))
    ]
    assert bottleneck == [5, 5, 5]


def test_head_weights():
    assert head_weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))
    assert head_weights(1) == (1,)
    assert head_weights(2) == (1, 0)


def test_learning_rate_decays_to_zero():
    assert PAPER.learning_rate_at(0) == 0.01
    assert PAPER.learning_rate_at(500) == pytest.approx(0.01 * 0.5**0.9)
    assert PAPER.learning_rate_at(1000) == 0


def test_half_of_a_batch_of_two_is_forced_to_foreground():
    assert PAPER.foreground_samples == 1
    assert dataclasses.replace(PAPER, batch_size=3).foreground_samples == 1
    assert dataclasses.replace(PAPER, batch_size=6).foreground_samples == 2


def test_every_number_carries_its_mark():
    names = [field.name for field in dataclasses.fields(Recipe)]
    known = [*vars(paper), *vars(recipe)]
    public = [name for name in known if name.isupper() and not name.startswith("_")]
    names += [name for name in public if name not in ("PAPER", "DEMO")]
    assert len(names) > 40
    for name in names:
        line = re.search(rf"^(    )?{name} ?= ?.*$", SOURCE, re.MULTILINE)
        assert line and MARK.search(line[0]), f"{name} has no mark"


def test_median_shape_of_the_206_cases(kits19):
    """The paper prints 128 x 248 x 248 and a rounded spacing, which gives less.

    Its planner took the median of sizes that were not rounded to voxels yet: so both are pinned.
    """
    geometry = json.loads((kits19 / "geometry.json").read_text())
    kept = {id: g for id, g in geometry.items() if int(id[-5:]) not in PAPER.excluded_cases}
    assert len(kept) == 206
    planned = dataclasses.replace(PAPER, spacing_mm=(3.21640606, 1.6152893, 1.6152893))

    def in_voxels(recipe):
        return tuple(np.median([resampled_shape(*g, recipe) for g in kept.values()], axis=0))

    def exact(recipe):
        return np.median([np.multiply(*g) / recipe.spacing_mm for g in kept.values()], axis=0)

    assert in_voxels(PAPER) == (127.5, 247, 247) and tuple(exact(PAPER).round()) == (127, 247, 247)
    assert in_voxels(planned) == (127.5, 248, 248) and tuple(exact(planned).round()) == (
        128,
        248,
        248,
    )
    assert sum(thick_axis(spacing) is not None for _, spacing in kept.values()) == 141


def test_recipe_survives_json():
    assert recipe_from(json.loads(json.dumps(dataclasses.asdict(DEMO)))) == DEMO
    assert recipe_from({}) == PAPER and not departures(PAPER)
    imported = recipe_from(
        {"stage_strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]], "residual_blocks": [1, 2, 2]}
    )
    assert imported.strides == ((1, 1, 1), (2, 2, 2), (1, 2, 2)) and imported.features("plain") == (
        30,
        60,
        120,
    )
    assert recipe_from(json.loads(json.dumps(dataclasses.asdict(imported)))) == imported
    assert departures(recipe_from({"epochs": 5})) == ["epochs: 5 (paper: 1000)"]


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"epoch": 5}, "no field"),
        ({"epochs": 2.5}, "expected the form"),
        ({"epochs": "many"}, "expected the form"),
        ({"epochs": True}, "expected the form"),
        ({"patch": [80, 160]}, "expected the form"),
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


@pytest.mark.parametrize(
    "patch, stages", [((8, 8, 8), 2), ((7, 8, 5), 2), ((20, 48, 24), 4), ((1, 16, 16), 3)]
)
def test_any_patch_with_an_axis_to_halve_has_strides(patch, stages):
    strides = dataclasses.replace(PAPER, patch=patch).strides
    assert len(strides) == stages and strides[0] == (1, 1, 1)
    assert all(side % int(np.prod(s)) == 0 for side, s in zip(patch, zip(*strides)))


# what every field may be, both included; what is written here of a tuple holds for each of its numbers
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
FIELDS = {field.name: getattr(PAPER, field.name) for field in dataclasses.fields(Recipe)}
ANY_LENGTH = {"excluded_cases", "residual_blocks", "stage_strides"}


def with_first(name, number):
    """The paper's value of a field, its first number replaced."""
    value = {"stage_strides": PAPER.strides}.get(name, FIELDS[name])
    if not isinstance(value, tuple):
        return number
    first, *others = value
    return [with_number(first, number), *others]


def with_number(item, number):
    return [number, *item[1:]] if isinstance(item, tuple) else number


def is_of_floats(name):
    value = FIELDS[name]
    return isinstance(value[0] if isinstance(value, tuple) and value else value, float)


def test_every_field_has_a_range():
    assert RANGES.keys() == FIELDS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_a_number_outside_its_range_is_refused_with_its_field(name):
    low, high = RANGES[name]
    step = 1e-13 if low == 1e-12 else 1e-7 if low == 1e-6 else 1e-3
    outside = [low - step, high * 1.001 + 1e-3] if is_of_floats(name) else [low - 1, high + 1]
    for number in [*outside, -(10**9), 10**15, 10**400]:
        if low <= number <= high:
            continue
        with pytest.raises(ValueError, match=rf"settings: {name} is .*(wanted|expected)"):
            recipe_from({name: with_first(name, number)}, source="settings")
        if number in outside:
            ends = re.escape(f"{low:g} to {high:g}")
            with pytest.raises(ValueError, match=rf"^{name} is .*, wanted (each )?{ends}$"):
                dataclasses.replace(PAPER, **{name: with_first(name, number)})


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [nan, inf, -inf, "1", None, True, {}, [], "all of it", [[]]])
def test_what_is_no_number_is_refused_with_its_field(name, value):
    if name in ANY_LENGTH and value == []:
        return  # how many of them there have to be is another matter
    for given in (value, with_first(name, value)):
        with pytest.raises(ValueError, match=f"{name} is .*; expected the form of"):
            recipe_from({name: given})


@pytest.mark.parametrize("name", FIELDS)
def test_the_ends_of_a_range_are_in_it(name):
    together = {
        "patch": {"patch": (8, 8, 10_000)},
        "stage_strides": {"stage_strides": ((1, 1, 1), (1, 1, 1))},
        "window_hu": {"window_hu": (-100_000, 100_000), "sd_hu": 1000},
        "mean_hu": {"sd_hu": 1000},
        "sd_hu": {"mean_hu": 0, "window_hu": (-1, 1)},
    }
    for end in RANGES[name]:
        values = dict(together.get(name, {}))
        if name in ("scaling_range", "contrast_range", "gamma_range"):
            values[name] = (end, 1) if end < 1 else (1, end)
        elif name in ("brightness_range", "noise_sd", "spacing_mm"):
            values[name] = (end,) * len(FIELDS[name])
        elif name == "residual_blocks":
            values[name] = (end,) * 6
        elif name == "excluded_cases":
            values[name] = (end,)
        elif name not in values:
            values[name] = end
        assert getattr(recipe_from(values), name) is not None


@pytest.mark.parametrize(
    "name",
    ["window_hu", "noise_sd", "brightness_range", "scaling_range", "contrast_range", "gamma_range"],
)
def test_a_range_has_its_lower_end_first(name):
    with pytest.raises(ValueError, match=f"{name} is .*, wanted the lower number first"):
        recipe_from({name: FIELDS[name][::-1]})


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
    with pytest.raises(
        ValueError, match=r"window_hu is \(.*\), wanted two ends that differ and lie"
    ):
        recipe_from(values)


@pytest.mark.parametrize("name", FIELDS)
def test_a_whole_number_is_the_same_recipe_as_its_float(name):
    """In every way: as a value, as JSON, as what a prepared case is kept under."""

    def forms(recipe):
        return json.dumps(dataclasses.asdict(recipe)), repr(recipe)

    if is_of_floats(name):
        whole = {
            "momentum": None,
            "learning_rate": 1,
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
        }.get(name, 1)
        if whole is None:
            return  # no whole number is in its range
        as_float = [float(number) for number in whole] if isinstance(whole, list) else float(whole)
        assert forms(recipe_from({name: whole})) == forms(recipe_from({name: as_float}))
        assert forms(dataclasses.replace(PAPER, **{name: whole})) == forms(
            recipe_from({name: as_float})
        )
    else:
        number = FIELDS[name]
        if isinstance(number, int):
            with pytest.raises(ValueError, match=f"{name} is .*expected the form of"):
                recipe_from({name: float(number)})


def test_the_papers_numbers_written_as_a_user_may_are_no_departure():
    written = {"mean_hu": 101, "window_hu": [-79, 304], "excluded_cases": [133, 125, 68, 23, 23]}
    assert recipe_from(written) == PAPER and not departures(recipe_from(written))
    assert repr(recipe_from(written)) == repr(PAPER)


def test_a_batch_without_foreground_patches_is_a_departure():
    assert departures(recipe_from({"batch_size": 1})) == [
        "batch_size: 1 (paper: 2)",
        "patches centred on foreground: 0 of a batch's 1 (paper: 1 of 2)",
    ]
    assert departures(recipe_from({"batch_size": 4, "foreground_share": 0.5})) == [
        "batch_size: 4 (paper: 2)",
        "foreground_share: 0.5 (paper: 0.33)",
    ]
    assert departures(recipe_from({"foreground_share": 0})) == [
        "foreground_share: 0.0 (paper: 0.33)",
        "patches centred on foreground: 0 of a batch's 2 (paper: 1 of 2)",
    ]


PAPERS_RUN = {
    "precision": "float32",
    "device": "cuda",
    "processes": 1,
    "fold": "0",
    "folds_file": None,
    "cases": 206,
}


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"precision": "bfloat16"}, "number format while training: bfloat16 (paper: float32)"),
        ({"device": "cpu"}, "device: cpu, which rounds otherwise (paper: one GPU)"),
        ({"processes": 2}, "processes that share a batch: 2 (paper: 1)"),
        ({"fold": "all"}, "fold: all, nothing is held out (paper: trained on four fifths)"),
        (
            {"folds_file": "mine.json"},
            "folds: those of mine.json (nnU-Net v1: five, shuffled with its seed)",
        ),
        ({"cases": 205}, "cases: 205 (paper: 206 of KiTS19)"),
    ],
)
def test_how_a_run_is_started_may_depart_too(changes, line):
    assert run_departures(**PAPERS_RUN) == []
    assert run_departures(**{**PAPERS_RUN, **changes}) == [line]


def test_the_page_on_the_paper_names_no_departure_that_the_log_does_not():
    """Those of the code in every run, and the number format."""
    page = (Path(__file__).parent.parent / "docs" / "paper.md").read_text()
    section = page.split("## Where this code departs on purpose")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
    in_bfloat16 = run_departures(**{**PAPERS_RUN, "precision": "bfloat16"})
    told = [line.split(":")[0] for line in code_departures() + in_bfloat16]
    assert len(rows) > 8 and set(rows) - {"what"} <= set(told)


def test_the_learning_rate_decays_by_the_recipes_power():
    recipe = replace(TINY, epochs=4, learning_rate=0.8, learning_rate_power=2.0)
    assert [recipe.learning_rate_at(epoch) for epoch in range(4)] == pytest.approx(
        [0.8, 0.45, 0.2, 0.05]
    )
