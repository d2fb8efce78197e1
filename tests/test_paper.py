"""The numbers: every one marked with its source; and what a run that has others says of it."""

import json
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from minikits import paper, recipe
from minikits.paper import (
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


def test_every_number_carries_its_mark():
    names = [field.name for field in fields(Recipe)]
    for name in [*vars(paper), *vars(recipe)]:
        if name.isupper() and not name.startswith("_") and name not in ("PAPER", "DEMO"):
            names.append(name)

    assert len(names) > 40
    for name in names:
        line = re.search(rf"^(    )?{name} ?= ?.*$", SOURCE, re.MULTILINE)
        assert line and MARK.search(line[0]), f"{name} has no mark"


def test_median_shape_of_the_206_cases(kits19):
    """The paper prints 128 x 248 x 248 and a rounded spacing, which gives less.

    Its planner took the median of sizes that were not rounded to voxels yet: so both are pinned.
    """
    geometry = json.loads((kits19 / "geometry.json").read_text())
    kept = [g for id, g in geometry.items() if int(id[-5:]) not in PAPER.excluded_cases]
    planned = replace(PAPER, spacing_mm=(3.21640606, 1.6152893, 1.6152893))

    def in_voxels(recipe):
        shapes = [resampled_shape(shape, spacing, recipe) for shape, spacing in kept]
        return tuple(np.median(shapes, axis=0))

    def exact(recipe):
        sizes = [np.multiply(shape, spacing) / recipe.spacing_mm for shape, spacing in kept]
        return tuple(np.median(sizes, axis=0).round())

    assert len(kept) == 206
    assert in_voxels(PAPER) == (127.5, 247, 247)
    assert exact(PAPER) == (127, 247, 247)
    assert in_voxels(planned) == (127.5, 248, 248)
    assert exact(planned) == (128, 248, 248)
    assert sum(thick_axis(spacing) is not None for _, spacing in kept) == 141


def through_json(recipe):
    return json.loads(json.dumps(asdict(recipe)))


def test_recipe_survives_json():
    strides = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]

    imported = recipe_from({"stage_strides": strides, "residual_blocks": [1, 2, 2]})

    assert imported.strides == ((1, 1, 1), (2, 2, 2), (1, 2, 2))
    assert imported.features("plain") == (30, 60, 120)
    assert recipe_from(through_json(imported)) == imported
    assert recipe_from(through_json(DEMO)) == DEMO


def test_what_is_not_named_is_the_papers():
    assert recipe_from({}) == PAPER
    assert departures(PAPER) == []
    assert departures(recipe_from({"epochs": 5})) == ["epochs: 5 (paper: 1000)"]


def test_the_papers_numbers_written_as_a_user_may_are_no_departure():
    written = {"mean_hu": 101, "window_hu": [-79, 304], "excluded_cases": [133, 125, 68, 23, 23]}

    recipe = recipe_from(written)

    assert recipe == PAPER
    assert departures(recipe) == []
    assert repr(recipe) == repr(PAPER)


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
    page = (ROOT / "docs" / "paper.md").read_text()
    section = page.split("## Where this code departs on purpose")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]

    in_bfloat16 = run_departures(**{**PAPERS_RUN, "precision": "bfloat16"})
    told = [line.split(":")[0] for line in code_departures() + in_bfloat16]

    assert len(rows) > 8
    assert set(rows) - {"what"} <= set(told)
