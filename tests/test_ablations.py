"""The comparison of what is left out: its losses, its table, and a run of it at a tiny size."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minikits.losses import segmentation_loss, soft_dice_loss
from minikits.paper import DEMO, PAPER
from minikits.phantoms import make_case, write_case

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import ablations

TINY = replace(DEMO, patch=(16, 16, 16), plain_features=2, residual_features=2, epochs=1)
TINY = replace(TINY, batches_per_epoch=1, spacing_mm=(12.0, 12.0, 12.0))


@pytest.fixture
def heads():
    """Logits of three resolutions and a target that holds all classes."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 8, 8, 8), generator=generator)
    logits = [torch.randn(2, 3, side, side, side, generator=generator) for side in (8, 4, 2)]
    return logits, target


def test_cross_entropy_and_dice_over_the_heads_add_up_to_the_methods_loss(heads):
    logits, target = heads

    parts = [
        ablations.over_heads(loss_of_head, logits, target)
        for loss_of_head in (ablations.cross_entropy, soft_dice_loss)
    ]

    assert sum(parts) == pytest.approx(segmentation_loss(logits, target).item(), abs=1e-6)


def test_without_deep_supervision_only_the_finest_head_counts(heads):
    logits, target = heads
    others = [logits[0], 9 * logits[1], 9 * logits[2]]

    loss = ablations.finest_head_alone(logits, target)

    assert loss == segmentation_loss(logits[0], target)
    assert loss == ablations.finest_head_alone(others, target)


def test_each_variant_leaves_out_what_it_says():
    without = ablations.VARIANTS["no augmentation"].recipe
    unforced = ablations.VARIANTS["no patch forced on foreground"].recipe

    probabilities = [name for name in vars(PAPER) if name.endswith("_probability")]
    assert len(probabilities) == 8
    assert not any(getattr(without, name) for name in probabilities)
    assert unforced.foreground_samples == 0
    assert DEMO.foreground_samples == 1


def test_a_row_has_mean_range_and_the_paired_difference_with_its_interval():
    """Differences of 1, 2 and 3 points: mean 2, sd 1, so 4.30 / sqrt(3) = 2.5 to both sides."""
    full = np.array([[90.0, 50], [91, 60], [92, 70]])
    means = full + np.array([[1.0, 0], [2, 0], [3, 0]])

    line = ablations.row("other", means, full)

    assert line == "| other | 93.0 (91.0 to 95.0) | +2.0 ± 2.5 | 60.0 (50.0 to 70.0) |  |"


def test_the_full_recipe_is_predicted_in_all_ways_and_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(ablations.VARIANTS, ablations.FULL, ablations.Variant(TINY))
    for kind, count in (("data", 5), ("scans", 1)):
        for number in range(count):
            case = make_case([9, number], shape=(10, 24, 26), spacing_mm=(12.0, 12.0, 12.0))
            write_case(tmp_path / kind / f"phantom_{number}", case)

    threads = torch.get_num_threads()
    try:
        ablations.score(tmp_path, ablations.FULL, 0)
    finally:
        torch.set_num_threads(threads)

    kept = json.loads((tmp_path / "scores" / "full recipe 0.json").read_text())
    ways = ["", "with mirroring", "what lies in air deleted", "windows weighted alike"]
    assert list(kept["scores"]) == ways
    assert all(len(scores) == 1 for scores in kept["scores"].values())
    again = ablations.train(tmp_path, ablations.FULL, 0)  # of what is kept
    weights = torch.load(tmp_path / "networks" / "full recipe 0.pt", weights_only=True)
    assert all(torch.equal(weights[name], value) for name, value in again.state_dict().items())
