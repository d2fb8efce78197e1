"""The numbers: derived ones pinned to the paper's and nnU-Net's values, and every one marked with its source."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from minikits import paper
from minikits.paper import DEMO, PAPER, Recipe, head_weights, recipe_from
from minikits.resampling import resampled_shape, thick_axis

SOURCE = Path(paper.__file__).read_text()
MARK = re.compile(r"\[(paper [\d.]+|paper fig\. 1|author #\d+|nnU-Net v1[^\]]*|ours: [^\]]+)\]")


def test_strides_and_features_are_the_papers():
    assert PAPER.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert PAPER.features("plain") == (30, 60, 120, 240, 320, 320)
    assert PAPER.features("residual") == PAPER.features("preactivation") == (24, 48, 96, 192, 320, 320)
    bottleneck = [side // int(np.prod(strides)) for side, strides in zip(PAPER.patch, zip(*PAPER.strides))]
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
    names += [name for name in vars(paper) if name.isupper() and name not in ("PAPER", "DEMO")]
    assert len(names) > 40
    for name in names:
        line = re.search(rf"^ *{name}(: \w+)? = .*$", SOURCE, re.MULTILINE)
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
    assert in_voxels(planned) == (127.5, 248, 248) and tuple(exact(planned).round()) == (128, 248, 248)
    assert sum(thick_axis(spacing) is not None for _, spacing in kept.values()) == 141


def test_recipe_survives_json():
    assert recipe_from(json.loads(json.dumps(dataclasses.asdict(DEMO)))) == DEMO
    assert recipe_from({}) == PAPER and not PAPER.departures()
    imported = recipe_from({"stage_strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]], "residual_blocks": [1, 2, 2]})
    assert imported.strides == ((1, 1, 1), (2, 2, 2), (1, 2, 2)) and imported.features("plain") == (30, 60, 120)
    assert recipe_from(json.loads(json.dumps(dataclasses.asdict(imported)))) == imported
    assert recipe_from({"epochs": 5}).departures() == ["epochs: 5 (paper: 1000)"]


@pytest.mark.parametrize("values, complaint", [
    ({"epoch": 5}, "no field"), ({"epochs": 2.5}, "expected the form"), ({"epochs": "many"}, "expected the form"),
    ({"epochs": True}, "expected the form"), ({"patch": [80, 160]}, "expected the form"), ([1], "expected an object"),
    ({"patch": [5, 5, 5]}, "1 stages of patch"), ({"spacing_mm": [0, 1, 1]}, "wanted it positive"),
    ({"sd_hu": 0.0}, "sd_hu is 0.0, wanted it positive"),
    ({"patch": [80.0, 160, 160]}, "expected the form"), ({"stage_strides": [[1, 1], [2, 2]]}, "expected the form"),
    ({"stage_strides": [[1, 1, 1], [2, 2, 3]]}, "divide the patch"), ({"stage_strides": [[2, 2, 2]]}, "1, 1, 1. first"),
    ({"residual_blocks": [1, 2]}, "6 stages of patch"), ({"residual_blocks": 3}, "expected the form"),
])
def test_recipes_that_do_not_fit_are_refused(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        recipe_from(values)


@pytest.mark.parametrize("patch, stages", [((8, 8, 8), 2), ((7, 8, 5), 2), ((20, 48, 24), 4), ((1, 16, 16), 3)])
def test_any_patch_with_an_axis_to_halve_has_strides(patch, stages):
    strides = dataclasses.replace(PAPER, patch=patch).strides
    assert len(strides) == stages and strides[0] == (1, 1, 1)
    assert all(side % int(np.prod(s)) == 0 for side, s in zip(patch, zip(*strides)))
