"""Synthetic KiTS19 cases: contrast-enhanced abdominal CT in HU, so that everything runs without the data set.

    python -m minikits.phantoms --out data --cases 20
    python -m minikits.phantoms --out data --labels FOLDER    # kidneys and tumors of real label volumes

A score on phantoms says nothing about patients. Vessels, bowel and organs share the intensities of kidneys and tumors;
no threshold finds these. Places are mm (z, y, x) from the middle of both kidneys, to inferior, posterior and the left.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from minikits.volumes import read_labels, write_image

SLICES_AT_ONCE = 32
FAT_HU = -102
GRAIN_MM = 8.0  # of a tumor's inside; the kidney's cortex is about half as wide


def make_case(seed, *, shape=None, spacing_mm=None, labels=None):
    """(image int16 in HU, labels uint8, spacing_mm); arrays (Z, Y, X). The same arguments give the same case.

    seed: an integer or a sequence of them. Without labels, kidneys and tumors are drawn, and shape and spacing
    where not given. With labels (0, 1, 2) and their spacing, the body is built around them; they come back as given.
    """
    random = np.random.default_rng(seed)
    if labels is None:
        spacing_mm = spacing_mm or (float(random.choice([2, 3, 3.75, 5])), *[float(random.uniform(1.7, 2.6))] * 2)
        shape = shape or [int(mm / step) for mm, step in zip((random.uniform(200, 300), 360, 400), spacing_mm)]
    shape = shape if labels is None else labels.shape
    places = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm)]
    labels = _draw_labels(random, places) if labels is None else labels
    reach = np.zeros(3)
    for axis, others in enumerate([(1, 2), (0, 2), (0, 1)]):
        found = places[axis][labels.any(axis=others)]
        if len(found):  # else the body lies in the volume's middle
            places[axis] -= (found[0] + found[-1]) / 2
            reach[axis] = (found[-1] - found[0]) / 2
    cortex_hu = random.uniform(140, 215)  # blood, liver, spleen and bowel come close to it
    image = np.full(shape, FAT_HU, dtype=np.int16)
    _paint_body(random, image, places, reach, cortex_hu)
    box = _box(places, (0, 0, 0), reach + 12)  # with the fat around the kidneys
    _paint_kidneys(random, image[box], labels[box], [mm[s] for mm, s in zip(places, box)], cortex_hu)
    _scan(random, image)
    return image, labels, tuple(spacing_mm)


def _box(places, centre, radii):
    """The slices around an ellipsoid."""
    return tuple(slice(*np.searchsorted(mm, [c - r, c + r])) for mm, c, r in zip(places, centre, radii))


def _squared(places, centre, radii):
    """The squared distance from an ellipsoid's centre: 1 is its surface. Broadcasts."""
    return sum(((mm - c) / r) ** 2 for mm, c, r in zip(places, centre, radii))


def _draw_labels(random, places):
    """Two kidneys without their sinus, 0 to 2 tumors: uint8 (Z, Y, X)."""
    z, y, x = np.ix_(*places)
    bumps = sum(np.sin(mm / random.uniform(7, 11) + random.uniform(0, 6)) for mm in (z, y, x))  # (Z, Y, X)
    labels = np.zeros(bumps.shape, dtype=np.uint8)
    bearers = random.permutation([-1, 1])[:random.choice([0, 1, 2], p=[0.05, 0.8, 0.15])]
    for side in (-1, 1):
        centre = random.uniform((-15, -11, 56), (15, 11, 70)) - (8 * side, 0, 0)  # the right one lies lower
        radii = random.uniform((48, 24, 24), (60, 30, 31))
        leaning = z, y, side * x - random.uniform(0.15, 0.35) * (z - centre[0])  # the upper pole, to the spine
        kidney = _squared(leaning, centre, radii) < 1 + 0.04 * bumps
        sinus = _squared(leaning, centre - (0, 0, 0.75 * radii[2]), radii * (0.5, 0.4, 0.75)) < 1
        labels[kidney & ~sinus] = 1
        if side in bearers:
            towards = random.normal((0, 0, 0.6))
            spot = centre + random.uniform(0.75, 1.1) * radii * towards / np.linalg.norm(towards)
            labels[_squared(leaning, spot, [random.uniform(14, 26)] * 3) < 1 + 0.12 * bumps] = 2
    return labels


def _draw_ellipsoids(random, cortex_hu):
    """Organs, then the back: (centre, radii, HU), painted in this order."""
    hollow = [((30, -18, x), (110, 20, 20)) for x in (-108, 108)]  # colon, then stomach and small bowel
    hollow += [(random.uniform((-60, -93, -95), (170, -23, 95)), random.uniform(12, 30, size=3)) for _ in range(18)]
    bowel = []
    for centre, radii in hollow:
        inside_hu = random.choice([cortex_hu, 20, 90, -700]) + random.uniform(-30, 40)
        bowel += [(centre, radii, random.uniform(70, 130)), (centre, np.subtract(radii, 3), inside_hu)]
    blood_hu, bone_hu = cortex_hu + random.uniform(-10, 70), random.uniform(120, 220)
    return [
        *bowel,
        ((-75, -38, -75), (95, 80, 75), cortex_hu - random.uniform(20, 70)),  # liver
        ((-70, 2, 108), (50, 38, 26), cortex_hu - random.uniform(0, 45)),  # spleen
        ((0, -9, 9), (900, 11, 11), blood_hu),  # aorta
        ((0, -7, -19), (900, 13, 12), cortex_hu + random.uniform(-50, 10)),  # cava
        ((0, -5, 0), (6, 6, 58), blood_hu),  # renal vessels, across
        *(((60, 23, x), (170, 22, 17), 60) for x in (-38, 38)),  # psoas
        *(((0, 63, x), (900, 24, 30), 60) for x in (-36, 36)),  # muscles of the back
        ((0, 25, 0), (900, 22, 22), bone_hu + 160), ((0, 25, 0), (900, 19, 19), bone_hu),  # spine
        ((0, 56, 0), (900, 13, 13), bone_hu + 160), ((0, 55, 0), (900, 9, 9), 30),  # the canal in its arches
    ]


