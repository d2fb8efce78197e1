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
from minikits.unet import ResidualBlock, build_unet

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


@pytest.fixture
def blocks():
    """A residual block and one without its shortcut, of the same weights; their input."""
    torch.manual_seed(0)
    block, bare = ResidualBlock(4, 4), ablations.BlockWithoutShortcut(4, 4)
    bare.load_state_dict(block.state_dict())
    return block, bare, torch.randn(1, 4, 4, 6, 8)


def test_a_block_without_its_shortcut_lacks_its_input_and_nothing_else(blocks):
    block, bare, image = blocks

    found = bare(image)

    assert torch.equal(found, torch.relu(block.body(image)))
    assert torch.equal(block(image), torch.relu(block.body(image) + image))
    assert not torch.equal(found, block(image))


def test_a_block_without_its_shortcut_gives_nothing_where_its_convolutions_give_nothing(blocks):
    """The residual block passes what is above 0 of its input through all the same."""
    block, bare, image = blocks
    for each in (block, bare):
        torch.nn.init.zeros_(each.body[-1].weight)  # the gain of the last norm

    assert not bare(image).any()
    assert torch.equal(block(image), image.relu())


def test_the_network_without_shortcuts_is_the_residual_one_but_for_them():
    torch.manual_seed(3)
    residual = build_unet("residual", TINY)
    torch.manual_seed(3)

    bare = ablations.without_shortcuts(TINY)

    weights, others = residual.state_dict(), bare.state_dict()
    assert list(weights) == list(others)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    for stage in bare.encoder:
        assert all(isinstance(block, ablations.BlockWithoutShortcut) for block in stage)


def test_only_the_way_around_a_block_is_left_untrained_without_shortcuts():
    bare = ablations.without_shortcuts(TINY)

    logits = bare(torch.randn(1, 1, 16, 16, 16))
    sum(head.sum() for head in logits).backward()

    idle = {name for name, weight in bare.named_parameters() if weight.grad is None}
    around = {name for name, _ in bare.named_parameters() if ".skip." in name}
    assert idle == around
    assert around


def test_a_variant_trains_the_network_that_it_names(tmp_path, monkeypatch):
    """One that is kept already, so that nothing is trained."""
    bare = replace(ablations.VARIANTS["without the shortcuts"], recipe=TINY)
    monkeypatch.setitem(ablations.VARIANTS, "without the shortcuts", bare)
    (tmp_path / "networks").mkdir()
    weights = ablations.without_shortcuts(TINY).state_dict()
    torch.save(weights, tmp_path / "networks" / "without the shortcuts 0.pt")

    network = ablations.train(tmp_path, "without the shortcuts", 0)

    assert isinstance(network.encoder[0][0], ablations.BlockWithoutShortcut)
    assert not network.training


def test_a_row_has_mean_range_and_the_paired_difference_with_its_interval():
    """Differences of 1, 2 and 3 points: mean 2, sd 1, so 4.30 / sqrt(3) = 2.5 to both sides."""
    full = np.array([[90.0, 50], [91, 60], [92, 70]])
    means = full + np.array([[1.0, 0], [2, 0], [3, 0]])

    line = ablations.row("other", means, full)

    assert line == "| other | 93.0 (91.0 to 95.0) | +2.0 ± 2.5 | 60.0 (50.0 to 70.0) |  |"


def test_each_seed_has_a_fold_of_its_own_where_folds_are_averaged():
    folds = ablations.VARIANTS[ablations.FOLDS]
    full = ablations.VARIANTS[ablations.FULL]

    assert [folds.fold_of(seed) for seed in range(5)] == [0, 1, 2, 3, 4]
    assert [full.fold_of(seed) for seed in range(5)] == [0] * 5
    assert replace(folds, fold_of=full.fold_of) == full


def test_an_average_of_networks_is_set_against_one_alone_scan_by_scan():
    """Tumor: alone 0.30 and 0.40 on average over two networks, averaged 0.40 and 0.60: 10 and 20
    points, mean 15, sd 7.07, so 12.71 * 7.07 / sqrt(2) = 63.55 to both sides. A scan has none."""
    singles = [
        {"scores": {"": [[0.6, 0.2], [0.4, float("nan")], [0.5, 0.4]]}},
        {"scores": {"": [[0.8, 0.4], [0.6, float("nan")], [0.5, 0.4]]}},
    ]
    averaged = [[0.72, 0.4], [0.56, float("nan")], [0.5, 0.6]]

    line = ablations.ensemble_row("folds", averaged, singles)

    assert line == (
        "| folds: 2 networks averaged, less one alone | 59.3 | +2.7 ± 7.6 | 50.0 | +15.0 ± 63.6 |"
    )


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


def test_what_a_window_marks_at_the_lower_bound_is_counted():
    """A network that marks all: a window of air alone, and one with a body in its last 4 slices."""

    def marks_all(windows):
        return torch.eye(3)[[1]][..., None, None, None].expand(1, 3, 16, 16, 16)

    lowest = (TINY.window_hu[0] - TINY.mean_hu) / TINY.sd_hu
    image = torch.full((24, 16, 16), lowest)
    image[20:] = 0

    found = ablations.marked_at_the_bound(marks_all, image, TINY)

    assert found == [(1, 16**3), (0.75, 12 * 16**2)]  # which begin at slices 0 and 8
