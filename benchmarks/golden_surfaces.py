"""Surface Dice and distances by surface-distance and MONAI, kept for the tests, into tests/golden/surfaces.npz.

    pip install --no-deps surface-distance==0.1 monai==1.6.1 scipy
    python benchmarks/golden_surfaces.py

Pairs of small masks, of every kind that an evaluator meets, with their spacings; and the areas that surface-distance
gives to each of the 256 ways in which eight voxels can lie in a mask.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import ndimage

OUT = Path(__file__).parent.parent / "tests" / "golden"
SPACINGS = ((1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.5, 0.92, 0.92), (1.7, 0.83, 1.21))
TOLERANCES_MM = (0.0, 1.0331, 1.1498, 2.1781, 5.0)


def pairs():
    """(prediction, reference) masks (Z, Y, X): blobs, moved, thicker, with holes, with parts missing, at the border."""
    random = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(random.normal(size=(14, 22, 24)), (1, 2, 2))
    blobs = smooth > 0.05
    found = [(np.roll(blobs, (1, -1, 2), axis=(0, 1, 2)), blobs)]
    found.append((ndimage.binary_dilation(blobs), blobs))
    found.append((ndimage.binary_erosion(blobs), blobs))
    found.append((blobs & (random.random(blobs.shape) < 0.9), blobs))

    ball = np.linalg.norm(
        np.indices((16, 18, 20)) - np.array([7, 8, 9]).reshape(3, 1, 1, 1), axis=0
    )
    half = ball < 6
    half[:, :, 10:] = False
    found.append((half, ball < 6))
    found.append((ball < 2, np.roll(ball < 3, 9, axis=2)))
    return found


def main() -> None:
    # numpy 2 and scipy 1.15 no longer have what surface-distance 0.1 calls
    ndimage.filters = ndimage.morphology = ndimage
    np.Inf, np.NaN = np.inf, np.nan
    import surface_distance
    import torch
    from monai.metrics import compute_surface_dice
    from surface_distance import lookup_tables

    kept = {}
    for number, (prediction, reference) in enumerate(pairs()):
        kept[f"prediction{number}"] = prediction
        kept[f"reference{number}"] = reference

    dice, monai_dice, distance = [], [], []  # a row for each pair and spacing
    for prediction, reference in pairs():
        for spacing_mm in SPACINGS:
            between = surface_distance.compute_surface_distances(reference, prediction, spacing_mm)
            distance.append(surface_distance.compute_robust_hausdorff(between, 95))
            dice.append([])
            monai_dice.append([])
            for tolerance_mm in TOLERANCES_MM:
                dice[-1].append(
                    surface_distance.compute_surface_dice_at_tolerance(between, tolerance_mm)
                )
                theirs = compute_surface_dice(
                    torch.from_numpy(np.stack([~prediction, prediction]))[None],
                    torch.from_numpy(np.stack([~reference, reference]))[None],
                    class_thresholds=[tolerance_mm],
                    spacing=spacing_mm,
                    use_subvoxels=True,
                )
                monai_dice[-1].append(theirs.item())

    areas = [
        lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
        for spacing_mm in SPACINGS
    ]
    about = {name: version(name) for name in ("surface-distance", "monai", "scipy", "numpy")}
    np.savez_compressed(
        OUT / "surfaces.npz",
        spacings_mm=SPACINGS,
        tolerances_mm=TOLERANCES_MM,
        surface_dice=dice,
        monai_surface_dice=monai_dice,
        distance_95=distance,
        areas_mm2=areas,
        area_kernel=lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL,
        about=json.dumps({"made by": "benchmarks/golden_surfaces.py", **about}),
        **kept,
    )


if __name__ == "__main__":
    main()