def _paint_body(random, hu, places, reach, cortex_hu):
    """Everything but the kidneys, into fat, in place: lungs, organs, the back, the wall with its ribs. (Z, Y, X)"""
    z, y, x = np.ix_(*places)
    depth = max(random.uniform(104, 126), reach[1] + 50)
    width = max(random.uniform(145, 180), reach[2] + 45)
    radius = np.hypot((y + 17) / depth, x / width)[0]  # (Y, X); 1 is the skin
    hu[z < 140 * radius**2 - 185] = -850  # lungs: the diaphragm is a dome
    for centre, radii, value in _draw_ellipsoids(random, cortex_hu):
        box = _box(places, centre, radii)
        hu[box][_squared(np.ix_(*(mm[s] for mm, s in zip(places, box))), centre, radii) < 1] = value
    hu[:, radius > 0.8] = random.uniform(50, 68)  # muscle
    ribs = np.mod(z + 0.35 * y + random.uniform(0, 30), 30) < 9  # they run down and forward
    hu[ribs & (z < 20) & (radius > 0.82)] = random.uniform(280, 380)
    hu[:, radius > 0.87] = FAT_HU
    hu[:, radius > 1] = -1000


def _paint_kidneys(random, hu, labels, places, cortex_hu):
    """Kidneys, the fat around them, cysts and tumors in the box around the labels, in place. (Z, Y, X)"""
    kidney, tumor = labels == 1, labels == 2
    cells = [max(2, round(np.ptp(mm) / GRAIN_MM)) for mm in places]
    means = F.adaptive_avg_pool3d(torch.from_numpy(labels > 0)[None].float(), cells)
    noise = torch.from_numpy(random.standard_normal((1, *cells), dtype=np.float32))
    depth, grain = F.interpolate(torch.stack([means, noise], 1), labels.shape, mode="trilinear")[0].numpy()
    hu[(labels == 0) & (depth > 0.1)] = FAT_HU
    hu[kidney] = cortex_hu
    hu[kidney & (depth > 0.9) & (grain > -0.4)] = cortex_hu - random.uniform(35, 100)  # medulla
    for voxel in random.permutation(np.argwhere(kidney))[:random.integers(0, 3)]:  # cysts, labelled kidney as in KiTS19
        centre = [mm[n] for mm, n in zip(places, voxel)]
        cyst = _squared(np.ix_(*places), centre, [random.uniform(5, 14)] * 3) < 1
        hu[kidney & cyst] = random.uniform(0, 18)
    hu[tumor] = random.uniform(50, 125) + random.uniform(20, 40) * grain[tumor]
    if random.random() < 0.4:  # necrosis
        hu[tumor & (depth > 0.9) & (grain > -0.8)] = random.uniform(15, 35)


def _scan(random, hu):
    """What a scanner makes of it, in place: edges blurred in the plane, noise that is correlated there."""
    noise_sd = random.uniform(10, 24)
    for slab in np.split(hu, range(SLICES_AT_ONCE, len(hu), SLICES_AT_ONCE)):
        noisy = slab + 3 * noise_sd * random.standard_normal(slab.shape, dtype=np.float32)  # the mean leaves a third
        blurred = F.avg_pool2d(torch.from_numpy(noisy), 3, 1, padding=1, count_include_pad=False)
        slab[:] = blurred.round().clamp(-1024).numpy()


def write_cases(out, cases=None, seed=0, labels=None):
    """Writes cases into a folder, a line each. cases: default 10, or as many as the folder `labels` holds."""
    sources = sorted(labels.glob("*/segmentation.nii*"))[:cases] if labels else [None] * (cases or 10)
    if not sources:
        raise ValueError(f"{labels}: no label volumes found, wanted case_00000/segmentation.nii.gz")
    for number, source in enumerate(sources):
        volume = source and read_labels(source)
        name = source.parent.name if source else f"phantom_{number:03d}"
        given = {"labels": volume.voxels, "spacing_mm": volume.spacing_mm} if source else {}
        image, mask, spacing = make_case([seed, number], **given)
        write_image(out / name / "imaging.nii.gz", image, spacing)
        write_image(out / name / "segmentation.nii.gz", mask, spacing)
        print(f"{name}: {mask.shape} voxels, {np.count_nonzero(mask == 2)} of tumor", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Write synthetic KiTS19 cases.")
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME/imaging.nii.gz, segmentation.nii.gz")
    parser.add_argument("--cases", type=int, help="how many (default 10, or all of --labels)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", type=Path, help="folder of case_00000/segmentation.nii.gz to build bodies around")
    try:
        write_cases(**vars(parser.parse_args()))
    except (ValueError, OSError) as error:
        parser.exit(2, f"phantoms: {error}\n")


if __name__ == "__main__":
    main()
