"""One network, looked with in other ways: what is decided after the training is over?

    python benchmarks/surprise_looks.py --model demo/runs/residual/fold0 --scans demo/scans

Predicts scans with a trained network as `make demo` does, mirrored, with all voxels of a window
weighted alike, and with what lies in air deleted; scores each. After `make demo` it takes two
minutes and a half of one core. Over five seeds: benchmarks/ablations.py.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ablations import AIR_BELOW_HU, predict, predict_unweighted
from torch import nn

from minikits.checkpoints import load_checkpoint, load_network
from minikits.evaluation import kits_dice
from minikits.nifti import read_labels, read_volume
from minikits.recipe import Recipe
from minikits.volumes import Volume

ONCE = "each window once"


def looks(network: nn.Module, scan: Volume, recipe: Recipe) -> Iterator[tuple[str, np.ndarray]]:
    """(way of predicting, labels on the scan's grid) of a scan, `ONCE` first."""
    once = predict([network], scan, recipe, mirroring=False)
    yield ONCE, once
    yield "with mirroring", predict([network], scan, recipe, mirroring=True)
    yield "windows weighted alike", predict_unweighted(network, scan, recipe)
    yield "what lies in air deleted", np.where(scan.voxels < AIR_BELOW_HU, 0, once)


def scores_of_looks(network: nn.Module, folder: Path, recipe: Recipe) -> dict[str, np.ndarray]:
    """{way of predicting: (scans, 2) Dice of kidney and tumor}."""
    scores = {}
    for case in sorted(folder.iterdir()):
        scan = read_volume(case / "imaging.nii.gz")
        reference = read_labels(case / "segmentation.nii.gz").voxels
        for way, labels in looks(network, scan, recipe):
            scores.setdefault(way, []).append(kits_dice(labels, reference))
    return {way: np.array(dice, dtype=float) for way, dice in scores.items()}


def table(scores: dict[str, np.ndarray]) -> str:
    """Means over the scans, in per cent, and what they differ by from the first way's."""
    lines = ["| way of predicting | kidney | | tumor | |", "|---|---|---|---|---|"]
    first = 100 * np.nanmean(scores[ONCE], axis=0)
    for way, dice in scores.items():
        kidney, tumor = 100 * np.nanmean(dice, axis=0)
        cells = [way, f"{kidney:.1f}", "", f"{tumor:.1f}", ""]
        if way != ONCE:
            cells[2::2] = [f"{kidney - first[0]:+.1f}", f"{tumor - first[1]:+.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("demo/runs/residual/fold0"))
    parser.add_argument("--scans", type=Path, default=Path("demo/scans"))
    arguments = parser.parse_args()
    path = arguments.model / "checkpoint.pt"
    checkpoint = load_checkpoint(path)
    network = load_network(checkpoint, path).eval()
    print(table(scores_of_looks(network, arguments.scans, checkpoint["recipe"])))


if __name__ == "__main__":
    main()
