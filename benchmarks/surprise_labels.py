"""What do perfect labels score, once they have been to the networks' grid and back?

    python benchmarks/surprise_labels.py --labels ../shared/kits19

The references themselves stand in for a network that makes no mistake: each is taken to the paper's
spacing (as a training target is), back to the scan's grid (as a prediction is), and scored against
itself. A network that puts out the training targets, and is certain of them, is no better. With
--in-part it says how much of each voxel is kidney or tumor, which a network could. Two minutes on two
cores."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from minikits.cases import find_cases
from minikits.evaluation import CaseScores, score_case, summarise
from minikits.nifti import read_labels
from minikits.paper import CLASSES, PAPER
from minikits.preprocessing import (
    label_orders,
    labels_on_native_grid,
    prepare_labels,
    resampled_shape,
)
from minikits.recipe import Recipe
from minikits.reports import table
from minikits.resampling import resample
from minikits.volumes import Volume


def certain(reference: Volume, recipe: Recipe) -> torch.Tensor:
    """(K, z, y, x): probability 1 for each voxel's label on the recipe's grid, the training
    target."""
    labels = torch.from_numpy(prepare_labels(reference, recipe))
    masks = [labels == value for value in range(len(CLASSES))]
    return torch.stack(masks).half()


def in_part(reference: Volume, recipe: Recipe) -> torch.Tensor:
    """(K, z, y, x): how much of each voxel of the recipe's grid each label takes, which tells more
    than any label."""
    shape = resampled_shape(reference.voxels.shape, reference.spacing_mm, recipe)
    orders = label_orders(reference.spacing_mm)
    masks = []
    for value in range(len(CLASSES)):
        mask = resample(reference.voxels == value, shape, orders)
        masks.append(torch.from_numpy(mask))
    return torch.stack(masks)


def scores_of(
    folder: Path, recipe: Recipe, probabilities_of: Callable = certain
) -> Iterator[tuple[CaseScores, Volume]]:
    """Each labelled case's scores, and its labels."""
    for case in find_cases(folder):
        if case.labels is None:
            continue
        reference = read_labels(case.labels)
        back = labels_on_native_grid(probabilities_of(reference, recipe), reference)
        yield score_case(case.id, back, reference.voxels), reference


def main() -> None:
    parser = argparse.ArgumentParser(description="Labels to the paper's spacing and back, scored.")
    parser.add_argument("--labels", type=Path, default=Path("../shared/kits19"))
    parser.add_argument("--in-part", action="store_true", help="masks in part, in place of labels")
    arguments = parser.parse_args()
    folder = arguments.labels
    if not folder.is_dir():
        parser.exit(2, f"{folder}: no such folder; wanted KiTS19's cases, or label files in them\n")

    scores = []
    probabilities_of = in_part if arguments.in_part else certain
    for score, reference in scores_of(folder, PAPER, probabilities_of):
        scores.append(score)
        ml = np.count_nonzero(reference.voxels == 2) * reference.voxel_mm3 / 1000
        spacing = " x ".join(f"{mm:.2f}" for mm in reference.spacing_mm)
        print(f"{score.case}: {spacing} mm, tumor {ml:.1f} ml, Dice {score.tumor:.4f}", flush=True)

    print(table(scores))
    for name, mean in summarise(scores).items():
        print(f"{name}: {100 * mean.mean:.2f} over {mean.cases} cases")


if __name__ == "__main__":
    main()
