"""What networks were trained on, in a few ranges, and in what a scan is unlike it.

Of each training case a few quantities are taken; a checkpoint keeps the least and the most of each.
A scan beyond them is no reason to refuse it: nobody has seen how the network does on such."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from minikits.paper import CLASSES
from minikits.recipe import Recipe
from minikits.sampling import PreparedCase
from minikits.volumes import Volume

QUANTITIES = {
    "spacing_z_mm": "spacing along Z, mm",
    "spacing_y_mm": "spacing along Y, mm",
    "spacing_x_mm": "spacing along X, mm",
    "size_z_mm": "size along Z, mm",
    "size_y_mm": "size along Y, mm",
    "size_x_mm": "size along X, mm",
    "kidney_hu": "mean of the kidneys, HU",  # without tumors; it tells the phase of contrast
    "kidneys_ml": "kidneys with tumors, ml",
}
# How far beyond a range a scan still counts as within: among few cases the extremes are chance.
SLACK = 1.1  # times the most, of what is a length or a volume
SLACK_HU = 10


def quantities_of_case(
    case: PreparedCase, spacing_mm: Sequence[float], recipe: Recipe
) -> dict[str, float]:
    """The QUANTITIES of a training case; spacing_mm: of its scan as it was, Z Y X. kidney_hu is
    left out where no voxel is kidney alone."""
    size_mm = np.multiply(case.image.shape, recipe.spacing_mm)
    foreground = sum(len(places) for places in case.foreground)
    voxel_ml = math.prod(recipe.spacing_mm) / 1000

    places = torch.from_numpy(case.foreground[CLASSES.index("kidney") - 1])
    kidney = case.image.flatten()[places.long()].double()  # normalised
    return _named(
        spacing_mm,
        size_mm,
        kidney_hu=float(kidney.mean() * recipe.sd_hu + recipe.mean_hu),
        kidneys_ml=foreground * voxel_ml,
    )


def quantities_of_scan(volume: Volume, labels: np.ndarray, recipe: Recipe) -> dict[str, float]:
    """The QUANTITIES of a scan by its mask, (Z, Y, X) labels. kidney_hu is left out where no voxel
    is kidney alone."""
    size_mm = np.multiply(volume.voxels.shape, volume.spacing_mm)
    foreground = np.count_nonzero(labels)

    kidney = volume.voxels[labels == CLASSES.index("kidney")]
    kidney = np.clip(kidney.astype(np.float32), *recipe.window_hu)  # as of training cases
    return _named(
        volume.spacing_mm,
        size_mm,
        kidney_hu=float(kidney.mean(dtype=np.float64)) if kidney.size else math.nan,
        kidneys_ml=foreground * volume.voxel_mm3 / 1000,
    )


def _named(spacing_mm, size_mm, *, kidney_hu, kidneys_ml):
    """{name: value}, less those that are NaN."""
    values = [*map(float, spacing_mm), *map(float, size_mm), kidney_hu, kidneys_ml]
    return {name: value for name, value in zip(QUANTITIES, values) if not math.isnan(value)}


def ranges_of(cases: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """{name: [least, most]} of the quantities of training cases; of none, none.

    >>> ranges_of([{"kidneys_ml": 250.0}, {"kidneys_ml": 400.0}])
    {'kidneys_ml': [250.0, 400.0]}
    """
    ranges = {}
    for name in QUANTITIES:
        values = [quantities[name] for quantities in cases if name in quantities]
        if values:
            ranges[name] = [min(values), max(values)]
    return ranges


def ranges_in(checkpoint: dict) -> dict[str, list[float]]:
    """The ranges that a checkpoint keeps; {} for one that keeps none, as an imported one, or in
    which they are no ranges."""
    kept = checkpoint.get("training_ranges")
    if not isinstance(kept, dict):
        return {}
    return {name: kept[name] for name in QUANTITIES if _is_range(kept.get(name))}


def _is_range(value):
    if not isinstance(value, list) or [type(end) for end in value] != [float, float]:
        return False
    return value[0] <= value[1]  # of NaN neither is so


def ranges_together(several: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """The ranges of what any of several networks was trained on."""
    ends = []
    for ranges in several:
        ends.append({name: low for name, (low, _) in ranges.items()})
        ends.append({name: high for name, (_, high) in ranges.items()})
    return ranges_of(ends)


def what_is_unlike(quantities: dict[str, float], ranges: dict[str, list[float]]) -> list[str]:
    """A few words on each quantity of a scan that is beyond the training cases', by more than
    SLACK or SLACK_HU.

    >>> what_is_unlike({"spacing_z_mm": 8.0, "kidneys_ml": 300.0}, {"spacing_z_mm": [0.5, 5.0]})
    ['spacing along Z, mm: 8, but 0.5 to 5 in training']
    """
    unlike = []
    for name, (least, most) in ranges.items():
        if name not in quantities:
            continue
        value = quantities[name]
        if name.endswith("_hu"):
            within = least - SLACK_HU <= value <= most + SLACK_HU
        else:
            within = least / SLACK <= value <= most * SLACK
        if not within:
            unlike.append(
                f"{QUANTITIES[name]}: {value:.3g}, but {least:.3g} to {most:.3g} in training"
            )
    return unlike
