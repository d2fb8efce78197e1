"""Slices of a CT and of phantoms, shuffled: can a reader tell which is which?

    python benchmarks/phantom_panel.py CT.nii.gz FOLDER [--of-each 10] [--seed 0]

Writes FOLDER/slices.png, numbered, all at the CT's voxel size and one window, and FOLDER/key.json
for afterwards. The phantoms are computed at half that size and averaged, as a finer CT would be.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from minikits.files import write_text
from minikits.nifti import read_volume
from minikits.phantoms import make_case

FIRST_SEED = 500  # of cases that nothing else is made of
WINDOW_HU = (-160, 240)
ABOVE_MM = 60  # of the kidneys: where the panel's slices begin


def slices_of_ct(path: Path, count: int) -> tuple[dict[str, np.ndarray], tuple]:
    """{what: (Y, X) HU} of evenly spaced slices, and the spacing (z, y, x) in mm."""
    volume = read_volume(path)
    slices = {}
    for index in np.linspace(1, len(volume.voxels) - 2, count).round().astype(int):
        slices[f"{path.name}, slice {index}"] = volume.voxels[index].astype(np.float32)
    return slices, volume.spacing_mm


def slices_of_phantoms(count: int, seed: int, shape: tuple, spacing_mm: tuple) -> dict:
    """{what: (Y, X) HU}, each of another phantom, from above the kidneys to their lower poles, on
    a canvas of `shape`."""
    z_mm, y_mm, x_mm = spacing_mm
    slices = {}
    for number in range(count):
        image, labels, _ = make_case(
            [FIRST_SEED + seed, number], spacing_mm=(z_mm, y_mm / 2, x_mm / 2)
        )
        labelled = np.flatnonzero(labels.any(axis=(1, 2)))
        first = max(labelled[0] - int(ABOVE_MM / z_mm), 0)
        index = first + round((labelled[-1] - first) * (number + 0.5) / count)
        fine = torch.from_numpy(image[index]).float()[None, None]
        slices[f"phantom {number}, slice {index}"] = on_canvas(F.avg_pool2d(fine, 2)[0, 0], shape)
    return slices


def on_canvas(image: torch.Tensor, shape: tuple) -> np.ndarray:
    """An image (Y, X) in the middle of air of `shape`; what is larger is cut off alike."""
    height, width = image.shape
    above, beside = (shape[0] - height) // 2, (shape[1] - width) // 2
    around = (beside, shape[1] - width - beside, above, shape[0] - height - above)
    return F.pad(image, around, value=-1000).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ct", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--of-each", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    slices, spacing_mm = slices_of_ct(arguments.ct, arguments.of_each)
    shape = next(iter(slices.values())).shape
    slices |= slices_of_phantoms(arguments.of_each, arguments.seed, shape, spacing_mm)
    order = np.random.default_rng(arguments.seed).permutation(list(slices)).tolist()

    matplotlib.use("Agg")
    rows = -(-len(order) // 5)
    figure, panels = plt.subplots(rows, 5, figsize=(20, 3.4 * rows), layout="constrained")
    for panel in panels.flat:
        panel.axis("off")
    for number, (panel, what) in enumerate(zip(panels.flat, order), 1):
        panel.imshow(slices[what], "gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
        panel.set_title(str(number))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.folder / "slices.png", dpi=80)
    write_text(arguments.folder / "key.json", json.dumps(dict(enumerate(order, 1)), indent=1))
    print(f"{arguments.folder / 'slices.png'}; which is which: key.json", file=sys.stderr)


if __name__ == "__main__":
    main()
