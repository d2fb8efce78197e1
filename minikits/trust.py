"""What is said of a mask, so that its reader knows how far to trust it.

How much there is of each structure, and in how many components; how far the networks of an ensemble
agree; what is doubted of the scan, and in what it is unlike those they were trained on; and where
they are in doubt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from minikits.components import bounding_box, label_components
from minikits.evaluation import kits_dice
from minikits.familiar import quantities_of_scan, ranges_together, what_is_unlike
from minikits.recipe import Recipe
from minikits.volumes import Volume

ML_DECIMALS, DICE_DECIMALS = 3, 4  # that are kept


@dataclass(frozen=True)
class Findings:
    """What is said of a mask, as prediction.json keeps it; None: there is no such figure."""

    kidney_ml: float  # without tumors
    tumor_ml: float
    kidney_components: int  # of kidney and tumor together, as the challenge counts a kidney
    tumor_components: int
    networks: int
    kidney_agreement: float | None  # mean pairwise Dice of the networks' own masks
    tumor_agreement: float | None
    unlike_training: list[str] | None  # None where no network says what it was trained on
    doubts: list[str]  # of the scan: minikits.doubts

    def line(self) -> str:
        """In a line, for the one who waits."""
        said = (
            f"kidney {self.kidney_ml:.0f} ml, tumor {self.tumor_ml:.0f} ml; in "
            f"{self.kidney_components} and {self.tumor_components} components"
        )
        if self.networks > 1:
            kidney, tumor = _in_percent(self.kidney_agreement), _in_percent(self.tumor_agreement)
            said += f"; Dice between networks {kidney} and {tumor}"
        return said


def findings_of(
    volume: Volume,
    labels: np.ndarray,
    own_masks: Sequence[np.ndarray],
    recipe: Recipe,
    ranges: Sequence[dict[str, list[float]]],
    doubted: Sequence[str],
) -> Findings:
    """The Findings on a scan's mask, (Z, Y, X) labels on its own grid.

    own_masks: each network's, on one grid, whichever; none where there is one network. ranges: what
    each was trained on (minikits.familiar). doubted: the lines on the scan that minikits.doubts
    gives; its path, with which they begin, is left out."""
    voxel_ml = volume.voxel_mm3 / 1000
    kidney_agreement, tumor_agreement = agreement(own_masks)
    return Findings(
        kidney_ml=round(float(np.count_nonzero(labels == 1) * voxel_ml), ML_DECIMALS),
        tumor_ml=round(float(np.count_nonzero(labels == 2) * voxel_ml), ML_DECIMALS),
        kidney_components=count_components(labels > 0),
        tumor_components=count_components(labels == 2),
        networks=len(ranges),
        kidney_agreement=_rounded(kidney_agreement),
        tumor_agreement=_rounded(tumor_agreement),
        unlike_training=unlike_training(volume, labels, recipe, ranges),
        doubts=[doubt.removeprefix(f"{volume.path}: ") for doubt in doubted],
    )


def count_components(mask: np.ndarray) -> int:
    """How many components a mask (Z, Y, X) has; voxels that touch by a corner hang together."""
    box = bounding_box(mask)
    if box is None:
        return 0
    _, count = label_components(mask[box])
    return count


def agreement(own_masks: Sequence[np.ndarray]) -> tuple[float, float]:
    """(kidney, tumor): the mean Dice of all pairs of label maps (Z, Y, X), as `kits_dice` has it.

    A pair in which neither has the structure has no Dice, and the mean leaves it out; NaN where no
    pair is left, as of fewer than two masks.

    >>> one, other = np.array([[[0, 1, 1, 2]]]), np.array([[[0, 0, 1, 2]]])
    >>> agreement([one, one, other])  # kidneys: 1, and twice 2 * 2 / (3 + 2)
    (0.8666666666666667, 1.0)
    """
    pairs = [kits_dice(one, other) for one, other in combinations(_cropped(own_masks), 2)]
    means = []
    for of_pairs in zip(*pairs):
        there = [dice for dice in of_pairs if not math.isnan(dice)]
        means.append(sum(there) / len(there) if there else math.nan)
    if not means:
        return math.nan, math.nan
    kidney, tumor = means
    return kidney, tumor


def _cropped(masks):
    """The masks within the smallest box that holds all their foreground: elsewhere they agree."""
    foreground = np.zeros(masks[0].shape if masks else (0, 0, 0), dtype=bool)
    for mask in masks:
        foreground |= mask > 0
    box = bounding_box(foreground)
    if box is None:
        return masks
    return [mask[box] for mask in masks]


def unlike_training(
    volume: Volume,
    labels: np.ndarray,
    recipe: Recipe,
    ranges: Sequence[dict[str, list[float]]],
) -> list[str] | None:
    """In what a scan with these labels is unlike all that its networks were trained on, a few words
    each; None where no network says what that was."""
    known = ranges_together(ranges)
    if not known:
        return None
    return what_is_unlike(quantities_of_scan(volume, labels, recipe), known)


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """How much in doubt the classes are. (K, Z, Y, X) probabilities -> (Z, Y, X): 0 where one class
    is certain, 1 where all are as likely.

    >>> entropy(torch.tensor([[1.0, 0.5], [0.0, 0.5]]).reshape(2, 1, 1, 2)).tolist()  # K = 2
    [[[0.0, 1.0]]]
    """
    total = torch.zeros_like(probabilities[0])
    for of_class in probabilities:
        total += torch.special.entr(of_class)  # -p log p; one class at a time, as memory is short
    return total / math.log(len(probabilities))


# --- prediction.csv -------------------------------------------------------------------------------


def rows(entries: dict[str, dict]) -> list[dict]:
    """Rows of prediction.csv, of what prediction.json says of each scan: one for each mask that is
    finished, by name. A figure that there is not is None, an empty cell."""
    found = []
    for name in sorted(entries):
        entry = entries[name]
        if entry["mask"] is None:
            continue
        figures = entry.get("findings") or {}  # an earlier version's masks have none
        row = {"mask": name, "case": entry["case"]}
        for figure in Findings.__dataclass_fields__:
            row[figure] = figures.get(figure)
        for words in ("unlike_training", "doubts"):
            row[words] = _as_cell(figures.get(words))
        found.append(row)
    return found


def _as_cell(words):
    """What is said, if anything; "not known" where it was not looked for."""
    if words is None:
        return "not known"
    return "; ".join(words)


def _rounded(dice):
    """A Dice as it is kept; None where there is none."""
    return None if math.isnan(dice) else round(dice, DICE_DECIMALS)


def _in_percent(dice):
    return "-" if dice is None else f"{100 * dice:.1f}"
