"""What is said of a mask: volumes, components, how far networks agree, entropy; prediction.csv."""

import csv
import io
import math
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from minikits.evaluation import kits_dice
from minikits.paper import PAPER
from minikits.reports import as_csv
from minikits.trust import (
    Findings,
    agreement,
    count_components,
    entropy,
    findings_of,
    rows,
)
from minikits.volumes import KITS19_AFFINE, Volume


def row(*labels):
    """A mask of one row of voxels."""
    return np.array(labels, np.uint8).reshape(1, 1, -1)


def volume_of(voxels, spacing_mm):
    affine = KITS19_AFFINE * [*spacing_mm, 1]
    return Volume(Path("a.nii.gz"), voxels, spacing_mm, affine, nib.Nifti1Header())


# --- how far networks agree -----------------------------------------------------------------------


def test_the_agreement_of_three_masks_by_hand():
    """Kidneys, with tumor, of 2, 3 and 4 voxels, each within the next: Dice 4/5, 4/6 and 6/7.
    Tumors of 1, 1 and 2 voxels: the first two the same, both within the third's: 1, 2/3 and 2/3."""
    masks = [row(0, 1, 2, 0, 0), row(0, 1, 2, 1, 0), row(0, 1, 2, 2, 1)]

    kidney, tumor = agreement(masks)

    assert kidney == pytest.approx((4 / 5 + 4 / 6 + 6 / 7) / 3)
    assert tumor == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_a_pair_without_the_structure_does_not_count_and_a_one_sided_one_is_0():
    """A tumor in the third mask alone: two pairs of 0, and one in which there is none."""
    masks = [row(1, 1, 0), row(1, 1, 0), row(1, 2, 0)]

    assert agreement(masks) == (1.0, 0.0)

    kidney, tumor = agreement(masks[:2])
    assert kidney == 1.0
    assert math.isnan(tumor)


@pytest.mark.parametrize(
    "masks", [[], [row(1, 2)], [row(0, 0), row(0, 0)]], ids=["none", "one", "empty ones"]
)
def test_where_nothing_can_be_compared_there_is_no_agreement(masks):
    assert all(math.isnan(dice) for dice in agreement(masks))


def test_background_around_all_masks_changes_nothing():
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 3, (3, 4, 5)).astype(np.uint8) for _ in range(2)]
    padded = [np.pad(mask, ((2, 1), (0, 3), (4, 4))) for mask in masks]

    assert agreement(padded) == agreement(masks) == kits_dice(*masks)


# --- one mask -------------------------------------------------------------------------------------


def test_components_touch_by_a_corner():
    mask = np.zeros((3, 3, 8), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True  # one
    mask[0, 0, 4:6] = True  # another
    mask[2, 2, 7] = True  # two voxels further

    assert count_components(mask) == 3
    assert count_components(np.zeros((2, 2, 2), bool)) == 0


def test_the_findings_on_a_mask_by_hand():
    """Voxels of 10 x 5 x 4 mm, 0.2 ml. The tumor joins its two bits of kidney to one component; a
    second kidney lies apart. Slices are thicker than in training, of which one network tells."""
    labels = row(1, 2, 1, 0, 0, 1, 1)
    volume = volume_of(np.full(labels.shape, 200, np.int16), (10.0, 5.0, 4.0))
    own_masks = [labels, row(1, 1, 1, 0, 0, 1, 1)]
    ranges = [{"spacing_z_mm": [1.0, 5.0], "kidney_hu": [150.0, 250.0]}, {}]

    found = findings_of(
        volume, labels, own_masks, PAPER, ranges, ["a.nii.gz: covers 10 mm", "a.nii.gz: tilted"]
    )

    assert found == Findings(
        kidney_ml=0.8,
        tumor_ml=0.2,
        kidney_components=2,
        tumor_components=1,
        networks=2,
        kidney_agreement=1.0,
        tumor_agreement=0.0,
        unlike_training=["spacing along Z, mm: 10, but 1 to 5 in training"],
        doubts=["covers 10 mm", "tilted"],
    )
    assert found.line() == (
        "kidney 1 ml, tumor 0 ml; in 2 and 1 components; Dice between networks 100.0 and 0.0"
    )


def test_the_findings_of_one_network_that_tells_nothing_of_its_training():
    labels = row(0, 0)
    volume = volume_of(labels.astype(np.int16), (10.0, 5.0, 4.0))

    found = findings_of(volume, labels, [], PAPER, [{}], [])

    assert asdict(found) == {
        "kidney_ml": 0.0,
        "tumor_ml": 0.0,
        "kidney_components": 0,
        "tumor_components": 0,
        "networks": 1,
        "kidney_agreement": None,
        "tumor_agreement": None,
        "unlike_training": None,
        "doubts": [],
    }
    assert found.line() == "kidney 0 ml, tumor 0 ml; in 0 and 0 components"


def test_entropy_by_hand():
    """Of three classes: one certain, two as likely, all as likely."""
    certain, of_two, of_three = [0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1 / 3] * 3
    probabilities = torch.tensor([certain, of_two, of_three]).T.reshape(3, 1, 1, 3)

    found = entropy(probabilities)

    assert found.shape == (1, 1, 3)
    assert found.flatten().tolist() == pytest.approx([0, math.log(2) / math.log(3), 1])


# --- prediction.csv -------------------------------------------------------------------------------


def entry_with(findings, *, mask=True, case="a"):
    return {"case": case, "mask": {"bytes": 1} if mask else None, "findings": findings}


def read_table(entries):
    return list(csv.DictReader(io.StringIO(as_csv(rows(entries)))))


def test_a_row_of_prediction_csv_for_each_mask_that_is_finished():
    findings = Findings(
        kidney_ml=301.5,
        tumor_ml=0.0,
        kidney_components=2,
        tumor_components=0,
        networks=5,
        kidney_agreement=0.95,
        tumor_agreement=None,
        unlike_training=["spacing along Z, mm: 8, but 1 to 5 in training", "kidneys, ml: 2"],
        doubts=["covers 32 mm along Z; is this the whole scan?"],
    )
    entries = {
        "b.nii.gz": entry_with(None, case="of an earlier version"),
        "a, b.nii.gz": entry_with(asdict(findings), case="a, b"),
        "failed.nii.gz": entry_with(None, mask=False),
    }

    first, second = read_table(entries)

    assert first == {
        "mask": "a, b.nii.gz",
        "case": "a, b",
        "kidney_ml": "301.5",
        "tumor_ml": "0.0",
        "kidney_components": "2",
        "tumor_components": "0",
        "networks": "5",
        "kidney_agreement": "0.95",
        "tumor_agreement": "",
        "unlike_training": "spacing along Z, mm: 8, but 1 to 5 in training; kidneys, ml: 2",
        "doubts": "covers 32 mm along Z; is this the whole scan?",
    }
    assert second["case"] == "of an earlier version"
    assert second["kidney_ml"] == second["networks"] == ""
    assert second["unlike_training"] == second["doubts"] == "not known"


def test_a_scan_that_is_like_the_training_data_and_not_doubted_has_empty_cells():
    (found,) = rows({"a.nii.gz": entry_with({"unlike_training": [], "doubts": []})})

    assert found["unlike_training"] == found["doubts"] == ""
